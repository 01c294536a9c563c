//! Services: from what people write to what the data path balances by and DNS answers.
//!
//! ```text
//!  files of a folder --+                                    +--> ServiceChanges   (for the worker)
//!                      +-- manifest --> Object --+          |
//!  keys of the store --+   (yaml)                +-> Catalogue --> ServiceRecords   (for DNS)
//!                                                |          |
//!  pods: labels, addresses, state, ports --------+          +--> problems, node ports wanted
//! ```
//!
//! [`manifest`] understands Kubernetes' `Service` and `EndpointSlice`, or refuses them by name: nothing that would change
//! what happens is ignored. [`folder`] is the state of a folder of them, fed with what its files say; [`Catalogue`] puts
//! Services and pods together, by Service, so that one change among ten thousand costs what it concerns; [`claims`]
//! decides who has an address or a port of which there is one, with the same outcome on every node and in any order.
//! [`shared`] is what nodes tell each other by their store.

mod catalogue;
mod claims;
mod compute;
pub mod folder;
pub mod manifest;
pub mod pods;
mod read;
mod rules;
pub mod shared;
mod slice;
mod spec;
pub mod yaml;

pub use catalogue::{Catalogue, MAX_OBJECTS, Pins, Taken, Update};
pub use compute::{HealthCheck, NodePort};
pub use manifest::{EndpointSlice, Manifest, Object, ObjectKey, Service, Source};
pub use pods::{PodFacts, PodId};
pub use rules::{Rules, default_ranges};
