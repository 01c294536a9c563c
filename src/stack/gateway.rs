//! The host behind the node's own addresses: gateway, VTEP, and the gateway's link-local.
//!
//! ```text
//! input -> [queue of 64 packets] -> poll: smoltcp Interface -> emit, at most one answer for each packet
//! ```
//!
//! smoltcp sits on an in-memory device of the medium "IP": who sits behind which MAC is decided elsewhere,
//! and an answer goes out whatever its destination. There are no sockets yet, so everything it has to say is
//! the immediate answer to one packet, and both work and memory of a `poll` are bounded by the queue.

use crate::model::{DropReason, Instant, PodMtu};
use crate::wire::bytes::{array, be16};
use crate::wire::{IPV4_LEN, IPV6_LEN};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Packets waiting for the next `poll`: two bursts.
const QUEUE: usize = 64;
/// smoltcp is built with `iface-max-addr-count-8`; a node has five addresses.
const MAX_ADDRESSES: usize = 8;
/// The longest IP packet: an IPv6 header and 65,535 bytes.
const LONGEST: usize = IPV6_LEN + 0xffff;

/// A smoltcp host that answers for the node's own addresses.
pub struct Gateway {
    interface: Interface,
    sockets: SocketSet<'static>,
    addresses: Vec<IpAddr>,
    queue: Queue,
    scratch: Vec<u8>,
    mtu: PodMtu,
    /// A packet is being answered.
    at_work: bool,
}

impl Gateway {
    /// A host with these addresses: the first eight of them that are unicast. `mtu` bounds what it sends,
    /// `seed` is for smoltcp's random numbers.
    pub fn new(addresses: &[IpAddr], mtu: PodMtu, seed: u64) -> Gateway {
        let usable = |ip: &&IpAddr| !ip.is_unspecified() && !ip.is_multicast() && !is_broadcast(**ip);
        let addresses: Vec<IpAddr> = addresses
            .iter()
            .filter(usable)
            .take(MAX_ADDRESSES)
            .copied()
            .collect();
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut queue = Queue::default();
        let mut scratch = Vec::with_capacity(usize::from(mtu.0));
        let mut link = Link {
            queue: &mut queue,
            scratch: &mut scratch,
            mtu,
            emit: &mut |_| {},
        };
        let mut interface = Interface::new(config, &mut link, Instant::ZERO);
        interface.update_ip_addrs(|own| {
            for ip in &addresses {
                // A host prefix: no broadcast address of a subnet is answered, and every other destination
                // takes the default route.
                let length = if ip.is_ipv4() { 32 } else { 128 };
                let _ = own.push(IpCidr::new(IpAddress::from(*ip), length));
            }
        });
        for ip in &addresses {
            let _ = match ip {
                IpAddr::V4(via) => interface.routes_mut().add_default_ipv4_route(*via),
                IpAddr::V6(via) => interface.routes_mut().add_default_ipv6_route(*via),
            };
        }
        let sockets = SocketSet::new(Vec::new());
        Gateway {
            interface,
            sockets,
            addresses,
            queue,
            scratch,
            mtu,
            at_work: false,
        }
    }

    /// Take an IP packet for one of the own addresses; it is answered by the next [`poll`](Gateway::poll).
    /// `packet` begins with its IP header. TCP and UDP checksums may be partial and are not looked at, ICMP
    /// is verified.
    ///
    /// # Errors
    /// `StackFull` when too many packets wait; `BadIpHeader`, `Oversized`, `NotForNode` (another's address),
    /// `FragmentForNode` and `SpoofedIp` (a source that is no single host).
    pub fn input(&mut self, packet: &[u8], _now: Instant) -> Result<(), DropReason> {
        let (src, dst, fragment) = addresses_of(packet).ok_or(DropReason::BadIpHeader)?;
        if packet.len() > LONGEST {
            return Err(DropReason::Oversized);
        }
        if !self.addresses.contains(&dst) {
            return Err(DropReason::NotForNode);
        }
        // Reassembly is state that anybody can fill, and smoltcp has it for IPv4 only: not worth it for a ping.
        if fragment {
            return Err(DropReason::FragmentForNode);
        }
        // An answer to it would go to the node's own host, to many, or round in a circle.
        let own = self.addresses.contains(&src);
        if own || src.is_unspecified() || src.is_loopback() || src.is_multicast() || is_broadcast(src) {
            return Err(DropReason::SpoofedIp);
        }
        if self.queue.push(packet) {
            Ok(())
        } else {
            Err(DropReason::StackFull)
        }
    }

