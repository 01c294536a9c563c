//! What is refused, with which code and sentence; and that nothing is left of it.

use super::Case;
use super::node::PODWIRE;
use super::rig::{Hidden, Rig, addresses, answer};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

/// The tests.
pub const CASES: &[Case] = &[
    ("what_is_missing_or_wrong_is_named", wrong),
    ("an_interface_that_is_there_is_left_alone", duplicate),
    ("names_of_pods_and_containers", names),
    ("a_namespace_that_is_gone", vanished),
    ("addresses_that_cannot_be_had", fixed),
    ("the_plugin_by_its_other_names", by_name),
    ("a_namespace_that_only_the_runtime_sees", out_of_sight),
];

#[track_caller]
fn refused(said: Result<Value, Value>, code: u64, words: &str) {
    let e = said.expect_err("it is refused");
    assert_eq!(e["code"], code, "{e}");
    assert!(e["msg"].as_str().unwrap().contains(words), "{words}: {e}");
}

fn wrong(rig: &mut Rig) {
    let a = rig.container();
    let conf = rig.conf("1.0.0", json!({}));
    refused(rig.call("FROB", Some(&a), &conf, &[]), 4, "CNI_COMMAND");
    refused(
        rig.call("ADD", None, &conf, &[]),
        4,
        "CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME",
    );
    refused(
        rig.call("ADD", Some(&a), &conf, &[("CNI_NETNS", "")]),
        4,
        "CNI_NETNS",
    );
    refused(
        rig.call("ADD", Some(&a), &conf, &[("CNI_IFNAME", "a/b")]),
        4,
        "CNI_IFNAME",
    );
    refused(
        rig.call("ADD", Some(&a), &conf, &[("CNI_ARGS", "FOO=1")]),
        4,
        "FOO",
    );
    refused(rig.call("ADD", Some(&a), &json!("x"), &[]), 6, "no JSON object");
    refused(
        rig.call("ADD", Some(&a), &rig.conf("9.9.9", json!({})), &[]),
        1,
        "1.1.0",
    );
    let said = rig.call("ADD", Some(&a), &rig.conf("9.9.9", json!({})), &[]);
    assert_eq!(said.unwrap_err()["cniVersion"], "9.9.9");
    for (more, code, key) in [
        (json!({"podwire": {"sokcet": 1}}), 7, "podwire.sokcet"),
        (json!({"mtu": 70000}), 7, "mtu"),
        (json!({"mtu": 700}), 7, "1280"),
        (json!({"name": ""}), 7, "name"),
        (json!({"ipam": {"type": "dhcp"}}), 7, "ipam.type"),
        (
            json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.0.0.0/8"}]]}}),
            2,
            "ipRanges",
        ),
        (
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "sctp"}]}}),
            2,
            "sctp",
        ),
    ] {
        refused(
            rig.call("ADD", Some(&a), &rig.conf("1.0.0", more), &[]),
            code,
            key,
        );
    }
    // Keys of others are theirs.
    let conf = rig.conf("1.0.0", json!({"someone": {"else": true}}));
    rig.add(&a, &conf);
    rig.del(&a, &conf);
}

fn duplicate(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let a = rig.container();
    let result = rig.add(&a, &conf);
    refused(rig.call("ADD", Some(&a), &conf, &[]), 100, "already");
    assert_eq!(rig.pods().len(), 1);
    assert!(a.pings("10.244.1.1"));
    let later = rig.conf("1.0.0", json!({"prevResult": result}));
    assert_eq!(rig.call("CHECK", Some(&a), &later, &[]), Ok(Value::Null));
    rig.del(&a, &conf);
    // Somebody else's interface of that name.
    let b = rig.container();
    b.netns().ip("link add eth0 type veth peer name other");
    refused(rig.call("ADD", Some(&b), &conf, &[]), 100, "eth0");
    assert!(b.has("eth0") && b.has("other"));
    rig.del(&b, &conf);
    assert!(b.has("eth0"));
    assert_eq!(rig.ipam().held, 0);
}

fn names(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let k8s = [(
        "CNI_ARGS",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0;X=1",
    )];
    let a = rig.container();
    rig.add_with(&a, &conf, &k8s);
    let second = [k8s[0], ("CNI_IFNAME", "net1")];
    rig.add_with(&a, &conf, &second);
    let names = |rig: &Rig| rig.pods().iter().map(|p| p.pod.to_string()).collect::<Vec<_>>();
    assert_eq!(names(rig), ["shop/db-0", "shop/db-0-net1"]);
    let pod = &rig.pods()[0];
    let attachment = pod.attachment.as_ref().expect("what the runtime calls it");
    assert_eq!(
        (attachment.network.as_str(), &attachment.container),
        ("pods", &a.id)
    );
    // Another container of that name, while the first is there, and once its namespace is gone.
    let mut a = a;
    let b = rig.container();
    refused(rig.call("ADD", Some(&b), &conf, &k8s), 11, "shop/db-0");
    assert!(a.pings("10.244.1.1"));
    a.vanish();
    rig.add_with(&b, &conf, &k8s);
    let of = |rig: &Rig| rig.pods()[0].attachment.clone().expect("one").container;
    assert_eq!(of(rig), b.id);
    // The former one's DEL comes late, and is not about this one.
    rig.del(&a, &conf);
    assert_eq!(of(rig), b.id);
    rig.del(&b, &conf);
    // Without Kubernetes it is the identifier; two that begin alike are told apart.
    let c = rig.container_named(&"ab".repeat(32));
    let d = rig.container_named(&("ab".repeat(31) + "cd"));
    rig.add(&c, &conf);
    rig.add(&d, &conf);
    let there = names(rig);
    assert!(there.contains(&"default/abababababab".into()), "{there:?}");
    assert_eq!(there.len(), 2);
    rig.del(&c, &conf);
    rig.del(&d, &conf);
}

