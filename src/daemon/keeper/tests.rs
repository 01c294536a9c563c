use super::keeping::{Keeping, Todo};
use super::link::{Answer, Link, TakeError, take};
use super::process::serve;
use super::*;
use crate::api::packet::Packets;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid as Process, Signal, kill_process};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

fn socketpair() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// A keeper on a thread, and its first node's socket, where everything is answered before the next is asked.
fn keeper() -> (Packets, JoinHandle<()>) {
    let (near, far) = socketpair();
    let (wire, thread) = (Packets::new(near), thread::spawn(move || serve("n1", far)));
    let hello = ToKeeper::Hello {
        protocol: PROTOCOL,
        node: "n1".into(),
    };
    assert!(matches!(ask(&wire, &hello, &[]), FromKeeper::Hello { .. }));
    assert!(matches!(hear(&wire), FromKeeper::All));
    (wire, thread)
}

fn ask(wire: &Packets, what: &ToKeeper, fds: &[&OwnedFd]) -> FromKeeper {
    let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
    wire.send(&serde_json::to_vec(what).unwrap(), &fds).unwrap();
    hear(wire)
}

fn hear(wire: &Packets) -> FromKeeper {
    serde_json::from_slice(&wire.receive().unwrap().bytes).unwrap()
}

fn publish(wire: &Packets, path: &Path) -> FromKeeper {
    ask(wire, &ToKeeper::Publish { path: path.into() }, &[])
}

fn keep(wire: &Packets, pod: &str, fds: &[&OwnedFd]) -> FromKeeper {
    let parcel = Parcel {
        record: record(pod),
        process: false,
        lifeline: fds.len() > 1,
    };
    ask(wire, &ToKeeper::Keep(Box::new(parcel)), fds)
}

fn record(pod: &str) -> Record {
    Record {
        pod: pod.parse().unwrap(),
        ifname: "eth0".into(),
        netns: Some("/run/netns/a".into()),
        netns_id: Some((4, 4_026_531_840)),
        holder: None,
        ip4: Some("10.244.1.2/24".parse().unwrap()),
        ip6: None,
        mac: Mac::default(),
        mtu: PodMtu(1450),
        caps: TapCaps::default(),
        since_us: 1,
        attachment: None,
        aliases: Vec::new(),
        publish: Vec::new(),
        labels: Default::default(),
        ports: Vec::new(),
        state: Default::default(),
        drain_until_us: None,
        bandwidth: None,
    }
}

/// A descriptor, and what tells whether others have it.
fn thing() -> (OwnedFd, UnixStream) {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    (far.into(), near)
}

fn is_closed(mut near: &UnixStream) -> bool {
    matches!(near.read(&mut [0]), Ok(0))
}

