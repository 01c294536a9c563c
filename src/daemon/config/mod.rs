//! The configuration of a node: defaults, then a TOML file, then flags.
//!
//! [`keys`] is the one table of all keys. [`given`] gathers what people said, [`Config::understand`] gives it
//! meaning, and [`Config::print`] says it all again, in a form that reads back to the same.

mod dns;
mod egress;
pub mod given;
mod host;
mod join;
pub mod keys;
mod print;
mod services;
mod store;

pub use dns::DnsConfig;
pub use egress::{EgressConfig, MapHost};
pub use host::HostPortMode;
pub use services::ServicesConfig;
pub use store::{Password, StoreConfig};

use crate::control::default_vtep_mac;
use crate::control::peers::{mac, subnet4, subnet6};
use crate::control::strict::{Mistake, Origin};
use crate::daemon::links::Host;
use crate::model::{LocalNode, Mac, NodeName, OffloadMode, PodMtu, UnderlayMtu, Vni};
use given::Given;
use ipnet::{Ipv4Net, Ipv6Net};
use keys::Key;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// flannel's port, which Linux's VXLAN used before IANA gave 4789.
pub const DEFAULT_PORT: u16 = 8472;
/// Bytes of socket buffer to ask for: some hundred full trains of datagrams.
pub const DEFAULT_BUFFER: usize = 8 << 20;
/// MTU of an ordinary network.
const ETHERNET: UnderlayMtu = UnderlayMtu(1500);
/// About twice what a packet takes to a pod of another node and back, where nobody sleeps.
const LINGER: Duration = Duration::from_micros(40);
// Smallest MTU IPv4 hosts must take (RFC 791), and smallest of an IPv6 link (RFC 8200 section 5).
const MIN_MTU4: u16 = 576;
const MIN_MTU6: u16 = 1280;
/// Network identifiers have 24 bits.
const MAX_VNI: u32 = (1 << 24) - 1;

/// A node's configuration, complete and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The node's name.
    pub node: NodeName,
    /// IPv4 subnet of its pods.
    pub subnet4: Option<Ipv4Net>,
    /// IPv6 subnet of its pods.
    pub subnet6: Option<Ipv6Net>,
    /// The peers file.
    pub peers: Option<PathBuf>,
    /// The admin socket; none means the usual place.
    pub socket: Option<PathBuf>,
    /// Where the node remembers; none means the usual place.
    pub state_dir: Option<PathBuf>,
    /// What is logged.
    pub log: log::LevelFilter,
    /// Whether the host gets a port of its own.
    pub host_port: HostPortMode,
    /// Addresses of the underlay: one, or one of each family.
    pub bind: Vec<IpAddr>,
    /// The overlay's port; none means any free one.
    pub port: Option<u16>,
    /// The overlay's identifier.
    pub vni: Vni,
    /// Number of sending sockets.
    pub source_ports: u8,
    /// MTU of the underlay.
    pub underlay_mtu: UnderlayMtu,
    /// MTU of pods.
    pub pod_mtu: PodMtu,
    /// MAC in the tunnel.
    pub vtep_mac: Mac,
    /// MAC in the tunnel for IPv6 pods.
    pub vtep_mac6: Mac,
    /// DSCP of outer packets.
    pub dscp: Dscp,
    /// Offload of TAPs.
    pub tap: OffloadMode,
    /// Whether to use UDP_SEGMENT.
    pub udp_gso: bool,
    /// Whether to use UDP_GRO.
    pub udp_gro: bool,
    /// Whether checksums stay partial within the node.
    pub partial_checksums: bool,
    /// Whether acknowledgements that wait together are merged.
    pub merge_acks: bool,
    /// Broadcasts per second and port.
    pub broadcast_per_second: u32,
    /// How long to look for the next packet before sleeping.
    pub linger: Duration,
    /// Receive buffer to ask for, in bytes.
    pub receive_buffer: usize,
    /// Send buffer to ask for, in bytes.
    pub send_buffer: usize,
    /// Where the cluster's leases are kept; none means that subnet and peers are given.
    pub store: Option<StoreConfig>,
    /// Where the node's health is told; none means nowhere but beside the metrics.
    pub health: Option<SocketAddr>,
    /// Whether pods outlive a clean end of the node.
    pub keep_pods: bool,
    /// What pods may reach outside of the pod network.
    pub egress: EgressConfig,
    /// How names are answered; none means not at all.
    pub dns: Option<DnsConfig>,
    /// Services: where manifests are, and what the cluster agrees on.
    pub services: ServicesConfig,
    /// Where metrics are served; none means nowhere.
    pub metrics: Option<SocketAddr>,
}

