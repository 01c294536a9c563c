//! Services: virtual addresses, node ports, and updates that lose nothing. Servers and clients are real programs, and the
//! kernels' stacks.

use super::netns::Netns;
use super::node::Node;
use super::pod::{PATIENCE, Pod};
use super::world::{Case, World, eventually};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_service_leads_to_pods_here_and_elsewhere", spread),
    Case::new("a_service_of_udp_leaves_a_dead_backend_at_once", udp),
    Case::new("a_port_that_nobody_serves_is_refused_at_once", refused).nodes(1),
    Case::new("a_node_port_leads_to_backends_anywhere", node_port),
    Case::new("a_node_port_of_udp_leads_to_backends_anywhere", udp_node_port),
    Case::new("connections_are_listed_and_ended", connections),
    Case::new("an_external_address_leads_to_backends_anywhere", external),
    Case::new(
        "a_local_node_port_shows_the_client_and_tells_its_health",
        local_node_port,
    ),
    Case::new("a_node_port_that_is_held_is_told_and_taken_later", held).nodes(1),
    Case::new("a_killed_node_has_its_services_again", again)
        .nodes(1)
        .pods(2),
    Case::new("a_rolling_update_under_load_loses_nothing", rolling).nodes(1),
    Case::new("scaling_up_and_down_under_load_loses_nothing", scaling).nodes(1),
    Case::new("bulk_through_a_virtual_address_arrives_whole", bulk),
];

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 7);
/// The servers' port in the pods.
pub const POD_PORT: u16 = 8000;

/// An HTTP server of HTTP/1.1 that tells a name and who asks, and on SIGTERM ends connections in good order.
const SERVER: &str = r#"
import http.server, signal, socket, sys, threading
name, ip, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
ending = threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = f"{name} {self.client_address[0]}\n".encode()
        if self.path.startswith("/bytes/"):
            body = bytes(range(251)) * (int(self.path[7:]) // 251)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if ending.is_set():
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    request_queue_size = 512
    daemon_threads = True
signal.signal(signal.SIGTERM, lambda *_: ending.set())
Server((ip, port), Handler).serve_forever()
"#;

/// Ask over and over, by connections that are kept and by new ones, until standard input ends; tells what failed.
const LOAD: &str = r#"
import http.client, json, sys, threading
host, port = sys.argv[1], int(sys.argv[2])
over, lock = threading.Event(), threading.Lock()
asked, failed, names = [0], [], {}
def ask(connection):
    connection.request("GET", "/")
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, answer.status
    with lock:
        asked[0] += 1
        name = body.split()[0].decode()
        names[name] = names.get(name, 0) + 1
def work(kept):
    connection = None
    while not over.is_set():
        try:
            if connection is None:
                connection = http.client.HTTPConnection(host, port, timeout=5)
            ask(connection)
            if not kept:
                connection.close()
                connection = None
        except Exception as e:
            with lock:
                failed.append(f"{'kept' if kept else 'new'}: {e!r}")
            connection = None
workers = [threading.Thread(target=work, args=(n % 2 == 0,)) for n in range(4)]
for w in workers: w.start()
print("begun", flush=True)
sys.stdin.read()
over.set()
for w in workers: w.join()
print(json.dumps({"asked": asked[0], "failed": failed, "names": names}), flush=True)
"#;

/// A program that is killed when dropped.
pub struct Program(pub Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).expect("a script");
    path
}

