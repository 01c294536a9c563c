//! The verbs, carried out: namespaces, the node's socket, standard input and output.

use super::call::{Call, Verb};
use super::conf::{Conf, MAX_INPUT, version_of};
use super::error::{CniError, Code};
use super::node::{self, BRIEF, NONE, Trouble, Way};
use super::version::{self, Version};
use super::{add, check, result::CniResult};
use crate::api::{Client, Reply, Request, gone};
use crate::model::{Attachment, AttachmentFilter};
use crate::pod::{link, look};
use crate::sys::ns::{NetNs, NsError, Target};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long one call may wait for nodes in all. Runtimes give plugins a minute or two; DEL leaves word in what is left of that.
const TOTAL: Duration = Duration::from_secs(30);

/// Be the plugin, when this process was started as one: by a file of its name, or by a runtime without arguments.
pub fn main() -> Option<ExitCode> {
    let mut argv = std::env::args_os();
    let program = argv.next().unwrap_or_default();
    let named = Path::new(&program)
        .file_name()
        .is_some_and(|n| n == super::PROGRAM);
    let called = std::env::var_os("CNI_COMMAND").is_some();
    let is_plugin = argv.next().is_none() && (named || called);
    is_plugin.then(run)
}

fn run() -> ExitCode {
    let mut input = Vec::new();
    let call = Call::read(|name| std::env::var_os(name));
    let read = match &call {
        // Nobody who calls it by hand shall have to end the input first.
        Err(_) if std::env::var_os("CNI_COMMAND").is_none() => {
            let versions = Version::ALL.map(Version::text).join(", ");
            let _ = writeln!(
                io::stderr(),
                "podwire {}, a CNI plugin for versions {versions}: put it into the runtime's plugin folder, and what \
                 `podwire cni conflist` prints into its configuration",
                env!("CARGO_PKG_VERSION")
            );
            Ok(0)
        }
        _ => io::stdin().take(MAX_INPUT + 1).read_to_end(&mut input),
    };
    let failed = |e: io::Error| CniError::new(Code::Io, format!("standard input cannot be read: {e}"));
    let done = call.and_then(|call| match read.map_err(failed)? {
        n if n as u64 > MAX_INPUT => {
            let what = format!("the network configuration has more than {MAX_INPUT} bytes");
            Err(CniError::new(Code::Decoding, what))
        }
        _ => carry_out(&call, &input),
    });
    let version = || version_of(&input).unwrap_or_else(|| Version::LATEST.text().into());
    let (said, undo, code) = match done {
        Ok(Done { said: None, .. }) => return ExitCode::SUCCESS,
        Ok(Done {
            said: Some(said),
            undo,
        }) => (said, undo, ExitCode::SUCCESS),
        Err(e) => (e.to_json(&version()), None, ExitCode::FAILURE),
    };
    let mut out = io::stdout();
    let told = writeln!(out, "{said}").and_then(|()| out.flush());
    if let (Err(e), Some((client, attachment))) = (told, undo) {
        // A runtime that was told of no pod has none.
        take_back(client, &attachment);
        let _ = writeln!(io::stderr(), "podwire: the result cannot be written: {e}");
        return ExitCode::FAILURE;
    }
    code
}

/// Undo an ADD that nobody heard of, in whose namespace this process is.
fn take_back(mut client: Client, attachment: &Attachment) {
    let Err(e) = release(&mut client, attachment) else {
        return;
    };
    // It hangs, or the time is over that all of ADD had.
    let socket = client.socket();
    if node::remains(socket)
        && let Err(unsaid) = gone::leave(socket, attachment)
    {
        let (dir, e) = (gone::directory(socket), CniError::from(e).msg);
        let _ = writeln!(
            io::stderr(),
            "podwire: {e}; nor can word of it be left in {}: {unsaid}",
            dir.display()
        );
    }
    delete_marked(attachment, None);
}

/// What was done.
struct Done {
    said: Option<Value>,
    /// How an attachment is undone when nobody can be told of it.
    undo: Option<(Client, Attachment)>,
}

