//! Names the node answers itself.

use super::node::{Node, free_port, podwire};
use std::process::Command;

fn lines(all: &[&str]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

#[test]
fn pods_have_names_as_long_as_they_are_there() {
    let node = Node::start(&["--dns-upstream", &free_port().to_string()]);
    for pod in ["web", "shop/db-0", "shop/db-1"] {
        node.ok(&["run", "--name", pod, "--detach"]);
    }
    let noerror = "NOERROR".to_string();
    for (asked, answers) in [
        ("web.default.pod A", vec!["web.default.pod. 5 IN A 10.244.1.2"]),
        (
            "WEB.deFault.Pod AAAA",
            vec!["WEB.deFault.Pod. 5 IN AAAA fd00:1::2"],
        ),
        ("db-1.shop.pod A", vec!["db-1.shop.pod. 5 IN A 10.244.1.4"]),
        ("db-0.db.shop.pod A", vec!["db-0.db.shop.pod. 5 IN A 10.244.1.3"]),
        (
            "db.shop.pod A",
            vec!["db.shop.pod. 5 IN A 10.244.1.3", "db.shop.pod. 5 IN A 10.244.1.4"],
        ),
        (
            "-x 10.244.1.4",
            vec!["4.1.244.10.in-addr.arpa. 5 IN PTR db-1.shop.pod."],
        ),
        (
            "-x fd00:1::3",
            vec![
                "3.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa. 5 IN PTR db-0.shop.pod.",
            ],
        ),
        (
            "host.podwire.internal A",
            vec!["host.podwire.internal. 5 IN A 10.244.1.1"],
        ),
        (
            "host.podwire.internal AAAA +tcp",
            vec!["host.podwire.internal. 5 IN AAAA fd00:1::1"],
        ),
        // There is such a name, and not this of it.
        ("web.default.pod MX", vec![]),
        ("shop.pod A", vec![]),
        ("1.244.10.in-addr.arpa PTR", vec![]),
    ] {
        assert_eq!(node.answer(asked), (noerror.clone(), lines(&answers)), "{asked}");
    }
    for gone in [
        "nope.default.pod A",
        "web.shop.pod A",
        "pod.pod TXT",
        "-x 10.244.1.99",
        "x.podwire.internal A",
    ] {
        assert_eq!(node.answer(gone), ("NXDOMAIN".into(), vec![]), "{gone}");
        let whole = node.dig(gone);
        assert!(
            whole.contains("\tSOA\t") && whole.contains("flags: qr aa"),
            "{whole}"
        );
    }
    node.ok(&["detach", "shop/db-0"]);
    assert_eq!(node.answer("db-0.shop.pod A"), ("NXDOMAIN".into(), vec![]));
    let left = lines(&["db.shop.pod. 5 IN A 10.244.1.4"]);
    assert_eq!(node.answer("db.shop.pod A"), (noerror, left));
    // Nothing of all this was anybody else's business.
    assert_eq!(
        node.status("/dns/answers/upstream") + node.status("/dns/answers/failed"),
        0
    );
}

/// What attach has said holds for the next question.
#[test]
fn a_pods_name_is_known_once_it_is_attached() {
    let node = Node::start(&[]);
    for i in 0..10 {
        node.ok(&["run", "--name", &format!("p{i}"), "--detach"]);
        let (status, answers) = node.answer(&format!("p{i}.default.pod A"));
        assert_eq!((status.as_str(), answers.len()), ("NOERROR", 1), "p{i}");
        node.ok(&["detach", &format!("p{i}")]);
        assert_eq!(node.answer(&format!("p{i}.default.pod A")).0, "NXDOMAIN", "p{i}");
    }
}

#[test]
fn names_of_ones_own_hold_at_once_and_over_a_restart() {
    let fixed = [
        "--dns-record",
        "db.internal 192.0.2.7",
        "--dns-record",
        "t.internal TXT some text",
    ];
    let node = Node::start(&fixed);
    assert_eq!(
        node.answer("db.internal A").1,
        lines(&["db.internal. 5 IN A 192.0.2.7"])
    );
    assert_eq!(
        node.answer("t.internal TXT").1,
        lines(&["t.internal. 5 IN TXT \"some text\""])
    );
    assert_eq!(node.answer("db.internal AAAA"), ("NOERROR".into(), vec![]));
    node.ok(&["dns", "add", "www.internal", "db.internal"]);
    node.ok(&["dns", "add", "db.internal", "192.0.2.8"]);
    let service = ["_pg._tcp.db.internal", "SRV", "0", "5", "5432", "db.internal"];
    node.ok(&[&["dns", "add"], &service[..]].concat());
    let check = |node: &Node| {
        assert_eq!(
            node.answer("www.internal A").1,
            lines(&[
                "db.internal. 5 IN A 192.0.2.7",
                "db.internal. 5 IN A 192.0.2.8",
                "www.internal. 5 IN CNAME db.internal."
            ])
        );
        let srv = node.dig("_pg._tcp.db.internal SRV +noall +answer +additional");
        assert!(
            srv.contains("0 5 5432 db.internal.") && srv.contains("192.0.2.8"),
            "{srv}"
        );
        assert_eq!(
            node.answer("-x 192.0.2.8").1,
            lines(&["8.2.0.192.in-addr.arpa. 5 IN PTR db.internal."])
        );
    };
    check(&node);
    let listed = node.ok(&["dns", "ls"]);
    assert!(
        listed.contains("config") && listed.contains("added") && !listed.contains("PTR"),
        "{listed}"
    );
    assert!(
        node.ok(&["dns", "add", "www.internal", "db.internal"])
            .contains("already")
    );
    for (args, code) in [
        (&["dns", "add", "www.internal", "192.0.2.9"][..], 5),
        (&["dns", "add", "bad..name", "192.0.2.9"], 2),
        (&["dns", "add", "x", "A", "::1"], 2),
        (&["dns", "rm", "nobody.internal"], 6),
        (&["dns", "rm", "t.internal"], 5),
    ] {
        let (found, told) = node.run(args);
        assert_eq!(found, code, "{args:?}: {told}");
    }
    let node = Node::start_in(node.stop(), &fixed);
    check(&node);
    assert!(node.ok(&["dns", "rm", "db.internal"]).contains("192.0.2.8"));
    assert_eq!(
        node.answer("db.internal A").1,
        lines(&["db.internal. 5 IN A 192.0.2.7"])
    );
}

#[test]
fn what_is_not_answered_is_refused() {
    let node = Node::start(&["--dns-upstream", &free_port().to_string()]);
    for asked in ["version.bind CH TXT", "x.example A +norecurse"] {
        assert_eq!(node.answer(asked), ("REFUSED".into(), vec![]), "{asked}");
    }
    // dig shows no status of a transfer.
    assert!(node.dig("pod AXFR").contains("Transfer failed"));
    assert_eq!(
        node.answer("x.example ANY").1,
        lines(&["x.example. 3600 IN HINFO \"RFC8482\" \"\""])
    );
    assert_eq!(node.answer("x.example +opcode=notify").0, "NOTIMP");
    assert_eq!(
        node.answer("host.podwire.internal +edns=1 +noednsnegotiation").0,
        "BADVERS"
    );
    assert_eq!(
        node.status("/dns/answers/upstream") + node.status("/dns/answers/failed"),
        0
    );
}

#[test]
fn a_node_without_dns_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start_in(dir, &["--dns", "off"]);
    let (code, told) = node.run(&["dns", "ls"]);
    assert_eq!(code, 6, "{told}");
    assert!(told.contains("--dns on"), "{told}");
    assert!(node.client().send(&[0; 12]).is_ok());
    let hosts = std::fs::read_to_string("/etc/resolv.conf").unwrap();
    assert_eq!(
        node.ok(&["run", "--name", "a", "--", "cat", "/etc/resolv.conf"]),
        hosts
    );
}

