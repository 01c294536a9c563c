//! A store that says anything, in any order.

use super::super::*;
use super::{NETWORK, PREFIX, Story, entry, unreachable, value};
use proptest::prelude::*;

/// An arbitrary event; ids are near those that are open.
fn event() -> impl Strategy<Value = Event> {
    let key = prop_oneof![
        (0u8..12).prop_map(|n| format!("{PREFIX}/subnets/10.61.{n}.0-24").into_bytes()),
        Just(format!("{PREFIX}/subnets/10.61.0.0-20").into_bytes()),
        Just(format!("{PREFIX}/config").into_bytes()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let value = prop_oneof![
        (0u8..6, 0u8..4).prop_map(|(last, id)| value(last, "n", ["", "my-id", "a", "b"][usize::from(id)])),
        Just(NETWORK.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let revision = || prop_oneof![4 => 0i64..60, 1 => Just(i64::MAX), 1 => Just(i64::MIN)];
    let ttl =
        || proptest::option::of(prop_oneof![4 => 0i64..100_000, 1 => Just(i64::MAX), 1 => Just(i64::MIN)]);
    let an_entry = (key, value, revision(), revision(), 0i64..4, ttl()).prop_map(
        |(key, value, created, modified, lease, ttl_s)| Entry {
            key,
            value,
            created,
            modified,
            lease,
            ttl_s,
        },
    );
    let change = (an_entry.clone(), any::<bool>()).prop_map(|(e, put)| match put {
        true => Watched::Put(e),
        false => Watched::Deleted {
            key: e.key,
            modified: e.modified,
        },
    });
    let error = prop_oneof![
        Just(unreachable()),
        Just(StoreError::Refused("no".into())),
        Just(StoreError::Compacted),
        Just(StoreError::Other("?".into())),
    ];
    let config = prop_oneof![3 => Just(Some(NETWORK.as_bytes().to_vec())), 1 => Just(None), 1 => Just(Some(b"{".to_vec()))];
    let entries = proptest::collection::vec(an_entry, 0..8);
    let answer = prop_oneof![
        4 => (1u64..3, revision(), config, entries).prop_map(|(cluster, revision, config, entries)| {
            Answer::Listed { cluster, revision, config, entries }
        }),
        2 => Just(Answer::Watching),
        2 => (revision(), 0i64..4).prop_map(|(revision, lease)| Answer::Written { revision, lease }),
        1 => Just(Answer::Otherwise),
        1 => Just(Answer::Deleted),
        1 => ttl().prop_map(|ttl_s| Answer::Left { ttl_s }),
    ];
    let outcome = prop_oneof![3 => answer.prop_map(Ok), 1 => error.clone().prop_map(Err)];
    prop_oneof![
        6 => (0u64..4, outcome).prop_map(|(id, answer)| Event::Done { id, answer }),
        4 => (0u64..3, revision(), proptest::collection::vec(change, 0..6))
            .prop_map(|(id, revision, changes)| Event::Watched { id, revision, changes }),
        1 => (0u64..3, error).prop_map(|(id, why)| Event::WatchEnded { id, why }),
        1 => (0u8..6).prop_map(|n| Event::Address { public_ip: [192, 0, 2, n].into(), public_ip6: None }),
    ]
}

/// The kind of a request; there is one of each under way.
fn kind(ask: &Ask) -> usize {
    match ask {
        Ask::List => 0,
        Ask::Watch { .. } => 1,
        Ask::Create { .. } | Ask::Renew { .. } | Ask::Delete { .. } => 2,
        Ask::TimeToLive { .. } => 3,
    }
}

proptest! {
    /// Whatever the store says, and be it nonsense: no panic, one request of each kind, one subnet for ever.
    #[test]
    fn no_order_of_events_confuses_a_node(steps in proptest::collection::vec((event(), 0u64..400_000), 1..80), remembered: bool) {
        let kept = Story::settled(vec![entry("10.61.1.0-24", &value(2, "a", "id-2"), 5)]).cluster.remember();
        let mut story = Story::new(remembered.then_some(kept), Options::default());
        let mut open: [Option<u64>; 4] = [None; 4];
        let mut subnet = None;
        // The first list, and what a remembered node says at once.
        let first = std::mem::take(&mut story.said);
        for output in first {
            match output {
                Output::Ask(request) => open[kind(&request.what)] = Some(request.id),
                Output::Acquired(m) => subnet = Some(m.subnet),
                _ => {}
            }
        }
        for (event, ms) in steps {
            // Ids count back from the newest that is open, so that most events are heard.
            let at = |n: u64| open.iter().flatten().copied().cycle().nth(n as usize).unwrap_or(n);
            let event = match event {
                Event::Done { id, answer } => Event::Done { id: at(id), answer },
                Event::Watched { id, revision, changes } => Event::Watched { id: if id > 0 { open[1].unwrap_or(id) } else { id }, revision, changes },
                Event::WatchEnded { id, why } => Event::WatchEnded { id: if id > 0 { open[1].unwrap_or(id) } else { id }, why },
                other => other,
            };
            match &event {
                Event::Done { id, answer } => {
                    let watching = *answer == Ok(Answer::Watching) && open[1] == Some(*id);
                    open.iter_mut().filter(|o| **o == Some(*id) && !watching).for_each(|o| *o = None);
                }
                Event::WatchEnded { id, .. } if open[1] == Some(*id) => open[1] = None,
                _ => {}
            }
            let mut said = std::mem::take(&mut story.said);
            story.on(event);
            said.append(&mut story.said);
            story.now += Duration::from_millis(ms);
            for _ in 0..5 {
                story.poll();
                said.append(&mut story.said);
                if story.cluster.deadline().is_none_or(|t| t > story.now) {
                    break;
                }
            }
            prop_assert!(story.cluster.deadline().is_none_or(|t| t > story.now));
            prop_assert!(said.len() < 40);
            for output in said {
                match output {
                    Output::Ask(request) => {
                        let kind = kind(&request.what);
                        // A new watch replaces the one before.
                        prop_assert!(kind == 1 || open[kind].is_none(), "{:?} beside another", request.what);
                        open[kind] = Some(request.id);
                    }
                    Output::Acquired(m) => {
                        prop_assert!(subnet.is_none());
                        subnet = Some(m.subnet);
                    }
                    _ => {}
                }
            }
            prop_assert!(story.cluster.own.subnet == subnet);
            let status = story.cluster.status(story.now);
            prop_assert!(status.skipped.len() <= 32 && status.alarms.len() < 60);
            let kept = story.cluster.remember();
            prop_assert!(serde_json::to_string(&kept).is_ok());
        }
    }
}
