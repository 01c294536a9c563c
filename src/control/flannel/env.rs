//! `/run/flannel/subnet.env`: what flannel's CNI plugin and podwire's next start read.
//!
//! ```text
//! FLANNEL_NETWORK=10.61.0.0/16
//! FLANNEL_SUBNET=10.61.7.1/24
//! FLANNEL_MTU=1450
//! FLANNEL_IPMASQ=true
//! ```

use super::SubnetKey;
use ipnet::{Ipv4Net, Ipv6Net};
use std::fmt;
use std::str::FromStr;

/// Longest file that is looked at, in bytes.
const MAX_BYTES: usize = 64 * 1024;

/// The content of `subnet.env`. Subnets carry the gateway's address (`.1`), as flannel writes them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubnetEnv {
    /// The whole IPv4 network.
    pub network4: Option<Ipv4Net>,
    /// The node's IPv4 subnet, with the gateway's address.
    pub subnet4: Option<Ipv4Net>,
    /// The whole IPv6 network.
    pub network6: Option<Ipv6Net>,
    /// The node's IPv6 subnet, with the gateway's address.
    pub subnet6: Option<Ipv6Net>,
    /// MTU of pods.
    pub mtu: u16,
    /// Whether the node masquerades what leaves the network.
    pub ipmasq: bool,
}

/// What is wrong with a `subnet.env`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EnvError {
    /// Longer than any such file.
    #[error("it has {0} bytes ({MAX_BYTES} are the most)")]
    Long(usize),
    /// A line that is not understood.
    #[error("{key} is {says:?} ({what})")]
    Value {
        /// The variable.
        key: &'static str,
        /// What it says.
        says: String,
        /// What is wanted.
        what: &'static str,
    },
    /// A line is missing that flannel always writes.
    #[error("{0} is missing")]
    Missing(&'static str),
}

impl SubnetEnv {
    /// Read the file as a shell does that sources it: comments, quotes and `export` are known; other variables and
    /// lines mean nothing here. Of a list of networks the one with the subnet counts.
    ///
    /// # Errors
    /// The first variable that is wrong, or missing.
    pub fn parse(text: &str) -> Result<SubnetEnv, EnvError> {
        if text.len() > MAX_BYTES {
            return Err(EnvError::Long(text.len()));
        }
        let lines = Lines(text);
        let subnet4: Option<Ipv4Net> =
            lines.one("FLANNEL_SUBNET", "an IPv4 subnet is wanted, as 10.61.7.1/24")?;
        let subnet6: Option<Ipv6Net> = lines.one(
            "FLANNEL_IPV6_SUBNET",
            "an IPv6 subnet is wanted, as fd61:0:0:7::1/64",
        )?;
        let networks4: Vec<Ipv4Net> =
            lines.list("FLANNEL_NETWORK", "IPv4 networks are wanted, as 10.61.0.0/16")?;
        let networks6: Vec<Ipv6Net> =
            lines.list("FLANNEL_IPV6_NETWORK", "IPv6 networks are wanted, as fd61::/48")?;
        let holds4 = |n: &&Ipv4Net| subnet4.is_some_and(|s| n.contains(&s));
        let holds6 = |n: &&Ipv6Net| subnet6.is_some_and(|s| n.contains(&s));
        let mtu: Option<u16> = lines.one("FLANNEL_MTU", "a number of bytes is wanted")?;
        let ipmasq = lines.of("FLANNEL_IPMASQ").map(|says| match &*says {
            // Those Go's ParseBool knows.
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(wrong("FLANNEL_IPMASQ", &says, "true or false is wanted")),
        });
        Ok(SubnetEnv {
            network4: networks4
                .iter()
                .find(holds4)
                .or(networks4.first())
                .map(Ipv4Net::trunc),
            subnet4,
            network6: networks6
                .iter()
                .find(holds6)
                .or(networks6.first())
                .map(Ipv6Net::trunc),
            subnet6,
            mtu: mtu.ok_or(EnvError::Missing("FLANNEL_MTU"))?,
            // The first versions did not write it.
            ipmasq: ipmasq.transpose()?.unwrap_or(false),
        })
    }

