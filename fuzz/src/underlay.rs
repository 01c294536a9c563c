//! UDP datagrams, as anyone on the underlay can send them, through decapsulation, coalescing and switching to
//! the write lists of TAPs.

use super::input::Input;
use super::lab::{Lab, MOST_STEPS};

/// `[settings] [batch]*`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut lab = Lab::new(&mut input);
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        lab.peers_send(&mut input);
        lab.end_turn();
        lab.balanced();
    }
    lab.settle();
}
