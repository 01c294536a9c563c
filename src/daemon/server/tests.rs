mod attachments;

use super::kept::Kept;
use super::*;
use crate::api::{AddressState, ApiError, AttachPlan, AttachRequest, Client, PodInfo, Status};
use crate::daemon::command::Command;
use crate::daemon::config::{given::Given, keys};
use crate::daemon::links::Host;
use crate::daemon::standin;
use crate::model::{ServiceChange, TapCaps};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the data path was told of peers.
#[derive(Default)]
struct Ears {
    /// It has no room for more.
    full: AtomicBool,
    /// How often that was the answer.
    refused: AtomicUsize,
    heard: Mutex<Vec<String>>,
    /// It panics, in the thread of whoever asks, at the next command.
    panics: AtomicBool,
    /// Frontends it was told of, once for each time.
    served: Mutex<Vec<String>>,
}

/// The stand-in, and what it was told.
struct Listening {
    handle: standin::Handle,
    ears: Arc<Ears>,
}

impl Worker for Listening {
    fn send(&self, command: Command) -> Result<(), String> {
        assert!(!self.ears.panics.swap(false, Ordering::SeqCst), "a test's panic");
        if let Command::Services(changes) = &command {
            if self.ears.full.load(Ordering::SeqCst) {
                self.ears.refused.fetch_add(1, Ordering::SeqCst);
                return Err("there is no room".into());
            }
            let told = changes.iter().map(|c| match c {
                ServiceChange::Set(f, what) => format!("{f} {}", what.service),
                ServiceChange::Gone(f) => format!("{f} gone"),
            });
            self.ears.served.lock().unwrap().extend(told);
        }
        if let Command::Changes(changes) = &command {
            if self.ears.full.load(Ordering::SeqCst) {
                self.ears.refused.fetch_add(1, Ordering::SeqCst);
                return Err("there is no room".into());
            }
            let told = changes.iter().map(|c| match c {
                Change::PeerSet(p) => format!("{} at {}", p.name, p.underlay.ip()),
                Change::PeerGone(name) => format!("{name} gone"),
            });
            self.ears.heard.lock().unwrap().extend(told);
        }
        self.handle.send(command)
    }

    fn underlay(&self) -> Vec<std::net::SocketAddr> {
        self.handle.underlay()
    }
}

/// A node on a thread of its own, with the stand-in for a data path.
struct Node {
    dir: tempfile::TempDir,
    stop: UnixStream,
    reload: UnixStream,
    thread: Option<JoinHandle<End>>,
    ears: Arc<Ears>,
}

