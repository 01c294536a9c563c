//! The metrics endpoint of a real node, met by scrapers that speak HTTP and by clients that do not.
//! `tests/netns/metrics.rs` compares the numbers with what real pods did.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// More than a client may take, and the slowest machine on top.
const PATIENCE: Duration = Duration::from_secs(20);
const GET: &str = "GET /metrics HTTP/1.1\r\nHost: podwire\r\n\r\n";

fn podwire(dir: &Path, more: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_podwire"));
    c.env_remove("PODWIRE_SOCKET").env_remove("NOTIFY_SOCKET");
    c.current_dir(dir);
    c.args([
        "--socket",
        "n1.sock",
        "node",
        "--name",
        "n1",
        "--subnet",
        "10.244.1.0/24",
    ]);
    c.args(["--bind", "127.0.0.1", "--port", "auto", "--log", "warn"])
        .args(more);
    c
}

/// A node that serves metrics; killed at the end.
struct Node {
    process: Child,
    at: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Node {
        let dir = tempfile::tempdir().unwrap();
        let mut command = podwire(dir.path(), &["--metrics", "127.0.0.1:0"]);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let out = process.stdout.as_mut().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let (_, url) = line.split_once(", metrics at http://").expect("it tells where");
        let at = url.trim_end().trim_end_matches("/metrics").parse().unwrap();
        Node {
            process,
            at,
            _dir: dir,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.at).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Send bytes; everything that comes until the node closes.
    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        all
    }

    /// Times the threads of the process went to sleep of their own will, so far.
    fn sleeps(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        let count = |status: String| {
            let line = status.lines().find(|l| l.starts_with("voluntary_ctxt_switches"));
            line.and_then(|l| l.rsplit('\t').next()?.parse::<u64>().ok())
                .unwrap()
        };
        tasks
            .map(|t| count(fs::read_to_string(t.unwrap().path().join("status")).unwrap()))
            .sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Status line's code, and body.
fn split(answer: &str) -> (u16, &str) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: "));
    assert!(head.lines().any(|l| l == "Connection: close"), "{head}");
    if !body.is_empty() {
        assert_eq!(length, Some(body.len().to_string().as_str()));
    }
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

#[test]
fn scrapers_get_the_page_and_others_an_explanation() {
    let node = Node::start();
    let answer = node.ask(GET.as_bytes());
    let (code, page) = split(&answer);
    assert_eq!(code, 200);
    assert!(answer.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(
        page.contains("\npodwire_node_info{node=\"n1\",vni=\"1\"} 1\n"),
        "{page}"
    );
    for line in page.lines().filter(|l| !l.starts_with('#')) {
        assert!(line.starts_with("podwire_"), "{line}");
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
    let documented = include_str!("../docs/metrics.md");
    for name in page
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next())
    {
        assert!(
            documented.contains(&format!("| `{name}` |")),
            "{name} is not documented"
        );
    }
    let prometheus = "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:9472\r\nUser-Agent: Prometheus/2.42.0\r\n\
        Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2\r\n\
        Accept-Encoding: gzip\r\nX-Prometheus-Scrape-Timeout-Seconds: 10\r\n\r\n";
    let cases: &[(&str, u16, bool)] = &[
        (prometheus, 200, true),
        ("GET /metrics HTTP/1.0\r\n\r\n", 200, true),
        (
            "GET /metrics?x=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            200,
            true,
        ),
        ("HEAD /metrics HTTP/1.0\r\n\r\n", 200, false),
        ("GET / HTTP/1.0\r\n\r\n", 404, true),
        ("GET /metrics HTTP/1.1\r\n\r\n", 400, true),
        (
            "POST /metrics HTTP/1.0\r\nContent-Length: 3\r\n\r\nabc",
            405,
            true,
        ),
        ("\x16\x03\x01 not for this port", 400, true),
    ];
    for (request, code, body) in cases {
        let answer = node.ask(request.as_bytes());
        assert_eq!(split(&answer).0, *code, "{request:?}");
        assert_eq!(!split(&answer).1.is_empty(), *body, "{request:?}");
    }
    assert!(
        node.ask(b"PUT /metrics HTTP/1.0\r\n\r\n")
            .contains("Allow: GET, HEAD\r\n")
    );
    // A request in pieces, and one whose client closes its side at once.
    let mut stream = node.connect();
    for piece in GET.as_bytes().chunks(7) {
        stream.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(split(&all).0, 200);
}

#[test]
fn the_node_minds_neither_garbage_nor_floods_nor_sluggards() {
    let node = Node::start();
    let big = [GET.trim_end().as_bytes(), &[b'a'; 100_000]].concat();
    // What is too long is refused, whether the client reads that or is cut off.
    let mut stream = node.connect();
    let sent = stream.write_all(&big);
    let mut all = String::new();
    let read = stream.read_to_string(&mut all);
    assert!(all.contains(" 431 ") || sent.is_err() || read.is_err(), "{all}");
    let many = format!("GET /metrics HTTP/1.0\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(split(&node.ask(many.as_bytes())).0, 431);
    for seed in 0..200u32 {
        let noise: Vec<u8> = (0..seed * 3)
            .map(|i| (seed.wrapping_mul(2_654_435_761) >> (i % 24)) as u8 ^ i as u8)
            .collect();
        let mut stream = node.connect();
        let _ = stream.write_all(&noise);
    }
    // More silent clients than there are places: the newest one is served still, the oldest have to go.
    let mut silent: Vec<TcpStream> = (0..40).map(|_| node.connect()).collect();
    assert_eq!(split(&node.ask(GET.as_bytes())).0, 200);
    let mut first = silent.remove(0);
    first.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let gone = first.read(&mut [0; 1]);
    assert!(matches!(&gone, Ok(0)) || gone.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
    // The last of them is let go when its time is over, though it sends a byte now and then.
    let mut last = silent.pop().unwrap();
    last.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let begun = Instant::now();
    loop {
        let _ = last.write_all(b"G");
        match last.read(&mut [0; 1]) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => break,
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "a client that never asks is never let go"
        );
    }
    assert!(begun.elapsed() > Duration::from_secs(3), "it had time to ask");
    assert_eq!(split(&node.ask(GET.as_bytes())).0, 200);
    // Nobody is there: nothing wakes up. The last page's own time has to pass first.
    drop(silent);
    std::thread::sleep(Duration::from_millis(300));
    let before = node.sleeps();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(node.sleeps() - before, 0, "an idle node wakes up");
}

#[test]
fn a_taken_port_is_one_sentence_and_code_5() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = held.local_addr().unwrap();
    let run = |at: &str| {
        let dir = tempfile::tempdir().unwrap();
        let out = podwire(dir.path(), &["--metrics", at]).output().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let taken = format!(
        "podwire: port {} of 127.0.0.1 is in use (set metrics.listen)\n",
        at.port()
    );
    assert_eq!(run(&at.to_string()), (Some(5), taken));
    let (code, said) = run("192.0.2.77:9472");
    assert_eq!(code, Some(2));
    assert!(
        said.ends_with("(set metrics.listen to an address of this host)\n") && said.lines().count() == 1,
        "{said}"
    );
    let (code, said) = run("9472");
    assert_eq!(code, Some(2));
    assert!(
        said.starts_with("podwire: --metrics: \"9472\" is no address with a port (write 127.0.0.1:9472"),
        "{said}"
    );
}
