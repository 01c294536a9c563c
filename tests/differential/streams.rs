//! Inputs for merging: named edge cases (row 51 of the fault table), and streams of random composition.

use super::impair::Rng;
use super::packet::Packet;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// A batch of packets with a name.
pub type Named = (String, Vec<Packet>);

/// `count` segments of one stream, as they are cut from a super-frame.
pub fn train(first: &Packet, count: usize, size: usize) -> Vec<Packet> {
    (0..count)
        .map(|n| Packet {
            seq: first.seq.wrapping_add((n * size) as u32),
            id: first.id.wrapping_add(n as u16),
            // Each begins with its number, so that it is known again.
            payload: (0..size).map(|i| (n + i * 7) as u8).collect(),
            ..first.clone()
        })
        .collect()
}

/// The edges, for each family and transport: one packet of six is changed, or their order is.
pub fn edges() -> Vec<Named> {
    let mut all = Vec::new();
    for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
        let first = Packet {
            v6,
            tcp,
            ..Packet::default()
        };
        let label = format!(
            "IPv{} {}",
            if v6 { 6 } else { 4 },
            if tcp { "TCP" } else { "UDP" }
        );
        let mut add = |what: &str, packets: Vec<Packet>| all.push((format!("{label}: {what}"), packets));
        let six = || train(&first, 6, 500);
        let third = |change: &dyn Fn(&mut Packet)| {
            let mut packets = six();
            change(&mut packets[2]);
            packets
        };
        let each = |change: &dyn Fn(usize, &mut Packet)| {
            let mut packets = six();
            packets.iter_mut().enumerate().for_each(|(n, p)| change(n, p));
            packets
        };
        add("a train", six());
        add("one alone", train(&first, 1, 500));
        add(
            "a short last",
            [six(), train(&first, 7, 500)[6..].to_vec()].concat(),
        );
        let mut short = six();
        short[5].payload.truncate(3);
        add("the last is short", short);
        add("a short one in the middle", third(&|p| p.payload.truncate(400)));
        add("a long one in the middle", third(&|p| p.payload.extend([1; 100])));
        add("an empty one in the middle", third(&|p| p.payload.clear()));
        add("segments of one byte", train(&first, 20, 1));
        add("another TTL", third(&|p| p.ttl = 63));
        add("another type of service", third(&|p| p.tos = 2));
        add("a wrong checksum", third(&|p| p.damage = 1));
        add(
            "a wrong checksum in the first",
            each(&|n, p| p.damage = u16::from(n == 0)),
        );
        add("another flow between", third(&|p| p.port = 9));
        if tcp {
            for (what, flag) in [
                ("PSH", PSH),
                ("FIN", FIN),
                ("PSH and FIN", PSH | FIN),
                ("URG", URG),
                ("ECE", ECE),
                ("CWR", CWR),
                ("SYN", 2),
                ("RST", 4),
            ] {
                add(&format!("{what} in the middle"), third(&|p| p.flags |= flag));
                add(
                    &format!("{what} in the last"),
                    each(&|n, p| p.flags |= if n == 5 { flag } else { 0 }),
                );
                add(
                    &format!("{what} in the first"),
                    each(&|n, p| p.flags |= if n == 0 { flag } else { 0 }),
                );
                add(&format!("{what} in each"), each(&|_, p| p.flags |= flag));
            }
            add("another acknowledgement", third(&|p| p.ack += 1));
            add("another window", third(&|p| p.window += 1));
            add("another timestamp", third(&|p| p.options[7] ^= 1));
            add("fewer options", third(&|p| p.options.truncate(0)));
            let sack = [1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2];
            add("a SACK block", third(&|p| p.options.extend(sack)));
            add("a SACK block in each", each(&|_, p| p.options.extend(sack)));
            add("a gap", [six()[..2].to_vec(), six()[3..].to_vec()].concat());
            add("one twice", [six()[..3].to_vec(), six()[2..].to_vec()].concat());
            let mut swapped = six();
            swapped.swap(2, 3);
            add("two in the wrong order", swapped);
        }
        if !v6 {
            add("identifications jump", third(&|p| p.id = p.id.wrapping_add(100)));
            add(
                "identifications jump from there on",
                each(&|n, p| p.id += if n > 2 { 5 } else { 0 }),
            );
            add("identifications stand still", each(&|_, p| p.id = 7));
            add(
                "identifications stand still at first",
                each(&|n, p| p.id = if n < 2 { 7 } else { 7 + n as u16 }),
            );
            add("an identification falls back", third(&|p| p.id = first.id));
            add("without DF", each(&|_, p| p.df = false));
            add(
                "without DF, identifications stand still",
                each(&|_, p| (p.df, p.id) = (false, 7)),
            );
            add("DF in the middle only", each(&|n, p| p.df = n == 2));
            let options = vec![1; 4];
            add("IP options", each(&|_, p| p.ip_options = options.clone()));
        } else {
            let options = vec![0, 0, 1, 4, 0, 0, 0, 0];
            add(
                "destination options",
                each(&|_, p| p.ip_options = options.clone()),
            );
        }
    }
    all
}

/// Two to four flows in turn, mostly in order, with faults of all kinds here and there.
pub fn random(rng: &mut Rng, most: u64) -> Vec<Packet> {
    let flows = 2 + rng.below(3) as usize;
    let mut heads: Vec<Packet> = (0..flows)
        .map(|n| Packet {
            v6: rng.below(2) == 0,
            tcp: rng.below(3) > 0,
            port: 100 + n as u16,
            seq: rng.next() as u32,
            id: rng.next() as u16,
            ..Packet::default()
        })
        .collect();
    let sizes: Vec<usize> = (0..flows).map(|_| 1 + rng.below(700) as usize).collect();
    let mut at = 0;
    (0..1 + rng.below(most))
        .map(|_| {
            if rng.below(3) == 0 {
                at = rng.below(flows as u64) as usize;
            }
            let head = &mut heads[at];
            let mut packet = head.clone();
            packet.payload = vec![0; sizes[at]];
            rng.fill(&mut packet.payload);
            match rng.below(40) {
                0 => packet.payload.truncate(1 + rng.below(sizes[at] as u64) as usize),
                1 => packet.flags |= PSH,
                2 => packet.ttl -= 1,
                3 => packet.damage = 1,
                4 => packet.tos = 1,
                5 => head.ack += 1,
                6 => packet.options.clear(),
                _ => {}
            }
            packet.ack = head.ack;
            head.seq = head.seq.wrapping_add(packet.payload.len() as u32);
            head.id = head.id.wrapping_add(1);
            assert_eq!(packet.flags & ACK, ACK);
            packet
        })
        .collect()
}

/// What a list of super-frames carries, each by its flow (port) and payload. In an order of its own: the kernel hands
/// on at once what it cannot merge, so that it may overtake a train that is held back.
pub fn carried(frames: &[(podwire::wire::VnetHdr, Vec<u8>)]) -> Vec<(u16, Vec<u8>)> {
    let mut all: Vec<(u16, Vec<u8>)> = frames
        .iter()
        .map(|(_, frame)| {
            let h = podwire::wire::Headers::parse(frame).expect("a packet");
            let payload = h.l4 + h.l4_len(frame);
            (h.ports(frame).0, frame[payload..h.end].to_vec())
        })
        .collect();
    all.sort_unstable();
    all
}

/// The same in short, for people.
pub fn lengths(carried: &[(u16, Vec<u8>)]) -> Vec<(u16, usize)> {
    carried
        .iter()
        .map(|(port, payload)| (*port, payload.len()))
        .collect()
}
