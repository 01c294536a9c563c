//! `podwire doctor`: what podwire needs of this host, tried out, with a remedy for each lack.

mod host;
mod names;

use super::{Exit, Failure, Paint, say};
use crate::api::place::for_client;
use crate::api::{Client, Reply, Request};
use crate::daemon::config::{DEFAULT_BUFFER, DEFAULT_PORT};
use crate::daemon::links::{Host, Link};
use crate::sys::net;
use crate::sys::probe::{self, Sandbox};
use serde::Serialize;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The hidden subcommand that makes a sandbox in a process of its own.
pub const PROBE: &str = "__probe-sandbox";

/// The flags of `podwire doctor`.
#[derive(clap::Args)]
#[command(after_help = "\
Exits with 1 when something fails that podwire cannot do without; warnings cost speed or comfort only.

Examples:
  podwire doctor
  podwire doctor --port 4789 --json")]
pub struct Args {
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
    /// The VXLAN port to look at.
    #[arg(long, default_value_t = DEFAULT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// The socket buffers to ask for, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_BUFFER)]
    buffer: usize,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// podwire runs, but slower or with less comfort.
    Warn,
    /// podwire cannot do its work.
    Fail,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    fn bad(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Check {
        Check {
            name,
            verdict,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Check everything.
///
/// # Errors
/// Only when the results cannot be printed; failed checks are an exit code.
pub fn run(args: &Args, socket: Option<&Path>) -> Result<Exit, Failure> {
    let host = Host::ask();
    let mut checks = vec![tun(), sandbox()];
    checks.extend(udp());
    checks.extend(buffers(args.buffer));
    checks.push(port(args.port, &host.links, socket));
    checks.extend(self::host::port(socket));
    checks.push(loopback(&host.links));
    checks.extend(mtus(&host));
    checks.push(ping());
    checks.push(names::resolvers());
    checks.push(files());
    if args.json {
        let text = serde_json::to_string_pretty(&checks);
        say(&format!(
            "{}\n",
            text.map_err(|e| Failure::new(Exit::Failed, e.to_string()))?
        ))?;
    } else {
        say(&show(&checks, Paint::stdout()))?;
    }
    let failed = checks.iter().any(|c| c.verdict == Verdict::Fail);
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

/// Check only what making a pod needs.
///
/// # Errors
/// With the finding and its remedy, when pods cannot be made here.
pub fn pods_can_be_made() -> Result<(), Failure> {
    for check in [tun(), sandbox()] {
        if check.verdict == Verdict::Fail {
            let remedy = check.remedy.map(|r| format!("\n  -> {r}")).unwrap_or_default();
            return Err(Failure::new(
                Exit::Permission,
                format!("no pod can be made here: {}: {}{remedy}", check.name, check.found),
            ));
        }
    }
    Ok(())
}

/// The hidden subcommand [`PROBE`]: ends the process with the result.
///
/// # Errors
/// Never; the exit code is the answer.
pub fn probe() -> Result<Exit, Failure> {
    std::process::exit(probe::sandbox() as i32)
}

fn show(checks: &[Check], paint: Paint) -> String {
    let mut out = String::new();
    for c in checks {
        let (code, word) = match c.verdict {
            Verdict::Ok => (32, "ok  "),
            Verdict::Warn => (33, "warn"),
            Verdict::Fail => (31, "FAIL"),
        };
        out += &format!("{}  {:<16} {}\n", paint.with(code, word), c.name, c.found);
        if let Some(remedy) = &c.remedy {
            out += &format!("      {:<16} -> {remedy}\n", "");
        }
    }
    out
}

fn tun() -> Check {
    const NAME: &str = "/dev/net/tun";
    let opened = std::fs::OpenOptions::new().read(true).write(true).open(NAME);
    match opened {
        Ok(_) => Check::ok(NAME, "can be opened"),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Check::bad(
            NAME,
            Verdict::Fail,
            "may not be opened by this user",
            "as root: chmod 0666 /dev/net/tun (as distributions ship it; a TAP still needs a namespace)",
        ),
        Err(e) => Check::bad(
            NAME,
            Verdict::Fail,
            e.to_string(),
            "as root: modprobe tun; in a container: pass the device in (--device /dev/net/tun)",
        ),
    }
}

fn sandbox() -> Check {
    const NAME: &str = "namespaces";
    let child = std::env::current_exe().and_then(|exe| {
        Command::new(exe)
            .arg(PROBE)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    });
    let code = match child {
        Ok(status) => status.code().unwrap_or(-1),
        Err(e) => {
            return Check::bad(
                NAME,
                Verdict::Warn,
                format!("could not be tried: {e}"),
                "run podwire from a path that may be executed",
            );
        }
    };
    let fail = |found: &str, remedy: &str| Check::bad(NAME, Verdict::Fail, found, remedy);
    match Sandbox::from_code(code) {
        Some(Sandbox::Works) => Check::ok(
            NAME,
            "user and network namespaces and a TAP in them can be made; no /etc/subuid is needed",
        ),
        Some(Sandbox::NoUserNamespace) => fail("user namespaces cannot be made", &userns_remedy(sysctl)),
        Some(Sandbox::NoNetworkNamespace) => fail(
            "a user namespace can be made, but has no rights in it",
            &rights_remedy(sysctl),
        ),
        Some(Sandbox::NoTun) => fail(
            "namespaces can be made, but /dev/net/tun cannot be opened there",
            "as root: chmod 0666 /dev/net/tun",
        ),
        Some(Sandbox::NoTap) => fail(
            "namespaces can be made, but no TAP in them",
            "use a kernel with CONFIG_TUN, and a container runtime that allows TUNSETIFF",
        ),
        Some(Sandbox::NoVnetHdr) => Check::bad(
            NAME,
            Verdict::Warn,
            "TAPs have no virtio-net headers here: no offloads",
            "set offload.tap = \"off\"",
        ),
        None => Check::bad(
            NAME,
            Verdict::Warn,
            format!("the trial ended with code {code}"),
            "see whether a security policy ends processes that call unshare",
        ),
    }
}

/// The value of a kernel setting; none where the kernel does not have it.
fn sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    Some(std::fs::read_to_string(path).ok()?.trim().to_string())
}

const APPARMOR: &str = "kernel.apparmor_restrict_unprivileged_userns";

/// Which of the usual switches forbids user namespaces.
fn userns_remedy(sysctl: impl Fn(&str) -> Option<String>) -> String {
    let is = |name, value| sysctl(name).is_some_and(|v| v == value);
    if is("user.max_user_namespaces", "0") {
        "as root: sysctl -w user.max_user_namespaces=15000".into()
    } else if is("kernel.unprivileged_userns_clone", "0") {
        "as root: sysctl -w kernel.unprivileged_userns_clone=1".into()
    } else if sysctl(APPARMOR).is_some_and(|v| v != "0") {
        rights_remedy(sysctl)
    } else {
        "allow unshare(CLONE_NEWUSER): in a container, by its seccomp profile".into()
    }
}

/// What takes the rights in a user namespace away: AppArmor, where it is told to.
fn rights_remedy(sysctl: impl Fn(&str) -> Option<String>) -> String {
    if sysctl(APPARMOR).is_some_and(|v| v != "0") {
        format!("as root: sysctl -w {APPARMOR}=0, or give podwire an AppArmor profile with `userns,`")
    } else {
        "allow unshare(CLONE_NEWNET) in user namespaces: a security policy of this host or container forbids it"
            .into()
    }
}

fn udp() -> [Check; 2] {
    let check = |name, result: io::Result<()>, found: &str, since: &str| match result {
        Ok(()) => Check::ok(name, found),
        Err(e) => Check::bad(
            name,
            Verdict::Warn,
            format!("refused: {e}"),
            format!("use Linux {since} or later; podwire works without it, at a call per datagram"),
        ),
    };
    [
        check(
            "UDP GSO",
            probe::udp_gso(),
            "trains of datagrams are sent in one call",
            "4.18",
        ),
        check(
            "UDP GRO",
            probe::udp_gro(),
            "trains of datagrams are received in one call",
            "5.0",
        ),
    ]
}

/// What the kernel grants of `asked` bytes.
fn buffers(asked: usize) -> Vec<Check> {
    let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) else {
        return Vec::new();
    };
    let (receive, send) = net::buffers(&socket, asked, asked);
    let check = |name, granted: usize, sysctl: &str| {
        if granted >= asked {
            return Check::ok(name, format!("{asked} bytes are granted"));
        }
        Check::bad(
            name,
            Verdict::Warn,
            format!("{granted} of {asked} bytes are granted"),
            format!("as root: sysctl -w net.core.{sysctl}={asked} (fewer drops under bursts)"),
        )
    };
    vec![
        check("receive buffer", receive, "rmem_max"),
        check("send buffer", send, "wmem_max"),
    ]
}

fn port(port: u16, links: &[Link], socket: Option<&Path>) -> Check {
    const NAME: &str = "VXLAN port";
    let other = format!(
        "podwire node --port PORT with another one, or --port auto (peers must know it; {port} is flannel's usual)"
    );
    if let Some(device) = links.iter().find(|l| l.vxlan == Some(port)) {
        let found = format!("{port} belongs to the kernel's VXLAN device {}", device.name);
        return Check::bad(
            NAME,
            Verdict::Fail,
            found,
            format!("ip link del {} (as root), or {other}", device.name),
        );
    }
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
        Ok(four) => {
            drop(four);
            // A socket for IPv6 alone is in the way of nodes with an IPv6 underlay only.
            let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port));
            if six.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse) {
                let found = format!("{port} is free for IPv4, but in use for IPv6{}", holder(port));
                Check::bad(NAME, Verdict::Warn, found, other)
            } else {
                Check::ok(NAME, format!("{port} is free"))
            }
        }
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => match node_at(port, socket) {
            Some(node) => Check::ok(NAME, format!("{port} is held by node {node}")),
            None => Check::bad(
                NAME,
                Verdict::Fail,
                format!("{port} is in use{}", holder(port)),
                other,
            ),
        },
        Err(e) => Check::bad(NAME, Verdict::Fail, format!("{port}: {e}"), other),
    }
}

