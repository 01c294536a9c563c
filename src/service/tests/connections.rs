//! The life of connections, and what bounds them.

use super::*;

const VIP: &str = "10.96.0.1:80";
const A: &str = "10.244.2.10:8080";
const B: &str = "10.244.3.10:8080";
const CLIENT: &str = "10.244.1.2:5000";

fn with(transport: Transport, backends: &[&str], limits: Limits) -> Services {
    let mut s = services(limits);
    set(&mut s, frontend(VIP, transport), &Spec::of(backends), at(0));
    s
}

fn change(s: &mut Services, transport: Transport, backends: &[Backend]) {
    let mut spec = Spec::of(&[]);
    spec.backends = backends.to_vec();
    set(s, frontend(VIP, transport), &spec, at(0));
}

/// Turn until nothing is left to do at a time.
fn settle(s: &mut Services, now: Instant) {
    let mut turns = 0;
    while s.turn(now) {
        turns += 1;
        assert!(turns < 10_000);
    }
    assert!(s.next_deadline().is_none_or(|next| next > now));
}

#[test]
fn a_connection_keeps_its_backend_and_its_client_sees_the_virtual_address() {
    let mut s = with(Transport::Tcp, &[A, B], Limits::default());
    let first = connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    let second = connect(&mut s, "10.244.1.2:5001", VIP, at(0)).unwrap();
    assert_ne!(first, second);
    for _ in 0..3 {
        assert_eq!(send(&mut s, Transport::Tcp, CLIENT, VIP, ACK, at(1)), Ok(first));
    }
    let (seen, count) = s.list(&ConnectionFilter::default(), 10, at(3));
    assert_eq!(count, 2);
    let seen = seen.iter().find(|c| c.client == end(CLIENT)).unwrap();
    assert_eq!(
        (seen.frontend, seen.backend, seen.masked),
        (end(VIP), first, None)
    );
    assert_eq!((seen.state, seen.answered), (ConnState::Open, true));
    assert_eq!((seen.age_s, seen.idle_s, seen.left_s), (3, 2, 7438));
    // Others' packets are left alone.
    assert_eq!(
        answer(
            &mut s,
            Transport::Tcp,
            end("10.244.2.11:8080"),
            CLIENT,
            ACK,
            at(1)
        ),
        None
    );
    assert_eq!(answer(&mut s, Transport::Udp, first, CLIENT, 0, at(1)), None);
    assert_eq!(
        answer(&mut s, Transport::Tcp, first, "10.244.1.3:5000", ACK, at(1)),
        None
    );
}

#[test]
fn packets_without_a_connection() {
    let mut s = with(Transport::Tcp, &[A], Limits::default());
    let table = [
        (ACK, Verdict::Reset),
        (SYN | ACK, Verdict::Reset),
        (FIN | ACK, Verdict::Reset),
        (RST, Verdict::Drop(DropReason::UnknownConnection)),
    ];
    for (flags, verdict) in table {
        let sent = send(&mut s, Transport::Tcp, CLIENT, VIP, flags, at(0));
        assert_eq!(sent, Err(verdict), "{flags:#x}");
    }
    assert!(s.is_idle());
}

#[test]
fn a_backend_that_leaves_takes_its_connections_along() {
    for settled in [false, true] {
        let mut s = with(Transport::Tcp, &[A], Limits::default());
        for port in 0..1000 {
            connect(&mut s, &format!("10.244.1.2:{}", 5000 + port), VIP, at(0)).unwrap();
        }
        change(&mut s, Transport::Tcp, &[ready(B)]);
        if settled {
            settle(&mut s, at(0));
            assert!(s.is_idle());
        }
        // The last ones: the change itself closes the first.
        assert_eq!(
            send(&mut s, Transport::Tcp, "10.244.1.2:5999", VIP, ACK, at(1)),
            Err(Verdict::Reset)
        );
        assert_eq!(
            answer(&mut s, Transport::Tcp, end(A), "10.244.1.2:5998", ACK, at(1)),
            None
        );
        assert_eq!(
            send(&mut s, Transport::Tcp, "10.244.1.2:5998", VIP, SYN, at(1)),
            Ok(end(B))
        );
        settle(&mut s, at(1));
        assert_eq!(s.connections(None), 1);
        let seen = s.describe(&frontend(VIP, Transport::Tcp)).unwrap();
        assert_eq!((seen.open, seen.opened, seen.failed), (1, 1001, 0));
        assert_eq!(s.table.slots.len(), 1);
    }
}

