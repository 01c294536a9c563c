//! Pods with bandwidth limits.

use super::*;
use crate::model::{Bandwidth, Duration, Rate};

/// Node 1 with a pod at port 2 that has these limits: 8 Mbit/s are a byte each microsecond, 64,000 bits 8,000 bytes.
fn lab(ingress: bool, egress: bool, caps: TapCaps) -> (Lab, PortSpec) {
    let rate = Rate::new(8_000_000, 64_000).unwrap();
    let mut lab = Lab::new(1);
    let limited = PortSpec {
        caps,
        bandwidth: Bandwidth::of(ingress.then_some(rate), egress.then_some(rate)),
        ..spec(1, 9)
    };
    assert_eq!(lab.node.add_port(limited.clone()).unwrap(), PortId(2));
    (lab, limited)
}

impl Lab {
    /// Let so many microseconds pass.
    fn pass(&mut self, us: u64) {
        self.now += Duration::from_micros(us);
        self.node.release(self.now, &mut self.out);
        self.balanced();
    }

    /// Sizes of what the limited pod got since the last time.
    fn got(&mut self) -> Vec<usize> {
        let of = |(port, _, frame): (PortId, VnetHdr, Vec<u8>)| (port == PortId(2)).then_some(frame.len());
        self.out.to_pods.drain(..).filter_map(of).collect()
    }
}

/// A frame of so many bytes to the limited pod.
fn sized(limited: &PortSpec, len: usize) -> Vec<u8> {
    ipv4(limited.mac, 2, limited.ip4.unwrap(), 17, &vec![7; len - 34])
}

#[test]
fn a_burst_passes_at_once_and_the_rest_at_the_rate_in_order() {
    let (mut lab, limited) = lab(true, false, ALL);
    for n in 0..20 {
        lab.send(0, &VnetHdr::default(), &sized(&limited, 1000 + n));
    }
    assert_eq!(
        lab.got(),
        [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007],
        "a burst"
    );
    assert_eq!(lab.node.counters().held, 12);
    lab.balanced();
    // A debt of 28 bytes, and a quantum of 250 us.
    assert_eq!(
        lab.node.next_release(),
        Some(lab.now + Duration::from_micros(278))
    );
    lab.pass(28);
    assert!(lab.got().is_empty());
    lab.pass(1);
    assert_eq!(lab.got(), [1008]);
    lab.pass(4038);
    assert_eq!(lab.got(), [1009, 1010, 1011, 1012]);
    // Whoever comes now waits behind the others, also the node itself.
    lab.send(0, &VnetHdr::default(), &sized(&limited, 500));
    assert!(lab.got().is_empty());
    lab.pass(20_000);
    assert_eq!(lab.got(), [1013, 1014, 1015, 1016, 1017, 1018, 1019, 500]);
    assert_eq!((lab.node.next_release(), lab.node.counters().held), (None, 0));
    assert_eq!(lab.node.port_counters(PortId(2)).unwrap().held_to_pod, 13);
    assert_eq!(lab.dropped(DropReason::BandwidthLimit), 0);
    // Another pod is not concerned.
    for _ in 0..20 {
        lab.send(
            0,
            &VnetHdr::default(),
            &ipv4(spec(1, 3).mac, 2, spec(1, 3).ip4.unwrap(), 17, &[7; 966]),
        );
    }
    assert_eq!(lab.out.to_pods.len(), 20);
}

#[test]
fn a_super_frame_waits_whole_and_costs_what_its_segments_do() {
    let (mut lab, limited) = lab(true, false, ALL);
    let (vnet, frame) = bulk(limited.mac, limited.ip4.unwrap(), 60_000);
    lab.send(0, &vnet, &frame);
    assert_eq!(lab.got(), [60_054], "there is credit");
    lab.send(0, &vnet, &frame);
    let wire = 60_000 + 43 * 54;
    lab.pass(wire - 8000);
    assert!(lab.got().is_empty());
    lab.pass(1);
    assert_eq!(lab.out.to_pods, [(PortId(2), vnet, frame)], "as it was");
    lab.balanced();
}

