//! What the environment says: the verb, and which interface of which container is meant (CNI 1.1, section 2).

use super::args::Args;
use super::error::{CniError, Code};
use crate::model::{MAX_IDENTIFIER, is_identifier};
use std::ffi::OsString;
use std::path::PathBuf;

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// Detach it.
    Del,
    /// See whether it is as it was attached.
    Check,
    /// Free what is not listed.
    Gc,
    /// Tell whether a container could be attached.
    Status,
    /// Tell the versions.
    Version,
}

/// A call of the plugin.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Call {
    /// The verb.
    pub verb: Verb,
    /// `CNI_CONTAINERID`; empty where the verb does without.
    pub container: String,
    /// `CNI_NETNS`.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`; empty where the verb does without.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: Args,
}

impl Call {
    /// Read the environment, which `get` knows.
    ///
    /// # Errors
    /// Code 4: all that is missing, or the first that is wrong.
    pub fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Call, CniError> {
        let text = |name: &str| -> Result<String, CniError> {
            let value = get(name).unwrap_or_default();
            let lossy = value.to_string_lossy().into_owned();
            value
                .into_string()
                .map_err(|_| wrong(name, &lossy, "it is no UTF-8"))
        };
        let verb = match text("CNI_COMMAND")?.as_str() {
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            "" => return Err(missing(&["CNI_COMMAND"])),
            other => {
                let what = "use ADD, DEL, CHECK, GC, STATUS or VERSION";
                return Err(wrong("CNI_COMMAND", other, what));
            }
        };
        let needed: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME"],
            Verb::Gc => &["CNI_PATH"],
            Verb::Status | Verb::Version => &[],
        };
        let absent = |name: &&&str| get(name).is_none_or(|v| v.is_empty());
        let lacking: Vec<&str> = needed.iter().filter(absent).copied().collect();
        if !lacking.is_empty() {
            return Err(missing(&lacking));
        }
        let mut call = Call {
            verb,
            container: String::new(),
            netns: None,
            ifname: String::new(),
            args: Args::default(),
        };
        if !matches!(verb, Verb::Add | Verb::Check | Verb::Del) {
            return Ok(call);
        }
        call.container = text("CNI_CONTAINERID")?;
        if !is_identifier(&call.container) {
            let what = format!(
                "a container's identifier begins with a letter or digit, goes on with these, '_', '.' and '-', and has \
                 {MAX_IDENTIFIER} of them at most"
            );
            return Err(wrong("CNI_CONTAINERID", &call.container, &what));
        }
        call.ifname = text("CNI_IFNAME")?;
        let good = (1..=15).contains(&call.ifname.len())
            && call
                .ifname
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
            && !["lo", "all", "default", ".", ".."].contains(&call.ifname.as_str());
        if !good {
            let what = "an interface's name has 1 to 15 letters, digits, '-', '_' and '.', and is not lo, all or default";
            return Err(wrong("CNI_IFNAME", &call.ifname, what));
        }
        call.netns = get("CNI_NETNS").filter(|p| !p.is_empty()).map(PathBuf::from);
        let args = text("CNI_ARGS").and_then(|args| Args::read(&args));
        // Nothing of them is needed to take something away.
        call.args = match verb {
            Verb::Del => args.unwrap_or_default(),
            _ => args?,
        };
        Ok(call)
    }
}

fn missing(names: &[&str]) -> CniError {
    let what = format!(
        "the environment lacks {} (a container runtime sets it; see docs/cni.md)",
        names.join(", ")
    );
    CniError::new(Code::Environment, what)
}

/// A variable is wrong.
pub(super) fn wrong(name: &str, value: &str, what: &str) -> CniError {
    let value: String = value.chars().take(80).collect();
    CniError::new(Code::Environment, format!("{name} is {value:?}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Call, CniError> {
        Call::read(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into()))
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let e = read(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/run/netns/a")]).unwrap_err();
        assert_eq!(e.code, Code::Environment);
        assert!(e.msg.contains("CNI_CONTAINERID, CNI_IFNAME"), "{e}");
        assert!(!e.msg.contains("CNI_NETNS"), "{e}");
        assert!(read(&[]).unwrap_err().msg.contains("CNI_COMMAND"));
        assert!(
            read(&[("CNI_COMMAND", "GC")])
                .unwrap_err()
                .msg
                .contains("CNI_PATH")
        );
        for verb in ["STATUS", "VERSION"] {
            assert!(read(&[("CNI_COMMAND", verb)]).is_ok());
        }
    }

    #[test]
    fn a_call_is_read() {
        let vars = [
            ("CNI_COMMAND", "DEL"),
            ("CNI_CONTAINERID", "abc_1.2-3"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web"),
        ];
        let call = read(&vars).unwrap();
        assert_eq!((call.verb, call.netns.as_deref()), (Verb::Del, None));
        assert_eq!(call.args.name.as_deref(), Some("web"));
        let mut vars = vars;
        vars[3].1 = "no pair";
        assert!(read(&vars).is_ok(), "DEL does without");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |name: &'static str, value: &'static str| {
            let mut vars = vec![
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", "abc"),
                ("CNI_NETNS", "/run/netns/a"),
                ("CNI_IFNAME", "eth0"),
            ];
            vars.retain(|(n, _)| *n != name);
            vars.push((name, value));
            read(&vars)
        };
        for (name, value) in [
            ("CNI_COMMAND", "add"),
            ("CNI_CONTAINERID", "../x"),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "lo"),
            ("CNI_IFNAME", "sixteen-letters-"),
            ("CNI_ARGS", "no pair"),
        ] {
            let e = with(name, value).unwrap_err();
            assert_eq!(e.code, Code::Environment, "{name}={value}");
            assert!(e.msg.contains(name), "{e}");
        }
    }
}
