//! (being written)
/// Placeholder.
pub struct ApiError;
/// Placeholder.
pub struct Client;
/// Placeholder.
pub struct Connection;
