//! What becomes of a packet's bytes: forth and back is the identity, and checksums are right on the way.

use super::*;
use proptest::prelude::*;

const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];
/// Client, frontend, backend.
const ENDS: [[&str; 3]; 2] = [
    ["10.244.1.2:5000", "10.96.0.1:80", "10.244.2.10:8080"],
    ["[fd00:1::2]:5000", "[fd00:96::1]:80", "[fd00:2::a]:8080"],
];

/// The same packet the other way, its checksum made for that.
fn turned(f: &[u8], check: Check) -> Vec<u8> {
    let mut f = f.to_vec();
    let h = Headers::parse(&f).unwrap();
    let (at, len) = if h.l3 == L3::Ipv6 { (22, 16) } else { (26, 4) };
    let (src, dst) = (f[at..at + len].to_vec(), f[at + len..at + 2 * len].to_vec());
    put(&mut f, at, &dst);
    put(&mut f, at + len, &src);
    let (src, dst) = h.ports(&f);
    put_be16(&mut f, h.l4, dst);
    put_be16(&mut f, h.l4 + 2, src);
    // Sums are the same in any order, a CRC is not.
    if h.proto == proto::SCTP {
        finish(&mut f, check);
    }
    f
}

fn checks(transport: Transport, six: bool) -> Vec<Check> {
    match (transport, six) {
        (Transport::Sctp, _) => vec![Check::Complete],
        (Transport::Udp, false) => vec![Check::Complete, Check::Partial, Check::None],
        _ => vec![Check::Complete, Check::Partial],
    }
}

