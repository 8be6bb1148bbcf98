// SPDX-License-Identifier: Apache-2.0

//! What stands for [`crate::auto`] on Android, where ConnectivityService says where CLATs run and
//! init has the options.

use std::convert::Infallible;
use std::io;
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
    /// Never.
    #[arg(skip)]
    pub check: bool,
    /// Nowhere.
    #[arg(skip)]
    pub config: Option<PathBuf>,
    /// Tethering is Android's.
    #[arg(skip)]
    pub share: Vec<IfaceName>,
}

/// Reads the command line of this process. What is wrong with it ends the process, as clap does it.
///
/// # Errors
/// None.
pub fn read<P: Parser>(_: impl FnOnce(P) -> Option<PathBuf>) -> Result<P, Infallible> {
    Ok(P::parse())
}

/// Nothing.
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

    /// Takes no note of events.
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
