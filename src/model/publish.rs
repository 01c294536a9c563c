//! Published ports: ports of the host that lead to ports of a pod, as people write them and as sockets.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// Most ports of one range.
pub const MAX_RANGE: u16 = 1024;

/// Transport protocol of a published port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// Ports of the host that lead to as many ports of a pod: `[HOSTIP:]HOSTPORT[-LAST]:PODPORT[-LAST][/tcp|/udp]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortMapping {
    /// The address on the host; its loopback, in each family the pod has, when none.
    pub host: Option<IpAddr>,
    /// The first port on the host, not zero.
    pub first: u16,
    /// The pod's first port, not zero.
    pub pod: u16,
    /// How many, from 1 to [`MAX_RANGE`].
    pub count: u16,
    /// Of which protocol.
    pub protocol: Protocol,
}

/// One port of the host: the name of a published socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct HostPort {
    /// Its protocol.
    pub protocol: Protocol,
    /// Address and port.
    pub at: SocketAddr,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.at, self.protocol)
    }
}

impl HostPort {
    /// Whether the kernel would give both to different sockets: the same port of one address, or one of them is at
    /// every address of its family.
    pub fn collides(&self, other: &HostPort) -> bool {
        let (a, b) = (self.at.ip(), other.at.ip());
        self.protocol == other.protocol
            && self.at.port() == other.at.port()
            && a.is_ipv4() == b.is_ipv4()
            && (a == b || a.is_unspecified() || b.is_unspecified())
    }
}

/// The text is no port mapping.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} publishes no port: {why} (write [HOSTIP:]HOSTPORT[-LAST]:PODPORT[-LAST][/tcp|/udp])")]
pub struct PortMappingError {
    text: String,
    why: String,
}

impl PortMapping {
    /// Its ports: the host's, and the pod's.
    pub fn ports(&self) -> impl Iterator<Item = (u16, u16)> + use<> {
        let (first, pod) = (self.first, self.pod);
        // Both ranges end at 65535 at the latest.
        (0..self.count).map(move |n| (first.saturating_add(n), pod.saturating_add(n)))
    }

    fn parse(text: &str) -> Result<PortMapping, String> {
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, other)) => return Err(format!("{other:?} is neither tcp nor udp")),
        };
        let (host, rest) = host(rest)?;
        let (on_host, of_pod) = match rest.split_once(':') {
            None => (rest, rest),
            Some((_, "")) => return Err("the pod's port is missing".into()),
            Some(both) => both,
        };
        let (first, count) = range(on_host)?;
        let (pod, pods) = range(of_pod)?;
        if count != pods {
            return Err(format!(
                "{on_host} is {count} ports and {of_pod} is {pods} (both ranges must be equally long)"
            ));
        }
        let count = u16::try_from(count)
            .ok()
            .filter(|n| *n <= MAX_RANGE)
            .ok_or_else(|| format!("{on_host} is {count} ports, and a range has {MAX_RANGE} at most"))?;
        Ok(PortMapping {
            host,
            first,
            pod,
            count,
            protocol,
        })
    }
}

/// The address in front, if there is one, and what follows.
fn host(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    let address = |s: &str| -> Result<IpAddr, String> {
        let ip: IpAddr = s.parse().map_err(|_| format!("{s:?} is no IP address"))?;
        let mapped = matches!(ip, IpAddr::V6(six) if six.to_ipv4_mapped().is_some());
        if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) || mapped {
            return Err(format!("{ip} cannot be listened at"));
        }
        Ok(ip)
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (ip, rest) = rest
            .split_once(']')
            .ok_or("the address's ']' is missing".to_string())?;
        let ip = address(ip)?;
        if !ip.is_ipv6() {
            return Err(format!("only IPv6 addresses are in brackets, and {ip} is none"));
        }
        let rest = rest.strip_prefix(':').filter(|r| !r.is_empty());
        return Ok((Some(ip), rest.ok_or("the host's port is missing".to_string())?));
    }
    match text.split(':').count() {
        0 | 1 => Ok((None, text)),
        2 => match text.split_once(':') {
            // 127.0.0.1:8080 is the same port of the pod.
            Some((ip, rest)) if ip.contains('.') => Ok((Some(address(ip)?), rest)),
            _ => Ok((None, text)),
        },
        3 => match text.split_once(':') {
            Some((ip, rest)) => Ok((Some(address(ip)?), rest)),
            None => Ok((None, text)),
        },
        _ => Err("it has too many colons (an IPv6 address is written in brackets, as [::1]:8080:80)".into()),
    }
}

/// A port, or a range of them: the first, and how many.
fn range(text: &str) -> Result<(u16, u32), String> {
    let port = |s: &str| match s {
        "" => Err(format!("a port is missing in {text:?}")),
        _ if !s.bytes().all(|b| b.is_ascii_digit()) => Err(format!("{s:?} is no port")),
        _ => match s.parse::<u16>() {
            Ok(0) => Err("port 0 is none (use 1 to 65535)".into()),
            Ok(port) => Ok(port),
            Err(_) => Err(format!("there is no port {s} (use 1 to 65535)")),
        },
    };
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((first, last)) => (port(first)?, port(last)?),
    };
    if last < first {
        return Err(format!("the range {text} ends before it begins"));
    }
    Ok((first, u32::from(last - first) + 1))
}

