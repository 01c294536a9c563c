use super::*;
use crate::daemon::links::Link;

fn host() -> Host {
    let link = |name: &str, mtu: u32, ip: &str| Link {
        name: name.into(),
        mtu,
        loopback: name == "lo",
        up: true,
        vxlan: None,
        addresses: vec![ip.parse().unwrap()],
        ..Link::default()
    };
    Host {
        name: "box".into(),
        links: vec![
            link("lo", 65_536, "127.0.0.1"),
            link("eth0", 9000, "192.0.2.1"),
            link("eth1", 1500, "2001:db8::1"),
        ],
        local: Vec::new(),
        default4: Some("192.0.2.1".parse().unwrap()),
        default6: None,
    }
}

fn read(text: &str) -> Result<Config, String> {
    let given = Given::from_file(Path::new("/etc/podwire/n.toml"), text).map_err(|e| e.to_string())?;
    Config::understand(&given, &host()).map_err(|e| e.to_string())
}

#[test]
fn little_needs_to_be_said() {
    let c = read("subnet = \"10.244.1.0/24\"\npeers = \"peers.toml\"").unwrap();
    assert_eq!(c.node.as_str(), "box");
    assert_eq!(c.underlay(), ["0.0.0.0:8472".parse().unwrap()]);
    assert_eq!((c.underlay_mtu, c.pod_mtu), (UnderlayMtu(9000), PodMtu(8950)));
    assert_eq!(c.peers, Some("/etc/podwire/peers.toml".into()));
    let local = c.local_node();
    assert_eq!(local.gateway_mac, Mac::of_ipv4([10, 244, 1, 1].into()));
    assert_eq!(local.vtep_mac, "0e:57:0a:f4:01:00".parse().unwrap());
}

#[test]
fn mtu_follows_the_interface_and_the_family() {
    let with = |bind: &str| {
        let c = read(&format!(
            "subnet6 = \"fd00:10:244:1::/64\"\n[overlay]\nbind = {bind}"
        ))
        .unwrap();
        (c.underlay_mtu.0, c.pod_mtu.0)
    };
    assert_eq!(with("\"192.0.2.1\""), (9000, 8950));
    assert_eq!(with("\"2001:db8::1\""), (1500, 1430));
    assert_eq!(with("[\"192.0.2.1\", \"2001:db8::1\"]"), (1500, 1430));
    assert_eq!(with("\"127.0.0.1\""), (1500, 1450));
    assert_eq!(with("\"198.51.100.1\""), (1500, 1450));
}

#[test]
fn print_reads_back_to_the_same() {
    let texts = [
        "subnet = \"10.244.1.0/24\"",
        "node = \"n2\"\nsubnet6 = \"fd00:10:244:1::/64\"\nsocket = \"/run/x.sock\"\nlog = \"debug\"\npeers = \"p\"\n\
         [overlay]\nbind = [\"0.0.0.0\", \"::\"]\nport = \"auto\"\nvni = 7\nsource_ports = 1\nunderlay_mtu = 1400\n\
         pod_mtu = 1300\nvtep_mac = \"02:00:00:00:00:01\"\nvtep_mac6 = \"02:00:00:00:00:02\"\ndscp = 46\n\
         [offload]\ntap = \"off\"\nudp_gso = \"off\"\nudp_gro = \"off\"\nchecksum = \"off\"\n\
         [limits]\nbroadcast_per_second = 5\nreceive_buffer = 65536\nsend_buffer = 131072\n\
         [health]\nhealthz_ip = \"0.0.0.0\"\nhealthz_port = 9473\n[dns]\nlisten = [\"127.0.0.1\", \"[::1]:5353\"]\n\
         upstream = \"192.0.2.53\"\nresolv_conf = \"r.conf\"\ndomain = \"cluster.example\"\nrecords = [\"a.x 192.0.2.1\", \
         \"t.x TXT \\\"some, text\\\"\"]\n[metrics]\nlisten = \"[::1]:9472\"",
        "[store]\nkind = \"etcd\"\n[dns]\nenabled = \"off\"",
        "subnet = \"10.244.1.0/24\"\n[overlay]\npod_mtu = 1400\n[store]\nkind = \"etcd\"\n\
         endpoints = [\"https://192.0.2.9:2379\", \"https://192.0.2.10:2379\"]\nprefix = \"/x/y\"\nca_file = \"ca.pem\"\n\
         cert_file = \"c.pem\"\nkey_file = \"k.pem\"\nuser = \"u\"\npassword_file = \"p\"\nrenew_margin = 5\n\
         public_ip = \"192.0.2.1\"\npublic_ip6 = \"2001:db8::1\"\nsubnet_file = \"s.env\"",
    ];
    for text in texts {
        let config = read(text).unwrap();
        let printed = config.print();
        assert_eq!(read(&printed).unwrap(), config, "{printed}");
        for key in keys::KEYS {
            assert!(printed.contains(&format!("{} = ", key.split().1)), "{}", key.name);
        }
    }
    assert!(!read(texts[1]).unwrap().print().contains("\n# subnet6 ="));
}

