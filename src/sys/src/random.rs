// SPDX-License-Identifier: Apache-2.0

//! getrandom(2).

use nix::errno::Errno;

/// Unpredictable random bytes. Blocks until the kernel's generator is initialised after boot.
///
/// # Errors
/// The kernel's error; `EINVAL` for more than 256 bytes, which it may return partially.
pub fn random_bytes<const N: usize>() -> nix::Result<[u8; N]> {
    if N > 256 {
        return Err(Errno::EINVAL);
    }
    let mut bytes = [0; N];
    // SAFETY: the pointer and the length are those of an array that lives through the call.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    Errno::result(got)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn are_not_twice_the_same() {
        assert_ne!(random_bytes::<8>().expect("random"), random_bytes::<8>().expect("random"));
        assert_eq!(random_bytes::<257>(), Err(Errno::EINVAL));
    }
}
