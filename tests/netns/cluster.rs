//! Nodes whose subnets are leases in a real etcd, shared with a flannel node that is a kernel VTEP.

use super::foreign::Machine;
use super::impair::Impairment;
use super::node::{Node, PODWIRE};
use super::pod::{FAMILIES, Family, Place, Pod};
use super::store::PREFIX;
use super::traffic::{MB, at_once, connect, stream};
use super::world::{Case, World, eventually};
use podwire::model::{LeaseInfo, StoreStatus};
use rustix::process::Signal;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("nodes_find_each_other_by_their_leases", find_each_other)
        .nodes(3)
        .cluster(),
    Case::new("a_flannel_node_is_a_peer_like_any_other", flannel).cluster(),
    Case::new("a_newer_podwire_is_a_peer_as_far_as_it_is_understood", newer).cluster(),
    Case::new("state_of_a_newer_podwire_is_set_aside", newer_state).cluster(),
    Case::new("a_node_waits_for_the_network_and_says_so", waits)
        .nodes(1)
        .cluster(),
    Case::new(
        "an_address_that_changes_in_the_lobby_is_leased",
        moves_in_the_lobby,
    )
    .nodes(1)
    .cluster()
    .bind_any(),
    Case::new("traffic_goes_on_while_the_store_is_gone", store_gone).cluster(),
    Case::new("a_node_starts_while_its_store_is_gone", starts_without_store).cluster(),
    Case::new(
        "connections_outlive_a_node_killed_without_its_store",
        killed_without_store,
    )
    .cluster(),
    Case::new(
        "a_node_without_its_disk_asks_for_the_subnet_of_its_pods",
        disk_lost,
    )
    .cluster(),
    Case::new(
        "a_node_ended_while_it_waits_detaches_its_pods",
        parts_while_waiting,
    )
    .cluster(),
    Case::new("a_node_that_moves_is_found_at_its_new_address", moves)
        .cluster()
        .bind_any(),
    Case::new(
        "a_subnet_that_changes_hands_takes_its_traffic_along",
        changes_hands,
    )
    .nodes(3)
    .cluster(),
    Case::new("a_node_that_slept_goes_on", sleeps).cluster(),
    Case::new("a_subnet_two_nodes_claim_is_named", two_claim).cluster(),
];

const SOON: Duration = Duration::from_secs(5);
/// Until a connection that is dead without a word is given up, and then some.
const LONG: Duration = Duration::from_secs(30);

