// SPDX-License-Identifier: Apache-2.0

//! What the packets of an interface begin with.

/// The kinds of link that a CLAT can have as its uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    RawIp,
}

impl LinkKind {
    /// The kind by an interface's ARPHRD number (linux/if_arp.h); `None` for one that a CLAT cannot
    /// use.
    #[must_use]
    pub fn from_hardware(hardware: u16) -> Option<Self> {
        match hardware {
            // ETHER
            1 => Some(Self::Ethernet),
            // NONE, PPP, RAWIP; 520 and 530 are RAWIP of MediaTek's and of older Android kernels
            // (AOSP, TcUtils).
            0xfffe | 512 | 519 | 520 | 530 => Some(Self::RawIp),
            _ => None,
        }
    }
}
