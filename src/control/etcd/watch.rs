//! The watch: every change of the configuration and of the leases, from a revision on.
//!
//! One watcher has both, from `<prefix>/config` to the end of `<prefix>/subnets`: two would each be in order, but not
//! together, and a watch that breaks between them would go on behind what the slower one had still to tell. What lies
//! between the two is left out.
//!
//! What is told as the revision is always safe to go on from. etcd's own header is not: it runs ahead of the events
//! while a watcher catches up, and (3.4) of those that wait to be sent when progress is asked for.

use super::ask::{self, Keys};
use super::session::{Failed, Session, Sessions};
use super::settings::Endpoint;
use super::trouble::{Trouble, said};
use crate::control::cluster::{Answer, Event, Revision, StoreError, Watched};
use etcd_client::proto::PbEvent;
use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use std::time::Duration;
use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, timeout};

/// After so long without a word the store is asked for one.
const ASK: Duration = Duration::from_secs(3);
/// A store that answered such questions and is silent for so long is gone.
const SILENT: Duration = Duration::from_secs(9);

/// A watch that has begun.
struct Begun {
    stream: WatchStream,
    /// The revision of the member that serves it.
    revision: Revision,
}

/// Watch until it ends, and tell `events`; `has_begun` is called before the answer that says so.
pub(super) async fn run(
    sessions: &Sessions,
    keys: &Keys,
    (id, from): (u64, Revision),
    events: &Sender<Event>,
    has_begun: impl Fn(),
) {
    let (answer, begun) = match begin(sessions, keys, from).await {
        Ok(begun) => (Ok(Answer::Watching), Some(begun)),
        Err(why) => (Err(why), None),
    };
    if begun.is_some() {
        has_begun();
    }
    tell(events, Event::Done { id, answer }).await;
    if let Some((stream, at)) = begun {
        let mut follow = Follow {
            keys,
            id,
            applied: from - 1,
            held: Vec::new(),
            events,
        };
        let trouble = follow.until_end(stream).await;
        let why = Failed { trouble, at }.tell(sessions.access());
        tell(events, Event::WatchEnded { id, why }).await;
    }
}

/// Nobody hears it when the loop has ended.
async fn tell(events: &Sender<Event>, event: Event) {
    let _ = events.send(event).await;
}

async fn begin(
    sessions: &Sessions,
    keys: &Keys,
    from: Revision,
) -> Result<(WatchStream, Endpoint), StoreError> {
    let asked = sessions.call_at(true, |session| open(session, keys, from)).await;
    let (begun, at) = asked.map_err(|failed| failed.tell(sessions.access()))?;
    // A member may be a little behind. A store that is behind was restored or wiped: it would wait in silence for
    // revisions it is far from.
    if begun.revision + 1 < from && ask::revision(sessions, keys).await? + 1 < from {
        log::warn!("etcd at {at} went back before revision {from}: was it wiped or restored?");
        return Err(StoreError::Compacted);
    }
    Ok((begun.stream, at))
}

async fn open(mut session: Session, keys: &Keys, from: Revision) -> Result<Begun, Trouble> {
    let options = WatchOptions::new()
        .with_range(keys.end.clone())
        .with_start_revision(from)
        .with_fragment()
        .with_progress_notify();
    let mut stream = session.watch.watch(keys.config.clone(), Some(options)).await?;
    match stream.message().await? {
        Some(response) if response.canceled() => Err(canceled(&response)),
        Some(response) if response.created() => {
            let revision = response.header().map_or(0, |h| h.revision());
            Ok(Begun { stream, revision })
        }
        Some(_) => Err(Trouble::Other(
            "something else than that the watch is made".into(),
        )),
        None => Err(Trouble::Broken("the watch was closed".into())),
    }
}

fn canceled(response: &WatchResponse) -> Trouble {
    if response.compact_revision() > 0 {
        return Trouble::Compacted;
    }
    match said("Cancelled", response.cancel_reason()) {
        // etcd does not tell a token that is too old from missing permission here.
        Trouble::Refused(why) => Trouble::Stale(why),
        other => other,
    }
}

struct Follow<'a> {
    keys: &'a Keys,
    id: u64,
    /// All changes up to this revision are told.
    applied: Revision,
    /// Changes of a revision of which more is to come: large ones come in pieces, and a watch that breaks in between
    /// must begin at that revision again.
    held: Vec<Watched>,
    events: &'a Sender<Event>,
}

