use super::*;
use hickory_proto::op::OpCode;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, RecordType};
use proptest::prelude::*;

const NAME: &str = "www.some-name.example.";

fn at(ms: i64) -> Instant {
    Instant::from_millis(ms)
}

fn server(n: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, n], 53))
}

/// Random numbers that repeat with each test.
fn dice() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn query(name: &str, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let name = hickory_proto::rr::Name::from_ascii(name).unwrap();
    message.add_query(hickory_proto::op::Query::query(name, RecordType::A));
    message.to_vec().unwrap()
}

fn ask(
    f: &mut Forward,
    name: &str,
    client: u8,
    id: u16,
    now: Instant,
    random: &mut dyn FnMut() -> u64,
) -> Result<(), Grounded> {
    let bytes = query(name, id);
    let question = Question::read(&bytes).unwrap();
    let mut space = [0; 260];
    let key = question.key(&mut space).to_vec();
    let waiter = Waiter {
        client: Client {
            from: SocketAddr::from(([127, 0, 0, client], id)),
            socket: (0, 0),
            stream: false,
        },
        question: question.to_owned(),
        aliases: Vec::new(),
    };
    f.ask(&key, &key[..key.len() - 1], waiter, now, random)
}

/// The only order: attempt, resolver, whether over TCP, and the message.
fn sent(f: &mut Forward) -> (Attempt, SocketAddr, bool, Vec<u8>) {
    let mut orders: Vec<Order> = f.orders().collect();
    assert_eq!(orders.len(), 1, "{orders:?}");
    match orders.remove(0) {
        Order::Send {
            attempt,
            to,
            stream,
            bytes,
        } => (attempt, to, stream, bytes),
        order => panic!("{order:?}"),
    }
}

/// An answer to what was sent.
fn reply(bytes: &[u8], change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let asked = Message::from_vec(bytes).unwrap();
    let mut answer = Message::response(asked.metadata.id, OpCode::Query);
    answer.add_queries(asked.queries.clone());
    let owner = asked.queries[0].name().clone();
    answer.add_answer(Record::from_rdata(owner, 60, RData::A(A::new(10, 0, 0, 1))));
    change(&mut answer);
    answer.to_vec().unwrap()
}

fn landed(f: &mut Forward) -> (Option<ResponseCode>, usize) {
    let mut all: Vec<Landed> = f.landed().collect();
    assert_eq!(all.len(), 1);
    let one = all.remove(0);
    (one.message.map(|m| m.metadata.response_code), one.waiters.len())
}

fn fresh(servers: u8) -> Forward {
    let mut f = Forward::default();
    let all: Vec<SocketAddr> = (1..=servers).map(server).collect();
    f.set_servers(&all);
    f
}

#[test]
fn those_who_ask_the_same_share_one_question() {
    let (mut f, mut r) = (fresh(1), dice());
    ask(&mut f, NAME, 1, 1, at(0), &mut r).unwrap();
    let (attempt, to, stream, bytes) = sent(&mut f);
    assert_eq!((to, stream), (server(1), false));
    ask(&mut f, &NAME.to_uppercase(), 2, 2, at(1), &mut r).unwrap();
    assert_eq!(ask(&mut f, NAME, 2, 2, at(1), &mut r), Err(Grounded::Again));
    assert_eq!((f.orders().count(), f.len()), (0, 1));
    assert_eq!(
        f.heard(attempt, server(1), &reply(&bytes, |_| {}), at(5), &mut r),
        Heard::Landed
    );
    assert_eq!(landed(&mut f), (Some(ResponseCode::NoError), 2));
    assert_eq!((f.len(), f.deadline(), f.clients.len()), (0, None, 0));
    // It has landed: what comes later is nothing, also when another has its place.
    ask(&mut f, NAME, 1, 3, at(6), &mut r).unwrap();
    assert_eq!(
        f.heard(attempt, server(1), &reply(&bytes, |_| {}), at(7), &mut r),
        Heard::Ignored
    );
    assert_eq!(f.len(), 1);
}

