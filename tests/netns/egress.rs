//! The way out: pods of n1 and a machine that knows nothing of podwire, behind the host of n1.
//!
//! ```text
//!   a1 -- TAP -- n1 (podwire node, no rights but its own)
//!                 |  out0 203.0.113.1, 2001:db8:9::1
//!                 |  veth
//!              outside   203.0.113.2, 2001:db8:9::2
//! ```

use super::netns::Netns;
use super::pod::{FAMILIES, Family, PATIENCE, Place, Pod};
use super::raw::Raw;
use super::traffic::{MB, at_once, connect, datagrams, stream};
use super::world::{Case, World, eventually};
use podwire::model::{DropReason, OffloadMode};
use rustix::process::Signal;
use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket,
};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("bytes_go_out_and_come_back", bytes).nodes(1).pods(2),
    Case::new("curl_downloads_and_uploads", curl).nodes(1),
    Case::new("what_cannot_be_reached_outside_says_so", truths).nodes(1),
    Case::new("resets_half_closes_and_slow_readers_outside", ends).nodes(1),
    Case::new("a_thousand_connections_at_once", thousand).nodes(1),
    Case::new("datagrams_out_of_any_size", udp).nodes(1).pods(2),
    Case::new("pings_and_traces_outside", pings).nodes(1),
    Case::new("the_host_is_closed_to_pods", closed)
        .nodes(1)
        .node_args(&[
            "--egress-deny",
            "203.0.113.64/26",
            "--egress-deny",
            "2001:db8:9:1::/64",
        ]),
    Case::new("the_host_is_open_by_name", mapped)
        .nodes(1)
        .node_args(&["--map-host", "gateway", "--map-host", "192.0.2.200"]),
    Case::new("names_are_answered_at_the_gateway", names)
        .nodes(1)
        .pods(2),
    Case::new("without_a_way_out_there_is_none", off)
        .nodes(1)
        .node_args(&["--egress", "off"]),
    Case::new("a_flood_of_connections_hurts_the_flooder_only", flood)
        .nodes(1)
        .pods(2),
    Case::new("flows_end_with_their_pod_and_their_node", over).nodes(1),
    Case::new("idle_flows_cost_little", idle).nodes(1),
];

/// A machine behind the host of n1, with a veth between.
pub(super) struct Outside {
    pub(super) netns: Netns,
}

const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 2);

impl Outside {
    pub(super) fn new(world: &World) -> Outside {
        let host = &world.underlay.hosts[0].netns;
        let netns = Netns::new();
        host.ip("link add out0 type veth peer name eth0x\n");
        netns.adopt(host, "eth0x");
        host.ip(
            "addr add 203.0.113.1/24 dev out0\naddr add 2001:db8:9::1/64 dev out0 nodad\nlink set out0 up\n\
             route add default via 203.0.113.2\nroute add default via 2001:db8:9::2\n",
        );
        netns.ip(
            "addr add 203.0.113.2/24 dev eth0x\naddr add 2001:db8:9::2/64 dev eth0x nodad\nlink set eth0x up\n\
             addr add 203.0.113.65/32 dev lo\naddr add 2001:db8:9:1::1/128 dev lo\n",
        );
        let outside = Outside { netns };
        // Neighbours are found, and both sides agree that IPv6 works.
        eventually("the host reaches outside", PATIENCE, || {
            let ping = |ip: &str| host.run("ping", &["-n", "-c1", "-W1", ip]).status.success();
            ping("203.0.113.2") && ping("2001:db8:9::2")
        });
        outside
    }

