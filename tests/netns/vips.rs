//! Services at their edges: SCTP, datagrams longer than a path takes, and addresses of backends that are used again.

use super::impair::Impairment;
use super::netns::Netns;
use super::pod::{PATIENCE, Pod};
use super::raw::Raw;
use super::services::{POD_PORT, Program, VIP, apply, get, of_label, say, script, serve, with_backends};
use super::world::{Case, World, eventually};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("sctp_goes_through_a_virtual_address_and_back", sctp),
    Case::new(
        "long_datagrams_go_through_a_node_port_and_back_whatever_the_path",
        long_datagrams,
    ),
    Case::new("whoever_gets_a_backends_address_gets_none_of_its_flows", reused).nodes(1),
];

/// SCTP by hand, over raw sockets: a server that answers INIT and COOKIE ECHO, and a client that opens an association
/// and aborts it, or is told by ICMP that nobody is there.
const SCTP: &str = r#"
import select, socket, struct, sys, time
TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82f63b78 if n & 1 else 0)
    TABLE.append(n)
def crc(data):
    c = 0xffffffff
    for b in data:
        c = TABLE[(c ^ b) & 255] ^ c >> 8
    return c ^ 0xffffffff
def packet(sport, dport, tag, chunk):
    head = struct.pack("!HHI", sport, dport, tag)
    return head + struct.pack("<I", crc(head + bytes(4) + chunk)) + chunk
def chunk(kind, body=b""):
    return struct.pack("!BBH", kind, 0, 4 + len(body)) + body + bytes(-len(body) % 4)
def parsed(data):
    if not six:
        data = data[(data[0] & 15) * 4:]
    sport, dport, tag = struct.unpack("!HHI", data[:8])
    right = struct.unpack("<I", data[8:12])[0] == crc(data[:8] + bytes(4) + data[12:])
    return sport, dport, tag, right, data[12], data[16:]
mode, ip, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
six = ":" in ip
family = socket.AF_INET6 if six else socket.AF_INET
s = socket.socket(family, socket.SOCK_RAW, 132)
if mode == "server":
    s.bind((ip, 0))
    print("ready", flush=True)
    tags = {}
    while True:
        data, peer = s.recvfrom(65535)
        sport, dport, tag, right, kind, body = parsed(data)
        if dport != port:
            continue
        if not right:
            print("a wrong checksum", flush=True)
            continue
        if kind == 1:
            tags[peer[0], sport] = body[:4]
            cookie = struct.pack("!HH", 7, 4 + len(sys.argv[4])) + sys.argv[4].encode()
            body = struct.pack("!IIHHI", 77, 65536, 1, 1, 1) + cookie
            answer = chunk(2, body)
        elif kind == 10 and tag == 77:
            answer = chunk(11)
        else:
            print("chunk", kind, flush=True)
            continue
        theirs = struct.unpack("!I", tags[peer[0], sport])[0]
        s.sendto(packet(port, sport, theirs, answer), (peer[0], 0))
else:
    own = int(sys.argv[4])
    said = socket.socket(family, socket.SOCK_RAW, 58 if six else 1)
    def wait(kind):
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for ready in select.select([s, said], [], [], 0.2)[0]:
                data, peer = ready.recvfrom(65535)
                if ready is said:
                    icmp = data if six else data[(data[0] & 15) * 4:]
                    if (icmp[0], icmp[1]) == ((1, 4) if six else (3, 3)):
                        sys.exit("refused")
                    continue
                sport, dport, tag, right, got, body = parsed(data)
                if dport == own:
                    assert (peer[0], sport, tag, right, got) == (ip, port, 99, True, kind), (peer, sport, tag, right, got)
                    return body
        sys.exit("no answer")
    def send(tag, what):
        s.sendto(packet(own, port, tag, what), (ip, 0))
    send(0, chunk(1, struct.pack("!IIHHI", 99, 65536, 1, 1, 1)))
    body = wait(2)
    tag, = struct.unpack("!I", body[:4])
    cookie = body[20:20 + struct.unpack("!H", body[18:20])[0] - 4]
    send(tag, chunk(10, cookie))
    wait(11)
    if len(sys.argv) > 5:
        send(tag, chunk(6))
    print(cookie.decode())
"#;