#[test]
fn forged_answers_are_not_heard() {
    let (mut f, mut r) = (fresh(1), dice());
    ask(&mut f, NAME, 1, 1, at(0), &mut r).unwrap();
    let (attempt, _, _, bytes) = sent(&mut f);
    let right = reply(&bytes, |_| {});
    let wrong_name = hickory_proto::rr::Name::from_ascii("www.same-name.example.").unwrap();
    let forged = [
        reply(&bytes, |m| m.metadata.id = m.metadata.id.wrapping_add(1)),
        reply(&bytes, |m| m.metadata.message_type = MessageType::Query),
        reply(&bytes, |m| m.metadata.op_code = OpCode::Notify),
        reply(&bytes, |m| {
            m.queries[0].set_name(wrong_name);
        }),
        reply(&bytes, |m| {
            m.queries[0].set_query_type(RecordType::MX);
        }),
        reply(&bytes, |m| m.queries.clear()),
        reply(&bytes, |m| {
            let twice = m.queries[0].clone();
            m.add_query(twice);
        }),
        right[..right.len().min(16)].to_vec(),
        Vec::new(),
    ];
    for bad in &forged {
        assert_eq!(
            f.heard(attempt, server(1), bad, at(1), &mut r),
            Heard::Ignored,
            "{bad:?}"
        );
    }
    // From somebody else; for an attempt that was never made.
    assert_eq!(f.heard(attempt, server(2), &right, at(1), &mut r), Heard::Ignored);
    let other = SocketAddr::new(server(1).ip(), 54);
    assert_eq!(f.heard(attempt, other, &right, at(1), &mut r), Heard::Ignored);
    let none = Attempt { number: 3, ..attempt };
    assert_eq!(f.heard(none, server(1), &right, at(1), &mut r), Heard::Ignored);
    assert_eq!((f.counts().ignored, f.orders().count(), f.len()), (11, 0, 1));
    assert_eq!(f.heard(attempt, server(1), &right, at(2), &mut r), Heard::Landed);
}

#[test]
fn a_spelling_that_does_not_come_back_is_asked_over_tcp() {
    let (mut f, mut r) = (fresh(1), dice());
    ask(&mut f, NAME, 1, 1, at(0), &mut r).unwrap();
    let (attempt, _, _, bytes) = sent(&mut f);
    let spelled = Message::from_vec(&bytes).unwrap().queries[0].name().clone();
    assert!(!spelled.eq_case(&spelled.to_lowercase()), "{spelled}");
    let lower = reply(&bytes, |m| {
        m.queries[0].set_name(spelled.to_lowercase());
    });
    assert_eq!(f.heard(attempt, server(1), &lower, at(1), &mut r), Heard::GoesOn);
    let (second, to, stream, bytes2) = sent(&mut f);
    assert_eq!((to, stream), (server(1), true));
    // Many more of the kind are no reason for many more connections.
    assert_eq!(f.heard(attempt, server(1), &lower, at(1), &mut r), Heard::GoesOn);
    assert_eq!(f.orders().count(), 0);
    assert_eq!(
        f.heard(second, server(1), &reply(&bytes2, |_| {}), at(2), &mut r),
        Heard::Landed
    );
    // What is passed on is not spelled at random.
    let message = f.landed().next().unwrap().message.unwrap();
    assert!(message.queries[0].name().eq_case(&spelled.to_lowercase()));
    assert!(message.answers[0].name.eq_case(&spelled.to_lowercase()));
}

#[test]
fn truncated_goes_to_tcp_and_no_edns_to_plain() {
    let (mut f, mut r) = (fresh(1), dice());
    ask(&mut f, NAME, 1, 1, at(0), &mut r).unwrap();
    let (attempt, _, _, bytes) = sent(&mut f);
    assert!(Message::from_vec(&bytes).unwrap().edns.is_some());
    let refusal = Message::error_msg(
        Message::from_vec(&bytes).unwrap().metadata.id,
        OpCode::Query,
        ResponseCode::FormErr,
    );
    assert_eq!(
        f.heard(attempt, server(1), &refusal.to_vec().unwrap(), at(1), &mut r),
        Heard::GoesOn
    );
    let (attempt, _, stream, bytes) = sent(&mut f);
    assert!(!stream && Message::from_vec(&bytes).unwrap().edns.is_none());
    let cut = reply(&bytes, |m| m.metadata.truncation = true);
    assert_eq!(f.heard(attempt, server(1), &cut, at(2), &mut r), Heard::GoesOn);
    let (attempt, _, stream, bytes) = sent(&mut f);
    assert!(stream);
    // TCP cannot be truncated: that is a failure, and there is nobody else.
    let cut = reply(&bytes, |m| m.metadata.truncation = true);
    assert_eq!(f.heard(attempt, server(1), &cut, at(3), &mut r), Heard::Landed);
    assert_eq!(landed(&mut f), (None, 1));
}

