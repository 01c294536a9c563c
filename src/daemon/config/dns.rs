//! The configuration of a node's DNS.

use super::given::Given;
use super::{beside, keys, on_or_off, text};
use crate::control::strict::Mistake;
use crate::dns::entry::{self, Entry};
use crate::dns::forward::MAX_SERVERS;
use crate::dns::name::Fqdn;
use crate::dns::resolv::PORT;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// Most addresses where others may ask.
const MAX_LISTEN: usize = 16;

/// How a node answers names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// Where others than pods may ask.
    pub listen: Vec<SocketAddr>,
    /// Resolvers to ask; none means those of the file.
    pub upstream: Option<Vec<SocketAddr>>,
    /// The file that names the host's resolvers.
    pub resolv_conf: PathBuf,
    /// Domain of the pods' names.
    pub domain: Fqdn,
    /// Names that people gave.
    pub records: Vec<Entry>,
}

impl DnsConfig {
    /// Give meaning to what was given; none when it is off.
    ///
    /// # Errors
    /// The first mistake.
    pub(super) fn understand(given: &Given) -> Result<Option<DnsConfig>, Mistake> {
        let listen = given.values(&keys::DNS_LISTEN, own)?.unwrap_or_default();
        if listen.len() > MAX_LISTEN {
            let what = format!(
                "{} addresses are too many (use {MAX_LISTEN} at most)",
                listen.len()
            );
            return Err(given.mistake(&keys::DNS_LISTEN, what));
        }
        let upstream = given
            .values(&keys::DNS_UPSTREAM, server)?
            .filter(|all| !all.is_empty());
        if upstream.as_ref().is_some_and(|all| all.len() > MAX_SERVERS) {
            let what = format!("more than {MAX_SERVERS} resolvers are not asked (leave some out)");
            return Err(given.mistake(&keys::DNS_UPSTREAM, what));
        }
        let records = given
            .values(&keys::DNS_RECORDS, |s| {
                s.parse::<Entry>().map_err(|e| e.to_string())
            })?
            .unwrap_or_default();
        entry::check(&records).map_err(|e| given.mistake(&keys::DNS_RECORDS, e.to_string()))?;
        let domain = given.value(&keys::DNS_DOMAIN, domain)?;
        let resolv_conf = given
            .value(&keys::DNS_RESOLV_CONF, text)?
            .map(|p| beside(&given.origin(&keys::DNS_RESOLV_CONF), &p));
        let on = given.value(&keys::DNS, on_or_off)?.unwrap_or(true);
        let config = DnsConfig {
            listen,
            upstream,
            resolv_conf: resolv_conf.unwrap_or_else(|| "/etc/resolv.conf".into()),
            domain: domain.unwrap_or_else(default_domain),
            records,
        };
        Ok(on.then_some(config))
    }
}

pub(super) fn domain(s: &str) -> Result<Fqdn, String> {
    let hyphen = |label: &str| label.starts_with('-') || label.ends_with('-');
    if s.split('.').any(hyphen) {
        return Err(format!(
            "{s:?} is no domain (a label neither begins nor ends with '-')"
        ));
    }
    s.parse::<Fqdn>().map_err(|e| e.to_string())
}

fn default_domain() -> Fqdn {
    Fqdn::of_labels(["pod"]).unwrap_or_else(|| unreachable!("a short label is a name"))
}

/// `ADDR` or `ADDR:PORT`, `[V6]:PORT`.
fn server(s: &str) -> Result<SocketAddr, String> {
    let bare = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).unwrap_or(s);
    let at = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, PORT),
        Err(_) => s.parse().map_err(|_| {
            format!(
                "{s:?} is no address (write 192.0.2.53, 192.0.2.53:5353, 2001:db8::53 or [2001:db8::53]:5353)"
            )
        })?,
    };
    match at.ip().is_multicast() || at.ip().is_unspecified() || at.port() == 0 {
        true => Err(format!("{at} cannot be asked (name the address of a resolver)")),
        false => Ok(at),
    }
}

/// The same for an own address. Of an unspecified one an answer could leave from another than was asked.
fn own(s: &str) -> Result<SocketAddr, String> {
    let any = |e| match s.parse::<SocketAddr>() {
        Ok(at) if at.port() == 0 && !at.ip().is_unspecified() && !at.ip().is_multicast() => Ok(at),
        _ => Err(e),
    };
    server(s).or_else(any).map_err(|e| {
        let is_any = |ip: IpAddr| ip.is_unspecified();
        let unspecified =
            s.parse::<SocketAddr>().is_ok_and(|at| is_any(at.ip())) || s.parse().is_ok_and(is_any);
        match unspecified {
            true => format!("{s} is every address (name those that shall answer, one by one)"),
            false => e,
        }
    })
}
