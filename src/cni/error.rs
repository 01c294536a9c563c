//! What a plugin says when it does not do what it was asked (CNI 1.1, section 5, "Error").

use serde_json::{Value, json};
use std::fmt::Display;

/// Kinds of error; the numbers are the specification's, those from 100 on podwire's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Code {
    /// The configuration's version is none that podwire speaks, or has no such verb.
    IncompatibleVersion = 1,
    /// A field asks for something podwire does not do.
    UnsupportedField = 2,
    /// The container is not there, and nothing has to be cleaned up.
    UnknownContainer = 3,
    /// A variable of the environment is missing or wrong.
    Environment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The input is no JSON.
    Decoding = 6,
    /// A value of the configuration is wrong.
    Config = 7,
    /// Later it may work.
    TryAgain = 11,
    /// Nothing can be attached now.
    NotAvailable = 50,
    /// Somebody has the name, address, MAC, port or interface.
    Taken = 100,
    /// The node or the kernel does not let this user do it.
    Permission = 101,
    /// CHECK found that something is not as ADD left it.
    Differs = 102,
    /// Anything else.
    Failed = 103,
}

/// An error, as the runtime is told it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{msg}")]
pub struct CniError {
    /// Its kind.
    pub code: Code,
    /// One sentence: the thing and the remedy.
    pub msg: String,
}

impl CniError {
    /// An error of `code`.
    pub fn new(code: Code, msg: impl Display) -> CniError {
        let msg = msg.to_string();
        CniError { code, msg }
    }

    /// A wrong value in the configuration.
    pub fn config(key: impl Display, what: impl Display) -> CniError {
        CniError::new(Code::Config, format!("{key}: {what}"))
    }

    /// What stands on standard output, in a configuration's version.
    pub fn to_json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code as u32, "msg": self.msg })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_what_the_specification_says() {
        let e = CniError::config("mtu", "-1 is none");
        assert_eq!(
            e.to_json("1.0.0"),
            json!({"cniVersion": "1.0.0", "code": 7, "msg": "mtu: -1 is none"})
        );
        assert_eq!(Code::TryAgain as u32, 11);
        assert_eq!(Code::NotAvailable as u32, 50);
    }
}
