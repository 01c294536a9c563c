//! The node's pods and resting addresses on disk (`pods.json`): what is left to know when the node and its keeper are
//! both gone. The pods have lost their interfaces then, yet who had which address is still told, and what was freed
//! a moment ago rests.
//!
//! Nothing waits for the disk: a thread that lives as long as there is something to write does, and changes in short
//! order are written together. A disk that is full, or slow, is a problem that `podwire status` shows; the file is
//! replaced as a whole, so the old one stays.
//!
//! Times are those of the machine's clock that only moves forward (CLOCK_BOOTTIME), together with the boot's identity.
//! After another boot, and when that clock was set (a time namespace), nobody knows how long ago something was: then
//! it rests as long as anything can.

use super::ipam::{Ipam, Lease, REST, Resting};
use super::keeper::Record;
use crate::control::durable;
use crate::model::{Instant, Mac, PodName};
use crossbeam_channel::{Receiver, Sender, bounded};
use mio::Waker;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Format of the file.
const VERSION: u32 = 1;
/// Longest file that is read: 65,536 pods and as many resting addresses fit.
const MAX_FILE: u64 = 64 << 20;
/// How long after one write begins the next one: many pods may come at once, and each has work for the processor.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a write may take before it is a problem.
const SLOW: Duration = Duration::from_secs(5);
/// How long a node that ends waits for its last write.
const END: Duration = Duration::from_millis(300);

/// The clock that goes on while the machine sleeps, and nobody sets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Which boot it counts from.
    pub boot: String,
    /// Microseconds.
    pub us: i64,
}

impl Clock {
    /// What it shows.
    pub fn now() -> Clock {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Clock {
            boot: boot.trim().into(),
            us: boottime_us(),
        }
    }
}

/// Microseconds since the machine's boot.
pub fn boottime_us() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec * 1_000_000 + t.tv_nsec / 1000
}

/// The content of the file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Records {
    version: u32,
    node: String,
    boot: String,
    next_host: u32,
    pods: Vec<Record>,
    resting: Vec<Rest>,
    /// Names that people added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Rest {
    pod: PodName,
    ip4: Option<Ipv4Addr>,
    ip6: Option<Ipv6Addr>,
    mac: Mac,
    until_us: i64,
}

impl Records {
    /// Of a node's pods and addresses, at `now` by its own clock and `clock` by the machine's.
    pub fn of<'r>(
        node: &str,
        pods: impl Iterator<Item = &'r Record>,
        ipam: &Ipam,
        now: Instant,
        clock: &Clock,
    ) -> Records {
        let rest = |r: &Resting| Rest {
            pod: r.pod.clone(),
            ip4: r.lease.ip4,
            ip6: r.lease.ip6,
            mac: r.lease.mac,
            until_us: clock.us + (r.until - now).total_micros() as i64,
        };
        Records {
            version: VERSION,
            node: node.into(),
            boot: clock.boot.clone(),
            next_host: ipam.next_host(),
            pods: pods.cloned().collect(),
            resting: ipam.resting(now).map(rest).collect(),
            names: Vec::new(),
        }
    }

    /// The same with the names that people added.
    pub fn with_names(self, names: Vec<String>) -> Records {
        Records { names, ..self }
    }

    /// The names that people added.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Read a file's content.
    ///
    /// # Errors
    /// The sentence why it is of no use.
    pub fn parse(bytes: &[u8], node: &str) -> Result<Records, String> {
        let records: Records = serde_json::from_slice(bytes).map_err(|e| format!("it is damaged ({e})"))?;
        if records.version != VERSION {
            return Err(format!(
                "it is of version {}, this program writes {VERSION}",
                records.version
            ));
        }
        if records.node != node {
            return Err(format!("it is of node {}", records.node));
        }
        Ok(records)
    }

    /// Let what the pods had rest: they were detached at `clock`.
    pub fn detach_all(&mut self, clock: &Clock) {
        let until_us = clock.us + REST.total_micros() as i64;
        if self.boot != clock.boot {
            // Nobody knows how long that is.
            self.boot.clone_from(&clock.boot);
            self.resting.iter_mut().for_each(|r| r.until_us = until_us);
        }
        let rest = |r: Record| Rest {
            ip4: r.ip4.map(|n| n.addr()),
            ip6: r.ip6.map(|n| n.addr()),
            mac: r.mac,
            pod: r.pod,
            until_us,
        };
        self.resting.extend(self.pods.drain(..).map(rest));
    }

    /// Let rest in `ipam` what the file says, and what pods had that are not among `kept`; gives these.
    pub fn restore(
        self,
        ipam: &mut Ipam,
        kept: &BTreeSet<PodName>,
        now: Instant,
        clock: &Clock,
    ) -> Vec<PodName> {
        let whole = i64::try_from(REST.total_micros()).unwrap_or(i64::MAX);
        let same = self.boot == clock.boot;
        let mut resting: Vec<Resting> = Vec::new();
        let mut add = |pod: PodName, lease: Lease, left: i64| {
            if left > 0 {
                let until = Instant::from_micros(now.total_micros() + left.min(whole));
                resting.push(Resting { pod, lease, until });
            }
        };
        for r in self.resting {
            let left = if same {
                r.until_us.saturating_sub(clock.us)
            } else {
                whole
            };
            let (ip4, ip6, mac) = (r.ip4, r.ip6, r.mac);
            add(r.pod, Lease { ip4, ip6, mac }, left);
        }
        let mut lost = Vec::new();
        for r in self.pods.into_iter().filter(|r| !kept.contains(&r.pod)) {
            let lease = Lease {
                ip4: r.ip4.map(|n| n.addr()),
                ip6: r.ip6.map(|n| n.addr()),
                mac: r.mac,
            };
            lost.push(r.pod.clone());
            add(r.pod, lease, whole);
        }
        resting.sort_by_key(|r| r.until);
        resting.into_iter().for_each(|r| ipam.rest(r));
        ipam.go_on_at(self.next_host);
        lost
    }
}

