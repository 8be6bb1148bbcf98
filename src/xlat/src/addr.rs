// SPDX-License-Identifier: Apache-2.0

//! Addresses: RFC 6052 prefixes, RFC 7757 explicit mappings, and a CLAT's own pair.

use alloc::vec::Vec;
use core::fmt;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use clat_packet::ipv4;

/// An IPv6 prefix that carries IPv4 addresses (RFC 6052 §2.2), of 32, 40, 48, 56, 64 or 96 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    net: u128,
    len: u8,
}

/// Bits 64 to 71 of an address, zero in every IPv4-embedded one (RFC 6052 §2.2).
const U_OCTET: u128 = 0xff << 56;

/// What is wrong with the text or the numbers of a [`Prefix`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// Not `address/length`.
    Syntax,
    /// An IPv4 prefix.
    Ipv4,
    /// A length that RFC 6052 does not allow.
    Length,
    /// Bits set behind the prefix.
    HostBits,
    /// Bits 64 to 71 (the u-octet) set in a /96 (RFC 6052 §2.2).
    UOctet,
}

impl core::error::Error for PrefixError {}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "not an IPv6 prefix; write it like 64:ff9b::/96",
            Self::Ipv4 => "an IPv4 prefix; a NAT64 prefix is IPv6, like 64:ff9b::/96",
            Self::Length => "a NAT64 prefix has a length of 32, 40, 48, 56, 64 or 96",
            Self::HostBits => "bits are set behind the prefix length",
            Self::UOctet => "bits 64 to 71 of a NAT64 prefix must be zero",
        })
    }
}

impl Prefix {
    /// 64:ff9b::/96, the well-known prefix (RFC 6052 §2.1).
    pub const WELL_KNOWN: Self = Self { net: 0x64_ff9b << 96, len: 96 };

    /// Makes a prefix of `len` bits.
    ///
    /// # Errors
    /// Those of [`PrefixError`] that concern numbers.
    pub fn new(net: Ipv6Addr, len: u8) -> Result<Self, PrefixError> {
        if !matches!(len, 32 | 40 | 48 | 56 | 64 | 96) {
            return Err(PrefixError::Length);
        }
        let net = net.to_bits();
        if net << len != 0 {
            return Err(PrefixError::HostBits);
        }
        if net & U_OCTET != 0 {
            return Err(PrefixError::UOctet);
        }
        Ok(Self { net, len })
    }

    /// The prefix as an address, host bits zero.
    #[must_use]
    pub fn addr(&self) -> Ipv6Addr {
        self.net.into()
    }

    /// Its length in bits.
    #[must_use]
    pub const fn bits(&self) -> u8 {
        self.len
    }

    /// Embeds an IPv4 address (RFC 6052 §2.2): around the u-octet, suffix zero.
    #[must_use]
    pub fn embed(&self, v4: Ipv4Addr) -> Ipv6Addr {
        self.embed_bits(v4.to_bits()).into()
    }

    #[inline(always)]
    fn embed_bits(&self, v4: u32) -> u128 {
        let v4 = u128::from(v4);
        if self.len == 96 {
            return self.net | v4;
        }
        // Bits that would reach into the u-octet move on by its width.
        let bits = v4 << (96 - self.len);
        self.net | bits >> 64 << 64 | (bits & u128::from(u64::MAX)) >> 8
    }

    /// Extracts the IPv4 address from an IPv6 address; `None` if that is outside the prefix. The
    /// u-octet and the suffix are ignored (RFC 6052 §2.2).
    #[must_use]
    pub fn extract(&self, v6: Ipv6Addr) -> Option<Ipv4Addr> {
        self.extract_bits(v6.to_bits()).map(Ipv4Addr::from_bits)
    }

    #[inline(always)]
    fn extract_bits(&self, bits: u128) -> Option<u32> {
        let host_bits = if self.len == 96 { 32 } else { 128 - self.len };
        if (bits ^ self.net) >> host_bits != 0 {
            return None;
        }
        let v4 = if self.len == 96 {
            bits
        } else {
            (bits >> 64 << 64 | bits << 8 & u128::from(u64::MAX)) >> (96 - self.len)
        };
        #[allow(clippy::cast_possible_truncation)] // the 32 bits behind the prefix
        let v4 = v4 as u32;
        Some(v4)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (addr, len) = text.split_once('/').ok_or(PrefixError::Syntax)?;
        if addr.parse::<Ipv4Addr>().is_ok() {
            return Err(PrefixError::Ipv4);
        }
        let addr = addr.parse().map_err(|_| PrefixError::Syntax)?;
        Self::new(addr, parse_bits(len).ok_or(PrefixError::Syntax)?)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr(), self.len)
    }
}

