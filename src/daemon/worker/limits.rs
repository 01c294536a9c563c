//! Bandwidth limits: TAPs that are not read for a while, and the timer for them and for what waits.
//!
//! A paused TAP is not watched either: each frame its pod puts there would wake the worker for nothing. Whether it is there
//! still is asked once in a second.

use super::{Loop, TIMER};
use crate::model::{Instant, PortId};
use mio::unix::SourceFd;
use mio::{Interest, Token};
use std::os::fd::RawFd;
use std::time::Duration;

/// How often it is asked whether the interfaces of paused TAPs are there.
const LOOK: Duration = Duration::from_secs(1);

impl Loop {
    /// Do not read a pod's TAP until its limit allows it.
    pub(super) fn pause(&mut self, port: PortId) {
        if let Some(fd) = self.tap(port)
            && !self.paused.contains(&port)
        {
            self.paused.push(port);
            if let Err(e) = self.poll.registry().deregister(&mut SourceFd(&fd)) {
                log::debug!("a TAP was not watched: {e}");
            }
        }
    }

    /// Notice when the interface of a paused TAP was deleted.
    pub(super) fn look_at_paused(&mut self, now: Instant) {
        if self.paused.is_empty() || now < self.looked + LOOK.into() {
            return;
        }
        self.looked = now;
        for port in &self.paused {
            if let Some(Some(tap)) = self.exits.taps.get_mut(usize::from(port.0)) {
                self.exits.lost |= !tap.lost && tap.is_lost();
            }
        }
    }

    /// Read those again whose time has come.
    pub(super) fn resume(&mut self, now: Instant) {
        let mut i = 0;
        while let Some(port) = self.paused.get(i).copied() {
            if self.node.next_read(port).is_some_and(|at| at > now) {
                i += 1;
                continue;
            }
            self.paused.swap_remove(i);
            if let Some(fd) = self.tap(port) {
                let token = Token(usize::from(port.0));
                let source = &mut SourceFd(&fd);
                if let Err(e) = self.poll.registry().register(source, token, Interest::READABLE) {
                    let pod = self.node.ports().spec(port).map(|s| s.pod.to_string());
                    log::error!(
                        "the TAP of pod {} cannot be watched: {e}",
                        pod.unwrap_or_default()
                    );
                }
                self.tap_is_ready(port);
            }
        }
    }

    /// When the next limit lets something pass, or paused TAPs are looked at.
    pub(super) fn next_limit(&self) -> Option<Instant> {
        let reads = self.paused.iter().filter_map(|port| self.node.next_read(*port));
        let look = (!self.paused.is_empty()).then(|| self.looked + LOOK.into());
        reads.chain(self.node.next_release()).chain(look).min()
    }

    /// Be woken then, to the microsecond.
    pub(super) fn set_timer(&self, at: Option<Instant>) {
        let Some(at) = at else { return };
        let now = self.now();
        let after = Duration::from_micros((at.max(now) - now).total_micros());
        if let Err(e) = self.timer.set(after) {
            log::error!("timer {TIMER:?} cannot be set: {e}");
        }
    }

    fn tap(&self, port: PortId) -> Option<RawFd> {
        let tap = self.exits.taps.get(usize::from(port.0))?.as_ref()?;
        Some(tap.raw())
    }
}
