//! What probes tell of a path to a peer: whether it is there, whether it hears this node, and how large a packet
//! reaches it.
//!
//! A probe is an echo request from VTEP to VTEP, which kernels answer as podwire does. It goes along with frames of
//! pods: who sends nothing asks nothing. What is awaited has a [`deadline`](Probes::deadline), and nothing else has
//! one, so that an idle node sleeps.
//!
//! ```text
//! a frame, nothing heard for 2 s   -> small ...1 s... small ...1 s... small ...1 s... silent
//! a large frame, size not proven   -> full + small ..200 ms.. all sizes + small ..200 ms.. the same
//!                                     ..200 ms.. full + small, alone ..200 ms.. limit
//! a probe of the peer              -> "I heard you so long ago": not since its last probe was answered? three times: deaf
//! ```
//!
//! Silent is only a peer that has answered before: a firewall that drops echo requests is no death. One that drops them
//! from now on looks like one, so the verdict is [put to the test](Probes::admit) by frames of pods: now and then one
//! of each flow passes. Whatever is heard of a peer is life, and one that is heard without having answered counts as
//! one that does not answer until it does. What only listens shows nothing of itself; it is cut off for ten minutes,
//! and not for good.
//!
//! A size is missing only when the small probe behind it was answered, and a limit is seen only where what is smaller
//! comes back, and the full size, sent alone, still does not. So loss, delay, and what has no room in a burst of probes
//! are none; a size that comes back late is proven as well. A limit is confirmed as often as the full size was, so that a
//! path that gets worse again is found out as fast, and larger sizes are tried again [each minute](EXPIRES).

use crate::model::{Duration, Instant, UnderlayMtu};

/// A peer that is sent frames is asked at least so often.
const EVERY: Duration = Duration::from_secs(10);
/// Nothing heard for so long while frames are sent: ask.
const QUIET: Duration = Duration::from_secs(2);
/// How long an answer is awaited.
const ANSWER: Duration = Duration::from_secs(1);
/// Answers in a row that must be missing.
const MISSES: u8 = 3;
/// How long the answer to a large probe may take longer than that to the small one behind it.
const BEHIND: Duration = Duration::from_millis(100);
/// How long a size that came back is believed while large packets are sent. TCP, whose packets vanish, resends after 0.2,
/// 0.6, 1.4 and 3 s: the third is reason to look, and the fourth is told what fits.
const PROVEN: Duration = Duration::from_secs(1);
/// The least time between two rounds of a search.
const ROUND: Duration = Duration::from_millis(200);
/// How long the limit of a path is believed before larger sizes are tried again: paths get better too (RFC 1191
/// section 6.3).
pub const EXPIRES: Duration = Duration::from_secs(60);
/// How long a silence is proof enough to keep frames back.
const DOUBT: Duration = Duration::from_secs(600);
/// Between two frames of a flow that put the silence of a peer to the test.
const TRIAL: Duration = Duration::from_secs(5);
/// Flows are told apart by so many values of their hash.
const TRIALS: u32 = u64::BITS;
/// Packets of pods longer than this make it worth to know what the path takes.
const LARGE: usize = 512;
/// Requests of the peer closer together than this are one and its double.
const DOUBLE: Duration = Duration::from_millis(500);
/// How far apart the two nodes' ideas of "since" may be, beside a thousandth of the time itself.
const SLACK: Duration = Duration::from_millis(200);

/// The least time between what is told of one peer's silence and the next such report: a link that comes and goes
/// fills no log.
const TELL: Duration = Duration::from_secs(60);

/// Path MTUs there are (RFC 1191 section 7.1, and what common tunnels leave of 1500), largest first. Those behind the
/// [`LIMITS`] only show that small packets pass where larger ones do not.
const PLAIN: [u16; 29] = [
    32_000, 17_914, 9000, 8166, 4464, 4352, 2002, 1500, 1492, 1480, 1476, 1460, 1450, 1440, 1430, 1420, 1410,
    1400, 1380, 1360, 1340, 1320, 1300, 1280, 1006, 626, 508, 400, 296,
];
/// How many of them may be a limit: the last takes the smallest MTU that pods may be told, 576.
const LIMITS: usize = 26;

