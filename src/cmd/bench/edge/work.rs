//! What is measured of a way out and of a published port: load between a pod and the world.

use super::super::turns::Figure;
use super::Subject;
use super::contenders::Contender;
use super::world::{WORLD, World};
use crate::cmd::Failure;
use crate::cmd::lab::exchange::MARK;
use crate::cmd::lab::load::{Load, numbers};
use crate::cmd::lab::pod::start_in;
use crate::cmd::lab::watch::{Job, Watch};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What starting and ending processes, and the beginning of a load, may take beside its window.
pub const SLACK: Duration = Duration::from_secs(6);

/// A kind of load. Who connects is the client: the pod on its way out, the world at a published port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Bulk from the client, over so many TCP connections.
    Up(u8),
    /// Bulk to the client.
    Down(u8),
    /// TCP connections with a byte there and back, one after the other.
    Connect,
    /// Requests and responses of 64 bytes over one TCP connection.
    Tcp,
    /// The same by UDP.
    Udp,
}

impl Work {
    /// All of them, in the order of the table.
    pub const ALL: [Work; 7] = [
        Work::Up(1),
        Work::Down(1),
        Work::Up(8),
        Work::Down(8),
        Work::Connect,
        Work::Tcp,
        Work::Udp,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Work::Up(1) => "up1",
            Work::Up(_) => "up8",
            Work::Down(1) => "down1",
            Work::Down(_) => "down8",
            Work::Connect => "connect",
            Work::Tcp => "tcp-rr",
            Work::Udp => "udp-rr",
        }
    }

    pub fn server(self, port: u16, window: u64) -> Load {
        match self {
            Work::Up(streams) => Load::Receive {
                streams,
                window,
                port,
            },
            Work::Down(streams) => Load::Serve { streams, port },
            Work::Connect => Load::Greet { port },
            Work::Tcp => Load::Answer { port },
            Work::Udp => Load::Echo { port, mark: MARK },
        }
    }

    pub fn client(self, to: SocketAddr, window: u64) -> Load {
        match self {
            Work::Up(streams) => Load::Send { streams, to },
            Work::Down(streams) => Load::Fetch { streams, window, to },
            Work::Connect => Load::Knock { window, to },
            Work::Tcp => Load::Ask { window, to },
            Work::Udp => Load::Query { window, to },
        }
    }

    /// What the one of the two that measured said; no figures when it said something else.
    pub fn figures(self, said: &str, window: Duration) -> Vec<Figure> {
        let figure = |what: &str, unit, value| Figure {
            what: format!("{}{what}", self.name()),
            unit,
            value,
        };
        match self {
            Work::Up(_) | Work::Down(_) => {
                let line = usize::from(matches!(self, Work::Up(_)));
                numbers(said, line).map_or(Vec::new(), |[bytes, time, busy]: [u64; 3]| {
                    let (bytes, time) = (bytes as f64, time.max(1) as f64);
                    vec![
                        figure("", "Gbit/s", bytes * 8.0 / time),
                        // Nanoseconds a byte are seconds a gigabyte.
                        figure("-cpu", "s/GB", busy as f64 / bytes.max(1.0)),
                    ]
                })
            }
            Work::Connect => numbers(said, 0).map_or(Vec::new(), |[count]: [u64; 1]| {
                vec![figure("", "1/s", count as f64 / window.as_secs_f64())]
            }),
            Work::Tcp | Work::Udp => numbers(said, 0).map_or(Vec::new(), |[p50, p99, count]: [u64; 3]| {
                vec![
                    figure("", "1/s", count as f64 / window.as_secs_f64()),
                    figure("-p50", "us", p50 as f64 / 1e3),
                    figure("-p99", "us", p99 as f64 / 1e3),
                ]
            }),
        }
    }
}

/// One measurement; no figures when it failed.
///
/// # Errors
/// When the end was asked for, or no process can be started.
pub fn measure(
    subject: Subject,
    contender: &Contender,
    work: Work,
    world: &World,
    window: Duration,
    watch: &mut Watch,
) -> Result<Vec<Figure>, Failure> {
    let outward = subject == Subject::Egress;
    let deadline = Instant::now() + window + SLACK;
    let ms = window.as_millis() as u64;
    // Declared first, so that it ends last: who is cut off would complain.
    let mut client;
    let mut server = match outward {
        true => start_in(&world.world, &work.server(0, ms))?,
        false => contender.place.start(&work.server(contender.at.port(), ms))?,
    };
    watch.gather(&mut [&mut server], deadline, Job::spoke)?;
    let Some([port]) = numbers(&server.said(), 0) else {
        return Ok(Vec::new());
    };
    client = match outward {
        true => contender
            .place
            .start(&work.client((WORLD, port as u16).into(), ms))?,
        false => start_in(&world.world, &work.client(contender.at, ms))?,
    };
    let teller = match work {
        Work::Up(_) => &mut server,
        _ => &mut client,
    };
    watch.gather(&mut [&mut *teller], deadline, Job::ended)?;
    let figures = work.figures(&teller.said(), window);
    Job::end(&mut [&mut client, &mut server], Duration::from_secs(2));
    Ok(figures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_becomes_figures() {
        let second = Duration::from_secs(1);
        let values = |work: Work, said: &str| -> Vec<(String, f64)> {
            let figures = work.figures(said, second);
            figures.into_iter().map(|f| (f.what, f.value)).collect()
        };
        let gigabyte = "1000000000 1000000000 1500000000\n";
        let of = |name: &str| vec![(name.to_string(), 8.0), (format!("{name}-cpu"), 1.5)];
        assert_eq!(values(Work::Up(1), &format!("40123\n{gigabyte}")), of("up1"));
        assert_eq!(values(Work::Down(8), gigabyte), of("down8"));
        assert_eq!(
            values(Work::Connect, "12000\n"),
            [("connect".to_string(), 12_000.0)]
        );
        let rr = values(Work::Udp, "41500 90000 7\n");
        assert_eq!(rr[1], ("udp-rr-p50".to_string(), 41.5));
        assert_eq!(rr.len(), 3);
        assert!(values(Work::Tcp, "").is_empty());
    }
}
