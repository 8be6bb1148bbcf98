// SPDX-License-Identifier: Apache-2.0

//! A ring buffer that is filled from a socket and read into frames without further copies, and
//! grows as needed.

use std::io::{self, IoSliceMut};

/// Initial size: enough for a flow that is idle after a greeting; a stream soon needs more.
pub(crate) const FIRST: usize = 2048;
/// An empty ring of up to this size is freed: it costs little to allocate again.
const CHEAP: usize = 16 * 1024;
/// Most bytes of one read.
const LARGEST: usize = 256 * 1024;

/// A queue of bytes. A new one holds no memory.
#[derive(Default)]
pub(crate) struct Ring {
    buf: Vec<u8>,
    head: usize,
    len: usize,
    /// Size of the next read; doubled whenever a read fills it.
    want: usize,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {} bytes", self.len, self.buf.len())
    }
}

impl Ring {
    /// Bytes that are queued.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether none are queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that it holds.
    pub(crate) fn held(&self) -> usize {
        self.buf.len()
    }

    /// Bytes that it could queue without more memory.
    pub(crate) fn spare(&self) -> usize {
        self.buf.len() - self.len
    }

    /// Appends what `read` puts into the free space, which grows with demand by at most `room`
    /// bytes of memory. The ring never queues more than `limit` bytes. Returns the result of
    /// `read`. With `room` of at least [`FIRST`], an empty ring always has free space.
    ///
    /// # Errors
    /// Those of `read`; `WouldBlock` at the limit, or without memory.
    pub(crate) fn fill(
        &mut self,
        limit: usize,
        room: usize,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.len >= limit {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let want = self.want.clamp(FIRST, LARGEST);
        let wanted = want.min(limit - self.len);
        if self.spare() < wanted {
            let size = (self.len + wanted.max(FIRST)).next_power_of_two();
            let most = self.buf.len().saturating_add(room);
            // Do not reallocate for a few bytes.
            if size.min(most) >= size.min(self.buf.len() + FIRST) {
                self.grow(size.min(most));
            }
        }
        let free = self.spare().min(limit - self.len);
        if free == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let tail = self.wrap(self.head + self.len);
        // To the end of the buffer, then from its start.
        let first = free.min(self.buf.len() - tail);
        let (before, after) = self.buf.split_at_mut(tail);
        let mut room =
            [IoSliceMut::new(&mut after[..first]), IoSliceMut::new(&mut before[..free - first])];
        let room = if free > first { &mut room[..] } else { &mut room[..1] };
        let result = read(room);
        if let Ok(n) = result {
            self.len += n.min(free);
            self.want = if n >= want { want * 2 } else { want };
        }
        if result.is_err() {
            self.thin();
        }
        result
    }

    /// Appends as many of `bytes` as fit with `room` more bytes of memory; returns how many.
    pub(crate) fn extend(&mut self, bytes: &[u8], room: usize) -> usize {
        let needed = self.len + bytes.len();
        if needed > self.buf.len() && room > 0 {
            let size = needed.next_power_of_two().max(4096);
            self.grow(size.min(self.buf.len().saturating_add(room)));
        }
        let bytes = &bytes[..bytes.len().min(self.spare())];
        let tail = self.wrap(self.head + self.len);
        let first = bytes.len().min(self.buf.len() - tail);
        self.buf[tail..tail + first].copy_from_slice(&bytes[..first]);
        self.buf[..bytes.len() - first].copy_from_slice(&bytes[first..]);
        self.len += bytes.len();
        bytes.len()
    }

    /// Up to `count` bytes from `offset` on, in two pieces.
    pub(crate) fn slices(&self, offset: usize, count: usize) -> [&[u8]; 2] {
        let offset = offset.min(self.len);
        let count = count.min(self.len - offset);
        if count == 0 {
            return [&[], &[]];
        }
        let start = self.wrap(self.head + offset);
        let first = count.min(self.buf.len() - start);
        [&self.buf[start..start + first], &self.buf[..count - first]]
    }

    /// Removes the oldest `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.head = if self.len == 0 { 0 } else { self.wrap(self.head + count) };
    }

    /// Frees the memory if nothing is queued and it is small: ten thousand idle flows would hold
    /// much of it.
    pub(crate) fn thin(&mut self) {
        if self.len == 0 && self.buf.len() <= CHEAP {
            self.buf = Vec::new();
            self.head = 0;
        }
    }

    /// Frees the memory if nothing is queued.
    pub(crate) fn release(&mut self) {
        if self.len == 0 {
            *self = Self::default();
        }
    }

    fn wrap(&self, at: usize) -> usize {
        if at >= self.buf.len() {
            at - self.buf.len()
        } else {
            at
        }
    }

    fn grow(&mut self, size: usize) {
        let mut buf = vec![0; size];
        let [a, b] = self.slices(0, self.len);
        buf[..a.len()].copy_from_slice(a);
        buf[a.len()..a.len() + b.len()].copy_from_slice(b);
        self.buf = buf;
        self.head = 0;
    }
}

#[cfg(test)]
#[path = "../../tests/unit/ring.rs"]
mod tests;
