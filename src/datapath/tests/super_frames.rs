//! Super-frames that are cut short, and that lie about themselves.

use super::*;

/// A super-frame of small segments takes two messages; there may be room for the first only.
#[test]
fn a_super_frame_stopped_half_way_is_a_drop() {
    let mut lab = Lab::new(1);
    let dst = Ipv4Addr::new(10, 244, 2, 2);
    let (vnet, frame) = bulk(lab.gateway(), dst, 60_000);
    let small = VnetHdr {
        gso_size: 480,
        ..vnet
    };
    // With room it goes out whole, and counts as one frame; a probe goes with it.
    lab.send(0, &small, &frame);
    let datagrams = |lab: &Lab| lab.out.to_peers.iter().map(|(_, d)| d.len()).sum::<usize>();
    assert_eq!((datagrams(&lab), lab.node.counters().frames_to_peers), (126, 2));
    lab.out.to_peers.clear();
    // A longer datagram than those before begins a message. Of 64 that wait the underlay takes 63.
    for len in 8..71 {
        let one = ipv4(lab.gateway(), 2, dst, 1, &vec![0; len]);
        lab.read(0, &VnetHdr::default(), &one);
    }
    lab.out.room = Some(63);
    lab.read(0, &small, &frame);
    assert_eq!(datagrams(&lab), 63);
    assert_eq!(lab.dropped(DropReason::UnderlayFull), 1);
    assert_eq!(lab.node.port_counters(PortId(0)).unwrap().drops, 1);
    lab.out.room = None;
    lab.settle();
    assert_eq!(datagrams(&lab), 63 + 64, "half of it is out");
    lab.balanced();
}

/// Row 43 of the fault table: whichever way a frame goes, a header that lies about it is found out first.
#[test]
fn lying_virtio_net_headers_are_refused_on_every_way() {
    let near = spec(1, 3);
    let ways = [
        (near.mac, near.ip4.unwrap()),
        (Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1)), near.ip4.unwrap()),
        (
            Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1)),
            Ipv4Addr::new(10, 244, 2, 2),
        ),
        (
            Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1)),
            Ipv4Addr::new(10, 244, 1, 1),
        ),
        (Mac::BROADCAST, Ipv4Addr::new(10, 244, 1, 255)),
    ];
    for (mac, dst) in ways {
        let (good, frame) = bulk(mac, dst, 4000);
        let len = frame.len() as u16;
        let (gso, gso_size) = (Gso::None, 0);
        let lies = [
            (
                "checksum beyond the frame",
                VnetHdr {
                    partial: Some((len, 16)),
                    ..good
                },
            ),
            (
                "checksum field beyond the frame",
                VnetHdr {
                    partial: Some((34, len)),
                    gso,
                    gso_size,
                    ..good
                },
            ),
            (
                "checksum in the Ethernet header",
                VnetHdr {
                    partial: Some((0, 16)),
                    gso,
                    gso_size,
                    ..good
                },
            ),
            (
                "checksum in the IP header",
                VnetHdr {
                    partial: Some((14, 10)),
                    gso,
                    gso_size,
                    ..good
                },
            ),
            (
                "checksum far away",
                VnetHdr {
                    partial: Some((65_535, 65_535)),
                    gso,
                    gso_size,
                    ..good
                },
            ),
            (
                "headers longer than the frame",
                VnetHdr {
                    hdr_len: len + 1,
                    ..good
                },
            ),
            ("segments of nothing", VnetHdr { gso_size: 0, ..good }),
            ("segments of one byte", VnetHdr { gso_size: 1, ..good }),
            ("more than 128 segments", VnetHdr { gso_size: 31, ..good }),
            (
                "IPv6 by the header",
                VnetHdr {
                    gso: Gso::Tcp6,
                    ..good
                },
            ),
            (
                "UDP by the header",
                VnetHdr {
                    gso: Gso::Udp,
                    ..good
                },
            ),
            (
                "UDP's checksum in TCP",
                VnetHdr {
                    partial: Some((34, 6)),
                    ..good
                },
            ),
            (
                "segments without a checksum to make",
                VnetHdr {
                    partial: None,
                    ..good
                },
            ),
            (
                "UDP segments without a checksum to make",
                VnetHdr {
                    partial: None,
                    gso: Gso::Udp,
                    ..good
                },
            ),
        ];
        for (what, lie) in lies {
            let mut lab = Lab::new(1);
            lab.send(0, &lie, &frame);
            assert_eq!(
                lab.dropped(DropReason::BadVnetHdr),
                1,
                "{what} to {dst}: {:?}",
                lab.node.drops()
            );
            assert!(
                lab.out.to_pods.is_empty() && lab.out.to_peers.is_empty(),
                "{what} to {dst}"
            );
            lab.balanced();
        }
        // One segment that would take more than there is: small is no lie, and the kernel says the same (65,535 it
        // keeps for itself).
        let mut lab = Lab::new(1);
        lab.send(
            0,
            &VnetHdr {
                gso_size: 65_534,
                ..good
            },
            &frame,
        );
        assert_eq!(lab.dropped(DropReason::BadVnetHdr), 0);
        lab.balanced();
    }
}
