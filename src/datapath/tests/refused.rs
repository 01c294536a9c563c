//! What the kernel refuses to send: counted, learned from, and forgotten again.

use super::*;

#[test]
fn what_the_kernel_refuses_is_counted_and_learned_from() {
    let dst = Ipv4Addr::new(10, 244, 2, 2);
    // No segmentation along this way: the same datagrams go one by one.
    let mut lab = Lab::new(1);
    let (vnet, frame) = bulk(lab.gateway(), dst, 5000);
    lab.out.refuse = Some(Refusal::NoOffload);
    lab.send(0, &vnet, &frame);
    assert_eq!(lab.out.to_peers[0].1.len(), 4);
    assert_eq!(
        lab.node.peers().iter().filter(|(_, s)| s.gso).count(),
        1,
        "the other peer's stays"
    );
    lab.balanced();
    // Too big: the pod is told the size that fits, and the next packet of that size is refused here.
    let mut lab = Lab::new(1);
    lab.out.refuse = Some(Refusal::TooBig {
        mtu: Some(UnderlayMtu(1400)),
    });
    lab.send(0, &vnet, &frame);
    lab.out.refuse = None;
    lab.settle();
    assert!(lab.dropped(DropReason::TooBig) >= 1);
    let (port, _, error) = lab.out.to_pods.first().unwrap();
    assert_eq!(
        (*port, &error[34..36], be16(error, 40)),
        (PortId(0), &[3, 4][..], 1350)
    );
    let before = lab.out.to_peers.len();
    lab.send(0, &vnet, &frame);
    assert_eq!((lab.out.to_peers.len(), lab.out.to_pods.len()), (before, 2));
    lab.balanced();
    // Full: nothing is lost, it waits.
    let mut lab = Lab::new(1);
    lab.out.blocked = true;
    lab.send(0, &vnet, &frame);
    assert!(lab.node.is_blocked() && lab.out.to_peers.is_empty());
    lab.out.blocked = false;
    lab.settle();
    assert!(!lab.node.is_blocked() && !lab.out.to_peers.is_empty());
    lab.balanced();
    // Anything else: dropped, and the next goes on.
    let mut lab = Lab::new(1);
    lab.out.refuse = Some(Refusal::Other);
    lab.send(0, &vnet, &frame);
    assert!(lab.dropped(DropReason::UnderlaySend) >= 1);
    lab.balanced();
}

/// The datagrams of each message to a peer that carries more than a probe.
fn trains(lab: &Lab, n: u8) -> Vec<usize> {
    let to = peer(n).underlay;
    let of = lab.out.to_peers.iter().filter(|(at, _)| *at == to);
    let large = of.filter(|(_, d)| d.iter().any(|d| d.len() > 200));
    large.map(|(_, d)| d.len()).collect()
}

#[test]
fn trains_are_tried_again_where_they_were_refused() {
    let mut lab = Lab::new(1);
    let frames = [2, 3].map(|n| bulk(lab.gateway(), Ipv4Addr::new(10, 244, n, 2), 5000));
    let gso = |lab: &Lab| lab.node.peers().iter().map(|(_, s)| s.gso).collect::<Vec<_>>();
    lab.out.refuse = Some(Refusal::NoOffload);
    lab.out.refuse_to = Some(peer(2).underlay);
    for (vnet, frame) in &frames {
        lab.send(0, vnet, frame);
    }
    assert_eq!(gso(&lab), [false, true]);
    // Nothing is lost, and nobody else pays: whether a message is a train is the sockets' to see.
    assert_eq!((trains(&lab, 2), trains(&lab, 3)), (vec![4], vec![4]));
    // Not at once, or each train would cost a refused call.
    lab.now += std::time::Duration::from_secs(59).into();
    lab.send(0, &frames[0].0, &frames[0].1);
    assert_eq!(gso(&lab), [false, true]);
    lab.now += std::time::Duration::from_secs(2).into();
    lab.send(0, &frames[0].0, &frames[0].1);
    lab.send(0, &frames[0].0, &frames[0].1);
    assert_eq!(gso(&lab), [false, true], "tried, and refused once more");
    lab.out.refuse = None;
    lab.now += std::time::Duration::from_secs(61).into();
    lab.send(0, &frames[0].0, &frames[0].1);
    assert_eq!(gso(&lab), [true, true]);
    assert_eq!(trains(&lab, 2), [4; 5]);
    assert_eq!(lab.node.drops().iter().map(|(_, n)| n).sum::<u64>(), 0);
    lab.balanced();
}

#[test]
fn what_is_refused_along_one_way_leaves_the_others_alone() {
    let mut lab = Lab::new(1);
    let frames = [2, 3].map(|n| bulk(lab.gateway(), Ipv4Addr::new(10, 244, n, 2), 5000));
    lab.out.refuse = Some(Refusal::Other);
    lab.out.refuse_to = Some(peer(2).underlay);
    for _ in 0..10 {
        for (vnet, frame) in &frames {
            lab.send(0, vnet, frame);
        }
    }
    assert_eq!((trains(&lab, 2).len(), trains(&lab, 3).len()), (0, 10));
    // Ten frames, and the probe that went along with the first.
    assert_eq!(lab.dropped(DropReason::UnderlaySend), 11);
    lab.out.refuse = None;
    lab.send(0, &frames[0].0, &frames[0].1);
    assert_eq!(trains(&lab, 2), [4], "as soon as the way is free");
    assert_eq!(lab.dropped(DropReason::UnderlaySend), 11);
    lab.balanced();
}
