//! What an install comes to: each file and link, with where it goes. Nothing is touched here.

use super::record::{Record, State};
use super::units;
use crate::cni::version::Version;
use crate::cni::{self, conflist};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Mode of texts, and of programs.
const TEXT: u32 = 0o644;
const PROGRAM: u32 = 0o755;
/// Beside the states of nodes, of which none has a name that begins with a dot.
const MANIFESTS: &str = "podwire/.install";

/// What is installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setup {
    /// The CNI plugin.
    Cni,
    /// The service.
    Systemd,
}

/// For whom, and where.
#[derive(Debug, Default)]
pub struct Place {
    /// What stands for the root of the file system.
    pub prefix: Option<PathBuf>,
    /// The user's home, when it is for him alone.
    pub home: Option<PathBuf>,
    /// His directory of states, when it is not the usual one.
    pub state: Option<PathBuf>,
    /// His directory of configurations, when it is not the usual one.
    pub config: Option<PathBuf>,
}

impl Place {
    /// The record of what was installed.
    pub fn record(&self, setup: Setup) -> Record {
        let state = match (&self.state, &self.home) {
            (Some(state), _) => state.clone(),
            (None, Some(home)) => home.join(".local/state"),
            (None, None) => "/var/lib".into(),
        };
        let name = match setup {
            Setup::Cni => "cni.json",
            Setup::Systemd => "systemd.json",
        };
        Record {
            manifest: self.below(&state.join(MANIFESTS).join(name)),
            prefix: self.prefix.clone(),
        }
    }

    /// A directory of configurations: the system's, or the user's.
    fn config(&self, system: &str, user: &str) -> PathBuf {
        match (&self.config, &self.home) {
            (Some(config), _) => config.join(user),
            (None, Some(home)) => home.join(".config").join(user),
            (None, None) => system.into(),
        }
    }

    /// Where a path is on this disk.
    fn below(&self, path: &Path) -> PathBuf {
        match &self.prefix {
            Some(prefix) => prefix.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.into(),
        }
    }
}

/// What shall be at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// A file.
    File {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Its mode.
        mode: u32,
    },
    /// A symbolic link.
    Link(PathBuf),
}

/// Everything that is written, and what to do then.
#[derive(Debug)]
pub struct Plan {
    /// Where it is recorded.
    pub record: Record,
    /// Paths and what shall be there.
    pub items: Vec<(PathBuf, Content)>,
    /// What a person does next.
    pub next: String,
}

impl Plan {
    /// The CNI plugin and a network.
    ///
    /// # Errors
    /// The program cannot be read, to be copied.
    pub fn cni(
        place: &Place,
        program: &Path,
        bin_dir: Option<PathBuf>,
        conf_dir: Option<PathBuf>,
        network: &str,
        copy: bool,
    ) -> Result<Plan, String> {
        let bin = bin_dir.map_or_else(|| place.plugins(), absolute);
        let conf = conf_dir.map_or_else(|| place.config("/etc/cni/net.d", "cni/net.d"), absolute);
        let plugin = match copy {
            false => Content::Link(program.into()),
            true => Content::File {
                bytes: std::fs::read(program)
                    .map_err(|e| format!("{}: {e} (--program)", program.display()))?,
                mode: PROGRAM,
            },
        };
        let list = Content::File {
            bytes: conflist(network, Version::V100, cni::PROGRAM, None, place.home.is_none()).into(),
            mode: TEXT,
        };
        let next = match (&place.home, &bin) {
            (Some(_), bin) => format!(
                "next: name {} in cni_plugin_dirs of [network] in containers.conf, and podman run --network {network}\n",
                bin.display()
            ),
            (None, bin) if bin != Path::new("/opt/cni/bin") => format!(
                "next: podman run --network {network} ... (with network_backend = \"cni\"; other runtimes look for plugins in \
                 /opt/cni/bin)\n"
            ),
            _ => "next: have a node run (podwire install systemd), then start a container\n".into(),
        };
        Ok(Plan {
            record: place.record(Setup::Cni),
            items: vec![
                (place.below(&bin.join("podwire-cni")), plugin),
                (place.below(&conf.join(format!("10-{network}.conflist"))), list),
            ],
            next,
        })
    }

    /// The service.
    pub fn systemd(
        place: &Place,
        program: &Path,
        unit_dir: Option<PathBuf>,
        config: Option<PathBuf>,
    ) -> Plan {
        let dir = unit_dir.map_or_else(|| place.config("/etc/systemd/system", "systemd/user"), absolute);
        let file = config.map_or_else(
            || place.config("/etc/podwire", "podwire").join("podwire.toml"),
            absolute,
        );
        let (unit, systemctl, more) = match place.home {
            None => (
                units::system(program, &file),
                "systemctl",
                "\nnote: the service gives the host an interface in the pod network (host_port auto), by which pods reach what \
                 listens on all of its addresses (docs/host.md; without it: PODWIRE_OPTIONS in systemctl edit podwire)",
            ),
            Some(_) => (
                units::user(program, &file),
                "systemctl --user",
                "; loginctl enable-linger has it run while nobody is logged in",
            ),
        };
        let next = format!(
            "next: podwire node --print-config > {0}, give it a subnet or a store there, then {systemctl} daemon-reload and \
             {systemctl} enable --now podwire{more}\n",
            file.display()
        );
        let content = Content::File {
            bytes: unit.into(),
            mode: TEXT,
        };
        Plan {
            record: place.record(Setup::Systemd),
            items: vec![(place.below(&dir.join("podwire.service")), content)],
            next,
        }
    }

    /// What would be done, given how it is at each of the paths.
    pub fn show(&self, states: &[State]) -> String {
        let mut out = String::new();
        for ((path, content), state) in self.items.iter().zip(states) {
            let path = path.display();
            if *state == State::Same {
                let _ = writeln!(out, "{path} is there as it should be");
                continue;
            }
            let _ = match content {
                Content::Link(to) => writeln!(out, "would link {path} to {}", to.display()),
                Content::File { bytes, mode } => match std::str::from_utf8(bytes) {
                    Ok(text) if *mode == TEXT => {
                        let text: String = text.lines().map(|l| format!("    {l}\n")).collect();
                        write!(out, "would write {path}, mode {mode:04o}:\n{text}")
                    }
                    _ => writeln!(out, "would write {path}, mode {mode:04o}: {} bytes", bytes.len()),
                },
            };
        }
        let _ = writeln!(out, "would record that in {}", self.record.manifest.display());
        out
    }
}

impl Place {
    /// Whether it is this machine's own, and for all its users.
    pub fn is_the_machines(&self) -> bool {
        self.home.is_none() && self.prefix.is_none()
    }

    /// The folder of CNI plugins.
    fn plugins(&self) -> PathBuf {
        match &self.home {
            Some(home) => home.join(".local/lib/cni"),
            None => "/opt/cni/bin".into(),
        }
    }
}

fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}
