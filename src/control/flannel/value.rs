//! The value of a lease: who has the subnet, and how frames get there.
//!
//! ```json
//! {"PublicIP":"198.18.0.11","PublicIPv6":null,"BackendType":"vxlan",
//!  "BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}
//! ```

use super::json::Json;
use crate::model::{Mac, NodeName};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a node says of itself in its lease, as far as it is a VXLAN node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseValue {
    /// Where its VTEP is reached over IPv4.
    pub public_ip: Ipv4Addr,
    /// Where its VTEP is reached over IPv6, for IPv6 pods.
    pub public_ip6: Option<Ipv6Addr>,
    /// VNI and MAC of its VTEP. The VNI is zero when the value has none, as old versions write it; flannel never
    /// looks at it.
    pub vtep: (u32, Mac),
    /// The same of the VTEP for IPv6 pods.
    pub vtep6: Option<(u32, Mac)>,
    /// What a podwire node adds under a key of its own, which flannel ignores.
    pub podwire: Option<Abilities>,
}

/// What a podwire node tells other podwire nodes: options are used when both sides have them, never assumed.
///
/// Anybody can write such a value: what is read has been cut to size, and goes into tables and logs as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Abilities {
    /// The node's name; empty when it has none that a node may have.
    pub name: String,
    /// Identity of the node, kept on its disk: the same after a restart and with another address.
    pub id: String,
    /// Version of its program.
    pub version: String,
    /// Options of the wire it can do. Those unknown here are kept and ignored.
    pub wire: Vec<String>,
}

/// Why a value is not one of a VXLAN node. It is skipped and named, never fatal.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ValueError {
    /// Not the JSON of a lease.
    #[error("{0}")]
    Malformed(String),
    /// Another backend than VXLAN, as flannel skips it too.
    #[error("its BackendType is {0:?}, not \"vxlan\"")]
    Backend(String),
}

impl Abilities {
    /// Longest text, in bytes.
    pub const MAX_TEXT: usize = 64;
    /// Most options of the wire.
    pub const MAX_WIRE: usize = 32;

    /// What of `json` is of use: texts that are too long or not plain ASCII count as empty, options like that and
    /// those too many as absent.
    fn of(json: &Json) -> Abilities {
        let text = |key| json.field(key).and_then(plain).unwrap_or_default();
        let wire = match json.field("wire") {
            Some(Json::List(options)) => options.iter().filter_map(plain).take(Self::MAX_WIRE).collect(),
            _ => Vec::new(),
        };
        Abilities {
            name: Some(text("name"))
                .filter(|n| n.parse::<NodeName>().is_ok())
                .unwrap_or_default(),
            id: text("id"),
            version: text("version"),
            wire,
        }
    }
}

impl LeaseValue {
    /// Read the value of a subnet's key. A VTEP for IPv6 pods is there when both its address and its data are: what
    /// a dual-stack lease lacks of it leaves the IPv4 part as it is.
    ///
    /// # Errors
    /// Why it is not the value of a VXLAN node.
    pub fn read(bytes: &[u8]) -> Result<LeaseValue, ValueError> {
        let json = Json::read(bytes).map_err(ValueError::Malformed)?;
        let Json::Object(_) = json else {
            return Err(ValueError::Malformed(format!(
                "{json} stands where an object is wanted"
            )));
        };
        match json.field("BackendType") {
            Some(Json::Text(t)) if t == "vxlan" => {}
            Some(Json::Text(t)) => return Err(ValueError::Backend(t.chars().take(32).collect())),
            Some(other) => return Err(wrong("BackendType", other, "text is wanted")),
            // flannel's udp backend leaves it away.
            None => return Err(ValueError::Backend(String::new())),
        }
        let public_ip6 = json.field("PublicIPv6").map(public_ip6).transpose()?;
        let vtep6 = json
            .field("BackendV6Data")
            .map(|data| vtep("BackendV6Data", data));
        let vtep6 = vtep6.transpose()?;
        let both6 = public_ip6.is_some() && vtep6.is_some();
        Ok(LeaseValue {
            public_ip: public_ip(json.field("PublicIP").ok_or_else(|| missing("PublicIP"))?)?,
            public_ip6: public_ip6.filter(|_| both6),
            vtep: vtep(
                "BackendData",
                json.field("BackendData").ok_or_else(|| missing("BackendData"))?,
            )?,
            vtep6: vtep6.filter(|_| both6),
            podwire: json
                .field("Podwire")
                .filter(|own| matches!(own, Json::Object(_)))
                .map(Abilities::of),
        })
    }

