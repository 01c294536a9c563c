//! Certificates for etcd and its clients, made by openssl.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory of certificates: an authority, and what it signed.
pub struct Certs {
    dir: tempfile::TempDir,
}

impl Certs {
    /// An authority, and a certificate of a server at 127.0.0.1.
    pub fn new() -> Certs {
        let certs = Certs {
            dir: tempfile::tempdir().unwrap(),
        };
        let key = [
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ];
        // Two of the same name would be one with a wrong signature.
        let own = certs.dir.path().file_name().unwrap().to_string_lossy();
        let subject = format!("/CN=podwire tests {own}");
        let more = [
            "-days", "2", "-subj", &subject, "-keyout", "ca.key", "-out", "ca.pem",
        ];
        certs.openssl(&[&key[..], &more[..]].concat());
        certs.sign("server", "subjectAltName=IP:127.0.0.1");
        certs
    }

    /// A certificate `NAME.pem` with `NAME.key`.
    pub fn sign(&self, name: &str, extension: &str) {
        let (key, csr, pem, ext) = (
            format!("{name}.key"),
            format!("{name}.csr"),
            format!("{name}.pem"),
            format!("{name}.ext"),
        );
        std::fs::write(self.path(&ext), format!("{extension}\n")).unwrap();
        let subject = format!("/CN={name}");
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            &subject,
            "-keyout",
            &key,
            "-out",
            &csr,
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &csr,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &ext,
            "-out",
            &pem,
        ]);
    }

    /// A pair of keys for signing tokens: `NAME.key`, `NAME.pub`.
    pub fn rsa(&self, name: &str) {
        let (key, public) = (format!("{name}.key"), format!("{name}.pub"));
        self.openssl(&["genrsa", "-out", &key, "2048"]);
        self.openssl(&["rsa", "-in", &key, "-pubout", "-out", &public]);
    }

    /// A file of the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn openssl(&self, args: &[&str]) {
        let dir: &Path = self.dir.path();
        let out = Command::new("openssl")
            .args(args)
            .current_dir(dir)
            .output()
            .expect("openssl runs");
        assert!(
            out.status.success(),
            "openssl {args:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
}
