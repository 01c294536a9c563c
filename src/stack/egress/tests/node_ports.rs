//! Ports that lead to Services: all of them have one port of the node, and each its own share.

use super::published::gateway;
use super::*;
use crate::stack::egress::half_open::MAX_HALF_OPEN;

fn vip(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 244, 1, 0], 30_000 + u16::from(n)))
}

fn client(n: u16) -> SocketAddr {
    SocketAddr::new(ends(false).1, n)
}

/// A client at a Service's port, or at a pod's.
fn knock(lab: &mut Lab, port: PortId, to: SocketAddr, from: SocketAddr) -> Result<FlowId, DropReason> {
    let (now, world) = (lab.now, &mut lab.world);
    let id = lab.egress.accept(port, (to, from), gateway(false), now, world)?;
    let room = usize::MAX;
    lab.world.streams.insert(
        id,
        Stream {
            room,
            ..Stream::default()
        },
    );
    lab.turn();
    Ok(id)
}

fn few(descriptors: usize) -> Lab {
    let mut lab = Lab::new();
    lab.egress.set_policy(Arc::new(Policy {
        descriptors: Some(descriptors),
        ..policy()
    }));
    lab
}

#[test]
fn no_node_port_takes_what_others_need() {
    // 100 flows in all, 80 of one.
    let mut lab = few(160);
    let mut taken = [0; 5];
    for (n, taken) in taken.iter_mut().enumerate() {
        for from in 1..=200 {
            match knock(&mut lab, PortId::SERVICES, vip(n as u8), client(from)) {
                Ok(_) => *taken += 1,
                Err(why) => assert_eq!(why, DropReason::FlowLimit),
            }
        }
        assert!(*taken > 0, "{taken:?}");
    }
    // Each leaves as many as it has.
    assert_eq!(taken, [50, 25, 13, 6, 3]);
    // A pod is not held up either.
    Pod::new(false, 4000).send(&mut lab, SYN, b"").unwrap();
    assert_eq!(lab.egress.counts_of(PORT).0, 1);
}

#[test]
fn a_node_ports_clients_have_as_many_flows_as_a_pod_and_all_together_more() {
    // 250 flows in all, 200 of one: what each of them may have does not count against the others.
    let mut lab = few(400);
    for n in 0..2 {
        for from in 1..=60 {
            knock(&mut lab, PortId::SERVICES, vip(n), client(from)).unwrap();
        }
    }
    assert_eq!(lab.egress.counts().0, 120);
    // What ends makes room.
    lab.later(Duration::from_secs(241));
    assert_eq!(lab.egress.counts().0, 0);
    for from in 1..=125 {
        knock(&mut lab, PortId::SERVICES, vip(0), client(from)).unwrap();
    }
}

#[test]
fn a_service_that_does_not_answer_costs_only_its_own_clients() {
    let mut lab = Lab::new();
    let other = knock(&mut lab, PortId::SERVICES, vip(1), client(1)).unwrap();
    for from in 1..=MAX_HALF_OPEN as u16 + 100 {
        knock(&mut lab, PortId::SERVICES, vip(0), client(from)).unwrap();
    }
    assert_eq!(lab.egress.counts().0, MAX_HALF_OPEN + 1);
    assert_eq!(lab.stream(other).closed, None);
}

/// The backend of a Service may be the pod of a published port: whoever comes by both from one port of its own would be
/// one client there.
#[test]
fn who_comes_by_a_node_port_and_a_published_one_is_two_clients() {
    let (pod, from) = (SocketAddr::new(ends(false).0, 80), client(5000));
    for first in [PORT, PortId::SERVICES] {
        let mut lab = Lab::new();
        let mut seen = Vec::new();
        for port in [first, if first == PORT { PortId::SERVICES } else { PORT }] {
            let to = if port == PORT { pod } else { vip(0) };
            knock(&mut lab, port, to, from).unwrap();
            let (syn, _) = lab.world.to_pod.remove(0);
            let h = [&[0; ETH_LEN][..], &syn].concat();
            seen.push((
                IpAddr::from(<[u8; 4]>::try_from(&h[26..30]).unwrap()),
                be16(&h, 34),
            ));
        }
        assert_eq!(seen[0], (from.ip(), from.port()), "the first one is as ever");
        assert_eq!(seen[1].0, gateway(false));
        // A port of the gateway that one kind has is not the other's.
        let before = lab.egress.counts().0;
        lab.egress.names = Names::default();
        for n in 0..2 {
            knock(&mut lab, PORT, pod, SocketAddr::from(([127, 0, 0, 1], 1000 + n))).unwrap();
            knock(
                &mut lab,
                PortId::SERVICES,
                vip(0),
                SocketAddr::from(([127, 0, 0, 1], 1000 + n)),
            )
            .unwrap();
            lab.egress.names = Names::default();
        }
        let mut names: Vec<u16> = lab.world.to_pod.drain(..).map(|(p, _)| be16(&p, 20)).collect();
        names.push(seen[1].1);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), lab.egress.counts().0 - before + 1);
    }
}

