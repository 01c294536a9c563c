//! What a node of a cluster keeps on disk: who it is, and the last known state, from which it forwards when it starts
//! while the store is down.
//!
//! ```text
//! state_dir/    (see [`crate::api::place::state_for`])
//!   id       32 hexadecimal digits, written once
//!   state    podwire-state 1 <CRC-32> <length>\n{"cluster": ...}
//!   shared   podwire-shared 1 <CRC-32> <length>\n{"cluster": ...}, what nodes share beside their leases
//! ```
//!
//! A file is replaced as a whole or not at all: written beside the old one, synced, renamed, and the directory synced.
//! One that is damaged, or of another version, is set aside and said, never fatal.

use super::cluster::Remembered;
use super::durable::{open, replace_file};
use super::services::shared::RememberedKeys;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The form of the state this program writes, and reads.
const VERSION: u32 = 1;
/// Largest state that is read, in bytes: that of some 100,000 nodes.
const MAX_STATE: u64 = 64 << 20;
/// Longest file of what nodes share, in bytes, read or written: some 32,768 Services and slices of 4 KiB.
const MAX_SHARED: u64 = 128 << 20;
const STATE: &str = "state";
const SHARED: &str = "shared";
const ID: &str = "id";

/// A node's directory on disk.
#[derive(Clone, Debug)]
pub struct Memory {
    dir: PathBuf,
}

/// Something could not be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be {what}: {source} (choose another place with --state-dir)", path.display())]
pub struct MemoryError {
    path: PathBuf,
    what: &'static str,
    source: io::Error,
}

/// What a file told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Recalled<T> {
    /// There is none yet.
    Nothing,
    /// This.
    Known(T),
    /// It cannot be used; a sentence that says why and where the file is now.
    SetAside(String),
}

/// A new identity: 128 random bits.
///
/// # Errors
/// When the kernel has none.
pub fn fresh_id() -> io::Result<String> {
    Ok(random()?.iter().map(|b| format!("{b:02x}")).collect())
}

/// 128 random bits.
///
/// # Errors
/// When the kernel has none.
pub fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Memory {
    /// Keep things in `dir`, which is made when something is kept.
    pub fn new(dir: &Path) -> Memory {
        Memory { dir: dir.into() }
    }

    /// Where it keeps things.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The identity that is kept here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn id(&self) -> Result<Recalled<String>, MemoryError> {
        let Some(bytes) = self.read(ID, 64)? else {
            return Ok(Recalled::Nothing);
        };
        let text = String::from_utf8_lossy(&bytes);
        let id = text.trim_end();
        if id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Recalled::Known(id.into()));
        }
        self.set_aside(ID, "it is not the identity of a node")
            .map(Recalled::SetAside)
    }

    /// Keep an identity.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn keep_id(&self, id: &str) -> Result<(), MemoryError> {
        self.replace(ID, &[id.as_bytes(), b"\n"])
    }

    /// The state that was kept.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn recall(&self) -> Result<Recalled<Remembered>, MemoryError> {
        self.recall_from(STATE, MAX_STATE)
    }

    /// Keep the state. What was kept before stays when this fails.
    ///
    /// # Errors
    /// It cannot be written: no space, no permission, a file system that is read-only.
    pub fn keep(&self, state: &Remembered) -> Result<(), MemoryError> {
        self.keep_in(STATE, MAX_STATE, state)
    }

    /// What nodes share, as it was kept.
    ///
    /// # Errors
    /// As [`Memory::recall`].
    pub fn recall_shared(&self) -> Result<Recalled<RememberedKeys>, MemoryError> {
        self.recall_from(SHARED, MAX_SHARED)
    }

    /// Keep what nodes share.
    ///
    /// # Errors
    /// As [`Memory::keep`]; and when it is more than is read again.
    pub fn keep_shared(&self, keys: &RememberedKeys) -> Result<(), MemoryError> {
        self.keep_in(SHARED, MAX_SHARED, keys)
    }

    fn recall_from<T: DeserializeOwned>(&self, name: &str, max: u64) -> Result<Recalled<T>, MemoryError> {
        let Some(bytes) = self.read(name, max)? else {
            return Ok(Recalled::Nothing);
        };
        match parse(name, &bytes) {
            Ok(state) => Ok(Recalled::Known(state)),
            Err(why) => self.set_aside(name, &why).map(Recalled::SetAside),
        }
    }

    fn keep_in(&self, name: &str, max: u64, state: &impl Serialize) -> Result<(), MemoryError> {
        let json = serde_json::to_vec(state).map_err(|e| self.wrong(name, "written", e.into()))?;
        let head = format!("podwire-{name} {VERSION} {:08x} {}\n", crc32(&json), json.len());
        if (head.len() + json.len()) as u64 > max {
            let what = format!(
                "{} bytes are more than {max}, the most that is read again",
                json.len()
            );
            let source = io::Error::new(io::ErrorKind::FileTooLarge, what);
            return Err(self.wrong(name, "written", source));
        }
        self.replace(name, &[head.as_bytes(), &json])
    }

    fn read(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, MemoryError> {
        let found = open(&self.dir.join(name)).map_err(|e| self.wrong(name, "read", e))?;
        let Some(file) = found else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        // One byte more, so that a longer file is not taken for a whole one.
        let read = file.take(max + 1).read_to_end(&mut bytes);
        read.map_err(|e| self.wrong(name, "read", e))?;
        Ok(Some(bytes))
    }

    /// Replace a file by one with these parts.
    fn replace(&self, name: &str, parts: &[&[u8]]) -> Result<(), MemoryError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.and_then(|()| replace_file(&self.dir.join(name), parts, 0o600))
            .map_err(|e| self.wrong(name, "written", e))
    }

    /// Move a file out of the way, and say so.
    fn set_aside(&self, name: &str, why: &str) -> Result<String, MemoryError> {
        let (from, to) = (self.dir.join(name), self.dir.join(format!("{name}.refused")));
        fs::rename(&from, &to).map_err(|e| self.wrong(name, "set aside", e))?;
        Ok(format!(
            "{} is not used: {why} (it is at {} now)",
            from.display(),
            to.display()
        ))
    }

    fn wrong(&self, name: &str, what: &'static str, source: io::Error) -> MemoryError {
        MemoryError {
            path: self.dir.join(name),
            what,
            source,
        }
    }
}

fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, String> {
    let end = bytes.iter().take(64).position(|b| *b == b'\n');
    let (head, json) = bytes.split_at(end.ok_or("it has no first line")?);
    let json = &json[1..];
    let head = String::from_utf8_lossy(head);
    let mut words = head.split(' ');
    if words.next() != Some(&format!("podwire-{name}")) {
        return Err(format!("it is not a {name} of podwire"));
    }
    match words.next().map(str::parse::<u32>) {
        Some(Ok(VERSION)) => {}
        Some(Ok(other)) => return Err(format!("it is of version {other}, this podwire reads {VERSION}")),
        _ => return Err("it has no version".into()),
    }
    let sum = words.next().and_then(|w| u32::from_str_radix(w, 16).ok());
    let length = words.next().and_then(|w| w.parse::<usize>().ok());
    if length != Some(json.len()) {
        return Err("it is cut off or longer than it says".into());
    }
    if sum != Some(crc32(json)) {
        return Err("it is damaged: its checksum is wrong".into());
    }
    serde_json::from_slice(json).map_err(|e| format!("it does not hold what it should: {e}"))
}

/// CRC-32 as of Ethernet, gzip and PNG (reflected polynomial 0xEDB88320).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            sum >> 1 ^ (0xEDB8_8320 & (sum & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn state(revision: i64) -> Remembered {
        Remembered {
            cluster: u64::MAX,
            revision,
            config: r#"{"Network":"10.61.0.0/16"}"#.into(),
            own: Some("10.61.7.0-24".into()),
            peers: vec![("10.61.8.0-24".into(), "{}".into(), 3)],
        }
    }

    fn memory() -> (tempfile::TempDir, Memory) {
        let dir = tempfile::tempdir().unwrap();
        let memory = Memory::new(&dir.path().join("podwire/n1"));
        (dir, memory)
    }

    #[test]
    fn what_is_kept_is_recalled() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
        let (_dir, memory) = memory();
        assert_eq!(memory.recall().unwrap(), Recalled::Nothing);
        for revision in [1, 2] {
            memory.keep(&state(revision)).unwrap();
            assert_eq!(memory.recall().unwrap(), Recalled::Known(state(revision)));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&memory.dir.join(STATE)), 0o600);
        assert_eq!(mode(&memory.dir), 0o700);
        assert_eq!(fs::read_dir(&memory.dir).unwrap().count(), 1, "nothing beside it");
    }

    #[test]
    fn what_nodes_share_is_kept_beside_it() {
        let (_dir, memory) = memory();
        let keys = RememberedKeys {
            prefix: "/p/podwire/".into(),
            cluster: 9,
            revision: 5,
            keys: [("services/default/web".into(), "{}".into())].into(),
            lost: ["services/default/web".into()].into(),
        };
        assert_eq!(memory.recall_shared().unwrap(), Recalled::Nothing);
        memory.keep_shared(&keys).unwrap();
        memory.keep(&state(1)).unwrap();
        assert_eq!(memory.recall_shared().unwrap(), Recalled::Known(keys));
        let path = memory.dir.join(SHARED);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // One is not the other.
        fs::copy(memory.dir.join(STATE), &path).unwrap();
        assert!(matches!(memory.recall_shared().unwrap(), Recalled::SetAside(_)));
    }

    #[test]
    fn an_identity_stays() {
        let (_dir, memory) = memory();
        assert_eq!(memory.id().unwrap(), Recalled::Nothing);
        let (one, other) = (fresh_id().unwrap(), fresh_id().unwrap());
        assert_ne!(one, other);
        memory.keep_id(&one).unwrap();
        assert_eq!(memory.id().unwrap(), Recalled::Known(one));
        for bad in [
            "",
            "not hexadecimal",
            &other[1..],
            &format!("{other}{other}{other}"),
        ] {
            fs::write(memory.dir.join(ID), bad).unwrap();
            assert!(matches!(memory.id().unwrap(), Recalled::SetAside(_)), "{bad:?}");
            assert_eq!(memory.id().unwrap(), Recalled::Nothing);
        }
    }

    #[test]
    fn every_damage_is_noticed_and_set_aside() {
        let (_dir, memory) = memory();
        let path = memory.dir.join(STATE);
        memory.keep(&state(7)).unwrap();
        let good = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            match memory.recall().unwrap() {
                Recalled::SetAside(why) => {
                    assert!(!path.exists());
                    assert_eq!(fs::read(memory.dir.join("state.refused")).unwrap(), bytes);
                    assert_eq!(memory.recall().unwrap(), Recalled::Nothing);
                    why
                }
                other => panic!("{other:?}: {}", String::from_utf8_lossy(bytes)),
            }
        };
        for at in 0..good.len() {
            refused(&good[..at]);
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            refused(&flipped);
        }
        let text = String::from_utf8_lossy(&good).into_owned();
        let why = refused(text.replace("state 1", "state 2").as_bytes());
        assert!(
            why.contains("of version 2") && why.contains("state.refused"),
            "{why}"
        );
        refused(&[&good[..], b" "].concat());
        refused(&[b'\n'; 100]);
        let other = b"{\"cluster\":\"x\"}";
        let head = format!("podwire-state 1 {:08x} {}\n", crc32(other), other.len());
        assert!(refused(&[head.as_bytes(), other].concat()).contains("does not hold"));
    }

    #[test]
    fn a_failed_write_leaves_the_old_state() {
        let (dir, memory) = memory();
        memory.keep(&state(1)).unwrap();
        // What stands in the way of the file beside is not followed, and not removed when it is a directory.
        let beside = memory.dir.join("state.new");
        fs::create_dir(&beside).unwrap();
        let why = memory.keep(&state(2)).unwrap_err().to_string();
        assert!(
            why.contains("state cannot be written") && why.contains("--state-dir"),
            "{why}"
        );
        assert_eq!(memory.recall().unwrap(), Recalled::Known(state(1)));
        fs::remove_dir(&beside).unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &beside).unwrap();
        memory.keep(&state(2)).unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
        assert_eq!(memory.recall().unwrap(), Recalled::Known(state(2)));
        // A place that can be no directory.
        let nowhere = Memory::new(&victim.join("n1"));
        assert!(nowhere.keep(&state(1)).is_err());
    }
}
