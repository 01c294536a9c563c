//! The pods of a node and the requests about them, without a socket: what the control thread knows.

use super::command::{Command, Report, Socket};
use super::config::Config;
use super::ipam::{Ipam, IpamError, Lease, Want};
use super::keeper::Record;
use super::records::boottime_us;
use super::watch;
use crate::api::{AttachPlan, AttachRequest, ErrorKind, PodInfo, PortCounters, Reply};
use crate::model::{
    ConnectionFilter, Frontend, HostPort, Instant, LocalNode, MAX_LABELS, OffloadMode, PodMtu, PodName,
    PodState, PortId, PortMapping, PortSpec, Rate, ServiceConnection, TapCaps, is_alias, is_label_key,
    is_label_value, is_port_name,
};
use crate::service::ServiceView;
use crate::switch::{PortConflict, Ports};
use crossbeam_channel::bounded;
use ipnet::{Ipv4Net, Ipv6Net};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// How long the control thread waits for the worker.
const PATIENCE: Duration = Duration::from_secs(1);
/// Frames a TAP's ring is asked to hold: its default of 1000 drops the tail of bursts.
pub const TX_QUEUE_LEN: u32 = 4000;
/// Most bytes of a super-frame.
pub const GSO_MAX_SIZE: u32 = 65_536;
/// Largest MTU of a TAP: 65535 less an Ethernet header.
const MAX_TAP_MTU: u16 = 65_521;

/// The worker, as the control thread sees it.
pub trait Worker {
    /// Pass an order on; waits a second at most for room in the queue.
    ///
    /// # Errors
    /// The sentence why the worker takes no orders.
    fn send(&self, command: Command) -> Result<(), String>;

    /// Addresses of its VXLAN sockets.
    fn underlay(&self) -> Vec<SocketAddr>;

    /// The pod's interface as its TAP needs it: most segments of a super-frame at this MTU.
    fn gso_max_segs(&self, mtu: PodMtu) -> u32 {
        gso_max_segs(mtu, self.underlay().iter().any(SocketAddr::is_ipv6))
    }
}

/// Most segments of pod packets of `mtu` bytes that one UDP_SEGMENT send carries: the kernel takes 65,535
/// bytes less the outer IP and UDP headers, and 14 less than that (measured: one byte more and it silently
/// sends datagrams one by one).
pub fn gso_max_segs(mtu: PodMtu, over_ipv6: bool) -> u32 {
    let room: u32 = if over_ipv6 { 65_473 } else { 65_493 };
    // VXLAN 8 and the inner Ethernet header 14 travel with each segment.
    (room / (u32::from(mtu.0) + 22)).max(1)
}

/// The queue of a pod whose sending is limited, which is where its frames wait: segments of a super-frame, and frames.
/// A super-frame takes 5 ms at most, two segments at least, and the queue some 100 ms of such, 64 frames at least.
fn limited_queue(rate: &Rate, mtu: PodMtu, gso_max_segs: u32) -> (u32, u32) {
    let frame = u64::from(mtu.0) + 14;
    let segments = (rate.bits_in_ms(5) / 8 / frame).clamp(2, u64::from(gso_max_segs.max(2)));
    let frames = (rate.bits_in_ms(100) / 8 / (frame * segments)).clamp(64, u64::from(TX_QUEUE_LEN));
    (segments.min(u64::from(gso_max_segs)) as u32, frames as u32)
}

/// Why a request was not done.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind.
    pub kind: ErrorKind,
    /// One sentence with the remedy.
    pub message: String,
}

impl Refusal {
    /// A refusal of `kind`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Refusal {
        Refusal {
            kind,
            message: message.into(),
        }
    }
}

impl From<IpamError> for Refusal {
    fn from(e: IpamError) -> Refusal {
        Refusal::new(e.kind(), e.to_string())
    }
}

impl From<Refusal> for Reply {
    fn from(r: Refusal) -> Reply {
        Reply::Error {
            kind: r.kind,
            message: r.message,
        }
    }
}

