//! When flows have their turn, and what becomes of one in whose turn a panic came.

use super::{CHUNKS, Flows};
use crate::model::{HostError, Instant, PortId};
use crate::stack::egress::host::{FlowId, Outside};
use smoltcp::socket::tcp::State;
use std::panic::{AssertUnwindSafe, catch_unwind};

impl Flows {
    /// Go on with every flow that something happened to. Whether some have more to do at once. After a panic the next
    /// call goes on behind the flow it came at.
    pub fn turn(&mut self, now: Instant, out: &mut impl Outside) -> bool {
        if self.todo.is_empty() {
            std::mem::swap(&mut self.todo, &mut self.dirty);
        }
        while let Some(&id) = self.todo.get(self.done) {
            self.done += 1;
            if let Some(Some(flow)) = self.table.get_mut(id as usize) {
                flow.dirty = false;
                self.go_on(id, now, out);
            }
        }
        self.todo.clear();
        self.done = 0;
        !self.dirty.is_empty()
    }

    fn go_on(&mut self, id: FlowId, now: Instant, out: &mut impl Outside) {
        self.at_work = Some(id);
        self.step(id, now, out);
        self.at_work = None;
    }

    fn step(&mut self, id: FlowId, now: Instant, out: &mut impl Outside) {
        let mut again = false;
        for _ in 0..CHUNKS {
            let more = self.pump(id, now, out);
            again = self.dispatch(id, now, out) || more;
            if !more {
                break;
            }
        }
        let Some(Some(flow)) = self.table.get_mut(id as usize) else {
            return;
        };
        if flow.broken {
            // What was read is on its way, as far as the pod has room for it; now it is told.
            self.break_off(id, now, out);
            return;
        }
        let (ended, shut) = (flow.ended, flow.shut);
        match flow.socket().state() {
            // The host is to have the rest of it.
            State::Closed if !flow.rest.is_empty() => self.wake_at(id, now),
            // In good order when both sides said so; else one of them broke it off.
            State::Closed => self.remove(id, !(ended && shut), out),
            // The pod wants none of it after all: smoltcp would wait for another SYN.
            State::Listen => self.remove(id, true, out),
            // The last acknowledgement cannot be lost between here and the pod.
            State::TimeWait if shut => self.remove(id, false, out),
            _ => {
                if again {
                    self.touch(id);
                }
                self.wake_at(id, now);
            }
        }
    }

    /// When [`Flows::on_time`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first()
    }

    /// Do what is due.
    pub fn on_time(&mut self, now: Instant, out: &mut impl Outside) {
        while let Some(id) = self.timers.pop(now) {
            let Some(Some(flow)) = self.table.get_mut(id as usize) else {
                continue;
            };
            if flow.expires() > now {
                self.go_on(id, now, out);
                continue;
            }
            if flow.syn.is_some() {
                self.give_up(id, (HostError::TimedOut, None), now, out);
                continue;
            }
            self.break_off(id, now, out);
        }
    }

    /// End a flow, and tell both sides.
    fn break_off(&mut self, id: FlowId, now: Instant, out: &mut impl Outside) {
        self.at_work = Some(id);
        if let Some(Some(flow)) = self.table.get_mut(id as usize) {
            flow.socket().abort();
            self.dispatch(id, now, out);
        }
        self.at_work = None;
        self.remove(id, true, out);
    }

    /// After a panic: end the flow whose stack was at work, if one was. Whose it was.
    pub fn give_up_at(&mut self, now: Instant, out: &mut impl Outside) -> Option<PortId> {
        let begun = self.begun.take();
        let Some(id) = self.at_work.take() else {
            return begun;
        };
        let Some(Some(flow)) = self.table.get(id as usize) else {
            return begun;
        };
        let port = flow.port;
        // Nothing in there can be relied on; but if it can still say so, the pod need not wait for a time-out. With its
        // next packet it is told in any case.
        let told = catch_unwind(AssertUnwindSafe(|| self.break_off(id, now, out)));
        if told.is_err() {
            self.at_work = None;
            self.remove(id, true, out);
        }
        Some(port)
    }
}
