//! Nodes and pods that come and go: endings within a second, namespaces that vanish, and counters that add up
//! at any moment.

use super::netns::Netns;
use super::pod::{FAMILIES, Place, Pod};
use super::traffic::{MB, connect, stream};
use super::world::{Case, World, eventually};
use podwire::api::PodInfo;
use rustix::process::Signal;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("a_node_ends_under_load", ends),
    Case::new("a_pod_whose_holder_ends_is_noticed", holder_ends).pods(2),
    Case::new("a_pod_whose_namespace_vanishes_is_noticed", path_vanishes),
    Case::new("a_detached_pod_ends_with_its_port", detached),
    Case::new("a_pod_is_usable_once_attached", usable),
    Case::new("pods_come_and_go_under_traffic", churn),
    Case::new("status_is_balanced_at_any_moment", balanced),
    Case::new("an_idle_node_sleeps", idle),
];

/// A stream that never ends by itself; gives up when the network does.
fn endless(from: &Pod, to: &Pod) {
    let listener = to.listen(FAMILIES[0]);
    let at = listener.local_addr().expect("it is bound");
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut stream = connect(from, at).expect("a connection");
            let short = Some(Duration::from_millis(200));
            stream.set_write_timeout(short).expect("a timeout");
            while stream.write_all(&[1; 65_536]).is_ok() {}
        });
        let (mut stream, _) = listener.accept().expect("a connection");
        let short = Some(Duration::from_millis(200));
        stream.set_read_timeout(short).expect("a timeout");
        let mut buffer = vec![0; 65_536];
        while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
    });
}

fn ends(world: &mut World) {
    for signal in [Signal::TERM, Signal::INT] {
        let (a, b) = (&world.pods[0][0], &world.pods[1][0]);
        let node = &mut world.nodes[0];
        std::thread::scope(|s| {
            s.spawn(|| endless(a, b));
            s.spawn(|| endless(b, a));
            std::thread::sleep(Duration::from_millis(200));
            let begun = Instant::now();
            let status = node.end(signal);
            assert!(status.success(), "{status}");
            assert!(begun.elapsed() < Duration::from_secs(1));
        });
        assert!(!world.nodes[0].socket.exists());
        // The TAP went with the node: nobody else held it.
        let a = &world.pods[0][0];
        let link = a.netns.run("ip", &["link", "show", "eth0"]);
        assert!(!link.status.success(), "the interface is still there");
        // And its port is free again.
        world.nodes[0].restart(&world.underlay.hosts[0].netns);
        world.pods[0] = vec![Pod::attach(&world.nodes[0], "next")];
        for family in FAMILIES {
            world.pods[0][0].reaches(world.pods[1][0].ip(family), 3, &[]);
        }
    }
}

fn holder_ends(world: &mut World) {
    let gone = world.pods[0].remove(0);
    let (name, ip4, ip6, mac) = (gone.name.clone(), gone.ip4, gone.ip6, gone.mac);
    let (b, far) = (&world.pods[0][0], &world.pods[1][0]);
    far.reaches(ip4, 2, &[]);
    drop(gone);
    eventually("the pod is gone", Duration::from_secs(1), || {
        world.nodes[0].status().pods.iter().all(|p| p.pod.name != name)
    });
    for from in [b, far] {
        let ping = from.ping(ip4, 2, &[]);
        ping.none();
        assert!(
            ping.text.contains("Destination Host Unreachable"),
            "{}",
            ping.text
        );
    }
    // Its addresses can be had again, and its neighbours find the new owner at once.
    let again = Pod::attach_with(&world.nodes[0], "again", Some(ip4));
    assert_eq!((again.ip4, again.ip6, again.mac), (ip4, ip6, mac));
    for from in [b, far] {
        for family in FAMILIES {
            from.reaches(again.ip(family), 3, &[]);
        }
    }
    world.pods[0].push(again);
}

fn path_vanishes(world: &mut World) {
    let path = world.dir().join("held");
    let node = &world.nodes[0];
    for round in 0..2 {
        std::fs::write(&path, "").expect("a file");
        let netns = Netns::new();
        netns
            .within(|| rustix::mount::mount_bind("/proc/thread-self/ns/net", &path))
            .expect("a bind mount");
        let at = path.to_string_lossy().into_owned();
        let out = node.podwire(&["attach", "--netns", &at, "--name", "held", "--ip", "10.244.1.77"]);
        let wrong = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "round {round}: {wrong}");
        let far = world.pods[1][0].ip4.to_string();
        netns.ask("ping", &["-n", "-c", "2", "-i", "0.01", "-W", "1", &far]);
        rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH).expect("it is mounted");
        drop(netns);
        std::fs::remove_file(&path).expect("it is there");
        eventually("the pod is gone", Duration::from_secs(1), || {
            node.status().pods.iter().all(|p| p.pod.name != "held")
        });
    }
}