    fn allow_pings(world: &World) {
        let host = &world.underlay.hosts[0].netns;
        host.within(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 4294967294"))
            .or_else(|_| host.within(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")))
            .expect("pings are allowed to groups that are mapped");
    }
}

impl Place for Outside {
    fn name(&self) -> &str {
        "outside"
    }

    fn netns(&self) -> &Netns {
        &self.netns
    }

    fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => OUTSIDE4.into(),
            Family::V6 => OUTSIDE6.into(),
        }
    }
}

/// A program that runs until it is dropped.
pub(super) struct Running(pub(super) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn background(netns: &Netns, program: &str, args: &[&str]) -> Running {
    let mut command = Command::new(program);
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Running(netns.within(|| command.spawn()).expect("it starts"))
}

pub(super) fn try_connect(from: &Pod, to: impl Into<IpAddr>, port: u16) -> std::io::Result<TcpStream> {
    let at = SocketAddr::new(to.into(), port);
    from.netns
        .within(|| TcpStream::connect_timeout(&at, Duration::from_secs(3)))
}

pub(super) fn refusal(from: &Pod, to: impl Into<IpAddr>, port: u16) -> std::io::Error {
    let begun = Instant::now();
    let e = try_connect(from, to, port).expect_err("nobody is there");
    // A kernel that is still busy with its own SYN takes an ICMP error for a soft one, and believes the next, a second
    // later (tcp_v4_err). It believes a reset at any time.
    let soft = if e.kind() == ErrorKind::ConnectionRefused {
        0
    } else {
        1100
    };
    assert!(
        begun.elapsed() < Duration::from_millis(900 + soft),
        "at once: {e}"
    );
    e
}

fn bytes(world: &mut World) {
    let outside = Outside::new(world);
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    let size = if world.mode == OffloadMode::On { 64 } else { 8 } * MB;
    for family in FAMILIES {
        at_once(a, &outside, family);
        // `stream` has the first place connect; the second one accepts, and both check every byte.
        std::thread::scope(|s| {
            s.spawn(|| stream(a, &outside, family, size));
            s.spawn(|| stream(b, &outside, family, size / 4));
        });
        download(a, &outside, family, size);
    }
    assert_eq!(world.nodes[0].status().drops.len(), 0);
}

/// The pod connects, and the world sends.
pub(super) fn download(pod: &Pod, outside: &Outside, family: Family, size: usize) {
    let listener = outside.listen(family);
    let at = listener.local_addr().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| {
            let (mut server, _) = listener.accept().unwrap();
            let mut n = 0u64;
            let mut left = size;
            while left > 0 {
                let chunk: Vec<u8> = (0..left.min(65_536) / 8)
                    .flat_map(|i| (n + i as u64).to_le_bytes())
                    .collect();
                server.write_all(&chunk).unwrap();
                n += chunk.len() as u64 / 8;
                left -= chunk.len();
            }
        });
        let mut client = connect(pod, at).unwrap();
        let (mut n, mut buffer) = (0u64, vec![0; 65_536]);
        for _ in 0..size / buffer.len() {
            client.read_exact(&mut buffer).unwrap();
            for word in buffer.chunks(8) {
                assert_eq!(word, n.to_le_bytes());
                n += 1;
            }
        }
        assert_eq!(client.read(&mut buffer).unwrap(), 0);
    });
}

