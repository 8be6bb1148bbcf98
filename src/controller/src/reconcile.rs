// SPDX-License-Identifier: Apache-2.0

//! How a CLAT's surroundings have to be, and what is to be done where they are not so.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clat_datapath::next_hop::tun_mtu;

use crate::host::Host;
use crate::model::{Clat, StopReason};

/// So many repairs in so long end a CLAT: somebody else wants it otherwise.
const MOST_REPAIRS: usize = 5;
const WHILE: Duration = Duration::from_secs(60);

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actual {
    /// Whether the uplink is there, under its name and its index.
    has_uplink: bool,
    /// Whether the uplink has an address in the /64 that the CLAT's own is of, to be sent from.
    has_prefix: bool,
    /// Whether it has an address in another one that a new one could be made of.
    has_other_prefix: bool,
    /// Whether another node has its address.
    is_taken: bool,
    /// The MTU that the TUN device should have; `None` where no path leads to the PLAT.
    wanted_mtu: Option<u32>,
    /// The MTU that it has; `None` where it is gone.
    mtu: Option<u32>,
    /// Whether it is up and has its address.
    is_configured: bool,
}

impl Actual {
    /// Looks it up. What cannot be asked is taken to be as it should.
    pub(crate) fn of<H: Host>(host: &H, clat: &Clat, is_taken: bool) -> Self {
        let asked = |what, error: std::io::Error| {
            log::debug!("{}: cannot tell {what}: {error}", clat.iface);
        };
        let has_prefix = host.has_prefix(clat.index, clat.v6).unwrap_or_else(|e| {
            asked("its addresses", e);
            true
        });
        let source = host.source_towards(&clat.iface, clat.mark, clat.prefix.addr());
        let other = |source| clat_host::address::is_usable_source(source) && !same_64(source, clat);
        Self {
            has_uplink: host.index_of(&clat.iface) == Some(clat.index),
            has_prefix,
            has_other_prefix: !has_prefix && source.is_ok_and(other),
            is_taken,
            wanted_mtu: host.path_mtu(&clat.iface, clat.mark, &clat.prefix).ok().map(tun_mtu),
            mtu: host.mtu(clat.v4index).ok(),
            is_configured: host.is_configured(&clat.v4iface, clat.v4).unwrap_or_else(|e| {
                asked("the device's address", e);
                true
            }),
        }
    }
}

impl Actual {
    /// Whether a path leads to the PLAT by the uplink.
    pub(crate) fn has_path(&self) -> bool {
        self.wanted_mtu.is_some()
    }
}

fn same_64(address: std::net::Ipv6Addr, clat: &Clat) -> bool {
    address.segments()[..4] == clat.v6.segments()[..4]
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// End the CLAT.
    End(StopReason),
    /// Make the CLAT anew: its device is gone.
    Remake,
    /// Give it an address in the uplink's new /64.
    Renumber,
    /// Have its device carry packets of this size.
    SetMtu(u32),
    /// Start another clatd, which believes in a smaller path.
    ReplaceClatd,
    /// Bring its device up, with its address and this MTU.
    Configure(u32),
}

/// What brings a CLAT to what is wanted of it, in this order. `is_standalone` where its device and
/// its route are ours to put back.
pub(crate) fn reconcile(actual: &Actual, is_standalone: bool) -> Vec<Action> {
    if !actual.has_uplink {
        return vec![Action::End(StopReason::UplinkGone)];
    }
    let Some(mtu) = actual.mtu else { return vec![Action::Remake] };
    let mut actions = Vec::new();
    let renumbers = actual.has_other_prefix || actual.is_taken;
    if renumbers {
        actions.push(Action::Renumber);
    }
    let wanted = actual.wanted_mtu.unwrap_or(mtu);
    if is_standalone && !actual.is_configured {
        actions.push(Action::Configure(wanted));
    } else if wanted != mtu {
        actions.push(Action::SetMtu(wanted));
    }
    if wanted > mtu && !renumbers {
        actions.push(Action::ReplaceClatd);
    }
    actions
}

/// When something of a CLAT was put back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Repairs(VecDeque<Instant>);

impl Repairs {
    /// Notes one at `now`; false where they are too many.
    pub(crate) fn note(&mut self, now: Instant) -> bool {
        self.0.retain(|at| now.duration_since(*at) < WHILE);
        self.0.push_back(now);
        self.0.len() <= MOST_REPAIRS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: Actual = Actual {
        has_uplink: true,
        has_prefix: true,
        has_other_prefix: false,
        is_taken: false,
        wanted_mtu: Some(1472),
        mtu: Some(1472),
        is_configured: true,
    };

    #[test]
    fn what_is_to_be_done() {
        let moved = Actual { has_prefix: false, has_other_prefix: true, ..WELL };
        let down = Actual { is_configured: false, ..WELL };
        for (actual, actions) in [
            (WELL, vec![]),
            (Actual { wanted_mtu: None, ..WELL }, vec![]),
            // Until there is another.
            (Actual { has_prefix: false, ..WELL }, vec![]),
            (moved, vec![Action::Renumber]),
            (Actual { is_taken: true, ..WELL }, vec![Action::Renumber]),
            (Actual { wanted_mtu: Some(1272), ..WELL }, vec![Action::SetMtu(1272)]),
            (Actual { mtu: Some(1272), ..WELL }, vec![Action::SetMtu(1472), Action::ReplaceClatd]),
            (down, vec![Action::Configure(1472)]),
            (Actual { mtu: None, ..WELL }, vec![Action::Remake]),
            (Actual { has_uplink: false, ..WELL }, vec![Action::End(StopReason::UplinkGone)]),
        ] {
            assert_eq!(reconcile(&actual, true), actions, "{actual:?}");
        }
        assert_eq!(reconcile(&Actual { is_configured: false, ..WELL }, false), []);
    }

    #[test]
    fn a_fight_ends() {
        let (start, mut repairs) = (Instant::now(), Repairs::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..5 {
            assert!(repairs.note(at(second)));
        }
        assert!(!repairs.clone().note(at(59)));
        assert!(repairs.note(at(60)));
    }
}