fn datagram(from: SocketAddr) -> Heard {
    Heard::Datagram {
        from,
        len: 1,
        segment: None,
        class: 0,
        at: None,
    }
}

#[test]
fn who_asks_by_udp_at_a_node_port_and_a_published_one_is_two_clients() {
    let pod = SocketAddr::new(ends(false).0, 53);
    for first in [PORT, PortId::SERVICES] {
        let mut lab = Lab::new();
        let mut seen = Vec::new();
        let mut mouths = Vec::new();
        for port in [first, if first == PORT { PortId::SERVICES } else { PORT }] {
            let entrance = Entrance {
                pod: if port == PORT { pod } else { vip(0) },
                at: SocketAddr::from(([0, 0, 0, 0], 53 + mouths.len() as u16)),
                gateway: gateway(false),
            };
            let id = lab
                .egress
                .publish(port, entrance, lab.now, &mut lab.world)
                .unwrap();
            mouths.push(id);
            lab.heard(id, datagram(client(5000)), b"q");
            let (packet, _) = lab.world.to_pod.pop().unwrap();
            seen.push((
                IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).unwrap()),
                be16(&packet, 20),
            ));
        }
        assert_eq!(seen[0], (client(5000).ip(), 5000));
        assert_eq!(seen[1].0, gateway(false));
        // Once the first is forgotten, its name is free.
        lab.later(Duration::from_secs(1000));
        lab.heard(mouths[1], datagram(client(5000)), b"q");
        let (packet, _) = lab.world.to_pod.pop().unwrap();
        assert_eq!(be16(&packet, 20), 5000);
    }
}

/// What is said to a client of a Service by ICMP reaches it as far as a socket can say it.
#[test]
fn errors_about_what_a_client_sent_end_its_connection_or_are_counted_as_what_they_are() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (at, from): (SocketAddr, SocketAddr) = match six {
            false => (vip(0), client(5000)),
            true => (
                "[fd00:1::]:30000".parse().unwrap(),
                SocketAddr::new(ends(true).1, 5000),
            ),
        };
        let gateway = gateway(six);
        let id = lab
            .egress
            .accept(PortId::SERVICES, (at, from), gateway, lab.now, &mut lab.world)
            .unwrap();
        lab.world.streams.insert(
            id,
            Stream {
                room: usize::MAX,
                ..Stream::default()
            },
        );
        lab.turn();
        let (syn, _) = lab.world.to_pod.remove(0);
        let told = |kind: u8, code: u8, about: &[u8]| {
            let message = [&[kind, code, 0, 0, 0, 0, 5, 0][..], about].concat();
            let ip = Ip {
                proto: if six { proto::ICMPV6 } else { proto::ICMP },
                hops: 64,
                len: message.len(),
                ..Ip::default()
            };
            let mut packet = vec![0; if six { 40 } else { 20 }];
            write_ip(&mut packet, at.ip(), from.ip(), &ip);
            packet.extend(message);
            packet
        };
        let input = |lab: &mut Lab, bytes: &[u8]| {
            let packet = Packet {
                port: PortId::SERVICES,
                bytes,
                ends: (at.ip(), from.ip()),
                proto: if six { proto::ICMPV6 } else { proto::ICMP },
                l4: if six { 40 } else { 20 },
                fragment: false,
                hops: 63,
                class: 0,
                segment: None,
            };
            lab.egress.input(&packet, lab.now, &mut lab.world)
        };
        let (too_big, unreachable) = if six { ((2, 0), (1, 3)) } else { ((3, 4), (3, 1)) };
        // What a path takes is none of a stream's concerns, nor is what others sent.
        assert_eq!(
            input(&mut lab, &told(too_big.0, too_big.1, &syn)),
            Err(DropReason::UntoldError)
        );
        let mut stranger = syn.clone();
        let l4 = if six { 40 } else { 20 };
        stranger[l4] ^= 1;
        assert_eq!(
            input(&mut lab, &told(unreachable.0, unreachable.1, &stranger)),
            Err(DropReason::UntoldError)
        );
        assert_eq!(lab.stream(id).closed, None);
        // Nor is it a pod's to say.
        let by_pod = lab.input(&told(unreachable.0, unreachable.1, &syn));
        assert_eq!(by_pod, Err(DropReason::UntoldError));
        // Nobody is there: the client need not wait.
        input(&mut lab, &told(unreachable.0, unreachable.1, &syn)).unwrap();
        assert_eq!(lab.stream(id).closed, Some(true));
        // Anything else of ICMP leads nowhere, as ever.
        let other = told(if six { 133 } else { 13 }, 0, &syn);
        assert_eq!(input(&mut lab, &other), Err(DropReason::EgressProtocol));
    }
}
