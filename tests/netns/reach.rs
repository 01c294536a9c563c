//! Who reaches whom, and with what: all pairs, sizes, hops, addresses nobody has, broadcasts, any protocol.

use super::netns::Netns;
use super::pod::{FAMILIES, Family, Place, Pod};
use super::traffic::{MB, stream};
use super::world::{Case, World};
use podwire::model::DropReason;
use rustix::net::{AddressFamily, Protocol, SocketType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::num::NonZero;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("ping_all_pairs", ping_all_pairs).pods(2),
    Case::new("ping_over_an_ipv6_underlay", ping_all_pairs).underlay6(),
    Case::new("packets_up_to_the_mtu_and_fragments_beyond", sizes).pods(2),
    Case::new("pods_larger_than_the_path", larger),
    Case::new("each_node_is_a_hop", hops),
    Case::new("gateways_answer_and_nobody_is_unreachable", gateways),
    Case::new("broadcasts_stay_on_the_node", broadcasts).pods(3),
    Case::new("any_protocol_passes", any_protocol).pods(2),
];

fn ping_all_pairs(world: &mut World) {
    for family in FAMILIES {
        for from in world.all_pods() {
            for to in world.all_pods() {
                from.reaches(to.ip(family), 2, &[]);
            }
        }
    }
    let status = world.nodes[0].status();
    let peer = &status.peers[0];
    assert!(peer.last_heard_ms.is_some(), "n2 was heard: {peer:?}");
    assert!(
        peer.datagrams_to_peer >= 4 && peer.datagrams_from_peer >= 4,
        "{peer:?}"
    );
}

fn sizes(world: &mut World) {
    let (a, _) = world.pair();
    for to in [&world.pods[0][1], &world.pods[1][0]] {
        for family in FAMILIES {
            // Pod MTU 1450, less 20 or 40 for IP and 8 for ICMP.
            let (fits, over) = match family {
                Family::V4 => ("1422", "1423"),
                Family::V6 => ("1402", "1403"),
            };
            a.reaches(to.ip(family), 3, &["-M", "do", "-s", fits]);
            for too_big in [over, "3000"] {
                let refused = a.ping(to.ip(family), 1, &["-M", "do", "-s", too_big]);
                // By the pod's own stack: the node need not see it.
                assert!(refused.text.contains("message too long"), "{}", refused.text);
                refused.none();
            }
            for size in ["3000", "20000"] {
                a.reaches(to.ip(family), 3, &["-M", "dont", "-s", size]);
            }
        }
    }
}

/// A pod may have a larger MTU than the tunnel carries: it serves among pods of the node that have it too, all
/// others are reached by what the node says of the path.
fn larger(world: &mut World) {
    let (small, peers) = world.pair();
    let pods: Vec<Pod> = [("m", 9000), ("n", 9000), ("o", 65_521)]
        .into_iter()
        .map(|(name, mtu)| Pod::attach_sized(&world.nodes[0], name, mtu))
        .collect();
    let [one, two, huge] = &pods[..] else {
        unreachable!("three pods")
    };
    for (family, head) in [(Family::V4, 28), (Family::V6, 48)] {
        let size = |mtu: usize| (mtu - head).to_string();
        one.reaches(two.ip(family), 3, &["-M", "do", "-s", &size(9000)]);
        let told = |from: &Pod, to: &Pod, mtu: usize| {
            let refused = from.ping(to.ip(family), 1, &["-M", "do", "-s", &size(8000.max(mtu + 1))]);
            refused.none();
            let wanted = [format!("mtu = {mtu}"), format!("mtu={mtu}")];
            assert!(
                wanted.iter().any(|w| refused.text.contains(w)),
                "{}",
                refused.text
            );
            from.reaches(to.ip(family), 2, &["-M", "do", "-s", &size(mtu)]);
            from.reaches(to.ip(family), 2, &["-M", "dont", "-s", "20000"]);
        };
        told(one, small, 1450);
        told(one, peers, 1450);
        told(huge, two, 9000);
        told(huge, peers, 1450);
        for (from, to) in [
            (one, two),
            (one, peers),
            (peers, one),
            (huge, small),
            (small, huge),
        ] {
            stream(from, to, family, 2 * MB);
        }
    }
    assert!(world.nodes[0].drops(DropReason::TooBig) >= 8);
}

fn hops(world: &mut World) {
    let (a, b) = world.pair();
    let ways: [(Family, [IpAddr; 3]); 2] = [
        (
            Family::V4,
            [
                ip("10.244.1.1"), // its gateway, on n1
                ip("10.244.2.0"), // the VTEP of n2
                b.ip4.into(),
            ],
        ),
        (
            Family::V6,
            [ip("fd00:10:244:1::1"), ip("fd00:10:244:2::"), b.ip6.into()],
        ),
    ];
    for (family, way) in ways {
        for (ttl, hop) in ["1", "2", "3"].iter().zip(way) {
            let ping = a.ping(b.ip(family), 1, &["-t", ttl]);
            let from = format!("rom {hop}");
            assert!(ping.text.contains(&from), "hop {ttl} is not {hop}: {}", ping.text);
            assert_eq!(ping.answered, u32::from(*ttl == "3"), "{}", ping.text);
        }
        let Ok(traceroute) = std::process::Command::new("traceroute").arg("-V").output() else {
            continue;
        };
        assert!(traceroute.status.success());
        let to = b.ip(family).to_string();
        let told = a.netns.ask(
            "traceroute",
            &["-n", "-q", "1", "-w", "1", "-N", "1", "-m", "5", &to],
        );
        let seen: Vec<&str> = told
            .lines()
            .skip(1)
            .filter_map(|l| l.split_whitespace().nth(1))
            .collect();
        assert_eq!(seen, way.map(|h| h.to_string()), "{told}");
    }
    assert!(world.nodes[0].drops(DropReason::TtlExceeded) >= 2);
    assert!(world.nodes[1].drops(DropReason::TtlExceeded) >= 2);
}

