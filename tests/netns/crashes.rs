//! Crashes at every moment of attaching and detaching (row 27 of the fault table), of the client and of the node, and
//! disks that take nothing (row 31): whatever happened, node, keeper, records and namespaces agree afterwards.

use super::adopt::{ipam, run_detached, runs};
use super::netns::Netns;
use super::node::{Node, PODWIRE};
use super::pod::{FAMILIES, Pod};
use super::traffic::{MB, stream};
use super::world::{Case, World, eventually};
use podwire::api::{AddressState, AttachPlan, Connection, PROTOCOL, Reply, Request};
use podwire::model::PodMtu;
use rustix::process::Signal;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("clients_killed_at_any_moment", clients),
    Case::new("nodes_killed_at_any_moment_of_an_attach", attaching),
    Case::new("nodes_killed_at_any_moment_of_a_detach", detaching),
    Case::new("a_client_whose_node_vanishes_leaves_nothing", vanished),
    Case::new("runs_killed_at_any_moment", killed_runs),
    Case::new("a_full_or_readonly_disk_is_a_problem_and_no_more", disks),
];

/// How long something may take that a busy machine has to do.
const SOON: Duration = Duration::from_secs(5);
/// How many moments of a command are tried.
const MOMENTS: u32 = 24;

/// A namespace that a path holds.
struct Held {
    path: PathBuf,
    netns: Netns,
}

impl Held {
    fn new(path: PathBuf) -> Held {
        std::fs::write(&path, "").expect("a file");
        let netns = Netns::new();
        netns
            .within(|| rustix::mount::mount_bind("/proc/thread-self/ns/net", &path))
            .expect("a bind mount");
        Held { path, netns }
    }

    fn has_interface(&self) -> bool {
        self.netns.run("ip", &["link", "show", "eth0"]).status.success()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        let _ = std::fs::remove_file(&self.path);
    }
}

fn client(node: &Node, args: &[&str]) -> Child {
    let mut command = Command::new(PODWIRE);
    command.arg("--socket").arg(&node.socket).args(args);
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.spawn().expect("podwire runs")
}

fn attach(node: &Node, held: &Held) -> Child {
    let path = held.path.to_string_lossy().into_owned();
    client(node, &["attach", "--netns", &path, "--name", "victim"])
}

fn is_there(node: &Node, pod: &str) -> bool {
    node.status().pods.iter().any(|p| p.pod.name == pod)
}

/// How long such a command takes when nobody kills it: the moments are spread over a little more.
fn whole(node: &Node, held: &Held) -> Duration {
    let begun = Instant::now();
    assert!(attach(node, held).wait().expect("our child").success());
    let took = begun.elapsed();
    assert!(node.podwire(&["detach", "victim"]).status.success());
    took * 5 / 4
}

/// The pod is either there in all respects, or in none; then it is taken off.
fn settle(node: &Node, held: &Held, moment: u32) {
    // What a client that was killed had still to be closed is closed by the kernel in its own time.
    let agree = || is_there(node, "victim") == held.has_interface();
    eventually(&format!("agreement after moment {moment}"), SOON, agree);
    let listed: Vec<String> = ipam(node)
        .addresses
        .iter()
        .filter(|a| matches!(a.state, AddressState::Held { .. }))
        .map(|a| a.pod.name.clone())
        .collect();
    assert_eq!(
        listed.contains(&"victim".into()),
        is_there(node, "victim"),
        "moment {moment}"
    );
    assert!(node.podwire(&["detach", "victim"]).status.success());
    assert!(
        !held.has_interface() && !is_there(node, "victim"),
        "moment {moment}"
    );
}

/// How many descriptors of TAPs a process has.
fn taps(pid: u32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .flatten();
    let links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    links.filter(|l| l == Path::new("/dev/net/tun")).count()
}

/// Node and keeper have the TAPs of `pods` pods, and no more.
fn has_taps(node: &Node, pods: usize) {
    eventually("the TAPs of its pods and no other", SOON, || {
        let keeper = node.keeper().map(taps);
        (taps(node.pid()), keeper) == (pods, Some(pods))
    });
}