#[test]
fn a_backend_that_comes_back_is_another_one() {
    let mut s = with(Transport::Tcp, &[A], Limits::default());
    connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    change(&mut s, Transport::Tcp, &[]);
    change(&mut s, Transport::Tcp, &[ready(A)]);
    assert_eq!(
        send(&mut s, Transport::Tcp, CLIENT, VIP, ACK, at(0)),
        Err(Verdict::Reset)
    );
}

#[test]
fn udp_and_sctp_choose_anew() {
    for transport in [Transport::Udp, Transport::Sctp] {
        let mut s = with(transport, &[A], Limits::default());
        assert_eq!(send(&mut s, transport, CLIENT, VIP, 0, at(0)), Ok(end(A)));
        change(&mut s, transport, &[ready(B)]);
        assert_eq!(send(&mut s, transport, CLIENT, VIP, 0, at(0)), Ok(end(B)));
        assert_eq!(answer(&mut s, transport, end(A), CLIENT, 0, at(0)), None);
        assert_eq!(
            answer(&mut s, transport, end(B), CLIENT, 0, at(0)),
            Some(end(VIP))
        );
        change(&mut s, transport, &[]);
        assert_eq!(
            send(&mut s, transport, CLIENT, VIP, 0, at(0)),
            Err(Verdict::NoBackend)
        );
    }
}

#[test]
fn draining_keeps_what_there_is() {
    for transport in [Transport::Tcp, Transport::Udp, Transport::Sctp] {
        let mut s = with(transport, &[A], Limits::default());
        assert_eq!(send(&mut s, transport, CLIENT, VIP, SYN, at(0)), Ok(end(A)));
        change(&mut s, transport, &[draining(A), ready(B)]);
        assert_eq!(
            send(&mut s, transport, CLIENT, VIP, ACK, at(0)),
            Ok(end(A)),
            "{transport}"
        );
        assert_eq!(
            answer(&mut s, transport, end(A), CLIENT, ACK, at(0)),
            Some(end(VIP))
        );
        assert_eq!(
            send(&mut s, transport, "10.244.1.2:5001", VIP, SYN, at(0)),
            Ok(end(B))
        );
    }
}

#[test]
fn a_frontend_that_goes_takes_all_along() {
    let mut s = with(Transport::Tcp, &[A, B], Limits::default());
    connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    s.apply(ServiceChange::Gone(frontend(VIP, Transport::Tcp)), at(0));
    assert_eq!(
        send(&mut s, Transport::Tcp, CLIENT, VIP, ACK, at(0)),
        Err(Verdict::Unserved)
    );
    settle(&mut s, at(0));
    assert!(s.is_idle());
    assert_eq!((s.table.servers.len(), s.table.slots.len()), (0, 0));
}

