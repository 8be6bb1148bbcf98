// SPDX-License-Identifier: Apache-2.0

//! Values in command lines and files, with errors for people.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Parses a whole number of this range. The error says how to write one.
pub fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Clone,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let (from, to) = (range.start(), range.end());
        number.ok_or_else(|| format!("write a whole number from {from} to {to}"))
    }
}

/// Parses a value. The error shows an example.
pub fn like<T: FromStr>(example: &'static str) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| text.parse().map_err(|_| format!("write it like {example}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers() {
        let parse = whole(1..=300_u16);
        assert_eq!(["1", "300"].map(&parse), [Ok(1), Ok(300)]);
        for text in ["", "0", "301", "-1", "1.5", "x", "99999999999"] {
            assert_eq!(parse(text), Err("write a whole number from 1 to 300".to_owned()), "{text}");
        }
    }

    #[test]
    fn examples() {
        let parse = like::<std::net::Ipv4Addr>("192.0.2.1");
        assert_eq!(parse("192.0.0.4"), Ok([192, 0, 0, 4].into()));
        assert_eq!(parse("192.0.0"), Err("write it like 192.0.2.1".to_owned()));
    }
}
