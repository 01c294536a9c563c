//! Which backend a flow goes to.

use super::*;
use std::collections::{BTreeMap, BTreeSet};

const VIP: &str = "10.96.0.1:80";
const THREE: [&str; 3] = ["10.244.1.10:8080", "10.244.2.10:8080", "10.244.3.10:8080"];

fn tcp() -> Frontend {
    frontend(VIP, Transport::Tcp)
}

/// How many of so many new connections of one client each backend gets.
fn shares(s: &mut Services, ports: std::ops::Range<u16>) -> BTreeMap<SocketAddr, usize> {
    let mut shares = BTreeMap::new();
    for port in ports {
        let client = format!("10.244.1.2:{port}");
        let backend = send(s, Transport::Tcp, &client, VIP, SYN, at(0)).unwrap();
        *shares.entry(backend).or_default() += 1;
    }
    shares
}

#[test]
fn an_address_a_port_and_a_protocol() {
    let mut s = services(Limits::default());
    let six = "[fd00:96::1]:80";
    set(&mut s, tcp(), &Spec::of(&THREE), at(0));
    set(
        &mut s,
        frontend("10.96.0.2:53", Transport::Udp),
        &Spec::of(&[]),
        at(0),
    );
    set(
        &mut s,
        frontend(six, Transport::Sctp),
        &Spec::of(&["[fd00::a]:9"]),
        at(0),
    );
    let table: &[(Transport, &str, &str, Result<&str, Verdict>)] = &[
        (Transport::Tcp, "10.244.1.2:5000", VIP, Ok(THREE[1])),
        (Transport::Udp, "10.244.1.2:5000", VIP, Err(Verdict::Unserved)),
        (
            Transport::Tcp,
            "10.244.1.2:5000",
            "10.96.0.1:81",
            Err(Verdict::Unserved),
        ),
        (
            Transport::Udp,
            "10.244.1.2:5000",
            "10.96.0.2:53",
            Err(Verdict::NoBackend),
        ),
        (Transport::Sctp, "[fd00::2]:5000", six, Ok("[fd00::a]:9")),
    ];
    for (transport, from, to, expected) in table {
        let sent = send(&mut s, *transport, from, to, SYN, at(0));
        assert_eq!(sent, expected.map(end), "{transport} to {to}");
    }
    for (ip, is) in [
        ("10.96.0.1", true),
        ("10.96.0.2", true),
        ("fd00:96::1", true),
        ("10.96.0.3", false),
    ] {
        assert_eq!(s.has_address(ip.parse().unwrap()), is, "{ip}");
    }
    s.apply(ServiceChange::Gone(tcp()), at(0));
    assert!(!s.has_address("10.96.0.1".parse().unwrap()));
    assert_eq!(s.frontends(), 2);
}

#[test]
fn one_after_the_other_and_any() {
    let mut s = services(Limits::default());
    set(&mut s, tcp(), &Spec::of(&THREE), at(0));
    assert!(shares(&mut s, 1000..1300).values().all(|n| *n == 100));
    set(&mut s, tcp(), &Spec::by(Scheduler::Random, &THREE), at(0));
    assert!(shares(&mut s, 2000..2300).values().all(|n| (60..140).contains(n)));
}

