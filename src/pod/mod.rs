//! Namespaces of pods and the TAP hand-over. Nothing here yet.
