//! A timer for the poller: its own timeout is in whole milliseconds.

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A timer (timerfd). It need not be read: each time it is set it becomes readable anew, which is an edge.
#[derive(Debug)]
pub struct Timer(OwnedFd);

impl Timer {
    /// One that is not set.
    ///
    /// # Errors
    /// When this process may open no more descriptors.
    pub fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Timer(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// The descriptor's number, for the poller.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Have it become readable after this time, in place of what was set before.
    ///
    /// # Errors
    /// None that is known: the time is one the kernel takes.
    pub fn set(&self, after: Duration) -> Result<(), Errno> {
        // Zero would unset it, and nobody waits for a day.
        let after = after.clamp(Duration::from_nanos(1), Duration::from_secs(86_400));
        let spec = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: after.as_secs() as i64,
                tv_nsec: i64::from(after.subsec_nanos()),
            },
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::unix::SourceFd;
    use mio::{Events, Interest, Poll, Token};

    #[test]
    fn each_setting_is_an_edge_without_a_read() {
        let timer = Timer::new().unwrap();
        let mut poll = Poll::new().unwrap();
        let source = &mut SourceFd(&timer.raw());
        poll.registry()
            .register(source, Token(7), Interest::READABLE)
            .unwrap();
        let mut events = Events::with_capacity(4);
        for after in [Duration::from_micros(50), Duration::ZERO, Duration::from_nanos(1)] {
            timer.set(after).unwrap();
            poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
            assert_eq!(events.iter().count(), 1);
        }
        timer.set(Duration::MAX).unwrap();
        poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
        assert!(events.is_empty());
    }
}
