//! Stories of TCP.

use super::*;
use crate::stack::egress::half_open::MAX_HALF_OPEN;
use crate::stack::egress::tcp::MAX_PER_PORT;

#[test]
fn bytes_go_both_ways_and_the_ends_are_told() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let (mut pod, id) = Pod::connected(&mut lab, six, 4000);
        assert_eq!(lab.stream(id).to, Some(SocketAddr::new(ends(six).1, 80)));
        assert_eq!(lab.stream(id).hops, None);
        // A super-frame to the host.
        let up: Vec<u8> = (0..60_000).map(|i| i as u8).collect();
        pod.send(&mut lab, ACK, &up).unwrap();
        assert_eq!(lab.stream(id).got, up);
        assert_eq!(pod.take(&mut lab).0, [ACK]);
        // Super-frames to the pod, in segments it has room for.
        let down: Vec<u8> = (0..50_000).map(|i| (i / 7) as u8).collect();
        lab.stream(id).incoming.push_back(down.clone());
        lab.ready(id);
        let size = MTU - if six { 60 } else { 40 };
        assert!(
            lab.world
                .to_pod
                .iter()
                .all(|(p, s)| *s == Some(size.min(1410)) || p.len() <= usize::from(MTU))
        );
        assert!(lab.world.to_pod.len() <= 2);
        let (_, got) = pod.take(&mut lab);
        assert_eq!(got, down);
        pod.send(&mut lab, ACK, b"").unwrap();
        // The pod has said all, the world has not.
        pod.send(&mut lab, FIN | ACK, b"").unwrap();
        assert!(lab.stream(id).shut && lab.stream(id).closed.is_none());
        pod.take(&mut lab);
        lab.stream(id).incoming.push_back(b"and more".to_vec());
        lab.stream(id).end = Some(Moved::End);
        lab.ready(id);
        let (flags, got) = pod.take(&mut lab);
        assert_eq!(got, b"and more");
        assert_eq!(flags.last().unwrap() & FIN, FIN);
        pod.send(&mut lab, ACK, b"").unwrap();
        assert_eq!(lab.stream(id).closed, Some(false));
        assert_eq!(lab.egress.counts(), (0, 0));
        assert_eq!(lab.egress.deadline(), None);
    }
}

#[test]
fn the_world_may_end_first() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    lab.stream(id).end = Some(Moved::End);
    lab.ready(id);
    assert_eq!(pod.take(&mut lab).0, [FIN | ACK]);
    pod.send(&mut lab, ACK, b"still here").unwrap();
    assert_eq!(lab.stream(id).got, b"still here");
    assert!(!lab.stream(id).shut);
    pod.send(&mut lab, FIN | ACK, b"").unwrap();
    assert_eq!(lab.stream(id).closed, Some(false));
    assert_eq!(lab.egress.counts().0, 0);
}

#[test]
fn what_the_host_says_of_a_connection_is_told_as_it_is() {
    for six in [false, true] {
        for at_once in [false, true] {
            for (why, want) in [
                (HostError::Refused, None),
                (HostError::NetUnreachable, Some(Trouble::NetUnreachable)),
                (HostError::HostUnreachable, Some(Trouble::HostUnreachable)),
                (HostError::TimedOut, Some(Trouble::HostUnreachable)),
                (HostError::Prohibited, Some(Trouble::Prohibited)),
                (HostError::TtlExceeded, Some(Trouble::TtlExceeded)),
            ] {
                let mut lab = Lab::new();
                let mut pod = Pod::new(six, 4000);
                if at_once {
                    lab.world.refuse = Some(why);
                    pod.send(&mut lab, SYN, b"").unwrap();
                } else {
                    pod.send(&mut lab, SYN, b"").unwrap();
                    // It asks again while it waits.
                    lab.input(&Pod::new(six, 4000).bytes(SYN, b"")).unwrap();
                    assert!(lab.world.to_pod.is_empty());
                    lab.connect(0, Err((why, Some(Ipv4Addr::new(192, 0, 2, 1).into()))));
                    assert_eq!(lab.stream(0).closed, Some(false));
                }
                match want {
                    None => {
                        assert_eq!(lab.world.to_pod.len(), 1);
                        let (flags, _, ack, _) = segment(&lab.world.to_pod[0].0);
                        assert_eq!((flags, ack), (RST | ACK, 1001), "what a SYN-SENT socket believes");
                    }
                    Some(trouble) => {
                        let (told, packet, by) = &lab.world.complaints[0];
                        assert_eq!((*told, by.is_some()), (trouble, !at_once));
                        assert!(pod.bytes(SYN, b"").starts_with(&packet[..2]));
                    }
                }
                assert_eq!(lab.egress.counts().0, 0);
            }
        }
    }
    let mut lab = Lab::new();
    lab.world.refuse = Some(HostError::NoSockets);
    assert_eq!(
        Pod::new(false, 1).send(&mut lab, SYN, b""),
        Err(DropReason::HostSockets)
    );
}

