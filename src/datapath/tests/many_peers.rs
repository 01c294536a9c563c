//! A node with thousands of peers: each change is in force at once, and looking after all of them costs little.

use super::*;
use crate::datapath::FlowKey;
use crate::model::Duration;
use crate::wire::bytes::put;

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
        peers
            .filter(|(_, s)| s.path(false).probes.last_sent().is_some())
            .count()
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
    assert_eq!(first.path(false).probes.last_sent(), Some(lab.now));
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
        peers
            .filter(|(_, s)| s.path(false).probes.last_sent().is_some())
            .count()
    };
    assert_eq!(sent(&lab), 128);
    lab.balanced();
}

/// A frame to each of these peers, a few in each turn.
fn frames(lab: &mut Lab, peers: impl Iterator<Item = u32>) {
    let gateway = lab.gateway();
    for n in peers {
        let dst = Ipv4Addr::from(0x0a00_0009 + (n << 8));
        let frame = ipv4(gateway, 2, dst, 17, &[0x30, 0x39, 0, 80, 0, 8, 0, 0]);
        lab.send(0, &VnetHdr::default(), &frame);
    }
}

/// Peers answer the probes that have been sent to them, if `answers` says so.
fn answer(lab: &mut Lab, answers: impl Fn(u32) -> bool) {
    for (to, datagrams) in std::mem::take(&mut lab.out.to_peers) {
        let IpAddr::V4(ip) = to.ip() else { continue };
        let n = u32::from(ip).wrapping_sub(0xc612_0000);
        for mut d in datagrams {
            // [vxlan 8 | eth 14 | ip 20 | icmp]
            let f = &mut d[8..];
            if n >= PEERS || !answers(n) || (f[23], f[34]) != (1, 8) {
                continue;
            }
            let (theirs, own) = (one_of_many(n).vtep_mac.0, peer(1).vtep_mac.0);
            put(f, 0, &[own, theirs].concat());
            let (src, dst) = (f[26..30].to_vec(), f[30..34].to_vec());
            put(f, 26, &[dst, src].concat());
            f[34] = 0;
            f[36..38].fill(0);
            let sum = Sum::default().with(&f[34..]).finish();
            put_be16(f, 36, sum);
            let message = Received {
                span: Span::new(0, d.len()),
                segment: None,
                from: to.ip(),
                class: 0,
            };
            lab.node.from_peer(&mut d, &message, lab.now, &mut lab.out);
            lab.settle();
        }
    }
}

/// The clock knows the first answer that is due, whatever becomes of peers meanwhile, and nothing else wakes it.
#[test]
fn the_clock_is_met_in_time_and_not_for_nothing() {
    let mut lab = lab();
    let first = |lab: &Lab| {
        let paths = lab.node.peers().iter().map(|(_, s)| s.path(false));
        let listed = paths.filter(|path| path.probes.place.is_some());
        listed.filter_map(|path| path.probes.deadline()).min()
    };
    for n in 0..6 {
        frames(&mut lab, 50 * n..50 * n + 50);
        answer(&mut lab, |_| true);
        assert_eq!((lab.node.deadline(), first(&lab)), (None, None));
    }
    // 300 are asked, and more than the clock looks after. Every third answers, others go and come back.
    lab.now += Duration::from_secs(3);
    for n in 0..6 {
        frames(&mut lab, 50 * n..50 * n + 50);
        answer(&mut lab, |_| false);
        lab.now += Duration::from_millis(10);
        assert_eq!(lab.node.deadline(), first(&lab));
    }
    let asked = lab.now;
    for n in (0..300).step_by(7) {
        let name = one_of_many(n).name;
        lab.node.apply(Change::PeerGone(name)).unwrap();
        lab.node.apply(Change::PeerSet(one_of_many(299 - n))).unwrap();
        lab.node.apply(Change::PeerSet(one_of_many(n))).unwrap();
    }
    let mut turns = 0;
    while let Some(at) = lab.node.deadline() {
        assert!(first(&lab).is_none_or(|first| at <= first));
        lab.now = lab.now.max(at);
        lab.node.on_timeout(lab.now);
        lab.settle();
        answer(&mut lab, |n| n % 3 == 0);
        turns += 1;
        assert!(turns < 100, "each answer is awaited once");
    }
    assert!(lab.now - asked < Duration::from_secs(4), "and not for long");
    assert_eq!(first(&lab), None);
    let silent = |n: u32| {
        let id = lab
            .node
            .peers()
            .at_underlay(one_of_many(n).underlay.ip())
            .unwrap();
        lab.node.peers().state(id).unwrap().path(false).probes.is_silent()
    };
    for n in 0..256 {
        assert_eq!(silent(n), n % 3 > 0 && n % 7 > 0, "peer {n}");
    }
    lab.balanced();
}
