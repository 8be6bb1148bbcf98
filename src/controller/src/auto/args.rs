// SPDX-License-Identifier: Apache-2.0

//! The options of `clat_controller` that are about CLATs that come and go by themselves.

use std::path::PathBuf;

use clap::Args;
use clat_xlat::{Prefix, PrefixError};

use super::settings::{Pattern, Settings};

/// CLATs that come and go by themselves.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "CLATs that come and go by themselves")]
pub struct AutoArgs {
    /// Run a CLAT on each uplink whose network has IPv6 and a NAT64 and no IPv4 of its own; the
    /// NAT64 prefix is what router advertisements (RFC 8781) or the network's DNS (RFC 7050) say
    #[arg(long, overrides_with = "no_auto")]
    pub auto: bool,
    /// Run CLATs where they are asked for, and nowhere else (the default)
    #[arg(long, overrides_with = "auto")]
    pub no_auto: bool,
    /// An interface that is an uplink, whatever it is; * and ? stand for others. Without being
    /// named, tunnels, VPNs and what is for containers or guests are none
    #[arg(long, value_name = "IFACE")]
    pub uplink: Vec<Pattern>,
    /// An interface that is no uplink
    #[arg(long, value_name = "IFACE")]
    pub no_uplink: Vec<Pattern>,
    /// The NAT64 prefix of an uplink's network, whatever that says itself
    #[arg(long, value_name = "IFACE=PREFIX", value_parser = prefix_of)]
    pub prefix: Vec<(Pattern, Prefix)>,
    /// Take options from this file, too [default: /etc/clat/clat.toml, where that is]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say whether the options and the file are right, and do nothing
    #[arg(long)]
    pub check: bool,
}

fn prefix_of(text: &str) -> Result<(Pattern, Prefix), String> {
    let (iface, prefix) =
        text.split_once('=').ok_or("write it like wlan0=64:ff9b::/96, or *=64:ff9b::/96")?;
    Ok((iface.parse()?, prefix.parse().map_err(|e: PrefixError| e.to_string())?))
}

impl AutoArgs {
    /// What is wanted of it; `None` where nothing is.
    #[must_use]
    pub fn settings(&self) -> Option<Settings> {
        let Self { auto, uplink, no_uplink, prefix, .. } = self;
        let settings = || Settings {
            uplinks: uplink.clone(),
            no_uplinks: no_uplink.clone(),
            prefixes: prefix.clone(),
        };
        auto.then(settings)
    }
}