    /// The bytes flannel would write, and our own key behind them.
    pub fn write(&self) -> Vec<u8> {
        /// In the order of flannel's fields. There is no IPv6 address without `null` for it.
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Value<'a> {
            #[serde(rename = "PublicIP")]
            public_ip: Ipv4Addr,
            #[serde(rename = "PublicIPv6")]
            public_ip6: Option<Ipv6Addr>,
            backend_type: &'a str,
            backend_data: Vtep,
            #[serde(rename = "BackendV6Data", skip_serializing_if = "Option::is_none")]
            backend_v6_data: Option<Vtep>,
            #[serde(skip_serializing_if = "Option::is_none")]
            podwire: Option<&'a Abilities>,
        }
        #[derive(Serialize)]
        struct Vtep {
            #[serde(rename = "VNI")]
            vni: u32,
            #[serde(rename = "VtepMAC")]
            mac: Mac,
        }
        let vtep = |(vni, mac): (u32, Mac)| Vtep { vni, mac };
        let value = Value {
            public_ip: self.public_ip,
            public_ip6: self.public_ip6,
            backend_type: "vxlan",
            backend_data: vtep(self.vtep),
            backend_v6_data: self.vtep6.map(vtep),
            podwire: self.podwire.as_ref(),
        };
        // Text, numbers and lists in memory cannot fail.
        serde_json::to_vec(&value).unwrap_or_default()
    }
}

fn wrong(key: &str, says: &Json, what: &str) -> ValueError {
    ValueError::Malformed(format!("its {key} is {says} ({what})"))
}

fn missing(key: &str) -> ValueError {
    ValueError::Malformed(format!("its {key} is missing"))
}

/// Text for tables: printable ASCII without blanks, at most [`Abilities::MAX_TEXT`] bytes.
fn plain(json: &Json) -> Option<String> {
    let text = json.text()?;
    let good = text.len() <= Abilities::MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic());
    good.then(|| text.to_string()).filter(|t| !t.is_empty())
}

/// An address frames can be sent to. Loopback is one: laboratories have nodes there.
fn public_ip(json: &Json) -> Result<Ipv4Addr, ValueError> {
    // Go takes the form ::ffff:192.0.2.1 too.
    let ip = match json.text().and_then(|t| t.parse().ok()) {
        Some(IpAddr::V4(ip)) => Some(ip),
        Some(IpAddr::V6(ip)) => ip.to_ipv4_mapped(),
        None => None,
    };
    ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast())
        .ok_or_else(|| wrong("PublicIP", json, "an IPv4 address of the node is wanted"))
}

fn public_ip6(json: &Json) -> Result<Ipv6Addr, ValueError> {
    let ip: Option<Ipv6Addr> = json.text().and_then(|t| t.parse().ok());
    ip.filter(|ip| !ip.is_unspecified() && !ip.is_multicast() && ip.to_ipv4_mapped().is_none())
        .ok_or_else(|| wrong("PublicIPv6", json, "an IPv6 address of the node is wanted"))
}

/// VNI and MAC of a VTEP. A missing VNI is zero, as it is in Go.
fn vtep(key: &str, json: &Json) -> Result<(u32, Mac), ValueError> {
    let vni = match json.field("VNI") {
        None => 0,
        Some(Json::Whole(n)) if *n < 1 << 24 => *n as u32,
        Some(other) => return Err(wrong(&format!("{key}.VNI"), other, "0 to 16777215 is wanted")),
    };
    let mac = json
        .field("VtepMAC")
        .ok_or_else(|| missing(&format!("{key}.VtepMAC")))?;
    let of_host = |mac: &Mac| !mac.is_multicast() && *mac != Mac::default();
    match json
        .field("VtepMAC")
        .and_then(Json::text)
        .and_then(mac_of)
        .filter(of_host)
    {
        Some(mac) => Ok((vni, mac)),
        None => Err(wrong(
            &format!("{key}.VtepMAC"),
            mac,
            "the MAC of one host is wanted",
        )),
    }
}

