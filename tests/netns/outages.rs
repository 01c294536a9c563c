//! The way out when what is behind it does not behave: hosts that stall and die, addresses that become the host's own,
//! and pods that flood what all of them use. The topology is that of `egress`.

use super::egress::{Outside, SERVER, background, dig, refusal, syn, try_connect};
use super::pod::{FAMILIES, Family, PATIENCE, Place, Pod};
use super::raw::Raw;
use super::traffic::{MB, at_once, connect, stream};
use super::world::{Case, World, eventually};
use podwire::model::OffloadMode;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_server_that_stalls_goes_on_and_one_that_dies_is_told", stalls).nodes(1),
    Case::new("a_link_that_is_down_for_a_while_costs_no_byte", link).nodes(1),
    Case::new("nc_ends_its_half", halves).nodes(1),
    Case::new("what_a_route_makes_the_hosts_own_is_closed", routes).nodes(1),
    Case::new("clients_of_a_pod_that_does_not_answer_give_way", unanswered).nodes(1),
    Case::new(
        "ten_thousand_questions_a_second_cost_other_pods_nothing",
        questions,
    )
    .nodes(1)
    .pods(2)
    .node_args(&["--dns-upstream", "203.0.113.77"]),
    Case::new(
        "a_flood_of_syns_to_the_name_server_leaves_it_to_others",
        name_flood,
    )
    .nodes(1)
    .pods(2),
];

/// A download by curl from a real server: stopped for a moment; then another one, killed.
fn stalls(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    let dir = world.dir().join("www");
    std::fs::create_dir(&dir).expect("a directory");
    let bytes: Vec<u8> = (0..64 * MB as u32).map(|n| (n / 251) as u8).collect();
    std::fs::write(dir.join("file"), &bytes).expect("a file");
    std::fs::write(dir.join("server.py"), SERVER).expect("a file");
    let serve = format!("cd {} && exec python3 server.py 203.0.113.2", dir.display());
    let server = background(&outside.netns, "sh", &["-c", &serve]);
    let pid = server.0.id().to_string();
    let signal = |name: &str| {
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .expect("kill")
                .success()
        )
    };
    eventually("the server is there", PATIENCE, || {
        try_connect(a, [203, 0, 113, 2], 8080).is_ok()
    });
    let download = |rate: &str| {
        let to = world.dir().join("got");
        let to = to.to_str().expect("a path").to_string();
        let args = ["-sS", "--max-time", "60", "--limit-rate", rate, "-o", &to];
        let mut command = Command::new("curl");
        command.args(args).arg("http://203.0.113.2:8080/file");
        let child = a.netns.within(|| command.spawn()).expect("curl");
        // In the middle of it.
        eventually("it has begun", PATIENCE, || {
            std::fs::metadata(world.dir().join("got")).is_ok_and(|m| m.len() > MB as u64)
        });
        child
    };
    let mut curl = download("60M");
    signal("-STOP");
    std::thread::sleep(Duration::from_millis(1500));
    assert!(curl.try_wait().expect("curl").is_none(), "it waits");
    // Others go on meanwhile.
    at_once(a, &outside, Family::V4);
    signal("-CONT");
    assert!(curl.wait().expect("curl").success());
    assert!(std::fs::read(world.dir().join("got")).expect("a file") == bytes);
    std::fs::remove_file(world.dir().join("got")).expect("a file");
    let mut curl = download("20M");
    signal("-KILL");
    let begun = Instant::now();
    let status = curl.wait().expect("curl");
    // Its kernel says so: the transfer is over and incomplete (18), or reset (56).
    assert!(matches!(status.code(), Some(18 | 56)), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    eventually("nothing is left", PATIENCE, || {
        world.nodes[0].status().egress.tcp_flows == 0
    });
}

