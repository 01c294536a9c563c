//! The shape of the source: who may import whom, where `unsafe` may stand, and how long a file may be.
//!
//! The rule is [`LAYERS`]; `src/lib.rs` tells it in words. What is test code (`mod tests`, `tests.rs`,
//! `testing.rs`) may import as it likes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate and the modules it may import, lowest first.
const LAYERS: &[(&str, &[&str])] = &[
    // Foundations: words, bytes, memory.
    ("model", &[]),
    ("wire", &["model"]),
    ("buf", &["model", "wire"]),
    // Cores: foundations only, never each other. If two must talk, the data path passes the value.
    ("offload", &["model", "wire", "buf"]),
    ("switch", &["model", "wire", "buf"]),
    ("overlay", &["model", "wire", "buf"]),
    ("stack", &["model", "wire", "buf"]),
    ("service", &["model", "wire", "buf"]),
    ("dns", &["model"]),
    // Composition, still without I/O.
    (
        "datapath",
        &[
            "model", "wire", "buf", "offload", "switch", "overlay", "stack", "service",
        ],
    ),
    // Shell. A span of `buf` is what a system call gathers.
    ("sys", &["model", "wire", "buf"]),
    ("io", &["model", "wire", "buf", "sys"]),
    // Edges. `pod` speaks to a node (api) and makes namespaces (sys); the others deal in words.
    ("control", &["model"]),
    ("api", &["model"]),
    ("pod", &["model", "api", "sys"]),
    ("cni", &["model", "sys", "api", "pod"]),
    (
        "daemon",
        &[
            "model", "wire", "buf", "offload", "switch", "overlay", "stack", "service", "dns", "datapath",
            "sys", "io", "control", "api", "pod",
        ],
    ),
    // Everything but what only a worker may bring together.
    (
        "cmd",
        &[
            "model", "wire", "buf", "offload", "switch", "overlay", "stack", "dns", "sys", "control", "api",
            "pod", "cni", "daemon",
        ],
    ),
];

/// The one place where these two meet.
const MEETING: (&str, &str, &str) = ("io", "datapath", "src/daemon/worker");

/// The only folder with `unsafe`.
const UNSAFE: &str = "src/sys/";

/// Most lines of a file: giants are where review hurts.
const MAX_LINES: usize = 800;

#[test]
fn imports_point_downwards() {
    let mut wrong = Vec::new();
    for file in sources() {
        let Some(module) = file.module() else {
            continue;
        };
        if file.is_test() {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(m, _)| *m == module) else {
            wrong.push(format!(
                "{}: module `{module}` has no row in LAYERS of tests/layers.rs",
                file.path
            ));
            continue;
        };
        let imports = imports(&file);
        for (line, target) in &imports {
            if target != module && !allowed.contains(&target.as_str()) {
                wrong.push(format!("{}:{line}: `{module}` imports `{target}`", file.path));
            }
        }
        let (one, other, place) = MEETING;
        let meets = |name| imports.iter().find(|(_, t)| t == name);
        if let (Some((line, _)), Some(_), false) = (meets(one), meets(other), file.path.starts_with(place)) {
            wrong.push(format!(
                "{}:{line}: `{one}` and `{other}` meet outside of {place}",
                file.path
            ));
        }
    }
    none(&wrong);
}

#[test]
fn every_row_is_a_module_and_looks_down() {
    let modules: BTreeSet<String> = sources()
        .iter()
        .filter_map(File::module)
        .map(Into::into)
        .collect();
    for (at, (module, allowed)) in LAYERS.iter().enumerate() {
        assert!(
            modules.contains(*module),
            "LAYERS names `{module}`, which src does not have"
        );
        for target in *allowed {
            let below = LAYERS[..at].iter().any(|(m, _)| m == target);
            assert!(below, "`{target}` is not below `{module}` in LAYERS");
        }
    }
}

