// SPDX-License-Identifier: Apache-2.0

//! The command line of `clat_controller`, and its configuration file.

use std::path::PathBuf;

use clap::Parser;
use clat_sys::whole;

use crate::auto::{self, AutoArgs};
use crate::host::linux::{BPF_DIR, HAS_BPF};
use crate::host::ProbeTarget;
use crate::model::PacketPath;

/// Starts and stops 464XLAT (RFC 6877) on network interfaces, for callers by binder.
#[derive(Debug, Parser)]
#[command(name = "clat_controller", version)]
#[allow(clippy::struct_excessive_bools)] // each is an option of its own
pub struct Args {
    /// Listen on this Unix socket (mode 0660, with the controller's group) [default: kernel binder
    /// if there is a service manager, else /run/clat/controller.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Register with the service manager of kernel binder
    #[arg(long, conflicts_with = "socket")]
    pub binder: bool,
    /// The clatd to start [default: in this program's directory, else where it is usually
    /// installed]
    #[arg(long, value_name = "PATH")]
    pub clatd: Option<PathBuf>,
    /// Work without netd: every interface has a network, and the controller sets the IPv4 default
    /// route (the default except on Android)
    #[arg(long, overrides_with = "no_standalone")]
    pub standalone: bool,
    /// Work with netd, which assigns interfaces to networks (the default on Android)
    #[arg(long, overrides_with = "standalone")]
    pub no_standalone: bool,
    /// Another user who may call, besides root, system (1000) and network_stack (1073); needs the
    /// socket's group
    #[arg(long, value_name = "UID", value_parser = whole(0..=u32::MAX))]
    pub allow_uid: Vec<u32>,
    /// The API level with which the device was first sold, for the choice of the eBPF mode
    #[arg(long, value_name = "N", value_parser = whole(0..=u32::MAX))]
    pub first_api_level: Option<u32>,
    /// A build.prop file with ro.product.first_api_level and ro.build.version.sdk
    #[arg(long, value_name = "FILE")]
    pub build_prop: Option<PathBuf>,
    /// The directory in which the programs and maps of the translation in the kernel are pinned
    #[arg(long, value_name = "DIR", default_value = BPF_DIR)]
    pub bpf_dir: PathBuf,
    /// Translate in the kernel where possible (the default if built with BPF, except on Android)
    #[arg(long, overrides_with = "no_offload")]
    pub offload: bool,
    /// Do without translation in the kernel: clatd does it all (the default on Android, whose
    /// policy lets only domains of its own use BPF)
    #[arg(long, overrides_with = "offload")]
    pub no_offload: bool,
    /// Which way packets go [default: device]
    #[arg(long, value_enum, value_name = "WAY", conflicts_with_all = ["offload", "no_offload"])]
    pub path: Option<PacketPath>,
    /// Ask this host on the IPv4 internet whether IPv4 works, when a CLAT has started, when its
    /// address or its path is another, and when packets leave and none comes back: by ICMP echo, or
    /// by TCP where a port is given. If not, another CLAT gets the IPv4 default route [default:
    /// none]
    #[arg(long, value_name = "ADDR[:PORT]")]
    pub probe: Option<ProbeTarget>,
    /// Leave the CLATs running at the end, and take over at the start those that were left so or by
    /// a killed controller [default: both are removed]
    #[arg(long)]
    pub keep: bool,
    /// Remove what a killed controller, or one with --keep, has left running, and do nothing else
    #[arg(long, conflicts_with = "keep")]
    pub sweep: bool,
    /// Options of automatic CLATs.
    #[command(flatten)]
    pub auto: AutoArgs,
}

impl Args {
    /// Whether to translate in the kernel, and whether on the uplink itself.
    #[must_use]
    pub fn offload(&self) -> (bool, bool) {
        if let Some(path) = self.path {
            return (path != PacketPath::Daemon, path == PacketPath::Direct);
        }
        (self.offload || !self.no_offload && HAS_BPF, false)
    }

    /// Parses this process's command line, and the configuration file. Errors of the command line
    /// end the process, as clap does.
    ///
    /// # Errors
    /// Errors of the file.
    pub fn read() -> anyhow::Result<Self> {
        Ok(auto::read(|args: Self| args.auto.config)?)
    }
}