/// A MAC in one of the three forms Go reads: `0e:5a:91:2c:07:d3`, `0e-5a-91-2c-07-d3`, `0e5a.912c.07d3`.
fn mac_of(text: &str) -> Option<Mac> {
    let colons = match text.as_bytes() {
        [_, _, b'-', ..] if !text.contains(':') => text.replace('-', ":"),
        [_, _, _, _, b'.', _, _, _, _, b'.', _, _, _, _] => {
            let digits: Vec<char> = text.chars().filter(|c| *c != '.').collect();
            let octets: Vec<String> = digits.chunks(2).map(String::from_iter).collect();
            octets.join(":")
        }
        _ => text.into(),
    };
    colons.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FLANNEL: &str = r#"{"PublicIP":"198.18.0.11","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#;
    const DUAL: &str = r#"{"PublicIP":"198.18.0.11","PublicIPv6":"2001:db8:1::11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d4"}}"#;
    const OURS: &str = r#"{"PublicIP":"198.18.0.12","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":7,"VtepMAC":"0e:57:0a:3d:07:00"},"Podwire":{"name":"n2","id":"6f1c","version":"0.1.0","wire":["remcsum","x"]}}"#;

    fn read(text: &str) -> Result<LeaseValue, String> {
        LeaseValue::read(text.as_bytes()).map_err(|e| e.to_string())
    }

    #[test]
    fn flannels_bytes_are_read_and_written() {
        for text in [FLANNEL, DUAL, OURS] {
            let value = read(text).unwrap();
            assert_eq!(String::from_utf8(value.write()).unwrap(), text);
        }
        let dual = read(DUAL).unwrap();
        assert_eq!(dual.public_ip6, Some("2001:db8:1::11".parse().unwrap()));
        assert_eq!(dual.vtep6, Some((1, "0e:5a:91:2c:07:d4".parse().unwrap())));
        let ours = read(OURS).unwrap().podwire.unwrap();
        assert_eq!((ours.name.as_str(), ours.wire.len()), ("n2", 2));
    }

    /// What Go's decoder takes for the same value as `FLANNEL`.
    #[test]
    fn reading_is_tolerant_as_gos_decoder_is() {
        let same = [
            // Without the key that newer versions write; keys in any case; keys nobody knows.
            r#"{"PublicIP":"198.18.0.11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#,
            r#" { "publicip" : "198.18.0.11", "BACKENDTYPE":"vxlan", "New":{"a":[1,{"b":null}]}, "backendData":{"vni":1,"vtepmac":"0E:5A:91:2C:07:D3","Gbp":true} } "#,
            // The last one counts, whatever its case.
            r#"{"PublicIP":"192.0.2.1","BackendType":"udp","BackendType":"vxlan","publicip":"198.18.0.11","BackendData":7,"BackendData":{"VNI":9,"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#,
            r#"{"PublicIP":"::ffff:198.18.0.11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e-5a-91-2c-07-d3"},"BackendV6Data":null}"#,
            r#"{"PublicIP":"198.18.0.11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e5a.912c.07d3"},"Podwire":"?"}"#,
            // Half of what IPv6 pods need.
            r#"{"PublicIP":"198.18.0.11","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#,
            r#"{"PublicIP":"198.18.0.11","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"},"BackendV6Data":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d4"}}"#,
        ];
        for text in same {
            assert_eq!(read(text), read(FLANNEL), "{text}");
        }
        // The first versions wrote no VNI.
        let old = read(
            r#"{"PublicIP":"198.18.0.11","BackendType":"vxlan","BackendData":{"VtepMAC":"0e:5a:91:2c:07:d3"}}"#,
        );
        assert_eq!(old.unwrap().vtep.0, 0);
    }

    #[test]
    fn what_is_no_vxlan_nodes_value_is_refused_with_the_reason() {
        let with = |from: &str, to: &str| {
            assert!(DUAL.contains(from), "{from}");
            DUAL.replacen(from, to, 1)
        };
        let mac = "0e:5a:91:2c:07:d3";
        let cases = [
            (String::new(), "it is not JSON: EOF"),
            ("null".into(), "null stands where an object is wanted"),
            ("[]".into(), "a list stands where an object is wanted"),
            ("{}".into(), r#"its BackendType is "", not "vxlan""#),
            (format!("{FLANNEL}x"), "it is not JSON: trailing characters"),
            (
                format!("{{\"a\":\"{}\"}}", "x".repeat(70_000)),
                "it has 70008 bytes",
            ),
            (
                with("\"vxlan\"", "\"wireguard\""),
                r#"its BackendType is "wireguard", not "vxlan""#,
            ),
            (
                with("\"vxlan\"", "\"VXLAN\""),
                r#"its BackendType is "VXLAN", not"#,
            ),
            (with("\"vxlan\"", "5"), "its BackendType is 5 (text is wanted)"),
            (
                with("\"PublicIP\":\"198.18.0.11\",", ""),
                "its PublicIP is missing",
            ),
            (
                with("198.18.0.11", "0.0.0.0"),
                r#"its PublicIP is "0.0.0.0" (an IPv4 address of the node is wanted)"#,
            ),
            (with("198.18.0.11", "224.0.0.1"), "its PublicIP is"),
            (with("198.18.0.11", "255.255.255.255"), "its PublicIP is"),
            (with("198.18.0.11", "2001:db8::1"), "its PublicIP is"),
            (with("198.18.0.11", "host"), r#"its PublicIP is "host""#),
            (with("\"198.18.0.11\"", "198"), "its PublicIP is 198 ("),
            (
                with("2001:db8:1::11", "::"),
                r#"its PublicIPv6 is "::" (an IPv6 address"#,
            ),
            (with("2001:db8:1::11", "ff02::1"), "its PublicIPv6 is"),
            (with("2001:db8:1::11", "::ffff:10.0.0.1"), "its PublicIPv6 is"),
            (with("2001:db8:1::11", "10.0.0.1"), "its PublicIPv6 is"),
            (with("\"BackendData\"", "\"Other\""), "its BackendData is missing"),
            (
                with("\"VNI\":1", "\"VNI\":16777216"),
                "its BackendData.VNI is 16777216 (0 to 16777215 is wanted)",
            ),
            (with("\"VNI\":1", "\"VNI\":-1"), "its BackendData.VNI is -1"),
            (with("\"VNI\":1", "\"VNI\":1.5"), "its BackendData.VNI is 1.5"),
            (
                with("\"VNI\":1", "\"VNI\":\"1\""),
                r#"its BackendData.VNI is "1""#,
            ),
            (
                with("\"VtepMAC\"", "\"Mac\""),
                "its BackendData.VtepMAC is missing",
            ),
            (
                with(mac, "00:00:00:00:00:00"),
                r#"its BackendData.VtepMAC is "00:00:00:00:00:00" (the MAC of one"#,
            ),
            (with(mac, "01:00:5e:00:00:01"), "its BackendData.VtepMAC is"),
            (with(mac, "ff:ff:ff:ff:ff:ff"), "its BackendData.VtepMAC is"),
            (with(mac, "0e:5a:91:2c:07"), "its BackendData.VtepMAC is"),
            (with(mac, "0e-5a:91-2c-07-d3"), "its BackendData.VtepMAC is"),
            (with(mac, "0e5a.912c.07d"), "its BackendData.VtepMAC is"),
            (with(mac, "0e5a.912c.\u{e9}7d"), "its BackendData.VtepMAC is"),
            (
                with("0e:5a:91:2c:07:d4", "01:00:5e:00:00:01"),
                "its BackendV6Data.VtepMAC is",
            ),
        ];
        for (text, want) in cases {
            let told = read(&text).unwrap_err();
            assert!(told.starts_with(want), "{text}\n  gave {told}\n  not  {want}");
            assert!(told.len() < 200 && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn hostile_abilities_are_cut_to_size() {
        let of = |podwire: &str| {
            let text = FLANNEL.replace("\"PublicIP\"", &format!("\"Podwire\":{podwire},\"PublicIP\""));
            read(&text).unwrap().podwire
        };
        assert_eq!(of("null"), None);
        assert_eq!(of("[1]"), None);
        assert_eq!(of("{}"), Some(Abilities::default()));
        assert_eq!(of(r#"{"wire":"x"}"#), Some(Abilities::default()));
        let options: Vec<String> = (0..100).map(|n| format!("\"o{n}\"")).collect();
        let long = "x".repeat(65);
        let wire = format!(r#"[7,"","{long}","a b","\u001b[2J",{}]"#, options.join(","));
        let hostile = of(&format!(
            r#"{{"name":"../../etc","id":"{long}","version":{{}},"wire":{wire},"more":1}}"#
        ));
        let hostile = hostile.unwrap();
        assert_eq!((&*hostile.name, &*hostile.id, &*hostile.version), ("", "", ""));
        assert_eq!(hostile.wire.len(), Abilities::MAX_WIRE);
        assert_eq!((&*hostile.wire[0], &*hostile.wire[31]), ("o0", "o31"));
    }

    fn abilities() -> impl Strategy<Value = Abilities> {
        let wire = proptest::collection::vec("[!-~]{1,64}", 0..=32);
        let texts = ("[a-z0-9][a-zA-Z0-9._-]{0,62}", "[!-~]{0,64}", "[!-~]{0,64}", wire);
        texts.prop_map(|(name, id, version, wire)| Abilities {
            name,
            id,
            version,
            wire,
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            ip in 1u32..0xe000_0000,
            six in proptest::option::of(0x2000u128 << 112..0x4000 << 112),
            vni in 0u32..1 << 24,
            macs in any::<[[u8; 5]; 2]>(),
            podwire in proptest::option::of(abilities()),
        ) {
            let mac = |m: [u8; 5]| Mac([2, m[0], m[1], m[2], m[3], m[4]]);
            let value = LeaseValue {
                public_ip: ip.into(),
                public_ip6: six.map(Into::into),
                vtep: (vni, mac(macs[0])),
                vtep6: six.map(|_| (vni, mac(macs[1]))),
                podwire,
            };
            prop_assert_eq!(LeaseValue::read(&value.write()), Ok(value));
        }
    }
}
