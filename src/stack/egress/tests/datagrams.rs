//! Stories of UDP and echo.

use super::*;
use crate::stack::egress::datagrams::MAX_PER_PORT;
use crate::stack::egress::{fragment, packet};

#[test]
fn datagrams_of_a_port_leave_by_one_socket_and_answers_come_back() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (_, far) = ends(six);
        for to in [1000, 2000] {
            lab.input(&udp(six, 500, to, b"question")).unwrap();
        }
        lab.input(&udp(six, 501, 1000, b"other")).unwrap();
        let by: Vec<MouthId> = lab.world.sent.iter().map(|s| s.mouth).collect();
        assert_eq!(by, [0, 0, 1], "the mapping does not depend on the endpoint");
        assert_eq!(lab.world.sent[0].payload, b"question");
        assert!(!lab.world.sent[0].may_fragment, "it was not to be fragmented");
        // From another port of a host it has asked.
        let from = |ip, port| Heard::Datagram {
            from: SocketAddr::new(ip, port),
            len: 6,
            segment: None,
            class: 0,
            at: None,
        };
        lab.heard(0, from(far, 77), b"answer");
        let (packet, _) = lab.world.to_pod.remove(0);
        let head = if six { 40 } else { 20 };
        assert_eq!(packet[head..head + 6], [0, 77, 1, 244, 0, 14]);
        assert!(packet.ends_with(b"answer"));
        // From one it has not.
        let stranger = if six {
            "2001:db8::66".parse().unwrap()
        } else {
            "198.51.100.66".parse().unwrap()
        };
        lab.heard(0, from(stranger, 1000), b"attack");
        assert!(lab.world.to_pod.is_empty());
        assert_eq!(lab.world.lost, [DropReason::UnaskedDatagram]);
        lab.later(Duration::from_secs(299));
        lab.input(&udp(six, 500, 1000, b"again")).unwrap();
        lab.later(Duration::from_secs(200));
        assert_eq!(lab.world.mouths.len(), 1, "the silent one is over");
        lab.later(Duration::from_secs(101));
        assert!(lab.world.mouths.is_empty());
        assert_eq!(lab.egress.deadline(), None);
    }
}

#[test]
fn trains_pass_whole_and_long_ones_in_fragments() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (_, far) = ends(six);
        lab.input_as(&udp(six, 500, 1000, &[7; 5000]), Some(1000))
            .unwrap();
        assert_eq!(lab.world.sent[0].segment, Some(1000));
        let mut hear = |len: usize, segment| {
            let heard = Heard::Datagram {
                from: SocketAddr::new(far, 1000),
                len,
                segment,
                class: 0,
                at: None,
            };
            lab.heard(0, heard, &vec![9; len]);
            std::mem::take(&mut lab.world.to_pod)
        };
        let train = hear(5000, Some(1000));
        assert_eq!((train.len(), train[0].1), (1, Some(1000)));
        let long = hear(60_000, None);
        assert!(
            long.len() > 40
                && long
                    .iter()
                    .all(|(p, s)| p.len() <= usize::from(MTU) && s.is_none())
        );
        let longs = hear(9000, Some(3000));
        assert_eq!(longs.len(), 9, "three datagrams of three fragments");
        // And a pod's fragments are put together.
        let mut whole = vec![0; ETH_LEN + if six { 40 } else { 20 } + 8];
        whole.extend([5; 4000]);
        let at = whole.len() - 4008;
        let (src, dst) = ends(six);
        write_udp(
            &mut whole[at..],
            SocketAddr::new(src, 500),
            SocketAddr::new(dst, 1000),
            4000,
        );
        let ip = Ip {
            proto: proto::UDP,
            hops: 64,
            len: 4008,
            ..Ip::default()
        };
        let mut parts = Vec::new();
        fragment::fragments(&mut whole, (src, dst), &ip, 9, 1400, |f| {
            parts.push(f[ETH_LEN..].to_vec())
        });
        for part in parts.iter().rev() {
            lab.input(part).unwrap();
        }
        let last = lab.world.sent.last().unwrap();
        assert_eq!((last.payload.len(), last.may_fragment), (4000, true));
    }
}

#[test]
fn errors_of_the_network_are_the_pods() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (_, far) = ends(six);
        lab.input(&udp(six, 500, 1000, b"question")).unwrap();
        let router: IpAddr = if six {
            "2001:db8::1".parse().unwrap()
        } else {
            "192.0.2.1".parse().unwrap()
        };
        for (what, trouble, by) in [
            (HostError::Refused, Trouble::PortUnreachable, far),
            (HostError::TtlExceeded, Trouble::TtlExceeded, router),
            (HostError::TooBig(1300), Trouble::TooBig { mtu: 1300 }, router),
            (HostError::HostUnreachable, Trouble::HostUnreachable, router),
        ] {
            let heard = Heard::Error {
                to: SocketAddr::new(far, 1000),
                by: Some(router),
                what,
                len: 8,
            };
            lab.heard(0, heard, b"question");
            let (told, packet, who) = lab.world.complaints.pop().unwrap();
            assert_eq!((told, who), (trouble, Some(by)));
            let head = if six { 40 } else { 20 };
            assert_eq!(
                packet[head..],
                udp(six, 500, 1000, b"question")[head..],
                "its own packet"
            );
            assert!(packet[..head].windows(4).any(|w| w == [10, 244, 1, 2]) || six);
        }
        lab.world.send_error = Some(HostError::TooBig(1200));
        assert_eq!(lab.input(&udp(six, 500, 1000, b"q")), Err(DropReason::TooBig));
        assert_eq!(
            lab.world.complaints.pop().unwrap().0,
            Trouble::TooBig { mtu: 1200 }
        );
    }
}

