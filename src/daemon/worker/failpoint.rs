//! Panics for tests: with `PODWIRE_FAILPOINT="to_pod=MARK"` in the node's environment one comes when a frame that is
//! about to be written to a pod holds the mark, whoever sent it. Other places are `to_peers`, `receive` for datagrams of
//! peers before anybody has looked at them, `stream` for what comes from outside, and `remove_port` for the name of a pod
//! that goes; several are separated by commas. Only in debug builds.

use crate::buf::Received;
use std::sync::OnceLock;

static MARKS: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();

fn marks() -> Vec<(String, Vec<u8>)> {
    let asked = std::env::var("PODWIRE_FAILPOINT").unwrap_or_default();
    let each = asked.split(',').filter_map(|one| one.split_once('='));
    each.map(|(place, mark)| (place.into(), mark.as_bytes().into()))
        .collect()
}

/// Bytes come by a place.
///
/// # Panics
/// That is what it is for.
pub(super) fn pass(place: &str, bytes: &[u8]) {
    let marks = MARKS.get_or_init(marks).iter();
    for (_, mark) in marks.filter(|(at, mark)| at == place && !mark.is_empty()) {
        if bytes.windows(mark.len()).any(|w| w == mark) {
            panic!("failpoint {place}");
        }
    }
}

/// A batch of datagrams was received.
///
/// # Panics
/// As [`pass`].
pub(super) fn received((memory, messages): (&mut [u8], &[Received])) {
    for message in messages {
        pass("receive", message.span.of(memory));
    }
}