/// A plain TAP gets its segments when their time has come.
#[test]
fn a_super_frame_for_a_plain_tap_waits_whole() {
    let (mut lab, limited) = lab(true, false, TapCaps::default());
    let (vnet, frame) = bulk(limited.mac, limited.ip4.unwrap(), 14_100);
    lab.send(0, &vnet, &frame);
    lab.send(0, &vnet, &frame);
    assert_eq!(lab.got(), [1464; 10]);
    assert_eq!(lab.node.counters().held, 1);
    lab.pass(14_641);
    assert_eq!(lab.got(), [1464; 10]);
    lab.balanced();
}

/// What comes out of the tunnel in pieces is in one piece where it waits.
#[test]
fn a_train_waits_for_any_kind_of_tap() {
    for caps in [ALL, TapCaps::default()] {
        let (mut b, limited) = lab(true, false, caps);
        let mut a = Lab::new(2);
        let mut from = bulk(a.gateway(), limited.ip4.unwrap(), 30_000);
        let src = spec(2, 2);
        from.1[6..12].copy_from_slice(&src.mac.0);
        from.1[26..30].copy_from_slice(&src.ip4.unwrap().octets());
        put_be16(&mut from.1, 24, 0);
        let sum = Sum::default().with(&from.1[14..34]).finish();
        put_be16(&mut from.1, 24, sum);
        put_be16(&mut from.1, 50, 0);
        let h = Headers::parse(&from.1).unwrap();
        let sum = pseudo(&from.1, &h, h.end - h.l4).fold();
        put_be16(&mut from.1, 50, sum);
        a.send(0, &from.0, &from.1);
        let train = a
            .out
            .to_peers
            .iter()
            .find(|(_, d)| d.len() > 1)
            .unwrap()
            .1
            .clone();
        b.receive(2, &train);
        b.receive(2, &train);
        assert!(b.node.counters().held > 0);
        b.balanced();
        (0..12).for_each(|_| b.pass(7000));
        // A plain TAP gets each datagram by itself.
        let each = if caps == ALL { 1 } else { 22 };
        let (at_once, later) = b.out.to_pods.split_at(each);
        assert_eq!(at_once, later);
        let payload: Vec<u8> = at_once.iter().flat_map(|(_, _, f)| f[54..].to_vec()).collect();
        assert_eq!(payload, from.1[54..]);
        b.balanced();
    }
}

#[test]
fn what_finds_no_room_is_dropped_and_what_waits_goes_with_the_port() {
    let (mut lab, limited) = lab(true, false, ALL);
    for _ in 0..200 {
        lab.send(0, &VnetHdr::default(), &sized(&limited, 1464));
    }
    // 131,142 bytes (two super-frames), and 22 beside each frame.
    let (passed, waits) = (lab.got().len() as u64, lab.node.counters().held);
    assert_eq!((passed, waits), (6, 88));
    let port = lab.node.port_counters(PortId(2)).unwrap();
    assert_eq!((port.held_to_pod, port.limited_to_pod), (88, 106));
    assert_eq!(lab.dropped(DropReason::BandwidthLimit), 106);
    lab.balanced();
    lab.node.remove_port(&limited.pod, &mut lab.out).unwrap();
    assert_eq!(
        (lab.dropped(DropReason::PortGone), lab.node.counters().held),
        (88, 0)
    );
    lab.pass(1_000_000);
    assert_eq!((lab.got(), lab.node.next_release()), (vec![], None));
    // The next one of that name begins anew.
    let port = lab.node.add_port(limited.clone()).unwrap();
    lab.send(0, &VnetHdr::default(), &sized(&limited, 1000));
    assert_eq!(lab.out.to_pods.pop().map(|(p, ..)| p), Some(port));
    lab.balanced();
}

#[test]
fn answers_of_the_node_itself_are_limited_too() {
    let (mut lab, limited) = lab(true, false, ALL);
    let mut ask = [0; neighbour::ANSWER_LEN];
    let n = neighbour::announce_arp(limited.mac, limited.ip4.unwrap(), &mut ask).unwrap();
    let mut arp = ask[..n].to_vec();
    arp.truncate(42);
    // Who has the gateway's address?
    arp[..6].fill(0xff);
    arp[20..22].copy_from_slice(&[0, 1]);
    arp[32..38].fill(0);
    arp[38..42].copy_from_slice(&[10, 244, 1, 1]);
    for _ in 0..300 {
        lab.send(2, &VnetHdr::default(), &arp);
    }
    let at_once = lab.got();
    let waits = lab.node.counters().held;
    assert!(
        at_once.len() < 200 && at_once.len() as u64 + waits == 300,
        "{} {waits}",
        at_once.len()
    );
    lab.balanced();
    lab.pass(1_000_000);
    assert_eq!(lab.got().len() as u64, waits);
    lab.balanced();
}