#[test]
fn addresses_of_services_that_none_has_are_refused_by_a_reset() {
    let mut lab = Lab::new();
    lab.egress.set_policy(Arc::new(Policy {
        services: vec!["198.51.100.0/24".parse().unwrap()],
        ..policy()
    }));
    let mut pod = Pod::new(false, 1);
    assert_eq!(pod.send(&mut lab, SYN, b""), Err(DropReason::NoService));
    assert!(lab.world.complaints.is_empty() && lab.world.streams.is_empty());
    let (flags, ..) = segment(&lab.world.to_pod[0].0);
    assert_eq!(flags, RST | ACK);
}

#[test]
fn closed_addresses_are_told() {
    let mut lab = Lab::new();
    lab.egress.set_policy(Arc::new(Policy {
        denied: vec!["198.51.100.0/24".parse().unwrap()],
        ..policy()
    }));
    assert_eq!(
        Pod::new(false, 1).send(&mut lab, SYN, b""),
        Err(DropReason::EgressDenied)
    );
    assert_eq!(lab.world.complaints[0].0, Trouble::Prohibited);
    assert!(lab.world.streams.is_empty());
}

#[test]
fn breaks_on_either_side_are_breaks_on_the_other() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    pod.send(&mut lab, RST, b"").unwrap();
    assert_eq!(lab.stream(id).closed, Some(true));
    let (mut pod, id) = Pod::connected(&mut lab, false, 4001);
    lab.stream(id).end = Some(Moved::Failed(HostError::Reset));
    lab.ready(id);
    assert_eq!(pod.take(&mut lab).0, [RST | ACK]);
    assert_eq!(lab.stream(id).closed, Some(true));
    // And while the pod waits for the host.
    let mut pod = Pod::new(false, 4002);
    pod.send(&mut lab, SYN, b"").unwrap();
    pod.send(&mut lab, RST, b"").unwrap();
    assert_eq!(lab.egress.counts().0, 0);
    // Of a flow that nobody knows.
    let mut pod = Pod::new(true, 9);
    pod.send(&mut lab, ACK, b"old").unwrap();
    assert_eq!(pod.take(&mut lab).0[0] & RST, RST);
    pod.send(&mut lab, RST, b"").unwrap();
    assert!(lab.world.to_pod.is_empty(), "no reset answers a reset");
}

#[test]
fn a_slow_host_gets_every_byte_and_closes_the_window() {
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    lab.stream(id).room = 10;
    let mut all: Vec<u8> = Vec::new();
    let mut closed = false;
    for n in 0..100u8 {
        let piece = vec![n; 60_000];
        pod.send(&mut lab, ACK, &piece).unwrap();
        all.extend(&piece);
        let (_, _, ack, _) = segment(&lab.world.to_pod.last().unwrap().0);
        let window = &lab.world.to_pod.last().unwrap().0[34..36];
        if ack != pod.seq || window == [0, 0] {
            closed = true;
            all.truncate((ack - 1001) as usize);
            break;
        }
        lab.world.to_pod.clear();
    }
    assert!(closed, "the ring is bounded");
    for _ in 0..all.len() / 50_000 + 2 {
        lab.stream(id).room = 50_000;
        lab.ready(id);
    }
    assert!(lab.stream(id).got == all);
}