/// An explicit address mapping (RFC 7757 §3.2): an IPv4 prefix, and an IPv6 prefix whose suffix is
/// at least as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Eam {
    v4: u32,
    v4_len: u8,
    v6: u128,
    v6_len: u8,
}

/// What is wrong with the text of an [`Eam`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EamError {
    /// Not `V4[/LEN]=V6[/LEN]`.
    Syntax,
    /// A length beyond 32 or 128 bits.
    Length,
    /// Bits set behind a prefix.
    HostBits,
    /// An IPv4 suffix longer than the IPv6 suffix (RFC 7757 §3.2).
    Suffix,
    /// Addresses that no host has, such as multicast.
    NoHost,
}

impl core::error::Error for EamError {}

impl fmt::Display for EamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "not a mapping; write it like 192.0.2.0/24=2001:db8::/120",
            Self::Length => "an IPv4 prefix has at most 32 bits, an IPv6 prefix at most 128",
            Self::HostBits => "bits are set behind a prefix length",
            Self::Suffix => "the IPv4 suffix is longer than the IPv6 suffix (RFC 7757 §3.2)",
            Self::NoHost => "no host has such an address (multicast, broadcast, loopback)",
        })
    }
}

impl Eam {
    /// Maps `v4`/`v4_len` to `v6`/`v6_len`.
    ///
    /// # Errors
    /// Those of [`EamError`] that concern numbers.
    pub fn new(v4: Ipv4Addr, v4_len: u8, v6: Ipv6Addr, v6_len: u8) -> Result<Self, EamError> {
        if v4_len > 32 || v6_len > 128 {
            return Err(EamError::Length);
        }
        let (v4, v6) = (v4.to_bits(), v6.to_bits());
        if v4.checked_shl(v4_len.into()).unwrap_or(0) != 0
            || v6.checked_shl(v6_len.into()).unwrap_or(0) != 0
        {
            return Err(EamError::HostBits);
        }
        if 32 - v4_len > 128 - v6_len {
            return Err(EamError::Suffix);
        }
        if no_host_has4(v4, v4_len) || no_host_has6(v6, v6_len) {
            return Err(EamError::NoHost);
        }
        Ok(Self { v4, v4_len, v6, v6_len })
    }

    /// RFC 7757 §3.3.1: the IPv4 suffix follows the IPv6 prefix, the rest is zero.
    fn to_v6(self, v4: u32) -> Option<u128> {
        let diff = v4 ^ self.v4;
        if diff.checked_shr(32 - u32::from(self.v4_len)).unwrap_or(0) != 0 {
            return None;
        }
        Some(self.v6 | u128::from(diff).checked_shl(self.shift()).unwrap_or(0))
    }

    /// RFC 7757 §3.3.2, the reverse; bits behind the IPv4 suffix are ignored.
    fn to_v4(self, v6: u128) -> Option<u32> {
        let diff = v6 ^ self.v6;
        if diff.checked_shr(128 - u32::from(self.v6_len)).unwrap_or(0) != 0 {
            return None;
        }
        // The suffix is no longer than IPv4's.
        let suffix = diff.checked_shr(self.shift()).unwrap_or(0);
        u32::try_from(suffix).ok().map(|suffix| self.v4 | suffix)
    }

    /// How many bits longer the IPv6 suffix is; `new` has checked that it is not shorter.
    fn shift(self) -> u32 {
        (128 - u32::from(self.v6_len)) - (32 - u32::from(self.v4_len))
    }
}

impl FromStr for Eam {
    type Err = EamError;

    fn from_str(text: &str) -> Result<Self, EamError> {
        fn side<A: FromStr>(text: &str, full: u8) -> Result<(A, u8), EamError> {
            let (addr, len) = match text.split_once('/') {
                Some((addr, len)) => (addr, parse_bits(len).ok_or(EamError::Syntax)?),
                None => (text, full),
            };
            Ok((addr.parse().map_err(|_| EamError::Syntax)?, len))
        }
        let (v4, v6) = text.split_once('=').ok_or(EamError::Syntax)?;
        let (v4, v4_len) = side::<Ipv4Addr>(v4, 32)?;
        let (v6, v6_len) = side::<Ipv6Addr>(v6, 128)?;
        Self::new(v4, v4_len, v6, v6_len)
    }
}

