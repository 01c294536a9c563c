//! `podwire cni`: what container runtimes need to use this node.

use super::{Exit, Failure, say};
use crate::cni::version::Version;
use crate::cni::{PROGRAM, conflist};
use crate::model::is_identifier;
use std::path::Path;

/// Print what a container runtime needs to use a node (CNI).
///
/// The plugin is this program under the name podwire-cni, in the runtime's plugin folder.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ln -s \"$(command -v podwire)\" /opt/cni/bin/podwire-cni
  podwire cni conflist > /etc/cni/net.d/10-podwire.conflist
  podwire --socket /run/user/1000/podwire/n1.sock cni conflist --name pods --cni-version 0.4.0
  podwire cni conflist --no-ports > ~/.config/cni/net.d/10-podwire.conflist     (rootless podman)")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// A configuration list for the runtime's folder (/etc/cni/net.d, or ~/.config/cni/net.d)
    Conflist {
        /// The network's name
        #[arg(long, default_value = "podwire")]
        name: String,
        /// The version of the specification: 0.3.0, 0.3.1, 0.4.0, 1.0.0 or 1.1.0
        #[arg(long, default_value = "1.0.0", value_parser = version)]
        cni_version: Version,
        /// File name of the plugin
        #[arg(long = "type", default_value = PROGRAM)]
        kind: String,
        /// Leave published ports to the runtime: rootless podman binds them itself, and would find them taken
        #[arg(long)]
        no_ports: bool,
    },
}

fn version(text: &str) -> Result<Version, String> {
    Version::read(text).map_err(|e| e.to_string())
}

/// Run it.
///
/// # Errors
/// A name that is none, a socket that is no absolute path.
pub fn run(args: &Args, socket: Option<&Path>) -> Result<(), Failure> {
    let Verb::Conflist {
        name,
        cni_version,
        kind,
        no_ports,
    } = &args.verb;
    if !is_identifier(name) {
        let what = format!(
            "{name:?} is no network's name (letters and digits, and behind the first '_', '.' and '-')"
        );
        return Err(Failure::new(Exit::Usage, what));
    }
    let socket = socket.map(std::path::absolute).transpose();
    let socket = socket.map_err(|e| Failure::new(Exit::Usage, format!("--socket: {e}")))?;
    let text = conflist(name, *cni_version, kind, socket.as_deref(), !no_ports);
    say(&text)
}
