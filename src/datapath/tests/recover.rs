//! Panics in the midst of the data path: who pays, and that everybody else's frames are there, and counted.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

const MARK: &[u8] = b"PANIC-HERE";

/// What a worker does.
fn guarded(lab: &mut Lab, work: Work, part: impl FnOnce(&mut Lab)) -> Option<Payer> {
    let ended = catch_unwind(AssertUnwindSafe(|| part(lab))).is_err();
    ended.then(|| lab.node.panicked(work, lab.now, &mut lab.out))
}

/// A UDP packet from pod 2 of node 1.
fn udp(mac: Mac, dst: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut udp = vec![0x30, 0x39, 0, 9, 0, 0, 0, 0];
    put_be16(&mut udp, 4, (8 + payload.len()) as u16);
    udp.extend(payload);
    ipv4(mac, 2, dst, 17, &udp)
}

fn near(payload: &[u8]) -> Vec<u8> {
    udp(spec(1, 3).mac, spec(1, 3).ip4.unwrap(), payload)
}

/// What pod 3 got.
fn got(lab: &Lab) -> usize {
    lab.out.to_pods.iter().filter(|(to, ..)| *to == PortId(1)).count()
}

#[test]
fn a_frame_costs_itself_and_its_pod_a_rest() {
    let mut lab = Lab::new(1);
    lab.out.panic_at = Some(MARK);
    let plain = VnetHdr::default();
    let turn = |lab: &mut Lab, payload: &[u8]| {
        guarded(lab, Work::Pod(PortId(0)), |lab| {
            lab.send(0, &plain, &near(payload))
        })
    };
    assert_eq!(turn(&mut lab, b"before"), None);
    for rest in [1, 2, 4] {
        assert_eq!(turn(&mut lab, MARK), Some(Payer::Pod(PortId(0))));
        let until = lab.now + std::time::Duration::from_secs(rest).into();
        assert_eq!(lab.node.next_read(PortId(0)), Some(until));
        assert_eq!(lab.node.rests_until(PortId(0), lab.now), Some(until));
        assert_eq!(lab.node.rests_until(PortId(1), lab.now), None);
        lab.balanced();
        lab.now = until;
        assert_eq!(lab.node.rests_until(PortId(0), lab.now), None);
    }
    assert_eq!(turn(&mut lab, b"after"), None);
    assert_eq!((got(&lab), lab.dropped(DropReason::Panic)), (2, 3));
    let c = lab.node.port_counters(PortId(0)).unwrap();
    assert_eq!((c.panics, c.drops), (3, 3));
    assert_eq!(lab.node.counters().panics.pod, 3);
    lab.balanced();
}

#[test]
fn what_the_sockets_failed_at_is_not_sent_later() {
    let mut lab = Lab::new(1);
    let (vnet, frame) = bulk(lab.gateway(), Ipv4Addr::new(10, 244, 2, 2), 60_000);
    lab.out.panic_to_peers = true;
    let payer = guarded(&mut lab, Work::Pod(PortId(0)), |lab| lab.send(0, &vnet, &frame));
    assert_eq!(payer, Some(Payer::Frames), "whose message it was, nobody knows");
    assert_eq!(lab.node.rests_until(PortId(0), lab.now), None);
    assert!(!lab.node.is_blocked());
    lab.balanced();
    lab.out.panic_to_peers = false;
    lab.arena.rewind(0);
    lab.send(0, &vnet, &frame);
    let sent = lab.out.to_peers.iter().map(|(_, d)| d.len());
    assert_eq!(sent.filter(|n| *n > 1).sum::<usize>(), 43);
    lab.balanced();
}

/// Datagrams with UDP of pods on the way to node 2.
fn datagrams(payloads: &[(u8, &[u8])]) -> Vec<Vec<u8>> {
    let mut lab = Lab::new(1);
    for (pod, payload) in payloads {
        let frame = udp(lab.gateway(), Ipv4Addr::new(10, 244, 2, *pod), payload);
        lab.send(0, &VnetHdr::default(), &frame);
    }
    let sent = lab.out.to_peers.iter().flat_map(|(_, d)| d);
    sent.filter(|d| d[8 + 23] == 17).cloned().collect()
}