#[test]
fn silent_flows_end_in_their_time() {
    let mut lab = Lab::new();
    let (_, id) = Pod::connected(&mut lab, false, 4000);
    lab.later(Duration::from_secs(7430));
    assert_eq!(lab.egress.counts().0, 1, "RFC 5382 REQ-5");
    lab.later(Duration::from_secs(20));
    assert_eq!(lab.egress.counts().0, 0);
    assert_eq!(lab.stream(id).closed, Some(true));
    // One the host does not decide upon.
    Pod::new(false, 4001).send(&mut lab, SYN, b"").unwrap();
    lab.world.complaints.clear();
    lab.later(Duration::from_secs(241));
    assert_eq!(lab.world.complaints[0].0, Trouble::HostUnreachable);
    assert_eq!(lab.egress.counts().0, 0);
    assert_eq!(lab.egress.deadline(), None);
}

#[test]
fn a_pod_has_its_limit_and_a_flood_gives_way() {
    let mut lab = Lab::new();
    for n in 0..2 * MAX_HALF_OPEN as u16 {
        Pod::new(false, 1 + n).send(&mut lab, SYN, b"").unwrap();
    }
    assert_eq!(
        lab.egress.counts_of(PORT),
        (MAX_HALF_OPEN, 0),
        "the oldest give way"
    );
    // 65,536 of one pod, which are all answered.
    let mut lab = Lab::new();
    for n in 0..65_536u32 {
        let (six, port) = (n >= 32_768, 1 + n as u16 % 32_768);
        if n < MAX_PER_PORT as u32 {
            Pod::connected(&mut lab, six, port);
        } else {
            let more = Pod::new(six, port).send(&mut lab, SYN, b"");
            assert_eq!(more, Err(DropReason::FlowLimit));
        }
    }
    assert_eq!(lab.egress.counts_of(PORT).0, MAX_PER_PORT);
    let ends = (
        "10.244.1.9:80".parse().unwrap(),
        "198.51.100.9:5555".parse().unwrap(),
    );
    let other = lab.egress.accept(
        PortId(4),
        ends,
        "10.244.1.1".parse().unwrap(),
        lab.now,
        &mut lab.world,
    );
    lab.world
        .streams
        .insert(other.expect("others have room"), Stream::default());
    lab.egress.remove_port(PortId(4), &mut lab.world);
    lab.egress.remove_port(PORT, &mut lab.world);
    assert_eq!(lab.egress.counts(), (0, 0));
    assert!(lab.world.streams.values().all(|s| s.closed == Some(true)));
}

#[test]
fn a_slow_host_gets_every_byte_though_both_sides_have_ended() {
    for pod_first in [false, true] {
        let mut lab = Lab::new();
        let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
        lab.stream(id).room = 10;
        let all: Vec<u8> = (0..50_000).map(|i| (i / 3) as u8).collect();
        pod.send(&mut lab, ACK, &all).unwrap();
        if pod_first {
            pod.send(&mut lab, FIN | ACK, b"").unwrap();
        }
        lab.stream(id).end = Some(Moved::End);
        lab.ready(id);
        let (flags, _) = pod.take(&mut lab);
        assert_eq!(flags.last().unwrap() & FIN, FIN);
        pod.send(&mut lab, ACK, b"").unwrap();
        if !pod_first {
            pod.send(&mut lab, FIN | ACK, b"").unwrap();
        }
        // Longer than TIME-WAIT is in smoltcp.
        lab.later(Duration::from_secs(30));
        assert_eq!((lab.stream(id).closed, lab.stream(id).shut), (None, false));
        for _ in 0..3 {
            lab.stream(id).room = 20_000;
            lab.ready(id);
        }
        assert!(
            lab.stream(id).got == all,
            "{pod_first}: {}",
            lab.stream(id).got.len()
        );
        assert_eq!((lab.stream(id).closed, lab.stream(id).shut), (Some(false), true));
        assert_eq!((lab.egress.counts().0, lab.egress.deadline()), (0, None));
    }
    // One that never goes on is broken off in its time.
    let mut lab = Lab::new();
    let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
    lab.stream(id).room = 10;
    pod.send(&mut lab, ACK, &[1; 5000]).unwrap();
    pod.send(&mut lab, FIN | ACK, b"").unwrap();
    lab.stream(id).end = Some(Moved::End);
    lab.ready(id);
    pod.take(&mut lab);
    pod.send(&mut lab, ACK, b"").unwrap();
    lab.later(Duration::from_secs(241));
    assert_eq!(lab.stream(id).closed, Some(true));
    assert_eq!((lab.egress.counts().0, lab.egress.deadline()), (0, None));
}

