//! The image that containers are made of, as `docker save` writes one.

use super::podman::file_system;
use super::shell::{dir, said};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What it is called.
pub const IMAGE: &str = "localhost/busybox:latest";

/// The archive. What it runs unasked sleeps, so that it is a pause image too.
pub fn archive() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let files = dir().join("image");
        fs::create_dir_all(&files).unwrap();
        fs::copy(file_system(), files.join("layer.tar")).unwrap();
        let mut sum = Command::new("sha256sum");
        sum.arg(files.join("layer.tar"));
        let sum = said(sum);
        let sum = sum.split(' ').next().unwrap();
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sleep", "36000"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{sum}")]},
        });
        fs::write(files.join("config.json"), config.to_string()).unwrap();
        let manifest =
            serde_json::json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
        fs::write(files.join("manifest.json"), manifest.to_string()).unwrap();
        let archive = dir().join("image.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&files).arg("-cf").arg(&archive);
        tar.args(["manifest.json", "config.json", "layer.tar"]);
        said(tar);
        archive
    })
}
