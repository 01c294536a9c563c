//! The files people write: a node's configuration and its peers. Any text is understood, or refused with the
//! place and the key.

use super::input::Input;
use podwire::control::peers;
use podwire::control::strict::{Mistake, Origin};
use podwire::daemon::config::Config;
use podwire::daemon::config::given::Given;
use podwire::daemon::config::keys::KEYS;
use podwire::daemon::links::{Host, Link};
use podwire::model::{Change, LocalNode, Mac, PodMtu, Snapshot, UnderlayMtu};
use std::collections::HashSet;
use std::path::Path;

const FILE: &str = "/etc/podwire/n1.toml";

/// `[which file, u8] [text]`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let which = input.u8();
    let text = String::from_utf8_lossy(input.rest());
    match which & 1 {
        0 => node(&text),
        _ => peers(&text),
    }
}

fn host() -> Host {
    let link = |name: &str, mtu: u32, ip: [u8; 4]| Link {
        name: name.into(),
        mtu,
        loopback: name == "lo",
        up: true,
        vxlan: None,
        addresses: vec![ip.into()],
        ..Link::default()
    };
    Host {
        name: "box".into(),
        links: vec![
            link("lo", 65_536, [127, 0, 0, 1]),
            link("eth0", 9000, [192, 0, 2, 1]),
        ],
        local: Vec::new(),
        default4: Some([192, 0, 2, 1].into()),
        default6: None,
    }
}

fn understand(text: &str) -> Result<Config, Mistake> {
    let given = Given::from_file(Path::new(FILE), text)?;
    Config::understand(&given, &host())
}

fn node(text: &str) {
    match understand(text) {
        Ok(config) => {
            let printed = config.print();
            let again = understand(&printed);
            assert_eq!(
                again.as_ref(),
                Ok(&config),
                "what is printed reads back to the same:\n{printed}"
            );
            // What a node is made from must be good enough for it.
            let local = config.local_node();
            assert!(local.subnet4.is_some() || local.subnet6.is_some());
            assert!(config.pod_mtu <= config.underlay_mtu.pod_mtu(config.over_ipv6()));
            assert!((1..=64).contains(&config.source_ports) && !config.underlay().is_empty());
            assert!(!config.vtep_mac.is_multicast() && !config.vtep_mac6.is_multicast());
        }
        Err(mistake) => {
            is_placed(text, &mistake);
            let known = KEYS.iter().any(|k| k.name == mistake.key);
            let syntax = mistake.what.starts_with("not TOML");
            assert!(
                known || syntax || mistake.what.starts_with("there is no such key"),
                "{mistake}"
            );
        }
    }
}

fn own() -> LocalNode {
    LocalNode {
        name: "n1".parse().expect("a name"),
        subnet4: "10.244.1.0/24".parse().ok(),
        subnet6: "fd00:10:244:1::/64".parse().ok(),
        vtep_mac: Mac([0x0e, 0x57, 10, 244, 1, 0]),
        vtep_mac6: Mac([0x0e, 0x57, 10, 244, 1, 0]),
        gateway_mac: Mac([0x0a, 0x58, 10, 244, 1, 1]),
        vni: 1.try_into().expect("24 bits"),
        pod_mtu: PodMtu(1450),
        underlay_mtu: UnderlayMtu(1500),
    }
}

fn peers(text: &str) {
    let own = own();
    let snapshot = match peers::parse(Path::new(FILE), text, &own, 8472) {
        Ok(snapshot) => snapshot,
        Err(mistake) => return is_placed(text, &mistake),
    };
    let mut names = HashSet::new();
    for (i, peer) in snapshot.peers.iter().enumerate() {
        assert!(
            peer.name != own.name && names.insert(peer.name.clone()),
            "{}",
            peer.name
        );
        assert!(
            peer.underlay.port() != 0 && !peer.underlay.ip().is_unspecified(),
            "{}",
            peer.underlay
        );
        assert!(peer.subnet4.is_some() || peer.subnet6.is_some());
        assert!(!peer.vtep_mac.is_multicast() && peer.vtep_mac != own.vtep_mac);
        let four = snapshot.peers[..i]
            .iter()
            .filter_map(|p| p.subnet4)
            .chain(own.subnet4);
        let six = snapshot.peers[..i]
            .iter()
            .filter_map(|p| p.subnet6)
            .chain(own.subnet6);
        let overlap4 = |a: ipnet::Ipv4Net| peer.subnet4.is_some_and(|b| a.contains(&b) || b.contains(&a));
        let overlap6 = |a: ipnet::Ipv6Net| peer.subnet6.is_some_and(|b| a.contains(&b) || b.contains(&a));
        assert!(
            !four.into_iter().any(overlap4) && !six.into_iter().any(overlap6),
            "{peer:?}"
        );
    }
    // From nothing to this, and from this to itself.
    let changes = Snapshot::default().diff(&snapshot);
    assert_eq!(changes.len(), snapshot.peers.len());
    assert!(changes.iter().all(|c| matches!(c, Change::PeerSet(_))));
    assert!(snapshot.diff(&snapshot).is_empty());
}

/// The mistake is at a line of the text; where the text as a whole lacks something (line 0), the key is named.
fn is_placed(text: &str, mistake: &Mistake) {
    match &mistake.origin {
        Origin::File(path, line) => {
            assert_eq!(path, Path::new(FILE));
            let lines = 1 + text.matches('\n').count();
            assert!((0..=lines).contains(line), "line {line} of {lines}: {mistake}");
            assert!(*line > 0 || !mistake.key.is_empty(), "{mistake}");
        }
        Origin::Default => assert!(!mistake.key.is_empty(), "{mistake}"),
        Origin::Flag(flag) => panic!("nobody gave --{flag}"),
        Origin::Environment(name) => panic!("nobody set {name}"),
    }
    assert!(!mistake.what.is_empty());
}