/// Answers GET with a file and PUT with the hash of what came.
pub(super) const SERVER: &str = "
import hashlib, http.server, socketserver, sys
class H(http.server.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def do_PUT(self):
        left, h = int(self.headers['Content-Length']), hashlib.sha256()
        while left:
            b = self.rfile.read(min(left, 1 << 20))
            if not b: break
            h.update(b); left -= len(b)
        out = h.hexdigest().encode()
        self.send_response(200); self.send_header('Content-Length', str(len(out))); self.end_headers()
        self.wfile.write(out)
class S(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
S((sys.argv[1], 8080), H).serve_forever()
";

fn curl(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    let megabytes = if world.mode == OffloadMode::On { 1024 } else { 64 };
    let dir = world.dir().join("www");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("file");
    let sum = |from: &str| from.split_whitespace().next().unwrap_or_default().to_string();
    let sh = |line: &str| {
        let out = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(out.status.success());
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let path = file.display().to_string();
    // Random, once; the rest repeats it, so that a megabyte in a wrong place is found by what it is next to.
    sh(&format!(
        "head -c 33554437 /dev/urandom >{path}.1; while [ $(stat -c %s {path} 2>/dev/null || echo 0) -lt {} ]; do cat {path}.1 >>{path}; done",
        megabytes * MB
    ));
    let want = sum(&sh(&format!("sha256sum {path}")));
    let script = dir.join("server.py");
    std::fs::write(&script, SERVER).unwrap();
    let serve = format!("cd {} && exec python3 server.py 203.0.113.2", dir.display());
    let _server = background(&outside.netns, "sh", &["-c", &serve]);
    eventually("the server is there", PATIENCE, || {
        outside
            .netns
            .within(|| TcpStream::connect((OUTSIDE4, 8080)))
            .is_ok()
    });
    let run = |line: &str| {
        let out = a.run("sh", &["-c".into(), line.into()]);
        assert!(
            out.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        sum(&String::from_utf8_lossy(&out.stdout))
    };
    assert_eq!(
        run("curl -sS --max-time 60 http://203.0.113.2:8080/file | sha256sum"),
        want
    );
    assert_eq!(
        run(&format!(
            "curl -sS --max-time 60 -T {path} http://203.0.113.2:8080/up"
        )),
        want
    );
    assert_eq!(world.nodes[0].status().drops.len(), 0);
}

fn truths(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    for family in FAMILIES {
        let e = refusal(a, outside.ip(family), 9);
        assert_eq!(e.kind(), ErrorKind::ConnectionRefused, "{family:?}: {e}");
    }
    // No route beyond, and the last router says so.
    outside
        .netns
        .ip("route add unreachable 198.51.100.0/24\nroute add unreachable 2001:db8:66::/48\n");
    outside
        .netns
        .within(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })
        .expect("it is a router");
    for to in ["198.51.100.7", "2001:db8:66::7"] {
        let e = refusal(a, to.parse::<IpAddr>().unwrap(), 80);
        // What a router with such a route says differs by family.
        let want = if to.contains(':') {
            ErrorKind::NetworkUnreachable
        } else {
            ErrorKind::HostUnreachable
        };
        assert_eq!(e.kind(), want, "{to}: {e}");
    }
    // A host that is not there: the host's own neighbour table says so in its time.
    let begun = Instant::now();
    let at = SocketAddr::new([203, 0, 113, 55].into(), 80);
    let e = a
        .netns
        .within(|| TcpStream::connect_timeout(&at, PATIENCE))
        .expect_err("nobody");
    assert_eq!(
        e.kind(),
        ErrorKind::HostUnreachable,
        "{e} after {:?}",
        begun.elapsed()
    );
    // One that swallows everything: nothing is claimed.
    let host = &world.underlay.hosts[0].netns;
    host.ip("neigh add 203.0.113.77 lladdr 02:00:00:00:00:77 dev out0\n");
    let e = try_connect(a, Ipv4Addr::new(203, 0, 113, 77), 80).expect_err("a black hole");
    assert_eq!(e.kind(), ErrorKind::TimedOut, "{e}");
    // Without any route at all.
    host.ip("route del default via 203.0.113.2\n");
    let e = refusal(a, Ipv4Addr::new(198, 51, 100, 8), 80);
    assert_eq!(e.kind(), ErrorKind::NetworkUnreachable, "{e}");
}

fn ends(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    for family in FAMILIES {
        let listener = outside.listen(family);
        let at = listener.local_addr().unwrap();
        // A server that resets.
        let mut client = connect(a, at).unwrap();
        let (server, _) = listener.accept().unwrap();
        rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
        drop(server);
        let e = client.read(&mut [0]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::ConnectionReset);
        // A client that does.
        let client = connect(a, at).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop(client);
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let e = server.read(&mut [0]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::ConnectionReset);
        // Half-close of the client, and the server has more to say for a while.
        let mut client = connect(a, at).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        server.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"question");
        std::thread::sleep(Duration::from_millis(100));
        server.write_all(&vec![7; 3 * MB]).unwrap();
        drop(server);
        all.clear();
        client.read_to_end(&mut all).unwrap();
        assert!(all == vec![7; 3 * MB]);
        // And of the server.
        let mut client = connect(a, at).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
        client.write_all(b"still").unwrap();
        drop(client);
        all.clear();
        server.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"still");
        // Slow readers on either side get every byte, and stop the writer meanwhile.
        for up in [true, false] {
            let client = connect(a, at).unwrap();
            let (server, _) = listener.accept().unwrap();
            let (mut writer, mut reader) = if up { (client, server) } else { (server, client) };
            std::thread::scope(|s| {
                s.spawn(move || {
                    for n in 0..48u8 {
                        writer.write_all(&vec![n; MB]).unwrap();
                    }
                });
                std::thread::sleep(Duration::from_millis(300));
                let mut piece = vec![0; MB];
                for n in 0..48u8 {
                    reader.read_exact(&mut piece).unwrap();
                    assert!(piece.iter().all(|b| *b == n));
                    if n % 8 == 0 {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                }
                assert_eq!(reader.read(&mut piece).unwrap(), 0);
            });
        }
    }
    eventually("all flows are over", PATIENCE, || flows(world) == 0);
}

/// Flows of all pods, as the metrics have them.
fn flows(world: &World) -> u64 {
    world.nodes[0].status().egress.tcp_flows
}

fn echo_server(outside: &Outside) -> (SocketAddr, std::thread::JoinHandle<()>) {
    let listener = outside.listen(Family::V4);
    // Many at once.
    rustix::net::listen(&listener, 4096).unwrap();
    let at = listener.local_addr().unwrap();
    let thread = std::thread::spawn(move || serve(&listener));
    (at, thread)
}

fn serve(listener: &TcpListener) {
    let mut all = Vec::new();
    for client in listener.incoming() {
        let mut client = client.unwrap();
        let mut byte = [0];
        if client.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        client.write_all(&byte).unwrap();
        all.push(client);
    }
}

fn thousand(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    let (at, server) = echo_server(&outside);
    let mut clients: Vec<TcpStream> = a.netns.within(|| {
        let mut all: Vec<TcpStream> = Vec::new();
        for n in 0..1000 {
            let mut client = TcpStream::connect_timeout(&at, PATIENCE).unwrap_or_else(|e| panic!("{n}: {e}"));
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(&[n as u8]).unwrap();
            all.push(client);
        }
        all
    });
    for (n, client) in clients.iter_mut().enumerate() {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [n as u8]);
    }
    assert_eq!(flows(world), 1000);
    drop(clients);
    drop(a.netns.within(|| TcpStream::connect(at)).unwrap());
    server.join().unwrap();
    eventually("all flows are over", PATIENCE, || flows(world) == 0);
    assert_eq!(world.nodes[0].status().drops.len(), 0);
}

fn udp(world: &mut World) {
    let outside = Outside::new(world);
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    for family in FAMILIES {
        let most = if family == Family::V4 { 65_507 } else { 65_487 };
        datagrams(
            a,
            &outside,
            family,
            &[1, 100, 1400, 1422, 1423, 1473, 3000, 9000, 30_000, 65_000, most],
        );
        // Two pods with the same port, and one pod with two servers.
        let (server, other) = (outside.udp(family, 0), outside.udp(family, 0));
        let (one, two) = (a.udp(family, 5000), b.udp(family, 5000));
        let (at, at_other) = (server.local_addr().unwrap(), other.local_addr().unwrap());
        let mut buffer = [0; 16];
        let mut who = |socket: &UdpSocket, client: &UdpSocket, to: SocketAddr, say: &[u8]| {
            client.send_to(say, to).unwrap();
            let (n, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..n], say);
            from
        };
        let first = who(&server, &one, at, b"a");
        assert_eq!(who(&other, &one, at_other, b"b"), first, "RFC 4787 REQ-1");
        let second = who(&server, &two, at, b"c");
        assert_ne!(second, first);
        for (to, say, client) in [(first, b"x", &one), (second, b"y", &two)] {
            server.send_to(say, to).unwrap();
            let (n, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..n], from), (&say[..], at));
        }
        // A closed port says so.
        let closed = outside.udp(family, 0).local_addr().unwrap();
        one.connect(closed).unwrap();
        one.send(b"hello?").unwrap();
        let e = one.recv(&mut buffer).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::ConnectionRefused, "{family:?}: {e}");
    }
    assert_eq!(world.nodes[0].drops(DropReason::BadFragment), 0);
}