    /// The subnet the file stands for: the node had it, and takes it again when it is free. `None` without an IPv4
    /// part, which cannot be leased, and for what is no subnet.
    pub fn key(&self) -> Option<SubnetKey> {
        let key = SubnetKey {
            net4: self.subnet4?.trunc(),
            net6: self.subnet6.map(|n| n.trunc()),
        };
        // By the rules for keys, which are stricter than those of this file.
        key.to_string().parse().ok()
    }
}

/// As flannel writes it, line by line.
impl fmt::Display for SubnetEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |key: &str, value: Option<&dyn fmt::Display>| match value {
            Some(value) => writeln!(f, "{key}={value}"),
            None => Ok(()),
        };
        line("FLANNEL_NETWORK", self.network4.as_ref().map(|v| v as _))?;
        line("FLANNEL_SUBNET", self.subnet4.as_ref().map(|v| v as _))?;
        line("FLANNEL_IPV6_NETWORK", self.network6.as_ref().map(|v| v as _))?;
        line("FLANNEL_IPV6_SUBNET", self.subnet6.as_ref().map(|v| v as _))?;
        line("FLANNEL_MTU", Some(&self.mtu))?;
        line("FLANNEL_IPMASQ", Some(&self.ipmasq))
    }
}

/// The lines of a file; of several for one variable the last counts.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn of(&self, key: &str) -> Option<String> {
        self.0.lines().rev().find_map(|line| assigned(line, key))
    }

    /// The values of a variable, which commas separate; none when it is missing or empty.
    fn list<T: FromStr>(&self, key: &'static str, what: &'static str) -> Result<Vec<T>, EnvError> {
        let says = self.of(key).unwrap_or_default();
        let parts = says.split(',').map(str::trim).filter(|p| !p.is_empty());
        let read = parts.map(|p| p.parse().map_err(|_| wrong(key, &says, what)));
        read.collect()
    }

    fn one<T: FromStr>(&self, key: &'static str, what: &'static str) -> Result<Option<T>, EnvError> {
        let mut values = self.list(key, what)?;
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(wrong(key, &self.of(key).unwrap_or_default(), what)),
        }
    }
}

fn wrong(key: &'static str, says: &str, what: &'static str) -> EnvError {
    EnvError::Value {
        key,
        // As much of it as a message needs.
        says: says.chars().take(40).collect(),
        what,
    }
}

