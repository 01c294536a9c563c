//! The fuzz targets as ordinary tests: every input of `fuzz/corpus` and `fuzz/regression`, and the seeds as they
//! are made today. The properties are those of the targets; see `fuzz/README.md`.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::path::{Path, PathBuf};

/// The files of `fuzz/<kind>/<target>`, in order.
fn inputs(kind: &str, target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(kind)
        .join(target);
    let Ok(entries) = std::fs::read_dir(&folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

/// Run all inputs of a target; the test's output names the one that fails.
fn replay(target: &str) {
    let found = targets::TARGETS.iter().find(|(name, _)| *name == target);
    let (_, run) = found.unwrap_or_else(|| panic!("no target {target}"));
    let corpus = inputs("corpus", target);
    assert!(!corpus.is_empty(), "fuzz/corpus/{target} is missing or empty");
    for file in corpus.into_iter().chain(inputs("regression", target)) {
        println!("{}", file.display());
        run(&std::fs::read(&file).unwrap());
    }
    let seeds = targets::seeds::of(target);
    assert!(!seeds.is_empty(), "{target} has no seeds");
    for (name, input) in seeds {
        println!("seed {name} of {target}");
        run(&input);
    }
}

#[test]
fn underlay() {
    replay("underlay");
}

#[test]
fn pod() {
    replay("pod");
}

#[test]
fn offload() {
    replay("offload");
}

#[test]
fn node() {
    replay("node");
}

#[test]
fn egress() {
    replay("egress");
}

#[test]
fn service() {
    replay("service");
}

#[test]
fn neighbour() {
    replay("neighbour");
}

#[test]
fn dns() {
    replay("dns");
}

#[test]
fn store() {
    replay("store");
}

#[test]
fn cni() {
    replay("cni");
}

#[test]
fn manifest() {
    replay("manifest");
}

#[test]
fn config() {
    replay("config");
}

#[test]
fn nothing_is_kept_for_a_target_that_is_gone() {
    for kind in ["corpus", "regression"] {
        let names = targets::TARGETS.iter().map(|(name, _)| name.to_string());
        let names: Vec<String> = names.collect();
        for folder in inputs(kind, "") {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            assert!(names.contains(&name), "fuzz/{kind}/{name}");
        }
    }
}

#[test]
#[ignore = "writes to fuzz/corpus: run it after a change of the seeds"]
fn write_the_seeds() {
    for (target, _) in targets::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(target);
        std::fs::create_dir_all(&folder).unwrap();
        for (name, input) in targets::seeds::of(target) {
            std::fs::write(folder.join(format!("seed-{name}")), input).unwrap();
        }
    }
}