#[test]
fn time_outs() {
    // What passes, and for how many seconds the connection is there afterwards.
    let hours = 2 * 3600 + 240;
    type Steps = &'static [(bool, u8)];
    let table: &[(Transport, Steps, i64)] = &[
        (Transport::Tcp, &[(true, SYN)], 240),
        (Transport::Tcp, &[(true, SYN), (false, SYN | ACK)], 240),
        (
            Transport::Tcp,
            &[(true, SYN), (false, SYN | ACK), (true, ACK)],
            hours,
        ),
        (
            Transport::Tcp,
            &[
                (true, SYN),
                (false, SYN | ACK),
                (true, ACK),
                (true, FIN | ACK),
                (false, FIN | ACK),
            ],
            240,
        ),
        (
            Transport::Tcp,
            &[(true, SYN), (false, SYN | ACK), (true, ACK), (false, RST)],
            240,
        ),
        (Transport::Udp, &[(true, 0)], 30),
        (Transport::Udp, &[(true, 0), (false, 0)], 300),
        (Transport::Sctp, &[(true, INIT), (false, 2), (true, 10)], hours),
    ];
    for (transport, steps, secs) in table {
        let mut s = with(*transport, &[A], Limits::default());
        for (forth, kind) in *steps {
            match forth {
                true => _ = send(&mut s, *transport, CLIENT, VIP, *kind, at(10)).unwrap(),
                false => assert!(answer(&mut s, *transport, end(A), CLIENT, *kind, at(10)).is_some()),
            }
        }
        settle(&mut s, at(10 + secs - 1));
        assert_eq!(s.connections(None), 1, "{transport} {steps:?}");
        settle(&mut s, at(10 + secs));
        assert_eq!(s.connections(None), 0, "{transport} {steps:?}");
        assert_eq!(s.next_deadline(), None);
    }
}

#[test]
fn what_passes_keeps_it_alive_and_nobody_wakes_more_than_needed() {
    let mut s = with(Transport::Udp, &[A], Limits::default());
    for n in 0..100 {
        send(&mut s, Transport::Udp, CLIENT, VIP, 0, at(20 * n)).unwrap();
        settle(&mut s, at(20 * n));
        assert_eq!(s.connections(None), 1);
    }
    // From deadline to deadline: an open TCP connection is looked at each 512 s or so.
    let mut s = with(Transport::Tcp, &[A], Limits::default());
    connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    let mut wakes = 0;
    while let Some(next) = s.next_deadline() {
        settle(&mut s, next);
        wakes += 1;
    }
    assert!((14..=17).contains(&wakes), "{wakes}");
}

#[test]
fn the_clock_goes_on_while_there_is_nothing() {
    let mut s = with(Transport::Udp, &[A], Limits::default());
    for hours in [0, 10, 100] {
        let now = at(hours * 3600);
        send(&mut s, Transport::Udp, CLIENT, VIP, 0, now).unwrap();
        assert_eq!(s.next_deadline(), Some(at(hours * 3600 + 30)));
        settle(&mut s, at(hours * 3600 + 30));
        assert!(s.is_idle());
    }
}

#[test]
fn a_port_used_again_is_another_connection() {
    let mut s = with(Transport::Tcp, &[A, B], Limits::default());
    let first = connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    send(&mut s, Transport::Tcp, CLIENT, VIP, FIN | ACK, at(0)).unwrap();
    answer(&mut s, Transport::Tcp, first, CLIENT, FIN | ACK, at(0)).unwrap();
    // The last acknowledgement still gets there.
    assert_eq!(send(&mut s, Transport::Tcp, CLIENT, VIP, ACK, at(0)), Ok(first));
    let second = connect(&mut s, CLIENT, VIP, at(1)).unwrap();
    assert_ne!(first, second);
    assert_eq!(s.connections(None), 1);
}

#[test]
fn a_port_used_again_without_the_virtual_address_is_left_alone() {
    for (transport, open, accept, over) in [
        (Transport::Tcp, SYN, SYN | ACK, RST),
        (Transport::Sctp, INIT, 2, 6),
    ] {
        let mut s = with(transport, &[A], Limits::default());
        let backend = send(&mut s, transport, CLIENT, VIP, open, at(0)).unwrap();
        let accepts = |s: &mut Services| answer(s, transport, backend, CLIENT, accept, at(0));
        // Twice, as it may have been lost.
        assert_eq!(accepts(&mut s), Some(end(VIP)));
        assert_eq!(accepts(&mut s), Some(end(VIP)));
        send(&mut s, transport, CLIENT, VIP, over, at(0)).unwrap();
        // What was under way still gets there.
        assert_eq!(
            answer(&mut s, transport, backend, CLIENT, 0, at(0)),
            Some(end(VIP))
        );
        assert_eq!(accepts(&mut s), None, "{transport:?}");
        assert_eq!(answer(&mut s, transport, backend, CLIENT, 0, at(0)), None);
        assert_eq!(s.connections(None), 0);
    }
}

