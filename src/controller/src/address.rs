//! Which addresses a CLAT gets: an IPv4 one out of RFC 7335's 192.0.0.0/29, and an IPv6 one next to the uplink's own
//! that leaves every L4 checksum as it is.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clat_xlat::Prefix;

/// The first address that is tried. Android has begun with .4 since its first CLAT.
pub const FIRST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);

/// Length of the pool's prefix in bits (RFC 7335).
pub const POOL_LEN: u8 = 29;

/// The first free address from `first` on, in the order of their numbers, wrapping inside the prefix of `len` bits.
/// Prefixes shorter than 16 bits are too many to try one by one and pick nothing, nor do lengths beyond 32.
pub fn pick(first: Ipv4Addr, len: u8, mut free: impl FnMut(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    if !(16..=32).contains(&len) {
        return None;
    }
    let host_bits = u32::MAX.checked_shr(len.into()).unwrap_or(0);
    let first = first.to_bits();
    let net = first & !host_bits;
    (0..=host_bits)
        .map(|step| Ipv4Addr::from(net | (first.wrapping_add(step) & host_bits)))
        .find(|addr| free(*addr))
}

/// The IPv4 addresses that CLATs hold. An interface has its address only some time after it was picked, so that
/// asking the kernel is not enough.
#[derive(Debug, Default)]
pub struct Pool(Mutex<BTreeSet<Ipv4Addr>>);

/// An address that no one else holds; free again when dropped.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    addr: Ipv4Addr,
}

impl Pool {
    fn held(&self) -> MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases the first address of the pool that nobody holds and that is not `taken` by an interface.
    #[must_use]
    pub fn lease(self: &Arc<Self>, mut taken: impl FnMut(Ipv4Addr) -> bool) -> Option<Lease> {
        let mut held = self.held();
        let addr = pick(FIRST_V4, POOL_LEN, |addr| !held.contains(&addr) && !taken(addr))?;
        held.insert(addr);
        Some(Lease { pool: Arc::clone(self), addr })
    }
}

impl Lease {
    /// The address.
    #[must_use]
    pub fn addr(&self) -> Ipv4Addr {
        self.addr
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.held().remove(&self.addr);
    }
}

/// Whether a CLAT's address may be made from this source address: it has to be seen from beyond the link, by the PLAT.
/// Not so the unspecified and loopback addresses, link-local and site-local ones (fe80::/10, fec0::/10) and ULA
/// (fc00::/7).
#[must_use]
pub fn is_usable_source(v6: Ipv6Addr) -> bool {
    let top = v6.segments()[0];
    !(v6.is_unspecified()
        || v6.is_loopback()
        || top & 0xffc0 == 0xfe80
        || top & 0xffc0 == 0xfec0
        || top & 0xfe00 == 0xfc00)
}

/// The one's-complement sum of the 16-bit words of `bytes`, in network order.
fn sum(bytes: &[u8]) -> u32 {
    let words = bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    fold(words.sum())
}

/// The same value modulo 0xffff in at most 16 bits; 0 only for 0.
fn fold(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum & 0xffff) + (sum >> 16)
}

