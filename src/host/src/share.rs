// SPDX-License-Identifier: Apache-2.0

//! IPv4 for hosts behind this one, such as containers and virtual machines: their packets are
//! forwarded into CLATs, and masqueraded, as a CLAT has a single IPv4 address (RFC 6877 §6.3).

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use clat_sys::HostError;

use crate::firewall::run;
use crate::lock::namespace;
use crate::{IfaceName, RUN_DIR};

/// Our nftables table. No one else's rules are in it.
const TABLE: &str = "table ip clat_share";

/// Interfaces whose hosts may use the CLATs of this host.
#[derive(Debug, Default)]
pub struct Share(Vec<IfaceName>);

impl Share {
    /// Shares with these interfaces, and no longer with any other. Without any, no program is run
    /// unless an earlier controller shared.
    ///
    /// # Errors
    /// Those of nft(8) and of the file system.
    pub fn begin(interfaces: Vec<IfaceName>) -> io::Result<Self> {
        if interfaces.is_empty() {
            Self::end()?;
        } else {
            record(&recorded()?.unwrap_or_default())?;
            run("nft", &["-f", "-"], &rules(&interfaces))?;
        }
        Ok(Self(interfaces))
    }

    /// Has the shared interfaces that exist, and the IPv4 device of a CLAT, forward IPv4. The
    /// device loses that when it is removed.
    ///
    /// # Errors
    /// Those of the file system: `ENOENT` if the device does not exist.
    pub fn forward(&self, device: &IfaceName) -> io::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        set_forwarding(device.as_str(), true)?;
        let mut ours = recorded()?.unwrap_or_default();
        for iface in self.0.iter().map(IfaceName::as_str) {
            if fs::read_to_string(forwarding(iface)).is_ok_and(|value| value.trim() == "0") {
                ours.push(iface.to_owned());
                record(&ours)?;
                set_forwarding(iface, true)?;
            }
        }
        Ok(())
    }

    /// Ends sharing, including that of an earlier controller.
    ///
    /// # Errors
    /// Those of nft(8) and of the file system.
    pub fn end() -> io::Result<()> {
        let Some(ours) = recorded()? else { return Ok(()) };
        for iface in ours {
            match set_forwarding(&iface, false) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        run("nft", &["-f", "-"], &remove())?;
        fs::remove_file(path()?)
    }
}

/// What removes the table, whether it exists or not.
fn remove() -> String {
    format!("{TABLE}\ndelete {TABLE}\n")
}

/// What replaces the table, in one transaction.
fn rules(interfaces: &[IfaceName]) -> String {
    let names: Vec<_> = interfaces.iter().map(|iface| format!("\"{iface}\"")).collect();
    // Linux 5.7 and later know the incoming interface after routing.
    format!(
        "{}{TABLE} {{ chain postrouting {{ type nat hook postrouting priority srcnat; \
         iifname {{ {} }} oifname \"v4-*\" masquerade; }}; }}\n",
        remove(),
        names.join(", ")
    )
}

fn forwarding(iface: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(iface).join("forwarding")
}

fn set_forwarding(iface: &str, on: bool) -> io::Result<()> {
    let path = forwarding(iface);
    fs::write(&path, if on { "1" } else { "0" }).map_err(|e| HostError::during(path.display(), e))
}

/// Lists the interfaces that did not forward before, for the next controller; exists while there is
/// a table.
fn path() -> io::Result<PathBuf> {
    Ok(Path::new(RUN_DIR).join(format!("share-{}", namespace()?)))
}

fn record(ours: &[String]) -> io::Result<()> {
    let path = path()?;
    fs::write(&path, ours.join("\n")).map_err(|e| HostError::during(path.display(), e))
}

fn recorded() -> io::Result<Option<Vec<String>>> {
    match fs::read_to_string(path()?) {
        Ok(text) => Ok(Some(text.lines().map(str::to_owned).collect())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}
