//! Clients at node ports, and pods that know a backend by two addresses: whose packets are whose, and what fits a path.

use super::services::{VIP, at, carry, ends, reply, service, sum_again, to_service, udp_service};
use super::*;
use crate::model::{Frontend, ServiceChange};
use crate::wire::proto;

fn narrow() -> Peer {
    Peer {
        mtu: Some(UnderlayMtu(1400)),
        ..peer(2)
    }
}

/// A UDP packet from the gateway to node 2's pod, as the way in makes it; its checksum is left to others.
fn datagram(six: bool, payload: usize) -> (VnetHdr, Vec<u8>) {
    let body: Vec<u8> = (0..payload).map(|i| (i * 7) as u8).collect();
    let mut udp = [0x80, 1, 0, 80, 0, 0, 0, 0].to_vec();
    put_be16(&mut udp, 4, (8 + payload) as u16);
    udp.extend(body);
    let mut f = vec![0; 12];
    if six {
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        f.extend((udp.len() as u16).to_be_bytes());
        f.extend([proto::UDP, 64]);
        f.extend(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1).octets());
        f.extend(spec(2, 2).ip6.unwrap().octets());
    } else {
        f.extend([8, 0, 0x45, 0]);
        f.extend(((20 + udp.len()) as u16).to_be_bytes());
        f.extend([0, 0, 0x40, 0, 64, proto::UDP, 0, 0, 10, 244, 1, 1]);
        f.extend(spec(2, 2).ip4.unwrap().octets());
        sum_again(&mut f);
    }
    f.extend(udp);
    let h = Headers::parse(&f).unwrap();
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, h.l4 + 6, sum);
    let vnet = VnetHdr {
        partial: Some((h.l4 as u16, 6)),
        ..VnetHdr::default()
    };
    (vnet, f)
}

/// Hand a frame on as the way in does.
fn onward(lab: &mut Lab, vnet: VnetHdr, mut frame: Vec<u8>) {
    let h = Headers::parse(&frame).unwrap();
    let span = Span::new(0, frame.len());
    lab.node.counters.originated += 1;
    let f = super::super::from_pod::Parsed { span, h, vnet };
    lab.node.onward(&mut frame, &f, NOW, &mut lab.out).unwrap();
}

/// The IP packets of UDP that left to peers.
fn packets(lab: &Lab) -> Vec<Vec<u8>> {
    let all = lab.out.to_peers.iter().flat_map(|(_, d)| d);
    all.map(|d| d[8 + 14..].to_vec())
        .filter(|p| match p[0] >> 4 {
            4 => p[9] == proto::UDP,
            _ => p[6] == proto::UDP || p[6] == 44,
        })
        .collect()
}

/// Put the fragments of IP packets together, each in its order; the transport messages.
fn whole(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut messages: Vec<(u32, Vec<u8>)> = Vec::new();
    for p in packets {
        let (ident, offset, payload) = match p[0] >> 4 {
            4 => {
                assert_eq!(Sum::default().with(&p[..20]).finish(), 0);
                assert_eq!(usize::from(be16(p, 2)), p.len());
                (
                    u32::from(be16(p, 4)),
                    usize::from(be16(p, 6) & 0x1fff) * 8,
                    &p[20..],
                )
            }
            _ if p[6] == 44 => {
                assert_eq!((usize::from(be16(p, 4)) + 40, p[40]), (p.len(), proto::UDP));
                let ident = u32::from_be_bytes(p[44..48].try_into().unwrap());
                (ident, usize::from(be16(p, 42) & !7), &p[48..])
            }
            _ => (u32::MAX, 0, &p[40..]),
        };
        if offset == 0 {
            messages.push((ident, Vec::new()));
        }
        let message = &mut messages.iter_mut().rev().find(|m| m.0 == ident).unwrap().1;
        assert_eq!(message.len(), offset);
        message.extend(payload);
    }
    messages.into_iter().map(|m| m.1).collect()
}

