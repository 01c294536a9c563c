use super::*;
use crate::model::Protocol;
use proptest::prelude::*;

const BOTH: Addresses = (
    Some(Ipv4Addr::new(10, 244, 1, 2)),
    Some(Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2)),
);

fn pod(name: &str) -> PodName {
    name.parse().unwrap()
}

fn mappings(texts: &[&str]) -> Vec<PortMapping> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn socket() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

impl Published {
    /// All that a request comes to, as if each could be bound.
    fn add(&mut self, name: &str, texts: &[&str], tied: Option<u64>) -> Result<Vec<String>, String> {
        let wanted = self.plan(&pod(name), BOTH, &mappings(texts), Instant::from_secs(100));
        let wanted = wanted.map_err(|r| r.message)?;
        for one in &wanted {
            self.insert(&pod(name), *one, socket(), tied, Instant::from_secs(40));
        }
        Ok(wanted.iter().map(|w| format!("{} {}", w.port, w.to)).collect())
    }

    fn shown(&self, name: &str) -> Vec<String> {
        self.mappings(&pod(name))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    fn take(&mut self, name: &str, texts: &[&str]) -> Result<usize, String> {
        let ports = self
            .named(&pod(name), &mappings(texts))
            .map_err(|m| m.to_string())?;
        self.remove(&pod(name), &ports);
        Ok(ports.len())
    }
}

#[test]
fn a_request_comes_to_sockets() {
    let mut p = Published::default();
    assert_eq!(
        p.add("a", &["8080:80", "0.0.0.0:53:5353/udp"], None).unwrap(),
        [
            "127.0.0.1:8080/tcp 10.244.1.2:80",
            "[::1]:8080/tcp [fd00:1::2]:80",
            "0.0.0.0:53/udp 10.244.1.2:5353"
        ]
    );
    let wanted = p.plan(&pod("b"), BOTH, &mappings(&["9000-9001"]), Instant::ZERO);
    let optional: Vec<bool> = wanted.unwrap().iter().map(|w| w.optional).collect();
    assert_eq!(optional, [false, false, true, true]);
    // A pod of one family has no other to offer.
    let four = (BOTH.0, None);
    let one = p
        .plan(&pod("b"), four, &mappings(&["9000"]), Instant::ZERO)
        .unwrap();
    assert_eq!(one.len(), 1);
    let said = p.plan(&pod("b"), four, &mappings(&["[::]:9000"]), Instant::ZERO);
    let said = said.unwrap_err();
    assert_eq!(said.kind, ErrorKind::Usage);
    assert!(
        said.message.contains("default/b has no IPv6 address"),
        "{}",
        said.message
    );
    let six = (None, BOTH.1);
    let one = p
        .plan(&pod("b"), six, &mappings(&["9000"]), Instant::ZERO)
        .unwrap();
    assert_eq!((one.len(), one[0].optional), (1, false));
    assert!(
        p.plan(&pod("b"), six, &mappings(&["0.0.0.0:9000"]), Instant::ZERO)
            .is_err()
    );
    assert_eq!(p.sockets(&pod("a")).len(), 3);
    assert_eq!(p.sockets(&pod("a")).len(), 0, "the worker has them");
}

#[test]
fn a_conflict_names_the_owner_and_nothing_is_left_of_the_request() {
    let mut p = Published::default();
    p.add("api", &["8080:80", "0.0.0.0:53:53/udp", "[::]:99"], None)
        .unwrap();
    for (texts, held) in [
        (
            &["9000", "8080:81"][..],
            "127.0.0.1:8080/tcp is held by pod default/api",
        ),
        (&["8079-8081"], "127.0.0.1:8080/tcp is held by pod default/api"),
        (
            &["0.0.0.0:8080"],
            "0.0.0.0:8080/tcp is held by pod default/api, at 127.0.0.1:8080",
        ),
        (&["127.0.0.7:53/udp"], "held by pod default/api, at 0.0.0.0:53"),
        (&["99"], "[::1]:99/tcp is held by pod default/api, at [::]:99"),
    ] {
        let said = p.add("b", texts, None).unwrap_err();
        assert!(
            said.contains(held) && said.contains("since 60 s"),
            "{texts:?}: {said}"
        );
        assert_eq!(p.shown("b"), [""; 0]);
    }
    // Another protocol, address, or family.
    p.add("b", &["8080/udp", "127.0.0.2:8080", "0.0.0.0:99", "53"], None)
        .unwrap();
}

#[test]
fn nothing_is_asked_for_twice_and_there_is_an_end() {
    let mut p = Published::default();
    for texts in [
        &["8080", "8080"][..],
        &["8080:80", "8070-8090:1070-1090"],
        &["0.0.0.0:80", "80"],
        &["80", "[::]:80"],
    ] {
        let said = p.add("a", texts, None).unwrap_err();
        assert!(said.contains("is named twice"), "{texts:?}: {said}");
    }
    let many: Vec<String> = (1..=MAX_MAPPINGS + 1).map(|n| format!("127.0.0.1:{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let said = p.add("a", &many, None).unwrap_err();
    assert!(said.contains("256 published ports and ranges"), "{said}");
    let wide = ["1-1024", "2001-3024", "4001-5024"];
    let said = p.add("a", &wide, None).unwrap_err();
    assert!(said.contains("4096 ports at most"), "{said}");
    p.add("a", &wide[..2], None).unwrap();
    assert!(p.add("b", &["127.0.0.1:9"], None).is_err());
    assert_eq!(p.len(), MAX_SOCKETS);
}

#[test]
fn what_is_left_of_a_range_is_remembered_as_it_is() {
    let mut p = Published::default();
    p.add("a", &["8000-8009:9000-9009", "53/udp", "0.0.0.0:7"], None)
        .unwrap();
    let all = ["53:53/udp", "8000-8009:9000-9009/tcp", "0.0.0.0:7:7/tcp"];
    assert_eq!(p.shown("a"), all);
    // Not the pod's port of it, not that protocol, not there, or another pod's.
    for missing in ["8003:80", "8003:9003/udp", "8010:9010", "[::]:7"] {
        assert!(p.take("a", &["53/udp", missing]).is_err(), "{missing}");
    }
    assert!(p.take("b", &["53/udp"]).is_err());
    assert_eq!(p.shown("a"), all, "all or nothing");
    assert_eq!(p.take("a", &["127.0.0.1:8003:9003", "7"]), Ok(2));
    assert_eq!(
        p.shown("a"),
        [
            "53:53/udp",
            "127.0.0.1:8000-8002:9000-9002/tcp",
            "127.0.0.1:8004-8009:9004-9009/tcp",
            "[::1]:8000-8009:9000-9009/tcp"
        ]
    );
    assert_eq!(p.take("a", &["8000-8009:9000-9009", "53/udp"]), Ok(21));
    assert!(p.is_empty());
}

#[test]
fn what_is_for_a_conversation_goes_with_it_or_with_the_pod() {
    let mut p = Published::default();
    p.add("a", &["80"], None).unwrap();
    p.add("a", &["81"], Some(7)).unwrap();
    p.add("b", &["82"], Some(7)).unwrap();
    p.add("b", &["83"], Some(8)).unwrap();
    assert_eq!(p.shown("a"), ["80:80/tcp"]);
    assert!(p.list(Some(&pod("a")), &HashMap::new(), Instant::from_secs(100))[1].tied);
    assert_eq!(p.remove_pod(&pod("b")), [8].into(), "7 has another pod's still");
    assert_eq!(p.remove_tied(7).len(), 2);
    assert_eq!(p.remove_pod(&pod("a")), [].into());
    assert!(p.is_empty());
}

proptest! {
    /// Whatever is asked for in whatever order: no two sockets collide, and what is remembered of each pod makes the very
    /// same sockets again.
    #[test]
    fn what_is_remembered_makes_the_same_sockets(
        steps in proptest::collection::vec((any::<bool>(), 0..2usize, 0..4usize, 1..30u16, 1..6u16, any::<bool>()), 1..40),
    ) {
        let names = ["a", "b"];
        let mut p = Published::default();
        for (add, who, host, first, count, udp) in steps {
            let hosts = [None, Some("127.0.0.1"), Some("0.0.0.0"), Some("::")];
            let mapping = PortMapping {
                host: hosts[host].map(|h| h.parse().unwrap()),
                first,
                pod: first + 100,
                count,
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
            };
            let text = mapping.to_string();
            if add {
                let before = p.len();
                if p.add(names[who], &[&text], None).is_err() {
                    prop_assert_eq!(p.len(), before);
                }
            } else {
                let _ = p.take(names[who], &[&text]);
            }
            let ports: Vec<HostPort> = p.entries.keys().copied().collect();
            for (i, a) in ports.iter().enumerate() {
                prop_assert!(ports[i + 1..].iter().all(|b| !a.collides(b)));
            }
            let mut again = Published::default();
            for name in names {
                let shown = p.shown(name);
                let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
                prop_assert!(again.add(name, &shown, None).is_ok(), "{:?}", shown);
            }
            let sockets = |p: &Published| -> Vec<(HostPort, SocketAddr)> {
                p.entries.iter().map(|(port, e)| (*port, e.wanted.to)).collect()
            };
            prop_assert_eq!(sockets(&again), sockets(&p));
        }
    }
}