fn is_open(mut near: &UnixStream) -> bool {
    near.set_nonblocking(true).unwrap();
    let outcome = near.read(&mut [0]);
    near.set_nonblocking(false).unwrap();
    matches!(outcome, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

#[test]
fn pods_outlive_their_node_and_are_given_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    assert!(take(&path, "n1").unwrap().is_none(), "there is no keeper");
    let (wire, thread) = keeper();
    let [(a, far_a), (b, far_b), (line, far_line)] = [thing(), thing(), thing()];
    assert!(matches!(keep(&wire, "a", &[&a, &line]), FromKeeper::Kept { .. }));
    assert!(matches!(publish(&wire, &path), FromKeeper::Published));
    assert!(matches!(keep(&wire, "b", &[&b]), FromKeeper::Kept { .. }));
    drop((a, b, line));
    // Another node is turned away while there is one.
    let busy = take(&path, "n1").unwrap_err();
    assert!(
        matches!(busy, TakeError::Busy { pid, .. } if pid == std::process::id()),
        "{busy}"
    );
    drop(wire);
    let other = take(&path, "n2").unwrap_err();
    assert!(
        matches!(&other, TakeError::Other { theirs, .. } if theirs == "n1"),
        "{other}"
    );
    let taken = take(&path, "n1").unwrap().unwrap();
    assert_eq!(taken.version, env!("CARGO_PKG_VERSION"));
    let names: Vec<String> = taken.pods.iter().map(|p| p.record.pod.name.clone()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(taken.pods[0].record, record("a"));
    assert!(taken.pods[0].lifeline.is_some() && taken.pods[1].lifeline.is_none());
    drop(taken.pods);
    // What is forgotten is closed before that is told, and nothing else is.
    let mut link = taken.link;
    link.forget(&"a".parse().unwrap());
    assert_eq!(answer(&mut link), Answer::Forgotten("a".parse().unwrap()));
    assert!(is_closed(&far_a) && is_closed(&far_line) && is_open(&far_b));
    // At the end nothing is left.
    link.end();
    thread.join().unwrap();
    assert!(is_closed(&far_b));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn answer(link: &mut Link) -> Answer {
    for _ in 0..1000 {
        if let Some(answer) = link.go_on().unwrap().pop() {
            return answer;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("no answer")
}

#[test]
fn a_keeper_ends_when_nobody_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    // No pods and no node.
    let (wire, thread) = keeper();
    assert!(matches!(publish(&wire, &path), FromKeeper::Published));
    drop(wire);
    thread.join().unwrap();
    assert!(!path.exists());
    // Not published: nobody could find the pods.
    let (wire, thread) = keeper();
    let (a, far_a) = thing();
    keep(&wire, "a", &[&a]);
    drop((a, wire));
    thread.join().unwrap();
    assert!(is_closed(&far_a));
    // The socket was removed, or another keeper's is in its place.
    for replaced in [false, true] {
        let (wire, thread) = keeper();
        let (a, far_a) = thing();
        keep(&wire, "a", &[&a]);
        publish(&wire, &path);
        drop((a, wire));
        let next = replaced.then(|| {
            let next = keeper();
            publish(&next.0, &path);
            next
        });
        if !replaced {
            std::fs::remove_file(&path).unwrap();
        }
        thread.join().unwrap();
        assert!(is_closed(&far_a));
        assert_eq!(path.exists(), replaced, "the successor's socket stays");
        if let Some((wire, thread)) = next {
            drop(wire);
            thread.join().unwrap();
        }
    }
    // A node that speaks no sense is none.
    let (wire, thread) = keeper();
    wire.send(b"GET / HTTP/1.1\r\n", &[]).unwrap();
    thread.join().unwrap();
}

#[test]
fn what_cannot_be_kept_is_refused_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (wire, thread) = keeper();
    let refused = |answer: FromKeeper| match answer {
        FromKeeper::Refused { why, .. } => why,
        other => panic!("{other:?}"),
    };
    let (a, far_a) = thing();
    assert!(refused(keep(&wire, "a", &[])).contains("announced"));
    let none = dir.path().join("none/n1.keep");
    assert!(refused(publish(&wire, &none)).contains("none/n1.keep"));
    let long = dir.path().join("x".repeat(120));
    assert!(!refused(publish(&wire, &long)).is_empty());
    keep(&wire, "a", &[&a]);
    // Another of that name takes its place.
    let (again, far_again) = thing();
    keep(&wire, "a", &[&again]);
    drop((a, again));
    assert!(is_closed(&far_a) && is_open(&far_again));
    drop(wire);
    thread.join().unwrap();
}

/// One that speaks another protocol keeps its pods, and says who it is.
#[test]
fn a_keeper_of_another_generation_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let listener = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 8).unwrap();
    let answers: [&[u8]; 3] = [
        br#"{"say":"hello","protocol":9,"version":"9.1","node":"n1","more":[1]}"#,
        br#"{"say":"what"}"#,
        b"rubbish",
    ];
    let thread = thread::spawn(move || {
        for answer in answers {
            let wire = Packets::new(rustix::net::accept(&listener).unwrap());
            wire.receive().unwrap();
            wire.send(answer, &[]).unwrap();
            assert!(wire.receive().is_err(), "nothing more is asked");
        }
        // And one that says nothing.
        let _wire = rustix::net::accept(&listener).unwrap();
        thread::sleep(2 * super::link::PATIENCE);
    });
    let e = take(&path, "n1").unwrap_err().to_string();
    assert!(e.contains("podwire 9.1") && e.contains("protocol 9"), "{e}");
    for _ in 0..3 {
        let e = take(&path, "n1").unwrap_err();
        assert!(matches!(e, TakeError::Silent { .. }), "{e}");
    }
    thread.join().unwrap();
}

#[test]
fn its_socket_is_beside_the_nodes() {
    assert_eq!(
        beside(Path::new("/run/podwire/n1.sock")),
        Path::new("/run/podwire/n1.keep")
    );
    assert_eq!(beside(Path::new("/tmp/admin.x")), Path::new("/tmp/admin.x.keep"));
    assert_eq!(beside(Path::new("admin")), Path::new("admin.keep"));
}

/// Not a test of its own: what a keeper's process runs in the tests below, which start this very program.
#[test]
fn stands_in_for_a_keeper() {
    if let Some(room) = std::env::var_os("PODWIRE_STANDS_IN") {
        leave_room_for(room.to_str().unwrap().parse().unwrap());
        serve("n1", std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    }
}

/// Let this process open so many files more. Which numbers are free depends on who started the tests.
fn leave_room_for(files: usize) {
    let file = std::fs::File::open("/dev/null").unwrap();
    let free: Vec<_> = (1..files).map(|_| file.try_clone().unwrap()).collect();
    let highest = free
        .iter()
        .map(|f| f.as_raw_fd())
        .fold(file.as_raw_fd(), i32::max);
    let limit = rustix::process::Resource::Nofile;
    let mut to = rustix::process::getrlimit(limit);
    to.current = Some(highest as u64 + 1);
    rustix::process::setrlimit(limit, to).unwrap();
}

/// Files that a keeper needs for itself, and for some of six pods.
const FEW: u32 = 6;
const TOKENS: [mio::Token; 3] = [mio::Token(0), mio::Token(1), mio::Token(2)];

/// A node's dealings with keepers that are real processes, and six pods.
struct Node {
    keeping: Keeping,
    poll: mio::Poll,
    pods: Vec<(Record, OwnedFd)>,
    /// Pods whose TAP came back to be closed.
    closed: Vec<PodName>,
}

/// A program for keepers that may open so many files beside those they are born with.
fn program(dir: &Path, files: u32) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("keeper");
    let exe = std::env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\nPODWIRE_STANDS_IN={files} exec {} --exact \
         daemon::keeper::tests::stands_in_for_a_keeper --nocapture --test-threads=1\n",
        exe.display()
    );
    // Replaced, not written: a shell may be reading it.
    let new = dir.join("new");
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::rename(&new, &path).unwrap();
    path
}

