//! What a container runtime says to the plugin: environment, configuration on standard input, and results of plugins before
//! it. Anything is understood, or refused with a code and one line.

use podwire::cni::args::Args;
use podwire::cni::call::{Call, Verb};
use podwire::cni::conf::{Conf, version_of};
use podwire::cni::error::CniError;
use podwire::cni::names::Names;
use podwire::cni::result::CniResult;
use podwire::cni::version::Version;
use podwire::model::PodName;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// The variables, in the order in which they stand in the input.
const NAMES: [&str; 6] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
];
/// The longest message: a few quoted words of somebody else's, each bounded.
const SENTENCE: usize = 4000;

/// `[environment: six texts, each up to a 0xff] [input]`
pub fn run(data: &[u8]) {
    let mut parts = data.splitn(NAMES.len() + 1, |b| *b == 0xff);
    let mut vars: Vec<&[u8]> = Vec::new();
    for _ in NAMES {
        vars.push(parts.next().unwrap_or_default());
    }
    let input = parts.next().unwrap_or_default();
    let get = |name: &str| {
        let at = NAMES.iter().position(|n| *n == name)?;
        let value = vars.get(at).filter(|v| !v.is_empty())?;
        Some(OsString::from_vec(value.to_vec()))
    };
    let version = version_of(input);
    let call = match Call::read(get) {
        Ok(call) => Some(call),
        Err(e) => {
            told(&e);
            None
        }
    };
    let verbs = [Verb::Add, Verb::Del, Verb::Check, Verb::Gc, Verb::Status];
    for verb in verbs {
        match Conf::read(input, verb) {
            Ok(conf) => {
                assert_eq!(version.as_deref(), Some(conf.version.text()));
                understood(&conf);
                if let Some(call) = &call {
                    names(&call.args, &call.container, &conf);
                }
            }
            Err(e) => told(&e),
        }
    }
}

/// One harmless line, in JSON that any runtime reads.
fn told(e: &CniError) {
    assert!(
        !e.msg.is_empty() && e.msg.len() < SENTENCE,
        "{} bytes",
        e.msg.len()
    );
    assert!(!e.msg.chars().any(char::is_control), "{:?}", e.msg);
    let json = e.to_json(Version::LATEST.text());
    assert!(json["code"].as_u64().is_some_and(|c| c > 0));
}

fn understood(conf: &Conf) {
    for ip in &conf.wishes.ips {
        let same = conf.wishes.ips.iter().filter(|o| o.is_ipv4() == ip.is_ipv4());
        assert_eq!(same.count(), 1);
    }
    for port in &conf.wishes.ports {
        assert!(port.first > 0 && port.pod > 0 && port.count > 0);
        assert_eq!(port.ports().count(), usize::from(port.count));
        let last = port.ports().last().expect("one at least");
        assert_eq!(
            u32::from(last.0),
            u32::from(port.first) + u32::from(port.count) - 1
        );
        assert_eq!(u32::from(last.1), u32::from(port.pod) + u32::from(port.count) - 1);
    }
    let Some(before) = &conf.before else { return };
    for ip in &before.ips {
        assert!(ip.interface.is_none_or(|i| i < before.interfaces.len()));
    }
    for version in Version::ALL {
        let there = before.to_json(version);
        let back = CniResult::read(&there, "prevResult").expect("what was written");
        assert_eq!(back.to_json(version), there);
        if version == Version::LATEST {
            assert_eq!(back, *before);
        }
    }
}

fn names(args: &Args, container: &str, conf: &Conf) {
    if container.is_empty() {
        return;
    }
    match Names::of(args, container, &conf.namespace) {
        Ok(names) => {
            for name in [Some(names.first), names.second].into_iter().flatten() {
                assert_eq!(name.to_string().parse::<PodName>().as_ref(), Ok(&name));
            }
        }
        Err(e) => told(&e),
    }
}

fn seed(vars: [&str; 6], input: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for var in vars {
        out.extend(var.bytes());
        out.push(0xff);
    }
    out.extend(input.bytes());
    out
}

/// Inputs made by hand.
pub fn seeds() -> Vec<super::seeds::Seed> {
    let env = |verb, args| [verb, "0123abcd", "/run/netns/a", "eth0", args, "/opt/cni/bin"];
    let kubernetes = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0;K8S_POD_UID=1";
    vec![
        (
            "least",
            seed(
                env("ADD", ""),
                r#"{"cniVersion":"1.0.0","name":"pods","type":"podwire-cni"}"#,
            ),
        ),
        (
            "capabilities",
            seed(
                env("ADD", kubernetes),
                r#"{"cniVersion":"1.1.0","name":"pods","podwire":{"socket":"/run/podwire/n1.sock","namespace":"x"},"mtu":1400,
                "runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp","hostIP":"::1","range":2}],
                "bandwidth":{"ingressRate":1000,"ingressBurst":1},"ips":["10.1.0.9/24","fd00::9"],"mac":"0a:58:00:00:00:01",
                "dns":{"servers":["9.9.9.9"],"searches":["a"],"options":["b"]},"aliases":{"pods":["w"]},"ipRanges":[]},
                "args":{"cni":{"labels":[{"key":"a","value":"b"}],"ips":["10.1.0.9"]}},"dns":{"nameservers":["1.1.1.1"]}}"#,
            ),
        ),
        (
            "chain",
            seed(
                env("CHECK", "IP=10.1.0.9;MAC=0a:58:00:00:00:01"),
                r#"{"cniVersion":"0.4.0","name":"pods","prevResult":{"cniVersion":"0.4.0","interfaces":[{"name":"br0"},
                {"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"/run/netns/a"}],"ips":[{"version":"4",
                "address":"10.1.0.2/24","gateway":"10.1.0.1","interface":1}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1",
                "mtu":1400}],"dns":{"nameservers":["1.1.1.1"],"domain":"x"}}}"#,
            ),
        ),
        (
            "gc",
            seed(
                env("GC", ""),
                r#"{"cniVersion":"1.1.0","name":"pods","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}"#,
            ),
        ),
        (
            "delegate",
            seed(
                env("ADD", ""),
                r#"{"cniVersion":"0.3.1","name":"cbr0","type":"podwire","isGateway":true,"ipMasq":false,"ipam":
                {"type":"host-local","ranges":[[{"subnet":"10.244.1.0/24"}]],"routes":[{"dst":"10.244.0.0/16"}]}}"#,
            ),
        ),
        ("nothing", Vec::new()),
    ]
}
