//! The reference plugins before and after podwire in one chain.

use super::Case;
use super::machine::{CAPABILITIES, Machine, NETWORK, machines, one};
use super::podman::{Podman, SERVE};
use super::shell::{refused, said, until};

/// Tests.
pub const CASES: &[Case] = &[
    (
        "chain::bandwidth_finds_no_veth_and_leaves_nothing",
        bandwidth_behind,
    ),
    ("chain::tuning_changes_what_podwire_made", tuning_behind),
    ("chain::an_interface_made_before_is_not_touched", bridge_before),
    ("chain::one_that_fails_behind_leaves_nothing", failing_behind),
    ("chain::portmap_needs_masquerading", portmap_behind),
];

fn own(machine: &Machine) -> String {
    format!(
        r#"{{"type": "podwire-cni", "podwire": {{"socket": "{}"}}, {CAPABILITIES}}}"#,
        machine.socket().display()
    )
}

fn tuning_behind() {
    let machine = one();
    let tuning = r#"{"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}, "mtu": 1400}"#;
    machine.conflist(&format!("{}, {tuning}", own(&machine)));
    let podman = Podman::on(&machine);
    podman.start("a", &[], &["/bin/sleep", "600"]);
    let filter = podman.exec("a", &["/bin/cat", "/proc/sys/net/ipv4/conf/eth0/arp_filter"]);
    assert_eq!(filter, "1");
    let link = podman.exec("a", &["/bin/ip", "link", "show", "eth0"]);
    assert!(link.contains("mtu 1400"), "{link}");
    podman.exec("a", &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    podman.end();
}

fn bridge_before() {
    let machine = one();
    let bridge = r#"{"type": "bridge", "bridge": "br0", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.99.0.0/24"}]]}}"#;
    machine.conflist(&format!("{bridge}, {}", own(&machine)));
    let podman = Podman::on(&machine);
    let why = refused(podman.run(&["run", "--rm", "--network", NETWORK, "busybox", "/bin/true"]));
    assert!(why.contains("eth0"), "{why}");
    assert_eq!(machine.pods(), Vec::<String>::new());
    said(machine.run("ip", &["link", "del", "br0"]));
    podman.end();
}

fn failing_behind() {
    let machine = one();
    let tuning = r#"{"type": "tuning", "sysctl": {"net.ipv4.conf.eth9.arp_filter": "1"}}"#;
    machine.conflist(&format!("{}, {tuning}", own(&machine)));
    let podman = Podman::on(&machine);
    refused(podman.run(&[
        "run",
        "--rm",
        "--network",
        NETWORK,
        "-p",
        "8080:80",
        "busybox",
        "/bin/true",
    ]));
    assert_eq!(machine.pods(), Vec::<String>::new());
    podman.end();
}

fn bandwidth_behind() {
    let machine = one();
    let bandwidth = r#"{"type": "bandwidth", "ingressRate": 10000000, "ingressBurst": 1000000, "egressRate": 10000000, "egressBurst": 1000000}"#;
    machine.conflist(&format!("{}, {bandwidth}", own(&machine)));
    let podman = Podman::on(&machine);
    let why = refused(podman.run(&["run", "--rm", "--network", NETWORK, "busybox", "/bin/true"]));
    assert!(why.contains("veth"), "{why}");
    assert_eq!(machine.pods(), Vec::<String>::new());
    podman.end();
}

/// The host forwards what comes to its port, by its own port in the pod network. What it forwards for others has to come as
/// its own, as podwire lets nobody send in another's name.
fn portmap_behind() {
    let both = machines(2, &["--host-port", "on"]);
    let machine = &both[0];
    let only = format!(
        r#"{{"type": "podwire-cni", "podwire": {{"socket": "{}"}}}}"#,
        machine.socket().display()
    );
    let portmap = r#"{"type": "portmap", "capabilities": {"portMappings": true}}"#;
    machine.conflist(&format!("{only}, {portmap}"));
    said(machine.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]));
    let podman = Podman::on(machine);
    podman.start("web", &["-e", "WHO=web", "-p", "8080:80"], SERVE);
    let fetch = |at: &Machine, url: &str| at.run("curl", &["-sf", "-m", "1", url]);
    until("the pod answers", || {
        let pod = fetch(machine, "http://10.244.1.2/").output();
        pod.is_ok_and(|out| out.status.success())
    });
    let published = "http://192.0.2.1:8080/";
    for from in &both {
        refused(fetch(from, published));
    }
    let rule = "add table ip own; add chain ip own out { type nat hook postrouting priority srcnat; }; \
        add rule ip own out oifname podwire0 masquerade";
    said(machine.run("nft", &[rule]));
    for from in &both {
        assert_eq!(said(fetch(from, published)), "hello from web");
    }
    podman.end();
    refused(fetch(&both[1], published));
}