#[test]
fn a_password_is_shown_to_nobody() {
    let config = read("[store]\nkind = \"etcd\"\nuser = \"u\"\npassword = \"tell-nobody\"").unwrap();
    for shown in [config.print(), format!("{config:?}")] {
        assert!(!shown.contains("tell-nobody"), "{shown}");
    }
    let password = config.store.unwrap().password.unwrap();
    assert_eq!(password.read().unwrap(), "tell-nobody");
    let told = read("[store]\nkind = \"etcd\"\nendpoints = \"http://u:tell-nobody@h:2379\"").unwrap_err();
    assert!(
        !told.contains("tell-nobody") && told.contains("--etcd-password"),
        "{told}"
    );
}

#[test]
fn peers_are_told_the_address_they_reach() {
    let at = |text: &str| {
        let config = read(&format!("{text}\n[store]\nkind = \"etcd\"")).unwrap();
        (
            config
                .published(&host())
                .map(|(four, six)| (four.to_string(), six)),
            config.is_published_by_route(),
        )
    };
    let is = |ip: &str| Some((ip.to_string(), None));
    assert_eq!(at(""), (is("192.0.2.1"), true));
    assert_eq!(
        at("[overlay]\nbind = \"198.51.100.7\""),
        (is("198.51.100.7"), false)
    );
    let (both, _) = at("[overlay]\nbind = [\"0.0.0.0\", \"2001:db8::1\"]");
    assert_eq!(both.unwrap().1, Some("2001:db8::1".parse().unwrap()));
    let fixed = read("[store]\nkind = \"etcd\"\npublic_ip = \"203.0.113.1\"").unwrap();
    assert_eq!(
        fixed.published(&host()),
        Some(("203.0.113.1".parse().unwrap(), None))
    );
    assert!(!fixed.is_published_by_route());
}

#[test]
fn flannels_environment_speaks_where_nobody_else_does() {
    assert_eq!(
        keys::ENDPOINTS.environment().as_deref(),
        Some("FLANNELD_ETCD_ENDPOINTS")
    );
    assert_eq!(
        keys::RENEW_MARGIN.environment().as_deref(),
        Some("FLANNELD_SUBNET_LEASE_RENEW_MARGIN")
    );
    assert_eq!(keys::SUBNET.environment(), None);
    let mut given = Given::default();
    given.flag(&keys::STORE, vec!["etcd".into()]);
    given.flag(&keys::PREFIX, vec!["/mine".into()]);
    given.environment(&keys::PREFIX, "FLANNELD_ETCD_PREFIX".into(), "/theirs");
    given.environment(
        &keys::ENDPOINTS,
        "FLANNELD_ETCD_ENDPOINTS".into(),
        "http://a:1, http://b:2/",
    );
    let store = Config::understand(&given, &host()).unwrap().store.unwrap();
    assert_eq!(store.prefix, "/mine");
    assert_eq!(store.endpoints, ["http://a:1", "http://b:2/"]);
    given.environment(&keys::HEALTH_PORT, "FLANNELD_HEALTHZ_PORT".into(), "many");
    let told = Config::understand(&given, &host()).unwrap_err().to_string();
    assert!(told.starts_with("FLANNELD_HEALTHZ_PORT: \"many\""), "{told}");
}

