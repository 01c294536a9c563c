//! Memory of the data path: one [`Arena`] per direction, and [`Span`]s that point into it.
//!
//! A frame is read once into the arena and stays where it is until it has left; headers that must be made are
//! put behind it. What leaves is a list of spans, which the system calls gather: payload bytes are copied by
//! the kernel only. Offsets instead of references keep the cores plain data, and a span that does not fit
//! reads as empty, so that a mistake cannot become a panic.

mod message;

pub use message::{Message, Progress, Received, Refusal};

/// So many bytes of an arena, from an offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// How many bytes.
    pub len: u32,
}

impl Span {
    /// The bytes from `start` to `end`. Arenas are far smaller than 4 GiB, so offsets fit.
    #[inline]
    pub fn new(start: usize, end: usize) -> Span {
        Span {
            start: start as u32,
            len: end.saturating_sub(start) as u32,
        }
    }

    /// Offset of the first byte.
    #[inline]
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// Offset behind the last byte.
    #[inline]
    pub fn end(self) -> usize {
        self.start as usize + self.len as usize
    }

    /// How many bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Its bytes.
    #[inline]
    pub fn of(self, memory: &[u8]) -> &[u8] {
        memory.get(self.start()..self.end()).unwrap_or_default()
    }

    /// Its bytes, to be changed.
    #[inline]
    pub fn of_mut(self, memory: &mut [u8]) -> &mut [u8] {
        memory.get_mut(self.start()..self.end()).unwrap_or_default()
    }

    /// A part of it, in offsets relative to its start.
    #[inline]
    pub fn part(self, from: usize, to: usize) -> Span {
        Span::new(self.start() + from, self.start() + to)
    }
}

/// A piece of memory that is filled from the front and emptied at once. Emptying it often keeps the part in
/// use small, and so in the processor's cache.
#[derive(Debug)]
pub struct Arena {
    bytes: Box<[u8]>,
    used: usize,
}

impl Arena {
    /// An empty arena of `size` bytes. Pages are touched only when they are used.
    pub fn new(size: usize) -> Arena {
        Arena {
            bytes: vec![0; size].into_boxed_slice(),
            used: 0,
        }
    }

    /// All its memory: spans are relative to this.
    #[inline]
    pub fn memory(&self) -> &[u8] {
        &self.bytes
    }

    /// All its memory, to be changed.
    #[inline]
    pub fn memory_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// How many bytes are free.
    #[inline]
    pub fn room(&self) -> usize {
        self.bytes.len() - self.used
    }

    /// How many bytes are in use; to be given to [`Arena::rewind`] later.
    #[inline]
    pub fn used(&self) -> usize {
        self.used
    }

    /// The free bytes; what was written there is kept by [`Arena::take`].
    #[inline]
    pub fn free_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.used..]
    }

    /// Keep the first `len` free bytes (fewer when there are not so many).
    #[inline]
    pub fn take(&mut self, len: usize) -> Span {
        let start = self.used;
        self.used = (start + len).min(self.bytes.len());
        Span::new(start, self.used)
    }

    /// Give everything back from `used` on.
    #[inline]
    pub fn rewind(&mut self, used: usize) {
        self.used = self.used.min(used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_fills_and_rewinds() {
        let mut a = Arena::new(10);
        a.free_mut()[..4].copy_from_slice(b"abcd");
        let first = a.take(4);
        assert_eq!((first.of(a.memory()), a.room()), (&b"abcd"[..], 6));
        assert_eq!(first.part(1, 3).of(a.memory()), b"bc");
        let second = a.take(100);
        assert_eq!((second.len(), a.room()), (6, 0));
        second.of_mut(a.memory_mut()).fill(7);
        a.rewind(4);
        assert_eq!(a.room(), 6);
        assert_eq!(Span::new(8, 12).of(a.memory()), b"");
    }
}
