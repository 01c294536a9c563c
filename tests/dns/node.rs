//! A real node that answers names.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub struct Node {
    pub process: Child,
    pub at: SocketAddr,
    pub dir: tempfile::TempDir,
}

/// A port of loopback that nobody has for UDP and TCP just now.
pub fn free_port() -> SocketAddr {
    loop {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = udp.local_addr().unwrap();
        if std::net::TcpListener::bind(at).is_ok() {
            return at;
        }
    }
}

pub fn podwire(dir: &Path) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_podwire"));
    c.env_remove("NOTIFY_SOCKET")
        .env("PODWIRE_SOCKET", dir.join("n1.sock"))
        .env("XDG_RUNTIME_DIR", dir)
        .env("XDG_STATE_HOME", dir.join("state"));
    c.current_dir(dir);
    c
}

impl Node {
    pub fn start(more: &[&str]) -> Node {
        Node::start_in(tempfile::tempdir().unwrap(), more)
    }

    pub fn start_in(dir: tempfile::TempDir, more: &[&str]) -> Node {
        let at = free_port();
        let listen = at.to_string();
        let mut process = podwire(dir.path())
            .args(["node", "--name", "n1", "--subnet", "10.244.1.0/24"])
            .args([
                "--subnet6",
                "fd00:1::/64",
                "--bind",
                "127.0.0.1",
                "--port",
                "auto",
            ])
            .args(["--log", "warn", "--dns-listen", &listen])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.starts_with("node n1 is up"), "{line}");
        Node { process, at, dir }
    }

    /// With a resolver.
    pub fn asking(upstream: SocketAddr, more: &[&str]) -> Node {
        let upstream = upstream.to_string();
        Node::start(&[&["--dns-upstream", &upstream], more].concat())
    }

    /// A podwire command; its exit code and output.
    pub fn run(&self, args: &[&str]) -> (i32, String) {
        let output = podwire(self.dir.path()).args(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    /// The same, which must work.
    pub fn ok(&self, args: &[&str]) -> String {
        let (code, text) = self.run(args);
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    }

    /// dig's whole output.
    pub fn dig(&self, args: &str) -> String {
        let output = Command::new("dig")
            .args([
                "-p",
                &self.at.port().to_string(),
                "@127.0.0.1",
                "+tries=1",
                "+time=8",
            ])
            .args(args.split(' '))
            .output()
            .expect("dig (Debian: bind9-dnsutils)");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The status dig tells, and the lines of the answer, blanks made one, in order.
    pub fn answer(&self, args: &str) -> (String, Vec<String>) {
        let text = self.dig(&format!("{args} +noall +comments +answer"));
        let status = text.split("status: ").nth(1).and_then(|s| s.split(',').next());
        let status = status.unwrap_or_else(|| panic!("no answer to {args}: {text}"));
        let lines = text.lines().filter(|l| !l.starts_with(';') && !l.is_empty());
        let plain = |l: &str| l.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        let mut lines: Vec<String> = lines.map(plain).collect();
        lines.sort();
        (status.into(), lines)
    }

    /// A number of `status --json`, by its JSON pointer.
    pub fn status(&self, pointer: &str) -> u64 {
        let status: serde_json::Value = serde_json::from_str(&self.ok(&["status", "--json"])).unwrap();
        status
            .pointer(pointer)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    }

    pub fn client(&self) -> UdpSocket {
        self.client_from("127.0.0.1")
    }

    pub fn client_from(&self, ip: &str) -> UdpSocket {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.connect(self.at).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
        socket
    }

    /// End it properly; its directory for the next start.
    pub fn stop(mut self) -> tempfile::TempDir {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.process.wait().unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
