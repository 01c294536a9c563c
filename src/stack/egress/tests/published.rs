//! Published ports: clients from outside, and what pods see of them.

use super::*;
use crate::stack::egress::half_open::MAX_HALF_OPEN;
use crate::wire::bytes::array;

pub(super) fn gateway(six: bool) -> IpAddr {
    match six {
        false => "10.244.1.1".parse().unwrap(),
        true => "fd00:1::1".parse().unwrap(),
    }
}

#[test]
fn a_client_from_outside_reaches_a_pod() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (pod, far) = ends(six);
        let key = FlowKey {
            pod: SocketAddr::new(pod, 80),
            far: SocketAddr::new(far, 5555),
        };
        let ends = (key.pod, key.far);
        let id = lab
            .egress
            .accept(PORT, ends, gateway(six), lab.now, &mut lab.world)
            .unwrap();
        let twice = lab
            .egress
            .accept(PORT, ends, gateway(six), lab.now, &mut lab.world);
        assert_eq!(twice, Err(DropReason::FlowLimit));
        lab.world.streams.insert(
            id,
            Stream {
                room: usize::MAX,
                ..Stream::default()
            },
        );
        lab.turn();
        let syn = lab.world.to_pod.remove(0).0;
        let (flags, seq, _, _) = segment(&syn);
        assert_eq!(flags, SYN);
        assert!(lab.egress.knows(proto::TCP, &key));
        let head = if six { 40 } else { 20 };
        assert_eq!(syn[head..head + 4], [0x15, 0xb3, 0, 80], "the client's own port");
        // The pod refuses: so does the host.
        let mut answer = Pod::new(six, 80).bytes(RST | ACK, b"");
        put_be16(&mut answer, head + 2, 5555);
        put_be32(&mut answer, head + 8, seq + 1);
        lab.input(&answer).unwrap();
        assert_eq!(lab.stream(id).closed, Some(true));
    }
}

/// A pod that says nothing to clients holds some of them, not as many as it may have flows; who has been answered is
/// not among those that give way, nor is what the pod opens itself.
#[test]
fn clients_a_pod_does_not_answer_give_way_to_others() {
    let mut lab = Lab::new();
    let (pod, far) = ends(false);
    let knock = |lab: &mut Lab, n: u16| {
        let client = SocketAddr::new(far, n);
        let ends = (SocketAddr::new(pod, 80), client);
        let id = lab
            .egress
            .accept(PORT, ends, gateway(false), lab.now, &mut lab.world)
            .unwrap();
        let stream = Stream {
            room: usize::MAX,
            ..Stream::default()
        };
        lab.world.streams.insert(id, stream);
        lab.turn();
        id
    };
    Pod::new(false, 4000).send(&mut lab, SYN, b"").unwrap();
    let opened = *lab.world.streams.keys().next().unwrap();
    let answered = knock(&mut lab, 1);
    let syn = lab.world.to_pod.remove(0).0;
    let mut answer = Pod::new(false, 80).bytes(SYN | ACK, b"");
    put_be16(&mut answer, 22, 1);
    put_be32(&mut answer, 28, segment(&syn).1 + 1);
    lab.input(&answer).unwrap();
    let first = knock(&mut lab, 2);
    for n in 1..MAX_HALF_OPEN as u16 {
        knock(&mut lab, 2 + n);
    }
    assert_eq!(lab.egress.counts_of(PORT).0, MAX_HALF_OPEN + 2);
    assert_eq!(lab.stream(first).closed, None);
    for n in 0..1000 {
        knock(&mut lab, 5000 + n);
        assert_eq!(
            lab.egress.counts_of(PORT).0,
            MAX_HALF_OPEN + 2,
            "the oldest gave way"
        );
    }
    assert_eq!(lab.stream(answered).closed, None);
    assert_eq!(lab.stream(opened).closed, None);
    // And a pod that leaves its own questions open does not turn its clients away.
    for n in 0..2 * MAX_HALF_OPEN as u16 {
        Pod::new(false, 6000 + n).send(&mut lab, SYN, b"").unwrap();
    }
    assert_eq!(lab.egress.counts_of(PORT).0, 2 * MAX_HALF_OPEN + 1);
    lab.later(Duration::from_secs(241));
    assert_eq!(lab.egress.counts_of(PORT).0, 1);
    assert_eq!(lab.stream(answered).closed, None);
}

/// A published port of UDP: its number, and its socket's address.
pub(super) fn published(lab: &mut Lab, pod_port: u16, at: &str) -> MouthId {
    let at: SocketAddr = at.parse().unwrap();
    let entrance = Entrance {
        pod: SocketAddr::new(ends(at.is_ipv6()).0, pod_port),
        at,
        gateway: gateway(at.is_ipv6()),
    };
    lab.egress
        .publish(PORT, entrance, lab.now, &mut lab.world)
        .unwrap()
}

fn from(client: &str) -> Heard {
    Heard::Datagram {
        from: client.parse().unwrap(),
        len: 1,
        segment: None,
        class: 0,
        at: None,
    }
}

#[test]
fn a_published_udp_port_hears_everybody_and_answers_by_it() {
    let mut lab = Lab::new();
    let (_, far) = ends(false);
    let id = published(&mut lab, 53, "0.0.0.0:53");
    lab.heard(id, from(&format!("{far}:9")), b"q");
    assert!(lab.world.to_pod[0].0.ends_with(b"q"));
    lab.input(&udp(false, 53, 9, b"a")).unwrap();
    // What it sends by itself, too.
    lab.input(&udp(false, 53, 10, b"a")).unwrap();
    assert_eq!((lab.world.sent[0].mouth, lab.world.sent[1].mouth), (id, id));
    lab.later(Duration::from_secs(10_000));
    assert_eq!(lab.egress.counts().1, 1, "it has no end of its own");
    lab.egress.unpublish(id, &mut lab.world);
    assert_eq!(lab.egress.counts().1, 0);
}