#[test]
fn a_datagram_of_the_host_keeps_to_the_path_to_a_peer() {
    for six in [false, true] {
        let mut a = Lab::new(1);
        a.node.apply(Change::PeerSet(narrow())).unwrap();
        for payload in [10, 1400, 1472, 4000, 65_400] {
            let (vnet, frame) = datagram(six, payload);
            let h = Headers::parse(&frame).unwrap();
            onward(&mut a, vnet, frame.clone());
            a.settle();
            assert_eq!(a.dropped(DropReason::TooBig), 0, "{payload}");
            let packets = packets(&a);
            assert!(packets.iter().all(|p| p.len() <= 1350), "{payload}");
            let got = whole(&packets);
            assert_eq!(got.len(), 1, "{payload}");
            assert_eq!(got[0][8..], frame[h.l4 + 8..], "{payload}");
            let sum = pseudo(&frame, &h, h.end - h.l4).with(&got[0]).finish();
            assert_eq!(sum, 0, "{payload}: its checksum");
            a.out.to_peers.clear();
        }
        // Several at once, in a train.
        let (vnet, frame) = datagram(six, 3 * 1400 + 100);
        let h = Headers::parse(&frame).unwrap();
        let train = VnetHdr {
            gso: Gso::Udp,
            gso_size: 1400,
            hdr_len: (h.l4 + 8) as u16,
            ..vnet
        };
        onward(&mut a, train, frame.clone());
        a.settle();
        let got = whole(&packets(&a));
        let payloads: Vec<u8> = got.iter().flat_map(|m| m[8..].to_vec()).collect();
        let lengths: Vec<usize> = got.iter().map(|m| m.len() - 8).collect();
        assert_eq!(lengths, [1400, 1400, 1400, 100]);
        assert_eq!(payloads, frame[h.l4 + 8..]);
        a.balanced();
    }
}

/// The way in cuts to what pods of this node take; a path may take less.
#[test]
fn fragments_are_cut_again() {
    let mut a = Lab::new(1);
    a.node.apply(Change::PeerSet(narrow())).unwrap();
    let (_, frame) = datagram(false, 2800);
    let h = Headers::parse(&frame).unwrap();
    for (n, (from, to)) in [(0, 1424), (1424, 2808)].into_iter().enumerate() {
        let mut part = frame[..h.l4].to_vec();
        part.extend(&frame[h.l4 + from..h.l4 + to]);
        put_be16(&mut part, 16, (20 + to - from) as u16);
        put_be16(&mut part, 18, 99);
        put_be16(&mut part, 20, (from / 8) as u16 | if n == 0 { 0x2000 } else { 0 });
        sum_again(&mut part);
        onward(&mut a, VnetHdr::default(), part);
    }
    a.settle();
    let packets = packets(&a);
    assert!(packets.len() > 2 && packets.iter().all(|p| p.len() <= 1350));
    let more: Vec<bool> = packets.iter().map(|p| be16(p, 6) & 0x2000 != 0).collect();
    assert!(!more[more.len() - 1] && more[..more.len() - 1].iter().all(|m| *m));
    assert_eq!(whole(&packets)[0][8..], frame[h.l4 + 8..]);
    a.balanced();
}

/// While the underlay takes nothing, frames wait: nobody may think they are lost.
#[test]
fn what_waits_is_in_no_count() {
    let mut a = Lab::new(1);
    a.out.blocked = true;
    let (vnet, frame) = datagram(false, 100);
    onward(&mut a, vnet, frame);
    a.balanced();
    // An error that the node is about to send.
    let frame = ipv4(a.gateway(), 2, [10, 244, 1, 77].into(), proto::UDP, &[0; 8]);
    a.read(0, &VnetHdr::default(), &frame);
    assert_eq!(a.dropped(DropReason::NoSuchPod), 1);
    a.balanced();
    let waited = a.node.counters().originated;
    a.out.blocked = false;
    a.settle();
    assert!(a.node.counters().originated >= waited + 2, "both are there now");
    a.balanced();
}

/// A UDP packet of pod 2 from port 5353.
fn asked(lab: &Lab, to: SocketAddr) -> Vec<u8> {
    let mut udp = [0x14, 0xe9, 0, 0, 0, 9, 0, 0, 7];
    put_be16(&mut udp, 2, to.port());
    let IpAddr::V4(ip) = to.ip() else { panic!("IPv4") };
    ipv4(lab.gateway(), 2, ip, proto::UDP, &udp)
}

/// The answer of pod 3 to a UDP packet it got.
fn answered(lab: &Lab, got: &[u8]) -> Vec<u8> {
    let (from, to) = ends(got);
    let mut udp = [0, 0, 0, 0, 0, 9, 0, 0, 8];
    put_be16(&mut udp, 0, to.port());
    put_be16(&mut udp, 2, from.port());
    let IpAddr::V4(ip) = from.ip() else { panic!("IPv4") };
    let mut f = ipv4(lab.gateway(), 3, ip, proto::UDP, &udp);
    f[6..12].copy_from_slice(&spec(1, 3).mac.0);
    f
}

