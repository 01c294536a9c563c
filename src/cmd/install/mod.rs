//! `podwire install` and `podwire uninstall`: what a runtime or service manager needs to find podwire, written and removed.
//!
//! ```text
//!  wish -> plan: paths and contents -> record: what is there? -> written, in this order: manifest, directories, files
//! ```
//!
//! What is written is recorded with a digest, in a manifest beside the nodes' state. So `uninstall` removes what `install`
//! wrote and nobody changed, and nothing else.

mod plan;
mod record;
mod trust;
mod units;

use super::{Exit, Failure, say};
use clap::Subcommand;
use plan::{Place, Plan, Setup};
use record::{Outcome, RecordError};
use std::path::{Path, PathBuf};

/// Write what a runtime or service manager needs to find podwire.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo podwire install systemd
      The service podwire.service, for a configuration in /etc/podwire/podwire.toml.
  sudo podwire install cni
      podwire-cni in /opt/cni/bin and a network named podwire in /etc/cni/net.d.
  sudo podwire install cni --bin-dir /usr/lib/cni
      Where Debian's podman looks for plugins.
  podwire install systemd --user
      A service of your own, without root; podwire install cni --user for rootless podman.
  podwire install cni --dry-run
      Show each file and link, and change nothing.")]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

/// Remove what `podwire install` wrote, but for what was changed since.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  sudo podwire uninstall systemd
  podwire uninstall cni --user --dry-run