/// Name and addresses kept for a pod until its TAP comes. To be given back by [`Admin::commit`] or
/// [`Admin::cancel`].
#[derive(Debug)]
pub struct Reservation {
    /// What was asked.
    pub request: AttachRequest,
    /// What was promised.
    pub plan: AttachPlan,
    /// When it was asked.
    pub since: Instant,
    lease: Lease,
}

/// What a pod had.
pub struct Detached {
    /// Its addresses, which rest for a while.
    pub lease: Lease,
    /// Its TAP, to be closed: its interface is there until then.
    pub tap: Option<OwnedFd>,
}

struct Pod {
    record: Record,
    lease: Lease,
    port: PortId,
    since: Instant,
}

/// What a client made of a reservation.
pub struct Made {
    /// The TAP.
    pub tap: OwnedFd,
    /// What it accepts.
    pub caps: TapCaps,
    /// What is at the path of the namespace.
    pub netns_id: Option<watch::Id>,
    /// When that was, in microseconds since the machine's boot.
    pub since_us: i64,
}

/// Why a TAP was not put to work.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// That pod's cannot be.
    #[error("{0}")]
    Refused(String),
    /// The data path does not answer: nobody's can be.
    #[error("{0}")]
    Silent(String),
}

/// The pods of the node.
pub struct Admin<'w> {
    worker: &'w dyn Worker,
    local: LocalNode,
    offload: OffloadMode,
    ipam: Ipam,
    pods: BTreeMap<PodName, Pod>,
}

