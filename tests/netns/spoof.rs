//! A pod that pretends to be others (rows 37 to 39 of the fault table): each frame is dropped under its reason
//! and charged to its pod, nobody hears it, and nobody's neighbour table changes.

use super::frames::{MARK, advertisement, arp, echo4, ethernet, icmp6, ipv4, ipv6, udp, udp6};
use super::pod::{FAMILIES, Family, Place, Pod};
use super::raw::Raw;
use super::reach::index;
use super::world::{Case, World, eventually};
use podwire::model::{DropReason, Mac};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    Case::new("spoofed_sources_go_nowhere", sources).pods(2),
    Case::new("spoofed_neighbour_messages_go_nowhere", neighbours).pods(2),
    Case::new("only_the_node_is_a_router", rogues).pods(2),
    Case::new("announcing_oneself_is_no_crime", honest).pods(2),
    Case::new("names_are_asked_for_within_the_node", names)
        .pods(2)
        .node_args(&["--broadcast-per-second", "20"]),
];

/// Times each frame is sent.
const TIMES: u64 = 20;
const BROADCAST: Mac = Mac([0xff; 6]);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const NOBODY: Mac = Mac([0; 6]);

/// The stage: an attacker and a victim on n1, a far victim on n2.
struct Stage<'a> {
    world: &'a World,
    eve: &'a Pod,
    victim: &'a Pod,
    far: &'a Pod,
    mouth: Raw,
    ears: [Raw; 2],
    tables: Vec<String>,
}