/// DSCP of outer packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dscp {
    /// That of the inner packet.
    Inherit,
    /// Always this one.
    Fixed(u8),
}

impl Config {
    /// Give meaning to what was given, for this host.
    ///
    /// # Errors
    /// The first mistake, with its place, key and remedy.
    pub fn understand(given: &Given, host: &Host) -> Result<Config, Mistake> {
        let config = Config::draft(given, host)?;
        if config.store.is_some() && config.subnet4.is_none() && config.subnet6.is_some() {
            Err(given.mistake(
                &keys::SUBNET,
                "is missing beside subnet6 (the keys of leases are IPv4 subnets; leave both out to be given one)",
            ))
        } else if config.has_subnet() || config.store.is_some() {
            Ok(config)
        } else {
            Err(given.mistake(
                &keys::SUBNET,
                "is missing (give the pods of this node a subnet: --subnet 10.244.1.0/24; or let it lease one: --store etcd)",
            ))
        }
    }

    /// The same for people who look around: a subnet may be missing still, and the MACs that follow from it.
    ///
    /// # Errors
    /// As [`Config::understand`].
    pub fn draft(given: &Given, host: &Host) -> Result<Config, Mistake> {
        let subnet4 = given.value(&keys::SUBNET, subnet4)?;
        let subnet6 = given.value(&keys::SUBNET6, subnet6)?;
        let bind = bind(given)?;
        let underlay_mtu = given
            .value(&keys::UNDERLAY_MTU, |s| number(s, MIN_MTU4 + 50, u16::MAX))?
            .map_or_else(|| underlay_mtu(&bind, host), UnderlayMtu);
        let vtep_mac = given
            .value(&keys::VTEP_MAC, mac)?
            .unwrap_or_else(|| default_vtep_mac(subnet4, subnet6));
        let config = Config {
            node: node(given, host)?,
            subnet4,
            subnet6,
            peers: given
                .value(&keys::PEERS, text)?
                .map(|p| beside(&given.origin(&keys::PEERS), &p)),
            socket: given
                .value(&keys::SOCKET, text)?
                .map(|p| beside(&given.origin(&keys::SOCKET), &p)),
            state_dir: given
                .value(&keys::STATE_DIR, text)?
                .map(|p| beside(&given.origin(&keys::STATE_DIR), &p)),
            log: given
                .value(&keys::LOG, |s| {
                    s.parse().map_err(|_| {
                        format!("{s:?} is no level (use off, error, warn, info, debug or trace)")
                    })
                })?
                .unwrap_or(log::LevelFilter::Info),
            host_port: HostPortMode::understand(given)?,
            port: given.value(&keys::PORT, port)?.unwrap_or(Some(DEFAULT_PORT)),
            vni: given
                .value(&keys::VNI, |s| Vni::try_from(number(s, 0, MAX_VNI)?))?
                .unwrap_or(Vni::try_from(1).unwrap_or_else(|_| unreachable!("1 fits 24 bits"))),
            source_ports: given
                .value(&keys::SOURCE_PORTS, |s| number(s, 1, 64))?
                .unwrap_or(8),
            pod_mtu: pod_mtu(given, underlay_mtu, &bind, subnet6.is_some())?,
            underlay_mtu,
            vtep_mac,
            vtep_mac6: given.value(&keys::VTEP_MAC6, mac)?.unwrap_or(vtep_mac),
            dscp: given.value(&keys::DSCP, dscp)?.unwrap_or(Dscp::Inherit),
            tap: match switch(given, &keys::TAP)? {
                true => OffloadMode::On,
                false => OffloadMode::Off,
            },
            udp_gso: switch(given, &keys::UDP_GSO)?,
            udp_gro: switch(given, &keys::UDP_GRO)?,
            partial_checksums: switch(given, &keys::CHECKSUM)?,
            merge_acks: switch(given, &keys::ACKS)?,
            broadcast_per_second: given
                .value(&keys::BROADCAST, |s| number(s, 1, 10_000_000))?
                .unwrap_or(1000),
            linger: given
                .value(&keys::LINGER, |s| number(s, 0, 1000))?
                .map_or(LINGER, |us: u32| Duration::from_micros(us.into())),
            receive_buffer: buffer(given, &keys::RECEIVE_BUFFER)?,
            send_buffer: buffer(given, &keys::SEND_BUFFER)?,
            store: StoreConfig::understand(given)?,
            health: health(given)?,
            keep_pods: given.value(&keys::KEEP_PODS, on_or_off)?.unwrap_or(false),
            egress: EgressConfig::understand(given)?,
            dns: DnsConfig::understand(given)?,
            services: ServicesConfig::understand(given)?,
            metrics: given.value(&keys::METRICS, endpoint)?,
            bind,
        };
        Ok(config)
    }

