//! flannel's formats in etcd and on disk, exactly: the keys and values of leases, the network's configuration,
//! `subnet.env`. Pure: bytes in, meaning out, and back.
//!
//! The forms are those of flannel v0.28 (`pkg/subnet`, `pkg/subnet/etcd`, `pkg/backend/vxlan`). Anybody who reaches
//! the store can write there: what is read is bounded, and what is wrong is said in one sentence.

mod env;
mod json;
mod key;
mod network;
mod range;
mod value;

pub use env::{EnvError, SubnetEnv};
pub use key::{KeyError, SubnetKey, config_key, shared_key, subnets_key};
pub use network::{Network, NetworkError};
pub use range::{Range4, Range6};
pub use value::{Abilities, LeaseValue, ValueError};
