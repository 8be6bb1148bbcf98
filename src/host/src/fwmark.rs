// SPDX-License-Identifier: Apache-2.0

//! The routing mark of a CLAT's packets, as Android's netd makes it (AOSP,
//! system/netd/include/Fwmark.h).

use std::fmt;

/// netId in bits 0–15, explicitly selected 16, protected from VPN 17, permission 18–19.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fwmark(u32);

impl Fwmark {
    const EXPLICITLY_SELECTED: u32 = 1 << 16;
    const PROTECTED_FROM_VPN: u32 = 1 << 17;
    const PERMISSION_SYSTEM: u32 = 3 << 18;

    /// The mark of packets of network `net_id`, which use no other network and every interface of
    /// this one.
    #[must_use]
    pub fn new(net_id: u16) -> Self {
        Self(
            u32::from(net_id)
                | Self::EXPLICITLY_SELECTED
                | Self::PROTECTED_FROM_VPN
                | Self::PERMISSION_SYSTEM,
        )
    }

    /// Parses the mark as it is shown; `None` unless [`Fwmark::new`] makes it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bits = u32::from_str_radix(text.strip_prefix("0x")?, 16).ok()?;
        let [.., high, low] = bits.to_be_bytes();
        let mark = Self::new(u16::from_be_bytes([high, low]));
        (mark.to_string() == text).then_some(mark)
    }

    /// A mark made elsewhere.
    #[must_use]
    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// The mark as SO_MARK takes it.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Fwmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_as_netd_prints_it() {
        assert_eq!(Fwmark::new(100).to_string(), "0xf0064");
        assert_eq!(Fwmark::new(0).bits(), 0xf_0000);
        assert_eq!(Fwmark::new(0xffff).bits(), 0xf_ffff);
    }
}