/// Nothing is claimed of a host that cannot be reached for the moment: TCP goes on where it was.
fn link(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    let listener = outside.listen(Family::V4);
    let mut client = connect(a, listener.local_addr().expect("bound")).expect("it connects");
    let (mut server, _) = listener.accept().expect("a client");
    let bytes: Vec<u8> = (0..8 * MB as u32).map(|n| (n / 13) as u8).collect();
    std::thread::scope(|s| {
        let sender = s.spawn(|| {
            for (n, piece) in bytes.chunks(MB).enumerate() {
                if n == 2 {
                    outside.netns.ip("link set eth0x down\n");
                }
                client.write_all(piece).expect("it is taken");
                if n == 3 {
                    std::thread::sleep(Duration::from_millis(700));
                    outside.netns.ip("link set eth0x up\n");
                }
            }
            drop(client);
        });
        let mut got = Vec::new();
        server.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        server.read_to_end(&mut got).expect("all of it");
        assert!(got == bytes, "{} of {}", got.len(), bytes.len());
        sender.join().expect("the sender is well");
    });
}

/// netcat, which ends its half and waits for the answer.
fn halves(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    for family in FAMILIES {
        let listener = outside.listen(family);
        let at = listener.local_addr().expect("bound");
        let out = std::thread::scope(|s| {
            s.spawn(|| {
                let (mut server, _) = listener.accept().expect("a client");
                let mut asked = Vec::new();
                server.read_to_end(&mut asked).expect("an end");
                std::thread::sleep(Duration::from_millis(200));
                server
                    .write_all(&asked.repeat(100_000))
                    .expect("the other half is open");
            });
            let line = format!("printf question | nc -N {} {}", at.ip(), at.port());
            a.run("sh", &["-c".into(), line])
        });
        assert!(out.status.success(), "nc (Debian: netcat-openbsd): {out:?}");
        assert!(
            out.stdout == b"question".repeat(100_000),
            "{} bytes",
            out.stdout.len()
        );
    }
}

fn routes(world: &mut World) {
    let outside = Outside::new(world);
    let host = &world.underlay.hosts[0].netns;
    outside
        .netns
        .ip("addr add 198.51.100.7/32 dev lo\naddr add 2001:db8:77::7/128 dev lo\n");
    let listen = || ["0.0.0.0:7000", "[::]:7001"].map(|at| TcpListener::bind(at).expect("a port"));
    let _far = outside.netns.within(listen);
    // What a pod must not reach.
    let near = host.within(listen);
    let (four, six): (IpAddr, IpAddr) = (
        [198, 51, 100, 7].into(),
        "2001:db8:77::7".parse().expect("an address"),
    );
    let reached = |pod: &Pod| try_connect(pod, four, 7000).is_ok() && try_connect(pod, six, 7001).is_ok();
    assert!(reached(&world.pods[0][0]), "the world is open");
    host.ip("route add local 198.51.100.0/24 dev lo\nroute add local 2001:db8:77::/64 dev lo\n");
    let closed = |world: &World| {
        let a = &world.pods[0][0];
        let e = refusal(a, four, 7000);
        assert_eq!(e.kind(), ErrorKind::HostUnreachable, "{e}");
        let e = refusal(a, six, 7001);
        assert_eq!(e.kind(), ErrorKind::PermissionDenied, "{e}");
    };
    // It was taken while nobody had told the node: a moment.
    std::thread::sleep(Duration::from_millis(500));
    closed(world);
    // A node that finds them at its start.
    world.nodes[0].end(rustix::process::Signal::KILL);
    world.nodes[0].restart(host);
    closed(world);
    for listener in &near {
        listener.set_nonblocking(true).expect("a flag");
        let e = listener.accept().expect_err("a pod has come in");
        assert_eq!(e.kind(), ErrorKind::WouldBlock);
    }
    // Of another table they hold for marked packets only, and are no business of pods.
    host.ip(
        "route del local 198.51.100.0/24 dev lo\nroute del local 2001:db8:77::/64 dev lo\n\
         route add local 198.51.100.0/24 dev lo table 100\n",
    );
    eventually("they are somebody else's again", PATIENCE, || {
        reached(&world.pods[0][0])
    });
}