#[test]
fn silence_leads_to_the_next_and_to_an_end() {
    let (mut f, mut r) = (fresh(2), dice());
    ask(&mut f, NAME, 1, 1, at(0), &mut r).unwrap();
    let (first, _, _, bytes) = sent(&mut f);
    assert_eq!(f.deadline(), Some(at(1000)));
    f.on_time(at(999), &mut r);
    assert_eq!(f.orders().count(), 0);
    f.on_time(at(1000), &mut r);
    assert_eq!(sent(&mut f).1, server(2));
    f.on_time(at(2000), &mut r);
    assert_eq!(sent(&mut f).1, server(1));
    // The first one was only slow.
    assert_eq!(
        f.heard(first, server(1), &reply(&bytes, |_| {}), at(2100), &mut r),
        Heard::Landed
    );
    assert_eq!(landed(&mut f), (Some(ResponseCode::NoError), 1));
    assert!(matches!(f.orders().next(), Some(Order::Close { .. })));
    // The second was silent last: it comes after the first.
    ask(&mut f, NAME, 1, 2, at(3000), &mut r).unwrap();
    assert_eq!(sent(&mut f).1, server(1));
    for ms in (4000..7500).step_by(500) {
        f.on_time(at(ms), &mut r);
    }
    assert!(f.orders().count() >= 2 && f.landed().count() == 0);
    f.on_time(at(7500), &mut r);
    assert_eq!(landed(&mut f), (None, 1));
    assert!(
        f.servers()
            .iter()
            .all(|s| s.is_silent(at(7500)) && !s.is_silent(at(20_000)))
    );
}

#[test]
fn a_refusal_is_told_when_nobody_does_better() {
    let (mut f, mut r) = (fresh(2), dice());
    let refused = |bytes: &[u8]| reply(bytes, |m| m.metadata.response_code = ResponseCode::Refused);
    ask(&mut f, NAME, 1, 1, at(0), &mut r).unwrap();
    let (attempt, _, _, bytes) = sent(&mut f);
    assert_eq!(
        f.heard(attempt, server(1), &refused(&bytes), at(1), &mut r),
        Heard::GoesOn
    );
    let (attempt, to, _, bytes) = sent(&mut f);
    assert_eq!(to, server(2));
    assert_eq!(
        f.heard(attempt, server(2), &refused(&bytes), at(2), &mut r),
        Heard::Landed
    );
    assert_eq!(landed(&mut f), (Some(ResponseCode::Refused), 1));
    f.orders().for_each(drop);
    ask(&mut f, NAME, 1, 1, at(3), &mut r).unwrap();
    let (attempt, ..) = sent(&mut f);
    assert_eq!(f.failed(attempt, at(4), &mut r), Heard::GoesOn);
    assert_eq!(
        f.failed(attempt, at(4), &mut r),
        Heard::Ignored,
        "it failed already"
    );
    let (attempt, _, _, bytes) = sent(&mut f);
    assert_eq!(
        f.heard(attempt, server(2), &reply(&bytes, |_| {}), at(5), &mut r),
        Heard::Landed
    );
    assert_eq!(landed(&mut f), (Some(ResponseCode::NoError), 1));
}

#[test]
fn every_number_has_a_limit() {
    let (mut f, mut r) = (fresh(1), dice());
    let name = |i: usize| format!("n{i}.example.");
    for i in 0..MAX_PER_CLIENT {
        ask(&mut f, &name(i), 1, 1, at(0), &mut r).unwrap();
    }
    assert_eq!(
        ask(&mut f, &name(9999), 1, 1, at(0), &mut r),
        Err(Grounded::ClientFull)
    );
    // What others ask already may be waited for all the same.
    ask(&mut f, &name(0), 1, 2, at(0), &mut r).unwrap();
    for id in 3..=MAX_WAITERS as u16 {
        ask(&mut f, &name(0), 2, id, at(0), &mut r).unwrap();
    }
    assert_eq!(
        ask(&mut f, &name(0), 2, 999, at(0), &mut r),
        Err(Grounded::Crowded)
    );
    for i in MAX_PER_CLIENT..MAX_FLIGHTS {
        ask(&mut f, &name(i), 2 + (i / MAX_PER_CLIENT) as u8, 1, at(0), &mut r).unwrap();
    }
    assert_eq!(
        ask(&mut f, &name(9999), 99, 1, at(0), &mut r),
        Err(Grounded::Full)
    );
    for ms in (0..=4500).step_by(100) {
        f.on_time(at(ms), &mut r);
    }
    assert_eq!(f.landed().count(), MAX_FLIGHTS);
    assert_eq!(
        (f.len(), f.due.len(), f.clients.len(), f.places.len()),
        (0, 0, 0, MAX_FLIGHTS)
    );
    assert_eq!(
        Forward::default().ask(&[0], &[0], waiter_of_nobody(), at(0), &mut r),
        Err(Grounded::NoServer)
    );
}

