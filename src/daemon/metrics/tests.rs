use super::*;
use crate::api::{PeerInfo, PeerReach};
use crate::daemon::command::Report;
use crate::model::{DropReason, Drops, LeaseInfo, PodMtu, PortCounters, StoreStatus};
use std::collections::{BTreeMap, BTreeSet};

/// A page on which every metric has a series.
fn page() -> String {
    let mut drops = Drops::default();
    drops.add(DropReason::WrongVni, 7);
    let attaches = attach_histogram();
    attaches.observe(0.0015);
    let counters = PortCounters {
        bytes_to_pod: u64::MAX,
        ..PortCounters::default()
    };
    let peer = PeerInfo {
        name: "n2".into(),
        underlay: "192.0.2.2:8472".parse().unwrap(),
        subnets: vec![],
        state: PeerReach::Up,
        state_ms: Some(9000),
        deaf_ms: Some(4000),
        last_heard_ms: Some(1250),
        rtt_us: Some(310),
        loss_percent: Some(25),
        pod_mtu: PodMtu(1450),
        gso: true,
        datagrams_to_peer: 12,
        bytes_to_peer: 1200,
        datagrams_from_peer: 1,
        bytes_from_peer: 100,
    };
    let page = Page {
        node: "n\"1\\\n".into(),
        vni: 1,
        start: 1_764_000_000.25,
        partial_checksums: false,
        merge_acks: true,
        attaches,
        report: Report {
            drops,
            ports: vec![("shop/web-1".parse().unwrap(), counters)],
            host: Some(PortCounters {
                parked_ms: 900,
                ..PortCounters::default()
            }),
            peers: vec![peer],
            ..Report::default()
        },
        membership: Some(Some(membership())),
        dns: Some(Default::default()),
        service_problems: 2,
    };
    page.text()
}

fn membership() -> StoreStatus {
    let own = LeaseInfo {
        subnet: "10.244.1.0-24".into(),
        name: "n1".into(),
        public_ip: "192.0.2.1".into(),
        podwire: Some("0.1.0".into()),
        own: true,
        reservation: false,
        expires_s: Some(-5),
        seen_s: 86_405,
    };
    let other = LeaseInfo {
        own: false,
        expires_s: Some(7200),
        ..own.clone()
    };
    StoreStatus {
        connected: true,
        silent_ms: Some(2500),
        revision: 81,
        failures: 4,
        alarms: vec!["the lease ran out".into()],
        skipped_total: 3,
        leases: vec![other, own],
        ..StoreStatus::default()
    }
}

/// The lines about the store of a node whose membership is this.
fn of_the_store(membership: Option<Membership>) -> Vec<String> {
    let page = Page {
        dns: None,
        service_problems: 0,
        node: "n1".into(),
        vni: 1,
        start: 0.0,
        partial_checksums: true,
        merge_acks: true,
        attaches: attach_histogram(),
        report: Report::default(),
        membership,
    };
    let text = page.text();
    let lines = text.lines().filter(|l| l.starts_with("podwire_store_"));
    lines.map(String::from).collect()
}

#[test]
fn a_store_is_told_of_as_far_as_it_is_known() {
    assert_eq!(of_the_store(None).len(), 0, "there is none");
    assert_eq!(of_the_store(Some(None)), ["podwire_store_connected 0"]);
    let waiting = of_the_store(Some(Some(StoreStatus::default())));
    for absent in ["last_heard", "lease_remaining"] {
        assert!(!waiting.iter().any(|l| l.contains(absent)), "{waiting:?}");
    }
    let reserved = StoreStatus {
        leases: membership()
            .leases
            .into_iter()
            .map(|l| LeaseInfo { expires_s: None, ..l })
            .collect(),
        ..membership()
    };
    let lines = of_the_store(Some(Some(reserved)));
    assert!(!lines.iter().any(|l| l.contains("lease_remaining")), "{lines:?}");
    assert!(lines.contains(&"podwire_store_leases 2.0".into()), "{lines:?}");
}