fn carry_out(call: &Call, input: &[u8]) -> Result<Done, CniError> {
    let say = |said: Option<Value>| Ok(Done { said, undo: None });
    if call.verb == Verb::Version {
        return say(Some(version::answer(asked(input)?.as_deref())));
    }
    let conf = Conf::read(input, call.verb)?;
    let until = Instant::now() + TOTAL;
    let way = Way::to(&conf, until);
    match call.verb {
        Verb::Add => {
            let added = add::add(call, &conf, &way)?;
            let said = Some(added.result.to_json(conf.version));
            let undo = Some((added.client, added.attachment));
            Ok(Done { said, undo })
        }
        Verb::Del => del(call, &conf, &Way::to_each(&conf, until)).and_then(|()| say(None)),
        Verb::Check => check::check(call, &conf, &way).and_then(|()| say(None)),
        Verb::Gc => gc(&conf, &way).and_then(|()| say(None)),
        Verb::Status => status(&conf, &way).and_then(|()| say(None)),
        Verb::Version => say(None),
    }
}

/// The version in VERSION's input, which may be empty.
fn asked(input: &[u8]) -> Result<Option<String>, CniError> {
    if input.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    match serde_json::from_slice::<Value>(input) {
        Ok(_) => Ok(version_of(input)),
        Err(e) => Err(CniError::new(
            Code::Decoding,
            format!("standard input is no JSON: {e}"),
        )),
    }
}

/// The attachment a call is about.
pub(super) fn attachment(call: &Call, conf: &Conf) -> Attachment {
    Attachment {
        network: conf.network.clone(),
        container: call.container.clone(),
        ifname: call.ifname.clone(),
        namespace: None,
        mounts: None,
        uid: call.args.uid.clone(),
    }
}

/// Have the node take an attachment away; whether there was one.
pub(super) fn release(client: &mut Client, attachment: &Attachment) -> Result<bool, Trouble> {
    let attachment = attachment.clone();
    match client.call(&Request::Release { attachment })? {
        Reply::Detached { existed } => Ok(existed),
        _ => Err(misfit()),
    }
}

/// The node answers another question.
pub(super) fn misfit() -> Trouble {
    let what = "the node's answer does not fit the question (restart the node with the podwire that the plugin is of)";
    Trouble::Unfit(what.into())
}

/// An error of a namespace.
pub(super) fn namespace_error(e: &NsError) -> CniError {
    let code = match e {
        NsError::Missing(_) | NsError::NoProcess(_) | NsError::NotNetns(_) => Code::UnknownContainer,
        NsError::Permission(_) | NsError::Rights { .. } => Code::Permission,
        NsError::Call { .. } => Code::Failed,
    };
    CniError::new(code, e)
}

/// Take an attachment away from whichever of these nodes has it, whoever is there and whatever is missing.
fn del(call: &Call, conf: &Conf, ways: &[Way]) -> Result<(), CniError> {
    let netns = call
        .netns
        .clone()
        .and_then(|p| NetNs::open(&Target::Path(p)).ok());
    let attachment = Attachment {
        namespace: netns.as_ref().and_then(meant),
        ..attachment(call, conf)
    };
    let ask = |way, patience| node::with(way, patience, |client| release(client, &attachment));
    let (mut silent, mut refused) = (Vec::new(), Ok(()));
    for way in ways {
        match ask(way, BRIEF) {
            // Nobody else has it.
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(Trouble::Away(_) | Trouble::Busy(_) | Trouble::Unfit(_)) => silent.push((way, false)),
            Err(Trouble::Hung(_)) => silent.push((way, true)),
            Err(other) => refused = refused.and(Err(other.into())),
        }
    }
    // What such a node had of it is with its keeper. The node, when it comes to itself, or its next process, which may be of
    // another version, finds word of it, or finds that the interface is gone, whichever can be brought about here.
    let (mut remains, mut unsaid) = (false, None);
    for (way, hangs) in silent {
        let Some(socket) = way.remains() else { continue };
        // What a node left that is no more: nobody there has anything, or would ever heed it.
        if ways.len() > 1 && node::is_deserted(socket) {
            continue;
        }
        let left = gone::leave(socket, &attachment);
        match (left, !hangs && ask(way, NONE).is_ok()) {
            // It has come to itself meanwhile.
            (Ok(word), true) => gone::take_back(&word),
            (Err(_), true) => {}
            (Ok(_), false) => remains = true,
            (Err(e), false) => (remains, unsaid) = (true, Some((gone::directory(socket), e))),
        }
    }
    let deleted =
        remains && netns.is_some_and(|n| delete_interface(call, &n, &attachment, conf.before.as_ref()));
    match unsaid {
        Some((dir, e)) if !deleted => Err(CniError::new(
            Code::Io,
            format!(
                "the node does not answer, and that {} of container {} is gone cannot be written to {}: {e} (make room there, \
                 or start the node)",
                call.ifname,
                call.container,
                dir.display()
            ),
        )),
        _ => refused,
    }
}