A service that runs goes on until it is stopped (systemctl disable --now podwire, before this). Without the plugin, pods
that containers have stay attached, and a keeper has them while no node runs: `podwire detach POD` of a node that runs
removes one (`podwire pods` lists them). Configurations and what nodes remember are left. It looks where the install with the same --user and --prefix wrote.")]
pub struct RemoveArgs {
    #[command(subcommand)]
    what: RemoveWhat,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The CNI plugin and a network: for podman, containerd, CRI-O and nerdctl.
    Cni {
        #[command(flatten)]
        common: Common,
        /// Folder of CNI plugins [default: /opt/cni/bin; with --user ~/.local/lib/cni].
        #[arg(long, value_name = "DIR")]
        bin_dir: Option<PathBuf>,
        /// Folder of CNI networks [default: /etc/cni/net.d; with --user ~/.config/cni/net.d].
        #[arg(long, value_name = "DIR")]
        conf_dir: Option<PathBuf>,
        /// Name of the network.
        #[arg(long, value_name = "NAME", default_value = "podwire", value_parser = network)]
        network: String,
        /// Copy the program instead of linking to it: for runtimes that see the plugins' folder only.
        #[arg(long)]
        copy: bool,
    },
    /// A service that runs a node.
    Systemd {
        #[command(flatten)]
        common: Common,
        /// Folder of units [default: /etc/systemd/system; with --user ~/.config/systemd/user].
        #[arg(long, value_name = "DIR")]
        unit_dir: Option<PathBuf>,
        /// The node's configuration [default: /etc/podwire/podwire.toml; with --user ~/.config/podwire/podwire.toml].
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
enum RemoveWhat {
    /// The CNI plugin and its network.
    Cni {
        #[command(flatten)]
        common: Whereabouts,
    },
    /// The service.
    Systemd {
        #[command(flatten)]
        common: Whereabouts,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    #[command(flatten)]
    at: Whereabouts,
    /// The podwire that is to run [default: this one].
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
struct Whereabouts {
    /// For this user alone: nothing needs root.
    #[arg(long)]
    user: bool,
    /// Show what would be done, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write below this folder, as if it were the root: for packages.
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
}

/// Install.
///
/// # Errors
/// What cannot be written, and what is in the way; nothing is changed then.
pub fn run(args: Args) -> Result<(), Failure> {
    let (at, plan) = match args.what {
        What::Cni {
            common,
            bin_dir,
            conf_dir,
            network,
            copy,
        } => {
            let place = place(&common.at)?;
            let program = program(common.program)?;
            if !copy && place.is_the_machines() && rustix::process::geteuid().is_root() {
                trusted(&program)?;
            }
            let plan = Plan::cni(&place, &program, bin_dir, conf_dir, &network, copy).map_err(failed)?;
            (common.at, plan)
        }
        What::Systemd {
            common,
            unit_dir,
            config,
        } => {
            let place = place(&common.at)?;
            let program = program(common.program)?;
            (common.at, Plan::systemd(&place, &program, unit_dir, config))
        }
    };
    if at.dry_run {
        let states = record::look(&plan).map_err(|e| refused(e, &at))?;
        return say(&plan.show(&states));
    }
    let done = record::write(&plan).map_err(|e| refused(e, &at))?;
    say(&told(&done))?;
    say(&plan.next)
}

/// Uninstall.
///
/// # Errors
/// What cannot be removed.
pub fn remove(args: RemoveArgs) -> Result<(), Failure> {
    let (at, setup) = match args.what {
        RemoveWhat::Cni { common } => (common, Setup::Cni),
        RemoveWhat::Systemd { common } => (common, Setup::Systemd),
    };
    let record = place(&at)?.record(setup);
    let done = record.remove(at.dry_run).map_err(|e| refused(e, &at))?;
    if done.is_empty() {
        return say("nothing of podwire is installed there\n");
    }
    say(&told(&done))
}

fn told(done: &[(PathBuf, Outcome)]) -> String {
    let lines = done.iter().map(|(path, what)| match what {
        Outcome::Wrote => format!("wrote {}\n", path.display()),
        Outcome::Linked(to) => format!("linked {} to {}\n", path.display(), to.display()),
        Outcome::Same => format!("{} is there as it should be\n", path.display()),
        Outcome::Removed => format!("removed {}\n", path.display()),
        Outcome::WouldRemove => format!("would remove {}\n", path.display()),
        Outcome::Gone => format!("{} was gone already\n", path.display()),
        Outcome::Left => format!("left {}: somebody changed it\n", path.display()),
    });
    lines.collect()
}

fn place(at: &Whereabouts) -> Result<Place, Failure> {
    let usage = |what: &str| Failure::new(Exit::Usage, what);
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    let prefix = match &at.prefix {
        Some(dir) => Some(std::path::absolute(dir).map_err(|e| failed(format!("--prefix: {e}")))?),
        None => None,
    };
    let home = match at.user {
        true => Some(absolute("HOME").ok_or_else(|| usage("--user needs $HOME, an absolute path"))?),
        false => None,
    };
    Ok(Place {
        prefix,
        state: home.as_ref().and_then(|_| absolute("XDG_STATE_HOME")),
        config: home.as_ref().and_then(|_| absolute("XDG_CONFIG_HOME")),
        home,
    })
}

/// The program that units and links name.
fn program(given: Option<PathBuf>) -> Result<PathBuf, Failure> {
    match given {
        Some(path) => std::path::absolute(&path).map_err(|e| failed(format!("--program: {e}"))),
        None => std::env::current_exe()
            .map_err(|e| failed(format!("this program does not find itself: {e} (--program)"))),
    }
}

/// Refuse to link root's runtimes to a program that somebody else may change.
fn trusted(program: &Path) -> Result<(), Failure> {
    let Some(open) = trust::opening(program) else {
        return Ok(());
    };
    let what = format!(
        "{} is not linked to, since another user than root may write {}, and container runtimes would run it as root (use \
         --copy, or install podwire where root alone writes, as /usr/local/bin)",
        program.display(),
        open.display()
    );
    Err(Failure::new(Exit::Permission, what))
}

/// A network's name, as the CNI specification has it.
fn network(s: &str) -> Result<String, String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    match s.bytes().all(good) && s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        true => Ok(s.into()),
        false => Err(
            "is no network's name (letters, digits, '_', '.' and '-', beginning with a letter or digit)"
                .into(),
        ),
    }
}

fn failed(what: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, what)
}

fn refused(e: RecordError, at: &Whereabouts) -> Failure {
    let exit = match &e {
        RecordError::InTheWay { .. } => Exit::Taken,
        RecordError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            let remedy = match at.user || at.prefix.is_some() {
                true => "make it yours, or name another folder",
                false => "run it as root, as sudo podwire, or for yourself with --user",
            };
            return Failure::new(Exit::Permission, format!("{e} ({remedy})"));
        }
        RecordError::Io { .. } | RecordError::Manifest { .. } => Exit::Failed,
    };
    Failure::new(exit, e)
}