#[test]
fn what_never_came_about_is_told() {
    let mut s = with(Transport::Tcp, &[A], Limits::default());
    let failed = |s: &Services| s.describe(&frontend(VIP, Transport::Tcp)).unwrap().failed;
    send(&mut s, Transport::Tcp, "10.244.1.2:1", VIP, SYN, at(0)).unwrap();
    answer(&mut s, Transport::Tcp, end(A), "10.244.1.2:1", RST | ACK, at(0)).unwrap();
    assert_eq!(failed(&s), 1, "refused");
    send(&mut s, Transport::Tcp, "10.244.1.2:2", VIP, SYN, at(0)).unwrap();
    connect(&mut s, "10.244.1.2:3", VIP, at(0)).unwrap();
    settle(&mut s, at(10_000));
    assert_eq!(failed(&s), 2, "never answered");
    change(&mut s, Transport::Tcp, &[]);
    send(&mut s, Transport::Tcp, "10.244.1.2:4", VIP, SYN, at(0)).unwrap_err();
    assert_eq!(failed(&s), 3, "no backend");
}

#[test]
fn a_full_table_lets_go_of_what_is_not_open() {
    let limits = Limits {
        connections: 4,
        per_client: 4,
        ..Limits::default()
    };
    let mut s = with(Transport::Tcp, &[A], limits);
    for port in 1..=2 {
        connect(&mut s, &format!("10.244.1.2:{port}"), VIP, at(0)).unwrap();
    }
    for port in 3..=9 {
        send(
            &mut s,
            Transport::Tcp,
            &format!("10.244.1.3:{port}"),
            VIP,
            SYN,
            at(0),
        )
        .unwrap();
        assert!(s.connections(None) <= 4);
    }
    // The oldest gave way.
    let (seen, _) = s.list(&ConnectionFilter::default(), 10, at(0));
    let mut ports: Vec<u16> = seen.iter().map(|c| c.client.port()).collect();
    ports.sort();
    assert_eq!(ports, [1, 2, 8, 9]);
    for port in 8..=9 {
        connect(&mut s, &format!("10.244.1.3:{port}"), VIP, at(0)).unwrap();
    }
    assert_eq!(
        send(&mut s, Transport::Tcp, "10.244.1.4:1", VIP, SYN, at(0)),
        Err(Verdict::Drop(DropReason::ConntrackFull))
    );
    send(&mut s, Transport::Tcp, "10.244.1.3:9", VIP, RST, at(0)).unwrap();
    send(&mut s, Transport::Tcp, "10.244.1.4:1", VIP, SYN, at(0)).unwrap();
}

#[test]
fn one_client_cannot_take_all() {
    let limits = Limits {
        connections: 100,
        per_client: 3,
        ..Limits::default()
    };
    let mut s = with(Transport::Tcp, &[A], limits);
    let other = connect(&mut s, "10.244.1.9:1", VIP, at(0));
    assert!(other.is_ok());
    send(&mut s, Transport::Tcp, "10.244.1.9:2", VIP, SYN, at(0)).unwrap();
    for port in 1..=2 {
        connect(&mut s, &format!("10.244.1.2:{port}"), VIP, at(0)).unwrap();
    }
    // Its own half-open ones give way, never another's.
    for port in 3..=9 {
        send(
            &mut s,
            Transport::Tcp,
            &format!("10.244.1.2:{port}"),
            VIP,
            SYN,
            at(0),
        )
        .unwrap();
    }
    assert_eq!(s.connections(Some("10.244.1.2".parse().unwrap())), 3);
    assert_eq!(s.connections(Some("10.244.1.9".parse().unwrap())), 2);
    connect(&mut s, "10.244.1.2:9", VIP, at(0)).unwrap();
    assert_eq!(
        send(&mut s, Transport::Tcp, "10.244.1.2:10", VIP, SYN, at(0)),
        Err(Verdict::Drop(DropReason::ConntrackLimit))
    );
}

