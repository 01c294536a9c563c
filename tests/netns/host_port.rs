//! The host as a port: `podwire0` on the hosts of n1 and n2.
//!
//! ```text
//!   a1, b1 -- TAPs -- n1                       n2 -- TAPs -- a2, b2
//!   podwire0 -- TAP --'|                       |'-- TAP -- podwire0   10.244.2.1, fd00:10:244:2::1
//!   host of n1         === relay === underlay ===         host of n2
//! ```

use super::netns::Netns;
use super::node::PODWIRE;
use super::pod::{FAMILIES, Family, PATIENCE, Ping, Place};
use super::traffic::{MB, at_once, connect, stream};
use super::world::{Case, World, eventually};
use podwire::model::DropReason;
use rustix::process::Signal;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("the_host_reaches_pods_and_is_reached", reached)
        .pods(2)
        .node_args(ON),
    Case::new("super_frames_between_host_and_pods", bulk)
        .node_args(ON)
        .whole_trains(),
    Case::new("names_at_the_hosts_port", names).node_args(ON),
    Case::new("published_ports_beside_the_hosts_port", published)
        .nodes(1)
        .pods(2)
        .node_args(ON),
    Case::new("the_host_reaches_services", services).node_args(&[
        "--host-port",
        "on",
        "--service-cluster-ip",
        "10.96.0.0/16",
    ]),
    Case::new("the_hosts_port_ends_with_its_node", ends).node_args(ON),
    Case::new("the_hosts_port_follows_the_peers", follows).node_args(ON),
    Case::new("what_is_in_the_way_of_the_hosts_port", in_the_way).nodes(1),
    Case::new("the_host_is_held_to_its_address", spoofs).node_args(ON),
    Case::new("pods_find_only_the_gateway_at_the_host", closed)
        .nodes(1)
        .node_args(ON),
];

const ON: &[&str] = &["--host-port", "on"];

/// The host of a node, by its port in the pod network.
struct HostOf<'w> {
    name: String,
    netns: &'w Netns,
    number: usize,
}

impl HostOf<'_> {
    fn new(world: &World, number: usize) -> HostOf<'_> {
        HostOf {
            name: format!("host of n{number}"),
            netns: &world.underlay.hosts[number - 1].netns,
            number,
        }
    }

    fn ping(&self, to: IpAddr) -> Ping {
        let to = to.to_string();
        let args = ["-n", "-c", "3", "-i", "0.01", "-W", "1", "-w", "5", &to];
        Ping::of(&self.netns.run("ping", &args))
    }
}

impl Place for HostOf<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn netns(&self) -> &Netns {
        self.netns
    }

    fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => gateway4(self.number).into(),
            Family::V6 => gateway6(self.number).into(),
        }
    }
}

fn gateway4(node: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node as u8, 1)
}

fn gateway6(node: usize) -> Ipv6Addr {
    format!("fd00:10:244:{node}::1").parse().expect("an address")
}

fn has_port(netns: &Netns, name: &str) -> bool {
    netns.run("ip", &["link", "show", name]).status.success()
}

