//! A folder of manifests, watched: each change of a file becomes what it states now.
//!
//! Nothing is removed without proof. A file with a mistake removes nothing: what it states rightly is taken, and what it
//! stated before stays beside it. So does all of a file that is empty or cannot be read, and of a folder that is gone; to
//! remove, delete the file, or the object of one that is right otherwise. Each complaint is logged once.

use super::manifest::{Manifest, Object, ObjectKey, Source, read};
use super::yaml::MAX_TEXT;
use crate::control::durable;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Most files of a folder that are read.
const MAX_FILES: usize = 1 << 14;
/// Most complaints of one file that are told.
const MAX_TOLD: usize = 16;
/// How often a file is read that changes meanwhile.
const TRIES: usize = 3;

/// What one source states now, each object with its document.
pub type Stated = (Source, Vec<(Object, usize)>);

/// What files state, whatever they are read from.
#[derive(Default)]
pub struct Files {
    files: BTreeMap<Source, FileState>,
}

#[derive(Default)]
struct FileState {
    stated: BTreeMap<ObjectKey, (Object, usize)>,
    complaints: Vec<String>,
}

impl Files {
    /// A file has this text now, or cannot be read for a reason; none when it is deleted. What it states now, if that is
    /// something else.
    pub fn set(&mut self, source: &Source, text: Option<Result<&str, String>>) -> Option<Stated> {
        let Some(text) = text else {
            let gone = self.files.remove(source)?;
            if !gone.stated.is_empty() {
                log::info!("{source} is gone, and what it stated");
            }
            return Some((source.clone(), Vec::new()));
        };
        let state = self.files.entry(source.clone()).or_default();
        let (manifests, complaints) = match text {
            Err(why) => (Vec::new(), vec![format!("{source}: {why}")]),
            Ok(text) if text.trim().is_empty() && !state.stated.is_empty() => (
                Vec::new(),
                vec![format!("{source} is empty (delete it to remove what it stated)")],
            ),
            Ok(text) => {
                let found = read(source, text);
                let mistakes = found.mistakes.iter().take(MAX_TOLD);
                let mut told: Vec<String> = mistakes.map(ToString::to_string).collect();
                let more = found.mistakes.len().saturating_sub(MAX_TOLD);
                if more > 0 {
                    told.push(format!(
                        "{source}: there are {more} mistakes more (correct these first)"
                    ));
                }
                (found.manifests, told)
            }
        };
        let mut stated: BTreeMap<ObjectKey, (Object, usize)> = BTreeMap::new();
        for Manifest { object, document, .. } in manifests {
            stated.insert(object.key(), (object, document));
        }
        if !complaints.is_empty() {
            for (key, old) in &state.stated {
                stated.entry(key.clone()).or_insert_with(|| old.clone());
            }
        }
        for what in complaints.iter().filter(|c| !state.complaints.contains(c)) {
            log::warn!("{what}; what was stated there before stays");
        }
        if complaints.is_empty() && !state.complaints.is_empty() {
            log::info!("{source} is in order again");
        }
        state.complaints = complaints;
        let changed = stated != state.stated;
        state.stated = stated;
        changed.then(|| (source.clone(), state.stated.values().cloned().collect()))
    }

    /// The same of a place that has one object, which has a name by its place.
    pub fn set_object(
        &mut self,
        source: &Source,
        key: &ObjectKey,
        text: Option<Result<&str, String>>,
    ) -> Option<Stated> {
        let whole = text.map(|text| {
            let text = text?;
            let found = read(source, text);
            let own = matches!(&found.manifests[..], [one] if one.object.key() == *key);
            match own || !found.mistakes.is_empty() {
                true => Ok(text),
                false => Err(format!("is not {key}, which its key says (apply it again)")),
            }
        });
        self.set(source, whole)
    }

    /// Whether there is such a file.
    pub fn has(&self, source: &Source) -> bool {
        self.files.contains_key(source)
    }

    /// What is wrong, for people.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.files.values().flat_map(|f| &f.complaints)
    }
}