impl Node {
    fn start() -> Node {
        Node::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(dir: tempfile::TempDir) -> Node {
        let peers = dir.path().join("peers.toml");
        fs::write(&peers, "").unwrap();
        let mut given = Given::default();
        given.flag(&keys::NODE, vec!["n1".into()]);
        given.flag(&keys::SUBNET, vec!["10.244.1.0/29".into()]);
        given.flag(&keys::SUBNET6, vec!["fd00:1::/64".into()]);
        given.flag(&keys::BIND, vec!["127.0.0.1".into()]);
        given.flag(&keys::PORT, vec!["auto".into()]);
        let config = Config::understand(&given, &Host::default()).unwrap();
        let listener = Listener::bind(&dir.path().join("n1.sock"), "n1").unwrap();
        let (stop, stop_far) = UnixStream::pair().unwrap();
        let (reload, reload_far) = UnixStream::pair().unwrap();
        let ears = Arc::new(Ears::default());
        let heard = ears.clone();
        let records = dir.path().join("n1.state/pods.json");
        let socket = dir.path().join("n1.sock");
        let own = dir.path().join("n1.state/services");
        let thread = std::thread::spawn(move || {
            let (lifeline, worker_far) = UnixStream::pair().unwrap();
            let handle = standin::spawn(&config, lifeline).unwrap();
            let handle = Listening { handle, ears: heard };
            let peers = PeersFile::open(&peers, &config.local_node(), 8472).unwrap();
            let wakers = Wakers {
                stop: stop_far,
                reload: reload_far,
                worker: worker_far,
            };
            let mut kept = Kept::nothing(records);
            kept.manifests.1 = own;
            kept.socket = socket;
            let server = Server::new(
                config,
                &handle,
                listener,
                Endpoints::default(),
                Source::File(peers),
                wakers,
                kept,
            )
            .unwrap();
            let (end, mut recorder) = server.run();
            recorder.settle();
            handle.send(Command::Stop).unwrap();
            handle.handle.join();
            end.unwrap()
        });
        Node {
            dir,
            stop,
            reload,
            thread: Some(thread),
            ears,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> Client {
        Client::connect(&self.path("n1.sock")).unwrap()
    }

    fn status(&self) -> Status {
        match self.client().call(&Request::Status).unwrap() {
            Reply::Status(s) => *s,
            other => panic!("{other:?}"),
        }
    }

    /// Wait until the node has `n` pods.
    fn pods(&self, n: usize) -> Vec<PodInfo> {
        for _ in 0..500 {
            if let Ok(Reply::Pods { pods }) = self.client().call(&Request::Pods)
                && pods.len() == n
            {
                return pods;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("there are not {n} pods")
    }

    fn stop(mut self) -> tempfile::TempDir {
        self.stop.write_all(b"x").unwrap();
        assert_eq!(self.thread.take().unwrap().join().unwrap(), End::Asked);
        self.dir
    }
}

fn want(pod: &str) -> AttachRequest {
    AttachRequest {
        pod: pod.parse().unwrap(),
        ip4: None,
        ip6: None,
        mac: None,
        mtu: None,
        ifname: "eth0".into(),
        netns: None,
        holder: None,
        attachment: None,
        aliases: Vec::new(),
        publish: Vec::new(),
        labels: Default::default(),
        ports: Vec::new(),
        bandwidth: None,
    }
}

fn plan(client: &mut Client, request: AttachRequest) -> Result<AttachPlan, ApiError> {
    match client.call(&Request::Attach(Box::new(request)))? {
        Reply::Plan(plan) => Ok(plan),
        other => panic!("{other:?}"),
    }
}

fn commit(client: &mut Client, fds: &[BorrowedFd<'_>]) -> Result<PodInfo, ApiError> {
    give(client, fds, false)
}

fn give(client: &mut Client, fds: &[BorrowedFd<'_>], lifeline: bool) -> Result<PodInfo, ApiError> {
    let caps = TapCaps::default();
    match client.call_with_fds(&Request::Commit { caps, lifeline }, fds)? {
        Reply::Attached(info) => Ok(*info),
        other => panic!("{other:?}"),
    }
}

fn tap() -> OwnedFd {
    UnixStream::pair().unwrap().0.into()
}

#[test]
fn a_pod_comes_and_goes() {
    let node = Node::start();
    let mut client = node.client();
    assert_eq!(client.node(), "n1");
    let promised = plan(&mut client, want("a")).unwrap();
    assert_eq!(promised.ip4, Some("10.244.1.2/29".parse().unwrap()));
    assert_eq!(promised.ip6, Some("fd00:1::2/64".parse().unwrap()));
    assert_eq!(promised.gateway4, Some([10, 244, 1, 1].into()));
    assert_eq!((promised.mtu.0, promised.gso_max_segs), (1450, 44));
    let info = commit(&mut client, &[tap().as_fd()]).unwrap();
    assert_eq!(info.addresses.len(), 2);
    let taken = plan(&mut client, want("a")).unwrap_err();
    assert!(
        matches!(
            taken,
            ApiError::Refused {
                kind: ErrorKind::Taken,
                ..
            }
        ),
        "{taken}"
    );
    assert_eq!(node.pods(1)[0].pod, "a".parse().unwrap());
    let status = node.status();
    assert_eq!((status.node.as_str(), status.pods.len()), ("n1", 1));
    assert!(status.underlay[0].port() != 0 && status.problems.is_empty());
    let gone = |existed| {
        let pod = "a".parse().unwrap();
        let reply = node.client().call(&Request::Detach { pod });
        assert!(
            matches!(reply, Ok(Reply::Detached { existed: e }) if e == existed),
            "{reply:?}"
        );
    };
    gone(true);
    gone(false);
    let dir = node.stop();
    assert!(!dir.path().join("n1.sock").exists());
}

#[test]
fn a_panic_costs_the_request_it_came_at() {
    let node = Node::start();
    let (mut other, mut client) = (node.client(), node.client());
    assert!(matches!(other.call(&Request::Pods), Ok(Reply::Pods { .. })));
    node.ears.panics.store(true, Ordering::SeqCst);
    match client.call(&Request::Status) {
        Err(ApiError::Refused { kind, message }) => {
            assert_eq!(kind, ErrorKind::Internal);
            assert!(message.contains("a bug in podwire"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert!(
        client.call(&Request::Status).is_err(),
        "that conversation is over"
    );
    assert!(matches!(other.call(&Request::Pods), Ok(Reply::Pods { .. })));
    node.stop();
}

/// What was half done would be there for ever: names, addresses.
#[test]
fn a_panic_in_the_midst_of_a_change_ends_the_node() {
    type Asks = fn(&mut Client) -> bool;
    let asks: [Asks; 2] = [
        |client| commit(client, &[tap().as_fd()]).is_err(),
        |client| {
            let pod = "a".parse().unwrap();
            client.call(&Request::Detach { pod }).is_err()
        },
    ];
    for (n, ask) in asks.into_iter().enumerate() {
        let mut node = Node::start();
        let mut client = node.client();
        plan(&mut client, want("a")).unwrap();
        if n == 1 {
            commit(&mut client, &[tap().as_fd()]).unwrap();
        }
        node.ears.panics.store(true, Ordering::SeqCst);
        assert!(ask(&mut client));
        for _ in 0..500 {
            if node.thread.as_ref().unwrap().is_finished() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let thread = node.thread.take().unwrap();
        assert!(
            thread.is_finished(),
            "request {n} was given up, and what it did is there"
        );
        assert!(thread.join().is_err());
    }
}

#[test]
fn a_reservation_ends_with_its_connection() {
    let node = Node::start();
    let mut first = node.client();
    plan(&mut first, want("a")).unwrap();
    assert!(plan(&mut node.client(), want("a")).is_err());
    assert!(
        commit(&mut first, &[]).is_err(),
        "a commit without a TAP is refused"
    );
    assert!(
        commit(&mut first, &[tap().as_fd()]).is_err(),
        "and ends the reservation"
    );
    plan(&mut first, want("a")).unwrap();
    plan(&mut first, want("b")).unwrap();
    drop(first);
    // The loop takes the end of a connection before later connections or after; both end well.
    let again = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(5));
        plan(&mut node.client(), want("b")).ok()
    });
    assert!(again.is_some());
    node.stop();
}

/// An interface is there until its TAP is closed: whom that concerns waits for it, nobody else does.
#[test]
fn who_waits_for_a_tap_to_be_closed() {
    let node = Node::start();
    let (tap, hold) = standin::slow();
    let mut client = node.client();
    plan(&mut client, want("a")).unwrap();
    commit(&mut client, &[tap.as_fd()]).unwrap();
    drop(tap);
    std::thread::scope(|s| {
        let detach = || {
            let pod = "a".parse().unwrap();
            let reply = node.client().call(&Request::Detach { pod }).unwrap();
            matches!(reply, Reply::Detached { existed: true })
        };
        let first = s.spawn(detach);
        node.pods(0);
        // It is off the node, which serves others and, in that conversation or another, other pods.
        let late = [
            s.spawn(detach),
            s.spawn(|| plan(&mut node.client(), want("a")).is_ok()),
        ];
        plan(&mut client, want("b")).unwrap();
        commit(&mut client, &[self::tap().as_fd()]).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(node.status().pods.len(), 1);
        assert!(!first.is_finished() && late.iter().all(|l| !l.is_finished()));
        drop(hold);
        assert!(first.join().unwrap());
        assert_eq!(late.map(|l| l.join().unwrap()), [false, true]);
    });
    // One who does not wait for the answer is missed by nobody.
    let (tap, hold) = standin::slow();
    plan(&mut client, want("c")).unwrap();
    commit(&mut client, &[tap.as_fd()]).unwrap();
    drop(tap);
    let mut hasty = UnixStream::connect(node.path("n1.sock")).unwrap();
    let hello = format!("{{\"request\":\"hello\",\"protocol\":{PROTOCOL}}}");
    write!(hasty, "{hello}\n{{\"request\":\"detach\",\"pod\":\"c\"}}\n").unwrap();
    node.pods(1);
    drop(hasty);
    drop(hold);
    plan(&mut client, want("c")).unwrap();
    node.stop();
}

#[test]
fn addresses_are_told_and_rest_across_a_restart() {
    let node = Node::start();
    let mut client = node.client();
    for pod in ["a", "b"] {
        plan(&mut client, want(pod)).unwrap();
        commit(&mut client, &[tap().as_fd()]).unwrap();
    }
    let pod = "a".parse().unwrap();
    client.call(&Request::Detach { pod }).unwrap();
    let told = |node: &Node| match node.client().call(&Request::Ipam).unwrap() {
        Reply::Ipam(info) => info,
        other => panic!("{other:?}"),
    };
    let info = told(&node);
    // Of 10.244.1.0/29 pods get .2 to .6.
    assert_eq!((info.held, info.resting, info.free), (1, 1, 3));
    assert!(matches!(info.addresses[0].state, AddressState::Held { .. }));
    assert!(matches!(
        info.addresses[1].state,
        AddressState::Resting { left_s: 55..=60 }
    ));
    assert_eq!(info.addresses[1].ip4, Some([10, 244, 1, 2].into()));
    let dir = node.stop();
    // Both rest now, and the node goes on behind them.
    let node = Node::start_in(dir);
    let info = told(&node);
    assert_eq!((info.held, info.resting, info.free), (0, 2, 3));
    let promised = plan(&mut node.client(), want("c")).unwrap();
    assert_eq!(promised.ip4, Some("10.244.1.4/29".parse().unwrap()));
    node.stop();
}

#[test]
fn pods_whose_namespace_vanishes_are_removed() {
    let node = Node::start();
    let mut client = node.client();
    let netns = node.path("a.netns");
    fs::write(&netns, "").unwrap();
    let by_path = AttachRequest {
        netns: Some(netns.clone()),
        ..want("a")
    };
    plan(&mut client, by_path).unwrap();
    commit(&mut client, &[tap().as_fd()]).unwrap();

    let mut holder = std::process::Command::new("sleep").arg("100").spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(holder.id()).unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    plan(&mut client, want("b")).unwrap();
    commit(&mut client, &[tap().as_fd(), pidfd.as_fd()]).unwrap();
    let by_pid = AttachRequest {
        holder: Some(holder.id()),
        ..want("c")
    };
    plan(&mut client, by_pid).unwrap();
    commit(&mut client, &[tap().as_fd()]).unwrap();
    node.pods(3);

    fs::remove_file(&netns).unwrap();
    assert_eq!(node.pods(2)[0].pod, "b".parse().unwrap());
    holder.kill().unwrap();
    node.pods(0);
    holder.wait().unwrap();
    node.stop();
}

#[test]
fn lifelines_are_cut_with_ports() {
    let node = Node::start();
    let mut client = node.client();
    let mut ends = Vec::new();
    for pod in ["a", "b", "c"] {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        plan(&mut client, want(pod)).unwrap();
        // Without a TAP beside it, it is not taken for one.
        assert!(give(&mut client, &[far.as_fd()], true).is_err());
        plan(&mut client, want(pod)).unwrap();
        give(&mut client, &[tap().as_fd(), far.as_fd()], true).unwrap();
        ends.push(near);
    }
    let cut = |mut end: &UnixStream| end.read(&mut [0]).ok();
    assert_eq!(ends.iter().map(cut).collect::<Vec<_>>(), [None; 3]);
    let pod = "a".parse().unwrap();
    client.call(&Request::Detach { pod }).unwrap();
    assert_eq!(ends.iter().map(cut).collect::<Vec<_>>(), [Some(0), None, None]);
    node.stop();
    assert_eq!(ends.iter().map(cut).collect::<Vec<_>>(), [Some(0); 3]);
}

#[test]
fn peers_are_read_again_and_mistakes_shown() {
    let mut node = Node::start();
    assert!(node.status().problems.is_empty());
    fs::write(node.path("peers.toml"), "[[peer]]\nname = 3\n").unwrap();
    let complaint = (0..200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(5));
        node.status().problems.into_iter().next()
    });
    assert!(complaint.unwrap().contains("peers.toml:2"));
    fs::write(node.path("tmp"), "peer = []\n").unwrap();
    fs::rename(node.path("tmp"), node.path("peers.toml")).unwrap();
    node.reload.write_all(b"x").unwrap();
    let quiet = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        node.status().problems.is_empty()
    });
    assert!(quiet);
    fs::remove_file(node.path("peers.toml")).unwrap();
    let complaint = (0..200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(5));
        node.status().problems.into_iter().next()
    });
    assert!(complaint.unwrap().contains("peers known before stay in force"));
    node.stop();
}

#[test]
fn strangers_are_turned_away_politely() {
    let node = Node::start();
    let mut raw = UnixStream::connect(node.path("n1.sock")).unwrap();
    raw.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    raw.write_all(b"{\"request\":\"pods\"}\nGET / HTTP/1.1\n")
        .unwrap();
    let mut seen = String::new();
    while seen.matches('\n').count() < 2 {
        let mut space = [0; 1024];
        let n = raw.read(&mut space).unwrap();
        seen.push_str(std::str::from_utf8(&space[..n]).unwrap());
    }
    assert!(
        seen.contains("say hello") && seen.contains("not a request"),
        "{seen}"
    );
    let crowd: Vec<_> = (0..MAX_CONNECTIONS + 10)
        .map(|_| UnixStream::connect(node.path("n1.sock")))
        .collect();
    drop(crowd);
    // Those at the door while the crowd is inside are turned away with a reason, until it has left.
    let served = (0..500).find_map(|_| {
        std::thread::sleep(Duration::from_millis(5));
        Client::connect(&node.path("n1.sock")).ok()
    });
    assert!(served.is_some());
    node.stop();
}

/// Wait until it is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: not within ten seconds");
}

#[test]
fn changes_are_told_in_one_order_and_wait_while_there_is_no_room() {
    let node = Node::start();
    let peer = |n: usize, underlay: &str| {
        format!(
            "[[peer]]\nname = \"n{n}\"\nunderlay = \"{underlay}\"\nsubnet = \"10.{}.{}.0/24\"\n",
            128 + n / 256,
            n % 256
        )
    };
    let write = |text: String| {
        let new = node.path("peers.new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, node.path("peers.toml")).unwrap();
    };
    let heard = || std::mem::take(&mut *node.ears.heard.lock().unwrap());
    let refused = || node.ears.refused.load(Ordering::SeqCst);
    write(peer(2, "192.0.2.2"));
    until("it is told", || {
        *node.ears.heard.lock().unwrap() == ["n2 at 192.0.2.2"]
    });
    heard();

    // n2 moves while nothing is heard, n3 and n4 come, n4 goes again.
    node.ears.full.store(true, Ordering::SeqCst);
    write(peer(2, "192.0.2.9") + &peer(3, "192.0.2.3") + &peer(4, "192.0.2.4"));
    until("it is offered", || refused() > 0);
    let before = refused();
    write(peer(2, "192.0.2.8") + &peer(3, "192.0.2.3"));
    until("and again", || refused() > before + 1);
    assert_eq!(heard(), [""; 0]);
    node.ears.full.store(false, Ordering::SeqCst);
    until("there is room", || !node.ears.heard.lock().unwrap().is_empty());
    assert_eq!(heard(), ["n3 at 192.0.2.3", "n4 gone", "n2 at 192.0.2.8"]);

    // As many as a node takes.
    write(
        (2..16_386)
            .map(|n| peer(n, &format!("198.18.{}.{}", n / 256, n % 256)))
            .collect(),
    );
    until("all are told", || node.ears.heard.lock().unwrap().len() == 16_384);
    assert_eq!(node.status().problems, [""; 0]);
    node.stop();
}

fn web(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.10, ports: [{{port: {port}}}]}}\n---\n"
    )
}

