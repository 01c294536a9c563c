//! Bandwidth limits of pods.
//!
//! Towards a pod, frames that come too fast wait in a ring of the port, as behind tc's tbf: for 25 ms at most at the
//! port's rate, but room for two super-frames there is always; what finds no room is dropped (`bandwidth_limit`). All
//! that is written to a pod comes by here, whoever sent it.
//!
//! What the node itself says in ARP, neighbour discovery and ICMP goes before what waits, so that a pod at a low rate is
//! not taken for one that is gone; it is charged all the same, and beyond some KiB in a second it waits as well.
//!
//! From a pod nothing is dropped: while its bucket is in debt its TAP is not read, and its own kernel's queues decide.
//!
//! What is charged is what a wire would carry: each segment of a super-frame has its headers.

use super::recover::{Lent, Suspect};
use super::{Exits, Node};
use crate::buf::Span;
use crate::model::{DropReason, Instant, PortId, Rate};
use crate::switch::{FrameQueue, RateBucket, TokenBucket, Waiting};
use crate::wire::{Gso, Headers, L3, VNET_HDR_LEN, VnetHdr, proto};

/// For how long a frame waits at most.
const LATENCY_MS: u64 = 25;
/// Whatever the rate is, a queue has no more bytes than this.
const MOST_WAITING: u64 = 4 << 20;
/// Bytes of the node's own that go before what waits: in a second, and at once.
const AHEAD: u32 = 8 << 10;

/// The limit towards a pod.
#[derive(Debug)]
pub(super) struct Ingress {
    bucket: RateBucket,
    queue: FrameQueue,
    /// What of the node's own may still go before what waits.
    ahead: TokenBucket,
}

impl Ingress {
    /// Nothing waits, and a burst may pass.
    pub fn new(rate: &Rate) -> Ingress {
        let bytes = (rate.bits_in_ms(LATENCY_MS) / 8).min(MOST_WAITING);
        Ingress {
            bucket: RateBucket::new(rate),
            queue: FrameQueue::new(bytes as usize),
            ahead: TokenBucket::new(AHEAD, AHEAD),
        }
    }
}

/// Bytes on a wire of a frame of `len` bytes that begins with `first`, which has at least its headers.
fn wire_len(len: usize, first: &[u8], h: &Headers, vnet: &VnetHdr) -> u64 {
    if vnet.gso == Gso::None {
        return len as u64;
    }
    let headers = h.l4 + h.l4_len(first);
    let payload = len.saturating_sub(headers);
    // What a pod claims was not checked yet: who lies pays.
    let segments = payload.div_ceil(usize::from(vnet.gso_size.max(1))).max(1);
    (len + (segments - 1) * headers) as u64
}

impl Node {
    /// Whether what is written to a port has a limit.
    #[inline]
    pub(super) fn is_limited(&self, port: PortId) -> bool {
        let state = self.states.get(usize::from(port.0)).and_then(Option::as_ref);
        state.is_some_and(|s| s.ingress.is_some())
    }

    /// Whether a frame for a limited port may be written now; `false` when it waits.
    ///
    /// # Errors
    /// [`DropReason::BandwidthLimit`] when it can do neither.
    pub(super) fn may_pass(
        &mut self,
        to: PortId,
        (h, vnet): (&Headers, &VnetHdr),
        head: &[u8],
        memory: &[u8],
        pieces: &[Span],
        now: Instant,
    ) -> Result<bool, DropReason> {
        let first = pieces.first().copied().unwrap_or_default().of(memory);
        let len = head.len() + pieces.iter().map(|p| p.len()).sum::<usize>();
        let cost = wire_len(len, first, h, vnet);
        let port = self.port(to).ok_or(DropReason::PortGone)?;
        let Some(limit) = &mut port.ingress else {
            return Ok(true);
        };
        if limit.queue.is_empty() && limit.bucket.is_open(now) {
            limit.bucket.charge(cost);
            return Ok(true);
        }
        if !limit.queue.push(vnet, cost, head, memory, pieces) {
            port.counters.limited_to_pod += 1;
            return Err(DropReason::BandwidthLimit);
        }
        let is_first = limit.queue.len() == 1;
        port.counters.held_to_pod += 1;
        self.counters.held += 1;
        if is_first {
            self.waiting.push(to);
        }
        Ok(false)
    }

    /// The same for a frame of the node itself.
    pub(super) fn own_may_pass(
        &mut self,
        to: PortId,
        frame: &[u8],
        now: Instant,
    ) -> Result<bool, DropReason> {
        let h = Headers::parse(frame)?;
        let len = frame.len();
        let is_control = h.l3 == L3::Arp || matches!(h.proto, proto::ICMP | proto::ICMPV6);
        let port = self.port(to).ok_or(DropReason::PortGone)?;
        if let Some(limit) = &mut port.ingress
            && is_control
            && limit.ahead.take(now, u32::try_from(len).unwrap_or(u32::MAX))
        {
            // So that the time before counts as credit and not against the debt.
            limit.bucket.is_open(now);
            limit.bucket.charge(len as u64);
            return Ok(true);
        }
        self.may_pass(to, (&h, &VnetHdr::default()), frame, &[], &[], now)
    }

