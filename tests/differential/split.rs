//! Splitting beside the kernel's software segmentation: a super-frame written to a TAP with virtio-net headers is
//! forwarded unchanged to one without (nftables `fwd`), for which the kernel has to segment it.

use super::impair::Rng;
use super::netns::Netns;
use super::packet::{Packet, split};
use podwire::model::OffloadMode;
use podwire::sys::tap;
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// Frames come back while the call that sends runs; this is for a kernel that defers it.
const PATIENCE: Duration = Duration::from_secs(2);

struct Kernel {
    _netns: Netns,
    whole: OwnedFd,
    pieces: OwnedFd,
}

impl Kernel {
    fn new() -> Kernel {
        let netns = Netns::new();
        let tap = |name, mode| netns.within(|| tap::create(name, mode)).expect("a TAP").0;
        let (whole, pieces) = (tap("t0", OffloadMode::On), tap("t1", OffloadMode::Off));
        netns.ip("link set t0 addrgenmode none up\n\
             link set t1 addrgenmode none txqueuelen 10000 up\n");
        let rule = "table netdev t { chain c { type filter hook ingress device \"t0\" priority 0; fwd to \"t1\"; }; }";
        netns.ask("nft", &[rule]);
        Kernel {
            _netns: netns,
            whole,
            pieces,
        }
    }

    /// The kernel's wire frames, until there are `bytes` of payload and headers.
    fn split(&self, packet: &Packet, size: u16, count: usize) -> Vec<Vec<u8>> {
        let frame = [&packet.vnet(size).emit()[..], &packet.unfinished()].concat();
        rustix::io::write(&self.whole, &frame).unwrap_or_else(|e| panic!("{e}: {packet:?}"));
        let (begun, mut buffer) = (Instant::now(), vec![0; 70_000]);
        let mut frames = Vec::new();
        while frames.len() < count && begun.elapsed() < PATIENCE {
            while let Ok(n) = rustix::io::read(&self.pieces, &mut buffer[..]) {
                // Only what was sent here: the stack greets multicast routers when it likes.
                if buffer[..12] == packet.unfinished()[..12] {
                    frames.push(buffer[..n].to_vec());
                }
            }
        }
        frames
    }
}

/// Byte for byte, over both families and transports, with options, flags and sizes of all kinds.
pub fn as_the_kernel() {
    if Command::new("nft").arg("-v").output().is_err() {
        eprintln!("differential: nft is missing, so nothing is compared here (tests/run installs it)");
        return;
    }
    let kernel = Kernel::new();
    let mut rng = Rng(4343);
    let flags = [0x10, 0x18, 0x11, 0x19, 0x90, 0x50, 0xd9, 0x38, 0xf9];
    for round in 0..600 {
        let (v6, tcp, extended) = (round % 2 == 0, round % 4 < 3, rng.below(4) == 0);
        let ip_options = match (extended, v6) {
            (false, _) => vec![],
            (true, false) => vec![1; 4 * (1 + rng.below(10) as usize)],
            (true, true) => vec![0, 0, 1, 4, 0, 0, 0, 0],
        };
        let size = [1, 2, 7, 100, 536, 1000, 1398, 1410, 1447, 1448][rng.below(10) as usize];
        let most = (usize::from(size) * 128).min(64_000) as u64;
        // More than one segment: else it is no super-frame, and the kernel drops it.
        let more = 1 + rng.below(most - u64::from(size)) as usize;
        let mut payload = vec![0; usize::from(size) + more];
        if rng.below(3) == 0 {
            // A whole number of segments.
            payload.truncate((payload.len() / usize::from(size)).max(2) * usize::from(size));
        }
        rng.fill(&mut payload);
        if rng.below(8) == 0 {
            payload.fill(0xff);
        }
        let packet = Packet {
            v6,
            tcp,
            ip_options,
            options: vec![1; 4 * rng.below(11) as usize],
            flags: flags[rng.below(flags.len() as u64) as usize],
            seq: rng.next() as u32,
            id: rng.next() as u16,
            df: rng.below(2) == 0,
            ttl: 1 + rng.below(255) as u8,
            tos: rng.next() as u8,
            port: rng.next() as u16,
            payload,
            ..Packet::default()
        };
        let ours = split(&packet.unfinished(), &packet.vnet(size));
        let kernels = kernel.split(&packet, size, ours.len());
        let about = Packet {
            payload: vec![],
            ..packet.clone()
        };
        let len = packet.payload.len();
        assert_eq!(
            ours.len(),
            kernels.len(),
            "{len} bytes in segments of {size}, {about:?}"
        );
        for (i, (ours, kernels)) in ours.iter().zip(&kernels).enumerate() {
            assert!(
                ours == kernels,
                "segment {i} of {len} bytes in segments of {size}, {about:?}:\n{:02x?}\n{:02x?}",
                &ours[..ours.len().min(120)],
                &kernels[..kernels.len().min(120)]
            );
        }
    }
}
