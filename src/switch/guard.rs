//! The source guard: a pod sends only as itself.
//!
//! Each frame from a pod passes [`check`] before anything else looks at it. What passes has the port's MAC,
//! one of the port's addresses, and is none of the messages by which a host would make itself the router,
//! the DHCP server or the neighbour of others (CVE-2020-10749 and its family).
//!
//! Anything that could hide such a message is refused too: neighbour discovery in fragments or behind
//! extension headers (RFC 6980, RFC 7113), first fragments without the whole header chain (RFC 7112) and
//! chains too long to walk. Later fragments have no ports to look at; they pass on their addresses,
//! since the first fragment is what decides.

use crate::model::{DropReason, Mac, PortSpec};
use crate::wire::bytes::array;
use crate::wire::{ETH_LEN, EthView, Headers, L3, proto};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether the pod behind `spec` may send this frame. `h` are the frame's own headers.
///
/// # Errors
/// The reason the frame must be dropped for. Control messages are named before spoofed addresses, so that a
/// rogue router shows up as such whatever source it invents.
#[inline]
pub fn check(spec: &PortSpec, frame: &[u8], h: &Headers) -> Result<(), DropReason> {
    let src = EthView(frame).src();
    if src != spec.mac || src.is_multicast() {
        return Err(DropReason::SpoofedMac);
    }
    match h.l3 {
        L3::Arp => arp(spec, frame),
        L3::Ipv4 => ipv4(spec, frame, h),
        L3::Ipv6 => ipv6(spec, frame, h),
    }
}

/// RFC 826; the sender's protocol address is zero in a probe (RFC 5227 section 2.1.1).
fn arp(spec: &PortSpec, frame: &[u8]) -> Result<(), DropReason> {
    let message = frame.get(ETH_LEN..).unwrap_or_default();
    // Ethernet, IPv4, and the lengths of their addresses.
    if array::<6>(message, 0) != [0, 1, 8, 0, 6, 4] {
        return Err(DropReason::BadNeighbour);
    }
    let sender_mac = Mac(array(message, 8));
    let sender_ip = Ipv4Addr::from(array::<4>(message, 14));
    let own = Some(sender_ip) == spec.ip4 || sender_ip.is_unspecified();
    if sender_mac == spec.mac && own {
        Ok(())
    } else {
        Err(DropReason::SpoofedNeighbour)
    }
}

fn ipv4(spec: &PortSpec, frame: &[u8], h: &Headers) -> Result<(), DropReason> {
    match h.proto {
        proto::UDP => match h.ports(frame) {
            (67, _) => return Err(DropReason::RogueControl),
            // Also what a client without an address sends from 0.0.0.0.
            (68, 67) => return Err(DropReason::Dhcp),
            _ => {}
        },
        // A redirect, or a router advertisement (RFC 1256).
        proto::ICMP if matches!(message_type(frame, h), Some(5 | 9)) => {
            return Err(DropReason::RogueControl);
        }
        _ => {}
    }
    match h.src(frame) {
        IpAddr::V4(src) if Some(src) == spec.ip4 => Ok(()),
        _ => Err(DropReason::SpoofedIp),
    }
}

fn ipv6(spec: &PortSpec, frame: &[u8], h: &Headers) -> Result<(), DropReason> {
    let IpAddr::V6(src) = h.src(frame) else {
        return Err(DropReason::SpoofedIp);
    };
    // With nothing behind the chain, either the chain was too long to walk (the protocol is still an
    // extension's), or this is a first fragment that leaves the transport to the second (RFC 7112).
    let chain_goes_on = matches!(h.proto, 0 | 43 | 44 | 51 | 60);
    if h.l4 == h.end && !h.later_fragment && (h.fragment || chain_goes_on) {
        return Err(DropReason::RogueControl);
    }
    let mut may_be_unspecified = false;
    match h.proto {
        proto::UDP => match h.ports(frame) {
            (547, _) => return Err(DropReason::RogueControl),
            (546, 547) => return Err(DropReason::Dhcp),
            _ => {}
        },
        proto::ICMPV6 => match message_type(frame, h) {
            // A router advertisement or a redirect.
            Some(134 | 137) => return Err(DropReason::RogueControl),
            Some(kind @ (133 | 135 | 136)) => {
                neighbour(spec, frame, h, kind)?;
                // Duplicate address detection (RFC 4862 section 5.4.2), or a host that asks for routers
                // before it has an address (RFC 4861 section 4.1).
                may_be_unspecified = kind != 136;
            }
            // MLD reports sent before the link-local is ready (RFC 3590, RFC 3810 section 5.2.13).
            Some(131 | 132 | 143) => may_be_unspecified = true,
            _ => {}
        },
        _ => {}
    }
    // A pod without an IPv6 address has no IPv6 at all: a link-local would be a way around its IPv4 rules.
    let own = spec.ip6.is_some() && (Some(src) == spec.ip6 || src == spec.mac.link_local());
    if own || (src.is_unspecified() && may_be_unspecified && spec.ip6.is_some()) {
        Ok(())
    } else {
        Err(DropReason::SpoofedIp)
    }
}