fn clients(world: &mut World) {
    let held = Held::new(world.dir().join("victim"));
    let node = &world.nodes[0];
    let whole = whole(node, &held);
    for moment in 0..MOMENTS {
        let mut child = attach(node, &held);
        std::thread::sleep(whole * moment / MOMENTS);
        child.kill().expect("our child");
        child.wait().expect("our child");
        settle(node, &held, moment);
        assert!(attach(node, &held).wait().expect("our child").success());
        let mut child = client(node, &["detach", "victim"]);
        std::thread::sleep(whole * moment / MOMENTS);
        child.kill().expect("our child");
        child.wait().expect("our child");
        settle(node, &held, moment);
    }
    has_taps(node, 1);
    world.pods[1][0].reaches(world.pods[0][0].ip4, 3, &[]);
}

fn attaching(world: &mut World) {
    let held = Held::new(world.dir().join("victim"));
    let netns = &world.underlay.hosts[0].netns;
    let whole = whole(&world.nodes[0], &held);
    let mut outcomes = [0; 2];
    for moment in 0..MOMENTS {
        let mut child = attach(&world.nodes[0], &held);
        std::thread::sleep(whole * moment / MOMENTS);
        world.nodes[0].end(Signal::KILL);
        let success = child.wait().expect("our child").success();
        outcomes[usize::from(success)] += 1;
        world.nodes[0].restart(netns);
        let node = &world.nodes[0];
        // Who was told that the pod is attached has it; who was told otherwise has nothing.
        assert_eq!(
            is_there(node, "victim"),
            success,
            "moment {moment}:\n{}",
            node.log()
        );
        settle(node, &held, moment);
    }
    assert!(outcomes[0] > 0, "it was never killed in time");
    has_taps(&world.nodes[0], 1);
    world.pods[1][0].reaches(world.pods[0][0].ip4, 3, &[]);
}

fn detaching(world: &mut World) {
    let held = Held::new(world.dir().join("victim"));
    let netns = &world.underlay.hosts[0].netns;
    let whole = whole(&world.nodes[0], &held);
    for moment in 0..MOMENTS {
        assert!(
            attach(&world.nodes[0], &held)
                .wait()
                .expect("our child")
                .success()
        );
        let mut child = client(&world.nodes[0], &["detach", "victim"]);
        std::thread::sleep(whole * moment / MOMENTS);
        world.nodes[0].end(Signal::KILL);
        let success = child.wait().expect("our child").success();
        world.nodes[0].restart(netns);
        let node = &world.nodes[0];
        assert!(
            !success || !is_there(node, "victim"),
            "moment {moment}: it is back"
        );
        settle(node, &held, moment);
    }
    has_taps(&world.nodes[0], 1);
}

/// A node that has the TAP, and had it kept, is killed before it answers: who asked is told that there is no pod, so
/// there is none, although the TAP is open still.
fn vanished(world: &mut World) {
    let held = Held::new(world.dir().join("victim"));
    let socket = world.dir().join("fake.sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let plan = AttachPlan {
        ip4: Some("10.244.1.99/24".parse().expect("an address")),
        ip6: None,
        mac: "0a:58:0a:f4:01:63".parse().expect("a MAC"),
        mtu: PodMtu(1450),
        gateway4: Some([10, 244, 1, 1].into()),
        gateway6: None,
        gso_max_segs: 44,
        gso_max_size: 65_536,
        tx_queue_len: 1000,
        offload: world.mode,
    };
    let kept = std::thread::scope(|s| {
        let fake = s.spawn(|| {
            let (stream, _) = listener.accept().expect("a client");
            let mut wire = Connection::new(stream).expect("a connection");
            loop {
                let Some((request, fds)) = wire.receive().expect("a request") else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let answer = match request.expect("sense") {
                    Request::Attach(_) => Reply::Plan(plan.clone()),
                    Request::Commit { .. } => return fds,
                    _ => Reply::Hello {
                        protocol: PROTOCOL,
                        node: "fake".into(),
                        version: "0".into(),
                    },
                };
                wire.reply(&answer).expect("it is sent");
            }
        });
        let path = held.path.to_string_lossy().into_owned();
        let mut command = Command::new(PODWIRE);
        command.arg("--socket").arg(&socket);
        let out = command
            .args(["attach", "--netns", &path, "--name", "victim"])
            .output();
        let said = String::from_utf8_lossy(&out.expect("podwire runs").stderr).into_owned();
        assert!(said.contains("the connection to the node"), "{said}");
        fake.join().expect("no panic")
    });
    assert_eq!(kept.len(), 1);
    assert!(!held.has_interface());
    std::fs::remove_file(&socket).expect("it is there");
}

