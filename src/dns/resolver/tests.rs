use super::*;
use crate::dns::forward::{MAX_FLIGHTS, MAX_PER_CLIENT};
use crate::dns::zone::PodAddresses;
use hickory_proto::op::MessageType;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, Record};
use proptest::prelude::*;

fn at(ms: i64) -> Instant {
    Instant::from_millis(ms)
}

fn resolver(entries: &[&str]) -> Resolver {
    let gateways = PodAddresses {
        ip4: Some([10, 244, 1, 1].into()),
        ip6: None,
    };
    let subnets = ["10.244.1.0/24".parse().unwrap()];
    let mut zone = Zone::new("pod".parse().unwrap(), &subnets, gateways);
    zone.set_entries(entries.iter().map(|e| e.parse().unwrap()).collect());
    let mut resolver = Resolver::new(zone, Limits::default());
    resolver.set_servers(&["192.0.2.1:53".parse().unwrap()]);
    resolver
}

fn client(n: u16) -> Client {
    Client {
        from: SocketAddr::from(([127, 0, 0, 1 + (n / 100) as u8], n)),
        socket: (0, 0),
        stream: false,
    }
}

fn question(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn ask(r: &mut Resolver, id: u16, name: &str, now: i64) -> (Outcome, Option<Message>) {
    let mut out = Vec::new();
    let mut dice = || 0x0123_4567_89ab_cdef;
    let outcome = r.ask(
        &question(id, name, RecordType::A),
        client(id),
        at(now),
        &mut dice,
        &mut out,
    );
    let message = (!out.is_empty()).then(|| Message::from_vec(&out).unwrap());
    (outcome, message)
}

/// Answer what was sent last, with an address.
fn answer(r: &mut Resolver, now: i64) -> usize {
    let orders: Vec<Order> = r.orders().collect();
    for order in orders {
        if let Order::Send {
            attempt, to, bytes, ..
        } = order
        {
            let asked = Message::from_vec(&bytes).unwrap();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.add_queries(asked.queries.clone());
            let owner = asked.queries[0].name().clone();
            answer.add_answer(Record::from_rdata(owner, 60, RData::A(A::new(10, 9, 8, 7))));
            r.heard(attempt, to, &answer.to_vec().unwrap(), at(now), &mut || 7);
        }
    }
    r.replies().count()
}

#[test]
fn a_record_that_is_added_stands_before_what_was_cached() {
    let mut r = resolver(&[]);
    assert_eq!(ask(&mut r, 1, "db.internal.", 0).0, Outcome::Waits);
    assert_eq!(answer(&mut r, 1), 1);
    let told = ask(&mut r, 2, "DB.internal.", 30_000).1.unwrap();
    assert_eq!(
        (told.answers[0].ttl, told.answers[0].name.to_string().as_str()),
        (31, "DB.internal.")
    );
    r.change_zone(true, |z| {
        z.set_entries(vec!["db.internal 192.0.2.5".parse().unwrap()])
    });
    let told = ask(&mut r, 3, "db.internal.", 30_001).1.unwrap();
    assert_eq!(told.answers[0].data, RData::A(A::new(192, 0, 2, 5)));
    assert!(told.metadata.authoritative);
    r.change_zone(true, |z| z.set_entries(Vec::new()));
    assert_eq!(ask(&mut r, 4, "db.internal.", 30_002).0, Outcome::Waits);
}

#[test]
fn other_resolvers_have_other_answers() {
    let mut r = resolver(&[]);
    ask(&mut r, 1, "a.corp.", 0);
    answer(&mut r, 1);
    assert_eq!(ask(&mut r, 2, "a.corp.", 2).0, Outcome::Answered);
    r.set_servers(&["192.0.2.1:53".parse().unwrap()]);
    assert_eq!(
        ask(&mut r, 3, "a.corp.", 3).0,
        Outcome::Answered,
        "they are the same"
    );
    r.set_servers(&["192.0.2.2:53".parse().unwrap()]);
    assert_eq!(ask(&mut r, 4, "a.corp.", 4).0, Outcome::Waits);
    r.set_servers(&[]);
    let told = ask(&mut r, 5, "b.corp.", 5).1.unwrap();
    assert_eq!(told.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn what_is_the_nodes_is_never_asked_of_others() {
    let mut r = resolver(&["x.internal y.internal"]);
    for name in [
        "a.default.pod.",
        "pod.",
        "a.podwire.internal.",
        "9.1.244.10.in-addr.arpa.",
        "PoD.",
    ] {
        assert_eq!(ask(&mut r, 1, name, 0).0, Outcome::Answered, "{name}");
    }
    assert!(!r.has_orders());
    assert_eq!(
        ask(&mut r, 1, "x.internal.", 0).0,
        Outcome::Waits,
        "this alias leads out"
    );
    assert_eq!(answer(&mut r, 1), 1);
    let told = ask(&mut r, 2, "x.internal.", 20_000).1.unwrap();
    let ttls: Vec<u32> = told.answers.iter().map(|a| a.ttl).collect();
    assert_eq!(ttls, [5, 41]);
}

proptest! {
    /// Every message is answered, waits, or is counted as dropped; the tables stay within their bounds.
    #[test]
    fn every_message_is_accounted_for(
        steps in prop::collection::vec((0u16..400, 0u8..5, prop::collection::vec(any::<u8>(), 0..40)), 1..300)
    ) {
        let mut r = resolver(&["www.internal out.example"]);
        let (mut now, mut waits, mut asked) = (0, 0, 0);
        for (n, what, junk) in steps {
            let bytes = match what {
                0 => junk,
                1 => question(n, "www.internal.", RecordType::A),
                2 => [question(n, "a.example.", RecordType::A), junk].concat(),
                3 => question(n, &format!("n{n}.example."), RecordType::TXT),
                _ => question(n, &format!("n{n}.default.pod."), RecordType::ANY),
            };
            let mut out = Vec::new();
            let outcome = r.ask(&bytes, client(n), at(now), &mut || u64::from(n), &mut out);
            prop_assert_eq!(outcome == Outcome::Answered, !out.is_empty());
            asked += 1;
            waits += u64::from(outcome == Outcome::Waits);
            if n % 7 == 0 {
                waits -= answer(&mut r, now) as u64;
            }
            now += i64::from(n % 50);
            while r.deadline().is_some_and(|d| d <= at(now)) {
                r.on_time(at(now), &mut || 3);
                waits -= r.replies().count() as u64;
            }
            let c = r.counters();
            let answered: u64 = AnswerKind::ALL.iter().map(|k| c.answers(*k)).sum();
            let dropped: u64 = [DnsDrop::Short, DnsDrop::Response, DnsDrop::Again].iter().map(|d| c.drops(*d)).sum();
            prop_assert_eq!(c.messages_udp, asked);
            prop_assert_eq!(answered + dropped + waits, asked);
            prop_assert!(r.forward().len() <= MAX_FLIGHTS.min(4 * MAX_PER_CLIENT));
        }
    }
}

/// CVE-2024-29018 (Moby): questions of containers on internal networks left by the host's resolver.
#[test]
fn who_has_no_way_out_has_none_by_questions() {
    let mut r = resolver(&["in.internal 192.0.2.9"]);
    r.isolate("127.88.0.0/16".parse().unwrap());
    // Others may, and what they were told is no news for who may not.
    assert_eq!(ask(&mut r, 1, "a.example.", 0).0, Outcome::Waits);
    assert_eq!(answer(&mut r, 10), 1);
    // Its socket is to be closed.
    let _ = r.orders().count();
    let mut out = Vec::new();
    for (name, code) in [
        ("a.example.", ResponseCode::Refused),
        ("b.example.", ResponseCode::Refused),
        ("in.internal.", ResponseCode::NoError),
    ] {
        out.clear();
        let pod = Client {
            from: "127.88.0.3:999".parse().unwrap(),
            ..client(1)
        };
        let bytes = question(7, name, RecordType::A);
        let outcome = r.ask(&bytes, pod, at(20), &mut || 4, &mut out);
        assert_eq!(outcome, Outcome::Answered);
        assert_eq!(
            Message::from_vec(&out).unwrap().metadata.response_code,
            code,
            "{name}"
        );
    }
    assert!(!r.has_orders());
}
