//! Memory of the data path: slab, headroom, gather lists. Nothing here yet.