/// `podwire run` makes namespaces and processes as well: none stays, whoever is killed.
fn killed_runs(world: &mut World) {
    let netns = &world.underlay.hosts[0].netns;
    let whole = Duration::from_millis(60);
    for moment in 0..MOMENTS {
        let mut child = client(
            &world.nodes[0],
            &["run", "--name", "victim", "--", "sleep", "0.02"],
        );
        std::thread::sleep(whole * moment / MOMENTS);
        if moment % 2 == 0 {
            world.nodes[0].end(Signal::KILL);
            // With or without a node, it goes on to its end.
            child.wait().expect("our child");
            world.nodes[0].restart(netns);
        } else {
            child.kill().expect("our child");
            child.wait().expect("our child");
        }
        eventually("the pod is gone", SOON, || !is_there(&world.nodes[0], "victim"));
    }
    has_taps(&world.nodes[0], 1);
    // The supervisor of the suite looks for processes.
}

/// The state directory takes nothing any more: pods come and go all the same, and the old records stay.
fn disks(world: &mut World) {
    let dir = world.dir().join("state");
    std::fs::create_dir(&dir).expect("a directory");
    let none = rustix::mount::MountFlags::empty();
    let size = std::ffi::CString::new("size=1m").expect("no zero");
    rustix::mount::mount("tmpfs", &dir, "tmpfs", none, Some(size.as_c_str())).expect("a tmpfs");
    world.nodes[0].stop();
    world.pods[0].clear();
    world.nodes[0].set("--state-dir", &dir.to_string_lossy());
    let netns = &world.underlay.hosts[0].netns;
    world.nodes[0].restart(netns);
    let file = dir.join("pods.json");
    let first = Pod::attach(&world.nodes[0], "first");
    let text = || std::fs::read_to_string(&file).unwrap_or_default();
    eventually("a record", SOON, || text().contains("default/first"));
    let before = text();
    let fill = dir.join("fill");
    let readonly = |on: bool| {
        let flags = if on {
            rustix::mount::MountFlags::RDONLY
        } else {
            none
        };
        rustix::mount::mount_remount(&dir, flags, &*size).expect("a remount");
    };
    let problem = |node: &Node| {
        let problems = node.status().problems;
        problems
            .iter()
            .any(|p| p.contains("not recorded") && p.contains("pods.json"))
    };
    for full in [true, false] {
        if full {
            let _ = std::fs::write(&fill, vec![0; 2 << 20]);
        } else {
            readonly(true);
        }
        let second = Pod::attach(&world.nodes[0], "second");
        eventually("the problem", SOON, || problem(&world.nodes[0]));
        assert_eq!(text(), before, "the old records stay as they are");
        for family in FAMILIES {
            stream(&first, &world.pods[1][0], family, 2 * MB);
            stream(&second, &first, family, 2 * MB);
        }
        // The keeper needs no disk.
        world.nodes[0].end(Signal::KILL);
        world.nodes[0].restart(netns);
        world.pods[1][0].reaches(second.ip4, 3, &[]);
        assert!(world.nodes[0].podwire(&["detach", "second"]).status.success());
        if full {
            std::fs::remove_file(&fill).expect("it is there");
        } else {
            readonly(false);
        }
        let pid = run_detached(&world.nodes[0], "third");
        eventually("no problem", SOON, || !problem(&world.nodes[0]));
        eventually("a record", SOON, || text().contains("default/third"));
        assert!(world.nodes[0].podwire(&["detach", "third"]).status.success());
        eventually("its end", SOON, || !runs(pid));
        eventually("a record", SOON, || {
            let json: serde_json::Value = serde_json::from_str(&text()).expect("JSON");
            json["pods"].as_array().is_some_and(|pods| pods.len() == 1)
        });
        std::fs::write(&file, &before).expect("room");
    }
    // Records that are damaged are told of, and replaced.
    world.nodes[0].end(Signal::KILL);
    std::fs::write(&file, &before[..before.len() / 2]).expect("room");
    world.nodes[0].restart(netns);
    world.pods[1][0].reaches(first.ip4, 3, &[]);
    assert!(
        world.nodes[0].log().contains("it is damaged"),
        "{}",
        world.nodes[0].log()
    );
    eventually("a record", SOON, || text().contains("default/first"));
    world.nodes[0].stop();
    drop(first);
    rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::DETACH).expect("it is mounted");
    world.nodes[0].restart(netns);
    world.pods[0].push(Pod::attach(&world.nodes[0], "last"));
}