/// The node of this user that holds `port`.
fn node_at(port: u16, socket: Option<&Path>) -> Option<String> {
    let mut client = Client::connect(&for_client(socket).ok()?).ok()?;
    match client.call(&Request::Status).ok()? {
        Reply::Status(s) if s.underlay.iter().any(|a| a.port() == port) => Some(s.node),
        _ => None,
    }
}

/// Who holds a UDP port, as far as this user may see: the socket's inode is looked for among open files.
fn holder(port: u16) -> String {
    let tables = ["/proc/net/udp", "/proc/net/udp6"];
    let inode = tables
        .iter()
        .filter_map(|t| std::fs::read_to_string(t).ok())
        .find_map(|text| {
            let line = text.lines().skip(1).find(|l| {
                let local = l.split_whitespace().nth(1);
                local.is_some_and(|a| a.ends_with(&format!(":{port:04X}")))
            })?;
            line.split_whitespace().nth(9).map(|i| format!("socket:[{i}]"))
        });
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let owner = inode.and_then(|inode| {
        let numbered = |p: &PathBuf| {
            let name = p.file_name().unwrap_or_default();
            name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
        };
        processes.map(|p| p.path()).filter(numbered).find(|p| {
            let fds = std::fs::read_dir(p.join("fd")).into_iter().flatten().flatten();
            fds.filter_map(|fd| std::fs::read_link(fd.path()).ok())
                .any(|l| l.as_os_str() == inode.as_str())
        })
    });
    match owner {
        Some(path) => {
            let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
            let pid = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            format!(" by {} (pid {pid})", name.trim())
        }
        None => " by a process of another user, or by the kernel".into(),
    }
}

