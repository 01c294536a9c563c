//! Attachments that ended while their node did not answer: a file for each in `NODE.gone` beside the admin socket, which
//! the node heeds and removes, at its start and every few seconds. They last as long as what keeps pods meanwhile, whose socket is there too.

use super::place::{claim, ours_alone};
use crate::model::{Attachment, MAX_IDENTIFIER};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest file that is read: three names of [`MAX_IDENTIFIER`] bytes, and what is between them.
const MAX_FILE: u64 = 4096;
/// What a file says: of an attachment what tells which one it is. What a later podwire says beside that is passed over.
#[derive(Serialize, Deserialize)]
struct Word {
    network: String,
    container: String,
    ifname: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<(u64, u64)>,
}

impl Word {
    fn of(attachment: &Attachment) -> Word {
        Word {
            network: attachment.network.clone(),
            container: attachment.container.clone(),
            ifname: attachment.ifname.clone(),
            namespace: attachment.namespace,
        }
    }

    fn meaning(self) -> Attachment {
        Attachment {
            network: self.network,
            container: self.container,
            ifname: self.ifname,
            namespace: self.namespace,
            mounts: None,
            uid: None,
        }
    }
}

/// Most files that are read: no node has more pods.
const MAX_FILES: usize = 1 << 16;
/// Age of a file in the making that nobody makes any more.
const ABANDONED: Duration = Duration::from_secs(60);

/// The directory of the node whose admin socket is at `socket`.
pub fn directory(socket: &Path) -> PathBuf {
    socket.with_extension("gone")
}

/// Leave word that an attachment is gone. When this returns it survives a crash of the machine, as far as the directory
/// does.
///
/// # Errors
/// When the directory cannot be made, or is not this user's alone; or what the disk says.
pub fn leave(socket: &Path, attachment: &Attachment) -> io::Result<PathBuf> {
    let dir = directory(socket);
    claim(&dir)?;
    let name = file_name(attachment, attachment.namespace);
    let path = dir.join(&name);
    // The node passes over it until it has its name.
    let beside = dir.join(format!(".{}.{name}", std::process::id()));
    // A process that had this number may have left one behind.
    let _ = fs::remove_file(&beside);
    let write = || {
        let mut options = OpenOptions::new();
        let options = options
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(&beside)?;
        file.write_all(&serde_json::to_vec(&Word::of(attachment))?)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(&dir)?.sync_all()
    };
    write().inspect_err(|_| drop(fs::remove_file(&beside)))?;
    Ok(path)
}

/// Take word back: the node knows.
pub fn take_back(path: &Path) {
    // It may have been heeded meanwhile.
    let _ = fs::remove_file(path);
}

/// Take back what is left about an attachment, for it is carried out, or there is a new one. What is left about its names in
/// another namespace does not mean it.
pub fn forget(socket: &Path, attachment: &Attachment) {
    let dir = directory(socket);
    if ours_alone(&dir).is_ok() {
        take_back(&dir.join(file_name(attachment, None)));
        take_back(&dir.join(file_name(attachment, attachment.namespace)));
    }
}

/// What is left for the node at `socket`, with the files; none of an attachment where a file says nothing.
///
/// # Errors
/// When the directory is not this user's alone, or cannot be read. That it is not there is none.
pub fn all(socket: &Path) -> io::Result<Vec<(PathBuf, Option<Attachment>)>> {
    let dir = directory(socket);
    match ours_alone(&dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    }
    let entries = fs::read_dir(&dir)?.flatten().take(MAX_FILES);
    Ok(entries
        .filter(|entry| !is_in_the_making(entry))
        .map(|entry| {
            let path = entry.path();
            let attachment = read(&path);
            (path, attachment)
        })
        .collect())
}

/// Whether another process is writing it.
fn is_in_the_making(entry: &fs::DirEntry) -> bool {
    let written = entry.metadata().and_then(|m| m.modified()).ok();
    let age = written.and_then(|w| w.elapsed().ok()).unwrap_or_default();
    entry.file_name().as_encoded_bytes().starts_with(b".") && age < ABANDONED
}

fn read(path: &Path) -> Option<Attachment> {
    let meta = fs::symlink_metadata(path).ok()?;
    let mut bytes = Vec::new();
    let mut options = OpenOptions::new();
    let options = options
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = meta.is_file().then(|| options.open(path).ok()).flatten()?;
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    let word: Word = serde_json::from_slice(&bytes).ok()?;
    Some(word.meaning()).filter(Attachment::is_valid)
}

/// One name for each attachment and namespace: 255 bytes at most, whatever its names are, and with a dot and a process before it.
fn file_name(attachment: &Attachment, namespace: Option<(u64, u64)>) -> String {
    let network: String = attachment.network.chars().take(80).collect();
    let container: String = attachment.container.chars().take(MAX_IDENTIFIER).collect();
    let ifname = attachment.ifname.replace('/', "_");
    let namespace = namespace.map(|(_, inode)| format!("@{inode:x}"));
    format!("{network}@{container}@{ifname}{}", namespace.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_is_left_is_found_and_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("n1.sock");
        assert!(all(&socket).unwrap().is_empty());
        let attachment = Attachment {
            network: "n".repeat(MAX_IDENTIFIER),
            container: "c".repeat(MAX_IDENTIFIER),
            ifname: "e".repeat(15),
            namespace: Some((4, u64::MAX)),
            mounts: None,
            uid: None,
        };
        // Who attached it, and whose pod it is, is not said.
        let again = Attachment {
            mounts: Some(7),
            uid: Some("u".into()),
            ..attachment.clone()
        };
        let path = leave(&socket, &attachment).unwrap();
        assert_eq!(leave(&socket, &attachment).unwrap(), path, "once is enough");
        fs::write(directory(&socket).join("rubbish"), "rubbish").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory(&socket).join("link")).unwrap();
        let mut found = all(&socket).unwrap();
        found.sort_by_key(|(_, a)| a.is_none());
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], (path.clone(), Some(attachment)));
        assert!(found[1].1.is_none() && found[2].1.is_none());
        take_back(&path);
        take_back(&path);
        let said = leave(&socket, &again).unwrap();
        let said: serde_json::Value = serde_json::from_slice(&fs::read(said).unwrap()).unwrap();
        let keys: Vec<&String> = said.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["container", "ifname", "namespace", "network"]);
        // Of its former self, or of any.
        let former = Attachment {
            namespace: Some((4, 1)),
            ..again.clone()
        };
        let any = Attachment {
            namespace: None,
            ..again.clone()
        };
        let former = leave(&socket, &former).unwrap();
        leave(&socket, &any).unwrap();
        forget(&socket, &again);
        assert!(former.exists(), "that does not mean it");
        take_back(&former);
        forget(&socket, &again);
        assert_eq!(all(&socket).unwrap().len(), 2);
        fs::write(directory(&socket).join(".7.cbr0@c@eth0"), "{").unwrap();
        assert_eq!(all(&socket).unwrap().len(), 2, "somebody writes it");
        // Anybody could end pods there.
        fs::set_permissions(directory(&socket), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(all(&socket).is_err());
    }
}
