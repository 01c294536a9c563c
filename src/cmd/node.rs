//! `podwire node`: a node in the foreground, from configuration to the last clean-up.

use super::{Exit, Failure, say};
use crate::api::place;
use crate::control::cluster::Membership;
use crate::control::durable::replace_file;
use crate::control::services::folder::Folder;
use crate::control::strict::Origin;
use crate::daemon::addresses::AddressWatch;
use crate::daemon::admin::Worker;
use crate::daemon::closer::Closer;
use crate::daemon::command::Command;
use crate::daemon::config::given::Given;
use crate::daemon::config::keys::{self, KEYS, Key};
use crate::daemon::config::{Config, HostPortMode};
use crate::daemon::dns::Sockets;
use crate::daemon::host_port::{HostLink, HostPortError};
use crate::daemon::keeper::{self, link::TakeError};
use crate::daemon::links::Host;
use crate::daemon::listener::{ListenError, Listener};
use crate::daemon::lobby::{Lobby, Wait};
use crate::daemon::metrics::Endpoints;
use crate::daemon::panics;
use crate::daemon::server::kept::Kept;
use crate::daemon::server::names;
use crate::daemon::server::{End, KEEP, Server, Wakers};
use crate::daemon::source::Source;
use crate::daemon::worker;
use crate::sys::tap::TapError;
use clap::{Arg, ArgAction, ArgMatches};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Where names are asked for (RFC 1035 section 4.2).
const DNS_PORT: u16 = 53;

const EXAMPLES: &str = "\
Examples:
  podwire node --subnet 10.244.1.0/24
      A node by itself, named after the host; pods of this user join it by `podwire attach`.
  podwire node --name n1 --subnet 10.244.1.0/24 --peers peers.toml
      With peers, as [[peer]] name = \"n2\", underlay = \"192.0.2.2\", subnet = \"10.244.2.0/24\".
  podwire node --store etcd --etcd-endpoints http://192.0.2.9:2379
      In a cluster: subnet and peers are leases in etcd, shared with flannel's nodes (VXLAN backend).
  podwire node --subnet 10.244.1.0/24 --dns-listen 127.0.0.1:5353 --dns-record 'db.internal 192.0.2.7'
      Names of pods and one of your own for this host too: dig -p 5353 @127.0.0.1 web.default.pod.
  podwire node --config n1.toml --port auto
      From a file, with a flag that overrides it.
  podwire node --print-config > n1.toml
      Every key explained, ready to be edited: a subnet is all it lacks.

SIGHUP reads the peers again (changes of the file are noticed without it), SIGTERM and SIGINT end the node and detach
its pods (--keep-pods on leaves them to its next start). Pods outlive a node that is killed: start it again.";

/// The flags: one for each key of the configuration, and two more.
pub struct Args {
    config: Option<PathBuf>,
    print: bool,
    flags: Vec<(&'static Key, Vec<String>)>,
}

impl clap::Args for Args {
    fn augment_args(cmd: clap::Command) -> clap::Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help("Configuration file (TOML); flags override it");
        let print = Arg::new("print-config")
            .long("print-config")
            .action(ArgAction::SetTrue)
            .help("Print the configuration in force, explained, and do nothing");
        let explained = |key: &Key| {
            let arg = Arg::new(key.flag).long(key.flag).value_name(key.value);
            arg.help(format!("{} [default: {}]", key.help, key.fallback))
        };
        // Beside the flag of all subcommands, which finds a node, this is where a new one will be.
        let socket = explained(&keys::SOCKET).value_parser(clap::value_parser!(PathBuf));
        let flags = flags().map(|key| {
            let arg = explained(key);
            if key.list {
                arg.action(ArgAction::Append).value_delimiter(',')
            } else {
                arg
            }
        });
        cmd.after_help(EXAMPLES)
            .arg(config)
            .arg(print)
            .arg(socket)
            .args(flags)
    }

    fn augment_args_for_update(cmd: clap::Command) -> clap::Command {
        Self::augment_args(cmd)
    }
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(m: &ArgMatches) -> Result<Args, clap::Error> {
        let given = |key: &'static Key| Some((key, m.get_many::<String>(key.flag)?.cloned().collect()));
        Ok(Args {
            config: m.get_one("config").cloned(),
            print: m.get_flag("print-config"),
            flags: flags().filter_map(given).collect(),
        })
    }