fn pings(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    for family in FAMILIES {
        a.unanswered(outside.ip(family), 1);
    }
    assert!(world.nodes[0].drops(DropReason::PingForbidden) >= 2);
    Outside::allow_pings(world);
    for family in FAMILIES {
        a.reaches(outside.ip(family), 3, &[]);
        a.reaches(outside.ip(family), 2, &["-s", "1400"]);
        a.reaches(outside.ip(family), 2, &["-s", "8000"]);
        // Nobody there: nobody answers.
        let dead: IpAddr = match family {
            Family::V4 => [203, 0, 113, 99].into(),
            Family::V6 => "2001:db8:9::99".parse().unwrap(),
        };
        a.unanswered(dead, 1);
        for how in ["-I", "-U", "-T"] {
            let to = outside.ip(family).to_string();
            let args = ["-n", "-q1", "-w2", how, "-p", "33434", &to].map(String::from);
            let said = String::from_utf8_lossy(&a.run("traceroute", &args).stdout).into_owned();
            let gateway = if family == Family::V4 {
                "10.244.1.1 "
            } else {
                "fd00:10:244:1::1 "
            };
            let lines: Vec<&str> = said.lines().skip(1).collect();
            assert!(lines[0].contains(gateway), "{said}");
            assert!(lines[1].contains(&to) && lines.len() == 2, "{how}: {said}");
        }
    }
}

