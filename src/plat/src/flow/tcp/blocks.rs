// SPDX-License-Identifier: Apache-2.0

//! Blocks of sequence numbers, as in SACK options (RFC 2018).

use super::segment::before;

/// From the first sequence number to the one behind the last.
pub(super) type Block = (u32, u32);

/// Whether a block touches one of `blocks`.
pub(super) fn merges(blocks: &[Block], (start, end): Block) -> bool {
    blocks.iter().any(|(s, e)| !before(end, *s) && !before(*e, start))
}

/// Adds a block to a sorted list of blocks that do not touch.
pub(super) fn insert(blocks: &mut Vec<Block>, (mut start, mut end): Block) {
    blocks.retain(|(s, e)| {
        let apart = before(end, *s) || before(*e, start);
        if !apart {
            start = if before(*s, start) { *s } else { start };
            end = if before(end, *e) { *e } else { end };
        }
        apart
    });
    let at = blocks.iter().position(|(s, _)| before(start, *s)).unwrap_or(blocks.len());
    blocks.insert(at, (start, end));
}

/// The next hole from `from` on that lies below a block of such a list.
pub(super) fn hole(blocks: &[Block], from: u32) -> Option<Block> {
    let mut at = from;
    for (start, end) in blocks {
        if before(at, *start) {
            return Some((at, *start));
        }
        if before(at, *end) {
            at = *end;
        }
    }
    None
}
