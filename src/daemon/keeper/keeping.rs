//! The node's dealings with its keeper: that there is one, that it has all pods, and that its descriptors are closed
//! before the last of a TAP is.

use super::Record;
use super::link::{Answer, Link};
use crate::model::PodName;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a keeper may take to end, when the node ends.
const END: Duration = Duration::from_millis(500);
/// How long to wait before a keeper is started again that ended at once; doubled each time.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);

/// What an event of the keeper asks of the node.
#[derive(Debug, Default)]
pub struct Todo {
    /// Give pods to the keeper: [`Keeping::give`] for each that [`Keeping::lacks`], then [`Keeping::all_given`].
    pub hand_over: bool,
    /// TAPs of pods that are forgotten: to be closed.
    pub close: Vec<(PodName, OwnedFd)>,
}

/// The tokens of the keeper's socket, of its end, and of its predecessor's end.
pub type Tokens = [Token; 3];

/// The keeper, from the node's side.
pub struct Keeping {
    /// What to run for a new one; none runs without.
    program: Option<PathBuf>,
    path: PathBuf,
    node: String,
    tokens: Tokens,
    current: Option<Link>,
    /// One that is to be replaced, and keeps the pods until its successor is published; or one that ends.
    former: Option<Link>,
    /// A keeper of another version has the pods, in vain or not replaced yet: there shall be another.
    replace: bool,
    /// The current one is that, as its successor came to nothing.
    fallen_back: bool,
    /// A new one is being given all pods.
    fresh: bool,
    /// When to start one, or to give it again what it did not take.
    again: Option<Instant>,
    begun: Option<Instant>,
    wait: Duration,
    trouble: Option<String>,
    /// Pods it refused, and why.
    unkept: BTreeMap<PodName, String>,
    /// TAPs of pods that it was told to forget, and whether it has.
    parting: HashMap<PodName, (OwnedFd, bool)>,
}

impl Keeping {
    /// A node's dealings with `found`, or with a keeper to be started from `program`, that listens at `path`.
    pub fn new(
        program: Option<PathBuf>,
        path: PathBuf,
        node: &str,
        tokens: Tokens,
        found: Option<Link>,
    ) -> Keeping {
        Keeping {
            program,
            path,
            node: node.into(),
            tokens,
            current: found,
            former: None,
            replace: false,
            fallen_back: false,
            fresh: false,
            again: None,
            begun: None,
            wait: AGAIN,
            trouble: None,
            unkept: BTreeMap::new(),
            parting: HashMap::new(),
        }
    }

    /// Listen to the keeper there is; start one when there is none, or when `replace` tells that it is an older one.
    pub fn begin(&mut self, registry: &Registry, replace: bool) -> Todo {
        if self.program.is_none() {
            return Todo::default();
        }
        if let Some(link) = &self.current
            && let Err(e) = listen(registry, link, self.tokens)
        {
            self.trouble = Some(format!("the keeper cannot be watched: {e}"));
        }
        let mut todo = Todo::default();
        self.replace = replace;
        if replace || self.current.is_none() {
            self.start(registry, &mut todo);
        }
        todo
    }

    /// Whether a pod is to be given to the keeper: it is new, or did not take that pod before.
    pub fn lacks(&self, pod: &PodName) -> bool {
        self.fresh || self.unkept.contains_key(pod)
    }

    /// Have a new pod kept; to be called before anybody is told that it is there. Nothing when there is no keeper.
    pub fn keep(
        &mut self,
        record: &Record,
        tap: BorrowedFd<'_>,
        process: Option<BorrowedFd<'_>>,
        lifeline: Option<BorrowedFd<'_>>,
    ) {
        self.give(record, tap, process, lifeline);
        // The former one is who would be asked, until the new one is published.
        if let Some(former) = self.former.as_mut().filter(|_| self.replace)
            && let Err(e) = former.keep(record, tap, process, lifeline)
        {
            self.unkept.insert(record.pod.clone(), e.to_string());
        }
    }

    /// Give the keeper a pod that it [`lacks`](Keeping::lacks); a former one has it.
    pub fn give(
        &mut self,
        record: &Record,
        tap: BorrowedFd<'_>,
        process: Option<BorrowedFd<'_>>,
        lifeline: Option<BorrowedFd<'_>>,
    ) {
        if let Some(link) = &mut self.current
            && let Err(e) = link.keep(record, tap, process, lifeline)
        {
            self.unkept.insert(record.pod.clone(), e.to_string());
        }
    }