/// The rounds of a search, each a set of probes: the full size, all twice, and the full size alone, for what is
/// missing in a burst may be missing because of the burst.
const ALL: u8 = 2;
const LONE: u8 = 4;
/// The round after the last.
const OVER: u8 = 5;

/// How often more the largest size is tried among all.
const AGAIN: usize = 4;

/// Most probes that are sent at once: all sizes, the largest, and a small one.
pub const MOST_PROBES: usize = PLAIN.len() + 1 + AGAIN + 1;

/// Probes to be sent now. Each ends with a small one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ask {
    /// A small one.
    Small,
    /// One as large as the path should take before it.
    Full(UnderlayMtu),
    /// One of each plain size up to that before it, and that some more times.
    All(UnderlayMtu),
}

impl Ask {
    /// The sizes of the outer packets of the large ones.
    pub fn sizes(self) -> impl Iterator<Item = UnderlayMtu> {
        let (top, plain) = match self {
            Ask::Small => (None, &[][..]),
            Ask::Full(top) => (Some(top), &[][..]),
            Ask::All(top) => (Some(top), &PLAIN[..]),
        };
        let smaller = plain.iter().copied().map(UnderlayMtu);
        let smaller = smaller.filter(move |size| Some(*size) < top);
        // The largest must not be given up for a loss here and there.
        let again = if plain.is_empty() { 0 } else { AGAIN };
        let again = top.into_iter().cycle().take(again);
        top.into_iter().chain(smaller).chain(again)
    }
}

/// Whether a peer is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reach {
    /// Nothing was ever heard of it.
    #[default]
    Unheard,
    /// It was heard, since then.
    Up(Instant),
    /// It answered once, and no longer does, since then.
    Silent(Instant),
}

/// What becomes of a frame to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admit {
    /// It is sent.
    Send,
    /// It is sent, and its pod is told that the peer may well be gone.
    Doubt,
    /// It is not sent, and its pod is told.
    Refuse,
}

/// Whether a peer answers probes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Answers {
    /// It never has.
    #[default]
    Never,
    /// It does: that none comes means something.
    Yes,
    /// It did, and then it was heard without: that none comes means nothing any more.
    Lapsed,
}

impl Search {
    /// The largest plain size that came back, if most of the smaller ones did too.
    fn limit(&self) -> Option<UnderlayMtu> {
        let back = |at: &usize| self.back >> at & 1 == 1;
        let best = (0..LIMITS).find(back)?;
        let came = (best..PLAIN.len()).filter(back).count();
        let all = PLAIN.len() - best;
        (came * 8 >= all * 7).then_some(UnderlayMtu(PLAIN[best]))
    }
}

impl Reach {
    /// Since when it is so; none before anything was heard.
    pub fn since(self) -> Option<Instant> {
        match self {
            Reach::Unheard => None,
            Reach::Up(at) | Reach::Silent(at) => Some(at),
        }
    }
}

/// What is known of one path by probes.
#[derive(Clone, Copy, Debug)]
pub struct Probes {
    seq: u16,
    /// The last small one: its number, when it was sent, whether it was answered.
    small: u16,
    sent: Option<Instant>,
    answered: bool,
    answers: Answers,
    /// It was heard after a silence without having answered: it is asked with the next frame.
    returned: bool,
    /// Something was heard since the last small one was sent.
    settled: bool,
    missed: u8,
    reach: Reach,
    /// From then on the next frame, or the next large one, is a reason to look.
    look: Instant,
    look_large: Instant,
    /// From then on more than the known limit is tried.
    raise: Instant,
    /// Its place on the node's list of those with a deadline.
    pub place: Option<u16>,
    search: Search,
    /// Which flows have put its silence to the test, and until when they do not again.
    tried: u64,
    tried_until: Instant,
    deaf: Deaf,
    /// When its silence was told of last, and whether its return is still to be.
    told: Option<Instant>,
    told_silent: bool,
    /// The last eight outcomes, newest lowest; how many there are.
    lost: u8,
    known: u8,
    rtt_us: Option<u64>,
}

