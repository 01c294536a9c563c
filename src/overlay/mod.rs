//! The peers and the way to them: prefix routes, path MTU, and what was heard of each.
//!
//! Between nodes podwire routes as flannel does. A peer's pod subnets are prefixes that lead to its VTEP;
//! nothing is learned from traffic, so a table is as large as the control plane says and never ages.
//!
//! ```text
//! inner destination -> Routes (longest prefix) -> PeerId -> endpoint, VTEP MAC, pod MTU
//! outer source      -> Peers::is_underlay      -> known?   inner source -> Routes -> the same peer?
//! ```

mod path;
mod peers;
mod probes;
mod routes;

pub use path::Path;
pub use peers::{PeerState, Peers, PeersFull};
pub use probes::{Admit, Ask, MOST_PROBES, Probes, Reach};
pub use routes::Routes;

use crate::model::{Mac, Vni};
use crate::wire::bytes::put;
use crate::wire::vxlan::{self, VXLAN_LEN};

/// Put the VXLAN header and the tunnel's MACs in front of an inner packet: `out` begins with room for the
/// VXLAN header, the Ethernet header follows it.
#[inline]
pub fn encap(out: &mut [u8], vni: Vni, src: Mac, dst: Mac) {
    put(out, 0, &vxlan::emit(vni));
    put(out, VXLAN_LEN, &dst.0);
    put(out, VXLAN_LEN + 6, &src.0);
}

/// The traffic class of the outer packet for an inner one: ECN is copied (RFC 6040 section 4.1), DSCP is
/// the inner one's unless a fixed one is configured.
#[inline]
pub fn outer_class(inner: u8, dscp: Option<u8>) -> u8 {
    match dscp {
        None => inner,
        Some(dscp) => dscp << 2 | inner & 3,
    }
}

/// What the outer packet's ECN field makes of the inner one's (RFC 6040 section 4.2): the new inner field, or
/// `None` when the packet must be dropped.
#[inline]
pub fn inner_ecn(inner: u8, outer: u8) -> Option<u8> {
    const NOT: u8 = 0;
    const ECT1: u8 = 1;
    const CE: u8 = 3;
    match (inner & 3, outer & 3) {
        (NOT, CE) => None,
        (NOT, _) => Some(NOT),
        (_, CE) => Some(CE),
        (0b10, ECT1) => Some(ECT1),
        (inner, _) => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecn_is_figure_4_of_rfc_6040() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            (0b00, [Some(0b00), Some(0b00), Some(0b00), None]),
            (0b10, [Some(0b10), Some(0b10), Some(0b01), Some(0b11)]),
            (0b01, [Some(0b01), Some(0b01), Some(0b01), Some(0b11)]),
            (0b11, [Some(0b11); 4]),
        ];
        for (inner, want) in table {
            let got = [0b00, 0b10, 0b01, 0b11].map(|outer| inner_ecn(inner, outer));
            assert_eq!(got, want, "inner {inner:02b}");
        }
    }

    #[test]
    fn dscp_is_inherited_or_fixed_and_ecn_always_copied() {
        assert_eq!(outer_class(0b1011_1010, None), 0b1011_1010);
        assert_eq!(outer_class(0b1011_1010, Some(8)), 0b0010_0010);
    }
}
