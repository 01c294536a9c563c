//! What the worker is still to be told of Services: the last word of each frontend. What it was never told of is not told
//! to be gone, so that no more waits than there are frontends, and there were when the worker last had room.

use crate::model::{Frontend, ServiceChange, VirtualServer};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// Most changes of one order to the worker, which does nothing else meanwhile.
const BATCH: usize = 1024;

/// See the module.
#[derive(Default)]
pub(super) struct Untold {
    /// What the worker knows of.
    told: HashSet<Frontend>,
    waiting: BTreeMap<Frontend, Option<Arc<VirtualServer>>>,
}

impl Untold {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How many frontends wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// This is to be told, too.
    pub fn add(&mut self, changes: Vec<ServiceChange>) {
        for change in changes {
            match change {
                ServiceChange::Set(frontend, what) => drop(self.waiting.insert(frontend, Some(what))),
                ServiceChange::Gone(frontend) if self.told.contains(&frontend) => {
                    self.waiting.insert(frontend, None);
                }
                ServiceChange::Gone(frontend) => drop(self.waiting.remove(&frontend)),
            }
        }
    }

    /// Tell it, in pieces, until one is refused: that one and the rest wait on.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn offer(&mut self, tell: impl Fn(Vec<ServiceChange>) -> Result<(), String>) -> Result<(), String> {
        while !self.waiting.is_empty() {
            let some: Vec<_> = self.waiting.iter().take(BATCH).collect();
            let change = |(frontend, what): (&Frontend, &Option<Arc<VirtualServer>>)| match what {
                Some(what) => ServiceChange::Set(*frontend, what.clone()),
                None => ServiceChange::Gone(*frontend),
            };
            let frontends: Vec<Frontend> = some.iter().map(|(f, _)| **f).collect();
            tell(some.into_iter().map(change).collect())?;
            for frontend in frontends {
                match self.waiting.remove(&frontend) {
                    Some(Some(_)) => drop(self.told.insert(frontend)),
                    _ => drop(self.told.remove(&frontend)),
                }
            }
        }
        Ok(())
    }
}
