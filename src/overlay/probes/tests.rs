//! Stories of one way, by a clock of their own.

use super::*;
use crate::model::{Mac, Peer};
use crate::overlay::{Path, Peers};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::net::SocketAddr;

const TOP: UnderlayMtu = UnderlayMtu(1500);

/// A way, and the node and the peer at its ends.
struct Way {
    peers: Peers,
    now: Instant,
    rtt: Duration,
    /// Larger packets vanish.
    limit: u16,
    /// The kernel refuses larger ones.
    link: u16,
    /// All vanish.
    cut: bool,
    /// Every so many-th probe vanishes.
    lose: Option<usize>,
    /// Between the probes of a burst larger ones than this find no room.
    crowd: Option<u16>,
    /// A policer: bytes per millisecond, the most it saves, what it has, and since when.
    bucket: Option<(i64, i64, i64, Instant)>,
    /// How late the clock is met.
    late: Duration,
    /// Answers on their way: when they come, number and size.
    answers: VecDeque<(Instant, u16, Option<UnderlayMtu>)>,
    /// Probes sent, small and large.
    sent: (usize, usize),
}

impl Way {
    fn new() -> Way {
        let mut peers = Peers::default();
        let peer = Peer {
            name: "n2".parse().unwrap(),
            underlay: SocketAddr::from(([192, 0, 2, 2], 8472)),
            underlay6: None,
            subnet4: Some("10.244.2.0/24".parse().unwrap()),
            subnet6: None,
            vtep_mac: Mac([2; 6]),
            vtep_mac6: Mac([2; 6]),
            mtu: None,
        };
        peers.set(peer, true).unwrap();
        Way {
            peers,
            now: Instant::from_secs(1),
            rtt: Duration::from_millis(1),
            limit: 1500,
            link: u16::MAX,
            cut: false,
            lose: None,
            crowd: None,
            bucket: None,
            late: Duration::ZERO,
            answers: VecDeque::new(),
            sent: (0, 0),
        }
    }

    fn state(&mut self) -> &mut Path {
        self.peers
            .state_mut(crate::model::PeerId(0))
            .unwrap()
            .path_mut(false)
    }

    fn path(&mut self) -> u16 {
        self.state().learned_mtu.map_or(TOP.0, |(mtu, _)| mtu.0)
    }

    /// Whether the policer has so many bytes.
    fn has(&mut self, length: u16) -> bool {
        let Some((rate, most, has, since)) = &mut self.bucket else {
            return true;
        };
        let more = (self.now - *since).total_millis() as i64 * *rate;
        (*has, *since) = ((*has + more).min(*most), self.now);
        let enough = *has >= i64::from(length);
        *has -= if enough { i64::from(length) } else { 0 };
        enough
    }

    /// A pod sends a packet.
    fn frame(&mut self, packet: usize) {
        let now = self.now;
        self.has(packet as u16);
        let peer = self.peers.state_mut(crate::model::PeerId(0)).unwrap();
        peer.forget_old(now);
        if self.state().probes.is_due(packet, now) {
            let ask = self.state().look(packet, TOP, now);
            self.ask(ask);
        }
    }

    fn ask(&mut self, ask: Option<Ask>) {
        let Some(ask) = ask else { return };
        let now = self.now;
        let sizes = ask.sizes().map(Some).chain([None]);
        let burst = ask.sizes().count() > 8;
        for size in sizes {
            let seq = match size {
                Some(_) => self.state().probes.next_large(),
                None => self.state().probes.next(now),
            };
            let length = size.map_or(100, |s| s.0);
            match size {
                Some(_) => self.sent.1 += 1,
                None => self.sent.0 += 1,
            }
            if length > self.link {
                self.state().probes.refused(UnderlayMtu(length), now);
                continue;
            }
            let unlucky = self
                .lose
                .is_some_and(|n| (self.sent.0 + self.sent.1).is_multiple_of(n));
            let squeezed = burst && self.crowd.is_some_and(|most| length > most);
            if !self.cut && length <= self.limit && !unlucky && !squeezed && self.has(length) {
                self.answers.push_back((now + self.rtt, seq, size));
            }
        }
    }

