//! Closing TAPs, many at a time.
//!
//! When a TAP is closed the kernel takes its interface away within the call, and awaits grace periods for that:
//! 15 to 30 ms, which is neither the data path's to spend nor the control thread's. Calls that wait at the same
//! time share those periods, so each TAP gets a thread of its own, up to a limit. The threads end with their
//! work; a node that is idle has none.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Most threads.
const MAX_THREADS: usize = 64;
/// Of each: it makes one system call.
const STACK: usize = 64 << 10;

/// What is to be done once a TAP is closed.
type Then = Box<dyn FnOnce() + Send>;

/// Closes TAPs in the background.
#[derive(Default)]
pub struct Closer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// The last thread has ended.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    /// As many as TAPs were open at most.
    waiting: VecDeque<(OwnedFd, Then)>,
    threads: usize,
}

impl Closer {
    /// Close `tap`, and do `then` on the thread that did.
    pub fn close(&self, tap: OwnedFd, then: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.waiting.push_back((tap, Box::new(then)));
        if state.threads == MAX_THREADS {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = self.0.clone();
        let thread = thread::Builder::new().name("closer".into()).stack_size(STACK);
        if let Err(e) = thread.spawn(move || shared.work()) {
            log::debug!("no thread to close a TAP: {e}");
            self.0.work();
        }
    }

    /// Wait until all are closed.
    pub fn finish(self) {
        let mut state = self.0.lock();
        while state.threads > 0 {
            state = self.0.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    /// Nothing that could panic is done while it is held.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One thread's life.
    fn work(&self) {
        loop {
            let mut state = self.lock();
            let Some((tap, then)) = state.waiting.pop_front() else {
                state.threads -= 1;
                if state.threads == 0 {
                    self.idle.notify_all();
                }
                return;
            };
            drop(state);
            drop(tap);
            then();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::standin::slow;
    use std::io::Read;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    #[test]
    fn all_are_closed_at_the_same_time_by_threads_that_end() {
        let closer = Closer::default();
        let (done, closed) = crossbeam_channel::unbounded();
        let holds: Vec<TcpStream> = (0..MAX_THREADS + 2)
            .map(|n| {
                let (slow, hold) = slow();
                let done = done.clone();
                closer.close(slow, move || done.send(n).unwrap());
                hold
            })
            .collect();
        let (near, far) = UnixStream::pair().unwrap();
        closer.close(far.into(), || {});
        assert!(
            closed.recv_timeout(Duration::from_millis(100)).is_err(),
            "none can be closed"
        );
        let state = |closer: &Closer| {
            let state = closer.0.lock();
            (state.threads, state.waiting.len())
        };
        assert_eq!(state(&closer), (MAX_THREADS, 3));
        drop(holds);
        let mut order: Vec<usize> = (0..MAX_THREADS + 2).map(|_| closed.recv().unwrap()).collect();
        order.sort();
        assert_eq!(order, (0..MAX_THREADS + 2).collect::<Vec<_>>());
        let shared = closer.0.clone();
        closer.finish();
        assert_eq!(state(&Closer(shared)), (0, 0));
        assert_eq!((&near).read(&mut [0]).unwrap(), 0);
    }
}