    fn update_from_arg_matches(&mut self, m: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(m)?;
        Ok(())
    }
}

/// The keys with a flag of their own; `--socket` is one for all subcommands.
fn flags() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().copied().filter(|k| **k != keys::SOCKET)
}

/// Run a node until it is told to end.
///
/// # Errors
/// With the exit code of the mistake; everything made until then is gone again.
pub fn run(args: Args, socket: Option<&Path>) -> Result<(), Failure> {
    let host = Host::ask();
    let config = configuration(&args, socket, &host)?;
    if args.print {
        return say(&config.print());
    }
    env_logger::Builder::new()
        .filter_level(config.log)
        .format_target(false)
        .init();
    panics::listen();
    take_all_files();
    let failed = |what: String| Failure::new(Exit::Failed, what);
    let signal = |e: std::io::Error| failed(format!("signals cannot be taken: {e}"));
    // Signals first: one that comes while the node starts ends it as cleanly as a later one.
    let stop = pipe(&[SIGTERM, SIGINT]).map_err(signal)?;
    let reload = pipe(&[SIGHUP]).map_err(signal)?;
    let path = match &config.socket {
        Some(path) => place::fits(path.clone())?,
        None => place::for_node(config.node.as_str())?,
    };
    place::fits(keeper::longest(&path))?;
    let listener = Listener::bind(&path, config.node.as_str()).map_err(|e| {
        let exit = match &e {
            ListenError::Runs { .. } => Exit::Taken,
            ListenError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                Exit::Permission
            }
            _ => Exit::Failed,
        };
        Failure::new(exit, e.to_string())
    })?;
    let state = match config.state_dir.clone() {
        Some(dir) => dir,
        None => place::state_for(config.node.as_str(), &path)?,
    };
    let folder = config.services.dir.as_deref().map(Folder::open).transpose();
    let folder = folder.map_err(|e| Failure::new(Exit::Usage, e))?;
    let endpoints = Endpoints::bind(config.metrics, config.health);
    let mut endpoints = endpoints.map_err(|e| Failure::new(exit_for(e.kind()), e))?;
    let sockets = config
        .dns
        .as_ref()
        .map(|dns| Sockets::bind(&dns.listen))
        .transpose();
    let mut sockets = sockets.map_err(|e| Failure::new(exit_for(e.source.kind()), e))?;
    // First of all: the store shall be asked for the subnet that they are in.
    let mut kept = Kept::find(
        "/proc/self/exe".into(),
        &path,
        config.node.as_str(),
        state.join("pods.json"),
    )
    .map_err(|e| match e {
        TakeError::Busy { .. } | TakeError::Other { .. } => Failure::new(Exit::Taken, e),
        _ => failed(e.to_string()),
    })?;
    kept.manifests = (folder, state.join("services"));
    let source = Source::open(&config, &host, &path, &state, kept.subnet());
    let mut source = source.map_err(|e| Failure::new(Exit::Usage, e))?;
    let lobby = Lobby {
        node: &config.node,
        listener: &listener,
        endpoints: &mut endpoints,
        source: &mut source,
        stop: &stop,
    };
    let placed = match lobby.wait() {
        Ok(Wait::Nothing) => Ok(None),
        Ok(Wait::Over(membership)) => Ok(Some(membership)),
        Ok(Wait::Asked) => {
            kept.part(config.node.as_str(), config.keep_pods);
            source.end(KEEP);
            return Ok(());
        }
        Err(e) => Err(failed(format!("the node cannot wait for its subnet: {e}"))),
    };
    let begun = placed.and_then(|membership| {
        let config = match &membership {
            Some(membership) => config.join(membership),
            None => Ok(config),
        };
        let mut config = config.map_err(|e| Failure::new(Exit::Usage, e))?;
        config.egress.names = sockets.as_ref().and_then(Sockets::internal);
        let (lifeline, worker_end) = UnixStream::pair().map_err(|e| failed(e.to_string()))?;
        // Pods of a process that was killed are without a network until here. Only the wait for a subnet may be long,
        // where none is remembered.
        let handle = worker::spawn(&config, Arc::new(config.policy(&host)), lifeline)
            .map_err(|e| Failure::new(exit_for(e.kind), e.message))?;
        kept.check(&config.local_node())
            .map_err(|e| Failure::new(Exit::Usage, e))?;
        kept.host_port = host_port(&config, &handle, sockets.as_mut())?;
        Ok((membership, config, worker_end, handle))
    });
    let (membership, config, worker_end, handle) = match begun {
        Ok(begun) => begun,
        Err(e) => {
            source.end(KEEP);
            return Err(e);
        }
    };
    let mut ended = worker_end.try_clone().map_err(|e| failed(e.to_string()))?;
    // Not before it is certain that the node can have it: the next start asks for what is told there.
    if let Some(membership) = &membership {
        subnet_file(&config, membership, &path);
    }
    let wakers = Wakers {
        stop,
        reload,
        worker: worker_end,
    };
    let scraped = endpoints.metrics();
    let server = Server::new(config.clone(), &handle, listener, endpoints, source, wakers, kept);
    let served = server.and_then(|mut server| {
        if let (Some(sockets), Some(settings)) = (sockets, names::settings(&config)) {
            server.name(sockets.serve(settings)?);
        }
        Ok(server)
    });
    let served = served.map(|mut server| {
        follow_addresses(&config, &host, &mut server);
        announce(&config, &handle.underlay(), &path, scraped);
        server.run()
    });
    let (end, recorder) = match served {
        Ok((end, recorder)) => (end, Some(recorder)),
        Err(e) => (Err(e), None),
    };
    // A failure to tell the service manager changes nothing.
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    let _ = handle.send(Command::Stop);
    if has_ended(&mut ended) {
        let closer = Closer::default();
        for tap in handle.join() {
            closer.close(tap, || {});
        }
        closer.finish();
    } else {
        log::warn!("the data path did not end within 500 ms and is abandoned");
    }
    // Last, since the disk had time meanwhile.
    if let Some(mut recorder) = recorder {
        recorder.settle();
    }
    match end {
        Ok(End::Asked) => {
            log::info!("node {} ended", config.node);
            Ok(())
        }
        Ok(End::WorkerGone) => Err(failed(
            "the data path ended by itself (the log tells why; report it); start the node again, its pods are kept".into(),
        )),
        Err(e) => Err(failed(format!("the control thread failed: {e}"))),
    }
}

