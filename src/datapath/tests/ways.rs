//! What a node knows of the way to a peer, and what that means for frames. Stories of many nodes are in `tests/sim`.

use super::*;

/// An echo reply of a node's VTEP to each probe among what another has sent since the last call, and those probes.
fn probes(lab: &mut Lab, to: u8) -> Vec<Vec<u8>> {
    let at = peer(to).underlay;
    let sent = std::mem::take(&mut lab.out.to_peers);
    let to_peer = sent.into_iter().filter(|(to, _)| *to == at);
    let inner = to_peer.flat_map(|(_, datagrams)| datagrams);
    // [vxlan 8 | eth 14 | ip 20 | icmp]
    inner.filter(|d| d[8 + 14 + 9] == 1 && d[8 + 34] == 8).collect()
}

/// Two nodes that have heard each other.
fn met() -> (Lab, Lab) {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    a.node.probe_peers(a.now);
    a.settle();
    let asked = probes(&mut a, 2);
    assert_eq!(asked.len(), 1);
    b.receive(1, &asked);
    let answers: Vec<Vec<u8>> = b.out.to_peers.drain(..).flat_map(|(_, d)| d).collect();
    assert_eq!(answers.len(), 1);
    a.receive(2, &answers);
    (a, b)
}

fn later(lab: &mut Lab, ms: u64) {
    lab.now += crate::model::Duration::from_millis(ms);
    lab.node.on_timeout(lab.now);
    lab.settle();
}

fn small(lab: &Lab, to: u8) -> Vec<u8> {
    ipv4(
        lab.gateway(),
        2,
        Ipv4Addr::new(10, 244, to, 2),
        17,
        &[0, 9, 0, 9, 0, 8, 0, 0],
    )
}

fn silent(lab: &Lab) -> Vec<bool> {
    lab.node
        .peers()
        .iter()
        .map(|(_, s)| s.probes.is_silent())
        .collect()
}

#[test]
fn frames_to_a_silent_peer_are_refused_and_told_within_the_ports_limit() {
    let (mut lab, mut b) = met();
    // Asked by a person, again and again: that alone shows its silence.
    for _ in 0..4 {
        later(&mut lab, 1001);
        lab.node.probe_peers(lab.now);
        lab.settle();
    }
    assert_eq!(silent(&lab), [true, false], "the other never answered");
    let name = peer(2).name;
    let news: Vec<News> = lab.node.news().collect();
    assert_eq!(
        news,
        [News {
            peer: name,
            silent: true
        }]
    );
    lab.out = Out::default();
    lab.now += crate::model::Duration::from_millis(10);
    for _ in 0..150 {
        let frame = small(&lab, 2);
        lab.send(0, &VnetHdr::default(), &frame);
    }
    assert_eq!(
        (lab.dropped(DropReason::PeerSilent), lab.out.to_peers.len()),
        (150, 0)
    );
    assert_eq!(lab.out.to_pods.len(), 100, "as many errors as a port may cause");
    assert!(
        lab.out
            .to_pods
            .iter()
            .all(|(port, _, e)| port.0 == 0 && e[34..36] == [3, 1])
    );
    let frame = small(&lab, 3);
    lab.send(0, &VnetHdr::default(), &frame);
    assert!(lab.out.to_peers.iter().any(|(to, _)| *to == peer(3).underlay));
    lab.balanced();
    // Whatever comes from it is a sign of life.
    let to_us = {
        let mut frame = small(&b, 1);
        frame[6..12].copy_from_slice(&spec(2, 2).mac.0);
        frame[26..30].copy_from_slice(&spec(2, 2).ip4.unwrap().octets());
        frame[24..26].fill(0);
        let sum = Sum::default().with(&frame[14..34]).finish();
        put_be16(&mut frame, 24, sum);
        frame
    };
    b.send(0, &VnetHdr::default(), &to_us);
    let datagrams: Vec<Vec<u8>> = b.out.to_peers.drain(..).flat_map(|(_, d)| d).collect();
    for datagram in datagrams {
        lab.receive(2, &[datagram]);
    }
    assert_eq!(silent(&lab), [false, false]);
    assert_eq!(lab.node.news().count(), 1);
    let frame = small(&lab, 2);
    lab.send(0, &VnetHdr::default(), &frame);
    assert_eq!(lab.dropped(DropReason::PeerSilent), 150);
    lab.balanced();
}

#[test]
fn only_the_vtep_speaks_for_its_node() {
    let (mut a, _) = met();
    a.now += crate::model::Duration::from_secs(2);
    a.node.probe_peers(a.now);
    a.settle();
    let asked = probes(&mut a, 2).remove(0);
    // The answer, but from a pod of the peer.
    let mut forged = asked.clone();
    let f = &mut forged[8..];
    f[..6].copy_from_slice(&peer(1).vtep_mac.0);
    f[6..12].copy_from_slice(&peer(2).vtep_mac.0);
    f[26..30].copy_from_slice(&[10, 244, 2, 7]);
    f[30..34].copy_from_slice(&[10, 244, 1, 0]);
    f[24..26].fill(0);
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(f, 24, sum);
    f[34] = 0;
    f[36..38].fill(0);
    let sum = Sum::default().with(&f[34..]).finish();
    put_be16(f, 36, sum);
    let before = a.node.peers().iter().next().map(|(_, s)| s.probes.rtt_us());
    a.now += crate::model::Duration::from_millis(77);
    a.receive(2, &[forged]);
    let after = a.node.peers().iter().next().map(|(_, s)| s.probes.rtt_us());
    assert_eq!(before, after);
    a.balanced();
}

#[test]
fn large_probes_go_alone_and_what_they_cannot_pass_is_learned() {
    let (mut lab, mut b) = met();
    let dst = Ipv4Addr::new(10, 244, 2, 2);
    let (vnet, frame) = bulk(lab.gateway(), dst, 20_000);
    lab.now += crate::model::Duration::from_millis(10);
    lab.send(0, &vnet, &frame);
    let asked = probes(&mut lab, 2);
    // [vxlan 8 | eth 14 | ip 1450], and a small one behind it.
    assert_eq!(asked.iter().map(Vec::len).collect::<Vec<_>>(), [1472, 66]);
    b.receive(1, &asked[1..]);
    let answers: Vec<Vec<u8>> = b.out.to_peers.drain(..).flat_map(|(_, d)| d).collect();
    lab.receive(2, &answers);
    // The kernel refuses those that follow: neither what it says of the path, nor the drops, are a pod's affair.
    lab.out.refuse = Some(Refusal::TooBig {
        mtu: Some(UnderlayMtu(552)),
    });
    let before = lab.dropped(DropReason::TooBig);
    later(&mut lab, 200);
    assert_eq!(lab.dropped(DropReason::TooBig) - before, 24);
    lab.out.refuse = None;
    assert!(lab.node.peers().iter().all(|(_, s)| s.learned_mtu.is_none()));
    assert!(lab.out.to_pods.is_empty());
    lab.balanced();
}

#[test]
fn an_idle_node_awaits_nothing() {
    let (mut lab, _) = met();
    assert_eq!(lab.node.deadline(), None, "all was answered, or never is");
    let frame = small(&lab, 2);
    lab.now += crate::model::Duration::from_secs(20);
    lab.send(0, &VnetHdr::default(), &frame);
    let mut asked = 0;
    while let Some(at) = lab.node.deadline() {
        lab.now = at;
        lab.node.on_timeout(at);
        lab.settle();
        asked += 1;
        assert!(asked < 10);
    }
    assert_eq!((asked, silent(&lab)), (3, vec![true, false]));
}