fn vanished(rig: &mut Rig) {
    let conf = rig.conf("1.0.0", json!({}));
    let mut a = rig.container();
    let b = rig.container();
    rig.add(&a, &conf);
    a.vanish();
    refused(rig.call("ADD", Some(&a), &conf, &[]), 3, "no network namespace");
    std::fs::write(&a.path, "").unwrap();
    refused(
        rig.call("ADD", Some(&a), &conf, &[]),
        3,
        "not a network namespace",
    );
    std::fs::remove_file(&a.path).unwrap();
    rig.del(&a, &conf);
    rig.del(&b, &conf);
}

fn fixed(rig: &mut Rig) {
    let (a, b) = (rig.container(), rig.container());
    let with = |ips: Value| rig.conf("1.0.0", json!({"runtimeConfig": {"ips": ips}}));
    refused(
        rig.call("ADD", Some(&a), &with(json!(["10.9.9.9"])), &[]),
        7,
        "10.244.1.2 to 10.244.1.254",
    );
    refused(
        rig.call("ADD", Some(&a), &with(json!(["10.244.1.1/24"])), &[]),
        7,
        "gateway",
    );
    refused(rig.call("ADD", Some(&a), &with(json!(["x"])), &[]), 7, "ips[0]");
    let conf = with(json!(["10.244.1.77/24"]));
    assert_eq!(addresses(&rig.add(&a, &conf))[0], "10.244.1.77");
    refused(
        rig.call("ADD", Some(&b), &conf, &[]),
        100,
        "10.244.1.77 is held by pod",
    );
    assert!(!b.has("eth0"));
    rig.del(&a, &conf);
    let plain = rig.conf("1.0.0", json!({}));
    let args = [("CNI_ARGS", "IP=10.244.1.78;MAC=02:00:00:00:00:78")];
    let result = rig.add_with(&a, &plain, &args);
    assert_eq!(addresses(&result)[0], "10.244.1.78");
    assert_eq!(result["interfaces"][0]["mac"], "02:00:00:00:00:78");
    rig.del(&a, &plain);
}

/// A runtime, and flannel, name the file; a person's shell does not set CNI_COMMAND.
fn by_name(rig: &mut Rig) {
    let run = |file: &str, args: &[&str], command: Option<&str>| {
        let path = rig.dir().join(file);
        let _ = std::os::unix::fs::symlink(PODWIRE, &path);
        let mut plugin = Command::new(&path);
        plugin.args(args).env_clear().stdin(Stdio::null());
        plugin.envs(command.map(|c| ("CNI_COMMAND", c)));
        let out = plugin.output().expect("podwire runs");
        std::fs::remove_file(path).unwrap();
        out
    };
    for file in ["podwire-cni", "podwire", "any"] {
        let said = answer(run(file, &[], Some("VERSION"))).unwrap();
        assert_eq!(said["cniVersion"], "1.1.0", "{file}");
    }
    let out = run("podwire-cni", &[], None);
    assert!(
        String::from_utf8_lossy(&out.stderr).contains("podwire cni conflist"),
        "{out:?}"
    );
    assert_eq!(answer(out).unwrap_err()["code"], 4);
    // With arguments it is the command line, whatever a shell has in its environment.
    for file in ["podwire-cni", "podwire"] {
        let out = run(file, &["--version"], Some("ADD"));
        assert!(
            String::from_utf8_lossy(&out.stdout).starts_with("podwire "),
            "{out:?}"
        );
    }
    let out = rig.node.podwire(&["cni", "conflist", "--name", "pods"]);
    let list: Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(
        list["plugins"][0]["podwire"]["socket"],
        rig.node.socket.to_str().unwrap()
    );
}

/// As rootless podman has it: what holds the namespace is mounted where the node does not see it, so that only who attaches
/// the next one of that name can tell that it is gone.
fn out_of_sight(rig: &mut Rig) {
    let (mut a, b) = (rig.container(), rig.container());
    let hidden = Hidden::new(rig, &mut a);
    let conf = rig.conf("1.0.0", json!({}));
    let k8s = [("CNI_ARGS", "K8S_POD_NAME=web")];
    let add = |of: &super::rig::Container| {
        let child = rig.begin_as(hidden.inside(PODWIRE), "ADD", Some(of), &conf, &k8s);
        answer(child.wait_with_output().unwrap())
    };
    let first = add(&a).unwrap();
    refused(add(&b), 11, "default/web");
    // Where the runtime does not see it, nobody can tell: it may be there.
    refused(rig.call("ADD", Some(&b), &conf, &k8s), 11, "default/web");
    assert_eq!(
        rig.pods()[0].attachment.as_ref().map(|a| &a.container),
        Some(&a.id)
    );
    let unmounted = hidden.inside("umount").arg(&a.path).status().unwrap();
    assert!(unmounted.success());
    assert_eq!(rig.pods().len(), 1, "the node sees nothing of it");
    let second = add(&b).unwrap();
    assert_ne!(addresses(&first), addresses(&second));
    assert_eq!(
        rig.pods()[0].attachment.as_ref().map(|a| &a.container),
        Some(&b.id)
    );
    rig.del(&a, &conf);
    assert_eq!(rig.pods().len(), 1);
    rig.del(&b, &conf);
}
