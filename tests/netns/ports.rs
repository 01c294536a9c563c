//! Published ports: who reaches a pod, as whom the pod sees them, who holds what, and what is left when something ends.
//! Servers and clients are real programs, and the kernels' stacks.

use super::netns::Netns;
use super::node::{Node, PODWIRE};
use super::pod::{FAMILIES, Family, PATIENCE, Place, Pod};
use super::world::{Case, World, eventually};
use podwire::api::PublishedPort;
use rustix::process::Signal;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_pod_sees_who_connects_to_its_port", seen).nodes(1),
    Case::new("a_pod_without_a_way_out_has_clients_all_the_same", without)
        .nodes(1)
        .node_args(&["--egress", "off", "--egress-deny", "192.0.2.0/24"]),
    Case::new("a_port_is_open_to_this_host_only_unless_told", default_address).nodes(1),
    Case::new("a_pod_sees_who_sends_to_its_udp_port", udp).nodes(1),
    Case::new("a_port_that_is_held_is_told_with_its_holder", held)
        .nodes(1)
        .pods(2),
    Case::new("a_privileged_port_is_refused_with_the_remedies", privileged).nodes(1),
    Case::new("a_port_that_is_taken_back_is_closed", taken_back).nodes(1),
    Case::new("a_killed_node_leaves_no_port_and_has_them_again", killed)
        .nodes(1)
        .node_args(&["--dns", "off"]),
    Case::new("a_pod_that_refuses_resets_the_client", refuses).nodes(1),
    Case::new("many_connect_to_a_port_at_once", many).nodes(1),
    Case::new("each_half_of_a_published_connection_ends_by_itself", halves).nodes(1),
    Case::new("a_forward_ends_with_its_command_and_with_the_pod", forward)
        .nodes(1)
        .node_args(&["--dns", "off"])
        .pods(2),
    Case::new("ports_come_and_go_with_their_pod", with_the_pod).nodes(1),
    Case::new("a_node_without_descriptors_lets_clients_wait", short).nodes(1),
];

/// The port in the pods.
const POD_PORT: u16 = 8000;

fn say(node: &Node, args: &[&str]) -> Output {
    node.podwire(args)
}

/// What a subcommand prints, which must succeed.
#[track_caller]
fn done(node: &Node, args: &[&str]) -> String {
    let out = say(node, args);
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {wrong}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// What a subcommand complains of, which must fail with this code.
#[track_caller]
fn fails(node: &Node, args: &[&str], code: i32) -> String {
    let out = say(node, args);
    let wrong = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {wrong}");
    wrong
}

fn list(node: &Node) -> Vec<PublishedPort> {
    serde_json::from_str(&done(node, &["port", "ls", "--json"])).expect("JSON of ports")
}

/// Local addresses of the sockets that listen on a host.
fn listening(host: &Netns, what: &str) -> Vec<String> {
    let told = host.ask("ss", &["-H", "-n", "-l", what]);
    let local = |line: &str| line.split_whitespace().nth(3).map(String::from);
    // The tunnel's sockets have ports of the kernel's choice.
    let ours = |at: &String| !at.starts_with("192.0.2.");
    let mut all: Vec<String> = told.lines().filter_map(local).filter(ours).collect();
    all.sort();
    all
}

/// A program that is killed when dropped.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `python3 -m http.server` in a pod; it logs each request with its client.
fn http_server(
    pod: &Pod,
    family: Family,
    world_dir: &std::path::Path,
) -> (Program, BufReader<impl Read + use<>>) {
    std::fs::write(world_dir.join("hello"), "hello from the pod\n").expect("a file");
    let mut python = Command::new("python3");
    python
        .args(["-u", "-m", "http.server", &POD_PORT.to_string(), "--bind"])
        .arg(pod.ip(family).to_string())
        .arg("--directory")
        .arg(world_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = pod.netns.within(|| python.spawn()).expect("python3");
    let log = BufReader::new(child.stderr.take().expect("a pipe"));
    let at = SocketAddr::new(pod.ip(family), POD_PORT);
    eventually("the server listens", PATIENCE, || {
        pod.netns.within(|| TcpStream::connect(at)).is_ok()
    });
    (Program(child), log)
}

fn curl(from: &Netns, at: SocketAddr) -> Output {
    let url = format!("http://{at}/hello");
    from.run("curl", &["-sS", "--noproxy", "*", "-m", "10", &url])
}

fn any(family: Family) -> &'static str {
    match family {
        Family::V4 => "0.0.0.0",
        Family::V6 => "[::]",
    }
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 244, 1, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1).into(),
    }
}

