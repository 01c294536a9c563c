//! What etcd and the way to it answer when they do not do what was asked, sorted.

use super::settings::{Access, Endpoint};
use crate::control::cluster::StoreError;
use etcd_client::Error;
use std::error::Error as _;

/// Most characters of somebody else's words in a message.
const MAX_WORDS: usize = 300;

/// What kind of trouble it is; texts are what is known beyond that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Trouble {
    /// The request never left: nothing listens there, or no way leads there.
    Apart(String),
    /// The connection broke, or the member cannot serve now. A write may have been done.
    Broken(String),
    /// No answer in time. A write may have been done.
    Silent,
    /// The token is too old, or there is none: log in, and ask again.
    Stale(String),
    /// The user is not let in, or may not do that.
    Refused(String),
    /// TLS does not come about: one side does not trust the other, or certificates cannot be used.
    Untrusted(String),
    /// The revision is compacted.
    Compacted,
    /// The answer is larger than we take.
    TooLarge,
    /// etcd has no users and wants no login.
    NoUsers,
    /// Anything else it says.
    Other(String),
}

impl Trouble {
    /// Whether another member may do better, for a request that may be done twice or was not done.
    pub fn elsewhere(&self, repeatable: bool) -> bool {
        match self {
            Trouble::Apart(_) => true,
            Trouble::Broken(_) | Trouble::Silent => repeatable,
            _ => false,
        }
    }

    /// Whether the connection to the member is of no more use.
    pub fn ends_session(&self) -> bool {
        matches!(self, Trouble::Apart(_) | Trouble::Broken(_) | Trouble::Silent)
    }

    /// The sentence for people: what, where, and the remedy.
    pub fn tell(self, at: &Endpoint, access: &Access) -> StoreError {
        let more = match access.endpoints.len() {
            0 | 1 => String::new(),
            n => format!(", the last tried of {n} endpoints"),
        };
        let user = match &access.login {
            Some((user, _)) => format!("user {user:?}"),
            None => "requests without a user".into(),
        };
        match self {
            Trouble::Apart(why) => StoreError::Unreachable(format!(
                "etcd at {at} cannot be reached: {why}{more} (is etcd running there? see --etcd-endpoints)"
            )),
            Trouble::Broken(why) => StoreError::Unreachable(format!(
                "etcd at {at} does not serve: {why}{more} (look at that member's health with etcdctl \
                 endpoint status)"
            )),
            Trouble::Silent => StoreError::Unreachable(format!(
                "etcd at {at} does not answer in time{more} (is it overloaded, stopped, or behind a firewall?)"
            )),
            Trouble::Stale(why) | Trouble::Refused(why) => StoreError::Refused(format!(
                "etcd at {at} refuses {user}: {why} (see --etcd-username and --etcd-password; the user needs a role \
                 with read and write permission for the prefix {}/)",
                access.prefix()
            )),
            Trouble::Untrusted(why) => StoreError::Refused(format!("no TLS with etcd at {at}: {why}")),
            Trouble::Compacted => StoreError::Compacted,
            Trouble::TooLarge => StoreError::Other(format!(
                "etcd at {at} holds values under {} that are too large to be read; delete them",
                access.prefix()
            )),
            Trouble::NoUsers => StoreError::Other(format!("etcd at {at} has no users")),
            Trouble::Other(why) => StoreError::Other(format!("etcd at {at} says: {why}")),
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        sort(&error)
    }
}

/// Sort an error of the client.
fn sort(error: &Error) -> Trouble {
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::TransportError(e) => return transport(&chain(e)),
        Error::IoError(e) => return Trouble::Broken(words(&e.to_string())),
        other => return Trouble::Other(words(&other.to_string())),
    };
    // A status with a cause was made on this side, from what befell the connection.
    if let Some(cause) = status.source() {
        return transport(&chain(cause));
    }
    said(&format!("{:?}", status.code()), status.message())
}

/// Sort what etcd itself says: the name of a gRPC code, and a sentence.
pub(super) fn said(code: &str, message: &str) -> Trouble {
    let has = |part: &str| message.contains(part);
    let words = words(message);
    match code {
        _ if has("required revision has been compacted") => Trouble::Compacted,
        _ if has("decoded message length too large") => Trouble::TooLarge,
        _ if has("authentication is not enabled") => Trouble::NoUsers,
        _ if has("invalid auth token")
            || has("revision of auth store is old")
            || has("user name is empty") =>
        {
            Trouble::Stale(words)
        }
        "Unauthenticated" => Trouble::Stale(words),
        "PermissionDenied" => Trouble::Refused(words),
        _ if has("authentication failed") || has("permission denied") || has("auth: ") => {
            Trouble::Refused(words)
        }
        _ if has("database space exceeded") => Trouble::Other(format!(
            "{words} (its quota is used up: compact, defragment and disarm the alarm with etcdctl)"
        )),
        // No leader, leader changed, timed out within the cluster, shutting down.
        "Unavailable" | "DeadlineExceeded" | "Cancelled" => Trouble::Broken(words),
        "Unknown" | "Internal" if has("transport") || has("h2 protocol") || has("connection") => {
            Trouble::Broken(words)
        }
        _ => Trouble::Other(words),
    }
}

