use super::*;
use proptest::prelude::*;

fn zone() -> Zone {
    let subnets = ["10.244.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
    let gateways = PodAddresses {
        ip4: Some([10, 244, 1, 1].into()),
        ip6: Some("fd00:1::1".parse().unwrap()),
    };
    Zone::new("pod".parse().unwrap(), &subnets, gateways)
}

fn pod(name: &str) -> PodName {
    name.parse().unwrap()
}

fn ips(n: u8) -> PodAddresses {
    PodAddresses {
        ip4: Some([10, 244, 1, n].into()),
        ip6: None,
    }
}

/// What is said of a name: `10.244.1.2`, `web.default.pod.`, "none", "no such name", "elsewhere".
fn said(zone: &Zone, name: &str, kind: RecordType) -> String {
    let wire = name.parse::<Fqdn>().unwrap();
    match zone.lookup(wire.wire(), kind) {
        Found::Elsewhere => "elsewhere".into(),
        Found::Alias { target, .. } => format!("alias of {target}"),
        Found::Here {
            code: ResponseCode::NXDomain,
            authority,
            ..
        } => {
            assert!(!authority.is_empty());
            "no such name".into()
        }
        Found::Here {
            answers, authority, ..
        } if answers.is_empty() => {
            assert!(!authority.is_empty());
            "none".into()
        }
        Found::Here { answers, .. } => {
            let mut all: Vec<String> = answers.iter().map(|r| r.data.to_string()).collect();
            all.sort();
            all.join(" ")
        }
    }
}

#[test]
fn names_are_known_as_long_as_their_pods() {
    use RecordType as T;
    let mut zone = zone();
    for (name, n) in [
        ("web", 2),
        ("shop/db-0", 3),
        ("shop/db-1", 4),
        ("shop/a.b", 5),
        ("shop/-x", 6),
    ] {
        if let Ok(name) = name.parse() {
            zone.set_pod(&name, Some(ips(n)));
        }
    }
    for (name, kind, told) in [
        ("web.default.pod", T::A, "10.244.1.2"),
        ("web.default.pod", T::AAAA, "none"),
        ("a.b.shop.pod", T::A, "10.244.1.5"),
        ("b.shop.pod", T::A, "none"),
        ("db-0.db.shop.pod", T::A, "10.244.1.3"),
        ("db.shop.pod", T::A, "10.244.1.3 10.244.1.4"),
        ("shop.pod", T::A, "none"),
        ("pod", T::A, "none"),
        ("shap.pod", T::A, "no such name"),
        ("2.1.244.10.in-addr.arpa", T::PTR, "web.default.pod."),
        ("9.1.244.10.in-addr.arpa", T::PTR, "no such name"),
        ("2.2.244.10.in-addr.arpa", T::PTR, "elsewhere"),
        ("244.10.in-addr.arpa", T::PTR, "elsewhere"),
        ("pods", T::A, "elsewhere"),
        ("example.com", T::A, "elsewhere"),
        ("host.podwire.internal", T::AAAA, "fd00:1::1"),
        ("internal", T::A, "elsewhere"),
    ] {
        assert_eq!(said(&zone, name, kind), told, "{name} {kind}");
    }
    zone.set_pod(&pod("shop/db-0"), Some(ips(30)));
    assert_eq!(said(&zone, "db.shop.pod", T::A), "10.244.1.30 10.244.1.4");
    assert_eq!(said(&zone, "3.1.244.10.in-addr.arpa", T::PTR), "no such name");
    // A pod of the set's own name has it alone.
    zone.set_pod(&pod("shop/db"), Some(ips(7)));
    assert_eq!(said(&zone, "db.shop.pod", T::A), "10.244.1.7");
    for name in ["shop/db", "shop/db-0", "shop/db-1", "shop/a.b"] {
        zone.set_pod(&pod(name), None);
    }
    assert_eq!(said(&zone, "shop.pod", T::A), "no such name");
    assert_eq!(said(&zone, "db.shop.pod", T::A), "no such name");
}

#[test]
fn aliases_are_names_of_all_pods_that_have_them() {
    use RecordType as T;
    let mut zone = zone();
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    // Told before the pod, or after it, it is the same.
    zone.set_aliases(&pod("shop/a"), &names(&["web", "cache", "a", "x.y"]));
    zone.set_pod(&pod("shop/a"), Some(ips(2)));
    zone.set_pod(&pod("shop/b"), Some(ips(3)));
    zone.set_aliases(&pod("shop/b"), &names(&["web"]));
    assert_eq!(said(&zone, "web.shop.pod", T::A), "10.244.1.2 10.244.1.3");
    assert_eq!(said(&zone, "cache.shop.pod", T::A), "10.244.1.2");
    assert_eq!(said(&zone, "x.y.shop.pod", T::A), "no such name");
    assert_eq!(said(&zone, "web.default.pod", T::A), "no such name");
    assert_eq!(said(&zone, "2.1.244.10.in-addr.arpa", T::PTR), "a.shop.pod.");
    // A pod of that very name has it alone, as long as it is there.
    zone.set_pod(&pod("shop/cache"), Some(ips(4)));
    assert_eq!(said(&zone, "cache.shop.pod", T::A), "10.244.1.4");
    zone.set_pod(&pod("shop/cache"), None);
    assert_eq!(said(&zone, "cache.shop.pod", T::A), "10.244.1.2");
    zone.set_pod(&pod("shop/a"), None);
    zone.set_aliases(&pod("shop/a"), &[]);
    assert_eq!(said(&zone, "web.shop.pod", T::A), "10.244.1.3");
    assert_eq!(said(&zone, "cache.shop.pod", T::A), "no such name");
    zone.set_aliases(&pod("shop/b"), &[]);
    assert_eq!(said(&zone, "web.shop.pod", T::A), "no such name");
    zone.set_pod(&pod("shop/b"), None);
    assert_eq!(said(&zone, "shop.pod", T::A), "no such name");
}

/// `a.b` in `c` and `a` in `b.c` have one name: it is never both.
#[test]
fn a_name_that_two_pods_claim_is_one_pods() {
    let mut zone = zone();
    zone.set_pod(&pod("c/a.b"), Some(ips(2)));
    zone.set_pod(&pod("b.c/a"), Some(ips(3)));
    let first = said(&zone, "a.b.c.pod", RecordType::A);
    assert_eq!(first, "10.244.1.3");
    zone.set_pod(&pod("b.c/a"), None);
    assert_eq!(said(&zone, "a.b.c.pod", RecordType::A), "10.244.1.2");
    // Names that differ in case only are one name here.
    zone.set_pod(&pod("x/A"), Some(ips(4)));
    zone.set_pod(&pod("x/a"), Some(ips(5)));
    assert_eq!(said(&zone, "a.x.pod", RecordType::A), "10.244.1.4");
}

#[test]
fn entries_stand_before_everything_and_aliases_end() {
    use RecordType as T;
    let mut zone = zone();
    zone.set_pod(&pod("web"), Some(ips(2)));
    let entries = [
        "web.default.pod 192.0.2.1",
        "www.internal shop.internal",
        "shop.internal web.default.pod",
        "out.internal example.com",
        "round.internal round2.internal",
        "round2.internal round.internal",
        "_h._tcp.s.internal SRV 1 2 80 shop2.internal",
        "shop2.internal 192.0.2.9",
    ];
    zone.set_entries(entries.iter().map(|e| e.parse().unwrap()).collect());
    for (name, kind, told) in [
        ("web.default.pod", T::A, "192.0.2.1"),
        ("www.internal", T::A, "192.0.2.1 shop.internal. web.default.pod."),
        ("www.internal", T::CNAME, "shop.internal."),
        ("www.internal", T::AAAA, "shop.internal. web.default.pod."),
        ("out.internal", T::A, "alias of example.com"),
        ("x.internal", T::A, "elsewhere"),
        ("9.2.0.192.in-addr.arpa", T::PTR, "shop2.internal."),
        ("8.2.0.192.in-addr.arpa", T::PTR, "elsewhere"),
        ("2.1.244.10.in-addr.arpa", T::PTR, "web.default.pod."),
    ] {
        assert_eq!(said(&zone, name, kind), told, "{name} {kind}");
    }
    let round: Fqdn = "round.internal".parse().unwrap();
    let Found::Here { code, answers, .. } = zone.lookup(round.wire(), T::A) else {
        panic!("it is the node's");
    };
    assert_eq!((code, answers.len()), (ResponseCode::ServFail, MAX_ALIASES));
    let service: Fqdn = "_h._tcp.s.internal".parse().unwrap();
    let Found::Here { additionals, .. } = zone.lookup(service.wire(), T::SRV) else {
        panic!("it is the node's");
    };
    assert_eq!(additionals.len(), 1);
    zone.set_entries(Vec::new());
    assert_eq!(said(&zone, "web.default.pod", T::A), "10.244.1.2");
    assert_eq!(said(&zone, "www.internal", T::A), "elsewhere");
}

proptest! {
    /// Whatever came and went: the names are those of the pods that are there.
    #[test]
    fn what_is_left_is_as_if_made_anew(
        steps in prop::collection::vec((0usize..12, prop::option::weighted(0.6, 2u8..250)), 1..60)
    ) {
        let names = [
            "a", "a-0", "a-1", "x/a-0", "x/a-0.a", "x/a", "a.x/b", "x/b.a", "x/db-00", "x/A-0", "x/a..b", "x/db-0-1",
        ];
        let mut changed = zone();
        let mut there: BTreeMap<usize, u8> = BTreeMap::new();
        for (i, n) in steps {
            changed.set_pod(&pod(names[i]), n.map(ips));
            match n {
                Some(n) => drop(there.insert(i, n)),
                None => drop(there.remove(&i)),
            }
        }
        let mut made = zone();
        for (i, n) in &there {
            made.set_pod(&pod(names[*i]), Some(ips(*n)));
        }
        prop_assert_eq!(changed.list(), made.list());
        prop_assert_eq!(&changed.below, &made.below);
        prop_assert_eq!(changed.names.len(), made.names.len());
    }

    #[test]
    fn any_name_is_looked_up(bytes in prop::collection::vec(any::<u8>(), 0..300), kind: u16) {
        zone().lookup(&bytes, RecordType::from(kind));
    }
}

fn service(name: &str) -> ServiceName {
    name.parse().unwrap()
}

fn srv(name: &str, port: u16) -> crate::model::ServicePortRecord {
    crate::model::ServicePortRecord {
        name: name.into(),
        transport: crate::model::Transport::Tcp,
        port,
    }
}

#[test]
fn services_have_the_names_of_kubernetes() {
    use crate::model::{ServiceHost, ServiceRecords};
    use RecordType as T;
    let ranges = [
        "10.96.0.0/16".parse().unwrap(),
        "fd00:10:96::/112".parse().unwrap(),
    ];
    let mut zone = zone().with_services("cluster.local".parse().unwrap(), &ranges);
    zone.set_pod(&pod("shop/db-0"), Some(ips(7)));
    let web = ServiceRecords {
        addresses: vec!["10.96.0.10".parse().unwrap(), "fd00:10:96::a".parse().unwrap()],
        ports: vec![srv("http", 80)],
        ..ServiceRecords::default()
    };
    let host = |n: u8| ServiceHost {
        name: format!("db-{}", n - 7),
        at: [10, 244, 1, n].into(),
        ports: vec![srv("pg", 5432)],
    };
    let db = ServiceRecords {
        addresses: vec![[10, 244, 1, 7].into(), [10, 244, 1, 8].into()],
        hosts: vec![host(7), host(8)],
        ..ServiceRecords::default()
    };
    let alias = |to: &str| ServiceRecords {
        alias: Some(to.into()),
        ..ServiceRecords::default()
    };
    zone.set_service(&service("web"), Some(&web));
    zone.set_service(&service("shop/db"), Some(&db));
    zone.set_service(&service("out"), Some(&alias("db.example.org")));
    zone.set_service(&service("in"), Some(&alias("web.default.svc.cluster.local")));
    zone.set_service(&service("self"), Some(&alias("self.default.svc.cluster.local")));
    let table = [
        ("web.default.svc.cluster.local", T::A, "10.96.0.10"),
        ("web.default.svc.cluster.local", T::AAAA, "fd00:10:96::a"),
        ("web.default.svc.cluster.local", T::SRV, "none"),
        (
            "_http._tcp.web.default.svc.cluster.local",
            T::SRV,
            "0 100 80 web.default.svc.cluster.local.",
        ),
        ("_http._udp.web.default.svc.cluster.local", T::SRV, "no such name"),
        (
            "10.0.96.10.in-addr.arpa",
            T::PTR,
            "web.default.svc.cluster.local.",
        ),
        ("11.0.96.10.in-addr.arpa", T::PTR, "no such name"),
        ("db.shop.svc.cluster.local", T::A, "10.244.1.7 10.244.1.8"),
        ("db.shop.svc.cluster.local", T::AAAA, "none"),
        ("db-0.db.shop.svc.cluster.local", T::A, "10.244.1.7"),
        ("db-9.db.shop.svc.cluster.local", T::A, "no such name"),
        (
            "_pg._tcp.db.shop.svc.cluster.local",
            T::SRV,
            "0 100 5432 db-0.db.shop.svc.cluster.local. 0 100 5432 db-1.db.shop.svc.cluster.local.",
        ),
        // Where a pod stands behind a headless Service, its name there is told.
        (
            "7.1.244.10.in-addr.arpa",
            T::PTR,
            "db-0.db.shop.svc.cluster.local.",
        ),
        (
            "8.1.244.10.in-addr.arpa",
            T::PTR,
            "db-1.db.shop.svc.cluster.local.",
        ),
        ("out.default.svc.cluster.local", T::CNAME, "db.example.org."),
        ("out.default.svc.cluster.local", T::A, "alias of db.example.org"),
        (
            "in.default.svc.cluster.local",
            T::A,
            "10.96.0.10 web.default.svc.cluster.local.",
        ),
        ("self.default.svc.cluster.local", T::A, "no such name"),
        ("default.svc.cluster.local", T::A, "none"),
        ("svc.cluster.local", T::A, "none"),
        ("cluster.local", T::A, "none"),
        ("nobody.default.svc.cluster.local", T::A, "no such name"),
        ("example.org.svc.cluster.local", T::A, "no such name"),
        ("db-0.db.shop.pod", T::A, "10.244.1.7"),
    ];
    for (name, kind, expected) in table {
        assert_eq!(said(&zone, name, kind), expected, "{name} {kind}");
    }
    // SRV brings the addresses along.
    let asked = "_pg._tcp.db.shop.svc.cluster.local".parse::<Fqdn>().unwrap();
    let Found::Here { additionals, .. } = zone.lookup(asked.wire(), T::SRV) else {
        panic!()
    };
    assert_eq!(additionals.len(), 2);
    let smaller = ServiceRecords {
        addresses: db.addresses[..1].to_vec(),
        hosts: db.hosts[..1].to_vec(),
        ..ServiceRecords::default()
    };
    zone.set_service(&service("shop/db"), Some(&smaller));
    assert_eq!(said(&zone, "db.shop.svc.cluster.local", T::A), "10.244.1.7");
    assert_eq!(
        said(&zone, "db-1.db.shop.svc.cluster.local", T::A),
        "no such name"
    );
    for name in ["web", "shop/db", "out", "in"] {
        zone.set_service(&service(name), None);
    }
    assert_eq!(said(&zone, "web.default.svc.cluster.local", T::A), "no such name");
    assert_eq!(said(&zone, "7.1.244.10.in-addr.arpa", T::PTR), "db-0.shop.pod.");
    zone.set_pod(&pod("shop/db-0"), None);
    assert_eq!(
        zone.len(),
        3,
        "the host's own name and addresses: {:?}",
        zone.list()
    );
    assert_eq!(
        zone.below
            .keys()
            .filter(|n| n.to_string().contains("cluster"))
            .count(),
        0
    );
}