#[test]
fn a_draft_needs_nothing_but_a_subnet() {
    for text in ["", "[overlay]\nport = 7\nvtep_mac = \"02:00:00:00:00:01\""] {
        let given = |text: &str| Given::from_file(Path::new("/etc/podwire/n.toml"), text).unwrap();
        let draft = Config::draft(&given(text), &host()).unwrap().print();
        assert!(draft.contains("\n# subnet = \"10.244.1.0/24\"\n"), "{draft}");
        let missing = Config::understand(&given(&draft), &host()).unwrap_err();
        assert!(missing.to_string().contains("subnet: is missing"), "{missing}");
        for (key, net) in [(&keys::SUBNET, "10.9.0.0/16"), (&keys::SUBNET6, "fd00:9::/64")] {
            let with_subnet = |text: &str| {
                let mut given = given(text);
                given.flag(key, vec![net.into()]);
                Config::understand(&given, &host()).unwrap()
            };
            assert_eq!(with_subnet(&draft), with_subnet(text), "{draft}");
        }
    }
}

#[test]
fn flags_override_the_file() {
    let mut given = Given::from_file(
        Path::new("n.toml"),
        "subnet = \"10.1.0.0/16\"\n[overlay]\nport = 1",
    )
    .unwrap();
    given.flag(&keys::PORT, vec!["auto".into()]);
    given.flag(&keys::SUBNET, vec!["10.2.0.1/16".into()]);
    let e = Config::understand(&given, &host()).unwrap_err();
    assert_eq!(
        e.to_string(),
        "--subnet: 10.2.0.1/16 has host bits set (write 10.2.0.0/16)"
    );
    given.flag(&keys::SUBNET, vec!["10.2.0.0/16".into()]);
    assert_eq!(Config::understand(&given, &host()).unwrap().port, None);
}