impl Node {
    fn new(dir: &Path, files: u32, found: Option<Link>, pods: Vec<(Record, OwnedFd)>) -> Node {
        let path = dir.join("n1.keep");
        let replace = found.is_some();
        let mut node = Node {
            keeping: Keeping::new(Some(program(dir, files)), path, "n1", TOKENS, found),
            poll: mio::Poll::new().unwrap(),
            pods,
            closed: Vec::new(),
        };
        let todo = node.keeping.begin(node.poll.registry(), replace);
        node.obey(todo);
        node
    }

    fn obey(&mut self, todo: Todo) {
        if todo.hand_over {
            for (record, tap) in &self.pods {
                if self.keeping.lacks(&record.pod) {
                    self.keeping.give(record, tap.as_fd(), None, None);
                }
            }
            self.keeping.all_given();
        }
        self.closed.extend(todo.close.into_iter().map(|(pod, _)| pod));
    }

    /// Go on until it is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&Keeping) -> bool) {
        let begun = std::time::Instant::now();
        while !so(&self.keeping) {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "never: {what}; {:?}",
                self.keeping.problems()
            );
            self.turn();
        }
    }

    /// Do what comes within 20 ms, and what is due.
    fn turn(&mut self) {
        self.hear();
        if self.keeping.patience().is_some_and(|p| p.is_zero()) {
            let todo = self.keeping.on_time(self.poll.registry());
            self.obey(todo);
        }
    }

    fn hear(&mut self) {
        let mut events = mio::Events::with_capacity(8);
        match self.poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return,
            other => other.unwrap(),
        }
        for token in events.iter().map(mio::event::Event::token) {
            let todo = self.keeping.on_event(token, self.poll.registry());
            self.obey(todo);
        }
    }

    /// One that has left its six pods to a keeper of its own, taken up by another that is about to replace that: the
    /// process of the one, and the other.
    fn replacing(dir: &Path) -> (Process, Node) {
        let path = dir.join("n1.keep");
        let mut node = Node::new(dir, 1000, None, six());
        node.until("it listens", |k| k.problems().is_empty() && path.exists());
        let former = node.keeper();
        let (found, _) = left(node, &path);
        (former, Node::new(dir, 1000, Some(found), six()))
    }

    fn keeper(&self) -> Process {
        Process::from_raw(self.keeping.pid().unwrap() as i32).unwrap()
    }
}

