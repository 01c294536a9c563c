//! Attaching a pod, from the first question to the node to the finished port.

use super::link::{self, LinkError};
use super::look;
use crate::api::place::Socket;
use crate::api::{ApiError, AttachPlan, AttachRequest, Client, ErrorKind, PodInfo, Reply, Request};
use crate::sys::ns::{NetNs, NsError, Target};
use crate::sys::tap::{self, TapError};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The hidden verb of [`in_child`]: `podwire __attach ORDER`, with the pod's lifeline as stdin and the outcome on
/// stdout; order and outcome are JSON.
pub const VERB: &str = "__attach";

/// A pod that hangs on the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// What the node says of it.
    pub pod: PodInfo,
    /// How long entering the namespace, making the TAP and configuring it took.
    pub in_namespace: Duration,
}

/// Why a pod could not be attached. Whatever was made is gone again.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The node could not be asked, or refused.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The namespace could not be entered.
    #[error(transparent)]
    Ns(#[from] NsError),
    /// There is no TAP.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The interface could not be configured.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The node answers another question.
    #[error("the node's answer does not fit the question (restart the node with the podwire you use here)")]
    Answer,
    /// The helper process did not work.
    #[error("podwire could not run itself to enter the pod: {0}")]
    Helper(io::Error),
    /// What the helper process reported.
    #[error("{message}")]
    Relayed {
        /// Its sentence.
        message: String,
        /// Its cause.
        blame: Blame,
    },
}

/// What kind of failure it was, for the exit code.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Blame {
    /// The request is wrong.
    Usage,
    /// A permission is missing.
    Permission,
    /// No node answers.
    NoNode,
    /// A name, an address or the default route is taken.
    Taken,
    /// Something named does not exist.
    NotFound,
    /// The node is out of addresses or ports.
    Exhausted,
    /// Anything else.
    Failed,
}

impl AttachError {
    /// What kind of failure it is.
    pub fn blame(&self) -> Blame {
        match self {
            AttachError::Api(ApiError::Permission { .. } | ApiError::Stranger { .. }) => Blame::Permission,
            AttachError::Api(ApiError::NoNode { .. }) => Blame::NoNode,
            AttachError::Api(ApiError::Refused { kind, .. }) => match kind {
                ErrorKind::Usage => Blame::Usage,
                ErrorKind::Taken => Blame::Taken,
                ErrorKind::NotFound => Blame::NotFound,
                ErrorKind::Exhausted => Blame::Exhausted,
                ErrorKind::Permission => Blame::Permission,
                ErrorKind::Waiting => Blame::NoNode,
                ErrorKind::Internal => Blame::Failed,
            },
            AttachError::Ns(NsError::Permission(_) | NsError::Rights { .. }) => Blame::Permission,
            AttachError::Ns(NsError::Missing(_) | NsError::NoProcess(_)) => Blame::NotFound,
            AttachError::Ns(NsError::NotNetns(_)) => Blame::Usage,
            AttachError::Tap(TapError::DevicePermission | TapError::NotPermitted(_)) => Blame::Permission,
            AttachError::Tap(TapError::Taken(_)) => Blame::Taken,
            AttachError::Link(LinkError::RouteTaken { .. }) => Blame::Taken,
            AttachError::Tap(TapError::BadName(_)) => Blame::Usage,
            AttachError::Relayed { blame, .. } => *blame,
            _ => Blame::Failed,
        }
    }
}

/// Attach the pod in `netns`, which the calling process enters for good.
///
/// The calling process must have one thread only, unless it is privileged over the namespace. The node holds
/// `lifeline` as long as the pod has a port; see [`super::pause`].
///
/// # Errors
/// See [`AttachError`].
pub fn attach(
    mut client: Client,
    request: &AttachRequest,
    netns: &NetNs,
    lifeline: Option<BorrowedFd<'_>>,
) -> Result<Attached, AttachError> {
    attach_on(&mut client, request, netns, lifeline, Routes::Ours).map(|(attached, _)| attached)
}

/// What becomes of a default route that is there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routes {
    /// It must not be.
    Ours,
    /// It stays, and the pod gets none of that family.
    IfNone,
}

