//! Nodes, pods and the network between them, for real: `podwire node` processes in namespaces of their own,
//! TAPs, kernel TCP in the pods, and an impairment relay for the underlay. Nothing needs root, nothing touches
//! the host's network, nothing stays behind (which is checked).
//!
//! ```text
//!   pods a1 b1 ..   pods a2 b2 ..      a network namespace each: 10.244.1.2, fd00:10:244:1::2, ...
//!      | | TAPs        | |
//!   podwire node    podwire node       a namespace each: n1 at 192.0.2.1, n2 at 192.0.2.2, ...
//!      |               |               and a stranger that is no node
//!   ===|===============|=== relay      in this process: loses, reorders, ... single packets by a seed
//! ```
//!
//! Each test makes a [`world::World`] of its own, and at its end each node must have accounted for every
//! frame and end by SIGTERM within a second. All run in both offload modes: `offload_on::`, `offload_off::`.

mod adopt;
mod bandwidth;
mod bulk;
mod cluster;
mod crashes;
mod egress;
mod fake;
mod floods;
mod foreign;
mod frames;
mod host_port;
mod hostile;
mod impair;
mod interop;
mod isolate;
mod life;
mod looped;
mod loss;
mod measure;
mod metrics;
mod netns;
mod node;
mod odd;
mod outages;
mod overrun;
mod ovs;
mod panics;
mod peers;
mod pod;
mod ports;
mod raw;
mod reach;
mod refusals;
mod relay;
mod relay_itself;
mod services;
mod spoof;
mod store;
mod traffic;
mod tunnel;
mod underlay;
mod vde;
mod vips;
mod ways;
mod world;

use libtest_mimic::{Arguments, Trial};
use podwire::model::OffloadMode;
use std::process::ExitCode;

fn main() -> ExitCode {
    isolate::main(suite)
}

fn suite() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each test is a handful of processes and threads already.
    arguments.test_threads.get_or_insert(2);
    let cases: Vec<world::Case> = [
        reach::CASES,
        bulk::CASES,
        bandwidth::CASES,
        loss::CASES,
        refusals::CASES,
        overrun::CASES,
        peers::CASES,
        ways::CASES,
        spoof::CASES,
        hostile::CASES,
        host_port::CASES,
        odd::CASES,
        egress::CASES,
        outages::CASES,
        fake::CASES,
        floods::CASES,
        looped::CASES,
        tunnel::CASES,
        life::CASES,
        adopt::CASES,
        crashes::CASES,
        panics::CASES,
        ports::CASES,
        services::CASES,
        interop::CASES,
        ovs::CASES,
        vde::CASES,
        vips::CASES,
        metrics::CASES,
        measure::CASES,
    ]
    .concat();
    let modes = [OffloadMode::On, OffloadMode::Off];
    let trials = modes
        .iter()
        .flat_map(|mode| cases.iter().map(|case| case.trial(*mode)));
    // What the store has to say does not depend on how TAPs are.
    let cluster = cluster::CASES.iter().chain(metrics::CLUSTER_CASES);
    let cluster = cluster.map(|case| case.trial(OffloadMode::On));
    let trials = relay_itself::trials().into_iter().chain(trials).chain(cluster);
    let trials: Vec<Trial> = trials.collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