/// A solicitation or advertisement: it must come from this link, and speak of the pod's own MAC (and, where
/// it claims an address, own address) only.
fn neighbour(spec: &PortSpec, frame: &[u8], h: &Headers, kind: u8) -> Result<(), DropReason> {
    if !h.plain {
        return Err(DropReason::RogueControl);
    }
    let message = frame.get(h.l4..h.end).unwrap_or_default();
    let fixed = if kind == 133 { 8 } else { 24 };
    let Some(options) = message.get(fixed..) else {
        return Err(DropReason::BadNeighbour);
    };
    // Only a sender on this link can have a hop limit of 255 (RFC 4861 section 3.1).
    if h.ttl(frame) != 255 || message[1] != 0 {
        return Err(DropReason::BadNeighbour);
    }
    let target = Ipv6Addr::from(array::<16>(message, 8));
    if kind == 136 && Some(target) != spec.ip6 && target != spec.mac.link_local() {
        return Err(DropReason::SpoofedNeighbour);
    }
    link_layer_options_are_own(options, spec.mac)
}

/// Every link-layer address option must carry the own MAC: hosts differ in which of several they believe.
fn link_layer_options_are_own(mut options: &[u8], own: Mac) -> Result<(), DropReason> {
    while !options.is_empty() {
        // The length counts units of eight bytes and is never zero (RFC 4861 section 4.6).
        let len = usize::from(array::<2>(options, 0)[1]) * 8;
        let Some((option, rest)) = options.split_at_checked(len).filter(|_| len > 0) else {
            return Err(DropReason::BadNeighbour);
        };
        let is_address = matches!(option[0], 1 | 2);
        if is_address && (len != 8 || array::<6>(option, 2) != own.0) {
            return Err(DropReason::SpoofedNeighbour);
        }
        options = rest;
    }
    Ok(())
}

/// The type of an ICMP or ICMPv6 message; `None` when the packet does not show it (`l4 == end`).
fn message_type(frame: &[u8], h: &Headers) -> Option<u8> {
    frame.get(h.l4..h.end)?.first().copied()
}

#[cfg(test)]
mod tests {
    use super::check;
    use crate::model::{DropReason, Mac, PortSpec};
    use crate::switch::testing::*;
    use crate::wire::{EthView, Headers, L3};
    use smoltcp::wire::ArpOperation::{Reply, Request};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn verdict(spec: &PortSpec, frame: &[u8]) -> Result<(), DropReason> {
        check(spec, frame, &Headers::parse(frame).unwrap())
    }

    fn own() -> (PortSpec, Mac, Ipv4Addr, Ipv6Addr, Ipv6Addr) {
        let s = spec(2);
        (
            s.clone(),
            s.mac,
            s.ip4.unwrap(),
            s.ip6.unwrap(),
            s.mac.link_local(),
        )
    }

