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
        .map(|(_, s)| s.path(false).probes.is_silent())
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
            at: peer(2).underlay,
            silent: true
        }]
    );
    lab.out = Out::default();
    lab.now += crate::model::Duration::from_millis(10);
    // The first of the flow is sent, and its pod told nothing: it may be answered.
    let frame = small(&lab, 2);
    lab.send(0, &VnetHdr::default(), &frame);
    let sent = std::mem::take(&mut lab.out.to_peers);
    assert_eq!(
        (sent.len(), sent[0].0, lab.out.to_pods.len()),
        (1, peer(2).underlay, 0)
    );
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
    let before = a
        .node
        .peers()
        .iter()
        .next()
        .map(|(_, s)| s.path(false).probes.rtt_us());
    a.now += crate::model::Duration::from_millis(77);
    a.receive(2, &[forged]);
    let after = a
        .node
        .peers()
        .iter()
        .next()
        .map(|(_, s)| s.path(false).probes.rtt_us());
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
    assert_eq!(lab.dropped(DropReason::TooBig) - before, 27);
    lab.out.refuse = None;
    assert!(
        lab.node
            .peers()
            .iter()
            .all(|(_, s)| s.path(false).learned_mtu.is_none())
    );
    assert!(lab.out.to_pods.is_empty());
    lab.balanced();
}

#[test]
fn an_idle_node_awaits_nothing() {
    let (mut lab, mut b) = met();
    assert_eq!(lab.node.deadline(), None, "all was answered, or never is");
    // One path for both families: a frame of either asks, and the answer is awaited once.
    lab.now += crate::model::Duration::from_secs(20);
    let frame = udp(&lab, true, 200);
    lab.send(0, &VnetHdr::default(), &frame);
    assert!(lab.node.deadline().is_some());
    b.receive(1, &probes(&mut lab, 2));
    let answers: Vec<Vec<u8>> = b.out.to_peers.drain(..).flat_map(|(_, d)| d).collect();
    lab.receive(2, &answers);
    assert_eq!(lab.node.deadline(), None);
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

/// Two nodes with an underlay of each family.
struct Dual {
    a: Lab,
    b: Lab,
    /// The family on which all vanishes.
    dead: Option<bool>,
    /// Longer datagrams vanish on IPv6.
    longest6: usize,
    /// Frames of a's pod that came to b's, by family.
    arrived: [usize; 2],
}

impl Dual {
    fn new() -> Dual {
        let (mut a, mut b) = (Lab::new(1), Lab::new(2));
        for lab in [&mut a, &mut b] {
            lab.node.settings.underlay = (true, true);
            let own = lab.node.settings.local.name.clone();
            for n in [1, 2] {
                let mut peer = peer(n);
                let six = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into());
                peer.underlay6 = Some(SocketAddr::from((six, 8472)));
                if peer.name != own {
                    lab.node.apply(Change::PeerSet(peer)).unwrap();
                }
            }
        }
        Dual {
            a,
            b,
            dead: None,
            longest6: 1500,
            arrived: [0; 2],
        }
    }

    /// Everything that waits arrives, until nothing waits.
    fn carry(&mut self) {
        loop {
            let mut moved = false;
            for n in [1, 2] {
                let (from, to) = match n {
                    1 => (&mut self.a, &mut self.b),
                    _ => (&mut self.b, &mut self.a),
                };
                for (at, datagrams) in std::mem::take(&mut from.out.to_peers) {
                    for mut datagram in datagrams {
                        let large = at.is_ipv6() && datagram.len() > self.longest6;
                        if self.dead == Some(at.is_ipv6()) || large || at.ip() == peer(3).underlay.ip() {
                            continue;
                        }
                        moved = true;
                        let six = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n);
                        let message = Received {
                            span: Span::new(0, datagram.len()),
                            segment: None,
                            from: match at.is_ipv6() {
                                true => six.into(),
                                false => IpAddr::from([192, 0, 2, n as u8]),
                            },
                            class: 0,
                        };
                        to.node.from_peer(&mut datagram, &message, to.now, &mut to.out);
                        to.node.deliver_trains(&mut datagram, to.now, &mut to.out);
                        to.settle();
                    }
                }
            }
            if !moved {
                break;
            }
        }
        for (_, _, frame) in self.b.out.to_pods.drain(..) {
            self.arrived[usize::from(frame[12] == 0x86)] += 1;
        }
    }

    /// For so many seconds: a's pod sends packets of these families and this length to b's, each 50 ms.
    fn pass(&mut self, seconds: u64, families: &[bool], len: usize) {
        for _ in 0..seconds * 20 {
            for six in families {
                let frame = udp(&self.a, *six, len);
                self.a.send(0, &VnetHdr::default(), &frame);
                self.carry();
            }
            let end = self.a.now + crate::model::Duration::from_millis(50);
            while let Some(at) = self.a.node.deadline().filter(|at| *at <= end) {
                (self.a.now, self.b.now) = (at, at);
                self.a.node.on_timeout(at);
                self.a.settle();
                self.carry();
            }
            (self.a.now, self.b.now) = (end, end);
        }
    }
}

