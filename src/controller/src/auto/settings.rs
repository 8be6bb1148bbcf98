// SPDX-License-Identifier: Apache-2.0

//! Settings of automatic CLATs: which interfaces are uplinks, and known prefixes.

use std::str::FromStr;

use clat_xlat::Prefix;

/// The settings. By default, each interface is judged by its properties.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Interfaces that are uplinks in any case.
    pub uplinks: Vec<Pattern>,
    /// Interfaces that are no uplinks.
    pub no_uplinks: Vec<Pattern>,
    /// Prefixes of networks that do not announce theirs.
    pub prefixes: Vec<(Pattern, Prefix)>,
    /// Whether native IPv4, and a DHCPv4 client that may bring it, count for nothing.
    pub ignores_ipv4: bool,
}

impl Settings {
    /// Whether the settings declare this interface an uplink (true) or none (false); `uplinks` has
    /// precedence.
    pub(super) fn names(&self, iface: &str) -> Option<bool> {
        let has = |list: &[Pattern]| list.iter().any(|pattern| pattern.matches(iface));
        if has(&self.uplinks) {
            Some(true)
        } else {
            has(&self.no_uplinks).then_some(false)
        }
    }

    /// The configured prefix of this uplink's network.
    pub(super) fn prefix(&self, iface: &str) -> Option<Prefix> {
        self.prefixes.iter().find(|(pattern, _)| pattern.matches(iface)).map(|(_, prefix)| *prefix)
    }

    /// Makes these interfaces, and no others, uplinks.
    pub(super) fn only(pattern: &Pattern) -> Self {
        let all = Pattern("*".to_owned());
        Self { uplinks: vec![pattern.clone()], no_uplinks: vec![all], ..Self::default() }
    }

    #[cfg(test)]
    pub(super) fn named(uplinks: &[&str], no_uplinks: &[&str]) -> Self {
        let list = |texts: &[&str]| texts.iter().flat_map(|text| text.parse()).collect();
        Self { uplinks: list(uplinks), no_uplinks: list(no_uplinks), ..Self::default() }
    }
}

/// A pattern of interface names: `*` matches any characters, `?` one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether the pattern matches `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([b'*', rest @ ..], _) => {
            matches(rest, name)
                || name.split_first().is_some_and(|(_, name)| matches(pattern, name))
        }
        ([b'?', pattern @ ..], [_, name @ ..]) => matches(pattern, name),
        ([a, pattern @ ..], [b, name @ ..]) => a == b && matches(pattern, name),
        ([], []) => true,
        _ => false,
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-*?".contains(&b);
        // No interface name is longer than 15; this also bounds the matching.
        if text.is_empty() || text.len() > 15 || !text.bytes().all(allowed) {
            return Err("an interface is named by 1 to 15 of A-Z a-z 0-9 . _ - and * ?".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, is_one) in [
            ("wlan0", "wlan0", true),
            ("wlan0", "wlan01", false),
            ("wl*", "wlan0", true),
            ("wl*", "wl", true),
            ("wl*", "eth0", false),
            ("*", "anything", true),
            ("e*0", "enp0s0", true),
            ("e*0", "enp0s1", false),
            ("eth?", "eth0", true),
            ("eth?", "eth", false),
            ("*******a", "bbbbbbbbbbbbbbb", false),
        ] {
            let parsed: Pattern = pattern.parse().expect(pattern);
            assert_eq!(parsed.matches(name), is_one, "{pattern} {name}");
        }
        for bad in ["", "a b", "eth0/1", "sixteen-letters-", "wl[0-9]"] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }
}