/// Each host pings, and exchanges bytes with, all pods and the other host, each way; and pings itself nothing out of it.
fn reached(world: &mut World) {
    for number in [1, 2] {
        let host = HostOf::new(world, number);
        for family in FAMILIES {
            for pod in world.all_pods() {
                host.ping(pod.ip(family)).all(3);
                at_once(&host, pod, family);
                at_once(pod, &host, family);
                // The node answers pings of its gateway, also those of the other node's pods.
                pod.reaches(host.ip(family), 3, &[]);
            }
        }
    }
    let (one, two) = (HostOf::new(world, 1), HostOf::new(world, 2));
    for family in FAMILIES {
        one.ping(two.ip(family)).all(3);
        at_once(&one, &two, family);
        at_once(&two, &one, family);
        // UDP, and what nobody listens to.
        let (server, client) = (one.udp(family, 0), world.pods[1][0].udp(family, 0));
        let at = server.local_addr().expect("it is bound");
        client.send_to(b"hello", at).expect("it is sent");
        let mut space = [0; 16];
        let (n, from) = server.recv_from(&mut space).expect("it comes");
        assert_eq!(
            (&space[..n], from.ip()),
            (&b"hello"[..], world.pods[1][0].ip(family))
        );
        server.send_to(b"you too", from).expect("it is sent");
        assert_eq!(client.recv(&mut space).expect("it comes"), 7);
        let nobody = SocketAddr::new(one.ip(family), 1);
        let refused = world.pods[1][0]
            .netns
            .within(|| TcpStream::connect_timeout(&nobody, PATIENCE));
        assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    // The path to the other node's pods takes a packet of the pods' MTU, and the host is told of no more.
    let told = one.netns.ask("ip", &["-o", "link", "show", "podwire0"]);
    assert!(told.contains("mtu 1450"), "{told}");
    let status = world.nodes[0].status();
    let port = status.host_port.expect("it is on");
    assert_eq!((port.interface.as_str(), port.missing), ("podwire0", None));
    assert_eq!(port.addresses, [one.ip(Family::V4), one.ip(Family::V6)]);
    assert_eq!(port.networks.len(), 4, "{:?}", port.networks);
    assert!(port.counters.bytes_from_pod > 0 && port.counters.bytes_to_pod > 0);
    // It is no pod.
    assert_eq!(status.pods.len(), 2);
    let page = world.nodes[0].podwire(&["status"]);
    let page = String::from_utf8_lossy(&page.stdout).into_owned();
    assert!(
        page.contains("  host      podwire0 10.244.1.1, fd00:10:244:1::1, reaches"),
        "{page}"
    );
}

/// A hundred megabytes each way, compared byte by byte.
fn bulk(world: &mut World) {
    let host = HostOf::new(world, 1);
    let (here, there) = world.pair();
    for family in FAMILIES {
        stream(&host, there, family, 100 * MB);
        stream(there, &host, family, 100 * MB);
        stream(here, &host, family, 100 * MB);
        stream(&host, here, family, 100 * MB);
    }
}

/// Names are answered at the gateway to pods as ever, and to the host.
fn names(world: &mut World) {
    let host = HostOf::new(world, 1);
    let (here, _) = world.pair();
    let question = |netns: &Netns, at: IpAddr| {
        let socket = netns.within(|| {
            let any: IpAddr = match at {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            UdpSocket::bind((any, 0))
        });
        let socket = socket.expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        socket.connect((at, 53)).expect("a route");
        let name = b"\x02a1\x07default\x03pod\x00\x00\x01\x00\x01";
        let head = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        socket.send(&[&head[..], name].concat()).expect("it is sent");
        let mut answer = [0; 512];
        let n = socket
            .recv(&mut answer)
            .unwrap_or_else(|e| panic!("no answer of {at}: {e}"));
        // The record's data is the pod's address.
        assert!(answer[..n].ends_with(&[10, 244, 1, 2]), "{:?}", &answer[..n]);
    };
    for family in FAMILIES {
        question(&here.netns, host.ip(family));
        question(host.netns, host.ip(family));
    }
    // A machine of the LAN that routes there has no business with the pods' names.
    let lan = Stranger(world);
    lan.netns().ip("route add 10.244.1.1/32 via 192.0.2.1");
    let at: SocketAddr = "10.244.1.1:53".parse().expect("an address");
    let refused = connect(&lan, at).map(drop).expect_err("nobody listens there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    let socket = lan
        .netns()
        .within(|| UdpSocket::bind("0.0.0.0:0"))
        .expect("a socket");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.connect(at).expect("a route");
    socket.send(&[0; 12]).expect("it is sent");
    let refused = socket.recv(&mut [0; 512]).expect_err("nobody listens there");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

/// A published port works for the host by each of its addresses, and the pod sees who it is as ever.
fn published(world: &mut World) {
    let host = HostOf::new(world, 1);
    let pod = &world.pods[0][0];
    let listener = pod
        .netns
        .within(|| TcpListener::bind("0.0.0.0:80"))
        .expect("a listener");
    let out = world.nodes[0].podwire(&["port", "add", &pod.name, "0.0.0.0:8080:80"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let hello = |from: &dyn Place, at: &str| {
        let at: SocketAddr = at.parse().expect("an address");
        let mut near = connect(from, at).unwrap_or_else(|e| panic!("{at}: {e}"));
        let (mut far, client) = listener.accept().expect("it comes");
        near.write_all(b"ping").expect("it is sent");
        let mut got = [0; 4];
        far.read_exact(&mut got).expect("it comes");
        far.write_all(b"pong").expect("it is sent");
        near.read_exact(&mut got).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(&got, b"pong");
        client.ip()
    };
    let gateway = host.ip(Family::V4);
    // Loopback means something else to the pod.
    assert_eq!(hello(&host, "127.0.0.1:8080"), gateway);
    // An own address of the host that is no pod's is seen as it is, and so is a stranger's.
    hello(&host, "192.0.2.1:8080");
    assert_eq!(hello(&host, "10.244.1.1:8080"), gateway);
    // By its own address: that way the host speaks for itself.
    assert_eq!(hello(&host, "10.244.1.2:80"), gateway);
    // The port is the host's at the gateway as well.
    hello(&world.pods[0][1], "10.244.1.1:8080");
    let stranger = Stranger(world);
    assert_eq!(hello(&stranger, "192.0.2.1:8080"), stranger.ip(Family::V4));
}

struct Stranger<'w>(&'w World);

impl Place for Stranger<'_> {
    fn name(&self) -> &str {
        "stranger"
    }

    fn netns(&self) -> &Netns {
        &self.0.underlay.hosts.last().expect("a stranger").netns
    }

    fn ip(&self, family: Family) -> IpAddr {
        let host = self.0.underlay.hosts.last().expect("a stranger");
        match family {
            Family::V4 => host.ip4.into(),
            Family::V6 => host.ip6.into(),
        }
    }
}

/// The host reaches a virtual address whose pods are here and there.
fn services(world: &mut World) {
    let host = HostOf::new(world, 1);
    let manifest = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  clusterIP: 10.96.0.10\n  ports: [{{port: 80}}]\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  labels: \
         {{kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{{port: 8000}}]\nendpoints:\n- addresses: [{}]\n- \
         addresses: [{}]\n",
        world.pods[0][0].ip4, world.pods[1][0].ip4
    );
    let file = world.dir().join("web.yaml");
    std::fs::write(&file, manifest).expect("a file");
    let out = world.nodes[0].podwire(&["service", "apply", "-f", &file.to_string_lossy()]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let listeners: Vec<TcpListener> = [&world.pods[0][0], &world.pods[1][0]]
        .iter()
        .map(|pod| {
            pod.netns
                .within(|| TcpListener::bind("0.0.0.0:8000"))
                .expect("a listener")
        })
        .collect();
    for listener in &listeners {
        listener.set_nonblocking(true).expect("a flag");
    }
    let mut seen = [0, 0];
    for _ in 0..40 {
        let at: SocketAddr = "10.96.0.10:80".parse().expect("an address");
        let mut near = connect(&host, at).expect("it is served");
        let mut far = None;
        eventually("a backend accepts", PATIENCE, || {
            far = listeners
                .iter()
                .enumerate()
                .find_map(|(n, l)| Some((n, l.accept().ok()?)));
            far.is_some()
        });
        let (n, (mut far, client)) = far.expect("one of them");
        assert_eq!(client.ip(), host.ip(Family::V4));
        seen[n] += 1;
        far.write_all(b"x").expect("it is sent");
        let mut got = [0];
        near.read_exact(&mut got).expect("it comes");
    }
    assert!(seen.iter().all(|n| *n > 0), "{seen:?}");
}

/// It goes with the node, however that ends, and the next one has it again, also beside pods that stayed.
fn ends(world: &mut World) {
    for signal in [Signal::TERM, Signal::KILL, Signal::KILL] {
        let host = &world.underlay.hosts[0].netns;
        assert!(has_port(host, "podwire0"));
        world.nodes[0].end(signal);
        eventually("the interface is gone", PATIENCE, || !has_port(host, "podwire0"));
        let routes = host.ask("ip", &["route", "show"]);
        assert!(!routes.contains("10.244."), "{routes}");
        world.nodes[0].restart(host);
        assert!(has_port(host, "podwire0"));
        HostOf::new(world, 1).ping(world.pods[1][0].ip(Family::V4)).all(3);
    }
    // Killed and started at once: the kernel may not be done with the old one.
    for _ in 0..3 {
        let host = &world.underlay.hosts[0].netns;
        world.nodes[0].end(Signal::KILL);
        world.nodes[0].restart(host);
        let status = world.nodes[0].status();
        assert_eq!(status.host_port.expect("it is on").missing, None);
    }
    // Its interface is deleted under it: the node answers for the gateway as before.
    let host = &world.underlay.hosts[1].netns;
    host.ip("link del podwire0");
    eventually("the node has noticed", PATIENCE, || {
        let port = world.nodes[1].status().host_port.expect("it is on");
        port.missing.is_some_and(|why| why.contains("deleted"))
    });
    world.pods[1][0].reaches(gateway4(2), 3, &[]);
    world.pods[1][0].reaches(gateway6(2), 3, &[]);
}

/// Routes come and go with the peers.
fn follows(world: &mut World) {
    let host = &world.underlay.hosts[0].netns;
    let routes = || host.ask("ip", &["route", "show"]) + &host.ask("ip", &["-6", "route", "show"]);
    let both = |text: &str| text.contains("10.244.2.0/24 via") && text.contains("fd00:10:244:2::/64 via");
    assert!(both(&routes()), "{}", routes());
    let all = world.peers_but(99);
    world.nodes[0].set_peers("peer = []\n");
    eventually("the routes are gone", PATIENCE, || {
        let text = routes();
        !text.contains("10.244.2.0") && !text.contains("fd00:10:244:2:")
    });
    // Somebody else's route takes the place: it is told, and left alone.
    host.ip("route add blackhole 10.244.2.0/24");
    world.nodes[0].set_peers(&all);
    eventually("it is told", PATIENCE, || {
        let problems = world.nodes[0].status().problems;
        problems
            .iter()
            .any(|p| p.contains("10.244.2.0/24") && p.contains("route"))
    });
    let text = routes();
    assert!(
        text.contains("blackhole 10.244.2.0/24") && text.contains("fd00:10:244:2::/64 via"),
        "{text}"
    );
}

/// A foreign interface, another node's, a route, an address, and a setting that takes the gateway's address: `on` refuses to
/// start and says why, `auto` goes on without and says it too. None of them is touched.
fn in_the_way(world: &mut World) {
    let host = &world.underlay.hosts[0].netns;
    world.nodes[0].stop();
    world.pods.clear();
    let cases: &[(&str, &str, &[&str], &str)] = &[
        (
            "link add podwire0 type veth peer name other0",
            "link del podwire0",
            &["no podwire's", "--host-port podwire1", "ip link del podwire0"],
            "podwire0",
        ),
        (
            "tuntap add podwire0 mode tap",
            "link del podwire0",
            &["no podwire's"],
            "podwire0",
        ),
        (
            "route add blackhole 10.244.1.64/26",
            "route del blackhole 10.244.1.64/26",
            &["10.244.1.64/26", "ip route del"],
            "",
        ),
        (
            "addr add 10.244.1.9/32 dev lo",
            "addr del 10.244.1.9/32 dev lo",
            &["10.244.1.9", "at lo"],
            "",
        ),
    ];
    for (put, remove, told, kept) in cases {
        host.ip(put);
        world.nodes[0].set("--host-port", "on");
        let (code, said) = world.nodes[0].fails_to_start(host);
        assert_eq!(code, Some(5), "{said}");
        assert!(told.iter().all(|t| said.contains(t)), "{put}: {said}");
        assert!(kept.is_empty() || has_port(host, kept), "{put}: it was touched");
        assert_eq!(
            has_port(host, "podwire0"),
            !kept.is_empty(),
            "{put}: something stayed"
        );
        world.nodes[0].set("--host-port", "auto");
        world.nodes[0].restart(host);
        let missing = world.nodes[0].status().host_port.expect("it is not off").missing;
        let missing = missing.unwrap_or_default();
        assert!(told.iter().all(|t| missing.contains(t)), "{put}: {missing}");
        let page = world.nodes[0].podwire(&["status"]);
        let page = String::from_utf8_lossy(&page.stdout).into_owned();
        assert!(
            page.contains("  host      has no port in the pod network: "),
            "{page}"
        );
        world.nodes[0].stop();
        host.ip(remove);
    }
    // Ports of the host's own connections that are the gateway's too are no reason to do without.
    host.run("sysctl", &["-w", "net.ipv4.ip_local_port_range=10000 60999"]);
    world.nodes[0].set("--host-port", "on");
    world.nodes[0].restart(host);
    let problems = world.nodes[0].status().problems;
    assert!(
        problems
            .iter()
            .any(|p| p.contains("at port 10000") && p.contains("sysctl -w")),
        "{problems:?}"
    );
    world.nodes[0].stop();
    // The gateway's address cannot be loopback's and the host's.
    world.nodes[0].set("--host-port", "on");
    world.nodes[0].set("--map-host", "gateway");
    let (code, said) = world.nodes[0].fails_to_start(host);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--map-host 192.0.2.200"), "{said}");
    world.nodes[0].unset("--map-host");
    // Another node of this host: it has the name and the network, and both are told apart.
    world.nodes[0].set("--host-port", "on");
    world.nodes[0].restart(host);
    let socket = world.dir().join("other.sock");
    let socket = socket.to_string_lossy();
    let other = |subnet: &str, port: &str| {
        let args = [
            "node",
            "--name",
            "other",
            "--subnet",
            subnet,
            "--port",
            "auto",
            "--host-port",
            port,
            "--socket",
            &socket,
        ];
        let out = host.run(PODWIRE, &args);
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned(),
        )
    };
    let (code, said) = other("10.245.1.0/24", "on");
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("the port of podwire node n1"), "{said}");
    let (code, said) = other("10.244.1.0/25", "podwire1");
    assert_eq!(code, Some(5), "{said}");
    assert!(has_port(host, "podwire0") && !has_port(host, "podwire1"));
    // A user without rights over the host's network is told what works without.
    let stranger = &world.underlay.hosts[1].netns;
    let args = [
        "-Ur",
        PODWIRE,
        "node",
        "--name",
        "other",
        "--subnet",
        "10.246.1.0/24",
        "--port",
        "auto",
        "--host-port",
        "on",
        "--socket",
        &socket,
    ];
    let out = stranger.run("unshare", &args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(
        said.contains("CAP_NET_ADMIN") && said.contains("podwire forward"),
        "{said}"
    );
}

/// The host's kernel may send as the gateway only, and never out of the pod network by this way.
fn spoofs(world: &mut World) {
    let host = &world.underlay.hosts[0].netns;
    let pod = &world.pods[0][0];
    let before = world.nodes[0].drops(DropReason::SpoofedIp);
    // A process that is bound to another address of the host.
    let bound = host.within(|| UdpSocket::bind("192.0.2.1:0")).expect("a socket");
    let at = SocketAddr::new(pod.ip(Family::V4), 4000);
    let server = pod.udp(Family::V4, 4000);
    server
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a timeout");
    bound.send_to(b"who am I", at).expect("it is sent");
    assert!(
        server.recv(&mut [0; 16]).is_err(),
        "another address of the host came through"
    );
    assert_eq!(world.nodes[0].drops(DropReason::SpoofedIp), before + 1);
    // Out into the world by the pods' network: the host's own kernel has better ways, and this is none.
    let before = world.nodes[0].drops(DropReason::NoRoute);
    host.ip("route add 198.51.100.0/24 via 10.244.1.0 dev podwire0 onlink src 10.244.1.1");
    let out = host.run("ping", &["-n", "-c1", "-W1", "198.51.100.7"]);
    assert!(!out.status.success());
    assert!(world.nodes[0].drops(DropReason::NoRoute) > before);
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        told.contains("From 10.244.1.0") && told.contains("Net Unreachable"),
        "{told}"
    );
}

/// By the host's own MAC its other addresses could be reached: it is nobody's to send to.
fn closed(world: &mut World) {
    let host = &world.underlay.hosts[0].netns;
    let pod = &world.pods[0][0];
    let link = host.ask("ip", &["-j", "link", "show", "podwire0"]);
    let link: serde_json::Value = serde_json::from_str(&link).expect("JSON of ip");
    let mac: podwire::model::Mac = link[0]["address"]
        .as_str()
        .expect("a MAC")
        .parse()
        .expect("a MAC");
    assert_ne!(mac, world.gateway_mac(1));
    let server = host
        .within(|| UdpSocket::bind("192.0.2.1:4000"))
        .expect("a socket");
    server
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a timeout");
    let before = world.nodes[0].drops(DropReason::UnknownMac);
    pod.netns.ip(&format!(
        "neigh replace 10.244.1.1 lladdr {mac} dev eth0 nud permanent"
    ));
    let client = pod.udp(Family::V4, 0);
    client
        .send_to(b"let me in", "192.0.2.1:4000")
        .expect("it is sent");
    assert!(
        server.recv(&mut [0; 16]).is_err(),
        "the host was reached past the policy"
    );
    eventually("it is counted", PATIENCE, || {
        world.nodes[0].drops(DropReason::UnknownMac) > before
    });
    pod.netns.ip("neigh del 10.244.1.1 dev eth0");
    // Nor as the next hop of the gateway's MAC: what is the host's is closed.
    client
        .send_to(b"let me in", "192.0.2.1:4000")
        .expect("it is sent");
    assert!(
        server.recv(&mut [0; 16]).is_err(),
        "the host's own address is open"
    );
}
