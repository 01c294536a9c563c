//! The keys of `[store]`: where the cluster's leases are kept.

use super::given::Given;
use super::keys::{self, Key};
use super::{Config, beside, number, text};
use crate::control::etcd::Settings;
use crate::control::strict::Mistake;
use crate::daemon::links::Host;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const FLANNELS_SUBNET_FILE: &str = "/run/flannel/subnet.env";
/// Minutes; flannel's, and so are the bounds.
const RENEW_MARGIN: u16 = 60;
const MAX_RENEW_MARGIN: u16 = 1439;
/// A password is a line, not a book.
const MAX_PASSWORD: usize = 1024;

/// An etcd that keeps the cluster's leases.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// URLs of its members.
    pub endpoints: Vec<String>,
    /// What the network's keys begin with; without a slash at the end.
    pub prefix: String,
    /// Certificates to check etcd's against.
    pub ca_file: Option<PathBuf>,
    /// The node's certificate, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The node's user there.
    pub user: Option<String>,
    /// Where the user's password comes from.
    pub password: Option<Password>,
    /// How long before its expiry the lease is renewed.
    pub renew_margin: Duration,
    /// The published addresses, where they are given.
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub public_ip6: Option<Ipv6Addr>,
    /// Where `subnet.env` is written; none means the usual place.
    pub subnet_file: Option<PathBuf>,
    /// The MTU of pods is as the network's configuration says: nobody gave one.
    pub follow_mtu: bool,
}

/// Where a password comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// From a file.
    File(PathBuf),
    /// It was given.
    Given(String),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Password::File(path) => write!(f, "File({path:?})"),
            Password::Given(_) => f.write_str("Given(...)"),
        }
    }
}

impl Password {
    /// The password itself: the file's first line.
    ///
    /// # Errors
    /// A sentence that names the file.
    pub fn read(&self) -> Result<String, String> {
        match self {
            Password::Given(password) => Ok(password.clone()),
            Password::File(path) => {
                let at = path.display();
                let all = std::fs::read_to_string(path)
                    .map_err(|e| format!("{at}: {e} (store.password_file names a readable file)"))?;
                match all.lines().next().filter(|l| !l.is_empty()) {
                    Some(line) if line.len() <= MAX_PASSWORD => Ok(line.into()),
                    Some(_) => Err(format!("{at}: a password has at most {MAX_PASSWORD} bytes")),
                    None => Err(format!(
                        "{at}: the first line is to be the password, and is empty"
                    )),
                }
            }
        }
    }
}

impl StoreConfig {
    /// The store that was given; `None` when it is a file of peers.
    ///
    /// # Errors
    /// The first mistake: also a key that has no meaning with this kind of store.
    pub(super) fn understand(given: &Given) -> Result<Option<StoreConfig>, Mistake> {
        let etcd = given.value(&keys::STORE, |s| match s {
            "file" => Ok(false),
            "etcd" => Ok(true),
            _ => Err(format!("{s:?} is no kind of store (use file or etcd)")),
        })?;
        if etcd != Some(true) {
            let idle = keys::KEYS
                .iter()
                .find(|k| k.split().0 == Some("store") && **k != &keys::STORE && given.has(k));
            return match idle {
                Some(key) => {
                    Err(given.mistake(key, "has no meaning without etcd (set store.kind = \"etcd\")"))
                }
                None => Ok(None),
            };
        }
        for (key, why) in [
            (&keys::PEERS, "the peers come from etcd"),
            (
                &keys::VNI,
                "the VNI comes from the network's configuration in etcd",
            ),
            (
                &keys::PORT,
                "the port comes from the network's configuration in etcd",
            ),
        ] {
            if given.has(key) {
                return Err(given.mistake(key, format!("{why} (leave it out, or use --store file)")));
            }
        }
        let path = |key: &'static Key| -> Result<Option<PathBuf>, Mistake> {
            Ok(given.value(key, text)?.map(|p| beside(&given.origin(key), &p)))
        };
        let identity = match (path(&keys::CERT_FILE)?, path(&keys::KEY_FILE)?) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(given.mistake(&keys::CERT_FILE, "needs its key (set key_file too)"));
            }
            (None, Some(_)) => {
                return Err(given.mistake(&keys::KEY_FILE, "needs its certificate (set cert_file too)"));
            }
        };
        let user = given.value(&keys::USER, text)?;
        let password = match (path(&keys::PASSWORD_FILE)?, given.value(&keys::PASSWORD, text)?) {
            (Some(_), Some(_)) => {
                return Err(given.mistake(&keys::PASSWORD, "stands beside password_file (leave one out)"));
            }
            (Some(file), None) => Some(Password::File(file)),
            (None, word) => word.map(Password::Given),
        };
        match (&user, &password) {
            (Some(_), None) => {
                return Err(given.mistake(&keys::USER, "needs a password (set password_file too)"));
            }
            (None, Some(Password::File(_))) => {
                return Err(given.mistake(&keys::PASSWORD_FILE, "needs a user (set user too)"));
            }
            (None, Some(Password::Given(_))) => {
                return Err(given.mistake(&keys::PASSWORD, "needs a user (set user too)"));
            }
            _ => {}
        }
        let flannels = Settings::default();
        let endpoints = given.values(&keys::ENDPOINTS, |s| {
            Settings::check_endpoint(s).map_err(|e| e.to_string())?;
            Ok(s.into())
        })?;
        Ok(Some(StoreConfig {
            endpoints: endpoints.unwrap_or(flannels.endpoints),
            prefix: given.value(&keys::PREFIX, prefix)?.unwrap_or(flannels.prefix),
            ca_file: path(&keys::CA_FILE)?,
            identity,
            user,
            password,
            renew_margin: {
                let minutes = given.value(&keys::RENEW_MARGIN, |s| number(s, 1, MAX_RENEW_MARGIN))?;
                Duration::from_secs(60 * u64::from(minutes.unwrap_or(RENEW_MARGIN)))
            },
            public_ip: given.value(&keys::PUBLIC_IP, |s| own_address(s, "192.0.2.1"))?,
            public_ip6: given.value(&keys::PUBLIC_IP6, |s| own_address(s, "2001:db8::1"))?,
            subnet_file: path(&keys::SUBNET_FILE)?,
            follow_mtu: !given.has(&keys::POD_MTU),
        }))
    }
}

