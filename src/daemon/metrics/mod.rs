//! Metrics for Prometheus: what the node counts, as a page of text served over HTTP from the control thread.
//!
//! ```text
//! endpoint: accept -> request (http) -> page: one Report of the worker, as text -> answer -> close
//! ```
//!
//! The data path takes part as it does in `podwire status`: it answers one order per page, and a page is
//! handed out again for a tenth of a second, so that no crowd of scrapers costs it more than ten answers a
//! second. Requests, connections and their time are bounded; without a scraper nothing wakes up.
//! `docs/metrics.md` explains each metric, and a test compares it with what is exported.

mod endpoint;
mod http;
mod page;

pub use endpoint::{Endpoint, Endpoints, MAX_CONNECTIONS, Serves, TIME_LIMIT};
pub use page::{Membership, Page, attach_histogram};

#[cfg(test)]
mod tests;