/// A pod has three addresses: they are one client.
#[test]
fn a_pods_addresses_share_what_it_may_have() {
    let limits = Limits {
        connections: 100,
        per_client: 6,
        ..Limits::default()
    };
    let mut s = with(Transport::Udp, &[A], limits);
    let vip6 = "[fd00:96::1]:80";
    set(
        &mut s,
        frontend(vip6, Transport::Udp),
        &Spec::of(&["[fd00:2::a]:8080"]),
        at(0),
    );
    for port in 1..=9 {
        for (from, to) in [
            (format!("10.244.1.2:{port}"), VIP),
            (format!("[fd00:1::2]:{port}"), vip6),
            (format!("[fe80::2]:{port}"), vip6),
            (format!("10.244.1.3:{port}"), VIP),
        ] {
            send(&mut s, Transport::Udp, &from, to, 0, at(0)).unwrap();
        }
    }
    assert_eq!(s.connections(None), 12, "six of each of the two pods");
    assert_eq!(s.forget(PortId(2)), 6);
    let left: Vec<IpAddr> = s
        .list(&ConnectionFilter::default(), 9, at(0))
        .0
        .iter()
        .map(|c| c.client.ip())
        .collect();
    assert_eq!(left, ["10.244.1.3".parse::<IpAddr>().unwrap(); 6]);
    // Clients outside are told apart by their addresses.
    for n in 0..20 {
        let from = format!("198.51.100.{}:7", 1 + n % 2 + 10 * n);
        let mut f = packet(Transport::Udp, end(&from), end(VIP), 0, b"", Check::Complete);
        let h = Headers::parse(&f).unwrap();
        assert_eq!(s.forward(&mut f, &h, None, None, at(0)), Verdict::Translated);
    }
    assert_eq!(s.connections(None), 26);
}

#[test]
fn a_hundred_thousand() {
    let mut s = with(Transport::Udp, &[A, B], Limits::default());
    let empty = s.memory();
    let client = |n: u32| {
        SocketAddr::new(
            Ipv4Addr::from(0x0af4_0100 + n / 1000).into(),
            1000 + (n % 1000) as u16,
        )
    };
    let mut f = packet(Transport::Udp, client(0), end(VIP), 0, b"x", Check::Complete);
    let total = 100_000;
    for n in 0..total {
        let from = client(n);
        f[26..30].copy_from_slice(&match from.ip() {
            IpAddr::V4(a) => a.octets(),
            IpAddr::V6(_) => unreachable!(),
        });
        put(&mut f, 30, &[10, 96, 0, 1]);
        put_be16(&mut f, 34, from.port());
        put_be16(&mut f, 36, 80);
        put_be16(&mut f, 24, 0);
        let header = !fold(sum(&f[14..34]));
        put_be16(&mut f, 24, header);
        assert_eq!(forward(&mut s, &mut f, at(0)), Verdict::Translated);
    }
    assert_eq!(s.connections(None), total as usize);
    let each = (s.memory() - empty) / total as usize;
    assert!(each < 300, "{each} bytes each");
    for n in (0..total).step_by(997) {
        let (seen, _) = s.list(
            &ConnectionFilter {
                client: Some(client(n).ip()),
                client_port: Some(client(n).port()),
                ..ConnectionFilter::default()
            },
            1,
            at(0),
        );
        let back = answer(
            &mut s,
            Transport::Udp,
            seen[0].backend,
            &client(n).to_string(),
            0,
            at(0),
        );
        assert_eq!(back, Some(end(VIP)));
    }
    settle(&mut s, at(31));
    assert_eq!(s.connections(None), total as usize / 997 + 1);
    assert_eq!(s.kill(&ConnectionFilter::default()), total as usize / 997 + 1);
    assert!(s.is_idle() && s.next_deadline().is_none());
}

