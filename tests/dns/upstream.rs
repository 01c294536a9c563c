//! What others are asked.

use super::fake::Fake;
use super::node::{Node, free_port};
use super::question;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use std::collections::HashSet;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn one(line: &str) -> (String, Vec<String>) {
    ("NOERROR".into(), vec![line.into()])
}

/// The questions of glibc: A and AAAA at once, from one socket. Lost ones cost five seconds.
#[test]
fn of_two_questions_at_once_none_is_lost() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let client = node.client();
    let start = Instant::now();
    for round in 0..300 {
        // Some of them cached, others not.
        let name = format!("a{}.example.", round % 200);
        let ids = [2 * round, 2 * round + 1];
        client.send(&question(ids[0], &name, RecordType::A)).unwrap();
        client.send(&question(ids[1], &name, RecordType::AAAA)).unwrap();
        let mut heard = HashSet::new();
        for _ in 0..2 {
            let mut space = [0; 512];
            let n = client.recv(&mut space).unwrap();
            let answer = Message::from_vec(&space[..n]).unwrap();
            assert_eq!(answer.answers.len(), 1);
            assert_eq!(answer.queries[0].name().to_string(), name);
            assert_eq!(answer.queries[0].query_type(), answer.answers[0].record_type());
            heard.insert(answer.metadata.id);
        }
        assert_eq!(heard, HashSet::from(ids));
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(fake.asked("udp a"), 400);
    assert_eq!(node.status("/dns/answers/cache"), 200);
}

#[test]
fn what_was_answered_is_not_asked_again_until_its_time_is_over() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    for name in ["A.example", "a.EXAMPLE", "a.example"] {
        let (status, answers) = node.answer(&format!("{name} A"));
        assert_eq!(status, "NOERROR");
        // In the spelling of who asks, and a little later with a little less time.
        assert!(answers[0].starts_with(&format!("{name}. ")), "{answers:?}");
    }
    assert_eq!(fake.asked("a.example. A"), 1);
    for (name, status) in [("nx.example", "NXDOMAIN"), ("nodata.example", "NOERROR")] {
        for _ in 0..3 {
            assert_eq!(node.answer(&format!("{name} A")), (status.into(), vec![]));
            let soa = node.dig(&format!("{name} A +noall +authority"));
            let ttl = soa.split_ascii_whitespace().nth(1).unwrap();
            // The least of the SOA's own time and what it says of nothing (RFC 2308).
            assert!(["2", "1", "0"].contains(&ttl), "{soa}");
        }
    }
    assert!(
        fake.asked("udp nx.example. A") <= 2,
        "{}",
        fake.asked("udp nx.example. A")
    );
    std::thread::sleep(Duration::from_millis(2100));
    let before = fake.asked("udp nx.example. A");
    node.answer("nx.example A");
    assert_eq!(fake.asked("udp nx.example. A"), before + 1);
    // Another type, and DNSSEC, are other questions.
    node.answer("a.example AAAA");
    node.answer("a.example A +dnssec");
    assert_eq!(fake.asked("udp a.example."), 3);
}

#[test]
fn long_answers_come_over_tcp_and_whole() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    // dig asks again over TCP by itself, when it is told that something is missing.
    let (status, answers) = node.answer("big.example TXT");
    assert_eq!((status.as_str(), answers.len()), ("NOERROR", 30));
    assert_eq!((fake.asked("udp big"), fake.asked("tcp big")), (1, 1));
    for (more, bytes) in [("+noedns", 512), ("+bufsize=1232", 1232), ("+bufsize=4096", 1232)] {
        let text = node.dig(&format!("big.example TXT +ignore {more}"));
        assert!(text.contains("flags: qr tc"), "{text}");
        let size: usize = text.split("rcvd: ").nth(1).unwrap().trim().parse().unwrap();
        assert!(size <= bytes, "{text}");
    }
    let (_, answers) = node.answer("big.example TXT +tcp");
    assert_eq!(answers.len(), 30);
    assert_eq!(
        (fake.asked("udp big"), fake.asked("tcp big")),
        (1, 1),
        "it was kept"
    );
    // More than was asked for fits all the same.
    assert_eq!(node.answer("huge.example TXT").1.len(), 10);
}