    /// Whether the current one is to take the place of a former one, which keeps the pods until then.
    fn succeeds(&self) -> bool {
        self.replace && self.former.is_some()
    }

    /// A pod cannot be kept, for this reason.
    pub fn cannot_keep(&mut self, pod: &PodName, why: impl ToString) {
        self.unkept.insert(pod.clone(), why.to_string());
    }

    /// The keeper was given what it lacked.
    pub fn all_given(&mut self) {
        // One that takes another's place must answer first.
        self.fresh &= self.succeeds();
        self.see_to_unkept();
    }

    /// Pods that were not taken are given again, later each time.
    fn see_to_unkept(&mut self) {
        if self.unkept.is_empty() {
            let lasts = self.begun.is_none_or(|at| at.elapsed() >= self.wait);
            if self.again.is_none() && lasts {
                self.wait = AGAIN;
            }
        } else if self.again.is_none() && !self.fresh {
            self.later();
        }
    }

    fn later(&mut self) {
        self.again = Some(Instant::now() + self.wait);
        self.wait = (2 * self.wait).min(AGAIN_AT_MOST);
    }

    /// Have a pod forgotten; gives its TAP back when it can be closed now, otherwise it comes in a [`Todo`].
    pub fn forget(&mut self, pod: &PodName, tap: Option<OwnedFd>) -> Option<OwnedFd> {
        self.unkept.remove(pod);
        for link in self.current.iter_mut().chain(&mut self.former) {
            link.forget(pod);
        }
        if self.current.is_none() && self.former.is_none() {
            return tap;
        }
        self.parting.insert(pod.clone(), (tap?, self.current.is_none()));
        None
    }

    /// Whether the TAP of `pod` waits for the keeper to forget it.
    pub fn parts(&self, pod: &PodName) -> bool {
        self.parting.contains_key(pod)
    }

    /// All such TAPs, when the keeper has ended.
    pub fn parting(&mut self) -> Vec<(PodName, OwnedFd)> {
        self.parting.drain().map(|(pod, (tap, _))| (pod, tap)).collect()
    }

    /// The keeper's process.
    #[cfg(test)]
    pub fn pid(&self) -> Option<u32> {
        self.current.as_ref()?.pid()
    }

    /// Whether what was said last is not yet in the kernel's hands.
    pub fn is_full(&self) -> bool {
        let former = self.former.as_ref().filter(|_| self.replace);
        self.current.iter().chain(former).any(Link::is_full)
    }