impl<'w> Admin<'w> {
    /// A node without pods.
    pub fn new(config: &Config, worker: &'w dyn Worker) -> Admin<'w> {
        let local = config.local_node();
        Admin {
            worker,
            ipam: Ipam::new(&local),
            local,
            offload: config.tap,
            pods: BTreeMap::new(),
        }
    }

    /// Keep a name and addresses for a pod.
    ///
    /// # Errors
    /// What is taken or wrong, and what would be right.
    pub fn attach(&mut self, request: AttachRequest, now: Instant) -> Result<Reservation, Refusal> {
        let usage = |what: String| Err(Refusal::new(ErrorKind::Usage, what));
        let ifname = &request.ifname;
        let good =
            (1..=15).contains(&ifname.len()) && ifname.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        if !good || ifname == "." || ifname == ".." {
            return usage(format!(
                "{ifname:?} is no interface name (1 to 15 characters without blanks and slashes, as eth0)"
            ));
        }
        let mtu = request.mtu.unwrap_or(self.local.pod_mtu);
        let least = if self.local.subnet6.is_some() { 1280 } else { 576 };
        if !(least..=MAX_TAP_MTU).contains(&mtu.0) {
            return usage(format!(
                "MTU {} is out of range (use {least} to {MAX_TAP_MTU})",
                mtu.0
            ));
        }
        check_traits(&request).map_err(|what| Refusal::new(ErrorKind::Usage, what))?;
        let want = Want {
            ip4: request.ip4,
            ip6: request.ip6,
            mac: request.mac,
        };
        if self.ports_left() == 0 {
            return Err(Refusal::new(ErrorKind::Exhausted, PortConflict::Full.to_string()));
        }
        let lease = self.ipam.reserve(&request.pod, want, now)?;
        let length4 = self.local.subnet4.map_or(32, |n| n.prefix_len());
        let length6 = self.local.subnet6.map_or(128, |n| n.prefix_len());
        let gso_max_segs = self.worker.gso_max_segs(mtu);
        let egress = request.bandwidth.and_then(|b| b.egress);
        let (gso_max_segs, tx_queue_len) = egress.map_or((gso_max_segs, TX_QUEUE_LEN), |rate| {
            limited_queue(&rate, mtu, gso_max_segs)
        });
        let plan = AttachPlan {
            ip4: lease.ip4.and_then(|ip| Ipv4Net::new(ip, length4).ok()),
            ip6: lease.ip6.and_then(|ip| Ipv6Net::new(ip, length6).ok()),
            mac: lease.mac,
            mtu,
            gateway4: lease.ip4.and(self.local.gateway4()),
            gateway6: lease.ip6.and(self.local.gateway6()),
            gso_max_segs,
            gso_max_size: GSO_MAX_SIZE,
            tx_queue_len,
            offload: self.offload,
        };
        Ok(Reservation {
            request,
            plan,
            since: now,
            lease,
        })
    }

    /// How many ports the data path has left for pods; one may be the host's own.
    pub fn ports_left(&self) -> usize {
        (Ports::MAX - 1).saturating_sub(self.pods.len())
    }

    /// Give a reservation back.
    pub fn cancel(&mut self, reservation: Reservation) {
        self.ipam.cancel(&reservation.request.pod);
    }

    /// Put the TAP of a reserved pod to work.
    ///
    /// # Errors
    /// The worker's sentence; the reservation is given back then.
    pub fn commit(&mut self, reservation: Reservation, made: Made, now: Instant) -> Result<PodInfo, Refusal> {
        let Reservation {
            request, plan, lease, ..
        } = reservation;
        let name = request.pod.clone();
        let record = Record {
            pod: request.pod,
            ifname: request.ifname,
            netns: request.netns,
            netns_id: made.netns_id,
            holder: request.holder,
            ip4: plan.ip4,
            ip6: plan.ip6,
            mac: lease.mac,
            mtu: plan.mtu,
            caps: made.caps,
            since_us: made.since_us,
            attachment: request.attachment,
            aliases: request.aliases,
            publish: request.publish,
            labels: request.labels,
            ports: request.ports,
            state: PodState::default(),
            drain_until_us: None,
            bandwidth: request.bandwidth,
        };
        let added = rustix::io::ioctl_fionbio(&made.tap, true)
            .map_err(|e| format!("the TAP cannot be made non-blocking: {e}"))
            .and_then(|()| {
                self.add_port(port_spec(&record), made.tap)
                    .map_err(|e| e.to_string())
            });
        let port = match added {
            Ok(port) => port,
            Err(what) => {
                self.ipam.cancel(&name);
                return Err(Refusal::new(ErrorKind::Internal, what));
            }
        };
        let pod = Pod {
            record,
            lease,
            port,
            since: now,
        };
        let info = info(&pod, PortCounters::default(), now);
        self.pods.insert(name, pod);
        Ok(info)
    }

    /// Put a pod to work again that an earlier process of this node had; `age` is how long it has been there.
    ///
    /// # Errors
    /// Why it cannot be; nothing is left of it then.
    pub fn adopt(
        &mut self,
        record: Record,
        tap: OwnedFd,
        age: Duration,
        now: Instant,
    ) -> Result<(), PortError> {
        let lease = lease(&record);
        let name = record.pod.clone();
        let refused = |e: IpamError| PortError::Refused(e.to_string());
        self.ipam.adopt(&name, lease).map_err(refused)?;
        let port = match self.add_port(port_spec(&record), tap) {
            Ok(port) => port,
            Err(what) => {
                self.ipam.cancel(&name);
                return Err(what);
            }
        };
        let age = i64::try_from(age.as_micros()).unwrap_or(0);
        let pod = Pod {
            record,
            lease,
            port,
            since: Instant::from_micros(now.total_micros().saturating_sub(age)),
        };
        self.pods.insert(name, pod);
        Ok(())
    }

    /// What is recorded of a pod.
    pub fn record(&self, pod: &PodName) -> Option<&Record> {
        self.pods.get(pod).map(|p| &p.record)
    }

    /// Change which ports a pod has published.
    pub fn set_published(&mut self, pod: &PodName, publish: Vec<PortMapping>) {
        if let Some(pod) = self.pods.get_mut(pod) {
            pod.record.publish = publish;
        }
    }

    /// Change what is recorded of a pod; whether there is one.
    pub fn change(&mut self, pod: &PodName, change: impl FnOnce(&mut Record)) -> bool {
        let pod = self.pods.get_mut(pod);
        pod.map(|pod| change(&mut pod.record)).is_some()
    }

    /// One pod, without what the data path counts of it.
    pub fn pod(&self, pod: &PodName, now: Instant) -> Option<PodInfo> {
        let pod = self.pods.get(pod)?;
        Some(info(pod, PortCounters::default(), now))
    }

    /// Have sockets put to work for published ports of a pod, or of Services, all or none.
    ///
    /// # Errors
    /// The worker's sentence; it has none of them then.
    pub fn open(&self, pod: Option<&PodName>, sockets: Vec<Socket>) -> Result<(), String> {
        let (reply, answer) = bounded(1);
        let ports = sockets.iter().map(|s| s.port).collect();
        let pod = pod.cloned();
        self.worker.send(Command::Publish { pod, sockets, reply })?;
        answer.recv_timeout(PATIENCE).unwrap_or_else(|_| {
            // It may still come to it; this is behind it in the same queue.
            self.shut(ports);
            Err("the data path did not answer within 1 s (see the node's log, then try again)".into())
        })
    }

    /// Have published sockets closed; they are when this returns, unless the data path is silent.
    pub fn shut(&self, ports: Vec<HostPort>) {
        let (reply, done) = bounded(1);
        let sent = self.worker.send(Command::Unpublish { ports, reply });
        if sent.is_err() || done.recv_timeout(PATIENCE).is_err() {
            log::warn!("the data path did not confirm within 1 s that ports are closed");
        }
    }

    /// What is recorded of each pod, by name.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.pods.values().map(|p| &p.record)
    }