    /// Let time pass, in which a pod sends packets of some length, or none, every 50 ms.
    fn pass(&mut self, time: Duration, packet: Option<usize>) {
        let end = self.now + time;
        while self.now < end {
            if let Some(packet) = packet {
                self.frame(packet);
            }
            let step = self.now + Duration::from_millis(50);
            loop {
                let answer = self.answers.front().map(|(at, ..)| *at);
                let deadline = self.state().probes.deadline();
                let next = [answer, deadline].into_iter().flatten().min();
                let Some(at) = next.filter(|at| *at <= step) else {
                    break;
                };
                self.now = self.now.max(at);
                if answer == Some(at) {
                    let (_, seq, size) = self.answers.pop_front().unwrap();
                    let now = self.now;
                    let state = self.state();
                    state.answered(seq, size, TOP, now);
                    state.last_heard = Some(now);
                    state.probes.heard(now);
                } else {
                    self.now += self.late;
                    let now = self.now;
                    let ask = self.state().expire(now);
                    self.ask(ask);
                }
            }
            self.now = step;
        }
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn probes_measure_and_count_losses() {
    let mut p = Probes::default();
    assert_eq!((p.rtt_us(), p.loss_percent()), (None, None));
    let seq = p.next(Instant::from_micros(100));
    p.answered(seq, None, Instant::from_micros(350));
    p.answered(seq, None, Instant::from_micros(900));
    assert_eq!((p.rtt_us(), p.loss_percent()), (Some(250), None));
    for _ in 0..3 {
        p.next(Instant::from_secs(1));
    }
    assert_eq!(
        p.loss_percent(),
        Some(66),
        "one answered, two lost, the last is open"
    );
}

#[test]
fn a_peer_that_vanishes_is_silent_within_three_intervals_and_back_at_once() {
    let mut way = Way::new();
    assert_eq!(way.state().probes.reach(), Reach::Unheard);
    way.pass(secs(60), Some(100));
    let up = way.state().probes.reach();
    assert!(matches!(up, Reach::Up(_)));
    way.cut = true;
    let cut = way.now;
    way.pass(secs(2), Some(100));
    assert_eq!(way.state().probes.reach(), up, "not at the first doubt");
    way.pass(secs(5), Some(100));
    let Reach::Silent(since) = way.state().probes.reach() else {
        panic!("{:?}", way.state().probes)
    };
    assert!(since - cut < secs(3 * 10) && since - cut < secs(7));
    // It is asked on, with the frames, each second.
    let before = way.sent.0;
    way.pass(secs(20), Some(100));
    assert!(
        (18..=22).contains(&(way.sent.0 - before)),
        "{}",
        way.sent.0 - before
    );
    way.cut = false;
    way.pass(Duration::from_millis(1100), Some(100));
    assert!(matches!(way.state().probes.reach(), Reach::Up(at) if at > since));
}

#[test]
fn silence_is_found_out_without_more_frames_and_then_nobody_is_asked() {
    let mut way = Way::new();
    way.pass(secs(1), Some(100));
    way.cut = true;
    way.pass(secs(20), None);
    assert!(matches!(way.state().probes.reach(), Reach::Up(_)), "nobody asked");
    // One frame is reason enough.
    way.frame(100);
    way.pass(secs(4), None);
    assert!(way.state().probes.is_silent());
    let before = way.sent;
    way.pass(secs(3600), None);
    assert_eq!((way.sent, way.state().probes.deadline()), (before, None));
}

#[test]
fn three_answers_must_be_missing_however_late_the_clock_is_met() {
    for late in [0, 1, 7] {
        let mut way = Way::new();
        way.late = Duration::from_millis(late);
        way.pass(secs(3), Some(100));
        way.cut = true;
        let before = way.sent.0;
        while !way.state().probes.is_silent() {
            way.pass(Duration::from_millis(50), Some(100));
        }
        assert_eq!(way.sent.0 - before, usize::from(MISSES), "{late} ms late");
    }
}

#[test]
fn a_frame_does_not_count_what_may_have_been_answered_already() {
    let mut way = Way::new();
    way.pass(secs(3), Some(100));
    way.cut = true;
    way.pass(secs(4), Some(100));
    way.state().probes.place = Some(0);
    let (missed, sent) = (way.state().probes.missed, way.sent);
    way.now += secs(10);
    way.frame(100);
    assert_eq!((way.state().probes.missed, way.sent), (missed, sent));
}

#[test]
fn whoever_never_answered_is_not_dead_for_it() {
    let mut way = Way::new();
    way.cut = true;
    way.pass(secs(600), Some(1400));
    assert_eq!(way.state().probes.reach(), Reach::Unheard);
    assert!(way.sent.0 <= 61 && way.sent.1 == 0, "{:?}", way.sent);
    // What it sends itself is life, and it still answers nothing.
    for _ in 0..100 {
        let now = way.now;
        way.state().last_heard = Some(now);
        way.state().probes.heard(now);
        way.pass(secs(1), Some(1400));
    }
    way.pass(secs(600), Some(1400));
    assert!(matches!(way.state().probes.reach(), Reach::Up(_)));
    assert_eq!((way.sent.1, way.path()), (0, 1500));
}

#[test]
fn whatever_is_heard_is_life() {
    let mut way = Way::new();
    way.pass(secs(5), Some(1400));
    // From now on no probe is answered, but frames come.
    way.cut = true;
    for _ in 0..100 {
        way.pass(secs(1), Some(1400));
        let now = way.now;
        way.state().last_heard = Some(now);
        way.state().probes.heard(now);
    }
    assert!(matches!(way.state().probes.reach(), Reach::Up(_)));
    assert_eq!(way.path(), 1500, "that says nothing of sizes");
}

#[test]
fn a_peer_at_another_address_begins_anew() {
    let mut way = Way::new();
    way.pass(secs(1), Some(1400));
    way.cut = true;
    way.pass(secs(10), Some(1400));
    assert!(way.state().probes.is_silent());
    let mut peer = way.peers.state(crate::model::PeerId(0)).unwrap().peer.clone();
    way.peers.set(peer.clone(), true).unwrap();
    assert!(way.state().probes.is_silent(), "the same way");
    peer.underlay.set_port(4789);
    way.peers.set(peer, true).unwrap();
    assert_eq!(way.state().probes.reach(), Reach::Unheard);
}

#[test]
fn what_is_told_is_bounded() {
    let mut p = Probes::default();
    let mut told = 0;
    // Ten minutes of a peer that goes and comes every ten seconds.
    for n in 0..60 {
        let at = Instant::from_secs(100 + 10 * n);
        told += usize::from(p.is_news(n % 2 == 0, at));
    }
    assert!((10..=22).contains(&told), "{told}");
    // Never one without the other.
    let mut p = Probes::default();
    let mut last = false;
    for n in 0..1000 {
        let silent = n % 2 == 0;
        if p.is_news(silent, Instant::from_secs(7 * n)) {
            assert_ne!(last, silent);
            last = silent;
        }
    }
}

#[test]
fn a_path_that_swallows_large_packets_is_measured() {
    for (limit, found) in [
        (1500, 1500),
        (1499, 1492),
        (1492, 1492),
        (1450, 1450),
        (1399, 1380),
        (1280, 1280),
        (900, 626),
        // Such a path there is not.
        (600, 1500),
    ] {
        for rtt in [1, 150, 400] {
            let mut way = Way::new();
            way.rtt = Duration::from_millis(rtt);
            way.limit = limit;
            // The answer to the first probe, then the search.
            way.pass(Duration::from_millis(4 * rtt + 900), Some(1400));
            assert_eq!(way.path(), found, "limit {limit}, {rtt} ms");
            let large = way.sent.1;
            way.pass(secs(55), Some(1400));
            let again = way.sent.1 - large;
            let most = if limit == 1500 { 60 } else { 300 };
            assert!(
                again <= most,
                "limit {limit}: {again} large probes in the next minute"
            );
            // It stays so, and larger ones are tried again without hurting.
            for _ in 0..1000 {
                way.pass(Duration::from_millis(100), Some(1400));
                assert_eq!(way.path(), found, "limit {limit}, {rtt} ms");
            }
            way.limit = 1500;
            way.pass(secs(62), Some(600));
            assert_eq!(way.path(), 1500, "limit {limit}, {rtt} ms");
        }
    }
}

#[test]
fn a_path_that_gets_worse_is_found_out_by_the_large_frames() {
    let mut way = Way::new();
    way.pass(secs(21), Some(1400));
    assert_eq!(way.path(), 1500);
    assert!(
        (18..=22).contains(&way.sent.1),
        "about one a second: {}",
        way.sent.1
    );
    way.limit = 1400;
    way.pass(secs(11), Some(100));
    assert_eq!(way.path(), 1500, "small frames do not mind");
    way.pass(Duration::from_millis(800), Some(1400));
    assert_eq!(way.path(), 1400);
}

#[test]
fn a_path_that_gets_worse_twice_is_found_out_as_fast_the_second_time() {
    for (first, second, packet) in [(1450, 1400, 1350), (1400, 1280, 1300), (1300, 626, 600)] {
        let mut way = Way::new();
        way.limit = first;
        way.pass(secs(5), Some(packet));
        assert_eq!(way.path(), first);
        way.limit = second;
        way.pass(Duration::from_millis(1900), Some(packet));
        assert_eq!(way.path(), second, "after {first}");
        // It stays so, and what is confirmed each second hinders no larger one from being tried.
        let large = way.sent.1;
        way.pass(secs(50), Some(packet));
        assert_eq!(way.path(), second);
        assert!(way.sent.1 - large <= 60, "{}", way.sent.1 - large);
        way.limit = 1500;
        way.pass(secs(12), Some(packet));
        assert_eq!(way.path(), 1500, "after {first} and {second}");
    }
}

#[test]
fn what_a_burst_of_probes_does_to_itself_is_no_limit() {
    // The first large probe is lost, as packets are, and what has no room in a burst is larger than what has.
    for crowd in [626, 1006, 1300, 1450] {
        let mut way = Way::new();
        (way.crowd, way.limit) = (Some(crowd), 1400);
        way.pass(Duration::from_millis(100), Some(1400));
        way.limit = 1500;
        for _ in 0..50 {
            way.pass(Duration::from_millis(100), Some(1400));
            assert_eq!(way.path(), 1500, "{crowd}");
        }
    }
    // A policer that is nearly used up by the pods lets the smallest pass, each time others.
    for rtt in 1..200 {
        let mut way = Way::new();
        way.rtt = Duration::from_millis(rtt);
        way.bucket = Some((42, 2100, 2100, way.now));
        way.pass(secs(1), Some(1400));
        for _ in 0..100 {
            way.pass(Duration::from_millis(100), Some(1400));
            assert_eq!(way.path(), 1500, "{rtt} ms");
        }
    }
}

#[test]
fn loss_and_disorder_are_no_limit() {
    for n in [3, 5, 7, 11, 20] {
        let mut way = Way::new();
        way.lose = Some(n);
        way.pass(secs(600), Some(1400));
        assert_eq!(way.path(), 1500, "every {n}th is lost");
    }
    let mut way = Way::new();
    way.pass(secs(1), Some(1400));
    // Everything vanishes: sizes are not to blame, also when it comes back in the midst of it.
    for ms in (0..3000).step_by(50) {
        way.cut = true;
        way.pass(Duration::from_millis(10_000 + ms), Some(1400));
        way.cut = false;
        way.pass(secs(2), Some(1400));
        assert_eq!(way.path(), 1500, "{ms}");
        assert!(matches!(way.state().probes.reach(), Reach::Up(_)));
    }
}

#[test]
fn a_size_that_comes_back_late_is_proven() {
    let mut way = Way::new();
    way.limit = 1400;
    way.pass(secs(2), Some(1400));
    assert_eq!(way.path(), 1400);
    let (now, last) = (way.now, way.state().probes.seq);
    // Of a number that was never sent, of a size that was never asked for: no proof.
    way.state().answered(last.wrapping_add(1), Some(TOP), TOP, now);
    way.state().answered(last.wrapping_sub(500), Some(TOP), TOP, now);
    way.state().answered(last, Some(UnderlayMtu(1501)), TOP, now);
    assert_eq!(way.path(), 1400);
    way.state().answered(last, Some(UnderlayMtu(1450)), TOP, now);
    assert_eq!(way.path(), 1450);
    way.state().answered(last, Some(TOP), TOP, now);
    assert_eq!(way.path(), 1500);
}

#[test]
fn what_the_kernel_tells_must_be_proven() {
    // A forged refusal: the path takes all.
    let mut way = Way::new();
    way.pass(secs(1), Some(1400));
    let now = way.now;
    way.state().probes.refused(UnderlayMtu(600), now);
    way.state().learn_mtu(UnderlayMtu(552), now);
    assert_eq!(way.path(), 552);
    way.frame(600);
    way.pass(Duration::from_millis(50), None);
    assert_eq!(way.path(), 1500);
    // A link that became smaller: larger ones are not even sent.
    way.link = 1400;
    let now = way.now;
    way.state().probes.refused(UnderlayMtu(1500), now);
    way.state().learn_mtu(UnderlayMtu(1400), now);
    for _ in 0..200 {
        way.pass(secs(1), Some(1350));
        assert_eq!(way.path(), 1400);
    }
    // And what lies behind it smaller still.
    way.limit = 1300;
    way.pass(secs(62), Some(1350));
    assert_eq!(way.path(), 1300);
    // Without probes nothing can be proven: believed for a while.
    let mut way = Way::new();
    way.cut = true;
    let now = way.now;
    way.state().learn_mtu(UnderlayMtu(1400), now);
    way.pass(secs(59), Some(1400));
    assert_eq!(way.path(), 1400);
    way.pass(secs(12), Some(1400));
    assert_eq!(way.path(), 1500);
}

/// The peer's probes, a second apart from 100 s on, say that it heard this node so many milliseconds ago.
fn deaf(said: &[Option<u32>]) -> Option<i64> {
    let mut p = Probes::default();
    for (n, heard) in (100..).zip(said) {
        p.told(*heard, Instant::from_secs(n));
    }
    p.deaf().map(|at| at.secs())
}

#[test]
fn a_peer_that_does_not_hear_says_so() {
    let (never, just) = (None, Some(300));
    assert_eq!(
        deaf(&[never, never, never]),
        None,
        "the answers may be on their way"
    );
    assert_eq!(deaf(&[never, never, never, never]), Some(100));
    assert_eq!(deaf(&[just, just, just, just, just]), None);
    assert_eq!(deaf(&[just, Some(1300), Some(2300), Some(3300)]), Some(100));
    assert_eq!(deaf(&[never, never, never, never, just]), None, "it hears again");
    assert_eq!(deaf(&[never, never, just, never, never]), None);
    // Far apart, by clocks that differ.
    let mut p = Probes::default();
    for n in 0..10 {
        p.told(Some(3_602_000), Instant::from_secs(3600 * n + 5));
    }
    assert_eq!(p.deaf(), None);
    // A probe that the network doubles counts once; an answer to an own probe is proof of the contrary.
    let mut p = Probes::default();
    for n in 0..20 {
        p.told(None, Instant::from_millis(5000 + n));
    }
    assert_eq!(p.deaf(), None);
    for n in 10..20 {
        p.told(None, Instant::from_secs(n));
    }
    assert!(p.deaf().is_some());
    let seq = p.next(Instant::from_secs(20));
    p.answered(seq, None, Instant::from_secs(20));
    assert_eq!(p.deaf(), None);
}

proptest! {
    /// Whatever happens in whatever order: no panic, a bounded number of probes, and a deadline that is met is gone.
    #[test]
    fn any_story_ends(steps in proptest::collection::vec((0u8..8, any::<u16>()), 0..200)) {
        let mut way = Way::new();
        let begun = way.now;
        for (what, n) in steps {
            let now = way.now;
            match what {
                0 => way.cut = n % 2 == 0,
                1 => way.limit = n,
                2 => way.state().answered(n, (n % 3 > 0).then_some(UnderlayMtu(n)), TOP, now),
                3 => way.state().probes.told((n % 2 > 0).then_some(n.into()), now),
                4 => way.state().probes.refused(UnderlayMtu(n), now),
                5 => way.rtt = Duration::from_millis(u64::from(n) / 16),
                6 => way.pass(Duration::from_millis(u64::from(n) / 4), None),
                _ => way.pass(Duration::from_millis(u64::from(n) / 4), Some(usize::from(n) % 1500)),
            }
        }
        let lasted = (way.now - begun).secs() as usize + 1;
        prop_assert!(way.sent.0 <= 6 * lasted + 10, "{:?} in {lasted} s", way.sent);
        prop_assert!(way.state().learned_mtu.is_none_or(|(m, _)| m < TOP && m.0 >= 626));
        way.pass(secs(5), None);
        prop_assert_eq!(way.state().probes.deadline(), None);
    }
}
