//! Many TCP connections that say nothing.

use super::stream::connect;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};

/// Take connections at `port` (0: any) and keep them, until this process is ended; `ready` is called with the port.
///
/// # Errors
/// When no socket can be had, or the process may open no more.
pub fn keep(port: u16, ready: impl FnOnce(u16)) -> io::Result<()> {
    open_many();
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    ready(listener.local_addr()?.port());
    let mut kept = Vec::new();
    loop {
        kept.push(listener.accept()?.0);
    }
}

/// Make `count` connections, call `ready` with how many there are, and keep them until this process is ended.
///
/// # Errors
/// When one cannot be made.
pub fn hold(count: u16, to: SocketAddr, ready: impl FnOnce(u16)) -> io::Result<()> {
    open_many();
    let held: io::Result<Vec<_>> = (0..count).map(|_| connect(to)).collect();
    let held = held?;
    ready(held.len() as u16);
    loop {
        std::thread::park();
    }
}

/// As many descriptors as this process may have: the usual 1,024 are too few.
fn open_many() {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(e) = setrlimit(Resource::Nofile, most) {
        log::debug!("the limit of open files stays: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::mpsc;

    #[test]
    fn connections_are_made_and_kept() {
        let (tell, told) = mpsc::channel();
        let port = tell.clone();
        std::thread::spawn(move || keep(0, |n| port.send(n).unwrap()));
        let to = (Ipv4Addr::LOCALHOST, told.recv().unwrap()).into();
        std::thread::spawn(move || hold(20, to, |n| tell.send(n).unwrap()));
        assert_eq!(told.recv().unwrap(), 20);
    }
}
