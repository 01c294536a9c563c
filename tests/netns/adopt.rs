//! Nodes that are killed and started again, and their pods, which go on: connections, addresses, processes (rows 25,
//! 26 and 35 of the fault table).

use super::netns::Netns;
use super::node::{Node, PODWIRE};
use super::pod::{FAMILIES, Family, Place, Pod};
use super::traffic::{MB, connect, stream};
use super::world::{Case, World, eventually};
use podwire::api::{AddressState, IpamInfo, PodInfo};
use podwire::model::OffloadMode;
use rustix::process::{Pid, Signal};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("streams_outlive_a_killed_node", streams).pods(2),
    Case::new("a_connection_outlives_many_kills", many_kills).pods(2),
    Case::new("everything_of_a_pod_is_kept", state),
    Case::new("a_pod_left_to_the_node_outlives_it", detached),
    Case::new("a_killed_keeper_is_replaced", keeper_killed).pods(2),
    Case::new("without_node_and_keeper_pods_are_told_as_lost", both_killed),
    Case::new("what_is_gone_meanwhile_is_collected", collected),
    Case::new("a_keeper_ends_with_the_last_pod", nobody_left),
    Case::new("a_second_node_takes_nothing", second),
    Case::new("pods_left_by_a_clean_end", kept),
    Case::new("another_subnet_is_refused_and_another_mode_is_not", reconfigured).pods(2),
    Case::new("a_keeper_of_another_version_is_replaced", upgraded).pods(2),
    Case::new("a_clock_that_jumps", clocks),
];

/// How long a pod may be without its node: a busy machine has to start a process.
const GAP: Duration = Duration::from_secs(3);

fn kill(node: &mut Node) {
    let status = node.end(Signal::KILL);
    assert!(!status.success());
}

fn kill_keeper(node: &Node) -> u32 {
    let pid = node.keeper().expect("a keeper");
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    assert_eq!(name.expect("it runs"), "podwire\n", "what `ps -e` shows");
    let process = Pid::from_raw(pid as i32).expect("a number");
    rustix::process::kill_process(process, Signal::KILL).expect("it is ours");
    eventually("the keeper is gone", GAP, || {
        !Path::new(&format!("/proc/{pid}/exe")).exists() || is_zombie(pid)
    });
    pid
}

fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_none_or(|rest| rest.starts_with('Z'))
}

pub fn ipam(node: &Node) -> IpamInfo {
    let out = node.podwire(&["ipam", "--json"]);
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{wrong}");
    serde_json::from_slice(&out.stdout).expect("JSON of addresses")
}

/// Bulk across nodes and on one, while each node is killed and started again; every byte is compared.
fn streams(world: &mut World) {
    let (nodes, pods) = (&mut world.nodes, &world.pods);
    let hosts = &world.underlay.hosts;
    let (a, b, far) = (&pods[0][0], &pods[0][1], &pods[1][0]);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let running: Vec<_> = [(a, far, Family::V4), (far, b, Family::V6), (a, b, Family::V4)]
            .map(|(from, to, family)| {
                s.spawn(move || stream(from, to, family, 48 * MB));
                (from, to)
            })
            .into();
        assert_eq!(running.len(), 3);
        let gap = s.spawn(|| silence(a, far, &done));
        for at in [0, 1, 0] {
            std::thread::sleep(Duration::from_millis(300));
            kill(&mut nodes[at]);
            nodes[at].restart(&hosts[at].netns);
        }
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
        let gap = gap.join().expect("no panic");
        println!("longest silence {gap:?}");
        assert!(gap < GAP, "nothing arrived for {gap:?}");
    });
    assert_eq!(nodes[0].status().pods.len(), 2);
}

/// The longest time in which no datagram arrives of those that one pod sends to another each millisecond.
fn silence(from: &Pod, to: &Pod, done: &AtomicBool) -> Duration {
    let (mouth, ear) = (from.udp(Family::V4, 0), to.udp(Family::V4, 0));
    let at = ear.local_addr().expect("it is bound");
    ear.set_read_timeout(Some(Duration::from_millis(1)))
        .expect("a timeout");
    let mut last = Instant::now();
    let mut longest = Duration::ZERO;
    while !done.load(Ordering::Relaxed) {
        mouth.send_to(b"x", at).expect("it is sent");
        while ear.recv(&mut [0; 8]).is_ok() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    }
    longest.max(last.elapsed())
}

