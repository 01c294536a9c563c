//! The store of a cluster, for real: `etcd` processes on free ports of loopback, started, frozen, killed and wiped
//! by the tests, with users, with TLS, with three members; and a proxy in between that delays, freezes and cuts.
//!
//! ```text
//!   Executor or Store --- [proxy] --- etcd     a data directory each, ended by its pid
//!                                      ^
//!   the test ------- etcdctl ----------'
//! ```

mod asks;
mod certs;
mod child;
mod disk;
mod frozen;
mod life;
mod many;
mod measure;
mod member;
mod node;
mod outage;
mod proxy;
mod secured;
mod server;
mod shared;
mod shell;
mod size;

use libtest_mimic::{Arguments, Trial};
use std::process::{Command, ExitCode};

/// A test: its name and what it does.
type Case = (&'static str, fn());

fn main() -> ExitCode {
    let children = [
        disk::CHILDREN,
        frozen::CHILDREN,
        many::CHILDREN,
        measure::CHILDREN,
        shared::CHILDREN,
    ]
    .concat();
    if let Some(done) = child::child(&children) {
        return done;
    }
    let mut arguments = Arguments::from_args();
    // They wait most of the time.
    arguments.test_threads.get_or_insert(4);
    let tools = ["etcd", "etcdctl", "openssl"];
    let missing = |tool: &&&str| Command::new(tool).arg("version").output().is_err();
    let missing: Vec<_> = tools.iter().filter(missing).collect();
    if !missing.is_empty() {
        eprintln!("etcd: {missing:?} missing, so nothing is tested here (tests/run installs them)");
        return ExitCode::SUCCESS;
    }
    let cases = [
        asks::CASES,
        outage::CASES,
        secured::CASES,
        size::CASES,
        life::CASES,
        disk::CASES,
        frozen::CASES,
        many::CASES,
        shared::CASES,
    ]
    .concat();
    let trial = |(name, run): Case| {
        Trial::test(name, move || {
            run();
            Ok(())
        })
    };
    let on_request = measure::CASES.iter().copied().map(trial);
    let on_request = on_request.map(|t| t.with_ignored_flag(true));
    let trials: Vec<Trial> = cases.into_iter().map(trial).chain(on_request).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
