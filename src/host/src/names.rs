// SPDX-License-Identifier: Apache-2.0

//! Names of network interfaces. An [`IfaceName`] has been checked, so it can be put into a firewall
//! rule, a path or an argument list.

use std::fmt;

use nix::errno::Errno;

use crate::HAS_NETD;

/// Longest name of an interface in bytes: IFNAMSIZ, less its NUL (linux/if.h).
const MAX_LEN: usize = 15;

/// Name of the device of the IPv4 side: this prefix and the uplink's name.
const V4_PREFIX: &str = "v4-";

/// The name of an interface: 1 to 15 of `A-Z a-z 0-9 . _ -`, not beginning with `-`, neither `.`
/// nor `..`.
///
/// The kernel allows more (anything but `/`, `:` and white space), but names end up in firewall
/// rules, where `+` is a wildcard and a newline begins the next rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfaceName(String);

/// Why a text is not a valid interface name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty, `.`, `..`, or with a character that is not allowed.
    #[error("not an interface name; allowed are A-Z a-z 0-9 . _ - with no - in front")]
    Characters,
    /// Longer than 15 characters.
    #[error("an interface name has at most 15 characters")]
    TooLong,
    /// Too long with `v4-` in front.
    #[error(
        "with v4- in front the name would not fit the kernel's 15 characters; an uplink's has \
        at most 12"
    )]
    TooLongForV4,
}

impl NameError {
    /// The errno value for callers.
    #[must_use]
    pub fn errno(self) -> Errno {
        match self {
            Self::Characters => Errno::EINVAL,
            Self::TooLong | Self::TooLongForV4 => Errno::ENAMETOOLONG,
        }
    }
}

impl IfaceName {
    /// Parses a name.
    ///
    /// # Errors
    /// [`NameError::Characters`] before [`NameError::TooLong`].
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if matches!(text, "" | "." | "..") || text.starts_with('-') || !text.bytes().all(allowed) {
            return Err(NameError::Characters);
        }
        if text.len() > MAX_LEN {
            return Err(NameError::TooLong);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name of the TUN device of a CLAT on this uplink, whose index is `index`: `v4-` and the
    /// uplink's name or, off Android, if that is too long, `v4-` and `index`.
    ///
    /// # Errors
    /// [`NameError::TooLongForV4`] on Android for a name of more than 12 characters.
    pub fn v4iface(&self, index: u32) -> Result<Self, NameError> {
        self.v4iface_on(index, HAS_NETD)
    }

    fn v4iface_on(&self, index: u32, has_netd: bool) -> Result<Self, NameError> {
        let fits = self.0.len() + V4_PREFIX.len() <= MAX_LEN;
        match (fits, has_netd) {
            (true, _) => Ok(Self(format!("{V4_PREFIX}{}", self.0))),
            (false, true) => Err(NameError::TooLongForV4),
            // At most 13 characters.
            (false, false) => Ok(Self(format!("{V4_PREFIX}{index}"))),
        }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&IfaceName> for String {
    fn from(name: &IfaceName) -> Self {
        name.0.clone()
    }
}

impl fmt::Display for IfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names() {
        for name in ["wlan0", "rmnet_data0", "eth0.100", "a", "twelve-chars", "fifteen-chars--"] {
            assert_eq!(IfaceName::parse(name).map(|n| n.to_string()), Ok(name.to_owned()));
        }
        let v4 = IfaceName::parse("wlan0").and_then(|name| name.v4iface_on(7, true));
        assert_eq!(v4.as_ref().map(IfaceName::as_str), Ok("v4-wlan0"));
        let v4 = IfaceName::parse("twelve-chars").and_then(|name| name.v4iface_on(7, false));
        assert_eq!(v4.as_ref().map(IfaceName::as_str), Ok("v4-twelve-chars"));
        let v4 = IfaceName::parse("enx30d042231de0").and_then(|name| name.v4iface_on(7, false));
        assert_eq!(v4.as_ref().map(IfaceName::as_str), Ok("v4-7"));
    }

    #[test]
    fn bad_names() {
        let bad = [
            "",
            ".",
            "..",
            "-i",
            "wlan 0",
            "wlan0\n",
            "\nCOMMIT",
            "a/b",
            "../a",
            "eth0:1",
            "eth+",
            "wlan0\0",
            "wlän0",
            "a;b",
            "$(id)",
            "`id`",
            "a b c d e f g h i j",
            "wlan0\t",
            "\"",
            "%s",
        ];
        for name in bad {
            assert_eq!(IfaceName::parse(name), Err(NameError::Characters), "{name:?}");
            assert_eq!(NameError::Characters.errno(), Errno::EINVAL);
        }
        for len in 16..40 {
            assert_eq!(IfaceName::parse(&"x".repeat(len)), Err(NameError::TooLong), "{len}");
        }
        for len in 13..=15 {
            let v4 = IfaceName::parse(&"x".repeat(len)).and_then(|name| name.v4iface_on(7, true));
            assert_eq!(v4, Err(NameError::TooLongForV4), "{len}");
        }
        assert_eq!(NameError::TooLong.errno(), Errno::ENAMETOOLONG);
        assert_eq!(NameError::TooLongForV4.errno(), Errno::ENAMETOOLONG);
    }
}