impl StoreConfig {
    /// Where `subnet.env` is, for a node with its admin socket at `socket`: root writes where flannel does.
    pub fn subnet_file(&self, socket: &Path) -> PathBuf {
        match &self.subnet_file {
            Some(path) => path.clone(),
            None if rustix::process::geteuid().is_root() => FLANNELS_SUBNET_FILE.into(),
            None => socket.with_extension("subnet.env"),
        }
    }
}

impl Config {
    /// Whether the published addresses follow the host's default route, so that they may change.
    pub fn is_published_by_route(&self) -> bool {
        let fixed = self.store.as_ref().is_none_or(|s| s.public_ip.is_some());
        !fixed && self.bind.iter().any(IpAddr::is_unspecified)
    }

    /// The addresses that peers are told to send to: those given, else those bound, else those of the default
    /// routes. `None` when this host has no IPv4 address for them.
    pub fn published(&self, host: &Host) -> Option<(Ipv4Addr, Option<Ipv6Addr>)> {
        let store = self.store.as_ref()?;
        let usable = |ip: &IpAddr| !ip.is_unspecified();
        let bound = |v6: bool| self.bind.iter().copied().find(|ip| ip.is_ipv6() == v6);
        let four = store
            .public_ip
            .or_else(|| match bound(false).filter(usable).or(host.default4) {
                Some(IpAddr::V4(ip)) => Some(ip),
                _ => None,
            });
        // Whoever binds no IPv6 cannot be reached there.
        let six = bound(true).and_then(|bound| Some(bound).filter(usable).or(host.default6));
        let six = store.public_ip6.or(match six {
            Some(IpAddr::V6(ip)) => Some(ip),
            _ => None,
        });
        Some((four?, six))
    }
}

fn prefix(s: &str) -> Result<String, String> {
    match s.trim_end_matches('/') {
        // Without it the keys of all others would be listed.
        "" => Err("is empty (flannel's is /coreos.com/network)".into()),
        s if s.len() > 256 => Err("has more than 256 bytes (choose a shorter one)".into()),
        s => Ok(s.into()),
    }
}

fn own_address<T: std::str::FromStr + Copy + Into<IpAddr>>(s: &str, example: &str) -> Result<T, String> {
    let ip: T = s
        .parse()
        .map_err(|_| format!("{s:?} is no such address (write one as {example})"))?;
    let any: IpAddr = ip.into();
    match any.is_unspecified() || any.is_multicast() {
        true => Err(format!(
            "peers cannot send to {any} (name an address of this host)"
        )),
        false => Ok(ip),
    }
}
