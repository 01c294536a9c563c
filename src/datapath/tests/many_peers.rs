//! A node with thousands of peers: each change is in force at once, and looking after all of them costs little.

use super::*;
use crate::datapath::FlowKey;
use crate::model::Duration;

const PEERS: u32 = 5000;

/// Peer `n` of many, with a subnet and an address of its own.
fn one_of_many(n: u32) -> Peer {
    let net = ipnet::Ipv4Net::new((0x0a00_0000 + (n << 8)).into(), 24).unwrap();
    let mac = Mac::of_vtep(net.network());
    Peer {
        name: format!("m{n}").parse().unwrap(),
        underlay: SocketAddr::from((Ipv4Addr::from(0xc612_0000 + n), 8472)),
        underlay6: None,
        subnet4: Some(net),
        subnet6: None,
        vtep_mac: mac,
        vtep_mac6: mac,
        mtu: None,
    }
}

/// Node 1 with them.
fn lab() -> Lab {
    let mut lab = Lab::new(1);
    for n in 0..PEERS {
        lab.node.apply(Change::PeerSet(one_of_many(n))).unwrap();
    }
    lab
}

#[test]
fn each_of_many_peers_is_found_and_changes_by_itself() {
    let mut lab = lab();
    let gateway = lab.gateway();
    let way = |lab: &mut Lab, n: u32| {
        let key = FlowKey {
            port: PortId(0),
            mac: gateway,
            dst: Ipv4Addr::from(0x0a00_0009 + (n << 8)).into(),
        };
        match lab.node.way(key) {
            Ok(Way::Tunnel(id)) => Some(lab.node.peers().state(id).unwrap().peer.underlay.ip()),
            _ => None,
        }
    };
    for n in 0..PEERS {
        assert_eq!(way(&mut lab, n), Some(one_of_many(n).underlay.ip()));
    }
    lab.node.apply(Change::PeerGone(one_of_many(7).name)).unwrap();
    let moved = Peer {
        underlay: "192.0.2.99:8472".parse().unwrap(),
        ..one_of_many(8)
    };
    lab.node.apply(Change::PeerSet(moved)).unwrap();
    assert_eq!(way(&mut lab, 7), None);
    assert_eq!(way(&mut lab, 8), Some([192, 0, 2, 99].into()));
    assert_eq!(way(&mut lab, 9), Some(one_of_many(9).underlay.ip()));
}

/// A report that is asked for each second sends few probes each time, and comes to all peers.
#[test]
fn peers_are_probed_in_turn() {
    let mut lab = lab();
    let all = lab.node.peers().iter().count();
    let probed = |lab: &Lab| {
        let peers = lab.node.peers().iter();
        peers.filter(|(_, s)| s.probes.last_sent().is_some()).count()
    };
    let mut seconds = 0;
    while probed(&lab) < all {
        let before = probed(&lab);
        lab.now += Duration::from_secs(1);
        lab.node.probe_peers(lab.now);
        lab.settle();
        seconds += 1;
        assert!((1..=64).contains(&(probed(&lab) - before)), "after {before}");
    }
    assert_eq!(seconds, all.div_ceil(64));
    // The last time there was room for some of the first again.
    let (_, first) = lab.node.peers().iter().next().unwrap();
    assert_eq!(first.probes.last_sent(), Some(lab.now));
    assert_eq!(lab.node.drops().total(), 0);
    lab.balanced();
}

/// A pod that talks to all peers at once causes no more probes than can wait; the others are sent later, and
/// are not taken for lost ones.
#[test]
fn probes_that_have_no_room_are_not_lost() {
    let mut lab = lab();
    let gateway = lab.gateway();
    for n in 0..400 {
        let dst = Ipv4Addr::from(0x0a00_0009 + (n << 8));
        let frame = ipv4(gateway, 2, dst, 17, &[0x30, 0x39, 0, 80, 0, 8, 0, 0]);
        lab.read(0, &VnetHdr::default(), &frame);
    }
    lab.settle();
    assert_eq!(lab.node.drops().total(), 0);
    let sent = |lab: &Lab| {
        let peers = lab.node.peers().iter();
        peers.filter(|(_, s)| s.probes.last_sent().is_some()).count()
    };
    assert_eq!(sent(&lab), 128);
    lab.balanced();
}