    /// The addresses.
    pub fn ipam(&mut self) -> &mut Ipam {
        &mut self.ipam
    }

    /// A second descriptor of each TAP, or of one pod's.
    pub fn taps(&self, of: Option<&PodName>) -> Vec<(PodName, io::Result<OwnedFd>)> {
        let (reply, taps) = bounded(1);
        let of = of.cloned();
        let sent = self.worker.send(Command::Taps { of, reply });
        let taps = sent.ok().and_then(|()| taps.recv_timeout(PATIENCE).ok());
        taps.unwrap_or_default()
    }

    /// Remove a pod's port; what it had, when there was one.
    pub fn detach(&mut self, pod: &PodName, now: Instant) -> Option<Detached> {
        self.pods.remove(pod)?;
        let (reply, done) = bounded(1);
        let sent = self.worker.send(Command::RemovePort {
            pod: pod.clone(),
            reply,
        });
        let tap = match sent.map(|()| done.recv_timeout(PATIENCE)) {
            Ok(Ok(tap)) => tap,
            _ => {
                log::warn!("the data path did not confirm within 1 s that pod {pod} is removed");
                None
            }
        };
        let lease = self.ipam.release(pod, now)?;
        Some(Detached { lease, tap })
    }

    /// The pods whose interface is gone, with its name.
    pub fn lost(&self) -> Vec<(PodName, String)> {
        let (reply, lost) = bounded(1);
        let sent = self.worker.send(Command::Lost { reply });
        let lost = sent.ok().and_then(|()| lost.recv_timeout(PATIENCE).ok());
        let ifname = |pod: PodName| {
            let ifname = self.pods.get(&pod)?.record.ifname.clone();
            Some((pod, ifname))
        };
        lost.unwrap_or_default().into_iter().filter_map(ifname).collect()
    }

    /// All pods, by name.
    pub fn pods(&self, report: Option<&Report>, now: Instant) -> Vec<PodInfo> {
        let counters: HashMap<&PodName, &PortCounters> = report
            .into_iter()
            .flat_map(|r| r.ports.iter().map(|(p, c)| (p, c)))
            .collect();
        self.pods
            .iter()
            .map(|(name, pod)| info(pod, counters.get(name).copied().cloned().unwrap_or_default(), now))
            .collect()
    }