#[test]
fn only_the_answer_to_the_question_counts() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let (status, answers) = node.answer("forged.example A");
    assert_eq!(status, "NOERROR");
    assert!(answers[0].ends_with("192.0.2.1"), "{answers:?}");
    // From another address than was asked, nothing is heard at all: the kernel sees to that.
    let (_, answers) = node.answer("lowercase.example A");
    assert!(answers[0].ends_with("192.0.2.1"), "{answers:?}");
    assert_eq!(
        fake.asked("tcp lowercase"),
        1,
        "a resolver with a spelling of its own is asked over TCP"
    );
    assert_eq!(node.answer("noedns.example A").0, "NOERROR");
    for bad in ["garbage.example A", "servfail.example A"] {
        let start = Instant::now();
        assert_eq!(node.answer(bad), ("SERVFAIL".into(), vec![]), "{bad}");
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "there is nobody else to be asked"
        );
    }
}

/// Ports and identifiers, as far as they are seen: none follows from the one before.
#[test]
fn a_question_is_hard_to_guess() {
    let spy = UdpSocket::bind("127.0.0.1:0").unwrap();
    let node = Node::asking(spy.local_addr().unwrap(), &[]);
    let client = node.client();
    let (mut ids, mut ports, mut spellings) = (HashSet::new(), HashSet::new(), HashSet::new());
    for i in 0..100 {
        client
            .send(&question(i, &format!("host{i:02}.some.example."), RecordType::A))
            .unwrap();
        let mut space = [0; 512];
        let (n, from) = spy.recv_from(&mut space).unwrap();
        let asked = Message::from_vec(&space[..n]).unwrap();
        ids.insert(asked.metadata.id);
        ports.insert(from.port());
        spellings.insert(asked.queries[0].name().to_string()[6..].to_string());
    }
    assert!(ids.len() > 95 && ports.len() > 95 && spellings.len() > 90);
    let steps = |all: &HashSet<u16>| {
        let mut sorted: Vec<u16> = all.iter().copied().collect();
        sorted.sort();
        u32::from(sorted[sorted.len() - 1] - sorted[0])
    };
    assert!(steps(&ids) > 30_000 && steps(&ports) > 10_000);
}

#[test]
fn a_dead_resolver_costs_a_bounded_time_and_may_come_back() {
    let (dead, silent) = (free_port(), Fake::start());
    let node = Node::asking(dead, &[]);
    let start = Instant::now();
    assert_eq!(node.answer("a.example A").0, "SERVFAIL");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "the kernel tells that nobody is there"
    );
    let alive = Fake::start_at(dead, 7).unwrap();
    assert_eq!(node.answer("b.example A"), one("b.example. 60 IN A 192.0.2.7"));
    // One that says nothing.
    let start = Instant::now();
    assert_eq!(node.answer("silent.example A").0, "SERVFAIL");
    let took = start.elapsed();
    assert!(
        (Duration::from_secs(4)..Duration::from_secs(6)).contains(&took),
        "{took:?}"
    );
    assert!(alive.asked("silent") > 2, "it was asked again and again");
    let told = node.ok(&["status"]);
    assert!(told.contains("no resolver of the host answers"), "{told}");
    assert_eq!(node.answer("c.example A").0, "NOERROR");
    assert!(!node.ok(&["status"]).contains("no resolver of the host answers"));
    // Of two, the second answers within a little more than a second; and from then on at once.
    let two = format!("{},{}", silent.at, alive.at);
    let node = Node::start(&["--dns-upstream", &two]);
    drop(silent);
    let quiet = UdpSocket::bind(two.split(',').next().unwrap()).unwrap();
    let start = Instant::now();
    assert_eq!(node.answer("d.example A").0, "NOERROR");
    assert!(start.elapsed() > Duration::from_millis(900));
    let start = Instant::now();
    for i in 0..5 {
        assert_eq!(node.answer(&format!("e{i}.example A")).0, "NOERROR");
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    drop(quiet);
    assert!(node.ok(&["status"]).contains("(silent)"));
}

