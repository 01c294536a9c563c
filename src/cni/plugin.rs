//! The verbs, carried out: namespaces, the node's socket, standard input and output.

use super::call::{Call, Verb};
use super::conf::{Conf, MAX_INPUT, version_of};
use super::error::{CniError, Code};
use super::node::{self, BRIEF, NONE, Trouble};
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
    if let (Err(e), Some((mut client, attachment))) = (told, undo) {
        // A runtime that was told of no pod has none.
        let _ = client.call(&Request::Release { attachment });
        let _ = writeln!(io::stderr(), "podwire: the result cannot be written: {e}");
        return ExitCode::FAILURE;
    }
    code
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
    match call.verb {
        Verb::Add => {
            let added = add::add(call, &conf)?;
            let said = Some(added.result.to_json(conf.version));
            let undo = Some((added.client, added.attachment));
            Ok(Done { said, undo })
        }
        Verb::Del => del(call, &conf).and_then(|()| say(None)),
        Verb::Check => check::check(call, &conf).and_then(|()| say(None)),
        Verb::Gc => gc(&conf).and_then(|()| say(None)),
        Verb::Status => status(&conf).and_then(|()| say(None)),
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
    Trouble::Told(CniError::new(Code::Failed, what))
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

/// Take an attachment away, whoever is there and whatever is missing.
fn del(call: &Call, conf: &Conf) -> Result<(), CniError> {
    let attachment = attachment(call, conf);
    let ask = |patience| node::with(conf, patience, |client| release(client, &attachment));
    let hangs = match ask(BRIEF) {
        Ok(_) => return Ok(()),
        Err(Trouble::Away(_) | Trouble::Busy(_)) => false,
        Err(Trouble::Hung(_)) => true,
        Err(other) => return Err(other.into()),
    };
    // What the node had of it is with its keeper. The node, when it comes to itself, or its next process, finds word of it,
    // or finds that the interface is gone, whichever can be brought about here.
    let sockets = node::absent(conf);
    let left: Vec<_> = sockets.iter().map(|s| (s, gone::leave(s, &attachment))).collect();
    let unsaid = left
        .iter()
        .find_map(|(s, l)| l.as_ref().err().map(|e| (gone::directory(s), e.to_string())));
    if !hangs && ask(NONE).is_ok() {
        left.iter()
            .filter_map(|(_, l)| l.as_ref().ok())
            .for_each(|path| gone::take_back(path));
        return Ok(());
    }
    let deleted = !sockets.is_empty() && delete_interface(call, conf.before.as_ref());
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
        _ => Ok(()),
    }
}

/// Delete the interface from the namespace, if it is there and as it was given; whether it was.
fn delete_interface(call: &Call, before: Option<&CniResult>) -> bool {
    let Some(netns) = call
        .netns
        .clone()
        .and_then(|p| NetNs::open(&Target::Path(p)).ok())
    else {
        return false;
    };
    let path = call.netns.as_deref().unwrap_or(Path::new("")).to_string_lossy();
    let given = before.and_then(|b| {
        let ours =
            |i: &&super::result::Interface| i.name == call.ifname && i.sandbox.as_deref() == Some(&path);
        b.interfaces.iter().find(ours)?.mac.clone()
    });
    if netns.enter().is_err() {
        return false;
    }
    let Ok(Some(seen)) = look::interface(&call.ifname) else {
        return false;
    };
    // Somebody else's is left alone.
    let same = given.is_none_or(|mac| mac.parse().ok() == seen.mac);
    seen.tap && same && link::delete(&call.ifname).is_ok()
}

/// Free what is of this network and not listed.
fn gc(conf: &Conf) -> Result<(), CniError> {
    let filter = AttachmentFilter {
        network: Some(conf.network.clone()),
        ..AttachmentFilter::default()
    };
    let freed = node::with(conf, BRIEF, |client| {
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
fn status(conf: &Conf) -> Result<(), CniError> {
    let asked = node::with(conf, NONE, |client| match client.call(&Request::Vacancy)? {
        Reply::Vacancy { subnets, .. } => conf.check_subnets(&subnets).map_err(Trouble::from),
        _ => Err(misfit()),
    });
    asked.map_err(|trouble| match trouble {
        Trouble::Told(e) if e.code == Code::Config => e,
        other => CniError::new(Code::NotAvailable, CniError::from(other).msg),
    })
}