    /// Connections through Services, and how many there are; or how many were ended. `None` when the data path does not
    /// answer within a second.
    pub fn connections(
        &self,
        filter: ConnectionFilter,
        limit: usize,
        kill: bool,
    ) -> Option<(Vec<ServiceConnection>, usize)> {
        let (reply, answer) = bounded(1);
        let order = Command::Connections {
            filter,
            limit,
            kill,
            reply,
        };
        self.worker.send(order).ok()?;
        answer.recv_timeout(PATIENCE).ok()
    }

    /// What goes on at frontends of Services; `None` when the data path does not answer within a second.
    pub fn served(&self, frontends: Vec<Frontend>) -> Option<Vec<ServiceView>> {
        let (reply, answer) = bounded(1);
        self.worker.send(Command::Served { frontends, reply }).ok()?;
        answer.recv_timeout(PATIENCE).ok()
    }

    /// What the data path tells of itself; `None` when it does not answer within a second.
    pub fn report(&self) -> Option<Report> {
        let (reply, report) = bounded(1);
        self.worker.send(Command::Report { reply }).ok()?;
        report.recv_timeout(PATIENCE).ok()
    }

    fn add_port(&self, spec: PortSpec, tap: OwnedFd) -> Result<PortId, PortError> {
        let (reply, answer) = bounded(1);
        let pod = spec.pod.clone();
        self.worker
            .send(Command::AddPort { spec, tap, reply })
            .map_err(PortError::Silent)?;
        match answer.recv_timeout(PATIENCE) {
            Ok(added) => added.map_err(PortError::Refused),
            Err(_) => {
                // It may still come to it; the removal is behind it in the same queue.
                let (reply, _) = bounded(1);
                let _ = self.worker.send(Command::RemovePort { pod, reply });
                let what = "the data path did not answer within 1 s (see the node's log, then try again)";
                Err(PortError::Silent(what.into()))
            }
        }
    }
}

/// Whether labels and named ports can be a pod's.
fn check_traits(request: &AttachRequest) -> Result<(), String> {
    let (labels, ports) = (&request.labels, &request.ports);
    if labels.len() > MAX_LABELS || ports.len() > MAX_LABELS || request.aliases.len() > MAX_LABELS {
        return Err(format!(
            "a pod has at most {MAX_LABELS} labels, as many named ports and as many aliases (leave some out)"
        ));
    }
    if let Some(alias) = request.aliases.iter().find(|a| !is_alias(a)) {
        return Err(format!(
            "{alias:?} cannot be another name of a pod (letters, digits, '-' and '_', at most 63)"
        ));
    }
    if let Some((key, value)) = labels
        .iter()
        .find(|(k, v)| !is_label_key(k) || !is_label_value(v))
    {
        return Err(format!(
            "{key:?}={value:?} is no label (letters, digits, '-', '_' and '.', at most 63 each)"
        ));
    }
    for (n, port) in ports.iter().enumerate() {
        if !is_port_name(&port.name) || port.port == 0 {
            return Err(format!(
                "{:?} is no named port (write http:8080 or dns:53/udp)",
                port.name
            ));
        }
        let same = |p: &crate::model::NamedPort| p.name == port.name && p.transport == port.transport;
        if ports[..n].iter().any(same) {
            return Err(format!(
                "two ports of {} are named {} (name each by itself)",
                port.transport, port.name
            ));
        }
    }
    Ok(())
}

fn port_spec(record: &Record) -> PortSpec {
    let lease = lease(record);
    PortSpec {
        pod: record.pod.clone(),
        mac: lease.mac,
        ip4: lease.ip4,
        ip6: lease.ip6,
        mtu: record.mtu,
        caps: record.caps,
        bandwidth: record.bandwidth,
    }
}

