// SPDX-License-Identifier: Apache-2.0

//! Whether packets may be translated by BPF programs: decided once, by kernel version and API
//! level.

use std::fmt;
use std::str::FromStr;

/// Android 9, the first that required eBPF of new devices.
const P: u32 = 28;

/// The level assumed off Android: the newest known (Android 16).
pub const NEWEST_API_LEVEL: u32 = 36;

/// What is expected of eBPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EbpfMode {
    /// It is not used.
    Disabled,
    /// NET_CLS_BPF may be missing: failing to attach a filter (ENOENT) is logged as information,
    /// not as an error.
    Maybe,
    /// It has to work.
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

/// A kernel version (major, minor), ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl FromStr for KernelVersion {
    type Err = std::num::ParseIntError;

    /// Parses the release of uname(2): `6.1.0-18-amd64`, `4.9-rc1`.
    fn from_str(release: &str) -> Result<Self, Self::Err> {
        let mut parts = release.split(|c: char| !c.is_ascii_digit());
        let mut next = || parts.next().unwrap_or_default().parse();
        Ok(Self(next()?, next()?))
    }
}

/// Decides by the kernel version and the API level with which the device was first sold or, if that
/// is 0 (unknown), the level of its build. AOSP: ClatdController::init.
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
