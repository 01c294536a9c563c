//! flannel's formats in etcd and on disk, exactly: the keys and values of leases, the network's configuration,
//! `subnet.env`. Pure: bytes in, meaning out, and back.
//!
//! The forms are those of flannel v0.28 (`pkg/subnet`, `pkg/subnet/etcd`, `pkg/backend/vxlan`).

mod env;
mod key;
mod network;
mod value;

pub use env::SubnetEnv;
pub use key::SubnetKey;
pub use network::{Network, NetworkError, Range4, Range6};
pub use value::{Abilities, LeaseValue, ValueError};