/// Name, type and labels (without `le`) of each metric on a page.
fn exported(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found = BTreeMap::new();
    let mut last = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            last = name.into();
            found.insert(last.clone(), (kind.to_string(), BTreeSet::new()));
        } else if !line.starts_with('#') {
            assert!(line.starts_with(&last), "{line} stands below {last}");
            let labels = line
                .split_once('{')
                .map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let names = labels
                .split("\",")
                .filter_map(|l| Some(l.split_once('=')?.0.to_string()));
            let labels = &mut found.get_mut(&last).unwrap().1;
            labels.extend(names.filter(|l| l != "le"));
        }
    }
    found
}

/// The same of each row of the documentation.
fn documented(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let rows = text.lines().filter(|l| l.starts_with("| `podwire_"));
    let cells = rows.map(|l| l.split('|').map(str::trim).collect::<Vec<_>>());
    let plain = |s: &str| s.trim_matches('`').to_string();
    cells
        .map(|c| {
            assert_eq!(c.len(), 7, "{c:?} has a cell too many or too few");
            let labels = c[3].split(", ").filter(|l| !l.is_empty()).map(plain);
            (plain(c[1]), (c[2].to_string(), labels.collect()))
        })
        .collect()
}

const DOCS: &str = include_str!("../../../docs/metrics.md");

#[test]
fn the_documentation_names_what_is_exported_and_nothing_else() {
    assert_eq!(documented(DOCS), exported(&page()));
    let row = |r: &DropReason| format!("| `{}` | {} |", r.label(), r.explain());
    let reasons: Vec<String> = DropReason::ALL.iter().map(row).collect();
    let (_, listed) = DOCS.split_once("## Reasons of drops").unwrap();
    let listed: Vec<&str> = listed.lines().filter(|l| l.starts_with("| `")).collect();
    assert_eq!(listed, reasons);
}

#[test]
fn a_page_says_it_all() {
    let page = page();
    for line in [
        "# HELP podwire_drops_total Frames and datagrams that went nowhere, by reason.",
        "# TYPE podwire_drops_total counter",
        "podwire_drops_total{reason=\"wrong_vni\"} 7",
        "podwire_drops_total{reason=\"truncated\"} 0",
        concat!(
            "podwire_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
        "podwire_node_info{node=\"n\\\"1\\\\\\n\",vni=\"1\"} 1",
        "podwire_start_time_seconds 1764000000.25",
        "podwire_frames_from_pods_total 0",
        "podwire_offload_enabled{offload=\"checksum\"} 0",
        "podwire_pod_bytes_to_pod_total{namespace=\"shop\",pod=\"web-1\"} 18446744073709551615",
        "podwire_pod_parked{namespace=\"shop\",pod=\"web-1\"} 0",
        "podwire_pod_parked{namespace=\"\",pod=\"host\"} 1",
        "podwire_panics_total{at=\"frames\"} 0",
        "podwire_peer_up{peer=\"n2\"} 1.0",
        "podwire_peer_deaf{peer=\"n2\"} 1.0",
        "podwire_peer_last_heard_age_seconds{peer=\"n2\"} 1.25",
        "podwire_peer_rtt_seconds{peer=\"n2\"} 0.00031",
        "podwire_peer_probe_loss_ratio{peer=\"n2\"} 0.25",
        "podwire_peer_pod_mtu_bytes{peer=\"n2\"} 1450.0",
        "podwire_store_connected 1",
        "podwire_store_last_heard_age_seconds 2.5",
        "podwire_store_revision 81.0",
        "podwire_store_leases 2.0",
        "podwire_store_keys_skipped 3.0",
        "podwire_store_lease_remaining_seconds -5.0",
        "podwire_store_allocation_enabled 0.0",
        "podwire_store_alarms 1.0",
        "podwire_store_failures_total 4",
        "podwire_attach_duration_seconds_sum 0.0015",
        "podwire_attach_duration_seconds_count 1",
        "podwire_attach_duration_seconds_bucket{le=\"0.001\"} 0",
        "podwire_attach_duration_seconds_bucket{le=\"0.002\"} 1",
        "podwire_attach_duration_seconds_bucket{le=\"+Inf\"} 1",
    ] {
        assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
    }
    let drops = page.lines().filter(|l| l.starts_with("podwire_drops_total{"));
    assert_eq!(drops.count(), DropReason::ALL.len());
    for line in page.lines().filter(|l| l.starts_with("# HELP ")) {
        assert!(line.ends_with('.'), "{line} is no sentence");
    }
}
