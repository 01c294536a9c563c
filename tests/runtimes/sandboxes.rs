//! Kubernetes' pods without Kubernetes: containerd's CRI, asked as a kubelet asks it.

use super::Case;
use super::containerd::Containerd;
use super::cri::{Kubelet, Pod, pod, with_dns, with_port};
use super::machine::{Machine, machines, one, sharing};
use super::podman::fetch;
use super::shell::{refused, said, until};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Tests.
pub const CASES: &[Case] = &[
    (
        "sandboxes::a_pod_has_its_network_and_leaves_nothing",
        a_pod_has_its_network,
    ),
    (
        "sandboxes::containers_of_a_pod_share_and_one_is_replaced",
        containers_share,
    ),
    ("sandboxes::pods_of_two_machines_reach_each_other", two_machines),
    (
        "sandboxes::pods_know_the_names_of_another_machines",
        names_of_another_machine,
    ),
    ("sandboxes::the_network_is_ready_with_podwire_only", network_ready),
    (
        "sandboxes::without_a_node_no_pod_starts_and_nothing_is_left",
        without_a_node,
    ),
    (
        "sandboxes::containerd_may_be_killed_at_any_time",
        containerd_may_be_killed,
    ),
];

const SLEEP: &[&str] = &["/bin/sleep", "600"];

/// A server whose page is a word.
fn serve(word: &str) -> [String; 3] {
    let script = format!("echo {word} > /www/index.html; exec /bin/httpd -f -p 80 -h /www");
    ["/bin/sh".into(), "-c".into(), script]
}

fn start_server(kubelet: &Kubelet, pod: &Pod, word: &str, attempt: u32) -> String {
    let program = serve(word);
    let program: Vec<&str> = program.iter().map(String::as_str).collect();
    kubelet.start(pod, "web", attempt, &program)
}

/// That neither podwire nor containerd has anything of a pod.
fn nothing_is_left(containerd: &Containerd<'_>) {
    let machine = containerd.machine;
    assert_eq!(machine.pods(), Vec::<String>::new());
    assert_eq!(machine.interfaces(), Vec::<String>::new());
    assert_eq!(ports(machine), Vec::<String>::new());
    assert_eq!(containerd.namespaces(), Vec::<PathBuf>::new());
}

/// The pods that have ports of the host.
fn ports(machine: &Machine) -> Vec<String> {
    let ports = said(machine.podwire(&["port", "ls", "--json"]));
    let ports: serde_json::Value = serde_json::from_str(&ports).unwrap();
    let pods = ports.as_array().unwrap().iter();
    pods.map(|port| port["pod"].as_str().unwrap().into()).collect()
}