fn six() -> Vec<(Record, OwnedFd)> {
    ["a", "b", "c", "d", "e", "f"]
        .map(|pod| (record(pod), thing().0))
        .into()
}

/// Leave the pods, and take them again: how many there are.
fn left(mut node: Node, path: &Path) -> (Link, usize) {
    node.keeping.leave();
    drop(node);
    let taken = take(path, "n1").unwrap().unwrap();
    (taken.link, taken.pods.len())
}

#[test]
fn a_keeper_is_replaced_only_by_one_that_has_every_pod() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let mut node = Node::new(dir.path(), 100, None, six());
    node.until("it listens", |k| k.problems().is_empty() && path.exists());
    let (found, n) = left(node, &path);
    assert_eq!(n, 6);
    // The next one may open too few files.
    let mut node = Node::new(dir.path(), FEW, Some(found), six());
    node.until("it is discarded", |k| {
        k.problems().iter().any(|p| p.contains("not replaced by one"))
    });
    let (found, n) = left(node, &path);
    assert_eq!(n, 6, "the former has them still");
    // Later there is room.
    let mut node = Node::new(dir.path(), FEW, Some(found), six());
    node.until("it is discarded", |k| !k.problems().is_empty());
    program(dir.path(), 100);
    node.until("it has succeeded", |k| k.problems().is_empty());
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 6);
    link.end();
}

#[test]
fn what_a_keeper_did_not_take_is_given_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let mut node = Node::new(dir.path(), FEW, None, six());
    node.until("it complains", |k| {
        path.exists() && k.problems().iter().any(|p| p.contains("ulimit"))
    });
    let pid = node.keeping.pid().unwrap();
    let process = rustix::process::Pid::from_raw(pid as i32);
    let limit = rustix::process::Resource::Nofile;
    let mut more = rustix::process::getrlimit(limit);
    more.current = Some(100);
    rustix::process::prlimit(process, limit, more).unwrap();
    node.until("it has all", |k| k.problems().is_empty());
    assert_eq!(node.keeping.pid(), Some(pid));
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 6);
    link.end();
}

/// This thread may be the slow one.
#[test]
fn a_keeper_that_has_answered_is_not_ended() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let mut node = Node::new(dir.path(), 100, None, six());
    thread::sleep(Duration::from_millis(1500));
    let pid = node.keeping.pid();
    let todo = node.keeping.on_time(node.poll.registry());
    node.obey(todo);
    node.until("it listens", |k| k.problems().is_empty() && path.exists());
    assert_eq!(node.keeping.pid(), pid);
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 6);
    link.end();
}

#[test]
fn no_descriptor_to_ask_with_is_not_no_keeper() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    // Nobody accepts, and the backlog is full.
    let (mut sockets, address) = (Vec::new(), SocketAddrUnix::new(&path).unwrap());
    let socket =
        |flags| rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let door = socket(SocketFlags::CLOEXEC);
    rustix::net::bind(&door, &address).unwrap();
    rustix::net::listen(&door, 0).unwrap();
    loop {
        let one = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK);
        match rustix::net::connect(&one, &address) {
            Ok(()) => sockets.push(one),
            Err(_) => break,
        }
    }
    let unknown = take(&path, "n1").unwrap_err();
    assert!(matches!(unknown, TakeError::Unknown { .. }), "{unknown}");
    drop(door);
    assert!(take(&path, "n1").unwrap().is_none(), "nobody listens any more");
}