#[test]
fn a_pod_that_sent_too_much_is_not_read() {
    let (mut lab, limited) = lab(false, true, ALL);
    let to = spec(1, 3);
    let frame = |len: usize| {
        let mut f = ipv4(to.mac, 9, to.ip4.unwrap(), 17, &vec![7; len - 34]);
        f[6..12].copy_from_slice(&limited.mac.0);
        f
    };
    let port = PortId(2);
    let mut read = 0;
    while lab.node.may_read(port, lab.now) {
        lab.send(2, &VnetHdr::default(), &frame(1000));
        read += 1;
    }
    assert_eq!(read, 8, "a burst");
    assert_eq!(
        lab.node.next_read(port),
        Some(lab.now + Duration::from_micros(250))
    );
    lab.now += Duration::from_micros(250);
    assert!(lab.node.may_read(port, lab.now));
    assert_eq!(lab.node.port_counters(port).unwrap().paused_from_pod_us, 250);
    // A super-frame is charged as its segments are; one that lies is charged, and dropped.
    let (vnet, mut bulk) = bulk(to.mac, to.ip4.unwrap(), 60_000);
    bulk[6..12].copy_from_slice(&limited.mac.0);
    lab.send(2, &vnet, &bulk);
    let owed = (60_000 + 43 * 54 - 250) + 250;
    assert_eq!(
        lab.node.next_read(port),
        Some(lab.now + Duration::from_micros(owed))
    );
    let lie = VnetHdr { gso_size: 1, ..vnet };
    lab.send(2, &lie, &bulk);
    assert!(!lab.node.may_read(port, lab.now + Duration::from_micros(owed)));
    assert!(lab.node.may_read(PortId(0), lab.now) && lab.node.next_read(PortId(0)).is_none());
    lab.balanced();
}

/// What the node's own TCP has to send waits where it is.
#[test]
fn a_full_queue_tells_when_it_has_room() {
    let (mut lab, limited) = lab(true, false, ALL);
    let (vnet, frame) = bulk(limited.mac, limited.ip4.unwrap(), 60_000);
    lab.send(0, &vnet, &frame);
    assert_eq!(lab.node.room_at(PortId(2), lab.now), None);
    lab.send(0, &vnet, &frame);
    assert_eq!(lab.node.room_at(PortId(2), lab.now), None, "a second one fits");
    lab.send(0, &vnet, &frame);
    // Half of 120,152 bytes.
    let half = lab.now + Duration::from_micros(60_076);
    assert_eq!(lab.node.room_at(PortId(2), lab.now), Some(half));
    assert_eq!(lab.node.room_at(PortId(0), lab.now), None);
    lab.pass(200_000);
    assert_eq!(lab.node.room_at(PortId(2), lab.now), None);
}

/// A pod at a low rate is not taken for one that is gone.
#[test]
fn what_the_node_says_in_icmp_goes_before_what_waits_for_so_many_bytes() {
    let (mut lab, limited) = lab(true, false, ALL);
    for _ in 0..12 {
        lab.send(0, &VnetHdr::default(), &sized(&limited, 1000));
    }
    assert_eq!(lab.got().len(), 8);
    let to = IpAddr::V4(limited.ip4.unwrap());
    lab.node.ping(to, lab.now).unwrap();
    lab.settle();
    let got = lab.got();
    assert_eq!(got.len(), 1, "at once");
    // It was charged: what waits does so for longer.
    let quantum = 250;
    assert_eq!(
        lab.node.next_release(),
        Some(lab.now + Duration::from_micros(quantum + got[0] as u64))
    );
    // And there is an end of it.
    for _ in 0..300 {
        lab.node.ping(to, lab.now).unwrap();
        lab.settle();
    }
    assert_eq!(lab.got().len(), 8192 / got[0] - 1);
    lab.balanced();
}