proptest! {
    #[test]
    fn forth_and_back_is_the_identity(
        transport in proptest::sample::select(&TRANSPORTS[..]),
        six: bool,
        pick in any::<proptest::sample::Index>(),
        ports: (u16, u16, u16),
        hosts: (u16, u16, u16),
        masked: bool,
        kind in 0u8..64,
        payload in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..100),
            proptest::collection::vec(any::<u8>(), 3000..3001),
            Just(vec![0xa5; 60_001]),
        ],
    ) {
        let place = |host: u16, port: u16| -> SocketAddr {
            let [a, b] = host.to_be_bytes();
            match six {
                false => SocketAddr::new(Ipv4Addr::new(10, 244, a, b).into(), port.max(1)),
                true => SocketAddr::new(Ipv6Addr::new(0xfd00, 1, host, 0, 0, 0, 0, 2).into(), port.max(1)),
            }
        };
        let vip = end(ENDS[usize::from(six)][1]);
        let backend = place(hosts.1, ports.1);
        let client = SocketAddr::new(if masked { backend.ip() } else { place(hosts.0, 0).ip() }, ports.0.max(1));
        let all = checks(transport, six);
        let check = all[pick.index(all.len())];
        let mut s = services(Limits::default());
        let mut spec = Spec::of(&[]);
        spec.backends.push(Backend { at: backend, phase: BackendPhase::Ready, local: true });
        set(&mut s, Frontend { at: vip, transport }, &spec, at(0));
        // So that packets of all kinds belong to a connection.
        let mut first = packet(transport, client, vip, if transport == Transport::Tcp { SYN } else { INIT }, b"", Check::Complete);
        prop_assert_eq!(forward(&mut s, &mut first, at(0)), Verdict::Translated);

        let original = packet(transport, client, vip, kind, &payload, check);
        let mut f = original.clone();
        let h = Headers::parse(&f).unwrap();
        let partial = claim(&f, check);
        prop_assert_eq!(s.forward(&mut f, &h, partial, Some(PortId(2)), at(0)), Verdict::Translated);
        prop_assert!(is_right(&f, check), "{:?}", check);
        prop_assert_eq!(Headers::parse(&f), Ok(h));
        let (src, dst) = ends(&f);
        prop_assert_eq!(dst, backend);
        if client.ip() != backend.ip() {
            prop_assert_eq!(src, client);
        } else {
            prop_assert_eq!(src.ip(), s.gateway(src.ip()).unwrap());
            prop_assert!(src.port() >= 32_768);
        }
        let mut back = turned(&f, check);
        prop_assert!(s.wants_gateway(&back, &h, at(0)) == (src != client));
        prop_assert!(s.reverse(&mut back, &h, partial, at(0)));
        prop_assert!(is_right(&back, check));
        prop_assert_eq!(turned(&back, check), original);
    }

    #[test]
    fn a_wrong_checksum_stays_as_wrong(
        transport in proptest::sample::select(&TRANSPORTS[..]),
        six: bool,
        field: u32,
        payload in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        let [client, vip, backend] = ENDS[usize::from(six)];
        let mut s = services(Limits::default());
        set(&mut s, frontend(vip, transport), &Spec::of(&[backend]), at(0));
        let mut f = packet(transport, end(client), end(vip), SYN, &payload, Check::Complete);
        let h = Headers::parse(&f).unwrap();
        let (place, new) = match transport {
            Transport::Tcp => (h.l4 + 16, (field as u16).to_be_bytes().to_vec()),
            Transport::Udp => (h.l4 + 6, (field as u16).to_be_bytes().to_vec()),
            Transport::Sctp => (h.l4 + 8, field.to_le_bytes().to_vec()),
        };
        put(&mut f, place, &new);
        let error = |f: &[u8]| match transport {
            Transport::Sctp => crc32c::whole(&f[h.l4..h.end]) ^ u32::from_le_bytes(f[place..place + 4].try_into().unwrap()),
            _ => u32::from(fold(pseudo(f, &h) + sum(&f[h.l4..h.end]))),
        };
        let before = error(&f);
        prop_assert_eq!(forward(&mut s, &mut f, at(0)), Verdict::Translated);
        if transport == Transport::Udp && new == [0, 0] {
            prop_assert_eq!(&f[place..place + 2], &[0, 0]);
        } else {
            prop_assert_eq!(error(&f), before);
        }
    }

    #[test]
    fn any_bytes_at_all(
        mut f in proptest::collection::vec(any::<u8>(), 14..200),
        kind in 0..2,
        protocol in proptest::sample::select(&[1u8, 6, 17, 58, 132, 44, 0][..]),
        partial in proptest::option::of((0u16..200, 0u16..40)),
    ) {
        let mut s = services(Limits::default());
        for t in TRANSPORTS {
            for [_, vip, backend] in ENDS {
                set(&mut s, frontend(vip, t), &Spec::of(&[backend]), at(0));
            }
        }
        let len = f.len();
        match kind {
            0 => {
                put(&mut f, 12, &[8, 0, 0x45]);
                put_be16(&mut f, 16, (len - 14) as u16);
                put(&mut f, 23, &[protocol, 0, 0, 10, 244, 1, 2, 10, 96, 0, 1]);
                if len >= 34 {
                    let header = !fold(sum(&f[14..34]));
                    put_be16(&mut f, 24, header);
                }
            }
            _ => {
                put(&mut f, 12, &[0x86, 0xdd, 0x60]);
                put_be16(&mut f, 18, (len.max(54) - 54) as u16);
                put(&mut f, 20, &[protocol]);
                put(&mut f, 38, &match end(ENDS[1][1]).ip() { IpAddr::V6(a) => a.octets(), IpAddr::V4(_) => [0; 16] });
            }
        }
        if let Ok(h) = Headers::parse(&f) {
            s.wants_gateway(&f, &h, at(0));
            let before = f.clone();
            if s.forward(&mut f, &h, partial, Some(PortId(2)), at(0)) != Verdict::Translated {
                prop_assert_eq!(&before, &f);
            }
            prop_assert_eq!(Headers::parse(&f), Ok(h));
            s.reverse(&mut f, &h, partial, at(0));
        }
    }
}

