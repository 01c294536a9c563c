//! podwire's splitting and merging of super-frames beside others who do the same: the kernel's segmentation, the
//! kernel's GRO, and the crate tun-rs. Inputs are the same, outputs are compared byte by byte; where rules differ the
//! test says how. The kernel works in namespaces of the suite's own (see `tests/netns/isolate.rs`).

// Of what the namespace tests have, this suite needs little.
#[allow(dead_code)]
#[path = "../netns/impair.rs"]
mod impair;
#[allow(dead_code)]
#[path = "../netns/isolate.rs"]
mod isolate;
#[allow(dead_code)]
#[path = "../netns/netns.rs"]
mod netns;

mod gro;
mod packet;
mod split;
mod streams;
mod tun_rs_oracle;

use libtest_mimic::{Arguments, Trial};
use std::process::ExitCode;

fn main() -> ExitCode {
    isolate::main(|| {
        let tests: [(&str, fn()); 5] = [
            ("split_as_the_kernel_does", split::as_the_kernel),
            ("merge_as_the_kernel_does", gro::as_the_kernel),
            ("merge_streams_as_the_kernel_does", gro::streams_as_the_kernel),
            ("split_as_tun_rs_does", tun_rs_oracle::split),
            ("merge_as_tun_rs_does", tun_rs_oracle::merge),
        ];
        let trials = tests.map(|(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
        });
        libtest_mimic::run(&Arguments::from_args(), trials.into()).exit_code()
    })
}
