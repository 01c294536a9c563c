//! Pings of pods from the gateway.

use super::*;
use crate::model::Duration;
use crate::stack::probe::{self, Echo};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr};

/// What pod 2 answers to the echo request it got last.
fn answer(lab: &Lab, src: u8) -> Vec<u8> {
    let (_, _, asked) = lab.out.to_pods.last().unwrap();
    let message = Icmpv4Packet::new_checked(&asked[34..]).unwrap();
    let caps = ChecksumCapabilities::default();
    let Icmpv4Repr::EchoRequest { ident, seq_no, data } = Icmpv4Repr::parse(&message, &caps).unwrap() else {
        panic!("no echo request");
    };
    let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut Icmpv4Packet::new_unchecked(&mut bytes[..]), &caps);
    ipv4(lab.gateway(), src, Ipv4Addr::new(10, 244, 1, 1), 1, &bytes)
}

fn pongs(lab: &mut Lab) -> Vec<(u16, Option<Duration>)> {
    lab.node.pongs(lab.now).collect()
}

#[test]
fn an_answer_is_told_with_the_time_it_took() {
    let mut lab = Lab::new(1);
    let to = IpAddr::from([10, 244, 1, 2]);
    let number = lab.node.ping(to, lab.now).unwrap();
    lab.settle();
    let (port, _, asked) = lab.out.to_pods.last().unwrap();
    assert_eq!(*port, PortId(0));
    let (from, what) = probe::parse(&asked[14..]).unwrap();
    assert_eq!(from, IpAddr::from([10, 244, 1, 1]));
    assert!(matches!(what, Echo::Probe { .. }));
    assert_eq!(lab.node.ping_deadline(), Some(lab.now + Duration::from_secs(1)));
    // Another pod's word is not this one's.
    lab.now += Duration::from_millis(3);
    let theirs = answer(&lab, 3);
    lab.send(1, &VnetHdr::default(), &theirs);
    assert!(pongs(&mut lab).is_empty());
    lab.out.to_pods.clear();
    let number2 = lab.node.ping(to, lab.now).unwrap();
    assert_ne!(number, number2);
    lab.settle();
    let own = answer(&lab, 2);
    lab.now += Duration::from_millis(2);
    lab.send(0, &VnetHdr::default(), &own);
    assert_eq!(pongs(&mut lab), [(number2, Some(Duration::from_millis(2)))]);
    // Said twice it is heard once.
    lab.send(0, &VnetHdr::default(), &own);
    assert!(pongs(&mut lab).is_empty());
    lab.now += Duration::from_secs(1);
    assert_eq!(pongs(&mut lab), [(number, None)]);
    assert_eq!(lab.node.ping_deadline(), None);
    lab.balanced();
}

#[test]
fn pings_under_way_are_bounded() {
    let mut lab = Lab::new(1);
    let to = IpAddr::from([10, 244, 1, 2]);
    let mut asked = 0;
    for _ in 0..2000 {
        asked += usize::from(lab.node.ping(to, lab.now).is_some());
        lab.settle();
    }
    assert_eq!(asked, 1024);
    lab.now += Duration::from_secs(2);
    assert_eq!(pongs(&mut lab).len(), 1024);
    lab.balanced();
}

/// The host has the gateway's address, and pings of its own: each gets its answers.
#[test]
fn an_answer_is_the_nodes_also_where_the_host_has_a_port() {
    let mut lab = Lab::new(1);
    let local = &lab.node.settings().local;
    let host = PortSpec {
        pod: PodName::of_host(),
        mac: local.host_mac(),
        ip4: local.gateway4(),
        ip6: local.gateway6(),
        ..spec(1, 2)
    };
    let host = lab.node.add_host(host).unwrap();
    let number = lab.node.ping(IpAddr::from([10, 244, 1, 2]), lab.now).unwrap();
    lab.settle();
    let (theirs, own) = (answer(&lab, 3), answer(&lab, 2));
    lab.out.to_pods.clear();
    lab.send(1, &VnetHdr::default(), &theirs);
    assert_eq!(lab.out.to_pods.last().map(|(port, ..)| *port), Some(host));
    assert!(pongs(&mut lab).is_empty());
    lab.send(0, &VnetHdr::default(), &own);
    assert_eq!(pongs(&mut lab), [(number, Some(Duration::ZERO))]);
    assert_eq!(lab.out.to_pods.len(), 1);
    // It is over: what comes now was not asked for by the node.
    lab.send(0, &VnetHdr::default(), &own);
    assert_eq!(lab.out.to_pods.len(), 2);
    lab.balanced();
}
