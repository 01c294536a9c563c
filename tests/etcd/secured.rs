//! Users and TLS: who is let in, and what those are told who are not.

use super::Case;
use super::certs::Certs;
use super::server::Etcd;
use super::shell::{PREFIX, Shell, at};
use podwire::control::cluster::{Ask, StoreError};
use podwire::control::etcd::Settings;
use std::time::Duration;

/// The tests.
pub const CASES: &[Case] = &[
    ("users_and_permissions", users),
    ("a_login_nobody_needs_does_no_harm", needless),
    ("tokens_that_etcd_forgot_are_renewed", forgotten),
    ("tokens_that_expire_are_renewed", expired),
    ("tls_and_its_mistakes", tls),
    ("certificates_of_clients", client_certificates),
];

const PASSWORD: &str = "s3cret pass";

/// Make users: root, and one who may use the network.
fn secure(etcd: &mut Etcd) {
    let add = |etcd: &Etcd, name: &str, password: &str| {
        etcd.ctl(&["user", "add", &format!("{name}:{password}")]);
    };
    add(etcd, "root", "r00t");
    add(etcd, "podwire", PASSWORD);
    add(etcd, "stranger", PASSWORD);
    etcd.ctl(&["user", "grant-role", "root", "root"]);
    etcd.ctl(&["role", "add", "network"]);
    let range = format!("{PREFIX}/");
    etcd.ctl(&[
        "role",
        "grant-permission",
        "network",
        "--prefix=true",
        "readwrite",
        &range,
    ]);
    etcd.ctl(&["user", "grant-role", "podwire", "network"]);
    etcd.ctl(&["auth", "enable"]);
    etcd.log_in("root:r00t");
}

fn login(url: &str, user: &str, password: &str) -> Settings {
    Settings {
        user: Some(user.into()),
        password: Some(password.into()),
        ..at(&[url])
    }
}

/// All of a cluster's life: read, write, watch.
fn works(shell: &mut Shell, n: u8) {
    let from = shell.list().revision + 1;
    let watch = shell.watch(from);
    shell.create(n, "a");
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
}

fn refused(settings: &Settings) -> String {
    match Shell::new(settings).ask(Ask::List) {
        Err(StoreError::Refused(text)) => {
            assert!(text.contains(&settings.endpoints[0]), "{text}");
            assert!(!text.contains(PASSWORD) && !text.contains("wr0ng"), "{text}");
            text
        }
        other => panic!("{other:?}"),
    }
}

fn users() {
    let mut etcd = Etcd::start(&[]);
    secure(&mut etcd);
    works(&mut Shell::new(&login(&etcd.url, "podwire", PASSWORD)), 1);
    let why = refused(&login(&etcd.url, "podwire", "wr0ng"));
    assert!(
        why.contains("\"podwire\"") && why.contains("--etcd-password"),
        "{why}"
    );
    let why = refused(&at(&[&etcd.url]));
    assert!(
        why.contains("without a user") && why.contains("--etcd-username"),
        "{why}"
    );
    let why = refused(&login(&etcd.url, "stranger", PASSWORD));
    assert!(why.contains("permission denied") && why.contains(PREFIX), "{why}");
    let mut shell = Shell::new(&login(&etcd.url, "stranger", PASSWORD));
    let watch = shell.ask(Ask::Watch { from: 2 });
    assert!(
        matches!(&watch, Err(StoreError::Refused(text)) if text.contains("permission denied")),
        "{watch:?}"
    );
    // Rights that are given while it runs count at once.
    etcd.ctl(&["user", "grant-role", "stranger", "network"]);
    works(&mut shell, 2);
}

fn needless() {
    let etcd = Etcd::start(&[]);
    let mut shell = Shell::new(&login(&etcd.url, "podwire", PASSWORD));
    works(&mut shell, 1);
    // And counts once it is needed.
    let mut etcd = etcd;
    secure(&mut etcd);
    works(&mut shell, 2);
}

fn forgotten() {
    let mut etcd = Etcd::start(&[]);
    secure(&mut etcd);
    let mut shell = Shell::new(&login(&etcd.url, "podwire", PASSWORD));
    works(&mut shell, 1);
    // Simple tokens live in its memory.
    etcd.kill();
    etcd.run();
    etcd.await_health();
    works(&mut shell, 2);
    etcd.kill();
    etcd.run();
    etcd.await_health();
    // The watch first: etcd does not say there that a token is old.
    let from = etcd.revision();
    let watch = shell.watch(from);
    shell.create(3, "a");
    assert!(!shell.changes(watch, 1).0.is_empty());
}