/// One idle connection each way of a pod, through kills in short order, some while the node starts.
fn many_kills(world: &mut World) {
    let (a, b, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    let mut pairs: Vec<_> = [(a, b), (a, far), (far, a)]
        .map(|(from, to)| {
            let listener = to.listen(Family::V6);
            let near = connect(from, listener.local_addr().expect("it is bound")).expect("a connection");
            (near, listener.accept().expect("a connection").0)
        })
        .into();
    let before = world.nodes[0].keeper();
    for round in 0..10u32 {
        kill(&mut world.nodes[0]);
        if round % 3 == 1 {
            // Killed at any time of its start, it leaves everything to the next.
            world.nodes[0].begin(&world.underlay.hosts[0].netns);
            std::thread::sleep(Duration::from_millis(3 * u64::from(round)));
            kill(&mut world.nodes[0]);
        }
        world.nodes[0].restart(&world.underlay.hosts[0].netns);
        for (near, far) in &mut pairs {
            near.write_all(&round.to_be_bytes()).expect("it is sent");
            let mut got = [0; 4];
            far.set_read_timeout(Some(GAP)).expect("a timeout");
            far.read_exact(&mut got).expect("it arrives");
            assert_eq!(u32::from_be_bytes(got), round);
        }
    }
    assert_eq!(world.nodes[0].keeper(), before, "the same keeper all the time");
    for pod in [a, b] {
        far.reaches(pod.ip4, 3, &[]);
    }
}

/// Name, addresses, MAC, MTU, age, TAP flags; and what is given next.
fn state(world: &mut World) {
    let sized = Pod::attach_sized(&world.nodes[0], "sized", 1400);
    let before = world.nodes[0].status().pods;
    std::thread::sleep(Duration::from_millis(1100));
    kill(&mut world.nodes[0]);
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    let after = world.nodes[0].status().pods;
    let same = |p: &PodInfo| {
        let names = (p.pod.clone(), p.ifname.clone(), p.netns.clone(), p.holder);
        (names, p.addresses.clone(), p.mac, p.mtu, p.caps)
    };
    let (was, is): (Vec<_>, Vec<_>) = (
        before.iter().map(same).collect(),
        after.iter().map(same).collect(),
    );
    assert_eq!(was, is);
    for (was, is) in before.iter().zip(&after) {
        assert!(is.age_s > was.age_s, "{} then {}", was.age_s, is.age_s);
    }
    // The counters start anew, and are balanced.
    let sized_now = world.nodes[0].port("sized");
    assert!(sized_now.frames_from_pod < 20, "{sized_now:?}");
    // An address that is held is given to nobody, and a name is taken.
    let taken = world.nodes[0].podwire(&["run", "--name", "a1", "--", "true"]);
    assert_eq!(taken.status.code(), Some(5));
    let next = Pod::attach(&world.nodes[0], "next");
    assert_eq!(next.ip4.octets()[3], sized.ip4.octets()[3] + 1);
    for pod in [&sized, &next] {
        for family in FAMILIES {
            world.pods[1][0].reaches(pod.ip(family), 3, &[]);
        }
    }
    // A pod that came under one process of the node goes under the next.
    assert!(world.nodes[0].podwire(&["detach", "sized"]).status.success());
    assert!(!sized.netns.run("ip", &["link", "show", "eth0"]).status.success());
    world.pods[0].push(next);
}

/// Make a pod that outlives the command; the process that holds it.
pub fn run_detached(node: &Node, name: &str) -> u32 {
    let out = node.podwire(&["run", "--detach", "--name", name, "--json"]);
    let wrong = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{wrong}");
    let pod: PodInfo = serde_json::from_slice(&out.stdout).expect("JSON of a pod");
    pod.holder.expect("a holder")
}

pub fn runs(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/ns/net")).exists() && !is_zombie(pid)
}

/// Its pause process goes on, and ends with a detach under the next process, or with that one's clean end.
fn detached(world: &mut World) {
    for by_node in [false, true] {
        let pid = run_detached(&world.nodes[0], "left");
        kill(&mut world.nodes[0]);
        std::thread::sleep(Duration::from_millis(50));
        assert!(runs(pid), "it ended with the process of the node");
        world.nodes[0].restart(&world.underlay.hosts[0].netns);
        assert!(runs(pid));
        world.pods[1][0].reaches(address(&world.nodes[0], "left"), 3, &[]);
        if by_node {
            world.nodes[0].stop();
            world.nodes[0].restart(&world.underlay.hosts[0].netns);
        } else {
            assert!(world.nodes[0].podwire(&["detach", "left"]).status.success());
        }
        eventually("its end", GAP, || !runs(pid));
    }
    world.pods[0] = vec![Pod::attach(&world.nodes[0], "a")];
}

fn address(node: &Node, pod: &str) -> std::net::IpAddr {
    let pods = node.status().pods;
    let pod = pods.iter().find(|p| p.pod.name == pod).expect("it is there");
    pod.addresses[0]
}

/// The node does without, starts another and gives it everything: a crash right after it harms nobody.
fn keeper_killed(world: &mut World) {
    let pid = run_detached(&world.nodes[0], "left");
    let (a, far) = (&world.pods[0][0], &world.pods[1][0]);
    let listener = far.listen(Family::V4);
    let mut near = connect(a, listener.local_addr().expect("it is bound")).expect("a connection");
    let (mut there, _) = listener.accept().expect("a connection");
    // Long enough that the first was no failure to begin with.
    std::thread::sleep(Duration::from_millis(1100));
    for round in 0..2u8 {
        let old = kill_keeper(&world.nodes[0]);
        eventually("another keeper", GAP, || {
            world.nodes[0].keeper().is_some_and(|new| new != old) && problems(&world.nodes[0]).is_empty()
        });
        if round == 0 {
            // Detaching needs none of what the old one had.
            let gone = world.pods[0].remove(1);
            assert!(world.nodes[0].podwire(&["detach", &gone.name]).status.success());
            assert!(!gone.netns.run("ip", &["link", "show", "eth0"]).status.success());
        }
        kill(&mut world.nodes[0]);
        world.nodes[0].restart(&world.underlay.hosts[0].netns);
        near.write_all(&[round]).expect("it is sent");
        let mut got = [9];
        there.set_read_timeout(Some(GAP)).expect("a timeout");
        there.read_exact(&mut got).expect("it arrives");
        assert_eq!(got, [round]);
        assert!(runs(pid));
        std::thread::sleep(Duration::from_millis(1100));
    }
    // One that does not answer is ended and replaced; who detaches waits for that, not for it.
    let old = world.nodes[0].keeper().expect("a keeper");
    let stopped = Pid::from_raw(old as i32).expect("a number");
    rustix::process::kill_process(stopped, Signal::STOP).expect("it is ours");
    let begun = Instant::now();
    assert!(world.nodes[0].podwire(&["detach", "left"]).status.success());
    assert!(begun.elapsed() < GAP, "{:?}", begun.elapsed());
    assert!(!runs(pid) || eventually_ends(pid));
    // One that has the pods.
    eventually("another keeper", GAP, || {
        world.nodes[0].keeper().is_some_and(|new| new != old) && problems(&world.nodes[0]).is_empty()
    });
    kill(&mut world.nodes[0]);
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    world.pods[0][0].reaches(world.pods[1][0].ip4, 3, &[]);
}

fn eventually_ends(pid: u32) -> bool {
    eventually("its end", GAP, || !runs(pid));
    true
}

/// Problems that have to do with keeping pods.
fn problems(node: &Node) -> Vec<String> {
    let all = node.status().problems;
    all.into_iter()
        .filter(|p| {
            p.contains("crash") || p.contains("keeper") || p.contains("recorded") || p.contains("not used")
        })
        .collect()
}

/// Their TAPs are gone: nobody pretends otherwise, and their addresses rest.
fn both_killed(world: &mut World) {
    let pid = run_detached(&world.nodes[0], "left");
    let old = world.pods[0].remove(0);
    eventually("the records on disk", GAP, || {
        let file = std::fs::read_to_string(world.dir().join("n1.state/pods.json"));
        file.is_ok_and(|text| text.contains("default/left") && text.contains("default/a1"))
    });
    // The node first: it would start another.
    world.nodes[0].signal(Signal::STOP);
    kill_keeper(&world.nodes[0]);
    kill(&mut world.nodes[0]);
    eventually("its end", GAP, || !runs(pid));
    // The keeper is not the child of the test, and the kernel takes its time with a TAP.
    eventually("the end of the TAP", GAP, || {
        !old.netns.run("ip", &["link", "show", "eth0"]).status.success()
    });
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    let node = &world.nodes[0];
    assert!(node.status().pods.is_empty());
    let log = node.log();
    assert!(
        log.contains("nobody kept their interfaces: default/a1, default/left;"),
        "{log}"
    );
    let told = ipam(node);
    let resting = |info: &IpamInfo| {
        let rests = info.addresses.iter();
        let rests = rests.filter(|a| matches!(a.state, AddressState::Resting { left_s: 30..=60 }));
        rests.map(|a| a.pod.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(resting(&told), ["a1", "left"], "{told:?}");
    // A name is free at once, the addresses are not.
    let again = Pod::attach(node, "a1");
    assert!(
        told.addresses.iter().all(|a| a.ip4 != Some(again.ip4)),
        "{told:?}"
    );
    for family in FAMILIES {
        again.reaches(world.pods[1][0].ip(family), 3, &[]);
    }
    world.pods[0].push(again);
}

/// What happens to pods while no node runs: each in its way is gone by the next start, and nothing else is.
fn collected(world: &mut World) {
    let path = world.dir().join("held");
    let hold = || {
        std::fs::write(&path, "").expect("a file");
        let netns = Netns::new();
        netns
            .within(|| rustix::mount::mount_bind("/proc/thread-self/ns/net", &path))
            .expect("a bind mount");
        netns
    };
    let let_go = || {
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).expect("it is mounted");
        std::fs::remove_file(&path).expect("it is there");
    };
    let netns = hold();
    let at = path.to_string_lossy().into_owned();
    let out = world.nodes[0].podwire(&["attach", "--netns", &at, "--name", "by-path"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let [deleted, renamed, ended] = ["deleted", "renamed", "ended"].map(|n| Pod::attach(&world.nodes[0], n));
    eventually("the records on disk", GAP, || {
        let file = std::fs::read_to_string(world.dir().join("n1.state/pods.json"));
        file.is_ok_and(|text| text.contains("default/ended"))
    });
    kill(&mut world.nodes[0]);
    // Another namespace at the same path is another pod's.
    drop(netns);
    let_go();
    let other = hold();
    deleted.netns.ask("ip", &["link", "del", "eth0"]);
    renamed
        .netns
        .ip("link set eth0 down\nlink set eth0 name net0\nlink set net0 up");
    let ended_ip = ended.ip4;
    drop(ended);
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    let node = &world.nodes[0];
    let names = |node: &Node| {
        node.status()
            .pods
            .iter()
            .map(|p| p.pod.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(node), ["a1", "renamed"]);
    let log = node.log();
    for told in [
        "pod default/by-path is not taken over: its namespace vanished",
        "pod default/deleted is not taken over: its interface eth0 was deleted",
        "the interface eth0 of pod default/renamed is called net0 now",
    ] {
        assert!(log.contains(told), "no {told:?} in:\n{log}");
    }
    // Whoever is root in a pod may rename its interface; the routes went with the address being down.
    world.pods[1][0].reaches(world.pods[0][0].ip4, 3, &[]);
    // None of their addresses is given, each can be had by name, and its keeper has none of them.
    let told = ipam(node);
    assert_eq!((told.held, told.resting), (2, 3), "{told:?}");
    let again = Pod::attach_with(node, "again", Some(ended_ip));
    world.pods[1][0].reaches(again.ip4, 3, &[]);
    kill(&mut world.nodes[0]);
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    assert_eq!(names(&world.nodes[0]), ["a1", "again", "renamed"]);
    drop(other);
    let_go();
}

/// Nobody is left behind when no node comes back.
fn nobody_left(world: &mut World) {
    let keeper = world.nodes[0].keeper().expect("a keeper");
    kill(&mut world.nodes[0]);
    std::thread::sleep(Duration::from_millis(1200));
    assert!(runs(keeper), "it has a pod");
    world.pods[0].clear();
    eventually("its end", GAP, || !runs(keeper));
    assert!(!world.nodes[0].socket.with_extension("keep").exists());
    world.nodes[0].restart(&world.underlay.hosts[0].netns);
    world.pods[0] = vec![Pod::attach(&world.nodes[0], "a")];
}

/// Two at once, and one beside: the pods stay with the first.
fn second(world: &mut World) {
    let netns = &world.underlay.hosts[0].netns;
    let (code, said) = world.nodes[0].fails_to_start(netns);
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("node n1 already runs"), "{said}");
    // Even if somebody removed its socket: its keeper knows.
    let socket = &world.nodes[0].socket;
    let aside = socket.with_extension("aside");
    std::fs::rename(socket, &aside).expect("it is there");
    let mut other = world.nodes[0].twin();
    other.set("--port", "9999");
    let (code, said) = other.fails_to_start(netns);
    assert_eq!(code, Some(5), "{said}");
    let pid = world.nodes[0].pid().to_string();
    assert!(said.contains("already runs") && said.contains(&pid), "{said}");
    std::fs::rename(&aside, socket).expect("it is there");
    // Two that start at once after a crash.
    for _ in 0..3 {
        kill(&mut world.nodes[0]);
        let (one, two) = (world.nodes[0].spawn(netns), world.nodes[0].spawn(netns));
        let mut both = [one, two];
        let begun = Instant::now();
        let loser = loop {
            let ended = both
                .iter_mut()
                .position(|c| c.try_wait().expect("our child").is_some());
            if let Some(loser) = ended {
                break loser;
            }
            assert!(begun.elapsed() < 2 * GAP, "both run");
            std::thread::sleep(Duration::from_millis(5));
        };
        let [one, two] = both;
        let (mut lost, won) = if loser == 0 { (one, two) } else { (two, one) };
        assert_eq!(lost.wait().expect("our child").code(), Some(5));
        world.nodes[0].is(won, netns);
        world.pods[1][0].reaches(world.pods[0][0].ip4, 3, &[]);
    }
}

/// `--keep-pods on`: what a service manager restarts has its pods back.
fn kept(world: &mut World) {
    world.nodes[0].stop();
    eventually("the keeper's end", GAP, || world.nodes[0].keeper().is_none());
    let old = world.pods[0].remove(0);
    // The keeper is not the child of the test, and the kernel takes its time with a TAP.
    eventually("the end of the TAP", GAP, || {
        !old.netns.run("ip", &["link", "show", "eth0"]).status.success()
    });
    world.nodes[0].set("--keep-pods", "on");
    let netns = &world.underlay.hosts[0].netns;
    world.nodes[0].restart(netns);
    let pid = run_detached(&world.nodes[0], "left");
    let pod = Pod::attach(&world.nodes[0], "a");
    let far = &world.pods[1][0];
    let listener = far.listen(Family::V4);
    let mut near = connect(&pod, listener.local_addr().expect("it is bound")).expect("a connection");
    let (mut there, _) = listener.accept().expect("a connection");
    for signal in [Signal::TERM, Signal::INT] {
        assert!(world.nodes[0].end(signal).success());
        assert!(!world.nodes[0].socket.exists());
        pod.netns.ask("ip", &["link", "show", "eth0"]);
        world.nodes[0].restart(netns);
        near.write_all(b"x").expect("it is sent");
        there.set_read_timeout(Some(GAP)).expect("a timeout");
        there.read_exact(&mut [0]).expect("it arrives");
        assert!(runs(pid));
    }
    world.nodes[0].set("--keep-pods", "off");
    kill(&mut world.nodes[0]);
    world.nodes[0].restart(netns);
    world.nodes[0].stop();
    eventually("its end", GAP, || !runs(pid));
    assert!(!pod.netns.run("ip", &["link", "show", "eth0"]).status.success());
    assert_eq!(world.nodes[0].keeper(), None);
    world.nodes[0].restart(netns);
    world.pods[0].push(Pod::attach(&world.nodes[0], "b"));
}

/// Pods are never renumbered: with another subnet the node does not start. Their TAPs stay as they are.
fn reconfigured(world: &mut World) {
    let netns = &world.underlay.hosts[0].netns;
    kill(&mut world.nodes[0]);
    for (flag, subnet) in [
        ("--subnet", "10.244.77.0/24"),
        ("--subnet", "10.244.0.0/23"),
        ("--subnet6", "fd00:10:244:77::/64"),
    ] {
        let mut other = world.nodes[0].twin();
        other.set(flag, subnet);
        let (code, said) = other.fails_to_start(netns);
        assert_eq!(code, Some(2), "{said}");
        for word in ["default/a1, default/b1", "10.244.1.0/24", "SIGTERM"] {
            assert!(said.contains(word), "no {word} in {said}");
        }
    }
    let other_mode = if world.mode == OffloadMode::On {
        "off"
    } else {
        "on"
    };
    world.nodes[0].set("--offload-tap", other_mode);
    world.nodes[0].restart(netns);
    let new = Pod::attach(&world.nodes[0], "new");
    let (a, b, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    for (from, to) in [(a, b), (a, &new), (&new, far), (far, b)] {
        for family in FAMILIES {
            stream(from, to, family, 2 * MB);
        }
    }
    let pods = world.nodes[0].status().pods;
    let flags: Vec<bool> = pods.iter().map(|p| p.caps.vnet_hdr).collect();
    let was = world.mode == OffloadMode::On;
    assert_eq!(flags, [was, was, !was]);
    world.pods[0].push(new);
}

/// The binary is replaced while the node runs: the next start takes the pods over from the old version's keeper, and
/// has one of its own version then.
fn upgraded(world: &mut World) {
    let netns = &world.underlay.hosts[0].netns;
    world.nodes[0].stop();
    world.pods[0].clear();
    let program = world.dir().join("podwire");
    let mut bytes = std::fs::read(PODWIRE).expect("the program");
    let (version, older) = (env!("CARGO_PKG_VERSION"), b"0.0.9");
    assert_eq!(version.len(), older.len());
    let places: Vec<usize> = (0..bytes.len() - 5)
        .filter(|at| bytes[*at..].starts_with(version.as_bytes()))
        .collect();
    for at in places {
        bytes[at..at + 5].copy_from_slice(older);
    }
    let old = world.dir().join("podwire.old");
    std::fs::write(&old, bytes).expect("a copy");
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    std::fs::rename(&old, &program).expect("a name");
    world.nodes[0].program = program.clone();
    world.nodes[0].restart(netns);
    assert_eq!(world.nodes[0].status().version, "0.0.9");
    world.pods[0] = ["a", "b"].map(|n| Pod::attach(&world.nodes[0], n)).into();
    let (a, far) = (&world.pods[0][0], &world.pods[1][0]);
    let listener = far.listen(Family::V6);
    let mut near = connect(a, listener.local_addr().expect("it is bound")).expect("a connection");
    let (mut there, _) = listener.accept().expect("a connection");
    let before = world.nodes[0].keeper().expect("a keeper");
    std::fs::copy(PODWIRE, &old).expect("a copy");
    std::fs::rename(&old, &program).expect("a name");
    for round in 0..2u8 {
        kill(&mut world.nodes[0]);
        world.nodes[0].restart(netns);
        near.write_all(&[round]).expect("it is sent");
        there.set_read_timeout(Some(GAP)).expect("a timeout");
        let mut got = [9];
        there.read_exact(&mut got).expect("it arrives");
        assert_eq!(got, [round]);
        eventually("the new keeper alone", GAP, || !runs(before));
        assert!(world.nodes[0].keeper().is_some_and(|new| new != before));
    }
    assert_eq!(world.nodes[0].status().version, version);
    assert_eq!(world.nodes[0].status().pods.len(), 2);
    world.nodes[0].stop();
    world.nodes[0].program = PODWIRE.into();
    world.nodes[0].restart(netns);
    world.pods[0] = vec![Pod::attach(&world.nodes[0], "c")];
}

/// The node is started in a time namespace whose clocks are years ahead, and then again in the usual one: pods are
/// kept, and nothing rests longer than it should.
fn clocks(world: &mut World) {
    let netns = &world.underlay.hosts[0].netns;
    assert!(
        world.nodes[0]
            .podwire(&["run", "--name", "short", "--", "true"])
            .status
            .success()
    );
    let ahead = [
        "unshare",
        "--time",
        "--boottime",
        "300000000",
        "--monotonic",
        "300000000",
    ];
    for shift in [&ahead[..], &[]] {
        kill(&mut world.nodes[0]);
        world.nodes[0].restart_under(shift, netns);
        for family in FAMILIES {
            world.pods[1][0].reaches(world.pods[0][0].ip(family), 3, &[]);
        }
        drop(Pod::attach(&world.nodes[0], "next"));
        eventually("its address rests", GAP, || {
            let all = ipam(&world.nodes[0]).addresses;
            let rests = |state: &AddressState| matches!(state, AddressState::Resting { left_s: 50..=60 });
            let mut next = all.iter().filter(|a| a.pod.name == "next");
            next.any(|a| rests(&a.state)) && all.iter().all(|a| a.pod.name == "a1" || rests(&a.state))
        });
    }
}
