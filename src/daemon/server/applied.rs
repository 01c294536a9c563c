//! What people apply and delete of Services: kept by the store where there is one, otherwise as files of the node's own
//! folder; all objects of a manifest, or none.

use super::Server;
use super::services::no_service;
use crate::api::{AppliedObject, ErrorKind, Reply};
use crate::control::durable::{FileChange, change_files};
use crate::control::etcd::{MAX_KEYS, Order};
use crate::control::services::Taken;
use crate::control::services::folder::Folder;
use crate::control::services::manifest::{self, Manifest, Object, ObjectKey, Source};
use crate::control::services::shared::{MAX_VALUE, SharedKey};
use crate::daemon::admin::Refusal;
use crate::model::ServiceName;
use mio::Token;

impl Server<'_> {
    /// Keep the objects of a manifest, and have them hold at once. None when the store is asked, which answers `from`.
    pub(super) fn apply(&mut self, from: Token, text: &str) -> Result<Option<Reply>, Refusal> {
        let mut read = manifest::read(&Source::Given, text);
        if !read.mistakes.is_empty() {
            let told: Vec<String> = read.mistakes.iter().map(ToString::to_string).collect();
            return Err(Refusal::new(ErrorKind::Usage, told.join("\n")));
        }
        if read.manifests.is_empty() {
            let what = "the manifest is empty (write a Service, or an EndpointSlice)";
            return Err(Refusal::new(ErrorKind::Usage, what));
        }
        // Kept with its addresses, so that they are the Service's whatever comes after it.
        let mut taken = Taken::default();
        for manifest in &mut read.manifests {
            if let Object::Service(service) = &manifest.object {
                let pins = self.services.catalogue.pins(service, &mut taken);
                manifest.pin(&pins);
            }
        }
        if self.shared().is_some() {
            let one = |m: &Manifest| (m.object.key(), Some(m.json.to_string().into_bytes()));
            let keys = read.manifests.iter().map(one).collect();
            return self.order(from, keys, Vec::new()).map(|()| None);
        }
        let objects = self.keep(&read.manifests)?;
        self.reopen_own();
        let of = |m: &Manifest| match &m.object {
            Object::Service(s) => s.name.clone(),
            Object::Slice(s) => s.service.clone(),
        };
        let mut services: Vec<ServiceName> = read.manifests.iter().map(of).collect();
        services.sort();
        services.dedup();
        let infos = services
            .iter()
            .filter_map(|name| self.services.catalogue.describe(name));
        let problems = infos.flat_map(|info| {
            let name = info.name.clone();
            info.problems
                .into_iter()
                .map(move |p| format!("Service {name}: {p}"))
        });
        Ok(Some(Reply::Applied {
            objects,
            problems: problems.collect(),
        }))
    }

    /// Have the store keep these objects, or delete them, all or none. `notes` are told with what was done.
    fn order(
        &mut self,
        from: Token,
        objects: Vec<(ObjectKey, Option<Vec<u8>>)>,
        notes: Vec<String>,
    ) -> Result<(), Refusal> {
        let usage = |what: String| Err(Refusal::new(ErrorKind::Usage, what));
        if objects.len() > MAX_KEYS {
            return usage(format!(
                "{} objects are too many at once (split them: {MAX_KEYS} at most)",
                objects.len()
            ));
        }
        let long = objects
            .iter()
            .find(|(_, v)| v.as_ref().is_some_and(|v| v.len() > MAX_VALUE));
        if let Some((key, _)) = long {
            return usage(format!(
                "{key} is too long for etcd (leave annotations out: {} KiB at most)",
                MAX_VALUE >> 10
            ));
        }
        let mut done = Vec::new();
        let mut keys = Vec::new();
        for (key, value) in objects {
            let path = SharedKey::Object(key.clone()).path();
            let there = self.services.stored.has(&Source::Store(path.clone()));
            done.push(AppliedObject {
                object: key.to_string(),
                done: match (&value, there) {
                    (None, _) => "deleted",
                    (Some(_), true) => "changed",
                    (Some(_), false) => "created",
                }
                .into(),
                place: format!("etcd:{path}"),
            });
            keys.push((path, value));
        }
        self.services.last_order += 1;
        let id = self.services.last_order;
        let Some(shared) = self.shared() else {
            return Err(Refusal::new(ErrorKind::Internal, "this node has no store"));
        };
        shared
            .order(Order { id, keys })
            .map_err(|e| Refusal::new(ErrorKind::Waiting, e))?;
        self.services.waiting.insert(id, (from, done, notes));
        Ok(())
    }

    /// Write objects into the node's own folder, all or none; what is different.
    fn keep(&self, manifests: &[Manifest]) -> Result<Vec<AppliedObject>, Refusal> {
        let (mut objects, mut files) = (Vec::new(), Vec::<FileChange>::new());
        for manifest in manifests {
            let key = manifest.object.key();
            let place = self.services.own.join(file_name(&key));
            let mut text = serde_json::to_string_pretty(&manifest.json).unwrap_or_default();
            text.push('\n');
            let done = match std::fs::read_to_string(&place).ok() {
                Some(before) if before == text => "unchanged",
                Some(_) => "changed",
                None => "created",
            };
            objects.push(AppliedObject {
                object: key.to_string(),
                done: done.into(),
                place: place.display().to_string(),
            });
            if done != "unchanged" {
                files.push((place, Some(text.into_bytes())));
            }
        }
        change_files(&files, 0o600).map_err(disk)?;
        Ok(objects)
    }

    /// Look into the node's own folder, which may be new.
    fn reopen_own(&mut self) {
        if self.services.folders[1].is_none() {
            match Folder::open(&self.services.own) {
                Ok(folder) => self.take_folder(1, Some(folder)),
                Err(e) => log::error!("what was applied holds after the next start only: {e}"),
            }
        }
        self.reload_services();
    }

    /// Delete a Service that was applied, with the slices about it; what stands elsewhere is told.
    pub(super) fn delete_service(
        &mut self,
        from: Token,
        name: &ServiceName,
    ) -> Result<Option<Reply>, Refusal> {
        let places = self.services.catalogue.places(name);
        if places.is_empty() {
            return Err(no_service(name));
        }
        let (stored, files): (Vec<_>, Vec<_>) = places
            .into_iter()
            .partition(|(source, _)| matches!(source, Source::Store(_)));
        let is_own = |source: &Source| matches!(source, Source::File(path) if path.parent() == Some(&self.services.own));
        if !stored.is_empty() {
            let keys = stored.into_iter().map(|(_, key)| (key, None)).collect();
            let note = |(source, key): &(Source, ObjectKey)| {
                let how = if is_own(source) {
                    "delete the Service once more"
                } else {
                    "delete it there"
                };
                format!("{key} stands in {source}: that stays, and is in force now ({how})")
            };
            let notes = files.iter().map(note).collect();
            return self.order(from, keys, notes).map(|()| None);
        }
        let (ours, others): (Vec<_>, Vec<_>) = files.into_iter().partition(|(source, _)| is_own(source));
        let kept = others
            .iter()
            .map(|(source, key)| format!("{key} stands in {source}"));
        let kept: Vec<String> = kept.collect();
        if ours.is_empty() {
            let what = format!("{} (delete it there)", kept.join(", "));
            return Err(Refusal::new(ErrorKind::Taken, what));
        }
        let (mut objects, mut gone) = (Vec::new(), Vec::<FileChange>::new());
        for (source, key) in ours {
            let Source::File(path) = source else { continue };
            objects.push(AppliedObject {
                object: key.to_string(),
                done: "deleted".into(),
                place: path.display().to_string(),
            });
            gone.push((path, None));
        }
        change_files(&gone, 0o600).map_err(disk)?;
        self.reload_services();
        let problems = kept
            .into_iter()
            .map(|k| format!("{k}: that stays (delete it there)"));
        Ok(Some(Reply::Applied {
            objects,
            problems: problems.collect(),
        }))
    }
}

fn disk((place, e): (std::path::PathBuf, std::io::Error)) -> Refusal {
    let what = format!("{}: {e} (see --state-dir of the node)", place.display());
    Refusal::new(ErrorKind::Internal, what)
}

/// The name of an object's file; names of objects have no slashes.
fn file_name(key: &ObjectKey) -> String {
    match key {
        ObjectKey::Service(name) => format!("service.{}.{}.json", name.namespace, name.name),
        ObjectKey::Slice(namespace, name) => format!("endpointslice.{namespace}.{name}.json"),
    }
}
