//! Counters of a node and of its ports.

use super::Drops;
use serde::{Deserialize, Serialize};

/// Counters of one port.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames (super-frames count once) read from the pod.
    pub frames_from_pod: u64,
    /// Bytes read from the pod, without the virtio-net header.
    pub bytes_from_pod: u64,
    /// Frames written to the pod.
    pub frames_to_pod: u64,
    /// Bytes written to the pod.
    pub bytes_to_pod: u64,
    /// Frames of this pod that were dropped.
    pub drops: u64,
    /// Frames for the pod that its bandwidth limit made wait.
    #[serde(default)]
    pub held_to_pod: u64,
    /// Frames for the pod that were dropped, as more waited already than its bandwidth limit allows.
    #[serde(default)]
    pub limited_to_pod: u64,
    /// Microseconds in which nothing was read from the pod, as its bandwidth limit had it.
    #[serde(default)]
    pub paused_from_pod_us: u64,
    /// Panics of the node at frames of the pod.
    #[serde(default)]
    pub panics: u64,
    /// Milliseconds until frames are read from the pod again, after a panic; zero when they are.
    #[serde(default)]
    pub parked_ms: u64,
}

/// Panics of the node, by what was given up for them: each is a bug.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Panics {
    /// At frames of pods, which are not read for a while then.
    pub pod: u64,
    /// At TCP flows or datagram sockets of the way out and of published ports.
    pub flow: u64,
    /// At datagrams of peers.
    pub peer: u64,
    /// At frames on their way to peers, or that had waited for a pod's bandwidth limit.
    #[serde(default)]
    pub frames: u64,
    /// At what is nobody's in particular.
    pub node: u64,
}

/// The node's frame and system-call counters.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct NodeCounters {
    /// Frames read from pods.
    pub frames_from_pods: u64,
    /// Datagrams received from the underlay.
    pub datagrams_from_peers: u64,
    /// Datagrams that were merged into the super-frame before them.
    pub coalesced: u64,
    /// Acknowledgements of pods that a newer one stood for on the way to a peer.
    pub acks_merged: u64,
    /// Frames the node made itself (answers, ICMP errors, probes).
    pub originated: u64,
    /// Extra copies of broadcast and multicast frames.
    pub copied: u64,
    /// Frames written to pods.
    pub frames_to_pods: u64,
    /// Frames (before segmentation) sent to peers.
    pub frames_to_peers: u64,
    /// Datagrams sent to peers.
    pub datagrams_to_peers: u64,
    /// Frames the node took in and answered or used itself.
    pub consumed: u64,
    /// Frames dropped, all reasons.
    pub dropped: u64,
    /// Frames that wait at the moment for the bandwidth limits of pods.
    #[serde(default)]
    pub held: u64,
    /// Bytes read from TAPs.
    pub tap_read_bytes: u64,
    /// Read calls on TAPs that returned a frame.
    pub tap_reads: u64,
    /// Bytes written to TAPs.
    pub tap_write_bytes: u64,
    /// Write calls on TAPs.
    pub tap_writes: u64,
    /// Send calls on underlay sockets.
    pub underlay_sends: u64,
    /// Receive calls on the underlay socket that returned data.
    pub underlay_recvs: u64,
    /// Messages those receive calls returned (a GRO train is one).
    pub underlay_messages: u64,
    /// Times the worker woke up.
    pub wakeups: u64,
    /// Panics that were caught.
    #[serde(default)]
    pub panics: Panics,
}

impl NodeCounters {
    /// Frames and datagrams that came in, minus everything they became; zero when nothing got lost
    /// uncounted. Drops are those of `dropped`.
    pub fn imbalance(&self) -> i128 {
        let came = i128::from(self.frames_from_pods)
            + i128::from(self.datagrams_from_peers)
            + i128::from(self.originated)
            + i128::from(self.copied);
        let went = i128::from(self.frames_to_pods)
            + i128::from(self.frames_to_peers)
            + i128::from(self.coalesced)
            + i128::from(self.acks_merged)
            + i128::from(self.consumed)
            + i128::from(self.held)
            + i128::from(self.dropped);
        came - went
    }

    /// Record the sum of `drops`.
    pub fn with_drops(mut self, drops: &Drops) -> Self {
        self.dropped = drops.total();
        self
    }
}