#[test]
fn checksums_that_are_not_of_this_packet_are_left_to_their_device() {
    // What a pod tunnels in UDP: the partial checksum is of the inner packet, the outer one is complete.
    let [client, vip, backend] = ENDS[0];
    let mut s = services(Limits::default());
    set(
        &mut s,
        frontend(vip, Transport::Udp),
        &Spec::of(&[backend]),
        at(0),
    );
    let mut f = packet(
        Transport::Udp,
        end(client),
        end(vip),
        0,
        &[9; 80],
        Check::Complete,
    );
    let h = Headers::parse(&f).unwrap();
    let inside = Some((h.l4 as u16 + 50, 16));
    assert_eq!(
        s.forward(&mut f, &h, inside, Some(PortId(2)), at(0)),
        Verdict::Translated
    );
    assert!(is_right(&f, Check::Complete));
}

#[test]
fn headers_must_be_there() {
    let mut s = services(Limits::default());
    for transport in TRANSPORTS {
        let [client, vip, backend] = ENDS[0];
        set(&mut s, frontend(vip, transport), &Spec::of(&[backend]), at(0));
        let whole = packet(transport, end(client), end(vip), SYN, b"", Check::Complete);
        let least = match transport {
            Transport::Tcp => 20,
            Transport::Udp => 8,
            Transport::Sctp => 12,
        };
        for len in 0..least {
            let mut f = ip(whole[23], end(client).ip(), end(vip).ip(), &whole[34..34 + len]);
            let verdict = forward(&mut s, &mut f, at(0));
            assert_eq!(
                verdict,
                Verdict::Drop(DropReason::BadL4Header),
                "{transport} {len}"
            );
        }
    }
    assert!(s.is_idle());
}

#[test]
fn two_connections_that_would_look_alike() {
    // One client port, two virtual addresses, one backend: the second is masked.
    let mut s = services(Limits::default());
    let (first, second) = ("10.96.0.1:80", "10.96.0.2:80");
    for vip in [first, second] {
        set(
            &mut s,
            frontend(vip, Transport::Tcp),
            &Spec::of(&[ENDS[0][2]]),
            at(0),
        );
    }
    let (client, backend) = (ENDS[0][0], end(ENDS[0][2]));
    connect(&mut s, client, first, at(0)).unwrap();
    let mut f = packet(
        Transport::Tcp,
        end(client),
        end(second),
        SYN,
        b"",
        Check::Complete,
    );
    assert_eq!(forward(&mut s, &mut f, at(0)), Verdict::Translated);
    let (masked, to) = ends(&f);
    assert_eq!((masked.ip(), to), ("10.244.1.1".parse().unwrap(), backend));
    let mut f = packet(Transport::Tcp, backend, masked, SYN | ACK, b"", Check::Complete);
    assert!(reverse(&mut s, &mut f, at(0)));
    assert_eq!(ends(&f), (end(second), end(client)));
    assert_eq!(
        answer(&mut s, Transport::Tcp, backend, client, ACK, at(0)),
        Some(end(first))
    );
    // Once the first is closing, its place is free.
    send(&mut s, Transport::Tcp, client, first, RST, at(0)).unwrap();
    s.kill(&ConnectionFilter {
        frontend: Some(end(second).ip()),
        ..ConnectionFilter::default()
    });
    assert_eq!(connect(&mut s, client, second, at(0)), Ok(backend));
    assert_eq!(s.list(&ConnectionFilter::default(), 9, at(0)).0[0].masked, None);
}

