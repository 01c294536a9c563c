//! What podwire relies on in the kernel, shown on the kernel at hand. Seen on Linux 6.18; where an older one is known
//! to differ, the test says so. A test that fails here names the assumption to look at first.
//!
//! All in namespaces of their own, as `tests/netns` has them: no root, and nothing stays.
#![allow(unsafe_code)] // ioctl, setsockopt and sendmsg, whose refusals are the point here.

// Of what the namespace tests have, this suite needs little.
#[allow(dead_code)]
#[path = "netns/isolate.rs"]
mod isolate;
#[allow(dead_code)]
#[path = "netns/netns.rs"]
mod netns;

use libtest_mimic::{Arguments, Trial};
use netns::Netns;
use podwire::buf::Span;
use podwire::model::OffloadMode;
use podwire::sys::net::{self, Outgoing, RecvBatch, SendBatch};
use podwire::sys::tap;
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

fn main() -> ExitCode {
    isolate::main(|| {
        let tests: [(&str, fn()); 15] = [
            ("udp_segment_has_a_cliff_at_65493_bytes", cliff),
            ("udp_segment_takes_128_segments", segments),
            ("udp_segment_needs_a_checksum", zero_checksum),
            ("udp_segment_never_fragments", path_mtu),
            ("what_the_kernel_was_told_of_a_path_is_not_asked_for", told_mtu),
            ("udp_gro_tells_the_segment_size", gro_size),
            ("udp_gro_is_asked_for", no_gro),
            ("a_taps_flags_are_settled_at_once", setiff_twice),
            ("offload_bits_depend_on_each_other", offload_bits),
            ("a_tap_lives_where_the_device_was_opened", tap_namespace),
            ("a_tap_goes_with_its_descriptor", tap_end),
            ("a_tap_that_nobody_reads_loses_frames", ring),
            ("a_short_read_cuts_the_frame", short_read),
            ("gso_max_segs_bounds_super_frames", gso_max_segs),
            ("lies_about_a_frame_are_refused_by_the_kernel", lies),
        ];
        let trials = tests.map(|(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
        });
        libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
    })
}

/// Two sockets on the loopback of a fresh namespace: one that sends, one that receives and merges.
fn pair(loopback: IpAddr) -> (UdpSocket, UdpSocket) {
    let netns = Netns::new();
    let bind = || UdpSocket::bind((loopback, 0)).expect("a socket");
    let (mouth, ear) = netns.within(|| (bind(), bind()));
    net::merge_received(&ear).expect("UDP_GRO");
    net::buffers(&ear, 4 << 20, 0);
    ear.set_nonblocking(true).expect("a flag");
    (mouth, ear)
}

/// Send `bytes` of payload cut into datagrams of `segment`.
fn send(mouth: &UdpSocket, to: SocketAddr, bytes: usize, segment: u16) -> io::Result<()> {
    let memory = vec![7; bytes];
    let pieces = [Span::new(0, bytes)];
    let message = Outgoing {
        to,
        from: None,
        class: 0,
        segment: Some(segment),
        pieces: &pieces,
    };
    let sent = SendBatch::default().send(mouth, &memory, &[message])?;
    assert_eq!(sent, 1);
    Ok(())
}

/// Length and segment size of each message that is there.
fn received(ear: &UdpSocket) -> Vec<(usize, Option<u16>)> {
    let mut memory = vec![0; 64 * 65_536];
    let slots: Vec<Span> = (0..64).map(|i| Span::new(i * 65_536, (i + 1) * 65_536)).collect();
    let mut batch = RecvBatch::default();
    let mut all = Vec::new();
    while let Ok(n) = batch.receive(ear, &mut memory, &slots) {
        let messages = (0..n).map(|i| batch.incoming(i));
        all.extend(messages.map(|m| (m.len, m.segment)));
    }
    all
}

fn set(socket: &UdpSocket, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: the option reads an int of the stated length, which `value` is.
    let rc = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    assert_eq!(rc, 0, "{}", io::Error::last_os_error());
}