fn leases(node: &Node) -> StoreStatus {
    let out = node.podwire(&["leases", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON of the leases")
}

fn knows(node: &Node, subnet: &str) -> Option<LeaseInfo> {
    leases(node)
        .leases
        .into_iter()
        .find(|l| l.subnet.starts_with(subnet))
}

/// What a node answers at a path of its health endpoint.
fn health(world: &World, n: usize, path: &str) -> String {
    let host = &world.underlay.hosts[n - 1].netns;
    let at = "127.0.0.1:9473".parse().expect("an address");
    let stream = host.within(|| std::net::TcpStream::connect_timeout(&at, SOON));
    let mut stream = stream.expect("the endpoint listens");
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").expect("it is sent");
    let mut all = String::new();
    stream.read_to_string(&mut all).expect("an answer");
    all
}

fn find_each_other(world: &mut World) {
    for (n, node) in (1..).zip(&world.nodes) {
        let status = leases(node);
        assert!(status.connected && status.alarms.is_empty(), "{status:?}");
        assert_eq!(status.leases.len(), 3, "{status:?}");
        let own = status.leases.iter().find(|l| l.own).expect("an own lease");
        assert_eq!(own.subnet, format!("10.244.{n}.0-24&fd00:10:244:{n}::-64"));
        assert!(
            own.expires_s.is_some_and(|s| (86_000..=86_400).contains(&s)),
            "{own:?}"
        );
        assert!(health(world, n, "/healthz").starts_with("HTTP/1.1 200"));
        assert!(health(world, n, "/readyz").starts_with("HTTP/1.1 200"));
        assert!(health(world, n, "/metrics").starts_with("HTTP/1.1 404"));
        let env = std::fs::read_to_string(world.dir().join(format!("n{n}.flannel/subnet.env")))
            .expect("subnet.env");
        let expected = format!(
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.{n}.1/24\nFLANNEL_IPV6_NETWORK=fd00:10:244::/48\n\
             FLANNEL_IPV6_SUBNET=fd00:10:244:{n}::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        );
        assert_eq!(env, expected);
    }
    for from in world.all_pods() {
        for to in world.all_pods() {
            for family in FAMILIES {
                from.reaches(to.ip(family), 1, &[]);
            }
        }
    }
    let (a, b) = world.pair();
    stream(a, b, Family::V4, 4 * MB);
    stream(b, a, Family::V6, 4 * MB);
    // One that leaves is forgotten at once by the others, who go on.
    world.nodes[2].stop();
    world.ctl(&[
        "del",
        &format!("{PREFIX}/subnets/10.244.3.0-24&fd00:10:244:3::-64"),
    ]);
    for node in &world.nodes[..2] {
        eventually("n3 is forgotten", SOON, || {
            node.status().peers.iter().all(|p| p.name != "n3")
        });
    }
    let (a, b) = world.pair();
    a.reaches(b.ip4, 2, &[]);
    // And is back as soon as it is.
    let host = &world.underlay.hosts[2].netns;
    world.nodes[2].restart(host);
    let again = Pod::attach(&world.nodes[2], "again");
    eventually("n3 is back", SOON, || {
        world.nodes[0].status().peers.iter().any(|p| p.name == "n3")
    });
    world.pods[0][0].reaches(again.ip4, 2, &[]);
    world.pods[2] = vec![again];
}

fn flannel(world: &mut World) {
    kernel_peer(world, "", None, "10.244.9.0-24");
}

/// One that has learned more, which shows in its lease: the wire is the same, what is unknown is left alone.
fn newer(world: &mut World) {
    let more = r#","BackendData6":7,"Podwire":{"name":"n9","id":"0123456789abcdef0123456789abcdef","version":"9.1.0-rc.1","wire":["remcsum","gpe/2"],"shape":{"mtu":[9000,null]}},"Later":[{"x":1}]"#;
    kernel_peer(world, more, Some("9.1.0-rc.1"), "n9");
}

/// Kernel VXLAN on the stranger's host, whose lease has `more` beside flannel's, is a peer of n1: a program of that
/// version and name.
fn kernel_peer(world: &mut World, more: &str, version: Option<&str>, name: &str) {
    let host = world.underlay.hosts.last().expect("a stranger");
    let n1 = world.underlay.hosts[0].ip4;
    let (n1_vtep, mtu) = (world.vtep_mac(1), 1450);
    host.netns.ip(&format!(
        "link add flannel.1 type vxlan id 1 dstport 8472 local {} nolearning\n",
        host.ip4
    ));
    let link = host.netns.ask("ip", &["-o", "link", "show", "flannel.1"]);
    let mac = link
        .split("link/ether ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("a MAC");
    let pod = super::netns::Netns::new();
    let machine = Machine::introduced(
        world,
        (&host.netns, &pod),
        "flannel.1",
        mtu,
        host.ip4.into(),
        || {
            let value = format!(
                r#"{{"PublicIP":"{}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}{more}}}"#,
                host.ip4
            );
            world.ctl(&["put", &format!("{PREFIX}/subnets/10.244.9.0-24"), &value]);
            eventually("it is known", SOON, || {
                knows(&world.nodes[0], "10.244.9.0-24").is_some()
            });
        },
    );
    host.netns.run(
        "bridge",
        &[
            "fdb",
            "add",
            &n1_vtep.to_string(),
            "dev",
            "flannel.1",
            "dst",
            &n1.to_string(),
        ],
    );
    let lease = knows(&world.nodes[0], "10.244.9.0-24").expect("its lease");
    assert_eq!((lease.podwire.as_deref(), lease.name.as_str()), (version, name));
    let status = leases(&world.nodes[0]);
    assert_eq!((status.alarms.len(), status.skipped_total), (0, 0), "{status:?}");
    let a = &world.pods[0][0];
    for (near, far) in [
        (a as &dyn Place, &machine.pod as &dyn Place),
        (&machine.pod, a),
        (a, &machine.host),
    ] {
        at_once(near, far, Family::V4);
        stream(near, far, Family::V4, 8 * MB);
    }
    // It goes as it came.
    world.ctl(&["del", &format!("{PREFIX}/subnets/10.244.9.0-24")]);
    eventually("it is forgotten", SOON, || {
        knows(&world.nodes[0], "10.244.9.0-24").is_none()
    });
}

fn waits(world: &mut World) {
    let host = &world.underlay.hosts[0].netns;
    let (dir, url) = (world.dir().to_path_buf(), world.store().url.clone());
    let socket = dir.join("late.sock");
    let mut command = Command::new(PODWIRE);
    command.args([
        "node",
        "--name",
        "late",
        "--store",
        "etcd",
        "--etcd-prefix",
        "/elsewhere",
        "--etcd-endpoints",
        &url,
    ]);
    command.args([
        "--healthz-port",
        "9474",
        "--bind",
        "127.0.0.1",
        "--public-ip",
        "192.0.2.77",
    ]);
    command
        .arg("--socket")
        .arg(&socket)
        .arg("--subnet-file")
        .arg(dir.join("late.env"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let late = host.within(|| command.spawn()).expect("podwire starts");
    let ask = |what: &[&str]| {
        let mut command = Command::new(PODWIRE);
        let out = command
            .arg("--socket")
            .arg(&socket)
            .args(what)
            .output()
            .expect("podwire runs");
        (
            out.status.code(),
            String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout),
        )
    };
    eventually("it says what it waits for", SOON, || {
        let (code, said) = ask(&["status"]);
        code == Some(4) && said.contains("/elsewhere/config")
    });
    let (code, said) = ask(&["leases"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("/elsewhere/config"), "{said}");
    // One that no network can be made of is named, and better ones are waited for.
    world.ctl(&[
        "put",
        "/elsewhere/config",
        r#"{"Network":"10.9.0.0/16","Backend":{"Type":"host-gw"}}"#,
    ]);
    eventually("it says what is wrong", SOON, || {
        ask(&["leases"]).1.contains("host-gw")
    });
    world.ctl(&[
        "put",
        "/elsewhere/config",
        r#"{"network":"10.9.0.0/16","Backend":{"type":"vxlan","Port":9999}}"#,
    ]);
    eventually("it is up", SOON, || ask(&["status"]).0 == Some(0));
    let (_, said) = ask(&["status"]);
    assert!(
        said.contains("10.9.") && said.contains("127.0.0.1:9999"),
        "{said}"
    );
    rustix::process::kill_process(rustix::process::Pid::from_child(&late), Signal::TERM)
        .expect("it is our child");
    let out = late.wait_with_output().expect("it ends");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// A process that is killed when its test fails.
struct Late(std::process::Child);

impl Drop for Late {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node that waits in the lobby is told nothing of its address until it has its subnet, and then at once.
fn moves_in_the_lobby(world: &mut World) {
    let host = &world.underlay.hosts[0];
    let (dir, url) = (world.dir().to_path_buf(), world.store().url.clone());
    let socket = dir.join("late.sock");
    let mut command = Command::new(PODWIRE);
    command.args(["node", "--name", "late", "--store", "etcd"]);
    command.args(["--etcd-prefix", "/elsewhere", "--etcd-endpoints", &url]);
    command.args(["--healthz-port", "9474", "--socket"]).arg(&socket);
    command.arg("--subnet-file").arg(dir.join("late.env"));
    let log = std::fs::File::create(dir.join("late.log")).expect("a log");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut late = Late(host.netns.within(|| command.spawn()).expect("podwire starts"));
    let ask = |what: &str| {
        let mut command = Command::new(PODWIRE);
        let out = command.arg("--socket").arg(&socket).arg(what).output();
        let out = out.expect("podwire runs");
        String::from_utf8_lossy(&[out.stderr, out.stdout].concat()).into_owned()
    };
    eventually("it waits", SOON, || ask("status").contains("/elsewhere/config"));
    let old = host.ip4;
    let [a, b, c, _] = old.octets();
    let new = std::net::Ipv4Addr::new(a, b, c, 202);
    host.netns.ip(&format!(
        "addr del {old}/24 dev eth0\nroute replace default dev eth0\naddr add {new}/24 dev eth0\n"
    ));
    world.ctl(&[
        "put",
        "/elsewhere/config",
        r#"{"Network":"10.9.0.0/16","Backend":{"Type":"vxlan","Port":9999}}"#,
    ]);
    let stored = || world.ctl(&["get", "--prefix", "--print-value-only", "/elsewhere/subnets/"]);
    let is_new = || stored().contains(&format!("\"PublicIP\":\"{new}\""));
    // Its connection to the store was from the old address, and is found dead after some seconds.
    eventually("the lease is made with the new address", LONG, is_new);
    assert_eq!(
        stored().lines().filter(|l| !l.is_empty()).count(),
        1,
        "{}",
        stored()
    );
    eventually("it is up", SOON, || ask("status").contains("10.9."));
    assert!(is_new(), "{}", stored());
    rustix::process::kill_process(rustix::process::Pid::from_child(&late.0), Signal::TERM)
        .expect("it is our child");
    let ended = late.0.wait().expect("it ends");
    let log = std::fs::read_to_string(dir.join("late.log")).unwrap_or_default();
    assert!(ended.success(), "{log}");
}

/// A podwire that is taken back to this version finds what the newer one wrote, and does not guess.
fn newer_state(world: &mut World) {
    let netns = &world.underlay.hosts[0].netns;
    let state = world.nodes[0].socket.with_extension("state");
    let subnets = world.nodes[0].status().subnets;
    world.nodes[0].stop();
    world.pods[0].clear();
    let change = |file: &str, from: &str, to: &str| {
        let path = state.join(file);
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replacen(from, to, 1)).expect("it is ours");
    };
    change("state", "podwire-state 1 ", "podwire-state 2 ");
    change("pods.json", "\"version\":1", "\"version\":2");
    world.nodes[0].restart(netns);
    let node = &world.nodes[0];
    let log = node.log();
    assert!(log.contains("it is of version 2, this podwire reads 1"), "{log}");
    assert!(log.contains("it is of version 2, this program writes 1"), "{log}");
    assert!(state.join("state.refused").exists(), "it is not lost");
    assert_eq!(node.status().subnets, subnets, "the store has it");
    let pod = Pod::attach(node, "after");
    pod.reaches(world.pods[1][0].ip4, 3, &[]);
    eventually("state and records are this version's", SOON, || {
        let text = |file| std::fs::read_to_string(state.join(file)).unwrap_or_default();
        text("state").starts_with("podwire-state 1 ") && text("pods.json").contains("default/after")
    });
    let problems = node.status().problems;
    assert!(!problems.iter().any(|p| p.contains("version")), "{problems:?}");
    world.pods[0].push(pod);
}

/// Run `trouble` while the pods talk, which must not notice.
fn unnoticed(world: &mut World, trouble: impl FnOnce(&mut World, &Pod)) {
    let (a, b) = (world.pods[0].remove(0), world.pods[1].remove(0));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                at_once(&a, &b, Family::V4);
                stream(&b, &a, Family::V6, MB);
                rounds += 1;
            }
            rounds
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| trouble(world, &b)));
        done.store(true, Ordering::Relaxed);
        let rounds = traffic
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(rounds > 0);
    });
    world.pods[0].insert(0, a);
    world.pods[1].insert(0, b);
}

fn store_gone(world: &mut World) {
    unnoticed(world, |world, far| {
        world.store_mut().kill();
        eventually("n1 notices", Duration::from_secs(20), || {
            !leases(&world.nodes[0]).connected
        });
        let text = world.nodes[0].podwire(&["status"]);
        assert!(String::from_utf8_lossy(&text.stdout).contains("not connected"));
        // Everything that needs this node only works.
        let c = Pod::attach(&world.nodes[0], "c1");
        c.reaches(far.ip4, 2, &[]);
        world.restart_store();
        eventually("n1 is connected again", Duration::from_secs(20), || {
            let status = leases(&world.nodes[0]);
            status.connected && status.alarms.is_empty() && status.leases.len() == 2
        });
        world.pods[0].push(c);
    });
}

fn starts_without_store(world: &mut World) {
    // What it knows when it ends is kept, however new.
    world.nodes[0].stop();
    world.store_mut().kill();
    let host = &world.underlay.hosts[0].netns;
    world.nodes[0].restart(host);
    let status = leases(&world.nodes[0]);
    assert!(!status.connected, "{status:?}");
    assert_eq!(world.nodes[0].status().peers.len(), 1);
    let again = Pod::attach(&world.nodes[0], "again");
    for family in FAMILIES {
        again.reaches(world.pods[1][0].ip(family), 2, &[]);
    }
    world.pods[0] = vec![again];
    world.restart_store();
    eventually("it is connected", Duration::from_secs(20), || {
        leases(&world.nodes[0]).connected
    });
}

/// The store is down, the node is killed and started again: the pods it had go on with what is on its disk.
fn killed_without_store(world: &mut World) {
    let kept = world.dir().join("n1.state/state");
    eventually("n2 is remembered", SOON, || {
        std::fs::read_to_string(&kept).is_ok_and(|state| state.contains("10.244.2.0-24"))
    });
    let (here, far) = (&world.pods[0][0], &world.pods[1][0]);
    let mut pairs: Vec<_> = FAMILIES
        .map(|family| {
            let listener = here.listen(family);
            let at = listener.local_addr().expect("it is bound");
            (
                connect(far, at).expect("a connection"),
                listener.accept().expect("a connection").0,
            )
        })
        .into();
    let names = |node: &Node| {
        let pods = node.status().pods.into_iter();
        pods.map(|p| (p.pod, p.addresses, p.mac)).collect::<Vec<_>>()
    };
    let before = names(&world.nodes[0]);
    world.store_mut().kill();
    for round in 0..3u32 {
        assert!(!world.nodes[0].end(Signal::KILL).success());
        world.nodes[0].restart(&world.underlay.hosts[0].netns);
        assert!(!leases(&world.nodes[0]).connected);
        for (near, end) in &mut pairs {
            end.set_read_timeout(Some(SOON)).expect("a timeout");
            near.write_all(&round.to_be_bytes()).expect("it is sent");
            let mut got = [0; 4];
            end.read_exact(&mut got).expect("it arrives");
            assert_eq!(u32::from_be_bytes(got), round);
        }
        assert_eq!(names(&world.nodes[0]), before, "addresses are kept");
    }
    world.restart_store();
    eventually("n1 is connected again", Duration::from_secs(20), || {
        let status = leases(&world.nodes[0]);
        status.connected && status.alarms.is_empty() && status.leases.len() == 2
    });
}

/// Killed, and all that is on its disk is gone, and its lease: the keeper knows which subnet its pods are in.
fn disk_lost(world: &mut World) {
    let listener = world.pods[0][0].listen(Family::V4);
    let at = listener.local_addr().expect("it is bound");
    let mut far = connect(&world.pods[1][0], at).expect("a connection");
    let (mut near, _) = listener.accept().expect("a connection");
    let dir = world.dir().to_path_buf();
    let node = &mut world.nodes[0];
    assert!(!node.end(Signal::KILL).success());
    for flag in ["--subnet", "--subnet6"] {
        node.unset(flag);
    }
    std::fs::remove_dir_all(dir.join("n1.state")).expect("it is there");
    for entry in std::fs::read_dir(&dir).expect("a directory").flatten() {
        if entry.path().extension().is_some_and(|e| e == "env") {
            std::fs::remove_file(entry.path()).expect("it is ours");
        }
    }
    world.ctl(&["del", "--prefix", &format!("{PREFIX}/subnets/10.244.1.0-24")]);
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    assert!(knows(&world.nodes[0], "10.244.1.0-24").is_some());
    far.write_all(b"x").expect("it is sent");
    near.set_read_timeout(Some(SOON)).expect("a timeout");
    near.read_exact(&mut [0]).expect("it arrives");
}

/// SIGTERM means the same wherever a node stands: one that found pods and waits for its subnet detaches them.
fn parts_while_waiting(world: &mut World) {
    let kept = world.dir().join("n1.state/pods.json");
    eventually("the pods are on disk", SOON, || {
        std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("a1"))
    });
    assert!(!world.nodes[0].end(Signal::KILL).success());
    world.store_mut().kill();
    std::fs::remove_file(kept.with_file_name("state")).expect("it is there");
    world.nodes[0].begin(&world.underlay.hosts[0].netns);
    // Not only that nobody answers yet: before it does, a signal ends it at once.
    eventually("it waits", SOON, || {
        let said = world.nodes[0].podwire(&["status"]);
        said.status.code() == Some(4) && String::from_utf8_lossy(&said.stderr).contains("has no subnet yet")
    });
    world.pods[0][0].netns.ask("ip", &["link", "show", "eth0"]);
    world.nodes[0].stop();
    let old: Vec<Pod> = world.pods[0].drain(..).collect();
    for pod in &old {
        assert!(!pod.netns.run("ip", &["link", "show", "eth0"]).status.success());
    }
    world.restart_store();
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    let node = &world.nodes[0];
    assert!(node.status().pods.is_empty());
    assert!(!node.log().contains("nobody kept"), "{}", node.log());
    let again = Pod::attach(node, "again");
    assert!(old.iter().all(|pod| pod.ip4 != again.ip4), "addresses rest");
    for family in FAMILIES {
        again.reaches(world.pods[1][0].ip(family), 3, &[]);
    }
    world.pods[0].push(again);
}