/// Tell CNI plugins, and this node's next start, which subnet it has.
fn subnet_file(config: &Config, member: &Membership, socket: &Path) {
    let Some(store) = &config.store else {
        return;
    };
    let (path, env) = (store.subnet_file(socket), config.subnet_env(member));
    // On a machine that never ran flannel its directory is not there.
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    match made.and_then(|()| replace_file(&path, &[env.to_string().as_bytes()], 0o644)) {
        Ok(()) => log::info!("the subnet is told in {}", path.display()),
        Err(e) => log::warn!(
            "{}: {e} (name a file of this user's with --subnet-file)",
            path.display()
        ),
    }
}

/// The host's own port, or why there is none; none when it is off. Names are answered to the host at its address, as to
/// pods.
fn host_port(
    config: &Config,
    worker: &dyn Worker,
    mut names: Option<&mut Sockets>,
) -> Result<Option<Result<HostLink, String>>, Failure> {
    if config.host_port == HostPortMode::Off {
        return Ok(None);
    }
    let mut port = match HostLink::open(config, worker) {
        Ok(port) => port,
        Err(why) if config.host_port == HostPortMode::Auto => {
            log::info!("this host has no port of its own in the pod network: {why}");
            return Ok(Some(Err(why.to_string())));
        }
        Err(why) => {
            let exit = match &why {
                HostPortError::NotPermitted(_) | HostPortError::Tap(TapError::DevicePermission) => {
                    Exit::Permission
                }
                HostPortError::OtherNode { .. } | HostPortError::Foreign(_) | HostPortError::InTheWay(_) => {
                    Exit::Taken
                }
                HostPortError::Mapped => Exit::Usage,
                _ => Exit::Failed,
            };
            return Err(Failure::new(exit, why));
        }
    };
    let addresses: Vec<IpAddr> = port.addresses().collect();
    // The host asks by loopback, pods of peers by the port; a machine that routes to this address by another interface
    // gets no answer.
    let interfaces = [port.interface(), "lo"].map(String::from);
    let interfaces = interfaces.each_ref().map(String::as_str);
    for ip in addresses {
        let bound = names
            .as_mut()
            .map(|names| names.also((ip, DNS_PORT).into(), &interfaces));
        if let Some(Err(e)) = bound {
            port.complain(format!(
                "this host gets no names at {ip}, its port in the pod network: {e}"
            ));
        }
    }
    Ok(Some(Ok(port)))
}

