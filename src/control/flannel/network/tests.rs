use super::*;
use proptest::prelude::*;

const VXLAN: &str = r#""Backend":{"Type":"vxlan"}"#;

fn read(text: &str) -> Result<Network, String> {
    Network::parse(text.as_bytes()).map_err(|e| e.to_string())
}

fn with(keys: &str) -> Result<Network, String> {
    read(&format!("{{{keys},{VXLAN}}}"))
}

fn key(text: &str) -> SubnetKey {
    text.parse().unwrap()
}

/// Network and length, and what flannel makes of them: length, first and last subnet.
#[test]
fn defaults_are_flannels() {
    let cases = [
        (r#""Network":"10.3.0.0/16""#, "10.3.1.0/24", "10.3.255.0/24"),
        (r#""Network":"10.0.0.0/8""#, "10.0.1.0/24", "10.255.255.0/24"),
        (r#""Network":"10.3.0.0/22""#, "10.3.1.0/24", "10.3.3.0/24"),
        (r#""Network":"10.3.0.0/23""#, "10.3.0.128/25", "10.3.1.128/25"),
        (r#""Network":"10.3.0.16/28""#, "10.3.0.20/30", "10.3.0.28/30"),
        (
            r#""Network":"223.255.252.0/22""#,
            "223.255.253.0/24",
            "223.255.255.0/24",
        ),
        (
            r#""Network":"10.3.0.0/16","SubnetLen":0"#,
            "10.3.1.0/24",
            "10.3.255.0/24",
        ),
        (
            r#""Network":"10.3.0.0/16","SubnetLen":30"#,
            "10.3.0.4/30",
            "10.3.255.252/30",
        ),
        (
            r#""Network":"10.3.0.0/16","SubnetLen":18"#,
            "10.3.64.0/18",
            "10.3.192.0/18",
        ),
        (
            r#""Network":"10.3.0.0/16","SubnetMin":"10.3.5.0","SubnetMax":"10.3.8.0","SubnetLen":28"#,
            "10.3.5.0/28",
            "10.3.8.0/28",
        ),
        (
            r#""Network":"10.3.0.0/16","SubnetMin":"10.3.0.0","SubnetMax":"10.3.0.0""#,
            "10.3.0.0/24",
            "10.3.0.0/24",
        ),
        (
            r#""Network":"10.3.0.0/16","SubnetMin":"0.0.0.0","SubnetMax":null"#,
            "10.3.1.0/24",
            "10.3.255.0/24",
        ),
    ];
    for (keys, min, max) in cases {
        let network = with(keys).unwrap();
        let range = network.range4;
        assert_eq!(
            (range.min.to_string(), range.max.to_string()),
            (min.into(), max.into()),
            "{keys}"
        );
        assert_eq!((network.vni, network.port, network.mtu), (1, 8472, None));
        assert_eq!(network.range6, None);
    }
    let six = |keys: &str| with(&format!(r#""Network":"10.3.0.0/16","EnableIPv6":true,{keys}"#));
    let cases = [
        (
            r#""IPv6Network":"fc00::/48""#,
            "fc00:0:0:1::/64",
            "fc00:0:0:ffff::/64",
        ),
        (
            r#""IPv6Network":"fd61::/62""#,
            "fd61:0:0:1::/64",
            "fd61:0:0:3::/64",
        ),
        (
            r#""IPv6Network":"fd61::/63""#,
            "fd61::8000:0:0:0/65",
            "fd61:0:0:1:8000::/65",
        ),
        (r#""IPv6Network":"fd61::/124""#, "fd61::4/126", "fd61::c/126"),
        (
            r#""IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:f::","IPv6SubnetLen":124"#,
            "fc00:0:0:1::/124",
            "fc00:0:0:f::/124",
        ),
    ];
    for (keys, min, max) in cases {
        let range = six(keys).unwrap().range6.unwrap();
        assert_eq!(
            (range.min.to_string(), range.max.to_string()),
            (min.into(), max.into()),
            "{keys}"
        );
    }
}

#[test]
fn what_flannels_decoder_accepts_is_accepted() {
    let plain = with(r#""Network":"10.61.0.0/16""#).unwrap();
    let same = [
        r#"{"network":"10.61.0.0/16","BACKEND":{"type":"VXLAN","vni":1,"port":0}}"#,
        r#"{"Network":"10.9.0.0/16","network":"10.61.0.0/16","EnableIPv4":true,"EnableNFTables":true,"Networks":["x"],"Backend":{"Type":"vxlan","Port":8472,"Learning":false,"GBP":false,"DirectRouting":false,"Later":[]}}"#,
        r#"{"Network":"10.61.7.3/16","EnableIPv4":null,"EnableIPv6":false,"IPv6Network":7,"Backend":{"Type":"vxlan","MTU":null}}"#,
    ];
    for text in same {
        assert_eq!(read(text).as_ref(), Ok(&plain), "{text}");
    }
    let given =
        read(r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan","VNI":4096,"Port":4789,"MTU":9000}}"#);
    let given = given.unwrap();
    assert_eq!(
        (given.vni, given.port, given.mtu),
        (4096, 4789, Some(UnderlayMtu(9000)))
    );
    let text = r#"{"Network":"10.61.7.3/16","EnableIPv6":true,"IPv6Network":"fd61::1/48","Backend":{"Type":"vxlan","Learning":true}}"#;
    let (_, notes) = Network::parse_with_notes(text.as_bytes()).unwrap();
    assert_eq!(
        notes,
        [
            "Network: 10.61.7.3/16 has host bits set and is taken as 10.61.0.0/16",
            "IPv6Network: fd61::1/48 has host bits set and is taken as fd61::/48",
            "Backend.Learning: is true; podwire never learns, and kernel peers learn nothing new from it",
        ]
    );
}

#[test]
fn refusals_name_the_key_what_it_says_and_what_would_be_right() {
    let six = r#""Network":"10.61.0.0/16","EnableIPv6":true"#;
    let top = [
        (
            "",
            "Network: is missing (an IPv4 network is wanted, as 10.61.0.0/16)",
        ),
        (
            r#""Network":"10.61.0.0""#,
            r#"Network: is "10.61.0.0" (an IPv4 network"#,
        ),
        (r#""Network":"fd61::/48""#, "Network: is \"fd61::/48\" (an IPv4"),
        (r#""Network":16"#, "Network: is 16 (an IPv4"),
        (
            r#""Network":"10.61.0.0/29""#,
            "Network: 10.61.0.0/29 is too small for four subnets (/28",
        ),
        (
            r#""Network":"10.0.0.0/7""#,
            "Network: 10.0.0.0/7 is not for pods (a private network",
        ),
        (r#""Network":"0.0.0.0/0""#, "Network: 0.0.0.0/0 is not for pods"),
        (
            r#""Network":"127.0.0.0/16""#,
            "Network: 127.0.0.0/16 is not for pods",
        ),
        (
            r#""Network":"224.0.0.0/16""#,
            "Network: 224.0.0.0/16 is not for pods",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetLen":31"#,
            "SubnetLen: is 31 (four subnets must fit the network, and pods a subnet: 18 to 30)",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetLen":17"#,
            "SubnetLen: is 17 (four",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetLen":280"#,
            "SubnetLen: is 280 (four",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetLen":"24""#,
            "SubnetLen: is \"24\" (a length of",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetLen":-1"#,
            "SubnetLen: is -1 (a length of",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetMin":"10.62.0.0""#,
            "SubnetMin: 10.62.0.0 is not in the network 10.61.0.0/16",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetMax":"10.60.0.0""#,
            "SubnetMax: 10.60.0.0 is not in",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetMin":"10.61.7.9""#,
            "SubnetMin: 10.61.7.9 is not where a /24 begins (write 10.61.7.0)",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetMax":"10.61.7.9""#,
            "SubnetMax: 10.61.7.9 is not where",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetMax":"10.61.7.0/24""#,
            "SubnetMax: is \"10.61.7.0/24\" (the address",
        ),
        (
            r#""Network":"10.61.0.0/16","SubnetMin":"10.61.9.0","SubnetMax":"10.61.7.0""#,
            "SubnetMin: 10.61.9.0 is above SubnetMax 10.61.7.0 (",
        ),
        (
            r#""EnableIPv4":false"#,
            "EnableIPv4: is false (IPv6 alone cannot be kept in etcd",
        ),
        (
            r#""EnableIPv4":"yes""#,
            "EnableIPv4: is \"yes\" (true or false is wanted",
        ),
        (
            r#""Network":"10.61.0.0/16","EnableIPv6":1"#,
            "EnableIPv6: is 1 (true or false",
        ),
        (
            six,
            "IPv6Network: is missing while EnableIPv6 is true (an IPv6 network",
        ),
    ];
    for (keys, want) in top {
        let comma = if keys.is_empty() { "" } else { "," };
        let told = read(&format!("{{{keys}{comma}{VXLAN}}}")).unwrap_err();
        assert!(told.starts_with(want), "{keys}\n  gave {told}\n  not  {want}");
    }
    for (keys, want) in [
        (
            r#""IPv6Network":"10.0.0.0/8""#,
            "IPv6Network: is \"10.0.0.0/8\" (an IPv6",
        ),
        (
            r#""IPv6Network":"fd61::/125""#,
            "IPv6Network: fd61::/125 is too small",
        ),
        (
            r#""IPv6Network":"fc00::/7""#,
            "IPv6Network: fc00::/7 is not for pods",
        ),
        (
            r#""IPv6Network":"fe80::/64""#,
            "IPv6Network: fe80::/64 is not for pods",
        ),
        (
            r#""IPv6Network":"ff05::/64""#,
            "IPv6Network: ff05::/64 is not for pods",
        ),
        (
            r#""IPv6Network":"::ffff:10.0.0.0/104""#,
            "IPv6Network: ::ffff:10.0.0.0/104 is not for pods",
        ),
        (
            r#""IPv6Network":"fd61::/48","IPv6SubnetLen":49"#,
            "IPv6SubnetLen: is 49 (four subnets must fit the network, and pods a subnet: 50 to 126)",
        ),
        (
            r#""IPv6Network":"fd61::/48","IPv6SubnetLen":127"#,
            "IPv6SubnetLen: is 127 (",
        ),
        (
            r#""IPv6Network":"fd61::/48","IPv6SubnetMin":"fd62::""#,
            "IPv6SubnetMin: fd62:: is not in the network fd61::/48",
        ),
        (
            r#""IPv6Network":"fd61::/48","IPv6SubnetMax":"fd61::1""#,
            "IPv6SubnetMax: fd61::1 is not where a /64 begins (write fd61::)",
        ),
        (
            r#""IPv6Network":"fd61::/48","IPv6SubnetMin":"fd61:0:0:7::","IPv6SubnetMax":"fd61:0:0:6::""#,
            "IPv6SubnetMin: fd61:0:0:7:: is above IPv6SubnetMax fd61:0:0:6:: (",
        ),
    ] {
        let told = with(&format!("{six},{keys}")).unwrap_err();
        assert!(told.starts_with(want), "{keys}\n  gave {told}\n  not  {want}");
    }
    let backends = [
        (
            "",
            "Backend: is missing, which means udp to flannel (podwire speaks VXLAN: write",
        ),
        (
            r#","Backend":"vxlan""#,
            "Backend: is \"vxlan\" (podwire speaks VXLAN",
        ),
        (
            r#","Backend":{}"#,
            "Backend.Type: is missing (podwire speaks VXLAN",
        ),
        (
            r#","Backend":{"Type":"host-gw"}"#,
            "Backend.Type: is \"host-gw\" (podwire speaks VXLAN",
        ),
        (r#","Backend":{"Type":"udp"}"#, "Backend.Type: is \"udp\" ("),
        (r#","Backend":{"Type":7}"#, "Backend.Type: is 7 ("),
        (
            r#","Backend":{"Type":"vxlan","DirectRouting":true}"#,
            "Backend.DirectRouting: is true (",
        ),
        (
            r#","Backend":{"Type":"vxlan","GBP":true}"#,
            "Backend.GBP: is true (",
        ),
        (
            r#","Backend":{"Type":"vxlan","Learning":"true"}"#,
            "Backend.Learning: is \"true\" (true or false is wanted, without quotes)",
        ),
        (
            r#","Backend":{"Type":"vxlan","VNI":16777216}"#,
            "Backend.VNI: is 16777216 (a number of 24 bits",
        ),
        (
            r#","Backend":{"Type":"vxlan","VNI":-1}"#,
            "Backend.VNI: is -1 (a number of 24 bits",
        ),
        (
            r#","Backend":{"Type":"vxlan","Port":65536}"#,
            "Backend.Port: is 65536 (a port is wanted",
        ),
        (
            r#","Backend":{"Type":"vxlan","Port":"8472"}"#,
            "Backend.Port: is \"8472\" (a port is wanted",
        ),
        (
            r#","Backend":{"Type":"vxlan","MTU":575}"#,
            "Backend.MTU: is 575 (the underlay's MTU is wanted, 576 to 65535",
        ),
        (
            r#","Backend":{"Type":"vxlan","MTU":70000}"#,
            "Backend.MTU: is 70000 (",
        ),
        (
            r#","Backend":{"Type":"vxlan","MTU":1349},"EnableIPv6":true,"IPv6Network":"fd61::/48""#,
            "Backend.MTU: is 1349 (the underlay's MTU is wanted, 1350",
        ),
    ];
    for (keys, want) in backends {
        let told = read(&format!(r#"{{"Network":"10.61.0.0/16"{keys}}}"#)).unwrap_err();
        assert!(told.starts_with(want), "{keys}\n  gave {told}\n  not  {want}");
    }
    for (text, want) in [
        ("", "config: it is not JSON: EOF"),
        ("null", "config: null stands where an object is wanted ("),
        ("\"10.61.0.0/16\"", "config: \"10.61.0.0/16\" stands where"),
    ] {
        let told = read(text).unwrap_err();
        assert!(told.starts_with(want), "{told}");
    }
}

#[test]
fn a_subnet_fits_when_a_node_may_take_it() {
    let four = with(r#""Network":"10.61.0.0/16","SubnetMin":"10.61.2.0","SubnetMax":"10.61.9.0""#).unwrap();
    let six = with(r#""Network":"10.61.0.0/16","EnableIPv6":true,"IPv6Network":"fd61::/48""#).unwrap();
    // Subnet, whether it fits and lies in the network: of IPv4, and dual-stack.
    let cases = [
        ("10.61.2.0-24", true, true, false, true),
        ("10.61.9.0-24", true, true, false, true),
        ("10.61.1.0-24", false, true, false, true),
        ("10.61.10.0-24", false, true, false, true),
        ("10.61.2.0-25", false, true, false, true),
        ("10.61.2.0-23", false, true, false, true),
        ("10.60.2.0-24", false, false, false, false),
        ("10.0.0.0-8", false, false, false, false),
        ("10.61.2.0-24&fd61:0:0:1::-64", false, true, true, true),
        ("10.61.2.0-24&fd61::-64", false, true, false, true),
        ("10.61.2.0-24&fd61:0:0:1::-65", false, true, false, true),
        ("10.61.2.0-24&fd62:0:0:1::-64", false, true, false, false),
        ("10.61.2.0-24&fd00::-8", false, true, false, false),
    ];
    for (text, fits4, lies4, fits6, lies6) in cases {
        let of = |network: &Network| (network.fits(&key(text)), network.contains(&key(text)));
        assert_eq!((of(&four), of(&six)), ((fits4, lies4), (fits6, lies6)), "{text}");
    }
    assert_eq!((four.range4.count(), six.range6.unwrap().count()), (8, 65_535));
}

/// A network as text: lengths that fit it, and whatever ends.
fn config() -> impl Strategy<Value = String> {
    (8u8..=28, any::<u32>(), 0u8..32, any::<[u16; 2]>(), any::<bool>(), 0u32..1 << 24, any::<u16>()).prop_map(
        |(len, ip, more, ends, six, vni, port)| {
            let net = Ipv4Net::new((ip >> 8 | 10 << 24).into(), len).unwrap().trunc();
            let sublen = (len + 2 + more % 20).min(30);
            let size = 1u32 << (32 - sublen);
            let at = |n: u16| Ipv4Addr::from_bits(net.network().to_bits() + u32::from(n) % (1 << (sublen - len)) * size);
            let (min, max) = (at(ends[0].min(ends[1])), at(ends[0].max(ends[1])));
            let six = if six { r#""EnableIPv6":true,"IPv6Network":"fd61::/48","# } else { "" };
            format!(
                r#"{{{six}"Network":"{net}","SubnetLen":{sublen},"SubnetMin":"{min}","SubnetMax":"{max}","Backend":{{"Type":"vxlan","VNI":{vni},"Port":{port}}}}}"#
            )
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_reads_back(text in config()) {
        if let Ok(network) = read(&text) {
            prop_assert_eq!(Network::parse(&network.write()), Ok(network));
        }
    }
}
