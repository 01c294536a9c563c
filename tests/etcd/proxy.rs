//! A TCP proxy on loopback that can delay, freeze and cut.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What happens to bytes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Way {
    /// They pass.
    Open,
    /// Those from the server pass later.
    Slow(Duration),
    /// They wait; connections are taken and stay.
    Frozen,
    /// Connections end, and new ones end at once.
    Cut,
}

/// How often a frozen or cut way is looked at again.
const LOOK: Duration = Duration::from_millis(10);

/// The proxy; its connections are cut when it is dropped.
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    way: Arc<Mutex<Way>>,
}

impl Proxy {
    /// In front of a server at `http://host:port`.
    pub fn to(server: &str) -> Proxy {
        let server = server.split("//").nth(1).unwrap().to_string();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let way = Arc::new(Mutex::new(Way::Open));
        let seen = Arc::downgrade(&way);
        thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Some(way)) = (client, seen.upgrade()) else {
                    return;
                };
                if *way.lock().unwrap() == Way::Cut {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&server) else {
                    continue;
                };
                let pair = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (there, back) = (way.clone(), way);
                thread::spawn(move || pump(client, server, &there, false));
                thread::spawn(move || pump(pair.1, pair.0, &back, true));
            }
        });
        Proxy { url, way }
    }

    /// From now on.
    pub fn set(&self, way: Way) {
        *self.way.lock().unwrap() = way;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Way::Cut);
        // Wakes the listener, which finds nobody who holds the way.
        let _ = TcpStream::connect(self.url.trim_start_matches("http://"));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, way: &Mutex<Way>, answers: bool) {
    from.set_read_timeout(Some(LOOK)).unwrap();
    let look = || *way.lock().unwrap();
    let mut bytes = vec![0; 1 << 16];
    // What was read, and when it may be written.
    let mut waiting: std::collections::VecDeque<(Instant, Vec<u8>)> = Default::default();
    loop {
        let now = look();
        if now == Way::Cut {
            break;
        }
        while now != Way::Frozen && waiting.front().is_some_and(|(at, _)| *at <= Instant::now()) {
            let Some((_, piece)) = waiting.pop_front() else {
                break;
            };
            if to.write_all(&piece).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
        if now == Way::Frozen {
            thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => {
                // As it is now: it may have become another while these bytes were waited for.
                let delay = match *way.lock().unwrap() {
                    Way::Slow(delay) if answers => delay,
                    _ => Duration::ZERO,
                };
                waiting.push_back((Instant::now() + delay, bytes[..n].into()));
            }
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
