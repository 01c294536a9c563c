//! The units of systemd.

use std::fmt::Write;
use std::path::Path;

/// What both units say of the node. `KillMode=process` leaves the keeper alone, which has the pods' descriptors while
/// the node is away; systemd's own descriptor store would have to be given them one by one, and ends with the unit.
const NODE: &str = "\
Type=notify
# The keeper of the pods' interfaces outlives the node (docs/operations.md).
KillMode=process
Restart=always
RestartSec=100ms
# A wrong configuration, or a right that is missing, does not get better by itself.
RestartPreventExitStatus=2 3
# With --store etcd the node may wait for its subnet.
TimeoutStartSec=infinity
LimitNOFILE=524288
";

/// What the system's says beside that.
const SYSTEM: &str = "\
RuntimeDirectory=podwire
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
StateDirectory=podwire
StateDirectoryMode=0700
# Of root's rights two: podwire0 and its routes, and ports below 1024.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE
AmbientCapabilities=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
# Where flannel's plugins look for the subnet, with --store etcd.
ExecStartPre=+-/bin/mkdir -p /run/flannel
ReadWritePaths=-/run/flannel
DevicePolicy=closed
DeviceAllow=/dev/net/tun rw
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=~@clock @cpu-emulation @debug @module @mount @obsolete @raw-io @reboot @swap
";

/// What a user's says beside that.
const USER: &str = "\
RuntimeDirectory=podwire
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
";

/// The service that runs a node as root.
pub fn system(program: &Path, config: &Path) -> String {
    let after = "Wants=network-online.target\nAfter=network-online.target\n";
    let mut unit = head(after, program, config, "--keep-pods on --host-port auto");
    let _ = write!(
        unit,
        "EnvironmentFile=-/etc/default/podwire\n{NODE}{SYSTEM}\n[Install]\nWantedBy=multi-user.target\n"
    );
    unit
}

/// The service that runs a node as a user.
pub fn user(program: &Path, config: &Path) -> String {
    // A user's manager has no network to wait for.
    let mut unit = head("", program, config, "--keep-pods on");
    let _ = write!(unit, "{NODE}{USER}\n[Install]\nWantedBy=default.target\n");
    unit
}

fn head(after: &str, program: &Path, config: &Path, options: &str) -> String {
    format!(
        "# Written by podwire install; podwire uninstall removes it unless it was changed. To change a setting:\n\
         # systemctl edit podwire\n\
         [Unit]\n\
         Description=podwire, a pod network in user space\n\
         {after}\n\
         [Service]\n\
         ExecStart={} node --config {} $PODWIRE_OPTIONS\n\
         ExecReload=/bin/kill -HUP $MAINPID\n\
         Environment=\"PODWIRE_OPTIONS={options}\"\n",
        word(program),
        word(config)
    )
}

/// A path as one word of a command line (systemd.service(5), systemd.unit(5)).
fn word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:,".contains(c);
    if text.chars().all(plain) {
        return text.into_owned();
    }
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' | '$' => out.extend([c, c]),
            _ => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word_each() {
        for (path, want) in [
            ("/usr/bin/podwire", "/usr/bin/podwire"),
            ("/a b/100%", "\"/a b/100%%\""),
            ("/a\"b\\c$d", "\"/a\\\"b\\\\c$$d\""),
        ] {
            assert_eq!(word(Path::new(path)), want);
        }
    }

    #[test]
    fn each_unit_restarts_leaves_the_keeper_and_is_wanted() {
        let (program, config) = (
            Path::new("/usr/bin/podwire"),
            Path::new("/etc/podwire/podwire.toml"),
        );
        for (unit, wanted) in [
            (system(program, config), "multi-user.target"),
            (user(program, config), "default.target"),
        ] {
            for line in [
                "ExecStart=/usr/bin/podwire node --config /etc/podwire/podwire.toml $PODWIRE_OPTIONS",
                "Type=notify",
                "KillMode=process",
                "Restart=always",
                "NoNewPrivileges=yes",
                &format!("WantedBy={wanted}"),
            ] {
                assert!(unit.lines().any(|l| l == line), "{line} is missing in\n{unit}");
            }
            assert_eq!(unit.matches("[Service]").count(), 1);
        }
        assert!(!user(program, config).contains("host-port"));
        assert!(!user(program, config).contains("After="));
    }
}