#[test]
fn a_batch_goes_on_behind_the_train_at_which_it_was() {
    let mut lab = Lab::new(2);
    lab.out.panic_at = Some(MARK);
    let datagrams = datagrams(&[(2, b"one"), (3, MARK), (2, b"three"), (3, b"four")]);
    assert_eq!(datagrams.len(), 4);
    let mut memory = datagrams.concat();
    let mut at = 0;
    for d in &datagrams {
        let message = Received {
            span: Span::new(at, at + d.len()),
            segment: None,
            from: IpAddr::from([192, 0, 2, 1]),
            class: 0,
        };
        at += d.len();
        lab.node.from_peer(&mut memory, &message, lab.now, &mut lab.out);
    }
    let mut panics = 0;
    while let Some(payer) = guarded(&mut lab, Work::Peers, |lab| {
        lab.node.deliver_trains(&mut memory, lab.now, &mut lab.out);
    }) {
        assert_eq!(payer, Payer::Peer);
        panics += 1;
    }
    lab.node.settle();
    assert_eq!((panics, lab.out.to_pods.len()), (1, 3));
    assert_eq!(lab.dropped(DropReason::Panic), 1);
    lab.settle();
    lab.balanced();
}

#[test]
fn what_was_not_taken_of_a_message_is_counted() {
    let mut lab = Lab::new(2);
    lab.out.panic_at = Some(MARK);
    // More than there are trains, so that some are delivered while others are still to be taken.
    let [datagram] = &datagrams(&[(2, MARK)])[..] else {
        panic!("one datagram")
    };
    const MANY: usize = 64;
    let mut memory = datagram.repeat(MANY);
    let message = Received {
        span: Span::new(0, memory.len()),
        segment: Some(datagram.len() as u16),
        from: IpAddr::from([192, 0, 2, 1]),
        class: 0,
    };
    let mut taken = false;
    while guarded(&mut lab, Work::Peers, |lab| {
        if !std::mem::replace(&mut taken, true) {
            lab.node.from_peer(&mut memory, &message, lab.now, &mut lab.out);
        }
        lab.node.deliver_trains(&mut memory, lab.now, &mut lab.out);
    })
    .is_some()
    {}
    lab.node.settle();
    lab.settle();
    assert_eq!(lab.node.counters().datagrams_from_peers, MANY as u64);
    assert_eq!(lab.dropped(DropReason::Panic), MANY as u64);
    assert!(lab.node.counters().panics.peer > 1);
    lab.balanced();
}

#[test]
fn an_answer_of_the_gateway_costs_only_who_asked() {
    let mut lab = Lab::new(1);
    let gateway = Ipv4Addr::new(10, 244, 1, 1);
    let echo = |payload: &[u8]| {
        let mut icmp = [&[8, 0, 0, 0, 0, 7, 0, 1][..], payload].concat();
        let sum = Sum::default().with(&icmp).finish();
        put_be16(&mut icmp, 2, sum);
        ipv4(Mac::of_ipv4(gateway), 2, gateway, 1, &icmp)
    };
    for payload in [b"ping-one..", MARK, b"ping-two.."] {
        lab.read(0, &VnetHdr::default(), &echo(payload));
    }
    lab.out.panic_at = Some(MARK);
    let mut payers = Vec::new();
    while let Some(payer) = guarded(&mut lab, Work::Rest, Lab::settle) {
        payers.push(payer);
        lab.balanced();
    }
    assert_eq!(payers, [Payer::Pod(PortId(0))]);
    assert_eq!(lab.out.to_pods.len(), 2);
    lab.balanced();
}

#[test]
fn a_limit_outlives_a_panic_at_what_waited_for_it() {
    let mut lab = Lab::new(1);
    let rate = crate::model::Rate::new(1_000_000, 0).unwrap();
    let limited = PortSpec {
        bandwidth: crate::model::Bandwidth::of(Some(rate), None),
        ..spec(1, 4)
    };
    let id = lab.node.add_port(limited).unwrap();
    let frame = |payload: &[u8]| udp(spec(1, 4).mac, spec(1, 4).ip4.unwrap(), payload);
    while lab.node.counters().held == 0 {
        lab.send(0, &VnetHdr::default(), &frame(&[0; 1400]));
    }
    lab.send(0, &VnetHdr::default(), &frame(MARK));
    lab.send(0, &VnetHdr::default(), &frame(b"behind it"));
    lab.out.panic_at = Some(MARK);
    lab.now += std::time::Duration::from_secs(10).into();
    let release = |lab: &mut Lab| lab.node.release(lab.now, &mut lab.out);
    assert_eq!(guarded(&mut lab, Work::Rest, release), Some(Payer::Frames));
    assert_eq!(lab.node.counters().panics.frames, 1);
    lab.balanced();
    lab.now += std::time::Duration::from_secs(10).into();
    assert_eq!(guarded(&mut lab, Work::Rest, release), None);
    assert_eq!(lab.node.counters().held, 0);
    assert!(lab.out.to_pods.last().unwrap().2.ends_with(b"behind it"));
    assert!(lab.node.is_limited(id), "and not without its limit");
    assert_eq!(lab.dropped(DropReason::Panic), 1);
    lab.balanced();
}
