//! Where the store is and how to get in: flannel's settings, checked before the first connection.

use super::session::client;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};

/// Most bytes of a PEM file.
const MAX_PEM: u64 = 1 << 20;
/// etcd's port for clients, when an endpoint names none.
const PORT: u16 = 2379;

/// What a person says of the store. The defaults are flannel's, without the port 4001 that etcd had before 2.0.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// URLs of the members; a text may hold several, separated by commas.
    pub endpoints: Vec<String>,
    /// Where the network is kept: `<prefix>/config`, `<prefix>/subnets/...`.
    pub prefix: String,
    /// PEM file with the certificates that sign the members' own; the system's are believed without it.
    pub ca: Option<PathBuf>,
    /// PEM file with this node's certificate.
    pub cert: Option<PathBuf>,
    /// PEM file with its key.
    pub key: Option<PathBuf>,
    /// User of etcd.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            endpoints: vec!["http://127.0.0.1:2379".into()],
            prefix: "/coreos.com/network".into(),
            ca: None,
            cert: None,
            key: None,
            user: None,
            password: None,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field(
                "endpoints",
                &self
                    .endpoints
                    .iter()
                    .map(|e| without_login(e))
                    .collect::<Vec<_>>(),
            )
            .field("prefix", &self.prefix)
            .field("ca", &self.ca)
            .field("cert", &self.cert)
            .field("key", &self.key)
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "(not shown)"))
            .finish()
    }
}

/// What is wrong with [`Settings`], and the remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

/// [`Settings`] that can be used: URLs complete, files read.
#[derive(Clone)]
pub struct Access {
    /// The members, in the order given.
    pub(super) endpoints: Vec<Endpoint>,
    prefix: String,
    pub(super) tls: Tls,
    /// User and password.
    pub(super) login: Option<(String, String)>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// A member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Endpoint {
    /// `http://host:port` or `https://host:port`.
    pub url: String,
    /// The host its certificate must be for, without brackets.
    pub host: String,
    /// Whether it is https.
    pub tls: bool,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// What TLS needs.
#[derive(Clone, Default)]
pub(super) struct Tls {
    /// Who signs the members' certificates: the file it is from, for messages, and the PEM text.
    pub ca: Option<(PathBuf, Vec<u8>)>,
    /// This node's certificate and key, as PEM text.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Access {
    /// Where the network is kept, without a slash at the end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Settings {
    /// Check the URL of one member.
    ///
    /// # Errors
    /// What is wrong with it; without a login that stands in it.
    pub fn check_endpoint(text: &str) -> Result<(), SettingsError> {
        endpoint(text, "http").map(drop)
    }