fn sctp_server(pod: &Pod, ip: IpAddr, path: &Path) -> Program {
    let mut python = Command::new("python3");
    let (ip, port) = (ip.to_string(), POD_PORT.to_string());
    python
        .arg(path)
        .args(["server", &ip, &port, &pod.name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = pod.netns.within(|| python.spawn()).expect("python3");
    let mut ready = [0; 6];
    let out = child.stdout.as_mut().expect("a pipe");
    out.read_exact(&mut ready).expect("it is ready");
    Program(child)
}

fn sctp(w: &mut World) {
    let path = script(w.dir(), "sctp.py", SCTP);
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let node = &w.nodes[0];
    let client = |vip: IpAddr, own: u16, more: &[&str]| {
        let (vip, own) = (vip.to_string(), own.to_string());
        let path = path.to_string_lossy();
        let args = [&[&*path, "client", &vip, "80", &own], more].concat();
        let out = a.netns.run("python3", &args);
        match out.status.success() {
            true => Ok(String::from_utf8_lossy(&out.stdout).trim().to_string()),
            false => Err(String::from_utf8_lossy(&out.stderr).trim().to_string()),
        }
    };
    let other = Pod::attach(node, "other");
    for (vip, ends) in [
        (IpAddr::from(VIP), [IpAddr::from(other.ip4), b.ip4.into()]),
        (
            "fd00:10:96::77".parse().expect("an address"),
            [other.ip6.into(), b.ip6.into()],
        ),
    ] {
        let _servers = [
            sctp_server(&other, ends[0], &path),
            sctp_server(b, ends[1], &path),
        ];
        apply(node, &dir, &with_backends(vip, "SCTP", "", &ends));
        let mut names = BTreeSet::new();
        for own in 5000..5012 {
            names.insert(client(vip, own, &["abort"]).expect("an association"));
        }
        assert_eq!(names.len(), 2, "here and on the other node: {names:?}");
        client(vip, 5100, &[]).expect("an association");
        let told = say(node, &["conn", "--proto", "sctp", "--state", "open", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["count"], 1, "{told}");
        // Nobody is there: at once.
        apply(node, &dir, &with_backends(vip, "SCTP", "", &[]));
        let began = Instant::now();
        assert_eq!(client(vip, 5200, &[]), Err("refused".to_string()));
        assert!(began.elapsed() < Duration::from_secs(3));
    }
}

/// A UDP server that sends back what it gets, until dropped.
struct Mirror<'a>(&'a AtomicBool);

impl Drop for Mirror<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A path that takes frames of 1,414 bytes and says nothing of longer ones.
const HOLE: Impairment = Impairment {
    longest: Some(14 + 1400),
    ..super::ways::PERFECT
};

fn long_datagrams(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let (node, host) = (&w.nodes[0], &w.underlay.hosts[0]);
    let text = with_backends(VIP.into(), "UDP", "  type: NodePort\n", &[b.ip4.into()]);
    apply(
        node,
        &dir,
        &text.replace("{port: 80,", "{port: 80, nodePort: 30054,"),
    );
    let over = AtomicBool::new(false);
    let server = b
        .netns
        .within(|| UdpSocket::bind((b.ip4, POD_PORT)))
        .expect("a socket");
    let _ = server.set_read_timeout(Some(Duration::from_millis(20)));
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut room = vec![0; 65_535];
            while !over.load(Ordering::Relaxed) {
                if let Ok((n, from)) = server.recv_from(&mut room) {
                    let _ = server.send_to(&room[..n], from);
                }
            }
        });
        let _mirror = Mirror(&over);
        for impairment in [super::ways::PERFECT, HOLE] {
            w.underlay.relay.impair_all(impairment);
            if impairment.longest.is_some() {
                eventually("both nodes know the path", Duration::from_secs(30), || {
                    a.ping(b.ip4, 3, &["-s", "1400", "-W", "0.2"]);
                    w.nodes.iter().all(|n| n.status().peers[0].pod_mtu.0 == 1350)
                });
            }
            ask_at_length(&host.netns);
        }
        w.underlay.relay.impair_all(super::ways::PERFECT);
    });
    for node in &w.nodes {
        let drops = node.status().drops;
        assert_eq!(drops.get("egress_protocol"), None, "{drops:?}");
    }
}

/// Datagrams of all lengths to the node port, and back.
fn ask_at_length(from: &Netns) {
    let socket = from.within(|| UdpSocket::bind("127.0.0.1:0")).expect("a socket");
    socket.connect("127.0.0.1:30054").expect("a way");
    let _ = socket.set_read_timeout(Some(Duration::from_secs(1)));
    let mut room = vec![0; 65_536];
    for len in [1, 1300, 1350, 1400, 1472, 1500, 4000, 30_000, 65_507] {
        let sent: Vec<u8> = (0..len).map(|i| (i % 251) as u8 ^ len as u8).collect();
        // The backend's kernel learns of the path by the first answer, which is lost with that.
        let back = (0..5).find_map(|_| {
            socket.send(&sent).expect("it leaves");
            socket.recv(&mut room).ok()
        });
        let n = back.unwrap_or_else(|| panic!("{len} bytes: no answer"));
        assert!(room[..n] == sent, "{len} bytes: {n} came back");
    }
}