impl Follow<'_> {
    async fn until_end(&mut self, mut stream: WatchStream) -> Trouble {
        let mut heard = Instant::now();
        // etcd before 3.4 does not know the question.
        let mut answers = false;
        loop {
            match timeout(ASK, stream.message()).await {
                Ok(Ok(Some(response))) => {
                    heard = Instant::now();
                    answers |= response.watch_id() < 0;
                    if response.canceled() {
                        return canceled(&response);
                    }
                    self.pass(&response).await;
                }
                Ok(Ok(None)) => return Trouble::Broken("the watch was closed".into()),
                Ok(Err(e)) => match Trouble::from(e) {
                    // Listing can do without that value.
                    Trouble::TooLarge => return Trouble::Compacted,
                    other => return other,
                },
                Err(_) if answers && heard.elapsed() >= SILENT => return Trouble::Silent,
                Err(_) => {
                    if let Err(e) = stream.request_progress().await {
                        return e.into();
                    }
                }
            }
        }
    }

    /// Pass a response on. One without changes tells that the store is alive.
    async fn pass(&mut self, response: &WatchResponse) {
        let events = &response.0.events;
        self.held
            .extend(events.iter().filter_map(|e| change(self.keys, e)));
        let last = events
            .iter()
            .rev()
            .find_map(|e| Some(e.kv.as_ref()?.mod_revision));
        let (whole, rest) = match last {
            Some(last) if response.0.fragment => {
                let rest = self.held.iter().position(|c| modified(c) >= last);
                (last - 1, self.held.split_off(rest.unwrap_or(self.held.len())))
            }
            Some(last) => (last, Vec::new()),
            // The watcher's own word of progress; those of no watcher may overtake changes.
            None if response.watch_id() >= 0 && self.held.is_empty() => {
                (response.header().map_or(0, |h| h.revision()), Vec::new())
            }
            None => (self.applied, std::mem::take(&mut self.held)),
        };
        self.applied = self.applied.max(whole);
        let event = Event::Watched {
            id: self.id,
            revision: self.applied,
            changes: std::mem::replace(&mut self.held, rest),
        };
        tell(self.events, event).await;
    }
}

fn change(keys: &Keys, event: &PbEvent) -> Option<Watched> {
    let kv = event.kv.as_ref()?;
    let ours = kv.key == keys.config || kv.key.starts_with(&keys.subnets);
    match event.r#type {
        _ if !ours => None,
        0 => Some(Watched::Put(ask::entry(kv.into()))),
        1 => Some(Watched::Deleted {
            key: kv.key.clone(),
            modified: kv.mod_revision,
        }),
        _ => None,
    }
}

fn modified(change: &Watched) -> Revision {
    match change {
        Watched::Put(entry) => entry.modified,
        Watched::Deleted { modified, .. } => *modified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etcd_client::proto::{PbKeyValue, PbWatchResponse};

    fn put(revision: Revision) -> PbEvent {
        let kv = PbKeyValue {
            key: b"/p/subnets/10.61.7.0-24".into(),
            mod_revision: revision,
            ..PbKeyValue::default()
        };
        PbEvent {
            kv: Some(kv),
            ..PbEvent::default()
        }
    }

    /// What is told of responses: the revision, and the revisions of the changes.
    fn told(responses: Vec<PbWatchResponse>) -> Vec<(Revision, Vec<Revision>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (events, mut heard) = tokio::sync::mpsc::channel(100);
            let mut follow = Follow {
                keys: &Keys::new("/p"),
                id: 1,
                applied: 9,
                held: Vec::new(),
                events: &events,
            };
            for response in responses {
                follow.pass(&WatchResponse(response)).await;
            }
            drop(events);
            let mut all = Vec::new();
            while let Some(event) = heard.recv().await {
                match event {
                    Event::Watched {
                        revision, changes, ..
                    } => {
                        all.push((revision, changes.iter().map(modified).collect()));
                    }
                    other => panic!("{other:?}"),
                }
            }
            all
        })
    }

    fn response(watch_id: i64, revisions: &[Revision], fragment: bool, header: Revision) -> PbWatchResponse {
        PbWatchResponse {
            watch_id,
            fragment,
            header: Some(etcd_client::proto::PbResponseHeader {
                revision: header,
                ..Default::default()
            }),
            events: revisions.iter().map(|r| put(*r)).collect(),
            ..PbWatchResponse::default()
        }
    }

    #[test]
    fn a_revision_is_told_as_a_whole() {
        let pieces = vec![
            response(0, &[10, 11, 11], true, 90),
            response(0, &[11], true, 90),
            // Asked for, and overtaking.
            response(-1, &[], false, 90),
            response(0, &[11, 12], false, 90),
        ];
        let expected = [
            (10, vec![10]),
            (10, vec![]),
            (10, vec![]),
            (12, vec![11, 11, 11, 11, 12]),
        ];
        assert_eq!(told(pieces), expected);
    }

    #[test]
    fn only_the_watchers_own_progress_counts() {
        let quiet = vec![response(-1, &[], false, 50), response(0, &[], false, 40)];
        assert_eq!(told(quiet), [(9, vec![]), (40, vec![])]);
    }

    #[test]
    fn what_is_not_ours_is_left_out() {
        let mut other = response(0, &[10, 11], false, 11);
        other.events[0].kv.as_mut().unwrap().key = b"/p/elsewhere".into();
        other.events.push(PbEvent {
            r#type: 77,
            ..put(11)
        });
        other.events.push(PbEvent::default());
        assert_eq!(told(vec![other]), [(11, vec![11])]);
    }
}