/// `datapath::outbox::most_bytes`: one byte more, and the kernel sends datagrams one by one without a word.
fn cliff() {
    for (loopback, most) in [
        (IpAddr::from(Ipv4Addr::LOCALHOST), 65_493),
        (Ipv6Addr::LOCALHOST.into(), 65_473),
    ] {
        let (mouth, ear) = pair(loopback);
        let to = ear.local_addr().expect("it is bound");
        for (bytes, messages) in [(most, 1), (most + 1, 45)] {
            send(&mouth, to, bytes, 1472).expect("it is sent");
            let got = received(&ear);
            assert_eq!(got.iter().map(|(len, _)| len).sum::<usize>(), bytes);
            assert_eq!(got.len(), messages, "{bytes} bytes to {to}");
        }
    }
    let (mouth, ear) = pair(Ipv4Addr::LOCALHOST.into());
    let to = ear.local_addr().expect("it is bound");
    let refused = send(&mouth, to, 65_508, 1472).expect_err("more than a UDP packet");
    assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
}

/// `coalesce::FRAMES`, `segment::MAX_SEGMENTS`. Before Linux 6.9 it was 64, which is why a message has 64.
fn segments() {
    let (mouth, ear) = pair(Ipv4Addr::LOCALHOST.into());
    let to = ear.local_addr().expect("it is bound");
    send(&mouth, to, 128 * 100, 100).expect("128 datagrams");
    assert_eq!(received(&ear), [(12_800, Some(100))], "and all in one message");
    let refused = send(&mouth, to, 129 * 100, 100).expect_err("129 datagrams");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
}

/// Trains have real outer checksums, although RFC 7348 recommends none.
fn zero_checksum() {
    let (mouth, ear) = pair(Ipv4Addr::LOCALHOST.into());
    let to = ear.local_addr().expect("it is bound");
    set(&mouth, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1);
    let refused = send(&mouth, to, 2000, 1000).expect_err("a train without checksums");
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
    // One alone is no train.
    mouth
        .send_to(&[7; 1000], to)
        .expect("a datagram without a checksum");
}

/// `io::Refusal::TooBig`: a segment that does not fit the path is refused, also without the DF mark.
fn path_mtu() {
    let netns = Netns::new();
    netns.ip("link set lo mtu 1400");
    let mouth = netns.within(|| UdpSocket::bind("127.0.0.1:0")).expect("a socket");
    let to = "127.0.0.1:9".parse().expect("an address");
    send(&mouth, to, 3000, 1372).expect("segments that fit");
    let refused = send(&mouth, to, 3000, 1373).expect_err("a byte too much");
    assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
    let known = netns.within(|| net::path_mtu(to));
    assert_eq!(known, Some(1400), "what the kernel knows of the path");
}

/// `sys::net::dont_fragment`: only the interface bounds what is sent, by trains and singly, and nothing is fragmented.
fn told_mtu() {
    let (netns, tap) = with_a_tap("mtu 1500");
    netns.ip("route add 198.51.100.0/24 via 192.0.2.2 mtu 1300");
    let mouth = netns.within(|| UdpSocket::bind("192.0.2.1:0")).expect("a socket");
    let to: SocketAddr = "198.51.100.1:9".parse().expect("an address");
    assert_eq!(netns.within(|| net::path_mtu(to)), Some(1300));
    set(
        &mouth,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_DO,
    );
    let refused = mouth
        .send_to(&[7; 1400], to)
        .expect_err("more than the kernel believes");
    assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
    net::dont_fragment(&mouth, false).expect("an option");
    mouth
        .send_to(&[7; 1472], to)
        .expect("as much as the interface takes");
    send(&mouth, to, 2 * 1472, 1472).expect("a train of it");
    let refused = mouth.send_to(&[7; 1473], to).expect_err("a byte too much");
    assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
    let mut buffer = [0; 4000];
    let sent = frames(&tap, &mut buffer);
    // Behind the virtio-net header: the train is one super-frame, or two frames.
    assert!(
        sent == [1524, 1524, 1524] || sent == [1524, 1524 + 1472],
        "{sent:?}"
    );
    assert_eq!(buffer[10 + 14 + 6] & 0x40, 0x40, "don't fragment");
}

