//! Clients at sockets of the host whose backends are pods of peers.

use super::*;
use crate::model::{Backend, BackendPhase, Frontend, Scheduler, ServiceChange, Transport, VirtualServer};

/// What node 2's pod at `.2` answers to a segment from port 80: `flags`, and everything acknowledged.
pub(super) fn answer(to: &[u8], flags: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
    let h = Headers::parse(to).unwrap();
    let mut tcp = vec![0; 20];
    tcp[0..2].copy_from_slice(&to[h.l4 + 2..h.l4 + 4]);
    tcp[2..4].copy_from_slice(&to[h.l4..h.l4 + 2]);
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    let acked = u32::from_be_bytes(to[h.l4 + 4..h.l4 + 8].try_into().unwrap()) + 1;
    tcp[8..12].copy_from_slice(&acked.to_be_bytes());
    tcp[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    tcp.extend(payload);
    let IpAddr::V4(far) = h.src(to) else {
        panic!("IPv4")
    };
    let gateway = Mac::of_ipv4(Ipv4Addr::new(10, 244, 2, 1));
    let mut f = [gateway.0, spec(2, 2).mac.0].concat();
    f.extend([8, 0, 0x45, 0]);
    f.extend(((20 + tcp.len()) as u16).to_be_bytes());
    f.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    f.extend(spec(2, 2).ip4.unwrap().octets());
    f.extend(far.octets());
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(&mut f, 24, sum);
    f.extend(tcp);
    let h = Headers::parse(&f).unwrap();
    let sum = pseudo(&f, &h, h.end - h.l4).with(&f[h.l4..h.end]).finish();
    put_be16(&mut f, h.l4 + 16, sum);
    f
}

/// Carry what node `from` sent to the peer over to `to`.
pub(super) fn carry(from: &mut Lab, n: u8, to: &mut Lab) {
    for (_, datagrams) in std::mem::take(&mut from.out.to_peers) {
        to.receive(n, &datagrams);
    }
}

#[test]
fn a_pod_of_a_peer_serves_a_client_of_a_socket_here() {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let backend = SocketAddr::new(spec(2, 2).ip4.unwrap().into(), 80);
    let client = "127.0.0.1:5000".parse().unwrap();
    let turn = |a: &mut Lab| {
        a.node.turn_egress(a.now, &mut a.out);
        a.settle();
    };
    a.node
        .let_in(PortId::SERVICES, (backend, client), NOW, &mut a.out)
        .unwrap();
    turn(&mut a);
    carry(&mut a, 1, &mut b);
    let (port, _, syn) = b.out.to_pods.pop().expect("a SYN");
    assert_eq!(port, PortId(0));
    let h = Headers::parse(&syn).unwrap();
    assert_eq!(
        h.src(&syn),
        IpAddr::from([10, 244, 1, 1]),
        "the gateway stands for the client"
    );
    assert!(transport_is_right(&syn, &h));

    // One that was damaged on its way is not believed.
    let mut broken = answer(&syn, 0x12, 77, b"");
    let at = broken.len() - 1;
    broken[at] ^= 1;
    b.send(0, &VnetHdr::default(), &broken);
    carry(&mut b, 2, &mut a);
    assert_eq!(a.dropped(DropReason::BadChecksum), 1);

    b.send(0, &VnetHdr::default(), &answer(&syn, 0x12, 77, b""));
    carry(&mut b, 2, &mut a);
    turn(&mut a);
    carry(&mut a, 1, &mut b);
    let (_, _, ack) = b.out.to_pods.pop().expect("an acknowledgement");
    assert_eq!(ack[34 + 13], 0x10);
    assert_eq!(a.node.egress().unwrap().counts().0, 1);

    // The pod breaks it off.
    b.send(0, &VnetHdr::default(), &answer(&syn, 0x14, 78, b""));
    carry(&mut b, 2, &mut a);
    turn(&mut a);
    assert_eq!(a.node.egress().unwrap().counts().0, 0);
    a.balanced();
    b.balanced();
}

pub(super) const VIP: [u8; 4] = [10, 96, 0, 1];

/// A Service at [`VIP`] with these backends, port 80 to port 8080.
pub(super) fn service(backends: &[(Ipv4Addr, bool)]) -> ServiceChange {
    let frontend = Frontend {
        at: (VIP, 80).into(),
        transport: Transport::Tcp,
    };
    let what = VirtualServer {
        service: "web".parse().unwrap(),
        port: String::new(),
        scheduler: Scheduler::RoundRobin,
        affinity: None,
        local_only: false,
        at_host: false,
        backends: backends
            .iter()
            .map(|(ip, local)| Backend {
                at: (*ip, 8080).into(),
                phase: BackendPhase::Ready,
                local: *local,
            })
            .collect(),
    };
    ServiceChange::Set(frontend, Arc::new(what))
}

/// A super-frame of pod `2` of node 1 to `dst`, with the flags of an opening segment if it is to open.
pub(super) fn to_service(lab: &Lab, payload: usize, opens: bool) -> (VnetHdr, Vec<u8>) {
    let (vnet, mut frame) = bulk(lab.gateway(), VIP.into(), payload);
    if opens {
        frame[34 + 13] = 2;
    }
    (vnet, frame)
}

pub(super) fn ends(frame: &[u8]) -> (SocketAddr, SocketAddr) {
    let h = Headers::parse(frame).unwrap();
    let (from, to) = h.ports(frame);
    (
        SocketAddr::new(h.src(frame), from),
        SocketAddr::new(h.dst(frame), to),
    )
}

pub(super) fn at(ip: Ipv4Addr, port: u16) -> SocketAddr {
    (ip, port).into()
}

/// What the pod with `mac`, on the node with `gateway`, answers to a frame, with a checksum left to the device.
pub(super) fn reply(frame: &[u8], gateway: Mac, mac: Mac, flags: u8) -> (VnetHdr, Vec<u8>) {
    let (client, backend) = ends(frame);
    let (IpAddr::V4(client_ip), IpAddr::V4(backend_ip)) = (client.ip(), backend.ip()) else {
        panic!("IPv4")
    };
    let mut f = ipv4(gateway, 2, client_ip, 6, &[0; 20]);
    f[6..12].copy_from_slice(&mac.0);
    f[26..30].copy_from_slice(&backend_ip.octets());
    put_be16(&mut f, 24, 0);
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(&mut f, 24, sum);
    put_be16(&mut f, 34, backend.port());
    put_be16(&mut f, 36, client.port());
    f[46..48].copy_from_slice(&[0x50, flags]);
    let h = Headers::parse(&f).unwrap();
    let sum = pseudo(&f, &h, h.end - h.l4).fold();
    put_be16(&mut f, 50, sum);
    let vnet = VnetHdr {
        partial: Some((34, 16)),
        ..VnetHdr::default()
    };
    (vnet, f)
}

#[test]
fn a_virtual_address_leads_to_a_pod_here_and_back() {
    let mut a = Lab::new(1);
    let (client, backend) = (spec(1, 2).ip4.unwrap(), spec(1, 3).ip4.unwrap());
    a.node.apply_services(vec![service(&[(backend, true)])], NOW);
    for (payload, opens) in [(0, true), (60_000, false)] {
        let (vnet, frame) = to_service(&a, payload, opens);
        a.send(0, &vnet, &frame);
        let (port, out, got) = a.out.to_pods.pop().expect("it is there");
        assert_eq!((port, out), (PortId(1), vnet), "a super-frame stays one");
        assert_eq!(ends(&got), (at(client, 12345), at(backend, 8080)));
        let h = Headers::parse(&got).unwrap();
        assert_eq!(be16(&got, 50), pseudo(&got, &h, h.end - h.l4).fold());
        assert_eq!(got[54..], frame[54..]);
        // The answer stays on the node's switch.
        let (vnet, answer) = reply(&got, spec(1, 2).mac, spec(1, 3).mac, 0x12);
        a.send(1, &vnet, &answer);
        let (port, _, got) = a.out.to_pods.pop().expect("an answer");
        assert_eq!(port, PortId(0));
        assert_eq!(ends(&got), (at(VIP.into(), 80), at(client, 12345)));
    }
    a.balanced();
}

#[test]
fn a_virtual_address_leads_to_a_pod_of_a_peer_and_back() {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let (client, backend) = (spec(1, 2).ip4.unwrap(), spec(2, 2).ip4.unwrap());
    a.node.apply_services(vec![service(&[(backend, false)])], NOW);
    let (vnet, frame) = to_service(&a, 0, true);
    a.send(0, &vnet, &frame);
    carry(&mut a, 1, &mut b);
    let (_, _, got) = b.out.to_pods.pop().expect("it is there");
    assert_eq!(
        ends(&got),
        (at(client, 12345), at(backend, 8080)),
        "the client's own address"
    );
    assert!(transport_is_right(&got, &Headers::parse(&got).unwrap()));
    let (vnet, answer) = reply(&got, b.gateway(), spec(2, 2).mac, 0x12);
    b.send(0, &vnet, &answer);
    carry(&mut b, 2, &mut a);
    let (_, _, got) = a.out.to_pods.pop().expect("an answer");
    assert_eq!(ends(&got), (at(VIP.into(), 80), at(client, 12345)));
    assert!(transport_is_right(&got, &Headers::parse(&got).unwrap()));
    a.balanced();
    b.balanced();
}

#[test]
fn a_pod_reaches_itself_through_a_virtual_address() {
    let mut a = Lab::new(1);
    let own = spec(1, 2).ip4.unwrap();
    a.node.apply_services(vec![service(&[(own, true)])], NOW);
    let (vnet, frame) = to_service(&a, 0, true);
    a.send(0, &vnet, &frame);
    let (port, _, got) = a.out.to_pods.pop().expect("it is there");
    assert_eq!(port, PortId(0));
    let (from, to) = ends(&got);
    assert_eq!((from.ip(), to), ([10, 244, 1, 1].into(), at(own, 8080)));
    let (vnet, answer) = reply(&got, a.gateway(), spec(1, 2).mac, 0x12);
    a.send(0, &vnet, &answer);
    let (port, _, got) = a.out.to_pods.pop().expect("an answer");
    assert_eq!(port, PortId(0));
    assert_eq!(ends(&got), (at(VIP.into(), 80), at(own, 12345)));
    a.balanced();
}

#[test]
fn who_is_not_served_is_told_at_once() {
    let mut a = Lab::new(1);
    a.node.apply_services(vec![service(&[])], NOW);
    let (vnet, frame) = to_service(&a, 0, true);
    a.send(0, &vnet, &frame);
    let (_, _, got) = a.out.to_pods.pop().expect("a reset");
    assert_eq!(ends(&got).0, at(VIP.into(), 80));
    assert_eq!(got[34 + 13] & 4, 4);
    assert_eq!(a.dropped(DropReason::NoBackend), 1);
    // Another port of the address, by UDP.
    let udp = [[0x30, 0x39, 0, 53, 0, 9, 0, 0].as_slice(), b"x"].concat();
    let frame = ipv4(a.gateway(), 2, VIP.into(), 17, &udp);
    a.send(0, &VnetHdr::default(), &frame);
    let (_, _, got) = a.out.to_pods.pop().expect("an ICMP error");
    assert_eq!((got[23], got[34], got[35]), (1, 3, 3), "port unreachable");
    assert_eq!(a.dropped(DropReason::NoService), 1);
    // An echo request is answered.
    let mut echo = vec![8, 0, 0, 0, 0, 1, 0, 1, 7, 7];
    let sum = Sum::default().with(&echo).finish();
    put_be16(&mut echo, 2, sum);
    let frame = ipv4(a.gateway(), 2, VIP.into(), 1, &echo);
    a.send(0, &VnetHdr::default(), &frame);
    let (_, _, got) = a.out.to_pods.pop().expect("an echo reply");
    let h = Headers::parse(&got).unwrap();
    assert_eq!((h.src(&got), got[34]), (IpAddr::from(VIP), 0));
    assert_eq!(Sum::default().with(&got[34..]).finish(), 0);
    a.balanced();
}

#[test]
fn a_client_of_a_socket_reaches_a_backend_here_and_one_of_a_peer() {
    for local in [true, false] {
        let (mut a, mut b) = (Lab::new(1), Lab::new(2));
        let backend = spec(if local { 1 } else { 2 }, 2).ip4.unwrap();
        a.node.apply_services(vec![service(&[(backend, local)])], NOW);
        let client: SocketAddr = "198.51.100.9:5000".parse().unwrap();
        let vip = at(VIP.into(), 80);
        a.node.accept(None, (vip, client), NOW, &mut a.out).unwrap();
        a.node.turn_egress(a.now, &mut a.out);
        a.settle();
        carry(&mut a, 1, &mut b);
        let to = if local { &mut a } else { &mut b };
        let (_, _, syn) = to.out.to_pods.pop().expect("a SYN");
        let (from, dest) = ends(&syn);
        assert_eq!(dest, at(backend, 8080));
        match local {
            true => assert_eq!(from, client, "the client's own address"),
            false => assert_eq!(from.ip(), IpAddr::from([10, 244, 1, 1]), "its answers come here"),
        }
        // The backend refuses.
        let n = if local { 1 } else { 2 };
        let seq = u32::from_be_bytes(syn[38..42].try_into().unwrap());
        let (vnet, mut rst) = reply(&syn, to.gateway(), spec(n, 2).mac, 0x14);
        rst[42..46].copy_from_slice(&(seq + 1).to_be_bytes());
        to.send(0, &vnet, &rst);
        carry(&mut b, 2, &mut a);
        a.node.turn_egress(a.now, &mut a.out);
        assert_eq!(a.node.egress().unwrap().counts().0, 0, "local: {local}");
        a.balanced();
        b.balanced();
    }
}

#[test]
fn a_client_of_a_socket_is_told_when_its_backend_is_gone() {
    let mut a = Lab::new(1);
    let backend = spec(1, 3).ip4.unwrap();
    a.node.apply_services(vec![service(&[(backend, true)])], NOW);
    let vip = at(VIP.into(), 80);
    a.node
        .accept(None, (vip, "198.51.100.9:5000".parse().unwrap()), NOW, &mut a.out)
        .unwrap();
    a.node.turn_egress(a.now, &mut a.out);
    let (_, _, syn) = a.out.to_pods.pop().expect("a SYN");
    let seq = u32::from_be_bytes(syn[38..42].try_into().unwrap());
    let (vnet, mut answer) = reply(&syn, a.gateway(), spec(1, 3).mac, 0x12);
    answer[42..46].copy_from_slice(&(seq + 1).to_be_bytes());
    a.send(1, &vnet, &answer);
    a.node.apply_services(vec![service(&[])], NOW);
    // Its acknowledgement finds nobody.
    a.node.turn_egress(a.now, &mut a.out);
    a.node.turn_egress(a.now, &mut a.out);
    assert_eq!(a.node.egress().unwrap().counts().0, 0);
    let refused = a
        .node
        .accept(None, (vip, "198.51.100.9:5001".parse().unwrap()), NOW, &mut a.out);
    assert_eq!(refused, Err(DropReason::NoBackend));
    a.balanced();
}

/// A UDP Service at [`VIP`], with a backend of a peer.
pub(super) fn udp_service(backend: Ipv4Addr) -> ServiceChange {
    match service(&[(backend, false)]) {
        ServiceChange::Set(frontend, what) => ServiceChange::Set(
            Frontend {
                transport: Transport::Udp,
                ..frontend
            },
            what,
        ),
        other => other,
    }
}

#[test]
fn what_is_open_to_pods_here_is_not_open_to_those_of_peers() {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let gateway = IpAddr::from([10, 244, 1, 1]);
    a.node.set_policy(Arc::new(Policy {
        mapped: vec![crate::stack::egress::Mapping {
            from: gateway,
            port: None,
            to: [127, 0, 0, 1].into(),
            to_port: None,
            by_pod: false,
        }],
        ..Policy::default()
    }));
    // A pod here is led to the host, which has no sockets in this test.
    let (vnet, mut frame) = bulk(a.gateway(), [10, 244, 1, 1].into(), 0);
    frame[34 + 13] = 2;
    a.send(0, &vnet, &frame);
    assert_eq!(a.dropped(DropReason::HostSockets), 1);
    // One of a peer is refused by the gateway itself.
    let mut frame = [b.gateway().0, spec(2, 2).mac.0].concat();
    frame.extend(&answer_to_gateway(2)[12..]);
    b.send(0, &VnetHdr::default(), &frame);
    carry(&mut b, 2, &mut a);
    assert_eq!(a.dropped(DropReason::HostSockets), 1, "it was led to the host");
    carry(&mut a, 1, &mut b);
    let (_, _, got) = b.out.to_pods.pop().expect("a reset");
    assert_eq!(got[34 + 13] & 4, 4);
    a.balanced();
}

/// Make the checksum of an IPv4 header right again.
pub(super) fn sum_again(f: &mut [u8]) {
    put_be16(f, 24, 0);
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(f, 24, sum);
}

/// A TCP segment of node 2's pod at `.2` to node 1's gateway, with these flags.
fn answer_to_gateway(flags: u8) -> Vec<u8> {
    let mut tcp = [0; 20];
    tcp[..4].copy_from_slice(&[0x1f, 0x90, 0, 80]);
    let mut asked = ipv4(Mac([0; 6]), 2, spec(2, 2).ip4.unwrap(), 6, &tcp);
    asked[26..30].copy_from_slice(&[10, 244, 1, 1]);
    sum_again(&mut asked);
    answer(&asked, flags, 7, b"")
}

#[test]
fn fragments_of_an_answer_come_in_one_batch() {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let backend = spec(2, 2).ip4.unwrap();
    a.node.apply_services(vec![udp_service(backend)], NOW);
    let udp = [[0x13, 0x88, 0, 80, 0, 9, 0, 0].as_slice(), b"x"].concat();
    let mut asked = ipv4(a.gateway(), 2, VIP.into(), 17, &udp);
    asked[26..30].copy_from_slice(&[198, 51, 100, 9]);
    sum_again(&mut asked);
    let h = Headers::parse(&asked).unwrap();
    let verdict = a.node.services.forward(&mut asked, &h, None, None, NOW);
    assert_eq!(verdict, crate::service::Verdict::Translated);
    let (masked, _) = ends(&asked);
    assert_eq!(masked.ip(), IpAddr::from([10, 244, 1, 1]));
    for (offset, more) in [(0u16, 0x2000u16), (3, 0)] {
        let mut part = [0u8; 24];
        if offset == 0 {
            part[0..2].copy_from_slice(&8080u16.to_be_bytes());
            part[2..4].copy_from_slice(&masked.port().to_be_bytes());
            part[4..6].copy_from_slice(&48u16.to_be_bytes());
        }
        let mut f = ipv4(b.gateway(), 2, [10, 244, 1, 1].into(), 17, &part);
        f[6..12].copy_from_slice(&spec(2, 2).mac.0);
        f[26..30].copy_from_slice(&backend.octets());
        put_be16(&mut f, 20, more | offset);
        sum_again(&mut f);
        b.read(0, &VnetHdr::default(), &f);
    }
    b.settle();
    let all: Vec<Vec<u8>> = std::mem::take(&mut b.out.to_peers)
        .into_iter()
        .flat_map(|(_, datagrams)| datagrams)
        .filter(|d| d.len() == 8 + 14 + 20 + 24 && d[8 + 23] == 17)
        .collect();
    assert_eq!(all.len(), 2);
    a.receive(2, &all);
    assert_eq!(a.dropped(DropReason::FragmentForNode), 0);
    // No mouth awaits it in this test, so that it is for nobody; but it is whole, and the client's.
    assert_eq!(a.dropped(DropReason::NoRoute), 1);
    a.balanced();
}

#[test]
fn a_client_of_a_socket_is_told_when_its_service_is_gone() {
    for what in ["before it answers", "after"] {
        let mut a = Lab::new(1);
        let backend = spec(1, 3).ip4.unwrap();
        a.node.apply_services(vec![service(&[(backend, true)])], NOW);
        let vip = at(VIP.into(), 80);
        a.node
            .accept(None, (vip, "198.51.100.9:5000".parse().unwrap()), NOW, &mut a.out)
            .unwrap();
        let gone = ServiceChange::Gone(Frontend {
            at: vip,
            transport: Transport::Tcp,
        });
        if what == "after" {
            a.node.turn_egress(a.now, &mut a.out);
            let (_, _, syn) = a.out.to_pods.pop().expect("a SYN");
            let seq = u32::from_be_bytes(syn[38..42].try_into().unwrap());
            let (vnet, mut answer) = reply(&syn, a.gateway(), spec(1, 3).mac, 0x12);
            answer[42..46].copy_from_slice(&(seq + 1).to_be_bytes());
            a.send(1, &vnet, &answer);
        }
        a.node.apply_services(vec![gone], NOW);
        assert!(
            a.node.turn_egress(a.now, &mut a.out),
            "{what}: there is more to do at once"
        );
        a.node.turn_egress(a.now, &mut a.out);
        assert_eq!(a.node.egress().unwrap().counts().0, 0, "{what}");
        a.balanced();
    }
}

#[test]
fn a_backend_nothing_leads_to_refuses() {
    let mut a = Lab::new(1);
    a.node
        .apply_services(vec![service(&[([192, 0, 2, 77].into(), false)])], NOW);
    let client = "198.51.100.9:5000".parse().unwrap();
    a.node
        .accept(None, (at(VIP.into(), 80), client), NOW, &mut a.out)
        .unwrap();
    a.node.turn_egress(a.now, &mut a.out);
    a.node.turn_egress(a.now, &mut a.out);
    assert_eq!(a.node.egress().unwrap().counts().0, 0);
    a.balanced();
}

#[test]
fn a_flow_of_the_host_keeps_to_the_path_to_a_peer() {
    let mut a = Lab::new(1);
    let narrow = Peer {
        mtu: Some(UnderlayMtu(1400)),
        ..peer(2)
    };
    a.node.apply(Change::PeerSet(narrow)).unwrap();
    let mut wanted = 0;
    for payload in [60_000, 1410, 1300, 100] {
        wanted += payload;
        let (vnet, mut frame) = bulk(a.gateway(), spec(2, 2).ip4.unwrap(), payload);
        let h = Headers::parse(&frame).unwrap();
        let span = Span::new(0, frame.len());
        a.node.counters.originated += 1;
        let f = super::super::from_pod::Parsed { span, h, vnet };
        a.node.onward(&mut frame, &f, NOW, &mut a.out).unwrap();
    }
    a.settle();
    assert_eq!(a.dropped(DropReason::TooBig), 0);
    let datagrams = a.out.to_peers.iter().flat_map(|(_, d)| d);
    let inner = datagrams.map(|d| &d[8..]).filter(|f| f[23] == 6);
    let mut got = 0;
    for f in inner {
        let h = Headers::parse(f).unwrap();
        assert!(h.end - 14 <= 1350, "{} bytes", h.end - 14);
        assert!(transport_is_right(f, &h));
        got += h.end - h.l4 - 20;
    }
    assert_eq!(got, wanted);
    a.balanced();
}

#[test]
fn many_clients_of_sockets_have_a_packet_each_in_a_turn() {
    let mut a = Lab::new(1);
    let backend = spec(2, 2).ip4.unwrap();
    a.node.apply_services(vec![service(&[(backend, false)])], NOW);
    for n in 0..400u16 {
        let client = SocketAddr::from(([198, 51, 100, 9], 5000 + n));
        a.node
            .accept(None, (at(VIP.into(), 80), client), NOW, &mut a.out)
            .unwrap();
    }
    a.node.turn_egress(a.now, &mut a.out);
    a.settle();
    assert_eq!(a.dropped(DropReason::StackFull), 0);
    a.balanced();
}

#[test]
fn a_service_has_its_ports_of_a_hosts_address_and_no_others() {
    let mut a = Lab::new(1);
    a.node.set_policy(Arc::new(Policy {
        open: true,
        ..Policy::default()
    }));
    let backend = spec(1, 3).ip4.unwrap();
    let host = Ipv4Addr::new(192, 0, 2, 99);
    let ServiceChange::Set(frontend, what) = service(&[(backend, true)]) else {
        unreachable!()
    };
    let at = SocketAddr::new(host.into(), 80);
    let what = VirtualServer {
        at_host: true,
        ..(*what).clone()
    };
    let set = ServiceChange::Set(Frontend { at, ..frontend }, Arc::new(what));
    a.node.apply_services(vec![set], NOW);
    let syn = |to_port: u16| {
        let mut tcp = [
            0x30, 0x39, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0x50, 2, 1, 0, 0, 0, 0, 0,
        ];
        tcp[2..4].copy_from_slice(&to_port.to_be_bytes());
        ipv4(Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1)), 2, host, 6, &tcp)
    };
    a.send(0, &VnetHdr::default(), &syn(80));
    let (port, _, got) = a.out.to_pods.pop().expect("it is there");
    assert_eq!(
        (port, ends(&got).1),
        (PortId(1), super::services::at(backend, 8080))
    );
    // What is the host's leaves; the host has no sockets in this test.
    a.send(0, &VnetHdr::default(), &syn(22));
    assert_eq!(a.dropped(DropReason::HostSockets), 1);
    let echo = [8, 0, 0xf7, 0xfe, 0, 0, 0, 1];
    let frame = ipv4(a.gateway(), 2, host, 1, &echo);
    a.send(0, &VnetHdr::default(), &frame);
    assert_eq!(a.dropped(DropReason::HostSockets), 2);
    assert!(a.out.to_pods.is_empty());
    a.balanced();
}
