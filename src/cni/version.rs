//! Versions of the specification.

use super::error::{CniError, Code};
use serde_json::{Value, json};

/// A version that podwire speaks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    /// 0.3.0.
    V030,
    /// 0.3.1.
    V031,
    /// 0.4.0, with CHECK.
    V040,
    /// 1.0.0, without the version of each address.
    V100,
    /// 1.1.0, with GC and STATUS, and more of interfaces and routes.
    V110,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Version; 5] = [
        Version::V030,
        Version::V031,
        Version::V040,
        Version::V100,
        Version::V110,
    ];
    /// The newest.
    pub const LATEST: Version = Version::V110;

    /// As it is written.
    pub fn text(self) -> &'static str {
        match self {
            Version::V030 => "0.3.0",
            Version::V031 => "0.3.1",
            Version::V040 => "0.4.0",
            Version::V100 => "1.0.0",
            Version::V110 => "1.1.0",
        }
    }

    /// Read `cniVersion`.
    ///
    /// # Errors
    /// Code 1, with those there are.
    pub fn read(text: &str) -> Result<Version, CniError> {
        let found = Version::ALL.into_iter().find(|v| v.text() == text);
        found.ok_or_else(|| {
            let known = Version::ALL.map(Version::text).join(", ");
            let text: String = text.chars().take(40).collect();
            CniError::new(
                Code::IncompatibleVersion,
                format!("podwire does not speak CNI {text:?} (set cniVersion to one of {known})"),
            )
        })
    }
}

/// The answer to VERSION.
pub fn answer(asked: Option<&str>) -> Value {
    json!({
        "cniVersion": asked.unwrap_or(Version::LATEST.text()),
        "supportedVersions": Version::ALL.map(Version::text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order_and_read_back() {
        assert!(Version::ALL.windows(2).all(|w| w[0] < w[1]));
        for v in Version::ALL {
            assert_eq!(Version::read(v.text()), Ok(v));
        }
        for bad in ["", "0.1.0", "0.2.0", "1.0", "v1.0.0", "1.2.0"] {
            let e = Version::read(bad).unwrap_err();
            assert_eq!(e.code, Code::IncompatibleVersion);
            assert!(e.msg.contains("1.1.0"), "{e}");
        }
        assert_eq!(answer(Some("0.4.0"))["cniVersion"], "0.4.0");
        assert_eq!(answer(None)["supportedVersions"][0], "0.3.0");
    }
}
