//! The `Node`: parse once, decide once, act once. Nothing here yet.
