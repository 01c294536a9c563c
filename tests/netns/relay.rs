//! The impairment relay: an Ethernet switch in user space between the nodes, on a thread of its own.
//!
//! Its links are TAPs whose other ends are `eth0` of the hosts. Without offloads, the usual way, the kernel
//! segments each train and computes real checksums before the relay sees them, so that all that happens here
//! happens to single packets. With offloads trains cross whole, and are lost and reordered as a whole; their
//! virtio-net headers are passed on unread. The relay learns nothing: each link has the MAC of its host.

use super::impair::{Counters, Impairment, Rng, Way};
use podwire::model::OffloadMode;
use podwire::sys::tap::VNET_HDR_LEN;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io::PipeWriter;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

/// Frames read from a link before the next one has its turn.
const BURST: usize = 64;

/// MAC of the host at link `link`.
pub fn mac(link: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, link as u8 + 1]
}

/// A running relay; dropping it closes its links.
pub struct Relay {
    state: Arc<Mutex<State>>,
    links: usize,
    /// Closing it ends the thread.
    stop: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    /// From each link to each.
    ways: Vec<Vec<Way>>,
    rng: Rng,
    counters: Counters,
    /// Where the Ethernet header begins in what is read.
    ethernet: usize,
    copy: Vec<u8>,
}

impl Relay {
    /// Relay between `taps`, which are non-blocking; what is left to chance follows from `seed`.
    pub fn start(taps: Vec<OwnedFd>, seed: u64, offload: OffloadMode) -> Relay {
        let links = taps.len();
        let way = |_| (0..links).map(|_| Way::default()).collect();
        let state = Arc::new(Mutex::new(State {
            ways: (0..links).map(way).collect(),
            rng: Rng(seed),
            counters: Counters::default(),
            ethernet: match offload {
                OffloadMode::On => VNET_HDR_LEN,
                OffloadMode::Off => 0,
            },
            copy: Vec::new(),
        }));
        let (ear, stop) = std::io::pipe().expect("a pipe");
        let shared = state.clone();
        let thread = std::thread::Builder::new()
            .name("relay".into())
            .spawn(move || run(&taps, &ear.into(), &shared))
            .expect("a thread");
        Relay {
            state,
            links,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// Treat frames from one link to another like this from now on.
    pub fn impair(&self, from: usize, to: usize, rules: Impairment) {
        self.state().ways[from][to].rules = rules;
    }

    /// Treat all frames like this from now on; the default is to let them pass.
    pub fn impair_all(&self, rules: Impairment) {
        for way in self.state().ways.iter_mut().flatten() {
            way.rules = rules;
        }
    }

    /// Cut a link off from all others.
    pub fn isolate(&self, link: usize) {
        let cut = Impairment {
            cut: true,
            ..Impairment::default()
        };
        for other in 0..self.links {
            self.impair(link, other, cut);
            self.impair(other, link, cut);
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.state().counters
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the relay's thread is alive")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

fn run(taps: &[OwnedFd], stop: &OwnedFd, shared: &Mutex<State>) {
    let mut buffer = vec![0; 70_000];
    loop {
        let due = {
            let state = shared.lock().expect("tests only lock");
            state.ways.iter().flatten().filter_map(Way::due).min()
        };
        let wait = due.map(|due| due.saturating_duration_since(Instant::now()));
        let wait = wait.map(|w| Timespec {
            tv_sec: w.as_secs() as i64,
            tv_nsec: i64::from(w.subsec_nanos()),
        });
        let mut polled: Vec<PollFd<'_>> = taps
            .iter()
            .map(|tap| PollFd::new(tap, PollFlags::IN))
            .chain([PollFd::new(stop, PollFlags::IN)])
            .collect();
        if rustix::event::poll(&mut polled, wait.as_ref()).is_err() {
            continue;
        }
        let ready: Vec<bool> = polled.iter().map(|p| !p.revents().is_empty()).collect();
        if ready[taps.len()] {
            return;
        }
        let mut state = shared.lock().expect("tests only lock");
        for (from, tap) in taps.iter().enumerate().filter(|(from, _)| ready[*from]) {
            for _ in 0..BURST {
                match rustix::io::read(tap, &mut buffer[..]) {
                    Ok(n) => state.relay(from, &buffer[..n], taps),
                    Err(_) => break,
                }
            }
        }
        state.release(taps);
    }
}

impl State {
    fn relay(&mut self, from: usize, frame: &[u8], taps: &[OwnedFd]) {
        let Some(dst) = frame
            .get(self.ethernet..)
            .and_then(|f| f.first_chunk::<6>().copied())
        else {
            return;
        };
        let now = Instant::now();
        for (to, tap) in taps.iter().enumerate() {
            let meant = dst == mac(to) || dst[0] & 1 == 1;
            if to != from && meant {
                // What happens to the frame for one host must not happen to that for the next.
                self.copy.clear();
                self.copy.extend_from_slice(frame);
                let mut deliver = |bytes: &[u8]| write(tap, bytes);
                self.ways[from][to].take(
                    &mut self.copy,
                    now,
                    &mut self.rng,
                    &mut self.counters,
                    &mut deliver,
                );
            }
        }
    }

    fn release(&mut self, taps: &[OwnedFd]) {
        let now = Instant::now();
        for ways in &mut self.ways {
            for (way, tap) in ways.iter_mut().zip(taps) {
                way.release(now, &mut self.counters, &mut |bytes| write(tap, bytes));
            }
        }
    }
}

fn write(tap: &OwnedFd, frame: &[u8]) {
    // A host whose link is down, or that has no room, loses the frame as on a wire.
    let _ = rustix::io::write(tap, frame);
}