/// A datagram from a pod of node 1 to one of node 2, as a packet of so many bytes.
fn udp(lab: &Lab, six: bool, len: usize) -> Vec<u8> {
    let (from, to) = (spec(1, 2), spec(2, 2));
    let l4 = len - if six { 40 } else { 20 };
    let mut l4 = vec![0; l4];
    l4[..4].copy_from_slice(&[0x30, 0x39, 0, 9]);
    let length = (l4.len() as u16).to_be_bytes();
    l4[4..6].copy_from_slice(&length);
    if !six {
        return ipv4(lab.gateway(), 2, to.ip4.unwrap(), 17, &l4);
    }
    let mut f = [lab.gateway().0, from.mac.0].concat();
    f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    f.extend(length);
    f.extend([17, 64]);
    f.extend(from.ip6.unwrap().octets());
    f.extend(to.ip6.unwrap().octets());
    f.extend(l4);
    let h = Headers::parse(&f).unwrap();
    let sum = !pseudo(&f, &h, h.end - h.l4).with(&f[h.l4..]).fold();
    put_be16(&mut f, h.l4 + 6, sum);
    f
}

#[test]
fn each_underlay_family_has_a_verdict_of_its_own() {
    for dead in [false, true] {
        let mut dual = Dual::new();
        dual.pass(3, &[false, true], 200);
        assert_eq!(dual.arrived, [60, 60]);
        dual.dead = Some(dead);
        dual.pass(10, &[false, true], 200);
        let refused = dual.a.dropped(DropReason::PeerSilent);
        assert!((60..200).contains(&refused), "{refused}");
        let arrived = dual.arrived[usize::from(!dead)];
        assert_eq!(arrived, 260, "the other family is not concerned");
        // Also when only the other is used, and nothing comes back.
        dual.pass(10, &[!dead], 200);
        assert_eq!(dual.arrived[usize::from(!dead)], 460);
        dual.dead = None;
        dual.pass(2, &[dead], 200);
        let arrived = dual.arrived;
        dual.pass(1, &[false, true], 200);
        assert_eq!(dual.arrived, arrived.map(|n| n + 20));
        dual.a.balanced();
        dual.b.balanced();
    }
}

#[test]
fn what_is_merged_was_heard_along_its_own_path() {
    let Dual { mut a, mut b, .. } = Dual::new();
    for _ in 0..2 {
        let frame = udp(&a, true, 200);
        a.read(0, &VnetHdr::default(), &frame);
    }
    a.settle();
    let sent = std::mem::take(&mut a.out.to_peers);
    let inner = sent.into_iter().flat_map(|(_, datagrams)| datagrams);
    let datagrams: Vec<Vec<u8>> = inner.filter(|d| d[8 + 14 + 6] == 17).collect();
    assert_eq!(datagrams.len(), 2);
    let mut memory = datagrams.concat();
    for n in 0..2 {
        let message = Received {
            span: Span::new(n * memory.len() / 2, (n + 1) * memory.len() / 2),
            segment: None,
            from: "2001:db8::1".parse().unwrap(),
            class: 0,
        };
        b.node.from_peer(&mut memory, &message, b.now, &mut b.out);
    }
    b.node.deliver_trains(&mut memory, b.now, &mut b.out);
    assert_eq!(b.node.counters().coalesced, 1);
    let (_, state) = b.node.peers().iter().next().unwrap();
    let heard = [false, true].map(|six| state.path(six).last_heard);
    assert_eq!(heard, [None, Some(b.now)]);
}

#[test]
fn each_underlay_family_has_a_path_of_its_own() {
    let mut dual = Dual::new();
    // An outer packet of 1400 bytes: 40 of IPv6, 8 of UDP. VXLAN and Ethernet leave 1330 for pods.
    dual.longest6 = 1400 - 48;
    dual.pass(4, &[false, true], 1400);
    let told = |dual: &mut Dual, six: bool| {
        dual.a.out.to_pods.clear();
        dual.pass(1, &[six], 1400);
        let errors = dual.a.out.to_pods.iter();
        errors
            .filter(|(_, _, e)| match six {
                // [eth 14 | ip | type, code]
                true => e[14 + 40..][..8] == [2, 0, e[56], e[57], 0, 0, 5, 50],
                false => e[34..36] == [3, 4],
            })
            .count()
    };
    assert_eq!((told(&mut dual, false), told(&mut dual, true)), (0, 20));
    dual.a.balanced();
}
