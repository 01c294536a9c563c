//! ICMP: errors about translated packets, both ways, and what else it brings.

use super::*;

/// An ICMP error of `kind` from one address to another about a packet, of which `quoted` bytes come along.
fn error(kind: [u8; 2], from: IpAddr, to: IpAddr, about: &[u8], quoted: usize) -> Vec<u8> {
    let h = Headers::parse(about).unwrap();
    let quote = &about[ETH_LEN..(h.l4 + quoted).min(h.end)];
    let message = [&kind[..], &[0, 0, 0, 0, 5, 0], quote].concat();
    let protocol = if from.is_ipv4() {
        proto::ICMP
    } else {
        proto::ICMPV6
    };
    let mut f = ip(protocol, from, to, &message);
    finish(&mut f, Check::Complete);
    f
}

/// The quoted packet, as a frame.
fn quoted(f: &[u8]) -> Vec<u8> {
    let h = Headers::parse(f).unwrap();
    [&f[..ETH_LEN], &f[h.l4 + 8..h.end]].concat()
}

/// The quoted packet's ends.
fn quoted_ends(f: &[u8]) -> (SocketAddr, SocketAddr) {
    let q = quoted(f);
    let (l4, src, dst): (usize, IpAddr, IpAddr) = match q[14] >> 4 {
        4 => (
            34,
            Ipv4Addr::from(<[u8; 4]>::try_from(&q[26..30]).unwrap()).into(),
            Ipv4Addr::from(<[u8; 4]>::try_from(&q[30..34]).unwrap()).into(),
        ),
        _ => (
            54,
            Ipv6Addr::from(<[u8; 16]>::try_from(&q[22..38]).unwrap()).into(),
            Ipv6Addr::from(<[u8; 16]>::try_from(&q[38..54]).unwrap()).into(),
        ),
    };
    (
        SocketAddr::new(src, be16(&q, l4)),
        SocketAddr::new(dst, be16(&q, l4 + 2)),
    )
}