fn a_pod_has_its_network() {
    let machine = one();
    let containerd = Containerd::on(&machine);
    let kubelet = Kubelet::at(&containerd.socket());
    let mut config = with_port(pod("web"), 8080, 80);
    let annotation = "kubernetes.io/egress-bandwidth".to_string();
    config.annotations.insert(annotation, "20M".into());
    let web = kubelet.run(&config);
    assert_eq!(machine.pods(), ["shop/web"]);
    let addresses = kubelet.addresses(&web);
    let [four, six] = &addresses[..] else {
        panic!("{addresses:?}")
    };
    assert!(
        four.starts_with("10.244.1.") && six.starts_with("fd00:10:244:1:"),
        "{addresses:?}"
    );
    let container = start_server(&kubelet, &web, "hello", 0);
    let (_, shown) = kubelet.exec(&container, &["/bin/ip", "-o", "addr", "show", "dev", "eth0"]);
    assert!(
        shown.contains(four.as_str()) && shown.contains(six.as_str()),
        "{shown}"
    );
    let (reached, said_of) = kubelet.exec(&container, &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    assert!(reached, "{said_of}");
    let pods = said(machine.podwire(&["pods", "--json"]));
    let pods: serde_json::Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(
        pods[0]["bandwidth"]["egress"]["bits_per_second"], 20_000_000,
        "{pods}"
    );
    // A resolver is the kubelet's to name: containerd does not heed a plugin's.
    let (_, conf) = kubelet.exec(&container, &["/bin/cat", "/etc/resolv.conf"]);
    assert!(!conf.contains("10.244.1.1"), "{conf}");
    // Its hostPort.
    let page = ["-sf", "-m", "5", "http://127.0.0.1:8080/"];
    until("the port answers", || {
        let fetched = machine.run("curl", &page).output();
        fetched.is_ok_and(|out| out.stdout == b"hello\n")
    });
    // Another pod cannot have it, is told who has, and leaves nothing.
    let why = kubelet
        .try_run(&with_port(pod("second"), 8080, 80))
        .err()
        .unwrap();
    assert!(
        why.message().contains("8080") && why.message().contains("shop/web"),
        "{why}"
    );
    assert_eq!(machine.pods(), ["shop/web"]);
    assert_eq!(kubelet.sandboxes().len(), 1);
    assert_eq!(containerd.namespaces().len(), 1);
    kubelet.stop(&web.id).unwrap();
    nothing_is_left(&containerd);
    refused(machine.run("curl", &page));
    // A kubelet stops what is stopped.
    kubelet.stop(&web.id).unwrap();
    kubelet.remove(&web.id).unwrap();
    assert_eq!(kubelet.sandboxes(), Vec::<String>::new());
}

fn containers_share() {
    let machine = one();
    let containerd = Containerd::on(&machine);
    let kubelet = Kubelet::at(&containerd.socket());
    let (shop, peer) = (kubelet.run(&pod("shop")), kubelet.run(&pod("peer")));
    let addresses = kubelet.addresses(&shop);
    let echo = kubelet.start(
        &peer,
        "echo",
        0,
        &["/bin/nc", "-l", "-p", "9000", "-e", "/bin/cat"],
    );
    let at = &kubelet.addresses(&peer)[0];
    let side = kubelet.start(&shop, "side", 0, SLEEP);
    let web = start_server(&kubelet, &shop, "first", 0);
    let page = fetch("127.0.0.1");
    let answers = |word: &str| {
        let (_, said) = kubelet.exec(&side, &["/bin/sh", "-c", &page]);
        said.ends_with(&format!("{word}\n"))
    };
    until("the sidecar reaches it on localhost", || answers("first"));
    // A connection of the sidecar goes on while the other container is replaced.
    let talk = format!(
        "((echo before; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo after) | nc {at} 9000 > /tmp/heard) >/dev/null 2>&1 </dev/null &"
    );
    kubelet.exec(&side, &["/bin/sh", "-c", &talk]);
    let heard = |word: &str| kubelet.exec(&side, &["/bin/cat", "/tmp/heard"]).1.contains(word);
    until("the connection stands", || heard("before"));
    kubelet.end(&web);
    let web = start_server(&kubelet, &shop, "second", 1);
    until("the new one answers", || answers("second"));
    kubelet.exec(&side, &["/bin/touch", "/tmp/go"]);
    until("the connection went on", || heard("after"));
    assert_eq!(kubelet.addresses(&shop), addresses);
    for container in [&web, &side] {
        let (_, shown) = kubelet.exec(container, &["/bin/ip", "-o", "addr", "show", "dev", "eth0"]);
        assert!(addresses.iter().all(|a| shown.contains(a.as_str())), "{shown}");
    }
    kubelet.end(&echo);
    assert_eq!(machine.pods(), ["shop/peer", "shop/shop"]);
    kubelet.clear_but(&[]);
    nothing_is_left(&containerd);
}

fn two_machines() {
    let both = machines(2, &[]);
    let daemons = [Containerd::on(&both[0]), Containerd::on(&both[1])];
    let kubelets = [
        Kubelet::at(&daemons[0].socket()),
        Kubelet::at(&daemons[1].socket()),
    ];
    let mut at = Vec::new();
    for (n, kubelet) in (1..).zip(&kubelets) {
        let config = with_dns(pod(&format!("p{n}")), &format!("10.244.{n}.1"));
        let pod = kubelet.run(&config);
        let container = start_server(kubelet, &pod, &format!("hello from p{n}"), 0);
        at.push((container, kubelet.addresses(&pod)));
    }
    for (kubelet, (container, _), (_, theirs), word) in [
        (&kubelets[0], &at[0], &at[1], "hello from p2"),
        (&kubelets[1], &at[1], &at[0], "hello from p1"),
    ] {
        let page = fetch(&theirs[0]);
        until("the other's page comes", || {
            let (_, said) = kubelet.exec(container, &["/bin/sh", "-c", &page]);
            said.ends_with(&format!("{word}\n"))
        });
    }
    // Names: its resolver is what the kubelet says, and knows pods of its own node.
    let (container, theirs) = &at[0];
    let (_, conf) = kubelets[0].exec(container, &["/bin/cat", "/etc/resolv.conf"]);
    assert!(
        conf.contains("nameserver 10.244.1.1") && conf.contains("shop.pod"),
        "{conf}"
    );
    let (_, found) = kubelets[0].exec(container, &["/bin/nslookup", "-type=a", "p1.shop.pod"]);
    assert!(found.contains(&theirs[0]), "{found}");
    for (kubelet, containerd) in kubelets.iter().zip(&daemons) {
        kubelet.clear_but(&[]);
        nothing_is_left(containerd);
    }
}

fn names_of_another_machine() {
    let (_store, both) = sharing();
    let daemons = [Containerd::on(&both[0]), Containerd::on(&both[1])];
    let kubelets = daemons.each_ref().map(|d| Kubelet::at(&d.socket()));
    let at = [0, 1].map(|n| {
        // The gateway is what flannel calls a node's subnet.
        let env = fs::read_to_string(both[n].dir.join("subnet.env")).unwrap();
        let subnet = env.lines().find_map(|l| l.strip_prefix("FLANNEL_SUBNET="));
        let gateway = subnet.unwrap().split('/').next().unwrap();
        let pod = kubelets[n].run(&with_dns(pod(&format!("p{n}")), gateway));
        let container = start_server(&kubelets[n], &pod, &format!("hello from p{n}"), 0);
        (container, kubelets[n].addresses(&pod)[0].clone())
    });
    for (here, there) in [(0, 1), (1, 0)] {
        let exec = |program: &[&str]| kubelets[here].exec(&at[here].0, program).1;
        let name = format!("p{there}.shop.pod");
        until("the other's name is known", || {
            exec(&["/bin/nslookup", "-type=a", &name]).contains(&at[there].1)
        });
        let page = fetch(&at[there].1);
        let page = ["/bin/sh", "-c", &page];
        until("its page comes", || {
            exec(&page).ends_with(&format!("hello from p{there}\n"))
        });
    }
    for (kubelet, containerd) in kubelets.iter().zip(&daemons) {
        kubelet.clear_but(&[]);
        nothing_is_left(containerd);
    }
}

fn network_ready() {
    let machine = one();
    let containerd = Containerd::on(&machine);
    let kubelet = Kubelet::at(&containerd.socket());
    kubelet.network().unwrap();
    let (conf, off) = (
        machine.dir.join("conf/10-podwire.conflist"),
        machine.dir.join("off"),
    );
    fs::rename(&conf, &off).unwrap();
    until("the network is not ready", || kubelet.network().is_err());
    let why = kubelet.try_run(&pod("early")).err().unwrap();
    assert!(why.message().contains("cni"), "{why}");
    // Written: containerd 1.6 does not notice what is moved there.
    fs::copy(&off, &conf).unwrap();
    until("the network is ready", || kubelet.network().is_ok());
    kubelet.clear_but(&[]);
    kubelet.run(&pod("early"));
    kubelet.clear_but(&[]);
    nothing_is_left(&containerd);
}

fn without_a_node() {
    let machine = one();
    let containerd = Containerd::on(&machine);
    let kubelet = Kubelet::at(&containerd.socket());
    kubelet.run(&pod("before"));
    machine.kill();
    let why = kubelet.try_run(&pod("late")).err().unwrap();
    assert!(why.message().contains("node"), "{why}");
    // A pod that is there can be stopped nevertheless.
    kubelet.clear_but(&[]);
    machine.start();
    until("the node has let go", || machine.pods().is_empty());
    nothing_is_left(&containerd);
    kubelet.run(&pod("late"));
    kubelet.clear_but(&[]);
    nothing_is_left(&containerd);
}

/// containerd's death at any step: in the end every pod runs that a kubelet wants, and none holds anything that it ended.
fn containerd_may_be_killed() {
    let machine = one();
    let containerd = Containerd::on(&machine);
    let socket = containerd.socket();
    let kubelet = Kubelet::at(&socket);
    let stays = kubelet.run(&pod("stays"));
    let addresses = kubelet.addresses(&stays);
    let container = kubelet.start(&stays, "sleep", 0, SLEEP);
    let killed_after = |delay: u64, during: &(dyn Fn(&Kubelet) + Sync)| {
        std::thread::scope(|scope| {
            scope.spawn(|| during(&Kubelet::at(&socket)));
            std::thread::sleep(Duration::from_millis(delay));
            containerd.kill();
        });
        containerd.start();
        until("containerd is ready", || kubelet.network().is_ok());
    };
    let mut config = with_port(pod("comes"), 8080, 80);
    // While a pod is started: its kubelet ends what it finds of it, and tries again.
    for delay in (10..130).step_by(24) {
        killed_after(delay, &|kubelet| drop(kubelet.try_run(&config)));
        until("the pod runs", || {
            kubelet.clear_but(&[&stays.id]);
            config.metadata.as_mut().unwrap().attempt += 1;
            let Err(e) = kubelet.try_run(&config) else {
                return true;
            };
            // containerd stumbles over a directory that it had not noted, until it has collected it.
            assert!(e.message().contains("snapshots/"), "{e}");
            false
        });
        assert_eq!(machine.pods(), ["shop/comes", "shop/stays"]);
        kubelet.clear_but(&[&stays.id]);
    }
    // While one is stopped.
    for delay in (5..80).step_by(25) {
        config.metadata.as_mut().unwrap().attempt += 1;
        let comes = kubelet.run(&config);
        killed_after(delay, &|kubelet| drop(kubelet.stop(&comes.id)));
        kubelet.clear_but(&[&stays.id]);
        assert_eq!(machine.pods(), ["shop/stays"]);
    }
    // And who was not concerned noticed nothing.
    assert_eq!(kubelet.addresses(&stays), addresses);
    let (reached, told) = kubelet.exec(&container, &["/bin/ping", "-c", "1", "-W", "2", "10.244.1.1"]);
    assert!(reached, "{told}");
    kubelet.clear_but(&[]);
    assert_eq!((machine.pods(), ports(&machine)), (Vec::new(), Vec::new()));
    // containerd 1.6 forgets namespaces, or files for them, that it had made for a sandbox it had not noted yet; nothing of
    // podwire is in them.
    for forgotten in containerd.namespaces() {
        let mut links = Command::new("nsenter");
        links.arg(format!("--net={}", forgotten.display()));
        let links = links.args(["ip", "-o", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        assert!(!links.contains("eth0"), "{links}");
    }
}
