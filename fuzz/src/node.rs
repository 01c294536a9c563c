//! Both sides of a whole node, and everything between: frames and datagrams in any order, ports and peers that
//! come and go, an underlay that is full or refuses, TAPs that refuse, and time.

use super::input::Input;
use super::lab::{Lab, MOST_STEPS};

/// `[settings] [operation]*`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut lab = Lab::new(&mut input);
    for _ in 0..MOST_STEPS {
        if input.is_empty() {
            break;
        }
        step(&mut lab, &mut input);
    }
    lab.settle();
}

fn step(lab: &mut Lab, input: &mut Input) {
    match input.u8() % 14 {
        0..=2 => lab.pod_sends(input),
        3..=4 => lab.peers_send(input),
        5 => lab.outcome(input),
        6 => lab.unblock(),
        7 => lab.end_turn(),
        8 => lab.wait(input.u16().into()),
        9 => lab.attach(2 + input.u8() % 7),
        10 => lab.detach(2 + input.u8() % 7),
        11 => {
            let n = 2 + input.u8() % 4;
            lab.set_peer(n, input.u8());
        }
        12 => lab.remove_peer(2 + input.u8() % 4),
        _ => match input.u8() % 8 {
            0 => lab.probe(),
            1 => lab.watch.refuse_writes = 3,
            2 => lab.burst(input),
            _ => lab.settle(),
        },
    }
}
