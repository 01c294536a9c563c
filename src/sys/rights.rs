//! What must not come along into a pod of another user.
//!
//! Whoever made a pod's namespaces decides which programs are in it. A process that runs one of them gives to
//! that user whatever it holds: ids that count outside, groups, open files, keys, and the terminal, into which
//! a program can type (ioctl TIOCSTI).
#![allow(unsafe_code)]

use rustix::process::{Gid, Uid};
use std::io;

/// Whose programs are in a pod, as its user namespace tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The caller's: nothing is gained by what he brings along.
    Own,
    /// Another user's.
    Others,
}

impl Whose {
    /// Of the user namespace that the user `owner` made, with the ids of `map` (/proc/PID/uid_map, which has
    /// lines of inside, outside and count), for the user `own`.
    pub(super) fn tell(map: &str, owner: u32, own: u32) -> Whose {
        let number = |field: Option<&str>| field?.parse::<u32>().ok();
        let extents = map.lines().map(|line| {
            let mut fields = line.split_ascii_whitespace();
            (
                number(fields.next()),
                number(fields.next()),
                number(fields.next()),
            )
        });
        let extents: Vec<_> = extents.collect();
        // Inside numbers are unique, so root is at the beginning of an extent or nowhere.
        let root = extents.iter().any(|e| (e.0, e.1) == (Some(0), Some(own)));
        let nobody_else = extents.iter().all(|e| (e.1, e.2) == (Some(own), Some(1)));
        match root || owner == own && nobody_else {
            true => Whose::Own,
            false => Whose::Others,
        }
    }
}

/// Keep open files to this process, standard input and output apart. To be called where `/proc` is to be trusted.
///
/// # Errors
/// When `/proc` is not there.
pub(super) fn keep_files() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name().to_str().and_then(|n| n.parse::<i32>().ok());
        let Some(fd) = number.filter(|n| *n > 2) else {
            continue;
        };
        // SAFETY: F_SETFD closes nothing now and takes its flags by value; a number that is closed meanwhile
        // (that of the directory) is refused.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Leave all supplementary groups; a process without privileges, or in a user namespace that forbids it, keeps
/// them. Whether none is left.
pub(super) fn leave_groups() -> bool {
    rustix::thread::set_thread_groups(&[]).is_ok() || rustix::process::getgroups().is_ok_and(|g| g.is_empty())
}

/// Take the ids of root in the user namespace just entered; the first that it does not have.
pub(super) fn become_root() -> Result<(), &'static str> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(|_| "the group id")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(|_| "the user id")
}

/// Leave the session's keyring for a new one: possession of a key counts whoever made it.
///
/// # Errors
/// When the kernel has keyrings and gives no other.
pub(super) fn leave_keys() -> io::Result<()> {
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING takes a name or null, and touches no memory for the latter.
    let rc = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, none) };
    match io::Error::last_os_error() {
        _ if rc >= 0 => Ok(()),
        // No keyrings, or a container's filter in front of them, which stays in force.
        e if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => Ok(()),
        e => Err(e),
    }
}

/// Numbers of ioctl: by architecture (<linux/audit.h>), that of this program and those it can start.
#[cfg(target_arch = "x86_64")]
const IOCTL: &[(u32, u32)] = &[
    (0xc000_003e, 16),
    (0xc000_003e, 514),
    (0xc000_003e, 0x4000_0202),
    (0x4000_0003, 54),
];
/// As above.
#[cfg(target_arch = "aarch64")]
const IOCTL: &[(u32, u32)] = &[(0xc000_00b7, 29), (0x4000_0028, 54)];
/// As above.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const IOCTL: &[(u32, u32)] = &[];

/// Type into no terminal from now on: neither this thread nor what it starts. Needs CAP_SYS_ADMIN in the user
/// namespace, or no_new_privs.
///
/// # Errors
/// When the kernel has no such filter, or podwire none for this architecture.
pub(super) fn leave_typing() -> io::Result<()> {
    if IOCTL.is_empty() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mut filter = typing_filter();
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the kernel copies the program, which lives until then, and verifies it.
    let rc = unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        )
    };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Refuses ioctl with TIOCSTI (type a character) and TIOCLINUX (paste on a console), as EPERM.
fn typing_filter() -> Vec<libc::sock_filter> {
    let step = |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    // Offsets in struct seccomp_data; of the second argument the half that the kernel looks at.
    let (nr, arch) = (0, 4);
    let request = 24 + if cfg!(target_endian = "big") { 4 } else { 0 };
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0);
    let jump = |k, jt, jf| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k, jt, jf);
    let answer = |k| step(libc::BPF_RET | libc::BPF_K, k, 0, 0);
    let mut filter = Vec::new();
    for (architecture, ioctl) in IOCTL {
        filter.extend([
            load(arch),
            jump(*architecture, 0, 6),
            load(nr),
            jump(*ioctl, 0, 4),
            load(request),
            jump(libc::TIOCSTI as u32, 1, 0),
            jump(libc::TIOCLINUX as u32, 0, 1),
            answer(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        ]);
    }
    filter.push(answer(libc::SECCOMP_RET_ALLOW));
    filter
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_pod_is_ours_when_its_root_is() {
        let root = "         0          0 4294967295\n";
        assert_eq!(Whose::tell(root, 0, 0), Whose::Own);
        for own in [0, 1000] {
            let single = |inside: u32| format!("{inside} {own} 1\n");
            assert_eq!(Whose::tell(&single(0), own, own), Whose::Own);
            assert_eq!(Whose::tell(&single(5), own, own), Whose::Own);
            assert_eq!(Whose::tell("", own, own), Whose::Own);
            let subids = format!("0 {own} 1\n1 100000 65536\n");
            assert_eq!(Whose::tell(&subids, own, own), Whose::Own);
        }
        for others in [
            ("0 1001 1\n", 1001),
            ("5 1001 1\n", 1001),
            ("", 1001),
            // Made by the caller, for others to work in.
            ("0 100000 65536\n", 1000),
            ("5 1000 1\n6 100000 1\n", 1000),
            ("5 1000 2\n", 1000),
            ("rubbish", 1000),
        ] {
            assert_eq!(Whose::tell(others.0, others.1, 1000), Whose::Others, "{others:?}");
        }
    }

    #[test]
    fn nothing_is_typed_behind_the_filter() {
        let asked = |request: libc::c_ulong| {
            let null = std::fs::File::open("/dev/null").unwrap();
            // SAFETY: /dev/null knows no requests and reads no argument.
            let rc = unsafe { libc::ioctl(null.as_raw_fd(), request, 0) };
            (rc < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap())
        };
        let thread = std::thread::spawn(move || {
            assert_eq!(asked(libc::TIOCSTI), Some(libc::ENOTTY));
            rustix::thread::set_no_new_privs(true).unwrap();
            leave_typing().unwrap();
            assert_eq!(asked(libc::TIOCSTI), Some(libc::EPERM));
            assert_eq!(
                asked(libc::TIOCSTI | 1 << 32),
                Some(libc::EPERM),
                "the kernel drops the upper half"
            );
            assert_eq!(asked(libc::TIOCLINUX), Some(libc::EPERM));
            assert_eq!(asked(libc::TCGETS), Some(libc::ENOTTY));
        });
        thread.join().unwrap();
    }
}