    /// Let the stack work on all that waits, and give each IP packet it sends to `emit`. Checksums of these
    /// packets are complete, and none is longer than the MTU.
    pub fn poll(&mut self, now: Instant, mut emit: impl FnMut(&[u8])) {
        let mut link = Link {
            queue: &mut self.queue,
            scratch: &mut self.scratch,
            mtu: self.mtu,
            emit: &mut emit,
        };
        self.at_work = true;
        self.interface.poll(now, &mut link, &mut self.sockets);
        self.at_work = false;
    }

    /// After a panic: who sent the packet that was being answered, if one was. It is forgotten, and the next
    /// [`poll`](Gateway::poll) goes on behind it.
    pub fn give_up(&mut self) -> Option<IpAddr> {
        let packet = self.queue.last().filter(|_| std::mem::take(&mut self.at_work))?;
        addresses_of(packet).map(|(src, _, _)| src)
    }

    /// Whether packets wait for [`poll`](Gateway::poll).
    pub fn is_idle(&self) -> bool {
        self.queue.len == 0
    }
}

fn is_broadcast(ip: IpAddr) -> bool {
    // Class E as well: no host may have such an address (RFC 1122 section 3.2.1.3).
    matches!(ip, IpAddr::V4(v4) if v4.octets()[0] >= 240)
}

/// Source, destination, and whether it is a fragment.
fn addresses_of(packet: &[u8]) -> Option<(IpAddr, IpAddr, bool)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= IPV4_LEN => {
            let ip = |at| IpAddr::V4(Ipv4Addr::from(array::<4>(packet, at)));
            // smoltcp built without reassembly would take a fragment for a whole packet.
            Some((ip(12), ip(16), be16(packet, 6) & 0x3fff != 0))
        }
        6 if packet.len() >= IPV6_LEN => {
            let ip = |at| IpAddr::V6(Ipv6Addr::from(array::<16>(packet, at)));
            Some((ip(8), ip(24), packet[6] == 44))
        }
        _ => None,
    }
}

/// A ring of packets whose buffers are kept, so that a busy gateway does not allocate.
#[derive(Default)]
struct Queue {
    slots: Vec<Vec<u8>>,
    first: usize,
    len: usize,
}

impl Queue {
    fn push(&mut self, packet: &[u8]) -> bool {
        if self.len == QUEUE {
            return false;
        }
        if self.slots.is_empty() {
            self.slots.resize_with(QUEUE, Vec::new);
        }
        let slot = &mut self.slots[(self.first + self.len) % QUEUE];
        slot.clear();
        slot.extend_from_slice(packet);
        self.len += 1;
        true
    }

    /// What was popped last.
    fn last(&self) -> Option<&[u8]> {
        let at = (self.first + QUEUE - 1) % QUEUE;
        self.slots.get(at).map(Vec::as_slice)
    }

    fn pop(&mut self) -> Option<&[u8]> {
        if self.len == 0 {
            return None;
        }
        let at = self.first;
        self.first = (at + 1) % QUEUE;
        self.len -= 1;
        Some(&self.slots[at])
    }
}

/// The device smoltcp sees during one `poll`.
struct Link<'a> {
    queue: &'a mut Queue,
    scratch: &'a mut Vec<u8>,
    mtu: PodMtu,
    emit: &'a mut dyn FnMut(&[u8]),
}

