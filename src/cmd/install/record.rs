//! Files and links written, remembered, and removed again.
//!
//! The manifest is written first: whatever comes after it, also when the machine stops half way, is known to be podwire's by
//! its digest. A file of another digest is somebody else's, or changed, and is neither replaced nor removed.

use super::plan::{Content, Plan};
use crate::control::durable::{self, replace_file};
use crate::control::memory::random;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Longest manifest that is read: it names a handful of paths.
const LONGEST: u64 = 1 << 20;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Something is there that `install` did not write, or that was changed since.
    #[error(
        "{} is there and not as podwire install wrote it (move it away, or keep what you changed elsewhere: for a unit by \
         `systemctl edit podwire`)", path.display()
    )]
    InTheWay {
        /// What.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The record cannot be understood.
    #[error("{} is no record of podwire's: {why} (remove what it names by hand, then it)", path.display())]
    Manifest {
        /// Where.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// How it is at a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Nothing is there.
    Free,
    /// What shall be there.
    Same,
    /// What an earlier install wrote there.
    Own,
}

/// What was done at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A file was written.
    Wrote,
    /// A link was made, to this.
    Linked(PathBuf),
    /// It was as it should be.
    Same,
    /// It was removed.
    Removed,
    /// It would be.
    WouldRemove,
    /// Nothing was there.
    Gone,
    /// It was changed, and is left.
    Left,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    entries: Vec<Entry>,
    /// Directories that were made, outer ones first.
    directories: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: PathBuf,
    digest: String,
}

/// Where a setup is recorded.
#[derive(Debug)]
pub struct Record {
    /// The manifest, on this disk.
    pub manifest: PathBuf,
    /// What is left out of the paths in it: they are as they will be where a package is unpacked.
    pub prefix: Option<PathBuf>,
}

/// How it is at each path of a plan.
///
/// # Errors
/// Something of somebody else is in the way.
pub fn look(plan: &Plan) -> Result<Vec<State>, RecordError> {
    let manifest = match plan.record.read() {
        // Who may not read it may not write either, and can be shown what would be: only a dry run goes on from here.
        Err(RecordError::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => None,
        read => read?,
    };
    let manifest = manifest.unwrap_or_default();
    let state = |(path, content): &(PathBuf, Content)| {
        let there = digest_at(path).map_err(at(path))?;
        match there {
            None => Ok(State::Free),
            Some(there) if there == digest(content) => Ok(State::Same),
            Some(digest)
                if manifest
                    .entries
                    .iter()
                    .any(|e| e.path == *path && e.digest == digest) =>
            {
                Ok(State::Own)
            }
            Some(_) => Err(RecordError::InTheWay { path: path.clone() }),
        }
    };
    plan.items.iter().map(state).collect()
}

/// Carry out a plan.
///
/// # Errors
/// Something is in the way, and nothing was changed; or the kernel refused a step.
pub fn write(plan: &Plan) -> Result<Vec<(PathBuf, Outcome)>, RecordError> {
    let states = look(plan)?;
    let mut manifest = plan.record.read()?.unwrap_or_default();
    for ((path, content), state) in plan.items.iter().zip(&states) {
        // What somebody else wrote is not install's to remove, however alike.
        if *state == State::Same {
            continue;
        }
        let entry = Entry {
            path: path.clone(),
            digest: digest(content),
        };
        if !manifest.entries.contains(&entry) {
            manifest.entries.push(entry);
        }
        for dir in missing(path) {
            if !manifest.directories.contains(&dir) {
                manifest.directories.push(dir);
            }
        }
    }
    plan.record.save(&manifest)?;
    let mut done = Vec::new();
    for ((path, content), state) in plan.items.iter().zip(states) {
        let outcome = match state {
            State::Same => Outcome::Same,
            _ => put(path, content).map_err(at(path))?,
        };
        done.push((path.clone(), outcome));
    }
    // What an earlier install wrote at these paths is not there any more.
    let is_there = |e: &Entry| digest_at(&e.path).is_ok_and(|d| d.as_ref() == Some(&e.digest));
    manifest.entries.retain(is_there);
    plan.record.save(&manifest)?;
    Ok(done)
}

impl Record {
    /// Remove what the manifest names and nobody changed, and the manifest. With `dry` only tell of it.
    ///
    /// # Errors
    /// The kernel refused a step; what it did not come to is still recorded.
    pub fn remove(&self, dry: bool) -> Result<Vec<(PathBuf, Outcome)>, RecordError> {
        let Some(known) = self.read()? else {
            return Ok(Vec::new());
        };
        let mut done: Vec<(PathBuf, Outcome)> = Vec::new();
        for entry in &known.entries {
            let outcome = match digest_at(&entry.path).map_err(at(&entry.path))? {
                None => Outcome::Gone,
                Some(there) if there != entry.digest => Outcome::Left,
                Some(_) if dry => Outcome::WouldRemove,
                Some(_) => {
                    fs::remove_file(&entry.path).map_err(at(&entry.path))?;
                    Outcome::Removed
                }
            };
            // Of two versions of one path, of which one was never written, the one that was there counts.
            match done.iter_mut().find(|(path, _)| *path == entry.path) {
                Some((_, before)) if matches!(before, Outcome::Left | Outcome::Gone) => *before = outcome,
                Some(_) => {}
                None => done.push((entry.path.clone(), outcome)),
            }
        }
        if !dry {
            fs::remove_file(&self.manifest).map_err(at(&self.manifest))?;
            // Of the directories those that nobody uses.
            for dir in known.directories.iter().rev() {
                let _ = fs::remove_dir(dir);
            }
            let _ = self.manifest.parent().map(fs::remove_dir);
        }
        Ok(done)
    }

    fn read(&self) -> Result<Option<Manifest>, RecordError> {
        let path = &self.manifest;
        let Some(bytes) = durable::read(path, LONGEST).map_err(at(path))? else {
            return Ok(None);
        };
        let wrong = |e: serde_json::Error| RecordError::Manifest {
            path: path.clone(),
            why: e.to_string(),
        };
        let mut manifest: Manifest = serde_json::from_slice(&bytes).map_err(wrong)?;
        if let Some(prefix) = &self.prefix {
            manifest.each_path(|path| prefix.join(path.strip_prefix("/").unwrap_or(path)));
        }
        Ok(Some(manifest))
    }

    fn save(&self, manifest: &Manifest) -> Result<(), RecordError> {
        let path = &self.manifest;
        let mut manifest = manifest.clone();
        if let Some(prefix) = &self.prefix {
            manifest.each_path(|path| Path::new("/").join(path.strip_prefix(prefix).unwrap_or(path)));
        }
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| RecordError::Manifest {
            path: path.clone(),
            why: e.to_string(),
        })?;
        // Only podwire's own directory is for its user alone.
        let shared = path.ancestors().nth(3).unwrap_or(Path::new("/"));
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(shared)
            .map_err(at(shared))?;
        replace_file(path, &[&text], 0o600).map_err(at(path))
    }
}

