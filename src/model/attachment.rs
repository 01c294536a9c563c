//! What a container runtime calls an interface of a container (CNI: network, container, interface).

use super::PodName;
use serde::{Deserialize, Serialize};

/// Longest identifier of a container, and longest name of a network: a file is named after them.
pub const MAX_IDENTIFIER: usize = 128;

/// An interface of a container on a network, by the three names that a runtime has for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The container's identifier.
    pub container: String,
    /// The interface's name.
    pub ifname: String,
    /// Device and inode of the container's network namespace, as who attached it saw them: the node may see no file
    /// there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<(u64, u64)>,
    /// Inode of the mount namespace of who attached it: only there the path of the container's namespace means what it meant
    /// then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mounts: Option<u64>,
    /// Which of the pods that have had this name it is (`metadata.uid`), where Kubernetes runs it: the same in every
    /// sandbox that it gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

impl Attachment {
    /// Whether both are the same interface, whatever namespace it is in.
    pub fn is(&self, other: &Attachment) -> bool {
        self.network == other.network && self.container == other.container && self.ifname == other.ifname
    }

    /// Whether this means `other`: the same interface, and the same namespace as far as both say one. A container that is
    /// attached anew has another one, and who still means the former one does not mean it.
    pub fn means(&self, other: &Attachment) -> bool {
        let contradicts = |(a, b)| a != b;
        self.is(other) && !self.namespace.zip(other.namespace).is_some_and(contradicts)
    }

    /// Whether the other one is of the same pod in a sandbox before this one. A pod has one at a time, so that whoever made
    /// this one has no other any more, even when nobody said so.
    pub fn is_after(&self, other: &Attachment) -> bool {
        self.uid.is_some()
            && self.uid == other.uid
            && self.network == other.network
            && self.ifname == other.ifname
            && self.container != other.container
    }

    /// Whether its names are what a runtime may give.
    pub fn is_valid(&self) -> bool {
        is_identifier(&self.network)
            && is_identifier(&self.container)
            && (1..=15).contains(&self.ifname.len())
            && self.uid.as_deref().is_none_or(is_identifier)
    }
}

/// Whether `s` can name a network or a container: a letter or digit, then also `_`, `.` and `-` (CNI 1.1, section 2).
pub fn is_identifier(s: &str) -> bool {
    (1..=MAX_IDENTIFIER).contains(&s.len())
        && s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && s.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Whether `s` can be another name of a pod: one label of a DNS name, as programs of containers have them.
pub fn is_alias(s: &str) -> bool {
    (1..=63).contains(&s.len())
        && s.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b))
}

/// Which attachments are asked for: those that are all that is given.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttachmentFilter {
    /// Of this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Of this container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// Interfaces of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ifname: Option<String>,
    /// The pod of this name, also one that no runtime attached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodName>,
}

impl AttachmentFilter {
    /// Whether a pod is among them.
    pub fn takes(&self, pod: &PodName, attachment: Option<&Attachment>) -> bool {
        if self.pod.as_ref().is_some_and(|p| p != pod) {
            return false;
        }
        let Some(a) = attachment else {
            return self.pod.is_some()
                && self.network.is_none()
                && self.container.is_none()
                && self.ifname.is_none();
        };
        let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|w| w == is);
        fits(&self.network, &a.network)
            && fits(&self.container, &a.container)
            && fits(&self.ifname, &a.ifname)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(network: &str, container: &str, ifname: &str) -> Attachment {
        Attachment {
            network: network.into(),
            container: container.into(),
            ifname: ifname.into(),
            namespace: None,
            mounts: None,
            uid: None,
        }
    }

    #[test]
    fn a_namespace_tells_an_interface_from_its_former_self() {
        let unnamed = attachment("net", "abc", "eth0");
        let of = |inode| Attachment {
            namespace: Some((4, inode)),
            ..unnamed.clone()
        };
        assert!(unnamed.means(&of(1)) && of(1).means(&unnamed));
        assert!(of(1).means(&of(1)) && !of(1).means(&of(2)));
        assert!(of(1).is(&of(2)));
        assert!(!of(1).means(&attachment("net", "abd", "eth0")));
    }

    #[test]
    fn a_pod_has_one_sandbox_at_a_time() {
        let of = |uid: Option<&str>, container: &str, ifname: &str| Attachment {
            uid: uid.map(Into::into),
            ..attachment("net", container, ifname)
        };
        let new = of(Some("u"), "new", "eth0");
        assert!(new.is_after(&of(Some("u"), "old", "eth0")));
        assert!(!new.is_after(&new));
        assert!(!new.is_after(&of(Some("u"), "old", "net1")));
        assert!(
            !new.is_after(&of(Some("v"), "old", "eth0")),
            "another pod of that name"
        );
        assert!(!of(None, "new", "eth0").is_after(&of(None, "old", "eth0")));
    }

    #[test]
    fn filters_take_what_fits_all_they_name() {
        let pod: PodName = "web".parse().unwrap();
        let a = attachment("net", "abc", "eth0");
        let of = |network: Option<&str>, container: Option<&str>, name: Option<&str>| AttachmentFilter {
            network: network.map(Into::into),
            container: container.map(Into::into),
            ifname: None,
            pod: name.map(|n| n.parse().unwrap()),
        };
        assert!(of(None, None, None).takes(&pod, Some(&a)));
        assert!(of(Some("net"), Some("abc"), None).takes(&pod, Some(&a)));
        assert!(!of(Some("net"), Some("abd"), None).takes(&pod, Some(&a)));
        assert!(!of(None, None, Some("db")).takes(&pod, Some(&a)));
        // A pod that no runtime attached is told only to who names it.
        assert!(!of(None, None, None).takes(&pod, None));
        assert!(of(None, None, Some("web")).takes(&pod, None));
        assert!(!of(Some("net"), None, Some("web")).takes(&pod, None));
    }

    #[test]
    fn names_are_checked() {
        assert!(attachment("cbr0", "0123abc", "eth0").is_valid());
        let long = "a".repeat(MAX_IDENTIFIER + 1);
        for bad in ["", "-a", "a/b", "..", "a b", &long] {
            assert!(!attachment("cbr0", bad, "eth0").is_valid(), "{bad}");
            assert!(!attachment(bad, "abc", "eth0").is_valid(), "{bad}");
        }
    }
}