/// As a VPN does it: a link is replaced, and other resolvers know other things.
#[test]
fn the_hosts_resolvers_are_followed() {
    let start = |last: u8| Fake::start_at(([127, 77, 0, last], 53).into(), last);
    let (Ok(one_), Ok(two)) = (start(1), start(2)) else {
        eprintln!("port 53 is not ours: run as root to see the host's resolvers followed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = |n: &str| dir.path().join(n);
    fs::write(path("home"), "nameserver 127.77.0.1\n").unwrap();
    fs::write(path("vpn"), "search corp.example\nnameserver 127.77.0.2\n").unwrap();
    symlink("home", path("resolv.conf")).unwrap();
    let conf = path("resolv.conf").display().to_string();
    let node = Node::start(&["--dns-resolv-conf", &conf]);
    assert_eq!(node.answer("a.example A").1, ["a.example. 60 IN A 192.0.2.1"]);
    let settle = || std::thread::sleep(Duration::from_millis(200));
    symlink("vpn", path("new")).unwrap();
    fs::rename(path("new"), path("resolv.conf")).unwrap();
    settle();
    // What the other one said is forgotten.
    assert_eq!(node.answer("a.example A").1, ["a.example. 60 IN A 192.0.2.2"]);
    // The domains are those of the moment, too.
    let pods = node.ok(&["run", "--name", "a", "--", "cat", "/etc/resolv.conf"]);
    assert!(pods.contains(" default.pod pod corp.example\n"), "{pods}");
    fs::write(path("vpn"), "# nothing\n").unwrap();
    settle();
    assert_eq!(node.answer("b.example A").0, "SERVFAIL");
    assert_eq!(node.answer("host.podwire.internal A").0, "NOERROR");
    assert!(node.ok(&["status"]).contains("the host names no resolver"));
    fs::write(path("vpn"), "nameserver 127.77.0.1\n").unwrap();
    settle();
    assert_eq!(node.answer("b.example A").1, ["b.example. 60 IN A 192.0.2.1"]);
    fs::remove_file(path("resolv.conf")).unwrap();
    settle();
    assert_eq!(node.answer("c.example A").0, "SERVFAIL");
    fs::write(path("resolv.conf"), "nameserver 127.77.0.2\n").unwrap();
    settle();
    assert_eq!(node.answer("c.example A").1, ["c.example. 60 IN A 192.0.2.2"]);
    assert!(one_.asked("example") == 2 && two.asked("example") == 2);
}

#[test]
fn an_alias_may_lead_elsewhere() {
    let fake = Fake::start();
    let node = Node::asking(
        fake.at,
        &[
            "--dns-record",
            "www.internal a.example",
            "--dns-record",
            "no.internal nx.example",
        ],
    );
    for _ in 0..2 {
        let (status, answers) = node.answer("www.INTERNAL A");
        assert_eq!(status, "NOERROR");
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert!(
            answers[0].starts_with("a.example.") && answers[0].ends_with("IN A 192.0.2.1"),
            "{answers:?}"
        );
        assert_eq!(answers[1], "www.INTERNAL. 5 IN CNAME a.example.");
    }
    assert_eq!(fake.asked("example"), 1);
    let (status, answers) = node.answer("no.internal AAAA");
    assert_eq!((status.as_str(), answers.len()), ("NXDOMAIN", 1));
}

/// A resolver that asks the node in turn: the second question waits for the first, and that is all.
#[test]
fn a_loop_of_resolvers_ends() {
    let relay = UdpSocket::bind("127.0.0.1:0").unwrap();
    let node = Node::asking(relay.local_addr().unwrap(), &[]);
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, at) = (asked.clone(), node.at);
    relay.set_read_timeout(Some(Duration::from_secs(7))).unwrap();
    let thread = std::thread::spawn(move || {
        let mut space = [0; 4096];
        while let Ok(n) = relay.recv(&mut space) {
            count.fetch_add(1, Ordering::Relaxed);
            relay.send_to(&space[..n], at).unwrap();
        }
    });
    let start = Instant::now();
    assert_eq!(node.answer("a.example A").0, "SERVFAIL");
    assert!(start.elapsed() < Duration::from_secs(6));
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked < 20, "{asked} questions went round");
    drop(node);
    thread.join().unwrap();
}

/// One client floods, its resolver is dead: others are served.
#[test]
fn a_flood_of_questions_leaves_others_their_part() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let (bad, good) = (node.client(), node.client_from("127.0.0.2"));
    bad.set_nonblocking(true).unwrap();
    for i in 0..10_000u16 {
        let _ = bad.send(&question(i, &format!("silent-{i}.example."), RecordType::A));
        // About 10,000 in a second.
        if i % 20 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        if i % 1000 == 999 {
            let asked = format!("a{i}.example.");
            good.send(&question(i, &asked, RecordType::A)).unwrap();
            let mut space = [0; 512];
            let n = good.recv(&mut space).unwrap();
            let answer = Message::from_vec(&space[..n]).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{asked}");
            assert_eq!(answer.metadata.id, i);
        }
    }
    assert!(node.status("/dns/drops/client_full") > 1000);
    assert!(node.status("/dns/in_flight") <= 130);
    assert_eq!(node.answer("host.podwire.internal A").0, "NOERROR");
}