/// Addresses of the node's host, and of a stranger's.
fn hosts(world: &World, family: Family) -> (IpAddr, IpAddr) {
    let (host, stranger) = (&world.underlay.hosts[0], &world.underlay.hosts[1]);
    match family {
        Family::V4 => (host.ip4.into(), stranger.ip4.into()),
        Family::V6 => (host.ip6.into(), stranger.ip6.into()),
    }
}

fn seen(world: &mut World) {
    let (node, pod) = (&world.nodes[0], &world.pods[0][0]);
    let (host, stranger) = (&world.underlay.hosts[0].netns, &world.underlay.hosts[1].netns);
    for family in FAMILIES {
        let (_server, mut log) = http_server(pod, family, world.dir());
        let spec = format!("{}:8080:{POD_PORT}", any(family));
        done(node, &["port", "add", "a1", &spec]);
        let (ours, theirs) = hosts(world, family);
        // The stranger is seen as itself. This host cannot be: its addresses mean something else to the pod.
        let clients = [
            (stranger, ours, theirs),
            (host, loopback(family), gateway(family)),
            (host, ours, gateway(family)),
        ];
        for (from, to, as_whom) in clients {
            let begun = Instant::now();
            let out = curl(from, SocketAddr::new(to, 8080));
            let wrong = String::from_utf8_lossy(&out.stderr);
            assert_eq!(out.stdout, b"hello from the pod\n", "from {as_whom}: {wrong}");
            assert!(begun.elapsed() < Duration::from_secs(5));
            let mut line = String::new();
            while !line.contains("GET /hello") {
                line.clear();
                assert!(
                    log.read_line(&mut line).is_ok_and(|n| n > 0),
                    "the server's log ends"
                );
            }
            let client = line.split(' ').next().unwrap_or_default().to_string();
            assert_eq!(client, as_whom.to_string(), "{line}");
        }
    }
    let ports = list(node);
    let counts: Vec<(u64, u64)> = ports.iter().map(|p| (p.accepted, p.refused)).collect();
    assert_eq!(counts, [(3, 0), (3, 0)]);
    eventually("nothing is open any more", PATIENCE, || {
        list(node).iter().all(|p| p.connections == 0)
    });
}

fn without(world: &mut World) {
    seen(world);
    done(&world.nodes[0], &["port", "rm", "a1", "8080:8000"]);
    udp(world);
}

fn default_address(world: &mut World) {
    let (node, pod) = (&world.nodes[0], &world.pods[0][0]);
    let (host, stranger) = (&world.underlay.hosts[0].netns, &world.underlay.hosts[1].netns);
    let before = listening(host, "-t");
    done(node, &["port", "add", "a1", "8080:8000", "5353/udp"]);
    let mut now = listening(host, "-t");
    now.retain(|at| !before.contains(at));
    assert_eq!(now, ["127.0.0.1:8080", "[::1]:8080"]);
    let udp = listening(host, "-u");
    assert!(
        udp.contains(&"127.0.0.1:5353".to_string()) && udp.contains(&"[::1]:5353".to_string()),
        "{udp:?}"
    );
    assert!(!udp.contains(&"0.0.0.0:5353".to_string()), "{udp:?}");
    for family in FAMILIES {
        let (_server, _log) = http_server(pod, family, world.dir());
        let (ours, _) = hosts(world, family);
        // "Failed to connect".
        assert_eq!(curl(stranger, SocketAddr::new(ours, 8080)).status.code(), Some(7));
        let out = curl(host, SocketAddr::new(loopback(family), 8080));
        assert_eq!(out.stdout, b"hello from the pod\n");
    }
    // 0.0.0.0 is every address, and is said.
    done(node, &["port", "add", "a1", "0.0.0.0:8081:8000"]);
    let (_server, _log) = http_server(pod, Family::V4, world.dir());
    let (ours, _) = hosts(world, Family::V4);
    assert!(curl(stranger, SocketAddr::new(ours, 8081)).status.success());
    // An address that is not of this host.
    let wrong = fails(node, &["port", "add", "a1", "198.51.100.1:8082:8000"], 2);
    assert!(wrong.contains("no address of this host"), "{wrong}");
    let wrong = fails(node, &["port", "add", "nobody", "8082"], 6);
    assert!(wrong.contains("there is no pod default/nobody"), "{wrong}");
    let wrong = fails(node, &["port", "add", "a1", "8082:0"], 2);
    assert!(wrong.contains("port 0"), "{wrong}");
}