#[test]
fn strangers_are_masked() {
    let [_, vip, backend] = ENDS[0];
    let mut s = services(Limits::default());
    set(
        &mut s,
        frontend(vip, Transport::Udp),
        &Spec::of(&[backend]),
        at(0),
    );
    let mut f = packet(
        Transport::Udp,
        end("10.244.9.9:7"),
        end(vip),
        0,
        b"",
        Check::Complete,
    );
    let h = Headers::parse(&f).unwrap();
    assert_eq!(s.forward(&mut f, &h, None, None, at(0)), Verdict::Translated);
    let (masked, _) = ends(&f);
    let mut back = packet(Transport::Udp, end(backend), masked, 0, b"", Check::Complete);
    assert!(reverse(&mut s, &mut back, at(0)));
    assert_eq!(ends(&back), (end(vip), end("10.244.9.9:7")));
}

#[test]
fn gateway_ports_run_out() {
    let [_, vip, backend] = ENDS[0];
    let mut s = services(Limits::default());
    set(
        &mut s,
        frontend(vip, Transport::Udp),
        &Spec::of(&[backend]),
        at(0),
    );
    let own = end(backend).ip();
    let mut refused = 0;
    for port in 1..=60_000 {
        match send(
            &mut s,
            Transport::Udp,
            &SocketAddr::new(own, port).to_string(),
            vip,
            0,
            at(0),
        ) {
            Ok(_) => {}
            Err(verdict) => {
                assert_eq!(verdict, Verdict::Drop(DropReason::GatewayPorts));
                refused += 1;
            }
        }
    }
    assert!(s.connections(None) <= 32_768);
    assert_eq!(s.connections(None) + refused, 60_000);
    // Connections that are closing give theirs away: as many short ones as there are clients.
    let mut s = services(Limits::default());
    set(
        &mut s,
        frontend(vip, Transport::Tcp),
        &Spec::of(&[backend]),
        at(0),
    );
    for port in 1..=40_000 {
        let client = SocketAddr::new(own, port).to_string();
        for flags in [SYN, RST] {
            let sent = send(&mut s, Transport::Tcp, &client, vip, flags, at(0));
            assert_eq!(sent, Ok(end(backend)), "{port}");
        }
    }
    assert_eq!(s.connections(None), 32_768);
    // Where there is no gateway at all.
    let mut s = Services::new(Limits::default(), 1, None, None);
    set(
        &mut s,
        frontend(vip, Transport::Udp),
        &Spec::of(&[backend]),
        at(0),
    );
    let sent = send(
        &mut s,
        Transport::Udp,
        &SocketAddr::new(own, 9).to_string(),
        vip,
        0,
        at(0),
    );
    assert_eq!(sent, Err(Verdict::Drop(DropReason::GatewayPorts)));
}

/// A packet in two fragments.
fn cut(f: &[u8], ident: u16) -> [Vec<u8>; 2] {
    let h = Headers::parse(f).unwrap();
    let (middle, src, dst) = (h.l4 + 16, h.src(f), h.dst(f));
    let mut parts = [&f[h.l4..middle], &f[middle..h.end]].map(|payload| match h.l3 {
        L3::Ipv4 => ip(h.proto, src, dst, payload),
        _ => {
            let [a, b] = ident.to_be_bytes();
            ip(
                44,
                src,
                dst,
                &[&[h.proto, 0, 0, 0, 0, 0, a, b][..], payload].concat(),
            )
        }
    });
    match h.l3 {
        L3::Ipv4 => {
            for (part, field) in parts.iter_mut().zip([0x2000, 2]) {
                put_be16(part, 18, ident);
                put_be16(part, 20, field);
                put_be16(part, 24, 0);
                let header = !fold(sum(&part[14..34]));
                put_be16(part, 24, header);
            }
        }
        _ => {
            put_be16(&mut parts[0], 56, 1);
            put_be16(&mut parts[1], 56, 16);
        }
    }
    parts
}

/// The packet of two fragments.
fn joined(parts: &[Vec<u8>; 2]) -> Vec<u8> {
    let six = parts[0][12] == 0x86;
    let h = Headers::parse(&parts[0]).unwrap();
    let skip = if six { 62 } else { 34 };
    let payload = [&parts[0][skip..], &parts[1][skip..]].concat();
    ip(h.proto, h.src(&parts[0]), h.dst(&parts[0]), &payload)
}

