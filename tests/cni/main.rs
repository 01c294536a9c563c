//! The CNI plugin against real nodes, with namespaces as container runtimes make them: every verb in every version, what
//! is refused, what runtimes wish, and that nothing is left by whoever is killed at whatever moment.
//!
//! As in `tests/netns`, everything happens in user, network and mount namespaces of the suite's own, so it runs the same
//! for root and for an ordinary user, and a supervisor fails for what is left behind.

mod away;
mod churn;
mod crashes;
mod crowd;
mod delete;
#[path = "../netns/isolate.rs"]
mod isolate;
#[allow(dead_code)]
#[path = "../netns/netns.rs"]
mod netns;
#[allow(dead_code)]
#[path = "../netns/node.rs"]
mod node;
mod refusals;
mod rig;
mod several;
mod shared;
mod verbs;
mod wishes;

use libtest_mimic::{Arguments, Failed, Trial};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

/// A test.
pub type Case = (&'static str, fn(&mut rig::Rig));

fn main() -> ExitCode {
    isolate::main(suite)
}

fn suite() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(2);
    let cases: Vec<Case> = [
        verbs::CASES,
        refusals::CASES,
        wishes::CASES,
        shared::CASES,
        away::CASES,
        delete::CASES,
        several::CASES,
        crashes::CASES,
        crowd::CASES,
        churn::CASES,
    ]
    .concat();
    let trials = cases
        .into_iter()
        .map(|(name, body)| Trial::test(name, move || run(body)));
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn run(body: fn(&mut rig::Rig)) -> Result<(), Failed> {
    let mut rig = rig::Rig::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        body(&mut rig);
        rig.end();
    }));
    outcome.map_err(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said
            .or(panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic");
        Failed::from(format!("{said}\n{}", rig.node.evidence()))
    })
}