    /// Check everything that can be checked without the store.
    ///
    /// # Errors
    /// The first thing that is wrong: an endpoint, a file that is missing or holds something else, half of a pair.
    pub fn check(&self) -> Result<Access, SettingsError> {
        let list = self.endpoints.iter().flat_map(|e| e.split(','));
        let list: Vec<&str> = list.map(str::trim).filter(|e| !e.is_empty()).collect();
        if list.is_empty() {
            return Err(SettingsError(
                "no etcd endpoint is given (--etcd-endpoints http://HOST:2379)".into(),
            ));
        }
        let pair = |one: (&str, bool), other: (&str, bool)| {
            let (given, missing) = match (one.1, other.1) {
                (true, false) => (one.0, other.0),
                (false, true) => (other.0, one.0),
                _ => return Ok(()),
            };
            Err(SettingsError(format!(
                "{given} is given without {missing} (both or none)"
            )))
        };
        pair(
            ("--etcd-certfile", self.cert.is_some()),
            ("--etcd-keyfile", self.key.is_some()),
        )?;
        let user = self.user.as_deref().filter(|u| !u.is_empty());
        let password = self.password.as_deref().filter(|p| !p.is_empty());
        pair(
            ("--etcd-username", user.is_some()),
            ("--etcd-password", password.is_some()),
        )?;

        let mut tls = Tls::default();
        if let Some(path) = &self.ca {
            tls.ca = Some((path.clone(), pem(path, "CERTIFICATE", "--etcd-cafile")?));
        }
        if let (Some(cert), Some(key)) = (&self.cert, &self.key) {
            let cert = pem(cert, "CERTIFICATE", "--etcd-certfile")?;
            tls.identity = Some((cert, pem(key, "PRIVATE KEY", "--etcd-keyfile")?));
        }
        // Without a scheme, TLS follows from there being something to do it with.
        let scheme = if tls.ca.is_some() || tls.identity.is_some() {
            "https"
        } else {
            "http"
        };
        let endpoints: Vec<Endpoint> = list
            .iter()
            .map(|text| endpoint(text, scheme))
            .collect::<Result<_, _>>()?;

        let parts: Vec<&str> = self.prefix.split('/').filter(|p| !p.is_empty()).collect();
        if parts.is_empty() {
            return Err(SettingsError(format!(
                "{:?} is no prefix for keys in etcd (--etcd-prefix /coreos.com/network)",
                self.prefix
            )));
        }
        let root = if self.prefix.starts_with('/') { "/" } else { "" };
        let access = Access {
            endpoints,
            prefix: format!("{root}{}", parts.join("/")),
            tls,
            login: user.zip(password).map(|(u, p)| (u.into(), p.into())),
        };
        access.try_tls()?;
        Ok(access)
    }
}

impl Access {
    /// Build what a connection needs, without one: this is where certificates and keys are parsed.
    fn try_tls(&self) -> Result<(), SettingsError> {
        let Some(endpoint) = self.endpoints.iter().find(|e| e.tls) else {
            return Ok(());
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|e| SettingsError(format!("no runtime for the store: {e}")))?;
        let built = runtime.block_on(client(self, endpoint));
        built.map(drop).map_err(SettingsError)
    }
}

/// An endpoint's URL, taken apart.
fn endpoint(text: &str, scheme: &str) -> Result<Endpoint, SettingsError> {
    let wrong = |what: &str| {
        let text = without_login(text);
        Err(SettingsError(format!(
            "etcd endpoint {text:?}: {what} (use http://HOST:PORT or https://HOST:PORT)"
        )))
    };
    let (scheme, rest) = text.split_once("://").unwrap_or((scheme, text));
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return wrong("it is neither http nor https"),
    };
    if rest.contains('@') {
        return wrong("user and password do not belong there, see --etcd-username and --etcd-password");
    }
    let place = rest.strip_suffix('/').unwrap_or(rest);
    if place.contains(['/', '?', '#']) {
        return wrong("there is something behind the port");
    }
    let (host, port) = match place.strip_prefix('[') {
        Some(six) => match six.split_once(']') {
            Some((host, port)) if host.parse::<Ipv6Addr>().is_ok() => (host, port),
            _ => return wrong("what is in brackets is no IPv6 address"),
        },
        None if place.matches(':').count() > 1 => return wrong("an IPv6 address needs brackets"),
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    let named = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    if host.is_empty() || host.starts_with(['-', '.']) || !host.chars().all(named) {
        return wrong("the host is missing or no host");
    }
    let port = match port.strip_prefix(':').map(str::parse::<u16>) {
        None if port.is_empty() => PORT,
        Some(Ok(port)) if port > 0 => port,
        _ => return wrong("the port is no port"),
    };
    let scheme = if tls { "https" } else { "http" };
    let url = match host.contains(':') {
        true => format!("{scheme}://[{host}]:{port}"),
        false => format!("{scheme}://{host}:{port}"),
    };
    Ok(Endpoint {
        url,
        host: host.into(),
        tls,
    })
}

/// A URL, to be shown: what stands before the host may be a password.
fn without_login(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://(login)@{rest}"),
        (None, Some((_, rest))) => format!("(login)@{rest}"),
        _ => text.into(),
    }
}