/// The same on a connection that goes on; the plan as it was carried out.
///
/// # Errors
/// See [`AttachError`]. The calling process is in the namespace unless the node refused.
pub fn attach_on(
    client: &mut Client,
    request: &AttachRequest,
    netns: &NetNs,
    lifeline: Option<BorrowedFd<'_>>,
    routes: Routes,
) -> Result<(Attached, AttachPlan), AttachError> {
    tap::check_name(&request.ifname)?;
    let Reply::Plan(mut plan) = client.call(&Request::Attach(Box::new(request.clone())))? else {
        return Err(AttachError::Answer);
    };
    let started = Instant::now();
    netns.enter()?;
    if routes == Routes::IfNone {
        plan.gateway4 = plan.gateway4.filter(|_| !look::has_default_route(false));
        plan.gateway6 = plan.gateway6.filter(|_| !look::has_default_route(true));
    }
    let (tap, caps) = tap::create(&request.ifname, plan.offload)?;
    let mark = link::mark(request.attachment.as_ref());
    link::configure(&request.ifname, &plan, &mark)?;
    let in_namespace = started.elapsed();
    let commit = Request::Commit {
        caps,
        lifeline: lifeline.is_some(),
    };
    let fds: Vec<_> = [Some(tap.as_fd()), netns.holder(), lifeline]
        .into_iter()
        .flatten()
        .collect();
    let answer = client.call_with_fds(&commit, &fds).inspect_err(|e| {
        // A node that was killed just now may have had it kept for its next start, which shall find it gone.
        if !matches!(e, ApiError::Refused { .. })
            && let Err(e) = link::delete(&request.ifname)
        {
            log::debug!("{e}");
        }
    });
    match answer? {
        Reply::Attached(pod) => Ok((
            Attached {
                pod: *pod,
                in_namespace,
            },
            plan,
        )),
        _ => Err(AttachError::Answer),
    }
}

/// Attach the pod of the process `request.holder` through a helper process, so that the caller stays where it
/// is and may have threads. `program` is podwire's binary, `lifeline` that of the process.
///
/// # Errors
/// See [`AttachError`]; those of the helper arrive as [`AttachError::Relayed`].
pub fn in_child(
    program: &Path,
    socket: Socket,
    request: &AttachRequest,
    lifeline: BorrowedFd<'_>,
) -> Result<Attached, AttachError> {
    let order = Order {
        socket,
        request: request.clone(),
    };
    let order = serde_json::to_string(&order).map_err(|e| AttachError::Helper(e.into()))?;
    let lifeline = lifeline.try_clone_to_owned().map_err(AttachError::Helper)?;
    let output = Command::new(program)
        .args([VERB, &order])
        .stdin(lifeline)
        .stderr(Stdio::inherit())
        .output()
        .map_err(AttachError::Helper)?;
    match serde_json::from_slice(&output.stdout).map_err(|e| AttachError::Helper(e.into()))? {
        Outcome::Attached(attached) => Ok(*attached),
        Outcome::Failed { message, blame } => Err(AttachError::Relayed { message, blame }),
    }
}

#[derive(Serialize, Deserialize)]
struct Order {
    socket: Socket,
    request: AttachRequest,
}

#[derive(Serialize, Deserialize)]
enum Outcome {
    Attached(Box<Attached>),
    Failed { message: String, blame: Blame },
}

/// Body of the hidden command behind [`in_child`].
pub fn main(order: &str) -> ExitCode {
    let outcome = match helper(order) {
        Ok(attached) => Outcome::Attached(attached.into()),
        Err(e) => Outcome::Failed {
            message: e.to_string(),
            blame: e.blame(),
        },
    };
    match serde_json::to_writer(io::stdout(), &outcome) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn helper(order: &str) -> Result<Attached, AttachError> {
    let order: Order = serde_json::from_str(order).map_err(|e| AttachError::Helper(e.into()))?;
    let holder = order.request.holder.unwrap_or_default();
    let netns = NetNs::open(&Target::Pid(holder))?;
    let lifeline = io::stdin();
    attach(
        Client::connect(&order.socket)?,
        &order.request,
        &netns,
        Some(lifeline.as_fd()),
    )
}
