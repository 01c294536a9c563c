//! What a process holds in memory.

/// Memory that is the process's own, in KiB; none when the kernel does not tell.
pub fn own(pid: u32) -> Option<u64> {
    rss_anon(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// `RssAnon` of proc_pid_status(5).
fn rss_anon(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_the_processs_own() {
        let status = "VmRSS:\t   9000 kB\nRssAnon:\t    5120 kB\nRssFile:\t    3880 kB\n";
        assert_eq!(rss_anon(status), Some(5120));
        assert_eq!(rss_anon("VmRSS: 1 kB\n"), None);
        assert!(own(std::process::id()).unwrap() > 0);
        assert_eq!(own(u32::MAX), None);
    }
}
