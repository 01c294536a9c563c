//! Pings of pods, for the control thread.

use super::Loop;
use crate::daemon::command::{Pinged, TellPing};
use std::collections::HashMap;
use std::net::IpAddr;

/// Who waits for which ping.
#[derive(Default)]
pub(super) struct Pingers(HashMap<u16, TellPing>);

impl Loop {
    pub(super) fn ping(&mut self, to: IpAddr, tell: TellPing) {
        let now = self.now();
        match self.node.ping(to, now) {
            Some(number) => drop(self.pingers.0.insert(number, tell)),
            None => tell(Pinged::Unsent),
        }
    }

    /// Tell of the pings that are over.
    pub(super) fn tell_pings(&mut self) {
        if self.pingers.0.is_empty() {
            return;
        }
        let now = self.now();
        for (number, took) in self.node.pongs(now) {
            if let Some(tell) = self.pingers.0.remove(&number) {
                tell(took.map_or(Pinged::Silent, |t| Pinged::Answered(t.total_micros())));
            }
        }
    }
}