#[test]
fn what_a_host_said_before_it_broke_off_reaches_the_pod() {
    for writes_fail in [false, true] {
        let mut lab = Lab::new();
        let (mut pod, id) = Pod::connected(&mut lab, false, 4000);
        if writes_fail {
            lab.stream(id).room = 0;
            pod.send(&mut lab, ACK, b"a long request").unwrap();
            pod.take(&mut lab);
        }
        lab.stream(id).incoming.push_back(b"too long".to_vec());
        lab.stream(id).end = Some(Moved::Failed(HostError::Reset));
        lab.ready(id);
        let (flags, got) = pod.take(&mut lab);
        assert_eq!(got, b"too long");
        assert_eq!(flags.last().unwrap() & RST, RST);
        assert_eq!(lab.stream(id).closed, Some(true));
        assert_eq!((lab.egress.counts().0, lab.egress.deadline()), (0, None));
    }
}

/// SYNs that the host answers, of a pod that says no more: from a packet socket, say.
#[test]
fn a_pod_that_does_not_take_what_it_opened_has_some_of_it_only() {
    let mut lab = Lab::new();
    let (_, whole) = Pod::connected(&mut lab, false, 1);
    let mut first = None;
    for n in 0..MAX_HALF_OPEN as u16 + 500 {
        let mut pod = Pod::new(false, 2 + n);
        pod.send(&mut lab, SYN, b"").unwrap();
        let id = lab
            .world
            .streams
            .iter()
            .find(|(_, s)| s.closed.is_none() && s.outcome.is_none())
            .map(|(id, _)| *id)
            .unwrap();
        first.get_or_insert(id);
        lab.connect(id, Ok(()));
        assert_eq!(pod.take(&mut lab).0, [SYN | ACK]);
        if n == MAX_HALF_OPEN as u16 - 1 {
            assert_eq!(lab.stream(first.unwrap()).closed, None);
        }
        if n == MAX_HALF_OPEN as u16 {
            assert_eq!(lab.stream(first.unwrap()).closed, Some(true));
        }
    }
    assert_eq!(lab.egress.counts().0, MAX_HALF_OPEN + 1);
    assert_eq!(lab.stream(whole).closed, None);
}

#[test]
fn a_pod_that_resets_what_it_opened_has_none_of_it() {
    for six in [false, true] {
        let mut lab = Lab::new();
        let mut pod = Pod::new(six, 4000);
        pod.send(&mut lab, SYN, b"").unwrap();
        lab.connect(0, Ok(()));
        assert_eq!(pod.take(&mut lab).0, [SYN | ACK]);
        // As a kernel that knows nothing of the SYN.
        pod.send(&mut lab, RST, b"").unwrap();
        assert_eq!(lab.stream(0).closed, Some(true));
        assert_eq!(lab.egress.counts(), (0, 0));
    }
}

#[test]
fn port_zero_is_nobodys() {
    let mut lab = Lab::new();
    for six in [false, true] {
        let at = if six { 40 } else { 20 };
        for (from, to) in [(0, 80), (4000, 0), (0, 0)] {
            let mut syn = Pod::new(six, from).bytes(SYN, b"");
            put_be16(&mut syn, at + 2, to);
            assert_eq!(lab.input(&syn), Err(DropReason::BadL4Header));
            let datagram = udp(six, from, to, b"?");
            assert_eq!(lab.input(&datagram), Err(DropReason::BadL4Header));
        }
    }
    assert_eq!(lab.egress.counts(), (0, 0));
    assert!(lab.world.streams.is_empty() && lab.world.sent.is_empty());
}