fn closed(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    let host = &world.underlay.hosts[0];
    let _listeners: Vec<TcpListener> = host.netns.within(|| {
        ["0.0.0.0:7000", "[::]:7001"]
            .map(|at| TcpListener::bind(at).unwrap())
            .into()
    });
    let _far = outside
        .netns
        .within(|| ["0.0.0.0:7000", "[::]:7001"].map(|at| TcpListener::bind(at).unwrap()));
    let mine = ["192.0.2.1", "203.0.113.1", "2001:db8::1", "2001:db8:9::1"];
    let denied = ["203.0.113.65", "2001:db8:9:1::1"];
    for to in mine.iter().chain(&denied) {
        let ip: IpAddr = to.parse().unwrap();
        let e = refusal(a, ip, if ip.is_ipv4() { 7000 } else { 7001 });
        // How a kernel understands "administratively prohibited".
        let want = if ip.is_ipv4() {
            ErrorKind::HostUnreachable
        } else {
            ErrorKind::PermissionDenied
        };
        assert_eq!(e.kind(), want, "{to}: {e}");
    }
    for (ip, port) in [(IpAddr::from(OUTSIDE4), 7000), (OUTSIDE6.into(), 7001)] {
        try_connect(a, ip, port).expect("the world is open");
    }
    assert!(world.nodes[0].drops(DropReason::EgressDenied) >= 6);
    // Addresses of the pod network that nobody holds do not leave.
    let e = refusal(a, Ipv4Addr::new(10, 244, 77, 7), 80);
    assert_eq!(e.kind(), ErrorKind::NetworkUnreachable, "{e}");
    // One that becomes the host's is closed soon.
    let new: IpAddr = "203.0.113.200".parse().unwrap();
    host.netns.ip("addr add 203.0.113.200/24 dev out0\n");
    eventually("the new address is closed", PATIENCE, || {
        try_connect(a, new, 7000).is_err()
    });
    host.netns.ip("addr del 203.0.113.200/24 dev out0\n");
    outside.netns.ip("addr add 203.0.113.200/24 dev eth0x\n");
    eventually("it is somebody else's again", PATIENCE, || {
        try_connect(a, new, 7000).is_ok()
    });
}