#[test]
fn a_port_that_cannot_be_had_is_told_with_the_remedy() {
    let node = Node::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let more = |listen: &str| {
        let mut c = podwire(dir.path());
        c.args([
            "node",
            "--name",
            "n2",
            "--subnet",
            "10.244.2.0/24",
            "--bind",
            "127.0.0.1",
        ]);
        c.args(["--port", "auto", "--dns-listen", listen]);
        let output = c.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (listen, code, told) in [
        (node.at.to_string(), 5, "take another port with --dns-listen"),
        ("192.0.2.1:5353".into(), 2, "no address of this host"),
        ("0.0.0.0:5353".into(), 2, "one by one"),
        ("nonsense".into(), 2, "write 192.0.2.53"),
    ] {
        let (found, said) = more(&listen);
        assert_eq!(found, Some(code), "{listen}: {said}");
        assert!(said.contains(told), "{listen}: {said}");
    }
    let first: u16 = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    if rustix::process::geteuid().is_root() && first > 53 {
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let output = Command::new("setpriv")
            .args([
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                env!("CARGO_BIN_EXE_podwire"),
            ])
            .args([
                "--socket",
                "x.sock",
                "node",
                "--name",
                "n2",
                "--subnet",
                "10.244.2.0/24",
            ])
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                "auto",
                "--dns-listen",
                "127.99.0.1",
            ])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{told}");
        assert!(
            told.contains("127.99.0.1:5353") && told.contains("cap_net_bind_service"),
            "{told}"
        );
    }
}

