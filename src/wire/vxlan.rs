//! The VXLAN header (RFC 7348 section 5): `[08 00 00 00 | VNI 24 bits | 00]`.

use crate::model::{DropReason, Vni};

/// Length of the header.
pub const VXLAN_LEN: usize = 8;

/// The header of a frame in network `vni`.
pub fn emit(vni: Vni) -> [u8; VXLAN_LEN] {
    let v = u32::from(vni).to_be_bytes();
    [8, 0, 0, 0, v[1], v[2], v[3], 0]
}

/// The Ethernet frame inside a datagram, if it belongs to network `vni`. Reserved bits must be zero: the
/// kernel's VTEP is stricter than the RFC here (vxlan_rcv), because an unknown bit may change the meaning
/// of what follows.
///
/// # Errors
/// The reason the datagram must be dropped for.
pub fn decap(datagram: &[u8], vni: Vni) -> Result<&[u8], DropReason> {
    let (header, frame) = datagram
        .split_first_chunk::<VXLAN_LEN>()
        .ok_or(DropReason::Truncated)?;
    if header[0] != 8 || header[1..4] != [0; 3] || header[7] != 0 {
        return Err(DropReason::BadVxlan);
    }
    if *header != emit(vni) {
        return Err(DropReason::WrongVni);
    }
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_linux_sends_for_vni_1() {
        let vni = Vni::try_from(1).unwrap();
        assert_eq!(emit(vni), [8, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(decap(&[8, 0, 0, 0, 0, 0, 1, 0, 0xaa], vni), Ok(&[0xaa][..]));
        assert_eq!(decap(&[8, 0, 0, 0, 0, 0, 1], vni), Err(DropReason::Truncated));
        assert_eq!(decap(&[8, 0, 0, 0, 0, 0, 2, 0], vni), Err(DropReason::WrongVni));
        for bad in [
            [0, 0, 0, 0, 0, 0, 1, 0],
            [8, 1, 0, 0, 0, 0, 1, 0],
            [8, 0, 0, 0, 0, 0, 1, 1],
        ] {
            assert_eq!(decap(&bad, vni), Err(DropReason::BadVxlan));
        }
    }
}