fn waiter_of_nobody() -> Waiter {
    let bytes = query("a.", 1);
    Waiter {
        client: Client {
            from: server(1),
            socket: (0, 0),
            stream: false,
        },
        question: Question::read(&bytes).unwrap().to_owned(),
        aliases: Vec::new(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u8, u8, u16),
    /// Answer to the order of this number, spoilt at this place with this.
    Reply(usize, Option<(usize, u8)>),
    Code(usize, u8),
    Fail(usize),
    Pass(i64),
    Servers(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u8..6, 1u8..4, 0u16..4).prop_map(|(n, c, id)| Step::Ask(n, c, id)),
        (any::<usize>(), prop::option::of((0usize..80, any::<u8>()))).prop_map(|(i, s)| Step::Reply(i, s)),
        (any::<usize>(), 0u8..16).prop_map(|(i, c)| Step::Code(i, c)),
        any::<usize>().prop_map(Step::Fail),
        (0i64..1500).prop_map(Step::Pass),
        (0u8..4).prop_map(Step::Servers),
    ]
}

proptest! {
    /// Whatever happens, in whatever order: who waits is told once, in time, and nothing is left behind.
    #[test]
    fn everybody_is_told_once_and_in_time(steps in prop::collection::vec(step(), 1..120)) {
        let (mut f, mut r) = (fresh(2), dice());
        let mut now = 0;
        let mut waiting: HashMap<(SocketAddr, u16), i64> = HashMap::new();
        let mut sent: Vec<(Attempt, SocketAddr, Vec<u8>)> = Vec::new();
        let last = [Step::Pass(4500)];
        for step in steps.into_iter().chain(last) {
            match step {
                Step::Ask(n, client, id) => {
                    let from = SocketAddr::from(([127, 0, 0, client], id));
                    let name = format!("{}.example.", char::from(b'a' + n));
                    let id = u16::from(n) << 8 | id;
                    let from = SocketAddr::new(from.ip(), id);
                    if ask(&mut f, &name, client, id, at(now), &mut r).is_ok() {
                        prop_assert!(waiting.insert((from, id), now).is_none());
                    }
                }
                Step::Reply(i, spoil) if !sent.is_empty() => {
                    let (attempt, to, bytes) = &sent[i % sent.len()];
                    let mut answer = reply(bytes, |_| {});
                    if let Some((place, byte)) = spoil {
                        let place = place % answer.len();
                        answer[place] = byte;
                    }
                    f.heard(*attempt, *to, &answer, at(now), &mut r);
                }
                Step::Code(i, code) if !sent.is_empty() => {
                    let (attempt, to, bytes) = &sent[i % sent.len()];
                    let answer = reply(bytes, |m| m.metadata.response_code = ResponseCode::from_low(code));
                    f.heard(*attempt, *to, &answer, at(now), &mut r);
                }
                Step::Fail(i) if !sent.is_empty() => {
                    f.failed(sent[i % sent.len()].0, at(now), &mut r);
                }
                Step::Pass(ms) => {
                    // As the owner of the clock does it: at each deadline.
                    let end = now + ms;
                    while let Some(due) = f.deadline().filter(|d| *d <= at(end)) {
                        f.on_time(due, &mut r);
                        prop_assert!(f.deadline() != Some(due), "time stands still");
                    }
                    now = end;
                }
                Step::Servers(n) => f.set_servers(&(1..=n).map(server).collect::<Vec<_>>()),
                _ => {}
            }
            for order in f.orders() {
                if let Order::Send { attempt, to, bytes, .. } = order {
                    sent.push((attempt, to, bytes));
                }
            }
            for one in f.landed() {
                for waiter in one.waiters {
                    let since = waiting.remove(&(waiter.client.from, waiter.question.id));
                    prop_assert!(since.is_some(), "told twice, or not asked");
                }
            }
            prop_assert!(waiting.values().all(|since| now - since <= 4500), "{waiting:?} at {now}");
            prop_assert_eq!(f.due.len(), f.by_key.len());
        }
        prop_assert!(waiting.is_empty(), "{:?}", waiting);
        prop_assert_eq!((f.len(), f.clients.len(), f.due.len()), (0, 0, 0));
        prop_assert_eq!(f.free.len(), f.places.len());
    }

    #[test]
    fn any_bytes_are_judged(bytes in prop::collection::vec(any::<u8>(), 0..200), keep in 0usize..60) {
        let (mut f, mut r) = (fresh(1), dice());
        ask(&mut f, NAME, 1, 1, at(0), &mut r).unwrap();
        let (attempt, to, _, asked) = sent(&mut f);
        let right = reply(&asked, |_| {});
        let mut spoilt = right[..keep.min(right.len())].to_vec();
        spoilt.extend(bytes);
        f.heard(attempt, to, &spoilt, at(1), &mut r);
    }
}
