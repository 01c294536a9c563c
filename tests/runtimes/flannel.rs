//! flannel's CNI plugin, which has podwire attach what `subnet.env` says.

use super::Case;
use super::machine::{Machine, NETWORK, one, sharing};
use super::podman::{Podman, fetch};
use super::shell::{fed, said, until};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Tests.
pub const CASES: &[Case] = &[
    ("flannel::its_verbs_reach_the_node", its_verbs),
    ("flannel::containers_of_podman", containers_of_podman),
];

/// What flannel's daemon writes.
const SUBNET_ENV: &str =
    "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";

/// flannel's plugin, if it is there.
fn plugin() -> Option<&'static Path> {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/flannel");
    let places = [fetched, "/usr/lib/cni/flannel"];
    let found = places.map(Path::new).into_iter().find(|place| place.is_file());
    if found.is_none() {
        eprintln!("flannel: its CNI plugin is missing, so nothing is tested with it (tests/run fetches it)");
    }
    found
}

/// flannel's stock configuration, with podwire as the delegate.
fn network(machine: &Machine) -> serde_json::Value {
    serde_json::json!({
        "type": "flannel", "subnetFile": machine.dir.join("subnet.env"), "dataDir": machine.dir.join("flannel"),
        "delegate": {
            "type": "podwire-cni", "podwire": {"socket": machine.socket()}, "hairpinMode": true, "isDefaultGateway": true,
        },
        "capabilities": {"portMappings": true},
    })
}

/// A verb of flannel's plugin: whether it succeeds, and what it says.
fn call(machine: &Machine, verb: &str, netns: &str) -> (bool, String) {
    let plugin = machine.dir.join("plugins/flannel");
    let mut call = machine.run(&plugin.display().to_string(), &[]);
    call.env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", "box")
        .env("CNI_NETNS", format!("/run/netns/{netns}"))
        .env("CNI_IFNAME", "eth0")
        .env(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web",
        )
        .env("CNI_PATH", machine.dir.join("plugins"));
    let mut conf = network(machine);
    conf["name"] = NETWORK.into();
    // As flannel's stock configuration has it; CHECK came with the next one.
    conf["cniVersion"] = if verb == "CHECK" { "0.4.0" } else { "0.3.1" }.into();
    fed(call, &conf.to_string())
}

fn its_verbs() {
    let Some(plugin) = plugin() else { return };
    let machine = one();
    fs::copy(plugin, machine.dir.join("plugins/flannel")).unwrap();
    fs::write(machine.dir.join("subnet.env"), SUBNET_ENV).unwrap();
    let netns = format!("{}-box", machine.netns);
    let ip = |args: &[&str]| {
        let mut ip = Command::new("ip");
        ip.args(args);
        said(ip)
    };
    ip(&["netns", "add", &netns]);
    let (good, result) = call(&machine, "ADD", &netns);
    assert!(good, "{result}");
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    assert_eq!(result["cniVersion"], "0.3.1");
    let address = result["ips"][0]["address"].as_str().unwrap().to_string();
    assert!(
        address.starts_with("10.244.1.") && address.ends_with("/24"),
        "{result}"
    );
    let shown = ip(&["-n", &netns, "addr", "show", "dev", "eth0"]);
    assert!(shown.contains(&address) && shown.contains("mtu 1400"), "{shown}");
    let route = ip(&["-n", &netns, "route", "get", "10.244.2.9"]);
    assert!(route.contains("via 10.244.1.1"), "{route}");
    assert_eq!(machine.pods(), ["shop/web"]);
    assert_eq!(call(&machine, "CHECK", &netns), (true, String::new()));
    // DEL while the node is away, and again.
    machine.kill();
    assert_eq!(call(&machine, "DEL", &netns), (true, String::new()));
    assert_eq!(call(&machine, "DEL", &netns), (true, String::new()));
    let (good, why) = call(&machine, "ADD", &netns);
    assert!(!good && why.contains("node"), "{why}");
    machine.start();
    until("the node has let go", || machine.pods().is_empty());
    // What is not this node's subnet is named.
    let other = SUBNET_ENV.replace("10.244.1.", "10.244.9.");
    fs::write(machine.dir.join("subnet.env"), other).unwrap();
    let (good, why) = call(&machine, "ADD", &netns);
    assert!(!good && why.contains("10.244.1.0/24"), "{why}");
    assert_eq!(call(&machine, "DEL", &netns), (true, String::new()));
    let left = fs::read_dir(machine.dir.join("flannel")).unwrap().count();
    assert_eq!(left, 0);
    ip(&["netns", "del", &netns]);
}

/// With the `subnet.env` that a node writes beside etcd.
fn containers_of_podman() {
    let Some(plugin) = plugin() else { return };
    let (_store, [machine, _]) = sharing();
    fs::copy(plugin, machine.dir.join("plugins/flannel")).unwrap();
    machine.conflist(&network(&machine).to_string());
    let podman = Podman::on(&machine);
    let serve = "echo hello > /www/index.html; exec /bin/httpd -f -p 80 -h /www";
    podman.start("web", &["-p", "8080:80"], &["/bin/sh", "-c", serve]);
    podman.start("a", &[], &["/bin/sleep", "600"]);
    let page = fetch(&podman.address("web"));
    until("the other answers", || {
        podman.exec("a", &["/bin/sh", "-c", &page]).ends_with("hello")
    });
    let page = ["-sf", "-m", "5", "http://127.0.0.1:8080/"];
    assert_eq!(said(machine.run("curl", &page)), "hello");
    podman.end();
}