fn loopback(links: &[Link]) -> Check {
    const NAME: &str = "loopback";
    if links.iter().any(|l| l.loopback && l.up) {
        return Check::ok(NAME, "lo is up");
    }
    let remedy = "as root of this network namespace: ip link set lo up (nodes at 127.0.0.1 reach each other \
                  then; podwire demo does it by itself)";
    Check::bad(
        NAME,
        Verdict::Warn,
        "lo is down, as in a new network namespace",
        remedy,
    )
}

/// Whether pods can ping the world: their requests leave by ping sockets (icmp(7)).
fn ping() -> Check {
    const NAME: &str = "ping";
    let (four, icmp) = (rustix::net::AddressFamily::INET, rustix::net::ipproto::ICMP);
    match rustix::net::socket(four, rustix::net::SocketType::DGRAM, Some(icmp)) {
        Ok(_) => Check::ok(NAME, "pods can ping the world"),
        Err(e) => Check::bad(
            NAME,
            Verdict::Warn,
            format!("pods cannot ping the world: {e}"),
            "as root: sysctl -w net.ipv4.ping_group_range=\"0 2147483647\" (lets all groups send echo requests)",
        ),
    }
}

fn mtus(host: &Host) -> Vec<Check> {
    const NAME: &str = "MTU";
    let used = host
        .links
        .iter()
        .filter(|l| !l.loopback && !l.addresses.is_empty());
    let defaults: Vec<IpAddr> = host.default4.into_iter().chain(host.default6).collect();
    let mut checks: Vec<Check> = used
        .map(|l| {
            let default = l.addresses.iter().any(|a| defaults.contains(a));
            let found = format!(
                "{}{} {}: pods have {} bytes, {} over IPv6",
                l.name,
                if default { " (default route)" } else { "" },
                l.mtu,
                l.mtu.saturating_sub(50),
                l.mtu.saturating_sub(70)
            );
            // Nodes use the default route unless told otherwise; a bridge of some program may be as it likes.
            if l.mtu >= 1350 || !default && !defaults.is_empty() {
                Check::ok(NAME, found)
            } else {
                let remedy = "IPv6 needs pods of 1280 bytes: use IPv4 pods, or raise this MTU to 1350 (1370 \
                              for an IPv6 underlay)";
                Check::bad(NAME, Verdict::Warn, found, remedy)
            }
        })
        .collect();
    if checks.is_empty() {
        checks.push(Check::bad(
            NAME,
            Verdict::Warn,
            "no interface but loopback has an address",
            "nodes on other hosts cannot be reached; give the host an address",
        ));
    }
    checks
}