fn mapped(world: &mut World) {
    let a = &world.pods[0][0];
    let host = &world.underlay.hosts[0];
    let four = host.netns.within(|| TcpListener::bind("127.0.0.1:7000")).unwrap();
    let _six = host.netns.within(|| TcpListener::bind("[::1]:7000")).unwrap();
    let echo = host.netns.within(|| UdpSocket::bind("127.0.0.1:7000")).unwrap();
    for to in ["10.244.1.1", "192.0.2.200", "fd00:10:244:1::1"] {
        let mut client =
            try_connect(a, to.parse::<IpAddr>().unwrap(), 7000).unwrap_or_else(|e| panic!("{to}: {e}"));
        if to != "fd00:10:244:1::1" {
            let (mut server, _) = four.accept().unwrap();
            server.write_all(b"host").unwrap();
            let mut said = [0; 4];
            client.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"host");
        }
        let e = refusal(a, to.parse::<IpAddr>().unwrap(), 7001);
        assert_eq!(e.kind(), ErrorKind::ConnectionRefused, "{to}: {e}");
    }
    let client = a.udp(Family::V4, 0);
    let at: SocketAddr = "10.244.1.1:7000".parse().unwrap();
    client.send_to(b"q", at).unwrap();
    let mut buffer = [0; 4];
    let (_, who) = echo.recv_from(&mut buffer).unwrap();
    echo.send_to(b"a", who).unwrap();
    assert_eq!(client.recv_from(&mut buffer).unwrap(), (1, at));
    // The rest of the gateway is as ever.
    a.reaches(Ipv4Addr::new(10, 244, 1, 1), 2, &[]);
    let e = refusal(a, Ipv4Addr::new(192, 0, 2, 1), 7000);
    assert_eq!(
        e.kind(),
        ErrorKind::HostUnreachable,
        "the host's own addresses stay closed: {e}"
    );
}

fn off(world: &mut World) {
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    let _listener = outside.listen(Family::V4);
    let e = refusal(a, OUTSIDE4, 80);
    assert_eq!(e.kind(), ErrorKind::NetworkUnreachable, "{e}");
    assert!(world.nodes[0].drops(DropReason::NoRoute) >= 1);
    // What is the node's own is answered, and nothing else: a question would be a way out.
    assert_eq!(dig(a, "10.244.1.1", &["a1.default.pod", "A"]), a.ip4.to_string());
    for how in ["+notcp", "+tcp"] {
        let args = ["@10.244.1.1", "+tries=1", how, "secret.example.org", "A"].map(String::from);
        let said = String::from_utf8_lossy(&a.run("dig", &args).stdout).into_owned();
        assert!(said.contains("status: REFUSED"), "{said}");
    }
}

/// The answer of a name server, in short.
pub(super) fn dig(pod: &Pod, server: &str, what: &[&str]) -> String {
    let server = format!("@{server}");
    let args = [&["+short", "+tries=1", "+time=5", &server][..], what].concat();
    let args: Vec<String> = args.into_iter().map(String::from).collect();
    let out = pod.run("dig", &args);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8_lossy(&out.stdout).trim().into()
}

fn names(world: &mut World) {
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    for server in ["10.244.1.1", "fd00:10:244:1::1"] {
        for how in ["+notcp", "+tcp"] {
            for asks in [a, b] {
                assert_eq!(
                    dig(asks, server, &[how, "b1.default.pod", "A"]),
                    b.ip4.to_string()
                );
                assert_eq!(
                    dig(asks, server, &[how, "a1.default.pod", "AAAA"]),
                    a.ip6.to_string()
                );
                let back = dig(asks, server, &[how, "-x", &b.ip4.to_string()]);
                assert_eq!(back, "b1.default.pod.");
                assert_eq!(dig(asks, server, &[how, "nobody.default.pod", "A"]), "");
            }
        }
    }
    assert_eq!(world.nodes[0].status().drops.len(), 0);
}