/// What a pod had as addresses.
pub fn lease(record: &Record) -> Lease {
    Lease {
        ip4: record.ip4.map(|n| n.addr()),
        ip6: record.ip6.map(|n| n.addr()),
        mac: record.mac,
    }
}

fn info(pod: &Pod, counters: PortCounters, now: Instant) -> PodInfo {
    let record = &pod.record;
    let four = pod.lease.ip4.map(IpAddr::from);
    PodInfo {
        pod: record.pod.clone(),
        port: pod.port,
        addresses: four.into_iter().chain(pod.lease.ip6.map(IpAddr::from)).collect(),
        mac: record.mac,
        mtu: record.mtu,
        ifname: record.ifname.clone(),
        netns: record.netns.clone(),
        holder: record.holder,
        caps: record.caps,
        age_s: (now - pod.since).secs(),
        attachment: record.attachment.clone(),
        aliases: record.aliases.clone(),
        publish: record.publish.clone(),
        labels: record.labels.clone(),
        ports: record.ports.clone(),
        state: record.state,
        drain_ms: record
            .drain_until_us
            .map(|until| u64::try_from((until - boottime_us()) / 1000).unwrap_or(0)),
        bandwidth: record.bandwidth,
        counters,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::config::{given::Given, keys};
    use crate::daemon::links::Host;
    use crate::model::{Labels, Mac};

    /// A data path that hears and does not answer.
    struct Deaf;

    impl Worker for Deaf {
        fn send(&self, _: Command) -> Result<(), String> {
            Ok(())
        }

        fn underlay(&self) -> Vec<SocketAddr> {
            Vec::new()
        }
    }

    /// The pod is not at fault, and its address stays free for the next attempt.
    #[test]
    fn a_data_path_that_is_silent_says_nothing_against_a_pod() {
        let mut given = Given::default();
        given.flag(&keys::NODE, vec!["n1".into()]);
        given.flag(&keys::SUBNET, vec!["10.244.1.0/29".into()]);
        let config = Config::understand(&given, &Host::default()).unwrap();
        let mut admin = Admin::new(&config, &Deaf);
        let record = || Record {
            pod: "a".parse().unwrap(),
            ifname: "eth0".into(),
            netns: None,
            netns_id: None,
            holder: None,
            ip4: Some("10.244.1.2/29".parse().unwrap()),
            ip6: None,
            mac: Mac::default(),
            mtu: PodMtu(1450),
            caps: TapCaps::default(),
            since_us: 0,
            attachment: None,
            aliases: Vec::new(),
            publish: Vec::new(),
            labels: Labels::new(),
            ports: Vec::new(),
            state: PodState::default(),
            drain_until_us: None,
            bandwidth: None,
        };
        for _ in 0..2 {
            let tap = std::fs::File::open("/dev/null").unwrap().into();
            let said = admin.adopt(record(), tap, Duration::ZERO, Instant::ZERO);
            assert!(matches!(said, Err(PortError::Silent(_))), "{said:?}");
        }
    }

    #[test]
    fn a_limited_pod_has_a_short_queue() {
        let queue = |bits| limited_queue(&Rate::new(bits, 0).unwrap(), PodMtu(1450), 44);
        assert_eq!(queue(1_000_000), (2, 64));
        assert_eq!(queue(10_000_000), (4, 64));
        assert_eq!(queue(100_000_000), (42, 64));
        assert_eq!(queue(1_000_000_000), (44, 194));
        assert_eq!(queue(1_000_000_000_000_000), (44, 4000));
        let one = limited_queue(&Rate::new(1000, 0).unwrap(), PodMtu(65_521), 1);
        assert_eq!(one, (1, 64), "no more than the node takes");
    }

    #[test]
    fn a_super_frame_fits_one_send() {
        assert_eq!(gso_max_segs(PodMtu(1450), false), 44);
        assert_eq!(gso_max_segs(PodMtu(1430), true), 45);
        assert_eq!(gso_max_segs(PodMtu(65_521), false), 1);
    }
}
