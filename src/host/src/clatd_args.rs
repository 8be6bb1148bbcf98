// SPDX-License-Identifier: Apache-2.0

//! The command line of a clatd.

use std::net::{Ipv4Addr, Ipv6Addr};

use clat_xlat::Prefix;

use crate::{Fwmark, IfaceName};

/// The arguments of a clatd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClatdArgs {
    /// The uplink.
    pub uplink: IfaceName,
    /// Routing mark of the packets it sends.
    pub mark: Fwmark,
    /// The NAT64 prefix.
    pub prefix: Prefix,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

impl ClatdArgs {
    /// The argument list from `argv[0]` on, for a clatd whose TUN device is descriptor `tun`.
    #[must_use]
    pub fn argv(&self, tun: i32) -> Vec<String> {
        let options = [
            ("-i", self.uplink.to_string()),
            ("-m", self.mark.to_string()),
            ("-p", prefix_to_text(&self.prefix)),
            ("-4", self.v4.to_string()),
            ("-6", self.v6.to_string()),
            ("-t", tun.to_string()),
        ];
        let argv0 = format!("clatd-{}", self.uplink);
        std::iter::once(argv0)
            .chain(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]))
            .collect()
    }

    /// Parses what [`ClatdArgs::argv`] makes: the arguments, and the descriptor of the TUN device.
    /// `None` for anything else.
    #[must_use]
    pub fn parse(argv: &[&str]) -> Option<(Self, i32)> {
        let [_, "-i", uplink, "-m", mark, "-p", prefix, "-4", v4, "-6", v6, "-t", tun] = argv
        else {
            return None;
        };
        let args = Self {
            uplink: IfaceName::parse(uplink).ok()?,
            mark: Fwmark::parse(mark)?,
            prefix: prefix_of_text(prefix)?,
            v4: v4.parse().ok()?,
            v6: v6.parse().ok()?,
        };
        let tun = tun.parse().ok()?;
        (args.argv(tun) == argv).then_some((args, tun))
    }
}

/// As AOSP's clatd takes it: without a length, which is always 96.
fn prefix_to_text(prefix: &Prefix) -> String {
    match prefix.bits() {
        96 => prefix.addr().to_string(),
        _ => prefix.to_string(),
    }
}

fn prefix_of_text(text: &str) -> Option<Prefix> {
    match text.parse() {
        Ok(address) => Prefix::new(address, 96).ok(),
        Err(_) => text.parse().ok(),
    }
}