fn expired() {
    let certs = Certs::new();
    certs.rsa("token");
    let token = format!(
        "jwt,pub-key={},priv-key={},sign-method=RS256,ttl=2s",
        certs.text("token.pub"),
        certs.text("token.key")
    );
    let mut etcd = Etcd::start(&["--auth-token", &token]);
    secure(&mut etcd);
    let mut shell = Shell::new(&login(&etcd.url, "podwire", PASSWORD));
    works(&mut shell, 1);
    shell.pass(Duration::from_secs(4));
    works(&mut shell, 2);
    shell.pass(Duration::from_secs(4));
    let from = shell.list().revision + 1;
    shell.pass(Duration::from_secs(4));
    let watch = shell.watch(from);
    shell.pass(Duration::from_secs(4));
    shell.create(3, "a");
    assert_eq!(shell.changes(watch, 1).0.len(), 1);
}

fn tls() {
    let (certs, others) = (Certs::new(), Certs::new());
    let (cert, key) = (certs.text("server.pem"), certs.text("server.key"));
    let etcd = Etcd::start_tls(
        &["--cert-file", &cert, "--key-file", &key],
        &["--cacert", &certs.text("ca.pem")],
    );
    let with = |ca: &Certs, url: &str| Settings {
        ca: Some(ca.path("ca.pem")),
        ..at(&[url])
    };
    works(&mut Shell::new(&with(&certs, &etcd.url)), 1);
    let why = refused(&with(&others, &etcd.url));
    assert!(
        why.contains("--etcd-cafile") && why.contains("UnknownIssuer"),
        "{why}"
    );
    // The system does not know that authority either, if it knows any.
    match at(&[&etcd.url]).check() {
        Ok(_) => assert!(refused(&at(&[&etcd.url])).contains("UnknownIssuer")),
        Err(why) => assert!(why.to_string().contains("ca-certificates"), "{why}"),
    }
    // The right authority, another host.
    let name = etcd.url.replace("127.0.0.1", "localhost");
    let why = refused(&with(&certs, &name));
    assert!(why.contains("certificate") && why.contains("localhost"), "{why}");

    // No TLS where it is wanted, and TLS where it is not.
    let plain = etcd.url.replace("https", "http");
    let wrong_kind = |settings: &Settings, hint: &str| match Shell::new(settings).ask(Ask::List) {
        Err(StoreError::Unreachable(text)) => {
            assert!(
                text.contains(&settings.endpoints[0]) && text.contains(hint),
                "{text}"
            );
        }
        other => panic!("{other:?}"),
    };
    wrong_kind(&at(&[&plain]), "is it https:// only");
    let bare = Etcd::start(&[]);
    wrong_kind(
        &with(&certs, &bare.url.replace("http", "https")),
        "is it http:// only",
    );
}

fn client_certificates() {
    let (certs, others) = (Certs::new(), Certs::new());
    certs.sign("node", "extendedKeyUsage=clientAuth");
    others.sign("node", "extendedKeyUsage=clientAuth");
    let (ca, cert, key) = (
        certs.text("ca.pem"),
        certs.text("server.pem"),
        certs.text("server.key"),
    );
    let (node, node_key) = (certs.text("node.pem"), certs.text("node.key"));
    let etcd = Etcd::start_tls(
        &[
            "--cert-file",
            &cert,
            "--key-file",
            &key,
            "--client-cert-auth",
            "--trusted-ca-file",
            &ca,
        ],
        &["--cacert", &ca, "--cert", &node, "--key", &node_key],
    );
    let with = |of: Option<&Certs>| Settings {
        ca: Some(certs.path("ca.pem")),
        cert: of.map(|c| c.path("node.pem")),
        key: of.map(|c| c.path("node.key")),
        ..at(&[&etcd.url])
    };
    works(&mut Shell::new(&with(Some(&certs))), 1);
    for of in [None, Some(&others)] {
        // With TLS 1.3 the server's refusal may come after the handshake, and be lost with the connection.
        let why = Shell::new(&with(of)).ask(Ask::List).unwrap_err().to_string();
        assert!(
            why.contains("--etcd-certfile") && why.contains(&etcd.url),
            "{why}"
        );
    }
    let mixed = Settings {
        key: Some(others.path("node.key")),
        ..with(Some(&certs))
    };
    let why = mixed.check().unwrap_err().to_string();
    assert!(why.contains(&etcd.url), "{why}");
}
