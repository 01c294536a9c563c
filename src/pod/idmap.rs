//! The ids of a sandbox's user namespace, written by its parent.
//!
//! An ordinary user may map one id, his own, and becomes root inside. Root maps every id it has to itself, so
//! that files keep their owners and services can still change to their own user.

use rustix::thread::CapabilitySet;
use std::fs;
use std::io;

/// Map the ids of the process `pid`, which has just made its own user namespace.
///
/// # Errors
/// What the kernel says.
pub fn map_child(pid: u32) -> io::Result<()> {
    let file = |name: &str| format!("/proc/{pid}/{name}");
    if may_map_all()? {
        fs::write(
            file("uid_map"),
            identity(&fs::read_to_string("/proc/self/uid_map")?),
        )?;
        fs::write(
            file("gid_map"),
            identity(&fs::read_to_string("/proc/self/gid_map")?),
        )
    } else {
        // The kernel wants this first: who may drop a group could escape a permission denied to it.
        fs::write(file("setgroups"), "deny")?;
        fs::write(file("uid_map"), only(rustix::process::geteuid().as_raw()))?;
        fs::write(file("gid_map"), only(rustix::process::getegid().as_raw()))
    }
}

fn may_map_all() -> io::Result<bool> {
    let held = rustix::thread::capabilities(None)?.effective;
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    Ok(rustix::process::geteuid().is_root() && held.contains(needed))
}

/// The map that gives a child each id of `map` (lines of inside, outside and count) under its own number.
fn identity(map: &str) -> String {
    let extents = map.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (inside, _outside, count) = (fields.next()?, fields.next()?, fields.next()?);
        Some(format!("{inside} {inside} {count}\n"))
    });
    extents.collect()
}

fn only(id: u32) -> String {
    format!("0 {id} 1\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_repeat_what_the_parent_has() {
        assert_eq!(identity("         0          0 4294967295\n"), "0 0 4294967295\n");
        let subids = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(identity(subids), "0 0 1\n1 1 65536\n");
        assert_eq!(only(1000), "0 1000 1\n");
    }
}
