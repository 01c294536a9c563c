use super::*;
use crate::control::peers::tests::own;
use proptest::prelude::*;

fn ipam(net4: Option<&str>, net6: Option<&str>) -> Ipam {
    let mut local = own();
    local.subnet4 = net4.map(|n| n.parse().unwrap());
    local.subnet6 = net6.map(|n| n.parse().unwrap());
    Ipam::new(&local)
}

fn pod(n: u32) -> PodName {
    format!("p{n}").parse().unwrap()
}

fn at(s: i64) -> Instant {
    Instant::from_secs(s)
}

fn fixed(ip: &str) -> Want {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => Want {
            ip4: Some(ip),
            ..Want::default()
        },
        IpAddr::V6(ip) => Want {
            ip6: Some(ip),
            ..Want::default()
        },
    }
}

#[test]
fn round_robin_with_rest() {
    let mut ipam = ipam(Some("10.244.1.0/29"), Some("fd00::/64"));
    let got: Vec<_> = (0..3)
        .map(|n| ipam.reserve(&pod(n), Want::default(), at(0)).unwrap())
        .collect();
    assert_eq!(got[0].ip4, Some([10, 244, 1, 2].into()));
    assert_eq!(got[0].ip6, Some("fd00::2".parse().unwrap()));
    assert_eq!(got[2].mac, Mac::of_ipv4([10, 244, 1, 4].into()));
    ipam.release(&pod(0), at(1));
    let mut next = |n, t| {
        ipam.reserve(&pod(n), Want::default(), at(t))
            .map(|l| l.ip4.unwrap().octets()[3])
    };
    assert_eq!(next(3, 2), Ok(5));
    assert_eq!(next(4, 2), Ok(6));
    assert_eq!(next(5, 2), Ok(2), "it rests, but nothing else is left");
    assert_eq!(next(6, 2).unwrap_err().kind(), ErrorKind::Exhausted);
    ipam.release(&pod(4), at(10));
    ipam.release(&pod(1), at(20));
    let lease = ipam.reserve(&pod(7), Want::default(), at(21)).unwrap();
    assert_eq!(
        lease.ip4,
        Some([10, 244, 1, 6].into()),
        "the one that rested longest"
    );
}

#[test]
fn wishes_are_honoured_or_refused_with_the_reason() {
    let mut ipam = ipam(Some("10.244.1.0/24"), None);
    ipam.reserve(&pod(1), fixed("10.244.1.9"), at(0)).unwrap();
    let mut refused = |want| ipam.reserve(&pod(2), want, at(0)).unwrap_err().to_string();
    assert!(refused(fixed("10.244.1.9")).starts_with("10.244.1.9 is held by pod default/p1"));
    assert!(refused(fixed("10.244.2.9")).contains("(use 10.244.1.2 to 10.244.1.254)"));
    assert!(refused(fixed("10.244.1.1")).contains("is the gateway of this node"));
    assert!(refused(fixed("10.244.1.0")).contains("is the tunnel endpoint"));
    assert!(refused(fixed("10.244.1.255")).contains("is the broadcast address"));
    assert!(refused(fixed("fd00::9")).contains("no IPv6 subnet (set subnet6"));
    let mac = |m: &str| Want {
        mac: Some(m.parse().unwrap()),
        ..Want::default()
    };
    assert!(refused(mac("0a:58:0a:f4:01:09")).contains("held by pod default/p1"));
    assert!(refused(mac("01:00:00:00:00:01")).contains("must be even"));
    assert!(refused(mac("0a:58:0a:f4:01:01")).contains("the gateway's MAC"));
    let again = ipam.reserve(&pod(1), Want::default(), at(0)).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Taken);
    // A MAC someone chose does not block others: the address it would belong to is skipped.
    ipam.reserve(&pod(3), mac("0a:58:0a:f4:01:02"), at(0)).unwrap();
    let next = ipam.reserve(&pod(4), Want::default(), at(0)).unwrap();
    assert_eq!(next.ip4, Some([10, 244, 1, 3].into()));
}

#[test]
fn families_may_differ_in_size() {
    let mut small6 = ipam(Some("10.244.1.0/24"), Some("fd00::/126"));
    assert_eq!(
        small6.reserve(&pod(1), Want::default(), at(0)).unwrap().ip6,
        Some("fd00::2".parse().unwrap())
    );
    let e = small6.reserve(&pod(2), fixed("10.244.1.9"), at(0)).unwrap_err();
    assert!(e.to_string().contains("fd00::9 is outside"), "{e}");
    let mut six = ipam(None, Some("fd00::/64"));
    let lease = six.reserve(&pod(1), fixed("fd00::beef:0:0:1"), at(0)).unwrap();
    assert_eq!(
        (lease.ip4, lease.mac),
        (None, "0a:59:00:00:00:01".parse().unwrap())
    );
    six.release(&pod(1), at(0));
    assert_eq!(
        six.reserve(&pod(2), Want::default(), at(0)).unwrap().ip6,
        Some("fd00::2".parse().unwrap())
    );
}

proptest! {
    /// Whatever happens, nobody shares an address or MAC, and as long as one is free someone gets it.
    #[test]
    fn never_two_owners_and_every_address_is_reachable(
        steps in proptest::collection::vec((0u32..40, 0u8..4, 0u8..32), 1..200)
    ) {
        let mut ipam = ipam(Some("10.0.0.0/27"), Some("fd00::/64"));
        let mut now = 0;
        for (n, what, host) in steps {
            now += i64::from(host);
            match what {
                0 => drop(ipam.release(&pod(n), at(now))),
                1 => drop(ipam.cancel(&pod(n))),
                2 => drop(ipam.reserve(&pod(n), fixed(&format!("10.0.0.{host}")), at(now))),
                _ => {
                    let full = ipam.leases.len() == 29;
                    let known = ipam.lease(&pod(n)).is_some();
                    let got = ipam.reserve(&pod(n), Want::default(), at(now));
                    prop_assert_eq!(got.is_ok(), !full && !known);
                }
            }
            let mut ips: Vec<_> = ipam.leases.values().flat_map(addresses).collect();
            let all = ips.len();
            ips.sort();
            ips.dedup();
            prop_assert_eq!(ips.len(), all);
            prop_assert_eq!(ipam.by_ip.len(), all);
            prop_assert_eq!(ipam.by_mac.len(), ipam.leases.len());
        }
        let free = 29 - ipam.leases.len();
        for n in 0..free as u32 {
            prop_assert!(ipam.reserve(&pod(100 + n), Want::default(), at(now)).is_ok());
        }
        prop_assert!(ipam.reserve(&pod(999), Want::default(), at(now)).is_err());
    }
}
