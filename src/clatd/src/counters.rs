// SPDX-License-Identifier: Apache-2.0

//! The line of counters, logged on SIGUSR1 and at the end.

use std::fmt::Write;

use clat_datapath::tally::Tally;
use clat_xlat::{Counters, Reason};

/// One line: totals, then each reason that has occurred.
#[must_use]
pub fn line(interface: &str, counters: &Counters, tally: &Tally) -> String {
    let translator = Reason::ALL.iter().map(|reason| {
        let held = match reason {
            Reason::FragmentedIcmp => tally.held_icmp,
            Reason::ExtensionBehindFragment => tally.held_extension,
            _ => 0,
        };
        (reason.name(), counters.drops(*reason).saturating_sub(held))
    });
    let own = [
        ("reassembly", tally.reassembly),
        ("send", tally.send),
        ("tun-write", tally.tun_write),
        ("overrun", tally.overrun),
        ("receive", tally.receive),
        ("offload", tally.offload),
        ("rate-limited", tally.rate_limited),
    ];
    let drops: Vec<_> = translator.chain(own).filter(|(_, n)| *n > 0).collect();
    let replies: Vec<_> = Reason::ALL
        .iter()
        .map(|reason| (reason.name(), counters.replies(*reason)))
        .filter(|(_, n)| *n > 0)
        .collect();
    let sum = |of: &[(&str, u64)]| of.iter().map(|(_, n)| n).sum::<u64>();
    let mut line = format!(
        "clatd-{interface}: counters egress4={}/{} ingress6={}/{} replies={} drops={}",
        counters.packets46,
        counters.bytes46,
        counters.packets64,
        counters.bytes64,
        sum(&replies),
        sum(&drops),
    );
    for (kind, of) in [("reply", &replies), ("drop", &drops)] {
        for (name, n) in of {
            // Writing to a String does not fail.
            let _ = write!(line, " {kind}.{name}={n}");
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_occurred() {
        let mut counters = Counters::default();
        (counters.packets46, counters.bytes46) = (1, 84);
        assert_eq!(
            line("wlan0", &counters, &Tally::default()),
            "clatd-wlan0: counters egress4=1/84 ingress6=0/0 replies=0 drops=0"
        );
        let tally = Tally { send: 2, rate_limited: 3, ..Default::default() };
        assert_eq!(
            line("wlan0", &counters, &tally),
            "clatd-wlan0: counters egress4=1/84 ingress6=0/0 replies=0 drops=5 drop.send=2 \
             drop.rate-limited=3"
        );
    }
}
