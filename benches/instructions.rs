//! Instructions that the pure path takes for a frame, counted by callgrind: unlike times, they can be compared
//! between days and machines. System calls are not in it.
//!
//! ```text
//! cargo bench --bench instructions                          count, beside the newest kept counts
//! cargo bench --bench instructions -- --keep FILE           and keep them
//! ```
//!
//! Each case runs in a process of its own under valgrind, once with few turns and once with many: the
//! difference is what the turns took. `cargo test` runs each case without valgrind, to see that it works.

mod common;

use common::{BATCH, Kind, Receiving, SEGMENTS, Sending, from_pod, gateway, node};
use podwire::datapath::FlowKey;
use podwire::model::PortId;
use std::error::Error;
use std::fmt::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Tells a process what to run: a case and a number of turns.
const CASE: &str = "PODWIRE_BENCH_CASE";
const FEW: usize = 20;
const MANY: usize = 220;

/// A name, how many frames (datagrams, for trains) a turn has, and the turns.
type Case = (&'static str, usize, fn(usize));

const CASES: &[Case] = &[
    ("tcp4 super-frame to a peer, a datagram", SEGMENTS, |n| {
        send(Kind::Tcp4, n)
    }),
    ("tcp6 super-frame to a peer, a datagram", SEGMENTS, |n| {
        send(Kind::Tcp6, n)
    }),
    ("udp4 super-frame to a peer, a datagram", SEGMENTS, |n| {
        send(Kind::Udp4, n)
    }),
    ("tcp4 train from a peer, a datagram", SEGMENTS, |n| {
        receive(Kind::Tcp4, n)
    }),
    ("tcp6 train from a peer, a datagram", SEGMENTS, |n| {
        receive(Kind::Tcp6, n)
    }),
    ("udp4 train from a peer, a datagram", SEGMENTS, |n| {
        receive(Kind::Udp4, n)
    }),
    ("tcp4 super-frame on the node", 1, |n| {
        let frame = from_pod(Kind::Tcp4, 1, SEGMENTS * Kind::Tcp4.mss());
        turns(Sending::new(10, frame), 1, n);
    }),
    ("small frame to a peer", BATCH, |n| {
        turns(Sending::new(10, small(2)), BATCH, n)
    }),
    ("small frame to one of 5000 peers", BATCH, |n| {
        turns(Sending::new(5000, small(2)), BATCH, n)
    }),
    ("decision anew, of 10 peers", 1000, |n| decide(10, n)),
    ("decision anew, of 5000 peers", 1000, |n| decide(5000, n)),
    ("small frame from a peer", BATCH, |n| {
        let mut receiving = Receiving::new(Sending::new(10, small(2)).datagrams(BATCH));
        (0..n).for_each(|_| receiving.turn());
        assert!(receiving.sink.frames >= n);
    }),
    ("small frame on the node", BATCH, |n| {
        turns(Sending::new(10, small(1)), BATCH, n)
    }),
];

fn small(to: u8) -> (podwire::wire::VnetHdr, Vec<u8>) {
    from_pod(Kind::Udp4, to, 64)
}

/// A thousand decisions a turn, none of them remembered.
fn decide(peers: usize, n: usize) {
    let mut node = node(1, peers);
    for at in 0..n * 1000 {
        let key = FlowKey {
            port: PortId((at / 10) as u16),
            mac: gateway(1),
            dst: Ipv4Addr::new(10, 244, 2 + (at % 10) as u8, (at % 10) as u8).into(),
        };
        assert!(node.way(key).is_ok());
    }
}

fn turns(mut sending: Sending, batch: usize, n: usize) {
    (0..n).for_each(|_| sending.turn(batch));
    assert!(sending.sink.frames >= n);
}

fn send(kind: Kind, n: usize) {
    turns(Sending::new(10, from_pod(kind, 2, SEGMENTS * kind.mss())), 1, n);
}

fn receive(kind: Kind, n: usize) {
    let datagrams = Sending::new(10, from_pod(kind, 2, SEGMENTS * kind.mss())).datagrams(1);
    let mut receiving = Receiving::new(datagrams);
    (0..n).for_each(|_| receiving.turn());
    // Each train is one frame for the pod.
    assert_eq!(receiving.sink.frames, n);
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(case) = std::env::var(CASE) {
        let (case, n) = case.split_once(' ').ok_or("a case and a number are wanted")?;
        let (_, _, run) = CASES[case.parse::<usize>()?];
        run(n.parse()?);
        return Ok(());
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|a| a == "--bench") {
        CASES.iter().for_each(|(_, _, run)| run(2));
        return Ok(());
    }
    let keep = args.iter().position(|a| a == "--keep").map(|at| args.get(at + 1));
    let keep = keep.map(|file| file.ok_or("--keep wants a file")).transpose()?;
    let before = newest().map(|file| Ok::<_, std::io::Error>((std::fs::read_to_string(&file)?, file)));
    let before = before.transpose()?;
    if let Some((_, file)) = &before {
        println!("beside {}", file.display());
    }
    let mut kept = String::from(
        "# Instructions per frame, by `cargo bench --bench instructions` (see benches/README.md)\n",
    );
    for (i, (name, frames, _)) in CASES.iter().enumerate() {
        let count = (collected(i, MANY)? - collected(i, FEW)?) as f64 / ((MANY - FEW) * frames) as f64;
        let known = before.as_ref().and_then(|(text, _)| find(text, name));
        let change = known.map(|k| format!("{:+.1} %", (count / k - 1.0) * 100.0));
        println!("{count:10.1}  {:>8}  {name}", change.unwrap_or_default());
        writeln!(kept, "{count:10.1}  {name}")?;
    }
    if let Some(file) = keep {
        std::fs::write(file, kept)?;
    }
    Ok(())
}

/// Instructions of a whole process that runs a case.
fn collected(case: usize, turns: usize) -> Result<u64, Box<dyn Error>> {
    let out = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .env(CASE, format!("{case} {turns}"))
        .output()
        .map_err(|e| format!("valgrind does not run: {e} (install it)"))?;
    let said = String::from_utf8_lossy(&out.stderr);
    let count = said
        .lines()
        .find_map(|l| l.split_once("Collected : ")?.1.trim().parse().ok());
    match count {
        Some(count) if out.status.success() => Ok(count),
        _ => Err(format!("valgrind fails: {said}").into()),
    }
}

/// The counts kept last: `benches/results/<date>/instructions.txt` of the newest date.
fn newest() -> Option<PathBuf> {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    let dates = std::fs::read_dir(results).ok()?;
    let files = dates.filter_map(|d| Some(d.ok()?.path().join("instructions.txt")));
    files.filter(|f| f.exists()).max()
}

fn find(text: &str, name: &str) -> Option<f64> {
    let lines = text.lines().filter_map(|l| l.trim().split_once("  "));
    lines
        .filter(|(_, n)| *n == name)
        .find_map(|(count, _)| count.parse().ok())
}