impl Device for Link<'_> {
    type RxToken<'t>
        = Received<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Sender<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Sender<'_>)> {
        let packet = self.queue.pop()?;
        Some((
            Received(packet),
            Sender {
                scratch: self.scratch,
                emit: self.emit,
            },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sender<'_>> {
        Some(Sender {
            scratch: self.scratch,
            emit: self.emit,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        // What a pod sends has passed no wire yet: its kernel leaves TCP and UDP checksums partial. What
        // came from a peer is not verified either: nothing here believes a payload.
        let mut checksum = ChecksumCapabilities::default();
        checksum.tcp = Checksum::Tx;
        checksum.udp = Checksum::Tx;
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = usize::from(self.mtu.0);
        caps.checksum = checksum;
        caps
    }
}

struct Received<'t>(&'t [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Sender<'t> {
    scratch: &'t mut Vec<u8>,
    emit: &'t mut dyn FnMut(&[u8]),
}

impl phy::TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // Zeros first: smoltcp does not write reserved fields.
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let result = f(self.scratch);
        (self.emit)(self.scratch);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::probe::{self, Echo};
    use smoltcp::wire::*;

    const POD4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
    const GW4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 1);
    const POD6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
    const GW6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
    const GW_LL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    fn gateway() -> Gateway {
        let own: [IpAddr; 5] = [
            GW4.into(),
            Ipv4Addr::new(10, 244, 1, 0).into(),
            GW6.into(),
            Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0).into(),
            GW_LL.into(),
        ];
        Gateway::new(&own, PodMtu(1450), 42)
    }

    fn ip(src: IpAddr, dst: IpAddr, proto: u8, payload: &[u8]) -> Vec<u8> {
        let repr = IpRepr::new(src.into(), dst.into(), IpProtocol::from(proto), payload.len(), 64);
        let mut b = vec![0; repr.header_len()];
        repr.emit(&mut b[..], &ChecksumCapabilities::default());
        b.extend(payload);
        b
    }

    fn echo(src: IpAddr, dst: IpAddr, data: &[u8]) -> Vec<u8> {
        let caps = ChecksumCapabilities::default();
        let mut m = vec![0; 8 + data.len()];
        match (src, dst) {
            (IpAddr::V4(_), _) => {
                let repr = Icmpv4Repr::EchoRequest {
                    ident: 7,
                    seq_no: 9,
                    data,
                };
                repr.emit(&mut Icmpv4Packet::new_unchecked(&mut m[..]), &caps);
                ip(src, dst, 1, &m)
            }
            (IpAddr::V6(s), IpAddr::V6(d)) => {
                let repr = Icmpv6Repr::EchoRequest {
                    ident: 7,
                    seq_no: 9,
                    data,
                };
                repr.emit(&s, &d, &mut Icmpv6Packet::new_unchecked(&mut m[..]), &caps);
                ip(src, dst, 58, &m)
            }
            _ => unreachable!(),
        }
    }

    /// A UDP header with a checksum as unfinished as a kernel leaves it.
    fn udp(payload: &[u8]) -> Vec<u8> {
        let len = (8 + payload.len() as u16).to_be_bytes();
        [&[0x30, 0x39, 0, 99, len[0], len[1], 0xbe, 0xef][..], payload].concat()
    }

    fn syn() -> Vec<u8> {
        let mut b = vec![
            0x30, 0x39, 0, 99, 0, 0, 0, 100, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0xbe, 0xef, 0, 0,
        ];
        b[13] = 2;
        b
    }

    fn answers(g: &mut Gateway) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        g.poll(Instant::ZERO, |p| all.push(p.to_vec()));
        all
    }

    fn one_answer(g: &mut Gateway, packet: &[u8]) -> Vec<u8> {
        g.input(packet, Instant::ZERO).unwrap();
        let mut all = answers(g);
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    fn both() -> [(IpAddr, IpAddr); 3] {
        let far: IpAddr = [192, 0, 2, 9].into();
        [
            (POD4.into(), GW4.into()),
            (POD6.into(), GW6.into()),
            (far, GW4.into()),
        ]
    }

    #[test]
    fn echo_up_to_the_mtu_from_near_and_far() {
        let mut g = gateway();
        for (src, dst) in both().into_iter().chain([(POD6.into(), GW_LL.into())]) {
            let room = 1450 - if src.is_ipv4() { 28 } else { 48 };
            for len in [0, 56, room] {
                let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
                let reply = one_answer(&mut g, &echo(src, dst, &data));
                let want = Echo::Reply { ident: 7, seq: 9 };
                assert_eq!(probe::parse(&reply), Some((dst, want)));
                assert!(reply.ends_with(&data) && reply.len() <= 1450);
            }
            // A longer one cannot be sent back whole, and is not sent in part.
            g.input(&echo(src, dst, &vec![1; room + 1]), Instant::ZERO)
                .unwrap();
            assert!(answers(&mut g).is_empty());
        }
        let mut damaged = echo(POD4.into(), GW4.into(), b"abc");
        damaged[30] ^= 1;
        g.input(&damaged, Instant::ZERO).unwrap();
        assert!(answers(&mut g).is_empty(), "ICMP checksums are verified");
    }

    #[test]
    fn closed_ports_refuse_although_checksums_are_partial() {
        let mut g = gateway();
        for (src, dst) in both() {
            let (head, unreachable): (usize, [u8; 2]) =
                if src.is_ipv4() { (20, [3, 3]) } else { (40, [1, 4]) };
            for payload in [&b"hello"[..], &[0; 20_000]] {
                let packet = ip(src, dst, 17, &udp(payload));
                let reply = one_answer(&mut g, &packet);
                assert_eq!(reply[head..head + 2], unreachable);
                assert_eq!(addresses_of(&reply), Some((dst, src, false)));
                assert_eq!(
                    reply[2 * head + 8..2 * head + 12],
                    packet[head..head + 4],
                    "the ports are quoted"
                );
                assert!(reply.len() <= 1280);
            }
            let reply = one_answer(&mut g, &ip(src, dst, 6, &syn()));
            let tcp = TcpPacket::new_checked(&reply[head..]).unwrap();
            assert!(tcp.rst() && tcp.verify_checksum(&dst.into(), &src.into()));
            assert_eq!((tcp.dst_port(), tcp.ack_number()), (12345, TcpSeqNumber(101)));
        }
    }

    #[test]
    fn strangers_and_impossible_senders_are_refused() {
        let mut g = gateway();
        let now = Instant::ZERO;
        let to = |src: [u8; 4], dst: [u8; 4]| ip(src.into(), dst.into(), 17, &udp(b""));
        let pod = POD4.octets();
        let gw = GW4.octets();
        let mut fragment = to(pod, gw);
        fragment[6] = 0x20;
        for (name, packet, reason) in [
            (
                "another's address",
                to(pod, [10, 244, 1, 9]),
                DropReason::NotForNode,
            ),
            ("broadcast", to(pod, [10, 244, 1, 255]), DropReason::NotForNode),
            (
                "IPv6 loopback",
                ip(POD6.into(), Ipv6Addr::LOCALHOST.into(), 17, &[]),
                DropReason::NotForNode,
            ),
            ("fragment", fragment, DropReason::FragmentForNode),
            (
                "IPv6 fragment",
                ip(POD6.into(), GW6.into(), 44, &[17, 0, 0, 1]),
                DropReason::FragmentForNode,
            ),
            ("from loopback", to([127, 0, 0, 1], gw), DropReason::SpoofedIp),
            ("from nowhere", to([0; 4], gw), DropReason::SpoofedIp),
            ("from itself", to(gw, gw), DropReason::SpoofedIp),
            ("from all", to([255; 4], gw), DropReason::SpoofedIp),
            ("empty", vec![], DropReason::BadIpHeader),
            ("neither", vec![0x50; 60], DropReason::BadIpHeader),
            ("cut off", to(pod, gw)[..19].to_vec(), DropReason::BadIpHeader),
            (
                "giant",
                [to(pod, gw), vec![0; 66_000]].concat(),
                DropReason::Oversized,
            ),
        ] {
            assert_eq!(g.input(&packet, now), Err(reason), "{name}");
        }
        assert!(g.is_idle());
    }

    #[test]
    fn the_queue_is_bounded_and_keeps_order() {
        let mut g = gateway();
        for round in 0..3 {
            for n in 0..QUEUE {
                let data = [round as u8, n as u8];
                g.input(&echo(POD4.into(), GW4.into(), &data), Instant::ZERO)
                    .unwrap();
            }
            let extra = echo(POD4.into(), GW4.into(), b"x");
            assert_eq!(g.input(&extra, Instant::ZERO), Err(DropReason::StackFull));
            let got = answers(&mut g);
            assert_eq!(got.len(), QUEUE);
            assert!(
                got.iter()
                    .enumerate()
                    .all(|(n, p)| p.ends_with(&[round as u8, n as u8]))
            );
            assert!(g.is_idle() && answers(&mut g).is_empty());
        }
    }

    #[test]
    fn unusable_addresses_are_left_out() {
        let odd: Vec<IpAddr> = ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"]
            .iter()
            .map(|a| a.parse().unwrap())
            .chain((0..20).map(|n| IpAddr::from([10, 0, 0, n])))
            .collect();
        assert_eq!(Gateway::new(&odd, PodMtu(1450), 0).addresses.len(), MAX_ADDRESSES);
        let mut none = Gateway::new(&[], PodMtu(1450), 0);
        assert_eq!(
            none.input(&echo(POD4.into(), GW4.into(), b""), Instant::ZERO),
            Err(DropReason::NotForNode)
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(1000))]
        #[test]
        fn no_bytes_break_it(
            kind in 0..9,
            changes in proptest::collection::vec((0usize..90, proptest::num::u8::ANY), 0..8),
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
            cut in 20usize..400,
        ) {
            let protos = [0u8, 1, 2, 6, 17, 43, 50, 51, 58, 59, 60, 135];
            let proto = protos[noise.first().map_or(0, |b| usize::from(*b) % protos.len())];
            let mut b = match kind {
                0 => echo(POD4.into(), GW4.into(), &noise),
                1 => echo(POD6.into(), GW6.into(), &noise),
                2 => ip(POD4.into(), GW4.into(), 17, &udp(&noise)),
                3 => ip(POD6.into(), GW6.into(), 17, &udp(&noise)),
                4 => ip(POD4.into(), GW4.into(), 6, &[&syn()[..], &noise].concat()),
                5 => ip(POD6.into(), GW6.into(), 6, &[&syn()[..], &noise].concat()),
                6 => ip(POD4.into(), GW4.into(), proto, &noise),
                7 => ip(POD6.into(), GW6.into(), proto, &noise),
                _ => noise.clone(),
            };
            for (at, v) in changes {
                if let Some(x) = b.get_mut(at) { *x = v; }
            }
            b.truncate(cut);
            // Put right what would end the story too early: addresses, header and ICMP checksums.
            if b.len() >= 40 && b[0] >> 4 == 6 {
                b[8..24].copy_from_slice(&POD6.octets());
                b[24..40].copy_from_slice(&GW6.octets());
                if let Ok(p) = Ipv6Packet::new_checked(&mut b[..])
                    && p.next_header() == IpProtocol::Icmpv6 && p.total_len() >= 44
                {
                    let end = p.total_len();
                    let mut m = Icmpv6Packet::new_unchecked(&mut b[40..end]);
                    m.fill_checksum(&POD6, &GW6);
                }
            } else if b.len() >= 20 && b[0] >> 4 == 4 {
                b[12..16].copy_from_slice(&POD4.octets());
                b[16..20].copy_from_slice(&GW4.octets());
                b[6..8].fill(0);
                let head = usize::from(b[0] & 15) * 4;
                if (20..=b.len()).contains(&head) {
                    Ipv4Packet::new_unchecked(&mut b[..]).fill_checksum();
                }
            }
            let mut g = gateway();
            if g.input(&b, Instant::ZERO).is_ok() {
                g.poll(Instant::ZERO, |p| {
                    assert!(p.len() <= 1450);
                    assert!(addresses_of(p).is_some());
                });
                assert!(g.is_idle());
            }
        }
    }
}