fn moves(world: &mut World) {
    let host = &world.underlay.hosts[0];
    let old = host.ip4;
    let [a, b, c, _] = old.octets();
    let new = std::net::Ipv4Addr::new(a, b, c, 201);
    // For a moment it has none, and nobody is told that.
    host.netns.ip(&format!(
        "addr del {old}/24 dev eth0\nroute replace default dev eth0\naddr add {new}/24 dev eth0\n"
    ));
    eventually("n2 knows", SOON, || {
        let peers = world.nodes[1].status().peers;
        peers.iter().any(|p| p.name == "n1" && p.underlay.ip() == new)
    });
    let (a, b) = world.pair();
    a.reaches(b.ip4, 3, &[]);
    b.reaches(a.ip4, 3, &[]);
    let lease = knows(&world.nodes[1], "10.244.1.0-24").expect("the same subnet");
    assert_eq!(lease.public_ip, new.to_string());
}

fn changes_hands(world: &mut World) {
    let (a, b) = (&world.pods[0][0], &world.pods[1][0]);
    let ip4 = b.ip4;
    let listener = b.listen(Family::V4);
    let mut old = connect(a, listener.local_addr().expect("it is bound")).expect("a connection");
    let (mut far, _) = listener.accept().expect("a connection");
    old.write_all(b"to the old pod").expect("it is sent");
    far.read_exact(&mut [0; 14]).expect("it arrives");
    // n2 is gone for good and n3's host takes over its subnet, and the pod's address with it.
    world.nodes[1].end(Signal::KILL);
    world.nodes[2].stop();
    world.pods[1].clear();
    world.pods[2].clear();
    for n in [2, 3] {
        world.ctl(&[
            "del",
            &format!("{PREFIX}/subnets/10.244.{n}.0-24&fd00:10:244:{n}::-64"),
        ]);
    }
    let host = &world.underlay.hosts[2].netns;
    world.nodes[2].become_node(2);
    world.nodes[2].restart(host);
    let taken = Pod::attach_with(&world.nodes[2], "taken", Some(ip4));
    eventually("the new pod is reached", Duration::from_secs(1), || {
        world.pods[0][0].ping(ip4, 1, &["-W", "0.2"]).answered > 0
    });
    // What was meant for the old pod reaches nobody.
    let _ = old.write_all(b"still to the old pod");
    old.set_read_timeout(Some(SOON)).expect("a timeout");
    let end = old.read(&mut [0; 1]);
    assert!(end.is_err(), "the old connection goes on: {end:?}");
    at_once(&world.pods[0][0], &taken, Family::V4);
    world.pods[2].push(taken);
    world.nodes.remove(1);
    world.pods.remove(1);
}