/// A server in a pod, at one of its addresses.
pub fn serve(pod: &Pod, ip: IpAddr, dir: &Path) -> Program {
    let path = script(dir, "server.py", SERVER);
    let mut python = Command::new("python3");
    python
        .arg(path)
        .args([pod.name.clone(), ip.to_string(), POD_PORT.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let child = pod.netns.within(|| python.spawn()).expect("python3");
    let at = SocketAddr::new(ip, POD_PORT);
    eventually("the server listens", PATIENCE, || {
        pod.netns.within(|| TcpStream::connect(at)).is_ok()
    });
    Program(child)
}

/// What a GET of the root tells.
pub fn get(from: &Netns, at: SocketAddr) -> std::io::Result<String> {
    from.within(|| {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut told = String::new();
        stream.read_to_string(&mut told)?;
        let body = told
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.trim().to_string());
        Ok(body.unwrap_or_default())
    })
}

/// Apply manifests at a node.
#[track_caller]
pub fn apply(node: &Node, dir: &Path, text: &str) {
    let path = script(dir, "manifest.yaml", text);
    let out = node.podwire(&["service", "apply", "-f", &path.to_string_lossy()]);
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{wrong}\n{text}");
}

pub fn say(node: &Node, args: &[&str]) -> String {
    let out = node.podwire(args);
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {wrong}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A Service at a virtual address without a selector, port 80, with `more` in its spec; and its backends.
pub fn with_backends(vip: IpAddr, protocol: &str, more: &str, backends: &[IpAddr]) -> String {
    let (family, kind) = match vip {
        IpAddr::V4(_) => ("IPv4", "IPv4"),
        IpAddr::V6(_) => ("IPv6", "IPv6"),
    };
    let addresses: String = backends
        .iter()
        .map(|ip| format!("- addresses: [\"{ip}\"]\n"))
        .collect();
    let endpoints = match addresses.is_empty() {
        true => "endpoints: []\n".to_string(),
        false => format!("endpoints:\n{addresses}"),
    };
    let name = family.to_lowercase();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web-{name}}}\nspec:\n  clusterIP: \"{vip}\"\n  ipFamilies: \
         [{family}]\n{more}  ports:\n  - {{port: 80, targetPort: {POD_PORT}, protocol: {protocol}}}\n---\napiVersion: \
         discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-{name}-1\n  labels: \
         {{kubernetes.io/service-name: web-{name}}}\naddressType: {kind}\n{endpoints}ports:\n- {{port: {POD_PORT}, \
         protocol: {protocol}}}\n"
    )
}

fn spread(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let (client, node) = (&a.netns, &w.nodes[0]);
    for (vip, ends) in [
        (IpAddr::from(VIP), [IpAddr::from(a.ip4), b.ip4.into()]),
        (
            "fd00:10:96::77".parse().expect("an address"),
            [a.ip6.into(), b.ip6.into()],
        ),
    ] {
        let servers = [serve(a, ends[0], &dir), serve(b, ends[1], &dir)];
        apply(node, &dir, &with_backends(vip, "TCP", "", &ends));
        let at = SocketAddr::new(vip, 80);
        let mut told: BTreeMap<String, usize> = BTreeMap::new();
        for _ in 0..40 {
            *told.entry(get(client, at).expect("an answer")).or_default() += 1;
        }
        // A backend elsewhere sees the client; the pod itself, of which the address would mean itself, sees the gateway.
        let other = format!("{} {}", b.name, ends[0]);
        assert!(told.contains_key(&other), "{told:?}");
        assert!(told.keys().any(|k| k.starts_with(&a.name)), "{told:?}");
        assert_eq!(told.len(), 2, "{told:?}");
        drop(servers);
        say(
            node,
            &[
                "service",
                "delete",
                if vip.is_ipv4() { "web-ipv4" } else { "web-ipv6" },
            ],
        );
        let began = Instant::now();
        assert!(get(client, at).is_err());
        assert!(began.elapsed() < Duration::from_secs(5), "it is no black hole");
    }
}

