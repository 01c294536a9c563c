//! All verbs in all versions.

use super::Case;
use super::rig::{Rig, addresses};
use serde_json::{Value, json};

/// The tests.
pub const CASES: &[Case] = &[
    ("every_verb_in_every_version", every_version),
    ("a_chain_passes_on_what_was_before", chained),
    ("check_finds_what_is_not_as_it_was", check),
    ("gc_frees_what_is_not_listed", gc),
    ("status_tells_whether_there_is_room", status),
    ("as_flannels_delegate", delegate),
];

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

fn with(conf: &Value, key: &str, value: Value) -> Value {
    let mut conf = conf.clone();
    conf[key] = value;
    conf
}

fn every_version(rig: &mut Rig) {
    for version in VERSIONS {
        let at_least =
            |v: &str| VERSIONS.iter().position(|x| *x == version) >= VERSIONS.iter().position(|x| *x == v);
        let (a, b) = (rig.container(), rig.container());
        let conf = rig.conf(version, json!({}));
        let result = rig.add(&a, &conf);
        assert_eq!(result["cniVersion"], version);
        let interface = &result["interfaces"][0];
        assert_eq!(interface["name"], "eth0");
        assert_eq!(interface["sandbox"], a.path.to_str().unwrap());
        assert_eq!(interface.get("mtu").is_some(), at_least("1.1.0"));
        for (ip, number) in result["ips"].as_array().unwrap().iter().zip(["4", "6"]) {
            let expected = (!at_least("1.0.0")).then_some(json!(number));
            assert_eq!(ip.get("version"), expected.as_ref(), "{version}");
            assert_eq!(ip["interface"], 0);
        }
        assert_eq!(
            result["routes"][0],
            json!({"dst": "0.0.0.0/0", "gw": "10.244.1.1"})
        );
        assert_eq!(
            result["routes"][1],
            json!({"dst": "::/0", "gw": "fd00:10:244:1::1"})
        );
        assert_eq!(result["dns"]["nameservers"][0], "10.244.1.1");
        let other = rig.add(&b, &conf);
        for address in addresses(&other) {
            assert!(a.pings(&address), "{address}");
        }
        let later = with(&conf, "prevResult", result.clone());
        let checked = rig.call("CHECK", Some(&a), &later, &[]);
        match at_least("0.4.0") {
            true => assert_eq!(checked, Ok(Value::Null)),
            false => assert_eq!(checked.unwrap_err()["code"], 1),
        }
        let status = rig.call("STATUS", None, &conf, &[]);
        let listed =
            json!([{"containerID": a.id, "ifname": "eth0"}, {"containerID": b.id, "ifname": "eth0"}]);
        let gc = rig.call("GC", None, &with(&conf, "cni.dev/valid-attachments", listed), &[]);
        for said in [status, gc] {
            match at_least("1.1.0") {
                true => assert_eq!(said, Ok(Value::Null)),
                false => assert_eq!(said.unwrap_err()["code"], 1),
            }
        }
        let versions = rig
            .call("VERSION", None, &json!({"cniVersion": version}), &[])
            .unwrap();
        assert_eq!(
            versions,
            json!({"cniVersion": version, "supportedVersions": VERSIONS})
        );
        rig.del(&a, &later);
        assert!(!a.has("eth0"));
        rig.del(&a, &later);
        rig.del(&b, &conf);
        assert_eq!(
            rig.call("DEL", Some(&b), &conf, &[("CNI_NETNS", "")]),
            Ok(Value::Null)
        );
    }
}

fn chained(rig: &mut Rig) {
    for version in VERSIONS {
        let a = rig.container();
        let mut ip = json!({"address": "192.0.2.9/24", "interface": 1});
        if version < "1.0.0" {
            ip["version"] = json!("4");
        }
        let before = json!({
            "cniVersion": version,
            "interfaces": [{"name": "br0", "mac": "02:00:00:00:00:01"}, {"name": "net0", "sandbox": a.path}],
            "ips": [ip],
            "routes": [{"dst": "198.51.100.0/24", "gw": "192.0.2.1"}],
            "dns": {"nameservers": ["192.0.2.53"]},
        });
        let conf = rig.conf(
            version,
            json!({"prevResult": before, "dns": {"nameservers": ["10.244.1.1"]}}),
        );
        let result = rig.add(&a, &conf);
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert_eq!(result["interfaces"][0], before["interfaces"][0]);
        assert_eq!(result["ips"][0], before["ips"][0]);
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["routes"][0], before["routes"][0]);
        assert_eq!(result["dns"], json!({"nameservers": ["10.244.1.1"]}));
        if version >= "0.4.0" {
            let later = with(&conf, "prevResult", result);
            assert_eq!(rig.call("CHECK", Some(&a), &later, &[]), Ok(Value::Null));
        }
        rig.del(&a, &conf);
    }
}