#[test]
fn clients_that_a_pod_cannot_know_are_seen_as_the_gateway() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (loopback, pod) = match six {
            false => ("127.0.0.1", ends(false).0),
            true => ("[::1]", ends(true).0),
        };
        let id = published(&mut lab, 53, &format!("{loopback}:5353"));
        let head = if six { 40 } else { 20 };
        let mut seen = Vec::new();
        for port in [7000, 7001, 7000] {
            lab.heard(id, from(&format!("{loopback}:{port}")), b"q");
            let (packet, _) = lab.world.to_pod.pop().unwrap();
            let src = match six {
                false => IpAddr::from(array::<4>(&packet, 12)),
                true => IpAddr::from(array::<16>(&packet, 8)),
            };
            assert_eq!(src, gateway(six));
            seen.push(be16(&packet, head));
        }
        assert!(seen[0] == seen[2] && seen[0] != seen[1]);
        // The answer to the gateway's port is the client's; to another port of it, nobody's.
        let key = |port| FlowKey {
            pod: SocketAddr::new(pod, 53),
            far: SocketAddr::new(gateway(six), port),
        };
        assert!(lab.egress.knows(proto::UDP, &key(seen[1])));
        assert!(!lab.egress.knows(proto::UDP, &key(seen[1] + 1)));
        lab.input(&udp_to(six, 53, key(seen[1]).far, b"a")).unwrap();
        let Sent { mouth: by, to, .. } = lab.world.sent.pop().unwrap();
        assert_eq!((by, to), (id, format!("{loopback}:7001").parse().unwrap()));
        // By itself it leaves by a socket that leads further.
        lab.input(&udp(six, 53, 9, b"x")).unwrap();
        assert_ne!(lab.world.sent.pop().unwrap().mouth, id);
        assert_eq!(lab.egress.clients(id), (2, 2));
    }
}

#[test]
fn answers_go_by_the_socket_the_client_came_to_whatever_the_policy() {
    let mut lab = Lab::new();
    lab.egress.set_policy(Arc::new(Policy {
        open: false,
        ..policy()
    }));
    let one = published(&mut lab, 53, "192.0.2.1:53");
    let other = published(&mut lab, 53, "192.0.2.2:53");
    let (_, far) = ends(false);
    for (port, id) in [(9, one), (10, other), (9, other)] {
        lab.later(Duration::from_secs(1));
        lab.heard(id, from(&format!("{far}:{port}")), b"q");
        lab.input(&udp(false, 53, port, b"a")).unwrap();
        assert_eq!(lab.world.sent.pop().unwrap().mouth, id);
    }
    assert_eq!(lab.input(&udp(false, 53, 11, b"a")), Err(DropReason::NoRoute));
    lab.egress.unpublish(one, &mut lab.world);
    lab.egress.set_policy(Arc::new(policy()));
    lab.input(&udp(false, 53, 11, b"a")).unwrap();
    assert_eq!(lab.world.sent.pop().unwrap().mouth, other, "the next one leads");
    lab.egress.remove_port(PORT, &mut lab.world);
    assert_eq!(lab.egress.counts(), (0, 0));
}

#[test]
fn what_a_pod_asks_of_the_host_from_a_published_port_is_answered_by_its_name() {
    let mut lab = Lab::new();
    let name = SocketAddr::new(gateway(false), 53);
    lab.egress.set_policy(Arc::new(Policy {
        mapped: vec![Mapping {
            from: name.ip(),
            port: Some(53),
            to: Ipv4Addr::LOCALHOST.into(),
            to_port: Some(40_053),
            by_pod: true,
        }],
        ..policy()
    }));
    let id = published(&mut lab, 5353, "0.0.0.0:5353");
    lab.input(&udp_to(false, 5353, name, b"?")).unwrap();
    assert_eq!(lab.world.sent[0].mouth, id);
    lab.heard(id, from("127.0.0.1:40053"), b"!");
    let (packet, _) = lab.world.to_pod.pop().unwrap();
    assert_eq!((be16(&packet, 20), packet.last()), (53, Some(&b'!')));
    assert_eq!(lab.egress.clients(id), (0, 0), "it is no client");
    lab.heard(id, from("127.0.0.1:7"), b"q");
    assert_eq!(lab.egress.clients(id), (1, 1));
}

/// Whoever can forge a peer's address could have the pod speak to the peer's VXLAN socket, from this host.
#[test]
fn nobody_is_a_client_at_the_port_of_the_overlay() {
    let mut lab = Lab::new();
    lab.egress.set_policy(Arc::new(Policy {
        overlay: Some(8472),
        ..policy()
    }));
    let id = published(&mut lab, 53, "0.0.0.0:53");
    for client in ["10.244.9.9:8472", "169.254.7.7:8472", "198.51.100.9:8472"] {
        lab.heard(id, from(client), b"q");
    }
    assert!(lab.world.to_pod.is_empty());
    assert_eq!(lab.world.lost, [DropReason::EgressDenied; 3]);
    lab.heard(id, from("198.51.100.9:8471"), b"q");
    assert_eq!(lab.world.to_pod.len(), 1);
}