/// A watched folder.
pub struct Folder {
    path: PathBuf,
    files: Files,
    inotify: Option<OwnedFd>,
    /// The watch of the folder; that of what it lies in tells when it is another.
    own: Option<i32>,
    /// How each file was when it was read; none of one that is to be read again.
    seen: HashMap<PathBuf, Option<Signature>>,
    /// Why the folder as a whole is not read.
    complaint: Option<String>,
}

/// Another one of these is another file, or another content. Whoever sets the time of a file back changes its ctime.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Signature {
    file: (u64, u64),
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Signature {
    fn of(m: &Metadata) -> Signature {
        Signature {
            file: (m.dev(), m.ino()),
            size: m.size(),
            mtime: (m.mtime(), m.mtime_nsec()),
            ctime: (m.ctime(), m.ctime_nsec()),
        }
    }
}

/// What is in a file, and its signature, which was the same before and after it was read; none when nothing is there.
/// `read` reads all of it.
///
/// # Errors
/// The kernel's; [`io::ErrorKind::ResourceBusy`] for a file that is written all the time.
fn steady<T>(path: &Path, mut read: impl FnMut(File) -> io::Result<T>) -> io::Result<Option<(Signature, T)>> {
    for _ in 0..TRIES {
        let Some(file) = durable::open(path)? else {
            return Ok(None);
        };
        let before = Signature::of(&file.metadata()?);
        let content = read(file)?;
        // Its name may be another file's meanwhile.
        match std::fs::metadata(path) {
            Ok(after) if Signature::of(&after) == before => return Ok(Some((before, content))),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Err(io::Error::new(
        io::ErrorKind::ResourceBusy,
        "is written while it is read (write it beside its place and rename it)",
    ))
}

impl Folder {
    /// Watch a folder. A folder that cannot be watched is read again on [`Folder::reload`]. Nothing is read yet.
    ///
    /// # Errors
    /// The sentence for a folder that is none: at start a person is there to put it right.
    pub fn open(path: &Path) -> Result<Folder, String> {
        if !path.is_dir() {
            return Err(format!(
                "{} is no folder (manifests of Services are read from there: make it, or name another with --services)",
                path.display()
            ));
        }
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let mut folder = Folder {
            path: path.into(),
            files: Files::default(),
            inotify: inotify::init(flags).ok(),
            own: None,
            seen: HashMap::new(),
            complaint: None,
        };
        if folder.follow().is_err() || folder.inotify.is_none() {
            log::warn!(
                "{} cannot be watched (send SIGHUP after a change)",
                path.display()
            );
        }
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor that becomes readable when [`Folder::changes`] may have news.
    pub fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inotify.as_ref().map(AsFd::as_fd)
    }

    /// Take what the watch tells, and what follows from it.
    pub fn changes(&mut self) -> Vec<Stated> {
        match self.news() {
            News::None => Vec::new(),
            // They are others, however alike they look: a clock may be too coarse to tell.
            News::Files(files) => files
                .iter()
                .filter_map(|f| {
                    self.forget(f);
                    self.look(f)
                })
                .collect(),
            News::All => self.reload(),
        }
    }

    /// Look at every file again, whatever the watch tells; those that are as they were are not read.
    pub fn reload(&mut self) -> Vec<Stated> {
        if let Err(e) = self.follow() {
            log::debug!("{} is watched in part: {e}", self.path.display());
        }
        let found = match self.list() {
            Ok(found) => found,
            Err(why) => {
                if self.complaint.as_ref() != Some(&why) {
                    log::warn!("{why}; what was stated there stays");
                    self.complaint = Some(why);
                }
                return Vec::new();
            }
        };
        if found.len() <= MAX_FILES && self.complaint.take().is_some() {
            log::info!("{} is in order again", self.path.display());
        }
        // Those that are gone make room; those that were read stay, whatever stands before them now.
        let gone: Vec<PathBuf> = self
            .seen
            .keys()
            .filter(|p| !found.contains(*p))
            .cloned()
            .collect();
        let mut changes: Vec<Stated> = gone.iter().filter_map(|p| self.drop_file(p)).collect();
        changes.extend(found.iter().filter_map(|p| self.look(p)));
        changes
    }

    /// What is wrong, for people.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let own = self
            .complaint
            .iter()
            .map(|c| format!("{c}; what was stated there before stays"));
        let of_files = self
            .files
            .problems()
            .map(|p| format!("{p}; what was stated there before stays"));
        own.chain(of_files)
    }

    fn list(&self) -> Result<BTreeSet<PathBuf>, String> {
        let failed = |e: io::Error| {
            format!(
                "{}: {e} (manifests of Services are read from there)",
                self.path.display()
            )
        };
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if is_manifest(&path) {
                found.insert(path);
            }
        }
        Ok(found)
    }

    /// The next look at a file reads it.
    fn forget(&mut self, path: &Path) {
        if let Some(seen) = self.seen.get_mut(path) {
            *seen = None;
        }
    }

    /// One file may be another.
    fn look(&mut self, path: &Path) -> Option<Stated> {
        let source = Source::File(path.into());
        let found = std::fs::metadata(path);
        match &found {
            Ok(metadata) if self.seen.get(path) == Some(&Some(Signature::of(metadata))) => return None,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.drop_file(path),
            _ => {}
        }
        if self.seen.len() >= MAX_FILES && !self.seen.contains_key(path) {
            self.complain_of_many();
            return None;
        }
        if let Err(e) = found {
            // As a link that leads in a circle: it counts, so that it is missed when it goes.
            self.seen.insert(path.into(), None);
            return self.files.set(&source, Some(Err(e.to_string())));
        }
        let read = steady(path, |file| {
            durable::read_open(file, MAX_TEXT as u64).map(String::from_utf8)
        });
        // What could not be read is looked at again whenever somebody looks.
        let signature = read.as_ref().ok().and_then(|r| r.as_ref().map(|(s, _)| *s));
        self.seen.insert(path.into(), signature);
        match read {
            Ok(Some((_, Ok(text)))) => self.files.set(&source, Some(Ok(&text))),
            Ok(Some((_, Err(_)))) => self
                .files
                .set(&source, Some(Err("is no text (write UTF-8)".into()))),
            Ok(None) => self.drop_file(path),
            Err(e) => self.files.set(&source, Some(Err(e.to_string()))),
        }
    }

    fn complain_of_many(&mut self) {
        let what = format!(
            "{} has more than {MAX_FILES} manifests: the others are not read (put several into one file)",
            self.path.display()
        );
        if self.complaint.as_ref() != Some(&what) {
            log::warn!("{what}");
            self.complaint = Some(what);
        }
    }

    fn drop_file(&mut self, path: &Path) -> Option<Stated> {
        self.seen.remove(path);
        self.files.set(&Source::File(path.into()), None)
    }

    /// Watch the folder, and what it lies in.
    fn follow(&mut self) -> io::Result<()> {
        let Some(inotify) = &self.inotify else {
            return Ok(());
        };
        let names = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::MOVED_TO;
        let own = names | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let above = self.path.parent().filter(|p| !p.as_os_str().is_empty());
        inotify::add_watch(
            inotify,
            above.unwrap_or(Path::new(".")),
            names | WatchFlags::ONLYDIR,
        )?;
        // Last: where both are one folder this is what counts.
        self.own = Some(inotify::add_watch(
            inotify,
            &self.path,
            own | WatchFlags::ONLYDIR,
        )?);
        Ok(())
    }

    fn news(&mut self) -> News {
        let Some(inotify) = &self.inotify else {
            return News::None;
        };
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(inotify, &mut space);
        let (mut files, mut all, mut any) = (BTreeSet::new(), false, false);
        loop {
            match reader.next() {
                Ok(event) => {
                    let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()));
                    let own = Some(event.wd()) == self.own;
                    match (name, own) {
                        _ if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => all = true,
                        (Some(name), true) if is_manifest(Path::new(name)) => {
                            let path = self.path.join(name);
                            // A created plain file is empty still: its closing tells. A link is complete at once.
                            let created = event.events().contains(ReadFlags::CREATE);
                            if !created || path.is_symlink() {
                                files.insert(path);
                                any = true;
                            }
                        }
                        // Kubernetes turns a link beside its files (`..data`); others' files are none of ours.
                        (Some(name), true) => all |= name.as_bytes().starts_with(b".."),
                        (Some(name), false) => all |= self.path.file_name() == Some(name),
                        (None, _) => all = true,
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        match (all, any) {
            (true, _) => News::All,
            (false, true) => News::Files(files),
            (false, false) => News::None,
        }
    }
}

enum News {
    None,
    Files(BTreeSet<PathBuf>),
    All,
}

/// Whether it is named as a manifest: `*.yaml`, `*.yml` or `*.json`, and not hidden.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|n| n.as_bytes().starts_with(b"."));
    let ending = path.extension().and_then(OsStr::to_str);
    !hidden && matches!(ending, Some("yaml" | "yml" | "json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn service(name: &str, port: u16) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
        )
    }

    /// Names and ports of what a source states.
    fn said(stated: &[Stated]) -> Vec<(String, Vec<(String, u16)>)> {
        let one = |(o, _): &(Object, usize)| match o {
            Object::Service(s) => (s.name.name.clone(), s.ports[0].port),
            Object::Slice(s) => (s.name.clone(), 0),
        };
        let file = |s: &Source| s.to_string().rsplit('/').next().unwrap().to_string();
        stated
            .iter()
            .map(|(s, all)| (file(s), all.iter().map(one).collect()))
            .collect()
    }

    fn is(file: &str, all: &[(&str, u16)]) -> Vec<(String, Vec<(String, u16)>)> {
        vec![(file.into(), all.iter().map(|(n, p)| ((*n).into(), *p)).collect())]
    }

    #[test]
    fn a_file_nobody_can_look_at_is_missed_when_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let circle = dir.path().join("a.yaml");
        std::os::unix::fs::symlink("a.yaml", &circle).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        let _ = folder.reload();
        assert_eq!(folder.problems().count(), 1);
        fs::remove_file(&circle).unwrap();
        // As where the watch was lost.
        let _ = folder.reload();
        assert_eq!(folder.problems().count(), 0);
    }

    #[test]
    fn every_way_to_change_a_folder_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join("svc").join(n);
        fs::create_dir(dir.path().join("svc")).unwrap();
        fs::write(at("a.yaml"), service("a", 1) + &service("b", 2)).unwrap();
        fs::write(at("notes.txt"), "no manifest").unwrap();
        let mut folder = Folder::open(&dir.path().join("svc")).unwrap();
        assert_eq!(said(&folder.reload()), is("a.yaml", &[("a", 1), ("b", 2)]));
        assert!(folder.changes().is_empty() && folder.reload().is_empty());

        fs::write(at("a.yaml"), service("a", 3)).unwrap();
        assert_eq!(said(&folder.changes()), is("a.yaml", &[("a", 3)]));
        fs::write(at(".tmp"), service("c", 4)).unwrap();
        assert!(folder.changes().is_empty(), "a file beside it");
        fs::rename(at(".tmp"), at("c.yml")).unwrap();
        assert_eq!(said(&folder.changes()), is("c.yml", &[("c", 4)]));
        fs::remove_file(at("c.yml")).unwrap();
        assert_eq!(said(&folder.changes()), is("c.yml", &[]));
        // As Kubernetes has it: files are links into a folder, which is a link that is turned.
        for (n, port) in [("..1", 5), ("..2", 6)] {
            fs::create_dir(at(n)).unwrap();
            fs::write(at(n).join("d.json"), service("d", port)).unwrap();
        }
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/d.json", at("d.json")).unwrap();
        assert_eq!(said(&folder.changes()), is("d.json", &[("d", 5)]));
        std::os::unix::fs::symlink("..2", at("..new")).unwrap();
        fs::rename(at("..new"), at("..data")).unwrap();
        assert_eq!(said(&folder.changes()), is("d.json", &[("d", 6)]));
        // The whole folder is another.
        fs::rename(dir.path().join("svc"), dir.path().join("old")).unwrap();
        assert!(folder.changes().is_empty(), "what is gone proves nothing");
        assert_eq!(folder.problems().count(), 1);
        fs::create_dir(dir.path().join("svc")).unwrap();
        fs::write(at("e.yaml"), service("e", 7)).unwrap();
        let changes = said(&folder.changes());
        assert_eq!(changes.len(), 3, "{changes:?}");
        assert_eq!(folder.problems().count(), 0);
        fs::write(at("e.yaml"), service("e", 8)).unwrap();
        assert_eq!(
            said(&folder.changes()),
            is("e.yaml", &[("e", 8)]),
            "it is watched"
        );
    }

    #[test]
    fn a_file_with_the_time_and_length_of_another_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, service("a", 1)).unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        assert_eq!(said(&folder.reload()), is("a.yaml", &[("a", 1)]));
        let then = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, service("a", 2)).unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(then)
            .unwrap();
        assert_eq!(said(&folder.reload()), is("a.yaml", &[("a", 2)]));
    }

    #[test]
    fn a_file_that_is_written_meanwhile_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.yaml");
        fs::write(&path, "one").unwrap();
        let mut times = 0;
        let mut read_then = |change: &dyn Fn(i32)| {
            times = 0;
            steady(&path, |file| {
                let text = io::read_to_string(file)?;
                times += 1;
                change(times);
                Ok(text)
            })
            .map(|read| read.map(|(_, text)| text))
        };
        let once = |n| {
            if n == 1 {
                fs::write(&path, "two").unwrap();
            }
        };
        assert_eq!(read_then(&once).unwrap().unwrap(), "two");
        let renamed = |n| {
            if n == 1 {
                fs::write(dir.path().join("new"), "six").unwrap();
                fs::rename(dir.path().join("new"), &path).unwrap();
            }
        };
        assert_eq!(read_then(&renamed).unwrap().unwrap(), "six");
        let always = |n| fs::write(&path, format!("{n}")).unwrap();
        let told = read_then(&always).unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::ResourceBusy);
        assert!(read_then(&|_| drop(fs::remove_file(&path))).unwrap().is_none());
    }

    #[test]
    fn mistakes_beyond_the_first_are_counted() {
        let mut files = Files::default();
        let source = Source::File("x.yaml".into());
        let bad = service("a", 0).repeat(MAX_TOLD + 3);
        files.set(&source, Some(Ok(&bad)));
        let last = files.problems().last().unwrap();
        assert!(last.contains("there are 3 mistakes more"), "{last}");
    }

    #[test]
    fn what_is_no_proof_removes_nothing() {
        let mut files = Files::default();
        let source = Source::File("x.yaml".into());
        let both = service("a", 1) + &service("b", 2);
        files.set(&source, Some(Ok(&both))).unwrap();
        let half = &both[..both.len() - 30];
        for bad in ["", "  \n", "a: [", half, "kind: Service\napiVersion: v1\n"] {
            assert_eq!(files.set(&source, Some(Ok(bad))), None, "{bad:?}");
            assert!(files.problems().count() > 0, "{bad:?}");
        }
        assert_eq!(files.set(&source, Some(Err("Permission denied".into()))), None);
        // What is right counts beside what is not.
        let mixed = service("a", 9)
            + "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {ports: [{port: 0}]}\n";
        let stated = files.set(&source, Some(Ok(&mixed))).unwrap();
        assert_eq!(said(&[stated]), is("x.yaml", &[("a", 9), ("b", 2)]));
        let stated = files.set(&source, Some(Ok(&service("b", 3)))).unwrap();
        assert_eq!(said(&[stated]), is("x.yaml", &[("b", 3)]));
        assert_eq!(files.problems().count(), 0);
        assert!(files.set(&source, None).is_some());
        assert!(files.set(&source, None).is_none());
    }
}
