//! An executor on a runtime of its own, driven by requests one by one.

use podwire::control::cluster::{Answer, Ask, Entry, Event, Request, Revision, StoreError, Watched};
use podwire::control::etcd::{Executor, Settings};
use podwire::control::flannel::SubnetKey;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{Receiver, channel};

/// Where the tests keep their network.
pub const PREFIX: &str = "/coreos.com/network";

/// How long any answer may take: the deadline of a request, twice, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Shell {
    runtime: Runtime,
    executor: Executor,
    events: Receiver<Event>,
    next: u64,
    /// What came while something else was awaited.
    early: VecDeque<Event>,
}

/// Settings for members at these URLs.
pub fn at(urls: &[&str]) -> Settings {
    Settings {
        endpoints: urls.iter().map(ToString::to_string).collect(),
        ..Settings::default()
    }
}

/// The subnet 10.61.`n`.0/24.
pub fn subnet(n: u8) -> SubnetKey {
    SubnetKey {
        net4: format!("10.61.{n}.0/24").parse().unwrap(),
        net6: None,
    }
}

/// What was listed.
pub struct Listed {
    pub revision: Revision,
    pub config: Option<Vec<u8>>,
    pub entries: Vec<Entry>,
}

impl Shell {
    pub fn new(settings: &Settings) -> Shell {
        let access = settings.check().expect("good settings");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (to, events) = channel(64);
        Shell {
            runtime,
            executor: Executor::new(access, to),
            events,
            next: 0,
            early: VecDeque::new(),
        }
    }

    /// Begin a request; its number.
    pub fn begin(&mut self, what: Ask) -> u64 {
        self.next += 1;
        let id = self.next;
        let _here = self.runtime.enter();
        self.executor.perform(Request { id, what });
        id
    }

    /// The next event, if one comes in time.
    pub fn event(&mut self, patience: Duration) -> Option<Event> {
        if let Some(event) = self.early.pop_front() {
            return Some(event);
        }
        let events = &mut self.events;
        self.runtime
            .block_on(async { tokio::time::timeout(patience, events.recv()).await.ok().flatten() })
    }

    /// The answer to a request.
    pub fn answer(&mut self, id: u64) -> Result<Answer, StoreError> {
        let until = Instant::now() + PATIENCE;
        let mut others = VecDeque::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.event(left).expect("an answer") {
                Event::Done { id: done, answer } if done == id => {
                    others.append(&mut self.early);
                    self.early = others;
                    return answer;
                }
                other => others.push_back(other),
            }
        }
    }

    /// Ask, and await the answer.
    pub fn ask(&mut self, what: Ask) -> Result<Answer, StoreError> {
        let id = self.begin(what);
        self.answer(id)
    }

    /// The same, and how long it took.
    pub fn timed(&mut self, what: Ask) -> (Result<Answer, StoreError>, Duration) {
        let begun = Instant::now();
        (self.ask(what), begun.elapsed())
    }

    /// Ask again until the store does it, for so long.
    pub fn insist(&mut self, what: &Ask, patience: Duration) -> Answer {
        let begun = Instant::now();
        loop {
            match self.ask(what.clone()) {
                Ok(answer) => return answer,
                Err(e) => assert!(begun.elapsed() < patience, "{e}"),
            }
            self.pass(Duration::from_millis(100));
        }
    }

    pub fn list(&mut self) -> Listed {
        match self.ask(Ask::List) {
            Ok(Answer::Listed {
                revision,
                config,
                entries,
                ..
            }) => Listed {
                revision,
                config,
                entries,
            },
            other => panic!("{other:?}"),
        }
    }

    /// Create a subnet; the revision and the lease.
    pub fn create(&mut self, n: u8, value: &str) -> (Revision, i64) {
        let ask = Ask::Create {
            key: subnet(n),
            value: value.into(),
            ttl_s: 600,
        };
        match self.ask(ask) {
            Ok(Answer::Written { revision, lease }) => (revision, lease),
            other => panic!("{other:?}"),
        }
    }

    /// Begin a watch that must come about; its number.
    pub fn watch(&mut self, from: Revision) -> u64 {
        let id = self.begin(Ask::Watch { from });
        assert_eq!(self.answer(id), Ok(Answer::Watching));
        id
    }

    /// The next `count` changes a watch tells, and the revision told with the last.
    pub fn changes(&mut self, watch: u64, count: usize) -> (Vec<Watched>, Revision) {
        let until = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        let mut last = 0;
        while all.len() < count {
            let left = until.saturating_duration_since(Instant::now());
            match self
                .event(left)
                .unwrap_or_else(|| panic!("{} of {count} changes", all.len()))
            {
                Event::Watched {
                    id,
                    revision,
                    changes,
                } if id == watch => {
                    all.extend(changes);
                    last = revision;
                }
                // The last words of one before.
                Event::Watched { id, .. } | Event::WatchEnded { id, .. } if id < watch => {}
                other => panic!("{other:?}"),
            }
        }
        (all, last)
    }

    /// Why a watch ends, if it does in time; what it tells before is dropped.
    pub fn end(&mut self, watch: u64, patience: Duration) -> Option<StoreError> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.event(left)? {
                Event::WatchEnded { id, why } if id == watch => return Some(why),
                Event::Watched { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Let time pass, and whatever runs run on.
    pub fn pass(&mut self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }
}
