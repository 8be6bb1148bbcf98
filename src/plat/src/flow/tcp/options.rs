// SPDX-License-Identifier: Apache-2.0

//! TCP options: MSS (RFC 9293 §3.2), window scale (RFC 7323), SACK (RFC 2018).

use super::blocks::Block;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;

/// The options of a guest's segment that are used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options<'a> {
    pub(super) mss: Option<u16>,
    pub(super) scale: Option<u8>,
    /// SACK is permitted.
    pub(super) sack: bool,
    sacked: &'a [u8],
}

impl<'a> Options<'a> {
    /// Parses options, up to the first with a wrong length.
    pub(super) fn parse(mut bytes: &'a [u8]) -> Self {
        let mut options = Self::default();
        loop {
            let (kind, len) = match bytes {
                [NOP, rest @ ..] => {
                    bytes = rest;
                    continue;
                }
                [kind, len, ..] if *kind != END => (*kind, usize::from(*len)),
                _ => return options,
            };
            let Some(body) = bytes.get(2..len) else { return options };
            match (kind, body) {
                (MSS, [a, b]) => options.mss = Some(u16::from_be_bytes([*a, *b])),
                (WINDOW_SCALE, [scale]) => options.scale = Some(*scale),
                (SACK_PERMITTED, []) => options.sack = true,
                (SACK, blocks) => options.sacked = blocks,
                _ => {}
            }
            bytes = &bytes[len..];
        }
    }

    /// The blocks that the guest has received above its acknowledgement.
    pub(super) fn blocks(self) -> impl Iterator<Item = Block> + 'a {
        self.sacked.chunks_exact(8).map(|block| {
            let number =
                |i: usize| u32::from_be_bytes([block[i], block[i + 1], block[i + 2], block[i + 3]]);
            (number(0), number(4))
        })
    }
}

/// The options of a SYN, each padded to 4 bytes.
pub(super) fn of_syn(mss: u16, scale: Option<u8>, sack: bool) -> Vec<u8> {
    let [m0, m1] = mss.to_be_bytes();
    let mut options = vec![MSS, 4, m0, m1];
    if let Some(scale) = scale {
        options.extend([NOP, WINDOW_SCALE, 3, scale]);
    }
    if sack {
        options.extend([NOP, NOP, SACK_PERMITTED, 2]);
    }
    options
}

/// The SACK option of an acknowledgement with these blocks, three at most.
pub(super) fn of_ack(blocks: &[Block]) -> Vec<u8> {
    let mut options = Vec::new();
    if !blocks.is_empty() {
        let len = u8::try_from(2 + 8 * blocks.len()).unwrap_or(0);
        options.extend([NOP, NOP, SACK, len]);
        for (start, end) in blocks {
            options.extend(start.to_be_bytes());
            options.extend(end.to_be_bytes());
        }
    }
    options
}