/// `io::Receiver`: the size comes beside the message, and none comes with a single datagram.
fn gro_size() {
    let (mouth, ear) = pair(Ipv4Addr::LOCALHOST.into());
    let to = ear.local_addr().expect("it is bound");
    send(&mouth, to, 2500, 1000).expect("it is sent");
    assert_eq!(received(&ear), [(2500, Some(1000))]);
    mouth.send_to(&[0; 700], to).expect("it is sent");
    assert_eq!(received(&ear), [(700, None)]);
}

/// A socket that did not ask gets datagrams.
fn no_gro() {
    let (mouth, ear) = pair(Ipv4Addr::LOCALHOST.into());
    set(&ear, libc::SOL_UDP, libc::UDP_GRO, 0);
    let to = ear.local_addr().expect("it is bound");
    send(&mouth, to, 2500, 1000).expect("it is sent");
    assert_eq!(received(&ear), [(1000, None), (1000, None), (500, None)]);
}

/// A TAP with virtio-net headers in a namespace.
fn a_tap(netns: &Netns, name: &str) -> OwnedFd {
    let (tap, caps) = netns
        .within(|| tap::create(name, OffloadMode::On))
        .expect("a TAP");
    assert!(caps.vnet_hdr, "the kernel has no virtio-net headers");
    tap
}

fn set_offload(tap: &OwnedFd, mask: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its mask by value.
    let rc = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `sys::tap`: IFF_VNET_HDR must be in the first TUNSETIFF; there is no second.
fn setiff_twice() {
    let netns = Netns::new();
    let tap = a_tap(&netns, "t0");
    // SAFETY: an all-zero ifreq is valid: it holds integers and byte arrays only.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
    let rc = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(
        (rc, io::Error::last_os_error().raw_os_error()),
        (-1, Some(libc::EEXIST))
    );
}

/// `sys::tap::probe`: segmentation only on top of checksums, the two UDP bits only together (Linux 6.2).
fn offload_bits() {
    use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};
    let netns = Netns::new();
    let tap = a_tap(&netns, "t0");
    let refused = [
        TUN_F_TSO4,
        TUN_F_TSO6,
        TUN_F_CSUM | TUN_F_USO4,
        TUN_F_CSUM | TUN_F_USO6,
        TUN_F_CSUM | 0x4000,
    ];
    for mask in refused {
        let e = set_offload(&tap, mask).expect_err("refused");
        assert_eq!(e.raw_os_error(), Some(libc::EINVAL), "{mask:#x}");
    }
    let tso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    for mask in [0, TUN_F_CSUM, tso, tso | TUN_F_USO4 | TUN_F_USO6] {
        set_offload(&tap, mask).unwrap_or_else(|e| panic!("{mask:#x}: {e}"));
    }
}

/// `pod::attach`: the helper enters the namespace, opens the device, and hands the descriptor out of it.
fn tap_namespace() {
    let (inside, outside) = (Netns::new(), Netns::new());
    let tap = a_tap(&inside, "t0");
    inside.ip("link set t0 up");
    let elsewhere = outside.run("ip", &["link", "show", "t0"]);
    assert!(!elsewhere.status.success(), "it is in the other namespace only");
    // It works from anywhere.
    let frame = [&[0; 10][..], &[0xff; 6], &[2; 6], &[8, 0], &[0; 46]].concat();
    let written = outside.within(|| rustix::io::write(&tap, &frame));
    assert_eq!(written, Ok(frame.len()));
}

/// Without IFF_PERSIST an interface ends with its last descriptor.
fn tap_end() {
    let netns = Netns::new();
    let tap = a_tap(&netns, "t0");
    netns.ip("addr add 192.0.2.1/24 dev t0\nlink set t0 up");
    drop(tap);
    let gone = netns.run("ip", &["link", "show", "t0"]);
    assert!(!gone.status.success());
}