#[test]
fn filters_and_kills() {
    let mut s = with(Transport::Tcp, &[A, B], Limits::default());
    for port in 1..=4 {
        connect(&mut s, &format!("10.244.1.2:{port}"), VIP, at(0)).unwrap();
    }
    let filters = [
        (
            ConnectionFilter {
                transport: Some(Transport::Udp),
                ..ConnectionFilter::default()
            },
            0,
        ),
        (
            ConnectionFilter {
                service: Some("web".parse().unwrap()),
                ..ConnectionFilter::default()
            },
            4,
        ),
        (
            ConnectionFilter {
                service: Some("other".parse().unwrap()),
                ..ConnectionFilter::default()
            },
            0,
        ),
        (
            ConnectionFilter {
                client_port: Some(1),
                ..ConnectionFilter::default()
            },
            1,
        ),
        (
            ConnectionFilter {
                frontend: Some(end(VIP).ip()),
                frontend_port: Some(80),
                ..ConnectionFilter::default()
            },
            4,
        ),
        (
            ConnectionFilter {
                backend: Some(end(A).ip()),
                backend_port: Some(8080),
                ..ConnectionFilter::default()
            },
            2,
        ),
        (
            ConnectionFilter {
                state: Some(ConnState::Closing),
                ..ConnectionFilter::default()
            },
            0,
        ),
    ];
    for (filter, count) in &filters {
        let (seen, all) = s.list(filter, 1, at(0));
        assert_eq!((seen.len(), all), ((*count).min(1), *count), "{filter:?}");
    }
    assert_eq!(s.kill(&filters[5].0), 2);
    let resets = (1..=4).filter(|port| {
        send(
            &mut s,
            Transport::Tcp,
            &format!("10.244.1.2:{port}"),
            VIP,
            ACK,
            at(0),
        ) == Err(Verdict::Reset)
    });
    assert_eq!(resets.count(), 2);
}

/// With maglev a connection in its midst is known to lead on, so that it outlives its node; one that was ended must not.
#[test]
fn what_was_ended_does_not_go_on_whatever_the_scheduler() {
    let f = frontend(VIP, Transport::Tcp);
    for scheduler in [
        Scheduler::Random,
        Scheduler::RoundRobin,
        Scheduler::LeastConnections,
        Scheduler::Maglev,
    ] {
        let mut s = services(Limits::default());
        set(&mut s, f, &Spec::by(scheduler, &[A, B]), at(0));
        connect(&mut s, CLIENT, VIP, at(0)).unwrap();
        assert_eq!(s.kill(&ConnectionFilter::default()), 1);
        for later in [1, 60, 3600, 7439] {
            let sent = send(&mut s, Transport::Tcp, CLIENT, VIP, ACK, at(later));
            assert_eq!(sent, Err(Verdict::Reset), "{scheduler:?} after {later} s");
        }
        // From the same port it begins anew, and goes on.
        connect(&mut s, CLIENT, VIP, at(7439)).unwrap();
        send(&mut s, Transport::Tcp, CLIENT, VIP, ACK, at(7439)).unwrap();
        // Others that no node knows of are taken on by maglev, and by nothing else.
        let sent = send(&mut s, Transport::Tcp, "10.244.1.2:5009", VIP, ACK, at(7439));
        assert_eq!(sent.is_ok(), scheduler == Scheduler::Maglev, "{scheduler:?}");
    }
}