#[test]
fn a_client_that_asks_a_backend_by_both_its_addresses_knows_which_one_answered() {
    let mut a = Lab::new(1);
    let (client, backend) = (
        at(spec(1, 2).ip4.unwrap(), 5353),
        at(spec(1, 3).ip4.unwrap(), 8080),
    );
    a.node
        .apply_services(vec![udp_service(spec(1, 3).ip4.unwrap())], NOW);
    let vip = at(VIP.into(), 80);
    let ask = |a: &mut Lab, to: SocketAddr| {
        let frame = asked(a, to);
        a.send(0, &VnetHdr::default(), &frame);
        let (port, _, got) = a.out.to_pods.pop().expect("it is there");
        assert_eq!(port, PortId(1));
        got
    };
    let hear = |a: &mut Lab, got: &[u8]| {
        let frame = answered(a, got);
        a.send(1, &VnetHdr::default(), &frame);
        let (port, _, got) = a.out.to_pods.pop().expect("an answer");
        assert_eq!((port, ends(&got).1), (PortId(0), client));
        ends(&got).0
    };
    let first = ask(&mut a, vip);
    assert_eq!(ends(&first).0, client);
    assert_eq!(hear(&mut a, &first), vip);
    for _ in 0..3 {
        let direct = ask(&mut a, backend);
        assert_eq!(ends(&direct), (client, backend), "as ever");
        let by_vip = ask(&mut a, vip);
        assert_eq!(
            ends(&by_vip).0.ip(),
            IpAddr::from([10, 244, 1, 1]),
            "it is masked now"
        );
        assert_eq!(hear(&mut a, &direct), backend);
        assert_eq!(hear(&mut a, &by_vip), vip);
    }
    assert_eq!(a.node.services().connections(None), 1);
    a.balanced();
}

#[test]
fn a_connection_beside_one_through_a_virtual_address_is_refused_from_the_same_port() {
    let mut a = Lab::new(1);
    let (client, backend) = (spec(1, 2).ip4.unwrap(), spec(1, 3).ip4.unwrap());
    a.node.apply_services(vec![service(&[(backend, true)])], NOW);
    let (vnet, syn) = to_service(&a, 0, true);
    a.send(0, &vnet, &syn);
    let (_, _, got) = a.out.to_pods.pop().expect("it is there");
    let (vnet, answer) = reply(&got, spec(1, 2).mac, spec(1, 3).mac, 0x12);
    a.send(1, &vnet, &answer);
    a.out.to_pods.clear();
    let direct = |a: &Lab, to_port: u16, flags: u8| {
        let (vnet, mut f) = bulk(a.gateway(), backend, 0);
        put_be16(&mut f, 36, to_port);
        f[34 + 13] = flags;
        (vnet, f)
    };
    for open in [false, true] {
        if open {
            let (vnet, ack) = to_service(&a, 0, false);
            a.send(0, &vnet, &ack);
            a.out.to_pods.clear();
        }
        let (vnet, frame) = direct(&a, 8080, 2);
        a.send(0, &vnet, &frame);
        let (port, _, got) = a.out.to_pods.pop().expect("a reset");
        assert_eq!((port, got[34 + 13] & 4), (PortId(0), 4), "open: {open}");
        assert_eq!(ends(&got), (at(backend, 8080), at(client, 12345)));
        assert!(transport_is_right(&got, &Headers::parse(&got).unwrap()));
        assert_eq!(EthView(&got).dst(), spec(1, 2).mac);
        assert!(a.out.to_pods.is_empty(), "the backend hears nothing");
        assert_eq!(a.dropped(DropReason::PortTaken), 1 + u64::from(open));
    }
    // Another port is another connection.
    let (vnet, frame) = direct(&a, 8081, 2);
    a.send(0, &vnet, &frame);
    assert_eq!(a.out.to_pods.pop().expect("it is there").0, PortId(1));
    // What is over does not stand in the way.
    let (vnet, mut over) = to_service(&a, 0, false);
    over[34 + 13] = 4;
    a.send(0, &vnet, &over);
    a.out.to_pods.clear();
    let (vnet, frame) = direct(&a, 8080, 2);
    a.send(0, &vnet, &frame);
    assert_eq!(a.out.to_pods.pop().expect("it is there").0, PortId(1));
    a.balanced();
}

