//! Pods that come and go.

use super::Server;
use crate::api::{AttachRequest, ErrorKind, Reply, gone};
use crate::daemon::admin::{Detached, Made, Refusal, Reservation};
use crate::daemon::ipam::Lease;
use crate::daemon::records::boottime_us;
use crate::daemon::watch;
use crate::model::{Instant, PodName, TapCaps};
use mio::Token;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

impl Server<'_> {
    /// Keep name, addresses and ports of the host for a pod.
    pub(super) fn reserve(&mut self, request: AttachRequest, now: Instant) -> Result<Reservation, Refusal> {
        let reservation = self.admin.attach(request, now)?;
        let (request, plan) = (&reservation.request, &reservation.plan);
        let addresses = (plan.ip4.map(|n| n.addr()), plan.ip6.map(|n| n.addr()));
        let bound = self.bind_published(&request.pod, addresses, &request.publish, None, now);
        match bound {
            Ok(_) => Ok(reservation),
            Err(refusal) => {
                self.cancel(reservation);
                Err(refusal)
            }
        }
    }

    /// Give a reservation back.
    pub(super) fn cancel(&mut self, reservation: Reservation) {
        self.published.remove_pod(&reservation.request.pod);
        self.admin.cancel(reservation);
    }

    /// Put the TAP of a reserved pod to work.
    pub(super) fn commit(
        &mut self,
        of: Reservation,
        caps: TapCaps,
        mut fds: Vec<OwnedFd>,
        lifeline: bool,
    ) -> Result<Reply, Refusal> {
        let lifeline = if lifeline { fds.pop() } else { None };
        let mut fds = fds.into_iter();
        let (Some(tap), holder, None) = (fds.next(), fds.next(), fds.next()) else {
            self.cancel(of);
            return Err(Refusal::new(
                ErrorKind::Usage,
                "a commit comes with the TAP, a pidfd of its holder if it has one, and the lifeline if it says so",
            ));
        };
        let (pod, netns, pid) = (
            of.request.pod.clone(),
            of.request.netns.clone(),
            of.request.holder,
        );
        let since = of.since;
        let path = netns.as_deref().filter(|p| !p.starts_with("/proc"));
        // The keeper's, before the worker has it.
        let copy = match tap.try_clone() {
            Ok(copy) => copy,
            Err(e) => {
                // Out of descriptors: there is no other reason.
                log::debug!("the TAP of pod {pod} cannot be kept: {e}");
                self.cancel(of);
                return Err(self.out_of_files());
            }
        };
        // Word of a former one must not take this one away.
        if let Some(attachment) = &of.request.attachment {
            gone::forget(&self.word.socket, attachment);
        }
        let made = Made {
            tap: copy,
            caps,
            netns_id: path.and_then(|p| watch::id(p).ok()),
            since_us: boottime_us(),
        };
        let netns_id = made.netns_id;
        let info = self.admin.commit(of, made, self.now());
        let info = info.inspect_err(|_| drop(self.published.remove_pod(&pod)))?;
        if let Err(refusal) = self.open_published(&pod) {
            self.remove(&pod);
            return Err(refusal);
        }
        let took = self.now() - since;
        self.attaches.observe(took.total_micros() as f64 / 1e6);
        if let Some(lifeline) = lifeline {
            self.lifelines.insert(pod.clone(), lifeline);
        }
        let holder = holder.or_else(|| open_holder(pid, netns.as_deref()));
        if let Some(record) = self.admin.record(&pod) {
            let lifeline = self.lifelines.get(&pod).map(AsFd::as_fd);
            let process = holder.as_ref().map(AsFd::as_fd);
            self.keeping.keep(record, tap.as_fd(), process, lifeline);
        }
        drop(tap);
        self.tell_name(&pod);
        self.recorder.touch();
        if let Err(why) = self.watch_pod(&pod, holder, path.zip(netns_id)) {
            self.lose(&pod, &why);
        }
        let addresses: Vec<_> = info.addresses.iter().map(ToString::to_string).collect();
        log::info!("pod {pod} is attached with {}", addresses.join(" and "));
        Ok(Reply::Attached(Box::new(info)))
    }

    /// Remove a pod whose namespace or interface went away by itself.
    pub(super) fn lose(&mut self, pod: &PodName, why: &str) {
        if let Some(lease) = self.remove(pod) {
            let four = lease.ip4.map(|ip| ip.to_string());
            let six = lease.ip6.map(|ip| ip.to_string());
            let addresses: Vec<_> = four.into_iter().chain(six).collect();
            log::info!(
                "pod {pod} is gone: {why}; {} is free again after 60 s",
                addresses.join(" and ")
            );
        }
    }

    /// Remove a pod and have its TAP closed; its addresses, when it was there.
    pub(super) fn remove(&mut self, pod: &PodName) -> Option<Lease> {
        self.forget(pod);
        self.forget_published(pod);
        let Detached { lease, tap } = self.admin.detach(pod, self.now())?;
        self.tell_name(pod);
        self.recorder.touch();
        if tap.is_some() {
            self.closing.insert(pod.clone());
        }
        if let Some(tap) = self.keeping.forget(pod, tap) {
            self.close(pod.clone(), tap);
        }
        Some(lease)
    }

    /// Watch for a pod no longer, and let what podwire started for it end.
    pub(super) fn forget(&mut self, pod: &PodName) {
        self.netns.remove(pod);
        self.lifelines.remove(pod);
        let tokens: Vec<Token> = self
            .holders
            .iter()
            .filter(|(_, (p, _))| p == pod)
            .map(|(t, _)| *t)
            .collect();
        for token in tokens {
            if let Some((_, fd)) = self.holders.remove(&token) {
                self.unwatch(fd.as_fd());
            }
        }
    }
}

/// A pidfd of the process that holds the namespace: the one named, or the one in `/proc/PID/ns/net`.
fn open_holder(pid: Option<u32>, netns: Option<&Path>) -> Option<OwnedFd> {
    let of_path = || {
        let rest = netns?.strip_prefix("/proc").ok()?;
        rest.iter().next()?.to_str()?.parse().ok()
    };
    let pid = pid.or_else(of_path)?;
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}