impl fmt::Display for Eam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{}={}/{}",
            Ipv4Addr::from(self.v4),
            self.v4_len,
            Ipv6Addr::from(self.v6),
            self.v6_len
        )
    }
}

/// Whether none of the addresses with these first `len` bits is a host's.
fn no_host_has4(net: u32, len: u8) -> bool {
    let last = net | u32::MAX.checked_shr(len.into()).unwrap_or(0);
    // The largest such block is multicast, a /4.
    len >= 4 && ipv4::is_martian(net) && ipv4::is_martian(last)
}

/// Whether none of the addresses with these first `len` bits is a host's.
fn no_host_has6(net: u128, len: u8) -> bool {
    let address = Ipv6Addr::from_bits(net);
    let single = address.is_unspecified() || address.is_loopback();
    len >= 8 && address.is_multicast() || len == 128 && single
}

/// A decimal prefix length without sign or blanks.
fn parse_bits(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// The CLAT's own pair of addresses (RFC 6877 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    /// The IPv4 address of `v4iface`.
    pub v4: Ipv4Addr,
    /// The IPv6 address that stands for it on the uplink.
    pub v6: Ipv6Addr,
}

/// The IPv4 addresses that represent IPv6 routers in ICMP errors (RFC 6791 §5): one, or those of a
/// prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool {
    first: u32,
    /// Number of addresses, less one.
    others: u32,
}

/// What is wrong with the text of a [`Pool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolError {
    /// Not `V4[/LEN]`.
    Syntax,
    /// Bits set behind the prefix.
    HostBits,
    /// Addresses that no host has, such as multicast.
    NoHost,
}

impl core::error::Error for PoolError {}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => {
                "not an IPv4 address or prefix; write it like 192.0.0.8 or 192.0.2.0/24"
            }
            Self::HostBits => "bits are set behind the prefix length",
            Self::NoHost => "no host has such an address (multicast, broadcast, loopback)",
        })
    }
}

impl Pool {
    /// The addresses of a prefix. Where that leaves any, the first and the last are left out: many
    /// networks treat them as the network's and the broadcast address.
    ///
    /// # Errors
    /// Those of [`PoolError`] that concern numbers.
    pub fn new(net: Ipv4Addr, len: u8) -> Result<Self, PoolError> {
        let net = net.to_bits();
        let hosts = u32::MAX.checked_shr(len.into()).unwrap_or(0);
        if len > 32 {
            return Err(PoolError::Syntax);
        }
        if net & hosts != 0 {
            return Err(PoolError::HostBits);
        }
        if no_host_has4(net, len) {
            return Err(PoolError::NoHost);
        }
        let (first, others) = if hosts < 3 { (net, hosts) } else { (net + 1, hosts - 2) };
        Ok(Self { first, others })
    }

    /// The translator's own address.
    #[must_use]
    pub const fn own(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first)
    }

    /// The address that represents `router`: always the same one, and probably not that of another
    /// router on the path. RFC 6791 §5 chooses at random for that purpose.
    #[must_use]
    pub fn of(self, router: Ipv6Addr) -> Ipv4Addr {
        let bits = router.to_bits();
        #[allow(clippy::cast_possible_truncation)] // both halves are taken
        let folded = (bits >> 64) as u64 ^ (bits as u64).rotate_left(32);
        // Knuth's multiplicative hash; the upper half of the product depends on all bits.
        let hash = folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        #[allow(clippy::cast_possible_truncation)] // less than the number of addresses
        let offset = ((hash * (u64::from(self.others) + 1)) >> 32) as u32;
        Ipv4Addr::from_bits(self.first + offset)
    }
}

impl From<Ipv4Addr> for Pool {
    fn from(only: Ipv4Addr) -> Self {
        Self { first: only.to_bits(), others: 0 }
    }
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let (net, len) = text.split_once('/').unwrap_or((text, "32"));
        let net = net.parse().map_err(|_| PoolError::Syntax)?;
        Self::new(net, parse_bits(len).ok_or(PoolError::Syntax)?)
    }
}

