use super::keeping::{Keeping, Todo};
use super::link::{Answer, Link, TakeError, take};
use super::process::serve;
use super::*;
use crate::api::packet::Packets;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
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
    ask(wire, &ToKeeper::Keep(parcel), fds)
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
        publish: Vec::new(),
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
        };
        let todo = node.keeping.begin(node.poll.registry(), replace);
        node.obey(todo);
        node
    }

    fn obey(&mut self, todo: Todo) {
        if todo.hand_over {
            for (record, tap) in &self.pods {
                if self.keeping.lacks(&record.pod) {
                    self.keeping.keep(record, tap.as_fd(), None, None);
                }
            }
            self.keeping.all_given();
        }
    }

    /// Go on until it is so.
    fn until(&mut self, what: &str, mut so: impl FnMut(&Keeping) -> bool) {
        let begun = std::time::Instant::now();
        let mut events = mio::Events::with_capacity(8);
        while !so(&self.keeping) {
            assert!(
                begun.elapsed() < Duration::from_secs(20),
                "never: {what}; {:?}",
                self.keeping.problems()
            );
            self.poll
                .poll(&mut events, Some(Duration::from_millis(20)))
                .unwrap();
            for token in events.iter().map(mio::event::Event::token) {
                let todo = self.keeping.on_event(token, self.poll.registry());
                self.obey(todo);
            }
            if self.keeping.patience().is_some_and(|p| p.is_zero()) {
                let todo = self.keeping.on_time(self.poll.registry());
                self.obey(todo);
            }
        }
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
    use rustix::process::{Pid, Signal, kill_process};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n1.keep");
    let mut node = Node::new(dir.path(), 100, None, six());
    node.until("it listens", |k| k.problems().is_empty() && path.exists());
    let former = Pid::from_raw(node.keeping.pid().unwrap() as i32).unwrap();
    let (found, _) = left(node, &path);
    let mut node = Node::new(dir.path(), 100, Some(found), six());
    let new = Pid::from_raw(node.keeping.pid().unwrap() as i32).unwrap();
    kill_process(new, Signal::STOP).unwrap();
    kill_process(former, Signal::KILL).unwrap();
    let begun = std::time::Instant::now();
    node.until("the end of the former is seen", |_| {
        begun.elapsed() > Duration::from_millis(300)
    });
    kill_process(new, Signal::CONT).unwrap();
    node.until("it listens", |_| {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        );
        rustix::net::connect(socket.unwrap(), &SocketAddrUnix::new(&path).unwrap()).is_ok()
    });
    let (mut link, n) = left(node, &path);
    assert_eq!(n, 6);
    link.end();
}