#[test]
fn mistakes_name_place_key_and_remedy() {
    let cases = [
        ("", "/etc/podwire/n.toml: subnet: is missing"),
        ("subnet = \"10.244.1.0/24", "/etc/podwire/n.toml:1: not TOML"),
        (
            "subnett = \"10.244.1.0/24\"",
            "n.toml:1: subnett: there is no such key (did you mean `subnet`?)",
        ),
        (
            "port = 3",
            "n.toml:1: port: there is no such key (did you mean `overlay.port`?)",
        ),
        (
            "[overlay]\nprot = 3",
            "n.toml:2: overlay.prot: there is no such key (did you mean `overlay.port`?)",
        ),
        ("[overlya]\nport = 3", "n.toml:1: overlya: there is no such key"),
        (
            "subnet = 3",
            "n.toml:1: subnet: an integer stands here (text in quotes is wanted), as subnet = \"10.244.1.0/24\"",
        ),
        ("subnet = \"10.244.1.5/24\"", "(write 10.244.1.0/24)"),
        ("subnet = \"10.244.1.0/31\"", "(use /8 to /30"),
        ("node = \"-x\"", "\"-x\" is not a node name"),
        (
            "[overlay]\nport = 70000",
            "n.toml:2: overlay.port: 70000 is out of range (use 1 to 65535), or \"auto\"",
        ),
        ("[overlay]\nvni = 16777216", "is out of range (use 0 to 16777215)"),
        ("[overlay]\nsource_ports = 65", "(use 1 to 64)"),
        (
            "[overlay]\nbind = [\"1.1.1.1\", \"2.2.2.2\"]",
            "overlay.bind: one address is wanted",
        ),
        ("[overlay]\nbind = \"192.0.2.1:8472\"", "the port is overlay.port"),
        ("[overlay]\npod_mtu = 9000", "use at most 8950"),
        ("[overlay]\ndscp = 64", "(use 0 to 63), or \"inherit\""),
        ("[offload]\ntap = true", "a boolean stands here"),
        ("[offload]\ntap = \"yes\"", "(write on or off)"),
        ("[limits]\nsend_buffer = 1", "(use 65536 to 1073741824)"),
        (
            "[metrics]\nlisten = 9472",
            "n.toml:2: metrics.listen: an integer stands here (text in quotes is wanted), as listen = \"127.0.0.1:9472\"",
        ),
        (
            "[metrics]\nlisten = \"localhost:9472\"",
            "n.toml:2: metrics.listen: \"localhost:9472\" is no address with a port (write 127.0.0.1:9472",
        ),
        ("[metrics]\nlisten = \"127.0.0.1\"", "is no address with a port"),
        ("[metrics]\nlisten = \"::1:70000\"", "is no address with a port"),
        (
            "[metrics]\nlisten = \"224.0.0.1:9472\"",
            "is multicast (name an own address)",
        ),
        ("metrics = \"127.0.0.1:9472\"", "metrics: there is no such key"),
        ("log = \"loud\"", "use off, error, warn"),
        (
            "[store]\nkind = \"consul\"",
            "n.toml:2: store.kind: \"consul\" is no kind of store (use file or etcd)",
        ),
        (
            "[store]\nprefix = \"/x\"",
            "n.toml:2: store.prefix: has no meaning without etcd (set store.kind = \"etcd\")",
        ),
        (
            "peers = \"p\"\n[store]\nkind = \"etcd\"",
            "n.toml:1: peers: the peers come from etcd (leave it out, or use --store file)",
        ),
        (
            "[overlay]\nvni = 1\n[store]\nkind = \"etcd\"",
            "n.toml:2: overlay.vni: the VNI comes from",
        ),
        (
            "[store]\nkind = \"etcd\"\nendpoints = \"ftp://192.0.2.1:2379\"",
            "n.toml:3: store.endpoints: etcd endpoint \"ftp://192.0.2.1:2379\": it is neither http nor https (use http://HOST",
        ),
        (
            "[store]\nkind = \"etcd\"\nuser = \"u\"",
            "n.toml:3: store.user: needs a password",
        ),
        (
            "[store]\nkind = \"etcd\"\ncert_file = \"u\"",
            "n.toml:3: store.cert_file: needs its key",
        ),
        (
            "[health]\nhealthz_port = 70000",
            "n.toml:2: health.healthz_port: 70000 is out of range (use 0 to 65535)",
        ),
    ];
    for (text, want) in cases {
        let got = Given::from_file(Path::new("/etc/podwire/n.toml"), text).and_then(|mut given| {
            if !text.contains("subnet") && !text.is_empty() {
                given.flag(&keys::SUBNET, vec!["10.244.1.0/24".into()]);
            }
            Config::understand(&given, &host())
        });
        let got = got.unwrap_err().to_string();
        assert!(got.contains(want), "{text}\n  gave {got}\n  not  {want}");
    }
}

#[test]
fn dns_says_what_it_cannot_do() {
    for (key, value, told) in [
        (&keys::DNS_LISTEN, "0.0.0.0", "one by one"),
        (&keys::DNS_LISTEN, "[::]:53", "one by one"),
        (&keys::DNS_LISTEN, "ff02::1", "cannot be asked"),
        (&keys::DNS_UPSTREAM, "192.0.2.1:0", "cannot be asked"),
        (&keys::DNS_UPSTREAM, "resolver.example", "write 192.0.2.53"),
        (&keys::DNS_DOMAIN, "-x", "neither begins nor ends"),
        (&keys::DNS_RECORDS, "a b c", "write NAME ADDRESS"),
    ] {
        let mut given = Given::default();
        given.flag(&keys::SUBNET, vec!["10.244.1.0/24".into()]);
        given.flag(key, vec![value.into()]);
        let e = Config::understand(&given, &host()).unwrap_err().to_string();
        assert!(
            e.contains(told) && e.starts_with(&format!("--{}", key.flag)),
            "{e}"
        );
    }
    let dns = read("subnet = \"10.244.1.0/24\"\n[dns]\nlisten = [\"127.0.0.1:0\", \"[::1]\", \"::1\"]")
        .unwrap()
        .dns;
    let listen: Vec<String> = dns.unwrap().listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:0", "[::1]:53", "[::1]:53"]);
}