/// How addresses are mapped.
///
/// With [`Self::local`] this is a CLAT: IPv4 packets must come from the local address or one of
/// [`Self::eams`], not from any address inside a prefix. Without it, it is a plain SIIT.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// The CLAT's own pair.
    pub local: Option<Local>,
    /// Explicit mappings; the longest match wins, whatever their order (RFC 7757 §3.3).
    pub eams: Vec<Eam>,
    /// RFC 6052 prefixes: the first is used towards IPv6, the longest match from it.
    pub prefixes: Vec<Prefix>,
    /// Whether 64:ff9b::/96 must not carry non-global IPv4 addresses (RFC 6052 §3.1).
    pub strict_wkp: bool,
}

/// What is wrong with [`Addresses`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressesError {
    /// One of the CLAT's own addresses cannot be a host's.
    NoHost,
    /// Two mappings of the same prefix to different prefixes (RFC 7757 §5).
    Contradiction(Eam, Eam),
}

impl core::error::Error for AddressesError {}

impl fmt::Display for AddressesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHost => {
                write!(f, "own addresses: {}; take unicast addresses", EamError::NoHost)
            }
            Self::Contradiction(a, b) => {
                write!(f, "{a} contradicts {b} (RFC 7757 §5); leave one of them out")
            }
        }
    }
}

/// Why an address has no counterpart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoCounterpart {
    /// No mapping and no prefix covers it.
    Unmapped,
    /// 64:ff9b::/96 may not carry it (RFC 6052 §3.1).
    NonGlobal,
    /// It is not one of the CLAT's own addresses.
    Foreign,
}

impl Addresses {
    /// Checks that the CLAT's own addresses can be a host's, and that no two mappings have the same
    /// prefix on one side and different ones on the other. Prefixes may overlap: the longest match
    /// decides (RFC 7757 §5).
    pub(crate) fn check(&self) -> Result<(), AddressesError> {
        let own = self.local.map(|Local { v4, v6 }| Eam::new(v4, 32, v6, 128)).transpose();
        let own = own.map_err(|_| AddressesError::NoHost)?;
        let all: Vec<_> = own.iter().chain(&self.eams).collect();
        for (at, a) in all.iter().enumerate() {
            let contradicts = |b: &&&Eam| {
                let same4 = (a.v4, a.v4_len) == (b.v4, b.v4_len);
                let same6 = (a.v6, a.v6_len) == (b.v6, b.v6_len);
                same4 != same6
            };
            if let Some(b) = all[at + 1..].iter().find(contradicts) {
                return Err(AddressesError::Contradiction(**a, **b));
            }
        }
        Ok(())
    }

    /// The IPv6 form of any address.
    #[inline(always)]
    pub(crate) fn v6_of(&self, v4: u32) -> Result<u128, NoCounterpart> {
        match self.own_v6_of(v4) {
            Ok(v6) => Ok(v6),
            Err(_) => self.prefixed(v4),
        }
    }

    /// The IPv6 form of an address on the translator's IPv4 side: for a CLAT one of its own, for a
    /// SIIT any.
    #[inline(always)]
    pub(crate) fn own_v6_of(&self, v4: u32) -> Result<u128, NoCounterpart> {
        match &self.local {
            Some(local) if local.v4.to_bits() == v4 => return Ok(local.v6.to_bits()),
            _ => {}
        }
        match longest(&self.eams, |eam| Some((eam.v4_len, eam.to_v6(v4)?))) {
            Some(v6) => Ok(v6),
            None if self.local.is_some() => Err(NoCounterpart::Foreign),
            None => self.prefixed(v4),
        }
    }

    /// The IPv6 form of an address by prefix, whether or not a mapping covers it.
    pub(crate) fn unmapped_v6_of(&self, v4: u32) -> Result<u128, NoCounterpart> {
        self.prefixed(v4)
    }

    /// Whether a prefix translates this address to one that a mapping covers, so that packets to it
    /// come back as IPv6 (RFC 7757 §4.2.2).
    pub(crate) fn is_hairpin(&self, v6: u128) -> bool {
        let mapped6 = self.eams.iter().any(|eam| eam.to_v4(v6).is_some());
        let mapped4 = |v4| self.eams.iter().any(|eam| eam.to_v6(v4).is_some());
        !mapped6 && self.unprefixed(v6).is_ok_and(mapped4)
    }

