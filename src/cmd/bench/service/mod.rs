//! `podwire bench service`: virtual addresses beside the same pods without them and the kernel's DNAT; and what ten thousand
//! Services cost a node, beside ten.
//!
//! ```text
//!   client            servers a (4)         servers b (4)       podwire: two nodes, an EndpointSlice for each group
//!      \\               /                      |                 kernel: bridges and VXLAN; nftables on the client's host
//!      host a ======= ul0 ================ ul0 == host b
//!
//!   client   one   two      twice: a node with 10 Services, and one with 10,000 of 10 endpoints each
//!        \\    |    /
//!            node            what is changed is one Service; one and two answer by it, so that the client sees when
//! ```
//!
//! A change is timed from the moment in which it is asked for until the client has the first answer by it, by a clock that
//! all processes share.

mod balanced;
mod contenders;
mod manifests;
mod many;

use super::lab::failed;
use super::turns::{self, Report};
use crate::cmd::lab::watch::Watch;
use crate::cmd::{Exit, Failure};
use contenders::Contender;
use many::Node;
use std::path::Path;
use std::time::Duration;

/// How long it is tried at a time whether a contender's Service is there.
const TRIAL: Duration = Duration::from_millis(1);

/// Measure, and print the report.
///
/// # Errors
/// When podwire cannot be set up, or the end was asked for.
pub fn inside(rounds: u8, window: Duration, json: bool, watch: &mut Watch) -> Result<Exit, Failure> {
    let (all, mut absent) = contenders::all(watch)?;
    let cases = contenders::cases();
    let attempt = |contender: &Contender, watch: &mut Watch| {
        let connect = |case: &&contenders::Case| case.0 == super::edge::work::Work::Connect;
        let mut figures = Vec::new();
        for case in cases.iter().filter(connect) {
            figures = contender.measure(*case, TRIAL, watch)?;
            if figures.is_empty() {
                break;
            }
        }
        Ok(figures)
    };
    let closed = "its client does not reach the servers";
    let mut reaching = turns::reaching(all, closed, &mut absent, watch, attempt)?;
    let mut names: Vec<&str> = reaching.iter().map(turns::Contestant::name).collect();
    names.push(many::FEW);
    let mut report = Report::new(names);
    let name = contenders::name;
    turns::take(
        &mut report,
        &mut reaching,
        &cases,
        name,
        rounds,
        watch,
        |c, case, watch| c.measure(case, window, watch),
    )?;
    // Their processes and tables are in nobody's way from here on.
    drop(reaching);
    let mut nodes = many::nodes(&mut report, watch)?;
    turns::take(
        &mut report,
        &mut nodes,
        &many::Work::ALL,
        |work| work.name().into(),
        rounds,
        watch,
        |node: &mut Node, work, watch| node.measure(work, window, watch),
    )?;
    report.remarks = remarks(rounds, window, absent);
    report.finish().print(json)
}

/// Have a file in a folder that is watched, as a whole.
fn put(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let (aside, place) = (dir.join(format!(".{name}")), dir.join(name));
    let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &place));
    written.map_err(|e| failed(format!("{}: {e}", place.display())))
}

fn remarks(rounds: u8, window: Duration, absent: Vec<String>) -> Vec<String> {
    let how = format!("{}; MTU of pods 1450", turns::remark(rounds, window));
    let ways = format!(
        "the client asks an address with {} servers behind it, of podwire and of the kernel (nftables, numgen), or one of \
         podwire's servers itself (direct); up is to the servers; -same on one node, -cross over a veth as it is; a \
         connection counts when a byte was answered on it; TCP with cubic; less is better for us and s/GB (of all \
         processors together)",
        contenders::BACKENDS
    );
    let many = format!(
        "change-, lookup-, memory and load: a node with {} Services of {} endpoints each (podwire), and one with {} \
         (few); change: from when it is asked for until a client in a pod has its first answer by it, with that answer's \
         round trip; -ready: `podwire ready` of one pod; -apply: `podwire service apply` of an EndpointSlice; -file: a file \
         of one is replaced in a watched folder; memory: RssAnon of the node's process before that; load: from the first \
         of the files of Services until the last answers",
        many::MANY,
        manifests::ENDPOINTS,
        many::FEW_SERVICES,
    );
    [how, ways, many].into_iter().chain(absent).collect()
}