/// A node that is killed has answers unread, which the keeper's socket tells as an error before all that is still to be
/// read there.
#[test]
fn what_a_killed_node_had_said_is_heard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let mut node = Node::new(dir.path(), 100, None, Vec::new());
    while !path.exists() {
        thread::sleep(Duration::from_millis(5));
    }
    let pid = node.keeping.pid().unwrap();
    let process = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let signal = |signal| rustix::process::kill_process(process, signal).unwrap();
    signal(rustix::process::Signal::STOP);
    for (record, tap) in six() {
        node.keeping.keep(&record, tap.as_fd(), None, None);
    }
    drop(node);
    signal(rustix::process::Signal::CONT);
    let taken = take(&path, "n1").unwrap().unwrap();
    assert_eq!(taken.pods.len(), 6);
    let mut link = taken.link;
    link.end();
}

#[test]
fn a_keeper_whose_former_died_is_published_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let (former, mut node) = Node::replacing(dir.path());
    let new = node.keeper();
    kill_process(new, Signal::STOP).unwrap();
    kill_process(former, Signal::KILL).unwrap();
    let begun = std::time::Instant::now();
    node.until("the end of the former is seen", |_| {
        begun.elapsed() > Duration::from_millis(300)
    });
    kill_process(new, Signal::CONT).unwrap();
    node.until("it listens", |_| is_served(&path));
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 6);
    link.end();
}

/// Whether somebody listens there.
fn is_served(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    rustix::net::connect(socket.unwrap(), &SocketAddrUnix::new(path).unwrap()).is_ok()
}

/// Both are told to forget it, and what the former answered was read when it was due.
#[test]
fn a_pod_that_goes_while_a_keeper_is_replaced_in_vain_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut node) = Node::replacing(dir.path());
    kill_process(node.keeper(), Signal::STOP).unwrap();
    let (record, tap) = node.pods.remove(0);
    assert!(node.keeping.forget(&record.pod, Some(tap)).is_none());
    // This thread is the slow one.
    thread::sleep(Duration::from_millis(1200));
    let todo = node.keeping.on_time(node.poll.registry());
    node.obey(todo);
    node.until("it is discarded", |k| {
        k.problems().iter().any(|p| p.contains("not replaced by one"))
    });
    let begun = std::time::Instant::now();
    while node.closed.is_empty() && begun.elapsed() < Duration::from_secs(3) {
        node.turn();
    }
    assert_eq!(node.closed, [record.pod]);
    let (mut link, n) = left(node, &dir.path().join("n1.keep"));
    assert_eq!(n, 5);
    link.end();
}

/// It has them all, and answers that nobody reads would keep it from hearing that it is to end.
#[test]
fn a_former_is_not_given_what_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let (tap, _near) = thing();
    let many = || -> Vec<_> {
        let pods = (0..400).map(|n| (record(&format!("p{n}")), tap.try_clone().unwrap()));
        pods.collect()
    };
    let mut node = Node::new(dir.path(), 1000, None, many());
    node.until("it listens", |k| k.problems().is_empty() && path.exists());
    let (found, n) = left(node, &path);
    assert_eq!(n, 400);
    let mut node = Node::new(dir.path(), 1000, Some(found), many());
    let (record, tap) = node.pods.remove(0);
    assert!(node.keeping.forget(&record.pod, Some(tap)).is_none());
    // Nothing has to become due for that.
    let begun = std::time::Instant::now();
    while node.closed.is_empty() && begun.elapsed() < Duration::from_secs(20) {
        node.hear();
    }
    assert_eq!(node.closed, [record.pod]);
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 399);
    link.end();
}