fn files() -> Check {
    const NAME: &str = "open files";
    // A node raises the soft limit to this.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let Some(n) = limit else {
        return Check::ok(NAME, "without limit");
    };
    let found = format!("{n} at most, enough for {} pods", n.saturating_sub(128) / 3);
    match n < 1024 {
        true => Check::bad(
            NAME,
            Verdict::Warn,
            found,
            "as root: ulimit -n 65536 (each pod takes three)",
        ),
        false => Check::ok(NAME, found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_its_holder() {
        // Not one of those the kernel gives to other tests, which may have it as soon as this one lets go.
        let bind = |port: u16| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).ok();
        let (socket, taken) = (21_000..22_000).find_map(|p| bind(p).zip(Some(p))).unwrap();
        let nowhere = Some(Path::new("/nonexistent.sock"));
        let check = port(taken, &[], nowhere);
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(
            check.found.contains(&format!("(pid {})", std::process::id())),
            "{}",
            check.found
        );
        let vxlan = Link {
            name: "flannel.1".into(),
            vxlan: Some(taken),
            ..Link::default()
        };
        assert!(port(taken, &[vxlan], nowhere).found.contains("flannel.1"));
        drop(socket);
        assert_eq!(port(taken, &[], nowhere).verdict, Verdict::Ok);
    }

    #[test]
    fn switches_that_forbid_namespaces_are_named() {
        let with = |set: &'static [(&str, &str)]| {
            let found = |name: &str| set.iter().find(|(n, _)| *n == name);
            move |name: &str| found(name).map(|(_, v)| v.to_string())
        };
        let none = with(&[("user.max_user_namespaces", "96365"), (APPARMOR, "0")]);
        assert!(userns_remedy(none).contains("seccomp"));
        for (set, named) in [
            (
                &[("user.max_user_namespaces", "0")] as &[_],
                "max_user_namespaces=15000",
            ),
            (
                &[("kernel.unprivileged_userns_clone", "0")],
                "unprivileged_userns_clone=1",
            ),
            (&[(APPARMOR, "1")], "apparmor_restrict_unprivileged_userns=0"),
        ] {
            let remedy = userns_remedy(with(set));
            assert!(remedy.contains(named), "{remedy}");
        }
        assert!(rights_remedy(with(&[(APPARMOR, "1")])).contains("profile with `userns,`"));
        assert!(rights_remedy(with(&[])).contains("security policy"));
    }

    #[test]
    fn only_the_mtu_that_is_used_matters() {
        let link = |name: &str, mtu, ip: &str| Link {
            name: name.into(),
            mtu,
            addresses: vec![ip.parse().unwrap()],
            ..Link::default()
        };
        let mut host = Host {
            links: vec![link("eth0", 1500, "192.0.2.1"), link("tun0", 1280, "10.9.0.1")],
            default4: Some("192.0.2.1".parse().unwrap()),
            ..Host::default()
        };
        let verdicts = |h: &Host| mtus(h).iter().map(|c| c.verdict).collect::<Vec<_>>();
        assert_eq!(verdicts(&host), [Verdict::Ok, Verdict::Ok]);
        assert_eq!(
            mtus(&host)[0].found,
            "eth0 (default route) 1500: pods have 1450 bytes, 1430 over IPv6"
        );
        host.default4 = Some("10.9.0.1".parse().unwrap());
        assert_eq!(verdicts(&host), [Verdict::Ok, Verdict::Warn]);
        host.default4 = None;
        assert_eq!(verdicts(&host), [Verdict::Ok, Verdict::Warn]);
    }

    #[test]
    fn each_bad_check_has_a_remedy() {
        let checks = [tun(), files()]
            .into_iter()
            .chain(udp())
            .chain(buffers(1 << 40))
            .chain([loopback(&[])])
            .chain(mtus(&Host::default()));
        for c in checks {
            assert_eq!(c.verdict != Verdict::Ok, c.remedy.is_some(), "{c:?}");
        }
    }
}
