//! Clients that do not behave.

use super::fake::Fake;
use super::node::{Node, free_port};
use super::question;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes()[..], message].concat()
}

fn read(stream: &mut TcpStream) -> std::io::Result<Message> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut bytes = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut bytes)?;
    Ok(Message::from_vec(&bytes).unwrap())
}

fn connect(node: &Node) -> TcpStream {
    let stream = TcpStream::connect(node.at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Processor time a node has taken, in hundredths of a second.
fn busy(node: &Node) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.process.id())).unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_ascii_whitespace()
        .collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Names that go round (RFC 9267), are cut off, too long, or point where no name may; and no questions at all.
#[test]
fn malformed_questions_are_refused_or_dropped_and_nothing_else_happens() {
    let node = Node::start(&["--dns-upstream", &free_port().to_string()]);
    let whole = question(0x1234, "host.podwire.internal.", RecordType::A);
    let head = |qd: u8, ar: u8| vec![0x12, 0x34, 1, 0, 0, qd, 0, 0, 0, 0, 0, ar];
    let with = |qd: u8, ar: u8, rest: &[u8]| [&head(qd, ar)[..], rest].concat();
    let tail = [0, 1, 0, 1];
    let long = [[&[63u8][..], &[b'a'; 63]].concat().repeat(4), vec![0]].concat();
    let refused = [
        with(1, 0, &[0xc0, 12, 0, 1, 0, 1]),
        with(1, 0, &[1, b'a', 0xc0, 12, 0, 1, 0, 1]),
        with(1, 0, &[0xc0, 0xff, 0, 1, 0, 1]),
        with(1, 0, &[0x41, b'a', 0, 0, 1, 0, 1]),
        with(1, 0, &[63, b'a']),
        with(1, 0, &[]),
        with(1, 0, &[&long[..], &tail].concat()),
        with(2, 0, &[0, 0, 1, 0, 1, 0, 0, 1, 0, 1]),
        with(0, 0, &[]),
        with(1, 1, &[0, 0, 1, 0, 1]),
        with(1, 1, &[0, 0, 1, 0, 1, 0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 9]),
        with(
            1,
            2,
            &[
                0, 0, 1, 0, 1, 0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        [&whole[..], b"and more"].concat(),
    ];
    let client = node.client();
    let mut space = [0; 4096];
    for bad in &refused {
        client.send(bad).unwrap();
        let n = client.recv(&mut space).unwrap();
        let answer = Message::from_vec(&space[..n]).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr, "{bad:?}");
        assert_eq!(answer.metadata.id, 0x1234);
    }
    // These get no answer: half a header, an answer (two servers would never end).
    let mut answer = whole.clone();
    answer[2] |= 0x80;
    for bad in [&[][..], &whole[..1], &whole[..11], &answer] {
        client.send(bad).unwrap();
    }
    client.send(&whole).unwrap();
    let n = client.recv(&mut space).unwrap();
    let heard = Message::from_vec(&space[..n]).unwrap();
    assert_eq!((heard.metadata.id, heard.answers.len()), (0x1234, 1));
    assert_eq!(node.status("/dns/answers/malformed"), refused.len() as u64);
    assert_eq!(
        node.status("/dns/drops/short") + node.status("/dns/drops/response"),
        4
    );
    // Over TCP (aardvark-dns spun for ever there, CVE-2026-35406), and the connection goes on.
    let mut stream = connect(&node);
    for bad in &refused {
        stream.write_all(&framed(bad)).unwrap();
        assert_eq!(
            read(&mut stream).unwrap().metadata.response_code,
            ResponseCode::FormErr
        );
    }
    stream.write_all(&framed(&[])).unwrap();
    stream.write_all(&framed(&answer)).unwrap();
    stream.write_all(&framed(&whole)).unwrap();
    assert_eq!(read(&mut stream).unwrap().answers.len(), 1);
    let before = busy(&node);
    std::thread::sleep(Duration::from_millis(500));
    assert!(busy(&node) - before < 10, "nothing goes round");
}

/// One that says nothing (CVE-2024-8418), one that stops in the middle, and one that takes nothing.
#[test]
fn no_tcp_client_is_waited_for() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let asked = question(7, "a.example.", RecordType::A);
    let (mut idle, mut half, mut greedy) = (connect(&node), connect(&node), connect(&node));
    half.write_all(&framed(&asked)[..10]).unwrap();
    greedy.set_nonblocking(true).unwrap();
    let big = framed(&question(9, "big.example.", RecordType::TXT)).repeat(100);
    let mut sent = 0;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        match greedy.write(&big) {
            Ok(n) => sent += n,
            Err(e) => {
                assert_eq!(e.kind(), ErrorKind::WouldBlock);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    assert!(sent < 64 << 20, "it is not read from without end");
    let start = Instant::now();
    let mut stream = connect(&node);
    for name in ["a.example.", "b.example.", "host.podwire.internal."] {
        stream
            .write_all(&framed(&question(8, name, RecordType::A)))
            .unwrap();
        let answer = read(&mut stream).unwrap();
        assert_eq!((answer.metadata.id, answer.answers.len()), (8, 1), "{name}");
    }
    // Before any of them is closed.
    assert!(start.elapsed() < Duration::from_secs(3));
    // The half one has five seconds, the idle one ten.
    let start = Instant::now();
    assert_eq!(half.read(&mut [0; 8]).unwrap_or(0), 0);
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!(idle.read(&mut [0; 8]).unwrap_or(0), 0);
    let took = start.elapsed();
    assert!(
        took > Duration::from_secs(6) && took < Duration::from_secs(11),
        "{took:?}"
    );
    assert!(node.status("/dns/drops/slow") >= 2);
}

#[test]
fn a_newcomer_finds_room_among_idle_clients() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let idle: Vec<TcpStream> = (0..400).map(|_| connect(&node)).collect();
    for i in 0..10 {
        let mut stream = connect(&node);
        stream
            .write_all(&framed(&question(i, &format!("a{i}.example."), RecordType::A)))
            .unwrap();
        assert_eq!(read(&mut stream).unwrap().metadata.id, i);
    }
    assert!(node.status("/dns/drops/clients") >= 140);
    drop(idle);
}

/// Many questions at once (RFC 7766 section 6.2.1.1): each is answered, in any order, also when he has said goodbye.
#[test]
fn questions_on_one_connection_are_answered_side_by_side() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let mut stream = connect(&node);
    let mut all = Vec::new();
    for i in 0..100 {
        all.extend(framed(&question(i, &format!("a{i}.example."), RecordType::A)));
    }
    // In pieces that end anywhere.
    for piece in all.chunks(37) {
        stream.write_all(piece).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut ids: Vec<u16> = (0..100).map(|_| read(&mut stream).unwrap().metadata.id).collect();
    ids.sort();
    assert!(ids.iter().copied().eq(0..100));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

/// A client that went away before its answer came costs nothing but a count.
#[test]
fn a_client_that_left_is_forgotten() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let mut stream = connect(&node);
    stream
        .write_all(&framed(&question(1, "silent.example.", RecordType::A)))
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    stream.set_nonblocking(true).unwrap();
    drop(stream);
    let client = node.client();
    client
        .send(&question(1, "silent.example.", RecordType::A))
        .unwrap();
    client
        .send(&question(1, "silent.example.", RecordType::A))
        .unwrap();
    let mut space = [0; 512];
    let n = client.recv(&mut space).unwrap();
    let answer = Message::from_vec(&space[..n]).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(node.status("/dns/drops/again"), 1, "he is told once");
    assert_eq!(node.status("/dns/in_flight"), 0);
}

/// Without a descriptor a client waits, nothing spins, and he is answered as soon as there is one, though nobody else
/// comes.
#[test]
fn a_client_waits_for_a_descriptor() {
    let fake = Fake::start();
    let node = Node::asking(fake.at, &[]);
    let asked = framed(&question(5, "host.podwire.internal.", RecordType::A));
    let mut first = connect(&node);
    first.write_all(&asked).unwrap();
    read(&mut first).unwrap();
    let pid = node.process.id().to_string();
    let limit = |files: &str| {
        let set = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={files}:")])
            .status();
        assert!(set.expect("prlimit (util-linux)").success());
    };
    // Below it none is free.
    let is_free = |n: &usize| !std::path::Path::new(&format!("/proc/{pid}/fd/{n}")).exists();
    limit(&(0..).find(is_free).unwrap().to_string());
    let mut waits = connect(&node);
    waits.write_all(&asked).unwrap();
    waits.set_read_timeout(Some(Duration::from_millis(1000))).unwrap();
    let before = busy(&node);
    let e = read(&mut waits).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}");
    assert!(busy(&node) - before < 20, "it spins");
    // Who is there already is served.
    first.write_all(&asked).unwrap();
    read(&mut first).unwrap();
    limit("1024");
    waits.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert_eq!(read(&mut waits).unwrap().metadata.id, 5);
}