/// The search for the largest packet.
#[derive(Clone, Copy, Debug, Default)]
struct Search {
    /// Zero when there is none under way.
    round: u8,
    /// What the path should take.
    top: Option<UnderlayMtu>,
    /// What it is asked for now: that, or the known limit.
    goal: Option<UnderlayMtu>,
    /// Number of the first probe since more than the limit was tried.
    first: u16,
    /// Which of the plain sizes came back, by their place.
    back: u32,
    /// When this round's small probe was answered.
    small_at: Option<Instant>,
    /// The kernel does not even send the goal.
    refused: bool,
}

/// What the peer says of hearing this node.
#[derive(Clone, Copy, Debug, Default)]
struct Deaf {
    /// When its last probe came.
    asked: Option<Instant>,
    /// Probes in a row that knew nothing of the answer to the one before, and when the first such answer was.
    times: u8,
    first: Option<Instant>,
}

impl Default for Probes {
    fn default() -> Probes {
        Probes {
            seq: 0,
            small: 0,
            sent: None,
            answered: false,
            answers: Answers::Never,
            returned: false,
            settled: false,
            missed: 0,
            reach: Reach::default(),
            look: Instant::ZERO,
            look_large: Instant::ZERO,
            raise: Instant::ZERO,
            place: None,
            search: Search::default(),
            tried: 0,
            tried_until: Instant::ZERO,
            deaf: Deaf::default(),
            told: None,
            told_silent: false,
            lost: 0,
            known: 0,
            rtt_us: None,
        }
    }
}

impl Probes {
    /// Those of another way to the same peer, of which nothing is known.
    pub fn anew(&self) -> Probes {
        Probes {
            place: self.place,
            ..Probes::default()
        }
    }

    /// Whether a frame with a packet of so many bytes is a reason to [`look`](Probes::look).
    #[inline]
    pub fn is_due(&self, packet: usize, now: Instant) -> bool {
        now >= self.look || (packet > LARGE && now >= self.look_large)
    }

    /// Most probes that a look beside a packet of so many bytes can ask for.
    pub fn most(&self, packet: usize) -> usize {
        match packet > LARGE || self.search.round > 0 {
            true => MOST_PROBES,
            false => 1,
        }
    }

    /// A frame with a packet of so many bytes goes to the peer: what to ask beside it. `heard` is when the peer was
    /// heard last, `top` what the path should take, `limit` what it takes as far as is known.
    pub fn look(
        &mut self,
        packet: usize,
        heard: Option<Instant>,
        top: UnderlayMtu,
        limit: Option<UnderlayMtu>,
        now: Instant,
    ) -> Option<Ask> {
        if self.place.is_some() && self.deadline().is_some_and(|at| at <= now) {
            // The clock's turn comes after what the sockets hold has been read: the answer may be there.
            return None;
        }
        let ask = self.expire(now);
        if ask.is_some() {
            return ask;
        }
        let quiet = heard.is_none_or(|at| now - at >= QUIET);
        let age = self.sent.map(|at| now - at);
        self.look = now + ANSWER;
        if packet > LARGE && now >= self.look_large && self.search.round == 0 {
            self.look_large = now + ROUND;
            // One search at a time, and no answer may be on its way that would be taken for its own.
            let free = self.answered || age.is_some_and(|age| age >= ANSWER);
            if self.answers() && free && !self.is_silent() {
                let confirm = limit.filter(|limit| *limit < top && now < self.raise);
                let goal = confirm.unwrap_or(top);
                self.search = Search {
                    round: 1,
                    top: Some(top),
                    goal: Some(goal),
                    // A larger size may still come back, late.
                    first: match confirm {
                        Some(_) => self.search.first,
                        None => self.seq.wrapping_add(1),
                    },
                    ..Search::default()
                };
                return Some(Ask::Full(goal));
            }
        }
        let answers = self.answers();
        let due = age.is_none_or(|age| age >= EVERY || (answers && quiet && age >= ANSWER));
        (due || self.returned).then_some(Ask::Small)
    }

    /// What was awaited until now did not come: what to ask instead.
    pub fn expire(&mut self, now: Instant) -> Option<Ask> {
        let search = self.search_deadline().is_some_and(|at| now >= at);
        let ask = if search { self.next_round(now) } else { None };
        if ask.is_some() || self.small_deadline().is_none_or(|at| now < at) {
            return ask;
        }
        self.miss(now);
        if self.is_silent() {
            return None;
        }
        // It is counted: the next one does not count it again.
        self.settled = true;
        Some(Ask::Small)
    }