    const OTHER_MAC: Mac = Mac([0x0a, 0x58, 10, 244, 1, 3]);
    const OTHER4: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 3);
    const OTHER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 3);
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const ANY: Ipv6Addr = Ipv6Addr::UNSPECIFIED;

    #[test]
    fn arp_speaks_for_the_own_address_only() {
        let (s, mac, ip, ..) = own();
        let none = Mac([0; 6]);
        let zero = Ipv4Addr::UNSPECIFIED;
        let spoofed = Err(DropReason::SpoofedNeighbour);
        for (name, frame, want) in [
            ("request", arp(Request, mac, (mac, ip), (none, OTHER4)), Ok(())),
            ("probe", arp(Request, mac, (mac, zero), (none, ip)), Ok(())),
            ("gratuitous", arp(Request, mac, (mac, ip), (none, ip)), Ok(())),
            ("gratuitous reply", arp(Reply, mac, (mac, ip), (mac, ip)), Ok(())),
            (
                "another's address",
                arp(Reply, mac, (mac, OTHER4), (OTHER_MAC, ip)),
                spoofed,
            ),
            (
                "another's gratuitous",
                arp(Request, mac, (mac, OTHER4), (none, OTHER4)),
                spoofed,
            ),
            (
                "another's MAC inside",
                arp(Request, mac, (OTHER_MAC, ip), (none, OTHER4)),
                spoofed,
            ),
            (
                "another's MAC outside",
                arp(Request, OTHER_MAC, (mac, ip), (none, ip)),
                Err(DropReason::SpoofedMac),
            ),
        ] {
            assert_eq!(verdict(&s, &frame), want, "{name}");
        }
        let mut bad = arp(Request, mac, (mac, ip), (none, OTHER4));
        bad[15] = 6; // token ring
        assert_eq!(verdict(&s, &bad), Err(DropReason::BadNeighbour));
        let group = PortSpec {
            mac: Mac([3; 6]),
            ..s
        };
        let frame = arp(Request, group.mac, (group.mac, ip), (none, OTHER4));
        assert_eq!(verdict(&group, &frame), Err(DropReason::SpoofedMac));
    }

    #[test]
    fn ipv4_sources_and_control() {
        let (s, mac, ip, ..) = own();
        let zero = Ipv4Addr::UNSPECIFIED;
        let rogue = Err(DropReason::RogueControl);
        for (name, src, proto, payload, want) in [
            ("udp", ip, 17, &udp(1000, 53)[..], Ok(())),
            ("tcp", ip, 6, &[0; 20], Ok(())),
            ("ping", ip, 1, &[8, 0, 0, 0, 0, 0, 0, 0], Ok(())),
            ("unreachable", ip, 1, &[3, 3, 0, 0, 0, 0, 0, 0], Ok(())),
            ("empty icmp", ip, 1, &[], Ok(())),
            ("mdns", ip, 17, &udp(5353, 5353), Ok(())),
            ("llmnr", ip, 17, &udp(5355, 5355), Ok(())),
            (
                "another's source",
                OTHER4,
                6,
                &[0; 20],
                Err(DropReason::SpoofedIp),
            ),
            ("no source", zero, 17, &udp(1000, 53), Err(DropReason::SpoofedIp)),
            ("dhcp discover", zero, 17, &udp(68, 67), Err(DropReason::Dhcp)),
            ("dhcp renewal", ip, 17, &udp(68, 67), Err(DropReason::Dhcp)),
            ("dhcp offer", ip, 17, &udp(67, 68), rogue),
            ("redirect", ip, 1, &[5, 1, 0, 0, 0, 0, 0, 0], rogue),
            ("router advertisement", ip, 1, &[9, 0, 0, 0, 0, 0, 0, 0], rogue),
            ("redirect of another", OTHER4, 1, &[5, 1, 0, 0, 0, 0, 0, 0], rogue),
        ] {
            let frame = ipv4(mac, src, OTHER4, proto, payload);
            assert_eq!(verdict(&s, &frame), want, "{name}");
        }
        let v6_only = PortSpec {
            ip4: None,
            ..s.clone()
        };
        assert_eq!(
            verdict(&v6_only, &ipv4(mac, ip, OTHER4, 6, &[])),
            Err(DropReason::SpoofedIp)
        );
        // Later fragments pass on their address alone.
        let mut later = ipv4(mac, ip, OTHER4, 17, &udp(67, 68));
        later[20..22].copy_from_slice(&[0, 2]);
        fix_ipv4_sum(&mut later);
        assert_eq!(verdict(&s, &later), Ok(()));
        let mut later = ipv4(mac, OTHER4, ip, 17, &udp(67, 68));
        later[20..22].copy_from_slice(&[0, 2]);
        fix_ipv4_sum(&mut later);
        assert_eq!(verdict(&s, &later), Err(DropReason::SpoofedIp));
    }

    #[test]
    fn ipv6_sources_and_control() {
        let (s, mac, _, ip, ll) = own();
        let rogue = Err(DropReason::RogueControl);
        let spoofed = Err(DropReason::SpoofedIp);
        let message = |kind: u8| [kind, 0, 0, 0, 0, 0, 0, 0];
        for (name, src, next, payload, want) in [
            ("udp", ip, 17, udp(1000, 53), Ok(())),
            ("udp from the link-local", ll, 17, udp(1000, 53), Ok(())),
            ("mdns", ll, 17, udp(5353, 5353), Ok(())),
            ("ping", ip, 58, message(128), Ok(())),
            ("mld report", ANY, 58, message(143), Ok(())),
            ("no next header", ip, 59, message(0), Ok(())),
            ("another's", OTHER6, 17, udp(1000, 53), spoofed),
            (
                "another's link-local",
                OTHER_MAC.link_local(),
                17,
                udp(1, 2),
                spoofed,
            ),
            ("unspecified", ANY, 17, udp(1000, 53), spoofed),
            ("unspecified ping", ANY, 58, message(128), spoofed),
            ("router advertisement", ll, 58, message(134), rogue),
            ("redirect", ll, 58, message(137), rogue),
            ("dhcpv6 server", ll, 17, udp(547, 546), rogue),
            ("dhcpv6 client", ll, 17, udp(546, 547), Err(DropReason::Dhcp)),
        ] {
            assert_eq!(
                verdict(&s, &ipv6(mac, src, ALL_NODES, 255, next, &payload)),
                want,
                "{name}"
            );
        }
        let v4_only = PortSpec { ip6: None, ..s };
        for frame in [
            ipv6(mac, ll, ALL_NODES, 1, 58, &message(143)),
            ipv6(mac, ANY, ALL_NODES, 1, 58, &message(143)),
        ] {
            assert_eq!(verdict(&v4_only, &frame), spoofed);
        }
    }

    #[test]
    fn neighbour_messages_speak_of_the_own_mac_and_address() {
        let (s, mac, _, ip, ll) = own();
        let spoofed = Err(DropReason::SpoofedNeighbour);
        let two = [lladdr(1, mac), lladdr(1, OTHER_MAC)].concat();
        for (name, kind, src, target, options, want) in [
            ("solicitation", 135, ip, OTHER6, lladdr(1, mac), Ok(())),
            ("solicitation without option", 135, ll, OTHER6, vec![], Ok(())),
            (
                "duplicate detection",
                135,
                ANY,
                ip,
                vec![14, 1, 1, 2, 3, 4, 5, 6],
                Ok(()),
            ),
            (
                "solicitation with another's MAC",
                135,
                ip,
                OTHER6,
                lladdr(1, OTHER_MAC),
                spoofed,
            ),
            ("the same behind the own", 135, ip, OTHER6, two, spoofed),
            ("advertisement", 136, ip, ip, lladdr(2, mac), Ok(())),
            (
                "advertisement of the link-local",
                136,
                ll,
                ll,
                lladdr(2, mac),
                Ok(()),
            ),
            (
                "advertisement of another's address",
                136,
                ip,
                OTHER6,
                lladdr(2, mac),
                spoofed,
            ),
            (
                "advertisement with another's MAC",
                136,
                ip,
                ip,
                lladdr(2, OTHER_MAC),
                spoofed,
            ),
            (
                "advertisement from nowhere",
                136,
                ANY,
                ip,
                lladdr(2, mac),
                Err(DropReason::SpoofedIp),
            ),
            (
                "another's source",
                135,
                OTHER6,
                ip,
                vec![],
                Err(DropReason::SpoofedIp),
            ),
            (
                "option of length zero",
                135,
                ip,
                OTHER6,
                vec![1, 0, 0, 0],
                Err(DropReason::BadNeighbour),
            ),
            (
                "option beyond the end",
                135,
                ip,
                OTHER6,
                vec![1, 2, 0, 0],
                Err(DropReason::BadNeighbour),
            ),
        ] {
            assert_eq!(
                verdict(&s, &nd(kind, mac, src, ALL_NODES, target, &options)),
                want,
                "{name}"
            );
        }
        let mut far = nd(135, mac, ip, ALL_NODES, OTHER6, &[]);
        far[21] = 64;
        assert_eq!(verdict(&s, &far), Err(DropReason::BadNeighbour));
        let short = ipv6(mac, ip, ALL_NODES, 255, 58, &[135, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(verdict(&s, &short), Err(DropReason::BadNeighbour));
        let rs = ipv6(mac, ANY, ALL_NODES, 255, 58, &[133, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(verdict(&s, &rs), Ok(()));
    }

    #[test]
    fn nothing_hides_behind_extensions_or_fragments() {
        let (s, mac, _, ip, ll) = own();
        let rogue = Err(DropReason::RogueControl);
        let options = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let fragment = |next: u8, offset_flags: u16| {
            let o = offset_flags.to_be_bytes();
            [next, 0, o[0], o[1], 0, 0, 0, 7]
        };
        let ra = [134u8, 0, 0, 0, 0, 0, 0, 0];
        let ns = [&[135u8, 0, 0, 0, 0, 0, 0, 0][..], &OTHER6.octets()].concat();
        let chain: Vec<u8> = std::iter::repeat_n(options(60), 9).flatten().collect();
        for (name, next, payload, want) in [
            ("RA behind options", 60, [&options(58)[..], &ra].concat(), rogue),
            (
                "RA behind two",
                0,
                [&options(60)[..], &options(58), &ra].concat(),
                rogue,
            ),
            (
                "RA in a first fragment",
                44,
                [&fragment(58, 1)[..], &ra].concat(),
                rogue,
            ),
            (
                "RA in an atomic fragment",
                44,
                [&fragment(58, 0)[..], &ra].concat(),
                rogue,
            ),
            (
                "RA left to the second fragment",
                44,
                [&fragment(60, 1)[..], &options(58)].concat(),
                rogue,
            ),
            ("NS behind options", 60, [&options(58)[..], &ns].concat(), rogue),
            (
                "NS in a first fragment",
                44,
                [&fragment(58, 1)[..], &ns].concat(),
                rogue,
            ),
            (
                "NS in an atomic fragment",
                44,
                [&fragment(58, 0)[..], &ns].concat(),
                rogue,
            ),
            ("a chain too long", 60, [&chain[..], &ra].concat(), rogue),
            (
                "ping in a first fragment",
                44,
                [&fragment(58, 1)[..], &[128, 0, 0, 0]].concat(),
                Ok(()),
            ),
            (
                "a later fragment",
                44,
                [&fragment(58, 8)[..], &ra].concat(),
                Ok(()),
            ),
            (
                "UDP behind options",
                60,
                [&options(17)[..], &udp(1, 2)].concat(),
                Ok(()),
            ),
            (
                "DHCPv6 server behind options",
                60,
                [&options(17)[..], &udp(547, 546)].concat(),
                rogue,
            ),
            (
                "MLD report behind router alert",
                0,
                [&options(58)[..], &[143, 0, 0, 0]].concat(),
                Ok(()),
            ),
        ] {
            for src in [ip, ll] {
                assert_eq!(
                    verdict(&s, &ipv6(mac, src, ALL_NODES, 255, next, &payload)),
                    want,
                    "{name}"
                );
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_passes_is_the_pods_own(
            kind in 0..6,
            cut in 14usize..200,
            changes in proptest::collection::vec((14usize..120, proptest::num::u8::ANY), 0..6),
            noise in proptest::collection::vec(proptest::num::u8::ANY, 0..120),
        ) {
            let (s, mac, ip4, ip6, _) = own();
            let mut f = match kind {
                0 => arp(Request, mac, (mac, ip4), (Mac([0; 6]), OTHER4)),
                1 => ipv4(mac, ip4, OTHER4, 17, &udp(1, 2)),
                2 => nd(135, mac, ip6, ALL_NODES, OTHER6, &lladdr(1, mac)),
                3 => ipv6(mac, ip6, OTHER6, 64, 60, &noise),
                4 => ethernet(mac, mac, 0x0800, &noise),
                _ => ethernet(mac, mac, 0x86dd, &noise),
            };
            for (at, v) in changes {
                if let Some(b) = f.get_mut(at) { *b = v; }
            }
            f.truncate(cut);
            fix_ipv4_sum(&mut f);
            if let Ok(h) = Headers::parse(&f) && check(&s, &f, &h).is_ok() {
                assert_eq!(EthView(&f).src(), mac);
                let legal: [IpAddr; 5] =
                    [ip4.into(), ip6.into(), mac.link_local().into(), ANY.into(), Ipv4Addr::UNSPECIFIED.into()];
                assert!(legal.contains(&h.src(&f)), "{:?}", h.src(&f));
                assert!(h.l3 != L3::Ipv4 || h.src(&f) == IpAddr::V4(ip4));
            }
        }

        #[test]
        fn headers_of_another_frame_do_no_harm(
            a in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
            end in 0usize..200, l4 in 0usize..200, proto in proptest::num::u8::ANY, v6: bool,
        ) {
            let l3 = if v6 { L3::Ipv6 } else { L3::Ipv4 };
            let h = Headers { l3, proto, l4, end, fragment: false, later_fragment: false, plain: true };
            let s = PortSpec { mac: EthView(&a).src(), ..spec(2) };
            let _ = check(&s, &a, &h);
        }
    }
}