/// A pod left to itself by `podwire run --detach` ends when it is detached, and when its node does.
fn detached(world: &mut World) {
    for by_node in [false, true] {
        let node = &mut world.nodes[0];
        let out = node.podwire(&["run", "--detach", "--name", "left", "--json"]);
        let wrong = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{wrong}");
        let pod: PodInfo = serde_json::from_slice(&out.stdout).expect("JSON of a pod");
        let held = format!("/proc/{}/ns/net", pod.holder.expect("a holder"));
        assert!(Path::new(&held).exists());
        if by_node {
            node.stop();
            node.restart(&world.underlay.hosts[0].netns);
        } else {
            let out = node.podwire(&["detach", "left"]);
            assert!(out.status.success());
        }
        eventually("its holder ends", Duration::from_secs(1), || {
            !Path::new(&held).exists()
        });
    }
    world.pods[0].clear();
}

/// Attaching ends when packets for the pod are taken, also while the kernel is busy with other namespaces.
fn usable(world: &mut World) {
    let busy = AtomicBool::new(true);
    let late: Vec<String> = std::thread::scope(|s| {
        s.spawn(|| {
            while busy.load(Ordering::Relaxed) {
                drop((Netns::new(), Netns::new()));
            }
        });
        let late = (0..10).filter_map(|n| {
            let pod = Pod::attach_now(&world.nodes[0], &format!("guest{n}"), None);
            (!pod.has_ip6()).then_some(pod.name)
        });
        let late = late.collect();
        busy.store(false, Ordering::Relaxed);
        late
    });
    assert!(
        late.is_empty(),
        "attached, but their IPv6 address does not work yet: {late:?}"
    );
}

fn churn(world: &mut World) {
    let fds = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let (a, b) = world.pair();
    for family in FAMILIES {
        a.reaches(b.ip(family), 1, &[]);
    }
    let node = &world.nodes[0];
    let before = fds(node.pid());
    std::thread::scope(|s| {
        s.spawn(|| stream(a, b, FAMILIES[0], 16 * MB));
        s.spawn(|| a.reaches(b.ip6, 50, &[]));
        for n in 0..10 {
            let pod = Pod::attach(node, &format!("guest{n}"));
            pod.reaches(b.ip4, 1, &[]);
            if n % 2 == 0 {
                let out = node.podwire(&["detach", &pod.name]);
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            }
        }
    });
    eventually("all guests are gone", Duration::from_secs(2), || {
        node.status().pods.len() == 1
    });
    eventually("and all they held", Duration::from_secs(2), || {
        fds(node.pid()) <= before
    });
}

/// Each status, also in the midst of traffic, accounts for each frame.
fn balanced(world: &mut World) {
    let (a, b) = world.pair();
    std::thread::scope(|s| {
        let traffic = s.spawn(|| {
            for family in FAMILIES {
                stream(a, b, family, 4 * MB);
                stream(b, a, family, 4 * MB);
            }
        });
        let mut asked = 0;
        while !traffic.is_finished() || asked < 20 {
            for node in &world.nodes {
                let status = node.status();
                let off = status.counters.imbalance();
                assert_eq!(off, 0, "n{}: {:?}", node.number, status.counters);
            }
            asked += 1;
            // Probes are sent once a second: long enough to meet some.
            std::thread::sleep(Duration::from_millis(if asked < 20 { 60 } else { 5 }));
        }
    });
}

fn idle(world: &mut World) {
    // Neighbour discovery of the pods' own stacks has calmed down by then.
    std::thread::sleep(Duration::from_millis(500));
    let before = world.nodes[0].status().counters.wakeups;
    let cpu = world.nodes[0].cpu();
    std::thread::sleep(Duration::from_secs(2));
    let woken = world.nodes[0].status().counters.wakeups - before;
    // The second question itself, and the probes it and the first sent.
    assert!(woken <= 8, "an idle node woke up {woken} times in two seconds");
    assert!(world.nodes[0].cpu() - cpu <= Duration::from_millis(20));
}