/// dnsperf in one pod, at a resolver that says nothing and at the node's own names; the other pod asks at ease.
fn questions(world: &mut World) {
    let outside = Outside::new(world);
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    let host = &world.underlay.hosts[0].netns;
    host.ip("neigh add 203.0.113.77 lladdr 02:00:00:00:00:77 dev out0\n");
    let mut names = String::new();
    for n in 0..50_000 {
        names += &format!("n{n}.example A\nb1.default.pod A\n");
    }
    let file = world.dir().join("names");
    std::fs::write(&file, names).expect("a file");
    let before = world.nodes[0].memory();
    let args = [
        "-s",
        "10.244.1.1",
        "-l",
        "5",
        "-Q",
        "10000",
        "-q",
        "2000",
        "-t",
        "1",
        "-d",
    ];
    let mut command = Command::new("dnsperf");
    command.args(args).arg(&file).stdout(std::process::Stdio::piped());
    let flood = a.netns.within(|| command.spawn()).expect("dnsperf");
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        for how in ["+notcp", "+tcp"] {
            let once = [how, "+time=1", "+tries=1", "a1.default.pod", "A"];
            assert_eq!(dig(b, "10.244.1.1", &once), a.ip4.to_string());
        }
    }
    at_once(b, &outside, Family::V4);
    stream(b, &outside, Family::V4, 4 * MB);
    let status = world.nodes[0].status();
    let dns = status.dns.expect("it answers names");
    assert!(dns.in_flight <= 130, "{}", dns.in_flight);
    let said = String::from_utf8(flood.wait_with_output().expect("dnsperf").stdout).expect("text");
    let per_second = said
        .lines()
        .find_map(|l| l.trim().strip_prefix("Queries per second:"))
        .and_then(|n| n.trim().parse::<f64>().ok());
    let least = if world.mode == OffloadMode::On {
        4000.0
    } else {
        1000.0
    };
    assert!(per_second.is_some_and(|n| n > least), "the flood is none: {said}");
    let more = world.nodes[0].memory().saturating_sub(before);
    assert!(more < 60_000, "{more} KiB for questions");
}

/// SYNs of a packet socket, half of which its kernel does not know: the name server's listener is behind them.
fn name_flood(world: &mut World) {
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    // Its kernel shall not reset what comes back.
    let nft = "table inet t { chain c { type filter hook input priority 0; tcp sport 53 drop; }; }";
    a.netns.ask("nft", &[nft]);
    let raw = Raw::sender(a);
    for port in 1024..12_024 {
        let names = SocketAddrV4::new(Ipv4Addr::new(10, 244, 1, 1), 53);
        raw.send(&syn(world, a, port, names));
    }
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(
            dig(b, "10.244.1.1", &["+tcp", "+time=1", "a1.default.pod", "A"]),
            a.ip4.to_string()
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let flows = world.nodes[0].status().egress.tcp_flows;
    assert!((1..=2100).contains(&flows), "{flows} flows of SYNs");
}

/// A pod that drops SYNs, and a flood of clients at its published port: the oldest are reset, and once it answers, it
/// answers.
fn unanswered(world: &mut World) {
    let (node, a) = (&world.nodes[0], &world.pods[0][0]);
    let stranger = &world.underlay.hosts[1].netns;
    let server = a.listen(Family::V4);
    let port = server.local_addr().expect("bound").port();
    let spec = format!("0.0.0.0:8080:{port}");
    assert!(node.podwire(&["port", "add", "a1", &spec]).status.success());
    a.netns.ask(
        "nft",
        &["table inet t { chain c { type filter hook input priority 0; tcp flags syn drop; }; }"],
    );
    let at: SocketAddr = "192.0.2.1:8080".parse().expect("an address");
    let knock = || TcpStream::connect_timeout(&at, PATIENCE).expect("the host takes it");
    let mut clients: Vec<TcpStream> = stranger.within(|| (0..1300).map(|_| knock()).collect());
    eventually("all have been taken in", PATIENCE, || {
        node.status().egress.tcp_flows == 1024
    });
    let first = &mut clients[0];
    first.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let e = first.read(&mut [0]).expect_err("it gave way");
    assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}");
    a.netns.ask("nft", &["delete", "table", "inet", "t"]);
    let _new = stranger.within(knock);
    server.accept().expect("it is answered");
    drop(clients);
}
