//! Offload features of an interface, by the names `ethtool -k` shows (linux/ethtool.h, ETHTOOL_SFEATURES).
#![allow(unsafe_code)]

use rustix::net::{AddressFamily, SocketType};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GSTRINGS: u32 = 0x1b;
const GSSET_INFO: u32 = 0x37;
const SFEATURES: u32 = 0x3b;
/// The string set of feature names.
const FEATURES: u32 = 4;
/// Bytes of one name.
const NAME: usize = 32;
/// Most features; kernels have some 64.
const MOST: usize = 256;

/// Switch features of the interface `name` of the current network namespace; those it does not have are left
/// out.
///
/// # Errors
/// What the kernel says.
pub fn set_features(name: &str, wanted: &[(&str, bool)]) -> io::Result<()> {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let names = feature_names(&socket, name)?;
    // ethtool_sfeatures: command, number of blocks; a block of 32 features is what to change and to what.
    let blocks = names.len().div_ceil(32);
    let mut request = vec![0u32; 2 + 2 * blocks];
    request[0] = SFEATURES;
    request[1] = blocks as u32;
    for (feature, on) in wanted {
        if let Some(bit) = names.iter().position(|n| n == feature) {
            let (block, mask) = (2 + bit / 32 * 2, 1 << (bit % 32));
            request[block] |= mask;
            request[block + 1] |= if *on { mask } else { 0 };
        }
    }
    ask(&socket, name, &mut request)
}

fn feature_names(socket: &OwnedFd, name: &str) -> io::Result<Vec<String>> {
    // ethtool_sset_info: command, reserved, mask of sets (64 bits), then the length of each set.
    let mut info = [GSSET_INFO, 0, 0, 0, 0];
    let mask = (1u64 << FEATURES).to_ne_bytes();
    info[2] = u32::from_ne_bytes([mask[0], mask[1], mask[2], mask[3]]);
    info[3] = u32::from_ne_bytes([mask[4], mask[5], mask[6], mask[7]]);
    ask(socket, name, &mut info)?;
    let count = info[4] as usize;
    if count > MOST {
        return Err(io::ErrorKind::Unsupported.into());
    }
    // ethtool_gstrings: command, set, length, then the names.
    let mut strings = vec![0u32; 3 + count * NAME / 4];
    strings[..3].copy_from_slice(&[GSTRINGS, FEATURES, count as u32]);
    ask(socket, name, &mut strings)?;
    let bytes: Vec<u8> = strings[3..].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let text = |b: &[u8]| {
        let end = b.iter().position(|c| *c == 0).unwrap_or(b.len());
        String::from_utf8_lossy(&b[..end]).into_owned()
    };
    Ok(bytes.chunks_exact(NAME).map(text).collect())
}

/// One request; the kernel answers in its place.
fn ask(socket: &OwnedFd, name: &str, request: &mut [u32]) -> io::Result<()> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: an all-zero ifreq is valid: it holds integers, byte arrays and a pointer.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL reads the name, which ends in a zero, and reads and writes at `ifru_data` what the
    // command there says: every caller made `request` as long as its command's header and the elements that
    // follow. Of names the kernel writes as many as GSSET_INFO told (ethtool_get_strings), which is what there is
    // room for.
    let rc = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut ifreq) };
    if rc < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_have_the_names_ethtool_shows() {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        let names = feature_names(&socket, "lo").unwrap();
        for feature in [
            "tx-tcp-segmentation",
            "tx-generic-segmentation",
            "rx-gro",
            "tx-udp-segmentation",
        ] {
            assert!(
                names.iter().any(|n| n == feature),
                "{feature} is not among {names:?}"
            );
        }
        assert!(set_features("no-such-device", &[]).is_err());
        assert!(set_features("a-name-too-long-for-an-interface", &[]).is_err());
    }
}