/// What goes on at a virtual address while its backends change: datagrams from one socket, bytes on one connection.
struct Talk {
    udp: UdpSocket,
    tcp: TcpStream,
}

impl Talk {
    fn begin(pod: &Pod) -> Talk {
        let udp = pod
            .netns
            .within(|| UdpSocket::bind((pod.ip4, 0)))
            .expect("a socket");
        udp.connect((VIP, 80)).expect("a way");
        let at = SocketAddr::new(VIP.into(), 80);
        let tcp = pod.netns.within(|| TcpStream::connect_timeout(&at, PATIENCE));
        let tcp = tcp.expect("a connection");
        tcp.set_nodelay(true).expect("a socket");
        Talk { udp, tcp }
    }

    /// Say something on both each millisecond until told; how the connection ended.
    fn go_on(&mut self, over: &AtomicBool) -> Option<ErrorKind> {
        let mut ended = None;
        while !over.load(Ordering::Relaxed) {
            // Nobody may be there for a while.
            let _ = self.udp.send(b"to whoever serves");
            if ended.is_none() {
                ended = self.tcp.write_all(b"x").err().map(|e| e.kind());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        ended
    }
}

/// Frames from a client to the servers' port of a pod: UDP, and TCP other than a new connection's first.
fn strays(ear: &Raw, from: IpAddr) -> (usize, usize) {
    let (mut udp, mut tcp) = (0, 0);
    ear.frames(|f| {
        let IpAddr::V4(from) = from else { return };
        if f.len() < 48 || f[12..14] != [8, 0] || f[26..30] != from.octets() {
            return;
        }
        match (f[23], f[36..38] == POD_PORT.to_be_bytes()) {
            (17, true) => udp += 1,
            (6, true) if f[47] & 2 == 0 => tcp += 1,
            _ => {}
        }
    });
    (udp, tcp)
}

/// Rows 57 and 58 of the fault table, on one node.
fn reused(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (client, node) = (&w.pods[0][0], &w.nodes[0]);
    let selector = of_label()
        .replace(
            "ports:\n",
            "ports:\n  - {name: udp, protocol: UDP, port: 80, targetPort: 8000}\n",
        )
        .replace("{port: 80,", "{name: tcp, port: 80,");
    apply(node, &dir, &selector);
    let address = Pod::attach(node, "first");
    let ip4 = address.ip4;
    say(node, &["detach", "first"]);
    drop(address);
    for round in 0..3 {
        let old = Pod::attach_with(node, &format!("old-{round}"), Some(ip4));
        let server = serve(&old, ip4.into(), &dir);
        say(node, &["label", &old.name, "app=web"]);
        let mut talk = Talk::begin(client);
        let udp = talk.udp.try_clone().expect("a socket");
        let over = AtomicBool::new(false);
        std::thread::scope(|s| {
            let talking = s.spawn(|| talk.go_on(&over));
            std::thread::sleep(Duration::from_millis(100));
            let began = Instant::now();
            say(node, &["detach", &old.name]);
            let new = Pod::attach_now(node, &format!("new-{round}"), Some(ip4));
            let ear = Raw::listener(&new);
            assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
            std::thread::sleep(Duration::from_millis(700));
            let heard = strays(&ear, client.ip4.into());
            over.store(true, Ordering::Relaxed);
            let ended = talking.join().expect("it ends");
            assert_eq!(heard, (0, 0), "round {round}: datagrams, segments");
            assert_eq!(ended, Some(ErrorKind::ConnectionReset), "round {round}");
            // Once it serves, it is a backend as any other; of the old connection it never hears.
            let _server = serve(&new, ip4.into(), &dir);
            say(node, &["label", &new.name, "app=web"]);
            get(&client.netns, (VIP, 80).into()).expect("an answer");
            let _ = strays(&ear, client.ip4.into());
            // The first one may be told of what came before.
            let _ = udp.send(b"to the new one");
            let _ = udp.send(b"to the new one");
            eventually("datagrams come", PATIENCE, || {
                strays(&ear, client.ip4.into()).0 > 0
            });
            say(node, &["detach", &new.name]);
        });
        drop(server);
    }
}
