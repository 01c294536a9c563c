//! Super-frames for the tests of this folder.

use crate::wire::bytes::put_be16;
use crate::wire::checksum::Sum;
use crate::wire::{Gso, VnetHdr, proto};

/// A super-frame as a TAP delivers it: lengths right, transport checksum left out.
pub fn super_frame(v6: bool, tcp: bool, options: usize, payload: &[u8], flags: u8) -> Vec<u8> {
    let mut l4 = vec![0x30, 0x39, 0, 80];
    if tcp {
        l4.extend(0xffff_ff00u32.to_be_bytes());
        l4.extend([0, 0, 0, 1, (5 + options as u8) << 4, flags, 1, 0, 0, 0, 0, 0]);
        l4.extend(std::iter::repeat_n(1, options * 4));
    } else {
        l4.extend(((8 + payload.len()) as u16).to_be_bytes());
        l4.extend([0, 0]);
    }
    l4.extend(payload);
    let mut f = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    let protocol = if tcp { proto::TCP } else { proto::UDP };
    if v6 {
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        f.extend((l4.len() as u16).to_be_bytes());
        f.extend([protocol, 64]);
        f.extend([0xfd; 16]);
        f.extend([0xfc; 16]);
    } else {
        f.extend([8, 0, 0x45, 0]);
        f.extend(((20 + l4.len()) as u16).to_be_bytes());
        f.extend([0xff, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = Sum::default().with(&f[14..34]).finish();
        put_be16(&mut f, 24, sum);
    }
    f.extend(l4);
    f
}

pub fn vnet(v6: bool, tcp: bool, gso_size: u16) -> VnetHdr {
    let l4 = if v6 { 54 } else { 34 };
    let gso = [[Gso::Udp, Gso::Udp], [Gso::Tcp4, Gso::Tcp6]][usize::from(tcp)][usize::from(v6)];
    VnetHdr {
        partial: Some((l4, if tcp { 16 } else { 6 })),
        gso,
        ecn: false,
        hdr_len: 0,
        gso_size,
    }
}
