// SPDX-License-Identifier: Apache-2.0
//! Log lines of AOSP's ClatdController, word for word, since scripts search for them. Our own
//! lines, with interface and advice, come beside them.

use std::io;
use std::net::Ipv6Addr;

use log::Level;
use nix::errno::Errno;

use crate::ebpf_mode::EbpfMode;
use crate::errors::{Error, Step};
use crate::model::Clat;
use clat_host::IfaceName;
use clat_sys::errno_of;

/// The API level is not known.
pub(crate) const NO_API_LEVEL: &str = "Cannot determine initial API level of the device.";

/// The decision from kernel and level.
pub(crate) fn mode(mode: EbpfMode) -> &'static str {
    match mode {
        EbpfMode::Disabled => "Pre-4.9 kernel or pre-P api shipping level - disabling clat ebpf.",
        EbpfMode::Maybe => "4.9+ kernel and device shipped with P - clat ebpf might work.",
        EbpfMode::Enabled => "4.9+ kernel and device shipped with Q+ - clat ebpf should work.",
    }
}

/// The maps cannot be opened.
pub(crate) fn no_maps(error: &io::Error) -> String {
    format!("getClatEgressMapFd() failure: {}", strerror(errno_of(error)))
}

/// IPv6 could not be disabled on the TUN device.
pub(crate) fn ipv6_stays(v4iface: &IfaceName, error: &io::Error) -> String {
    format!("setEnableIPv6 {v4iface} failed ({})", strerror(errno_of(error)))
}

/// The uplink has no suitable source address.
pub(crate) fn no_source(iface: &IfaceName, prefix: Ipv6Addr) -> String {
    format!("Unable to find global source address on {iface} for {prefix}")
}

/// clatd could not be started.
pub(crate) fn no_clatd(error: &io::Error) -> String {
    format!("posix_spawn failed ({})", strerror(errno_of(error)))
}

/// A step of the offload failed; `None` if AOSP has no such step. `level` says whether failing is
/// expected.
pub(crate) fn no_offload(
    error: &Error,
    level: Level,
    clat: &Clat,
    is_ethernet: bool,
) -> Option<String> {
    let Clat { iface, index, v4iface, v4index, .. } = clat;
    let call = match error.step {
        Step::FindLinkKind => format!("isEthernet({iface}[{index}])"),
        Step::AddEgressEntry => "mClatEgressMap.writeValue".to_owned(),
        Step::AddIngressEntry => "mClatIngressMap.writeValue".to_owned(),
        Step::AddClsact => format!("tcQdiscAddDevClsact({v4index}[{v4iface}])"),
        Step::AddEgressFilter => {
            format!("tcFilterAddDevEgressClatIpv4({v4index}[{v4iface}], RAWIP)")
        }
        Step::AddIngressFilter => {
            let kind = u8::from(is_ethernet);
            format!("tcFilterAddDevIngressClatIpv6({index}[{iface}], {kind})")
        }
        _ => return None,
    };
    let failure = if level == Level::Error { " failure" } else { "" };
    Some(format!("{call}{failure}: {}", strerror(error.errno)))
}

/// The text of strerror(3).
fn strerror(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    // The standard library appends the number.
    let end = text.rfind(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use clat_xlat::Prefix;

    use super::*;
    use clat_host::Fwmark;

    fn name(text: &str) -> IfaceName {
        IfaceName::parse(text).expect("a name")
    }

    #[test]
    fn word_for_word() {
        let clat = Clat {
            iface: name("wlan0"),
            index: 21,
            v4iface: name("v4-wlan0"),
            v4index: 34,
            prefix: Prefix::WELL_KNOWN,
            v4: "192.0.0.4".parse().expect("an address"),
            v6: "2001:db8::1:2:3:4".parse().expect("an address"),
            mark: Fwmark::new(100),
            since: Instant::now(),
        };
        for (step, is_ethernet, level, line) in [
            (Step::FindLinkKind, false, Level::Error, "isEthernet(wlan0[21]) failure"),
            (Step::AddEgressEntry, false, Level::Error, "mClatEgressMap.writeValue failure"),
            (Step::AddIngressEntry, true, Level::Error, "mClatIngressMap.writeValue failure"),
            (Step::AddClsact, true, Level::Error, "tcQdiscAddDevClsact(34[v4-wlan0]) failure"),
            (
                Step::AddEgressFilter,
                true,
                Level::Error,
                "tcFilterAddDevEgressClatIpv4(34[v4-wlan0], RAWIP) failure",
            ),
            (
                Step::AddEgressFilter,
                true,
                Level::Info,
                "tcFilterAddDevEgressClatIpv4(34[v4-wlan0], RAWIP)",
            ),
            (
                Step::AddIngressFilter,
                true,
                Level::Error,
                "tcFilterAddDevIngressClatIpv6(21[wlan0], 1) failure",
            ),
            (
                Step::AddIngressFilter,
                false,
                Level::Info,
                "tcFilterAddDevIngressClatIpv6(21[wlan0], 0)",
            ),
        ] {
            let error = Error::new(Errno::ENOENT, "wlan0", step, "no reason");
            let said = no_offload(&error, level, &clat, is_ethernet);
            assert_eq!(said, Some(format!("{line}: No such file or directory")));
        }
        let ours = Error::new(Errno::ENOENT, "wlan0", Step::FindNextHop, "no reason");
        assert_eq!(no_offload(&ours, Level::Error, &clat, true), None);

        let denied = io::Error::from(Errno::EACCES);
        assert_eq!(no_maps(&denied), "getClatEgressMapFd() failure: Permission denied");
        assert_eq!(no_clatd(&denied), "posix_spawn failed (Permission denied)");
        let line = "setEnableIPv6 v4-wlan0 failed (Permission denied)";
        assert_eq!(ipv6_stays(&clat.v4iface, &denied), line);
        let line = "Unable to find global source address on wlan0 for 64:ff9b::";
        assert_eq!(no_source(&clat.iface, clat.prefix.addr()), line);
    }
}