fn gateways(world: &mut World) {
    let (a, _) = world.pair();
    for own in ["10.244.1.1", "10.244.1.0", "10.244.2.0", "10.244.2.1"] {
        a.reaches(ip(own), 2, &[]);
    }
    for own in [
        "fd00:10:244:1::1",
        "fd00:10:244:1::",
        "fd00:10:244:2::",
        "fd00:10:244:2::1",
    ] {
        a.reaches(ip(own), 2, &[]);
    }
    // What does not fit a packet is not answered, and counted as what it is: three fragments each.
    for (own, most, over) in [
        ("10.244.1.1", "1422", "3000"),
        ("fd00:10:244:1::1", "1402", "3000"),
    ] {
        a.reaches(ip(own), 1, &["-s", most]);
        let before = world.nodes[0].drops(DropReason::FragmentForNode);
        a.ping(ip(own), 1, &["-s", over, "-W", "0.2"]).none();
        assert_eq!(world.nodes[0].drops(DropReason::FragmentForNode) - before, 3);
    }
    let nobody = [
        // On the own subnet, on the peer's, and on nobody's.
        ("10.244.1.200", "Destination Host Unreachable"),
        ("10.244.2.200", "Destination Host Unreachable"),
        ("10.244.77.1", "Destination Net Unreachable"),
        ("fd00:10:244:1::200", "Address unreachable"),
        ("fd00:10:244:2::200", "Address unreachable"),
        ("fd00:10:244:77::1", "No route"),
    ];
    for (to, says) in nobody {
        let ping = a.ping(ip(to), 1, &[]);
        ping.none();
        assert!(ping.text.contains(says), "{}", ping.text);
    }
    assert!(world.nodes[0].drops(DropReason::NoSuchPod) >= 2);
    assert!(world.nodes[0].drops(DropReason::NoRoute) >= 2);
    assert!(world.nodes[1].drops(DropReason::NoSuchPod) >= 2);
}

/// The index of a pod's interface.
pub fn index(netns: &Netns) -> u32 {
    netns.within(|| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).expect("a socket");
        rustix::net::netdevice::name_to_index(&socket, "eth0").expect("eth0")
    })
}

fn broadcasts(world: &mut World) {
    // Of two ports, as a process that is just being made may still hold a socket of the first round.
    const PORT: u16 = 4000;
    const PORT6: u16 = 4006;
    let all: Vec<&Pod> = world.all_pods().collect();
    let sender = all[0];
    let broadcast: SocketAddr = (Ipv4Addr::new(10, 244, 1, 255), PORT).into();
    let all_nodes: Ipv6Addr = "ff02::1".parse().expect("an address");
    let multicast: SocketAddr = SocketAddrV6::new(all_nodes, PORT6, 0, index(&sender.netns)).into();
    for (family, to) in [(Family::V4, broadcast), (Family::V6, multicast)] {
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let ears: Vec<UdpSocket> = all[1..]
            .iter()
            .map(|pod| {
                let ear = pod.netns.within(|| UdpSocket::bind((any, to.port())));
                ear.expect("a socket")
            })
            .collect();
        let mouth = sender.udp(family, 0);
        mouth.set_broadcast(true).expect("a flag");
        for n in 0..10u8 {
            mouth.send_to(&[n], to).expect("it is sent");
        }
        for (ear, pod) in ears.iter().zip(&all[1..]) {
            let want: Vec<u8> = if pod.node == 1 { (0..10).collect() } else { vec![] };
            let mut heard = Vec::new();
            let mut buffer = [0; 8];
            ear.set_read_timeout(Some(Duration::from_millis(150)))
                .expect("a timeout");
            while let Ok((1, _)) = ear.recv_from(&mut buffer) {
                heard.push(buffer[0]);
            }
            assert_eq!(heard, want, "what {} hears over {family:?}", pod.name);
        }
    }
    let counters = world.nodes[0].status().counters;
    assert_eq!(
        counters.copied, 20,
        "each of 20 frames to two others: {counters:?}"
    );
}

fn any_protocol(world: &mut World) {
    let (a, _) = world.pair();
    // SCTP, for experiments (RFC 3692), OSPF.
    for number in [132u32, 253, 89] {
        for to in [&world.pods[0][1], &world.pods[1][0]] {
            for family in FAMILIES {
                let raw = |pod: &Pod| {
                    let of = match family {
                        Family::V4 => AddressFamily::INET,
                        Family::V6 => AddressFamily::INET6,
                    };
                    let protocol = NonZero::new(number).map(Protocol::from_raw);
                    let fd = pod
                        .netns
                        .within(|| rustix::net::socket(of, SocketType::RAW, protocol));
                    // Only to have its methods: sendto and recvfrom are the same for all.
                    UdpSocket::from(fd.expect("a raw socket"))
                };
                let (mouth, ear) = (raw(a), raw(to));
                ear.set_read_timeout(Some(Duration::from_secs(2)))
                    .expect("a timeout");
                let said = format!("protocol {number} from {} to {}", a.name, to.name);
                mouth
                    .send_to(said.as_bytes(), (to.ip(family), 0))
                    .expect("it is sent");
                let mut heard = [0; 200];
                let n = ear
                    .recv(&mut heard)
                    .unwrap_or_else(|e| panic!("{said} over {family:?}: {e}"));
                assert!(heard[..n].ends_with(said.as_bytes()), "{said}");
            }
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