    /// Whether it is more than a draft.
    pub fn has_subnet(&self) -> bool {
        self.subnet4.is_some() || self.subnet6.is_some()
    }

    /// The node's place in the pod network.
    pub fn local_node(&self) -> LocalNode {
        let mut local = LocalNode {
            name: self.node.clone(),
            subnet4: self.subnet4,
            subnet6: self.subnet6,
            vtep_mac: self.vtep_mac,
            vtep_mac6: self.vtep_mac6,
            gateway_mac: Mac::default(),
            vni: self.vni,
            pod_mtu: self.pod_mtu,
            underlay_mtu: self.underlay_mtu,
        };
        local.gateway_mac = match (local.gateway4(), local.gateway6()) {
            (Some(ip), _) => Mac::of_ipv4(ip),
            (None, Some(ip)) => Mac::of_ipv6(ip),
            (None, None) => Mac::default(),
        };
        local
    }

    /// The addresses to bind, with the port (0 for any).
    pub fn underlay(&self) -> Vec<SocketAddr> {
        let port = self.port.unwrap_or(0);
        self.bind.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }

    /// The port peers are reached at unless their entry says otherwise.
    pub fn peer_port(&self) -> u16 {
        self.port.unwrap_or(DEFAULT_PORT)
    }

    /// Whether any underlay address is IPv6, which costs 20 bytes more.
    pub fn over_ipv6(&self) -> bool {
        self.bind.iter().any(IpAddr::is_ipv6)
    }
}

fn node(given: &Given, host: &Host) -> Result<NodeName, Mistake> {
    match given.value(&keys::NODE, parsed)? {
        Some(name) => Ok(name),
        None => host.name.parse().map_err(|_| {
            given.mistake(
                &keys::NODE,
                format!("the host name {:?} is no node name (set --name)", host.name),
            )
        }),
    }
}

fn bind(given: &Given) -> Result<Vec<IpAddr>, Mistake> {
    let bind: Vec<IpAddr> = given
        .values(&keys::BIND, |s| {
            s.parse().map_err(|_| {
                format!("{s:?} is not an address (write 192.0.2.1 or 2001:db8::1; the port is overlay.port)")
            })
        })?
        .unwrap_or_else(|| vec![Ipv4Addr::UNSPECIFIED.into()]);
    let sixes = bind.iter().filter(|a| a.is_ipv6()).count();
    if bind.is_empty() || sixes > 1 || bind.len() - sixes > 1 {
        return Err(given.mistake(
            &keys::BIND,
            "one address is wanted, or one of each family (0.0.0.0 takes all of IPv4)",
        ));
    }
    if let Some(ip) = bind.iter().find(|a| a.is_multicast()) {
        return Err(given.mistake(&keys::BIND, format!("{ip} is multicast (name an own address)")));
    }
    Ok(bind)
}

/// The smallest MTU among the interfaces behind `bind`.
fn underlay_mtu(bind: &[IpAddr], host: &Host) -> UnderlayMtu {
    bind.iter()
        .filter_map(|ip| host.mtu_behind(*ip))
        .min()
        .map_or(ETHERNET, UnderlayMtu)
}

