// SPDX-License-Identifier: Apache-2.0

//! Selection of a CLAT's addresses: an IPv4 address from RFC 7335's 192.0.0.0/29, and whether an
//! IPv6 address of the uplink is suitable to make the CLAT's from.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The first address that is tried. Android's CLATs have always begun with .4.
pub const FIRST_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);

/// Length of the pool's prefix in bits (RFC 7335).
pub const POOL_LEN: u8 = 29;

/// The first free address from `first` on, in ascending order, wrapping inside the prefix of `len`
/// bits. `None` for prefixes shorter than 16 bits, which are too large to try one by one, and for
/// lengths above 32.
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

/// The IPv4 addresses held by CLATs. The kernel alone does not know them: an address is set on the
/// interface some time after it was picked.
#[derive(Debug, Default)]
pub struct Pool(Mutex<BTreeSet<Ipv4Addr>>);

/// An address held by one CLAT; free again when dropped.
#[derive(Debug)]
pub struct Lease {
    pool: Arc<Pool>,
    addr: Ipv4Addr,
}

impl Pool {
    fn held(&self) -> MutexGuard<'_, BTreeSet<Ipv4Addr>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases the first address of the pool that no CLAT holds and no interface has (`taken`).
    #[must_use]
    pub fn lease(self: &Arc<Self>, mut taken: impl FnMut(Ipv4Addr) -> bool) -> Option<Lease> {
        let mut held = self.held();
        let addr = pick(FIRST_V4, POOL_LEN, |addr| !held.contains(&addr) && !taken(addr))?;
        held.insert(addr);
        Some(Lease { pool: Arc::clone(self), addr })
    }

    /// Leases this address; `None` if a CLAT holds it, or if it is not in the pool.
    #[must_use]
    pub fn take(self: &Arc<Self>, addr: Ipv4Addr) -> Option<Lease> {
        let is_ours = addr.to_bits() >> (32 - POOL_LEN) == FIRST_V4.to_bits() >> (32 - POOL_LEN);
        let taken = is_ours && self.held().insert(addr);
        taken.then(|| Lease { pool: Arc::clone(self), addr })
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

/// Whether a CLAT's address may be made from this source address. The PLAT must be able to answer
/// it, so not if it is unspecified, loopback, link-local or site-local (fe80::/10, fec0::/10).
/// Unique local ones (fc00::/7) are for the PLAT of the same site: netd refuses them; without netd
/// they are taken, as RFC 6724 selects one only where no better source exists.
#[must_use]
pub fn is_usable_source(v6: Ipv6Addr, with_netd: bool) -> bool {
    let top = v6.segments()[0];
    !(v6.is_unspecified()
        || v6.is_loopback()
        || top & 0xffc0 == 0xfe80
        || top & 0xffc0 == 0xfec0
        || with_netd && top & 0xfe00 == 0xfc00)
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
        // In a /16 every address is tried once; the last is the one before the first.
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
            ("fe00::1", true),
        ] {
            let v6 = addr.parse().expect(addr);
            assert_eq!([true, false].map(|netd| is_usable_source(v6, netd)), [usable; 2], "{addr}");
        }
        for addr in ["fc00::1", "fdff::1"] {
            let v6 = addr.parse().expect(addr);
            assert_eq!([true, false].map(|netd| is_usable_source(v6, netd)), [false, true]);
        }
    }
}