#[test]
fn of_services_that_wait_the_last_word_is_told_once() {
    let node = Node::start();
    let mut client = node.client();
    let text = web("web", 80);
    client.call(&Request::Apply { text }).unwrap();
    node.ears.full.store(true, Ordering::SeqCst);
    node.ears.served.lock().unwrap().clear();
    for n in 0..50 {
        let text = web("web", 80 + n % 3);
        client.call(&Request::Apply { text }).unwrap();
    }
    node.ears.full.store(false, Ordering::SeqCst);
    until("there is room", || !node.ears.served.lock().unwrap().is_empty());
    assert_eq!(
        *node.ears.served.lock().unwrap(),
        ["10.96.0.10:80/TCP gone", "10.96.0.10:81/TCP default/web"]
    );
    node.stop();
}

#[test]
fn of_a_manifest_that_cannot_be_kept_nothing_is() {
    let node = Node::start();
    let own = node.path("n1.state/services");
    let mut client = node.client();
    let text = web("a", 80);
    client.call(&Request::Apply { text }).unwrap();
    // Nothing can be written beside the second: the name is a directory's.
    let blocked = own.join("service.default.b.json.new");
    fs::create_dir_all(blocked.join("x")).unwrap();
    let text = web("a", 81) + &web("b", 82);
    let refused = client.call(&Request::Apply { text }).unwrap_err().to_string();
    assert!(refused.contains("service.default.b.json"), "{refused}");
    let kept = fs::read_to_string(own.join("service.default.a.json")).unwrap();
    assert!(kept.contains("80") && !kept.contains("81"), "{kept}");
    // Nor can the second have its name.
    fs::remove_dir_all(&blocked).unwrap();
    let blocked = own.join("service.default.b.json");
    fs::create_dir_all(blocked.join("x")).unwrap();
    let text = web("a", 81) + &web("b", 82);
    client.call(&Request::Apply { text }).unwrap_err();
    let kept = fs::read_to_string(own.join("service.default.a.json")).unwrap();
    assert!(kept.contains("80") && !kept.contains("81"), "{kept}");
    let mut names: Vec<_> = fs::read_dir(&own)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["service.default.a.json", "service.default.b.json"]);
    node.stop();
}
