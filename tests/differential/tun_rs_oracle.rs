//! The same beside the crate tun-rs, whose offload functions (a port of wireguard-go's) work on IP packets in memory.
//!
//! Where rule sets agree results must too, byte by byte. Where not, podwire follows the kernel and merges less:
//! tun-rs looks neither at the window nor at identifications, takes a segment that comes one place too early to the
//! front of its train, and lets a packet continue any train of its flow, not only the newest, also across an empty
//! segment. It merges no FIN, and has no limit for UDP.

use super::impair::Rng;
use super::packet::{self, Packet};
use super::streams::{self, carried, lengths};
use podwire::wire::{ETH_LEN, Gso, VnetHdr};
use tun_rs::{GROTable, VirtioNetHdr, gso_split};

const HEADER: usize = tun_rs::VIRTIO_NET_HDR_LEN;
/// What no virtio-net header begins with: a buffer whose packet went into another still has it.
const UNTOUCHED: u8 = 0xee;

/// A header of tun-rs counts from the IP header on.
fn with_ethernet(theirs: &VirtioNetHdr) -> VnetHdr {
    let gso = match theirs.gso_type {
        1 => Gso::Tcp4,
        4 => Gso::Tcp6,
        5 => Gso::Udp,
        _ => return VnetHdr::default(),
    };
    let ethernet = ETH_LEN as u16;
    VnetHdr {
        partial: Some((theirs.csum_start + ethernet, theirs.csum_offset)),
        gso,
        ecn: false,
        hdr_len: theirs.hdr_len + ethernet,
        gso_size: theirs.gso_size,
    }
}

/// tun-rs's super-frames of a batch, with Ethernet headers put back.
fn merge_theirs(frames: &[Vec<u8>]) -> Vec<(VnetHdr, Vec<u8>)> {
    let mut buffers: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| {
            let mut buffer = Vec::with_capacity(HEADER + 70_000);
            buffer.extend([UNTOUCHED; HEADER]);
            buffer.extend(&frame[ETH_LEN..]);
            buffer
        })
        .collect();
    GROTable::new()
        .apply_gro(&mut buffers, HEADER, true)
        .expect("it merges");
    let written = buffers.iter().filter(|b| b[0] != UNTOUCHED);
    written
        .map(|buffer| {
            let header = VirtioNetHdr::decode(&buffer[..HEADER]).expect("a header");
            let v6 = buffer[HEADER] >> 4 == 6;
            let like = frames
                .iter()
                .find(|f| (f[12] == 0x86) == v6)
                .expect("one of that family");
            (
                with_ethernet(&header),
                [&like[..ETH_LEN], &buffer[HEADER..]].concat(),
            )
        })
        .collect()
}

/// Whether tun-rs has the kernel's rules for an input.
fn agrees(what: &str) -> bool {
    let differs = [
        "an empty one",
        // Its identification is missed where it was taken from.
        "another flow between",
        "window",
        "identification",
        "without DF, identifications stand still",
        "FIN",
        "two in the wrong order",
        "CWR",
        "ECE in each",
    ];
    !differs.iter().any(|d| what.contains(d))
}

/// Merging.
pub fn merge() {
    let mut compared = 0;
    let mut compare = |what: &str, packets: &[Packet]| {
        let frames: Vec<Vec<u8>> = packets.iter().map(Packet::frame).collect();
        let (ours, theirs) = (packet::merge(&frames), merge_theirs(&frames));
        let (our, their) = (carried(&ours), carried(&theirs));
        assert_eq!(lengths(&our), lengths(&their), "{what}");
        let sorted = |mut list: Vec<(VnetHdr, Vec<u8>)>| {
            list.sort_by(|a, b| a.1.cmp(&b.1));
            list
        };
        assert_eq!(sorted(ours), sorted(theirs), "{what}");
        compared += 1;
    };
    for (what, packets) in streams::edges().iter().filter(|(what, _)| agrees(what)) {
        compare(what, packets);
    }
    let mut rng = Rng(43);
    for round in 0..300 {
        compare(&format!("stream {round}"), &streams::random(&mut rng, 60));
    }
    assert!(compared > 360, "{compared} inputs");
}

/// Splitting.
pub fn split() {
    let mut rng = Rng(44);
    for round in 0..400 {
        let (v6, tcp) = (round % 2 == 0, round % 4 < 2);
        let size = 1 + rng.below(2000) as u16;
        let most = (usize::from(size) * 128).min(64_000) as u64;
        let mut payload = vec![0; 1 + rng.below(most) as usize];
        rng.fill(&mut payload);
        let packet = Packet {
            v6,
            tcp,
            options: vec![1; 4 * rng.below(11) as usize],
            flags: rng.next() as u8,
            seq: rng.next() as u32,
            id: rng.next() as u16,
            tos: rng.next() as u8,
            payload,
            ..Packet::default()
        };
        let (frame, vnet) = (packet.unfinished(), packet.vnet(size));
        let (start, offset) = vnet.partial.expect("it has one");
        let header = VirtioNetHdr {
            flags: 1,
            gso_type: vnet.emit()[1],
            hdr_len: vnet.hdr_len - ETH_LEN as u16,
            gso_size: size,
            csum_start: start - ETH_LEN as u16,
            csum_offset: offset,
        };
        let mut out = vec![vec![0; 66_000]; 128];
        let mut sizes = vec![0; 128];
        let mut input = frame[ETH_LEN..].to_vec();
        let n = gso_split(&mut input, header, &mut out, &mut sizes, 0, v6).expect("it splits");
        let theirs = out.iter().zip(&sizes).take(n);
        let theirs: Vec<Vec<u8>> = theirs
            .map(|(b, len)| [&frame[..ETH_LEN], &b[..*len]].concat())
            .collect();
        assert!(packet::split(&frame, &vnet) == theirs, "round {round}: {vnet:?}");
    }
}
