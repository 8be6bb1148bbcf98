// SPDX-License-Identifier: Apache-2.0

//! Counters of packets beside those of translation.

use std::ops::AddAssign;

/// Counters of packets beside those of translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Fragments of ICMP messages that were kept for reassembly.
    pub held_icmp: u64,
    /// Fragments with an extension header behind the Fragment Header that were kept for reassembly.
    pub held_extension: u64,
    /// Kept fragments that were given up.
    pub reassembly: u64,
    /// Packets that the uplink did not take.
    pub send: u64,
    /// Packets that the TUN device did not take.
    pub tun_write: u64,
    /// Packets that the kernel dropped because the queue of the packet socket was full.
    pub overrun: u64,
    /// Packets that could not be read whole.
    pub receive: u64,
    /// Packets whose checksum or segmentation could not be completed.
    pub offload: u64,
    /// ICMP errors that the rate limit suppressed.
    pub rate_limited: u64,
}

impl Tally {
    /// Fragments kept for reassembly, of either kind.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held_icmp + self.held_extension
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.held_icmp += other.held_icmp;
        self.held_extension += other.held_extension;
        self.reassembly += other.reassembly;
        self.send += other.send;
        self.tun_write += other.tun_write;
        self.overrun += other.overrun;
        self.receive += other.receive;
        self.offload += other.offload;
        self.rate_limited += other.rate_limited;
    }
}