/// It had taken the former's place already.
#[test]
fn a_former_is_found_again_when_its_successor_dies() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let (_, mut node) = Node::replacing(dir.path());
    let place = || std::fs::symlink_metadata(&path).unwrap().ino();
    let (new, before) = (node.keeper(), place());
    // Its answer to that waits to be read.
    while place() == before {
        node.turn();
        thread::sleep(Duration::from_millis(100));
    }
    // So that the next attempt, a second later, does not mend it.
    std::fs::remove_file(dir.path().join("keeper")).unwrap();
    let end = rustix::process::pidfd_open(new, rustix::process::PidfdFlags::empty()).unwrap();
    kill_process(new, Signal::KILL).unwrap();
    let mut fds = [PollFd::new(&end, PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, None), Ok(1));
    node.until("its end is seen", |k| {
        k.pid() != Some(new.as_raw_nonzero().get() as u32)
    });
    node.until("somebody listens", |_| is_served(&path));
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 6);
    link.end();
}

#[test]
fn a_node_that_ends_tells_the_former_of_all_pods() {
    let dir = tempfile::tempdir().unwrap();
    let (former, mut node) = Node::replacing(dir.path());
    let new = node.keeper();
    for keeper in [former, new] {
        kill_process(keeper, Signal::STOP).unwrap();
    }
    let (tap, _near) = thing();
    for n in 0..400 {
        node.keeping
            .keep(&record(&format!("p{n}")), tap.as_fd(), None, None);
    }
    kill_process(former, Signal::CONT).unwrap();
    node.keeping.leave();
    drop(node);
    kill_process(new, Signal::CONT).unwrap();
    let taken = take(&dir.path().join("n1.keep"), "n1").unwrap().unwrap();
    assert_eq!(taken.pods.len(), 406);
    let mut link = taken.link;
    link.end();
}

/// The next one may have found the former meanwhile, which has all pods.
#[test]
fn a_keeper_whose_node_was_killed_takes_nobodys_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let (wire, former) = keeper();
    publish(&wire, &path);
    let [(a, _far_a), (b, far_b)] = [thing(), thing()];
    keep(&wire, "a", &[&a]);
    let (near, far) = socketpair();
    let slow = Packets::new(near);
    let parcel = Parcel {
        record: record("b"),
        process: false,
        lifeline: false,
    };
    let hello = ToKeeper::Hello {
        protocol: PROTOCOL,
        node: "n1".into(),
    };
    for (what, fds) in [
        (hello, &[][..]),
        (ToKeeper::Keep(Box::new(parcel)), &[b.as_fd()]),
        (ToKeeper::Publish { path: path.clone() }, &[]),
    ] {
        slow.send(&serde_json::to_vec(&what).unwrap(), fds).unwrap();
    }
    drop((slow, wire, b));
    let taken = take(&path, "n1").unwrap().unwrap();
    let late = thread::spawn(move || serve("n1", far));
    assert!(is_closed(&far_b));
    late.join().unwrap();
    assert!(path.exists());
    drop(taken);
    let taken = take(&path, "n1").unwrap().unwrap();
    assert_eq!(taken.pods[0].record, record("a"));
    let mut link = taken.link;
    link.end();
    former.join().unwrap();
}

/// Not a test of its own: a node that may open few files, in the test below.
#[test]
fn stands_in_for_a_node() {
    if let Some(path) = std::env::var_os("PODWIRE_TAKES") {
        panic!("{}", take(Path::new(&path), "n1").unwrap_err());
    }
}

#[test]
fn pods_for_which_a_node_has_no_room_are_none_to_end_their_keeper_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let mut node = Node::new(dir.path(), 1000, None, Vec::new());
    node.until("it listens", |k| k.problems().is_empty() && path.exists());
    let (tap, _near) = thing();
    for n in 0..40 {
        node.keeping
            .keep(&record(&format!("p{n}")), tap.as_fd(), None, None);
    }
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 40);
    drop(link);
    let exe = std::env::current_exe().unwrap();
    let said = std::process::Command::new("sh")
        .args([
            "-c",
            "ulimit -Sn 20; exec \"$0\" --exact \"$1\" --nocapture --test-threads=1",
        ])
        .arg(exe)
        .arg("daemon::keeper::tests::stands_in_for_a_node")
        .env("PODWIRE_TAKES", &path)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(
        said.contains("raise `ulimit -n`") && !said.contains("end it"),
        "{said}"
    );
    link = take(&path, "n1").unwrap().unwrap().link;
    link.end();
}