#[test]
fn what_is_remembered_of_ended_connections_is_bounded() {
    let limits = Limits {
        connections: 64,
        ..Limits::default()
    };
    let mut s = services(limits);
    let f = frontend(VIP, Transport::Tcp);
    set(&mut s, f, &Spec::by(Scheduler::Maglev, &[A, B]), at(0));
    let client = |n: u32| format!("10.244.1.2:{}", 1000 + n);
    for n in 0..1000 {
        connect(&mut s, &client(n), VIP, at(0)).unwrap();
        s.kill(&ConnectionFilter::default());
    }
    let mut ended = |n| send(&mut s, Transport::Tcp, &client(n), VIP, ACK, at(1)) == Err(Verdict::Reset);
    assert!((1000 - 64..1000).all(&mut ended), "the last ones are known");
    assert!(!ended(0), "the first one is not");
}

#[test]
fn what_is_closing_is_no_load() {
    let mut s = services(Limits::default());
    let f = frontend(VIP, Transport::Tcp);
    set(&mut s, f, &Spec::by(Scheduler::LeastConnections, &[A, B]), at(0));
    let first = connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    let second = connect(&mut s, "10.244.1.2:5001", VIP, at(0)).unwrap();
    assert_ne!(first, second);
    // Both ends are done: the next two are for this backend and then for the one whose turn it is.
    send(&mut s, Transport::Tcp, CLIENT, VIP, FIN | ACK, at(0)).unwrap();
    answer(&mut s, Transport::Tcp, first, CLIENT, FIN | ACK, at(0)).unwrap();
    let seen = s.describe(&f).unwrap();
    assert_eq!((seen.open, s.connections(None)), (1, 2));
    assert_eq!(connect(&mut s, "10.244.1.2:5002", VIP, at(0)), Ok(first));
    settle(&mut s, at(300));
    let seen = s.describe(&f).unwrap();
    assert_eq!((seen.open, s.connections(None), seen.failed), (2, 2, 0));
    assert!(seen.backends.iter().all(|b| b.open == 1));
}

#[test]
fn a_pod_that_is_gone_leaves_nothing() {
    let mut s = with(Transport::Udp, &[A, B], Limits::default());
    for port in 1..=4 {
        send(
            &mut s,
            Transport::Udp,
            &format!("10.244.1.2:{port}"),
            VIP,
            0,
            at(0),
        )
        .unwrap();
    }
    answer(&mut s, Transport::Udp, end(A), "10.244.1.2:1", 0, at(0));
    send(&mut s, Transport::Udp, "10.244.1.3:1", VIP, 0, at(0)).unwrap();
    assert_eq!(s.forget(PortId(2)), 4);
    assert_eq!(s.forget(PortId(2)), 0);
    assert_eq!(s.connections(None), 1);
}

#[test]
fn who_comes_while_others_are_being_closed_is_left_alone() {
    let (one, two, new) = ("10.244.1.10:8080", "10.244.2.10:8080", "10.244.3.10:8080");
    let mut s = with(Transport::Tcp, &[one, two], Limits::default());
    for port in 1000..3000 {
        send(
            &mut s,
            Transport::Tcp,
            &format!("10.244.1.2:{port}"),
            VIP,
            SYN,
            at(0),
        )
        .unwrap();
    }
    // Both go; more than are closed at once.
    change(&mut s, Transport::Tcp, &[]);
    let filter = ConnectionFilter {
        backend: Some(end(one).ip()),
        ..ConnectionFilter::default()
    };
    s.kill(&filter);
    assert!(s.connections(None) > 512, "there are others to be closed still");
    // Its number may be that of one of them.
    change(&mut s, Transport::Tcp, &[ready(new)]);
    let sent = send(&mut s, Transport::Tcp, "10.244.1.3:1000", VIP, SYN, at(0));
    assert_eq!(sent, Ok(end(new)));
    settle(&mut s, at(0));
    assert_eq!(s.connections(None), 1);
}