/// A UDP server that answers with its pod's name, until dropped.
struct Echo(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl Echo {
    fn start(pod: &Pod) -> Echo {
        let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let socket = pod
            .netns
            .within(|| UdpSocket::bind((pod.ip4, POD_PORT)))
            .expect("a socket");
        let _ = socket.set_read_timeout(Some(Duration::from_millis(20)));
        let (ended, name) = (over.clone(), pod.name.clone());
        std::thread::spawn(move || {
            let mut room = [0; 64];
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok((_, from)) = socket.recv_from(&mut room) {
                    let _ = socket.send_to(name.as_bytes(), from);
                }
            }
        });
        Echo(over)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

fn udp(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let node = &w.nodes[0];
    let other = Pod::attach(node, "other");
    let (_one, _two) = (Echo::start(b), Echo::start(&other));
    let both: [IpAddr; 2] = [b.ip4.into(), other.ip4.into()];
    apply(node, &dir, &with_backends(VIP.into(), "UDP", "", &both));
    let socket = a
        .netns
        .within(|| UdpSocket::bind((a.ip4, 5353)))
        .expect("a socket");
    socket.connect((VIP, 80)).expect("a way");
    let _ = socket.set_read_timeout(Some(Duration::from_secs(2)));
    let ask = || {
        let mut room = [0; 64];
        socket.send(b"who").expect("it leaves");
        let n = socket.recv(&mut room).expect("an answer");
        String::from_utf8_lossy(&room[..n]).into_owned()
    };
    let first = ask();
    for _ in 0..20 {
        assert_eq!(ask(), first, "a flow stays where it is");
    }
    // Its backend goes; the same socket has an answer from the other one at once.
    let left = both
        .iter()
        .copied()
        .find(|ip| (*ip == b.ip4) != (first == b.name));
    let left = left.expect("the other one");
    apply(node, &dir, &with_backends(VIP.into(), "UDP", "", &[left]));
    let next = ask();
    assert_ne!(next, first);
}

fn refused(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (pod, node) = (&w.pods[0][0], &w.nodes[0]);
    apply(node, &dir, &with_backends(VIP.into(), "TCP", "", &[]));
    for port in [80, 81] {
        let began = Instant::now();
        let at = SocketAddr::new(VIP.into(), port);
        let tried = pod.netns.within(|| TcpStream::connect(at));
        let kind = tried.expect_err("nobody serves it").kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "port {port}");
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    pod.reaches(VIP, 2, &[]);
}

fn node_port(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let (node, host) = (&w.nodes[0], &w.underlay.hosts[0]);
    let _servers = [serve(a, a.ip4.into(), &dir), serve(b, b.ip4.into(), &dir)];
    let both: [IpAddr; 2] = [a.ip4.into(), b.ip4.into()];
    let text = with_backends(VIP.into(), "TCP", "  type: NodePort\n", &both);
    apply(
        node,
        &dir,
        &text.replace("{port: 80,", "{port: 80, nodePort: 30080,"),
    );
    let stranger = &w.underlay.hosts[2];
    for (from, at) in [
        (&host.netns, SocketAddr::from(([127, 0, 0, 1], 30080))),
        (&stranger.netns, SocketAddr::new(host.ip4.into(), 30080)),
    ] {
        let mut names = BTreeMap::new();
        for _ in 0..30 {
            let told = get(from, at).expect("an answer");
            let (name, client) = told.split_once(' ').expect("two words");
            names.insert(name.to_string(), client.to_string());
        }
        assert_eq!(names.len(), 2, "{names:?}");
        // The backend of this node sees the client's own address, if that is not the host itself.
        if at.ip() == host.ip4 {
            assert_eq!(names[&a.name], stranger.ip4.to_string());
        }
        assert!(names[&b.name].starts_with("10.244.1."), "{names:?}");
    }
    // What pods send to their own node's port leads there too.
    let told = get(&a.netns, "10.244.1.0:30080".parse().expect("an address"));
    told.expect("an answer");
    // Bulk, from a backend of the other node too.
    let url = format!("http://{}:30080/bytes/20000000", host.ip4);
    for _ in 0..4 {
        let got = stranger
            .netns
            .run("curl", &["-sS", "--noproxy", "*", "-m", "20", &url]);
        assert_eq!(
            got.stdout.len(),
            20_000_000 / 251 * 251,
            "{}",
            String::from_utf8_lossy(&got.stderr)
        );
        assert!(
            got.stdout
                .chunks(251)
                .all(|c| c.iter().enumerate().all(|(n, b)| n == usize::from(*b)))
        );
    }
    say(node, &["service", "delete", "web-ipv4"]);
    eventually("the port is closed", PATIENCE, || {
        get(&host.netns, SocketAddr::from(([127, 0, 0, 1], 30080))).is_err()
    });
}

fn udp_node_port(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let (node, host, stranger) = (&w.nodes[0], &w.underlay.hosts[0], &w.underlay.hosts[2]);
    let (_one, _two) = (Echo::start(a), Echo::start(b));
    let text = with_backends(
        VIP.into(),
        "UDP",
        "  type: NodePort\n",
        &[a.ip4.into(), b.ip4.into()],
    );
    apply(
        node,
        &dir,
        &text.replace("{port: 80,", "{port: 80, nodePort: 30053,"),
    );
    let mut names = std::collections::BTreeSet::new();
    for n in 0..30 {
        let socket = stranger
            .netns
            .within(|| UdpSocket::bind((stranger.ip4, 20_000 + n)))
            .expect("a socket");
        let _ = socket.set_read_timeout(Some(Duration::from_secs(2)));
        let mut room = [0; 64];
        socket.send_to(b"who", (host.ip4, 30053)).expect("it leaves");
        let (len, from) = socket.recv_from(&mut room).expect("an answer");
        assert_eq!(from, (host.ip4, 30053).into());
        names.insert(String::from_utf8_lossy(&room[..len]).into_owned());
    }
    assert_eq!(names.len(), 2, "{names:?}");
}

fn connections(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let node = &w.nodes[0];
    let _server = serve(b, b.ip4.into(), &dir);
    apply(node, &dir, &with_backends(VIP.into(), "TCP", "", &[b.ip4.into()]));
    let mut kept = a.netns.within(|| TcpStream::connect((VIP, 80))).expect("a way");
    let _ = kept.set_read_timeout(Some(PATIENCE));
    let listed = |args: &[&str]| -> serde_json::Value {
        let all = [&["conn", "--json"], args].concat();
        serde_json::from_str(&say(node, &all)).expect("JSON")
    };
    let told = listed(&["--pod", &a.name]);
    assert_eq!(told["count"], 1, "{told}");
    let one = &told["connections"][0];
    assert_eq!(one["backend"], format!("{}:{POD_PORT}", b.ip4));
    assert_eq!(
        (one["service"].as_str(), one["state"].as_str()),
        (Some("default/web-ipv4"), Some("open"))
    );
    assert_eq!(listed(&["--proto", "udp"])["count"], 0);
    assert!(say(node, &["conn"]).contains("default/web-ipv4"));
    assert!(say(node, &["service", "describe", "web-ipv4"]).contains("1 open"));
    // Not by mistake.
    assert_eq!(node.podwire(&["conn", "--kill"]).status.code(), Some(2));
    say(node, &["conn", "--service", "web-ipv4", "--kill"]);
    assert_eq!(listed(&[])["count"], 0);
    let ended = kept
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .and_then(|()| kept.read(&mut [0; 64]));
    let kind = ended.map_err(|e| e.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::ConnectionReset));
}

fn external(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let (node, host, stranger) = (&w.nodes[0], &w.underlay.hosts[0], &w.underlay.hosts[2]);
    let _servers = [serve(a, a.ip4.into(), &dir), serve(b, b.ip4.into(), &dir)];
    let more = format!("  externalIPs: [{}, 192.0.2.200]\n", host.ip4);
    apply(
        node,
        &dir,
        &with_backends(VIP.into(), "TCP", &more, &[a.ip4.into(), b.ip4.into()]),
    );
    // Who is outside reaches the address this host has; pods reach that one, and the one nobody has.
    let here = SocketAddr::new(host.ip4.into(), 80);
    let nobodys = "192.0.2.200:80".parse().expect("an address");
    for (from, at) in [(&stranger.netns, here), (&a.netns, here), (&a.netns, nobodys)] {
        let mut names = std::collections::BTreeSet::new();
        for _ in 0..30 {
            let told = get(from, at).expect("an answer");
            names.extend(told.split(' ').next().map(String::from));
        }
        assert_eq!(names.len(), 2, "{at}: {names:?}");
    }
    assert!(get(&stranger.netns, nobodys).is_err());
    say(node, &["service", "delete", "web-ipv4"]);
    eventually("the port is closed", PATIENCE, || {
        get(&stranger.netns, here).is_err()
    });
}

fn local_node_port(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let _servers = [serve(a, a.ip4.into(), &dir), serve(b, b.ip4.into(), &dir)];
    let host = &w.underlay.hosts[0];
    let policy = "  type: NodePort\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30999\n";
    let text = |backends: &[IpAddr]| {
        with_backends(VIP.into(), "TCP", policy, backends)
            .replace("{port: 80,", "{port: 80, nodePort: 30081,")
    };
    let at = SocketAddr::new(host.ip4.into(), 30081);
    apply(&w.nodes[0], &dir, &text(&[a.ip4.into(), b.ip4.into()]));
    for _ in 0..10 {
        let told = get(&w.underlay.hosts[2].netns, at).expect("an answer");
        assert_eq!(told, format!("{} {}", a.name, w.underlay.hosts[2].ip4));
    }
    let health = SocketAddr::new(host.ip4.into(), 30999);
    let told = |from: &Netns| {
        from.within(|| {
            let mut stream = TcpStream::connect(health).expect("a health check");
            stream
                .write_all(b"GET /healthz HTTP/1.0\r\n\r\n")
                .expect("it is asked");
            let mut told = String::new();
            stream.read_to_string(&mut told).expect("an answer");
            told
        })
    };
    let said = told(&w.underlay.hosts[2].netns);
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(said.contains("\"localEndpoints\":1"), "{said}");
    // No backend here: not the other node's instead.
    apply(&w.nodes[0], &dir, &text(&[b.ip4.into()]));
    let said = told(&w.underlay.hosts[2].netns);
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    assert!(get(&w.underlay.hosts[2].netns, at).is_err());
}

fn held(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, node, host) = (&w.pods[0][0], &w.nodes[0], &w.underlay.hosts[0]);
    let _server = serve(a, a.ip4.into(), &dir);
    let squatter = host
        .netns
        .within(|| std::net::TcpListener::bind(("0.0.0.0", 30082)))
        .expect("a port");
    let text = with_backends(VIP.into(), "TCP", "  type: NodePort\n", &[a.ip4.into()]);
    apply(
        node,
        &dir,
        &text.replace("{port: 80,", "{port: 80, nodePort: 30082,"),
    );
    let problems = node.status().problems.join("\n");
    assert!(
        problems.contains("30082") && problems.contains("web-ipv4"),
        "{problems}"
    );
    // The rest goes on.
    get(&a.netns, (VIP, 80).into()).expect("an answer");
    drop(squatter);
    eventually("the port is taken", Duration::from_secs(15), || {
        get(&host.netns, "127.0.0.1:30082".parse().expect("an address")).is_ok()
    });
    assert!(!node.status().problems.join("\n").contains("30082"));
    // A pod that wants it is told whose it is.
    let out = node.podwire(&["port", "add", &a.name, "30082:80"]);
    let wrong = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && wrong.contains("web-ipv4"), "{wrong}");
}