/// Answers as RFC 9267 collects them: names that go round, lead out of the message or are too long, and lengths and
/// counts that lie. Each is of a resolver that has read the question; none is an answer, none costs more than the time
/// of one that is silent, and the node goes on.
#[test]
fn malformed_answers_are_none() {
    let header = |answers: u8| [0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, 0];
    let a = [0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 66];
    let with = |name: &[u8], rest: &[u8]| [name, rest].concat();
    let long = [&[63u8][..], &[b'a'; 63]].concat().repeat(5);
    // What stands behind the question, which begins at 12 and has 27 bytes ("m00.malformed.example.").
    let at = 12 + 27;
    let corpus: Vec<(u8, Vec<u8>)> = vec![
        // Section 2: pointers to themselves, to each other, forwards, out of the message, into the header.
        (1, with(&[0xc0, at], &a)),
        (1, with(&[1, b'x', 0xc0, at], &a)),
        (1, with(&[0xc0, at + 2, 0xc0, at], &a)),
        (1, with(&[0xc0, at + 4, 0, 0, 3, b'f', b'w', b'd', 0], &a)),
        (1, with(&[0xff, 0xff], &a)),
        (1, with(&[0xc0, 0], &a)),
        (1, with(&[0xc0], &[])),
        // Section 3: labels of reserved kinds, longer than what is there, and names longer than 255.
        (1, with(&[0x80, 0], &a)),
        (1, with(&[0x41, b'x', 0], &a)),
        (1, with(&[63, b'x'], &[])),
        (1, with(&[&long[..], &[0]].concat(), &a)),
        // Section 4: without an end.
        (1, with(&long, &[])),
        (1, vec![3, b'w', b'w', b'w']),
        // Section 5: lengths of data that lie, also of names in it.
        (
            1,
            with(&[0xc0, 12], &[0, 1, 0, 1, 0, 0, 0, 60, 0xff, 0xff, 192, 0, 2, 66]),
        ),
        (1, with(&[0xc0, 12], &[0, 1, 0, 1, 0, 0, 0, 60, 0, 0])),
        (
            1,
            with(&[0xc0, 12], &[0, 1, 0, 1, 0, 0, 0, 60, 0, 5, 192, 0, 2, 66, 7]),
        ),
        (
            1,
            with(&[0xc0, 12], &[0, 5, 0, 1, 0, 0, 0, 60, 0, 2, 0xc0, at + 12]),
        ),
        (1, with(&[0xc0, 12], &[0, 5, 0, 1, 0, 0, 0, 60, 0, 1, 0xc0])),
        // Section 6: more records than there are.
        (2, with(&[0xc0, 12], &a)),
        (255, Vec::new()),
    ];
    let spy = UdpSocket::bind("127.0.0.1:0").unwrap();
    let node = Node::asking(spy.local_addr().unwrap(), &[]);
    spy.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let client = node.client();
    for n in 0..=corpus.len() as u16 {
        let name = format!("m{n:02}.malformed.example.");
        client.send(&question(n, &name, RecordType::A)).unwrap();
    }
    let start = Instant::now();
    let mut told = HashSet::new();
    let mut space = [0; 4096];
    client.set_nonblocking(true).unwrap();
    while told.len() < corpus.len() + 1 && start.elapsed() < Duration::from_secs(8) {
        if let Ok((len, from)) = spy.recv_from(&mut space) {
            let number = std::str::from_utf8(&space[14..16])
                .unwrap()
                .parse::<usize>()
                .unwrap();
            let (count, rest) = match corpus.get(number) {
                Some((count, rest)) => (*count, rest.clone()),
                None => (1, with(&[0xc0, 12], &a)),
            };
            assert!(len >= usize::from(at));
            let answer = [&space[..2], &header(count), &space[12..at.into()], &rest].concat();
            spy.send_to(&answer, from).unwrap();
        }
        while let Ok(len) = client.recv(&mut space) {
            let answer = Message::from_vec(&space[..len]).unwrap();
            let whole = usize::from(answer.metadata.id) == corpus.len();
            let code = if whole {
                ResponseCode::NoError
            } else {
                ResponseCode::ServFail
            };
            assert_eq!(answer.metadata.response_code, code, "{}", answer.metadata.id);
            assert_eq!(answer.answers.len(), usize::from(whole));
            assert!(told.insert(answer.metadata.id));
        }
    }
    assert_eq!(told.len(), corpus.len() + 1, "{told:?}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!(node.status("/dns/in_flight"), 0);
    assert_eq!(node.answer("host.podwire.internal A").0, "NOERROR");
}