    /// How long until [`Keeping::on_time`] has something to do.
    pub fn patience(&self) -> Option<Duration> {
        let links = self.current.iter().chain(&self.former);
        let due = links.filter_map(Link::deadline).chain(self.again).min()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    /// Do what is due.
    pub fn on_time(&mut self, registry: &Registry) -> Todo {
        let now = Instant::now();
        let mut todo = Todo::default();
        let late = |link: &Link| link.deadline().is_some_and(|at| at <= now);
        // It may have answered long ago, and this thread was the slow one.
        if self.current.as_ref().is_some_and(late) {
            self.listen(registry, &mut todo);
        }
        // Of the former's answers nothing is wanted but that they come: what it is to say of a pod, it is asked again
        // when it is fallen back on.
        if let Some(former) = self.former.as_mut().filter(|link| late(link)) {
            let _ = former.go_on();
        }
        for link in self.current.iter_mut().chain(&mut self.former) {
            if late(link) {
                log::warn!("the keeper does not answer, and is ended");
                link.kill();
            }
        }
        if self.again.is_some_and(|at| at <= now) {
            self.again = None;
            if self.current.is_none() || (self.replace && self.former.is_none()) {
                self.start(registry, &mut todo);
            } else {
                // It could not listen before.
                if let Some(link) = self.current.as_mut().filter(|_| self.fresh) {
                    link.publish(&self.path);
                }
                todo.hand_over = self.fresh || !self.unkept.is_empty();
            }
        }
        self.part(&mut todo);
        todo
    }

    /// Go on after an event of one of the [`Tokens`].
    pub fn on_event(&mut self, token: Token, registry: &Registry) -> Todo {
        let mut todo = Todo::default();
        let [socket, end, former_end] = self.tokens;
        if token == socket {
            self.listen(registry, &mut todo);
        } else if token == end {
            if let Some(mut link) = self.current.take_if(|l| l.await_end(Duration::ZERO)) {
                unlisten(registry, &mut link);
                if self.succeeds() {
                    self.fall_back("it ended".into(), registry, &mut todo);
                } else {
                    self.lost(registry, &mut todo);
                }
            }
        } else if token == former_end
            && let Some(link) = self.former.take_if(|l| l.await_end(Duration::ZERO))
        {
            let _ = registry.deregister(&mut SourceFd(&link.pidfd().as_raw_fd()));
            // There is nobody any more whose place its successor could take.
            if let Some(new) = self.current.as_mut().filter(|_| self.replace && self.fresh) {
                new.publish(&self.path);
                self.fresh = false;
            }
        }
        self.part(&mut todo);
        todo
    }

    /// What a person should look at.
    pub fn problems(&self) -> Vec<String> {
        let mut found: Vec<String> = self.trouble.iter().cloned().collect();
        if let Some((pod, why)) = self.unkept.first_key_value() {
            let more = match self.unkept.len() - 1 {
                0 => String::new(),
                n => format!(" and {n} more"),
            };
            found.push(format!(
                "pod {pod}{more} would not survive a crash of this node: {why}"
            ));
        }
        found
    }

    /// End the keeper, which lets go of all pods; to be done before the last TAPs are closed.
    pub fn end(&mut self) {
        for mut link in self.current.take().into_iter().chain(self.former.take()) {
            link.end();
            // One that hangs up has understood.
            link.finish(END);
            if !link.await_end(END) {
                link.kill();
                if !link.await_end(END) {
                    log::warn!("the keeper does not end");
                }
            }
        }
    }

    /// Leave all pods to the keeper, or to the former one, when the new one is not published.
    pub fn leave(&mut self) {
        let former = self.former.take().filter(|_| self.replace);
        for mut link in former.into_iter().chain(self.current.take()) {
            if !link.finish(END) {
                log::warn!("the keeper was not told of all pods");
            }
        }
    }

    /// Take the keeper's answers.
    fn listen(&mut self, registry: &Registry, todo: &mut Todo) {
        let Some(link) = &mut self.current else {
            return;
        };
        let answers = link.go_on().unwrap_or_else(|e| {
            // It may have ended; if not, it is of no use.
            log::debug!("the keeper's connection ended: {e}");
            link.kill();
            Vec::new()
        });
        for answer in answers {
            match answer {
                Answer::Kept(pod) => drop(self.unkept.remove(&pod)),
                Answer::Unkept(pod, why) => {
                    log::warn!("pod {pod} is not kept: {why}");
                    self.unkept.insert(pod, why);
                }
                Answer::Forgotten(pod) => {
                    if let Some((_, forgotten)) = self.parting.get_mut(&pod) {
                        *forgotten = true;
                    }
                }
                // That was its place all along.
                Answer::Published if self.fallen_back => {}
                Answer::Published => {
                    self.trouble = None;
                    self.replace = false;
                    if let Some(former) = &mut self.former {
                        former.end();
                    }
                }
                Answer::Unpublished(why) => self.unpublished(why, registry, todo),
            }
        }
        self.succeed(registry, todo);
        self.see_to_unkept();
    }

    /// A new keeper that has answered everything takes the place of the former if it has every pod, and none otherwise.
    fn succeed(&mut self, registry: &Registry, todo: &mut Todo) {
        let answered = self.current.as_ref().is_some_and(Link::has_answered);
        if !(self.fresh && self.succeeds() && answered) {
            return;
        }
        self.fresh = false;
        match self.unkept.first_key_value() {
            None => {
                if let Some(link) = &mut self.current {
                    link.publish(&self.path);
                }
            }
            Some((pod, why)) => {
                let why = format!("it did not take pod {pod} ({why})");
                if let Some(mut new) = self.current.take() {
                    discard(registry, &mut new);
                }
                self.fall_back(why, registry, todo);
            }
        }
    }

    /// It cannot listen where the next node would look.
    fn unpublished(&mut self, why: String, registry: &Registry, todo: &mut Todo) {
        log::warn!("pods would not survive a crash of this node: {why}");
        self.trouble = Some(format!("pods would not survive a crash of this node: {why}"));
        if self.succeeds()
            && let Some(mut new) = self.current.take()
        {
            discard(registry, &mut new);
            self.fall_back(why, registry, todo);
        } else {
            // To be tried again, with all that it has by then.
            self.fresh = true;
            self.later();
        }
    }

    /// There is no new keeper, and a former one goes on.
    fn fall_back(&mut self, why: String, registry: &Registry, todo: &mut Todo) {
        let Some(mut former) = self.former.take() else {
            return;
        };
        let what = format!("the keeper of this node's pods is not replaced by one of this version: {why}");
        log::warn!("{what}");
        self.trouble = Some(what);
        let _ = registry.deregister(&mut SourceFd(&former.pidfd().as_raw_fd()));
        if former.await_end(Duration::ZERO) {
            return self.lost(registry, todo);
        }
        if let Err(e) = listen(registry, &former, self.tokens) {
            log::warn!("the keeper cannot be watched: {e}");
        }
        // The new one may have taken its place already.
        former.publish(&self.path);
        // Nobody knows what it has answered to what was said to both meanwhile. It takes everything twice.
        for (pod, (_, forgotten)) in &mut self.parting {
            former.forget(pod);
            *forgotten = false;
        }
        self.unkept.clear();
        self.current = Some(former);
        self.fallen_back = true;
        self.fresh = true;
        todo.hand_over = true;
        self.later();
    }

    /// The keeper has ended: there shall be another, at once unless it came to nothing just now.
    fn lost(&mut self, registry: &Registry, todo: &mut Todo) {
        for (_, forgotten) in self.parting.values_mut() {
            *forgotten = true;
        }
        log::warn!("the keeper of this node's pods ended; another is started");
        self.trouble = Some("there is no keeper: pods would not survive a crash of this node".into());
        if self.begun.is_some_and(|at| at.elapsed() < self.wait) {
            self.later();
        } else {
            self.wait = AGAIN;
            self.start(registry, todo);
        }
    }

    fn start(&mut self, registry: &Registry, todo: &mut Todo) {
        let Some(program) = &self.program else {
            return;
        };
        let spawned = super::link::spawn(program, &self.node).and_then(|mut link| {
            let listens = listen(registry, &link, self.tokens);
            listens.inspect_err(|_| discard(registry, &mut link))?;
            Ok(link)
        });
        match spawned {
            Ok(mut link) => {
                if let Some(mut old) = self.current.take() {
                    unlisten(registry, &mut old);
                    if let Err(e) = watch(registry, old.pidfd(), self.tokens[2]) {
                        log::warn!("the end of the former keeper cannot be watched: {e}");
                    }
                    self.former = Some(old);
                } else {
                    // First of all, where nobody's place is taken: it needs a descriptor for that, and whatever it has
                    // by the time this node is killed is better than nothing.
                    link.publish(&self.path);
                }
                self.current = Some(link);
                self.fallen_back = false;
                self.begun = Some(Instant::now());
                self.again = None;
                self.fresh = true;
                self.unkept.clear();
                todo.hand_over = true;
            }
            Err(e) => {
                let what =
                    format!("pods would not survive a crash of this node: no keeper could be started: {e}");
                log::warn!("{what}");
                self.trouble = Some(what);
                self.later();
            }
        }
    }

    /// Give back the TAPs that nobody else has any more.
    fn part(&mut self, todo: &mut Todo) {
        if self.former.is_none() {
            let done = self.parting.extract_if(|_, (_, forgotten)| *forgotten);
            todo.close.extend(done.map(|(pod, (tap, _))| (pod, tap)));
        }
    }
}

fn watch(registry: &Registry, fd: BorrowedFd<'_>, token: Token) -> io::Result<()> {
    registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)
}

fn listen(registry: &Registry, link: &Link, tokens: Tokens) -> io::Result<()> {
    let both = Interest::READABLE | Interest::WRITABLE;
    registry.register(&mut SourceFd(&link.as_raw()), tokens[0], both)?;
    watch(registry, link.pidfd(), tokens[1])
}

/// End one that serves nobody yet.
fn discard(registry: &Registry, new: &mut Link) {
    unlisten(registry, new);
    new.kill();
    new.await_end(END);
}

fn unlisten(registry: &Registry, link: &mut Link) {
    let _ = registry.deregister(&mut SourceFd(&link.as_raw()));
    let _ = registry.deregister(&mut SourceFd(&link.pidfd().as_raw_fd()));
}
