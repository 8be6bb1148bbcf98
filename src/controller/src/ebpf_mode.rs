// SPDX-License-Identifier: Apache-2.0

//! Whether packets may be translated in the kernel: decided once, from what the device is.

use std::fmt;
use std::str::FromStr;

/// Android 9, the first whose devices had to have eBPF.
const P: u32 = 28;

/// The level of a machine that is no Android device: the newest known (Android 16).
pub const NEWEST_API_LEVEL: u32 = 36;

/// How much is expected of eBPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EbpfMode {
    /// Not to be used.
    Disabled,
    /// May lack NET_CLS_BPF: that a filter cannot be attached (ENOENT) is worth a note, not an
    /// error.
    Maybe,
    /// Has to work.
    Enabled,
}

impl fmt::Display for EbpfMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "Disabled",
            Self::Maybe => "Maybe",
            Self::Enabled => "Enabled",
        })
    }
}

/// A kernel's version: major, minor. Ordered as versions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl FromStr for KernelVersion {
    type Err = std::num::ParseIntError;

    /// Reads the release that uname(2) gives: `6.1.0-18-amd64`, `4.9-rc1`.
    fn from_str(release: &str) -> Result<Self, Self::Err> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().unwrap_or_default().parse();
        Ok(Self(next()?, next()?))
    }
}

/// Decides by the kernel and by the API level that the device was first sold with; where that is 0
/// (unknown), by the level of its build. AOSP: ClatdController::init.
#[must_use]
pub fn decide(kernel: KernelVersion, first_api_level: u32, build_sdk: u32) -> EbpfMode {
    let level = if first_api_level == 0 { build_sdk } else { first_api_level };
    if kernel < KernelVersion(4, 9) || level < P {
        EbpfMode::Disabled
    } else if level == P {
        EbpfMode::Maybe
    } else {
        EbpfMode::Enabled
    }
}

#[cfg(test)]
mod tests {
    use super::EbpfMode::{Disabled, Enabled, Maybe};
    use super::*;

    #[test]
    fn table() {
        for (kernel, first, build, mode) in [
            ((4, 9), 28, 34, Maybe),
            ((4, 9), 29, 34, Enabled),
            ((4, 9), 27, 34, Disabled),
            ((4, 8), 36, 36, Disabled),
            ((3, 18), 28, 28, Disabled),
            ((4, 10), 28, 28, Maybe),
            ((4, 19), 29, 0, Enabled),
            ((5, 0), 27, 36, Disabled),
            ((6, 12), 36, 0, Enabled),
            ((6, 12), 0, 36, Enabled),
            ((6, 12), 0, 28, Maybe),
            ((6, 12), 0, 27, Disabled),
            ((6, 12), 0, 0, Disabled),
            ((0, 0), 36, 36, Disabled),
        ] {
            assert_eq!(
                decide(KernelVersion(kernel.0, kernel.1), first, build),
                mode,
                "{kernel:?} {first} {build}"
            );
        }
    }

    #[test]
    fn releases() {
        for (release, version) in [
            ("6.1.0-18-amd64", (6, 1)),
            ("4.9-rc1", (4, 9)),
            ("5.10", (5, 10)),
            ("4.14.336-g12+", (4, 14)),
        ] {
            assert_eq!(release.parse(), Ok(KernelVersion(version.0, version.1)), "{release}");
        }
        for release in ["", "6", "six.one", "v6.1", "6.x", "99999999999.1"] {
            assert!(release.parse::<KernelVersion>().is_err(), "{release}");
        }
    }
}
