// SPDX-License-Identifier: Apache-2.0

//! The options of `clat_controller` for CLATs that start and stop automatically.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, ValueEnum};
use clat_host::{IfaceName, NameError};
use clat_xlat::{Prefix, PrefixError};

use super::config::{merge, Error};
use super::secret::{Secret, STATE_DIR};
use super::settings::{Pattern, Settings};

/// The configuration file that is read if it exists and no other is named.
const CONFIG: &str = "/etc/clat/clat.toml";

/// The kind of a CLAT's IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)] // the option's help says it
pub enum AddressKind {
    Stable,
    Random,
}

/// Options of automatic CLATs.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Automatic CLATs")]
pub struct AutoArgs {
    /// Run a CLAT on each uplink whose network has IPv6 and a NAT64 but no native IPv4; the NAT64
    /// prefix is taken from router advertisements (RFC 8781) or the network's DNS (RFC 7050)
    #[arg(long, overrides_with = "no_auto")]
    pub auto: bool,
    /// Run CLATs only when requested (the default)
    #[arg(long, overrides_with = "auto")]
    pub no_auto: bool,
    /// An interface to treat as an uplink, with the wildcards * and ?. By default, tunnels, VPNs
    /// and devices for containers or guests are not
    #[arg(long, value_name = "IFACE")]
    pub uplink: Vec<Pattern>,
    /// An interface not to treat as an uplink
    #[arg(long, value_name = "IFACE")]
    pub no_uplink: Vec<Pattern>,
    /// The NAT64 prefix of an uplink's network, instead of the one that the network announces
    #[arg(long, value_name = "IFACE=PREFIX", value_parser = prefix_of)]
    pub prefix: Vec<(Pattern, Prefix)>,
    /// The interface identifier of a CLAT's IPv6 address, also of one started on request: the same
    /// whenever this host is in the same network, and unrelated in others (stable, RFC 7217), or a
    /// new one for each CLAT (random)
    #[arg(long, value_enum, value_name = "KIND", default_value = "stable")]
    pub address: AddressKind,
    /// Let the hosts behind this interface, such as containers behind docker0, use the CLATs:
    /// forward and masquerade their IPv4 packets by nftables
    #[arg(long, value_name = "IFACE", value_parser = interface)]
    pub share: Vec<IfaceName>,
    /// Also read options from this file [default: /etc/clat/clat.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the options and the file, and do nothing
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

/// Parses this process's command line, and the configuration file that `config` returns. Errors of
/// the command line end the process, as clap does.
///
/// # Errors
/// Errors of the file.
pub fn read<P: Parser>(config: impl FnOnce(P) -> Option<PathBuf>) -> Result<P, Error> {
    let line: Vec<_> = std::env::args_os().collect();
    let named = config(P::parse_from(&line));
    let file = named.or_else(|| Some(CONFIG.into()).filter(|file: &PathBuf| file.exists()));
    let Some(file) = file else { return Ok(P::parse_from(line)) };
    let merged = merge(&P::command(), &line, &file)?;
    P::try_parse_from(merged).map_err(|e| Error::options(&file, &e))
}

impl AutoArgs {
    /// The secret of stable addresses; `None` if addresses are random.
    #[must_use]
    pub fn secret(&self) -> Option<Secret> {
        if self.address == AddressKind::Random {
            return None;
        }
        let secret = Secret::keep_in(Path::new(STATE_DIR));
        secret.inspect_err(|e| log::warn!("CLATs' addresses are random, not stable: {e}")).ok()
    }

    /// The settings; `None` if automatic CLATs are off.
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
