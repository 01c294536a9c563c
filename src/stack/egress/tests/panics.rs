//! Panics in one flow's stack: it ends, and the others have their turn.

use super::*;
use std::panic::{AssertUnwindSafe, catch_unwind};

const MARK: &[u8] = b"PANIC-HERE";

/// Turns as the data path has them; whose flows were given up.
fn turns(lab: &mut Lab) -> Vec<Option<PortId>> {
    let mut given_up = Vec::new();
    while catch_unwind(AssertUnwindSafe(|| lab.turn())).is_err() {
        given_up.push(lab.egress.give_up(lab.now, &mut lab.world));
        assert!(given_up.len() < 10);
    }
    given_up
}

fn said(lab: &mut Lab, id: FlowId, what: &[u8]) {
    lab.stream(id).incoming.push_back(what.to_vec());
    let (now, world) = (lab.now, &mut lab.world);
    lab.egress.stream_ready(id, true, true, now, world);
}

#[test]
fn a_flow_ends_and_the_others_go_on() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let mut pods: Vec<_> = (0..3).map(|n| Pod::connected(&mut lab, six, 4000 + n)).collect();
        lab.world.panic_at = Some(MARK);
        for (n, (_, id)) in pods.iter().enumerate() {
            said(&mut lab, *id, if n == 1 { MARK } else { b"hello" });
        }
        assert_eq!(turns(&mut lab), [Some(PORT)]);
        assert_eq!(lab.stream(pods[1].1).closed, Some(true));
        assert_eq!(lab.egress.counts().0, 2);
        let packets: Vec<_> = lab.world.to_pod.drain(..).map(|(p, _)| p).collect();
        let to = if six { 42 } else { 22 };
        let flags = |port: u16| -> Vec<u8> {
            let of = packets.iter().filter(|p| p[to..to + 2] == port.to_be_bytes());
            of.map(|p| segment(p).0 & !ACK).collect()
        };
        assert_eq!([4000, 4001, 4002].map(flags), [vec![0], vec![RST], vec![0]]);
        // The others were not hurt, and there is room for a new one.
        lab.world.panic_at = None;
        let other = pods[2].1;
        lab.stream(other).incoming.push_back(b" again".to_vec());
        pods[2].0.ack += 5;
        lab.ready(other);
        assert_eq!(pods[2].0.take(&mut lab).1, b" again");
        // What its pod sends all the same is answered by a reset.
        pods[1].0.send(&mut lab, ACK, b"still there?").unwrap();
        assert_eq!(segment(&lab.world.to_pod.last().unwrap().0).0 & RST, RST);
        lab.world.to_pod.clear();
        lab.world.streams.clear();
        let (_, id) = Pod::connected(&mut lab, six, 5000);
        assert!(lab.stream(id).closed.is_none());
    }
}

#[test]
fn a_flow_whose_stack_cannot_even_say_so_ends_as_well() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    said(&mut lab, id, b"hello");
    lab.world.panic_to_pod = true;
    assert_eq!(turns(&mut lab), [Some(PORT)]);
    assert_eq!((lab.stream(id).closed, lab.egress.counts().0), (Some(true), 0));
    assert_eq!(lab.egress.deadline(), None);
    lab.world.panic_to_pod = false;
    pod.send(&mut lab, ACK, b"still there?").unwrap();
    assert_eq!(pod.take(&mut lab).0, [RST]);
}

#[test]
fn a_pods_own_segment_ends_its_flow() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    lab.world.panic_to_pod = true;
    let sent = catch_unwind(AssertUnwindSafe(|| pod.send(&mut lab, ACK, &[7; 60_000])));
    assert!(sent.is_err());
    assert_eq!(lab.egress.give_up(lab.now, &mut lab.world), Some(PORT));
    assert_eq!((lab.stream(id).closed, lab.egress.counts().0), (Some(true), 0));
}

#[test]
fn a_flow_that_is_just_begun_ends_as_well() {
    let mut lab = Lab::new();
    lab.world.panic_at_connect = true;
    let mut pod = Pod::new(false, 4000);
    let sent = catch_unwind(AssertUnwindSafe(|| pod.send(&mut lab, SYN, b"")));
    assert!(sent.is_err());
    assert_eq!(lab.egress.give_up(lab.now, &mut lab.world), Some(PORT));
    assert_eq!((lab.egress.counts().0, lab.egress.deadline()), (0, None));
    lab.world.panic_at_connect = false;
    lab.world.to_pod.clear();
    Pod::connected(&mut lab, false, 4001);
}

#[test]
fn a_mouth_is_closed_and_that_of_a_published_port_stays() {
    let mut lab = Lab::new();
    lab.input(&udp(false, 4000, 53, b"question")).unwrap();
    let (mouth, from) = (lab.world.sent[0].mouth, lab.world.sent[0].to);
    let heard = |lab: &mut Lab, mouth| {
        let answer = Heard::Datagram {
            from,
            len: 6,
            segment: None,
            class: 0,
            at: None,
        };
        let all = lab.world.heard.entry(mouth).or_default();
        all.push_back((answer, b"answer".to_vec()));
        lab.egress.mouth_ready(mouth);
    };
    lab.world.panic_to_pod = true;
    heard(&mut lab, mouth);
    assert_eq!(turns(&mut lab), [Some(PORT)]);
    assert_eq!((lab.egress.counts().1, lab.world.mouths.len()), (0, 0));
    let public = published::published(&mut lab, 0, "192.0.2.1:9");
    heard(&mut lab, public);
    heard(&mut lab, public);
    assert_eq!(turns(&mut lab), [Some(PORT); 2]);
    assert_eq!(lab.egress.counts().1, 1);
    lab.world.panic_to_pod = false;
    heard(&mut lab, public);
    assert_eq!(turns(&mut lab), []);
    assert_eq!(lab.world.to_pod.len(), 1);
}