/// Lengths of the frames to our neighbour that a stack sent, until none comes any more. (A stack also greets
/// multicast routers, when it likes.)
fn frames(tap: &OwnedFd, buffer: &mut [u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    while let Ok(n) = rustix::io::read(tap, &mut *buffer) {
        if buffer[10..16] == NEIGHBOUR {
            lengths.push(n);
        }
    }
    lengths
}

const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A namespace whose stack can send to 192.0.2.2 by a TAP of ours, and neighbours it need not ask for.
fn with_a_tap(more: &str) -> (Netns, OwnedFd) {
    let netns = Netns::new();
    let tap = a_tap(&netns, "t0");
    netns.ip(&format!(
        "link set t0 {more} addrgenmode none up\n\
         addr add 192.0.2.1/24 dev t0\n\
         neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev t0 nud permanent\n"
    ));
    frames(&tap, &mut [0; 2000]);
    (netns, tap)
}

/// `pod::link` raises txqueuelen: the ring behind it drops what does not fit, and tells nobody.
fn ring() {
    let (netns, tap) = with_a_tap("txqueuelen 100");
    let mouth = netns.within(|| UdpSocket::bind("192.0.2.1:0")).expect("a socket");
    for _ in 0..300 {
        mouth
            .send_to(&[7; 100], "192.0.2.2:9")
            .expect("the sender hears nothing of it");
    }
    assert_eq!(frames(&tap, &mut [0; 2000]).len(), 100);
}

/// `io::Tap` reads into room for the longest frame: what is beyond the buffer is gone.
fn short_read() {
    let (netns, tap) = with_a_tap("txqueuelen 100");
    let mouth = netns.within(|| UdpSocket::bind("192.0.2.1:0")).expect("a socket");
    mouth.send_to(&[7; 1000], "192.0.2.2:9").expect("it is sent");
    mouth.send_to(&[8; 500], "192.0.2.2:9").expect("it is sent");
    // 10 + 14 + 20 + 8 bytes are headers.
    assert_eq!(frames(&tap, &mut [0; 600]), [600, 552]);
}

/// `pod::link` sets gso_max_segs so that a super-frame is one send: netlink takes it without root, and the stack
/// obeys (UDP's own limit of segments is the caller's).
fn gso_max_segs() {
    for (segs, longest) in [(44, 44 * 1000), (8, 8 * 1000)] {
        let (netns, tap) = with_a_tap(&format!("gso_max_segs {segs} txqueuelen 1000"));
        let told = netns.ask("ip", &["-d", "link", "show", "t0"]);
        assert!(told.contains(&format!("gso_max_segs {segs} ")), "{told}");
        let mouth = netns.within(|| UdpSocket::bind("192.0.2.1:0")).expect("a socket");
        let to = "192.0.2.2:9".parse().expect("an address");
        send(&mouth, to, 40_000, 1000).expect("it is sent");
        let got = frames(&tap, &mut vec![0; 70_000]);
        assert!(got.iter().all(|len| *len <= longest + 52), "{segs}: {got:?}");
        let whole = if segs >= 40 { 1 } else { 40 };
        assert_eq!(got.len(), whole, "more segments than that go one by one: {got:?}");
    }
}

/// `io::Tap::write` may be refused by a header that does not fit, and nothing else suffers.
fn lies() {
    let (netns, tap) = with_a_tap("txqueuelen 100");
    let _ = netns;
    let frame = [&[0xff; 6][..], &[2; 6], &[8, 0], &[0; 100]].concat();
    let virtio = |flags: u8, gso: u8, fields: [u16; 4]| {
        let fields = fields.iter().flat_map(|f| f.to_ne_bytes());
        let header: Vec<u8> = [flags, gso].into_iter().chain(fields).collect();
        rustix::io::write(&tap, &[&header[..], &frame].concat())
    };
    // Flags, kind; length of headers, segment size, start and offset of the checksum.
    for (what, flags, gso, fields) in [
        ("headers longer than the frame", 0, 0, [200, 0, 0, 0]),
        ("a checksum beyond the frame", 1, 0, [0, 0, 200, 16]),
        ("segments of nothing", 1, 1, [54, 0, 34, 16]),
        ("an unknown kind", 1, 7, [54, 10, 34, 16]),
        ("UDP segments without a checksum", 0, 5, [42, 10, 0, 0]),
    ] {
        assert_eq!(virtio(flags, gso, fields), Err(Errno::INVAL), "{what}");
    }
    assert_eq!(virtio(0, 0, [0; 4]), Ok(10 + frame.len()));
    // A checksum may be asked for anywhere behind the first 20 bytes of a packet: why `offload::check` is
    // stricter.
    assert_eq!(virtio(1, 0, [0, 0, 36, 0]), Ok(10 + frame.len()));
}
