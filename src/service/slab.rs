//! Where connections, backends and Services live: pieces that are allocated as they are needed and never move, and
//! lists through them.

/// "None" as a number of a slab.
pub(super) const NONE: u32 = u32::MAX;

/// Entries of a piece. A new piece is one allocation for so many entries; nothing is ever copied, which a growing
/// vector of tens of megabytes would stop the data path for.
const PIECE: usize = 1024;

/// Numbered values. Numbers are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    pieces: Vec<Vec<Option<T>>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            pieces: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Slab<T> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Numbers are below this.
    pub fn end(&self) -> u32 {
        match self.pieces.last() {
            Some(last) => ((self.pieces.len() - 1) * PIECE + last.len()) as u32,
            None => 0,
        }
    }

    /// Bytes allocated.
    pub fn memory(&self) -> usize {
        self.pieces.len() * PIECE * size_of::<Option<T>>() + self.free.capacity() * size_of::<u32>()
    }

    /// Put one in.
    pub fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        if let Some(n) = self.free.pop() {
            if let Some(place) = self.place(n) {
                *place = Some(value);
            }
            return n;
        }
        let n = self.end();
        if self.pieces.last().is_none_or(|p| p.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        if let Some(last) = self.pieces.last_mut() {
            last.push(Some(value));
        }
        n
    }

    /// Take one out.
    pub fn remove(&mut self, n: u32) -> Option<T> {
        let value = self.place(n)?.take()?;
        self.free.push(n);
        self.len -= 1;
        Some(value)
    }

    /// The one of a number.
    #[inline]
    pub fn get(&self, n: u32) -> Option<&T> {
        self.pieces
            .get(n as usize / PIECE)?
            .get(n as usize % PIECE)?
            .as_ref()
    }

    /// The one of a number, to be changed.
    #[inline]
    pub fn get_mut(&mut self, n: u32) -> Option<&mut T> {
        self.place(n)?.as_mut()
    }

    /// All, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.end()).filter_map(|n| Some((n, self.get(n)?)))
    }

    #[inline]
    fn place(&mut self, n: u32) -> Option<&mut Option<T>> {
        self.pieces
            .get_mut(n as usize / PIECE)?
            .get_mut(n as usize % PIECE)
    }
}

/// Neighbours in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    prev: u32,
    next: u32,
}

impl Default for Link {
    fn default() -> Link {
        Link {
            prev: NONE,
            next: NONE,
        }
    }
}

/// What can be in lists of several kinds.
pub(super) trait Linked {
    /// Its neighbours in the list of a kind it is in.
    fn link(&mut self, kind: usize) -> &mut Link;
}

/// A list through a slab, oldest first. Each entry is in one list of a kind at most, which its owner keeps track of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

impl Default for List {
    fn default() -> List {
        List {
            head: NONE,
            tail: NONE,
        }
    }
}

impl List {
    /// The oldest.
    #[inline]
    pub fn first(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// Put one at the end.
    pub fn push<T: Linked>(&mut self, slab: &mut Slab<T>, n: u32, kind: usize) {
        let tail = self.tail;
        let Some(it) = slab.get_mut(n) else { return };
        *it.link(kind) = Link {
            prev: tail,
            next: NONE,
        };
        match slab.get_mut(tail) {
            Some(last) => last.link(kind).next = n,
            None => self.head = n,
        }
        self.tail = n;
    }

    /// Take out one that is in it.
    pub fn remove<T: Linked>(&mut self, slab: &mut Slab<T>, n: u32, kind: usize) {
        let Some(it) = slab.get_mut(n) else { return };
        let Link { prev, next } = std::mem::take(it.link(kind));
        match slab.get_mut(prev) {
            Some(it) => it.link(kind).next = next,
            None => self.head = next,
        }
        match slab.get_mut(next) {
            Some(it) => it.link(kind).prev = prev,
            None => self.tail = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Node(u32, [Link; 2]);

    impl Linked for Node {
        fn link(&mut self, kind: usize) -> &mut Link {
            &mut self.1[kind]
        }
    }

    fn all(list: &List, slab: &mut Slab<Node>, kind: usize) -> Vec<u32> {
        let (mut at, mut seen) = (list.head, Vec::new());
        while let Some(node) = slab.get_mut(at) {
            seen.push(node.0);
            at = node.link(kind).next;
        }
        seen
    }

    #[test]
    fn lists_keep_their_order_through_removals() {
        let mut slab = Slab::default();
        let mut lists = [List::default(); 2];
        let ids: Vec<u32> = (0..5).map(|n| slab.insert(Node(n, Default::default()))).collect();
        for n in &ids {
            lists[0].push(&mut slab, *n, 0);
        }
        lists[1].push(&mut slab, ids[3], 1);
        for (gone, left) in [(2, vec![0, 1, 3, 4]), (0, vec![1, 3, 4]), (4, vec![1, 3])] {
            lists[0].remove(&mut slab, ids[gone], 0);
            assert_eq!(all(&lists[0], &mut slab, 0), left);
        }
        lists[0].push(&mut slab, ids[2], 0);
        assert_eq!(all(&lists[0], &mut slab, 0), [1, 3, 2]);
        assert_eq!(all(&lists[1], &mut slab, 1), [3]);
        for n in [1, 3, 2] {
            lists[0].remove(&mut slab, ids[n], 0);
        }
        assert_eq!((lists[0], lists[0].first()), (List::default(), None));
    }

    #[test]
    fn numbers_are_used_again_and_pieces_do_not_move() {
        let mut slab = Slab::default();
        let ids: Vec<u32> = (0..3000).map(|n| slab.insert(n)).collect();
        assert_eq!((slab.len(), slab.end()), (3000, 3000));
        assert_eq!(slab.remove(ids[7]), Some(7));
        assert_eq!((slab.remove(ids[7]), slab.get(ids[7])), (None, None));
        assert_eq!(slab.insert(-1), ids[7]);
        assert_eq!(slab.iter().filter(|(_, v)| **v == -1).count(), 1);
        assert!(slab.memory() >= 3 * PIECE * size_of::<Option<i32>>());
    }
}