/// Whatever is wrong with whichever key: its line, its name, what stands there, and in parentheses what would be
/// right.
#[test]
fn each_key_says_what_would_be_right() {
    let wrong = [
        "1.5",
        "true",
        "1979-05-27",
        "{}",
        "[[]]",
        "\"\"",
        "\"-\"",
        "\"two\\nlines\"",
        "-1",
        "99999999999",
        "99999999999999999999",
    ];
    for key in keys::KEYS {
        let (section, name) = key.split();
        let head = section.map(|s| format!("[{s}]\n")).unwrap_or_default();
        let line = 1 + head.lines().count();
        let mut refused = 0;
        for value in wrong {
            let text = format!("# a comment\n{head}{name} = {value}");
            let given = Given::from_file(Path::new("n.toml"), &text);
            let told = given.and_then(|mut given| {
                if **key != keys::SUBNET {
                    given.flag(&keys::SUBNET, vec!["10.244.1.0/24".into()]);
                }
                if section == Some("store") && **key != keys::STORE {
                    given.flag(&keys::STORE, vec!["etcd".into()]);
                    // Each of these is nothing without another.
                    for (one, other) in [
                        (keys::CERT_FILE, &keys::KEY_FILE),
                        (keys::KEY_FILE, &keys::CERT_FILE),
                    ] {
                        if **key == one {
                            given.flag(other, vec!["x".into()]);
                        }
                    }
                    for (one, other) in [
                        (keys::USER, &keys::PASSWORD_FILE),
                        (keys::PASSWORD, &keys::USER),
                        (keys::PASSWORD_FILE, &keys::USER),
                    ] {
                        if **key == one {
                            given.flag(other, vec!["x".into()]);
                        }
                    }
                }
                Config::understand(&given, &host())
            });
            let Err(told) = told.map_err(|e| e.to_string()) else {
                continue;
            };
            refused += 1;
            let place = format!("n.toml:{}: {}: ", line + 1, key.name);
            let begins = told.starts_with(&place);
            assert!(
                begins && told.contains(" (") && told.contains(')'),
                "{value}: {told}"
            );
            assert!(!told.contains('\n'), "one sentence: {told}");
        }
        // Files, users and passwords may be anything but nothing; a prefix too.
        let free = [
            &keys::PEERS,
            &keys::SOCKET,
            &keys::STATE_DIR,
            &keys::CA_FILE,
            &keys::CERT_FILE,
            &keys::KEY_FILE,
            &keys::USER,
            &keys::PASSWORD,
            &keys::PASSWORD_FILE,
            &keys::PREFIX,
            &keys::SUBNET_FILE,
            &keys::DNS_RESOLV_CONF,
            &keys::SERVICES,
        ]
        .contains(key);
        assert_eq!(refused, wrong.len() - if free { 2 } else { 0 }, "{}", key.name);
    }
    for (flag, value) in [
        (&keys::PORT, "eight"),
        (&keys::VNI, "16777216"),
        (&keys::TAP, "maybe"),
    ] {
        let mut given = Given::default();
        given.flag(&keys::SUBNET, vec!["10.244.1.0/24".into()]);
        given.flag(flag, vec![value.into()]);
        let told = Config::understand(&given, &host()).unwrap_err().to_string();
        let begins = told.starts_with(&format!("--{}: ", flag.flag));
        assert!(begins && told.contains(value) && told.contains(" ("), "{told}");
    }
}