/// A client's socket, bound to an address of its host.
fn client(host: &Netns, ip: IpAddr) -> UdpSocket {
    let socket = host.within(|| UdpSocket::bind((ip, 0))).expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn udp(world: &mut World) {
    let (node, pod) = (&world.nodes[0], &world.pods[0][0]);
    let (host, stranger) = (&world.underlay.hosts[0].netns, &world.underlay.hosts[1].netns);
    host.ip("addr add 192.0.2.101/24 dev eth0\naddr add 2001:db8::101/64 dev eth0 nodad\n");
    for family in FAMILIES {
        let server = pod.udp(family, POD_PORT);
        let second: IpAddr = match family {
            Family::V4 => Ipv4Addr::new(192, 0, 2, 101).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x101).into(),
        };
        for spec in [
            format!("{}:5353:{POD_PORT}/udp", any(family)),
            format!("5354:{POD_PORT}/udp"),
        ] {
            // The second is at the loopback of both families.
            if family == Family::V4 || spec.starts_with('[') {
                done(node, &["port", "add", "a1", &spec]);
            }
        }
        let (ours, theirs) = hosts(world, family);
        let own = loopback(family);
        let cases = [
            (stranger, theirs, SocketAddr::new(ours, 5353), None),
            // Not the address that the host would choose for an answer.
            (stranger, theirs, SocketAddr::new(second, 5353), None),
            (host, own, SocketAddr::new(own, 5353), Some(gateway(family))),
            (host, own, SocketAddr::new(own, 5354), Some(gateway(family))),
            (host, ours, SocketAddr::new(ours, 5353), Some(gateway(family))),
        ];
        let sockets = cases.map(|(from, ip, to, seen)| (client(from, ip), to, seen));
        let mut known = Vec::new();
        let mut buffer = vec![0; 65_536];
        for round in 0..3 {
            for (n, (socket, to, seen)) in sockets.iter().enumerate() {
                // Longer ones come as fragments.
                let len = [1, 1400, 20_000][round];
                let question = vec![n as u8; len];
                socket.connect(to).expect("a way");
                socket.send(&question).expect("it is sent");
                let (got, from) = server.recv_from(&mut buffer).expect("it arrives");
                assert_eq!(buffer[..got], question);
                match seen {
                    None => assert_eq!(from, socket.local_addr().expect("it is bound")),
                    Some(gateway) => assert_eq!(from.ip(), *gateway),
                }
                if round == 0 {
                    assert!(!known.contains(&from), "two clients look alike to the pod");
                    known.push(from);
                }
                assert_eq!(known[n], from, "a client has another name to the pod");
                server.send_to(&question, from).expect("it is sent");
                // The socket is connected: an answer from elsewhere would not be heard.
                let got = socket
                    .recv(&mut buffer)
                    .unwrap_or_else(|e| panic!("{to}, {len} bytes: {e}"));
                assert_eq!(buffer[..got], question);
            }
        }
        // A port of the gateway that is nobody's stays the gateway's.
        server
            .send_to(b"?", SocketAddr::new(gateway(family), 1023))
            .expect("it is sent");
    }
    let ports = list(node);
    let clients = ports.iter().map(|p| (p.accepted, p.connections));
    let clients: Vec<(u64, u64)> = clients.collect();
    assert_eq!(clients, [(4, 4), (1, 1), (4, 4), (1, 1)], "{ports:?}");
}