impl Manifest {
    fn each_path(&mut self, change: impl Fn(&Path) -> PathBuf) {
        for entry in &mut self.entries {
            entry.path = change(&entry.path);
        }
        for dir in &mut self.directories {
            *dir = change(dir);
        }
    }
}

fn put(path: &Path, content: &Content) -> io::Result<Outcome> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
    match content {
        Content::File { bytes, mode } => {
            let beside = beside(path)?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create_new(true).mode(*mode).open(&beside)?;
            let moved = file.write_all(bytes).and_then(|()| {
                // Whatever the caller's umask is.
                file.set_permissions(Permissions::from_mode(*mode))?;
                file.sync_all()?;
                fs::rename(&beside, path)
            });
            moved.inspect_err(|_| {
                let _ = fs::remove_file(&beside);
            })?;
            File::open(dir)?.sync_all()?;
            Ok(Outcome::Wrote)
        }
        Content::Link(to) => {
            let beside = beside(path)?;
            symlink(to, &beside)?;
            fs::rename(&beside, path).inspect_err(|_| {
                let _ = fs::remove_file(&beside);
            })?;
            Ok(Outcome::Linked(to.clone()))
        }
    }
}

/// A name beside `path` that nobody has or guesses: whatever else is there, as `X.new`, is somebody's.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let number = u128::from_ne_bytes(random()?);
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{number:032x}"));
    Ok(beside.into())
}

/// The directories above `path` that are not there, outer ones first.
fn missing(path: &Path) -> Vec<PathBuf> {
    let above = path.ancestors().skip(1);
    let mut missing: Vec<PathBuf> = above.take_while(|dir| !dir.exists()).map(PathBuf::from).collect();
    missing.reverse();
    missing
}

fn digest(content: &Content) -> String {
    match content {
        Content::File { bytes, .. } => of_bytes(bytes),
        Content::Link(to) => of_link(to),
    }
}

/// The digest of what is at `path`; none when nothing is.
fn digest_at(path: &Path) -> io::Result<Option<String>> {
    let kind = match fs::symlink_metadata(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        metadata => metadata?.file_type(),
    };
    match (kind.is_symlink(), kind.is_file()) {
        (true, _) => fs::read_link(path).map(|to| Some(of_link(&to))),
        (_, true) => fs::read(path).map(|bytes| Some(of_bytes(&bytes))),
        _ => Ok(Some("neither file nor link".into())),
    }
}

fn of_link(to: &Path) -> String {
    format!("link {}", to.display())
}

/// FNV-1a, and the length: it tells changes from none, and nobody has a use for deceiving it.
fn of_bytes(bytes: &[u8]) -> String {
    let step = |hash: u64, b: &u8| (hash ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3);
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, step);
    format!("{} {hash:016x}", bytes.len())
}

fn at(path: &Path) -> impl Fn(io::Error) -> RecordError {
    move |source| RecordError::Io {
        path: path.into(),
        source,
    }
}