#[test]
fn echo_has_its_own_identifier_again() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (src, dst) = ends(six);
        let head = if six { 40 } else { 20 };
        let mut p = vec![0; head + 8];
        p.extend(b"ping");
        let ip = Ip {
            proto: if six { proto::ICMPV6 } else { proto::ICMP },
            hops: 64,
            len: 12,
            ..Ip::default()
        };
        write_ip(&mut p, src, dst, &ip);
        p[head] = if six { 128 } else { 8 };
        put_be16(&mut p, head + 4, 0x1234);
        lab.input(&p).unwrap();
        let mut reply = lab.world.sent[0].payload.clone();
        assert_eq!(lab.world.sent[0].to, SocketAddr::new(dst, 0));
        // The kernel gave it another identifier.
        reply[0] = if six { 129 } else { 0 };
        put_be16(&mut reply, 4, 0x4321);
        let heard = Heard::Datagram {
            from: SocketAddr::new(dst, 0),
            len: reply.len(),
            segment: None,
            class: 0,
            at: None,
        };
        lab.heard(0, heard, &reply);
        let (packet, _) = lab.world.to_pod.remove(0);
        assert_eq!(packet[head + 4..head + 6], [0x12, 0x34]);
        let sum = match six {
            true => packet::transport_sum(dst, src, proto::ICMPV6, &packet[head..]),
            false => crate::wire::checksum::Sum::default()
                .with(&packet[head..])
                .finish(),
        };
        assert_eq!(sum, 0, "its checksum is right");
        lab.world.refuse = Some(HostError::Prohibited);
        put_be16(&mut p, head + 4, 1);
        assert_eq!(lab.input(&p), Err(DropReason::PingForbidden));
        p[head] = 3;
        assert_eq!(lab.input(&p), Err(DropReason::EgressProtocol));
    }
}

#[test]
fn a_pod_that_leaks_mouths_closes_its_own_oldest() {
    let mut lab = Lab::new();
    for n in 0..MAX_PER_PORT as u16 + 10 {
        lab.now += Duration::from_millis(1);
        lab.input(&udp(false, 1 + n, 1000, b"x")).unwrap();
    }
    assert_eq!(lab.egress.counts().1, MAX_PER_PORT);
    lab.egress.remove_port(PORT, &mut lab.world);
    assert!(lab.world.mouths.is_empty());
}

#[test]
fn a_question_for_a_name_holds_its_socket_only_for_a_while() {
    let mut lab = Lab::new();
    let gateway: IpAddr = "10.244.1.1".parse().unwrap();
    lab.egress.set_policy(Arc::new(Policy {
        mapped: vec![Mapping {
            from: gateway,
            port: Some(53),
            to: Ipv4Addr::LOCALHOST.into(),
            to_port: Some(40_053),
            by_pod: true,
        }],
        ..policy()
    }));
    for port in [500, 501] {
        lab.input(&udp_to(false, port, SocketAddr::new(gateway, 53), b"?"))
            .unwrap();
    }
    lab.input(&udp(false, 501, 1000, b"other")).unwrap();
    lab.later(Duration::from_secs(31));
    assert_eq!(lab.world.mouths.len(), 1, "the gateway's is a name server as any");
    lab.later(Duration::from_secs(300));
    assert!(lab.world.mouths.is_empty());
}

#[test]
fn the_longest_datagram_is_not_cut_short() {
    for (six, longest) in [(false, 65_507), (true, 65_527)] {
        let mut lab = Lab::new();
        lab.input(&udp(six, 500, 1000, b"how long")).unwrap();
        let heard = Heard::Datagram {
            from: SocketAddr::new(ends(six).1, 1000),
            len: longest,
            segment: None,
            class: 0,
            at: None,
        };
        lab.heard(0, heard, &vec![9; longest]);
        let head = if six { 48 } else { 20 };
        let parts = lab.world.to_pod.iter().map(|(p, _)| p.len() - head);
        assert_eq!(parts.sum::<usize>(), 8 + longest);
    }
}

#[test]
fn the_host_answers_by_the_name_it_was_asked_by() {
    let mut lab = Lab::new();
    let host: IpAddr = [127, 0, 0, 1].into();
    let names: [IpAddr; 2] = [[198, 51, 100, 1].into(), ends(false).1];
    let mapping = |from| Mapping {
        from,
        port: None,
        to: host,
        to_port: None,
        by_pod: false,
    };
    lab.egress.set_policy(Arc::new(Policy {
        mapped: names.map(mapping).into(),
        ..policy()
    }));
    // By the second of its names.
    lab.input(&udp(false, 500, 1000, b"question")).unwrap();
    assert_eq!(lab.world.sent[0].to, SocketAddr::new(host, 1000));
    let heard = Heard::Datagram {
        from: SocketAddr::new(host, 1000),
        len: 1,
        segment: None,
        class: 0,
        at: None,
    };
    lab.heard(0, heard, b"a");
    assert_eq!(lab.world.to_pod[0].0[12..16], [198, 51, 100, 9]);
}