fn held(world: &mut World) {
    let node = &world.nodes[0];
    let host = &world.underlay.hosts[0].netns;
    done(node, &["port", "add", "a1", "8080:8000", "9000-9002"]);
    for spec in ["8080:1", "0.0.0.0:8080:1", "8079-8081"] {
        let wrong = fails(node, &["port", "add", "b1", spec], 5);
        assert!(wrong.contains("8080/tcp is held by pod default/a1"), "{wrong}");
    }
    // Another program is found out by its socket.
    let mut python = Command::new("python3");
    python
        .args(["-m", "http.server", "8085", "--bind", "127.0.0.1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let program = Program(host.within(|| python.spawn()).expect("python3"));
    eventually("it listens", PATIENCE, || {
        listening(host, "-t").contains(&"127.0.0.1:8085".to_string())
    });
    let before = listening(host, "-t");
    // The others of the range are free, and stay it.
    let wrong = fails(node, &["port", "add", "b1", "7000", "8081-8090:1-10"], 5);
    let pid = program.0.id();
    assert!(
        wrong.contains(&format!("127.0.0.1:8085/tcp is held by python3 (process {pid})")),
        "{wrong}"
    );
    assert_eq!(listening(host, "-t"), before, "nothing is left of it");
    let udp = host
        .within(|| UdpSocket::bind("127.0.0.1:8086"))
        .expect("a socket");
    let wrong = fails(node, &["port", "add", "b1", "8086/udp"], 5);
    let me = format!("(process {})", std::process::id());
    assert!(
        wrong.contains("127.0.0.1:8086/udp is held by") && wrong.contains(&me),
        "{wrong}"
    );
    drop((udp, program));
    eventually("what is free again can be had", PATIENCE, || {
        say(node, &["port", "add", "b1", "8081-8090:1-10", "8086/udp"])
            .status
            .success()
    });
    let told = done(node, &["pods"]);
    assert!(
        told.contains("PUBLISHED") && told.contains("9000-9002:9000-9002/tcp"),
        "{told}"
    );
}

fn privileged(world: &mut World) {
    let host = &world.underlay.hosts[0].netns;
    world.nodes[0].stop();
    world.pods[0].clear();
    // As an ordinary user's: all rights but this one.
    world.nodes[0].restart_under(&["setpriv", "--bounding-set", "-net_bind_service"], host);
    let node = &world.nodes[0];
    let pod = Pod::attach(node, "web");
    for spec in ["80:8000", "0.0.0.0:80:8000", "79-81", "53/udp"] {
        let wrong = fails(node, &["port", "add", "web", spec], 3);
        assert!(
            wrong.contains("privileged port") && wrong.contains("from 1024 on"),
            "{wrong}"
        );
        assert!(
            wrong.contains("sysctl -w net.ipv4.ip_unprivileged_port_start="),
            "{wrong}"
        );
    }
    // The remedy is one.
    let set = || std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "80");
    host.within(set).expect("the sysctl is this namespace's");
    done(node, &["port", "add", "web", "80:8000"]);
    world.pods[0].push(pod);
}

/// A connection to a published port, and the pod's end of it.
fn connected(from: &Netns, to: SocketAddr, server: &TcpListener) -> (TcpStream, TcpStream) {
    let near = from
        .within(|| TcpStream::connect_timeout(&to, PATIENCE))
        .expect("a connection");
    let (far, _) = server.accept().expect("a connection");
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("no delay");
    }
    (near, far)
}

fn server(pod: &Pod, family: Family) -> TcpListener {
    let at = SocketAddr::new(pod.ip(family), POD_PORT);
    pod.netns.within(|| TcpListener::bind(at)).expect("a listener")
}

fn taken_back(world: &mut World) {
    let (node, pod) = (&world.nodes[0], &world.pods[0][0]);
    let (host, stranger) = (&world.underlay.hosts[0].netns, &world.underlay.hosts[1].netns);
    let server = server(pod, Family::V4);
    let to = SocketAddr::new(hosts(world, Family::V4).0, 8080);
    let before = (listening(host, "-t"), listening(host, "-u"));
    done(
        node,
        &["port", "add", "a1", "0.0.0.0:8080:8000", "9000-9009", "53/udp"],
    );
    let (mut near, mut far) = connected(stranger, to, &server);
    assert_eq!(list(node).iter().map(|p| p.connections).sum::<u64>(), 1);
    // A part of a range, one of two families, and none that is not there.
    fails(node, &["port", "rm", "a1", "9005", "9010"], 6);
    done(node, &["port", "rm", "a1", "9005", "[::1]:53/udp"]);
    assert_eq!(list(node).len(), 1 + 18 + 1);
    done(node, &["port", "rm", "a1", "8080:8000"]);
    let refused = stranger.within(|| TcpStream::connect_timeout(&to, PATIENCE));
    assert_eq!(
        refused.expect_err("it is closed").kind(),
        ErrorKind::ConnectionRefused
    );
    // Who is connected is not cut off.
    near.write_all(b"still there?").expect("it is sent");
    far.read_exact(&mut [0; 12]).expect("it arrives");
    far.write_all(b"yes").expect("it is sent");
    near.read_exact(&mut [0; 3]).expect("it arrives");
    done(node, &["port", "rm", "a1", "9000-9004", "9006-9009", "53/udp"]);
    assert_eq!((listening(host, "-t"), listening(host, "-u")), before);
    // And can be had again at once.
    done(node, &["port", "add", "a1", "0.0.0.0:8080:8000", "53/udp"]);
    let _ = connected(stranger, to, &server);
}