#[test]
fn the_one_with_the_fewest_connections() {
    let mut s = services(Limits::default());
    set(
        &mut s,
        tcp(),
        &Spec::by(Scheduler::LeastConnections, &THREE),
        at(0),
    );
    assert!(shares(&mut s, 1000..1030).values().all(|n| *n == 10));
    // Two of them lose what they have.
    for gone in &THREE[..2] {
        let filter = ConnectionFilter {
            backend: Some(end(gone).ip()),
            ..ConnectionFilter::default()
        };
        assert_eq!(s.kill(&filter), 10);
    }
    let next = shares(&mut s, 2000..2020);
    assert_eq!(next.get(&end(THREE[2])), None);
    assert!(next.values().all(|n| *n == 10));
    // Connections that come one by one and end at once do not all go to the same one.
    let mut seen = BTreeSet::new();
    for port in 3000..3003 {
        let client = format!("10.244.1.3:{port}");
        seen.insert(send(&mut s, Transport::Tcp, &client, VIP, SYN, at(0)).unwrap());
        s.kill(&ConnectionFilter {
            client: Some("10.244.1.3".parse().unwrap()),
            ..ConnectionFilter::default()
        });
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn maglev_is_the_same_on_each_node_and_by_client() {
    let nodes = [1, 2].map(|seed| {
        let mut s = Services::new(Limits::default(), seed, None, None);
        set(&mut s, tcp(), &Spec::by(Scheduler::Maglev, &THREE), at(0));
        s
    });
    let [mut a, mut b] = nodes;
    let mut seen = BTreeSet::new();
    for port in 1000..1100 {
        let client = format!("10.244.1.2:{port}");
        let chosen = send(&mut a, Transport::Tcp, &client, VIP, SYN, at(0)).unwrap();
        // Also in the midst of a connection that the other node had opened.
        assert_eq!(send(&mut b, Transport::Tcp, &client, VIP, ACK, at(0)), Ok(chosen));
        seen.insert(chosen);
    }
    assert_eq!(seen.len(), 3);
}

#[test]
fn draining_ones_are_for_when_none_is_ready() {
    let mut s = services(Limits::default());
    let mut spec = Spec::of(&THREE);
    spec.backends[0] = draining(THREE[0]);
    set(&mut s, tcp(), &spec, at(0));
    assert_eq!(shares(&mut s, 1000..1100).get(&end(THREE[0])), None);
    spec.backends = THREE.iter().map(|b| draining(b)).collect();
    set(&mut s, tcp(), &spec, at(0));
    assert_eq!(shares(&mut s, 2000..2030).len(), 3);
}

#[test]
fn only_backends_of_this_node() {
    let mut s = services(Limits::default());
    let mut spec = Spec::of(&THREE);
    spec.local_only = true;
    set(&mut s, tcp(), &spec, at(0));
    assert_eq!(
        send(&mut s, Transport::Tcp, "10.244.1.2:1", VIP, SYN, at(0)),
        Err(Verdict::NoBackend)
    );
    spec.backends[1].local = true;
    set(&mut s, tcp(), &spec, at(0));
    assert_eq!(shares(&mut s, 1000..1010), BTreeMap::from([(end(THREE[1]), 10)]));
    // One of this node that ends is better than none, one elsewhere is not.
    spec.backends[1].phase = BackendPhase::Draining;
    set(&mut s, tcp(), &spec, at(0));
    assert_eq!(shares(&mut s, 2000..2010), BTreeMap::from([(end(THREE[1]), 10)]));
}

#[test]
fn a_client_stays_with_its_backend() {
    for scheduler in [
        Scheduler::Random,
        Scheduler::RoundRobin,
        Scheduler::LeastConnections,
        Scheduler::Maglev,
    ] {
        let mut s = services(Limits::default());
        let mut spec = Spec::by(scheduler, &THREE);
        spec.affinity = Some(Duration::from_secs(100));
        set(&mut s, tcp(), &spec, at(0));
        let first = shares(&mut s, 1000..1020);
        assert_eq!(first.len(), 1, "{scheduler:?}");
        let first = *first.keys().next().unwrap();
        // It ends: new flows go elsewhere at once, and stay there.
        let place = THREE.iter().position(|b| end(b) == first).unwrap();
        spec.backends[place] = draining(THREE[place]);
        set(&mut s, tcp(), &spec, at(0));
        let second = shares(&mut s, 2000..2020);
        assert!(second.len() == 1 && !second.contains_key(&first), "{scheduler:?}");
        // It is gone.
        let second = *second.keys().next().unwrap();
        spec.backends.retain(|b| b.at != second);
        set(&mut s, tcp(), &spec, at(0));
        assert!(!shares(&mut s, 3000..3010).contains_key(&second), "{scheduler:?}");
    }
}

#[test]
fn affinity_lasts_from_the_last_new_flow() {
    let mut s = services(Limits::default());
    let mut spec = Spec::of(&THREE);
    spec.affinity = Some(Duration::from_secs(100));
    set(&mut s, tcp(), &spec, at(0));
    let mut flow = |port: u16, secs| {
        let client = format!("10.244.1.2:{port}");
        send(&mut s, Transport::Tcp, &client, VIP, SYN, at(secs)).unwrap()
    };
    let first = flow(1, 0);
    assert_eq!(flow(2, 99), first);
    assert_eq!(flow(3, 198), first);
    assert_ne!(flow(4, 298), first);
}

#[test]
fn counters() {
    let mut s = services(Limits::default());
    set(
        &mut s,
        tcp(),
        &Spec::by(Scheduler::LeastConnections, &THREE),
        at(0),
    );
    shares(&mut s, 1000..1006);
    let seen = s.describe(&tcp()).unwrap();
    assert_eq!((seen.open, seen.opened, seen.failed), (6, 6, 0));
    assert!(
        seen.backends
            .iter()
            .all(|b| b.open == 2 && b.opened == 2 && b.usable)
    );
    assert!(s.has_backend(&tcp()));
    set(
        &mut s,
        tcp(),
        &Spec::by(Scheduler::LeastConnections, &THREE[1..]),
        at(0),
    );
    assert_eq!(s.describe(&tcp()).unwrap().open, 4);
    set(&mut s, tcp(), &Spec::of(&[]), at(0));
    let seen = s.describe(&tcp()).unwrap();
    assert_eq!((seen.open, seen.opened, seen.backends.len()), (0, 6, 0));
    assert!(!s.has_backend(&tcp()));
    let mut all = Vec::new();
    s.describe_all(|view| all.push(view.frontend));
    assert_eq!(all, [tcp()]);
}

#[test]
fn nonsense_in_a_change_is_left_out() {
    let mut s = services(Limits::default());
    let spec = Spec::of(&[THREE[2], THREE[0], THREE[0], "[fd00::1]:80", "10.244.1.9:0"]);
    set(&mut s, tcp(), &spec, at(0));
    let seen = s.describe(&tcp()).unwrap();
    let backends: Vec<SocketAddr> = seen.backends.iter().map(|b| b.backend.at).collect();
    assert_eq!(backends, [end(THREE[0]), end(THREE[2])]);
    s.apply(
        ServiceChange::Gone(frontend("10.96.0.9:1", Transport::Tcp)),
        at(0),
    );
}

/// A table of Maglev takes its time: a change of many Services makes none, and the first flow of each its own.
#[test]
fn changes_make_no_tables() {
    let vip = |n: u16| format!("10.96.0.1:{n}");
    let story = |scheduler| {
        let mut s = services(Limits::default());
        for backends in [&THREE[..2], &THREE[..]] {
            for n in 1..=100 {
                let spec = Spec::by(scheduler, backends);
                set(&mut s, frontend(&vip(n), Transport::Tcp), &spec, at(0));
            }
        }
        let before = s.memory();
        connect(&mut s, "10.244.1.2:5000", &vip(7), at(0)).unwrap();
        (before, s.memory(), s)
    };
    let (before, after, mut s) = story(Scheduler::Maglev);
    let (without, and_after, _) = story(Scheduler::Random);
    assert_eq!(before, without);
    assert_eq!(after - and_after, 2 * 2039, "one table");
    // It is the same one as ever, whenever it is made.
    let mut chosen = (1..=100).map(|n| {
        let sent = send(&mut s, Transport::Tcp, "10.244.1.2:6000", &vip(n), SYN, at(0));
        sent.unwrap()
    });
    let first = chosen.next();
    assert!(chosen.all(|b| Some(b) == first));
}