/// The address with `uplink`'s first 64 bits and a random interface identifier that is checksum-neutral: the
/// one's-complement sum of `v4` is that of the result and `prefix`. Bytes 11 and 12 make up for the difference; they
/// are the halves of two neighbouring words, so the difference goes in with its own halves swapped.
#[must_use]
pub fn make_checksum_neutral(
    uplink: Ipv6Addr,
    random: [u8; 8],
    v4: Ipv4Addr,
    prefix: &Prefix,
) -> Ipv6Addr {
    let mut v6 = uplink.octets();
    v6[8..].copy_from_slice(&random);
    (v6[11], v6[12]) = (0, 0);
    let have = fold(sum(&v6) + sum(&prefix.addr().octets()));
    // One's complement: subtracting is adding the inverse.
    let missing = fold(sum(&v4.octets()) + (0xffff - have));
    let [high, low] = u16::try_from(missing).unwrap_or(u16::MAX).to_be_bytes();
    (v6[11], v6[12]) = (low, high);
    v6.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_octets(len: u8, taken: &[u8]) -> Option<u8> {
        pick(FIRST_V4, len, |addr| !taken.contains(&addr.octets()[3])).map(|addr| addr.octets()[3])
    }

    #[test]
    fn pool_order_and_wrap() {
        let mut taken = Vec::new();
        while let Some(octet) = last_octets(29, &taken) {
            taken.push(octet);
        }
        assert_eq!(taken, [4, 5, 6, 7, 0, 1, 2, 3]);
        assert_eq!(last_octets(29, &[4, 5, 7]), Some(6));
        assert_eq!(last_octets(29, &[0, 1, 2, 3, 5, 6, 7]), Some(4));
    }

    #[test]
    fn prefix_length_limits() {
        assert_eq!(last_octets(32, &[]), Some(4));
        assert_eq!(last_octets(32, &[4]), None);
        assert_eq!(last_octets(31, &[4]), Some(5));
        assert_eq!(last_octets(30, &[4, 5, 6]), Some(7));
        for len in [0, 1, 8, 15, 33, 34, 128, 255] {
            assert_eq!(last_octets(len, &[]), None, "{len}");
        }
        // A /16 is tried to its last address, which is the one before the first, and no address twice.
        let mut tried = 0_u32;
        let last = Ipv4Addr::new(192, 0, 0, 3);
        let found = pick(FIRST_V4, 16, |addr| {
            tried += 1;
            addr == last
        });
        assert_eq!((found, tried), (Some(last), 65536));
        tried = 0;
        assert_eq!(
            pick(FIRST_V4, 16, |_| {
                tried += 1;
                false
            }),
            None
        );
        assert_eq!(tried, 65536);
    }

    #[test]
    fn a_leased_address_is_not_given_twice() {
        let pool = Arc::new(Pool::default());
        let octet = |lease: &Option<Lease>| lease.as_ref().map(|l| l.addr().octets()[3]);
        let first = pool.lease(|_| false);
        let second = pool.lease(|addr| addr.octets()[3] == 5);
        assert_eq!((octet(&first), octet(&second)), (Some(4), Some(6)));
        drop(first);
        let third = pool.lease(|_| false);
        assert_eq!(octet(&third), Some(4));
        let rest: Vec<_> = std::iter::from_fn(|| pool.lease(|_| false)).collect();
        assert_eq!(rest.len(), 6);
        assert!(pool.lease(|_| false).is_none());
        drop(rest);
        assert!(pool.lease(|_| true).is_none());
    }

    #[test]
    fn sources() {
        for (addr, usable) in [
            ("2001:db8::1", true),
            ("2600::", true),
            ("::", false),
            ("::1", false),
            ("fe80::1", false),
            ("febf::1", false),
            ("fec0::1", false),
            ("feff::1", false),
            ("fc00::1", false),
            ("fdff::1", false),
            ("fe00::1", true),
        ] {
            assert_eq!(addr.parse().map(is_usable_source), Ok(usable), "{addr}");
        }
    }

    /// A small generator, so that a failure comes back with the same numbers (SplitMix64).
    fn random(state: &mut u64) -> [u8; 8] {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_be_bytes()
    }

    #[test]
    fn identifiers_are_neutral_unlike_one_another_and_balanced() {
        const COUNT: usize = 100_000;
        let uplink: Ipv6Addr = "2001:db8:1:2:f00:ba4:1:1".parse().expect("an address");
        let prefixes: Vec<Prefix> =
            ["64:ff9b::/96", "2001:db8:ffff:fffe:0:ffff::/96", "2a00:1098:2c:0:0:6::/96"]
                .iter()
                .map(|text| text.parse().expect("a prefix"))
                .collect();
        let mut state = 1;
        let mut seen = std::collections::HashSet::new();
        let mut ones = [0_usize; 64];
        for n in 0..COUNT {
            let prefix = &prefixes[n % prefixes.len()];
            let v4 = Ipv4Addr::from(FIRST_V4.to_bits() & !7 | u32::try_from(n % 8).expect("small"));
            let iid = random(&mut state);
            let v6 = make_checksum_neutral(uplink, iid, v4, prefix);
            assert_eq!(
                fold(sum(&v6.octets()) + sum(&prefix.addr().octets())),
                sum(&v4.octets()),
                "{v6} {v4} {prefix}"
            );
            assert_eq!(v6.octets()[..8], uplink.octets()[..8]);
            assert_eq!((&v6.octets()[8..11], &v6.octets()[13..]), (&iid[..3], &iid[5..]));
            let bits = u64::from_be_bytes(v6.octets()[8..].try_into().expect("eight bytes"));
            assert!(seen.insert(bits), "{v6} twice");
            for (bit, count) in ones.iter_mut().enumerate() {
                *count += usize::from(bits >> bit & 1 == 1);
            }
        }
        // Six standard deviations (158 each): true chance stays inside.
        for (bit, count) in ones.iter().enumerate() {
            assert!(count.abs_diff(COUNT / 2) < 950, "bit {bit} is set in {count} of {COUNT}");
        }
    }

    #[test]
    fn neutral_at_the_edges() {
        // Sums that fold to 0xffff or carry twice.
        let v4 = Ipv4Addr::new(192, 0, 0, 4);
        for uplink in ["2001:db8::", "ffff:ffff:ffff:ffff::", "0:0:0:1::", "c004::"] {
            for byte in [0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff] {
                let prefix = Prefix::WELL_KNOWN;
                let v6 = make_checksum_neutral(
                    uplink.parse().expect("an address"),
                    [byte; 8],
                    v4,
                    &prefix,
                );
                let total = fold(sum(&v6.octets()) + sum(&prefix.addr().octets()));
                assert_eq!(total, sum(&v4.octets()), "{uplink} {byte:#x}");
            }
        }
    }
}
