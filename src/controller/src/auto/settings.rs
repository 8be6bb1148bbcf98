// SPDX-License-Identifier: Apache-2.0

//! Which uplinks CLATs come and go on by themselves, and what is known about them beforehand.

use std::str::FromStr;

use clat_xlat::Prefix;

/// What its owner wants of it. The default is to judge each interface by what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Interfaces that are uplinks, whatever they are.
    pub uplinks: Vec<Pattern>,
    /// Interfaces that are none.
    pub no_uplinks: Vec<Pattern>,
    /// Prefixes of networks that do not say theirs.
    pub prefixes: Vec<(Pattern, Prefix)>,
}

impl Settings {
    /// Whether the settings say of this interface that it is an uplink, or none; the first list
    /// before the second.
    pub(super) fn names(&self, iface: &str) -> Option<bool> {
        let has = |list: &[Pattern]| list.iter().any(|pattern| pattern.matches(iface));
        if has(&self.uplinks) {
            Some(true)
        } else {
            has(&self.no_uplinks).then_some(false)
        }
    }

    /// The prefix that it says this uplink's network has.
    pub(super) fn prefix(&self, iface: &str) -> Option<Prefix> {
        self.prefixes.iter().find(|(pattern, _)| pattern.matches(iface)).map(|(_, prefix)| *prefix)
    }

    /// These interfaces are uplinks, and no others.
    pub(super) fn only(pattern: &Pattern) -> Self {
        let all = Pattern("*".to_owned());
        Self { uplinks: vec![pattern.clone()], no_uplinks: vec![all], prefixes: Vec::new() }
    }

    #[cfg(test)]
    pub(super) fn named(uplinks: &[&str], no_uplinks: &[&str]) -> Self {
        let list = |texts: &[&str]| texts.iter().flat_map(|text| text.parse()).collect();
        Self { uplinks: list(uplinks), no_uplinks: list(no_uplinks), prefixes: Vec::new() }
    }
}

/// Names of interfaces: `*` stands for any characters, `?` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether `name` is one of them.
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
        // More than 15 characters no interface has; this also bounds the matching.
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