/// Files are the host's: in a copy of /etc, so that the test may replace resolv.conf.
#[test]
fn a_pod_keeps_its_resolv_conf_when_the_hosts_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
set -eu
cp -r --preserve=links /etc etc 2> /dev/null || true; mount --bind etc /etc; mount -t tmpfs none /run
rm -f etc/resolv.conf; printf 'nameserver 192.0.2.1\nsearch corp.example\n' > etc/resolv.conf
"$PODWIRE" node --name n1 --subnet 10.244.1.0/24 --subnet6 fd00:1::/64 --bind 127.0.0.1 --port auto --log warn > log &
node=$!
until [ -s log ]; do sleep 0.02; done
show() { echo "== $1"; shift; "$@" | grep -v '^#'; }
"$PODWIRE" run --name shop/box --detach > /dev/null
show made "$PODWIRE" exec shop/box -- cat /etc/resolv.conf
echo nameserver 192.0.2.2 > etc/new; mv etc/new etc/resolv.conf; sleep 0.3
show replaced "$PODWIRE" exec shop/box -- cat /etc/resolv.conf
mkdir etc/vpn; cp etc/resolv.conf etc/vpn/conf; ln -s vpn/conf etc/new; mv etc/new etc/resolv.conf; sleep 0.3
show linked "$PODWIRE" exec shop/box -- cat /etc/resolv.conf
rm etc/vpn/conf; sleep 0.1; echo nameserver 192.0.2.3 > etc/vpn/conf; sleep 0.3
show behind "$PODWIRE" exec shop/box -- cat /etc/resolv.conf
mkdir -p /run/systemd/resolve; echo nameserver 127.0.0.53 > /run/systemd/resolve/stub-resolv.conf
ln -s /run/systemd/resolve/stub-resolv.conf etc/new; mv etc/new etc/resolv.conf
show resolved "$PODWIRE" run --name shop/web -- cat /etc/resolv.conf
"$PODWIRE" run --name shop/web -- ls /run/systemd/resolve | tr '\n' ' '
echo; show host cat /etc/resolv.conf
kill $node; wait $node
"#;
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let output = unshare
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .current_dir(dir.path())
        .env("PODWIRE", env!("CARGO_BIN_EXE_podwire"))
        .env("PODWIRE_SOCKET", dir.path().join("n1.sock"))
        .env("XDG_STATE_HOME", dir.path().join("state"))
        .env("XDG_RUNTIME_DIR", dir.path())
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let pod = |search: &str| {
        format!(
            "nameserver 10.244.1.1\nnameserver fd00:1::1\nsearch shop.svc.cluster.local svc.cluster.local \
             cluster.local shop.pod pod{search}\noptions ndots:5 edns0\n"
        )
    };
    let corp = pod(" corp.example");
    let want = format!(
        "== made\n{corp}== replaced\n{corp}== linked\n{corp}== behind\n{corp}== resolved\n{}resolv.conf \
         stub-resolv.conf \n== host\nnameserver 127.0.0.53\n",
        pod("")
    );
    assert_eq!(out, want, "{err}");
    assert!(output.status.success(), "{err}");
}

/// A network namespace with an address, and loopback as it is made: the node runs all the same. (Where there is no
/// address at all, Linux 6.18 lets 127.0.0.1 be bound.)
#[test]
fn without_loopback_a_node_runs_and_says_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let script = r#"
ip link add d0 type veth peer name d1 && ip addr add 192.0.2.9/24 dev d0 && ip link set d0 up
"$PODWIRE" node --name n1 --subnet 10.244.1.0/24 --bind 0.0.0.0 --port auto --log error > log &
node=$!
until [ -s log ]; do sleep 0.02; done
"$PODWIRE" status; kill $node; wait $node
"#;
    let output = Command::new("unshare")
        .args(["--net", "--map-root-user", "sh", "-c", script])
        .current_dir(dir.path())
        .env("PODWIRE", env!("CARGO_BIN_EXE_podwire"))
        .env("PODWIRE_SOCKET", dir.path().join("n1.sock"))
        .env("XDG_STATE_HOME", dir.path().join("state"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        told.contains("ip link set lo up"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