    fn miss(&mut self, now: Instant) {
        self.missed = self.missed.saturating_add(1);
        if self.missed >= MISSES && self.answers() {
            self.reach = Reach::Silent(now);
        }
    }

    /// What becomes of a frame of a flow with this hash. A silence is no proof of death: the first frame of each flow
    /// is sent all the same, and one each 5 s after it; after ten minutes all are.
    pub fn admit(&mut self, flow: u32, now: Instant) -> Admit {
        let Reach::Silent(since) = self.reach else {
            return Admit::Send;
        };
        if now >= self.tried_until {
            (self.tried, self.tried_until) = (0, now + TRIAL);
        }
        let flow = 1 << (flow % TRIALS);
        if self.tried & flow == 0 {
            self.tried |= flow;
            return Admit::Send;
        }
        match now - since >= DOUBT {
            true => Admit::Doubt,
            false => Admit::Refuse,
        }
    }

    /// Another round, or none: the search is over, without a result, or with [`Probes::limit`]'s.
    fn next_round(&mut self, now: Instant) -> Option<Ask> {
        let s = &mut self.search;
        if s.small_at.is_none() {
            // Not even a small one comes back: that says nothing of sizes.
            s.round = 0;
            self.look_large = now + ANSWER;
            return None;
        }
        // What the kernel itself refuses is not lost by chance.
        let last = if s.refused { ALL } else { LONE };
        if s.round + 1 == LONE && s.limit().is_none() {
            s.round = OVER;
        }
        if s.round >= last {
            s.round = OVER;
            return None;
        }
        s.round += 1;
        s.small_at = None;
        match s.round {
            LONE => s.goal.map(Ask::Full),
            _ => s.goal.map(Ask::All),
        }
    }

    /// The outcome of a search that is over: the largest size that came back. Given once. A path that loses this and
    /// that has no limit that could be seen.
    pub fn limit(&mut self, now: Instant) -> Option<UnderlayMtu> {
        if self.search.round != OVER {
            return None;
        }
        self.search.round = 0;
        let limit = self.search.limit();
        if limit.is_some() {
            self.raise = now + EXPIRES;
        }
        self.look_large = now + if limit.is_some() { PROVEN } else { EVERY };
        limit
    }