#[test]
fn unsafe_stays_in_sys() {
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|f| !f.path.starts_with(UNSAFE)) {
        let lines = file.code.lines().enumerate();
        let words = lines.flat_map(|(n, l)| l.split(|c| !is_word(c)).map(move |w| (n + 1, w)));
        for (line, word) in words.filter(|(_, w)| ["unsafe", "unsafe_code"].contains(w)) {
            wrong.push(format!("{}:{line}: `{word}` outside of {UNSAFE}", file.path));
        }
    }
    none(&wrong);
}

#[test]
fn files_stay_readable() {
    let mut wrong = Vec::new();
    for file in sources() {
        let lines = file.text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}:{lines}: longer than {MAX_LINES} lines", file.path));
        }
        let opens = file.path.ends_with("/mod.rs") || file.path == "src/lib.rs";
        if opens && !file.text.starts_with("//! ") {
            wrong.push(format!(
                "{}:1: does not begin with its theory of operation (`//! ...`)",
                file.path
            ));
        }
    }
    none(&wrong);
}

#[test]
fn this_test_sees() {
    let text = r####"
//! crate::docs are no imports.
use crate::api::{Client, Reply};
use crate::{buf, wire::{self, bytes}, model::{Mac, PodName as Pod}};
pub(crate) use crate::
    datapath::Node;
/* crate::gone /* nested */ crate::gone */
fn f<'a>(x: &'a str) -> char { let s = "crate::gone \" //"; crate::sys::ns::pidfd(3); '"' }
const R: &str = r#"crate::gone "quoted" "#; use super::super::io as shell;
use super::sibling; impl From<crate::stack::Echo> for u8 {}
macro_rules! m { () => { $crate::switch::Port } }
#[cfg(test)]
pub mod testing;
use crate::control::file;
#[cfg(test)]
mod tests { use crate::gone; }
"####;
    let seen = imports(&File::new("src/pod/x.rs".into(), text.into()));
    let seen: Vec<(usize, &str)> = seen.iter().map(|(l, t)| (*l, t.as_str())).collect();
    let expected = [
        (3, "api"),
        (4, "buf"),
        (4, "wire"),
        (4, "model"),
        (5, "datapath"),
        (8, "sys"),
        (9, "io"),
        (10, "stack"),
        (11, "switch"),
        (14, "control"),
    ];
    assert_eq!(seen, expected);
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
}

/// A source file.
struct File {
    /// Its path from the root of the package.
    path: String,
    /// What it says.
    text: String,
    /// The same with blanks for comments and literals, so that line numbers stay.
    code: String,
}

impl File {
    fn new(path: String, text: String) -> File {
        let code = String::from_utf8(code(text.as_bytes())).unwrap();
        File { path, text, code }
    }

    /// The crate's module it belongs to; `None` for `lib.rs` and `main.rs`, which only name the modules.
    fn module(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        let first = below.split('/').next()?;
        let name = first.strip_suffix(".rs").unwrap_or(first);
        (!["lib", "main"].contains(&name)).then_some(name)
    }

    /// How many `super::` lead to the crate's root.
    fn depth(&self) -> usize {
        let below = self.path.trim_start_matches("src/").trim_end_matches("/mod.rs");
        below.split('/').count()
    }

    fn is_test(&self) -> bool {
        ["tests.rs", "testing.rs"].contains(&self.path.rsplit('/').next().unwrap_or_default())
            || self.path.contains("/tests/")
    }

    /// The code above `#[cfg(test)] mod tests`.
    fn shipped(&self) -> &str {
        let marks = self.code.match_indices("#[cfg(test)]");
        let tests = marks.map(|(at, mark)| (at, self.code[at + mark.len()..].trim_start()));
        let cut = tests
            .filter(|(_, rest)| {
                let rest = rest.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
                rest.strip_prefix("mod tests")
                    .is_some_and(|r| !r.starts_with(is_word))
            })
            .map(|(at, _)| at)
            .next();
        &self.code[..cut.unwrap_or(self.code.len())]
    }
}

/// Every file below `src`, in order.
fn sources() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut paths: Vec<PathBuf> = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                paths.push(path);
            }
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        File::new(path, text)
    };
    paths.into_iter().map(read).collect()
}