    /// Write what has waited long enough. To be called in each turn, and when [`Node::next_release`] says.
    pub fn release(&mut self, now: Instant, exits: &mut impl Exits) {
        let mut i = 0;
        while let Some(port) = self.waiting.get(i).copied() {
            if self.release_port(port, now, exits) {
                i += 1;
            } else {
                self.waiting.swap_remove(i);
            }
        }
    }

    /// Whether there is more that waits.
    fn release_port(&mut self, port: PortId, now: Instant, exits: &mut impl Exits) -> bool {
        let limit = self.port(port).and_then(|p| p.ingress.take());
        let mut lent = Lent::new(self, limit, |node, limit| {
            if let Some(port) = node.port(port) {
                port.ingress = limit;
            }
        });
        let (node, Some(limit)) = lent.parts() else {
            return false;
        };
        while !limit.queue.is_empty() && limit.bucket.is_open(now) {
            let Some(waiting) = limit.queue.front() else { break };
            limit.bucket.charge(waiting.cost);
            // Its memory is not used again before something is put in.
            limit.queue.pop();
            node.counters.held -= 1;
            node.suspect = Some(Suspect::Nobody);
            let written = node.write_waiting(port, limit.queue.memory_mut(), &waiting, exits);
            node.suspect = None;
            if let Err(reason) = written {
                node.drops.add(reason, 1);
            }
        }
        !limit.queue.is_empty()
    }

    fn write_waiting(
        &mut self,
        port: PortId,
        memory: &mut [u8],
        waiting: &Waiting,
        exits: &mut impl Exits,
    ) -> Result<(), DropReason> {
        let caps = self.ports.spec(port).ok_or(DropReason::PortGone)?.caps;
        let h = Headers::parse(waiting.span.of(memory))?;
        self.write(port, caps, memory, (&h, &waiting.vnet), &[waiting.span], exits)
    }

    /// When the first of what waits may be written.
    pub fn next_release(&self) -> Option<Instant> {
        let state = |port: &PortId| self.states.get(usize::from(port.0))?.as_ref();
        let limits = self
            .waiting
            .iter()
            .filter_map(|port| state(port)?.ingress.as_ref());
        limits.map(|limit| limit.bucket.opens_at()).min()
    }

    /// When a port's queue takes a super-frame again, so that half of what waits now is gone; none when it does.
    pub(super) fn room_at(&self, port: PortId, now: Instant) -> Option<Instant> {
        let state = self.states.get(usize::from(port.0))?.as_ref()?;
        let limit = state.ingress.as_ref().filter(|limit| !limit.queue.has_room())?;
        let half = (limit.queue.bytes() / 2) as u64;
        Some(now + limit.bucket.takes(half))
    }

    /// Nothing waits for a port any more.
    pub(super) fn forget_waiting(&mut self, port: PortId) {
        let limit = self.port(port).and_then(|p| p.ingress.take());
        let waited = limit.map_or(0, |l| l.queue.len() as u64);
        self.waiting.retain(|p| *p != port);
        self.counters.held -= waited;
        self.drops.add(DropReason::PortGone, waited);
    }

    /// Whether a pod's TAP may be read now.
    #[inline]
    pub fn may_read(&mut self, port: PortId, now: Instant) -> bool {
        let Some(state) = self.port(port) else { return true };
        let Some(limit) = &mut state.egress else {
            return true;
        };
        let open = limit.is_open(now);
        if !open {
            state.paused.get_or_insert(now);
        } else if let Some(since) = state.paused.take() {
            state.counters.paused_from_pod_us += (now.max(since) - since).total_micros();
        }
        open
    }

    /// When a TAP that may not be read now is worth another look: its limit allows it, and it does not rest.
    pub fn next_read(&self, port: PortId) -> Option<Instant> {
        let state = self.states.get(usize::from(port.0))?.as_ref()?;
        let limit = state.egress.as_ref().map(|limit| limit.opens_at());
        limit.max(state.rest.until())
    }

    /// A frame of a limited pod was read.
    pub(super) fn charge_sender(&mut self, port: PortId, memory: &[u8], span: Span) {
        let has_header = self.ports.spec(port).is_some_and(|spec| spec.caps.vnet_hdr);
        let frame = span.of(memory);
        let before = Span::new(span.start().saturating_sub(VNET_HDR_LEN), span.start());
        let vnet = VnetHdr::parse(before.of(memory))
            .ok()
            .filter(|v| has_header && v.gso != Gso::None);
        let cost = match vnet.zip(Headers::parse(frame).ok()) {
            Some((vnet, h)) => wire_len(frame.len(), frame, &h, &vnet),
            None => frame.len() as u64,
        };
        if let Some(limit) = self.port(port).and_then(|p| p.egress.as_mut()) {
            limit.charge(cost);
        }
    }
}