    /// The IPv4 form of any address.
    #[inline(always)]
    pub(crate) fn v4_of(&self, v6: u128) -> Result<u32, NoCounterpart> {
        match self.own_v4_of(v6) {
            Ok(v4) => Ok(v4),
            Err(_) => self.unprefixed(v6),
        }
    }

    /// The IPv4 form of an address that represents the translator's IPv4 side.
    #[inline(always)]
    pub(crate) fn own_v4_of(&self, v6: u128) -> Result<u32, NoCounterpart> {
        match &self.local {
            Some(local) if local.v6.to_bits() == v6 => return Ok(local.v4.to_bits()),
            _ => {}
        }
        match longest(&self.eams, |eam| Some((eam.v6_len, eam.to_v4(v6)?))) {
            Some(v4) => Ok(v4),
            None if self.local.is_some() => Err(NoCounterpart::Foreign),
            None => self.unprefixed(v6),
        }
    }

    /// Whether all packets are between the CLAT's own addresses and a prefix with which these are
    /// checksum-neutral. Packets from the CLAT to itself are the exception.
    pub(crate) fn are_neutral(&self) -> bool {
        match (&self.local, &self.eams[..], &self.prefixes[..]) {
            // A shorter prefix shifts the IPv4 address by a byte behind the u-octet.
            (Some(local), [], [prefix]) => prefix.len == 96 && local.is_neutral(prefix),
            _ => false,
        }
    }

    #[inline(always)]
    fn prefixed(&self, v4: u32) -> Result<u128, NoCounterpart> {
        let prefix = self.prefixes.first().ok_or(NoCounterpart::Unmapped)?;
        self.refuse_non_global(prefix, v4)?;
        Ok(prefix.embed_bits(v4))
    }

    #[inline(always)]
    fn unprefixed(&self, v6: u128) -> Result<u32, NoCounterpart> {
        let matching = longest(&self.prefixes, |prefix| {
            Some((prefix.len, (prefix, prefix.extract_bits(v6)?)))
        });
        let (prefix, v4) = matching.ok_or(NoCounterpart::Unmapped)?;
        self.refuse_non_global(prefix, v4)?;
        Ok(v4)
    }

    #[inline(always)]
    fn refuse_non_global(&self, prefix: &Prefix, v4: u32) -> Result<(), NoCounterpart> {
        if self.strict_wkp && *prefix == Prefix::WELL_KNOWN && !is_global(v4) {
            return Err(NoCounterpart::NonGlobal);
        }
        Ok(())
    }
}

/// The answer of the entry with the longest prefix. `answer` returns prefix length and answer of
/// entries that match.
#[inline(always)]
fn longest<'t, T, A>(table: &'t [T], answer: impl Fn(&'t T) -> Option<(u8, A)>) -> Option<A> {
    let mut best: Option<(u8, A)> = None;
    for (len, answer) in table.iter().filter_map(answer) {
        if best.as_ref().map_or(true, |(longest, _)| len > *longest) {
            best = Some((len, answer));
        }
    }
    best.map(|(_, answer)| answer)
}

/// Whether an address is none of those that RFC 6052 §3.1 keeps out of the well-known prefix: the
/// special-use addresses of RFC 5735 §3, and RFC 6598's, which came later.
fn is_global(v4: u32) -> bool {
    const NON_GLOBAL: [([u8; 4], u32); 15] = [
        ([0, 0, 0, 0], 8),
        ([10, 0, 0, 0], 8),
        ([100, 64, 0, 0], 10),
        ([127, 0, 0, 0], 8),
        ([169, 254, 0, 0], 16),
        ([172, 16, 0, 0], 12),
        ([192, 0, 0, 0], 24),
        ([192, 0, 2, 0], 24),
        ([192, 88, 99, 0], 24),
        ([192, 168, 0, 0], 16),
        ([198, 18, 0, 0], 15),
        ([198, 51, 100, 0], 24),
        ([203, 0, 113, 0], 24),
        ([224, 0, 0, 0], 4),
        ([240, 0, 0, 0], 4),
    ];
    !NON_GLOBAL.iter().any(|(net, len)| (v4 ^ u32::from_be_bytes(*net)) >> (32 - len) == 0)
}
