//! What a pod asks, what a resolver says, and what stands in resolv.conf: a whole `Resolver` with a cache, names of
//! its own and a question under way. Every message of a client is answered, waits or is counted; every answer is one
//! that others can read, is to its question, and fits; nothing but the answer to the question ends it.

use super::input::Input;
use hickory_proto::op::Message;
use podwire::dns::cache::Limits;
use podwire::dns::counters::{AnswerKind, DnsDrop};
use podwire::dns::entry::Entry;
use podwire::dns::forward::{Client, MAX_FLIGHTS, Order};
use podwire::dns::message::Question;
use podwire::dns::resolv::ResolvConf;
use podwire::dns::resolver::{Outcome, Resolver};
use podwire::dns::zone::{PodAddresses, Zone};
use podwire::model::Instant;
use std::net::SocketAddr;

/// `[what, u8] [length, u8] [bytes]` until the end: a question over UDP or TCP, an answer to what was sent last (raw,
/// or with identifier and question made right), a failure, time, a record, a resolv.conf.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut lab = Lab::new();
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        let what = input.u8();
        let len = usize::from(input.u8());
        let bytes = input.bytes(len).to_vec();
        match what & 7 {
            0 | 1 => lab.ask(&bytes, what & 1 == 1),
            2 => lab.answer(&bytes, false),
            3 | 4 => lab.answer(&bytes, true),
            5 => lab.fail(),
            6 => lab.pass(i64::from(what >> 3) * 100),
            _ => text(&bytes, &mut lab),
        }
        lab.check();
    }
    lab.pass(5000);
    assert_eq!(
        (lab.waits, lab.resolver.forward().len()),
        (0, 0),
        "somebody waits for ever"
    );
}

struct Lab {
    resolver: Resolver,
    now: i64,
    asked: u64,
    waits: u64,
    sent: Vec<(podwire::dns::forward::Attempt, SocketAddr, Vec<u8>)>,
    dice: u64,
}