#[test]
fn fragments_follow_their_first() {
    for ends in ENDS {
        let [client, vip, backend] = ends.map(end);
        let mut s = services(Limits::default());
        set(
            &mut s,
            frontend(ends[1], Transport::Udp),
            &Spec::of(&[ends[2]]),
            at(0),
        );
        let whole = packet(Transport::Udp, client, vip, 0, &[3; 50], Check::Complete);
        let mut parts = cut(&whole, 77);
        let early = Verdict::Drop(DropReason::EarlyFragment);
        let mut late = parts[1].clone();
        assert_eq!(forward(&mut s, &mut late, at(0)), early);
        for part in &mut parts {
            assert_eq!(forward(&mut s, part, at(1)), Verdict::Translated);
            assert_eq!(Headers::parse(part).unwrap().dst(part), backend.ip());
        }
        assert!(is_right(&joined(&parts), Check::Complete));
        // Another packet's, and one that comes much too late.
        let mut other = cut(&whole, 78)[1].clone();
        assert_eq!(forward(&mut s, &mut other, at(1)), early);
        let mut again = cut(&whole, 77)[1].clone();
        assert_eq!(forward(&mut s, &mut again, at(31)), early);
        // Back.
        let answer = packet(Transport::Udp, backend, client, 0, &[4; 50], Check::Complete);
        let mut parts = cut(&answer, 79);
        for part in &mut parts {
            assert!(reverse(&mut s, part, at(2)));
        }
        let back = joined(&parts);
        assert!(is_right(&back, Check::Complete));
        assert_eq!(super::ends(&back), (vip, client));
        // To the gateway.
        let own = SocketAddr::new(backend.ip(), 9);
        let mut f = packet(Transport::Udp, own, vip, 0, b"", Check::Complete);
        assert_eq!(forward(&mut s, &mut f, at(2)), Verdict::Translated);
        let (masked, _) = super::ends(&f);
        for mut part in cut(
            &packet(Transport::Udp, backend, masked, 0, &[5; 50], Check::Complete),
            80,
        ) {
            let h = Headers::parse(&part).unwrap();
            assert!(s.wants_gateway(&part, &h, at(2)) && reverse(&mut s, &mut part, at(2)));
            assert_eq!(h.dst(&part), own.ip());
        }
    }
}

#[test]
fn many_fragments_take_no_more_than_their_table() {
    let [client, vip, backend] = ENDS[0];
    let mut s = services(Limits::default());
    set(
        &mut s,
        frontend(vip, Transport::Udp),
        &Spec::of(&[backend]),
        at(0),
    );
    let whole = packet(
        Transport::Udp,
        end(client),
        end(vip),
        0,
        &[3; 50],
        Check::Complete,
    );
    let mut memory = 0;
    for ident in 0..20_000 {
        let [mut first, mut second] = cut(&whole, ident);
        assert_eq!(forward(&mut s, &mut first, at(0)), Verdict::Translated);
        assert_eq!(forward(&mut s, &mut second, at(0)), Verdict::Translated);
        if ident == 0 {
            memory = s.memory();
        }
    }
    assert_eq!(s.memory(), memory);
}

#[test]
fn sctp_does_not_come_in_fragments() {
    let [client, vip, backend] = ENDS[0];
    let mut s = services(Limits::default());
    set(
        &mut s,
        frontend(vip, Transport::Sctp),
        &Spec::of(&[backend]),
        at(0),
    );
    let whole = packet(
        Transport::Sctp,
        end(client),
        end(vip),
        INIT,
        &[3; 50],
        Check::Complete,
    );
    let [mut first, _] = cut(&whole, 1);
    let verdict = forward(&mut s, &mut first, at(0));
    assert_eq!(verdict, Verdict::Drop(DropReason::ServiceProtocol));
}