    /// When [`Probes::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        match (self.search_deadline(), self.small_deadline()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn small_deadline(&self) -> Option<Instant> {
        let waits = !self.settled && self.answers() && !self.is_silent();
        self.sent.filter(|_| waits).map(|at| at + ANSWER)
    }

    fn search_deadline(&self) -> Option<Instant> {
        let sent = self.sent.filter(|_| (1..OVER).contains(&self.search.round))?;
        Some(match self.search.small_at {
            Some(at) => (at + BEHIND).max(sent + ROUND),
            None => sent + ANSWER,
        })
    }

    /// The number of a new small probe. The one before counts as lost if it is not answered yet.
    pub fn next(&mut self, now: Instant) -> u16 {
        if let Some(sent) = self.sent {
            self.lost = self.lost << 1 | u8::from(!self.answered);
            self.known = (self.known + 1).min(8);
            // One that `expire` has not met: asked for by a person.
            if !(self.settled || self.is_silent()) && now - sent > ANSWER {
                self.miss(now);
            }
        }
        self.small = self.next_large();
        self.sent = Some(now);
        self.answered = false;
        self.settled = false;
        self.returned = false;
        self.look = now + ANSWER;
        self.small
    }

    /// The number of a new large probe.
    pub fn next_large(&mut self) -> u16 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    /// When the last small one was sent.
    #[inline]
    pub fn last_sent(&self) -> Option<Instant> {
        self.sent
    }

    /// A reply came: to a small probe, or to a large one of an outer packet of `size`. Gives that size when it is
    /// proven by it.
    pub fn answered(&mut self, seq: u16, size: Option<UnderlayMtu>, now: Instant) -> Option<UnderlayMtu> {
        let Some(size) = size else {
            if let (true, Some(sent), false) = (seq == self.small, self.sent, self.answered) {
                self.answered = true;
                self.rtt_us = Some((now - sent).total_micros());
                self.search.small_at = Some(now);
                if !self.answers() {
                    self.look_large = now;
                }
                self.answers = Answers::Yes;
                self.returned = false;
                // The way there and back works.
                self.deaf.times = 0;
            }
            return None;
        };
        let s = &mut self.search;
        let age = seq.wrapping_sub(s.first);
        if age > self.seq.wrapping_sub(s.first) || Some(size) > s.top {
            return None;
        }
        if let Some(at) = PLAIN.iter().position(|plain| *plain == size.0) {
            s.back |= 1 << at;
        }
        if Some(size) >= s.goal {
            s.round = 0;
            self.look_large = now + PROVEN;
        }
        Some(size)
    }

    /// The kernel refused to send a probe or a frame of this size: nothing larger passes, and what does is to be
    /// found out.
    pub fn refused(&mut self, size: UnderlayMtu, now: Instant) {
        if self.search.round == 0 {
            self.look_large = now;
            self.raise = now;
        }
        self.search.refused |= Some(size) >= self.search.goal;
    }

    /// Whether hearing something of the peer is nothing new.
    #[inline]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// Something came from the peer. Whether it was silent before.
    pub fn heard(&mut self, now: Instant) -> bool {
        if self.settled {
            return false;
        }
        let was_silent = self.is_silent();
        if was_silent && !self.answered {
            self.answers = Answers::Lapsed;
            self.returned = true;
        }
        if was_silent || self.reach == Reach::Unheard {
            self.reach = Reach::Up(now);
            self.look = now;
        }
        self.settled = true;
        self.missed = 0;
        was_silent
    }

    /// A probe of the peer came, that heard this node `heard_ms` ago, or never.
    pub fn told(&mut self, heard_ms: Option<u32>, now: Instant) {
        let d = &mut self.deaf;
        let Some(before) = d.asked else {
            d.asked = Some(now);
            return;
        };
        let gap = now - before;
        if gap < DOUBLE {
            return;
        }
        d.asked = Some(now);
        // The clocks differ, and what was said had to travel.
        let slack = SLACK + Duration::from_micros(gap.total_micros() / 1000);
        let ago = heard_ms.map(|ms| Duration::from_millis(ms.into()));
        if ago.is_some_and(|ago| ago <= gap + slack) {
            d.times = 0;
            return;
        }
        if d.times == 0 {
            d.first = Some(before);
        }
        d.times = d.times.saturating_add(1);
    }

    /// Since when the peer does not hear this node, as it says.
    pub fn deaf(&self) -> Option<Instant> {
        self.deaf.first.filter(|_| self.deaf.times >= MISSES)
    }

    /// Whether it is worth a line in the log that the peer fell silent, or came back: seldom, and whose silence was
    /// told of is told to be back.
    pub fn is_news(&mut self, silent: bool, now: Instant) -> bool {
        let seldom = self.told.is_none_or(|at| now - at >= TELL);
        if silent && (self.told_silent || !seldom) || !silent && !self.told_silent {
            return false;
        }
        self.told = Some(now);
        self.told_silent = silent;
        true
    }

    /// Whether the peer is there.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Whether it has fallen silent.
    #[inline]
    pub fn is_silent(&self) -> bool {
        matches!(self.reach, Reach::Silent(_))
    }

    /// Whether it answers.
    pub fn answers(&self) -> bool {
        self.answers == Answers::Yes
    }

    /// Whether it has ever answered.
    pub fn has_answered(&self) -> bool {
        self.answers != Answers::Never
    }

    /// The last round-trip time, in microseconds.
    pub fn rtt_us(&self) -> Option<u64> {
        self.rtt_us
    }

    /// Lost ones among the last eight whose outcome is known, in percent.
    pub fn loss_percent(&self) -> Option<u8> {
        let mask = u8::MAX.checked_shr(8 - u32::from(self.known)).unwrap_or(0);
        let lost = (self.lost & mask).count_ones() as u8;
        (self.known > 0).then(|| (u16::from(lost) * 100 / u16::from(self.known)) as u8)
    }
}

#[cfg(test)]
mod tests;