/// A Service of the pods with the label `app=web`.
pub fn of_label() -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  clusterIP: {VIP}\n  selector: {{app: web}}\n  \
         ports:\n  - {{port: 80, targetPort: {POD_PORT}}}\n"
    )
}

fn again(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (client, server) = (&w.pods[0][0], &w.pods[0][1]);
    let (node, host) = (&mut w.nodes[0], &w.underlay.hosts[0].netns);
    let _server = serve(server, server.ip4.into(), &dir);
    say(node, &["label", &server.name, "app=web"]);
    let text = of_label().replace("spec:", "spec:\n  type: NodePort");
    apply(
        node,
        &dir,
        &text.replace("{port: 80,", "{port: 80, nodePort: 30083,"),
    );
    let outside = "127.0.0.1:30083".parse().expect("an address");
    for killed in [false, true] {
        if killed {
            node.end(Signal::KILL);
            node.restart(host);
            // At once: what stands behind it is known before pods can ask.
            get(&client.netns, (VIP, 80).into()).expect("an answer");
        }
        eventually("it is reached", PATIENCE, || {
            get(&client.netns, (VIP, 80).into()).is_ok()
        });
        get(host, outside).expect("an answer");
    }
}

/// Load from a pod, and what became of it.
struct Load(Program);

impl Load {
    fn start(pod: &Pod, dir: &Path) -> Load {
        let path = script(dir, "load.py", LOAD);
        let mut python = Command::new("python3");
        python
            .arg(path)
            .args([VIP.to_string(), "80".to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Load(Program(pod.netns.within(|| python.spawn()).expect("python3")))
    }

    fn end(mut self) -> serde_json::Value {
        drop(self.0.0.stdin.take());
        let mut told = String::new();
        let mut out = self.0.0.stdout.take().expect("a pipe");
        out.read_to_string(&mut told).expect("what it tells");
        serde_json::from_str(told.lines().last().unwrap_or_default()).expect("JSON")
    }
}

/// A pod that serves, and joins the Service when it does.
fn join(node: &Node, name: &str, dir: &Path) -> (Pod, Program) {
    let pod = Pod::attach(node, name);
    let server = serve(&pod, pod.ip4.into(), dir);
    say(node, &["label", name, "app=web"]);
    (pod, server)
}

/// What a runtime does with a pod that ends: no new flows, the program is told, and time for the rest.
fn leave(node: &Node, (pod, server): &(Pod, Program)) {
    say(node, &["drain", &pod.name, "--grace", "3s"]);
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is told");
}

/// Nothing failed, and all of these answered.
fn lossless(told: &serde_json::Value, names: usize) {
    let failed = told["failed"].as_array().expect("a list");
    assert!(
        failed.is_empty(),
        "{} failed: {:?}",
        failed.len(),
        &failed[..failed.len().min(5)]
    );
    let answered = told["names"].as_object().expect("names").len();
    assert!(answered >= names, "{told}");
    assert!(told["asked"].as_u64() > Some(100), "{told}");
}

fn rolling(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (client, node) = (&w.pods[0][0], &w.nodes[0]);
    apply(node, &dir, &of_label());
    let mut old: Vec<(Pod, Program)> = (1..=3).map(|n| join(node, &format!("old-{n}"), &dir)).collect();
    let load = Load::start(client, &dir);
    std::thread::sleep(Duration::from_millis(500));
    let mut new = Vec::new();
    for (n, one) in old.iter().enumerate() {
        new.push(join(node, &format!("new-{n}"), &dir));
        leave(node, one);
        std::thread::sleep(Duration::from_millis(300));
    }
    eventually("the old ones are gone", PATIENCE, || {
        !say(node, &["pods"]).contains("old-")
    });
    old.clear();
    std::thread::sleep(Duration::from_millis(300));
    lossless(&load.end(), 6);
}

fn scaling(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (client, node) = (&w.pods[0][0], &w.nodes[0]);
    apply(node, &dir, &of_label());
    let first = join(node, "web-0", &dir);
    let load = Load::start(client, &dir);
    let began = Instant::now();
    let more: Vec<(Pod, Program)> = (1..50).map(|n| join(node, &format!("web-{n}"), &dir)).collect();
    more.iter().for_each(|one| leave(node, one));
    eventually("one is left", Duration::from_secs(30), || {
        say(node, &["pods"]).matches("web-").count() == 1
    });
    println!("1 to 50 to 1 took {:?}", began.elapsed());
    let told = load.end();
    lossless(&told, 10);
    drop((more, first));
}

fn bulk(w: &mut World) {
    let dir = w.dir().to_path_buf();
    let (a, b) = w.pair();
    let node = &w.nodes[0];
    let _server = serve(b, b.ip4.into(), &dir);
    apply(node, &dir, &with_backends(VIP.into(), "TCP", "", &[b.ip4.into()]));
    let mut stream = a.netns.within(|| TcpStream::connect((VIP, 80))).expect("a way");
    stream
        .write_all(b"GET /bytes/100000000 HTTP/1.0\r\n\r\n")
        .expect("it is asked");
    let _ = stream.shutdown(Shutdown::Write);
    let mut got = Vec::new();
    stream.read_to_end(&mut got).expect("all of it");
    let at = got.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let body = &got[at..];
    assert_eq!(body.len(), 100_000_000 / 251 * 251);
    assert!(
        body.chunks(251)
            .all(|c| c.iter().enumerate().all(|(n, b)| n == usize::from(*b)))
    );
}
