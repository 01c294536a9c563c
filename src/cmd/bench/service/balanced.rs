//! One measurement where several servers stand at one address: which of them is chosen nobody knows before.

use super::super::edge::work::{SLACK, Work};
use super::super::turns::Figure;
use super::manifests::PORT;
use crate::cmd::Failure;
use crate::cmd::lab::pod::Pod;
use crate::cmd::lab::watch::{Job, Watch};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// How long who measured may take to tell it, and how often it is looked for.
const TELL: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(2);

/// Measure `work` between a client and whichever of `servers` is reached at `at`; no figures when it failed.
///
/// # Errors
/// When the end was asked for, or no process can be started.
pub fn measure(
    work: Work,
    client: &Pod,
    at: IpAddr,
    servers: &[&Pod],
    window: Duration,
    watch: &mut Watch,
) -> Result<Vec<Figure>, Failure> {
    let deadline = Instant::now() + window + SLACK;
    let ms = window.as_millis() as u64;
    let load = work.server(PORT, ms);
    let jobs: Result<Vec<Job>, Failure> = servers
        .iter()
        .map(|pod| pod.start_one_of_several(&load))
        .collect();
    let mut jobs = jobs?;
    let mut servers: Vec<&mut Job> = jobs.iter_mut().collect();
    watch.gather(&mut servers, deadline, Job::spoke)?;
    if servers.iter().any(|server| server.ended()) {
        return Ok(Vec::new());
    }
    let mut client = client.start(&work.client(SocketAddr::new(at, PORT), ms))?;
    watch.gather(&mut [&mut client], deadline, Job::ended)?;
    let figures = match work {
        // Who took it measured; the client ended when it had enough.
        Work::Up(_) => {
            let deadline = Instant::now() + TELL;
            loop {
                Job::look(&mut servers);
                let mut told = servers.iter().map(|server| work.figures(&server.said(), window));
                match told.find(|figures| !figures.is_empty()) {
                    Some(figures) => break figures,
                    None if Instant::now() >= deadline => break Vec::new(),
                    None => std::thread::sleep(LOOK),
                }
            }
        }
        _ => work.figures(&client.said(), window),
    };
    Job::end(&mut servers, Duration::from_secs(2));
    Ok(figures)
}
