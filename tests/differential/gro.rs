//! Merging beside the kernel's GRO: the same packets are sent over a veth whose other end merges, and a packet socket
//! with virtio-net headers there shows what the kernel made of them.
//!
//! ```text
//!   packet socket -> v0 ====== v1 (gro on, merges UDP for forwarding too) -> packet socket, PACKET_VNET_HDR
//! ```
//!
//! Packets that come one by one are not merged: what is to be merged waits in a token bucket of `v0` until it is
//! opened, and comes in one poll.
//!
//! Results are the same to the byte, but for four rules by which podwire merges less. Newer kernels (seen: 6.18)
//! merge segments that all carry CWR, for Accurate ECN, and take identifications that stand still without DF as well.
//! The kernel merges packets with equal IPv6 extension headers. And it hands on a packet with a wrong checksum, and
//! an empty datagram, at once and past the train that is held back, which for datagrams goes on behind it; podwire
//! keeps the order, so that the train ends. One rule is wider here: Linux merges up to 64 datagrams of UDP, while a
//! train that was cut by UDP_SEGMENT may have 128 (`coalesce::FRAMES`), so no input has more than 60 packets.
#![allow(unsafe_code)] // Packet sockets: bind with a sockaddr_ll, setsockopt with SOL_PACKET.

use super::impair::Rng;
use super::netns::Netns;
use super::packet::{Packet, merge};
use super::streams::{self, carried, lengths};
use podwire::wire::{Gso, Headers, VNET_HDR_LEN, VnetHdr};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

/// How often an input is given at most: on a busy machine one poll may become two.
const TRIES: usize = 5;
/// The token bucket while it holds packets back: two packets that nobody counts empty it.
const SHUT: &str = "rate 8bit burst 1600 limit 1000000";
const OPEN: &str = "rate 10gbit burst 1000000 limit 1000000";
const CWR: u8 = 0x80;

struct Kernel {
    netns: Netns,
    mouth: OwnedFd,
    ear: OwnedFd,
}

fn packet_socket(netns: &Netns, name: &str, protocol: u16, vnet: bool) -> OwnedFd {
    netns.within(|| {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None);
        let socket = socket.expect("a packet socket");
        let on = libc::c_int::from(vnet);
        // SAFETY: PACKET_VNET_HDR reads an int of the stated length, which `on` is.
        let rc = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as u32,
            )
        };
        assert_eq!(rc, 0, "PACKET_VNET_HDR: {}", io::Error::last_os_error());
        let index = rustix::net::netdevice::name_to_index(&socket, name).expect("an interface");
        // SAFETY: an all-zero sockaddr_ll is valid: it holds integers only.
        let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        at.sll_family = libc::AF_PACKET as u16;
        at.sll_protocol = protocol.to_be();
        at.sll_ifindex = index as i32;
        // SAFETY: bind reads a sockaddr_ll of the stated length, which `at` is.
        let rc = unsafe {
            let len = size_of::<libc::sockaddr_ll>() as u32;
            libc::bind(socket.as_raw_fd(), (&raw const at).cast(), len)
        };
        assert_eq!(rc, 0, "binding to {name}: {}", io::Error::last_os_error());
        socket
    })
}