impl Lab {
    fn new() -> Lab {
        let gateways = PodAddresses {
            ip4: Some([10, 244, 1, 1].into()),
            ip6: None,
        };
        let domain = "pod".parse().expect("a name");
        let mut zone = Zone::new(domain, &["10.244.1.0/24".parse().expect("a subnet")], gateways);
        let web = "shop/web-0".parse().expect("a pod");
        zone.set_pod(&web, Some(gateways));
        let entries = ["www.x a.example", "s.x SRV 1 2 3 web-0.shop.pod"];
        zone.set_entries(entries.iter().map(|e| e.parse().expect("an entry")).collect());
        let limits = Limits {
            answers: 4,
            bytes: 4096,
        };
        let mut resolver = Resolver::new(zone, limits);
        resolver.set_servers(&["192.0.2.1:53", "192.0.2.2:53"].map(|s| s.parse().expect("an address")));
        Lab {
            resolver,
            now: 0,
            asked: 0,
            waits: 0,
            sent: Vec::new(),
            dice: 1,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_millis(self.now)
    }

    fn ask(&mut self, bytes: &[u8], stream: bool) {
        let client = Client {
            from: SocketAddr::from(([127, 0, 0, 1], 1000)),
            socket: (0, 0),
            stream,
        };
        let (now, dice) = (self.now(), &mut self.dice);
        let mut out = Vec::new();
        let outcome = self
            .resolver
            .ask(bytes, client, now, &mut || roll(dice), &mut out);
        self.asked += 1;
        match outcome {
            Outcome::Answered => is_answer(bytes, stream, &out),
            Outcome::Waits => self.waits += 1,
            Outcome::Dropped => assert!(out.is_empty()),
        }
    }

    fn answer(&mut self, bytes: &[u8], right: bool) {
        let Some((attempt, to, asked)) = self.sent.last().cloned() else {
            return;
        };
        let mut bytes = bytes.to_vec();
        if right {
            // Header and question of what was asked, as an answer; the counts of records are the input's.
            let question = 12
                + Message::from_vec(&asked).expect("podwire asks properly").queries[0]
                    .name()
                    .len()
                + 5;
            let question = question.min(asked.len());
            let counts = bytes.drain(..bytes.len().min(8)).collect::<Vec<u8>>();
            let mut whole = asked[..question].to_vec();
            whole[2] |= 0x80;
            for (i, byte) in counts.iter().take(2).enumerate() {
                whole[2 + i] = (*byte & 0x87) | if i == 0 { 0x80 } else { 0 };
            }
            for (i, byte) in counts.iter().skip(2).take(3).enumerate() {
                whole[6 + 2 * i..8 + 2 * i].copy_from_slice(&[0, *byte & 7]);
            }
            whole.extend(bytes);
            bytes = whole;
        }
        let (now, dice) = (self.now(), &mut self.dice);
        self.resolver.heard(attempt, to, &bytes, now, &mut || roll(dice));
    }

    fn fail(&mut self) {
        if let Some((attempt, ..)) = self.sent.pop() {
            let (now, dice) = (self.now(), &mut self.dice);
            self.resolver.failed(attempt, now, &mut || roll(dice));
        }
    }

    fn pass(&mut self, ms: i64) {
        let end = self.now + ms;
        while let Some(due) = self
            .resolver
            .deadline()
            .filter(|d| *d <= Instant::from_millis(end))
        {
            let dice = &mut self.dice;
            self.resolver.on_time(due, &mut || roll(dice));
            assert!(self.resolver.deadline() != Some(due), "time stands still");
        }
        self.now = end;
        self.check();
    }

    fn check(&mut self) {
        for reply in self.resolver.replies() {
            self.waits -= 1;
            Message::from_vec(&reply.bytes).expect("others can read it");
        }
        for order in self.resolver.orders() {
            if let Order::Send {
                attempt, to, bytes, ..
            } = order
            {
                Message::from_vec(&bytes).expect("others can read it");
                self.sent.push((attempt, to, bytes));
            }
        }
        let c = self.resolver.counters();
        let answered: u64 = AnswerKind::ALL.iter().map(|k| c.answers(*k)).sum();
        let dropped = [DnsDrop::Short, DnsDrop::Response, DnsDrop::Again];
        let dropped: u64 = dropped.iter().map(|d| c.drops(*d)).sum();
        assert_eq!(answered + dropped + self.waits, self.asked);
        let cache = self.resolver.cache();
        assert!(cache.len() <= 4 && cache.bytes() <= 4096);
        assert!(self.resolver.forward().len() <= MAX_FLIGHTS);
    }
}

fn roll(dice: &mut u64) -> u64 {
    *dice = dice
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *dice >> 16
}

fn is_answer(asked: &[u8], stream: bool, out: &[u8]) {
    let answer = Message::from_vec(out).expect("others can read it");
    assert_eq!(answer.metadata.id.to_be_bytes(), asked[..2]);
    assert!(out[2] & 0x80 != 0);
    if let Ok(question) = Question::read(asked) {
        assert!(out.len() <= question.limit(stream));
        assert_eq!(out[12..12 + question.name().len()], *question.name());
        assert_eq!(answer.edns.is_some(), question.edns.is_some());
    }
}

fn text(bytes: &[u8], lab: &mut Lab) {
    let text = String::from_utf8_lossy(bytes);
    let conf = ResolvConf::parse(&text, |_| Some(1));
    assert!(conf.search.len() <= 32);
    match text.parse::<Entry>() {
        Ok(entry) => {
            let said = entry.to_string();
            assert_eq!(said.parse::<Entry>().as_ref(), Ok(&entry), "{said}");
            lab.resolver
                .change_zone(true, |zone| zone.set_entries(vec![entry]));
        }
        Err(e) => {
            let told = e.to_string();
            assert!(
                told.len() < 1200 && !told.chars().any(char::is_control),
                "{told:?}"
            );
        }
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<super::seeds::Seed> {
    let step = |what: u8, bytes: &[u8]| [&[what, bytes.len() as u8][..], bytes].concat();
    let name = |text: &str| -> Vec<u8> {
        let labels = text.split('.').map(|l| [&[l.len() as u8], l.as_bytes()].concat());
        [labels.collect::<Vec<_>>().concat(), vec![0]].concat()
    };
    let ask = |text: &str, kind: u8, additionals: &[u8]| {
        let head = [
            0x12,
            0x34,
            1,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            u8::from(!additionals.is_empty()),
        ];
        [&head[..], &name(text), &[0, kind, 0, 1], additionals].concat()
    };
    let edns = [0, 0, 41, 16, 0, 0, 0, 0x80, 0, 0, 0];
    let a = ask("a.example", 1, &edns);
    // Flags, counts of records, and records.
    let address = [
        &[0x80, 0x80, 1, 0, 0, 0, 0, 0][..],
        &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1],
    ]
    .concat();
    let soa = [
        &name("ns.example")[..],
        &name("h.example"),
        &[0; 16],
        &[0, 0, 0, 30],
    ]
    .concat();
    let denied = [
        &[
            0x80,
            0x83,
            0,
            1,
            0,
            0,
            0,
            0,
            0xc0,
            14,
            0,
            6,
            0,
            1,
            0,
            0,
            2,
            88,
            0,
            soa.len() as u8,
        ][..],
        &soa,
    ]
    .concat();
    let looped = [
        0x80, 0x80, 1, 0, 0, 0, 0, 0, 0xc0, 27, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4,
    ];
    let all = |steps: &[Vec<u8>]| steps.concat();
    vec![
        (
            "answered-and-cached",
            all(&[step(0, &a), step(3, &address), step(0, &a), step(1, &a)]),
        ),
        ("denied", all(&[step(0, &a), step(3, &denied), step(0, &a)])),
        (
            "truncated",
            all(&[step(0, &a), step(3, &[0x82, 0x80]), step(3, &address)]),
        ),
        ("loop-of-names", all(&[step(0, &a), step(3, &looped)])),
        (
            "refused-twice",
            all(&[step(0, &a), step(3, &[0x80, 0x85]), step(3, &[0x80, 0x85])]),
        ),
        (
            "no-edns",
            all(&[step(0, &a), step(3, &[0x80, 0x81]), step(4, &address)]),
        ),
        (
            "silent",
            all(&[step(0, &a), step(0xf6, &[]), step(0xf6, &[]), step(3, &address)]),
        ),
        ("failed", all(&[step(0, &a), step(5, &[]), step(5, &[])])),
        (
            "own-names",
            all(&[
                step(0, &ask("web-0.shop.pod", 1, &[])),
                step(1, &ask("no.pod", 28, &edns)),
            ]),
        ),
        (
            "set",
            all(&[
                step(0, &ask("web-0.web.shop.pod", 255, &[])),
                step(0, &ask("web.shop.pod", 1, &[])),
            ]),
        ),
        (
            "alias",
            all(&[
                step(0, &ask("www.x", 1, &[])),
                step(3, &address),
                step(1, &ask("www.x", 1, &edns)),
            ]),
        ),
        ("service", step(0, &ask("s.x", 33, &edns))),
        ("address", step(0, &ask("1.1.244.10.in-addr.arpa", 12, &[]))),
        ("raw", all(&[step(0, &a), step(2, &a)])),
        (
            "record",
            all(&[
                step(7, b"db.internal SRV 1 2 3 x.internal"),
                step(0, &ask("db.internal", 33, &[])),
            ]),
        ),
        ("text", step(7, b"t.x TXT \"a b\"")),
        (
            "resolv-conf",
            step(
                7,
                b"search a.b c\nnameserver fe80::1%eth0\nnameserver 192.0.2.1 # x\n",
            ),
        ),
    ]
}
