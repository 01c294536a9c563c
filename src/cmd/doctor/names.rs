//! Whether the host's resolvers answer: a node asks them for all names that are not its own.

use super::{Check, Verdict};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// Whom a node asks unless it is told others.
const FILE: &str = "/etc/resolv.conf";
/// How long an answer is waited for, and how many are: the first question of a sleeping link is often lost.
const PATIENCE: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 2;

/// Look at the resolvers of the file, each asked for the root's name servers.
pub(super) fn resolvers() -> Check {
    const NAME: &str = "DNS";
    let bad = |found, remedy: String| Check::bad(NAME, Verdict::Warn, found, remedy);
    let others =
        "or name others: podwire node --dns-upstream 192.0.2.53 (pods know the names of their node without)";
    let path = Path::new(FILE);
    if let Err(e) = std::fs::File::open(path) {
        let found = format!("{FILE} cannot be read: {e}");
        return bad(
            found,
            format!("write it, with a line `nameserver ADDRESS`, {others}"),
        );
    }
    let servers = crate::daemon::dns::resolv_conf(path).servers;
    if servers.is_empty() {
        let found = format!("{FILE} names no resolver");
        return bad(
            found,
            format!("write a line `nameserver ADDRESS` there, {others}"),
        );
    }
    let answering = ask(&servers);
    let told = |those: &mut dyn Iterator<Item = &SocketAddr>| {
        let those: Vec<String> = those.map(|s| s.ip().to_string()).collect();
        those.join(", ")
    };
    let silent = told(&mut servers.iter().filter(|s| !answering.contains(s)));
    let answer = told(&mut servers.iter().filter(|s| answering.contains(s)));
    match (answer.is_empty(), silent.is_empty()) {
        (false, true) => Check::ok(NAME, format!("answered by {answer}")),
        (false, false) => Check::ok(NAME, format!("answered by {answer}, not by {silent}")),
        (true, _) => bad(
            format!("no resolver of {FILE} answers ({silent})"),
            format!(
                "see whether they are reached (dig @{}), {others}",
                servers[0].ip()
            ),
        ),
    }
}

/// Those that answer.
fn ask(servers: &[SocketAddr]) -> BTreeSet<SocketAddr> {
    let id = std::process::id() as u16;
    let [high, low] = id.to_be_bytes();
    let question = [high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let socket = |six: bool| match six {
        false => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)),
        true => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)),
    };
    // A socket for each, so that what the network says of one (ICMP) is heard.
    let mut open: Vec<(SocketAddr, UdpSocket)> = servers
        .iter()
        .filter_map(|to| Some((*to, socket(to.is_ipv6()).ok()?)))
        .filter(|(to, socket)| socket.connect(to).is_ok() && socket.set_nonblocking(true).is_ok())
        .collect();
    let mut answering = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        for (_, socket) in &open {
            // It is told below.
            let _ = socket.send(&question);
        }
        let until = Instant::now() + PATIENCE;
        while !open.is_empty() && Instant::now() < until {
            let mut space = [0; 512];
            open.retain(|(to, socket)| match socket.recv(&mut space) {
                Ok(n) if n >= 12 && space[..2] == question[..2] && space[2] & 0x80 != 0 => {
                    answering.insert(*to);
                    false
                }
                Err(e) => e.kind() == std::io::ErrorKind::WouldBlock,
                Ok(_) => true,
            });
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    answering
}
