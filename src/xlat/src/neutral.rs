// SPDX-License-Identifier: Apache-2.0

//! Checksum-neutral addresses: if the CLAT's IPv4 address has the same sum as its IPv6 address and
//! the prefix together, no L4 checksum changes (RFC 6877 §6.3 leaves the interface identifier open;
//! AOSP's controller chooses it so).

use core::net::{Ipv4Addr, Ipv6Addr};

use clat_packet::checksum::{adjust, same, Sum};

use crate::{Local, Prefix};

/// Offset of the two bytes that make up the difference: inside the interface identifier and not
/// aligned to 16 bits, as in AOSP.
const BALANCE: usize = 11;

impl Local {
    /// Makes the CLAT's IPv6 address: the /64 of `net` and this interface `identifier`, with bytes
    /// 11 and 12 of the address set so that the one's-complement sum of `v4` equals that of the
    /// result plus `prefix`.
    #[must_use]
    pub fn neutral(v4: Ipv4Addr, net: Ipv6Addr, prefix: &Prefix, identifier: [u8; 8]) -> Self {
        let mut v6 = net.octets();
        v6[8..].copy_from_slice(&identifier);
        // The two bytes belong to two words, so as a word they count byte-swapped.
        let have = Sum::of(&v6) + Sum::address6(prefix.addr().to_bits());
        let balance = adjust([v6[BALANCE + 1], v6[BALANCE]], Sum::address4(v4.to_bits()), have);
        [v6[BALANCE + 1], v6[BALANCE]] = balance;
        Self { v4, v6: v6.into() }
    }

    /// Whether checksums stay the same between these addresses and `prefix`.
    #[must_use]
    pub fn is_neutral(&self, prefix: &Prefix) -> bool {
        let v6 = Sum::address6(self.v6.to_bits()) + Sum::address6(prefix.addr().to_bits());
        same(Sum::address4(self.v4.to_bits()).fold(), v6.fold())
    }
}