fn sleeps(world: &mut World) {
    world.nodes[0].signal(Signal::STOP);
    std::thread::sleep(Duration::from_secs(3));
    world.nodes[0].signal(Signal::CONT);
    let (a, b) = world.pair();
    a.reaches(b.ip4, 3, &[]);
    eventually("it is connected", Duration::from_secs(20), || {
        leases(&world.nodes[0]).connected
    });
    // Cut off from the store and its peer for a while, by the network this time.
    let (node, store) = (0, world.underlay.hosts.len() - 1);
    let cut = Impairment {
        cut: true,
        ..Impairment::default()
    };
    for (from, to) in [(node, store), (store, node)] {
        world.underlay.relay.impair(from, to, cut);
    }
    let (a, b) = world.pair();
    a.reaches(b.ip4, 3, &[]);
    std::thread::sleep(Duration::from_secs(2));
    world.underlay.relay.impair_all(Impairment::default());
    eventually("it is connected", Duration::from_secs(30), || {
        leases(&world.nodes[0]).connected
    });
}

fn two_claim(world: &mut World) {
    let key = format!("{PREFIX}/subnets/10.244.1.0-24&fd00:10:244:1::-64");
    let thief = r#"{"PublicIP":"192.0.2.250","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:99"},"Podwire":{"name":"thief","id":"00000000000000000000000000000099","version":"9","wire":["x"]}}"#;
    world.ctl(&["put", &key, thief]);
    eventually("the alarm names the other", SOON, || {
        leases(&world.nodes[0])
            .alarms
            .iter()
            .any(|a| a.contains("192.0.2.250"))
    });
    // Pods that are there go on among themselves; new ones are refused, and told why.
    let out = world.nodes[0].podwire(&["attach", "--netns", "/proc/self/ns/net", "--name", "late"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("another node has this node's subnet"),
        "{said}"
    );
    let subnets = world.nodes[0].status().subnets;
    assert!(
        subnets.iter().any(|s| s.to_string() == "10.244.1.0/24"),
        "{subnets:?}"
    );
    world.ctl(&["del", &key]);
    eventually("the subnet is this node's again", Duration::from_secs(20), || {
        let status = leases(&world.nodes[0]);
        status.alarms.is_empty()
            && status
                .leases
                .iter()
                .any(|l| l.own && l.subnet.starts_with("10.244.1.0-24"))
    });
    let (a, b) = world.pair();
    eventually("n2 knows it", SOON, || {
        b.ping(a.ip4, 1, &["-W", "0.2"]).answered > 0
    });
}
