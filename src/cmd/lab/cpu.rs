//! How busy the machine was: what a path costs is seen there, whoever the kernel charges for it.

use std::time::Duration;

/// Time all processors together have worked since the machine started; zero where `/proc/stat` is not shown.
///
/// User, nice, system, interrupt and software interrupt time (proc(5)), in steps of 10 ms; what a hypervisor
/// stole is not in it.
pub fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    Duration::from_millis(busy_ticks(&text) * 10)
}

/// Time that the threads of these processes have had a processor; none where the kernel does not tell.
pub fn spent(processes: &[u32]) -> Option<Duration> {
    let mut all = Duration::ZERO;
    for pid in processes {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            // A thread that has just ended has no file any more.
            let Ok(text) = std::fs::read_to_string(thread.path().join("schedstat")) else {
                continue;
            };
            all += Duration::from_nanos(text.split(' ').next()?.parse().ok()?);
        }
    }
    Some(all).filter(|all| !all.is_zero())
}

/// The kernel shows ticks of USER_HZ, which is 100 everywhere.
fn busy_ticks(stat: &str) -> u64 {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let fields: Vec<u64> = all
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter_map(|f| f.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_spends_time() {
        let own = [std::process::id()];
        let before = spent(&own).unwrap();
        // What a thread that runs has had is told from its next tick on, which a busy machine may keep it waiting for.
        while spent(&own).unwrap() <= before {
            std::thread::yield_now();
        }
        assert_eq!(spent(&[u32::MAX]), None);
    }

    #[test]
    fn idle_and_stolen_time_is_not_busy() {
        let stat = "cpu  1 2 4 800 1600 8 16 3200 0 0\ncpu0 9 9 9 9 9 9 9 9 0 0\n";
        assert_eq!(busy_ticks(stat), 1 + 2 + 4 + 8 + 16);
        assert_eq!(busy_ticks("intr 5\n"), 0);
        assert!(busy() > Duration::ZERO);
    }
}