fn killed(world: &mut World) {
    let family = Family::V4;
    let to = SocketAddr::new(hosts(world, family).0, 8080);
    let server = server(&world.pods[0][0], family);
    let host = &world.underlay.hosts[0].netns;
    let stranger = &world.underlay.hosts[1].netns;
    let unpublished = listening(host, "-t");
    let node = &mut world.nodes[0];
    done(
        node,
        &[
            "port",
            "add",
            "a1",
            "0.0.0.0:8080:8000",
            "8081:8000",
            "7000-7002/udp",
        ],
    );
    done(node, &["port", "rm", "a1", "7001/udp"]);
    let published = (listening(host, "-t"), listening(host, "-u"));
    for round in 0..2 {
        let (near, _far) = connected(stranger, to, &server);
        node.end(Signal::KILL);
        let left = listening(host, "-t");
        assert!(left.iter().all(|at| unpublished.contains(at)), "{left:?}");
        drop(near);
        node.restart(host);
        assert_eq!(
            (listening(host, "-t"), listening(host, "-u")),
            published,
            "round {round}"
        );
    }
    let _ = connected(stranger, to, &server);
    // Somebody else took one of them meanwhile.
    node.end(Signal::KILL);
    let other = host
        .within(|| TcpListener::bind("0.0.0.0:8080"))
        .expect("it is free");
    node.restart(host);
    let problems = node.status().problems;
    let told = problems.iter().any(|p| {
        p.contains("0.0.0.0:8080:8000/tcp of pod default/a1 is not published") && p.contains("is held by")
    });
    assert!(told, "{problems:?}");
    assert!(listening(host, "-t").contains(&"127.0.0.1:8081".to_string()));
    // It is not forgotten, and can be had later.
    node.end(Signal::KILL);
    drop(other);
    node.restart(host);
    let _ = connected(stranger, to, &server);
    let problems = node.status().problems;
    assert!(!problems.iter().any(|p| p.contains("published")), "{problems:?}");
}

