use super::*;
use hickory_proto::op::{OpCode, Query};
use hickory_proto::rr::rdata::{A, CNAME, SOA, TXT};
use hickory_proto::rr::{Name, Record, RecordType};
use proptest::prelude::*;

fn message(answers: &[(u32, RData)]) -> Message {
    let name = Name::from_ascii("a.example.").unwrap();
    let mut message = Message::response(1, OpCode::Query);
    message.add_query(Query::query(name.clone(), RecordType::A));
    for (ttl, data) in answers {
        message.add_answer(Record::from_rdata(name.clone(), *ttl, data.clone()));
    }
    message
}

fn answer(text: usize) -> Answer {
    Answer::of(message(&[(9, RData::TXT(TXT::new(vec!["x".repeat(text)])))])).unwrap()
}

fn at(s: u64) -> Instant {
    Instant::from_micros(s as i64 * 1_000_000)
}

#[derive(Clone, Debug)]
enum Step {
    Keep(u8, usize, u64),
    Find(u8),
    Pass(u64),
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..24, 0usize..250, 0u64..20).prop_map(|(k, n, ttl)| Step::Keep(k, n, ttl)),
        6 => (0u8..24).prop_map(Step::Find),
        2 => (0u64..8).prop_map(Step::Pass),
        1 => Just(Step::Clear),
    ]
}

proptest! {
    /// Against a table that keeps everything: what is found is right, and within the limits all is found.
    #[test]
    fn the_cache_is_a_bounded_table(steps in prop::collection::vec(step(), 1..200), small: bool) {
        let limits = if small { Limits { answers: 7, bytes: 3000 } } else { Limits::default() };
        let mut cache = Cache::new(limits);
        let mut model: HashMap<u8, (usize, u64, u64)> = HashMap::new();
        let mut now = 0;
        for step in steps {
            match step {
                Step::Keep(k, n, ttl) => {
                    cache.keep(&[k], answer(n), Duration::from_secs(ttl), at(now));
                    model.insert(k, (n, now, now + ttl));
                }
                Step::Find(k) => {
                    let found = cache.find(&[k], at(now)).map(|(a, age)| (a.clone(), u64::from(age)));
                    let known = model.get(&k).filter(|m| now < m.2);
                    match (found, known) {
                        (Some((a, age)), Some((n, since, _))) => {
                            prop_assert_eq!(a, answer(*n));
                            prop_assert_eq!(age, now - since);
                        }
                        (None, None) => {}
                        (None, Some(_)) => prop_assert!(small, "it was dropped with room left"),
                        (Some(_), None) => prop_assert!(false, "it was found after its time"),
                    }
                }
                Step::Pass(s) => now += s,
                Step::Clear => {
                    cache.clear();
                    model.clear();
                }
            }
            prop_assert!(cache.len() <= limits.answers && cache.bytes() <= limits.bytes);
            prop_assert_eq!(cache.len(), cache.places.len());
            let sizes: usize = cache.kept.iter().map(Kept::size).sum();
            prop_assert_eq!(cache.bytes(), sizes);
            for (key, place) in &cache.places {
                prop_assert_eq!(key, &cache.kept[*place].key);
            }
        }
    }
}

#[test]
fn what_is_asked_for_stays() {
    let mut cache = Cache::new(Limits {
        answers: 10,
        bytes: 1 << 20,
    });
    for k in 0..10 {
        cache.keep(&[k], answer(1), Duration::from_secs(60), at(0));
    }
    for k in 10..100u8 {
        assert!(cache.find(&[3], at(1)).is_some(), "before {k}");
        cache.keep(&[k], answer(1), Duration::from_secs(60), at(1));
    }
    assert_eq!((cache.len(), cache.evicted()), (10, 90));
}

#[test]
fn answers_live_as_long_as_they_may() {
    let soa = |ttl: u32, minimum: u32| {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, minimum);
        Record::from_rdata(name, ttl, RData::SOA(soa))
    };
    let a = |ttl| (ttl, RData::A(A::new(1, 2, 3, 4)));
    let lives = |mut message: Message| (bound(&mut message).secs(), message);
    assert_eq!(lives(message(&[a(60), a(30)])).0, 30);
    assert_eq!(lives(message(&[a(0)])).0, 0);
    let (seconds, bounded) = lives(message(&[a(1 << 30)]));
    assert_eq!((seconds, bounded.answers[0].ttl), (MAX_TTL.into(), MAX_TTL));
    // "A negative time" is none.
    assert_eq!(lives(message(&[a(u32::MAX)])).0, 0);
    let negative = |code, ttl, minimum| {
        let mut message = message(&[]);
        message.metadata.response_code = code;
        message.add_authority(soa(ttl, minimum));
        message
    };
    for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
        for (ttl, minimum, seconds) in [
            (600, 30, 30),
            (20, 300, 20),
            (99_999, 99_999, MAX_NEGATIVE),
            (60, 0, 0),
        ] {
            let (lived, told) = lives(negative(code, ttl, minimum));
            assert_eq!(lived, u64::from(seconds));
            assert_eq!(told.authorities[0].ttl, seconds, "it is told as it is kept");
        }
        let mut nobody_knows = message(&[]);
        nobody_knows.metadata.response_code = code;
        assert_eq!(lives(nobody_knows).0, 0);
    }
    assert_eq!(lives(negative(ResponseCode::ServFail, 60, 60)).0, 0);
    // An alias that leads to nothing.
    let mut alias = message(&[(500, RData::CNAME(CNAME(Name::from_ascii("b.example.").unwrap())))]);
    alias.metadata.response_code = ResponseCode::NXDomain;
    assert_eq!(lives(alias.clone()).0, 0);
    alias.add_authority(soa(600, 40));
    assert_eq!(lives(alias).0, 40);
}