/// Follow the addresses of the host: they are closed to pods, and peers are told those that are not fixed.
fn follow_addresses(config: &Config, host: &Host, server: &mut Server<'_>) {
    let known = config.published(host).filter(|_| config.is_published_by_route());
    if let Err(e) = AddressWatch::new(host, known).and_then(|watch| server.follow(watch)) {
        log::warn!("a change of this host's address will not be noticed: {e} (restart the node after one)");
    }
}

/// The exit code when a socket cannot be bound.
fn exit_for(kind: std::io::ErrorKind) -> Exit {
    match kind {
        std::io::ErrorKind::AddrInUse => Exit::Taken,
        std::io::ErrorKind::PermissionDenied => Exit::Permission,
        // The address is of another host.
        std::io::ErrorKind::AddrNotAvailable => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// Raise the limit of open files as far as it goes without asking: each pod takes three, and the usual soft limit
/// is for programs that call select.
fn take_all_files() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(e) = setrlimit(Resource::Nofile, most) {
        log::debug!("the limit of open files stays at {:?}: {e}", limit.current);
    }
}

fn configuration(args: &Args, socket: Option<&Path>, host: &Host) -> Result<Config, Failure> {
    let usage = |what: String| Failure::new(Exit::Usage, what);
    let mut given = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| {
                usage(format!(
                    "{}: {e} (name a readable file with --config)",
                    path.display()
                ))
            })?;
            Given::from_file(path, &text).map_err(|e| usage(e.to_string()))?
        }
        None => Given::default(),
    };
    for (key, values) in &args.flags {
        given.flag(key, values.clone());
    }
    // The environment speaks where neither flag nor file does.
    let unsaid = given.origin(&keys::SOCKET) == Origin::Default;
    let environment = std::env::var_os("PODWIRE_SOCKET").filter(|p| unsaid && !p.is_empty());
    if let Some(path) = socket.map(Path::as_os_str).or(environment.as_deref()) {
        given.flag(&keys::SOCKET, vec![path.to_string_lossy().into_owned()]);
    }
    if given.says(&keys::STORE, "etcd") {
        for key in KEYS {
            let named = key
                .environment()
                .and_then(|name| Some((std::env::var(&name).ok()?, name)));
            if let Some((value, name)) = named.filter(|(value, _)| !value.is_empty()) {
                given.environment(key, name, &value);
            }
        }
    }
    let understand = if args.print {
        Config::draft
    } else {
        Config::understand
    };
    understand(&given, host).map_err(|e| usage(e.to_string()))
}

/// The one line that tells the node is up, and the service manager's share.
fn announce(config: &Config, underlay: &[SocketAddr], path: &Path, metrics: Option<SocketAddr>) {
    let four = config.subnet4.map(|n| n.to_string());
    let six = config.subnet6.map(|n| n.to_string());
    let subnets: Vec<_> = four.into_iter().chain(six).collect();
    let at: Vec<_> = underlay.iter().map(ToString::to_string).collect();
    let metrics = metrics.map(|at| format!(", metrics at http://{at}/metrics"));
    let line = format!(
        "node {} is up: pods {}, VXLAN {} at {}, MTU {}, socket {}{}",
        config.node,
        subnets.join(" and "),
        u32::from(config.vni),
        at.join(" and "),
        config.pod_mtu.0,
        path.display(),
        metrics.unwrap_or_default()
    );
    // The line is for who waits for the node; nobody may.
    let _ = say(&format!("{line}\n"));
    if let Err(e) = sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&line)]) {
        log::warn!("the service manager was not told that the node is up: {e}");
    }
}

/// A stream that can be read once one of `signals` came.
pub(super) fn pipe(signals: &[i32]) -> std::io::Result<UnixStream> {
    let (near, far) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, far.try_clone()?)?;
    }
    Ok(near)
}

/// Wait for the worker to drop its end of the pair, half a second at most.
fn has_ended(end: &mut UnixStream) -> bool {
    let waits = end
        .set_nonblocking(false)
        .and_then(|()| end.set_read_timeout(Some(Duration::from_millis(500))));
    // What it had to tell may be in there still.
    waits.is_ok()
        && loop {
            match end.read(&mut [0; 64]) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break false,
            }
        }
}