fn pod_mtu(given: &Given, underlay: UnderlayMtu, bind: &[IpAddr], six: bool) -> Result<PodMtu, Mistake> {
    let least = if six { MIN_MTU6 } else { MIN_MTU4 };
    let over_ipv6 = bind.iter().any(IpAddr::is_ipv6);
    let most = underlay.pod_mtu(over_ipv6);
    if most.0 < least {
        let what = format!(
            "{} leaves pods {} bytes, they need {least} (use a larger underlay, or IPv4 pods)",
            underlay.0, most.0
        );
        return Err(given.mistake(&keys::UNDERLAY_MTU, what));
    }
    let asked = given.value(&keys::POD_MTU, |s| number(s, least, u16::MAX))?;
    match asked.map(PodMtu) {
        Some(mtu) if mtu > most => {
            let what = format!(
                "{} does not fit an underlay of {} (VXLAN takes {}: use at most {})",
                mtu.0,
                underlay.0,
                underlay.0 - most.0,
                most.0
            );
            Err(given.mistake(&keys::POD_MTU, what))
        }
        asked => Ok(asked.unwrap_or(most)),
    }
}

fn switch(given: &Given, key: &Key) -> Result<bool, Mistake> {
    Ok(given.value(key, on_or_off)?.unwrap_or(true))
}

fn on_or_off(s: &str) -> Result<bool, String> {
    match s {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{s:?} is neither on nor off (write on or off)")),
    }
}

fn buffer(given: &Given, key: &Key) -> Result<usize, Mistake> {
    Ok(given
        .value(key, |s| number(s, 65_536, 1 << 30))?
        .unwrap_or(DEFAULT_BUFFER))
}

fn port(s: &str) -> Result<Option<u16>, String> {
    match s {
        "auto" => Ok(None),
        _ => number(s, 1, u16::MAX)
            .map(Some)
            .map_err(|e| format!("{e}, or \"auto\" for any free port")),
    }
}

fn endpoint(s: &str) -> Result<SocketAddr, String> {
    let at: SocketAddr = s
        .parse()
        .map_err(|_| format!("{s:?} is no address with a port (write 127.0.0.1:9472 or [::1]:9472)"))?;
    match at.ip().is_multicast() {
        true => Err(format!("{} is multicast (name an own address)", at.ip())),
        false => Ok(at),
    }
}

fn health(given: &Given) -> Result<Option<SocketAddr>, Mistake> {
    let ip = given.value(&keys::HEALTH_IP, |s| {
        let ip: IpAddr = s
            .parse()
            .map_err(|_| format!("{s:?} is no address (write 127.0.0.1 or ::1)"))?;
        match ip.is_multicast() {
            true => Err(format!("{ip} is multicast (name an own address)")),
            false => Ok(ip),
        }
    })?;
    let port = given.value(&keys::HEALTH_PORT, |s| number(s, 0, u16::MAX))?;
    let ip = ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
    Ok(port.filter(|p| *p != 0).map(|port| SocketAddr::new(ip, port)))
}

fn dscp(s: &str) -> Result<Dscp, String> {
    match s {
        "inherit" => Ok(Dscp::Inherit),
        _ => number(s, 0, 63)
            .map(Dscp::Fixed)
            .map_err(|e| format!("{e}, or \"inherit\"")),
    }
}

fn text(s: &str) -> Result<String, String> {
    if s.is_empty() {
        Err("is empty (name a file)".into())
    } else {
        Ok(s.into())
    }
}

fn parsed<T: FromStr<Err: Display>>(s: &str) -> Result<T, String> {
    s.parse().map_err(|e: T::Err| e.to_string())
}

fn number<T: FromStr + PartialOrd + Display>(s: &str, least: T, most: T) -> Result<T, String> {
    match s.parse() {
        Ok(n) if n >= least && n <= most => Ok(n),
        _ if s.parse::<i128>().is_err() => Err(format!("{s:?} is no number (use {least} to {most})")),
        _ => Err(format!("{s} is out of range (use {least} to {most})")),
    }
}

/// A path of the file is relative to the file, a path of a flag to the working directory.
fn beside(origin: &Origin, path: &str) -> PathBuf {
    let base = match origin {
        Origin::File(file, _) => file.parent().unwrap_or(Path::new("")),
        _ => Path::new(""),
    };
    let joined = base.join(path);
    std::path::absolute(&joined).unwrap_or(joined)
}

#[cfg(test)]
mod tests;
