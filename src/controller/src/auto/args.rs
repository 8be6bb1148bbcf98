// SPDX-License-Identifier: Apache-2.0

//! The options of `clat_controller` that are about CLATs that come and go by themselves.

use std::path::PathBuf;

use clap::{Args, Parser};
use clat_host::{IfaceName, NameError};
use clat_xlat::{Prefix, PrefixError};

use super::config::{merge, Error};
use super::settings::{Pattern, Settings};

/// The configuration file that is read where it is and no other was named.
const CONFIG: &str = "/etc/clat/clat.toml";

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
    /// Let the hosts behind this interface, as containers behind docker0, use the CLATs: forward
    /// their IPv4 packets and masquerade them, by nftables
    #[arg(long, value_name = "IFACE", value_parser = interface)]
    pub share: Vec<IfaceName>,
    /// Take options from this file, too [default: /etc/clat/clat.toml, where that is]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say whether the options and the file are right, and do nothing
    #[arg(long)]
    pub check: bool,
}

fn interface(text: &str) -> Result<IfaceName, NameError> {
    IfaceName::parse(text)
}

fn prefix_of(text: &str) -> Result<(Pattern, Prefix), String> {
    let (iface, prefix) =
        text.split_once('=').ok_or("write it like wlan0=64:ff9b::/96, or *=64:ff9b::/96")?;
    Ok((iface.parse()?, prefix.parse().map_err(|e: PrefixError| e.to_string())?))
}

/// Reads the command line of this process, and the configuration file, which is the one that it
/// names by `config`. What is wrong with the former ends the process, as clap does it.
///
/// # Errors
/// What is wrong with the file, and where.
pub fn read<P: Parser>(config: impl FnOnce(P) -> Option<PathBuf>) -> Result<P, Error> {
    let line: Vec<_> = std::env::args_os().collect();
    let named = config(P::parse_from(&line));
    let file = named.or_else(|| Some(CONFIG.into()).filter(|file: &PathBuf| file.exists()));
    let Some(file) = file else { return Ok(P::parse_from(line)) };
    let merged = merge(&P::command(), &line, &file)?;
    P::try_parse_from(merged).map_err(|e| Error::options(&file, &e))
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
            ignores_ipv4: false,
        };
        auto.then(settings)
    }
}