/// The modules of the crate that the shipped code of `file` names, with their lines.
fn imports(file: &File) -> Vec<(usize, String)> {
    let code = file.shipped();
    let line = |at: usize| code[..at].matches('\n').count() + 1;
    let mut found = Vec::new();
    let starts = |word: &'static str| {
        code.match_indices(word)
            .map(|(at, _)| at)
            .filter(|at| !code[..*at].ends_with(is_word) && !code[..*at].ends_with("::"))
    };
    for at in starts("crate::") {
        let targets = targets(&code[at + "crate::".len()..]);
        found.extend(targets.into_iter().map(|t| (line(at), t)));
    }
    for at in starts("super::") {
        let mut rest = &code[at..];
        let mut ups = 0;
        while let Some(more) = rest.strip_prefix("super::") {
            rest = more;
            ups += 1;
        }
        // More of them do not compile, save in a module within the file, which is looked at as the file.
        if ups >= file.depth() {
            found.extend(targets(rest).into_iter().map(|t| (line(at), t)));
        }
    }
    found.sort_by_key(|(line, _)| *line);
    found
}

/// The first names of a path's rest: one, or those of a group in braces.
fn targets(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let name = |text: &str| -> String { text.trim_start().chars().take_while(|c| is_word(*c)).collect() };
    let Some(group) = rest.strip_prefix('{') else {
        let first = name(rest);
        // `crate::*` imports everything.
        return vec![if first.is_empty() { "*".into() } else { first }];
    };
    let mut depth = 0;
    let mut members = vec![String::new()];
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => members.push(String::new()),
            _ => {}
        }
        if let Some(member) = members.last_mut().filter(|_| c != ',') {
            member.push(c);
        }
    }
    members
        .iter()
        .map(|m| name(m))
        .filter(|m| !m.is_empty())
        .collect()
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// `text` with blanks in place of comments and of string and character literals.
fn code(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let skip = literal(&text[at..], out.last().copied());
        for b in &text[at..at + skip] {
            out.push(if *b == b'\n' { b'\n' } else { b' ' });
        }
        at += skip;
        if skip == 0 {
            out.push(text[at]);
            at += 1;
        }
    }
    out
}

/// Length of the comment or literal that `text` begins with; 0 when it begins with something else.
fn literal(text: &[u8], before: Option<u8>) -> usize {
    let until = |from: usize, end: &[u8]| {
        let rest = &text[from.min(text.len())..];
        let found = rest.windows(end.len()).position(|w| w == end);
        found.map_or(text.len(), |at| from + at + end.len())
    };
    let escaped = |quote: u8| {
        let mut at = 1;
        while at < text.len() && text[at] != quote {
            at += if text[at] == b'\\' { 2 } else { 1 };
        }
        (at + 1).min(text.len())
    };
    match text {
        // The newline stays.
        [b'/', b'/', ..] => text.iter().position(|b| *b == b'\n').unwrap_or(text.len()),
        [b'/', b'*', ..] => {
            let (mut depth, mut at) = (1, 2);
            while depth > 0 && at < text.len() {
                match &text[at..] {
                    [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
                    [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
                    _ => at += 1,
                }
            }
            at
        }
        [b'"', ..] => escaped(b'"'),
        // A character; anything else after the quote is a lifetime.
        [b'\'', b'\\', ..] => escaped(b'\''),
        [b'\'', ..] => {
            let end = text.iter().skip(2).take(4).position(|b| *b == b'\'');
            let width =
                std::str::from_utf8(&text[1..end.map_or(1, |e| e + 2)]).map_or(0, |c| c.chars().count());
            if width == 1 { end.unwrap_or(0) + 3 } else { 0 }
        }
        [b'r', b'"' | b'#', ..] if !before.is_some_and(|b| is_word(b.into()) && b != b'b') => {
            let hashes = text[1..].iter().take_while(|b| **b == b'#').count();
            if text.get(1 + hashes) != Some(&b'"') {
                return 0; // A raw identifier.
            }
            let mut end = vec![b'"'];
            end.resize(1 + hashes, b'#');
            until(2 + hashes, &end)
        }
        _ => 0,
    }
}
