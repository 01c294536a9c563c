//! A worker without a data path: it binds the VXLAN sockets, keeps a list of ports and answers. For tests of
//! the control thread, and for builds in which the data path is not there yet.

use super::admin::Worker;
use super::command::{Command, Pinged, Report};
use super::config::Config;
use crate::api::PortCounters;
use crate::model::{PodName, PortId};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

/// A running stand-in.
pub struct Handle {
    commands: Sender<Command>,
    underlay: Vec<SocketAddr>,
    thread: JoinHandle<()>,
}

/// Start one; `lifeline` is held until it ends.
///
/// # Errors
/// When a socket cannot be bound.
pub fn spawn(config: &Config, lifeline: UnixStream) -> Result<Handle, String> {
    let bound: Result<Vec<UdpSocket>, String> = config
        .underlay()
        .into_iter()
        .map(|a| {
            UdpSocket::bind(a).map_err(|e| match e.kind() {
                std::io::ErrorKind::AddrInUse => {
                    format!("port {} of {} is in use (set overlay.port)", a.port(), a.ip())
                }
                _ => format!("{a} cannot be bound: {e} (set overlay.bind to an address of this host)"),
            })
        })
        .collect();
    let sockets = bound?;
    let underlay = sockets.iter().filter_map(|s| s.local_addr().ok()).collect();
    let (commands, orders) = bounded(256);
    let thread = std::thread::spawn(move || {
        let _held = (lifeline, sockets);
        work(&orders);
    });
    Ok(Handle {
        commands,
        underlay,
        thread,
    })
}

impl Handle {
    /// Wait for its end, which [`Command::Stop`] brings about.
    pub fn join(self) {
        let _ = self.thread.join();
    }
}

impl Worker for Handle {
    fn send(&self, command: Command) -> Result<(), String> {
        self.commands
            .send_timeout(command, Duration::from_secs(1))
            .map_err(|e| e.to_string())
    }

    fn underlay(&self) -> Vec<SocketAddr> {
        self.underlay.clone()
    }
}

fn work(orders: &Receiver<Command>) {
    let mut ports: Vec<(PodName, OwnedFd)> = Vec::new();
    let mut published = Vec::new();
    let mut next = 0;
    for order in orders {
        match order {
            Command::Changes(_) | Command::Policy(_) | Command::Services(_) => {}
            Command::Connections { reply, .. } => {
                let _ = reply.send((Vec::new(), 0));
            }
            Command::Served { reply, .. } => {
                let _ = reply.send(Vec::new());
            }
            Command::AddPort { spec, tap, reply } => {
                ports.push((spec.pod, tap));
                next += 1;
                let _ = reply.send(Ok(PortId(next)));
            }
            Command::AddHost { reply, .. } => {
                let _ = reply.send(Err("there is no host here".into()));
            }
            Command::RemovePort { pod, reply } => {
                let at = ports.iter().position(|(p, _)| *p == pod);
                let _ = reply.send(at.map(|at| ports.swap_remove(at).1));
            }
            Command::Publish { sockets, reply, .. } => {
                published.extend(sockets);
                let _ = reply.send(Ok(()));
            }
            Command::Unpublish { ports, reply } => {
                published.retain(|s| !ports.contains(&s.port));
                let _ = reply.send(());
            }
            Command::Taps { of, reply } => {
                let those = ports.iter().filter(|(p, _)| of.as_ref().is_none_or(|of| of == p));
                let taps = those.map(|(p, tap)| (p.clone(), tap.try_clone()));
                let _ = reply.send(taps.collect());
            }
            Command::Lost { reply } => {
                let _ = reply.send(Vec::new());
            }
            // As if there were room for the first pod's alone.
            Command::Ping { to, tell } => tell(match to.to_string().ends_with(".2") {
                true => Pinged::Answered(42),
                false => Pinged::Unsent,
            }),
            Command::Report { reply } => {
                let ports = ports.iter().map(|(p, _)| (p.clone(), PortCounters::default()));
                let _ = reply.send(Report {
                    ports: ports.collect(),
                    ..Report::default()
                });
            }
            Command::Stop => return,
        }
    }
}

/// A descriptor that takes long to close, as a TAP does: until the other end is dropped. The kernel waits for
/// what was not read yet, for ten seconds at most.
pub fn slow() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&slow, Some(Duration::from_secs(10))).unwrap();
    slow.set_nonblocking(true).unwrap();
    while slow.write(&[0; 65_536]).is_ok() {}
    (slow.into(), other)
}