/// Read a PEM file that must hold at least one `label`.
fn pem(path: &Path, label: &str, option: &str) -> Result<Vec<u8>, SettingsError> {
    let wrong = |what: String| SettingsError(format!("{}: {what} (see {option})", path.display()));
    let file = File::open(path).map_err(|e| wrong(e.to_string()))?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_PEM).read_to_end(&mut bytes);
    read.map_err(|e| wrong(e.to_string()))?;
    let text = String::from_utf8_lossy(&bytes);
    let begins =
        |line: &str| line.starts_with("-----BEGIN ") && line.trim_end().ends_with(&format!("{label}-----"));
    if !text.lines().any(begins) {
        return Err(wrong(format!("there is no PEM block \"{label}\" in it")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(endpoints: &str) -> Settings {
        Settings {
            endpoints: vec![endpoints.into()],
            ..Settings::default()
        }
    }

    fn refusal(settings: &Settings) -> String {
        settings.check().unwrap_err().to_string()
    }

    #[test]
    fn flannels_defaults_and_forms() {
        let access = Settings::default().check().unwrap();
        assert_eq!(access.prefix(), "/coreos.com/network");
        let urls = |access: &Access| access.endpoints.iter().map(|e| e.url.clone()).collect::<Vec<_>>();
        assert_eq!(urls(&access), ["http://127.0.0.1:2379"]);
        let access = with("http://a:1/, HTTP://b ,[fd00::1]:7,http://[::1]")
            .check()
            .unwrap();
        assert_eq!(
            urls(&access),
            [
                "http://a:1",
                "http://b:2379",
                "http://[fd00::1]:7",
                "http://[::1]:2379"
            ]
        );
        assert_eq!(access.endpoints[2].host, "fd00::1");
        let prefix = |p: &str| {
            Settings {
                prefix: p.into(),
                ..with("a")
            }
            .check()
            .unwrap()
            .prefix()
            .to_string()
        };
        assert_eq!(prefix("/a//b/"), "/a/b");
        assert_eq!(prefix("a/b"), "a/b");
    }

    #[test]
    fn each_mistake_is_told() {
        assert!(refusal(&with(" , ")).contains("no etcd endpoint"));
        assert!(refusal(&with("ftp://a:1")).contains("neither http nor https"));
        assert!(refusal(&with("http://a:0")).contains("\"http://a:0\": the port is no port"));
        assert!(refusal(&with("http://a:65536")).contains("no port"));
        assert!(refusal(&with("http://a:1/v3")).contains("behind the port"));
        assert!(refusal(&with("http://:2379")).contains("no host"));
        assert!(refusal(&with("http://a b:2379")).contains("no host"));
        assert!(refusal(&with("http://fd00::1:2379")).contains("brackets"));
        assert!(refusal(&with("http://[fd00::x]:2379")).contains("IPv6"));
        let prefix = Settings {
            prefix: "/".into(),
            ..with("a")
        };
        assert!(refusal(&prefix).contains("no prefix"));
        let half = Settings {
            key: Some("/k".into()),
            ..with("a")
        };
        assert_eq!(
            refusal(&half),
            "--etcd-keyfile is given without --etcd-certfile (both or none)"
        );
        let half = Settings {
            user: Some("u".into()),
            ..with("a")
        };
        assert_eq!(
            refusal(&half),
            "--etcd-username is given without --etcd-password (both or none)"
        );
        let missing = Settings {
            ca: Some("/nonexistent/ca.pem".into()),
            ..with("https://a")
        };
        assert!(
            refusal(&missing).starts_with("/nonexistent/ca.pem: No such file"),
            "{}",
            refusal(&missing)
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.pem");
        std::fs::write(
            &path,
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        let other = Settings {
            ca: Some(path.clone()),
            ..with("https://a")
        };
        assert!(refusal(&other).contains("no PEM block \"CERTIFICATE\""));
        let cert = dir.path().join("cert.pem");
        std::fs::write(
            &cert,
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        let broken = Settings {
            cert: Some(cert),
            key: Some(path),
            ..with("https://a")
        };
        assert!(
            refusal(&broken).contains("https://a:2379"),
            "{}",
            refusal(&broken)
        );
    }

    #[test]
    fn passwords_are_never_shown() {
        let settings = Settings {
            user: Some("u".into()),
            password: Some("s3cret".into()),
            ..with("http://me:s3cret@host:1")
        };
        assert!(!format!("{settings:?}").contains("s3cret"), "{settings:?}");
        assert!(!refusal(&settings).contains("s3cret"), "{}", refusal(&settings));
        let access = Settings {
            endpoints: vec!["a".into()],
            ..settings
        }
        .check()
        .unwrap();
        assert!(!format!("{access:?}").contains("s3cret"), "{access:?}");
    }
}