/// Writes the file behind the node's back.
pub struct Recorder {
    path: PathBuf,
    waker: Option<Arc<Waker>>,
    /// What there is to write is newer than what was written.
    stale: bool,
    /// Since when a thread writes.
    writing: Option<std::time::Instant>,
    /// When the last one began.
    begun: Option<std::time::Instant>,
    /// What is to be written at last.
    last: Option<Vec<u8>>,
    done: (Sender<io::Result<()>>, Receiver<io::Result<()>>),
    trouble: Option<String>,
}

impl Recorder {
    /// Nothing is written until [`Recorder::touch`].
    pub fn new(path: PathBuf) -> Recorder {
        Recorder {
            path,
            waker: None,
            stale: false,
            writing: None,
            begun: None,
            last: None,
            done: bounded(1),
            trouble: None,
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an earlier process wrote; one that cannot be used is a problem until it is written anew.
    pub fn load(&mut self, node: &str) -> Option<Records> {
        let found = durable::read(&self.path, MAX_FILE).map_err(|e| format!("it cannot be read ({e})"));
        let records = found.and_then(|bytes| bytes.map(|b| Records::parse(&b, node)).transpose());
        records.unwrap_or_else(|why| {
            let what = format!(
                "{} is not used: {why}; addresses that pods had a moment ago may be given again",
                self.path.display()
            );
            log::warn!("{what}");
            self.trouble = Some(what);
            None
        })
    }

    /// Tell `waker` when a write is done.
    pub fn wakes(&mut self, waker: Arc<Waker>) {
        self.waker = Some(waker);
    }

    /// Something has changed.
    pub fn touch(&mut self) {
        self.stale = true;
    }

    /// How long until [`Recorder::go_on`] has something to do, when nothing else happens.
    pub fn patience(&self) -> Option<Duration> {
        (self.stale && self.writing.is_none()).then(|| self.pause())
    }

    /// Write what `records` gives if something has changed, and it is time.
    pub fn go_on(&mut self, records: impl FnOnce() -> Records) {
        self.take();
        if self.stale && self.writing.is_none() && self.pause().is_zero() {
            self.stale = false;
            match serde_json::to_vec(&records()) {
                Ok(bytes) => self.write(bytes),
                Err(e) => self.finished(Err(e.into())),
            }
        }
    }

    /// Begin to write for the last time; [`Recorder::settle`] awaits it.
    pub fn end(&mut self, records: impl FnOnce() -> Records) {
        self.take();
        if std::mem::take(&mut self.stale) {
            match serde_json::to_vec(&records()) {
                Ok(bytes) if self.writing.is_some() => self.last = Some(bytes),
                Ok(bytes) => self.write(bytes),
                Err(e) => self.finished(Err(e.into())),
            }
        }
    }

    /// Wait for what is being written, as long as a disk may take.
    pub fn settle(&mut self) {
        while self.writing.is_some() {
            match self.done.1.recv_timeout(END) {
                Ok(outcome) => self.finished(outcome),
                Err(_) => {
                    log::warn!("{} is not written yet: the disk is slow", self.path.display());
                    return;
                }
            }
            if let Some(bytes) = self.last.take() {
                self.write(bytes);
            }
        }
    }

    /// What is left of the pause after the last write.
    fn pause(&self) -> Duration {
        let since = self.begun.map(|at| at.elapsed());
        since.map_or(Duration::ZERO, |since| PAUSE.saturating_sub(since))
    }

    fn write(&mut self, bytes: Vec<u8>) {
        let (path, done, waker) = (self.path.clone(), self.done.0.clone(), self.waker.clone());
        let write = move || {
            // The receiver is gone when the node is; so is whom there is to wake.
            let _ = done.send(durable::replace_file(&path, &[&bytes], 0o600));
            let _ = waker.map(|w| w.wake());
        };
        let now = std::time::Instant::now();
        (self.writing, self.begun) = (Some(now), Some(now));
        if let Err(e) = thread::Builder::new().name("recorder".into()).spawn(write) {
            self.finished(Err(e));
        }
    }

    /// What a person should look at.
    pub fn problem(&self) -> Option<String> {
        let slow = self.writing.is_some_and(|since| since.elapsed() > SLOW);
        let slow = slow.then(|| format!("{} is being written for more than 5 s", self.path.display()));
        slow.or_else(|| self.trouble.clone())
    }

    fn take(&mut self) {
        if let Ok(outcome) = self.done.1.try_recv() {
            self.finished(outcome);
        }
    }

    fn finished(&mut self, outcome: io::Result<()>) {
        self.writing = None;
        let before = self.trouble.take();
        if let Err(e) = outcome {
            let what = format!(
                "pods and addresses are not recorded: {}: {e} (the next change tries again; set state_dir)",
                self.path.display()
            );
            if before.as_ref() != Some(&what) {
                log::warn!("{what}");
            }
            self.trouble = Some(what);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::ipam::Want;
    use crate::model::LocalNode;

    fn ipam() -> Ipam {
        ipam_of("10.244.1.0/24")
    }

    fn ipam_of(subnet: &str) -> Ipam {
        Ipam::new(&LocalNode {
            name: "n1".parse().unwrap(),
            subnet4: Some(subnet.parse().unwrap()),
            subnet6: None,
            vtep_mac: Mac::default(),
            vtep_mac6: Mac::default(),
            gateway_mac: Mac::default(),
            vni: crate::model::Vni::try_from(1).unwrap(),
            pod_mtu: crate::model::PodMtu(1450),
            underlay_mtu: crate::model::UnderlayMtu(1500),
        })
    }

    fn pod(name: &str) -> PodName {
        name.parse().unwrap()
    }

    fn at(s: i64) -> Instant {
        Instant::from_secs(s)
    }

    fn clock(boot: &str, s: i64) -> Clock {
        Clock {
            boot: boot.into(),
            us: s * 1_000_000,
        }
    }

    /// A file of a node that freed .2 at second 1000 of the boot, and whose pod b has .3.
    fn file() -> Vec<u8> {
        let mut ipam = ipam();
        for name in ["a", "b"] {
            ipam.reserve(&pod(name), Want::default(), at(0)).unwrap();
        }
        ipam.release(&pod("a"), at(10)).unwrap();
        let b = Record {
            pod: pod("b"),
            ifname: "eth0".into(),
            netns: None,
            netns_id: None,
            holder: Some(7),
            ip4: Some("10.244.1.3/24".parse().unwrap()),
            ip6: None,
            mac: ipam.lease(&pod("b")).unwrap().mac,
            mtu: crate::model::PodMtu(1450),
            caps: Default::default(),
            since_us: 5,
            attachment: None,
            aliases: Vec::new(),
            publish: Vec::new(),
            labels: Default::default(),
            ports: Vec::new(),
            state: Default::default(),
            drain_until_us: None,
            bandwidth: None,
        };
        let records = Records::of("n1", [&b].into_iter(), &ipam, at(30), &clock("x", 1020));
        serde_json::to_vec(&records).unwrap()
    }

    /// Who rests for how many seconds when the file is found at `clock`, with or without pod b kept.
    fn restored(clock: &Clock, b_kept: bool) -> (Vec<(String, i64)>, Vec<PodName>, Ipam) {
        let mut ipam = ipam();
        let kept = if b_kept {
            [pod("b")].into()
        } else {
            BTreeSet::new()
        };
        let records = Records::parse(&file(), "n1").unwrap();
        let lost = records.restore(&mut ipam, &kept, at(5), clock);
        let rests = ipam.resting(at(5));
        let rests = rests.map(|r| (r.pod.name.clone(), (r.until - at(5)).secs() as i64));
        (rests.collect(), lost, ipam)
    }

    #[test]
    fn what_was_freed_rests_across_a_restart() {
        let rests = |clock: &Clock| restored(clock, true).0;
        let a = |s: i64| vec![("a".to_string(), s)];
        assert_eq!(rests(&clock("x", 1020)), a(40));
        assert_eq!(rests(&clock("x", 1050)), a(10));
        assert_eq!(rests(&clock("x", 1061)), []);
        // A clock that went back, or forward by years, or counts from another boot.
        assert_eq!(rests(&clock("x", 3)), a(60));
        assert_eq!(rests(&clock("x", i64::MIN / 2_000_000)), a(60));
        assert_eq!(rests(&clock("x", 300_000_000)), []);
        assert_eq!(rests(&clock("y", 1020)), a(60));
        assert_eq!(rests(&clock("y", 300_000_000)), a(60));
    }

    #[test]
    fn pods_that_nobody_kept_are_told_and_rest() {
        let (rests, lost, mut ipam) = restored(&clock("x", 1050), false);
        assert_eq!(rests, [("a".to_string(), 10), ("b".to_string(), 60)]);
        assert_eq!(lost, [pod("b")]);
        let got = |ipam: &mut Ipam, name: &str| {
            let lease = ipam.reserve(&pod(name), Want::default(), at(5)).unwrap();
            lease.ip4.unwrap().octets()[3]
        };
        // The search goes on where it was.
        assert_eq!([got(&mut ipam, "c"), got(&mut ipam, "d")], [4, 5]);
        let (_, lost, _) = restored(&clock("x", 1050), true);
        assert_eq!(lost, []);
    }

    #[test]
    fn a_damaged_file_is_refused_with_a_reason() {
        let whole = file();
        let why = |bytes: &[u8], node: &str| Records::parse(bytes, node).unwrap_err();
        for cut in 0..whole.len() {
            assert!(why(&whole[..cut], "n1").contains("damaged"), "{cut}");
        }
        assert!(why(&whole, "n2").contains("of node n1"));
        let newer = String::from_utf8(whole.clone()).unwrap();
        let newer = newer.replacen("\"version\":1", "\"version\":2", 1);
        assert!(why(newer.as_bytes(), "n1").contains("version 2"));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        std::fs::write(&path, &whole[..20]).unwrap();
        let mut recorder = Recorder::new(path.clone());
        assert!(recorder.load("n1").is_none());
        assert!(recorder.problem().unwrap().contains("damaged"));
        // The next write heals it.
        recorder.touch();
        recorder.end(|| Records::parse(&whole, "n1").unwrap());
        recorder.settle();
        assert_eq!(recorder.problem(), None);
        assert!(Recorder::new(path).load("n1").is_some());
    }

    #[test]
    fn changes_in_short_order_are_written_together_and_the_last_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.json");
        let mut recorder = Recorder::new(path.clone());
        let records = || Records::parse(&file(), "n1").unwrap();
        // However slow this disk is.
        let settle = |recorder: &mut Recorder| {
            for _ in 0..100 {
                recorder.settle();
            }
            assert!(recorder.writing.is_none());
        };
        assert_eq!(recorder.patience(), None);
        let begun = std::time::Instant::now();
        recorder.touch();
        assert_eq!(recorder.patience(), Some(Duration::ZERO));
        recorder.go_on(records);
        recorder.touch();
        assert_eq!(recorder.patience(), None, "the end of the write is told");
        settle(&mut recorder);
        assert!(recorder.patience().is_some_and(|p| p <= PAUSE));
        recorder.go_on(|| {
            assert!(begun.elapsed() >= PAUSE, "it is not time yet");
            records()
        });
        settle(&mut recorder);
        thread::sleep(PAUSE);
        recorder.go_on(records);
        // A node that ends writes once more what comes meanwhile.
        recorder.touch();
        recorder.end(|| Records {
            next_host: 99,
            ..records()
        });
        settle(&mut recorder);
        assert_eq!(Recorder::new(path).load("n1").unwrap().next_host, 99);
    }

    /// As many pods and rests as a node can have: a /16 full of pods, where as many more were before them.
    #[test]
    fn a_file_has_room_for_the_largest_node() {
        const PODS: u32 = (1 << 16) - 3;
        let one = |n: u32| -> (Record, Rest) {
            let name = format!("namespace-of-some-length/deployment-7c5ddbdf54-{n:05}");
            let ip4 = Ipv4Addr::from(0x0a40_0002 + n);
            let ip6 = Ipv6Addr::from(0xfd00_0010_0061_0000_0000_0000_0000_0002 + u128::from(n));
            let mac = Mac::of_ipv4(ip4);
            let record = Record {
                pod: pod(&name),
                ifname: "eth0".into(),
                netns: Some("/run/netns/cni-4b2c1d9e-7f0a-4f55-9d1e-0c8a5b1f2e3d".into()),
                netns_id: Some((4, 4_026_532_000 + u64::from(n))),
                holder: Some(4_000_000),
                ip4: Some(ipnet::Ipv4Net::new(ip4, 16).unwrap()),
                ip6: Some(ipnet::Ipv6Net::new(ip6, 64).unwrap()),
                mac,
                mtu: crate::model::PodMtu(1450),
                caps: Default::default(),
                since_us: i64::MAX,
                attachment: None,
                aliases: Vec::new(),
                publish: Vec::new(),
                labels: Default::default(),
                ports: Vec::new(),
                state: Default::default(),
                drain_until_us: None,
                bandwidth: None,
            };
            let rest = Rest {
                pod: pod(&name),
                ip4: Some(ip4),
                ip6: Some(ip6),
                mac,
                until_us: 60_000_000,
            };
            (record, rest)
        };
        let (pods, resting): (Vec<Record>, Vec<Rest>) = (0..PODS).map(one).unzip();
        let records = Records {
            version: VERSION,
            node: "n1".into(),
            boot: "x".into(),
            next_host: 7,
            pods,
            resting,
            names: vec!["x".repeat(600); crate::dns::entry::MAX_ENTRIES],
        };
        let bytes = serde_json::to_vec(&records).unwrap();
        assert!((bytes.len() as u64) < MAX_FILE, "{} bytes", bytes.len());
        assert_eq!(Records::parse(&bytes, "n1").unwrap(), records);
        let mut ipam = ipam_of("10.64.0.0/16");
        let lost = records.restore(&mut ipam, &BTreeSet::new(), at(5), &clock("x", 0));
        assert_eq!((lost.len(), ipam.room()), (PODS as usize, PODS.into()));
        // Nothing else is left, so it is given all the same.
        let first = ipam.reserve(&pod("new"), Want::default(), at(5)).unwrap();
        assert_eq!(first.ip4, Some([10, 64, 0, 7].into()));
    }

    #[test]
    fn a_disk_that_refuses_is_a_problem_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let mut recorder = Recorder::new(dir.path().join("file/pods.json"));
        assert!(recorder.load("n1").is_none() && recorder.problem().is_none());
        for _ in 0..2 {
            recorder.touch();
            recorder.end(|| Records::parse(&file(), "n1").unwrap());
            recorder.settle();
            assert!(recorder.problem().unwrap().contains("not recorded"));
        }
        recorder.go_on(|| unreachable!("nothing changed"));
    }
}
