//! Safe owners of TAPs and underlay sockets. Nothing here yet.