fn refuses(world: &mut World) {
    let (node, stranger) = (&world.nodes[0], &world.underlay.hosts[1].netns);
    for family in FAMILIES {
        // Nobody listens in the pod.
        done(
            node,
            &["port", "add", "a1", &format!("{}:8080:{POD_PORT}", any(family))],
        );
        let to = SocketAddr::new(hosts(world, family).0, 8080);
        for _ in 0..20 {
            let begun = Instant::now();
            // The host takes it before the pod was asked; the reset may be there before one looks.
            let end = stranger
                .within(|| TcpStream::connect_timeout(&to, PATIENCE))
                .and_then(|mut near| {
                    near.set_read_timeout(Some(PATIENCE))?;
                    near.read(&mut [0; 10])
                });
            assert_eq!(end.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
            assert!(begun.elapsed() < Duration::from_secs(1));
        }
    }
    eventually("nothing is left of them", PATIENCE, || {
        list(node).iter().all(|p| p.connections == 0)
    });
}

fn many(world: &mut World) {
    const CLIENTS: usize = 200;
    let (node, pod) = (&world.nodes[0], &world.pods[0][0]);
    let (host, stranger) = (&world.underlay.hosts[0].netns, &world.underlay.hosts[1].netns);
    let family = Family::V4;
    let server = server(pod, family);
    done(node, &["port", "add", "a1", "0.0.0.0:8080:8000"]);
    let ours = hosts(world, family).0;
    // Clients with an address of their own, and those that the pod sees as the gateway.
    for (from, ip) in [(stranger, ours), (host, loopback(family))] {
        let to = SocketAddr::new(ip, 8080);
        std::thread::scope(|s| {
            let echo = s.spawn(|| {
                // The kernel's backlog of a listener of std is 128, so they are taken in as they come.
                let mut taken = Vec::new();
                for _ in 0..CLIENTS {
                    let (mut far, _) = server.accept().expect("a client");
                    far.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                    let mut byte = [0; 2];
                    far.read_exact(&mut byte).expect("a number");
                    far.write_all(&byte).expect("it is sent");
                    taken.push(far);
                }
                taken
            });
            let clients: Vec<TcpStream> = from.within(|| {
                let connect = |_| TcpStream::connect_timeout(&to, PATIENCE).expect("a connection");
                (0..CLIENTS).map(connect).collect()
            });
            for (n, mut near) in clients.iter().enumerate() {
                near.write_all(&(n as u16).to_be_bytes()).expect("it is sent");
            }
            for (n, mut near) in clients.iter().enumerate() {
                near.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                let mut byte = [0; 2];
                near.read_exact(&mut byte).expect("an answer");
                assert_eq!(u16::from_be_bytes(byte), n as u16, "the answer of another");
            }
            let taken = echo.join().expect("the server is well");
            let open = list(node)[0].connections;
            assert_eq!((taken.len(), open), (CLIENTS, CLIENTS as u64));
        });
        eventually("all are over", PATIENCE, || list(node)[0].connections == 0);
    }
}

fn halves(world: &mut World) {
    let (node, pod) = (&world.nodes[0], &world.pods[0][0]);
    let stranger = &world.underlay.hosts[1].netns;
    let bytes: Vec<u8> = (0..3_000_000u32).map(|n| (n / 7) as u8).collect();
    for family in FAMILIES {
        let server = server(pod, family);
        done(
            node,
            &["port", "add", "a1", &format!("{}:8080:{POD_PORT}", any(family))],
        );
        let to = SocketAddr::new(hosts(world, family).0, 8080);
        for client_first in [true, false] {
            let (near, far) = connected(stranger, to, &server);
            let (mut one, mut other) = if client_first { (near, far) } else { (far, near) };
            std::thread::scope(|s| {
                let sender = s.spawn(|| {
                    one.write_all(&bytes).expect("it is sent");
                    one.shutdown(Shutdown::Write).expect("a half");
                    let mut back = Vec::new();
                    one.read_to_end(&mut back).expect("the other half");
                    back
                });
                let mut got = Vec::new();
                other.read_to_end(&mut got).expect("it ends");
                assert!(got == bytes, "{} bytes of {}", got.len(), bytes.len());
                other.write_all(&got).expect("the other half is open still");
                drop(other);
                assert!(sender.join().expect("the sender is well") == bytes);
            });
        }
    }
    eventually("all are over", PATIENCE, || {
        list(node).iter().all(|p| p.connections == 0)
    });
}

/// `podwire forward`, once it has said that it works.
fn forwarding(node: &Node, args: &[&str]) -> Program {
    let mut command = Command::new(PODWIRE);
    command
        .arg("--socket")
        .arg(&node.socket)
        .arg("forward")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("podwire starts");
    let mut line = String::new();
    let out = child.stdout.as_mut().expect("a pipe");
    BufReader::new(out).read_line(&mut line).expect("a line");
    assert!(line.contains("until this command ends"), "{line}");
    Program(child)
}

fn forward(world: &mut World) {
    let family = Family::V4;
    let host = &world.underlay.hosts[0].netns;
    let node = &world.nodes[0];
    let before = listening(host, "-t");
    let server = server(&world.pods[0][0], family);
    let to: SocketAddr = "127.0.0.1:8080".parse().expect("an address");
    for signal in [Signal::INT, Signal::KILL] {
        let child = forwarding(node, &["a1", "8080:8000"]);
        let _ = connected(host, to, &server);
        assert!(list(node).iter().all(|p| p.tied));
        let wrong = fails(node, &["port", "add", "b1", "8080"], 5);
        assert!(wrong.contains("held by pod default/a1"), "{wrong}");
        let pid = rustix::process::Pid::from_child(&child.0);
        rustix::process::kill_process(pid, signal).expect("it is ours");
        eventually("the port is closed", PATIENCE, || listening(host, "-t") == before);
    }
    assert!(list(node).is_empty());
    // The pod goes, and the command with it, with a word.
    let mut child = forwarding(node, &["a1", "8080:8000", "8081:8000"]);
    done(node, &["detach", "a1"]);
    let status = child.0.wait().expect("it ends");
    let mut wrong = String::new();
    let mut err = child.0.stderr.take().expect("a pipe");
    err.read_to_string(&mut wrong).expect("text");
    assert_eq!(status.code(), Some(6), "{wrong}");
    assert!(wrong.contains("pod default/a1 is gone"), "{wrong}");
    assert_eq!(listening(host, "-t"), before);
    // What is forwarded is not remembered: it was for somebody.
    let mut child = forwarding(node, &["b1", "8080:8000"]);
    world.nodes[0].end(Signal::KILL);
    assert_eq!(child.0.wait().expect("it ends").code(), Some(4));
    world.nodes[0].restart(host);
    assert_eq!(listening(host, "-t"), before);
    world.pods[0].remove(0);
}

fn with_the_pod(world: &mut World) {
    let host = &world.underlay.hosts[0].netns;
    let node = &world.nodes[0];
    let before = (listening(host, "-t"), listening(host, "-u"));
    let run = |ports: &[&str]| {
        let mut args = vec!["run", "--detach", "--name", "web"];
        args.extend(ports.iter().flat_map(|p| ["-p", *p]));
        say(node, &args)
    };
    let out = run(&["8080:8000", "0.0.0.0:53:5353/udp"]);
    let told = String::from_utf8_lossy(&out.stdout);
    assert!(
        told.contains("publishes 8080:8000/tcp 0.0.0.0:53:5353/udp"),
        "{out:?}"
    );
    assert!(listening(host, "-t").contains(&"127.0.0.1:8080".to_string()));
    // Nothing is made of a pod whose port is held, and its name is free.
    let args = ["run", "--detach", "--name", "two", "-p", "7000", "-p", "8080"];
    let wrong = fails(node, &args, 5);
    assert!(wrong.contains("held by pod default/web"), "{wrong}");
    assert_eq!(node.status().pods.len(), 2);
    for _ in 0..3 {
        done(node, &["detach", "web"]);
        assert_eq!((listening(host, "-t"), listening(host, "-u")), before);
        let out = run(&["8080:8000", "53:5353/udp", "8081-8089"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    // A pod that dies takes them along as well.
    let info = node.status().pods.into_iter().find(|p| p.pod.name == "web");
    let holder = info.and_then(|p| p.holder).expect("a process");
    let pid = rustix::process::Pid::from_raw(holder as i32).expect("a process");
    rustix::process::kill_process(pid, Signal::KILL).expect("it is ours");
    eventually("its ports are closed", PATIENCE, || {
        (listening(host, "-t"), listening(host, "-u")) == before
    });
    // Those of a command's pod end with the command.
    let child = Command::new(PODWIRE)
        .arg("--socket")
        .arg(&node.socket)
        .args(["run", "--name", "job", "-p", "8080:8000", "--", "sleep", "0.5"])
        .status()
        .expect("podwire runs");
    assert!(child.success());
    assert_eq!((listening(host, "-t"), listening(host, "-u")), before);
}

fn short(world: &mut World) {
    let (node, pod) = (&world.nodes[0], &world.pods[0][0]);
    let stranger = &world.underlay.hosts[1].netns;
    let server = server(pod, Family::V4);
    let to = SocketAddr::new(hosts(world, Family::V4).0, 8080);
    done(node, &["port", "add", "a1", "0.0.0.0:8080:8000"]);
    let _ = connected(stranger, to, &server);
    let pid = node.pid().to_string();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .count();
    let hard = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
    let hard = hard
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .expect("a limit");
    let hard: usize = hard
        .split_whitespace()
        .nth(4)
        .and_then(|n| n.parse().ok())
        .expect("a number");
    let soft = |n: usize| limit_to(&pid, n, hard);
    soft(open + 3);
    let clients: Vec<TcpStream> = stranger.within(|| {
        let connect = |_| TcpStream::connect_timeout(&to, PATIENCE).expect("the kernel takes it");
        (0..10).map(connect).collect()
    });
    eventually("it says so", PATIENCE, || {
        node.log().contains("clients of published ports wait")
    });
    let cpu = node.cpu();
    std::thread::sleep(Duration::from_secs(1));
    assert!(node.cpu() - cpu < Duration::from_millis(100), "it spins");
    soft(hard);
    for mut near in clients {
        near.write_all(b"?").expect("it is sent");
        let (mut far, _) = server.accept().expect("a connection");
        far.read_exact(&mut [0]).expect("it arrives");
    }
}

fn limit_to(pid: &str, soft: usize, hard: usize) {
    let limit = format!("--nofile={soft}:{hard}");
    let out = Command::new("prlimit").args(["--pid", pid, &limit]).output();
    let out = out.expect("prlimit");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