/// What `line` assigns to `key`: without `export`, quotes and a comment behind it.
fn assigned(line: &str, key: &str) -> Option<String> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line);
    let (name, value) = line.split_once('=')?;
    if name.trim() != key {
        return None;
    }
    let value = value.trim();
    let quoted = ['"', '\'']
        .iter()
        .find_map(|q| value.strip_prefix(*q)?.split_once(*q));
    let bare = || match value.find(" #").or(value.find("\t#")) {
        Some(comment) => &value[..comment],
        None => value,
    };
    Some(quoted.map_or_else(bare, |(inside, _)| inside).trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FOUR: &str =
        "FLANNEL_NETWORK=10.61.0.0/16\nFLANNEL_SUBNET=10.61.7.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    const DUAL: &str = "FLANNEL_NETWORK=10.61.0.0/16\nFLANNEL_SUBNET=10.61.7.1/24\nFLANNEL_IPV6_NETWORK=fd61::/48\nFLANNEL_IPV6_SUBNET=fd61:0:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";
    const SIX: &str = "FLANNEL_IPV6_NETWORK=fd61::/48\nFLANNEL_IPV6_SUBNET=fd61:0:0:7::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n";

    fn key(text: &str) -> Option<String> {
        SubnetEnv::parse(text).unwrap().key().map(|k| k.to_string())
    }

    #[test]
    fn flannels_files_are_read_and_written() {
        for text in [FOUR, DUAL, SIX] {
            assert_eq!(SubnetEnv::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(key(FOUR).as_deref(), Some("10.61.7.0-24"));
        assert_eq!(key(DUAL).as_deref(), Some("10.61.7.0-24&fd61:0:0:7::-64"));
        assert_eq!(key(SIX), None);
        assert_eq!(key(&FOUR.replace("7.1/24", "7.1/32")), None, "no key for a /32");
    }

    #[test]
    fn reading_is_tolerant() {
        let same = [
            FOUR.replace('\n', "\r\n"),
            format!("# flannel\n\nSHELL=/bin/sh\nnonsense\n=\n{FOUR}"),
            format!("FLANNEL_MTU=9000\n{FOUR}"),
            FOUR.replace("FLANNEL_", "  export FLANNEL_").replace('=', " = "),
            FOUR.replace("10.61.7.1/24", "\"10.61.7.1/24\"")
                .replace("1450", "'1450' # of pods"),
            FOUR.replace("true", "1\t# flanneld does it")
                .replace("1450", "1450 # less VXLAN"),
            FOUR.replace("10.61.0.0/16", "10.60.0.0/16, 10.61.3.0/16,"),
            format!("{FOUR}FLANNEL_IPV6_SUBNET=\nFLANNEL_IPV6_NETWORK=\"\"\n"),
        ];
        for text in same {
            assert_eq!(
                SubnetEnv::parse(&text).map(|e| e.to_string()).as_deref(),
                Ok(FOUR),
                "{text}"
            );
        }
        let first = SubnetEnv::parse("FLANNEL_SUBNET=10.14.96.1/20\nFLANNEL_MTU=1472\n").unwrap();
        assert_eq!((first.network4, first.ipmasq), (None, false));
        assert_eq!(first.key().unwrap().to_string(), "10.14.96.0-20");
        let other = SubnetEnv::parse("FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_MTU=1\n").unwrap();
        assert_eq!(other.network4, Some("10.1.0.0/16".parse().unwrap()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (String::new(), "FLANNEL_MTU is missing"),
            (
                FOUR.replace("7.1/24", "7.1"),
                "FLANNEL_SUBNET is \"10.61.7.1\" (an IPv4 subnet",
            ),
            (
                FOUR.replace("7.1/24", "7.1/24,10.61.8.1/24"),
                "FLANNEL_SUBNET is \"10.61.7.1/24,10.61.8.1/24\"",
            ),
            (
                FOUR.replace("10.61.0.0/16", "10.61.0.0/99"),
                "FLANNEL_NETWORK is \"10.61.0.0/99\" (IPv4 networks",
            ),
            (FOUR.replace("10.61.0.0/16", "fd61::/48"), "FLANNEL_NETWORK is"),
            (
                SIX.replace("7::1/64", "7::1"),
                "FLANNEL_IPV6_SUBNET is \"fd61:0:0:7::1\" (an IPv6 subnet",
            ),
            (
                FOUR.replace("1450", "70000"),
                "FLANNEL_MTU is \"70000\" (a number",
            ),
            (FOUR.replace("1450", "-1"), "FLANNEL_MTU is \"-1\""),
            (FOUR.replace("1450", ""), "FLANNEL_MTU is missing"),
            (
                FOUR.replace("true", "yes"),
                "FLANNEL_IPMASQ is \"yes\" (true or false",
            ),
            (
                FOUR.replace("true", "\u{1b}[2J"),
                "FLANNEL_IPMASQ is \"\\u{1b}[2J\"",
            ),
            ("\n".repeat(70_000), "it has 70000 bytes (65536 are the most)"),
        ];
        for (text, want) in cases {
            let told = SubnetEnv::parse(&text).unwrap_err().to_string();
            assert!(told.starts_with(want), "{text}\n  gave {told}\n  not  {want}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(
            four in proptest::option::of((any::<u32>(), 0u8..=32)),
            six in proptest::option::of((any::<u128>(), 0u8..=128)),
            mtu: u16,
            ipmasq: bool,
        ) {
            let subnet4 = four.map(|(ip, len)| Ipv4Net::new(ip.into(), len).unwrap());
            let subnet6 = six.map(|(ip, len)| Ipv6Net::new(ip.into(), len).unwrap());
            let env = SubnetEnv {
                network4: subnet4.map(|n| n.supernet().unwrap_or(n.trunc())),
                subnet4,
                network6: subnet6.map(|n| n.supernet().unwrap_or(n.trunc())),
                subnet6,
                mtu,
                ipmasq,
            };
            prop_assert_eq!(SubnetEnv::parse(&env.to_string()), Ok(env.clone()));
            let _ = env.key();
        }

        #[test]
        fn no_file_panics(text in "(?s)(FLANNEL_(NETWORK|SUBNET|MTU|IPMASQ)[= ]{0,2}[\"'#,./0-9 ]{0,12}\n?){0,6}.{0,20}") {
            if let Ok(env) = SubnetEnv::parse(&text) {
                prop_assert_eq!(SubnetEnv::parse(&env.to_string()), Ok(env));
            }
        }
    }
}