impl<'a> Stage<'a> {
    fn new(world: &'a World) -> Stage<'a> {
        let (eve, victim, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
        // All know each other and their gateways.
        for from in world.all_pods() {
            for to in world.all_pods().filter(|to| to.name != from.name) {
                for family in FAMILIES {
                    from.reaches(to.ip(family), 1, &[]);
                }
            }
        }
        let mut stage = Stage {
            world,
            eve,
            victim,
            far,
            mouth: Raw::sender(eve),
            ears: [Raw::listener(victim), Raw::listener(far)],
            tables: vec![],
        };
        stage.tables = stage.tables();
        stage
    }

    /// Who the victims believe is where, without the state of each entry, which ages.
    fn tables(&self) -> Vec<String> {
        let table = |pod: &&Pod| {
            let shown = pod.netns.ask("ip", &["neigh", "show", "dev", "eth0"]);
            let mut entries: Vec<&str> = shown
                .lines()
                .filter(|l| l.contains("lladdr"))
                .map(|l| {
                    l.rsplit_once(' ')
                        .map_or(l, |(entry, _state)| entry.trim_end_matches(" router"))
                })
                .collect();
            entries.sort_unstable();
            entries.join("\n")
        };
        [self.victim, self.far].iter().map(table).collect()
    }

    /// Send `frame` from the attacker; it must be counted under `reason`, and not be heard.
    fn refuse(&self, what: &str, frame: &[u8], reason: DropReason) {
        let node = &self.world.nodes[0];
        let before = node.drops(reason);
        for _ in 0..TIMES {
            self.mouth.send(frame);
        }
        let mut counted = 0;
        eventually(&format!("{what} is counted"), Duration::from_secs(1), || {
            counted = node.drops(reason) - before;
            counted >= TIMES
        });
        assert_eq!(counted, TIMES, "{what}");
        // A frame that were routed on would have other MACs and another TTL.
        let marked = frame.windows(MARK.len()).any(|part| part == MARK);
        let sign = if marked { MARK } else { &frame[12..] };
        for (ear, who) in self.ears.iter().zip([self.victim, self.far]) {
            assert!(!ear.heard(sign), "{} heard {what}", who.name);
        }
    }

    /// What must hold at the end, after so many refused frames of the attacker.
    fn end(self, refused: u64) {
        assert_eq!(self.tables(), self.tables, "neighbour tables have changed");
        let status = self.world.nodes[0].status();
        for pod in &status.pods {
            let own = u64::from(pod.pod.name == self.eve.name) * refused;
            assert_eq!(pod.counters.drops, own, "drops charged to {}", pod.pod);
        }
        for family in FAMILIES {
            self.victim.reaches(self.far.ip(family), 3, &[]);
            self.eve.reaches(self.victim.ip(family), 3, &[]);
        }
    }
}

fn sources(world: &mut World) {
    let stage = Stage::new(world);
    let (eve, victim, far) = (stage.eve, stage.victim, stage.far);
    let gateway = world.gateway_mac(1);
    let good = |src: Mac| ethernet(victim.mac, src, 0x0800, &echo4(eve.ip4, victim.ip4, 64));
    let macs = [
        ("the victim's MAC", victim.mac),
        ("the gateway's MAC", gateway),
        ("a random MAC", Mac([2, 1, 2, 3, 4, 5])),
        ("a group MAC", Mac([0x0b, 0x58, 1, 2, 3, 4])),
        ("no MAC", NOBODY),
    ];
    let mut cases: Vec<(String, Vec<u8>, DropReason)> = macs
        .map(|(what, src)| (what.into(), good(src), DropReason::SpoofedMac))
        .into();
    let four: [Ipv4Addr; 7] = [
        victim.ip4,
        far.ip4,
        Ipv4Addr::new(10, 244, 1, 1),
        Ipv4Addr::new(198, 51, 100, 1),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        Ipv4Addr::LOCALHOST,
    ];
    let six: [Ipv6Addr; 6] = [
        victim.ip6,
        far.ip6,
        "fd00:10:244:1::1".parse().expect("an address"),
        "2001:db8::77".parse().expect("an address"),
        Ipv6Addr::UNSPECIFIED,
        victim.mac.link_local(),
    ];
    // Straight to the neighbour, by the gateway to the other node, and to all.
    let ways = [
        (victim.mac, victim.ip4, victim.ip6),
        (gateway, far.ip4, far.ip6),
        (BROADCAST, Ipv4Addr::BROADCAST, ALL_NODES),
    ];
    for (dst, dst4, dst6) in ways {
        for src in four {
            let packet = ipv4(src, dst4, 17, &udp(9, 9, MARK));
            let frame = ethernet(dst, eve.mac, 0x0800, &packet);
            cases.push((format!("{src} to {dst4}"), frame, DropReason::SpoofedIp));
        }
        for src in six {
            let packet = ipv6(src, dst6, 64, 17, &udp6(src, dst6, (9, 9), MARK));
            let frame = ethernet(dst, eve.mac, 0x86dd, &packet);
            cases.push((format!("{src} to {dst6}"), frame, DropReason::SpoofedIp));
        }
    }
    for (what, frame, reason) in &cases {
        stage.refuse(what, frame, *reason);
    }
    let refused = cases.len() as u64 * TIMES;
    stage.end(refused);
}

fn neighbours(world: &mut World) {
    let stage = Stage::new(world);
    let (eve, victim, far) = (stage.eve, stage.victim, stage.far);
    let gateway = (world.gateway_mac(1), Ipv4Addr::new(10, 244, 1, 1));
    let gateway6: Ipv6Addr = "fd00:10:244:1::1".parse().expect("an address");
    let four = |dst: Mac, message: Vec<u8>| ethernet(dst, eve.mac, 0x0806, &message);
    let six = |dst: Mac, packet: Vec<u8>| ethernet(dst, eve.mac, 0x86dd, &packet);
    let (me, you) = ((eve.mac, eve.ip4), (victim.mac, victim.ip4));
    let mut solicitation = [&[0; 4][..], &victim.ip6.octets(), &[1, 1], &victim.mac.0].concat();
    let asks_as_another = icmp6(eve.ip6, victim.ip6, 135, &solicitation);
    solicitation.truncate(20);
    let spoofed = DropReason::SpoofedNeighbour;
    let cases = [
        (
            "ARP: I am the gateway",
            four(victim.mac, arp(2, (eve.mac, gateway.1), you)),
            spoofed,
        ),
        (
            "ARP to all: I am the gateway",
            four(BROADCAST, arp(2, (eve.mac, gateway.1), (BROADCAST, gateway.1))),
            spoofed,
        ),
        (
            "gratuitous ARP for the gateway",
            four(BROADCAST, arp(1, (eve.mac, gateway.1), (NOBODY, gateway.1))),
            spoofed,
        ),
        (
            "gratuitous ARP for the victim",
            four(BROADCAST, arp(1, (eve.mac, you.1), (NOBODY, you.1))),
            spoofed,
        ),
        (
            "gratuitous ARP for a pod of another node",
            four(BROADCAST, arp(2, (eve.mac, far.ip4), (NOBODY, far.ip4))),
            spoofed,
        ),
        (
            "ARP: I have another MAC",
            four(victim.mac, arp(2, (far.mac, me.1), you)),
            spoofed,
        ),
        (
            "ARP question by another",
            four(BROADCAST, arp(1, (victim.mac, you.1), gateway)),
            spoofed,
        ),
        (
            "ARP for another kind of network",
            four(BROADCAST, [&[0, 6], &arp(1, me, gateway)[2..]].concat()),
            DropReason::BadNeighbour,
        ),
        (
            "advertisement: I am the gateway",
            six(victim.mac, advertisement(eve.ip6, victim.ip6, gateway6, eve.mac)),
            spoofed,
        ),
        (
            "advertisement to all: I am the gateway",
            six(
                ALL_NODES_MAC,
                advertisement(eve.ip6, ALL_NODES, gateway6, eve.mac),
            ),
            spoofed,
        ),
        (
            "advertisement to all: I am the victim",
            six(
                ALL_NODES_MAC,
                advertisement(eve.ip6, ALL_NODES, victim.ip6, eve.mac),
            ),
            spoofed,
        ),
        (
            "advertisement: I have another MAC",
            six(victim.mac, advertisement(eve.ip6, victim.ip6, eve.ip6, far.mac)),
            spoofed,
        ),
        (
            "advertisement in another's name",
            six(
                victim.mac,
                advertisement(gateway6, victim.ip6, gateway6, gateway.0),
            ),
            spoofed,
        ),
        (
            "solicitation with another's MAC",
            six(victim.mac, asks_as_another),
            spoofed,
        ),
        (
            "solicitation by another",
            six(victim.mac, icmp6(far.ip6, victim.ip6, 135, &solicitation)),
            DropReason::SpoofedIp,
        ),
    ];
    for (what, frame, reason) in &cases {
        stage.refuse(what, frame, *reason);
    }
    stage.end(cases.len() as u64 * TIMES);
}

fn rogues(world: &mut World) {
    let stage = Stage::new(world);
    let (eve, victim) = (stage.eve, stage.victim);
    let own = eve.mac.link_local();
    let four = |packet: Vec<u8>| ethernet(BROADCAST, eve.mac, 0x0800, &packet);
    let six = |packet: Vec<u8>| ethernet(ALL_NODES_MAC, eve.mac, 0x86dd, &packet);
    let advert = [&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..], &[1, 1], &eve.mac.0].concat();
    let redirect = [&[0; 4][..], &victim.ip6.octets(), &eve.ip6.octets()].concat();
    let all = Ipv4Addr::BROADCAST;
    let rogue = DropReason::RogueControl;
    let server = udp6(own, ALL_NODES, (547, 546), MARK);
    let cases = [
        (
            "router advertisement",
            six(icmp6(own, ALL_NODES, 134, &advert)),
            rogue,
        ),
        (
            "router advertisement by another",
            six(icmp6(victim.mac.link_local(), ALL_NODES, 134, &advert)),
            rogue,
        ),
        ("redirect", six(icmp6(own, ALL_NODES, 137, &redirect)), rogue),
        ("DHCPv6 server", six(ipv6(own, ALL_NODES, 64, 17, &server)), rogue),
        (
            "DHCP offer",
            four(ipv4(eve.ip4, all, 17, &udp(67, 68, MARK))),
            rogue,
        ),
        (
            "DHCP discover",
            four(ipv4(Ipv4Addr::UNSPECIFIED, all, 17, &udp(68, 67, MARK))),
            DropReason::Dhcp,
        ),
        (
            "ICMP redirect",
            four(ipv4(eve.ip4, victim.ip4, 1, &[5, 1, 0, 0, 10, 244, 1, 2])),
            rogue,
        ),
        (
            "ICMP router advertisement",
            four(ipv4(eve.ip4, all, 1, &[9, 0, 0, 0, 1, 2, 0, 0])),
            rogue,
        ),
    ];
    for (what, frame, reason) in &cases {
        stage.refuse(what, frame, *reason);
    }
    stage.end(cases.len() as u64 * TIMES);
}

/// A pod may announce itself; the node takes note, and bothers nobody with it.
fn honest(world: &mut World) {
    let stage = Stage::new(world);
    let eve = stage.eve;
    let me = (eve.mac, eve.ip4);
    let frames = [
        ethernet(BROADCAST, eve.mac, 0x0806, &arp(1, me, (NOBODY, eve.ip4))),
        ethernet(BROADCAST, eve.mac, 0x0806, &arp(2, me, me)),
        ethernet(
            ALL_NODES_MAC,
            eve.mac,
            0x86dd,
            &advertisement(eve.ip6, ALL_NODES, eve.ip6, eve.mac),
        ),
    ];
    let before = world.nodes[0].status().counters.consumed;
    for frame in frames.iter().cycle().take(frames.len() * TIMES as usize) {
        stage.mouth.send(frame);
    }
    eventually("all are taken", Duration::from_secs(1), || {
        world.nodes[0].status().counters.consumed >= before + 60
    });
    for frame in &frames {
        assert!(!stage.ears[0].heard(&frame[12..]), "the victim heard of it");
    }
    stage.end(0);
}

/// mDNS and LLMNR (row 39 of the fault table): pods find each other by them, so a question reaches the other pods
/// of the node, within the limit of broadcasts. It never enters the tunnel, and nobody asks in another's name.
fn names(world: &mut World) {
    let (eve, near, far) = (&world.pods[0][0], &world.pods[0][1], &world.pods[1][0]);
    let node = &world.nodes[0];
    let groups: [(&str, u16); 4] = [
        ("224.0.0.251", 5353),
        ("224.0.0.252", 5355),
        ("ff02::fb", 5353),
        ("ff02::1:3", 5355),
    ];
    let member = |pod: &Pod, group: IpAddr, port| {
        let interface = index(&pod.netns);
        let any: IpAddr = match group {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let ear = pod.netns.within(|| UdpSocket::bind((any, port)));
        let ear = ear.expect("a socket");
        match group {
            IpAddr::V4(group) => ear.join_multicast_v4(&group, &pod.ip4),
            IpAddr::V6(group) => ear.join_multicast_v6(&group, interface),
        }
        .expect("a member");
        ear.set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a timeout");
        ear
    };
    let hear = |ear: &UdpSocket| (0..1000).take_while(|_| ear.recv(&mut [0; 100]).is_ok()).count() as u64;
    for (group, port) in groups {
        let group: IpAddr = group.parse().expect("an address");
        let ears = [near, far].map(|pod| member(pod, group, port));
        let (mouth, to) = match group {
            IpAddr::V4(group) => (eve.udp(Family::V4, 0), SocketAddr::from((group, port))),
            IpAddr::V6(group) => {
                let to = SocketAddrV6::new(group, port, 0, index(&eve.netns));
                (eve.udp(Family::V6, 0), to.into())
            }
        };
        mouth.send_to(MARK, to).expect("it is sent");
        assert_eq!(ears.each_ref().map(hear), [1, 0], "who hears a question to {to}");
        let limited = node.drops(DropReason::StormLimit);
        for _ in 0..200 {
            mouth.send_to(MARK, to).expect("it is sent");
        }
        let [heard, elsewhere] = ears.each_ref().map(hear);
        assert!(
            (1..=60).contains(&heard),
            "{heard} of 200 questions in one go to {to}"
        );
        assert_eq!(elsewhere, 0);
        assert!(node.drops(DropReason::StormLimit) > limited + 100);
        // Tokens for the next.
        std::thread::sleep(Duration::from_millis(500));
    }
    let ears = [near, far].map(Raw::listener);
    let group = Ipv4Addr::new(224, 0, 0, 251);
    let answer = ipv4(near.ip4, group, 17, &udp(5353, 5353, MARK));
    let spoofed = node.drops(DropReason::SpoofedIp);
    Raw::sender(eve).send(&ethernet(Mac([1, 0, 0x5e, 0, 0, 0xfb]), eve.mac, 0x0800, &answer));
    eventually(
        "an answer in another's name is refused",
        Duration::from_secs(1),
        || node.drops(DropReason::SpoofedIp) == spoofed + 1,
    );
    assert!(!ears.iter().any(|ear| ear.heard(MARK)));
}
