//! What a container is called as a pod.

use super::args::Args;
use super::call::wrong;
use super::error::CniError;
use crate::model::PodName;

/// Longest part of a pod's name.
const LONGEST: usize = 63;
/// How much of an identifier people are shown by runtimes.
const SHORT: usize = 12;

/// The names a container may have, best first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Names {
    /// The best.
    pub first: PodName,
    /// When another container has that; none when that was somebody's choice.
    pub second: Option<PodName>,
}

impl Names {
    /// Of a container: what Kubernetes' arguments say, or its identifier. `namespace` is the configuration's.
    ///
    /// # Errors
    /// Code 4 for a name that is none.
    pub fn of(args: &Args, container: &str, namespace: &str) -> Result<Names, CniError> {
        let namespace = args.namespace.as_deref().unwrap_or(namespace);
        let name = |key: &str, name: &str| -> Result<PodName, CniError> {
            let parsed = format!("{namespace}/{name}").parse();
            parsed.map_err(|_| {
                let what = "a pod's name and namespace have letters, digits, '-', '_' and '.', and begin with one of \
                            the former two";
                wrong(key, &format!("{namespace}/{name}"), what)
            })
        };
        if let Some(given) = &args.name {
            return Ok(Names {
                first: name("K8S_POD_NAME", &fit(given, 0))?,
                second: None,
            });
        }
        let key = "CNI_CONTAINERID";
        let hex = container.len() == 64 && container.bytes().all(|b| b.is_ascii_hexdigit());
        let (short, whole) = (container.get(..SHORT), container.get(..LONGEST));
        match (short.filter(|_| hex), whole) {
            (Some(short), Some(whole)) => Ok(Names {
                first: name(key, short)?,
                second: Some(name(key, whole)?),
            }),
            _ => Ok(Names {
                first: name(key, &fit(container, 0))?,
                second: None,
            }),
        }
    }
}

/// The name of another interface of a pod.
pub fn of_interface(pod: &PodName, ifname: &str) -> PodName {
    PodName {
        namespace: pod.namespace.clone(),
        name: format!("{}-{ifname}", fit(&pod.name, ifname.len() + 1)),
    }
}

/// As much of a name as there is room for when so many characters follow; what is cut off leaves a hash of the whole.
fn fit(name: &str, follow: usize) -> String {
    let room = LONGEST.saturating_sub(follow);
    if name.len() <= room {
        return name.into();
    }
    // FNV-1a: the same on every machine.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, b| {
        (hash ^ u32::from(b)).wrapping_mul(0x0100_0193)
    });
    let front: String = name.chars().take(room.saturating_sub(9)).collect();
    format!("{front}-{hash:08x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(args: &str, container: &str) -> Names {
        Names::of(&Args::read(args).unwrap(), container, "default").unwrap()
    }

    #[test]
    fn names_come_from_kubernetes_or_the_identifier() {
        let names = of("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0", "abc");
        assert_eq!(
            (names.first.to_string().as_str(), names.second),
            ("shop/db-0", None)
        );
        // As podman has it.
        assert_eq!(of("K8S_POD_NAME=web", "abc").first.to_string(), "default/web");
        assert_eq!(of("", "abc").first.to_string(), "default/abc");
        let hex = "0123456789abcdef".repeat(4);
        let names = of("", &hex);
        assert_eq!(names.first.to_string(), "default/0123456789ab");
        assert_eq!(names.second.unwrap().name, hex[..63]);
        assert!(Names::of(&Args::read("K8S_POD_NAME=a/b").unwrap(), "c", "default").is_err());
    }

    #[test]
    fn long_names_stay_apart() {
        let (a, b) = ("a".repeat(100), "a".repeat(99) + "b");
        let (a, b) = (of("", &a).first, of("", &b).first);
        assert_ne!(a, b);
        assert_eq!(a.name.len(), 63);
        let second = of_interface(&a, "eth1");
        assert_eq!(second.name.len(), 63);
        assert!(second.name.ends_with("-eth1"));
        assert!(second.to_string().parse::<PodName>().is_ok());
        let web: PodName = "web".parse().unwrap();
        assert_eq!(of_interface(&web, "eth1").to_string(), "default/web-eth1");
    }

    proptest::proptest! {
        #[test]
        fn every_container_has_a_name(container in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", ifname in "[a-z0-9]{1,15}") {
            let names = Names::of(&Args::default(), &container, "default").unwrap();
            for name in [Some(names.first), names.second].into_iter().flatten() {
                proptest::prop_assert_eq!(&name.to_string().parse::<PodName>().unwrap(), &name);
                let other = of_interface(&name, &ifname);
                proptest::prop_assert_eq!(&other.to_string().parse::<PodName>().unwrap(), &other);
            }
        }
    }
}