/// Client, frontend, backend, router, and the kinds of "port unreachable" and "too big".
type Family = ([&'static str; 4], [u8; 2], [u8; 2]);
const FAMILIES: [Family; 2] = [
    (
        [
            "10.244.1.2:5000",
            "10.96.0.1:80",
            "10.244.2.10:8080",
            "192.0.2.9:0",
        ],
        [3, 3],
        [3, 4],
    ),
    (
        [
            "[fd00:1::2]:5000",
            "[fd00:96::1]:80",
            "[fd00:2::a]:8080",
            "[2001:db8::9]:0",
        ],
        [1, 4],
        [2, 0],
    ),
];

#[test]
fn errors_about_what_the_client_sent() {
    for (ends, unreachable, too_big) in FAMILIES {
        let [client, vip, backend, router] = ends.map(end);
        for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
            for (kind, from, seen, len) in [
                (unreachable, backend.ip(), vip.ip(), 8),
                (too_big, router.ip(), router.ip(), 8),
                (too_big, router.ip(), router.ip(), 500),
            ] {
                let mut s = services(Limits::default());
                set(&mut s, frontend(ends[1], transport), &Spec::of(&[ends[2]]), at(0));
                let original = packet(transport, client, vip, SYN, &[7; 300], Check::Complete);
                let mut f = original.clone();
                assert_eq!(forward(&mut s, &mut f, at(0)), Verdict::Translated);
                let mut e = error(kind, from, client.ip(), &f, len);
                assert!(reverse(&mut s, &mut e, at(0)), "{transport} {kind:?}");
                assert!(is_right(&e, Check::Complete), "{transport} {kind:?} {len}");
                let h = Headers::parse(&e).unwrap();
                assert_eq!((h.src(&e), h.dst(&e)), (seen, client.ip()));
                assert_eq!(quoted_ends(&e), (client, vip));
                // What is quoted is what the client had sent, byte by byte; SCTP's checksum excepted, which takes the
                // whole packet.
                let (q, sent) = (quoted(&e), &original[..]);
                if transport == Transport::Sctp {
                    assert_eq!(q[..q.len().min(40)], sent[..q.len().min(40)]);
                } else {
                    assert_eq!(q, sent[..q.len()], "{transport} {kind:?} {len}");
                }
            }
        }
    }
}

#[test]
fn errors_about_what_the_backend_sent() {
    for (ends, unreachable, _) in FAMILIES {
        let [client, vip, backend, _] = ends.map(end);
        for transport in [Transport::Tcp, Transport::Udp] {
            for len in [8, 500] {
                let mut s = services(Limits::default());
                set(&mut s, frontend(ends[1], transport), &Spec::of(&[ends[2]]), at(0));
                send(&mut s, transport, ends[0], ends[1], SYN, at(0)).unwrap();
                let original = packet(transport, backend, client, ACK, b"some", Check::Complete);
                let mut f = original.clone();
                assert!(reverse(&mut s, &mut f, at(0)));
                let mut e = error(unreachable, client.ip(), vip.ip(), &f, len);
                assert_eq!(forward(&mut s, &mut e, at(0)), Verdict::Translated);
                assert!(is_right(&e, Check::Complete));
                let h = Headers::parse(&e).unwrap();
                assert_eq!((h.src(&e), h.dst(&e)), (client.ip(), backend.ip()));
                let q = quoted(&e);
                assert_eq!(q, original[..q.len()]);
                // From somebody it does not concern.
                let mut e = error(
                    unreachable,
                    "10.244.1.99".parse().unwrap(),
                    "10.96.0.1".parse().unwrap(),
                    &f,
                    len,
                );
                if client.is_ipv4() {
                    let unknown = Verdict::Drop(DropReason::UnknownConnection);
                    assert_eq!(forward(&mut s, &mut e, at(0)), unknown);
                }
            }
        }
    }
}

#[test]
fn errors_of_a_masked_client() {
    for (ends, unreachable, too_big) in FAMILIES {
        let [_, vip, backend, router] = ends.map(end);
        let client = SocketAddr::new(backend.ip(), 5000);
        let mut s = services(Limits::default());
        set(
            &mut s,
            frontend(ends[1], Transport::Udp),
            &Spec::of(&[ends[2]]),
            at(0),
        );
        let original = packet(Transport::Udp, client, vip, 0, b"some", Check::Complete);
        let mut f = original.clone();
        assert_eq!(forward(&mut s, &mut f, at(0)), Verdict::Translated);
        let (gateway, _) = super::ends(&f);
        // About what went to the backend.
        let mut e = error(too_big, router.ip(), gateway.ip(), &f, 100);
        let h = Headers::parse(&e).unwrap();
        assert!(s.wants_gateway(&e, &h, at(0)));
        assert!(reverse(&mut s, &mut e, at(0)) && is_right(&e, Check::Complete));
        let h = Headers::parse(&e).unwrap();
        assert_eq!((h.dst(&e), quoted_ends(&e)), (client.ip(), (client, vip)));
        assert_eq!(quoted(&e), original);
        // About the answer.
        let answer = packet(Transport::Udp, backend, gateway, 0, b"other", Check::Complete);
        let mut f = answer.clone();
        assert!(reverse(&mut s, &mut f, at(0)));
        let mut e = error(unreachable, client.ip(), vip.ip(), &f, 100);
        assert_eq!(forward(&mut s, &mut e, at(0)), Verdict::Translated);
        assert!(is_right(&e, Check::Complete));
        let h = Headers::parse(&e).unwrap();
        assert_eq!((h.src(&e), h.dst(&e)), (gateway.ip(), backend.ip()));
        assert_eq!(quoted(&e), answer);
    }
}

#[test]
fn udp_leaves_a_backend_where_nobody_is() {
    let (client, vip) = ("10.244.1.2:5000", "10.96.0.1:80");
    let backends = ["10.244.2.10:53", "10.244.3.10:53"];
    let mut s = services(Limits::default());
    set(&mut s, frontend(vip, Transport::Udp), &Spec::of(&backends), at(0));
    let mut f = packet(Transport::Udp, end(client), end(vip), 0, b"q", Check::Complete);
    forward(&mut s, &mut f, at(0));
    let (_, first) = ends(&f);
    // A router's word ends nothing.
    let mut e = error([3, 3], "192.0.2.9".parse().unwrap(), end(client).ip(), &f, 8);
    assert!(reverse(&mut s, &mut e, at(0)));
    assert_eq!(send(&mut s, Transport::Udp, client, vip, 0, at(0)), Ok(first));
    let mut e = error([3, 3], first.ip(), end(client).ip(), &f, 8);
    assert!(reverse(&mut s, &mut e, at(0)));
    let second = send(&mut s, Transport::Udp, client, vip, 0, at(0)).unwrap();
    assert_ne!(first, second);
    let seen = s.describe(&frontend(vip, Transport::Udp)).unwrap();
    assert_eq!((seen.open, seen.opened, seen.failed), (1, 2, 1));
}

#[test]
fn a_quote_may_be_cut_or_odd() {
    let [client, vip, backend, _] = FAMILIES[1].0.map(end);
    let mut s = services(Limits::default());
    let ends = FAMILIES[1].0;
    set(
        &mut s,
        frontend(ends[1], Transport::Udp),
        &Spec::of(&[ends[2]]),
        at(0),
    );
    let mut f = packet(Transport::Udp, client, vip, 0, b"some", Check::Complete);
    forward(&mut s, &mut f, at(0));
    // Cut at each byte: with the ports it is translated, without them it is left alone.
    for len in 0..12 {
        let mut e = error([2, 0], backend.ip(), client.ip(), &f, len);
        assert_eq!(reverse(&mut s, &mut e, at(0)), len >= 4, "{len}");
        assert!(is_right(&e, Check::Complete), "{len}");
    }
    // Behind extension headers, of which one is an atomic fragment's.
    let options = [
        60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 1,
    ];
    let mut long = f.clone();
    long.splice(54..54, options);
    (long[20], long[19]) = (0, long[19] + options.len() as u8);
    let mut e = error([3, 0], backend.ip(), client.ip(), &long, 500);
    assert!(reverse(&mut s, &mut e, at(0)) && is_right(&e, Check::Complete));
    // Of a later fragment, nothing is known.
    let mut later = long.clone();
    later[54 + 18] = 9;
    let message = [&[3, 0, 0, 0, 0, 0, 0, 0][..], &later[ETH_LEN..]].concat();
    let mut e = ip(proto::ICMPV6, backend.ip(), client.ip(), &message);
    finish(&mut e, Check::Complete);
    assert!(!reverse(&mut s, &mut e, at(0)));
}

#[test]
fn other_icmp() {
    let mut s = services(Limits::default());
    set(
        &mut s,
        frontend("10.96.0.1:80", Transport::Tcp),
        &Spec::of(&["10.244.2.10:80"]),
        at(0),
    );
    let to = |message: &[u8]| {
        let mut f = ip(
            proto::ICMP,
            "10.244.1.2".parse().unwrap(),
            "10.96.0.1".parse().unwrap(),
            message,
        );
        finish(&mut f, Check::Complete);
        f
    };
    let table = [
        (&[8u8, 0, 0, 0, 0, 1, 0, 1][..], Verdict::Echo),
        (
            &[0, 0, 0, 0, 0, 1, 0, 1],
            Verdict::Drop(DropReason::ServiceProtocol),
        ),
        (
            &[13, 0, 0, 0, 0, 1, 0, 1],
            Verdict::Drop(DropReason::ServiceProtocol),
        ),
        (&[8, 0, 0, 0], Verdict::Drop(DropReason::ServiceProtocol)),
        (
            &[3, 3, 0, 0, 0, 0, 0, 0, 0x45],
            Verdict::Drop(DropReason::ServiceProtocol),
        ),
    ];
    for (message, verdict) in table {
        assert_eq!(forward(&mut s, &mut to(message), at(0)), verdict, "{message:?}");
    }
    let mut f = ip(
        47,
        "10.244.1.2".parse().unwrap(),
        "10.96.0.1".parse().unwrap(),
        &[0; 20],
    );
    assert_eq!(
        forward(&mut s, &mut f, at(0)),
        Verdict::Drop(DropReason::ServiceProtocol)
    );
}