/// The namespace that DEL means, when it was given one: a container that is attached anew has another. The path of a process
/// may be that of another one by now, and be the host's namespace: then it tells nothing.
fn meant(netns: &NetNs) -> Option<(u64, u64)> {
    let own = NetNs::open(&Target::Path("/proc/self/ns/net".into())).ok()?;
    netns.id().filter(|id| Some(*id) != own.id())
}

/// Delete the interface from the namespace, if it is there and as it was given; whether it was.
fn delete_interface(call: &Call, netns: &NetNs, attachment: &Attachment, before: Option<&CniResult>) -> bool {
    let path = call.netns.as_deref().unwrap_or(Path::new("")).to_string_lossy();
    let given = before.and_then(|b| {
        let ours =
            |i: &&super::result::Interface| i.name == call.ifname && i.sandbox.as_deref() == Some(&path);
        b.interfaces.iter().find(ours)?.mac.clone()
    });
    netns.enter().is_ok() && delete_marked(attachment, given.as_deref())
}

/// Delete the interface of an attachment from this namespace: one that has the MAC it was given, or, where nobody knows that,
/// its mark. Whether it was there.
fn delete_marked(attachment: &Attachment, given: Option<&str>) -> bool {
    let Ok(Some(seen)) = look::interface(&attachment.ifname) else {
        return false;
    };
    // Somebody else's is left alone, and so is another network's.
    let mark = link::mark(Some(attachment));
    let ours = match given {
        Some(mac) => mac.parse().ok() == seen.mac && !seen.is_anothers(&mark),
        None => seen.is_marked(&mark),
    };
    seen.tap && ours && link::delete(&attachment.ifname).is_ok()
}

/// Free what is of this network and not listed.
fn gc(conf: &Conf, way: &Way) -> Result<(), CniError> {
    let filter = AttachmentFilter {
        network: Some(conf.network.clone()),
        ..AttachmentFilter::default()
    };
    let freed = node::with(way, BRIEF, |client| {
        let filter = filter.clone();
        let Reply::Pods { pods } = client.call(&Request::Attachments { filter })? else {
            return Err(misfit());
        };
        let there = |a: &Attachment| {
            conf.valid
                .iter()
                .any(|(c, i)| *c == a.container && *i == a.ifname)
        };
        let stale = pods
            .into_iter()
            .filter_map(|p| p.attachment)
            .filter(|a| !there(a));
        let mut first = Ok(());
        for attachment in stale {
            match release(client, &attachment) {
                Ok(_) => {}
                // It concerns this one only.
                Err(e @ (Trouble::Refused(..) | Trouble::Told(_))) => first = first.and(Err(e)),
                Err(e) => return Err(e),
            }
        }
        first
    });
    freed.map_err(Into::into)
}

/// Whether a container could be attached now.
fn status(conf: &Conf, way: &Way) -> Result<(), CniError> {
    let asked = node::with(way, NONE, |client| match client.call(&Request::Vacancy)? {
        Reply::Vacancy { subnets, .. } => conf.check_subnets(&subnets).map_err(Trouble::from),
        _ => Err(misfit()),
    });
    asked.map_err(|trouble| match trouble {
        Trouble::Told(e) if e.code == Code::Config => e,
        other => CniError::new(Code::NotAvailable, CniError::from(other).msg),
    })
}
