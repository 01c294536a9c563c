//! Frames with virtio-net headers, as a pod can send them, through guard and switching to other TAPs and to
//! the send lists of the underlay.

use super::input::Input;
use super::lab::{Lab, MOST_STEPS};

/// `[settings] [frame]*`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut lab = Lab::new(&mut input);
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        lab.pod_sends(&mut input);
        lab.end_turn();
        lab.balanced();
    }
    lab.settle();
}
