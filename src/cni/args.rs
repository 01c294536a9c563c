//! `CNI_ARGS`: pairs `KEY=VALUE` between semicolons, as people and Kubernetes set them.

use super::call::wrong;
use super::error::CniError;
use super::json::shown;
use crate::model::{Mac, is_identifier};
use std::net::IpAddr;

/// What podwire takes of them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Args {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: Option<String>,
    /// `K8S_POD_NAME`.
    pub name: Option<String>,
    /// `K8S_POD_UID`.
    pub uid: Option<String>,
    /// `IP`, one or more with commas between.
    pub ips: Vec<IpAddr>,
    /// `MAC`.
    pub mac: Option<Mac>,
}

/// Another that runtimes set, and podwire does without.
const HARMLESS: &str = "K8S_POD_INFRA_CONTAINER_ID";

impl Args {
    /// Read them.
    ///
    /// # Errors
    /// Code 4: what is no pair, an address or a MAC that is none; a key podwire does not know, unless `IgnoreUnknown` says
    /// that there may be such.
    pub fn read(text: &str) -> Result<Args, CniError> {
        let bad = |what: &str| wrong("CNI_ARGS", text, what);
        let mut args = Args::default();
        let mut unknown: Vec<&str> = Vec::new();
        let mut ignore = false;
        for pair in text.split(';').filter(|p| !p.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| bad("write KEY=VALUE;KEY=VALUE"))?;
            let given = (!value.is_empty()).then(|| value.to_string());
            match key {
                "IgnoreUnknown" => ignore = ["1", "t", "T", "true", "TRUE", "True"].contains(&value),
                "K8S_POD_NAMESPACE" => args.namespace = given,
                "K8S_POD_NAME" => args.name = given,
                // It is of use, and nothing that a pod could not be attached without.
                "K8S_POD_UID" => args.uid = given.filter(|uid| is_identifier(uid)),
                "IP" => {
                    for part in value.split(',').filter(|p| !p.is_empty()) {
                        let ip = address(part).ok_or_else(|| bad("IP takes addresses, as 10.244.1.9"))?;
                        args.ips.push(ip);
                    }
                }
                "MAC" => {
                    let mac = given.map(|m| m.parse()).transpose();
                    args.mac = mac.map_err(|_| bad("MAC takes an address, as 0a:58:0a:f4:01:09"))?;
                }
                HARMLESS => {}
                _ => unknown.push(key),
            }
        }
        if !ignore && !unknown.is_empty() {
            let some: Vec<String> = unknown.iter().take(5).map(|k| shown(k)).collect();
            let what = format!(
                "podwire knows no {} (leave it out, or add IgnoreUnknown=1)",
                some.join(", ")
            );
            return Err(bad(&what));
        }
        Ok(args)
    }
}

/// An address, with or without the length of its network.
pub fn address(text: &str) -> Option<IpAddr> {
    let net: Option<ipnet::IpNet> = text.parse().ok();
    net.map(|n| n.addr()).or_else(|| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_read() {
        let args = Args::read(
            "IgnoreUnknown=true;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0;K8S_POD_UID=1;IP=10.1.0.9/24,fd00::9;\
             MAC=0a:58:00:00:00:09;Else=1;",
        )
        .unwrap();
        assert_eq!(args.namespace.as_deref(), Some("shop"));
        assert_eq!(args.name.as_deref(), Some("db-0"));
        assert_eq!(args.uid.as_deref(), Some("1"));
        assert_eq!(
            args.ips,
            ["10.1.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]
        );
        assert!(args.mac.is_some());
        assert_eq!(Args::read("").unwrap(), Args::default());
        assert_eq!(Args::read("K8S_POD_NAME=").unwrap(), Args::default());
    }

    #[test]
    fn unknown_keys_are_named_unless_they_may_be() {
        assert!(Args::read("A=1;B=2").unwrap_err().msg.contains("A, B"));
        assert!(Args::read("A=1;IgnoreUnknown=1").is_ok());
        assert!(Args::read("IgnoreUnknown=0;A=1").is_err());
        for bad in ["A", "IP=x", "MAC=x", ";=;x"] {
            assert!(Args::read(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_it(text in "[A-Za-z0-9=;,.:/_-]{0,60}") {
            let _ = Args::read(&text);
        }
    }
}
