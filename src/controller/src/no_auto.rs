// SPDX-License-Identifier: Apache-2.0

//! Replaces [`crate::auto`] on Android, where ConnectivityService decides where CLATs run and init
//! has the options.

use std::convert::Infallible;
use std::io;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Parser};
use clat_host::IfaceName;

use crate::controller::Controller;
use crate::host::Host;
use crate::model::Event;
use crate::status::Uplinks;

/// No options.
#[derive(Args, Clone, Debug)]
pub struct AutoArgs {
    /// Always false.
    #[arg(skip)]
    pub check: bool,
    /// Always `None`.
    #[arg(skip)]
    pub config: Option<PathBuf>,
    /// Always empty: Android does its own tethering.
    #[arg(skip)]
    pub share: Vec<IfaceName>,
}

impl AutoArgs {
    /// None: addresses are random, as AOSP's are.
    #[must_use]
    pub fn secret(&self) -> Option<Secret> {
        None
    }
}

/// The absent secret of stable addresses.
#[derive(Debug)]
pub enum Secret {}

impl Secret {
    /// Never called.
    #[must_use]
    pub fn identifier(&self, _: Ipv6Addr, _: &IfaceName, _: Option<[u8; 6]>, _: u32) -> [u8; 8] {
        match *self {}
    }
}

/// Parses this process's command line. Errors end the process, as clap does.
///
/// # Errors
/// None.
pub fn read<P: Parser>(_: impl FnOnce(P) -> Option<PathBuf>) -> Result<P, Infallible> {
    Ok(P::parse())
}

/// The absent automatic mode.
#[derive(Debug)]
pub struct Auto;

impl Auto {
    /// Does nothing.
    ///
    /// # Errors
    /// None.
    pub fn open(_: &AutoArgs) -> io::Result<Self> {
        Ok(Self)
    }

    /// Ignores events.
    pub fn observer(&self) -> impl Fn(&Event) + Send + Sync {
        |_| ()
    }

    /// No uplinks.
    #[must_use]
    pub fn uplinks(&self) -> Arc<Uplinks> {
        Arc::default()
    }

    /// Does nothing.
    ///
    /// # Errors
    /// None.
    pub fn start<H: Host>(self, _: Arc<Controller<H>>) -> io::Result<Self> {
        Ok(self)
    }

    /// Does nothing.
    pub fn reload(&self, _: &AutoArgs) {}
}
