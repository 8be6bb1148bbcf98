// SPDX-License-Identifier: Apache-2.0

//! The text of `dumpsys clatd_controller`, which is also part of `dumpsys netd`. Scripts parse it
//! (docs/contract.md, "dump").

use std::fmt::{self, Write as _};
use std::io;

use crate::host::{EgressEntry, IngressEntry, Links};
use crate::model::Clat;

/// What is shown.
pub(crate) struct Dump<'d, L: Links> {
    /// The running CLATs, by name.
    pub(crate) clats: &'d [Clat],
    /// The maps, if they exist.
    pub(crate) ingress: Option<io::Result<Vec<IngressEntry>>>,
    pub(crate) egress: Option<io::Result<Vec<EgressEntry>>>,
    /// Names of interfaces.
    pub(crate) links: &'d L,
    /// Lines below those that scripts parse.
    pub(crate) more: Vec<String>,
}

/// Indents by two spaces a level.
struct Indented(String);

impl Indented {
    fn line(&mut self, level: usize, text: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "{:indent$}{text}", "", indent = 2 * level);
    }

    fn map<E>(
        &mut self,
        header: &str,
        map: Option<io::Result<Vec<E>>>,
        entry: impl Fn(&E) -> String,
    ) {
        let Some(map) = map else { return };
        self.line(2, format_args!("{header}"));
        match map {
            Ok(entries) => entries.iter().for_each(|e| self.line(3, format_args!("{}", entry(e)))),
            Err(e) => self.line(3, format_args!("Error printing BPF map: {e}")),
        }
    }
}