/// The other way round: the node learns of the connection there was before from the backend's answer.
#[test]
fn a_virtual_address_leaves_a_connection_alone_that_was_there_before() {
    let mut a = Lab::new(1);
    let (client, backend) = (spec(1, 2).ip4.unwrap(), spec(1, 3).ip4.unwrap());
    a.node.apply_services(vec![service(&[(backend, true)])], NOW);
    let (vnet, syn) = to_service(&a, 0, true);
    a.send(0, &vnet, &syn);
    let (_, _, got) = a.out.to_pods.pop().expect("it is there");
    // The backend knows this port of the client: a challenge (RFC 5961 section 4.2).
    let (answer_vnet, challenge) = reply(&got, spec(1, 2).mac, spec(1, 3).mac, 0x10);
    a.send(1, &answer_vnet, &challenge);
    let (_, _, got) = a.out.to_pods.pop().expect("an answer");
    assert_eq!(ends(&got).1, at(client, 12345));
    // The client, which knows of no such connection, breaks it off. The backend must not hear that.
    let (rst_vnet, mut rst) = to_service(&a, 0, false);
    rst[34 + 13] = 4;
    a.send(0, &rst_vnet, &rst);
    assert!(a.out.to_pods.is_empty());
    assert_eq!(a.dropped(DropReason::UnknownConnection), 1);
    // It asks again, and is somebody else now.
    a.send(0, &vnet, &syn);
    let (_, _, got) = a.out.to_pods.pop().expect("it is there");
    assert_eq!(ends(&got).0.ip(), IpAddr::from([10, 244, 1, 1]));
    let (answer_vnet, answer) = reply(&got, a.gateway(), spec(1, 3).mac, 0x12);
    a.send(1, &answer_vnet, &answer);
    let (_, _, got) = a.out.to_pods.pop().expect("an answer");
    assert_eq!(ends(&got).0, at(VIP.into(), 80));
    a.balanced();
}

/// Link-local addresses are a pod's as well.
#[test]
fn a_pod_that_is_gone_leaves_nothing_by_any_of_its_addresses() {
    let mut a = Lab::new(1);
    let vip: Ipv6Addr = "fd00:10:96::1".parse().unwrap();
    let ServiceChange::Set(frontend, what) = udp_service(spec(2, 2).ip4.unwrap()) else {
        unreachable!()
    };
    let mut what = (*what).clone();
    what.backends[0].at = (spec(2, 2).ip6.unwrap(), 8080).into();
    let frontend = Frontend {
        at: (vip, 80).into(),
        ..frontend
    };
    a.node
        .apply_services(vec![ServiceChange::Set(frontend, Arc::new(what))], NOW);
    let pod = spec(1, 2);
    for from in [pod.ip6.unwrap(), pod.mac.link_local()] {
        let udp = [0x14, 0xe9, 0, 80, 0, 9, 1, 1, 7];
        let mut f = [a.gateway().0, pod.mac.0].concat();
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, udp.len() as u8, proto::UDP, 64]);
        f.extend(from.octets());
        f.extend(vip.octets());
        f.extend(udp);
        a.send(0, &VnetHdr::default(), &f);
    }
    assert_eq!(a.node.services().connections(None), 2);
    a.node.remove_port(&pod.pod, &mut a.out).unwrap();
    assert_eq!(a.node.services().connections(None), 0);
    a.balanced();
}

/// The client of a node port whose backend is on a node that says nobody is there.
#[test]
fn a_client_of_a_socket_is_told_what_a_peer_says_of_its_backend() {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let backend = spec(2, 9).ip4.unwrap();
    a.node.apply_services(vec![service(&[(backend, false)])], NOW);
    let client: SocketAddr = "198.51.100.9:5000".parse().unwrap();
    a.node
        .accept(None, (at(VIP.into(), 80), client), NOW, &mut a.out)
        .unwrap();
    a.node.turn_egress(a.now, &mut a.out);
    a.settle();
    carry(&mut a, 1, &mut b);
    assert_eq!(b.dropped(DropReason::NoSuchPod), 1);
    carry(&mut b, 2, &mut a);
    assert_eq!(a.dropped(DropReason::EgressProtocol), 0);
    assert_eq!(a.node.egress().unwrap().counts().0, 0, "it need not wait");
    a.balanced();
    b.balanced();
}

/// What waited for the end of the turn went nowhere then: the next turn is to be at once.
#[test]
fn a_client_of_a_socket_is_told_at_once_that_there_is_no_way() {
    let mut a = Lab::new(1);
    a.node
        .apply_services(vec![service(&[(spec(2, 9).ip4.unwrap(), false)])], NOW);
    let client: SocketAddr = "198.51.100.9:5000".parse().unwrap();
    a.node
        .accept(None, (at(VIP.into(), 80), client), NOW, &mut a.out)
        .unwrap();
    a.node.turn_egress(a.now, &mut a.out);
    assert!(!a.node.has_resets());
    a.node
        .apply(crate::model::Change::PeerGone(peer(2).name))
        .unwrap();
    a.settle();
    assert!(a.node.has_resets());
    assert!(a.node.turn_egress(a.now, &mut a.out), "its flow has more to do");
    assert!(!a.node.has_resets());
    a.node.turn_egress(a.now, &mut a.out);
    assert_eq!(a.node.egress().unwrap().counts().0, 0);
    a.balanced();
}
