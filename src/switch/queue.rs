//! Frames that wait for a pod, in a ring of bytes.
//!
//! ```text
//! [length | cost | virtio-net header | frame] [length | ...        each in one piece, oldest first
//! ```
//!
//! All memory is taken when the queue is made. What is bounded are bytes, not frames: a super-frame waits as long as its
//! segments would. A frame that does not fit before the end of the ring goes to its beginning.

use crate::buf::Span;
use crate::wire::bytes::{array, put};
use crate::wire::{VNET_HDR_LEN, VnetHdr};

/// Before each frame.
const RECORD: usize = 4 + 8 + VNET_HDR_LEN;
/// The longest frame, with what stands before it.
const LONGEST: usize = RECORD + 14 + 65_535;
/// Stands for the length where the rest of the ring was left out.
const SKIP: u32 = u32::MAX;

/// The frame that has waited longest.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Where it is in [`FrameQueue::memory_mut`].
    pub span: Span,
    /// Its virtio-net header.
    pub vnet: VnetHdr,
    /// What its sender asked to be charged for it, in bytes.
    pub cost: u64,
}

/// The queue.
#[derive(Debug)]
pub struct FrameQueue {
    memory: Box<[u8]>,
    head: usize,
    tail: usize,
    frames: usize,
    /// Bytes of all records.
    bytes: usize,
    most: usize,
}

impl FrameQueue {
    /// A queue of about so many bytes, at least two of the longest frames. Pages are touched only when they are used.
    pub fn new(bytes: usize) -> FrameQueue {
        let most = bytes.max(2 * LONGEST);
        FrameQueue {
            // One frame may be left out at the end, and another one must not meet the oldest.
            memory: vec![0; most + 2 * LONGEST].into_boxed_slice(),
            head: 0,
            tail: 0,
            frames: 0,
            bytes: 0,
            most,
        }
    }

    /// How many frames wait.
    pub fn len(&self) -> usize {
        self.frames
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Bytes that wait, with what stands before each frame.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is room for the longest frame.
    pub fn has_room(&self) -> bool {
        self.bytes + LONGEST <= self.most
    }

    /// Put a frame in, which is `head` and then the pieces of `memory`. `false` when it does not fit.
    pub fn push(&mut self, vnet: &VnetHdr, cost: u64, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        let len = head.len() + pieces.iter().map(|p| p.len()).sum::<usize>();
        let record = RECORD + len;
        if record > LONGEST || self.bytes + record > self.most {
            return false;
        }
        if self.frames == 0 {
            self.head = 0;
            self.tail = 0;
        }
        let wrapped = self.frames > 0 && self.tail <= self.head;
        let end = if wrapped { self.head } else { self.memory.len() };
        if end - self.tail < record {
            if wrapped || self.head < record {
                return false;
            }
            if self.memory.len() - self.tail >= 4 {
                put(&mut self.memory, self.tail, &SKIP.to_ne_bytes());
            }
            self.tail = 0;
        }
        let mut at = self.tail;
        let mut write = |bytes: &[u8]| {
            put(&mut self.memory, at, bytes);
            at += bytes.len();
        };
        write(&(len as u32).to_ne_bytes());
        write(&cost.to_ne_bytes());
        write(&vnet.emit());
        write(head);
        pieces.iter().for_each(|p| write(p.of(memory)));
        self.tail += record;
        self.frames += 1;
        self.bytes += record;
        true
    }

    /// The oldest frame.
    pub fn front(&mut self) -> Option<Waiting> {
        if self.frames == 0 {
            return None;
        }
        let length = |at: usize| u32::from_ne_bytes(array(&self.memory, at));
        if self.memory.len() - self.head < 4 || length(self.head) == SKIP {
            self.head = 0;
        }
        let at = self.head;
        let start = at + RECORD;
        Some(Waiting {
            span: Span::new(start, start + length(at) as usize),
            cost: u64::from_ne_bytes(array(&self.memory, at + 4)),
            vnet: VnetHdr::parse(&self.memory[at + 12..start]).unwrap_or_default(),
        })
    }

    /// The memory spans point into.
    pub fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Forget the oldest frame.
    pub fn pop(&mut self) {
        if let Some(oldest) = self.front() {
            let record = RECORD + oldest.span.len();
            self.head += record;
            self.frames -= 1;
            self.bytes -= record;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Gso;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn frames_of_pieces_come_out_whole_with_their_headers() {
        let mut q = FrameQueue::new(0);
        let vnet = VnetHdr {
            partial: Some((34, 16)),
            gso: Gso::Tcp4,
            ecn: true,
            hdr_len: 66,
            gso_size: 1398,
        };
        assert!(q.front().is_none());
        assert!(q.push(&vnet, 7, b"ab", b"..cd..ef", &[Span::new(2, 4), Span::new(6, 8)]));
        assert!(q.push(&VnetHdr::default(), 8, b"", b"", &[]));
        let first = q.front().unwrap();
        assert_eq!(
            (first.vnet, first.cost, first.span.of(q.memory_mut())),
            (vnet, 7, &b"abcdef"[..])
        );
        q.pop();
        assert_eq!(
            q.front().map(|w| (w.vnet, w.cost, w.span.len())),
            Some((VnetHdr::default(), 8, 0))
        );
        q.pop();
        q.pop();
        assert!(q.is_empty() && q.front().is_none());
    }

    #[test]
    fn two_of_the_longest_fit_and_no_third() {
        let mut q = FrameQueue::new(0);
        let long = vec![7; 14 + 65_535];
        let vnet = VnetHdr::default();
        assert!(
            !q.push(&vnet, 0, &[&long[..], &[0]].concat(), &[], &[]),
            "no such frame"
        );
        for _ in 0..10 {
            assert!(q.push(&vnet, 0, &long, &[], &[]) && q.push(&vnet, 0, &long, &[], &[]));
            assert!(!q.push(&vnet, 0, &[], &[], &[]));
            q.pop();
            assert!(q.push(&vnet, 0, &long, &[], &[]), "round and round");
            q.pop();
            q.pop();
        }
    }

    proptest! {
        /// As a plain queue with the same bound in bytes.
        #[test]
        fn it_is_a_queue(steps in prop::collection::vec(prop::option::of(0usize..65_549), 1..300)) {
            let mut q = FrameQueue::new(200_000);
            let mut plain: VecDeque<(u64, usize)> = VecDeque::new();
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Some(len) => {
                        let held: usize = plain.iter().map(|(_, len)| len + RECORD).sum();
                        let fits = held + len + RECORD <= 200_000;
                        let frame = vec![n as u8; len];
                        prop_assert_eq!(q.push(&VnetHdr::default(), n as u64, &frame, &[], &[]), fits);
                        if fits {
                            plain.push_back((n as u64, len));
                        }
                    }
                    None => {
                        plain.pop_front();
                        q.pop();
                    }
                }
                prop_assert_eq!(q.len(), plain.len());
                let Some((cost, len)) = plain.front() else {
                    prop_assert!(q.front().is_none());
                    continue;
                };
                let front = q.front().unwrap();
                prop_assert_eq!((front.cost, front.span.len()), (*cost, *len));
                prop_assert!(front.span.of(q.memory_mut()).iter().all(|b| *b == *cost as u8));
            }
        }
    }
}