impl<L: Links> Dump<'_, L> {
    /// The whole text, each line with its newline.
    pub(crate) fn render(self) -> String {
        let mut out = Indented(String::new());
        out.line(1, format_args!("ClatdController"));
        out.line(
            2,
            format_args!(
                "Trackers: iif[iface] nat64Prefix v6Addr -> v4Addr v4iif[v4iface] [fwmark]"
            ),
        );
        for clat in self.clats {
            let Clat { iface, index, v4iface, v4index, prefix, v4, v6, mark, .. } = clat;
            out.line(
                3,
                format_args!(
                    "{index}[{iface}] {prefix} {v6} -> {v4} {v4index}[{v4iface}] [{mark}]"
                ),
            );
        }
        let name = |index| self.links.name_of(index).unwrap_or_else(|| "?".to_owned());
        out.map(
            "BPF ingress map: iif(iface) nat64Prefix v6Addr -> v4Addr oif(iface)",
            self.ingress,
            |e| {
                let IngressEntry { iif, prefix, local6, oif, local4 } = e;
                format!(
                    "{iif}({}) {prefix}/96 {local6} -> {local4} {oif}({})",
                    name(*iif),
                    name(*oif)
                )
            },
        );
        out.map(
            "BPF egress map: iif(iface) v4Addr -> v6Addr nat64Prefix oif(iface)",
            self.egress,
            |e| {
                let EgressEntry { iif, local4, oif, local6, prefix, oif_is_ethernet } = e;
                let link = if *oif_is_ethernet { "ether" } else { "rawip" };
                format!(
                    "{iif}({}) {local4} -> {local6} {prefix}/96 {oif}({}) {link}",
                    name(*iif),
                    name(*oif)
                )
            },
        );
        for line in &self.more {
            out.line(2, format_args!("{line}"));
        }
        out.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use clat_xlat::Prefix;

    use super::*;
    use crate::host::fake::FakeHost;
    use clat_host::Fwmark;
    use clat_host::IfaceName;

    fn clat() -> Clat {
        Clat {
            iface: IfaceName::parse("wlan0").expect("a name"),
            index: 21,
            v4iface: IfaceName::parse("v4-wlan0").expect("a name"),
            v4index: 34,
            prefix: Prefix::WELL_KNOWN,
            v4: "192.0.0.4".parse().expect("an address"),
            v6: "2001:db8::1:2:3:4".parse().expect("an address"),
            mark: Fwmark::new(100),
            since: Instant::now(),
        }
    }

    fn ingress() -> IngressEntry {
        let clat = clat();
        IngressEntry {
            iif: 21,
            prefix: clat.prefix.addr(),
            local6: clat.v6,
            oif: 34,
            local4: clat.v4,
        }
    }

    fn egress() -> EgressEntry {
        let clat = clat();
        EgressEntry {
            iif: 34,
            local4: clat.v4,
            oif: 21,
            local6: clat.v6,
            prefix: clat.prefix.addr(),
            oif_is_ethernet: true,
        }
    }

    fn host() -> FakeHost {
        let host = FakeHost::default();
        host.add_link("wlan0", 21);
        host.add_link("v4-wlan0", 34);
        host
    }

    #[test]
    fn as_documented() {
        let dump = Dump {
            clats: &[clat()],
            ingress: Some(Ok(vec![ingress()])),
            egress: Some(Ok(vec![egress()])),
            links: &host(),
            more: vec!["eBPF mode: Enabled".to_owned()],
        };
        let text = dump.render();
        // The text that scripts were written for, character by character.
        assert!(
            text.starts_with(
                "  ClatdController
    Trackers: iif[iface] nat64Prefix v6Addr -> v4Addr v4iif[v4iface] [fwmark]
      21[wlan0] 64:ff9b::/96 2001:db8::1:2:3:4 -> 192.0.0.4 34[v4-wlan0] [0xf0064]
    BPF ingress map: iif(iface) nat64Prefix v6Addr -> v4Addr oif(iface)
      21(wlan0) 64:ff9b::/96 2001:db8::1:2:3:4 -> 192.0.0.4 34(v4-wlan0)
    BPF egress map: iif(iface) v4Addr -> v6Addr nat64Prefix oif(iface)
      34(v4-wlan0) 192.0.0.4 -> 2001:db8::1:2:3:4 64:ff9b::/96 21(wlan0) ether
"
            ),
            "{text}"
        );
        insta::assert_snapshot!(text.replace(' ', "·"), @r"
        ··ClatdController
        ····Trackers:·iif[iface]·nat64Prefix·v6Addr·->·v4Addr·v4iif[v4iface]·[fwmark]
        ······21[wlan0]·64:ff9b::/96·2001:db8::1:2:3:4·->·192.0.0.4·34[v4-wlan0]·[0xf0064]
        ····BPF·ingress·map:·iif(iface)·nat64Prefix·v6Addr·->·v4Addr·oif(iface)
        ······21(wlan0)·64:ff9b::/96·2001:db8::1:2:3:4·->·192.0.0.4·34(v4-wlan0)
        ····BPF·egress·map:·iif(iface)·v4Addr·->·v6Addr·nat64Prefix·oif(iface)
        ······34(v4-wlan0)·192.0.0.4·->·2001:db8::1:2:3:4·64:ff9b::/96·21(wlan0)·ether
        ····eBPF·mode:·Enabled
        ");
    }

    #[test]
    fn nothing_runs_and_no_maps() {
        let dump =
            Dump { clats: &[], ingress: None, egress: None, links: &host(), more: Vec::new() };
        insta::assert_snapshot!(dump.render().replace(' ', "·"), @r"
        ··ClatdController
        ····Trackers:·iif[iface]·nat64Prefix·v6Addr·->·v4Addr·v4iif[v4iface]·[fwmark]
        ");
    }

    #[test]
    fn unknown_names_raw_ip_and_unreadable_maps() {
        let egress = EgressEntry { iif: 7, oif: 8, oif_is_ethernet: false, ..egress() };
        let dump = Dump {
            clats: &[],
            ingress: Some(Err(io::Error::from_raw_os_error(libc::EPERM))),
            egress: Some(Ok(vec![egress])),
            links: &host(),
            more: Vec::new(),
        };
        insta::assert_snapshot!(dump.render().replace(' ', "·"), @r"
        ··ClatdController
        ····Trackers:·iif[iface]·nat64Prefix·v6Addr·->·v4Addr·v4iif[v4iface]·[fwmark]
        ····BPF·ingress·map:·iif(iface)·nat64Prefix·v6Addr·->·v4Addr·oif(iface)
        ······Error·printing·BPF·map:·Operation·not·permitted·(os·error·1)
        ····BPF·egress·map:·iif(iface)·v4Addr·->·v6Addr·nat64Prefix·oif(iface)
        ······7(?)·192.0.0.4·->·2001:db8::1:2:3:4·64:ff9b::/96·8(?)·rawip
        ");
    }
}