impl Kernel {
    fn new() -> Option<Kernel> {
        if Command::new("ethtool").arg("--version").output().is_err() {
            eprintln!(
                "differential: ethtool is missing, so nothing is compared here (tests/run installs it)"
            );
            return None;
        }
        let netns = Netns::new();
        netns.ip("link add v0 type veth peer name v1\n\
             link set v0 addrgenmode none up\n\
             link set v1 addrgenmode none up\n");
        netns.ask("ethtool", &["-K", "v0", "tso", "off", "gso", "off", "tx", "off"]);
        netns.ask(
            "ethtool",
            &["-K", "v1", "gro", "on", "rx-udp-gro-forwarding", "on"],
        );
        let up = || netns.ask("ip", &["link", "show", "v1"]).contains("state UP");
        let begun = Instant::now();
        while !up() {
            assert!(
                begun.elapsed() < Duration::from_secs(3),
                "the veth does not come up"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        let mouth = packet_socket(&netns, "v0", 0, false);
        let ear = packet_socket(&netns, "v1", libc::ETH_P_ALL as u16, true);
        Some(Kernel { netns, mouth, ear })
    }

    fn bucket(&self, state: &str) {
        let words = format!("qdisc replace dev v0 root handle 1: tbf {state}");
        let words: Vec<&str> = words.split(' ').collect();
        self.netns.ask("tc", &words);
    }

    fn send(&self, frame: &[u8]) {
        rustix::net::send(&self.mouth, frame, SendFlags::empty()).expect("it is sent");
    }

    /// What the kernel makes of frames that come at once.
    fn merge(&self, frames: &[Vec<u8>]) -> Vec<(VnetHdr, Vec<u8>)> {
        let (last, held) = frames.split_last().expect("some frames");
        if !held.is_empty() {
            self.bucket(SHUT);
            // To nobody, of a protocol for experiments.
            let nothing = [&[2; 12][..], &[0x88, 0xb5]].concat();
            for len in [1500, 46] {
                self.send(&[&nothing[..], &vec![0; len]].concat());
            }
            held.iter().for_each(|frame| self.send(frame));
            self.bucket(OPEN);
        }
        // It takes those that wait along.
        self.send(last);
        let payload = |frame: &[u8]| {
            let h = Headers::parse(frame).expect("a packet");
            (h.end - h.l4 - h.l4_len(frame)).max(1)
        };
        let want: usize = frames.iter().map(|f| payload(f)).sum();
        let (begun, mut buffer) = (Instant::now(), vec![0; 70_000]);
        let (mut got, mut all) = (0, Vec::new());
        while got < want {
            assert!(
                begun.elapsed() < Duration::from_secs(2),
                "{got} of {want} bytes arrive"
            );
            match rustix::net::recv(&self.ear, &mut buffer[..], RecvFlags::empty()) {
                Ok((n, _)) => {
                    let (vnet, frame) = buffer[..n].split_at(VNET_HDR_LEN);
                    // Only what was sent here: the stack greets multicast routers when it likes.
                    if frame[..6] == frames[0][..6] {
                        got += payload(frame);
                        all.push((VnetHdr::parse(vnet).expect("a header"), frame.to_vec()));
                    }
                }
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        all
    }

    /// podwire must merge these packets as the kernel does.
    fn compare(&self, what: &str, packets: &[Packet]) {
        let frames: Vec<Vec<u8>> = packets.iter().map(Packet::frame).collect();
        let ours = merge(&frames);
        let less = packets.iter().any(podwire_merges_less);
        let our = carried(&ours);
        let mut their = Vec::new();
        for _ in 0..TRIES {
            let kernels = self.merge(&frames);
            their = carried(&kernels);
            if our == their {
                return same(what, &ours, &kernels);
            }
            if less && our.len() > their.len() {
                return;
            }
        }
        let (our, their) = (lengths(&our), lengths(&their));
        panic!("{what}: {our:?} by podwire, {their:?} by the kernel");
    }
}

/// See above.
fn podwire_merges_less(p: &Packet) -> bool {
    let extended = p.v6 && !p.ip_options.is_empty();
    p.flags & CWR != 0 || !p.df || extended || p.damage != 0 || (!p.tcp && p.payload.is_empty())
}

/// What was merged alike must be alike in every byte. The length of headers is a hint, and on a frame that was not
/// merged the kernel leaves the checksum it found.
fn same(what: &str, ours: &[(VnetHdr, Vec<u8>)], kernels: &[(VnetHdr, Vec<u8>)]) {
    let by_flow = |frames: &[(VnetHdr, Vec<u8>)]| {
        let mut list: Vec<(u16, VnetHdr, Vec<u8>)> = frames
            .iter()
            .map(|(vnet, frame)| {
                let port = Headers::parse(frame).expect("a packet").ports(frame).0;
                let vnet = VnetHdr {
                    hdr_len: 0,
                    partial: vnet.partial.filter(|_| vnet.gso != Gso::None),
                    ..*vnet
                };
                (port, vnet, frame.clone())
            })
            .collect();
        list.sort_by(|a, b| (a.0, &a.2).cmp(&(b.0, &b.2)));
        list
    };
    assert_eq!(by_flow(ours), by_flow(kernels), "{what}");
}

/// Row 51 of the fault table, edge by edge.
pub fn as_the_kernel() {
    let Some(kernel) = Kernel::new() else { return };
    for (what, packets) in streams::edges() {
        kernel.compare(&what, &packets);
    }
    // Trains as long as they can be.
    for (what, count, size) in [("60 segments", 60, 900), ("more than 64 KiB", 50, 1398)] {
        let first = Packet::default();
        kernel.compare(what, &streams::train(&first, count, size));
    }
}

/// Streams of random composition.
pub fn streams_as_the_kernel() {
    let Some(kernel) = Kernel::new() else { return };
    let mut rng = Rng(51);
    for round in 0..150 {
        let packets = streams::random(&mut rng, 40);
        kernel.compare(&format!("stream {round}"), &packets);
    }
}