fn check(rig: &mut Rig) {
    let conf = rig.conf("1.1.0", json!({}));
    let damage: [(&str, &str); 6] = [
        ("link set eth0 mtu 1300", "MTU 1300"),
        ("addr del ADDR dev eth0", "no address"),
        ("route del default via 10.244.1.1", "default route"),
        ("link set eth0 down", "is down"),
        ("link set eth0 down\nlink set eth0 name eth9", "no interface eth0"),
        (
            "neigh replace 10.244.1.1 dev eth0 lladdr 02:00:00:00:00:99 nud permanent",
            "does not answer",
        ),
    ];
    for (break_it, said) in damage {
        let a = rig.container();
        let result = rig.add(&a, &conf);
        let later = with(&conf, "prevResult", result.clone());
        assert_eq!(rig.call("CHECK", Some(&a), &later, &[]), Ok(Value::Null));
        let address = result["ips"][0]["address"].as_str().unwrap();
        a.netns().ip(&break_it.replace("ADDR", address));
        let e = rig.call("CHECK", Some(&a), &later, &[]).unwrap_err();
        assert_eq!(e["code"], 102, "{break_it}: {e}");
        assert!(e["msg"].as_str().unwrap().contains(said), "{break_it}: {e}");
        rig.del(&a, &later);
    }
    let mut a = rig.container();
    let result = rig.add(&a, &conf);
    let later = with(&conf, "prevResult", result);
    // A container that answers nobody's ping is as it was.
    a.netns()
        .within(|| std::fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1"))
        .unwrap();
    assert_eq!(rig.call("CHECK", Some(&a), &later, &[]), Ok(Value::Null));
    let e = rig.call("CHECK", Some(&a), &conf, &[]).unwrap_err();
    assert_eq!(e["code"], 7, "{e}");
    rig.del(&a, &later);
    assert_eq!(rig.call("CHECK", Some(&a), &later, &[]).unwrap_err()["code"], 3);
    a.vanish();
    assert_eq!(rig.call("CHECK", Some(&a), &later, &[]).unwrap_err()["code"], 3);
}

fn gc(rig: &mut Rig) {
    let conf = rig.conf("1.1.0", json!({}));
    let other = rig.conf("1.1.0", json!({"name": "other"}));
    let containers = [rig.container(), rig.container(), rig.container()];
    rig.add(&containers[0], &conf);
    rig.add(&containers[1], &conf);
    rig.add(&containers[2], &other);
    let out = rig
        .node
        .podwire(&["run", "--name", "by-hand", "--", "sleep", "0"]);
    assert!(out.status.success(), "{out:?}");
    let listed = |c: usize| json!([{"containerID": containers[c].id, "ifname": "eth0"}]);
    let collect = |conf: &Value, listed: Value| {
        let said = rig.call("GC", None, &with(conf, "cni.dev/valid-attachments", listed), &[]);
        assert_eq!(said, Ok(Value::Null));
        let pods = rig.pods().into_iter();
        pods.filter_map(|p| Some(p.attachment?.container))
            .collect::<Vec<_>>()
    };
    let left = collect(&conf, listed(1));
    assert!(!left.contains(&containers[0].id), "{left:?}");
    assert!(
        left.contains(&containers[1].id) && left.contains(&containers[2].id),
        "{left:?}"
    );
    assert!(!containers[0].has("eth0"));
    assert_eq!(collect(&conf, json!([])).len(), 1);
    assert_eq!(rig.call("GC", None, &conf, &[]).unwrap_err()["code"], 7);
    assert!(collect(&other, json!([])).is_empty());
}

fn status(rig: &mut Rig) {
    let conf = rig.conf("1.1.0", json!({}));
    assert_eq!(rig.call("STATUS", None, &conf, &[]), Ok(Value::Null));
    rig.node.stop();
    let e = rig.call("STATUS", None, &conf, &[]).unwrap_err();
    assert_eq!(e["code"], 50, "{e}");
    assert!(e["msg"].as_str().unwrap().contains("podwire node"), "{e}");
    rig.node.set("--subnet", "10.244.1.0/30");
    rig.node.unset("--subnet6");
    rig.node.restart(&rig.host);
    let (a, b) = (rig.container(), rig.container());
    rig.add(&a, &conf);
    let e = rig.call("STATUS", None, &conf, &[]).unwrap_err();
    assert_eq!(e["code"], 50, "{e}");
    let e = rig.call("ADD", Some(&b), &conf, &[]).unwrap_err();
    assert_eq!(e["code"], 11, "{e}");
    assert!(e["msg"].as_str().unwrap().contains("10.244.1.0/30"), "{e}");
    rig.del(&a, &conf);
    assert_eq!(rig.call("STATUS", None, &conf, &[]), Ok(Value::Null));
}

/// As the flannel plugin calls its delegate: by the type `podwire`, in its own name.
fn delegate(rig: &mut Rig) {
    let more = json!({
        "name": "cbr0", "type": "podwire", "hairpinMode": true, "isDefaultGateway": true, "isGateway": true, "ipMasq": true,
        "mtu": 1400,
        "ipam": {"type": "host-local", "routes": [{"dst": "10.244.0.0/16"}], "ranges": [[{"subnet": "10.244.1.0/24"}]]},
    });
    let conf = rig.conf("0.3.1", more.clone());
    let a = rig.container();
    let result = rig.add(&a, &conf);
    assert!(addresses(&result)[0].starts_with("10.244.1."), "{result}");
    assert!(
        a.netns()
            .ask("ip", &["link", "show", "eth0"])
            .contains("mtu 1400")
    );
    rig.del(&a, &conf);
    let mut elsewhere = more;
    elsewhere["ipam"]["ranges"][0][0]["subnet"] = json!("10.244.2.0/24");
    let e = rig
        .call("ADD", Some(&a), &rig.conf("0.3.1", elsewhere), &[])
        .unwrap_err();
    assert_eq!(e["code"], 7, "{e}");
}
