//! Peers, prefix routes, encapsulation. Nothing here yet.
