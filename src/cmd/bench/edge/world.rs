//! The machines: `home`, whose pods are measured, and `world`, which these reach and are reached from.

use super::super::lab::{failed, hosts, index};
use crate::cmd::Failure;
use crate::cmd::lab::load::Load;
use crate::cmd::lab::pod::{self, Pod};
use crate::cmd::lab::watch::{Job, Watch};
use crate::pod::link::default_route;
use crate::sys::netlink::{Batch, NetlinkError};
use crate::sys::ns::NetNs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Address of `home` (RFC 2544 section C.2.2).
pub const HOME: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
/// The same of `world`.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
/// The default router of `home`, which is not there: what is measured is on the link.
const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 9);
/// The device between the two machines.
const DEVICE: &str = "up0";
/// How long a server may take to be there.
const START: Duration = Duration::from_secs(5);

/// The two machines, and the servers that are there all the time.
pub struct World {
    // In this order: processes go before what they are in.
    servers: Vec<Job>,
    /// Where the pods are.
    pub home: NetNs,
    /// What is beyond.
    pub world: NetNs,
}

impl World {
    /// Make them, with a veth between.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn make(watch: &mut Watch) -> Result<World, Failure> {
        watch.stage("making a host and a world outside of it");
        let [home, world] = hosts(DEVICE, [HOME, WORLD])?;
        let servers = Vec::new();
        let made = World { servers, home, world };
        let refused = |e: NetlinkError| failed(format!("no route can be made: {e}"));
        made.home
            .within(|| {
                let mut batch = Batch::default();
                let way = default_route(index(DEVICE)?, IpAddr::V4(ROUTER), false);
                batch.create("a default route", way);
                batch.send()
            })?
            .map_err(refused)?;
        // Each in its own way; where it is refused, pings of pods are not measured anyway.
        let _ = made.home.within(|| {
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
        })?;
        Ok(made)
    }

    /// Have a server in one of the machines from now on.
    ///
    /// # Errors
    /// When it is not there in time.
    pub fn serve(
        &mut self,
        place: fn(&World) -> &NetNs,
        load: &Load,
        watch: &mut Watch,
    ) -> Result<(), Failure> {
        let mut job = pod::start_in(place(self), load)?;
        watch.gather(&mut [&mut job], Instant::now() + START, Job::spoke)?;
        if job.said().is_empty() {
            return Err(failed("a server of the lab does not start"));
        }
        self.servers.push(job);
        Ok(())
    }
}

/// Where a load runs.
pub enum Place {
    /// In a pod of podwire's making.
    Pod(Box<Pod>),
    /// In the namespaces of a process.
    Beside(u32),
}

impl Place {
    /// Begin `load` there.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, load: &Load) -> Result<Job, Failure> {
        match self {
            Place::Pod(pod) => pod.start(load),
            Place::Beside(pid) => pod::start_beside(*pid, load),
        }
    }
}