impl FromStr for PortMapping {
    type Err = PortMappingError;

    fn from_str(s: &str) -> Result<PortMapping, PortMappingError> {
        PortMapping::parse(s).map_err(|why| PortMappingError { text: s.into(), why })
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host {
            None => {}
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
        }
        let more = self.count.saturating_sub(1);
        match more {
            0 => write!(f, "{}:{}", self.first, self.pod)?,
            _ => write!(
                f,
                "{}-{}:{}-{}",
                self.first,
                self.first.saturating_add(more),
                self.pod,
                self.pod.saturating_add(more)
            )?,
        }
        write!(f, "/{}", self.protocol)
    }
}

impl fmt::Debug for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PortMapping {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PortMapping {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<PortMapping, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_are_understood() {
        for (text, canonical) in [
            ("8080:80", "8080:80/tcp"),
            ("8080", "8080:8080/tcp"),
            ("53:5353/udp", "53:5353/udp"),
            ("0.0.0.0:8080:80/tcp", "0.0.0.0:8080:80/tcp"),
            ("127.0.0.1:8080", "127.0.0.1:8080:8080/tcp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
            ("[::]:8080", "[::]:8080:8080/tcp"),
            ("8000-8009:9000-9009", "8000-8009:9000-9009/tcp"),
            ("8000-8009/udp", "8000-8009:8000-8009/udp"),
            ("65535:65535", "65535:65535/tcp"),
            ("7-7:8-8", "7:8/tcp"),
        ] {
            let mapping: PortMapping = text.parse().unwrap();
            assert_eq!(mapping.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(mapping));
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, why) in [
            ("", "missing"),
            (":80", "missing"),
            ("8080:", "pod's port is missing"),
            ("8080:80/sctp", "\"sctp\" is neither tcp nor udp"),
            ("8080:80/TCP", "neither"),
            ("0:80", "port 0"),
            ("80:0", "port 0"),
            ("65536:80", "no port 65536"),
            ("http:80", "\"http\" is no port"),
            ("+1:80", "is no port"),
            ("8000-8009:80", "10 ports and 80 is 1"),
            ("8000-8009:80-88", "equally long"),
            ("8009-8000", "ends before"),
            ("1-1025", "1024 at most"),
            ("1-65535", "1024 at most"),
            ("-5", "missing"),
            ("::1:8080:80", "brackets"),
            ("localhost:8080:80", "\"localhost\" is no IP address"),
            ("[::1", "']' is missing"),
            ("[::1]", "host's port is missing"),
            ("[::1]8080", "host's port is missing"),
            ("[127.0.0.1]:80:80", "only IPv6"),
            ("224.0.0.1:80:80", "cannot be listened at"),
            ("[::ffff:127.0.0.1]:80:80", "cannot be listened at"),
            ("127.0.0.1::80", "missing"),
        ] {
            let said = text.parse::<PortMapping>().unwrap_err().to_string();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn sockets_collide_as_in_the_kernel() {
        let at = |at: &str, protocol| HostPort {
            protocol,
            at: at.parse().unwrap(),
        };
        let any = at("0.0.0.0:80", Protocol::Tcp);
        let one = at("127.0.0.1:80", Protocol::Tcp);
        assert!(any.collides(&one) && one.collides(&any) && one.collides(&one));
        for other in [
            at("127.0.0.2:80", Protocol::Tcp),
            at("127.0.0.1:81", Protocol::Tcp),
            at("127.0.0.1:80", Protocol::Udp),
            at("[::]:80", Protocol::Tcp),
        ] {
            assert!(!one.collides(&other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,40}") {
            let _ = text.parse::<PortMapping>();
        }

        #[test]
        fn nor_does_one_that_looks_right(text in r"(\[?[0-9a-f:.]{0,12}\]?:)?[0-9]{0,6}-?[0-9]{0,6}:?[0-9]{0,6}-?[0-9]{0,6}(/tcp|/udp|/x)?") {
            if let Ok(mapping) = text.parse::<PortMapping>() {
                prop_assert_eq!(mapping.to_string().parse(), Ok(mapping));
                prop_assert_eq!(mapping.ports().count(), usize::from(mapping.count));
                prop_assert!(mapping.ports().all(|(host, pod)| host > 0 && pod > 0));
            }
        }

        #[test]
        fn what_is_written_is_read_back(
            host in proptest::option::of(any::<IpAddr>()),
            first in 1..=u16::MAX,
            pod in 1..=u16::MAX,
            count in 1..=MAX_RANGE,
            udp in any::<bool>(),
        ) {
            let count = count.min(u16::MAX - first + 1).min(u16::MAX - pod + 1);
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let mapping = PortMapping { host, first, pod, count, protocol };
            match mapping.to_string().parse::<PortMapping>() {
                Ok(read) => prop_assert_eq!(read, mapping),
                Err(e) => prop_assert!(e.to_string().contains("cannot be listened at")),
            }
        }
    }
}