/// A SYN from a port of a pod to an address outside.
pub(super) fn syn(world: &World, pod: &Pod, port: u16, to: SocketAddrV4) -> Vec<u8> {
    let (to, dst_port) = (*to.ip(), to.port());
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::*;
    let tcp = TcpRepr {
        src_port: port,
        dst_port,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(i32::from(port)),
        ack_number: None,
        window_len: 65_000,
        window_scale: None,
        max_seg_size: Some(1410),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: pod.ip4,
        dst_addr: to,
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let caps = ChecksumCapabilities::default();
    let mut frame = vec![0; 14 + 20 + tcp.buffer_len()];
    let mut eth = EthernetFrame::new_unchecked(&mut frame[..]);
    eth.set_dst_addr(EthernetAddress(world.gateway_mac(1).0));
    eth.set_src_addr(EthernetAddress(pod.mac.0));
    eth.set_ethertype(EthernetProtocol::Ipv4);
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &caps);
    let mut segment = TcpPacket::new_unchecked(&mut frame[34..]);
    tcp.emit(&mut segment, &pod.ip4.into(), &to.into(), &caps);
    frame
}

fn flood(world: &mut World) {
    let outside = Outside::new(world);
    let (a, b) = (&world.pods[0][0], &world.pods[0][1]);
    let host = &world.underlay.hosts[0].netns;
    let hole = Ipv4Addr::new(203, 0, 113, 77);
    host.ip("neigh add 203.0.113.77 lladdr 02:00:00:00:00:77 dev out0\n");
    let raw = Raw::sender(a);
    for port in 1..=u16::MAX {
        raw.send(&syn(world, a, port, SocketAddrV4::new(hole, 80)));
    }
    at_once(b, &outside, Family::V4);
    // The flooder waits behind its own flood, no more.
    stream(a, &outside, Family::V4, MB);
    let status = world.nodes[0].status();
    assert!(
        (500..=1024).contains(&status.egress.tcp_flows),
        "the oldest gave way: {:?}",
        status.egress
    );
    stream(b, &outside, Family::V4, 4 * MB);
}

fn over(world: &mut World) {
    let outside = Outside::new(world);
    let (at, server) = echo_server(&outside);
    let talk = |pod: &Pod| {
        let mut client = connect(pod, at).unwrap();
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        client
    };
    let mut before = talk(&world.pods[0][0]);
    // The node is killed; the next one knows nothing of the flow, and the pod learns that.
    world.nodes[0].end(Signal::KILL);
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    // What its kernel acknowledges late may have told it already.
    let e = before
        .write_all(b"y")
        .and_then(|()| before.read(&mut [0]))
        .unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset, "{e}");
    // And a pod that is detached takes its flows along.
    let _flow = talk(&world.pods[0][0]);
    assert_eq!(flows(world), 1);
    let gone = world.nodes[0].podwire(&["detach", "a1"]);
    assert!(gone.status.success());
    assert_eq!(flows(world), 0);
    drop(outside.netns.within(|| TcpStream::connect(at)).unwrap());
    server.join().unwrap();
}

/// Ten thousand flows that do nothing, and one more that does.
fn idle(world: &mut World) {
    if world.mode == OffloadMode::Off {
        return;
    }
    let limit = rustix::process::Resource::Nofile;
    let mut files = rustix::process::getrlimit(limit);
    files.current = files.maximum;
    rustix::process::setrlimit(limit, files).unwrap();
    // Both ends of each are this process's.
    let many = files
        .current
        .map_or(10_000, |n| (n as usize / 2 - 1000).min(10_000));
    let outside = Outside::new(world);
    let a = &world.pods[0][0];
    a.netns
        .within(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65000"))
        .unwrap();
    let (at, server) = echo_server(&outside);
    let before = world.nodes[0].memory();
    let clients: Vec<TcpStream> = a.netns.within(|| {
        let one = |n: usize| {
            let mut client = TcpStream::connect_timeout(&at, PATIENCE).unwrap_or_else(|e| panic!("{n}: {e}"));
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0]).unwrap();
            client
        };
        (0..many).map(one).collect()
    });
    assert_eq!(flows(world), many as u64);
    let more = world.nodes[0].memory() - before;
    assert!(more < 10 * many as u64, "{more} KiB for {many} flows");
    stream(a, &outside, Family::V4, 16 * MB);
    drop(clients);
    drop(a.netns.within(|| TcpStream::connect(at)).unwrap());
    server.join().unwrap();
    eventually("all flows are over", PATIENCE, || flows(world) == 0);
}