/// Sort what befell a connection, from the whole chain of causes.
fn transport(chain: &str) -> Trouble {
    let has = |part: &str| chain.contains(part);
    if has("invalid peer certificate") {
        return Trouble::Untrusted(format!(
            "its certificate is not trusted: {} (see --etcd-cafile)",
            words(chain)
        ));
    }
    if has("received fatal alert") {
        let remedy = "see --etcd-certfile and --etcd-keyfile";
        return Trouble::Untrusted(format!("it does not accept us: {} ({remedy})", words(chain)));
    }
    if has("corrupt message") || has("InvalidContentType") {
        return Trouble::Untrusted(format!(
            "it does not speak TLS: {} (is it http:// only?)",
            words(chain)
        ));
    }
    if has("tls handshake eof") {
        return Trouble::Apart(format!(
            "it hangs up on TLS: {} (is it http:// only?)",
            words(chain)
        ));
    }
    if has("decoded message length too large") {
        return Trouble::TooLarge;
    }
    let apart = ["tcp connect error", "dns error", "handshake timed out"];
    match apart.iter().any(|a| has(a)) {
        true => Trouble::Apart(words(chain)),
        false => Trouble::Broken(words(chain)),
    }
}

/// An error and its causes in one line; what a cause repeats is left out.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

/// Somebody else's words, made fit for one line of a log.
fn words(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::etcd::Settings;

    #[test]
    fn what_etcd_says_is_sorted() {
        let cases = [
            (
                "OutOfRange",
                "etcdserver: mvcc: required revision has been compacted",
                Trouble::Compacted,
            ),
            (
                "FailedPrecondition",
                "etcdserver: authentication is not enabled",
                Trouble::NoUsers,
            ),
            (
                "OutOfRange",
                "Error, decoded message length too large: found 9 bytes",
                Trouble::TooLarge,
            ),
        ];
        for (code, message, trouble) in cases {
            assert_eq!(said(code, message), trouble);
        }
        let stale = [
            "invalid auth token",
            "revision of auth store is old",
            "user name is empty",
        ];
        assert!(
            stale
                .iter()
                .all(|m| matches!(said("InvalidArgument", m), Trouble::Stale(_)))
        );
        let refused = "etcdserver: authentication failed, invalid user ID or password";
        assert!(matches!(said("InvalidArgument", refused), Trouble::Refused(_)));
        let elsewhere = [
            "etcdserver: no leader",
            "etcdserver: leader changed",
            "etcdserver: request timed out",
        ];
        assert!(elsewhere.iter().all(|m| said("Unavailable", m).elsewhere(true)));
        assert!(
            elsewhere.iter().all(|m| !said("Unavailable", m).elsewhere(false)),
            "it may have been done"
        );
        assert!(Trouble::Apart(String::new()).elsewhere(false), "it was not done");
        let full = said("ResourceExhausted", "etcdserver: mvcc: database space exceeded");
        assert!(matches!(full, Trouble::Other(text) if text.contains("defragment")));
    }

    #[test]
    fn other_peoples_words_stay_in_their_line() {
        let Trouble::Other(text) = said("Unknown", &"a\nb\u{1b}[31m".repeat(1000)) else {
            panic!();
        };
        assert!(text.len() <= 4 * MAX_WORDS && !text.contains(['\n', '\u{1b}']));
    }

    #[test]
    fn sentences_name_the_endpoint_and_the_remedy() {
        let settings = Settings {
            user: Some("u".into()),
            password: Some("s3cret".into()),
            ..Settings::default()
        };
        let access = settings.check().unwrap();
        let all = [
            (Trouble::Apart("x".into()), "--etcd-endpoints"),
            (Trouble::Broken("x".into()), "endpoint status"),
            (Trouble::Silent, "firewall"),
            (Trouble::Stale("x".into()), "--etcd-username"),
            (Trouble::Refused("x".into()), "role with read and write"),
            (Trouble::Untrusted("x".into()), "TLS"),
            (Trouble::TooLarge, "delete them"),
        ];
        for (trouble, remedy) in all {
            let text = trouble.tell(&access.endpoints[0], &access).to_string();
            assert!(
                text.contains("http://127.0.0.1:2379") && text.contains(remedy),
                "{text}"
            );
            assert!(!text.contains("s3cret"), "{text}");
        }
    }
}
