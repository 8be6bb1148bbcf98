// SPDX-License-Identifier: Apache-2.0

//! The actions that bring a CLAT from its actual to its desired state: at its start from nothing,
//! after a restart of the controller from what the previous one left, and later from any state.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use clat_host::{Fwmark, IfaceName};

use crate::model::StopReason;

/// The desired state, as requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    /// The uplink's name at that time.
    pub(crate) iface: IfaceName,
    /// Its index, which identifies it from then on.
    pub(crate) index: u32,
    /// The NAT64 prefix, as given by the caller.
    pub(crate) prefix: String,
    /// Routing mark of the packets sent.
    pub(crate) mark: Fwmark,
    /// Whether the controller restores device and route (there is no netd).
    pub(crate) standalone: bool,
}

/// The parts of a CLAT, in the order in which they are made (docs/contract.md, "start") and the
/// reverse of that in which they are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The TUN device.
    Device,
    /// The IPv4 address.
    V4,
    /// The IPv6 address.
    V6,
    /// The drop rule.
    Rule,
    /// clatd, which sets up the device.
    Clatd,
    /// Translation by BPF programs, if available.
    Offload,
    /// The IPv4 default route, if it is ours.
    Route,
}

impl Part {
    pub(crate) const ALL: [Self; 7] =
        [Self::Device, Self::V4, Self::V6, Self::Rule, Self::Clatd, Self::Offload, Self::Route];

    /// The parts on which this one depends: it has to be made anew with them.
    fn stands_on(self) -> &'static [Self] {
        match self {
            Self::Device | Self::V4 => &[],
            Self::V6 => &[Self::V4],
            Self::Rule => &[Self::V6],
            Self::Clatd | Self::Offload => &[Self::Device, Self::V6],
            Self::Route => &[Self::Device, Self::V4],
        }
    }
}

/// The actual state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actual {
    /// Whether the uplink exists.
    pub(crate) has_uplink: bool,
    /// Whether its name differs from the one that the parts have.
    pub(crate) is_renamed: bool,
    /// The existing parts.
    pub(crate) parts: BTreeSet<Part>,
    /// Whether the uplink has source addresses, and all are in other /64s than the CLAT's.
    pub(crate) has_other_prefix: bool,
    /// Whether another node has the CLAT's IPv6 address.
    pub(crate) is_taken: bool,
    /// Whether IPv4 does not work by this CLAT, but another one carries it.
    pub(crate) is_spare: bool,
    /// The MTU that the device should have; `None` without a path to the PLAT.
    pub(crate) wanted_mtu: Option<u32>,
    /// The device's MTU; `None` without a device.
    pub(crate) mtu: Option<u32>,
    /// Whether it is up and has its address.
    pub(crate) is_configured: bool,
    /// Whether this has ever been the case.
    pub(crate) was_configured: bool,
    /// Whether the default route exists.
    pub(crate) is_route_set: bool,
    /// Whether neighbours have been told the uplink's present Ethernet address.
    pub(crate) is_announced: bool,
}

/// An action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// End the CLAT.
    End(StopReason),
    /// Make a part, after removing an existing one.
    Make(Part),
    /// Set the device's MTU.
    SetMtu(u32),
    /// Bring the device up, with its address and this MTU.
    Configure(u32),
    /// Wait until clatd has set up the device, which the route needs.
    AwaitClatd,
    /// Tell neighbours the Ethernet address of the IPv6 address.
    Announce,
    /// Remove the default route for a while, so that programs use another one, or fail at once.
    WithdrawRoute,
    /// Restore the default route.
    RestoreRoute,
}

/// The actions that bring a CLAT to the desired state, in this order. All parts that will be made
/// are removed first.
pub(crate) fn reconcile(desired: &Desired, actual: &Actual) -> Vec<Action> {
    if !actual.has_uplink {
        return vec![Action::End(StopReason::UplinkGone)];
    }
    let wanted_mtu = actual.wanted_mtu.or(actual.mtu);
    let is_right = |part| match part {
        Part::Device | Part::Rule => !actual.is_renamed,
        Part::V6 => !actual.has_other_prefix && !actual.is_taken,
        // A running clatd uses the path MTU of its start, and smaller ones, but no larger one.
        Part::Clatd => !actual.is_renamed && (!actual.was_configured || wanted_mtu <= actual.mtu),
        Part::V4 | Part::Offload | Part::Route => true,
    };
    let mut stay = BTreeSet::new();
    for part in Part::ALL {
        let stands = part.stands_on().iter().all(|other| stay.contains(other));
        if stands && is_right(part) && actual.parts.contains(&part) {
            stay.insert(part);
        }
    }

    let mut actions = Vec::new();
    let device_stays = stay.contains(&Part::Device);
    let is_configured = device_stays && actual.is_configured;
    for part in Part::ALL {
        if stay.contains(&part) {
            continue;
        }
        if part == Part::Route && !is_configured {
            actions.push(Action::AwaitClatd);
        } else {
            actions.push(Action::Make(part));
        }
    }
    // Before that, clatd sets it up.
    if let Some(mtu) = wanted_mtu.filter(|_| device_stays && actual.was_configured) {
        if desired.standalone && !actual.is_configured {
            actions.push(Action::Configure(mtu));
        } else if Some(mtu) != actual.mtu {
            actions.push(Action::SetMtu(mtu));
        }
    }
    // A new clatd announces it itself.
    if !actual.is_announced && stay.contains(&Part::Clatd) {
        actions.push(Action::Announce);
    }
    if desired.standalone && stay.contains(&Part::Route) {
        // The only one keeps its route: the answer may be wrong, or IPv4 work again any moment.
        match (actual.wanted_mtu.is_some() && !actual.is_spare, actual.is_route_set) {
            (false, true) => actions.push(Action::WithdrawRoute),
            (true, false) => actions.push(Action::RestoreRoute),
            _ => {}
        }
    }
    actions
}

/// Most repairs per time: beyond that, somebody else evidently wants another state.
pub(crate) const MOST_REPAIRS: (usize, Duration) = (5, Duration::from_secs(60));

/// A limit on how often something may happen per time.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    most: usize,
    period: Duration,
    noted: VecDeque<Instant>,
}

impl Limit {
    pub(crate) fn new(most: usize, period: Duration) -> Self {
        Self { most, period, noted: VecDeque::new() }
    }

    /// When it may happen next, `now` or later.
    pub(crate) fn free_at(&self, now: Instant) -> Instant {
        let oldest = self.noted.len().checked_sub(self.most).map(|at| self.noted[at]);
        oldest.map_or(now, |oldest| now.max(oldest + self.period))
    }

    /// Notes that it happens at `now`; false if that is too often.
    pub(crate) fn note(&mut self, now: Instant) -> bool {
        self.noted.retain(|at| now.duration_since(*at) < self.period);
        self.noted.push_back(now);
        self.noted.len() <= self.most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(standalone: bool) -> Desired {
        let iface = IfaceName::parse("wlan0").expect("a name");
        let prefix = "64:ff9b::/96".to_owned();
        Desired { iface, index: 21, prefix, mark: Fwmark::new(21), standalone }
    }

    fn well() -> Actual {
        Actual {
            has_uplink: true,
            is_renamed: false,
            parts: Part::ALL.into(),
            has_other_prefix: false,
            is_taken: false,
            is_spare: false,
            wanted_mtu: Some(1472),
            mtu: Some(1472),
            is_configured: true,
            was_configured: true,
            is_route_set: true,
            is_announced: true,
        }
    }

    fn without(parts: &[Part]) -> Actual {
        let mut actual = well();
        actual.parts.retain(|part| !parts.contains(part));
        actual
    }

    #[test]
    fn what_is_to_be_done() {
        use Action::{
            Announce, AwaitClatd, Configure, End, Make, RestoreRoute, SetMtu, WithdrawRoute,
        };
        use Part::{Clatd, Device, Offload, Route, Rule, V4, V6};
        let nothing = Actual {
            parts: BTreeSet::new(),
            mtu: None,
            is_configured: false,
            was_configured: false,
            is_route_set: false,
            ..well()
        };
        let renumbered = [Make(V6), Make(Rule), Make(Clatd), Make(Offload)];
        let on_another_device = [Make(Device), Make(Clatd), Make(Offload), AwaitClatd];
        for (actual, actions) in [
            (well(), &[][..]),
            // From nothing, and once clatd has set up the device.
            (
                nothing,
                &[
                    Make(Device),
                    Make(V4),
                    Make(V6),
                    Make(Rule),
                    Make(Clatd),
                    Make(Offload),
                    AwaitClatd,
                ],
            ),
            (without(&[Route]), &[Make(Route)]),
            // From what a previous controller has left.
            (without(&[Offload, Route]), &[Make(Offload), Make(Route)]),
            // Without another prefix, the default route has to be withdrawn.
            (Actual { wanted_mtu: None, ..well() }, &[WithdrawRoute]),
            (Actual { wanted_mtu: None, is_route_set: false, ..well() }, &[]),
            (Actual { is_route_set: false, ..well() }, &[RestoreRoute]),
            (Actual { is_spare: true, ..well() }, &[WithdrawRoute]),
            (Actual { is_spare: true, is_route_set: false, ..well() }, &[]),
            (Actual { has_other_prefix: true, ..well() }, &renumbered),
            (Actual { is_taken: true, ..without(&[Clatd]) }, &renumbered),
            (without(&[Clatd]), &[Make(Clatd)]),
            (Actual { wanted_mtu: Some(1272), ..well() }, &[SetMtu(1272)]),
            (Actual { mtu: Some(1272), ..well() }, &[Make(Clatd), SetMtu(1472)]),
            (Actual { is_configured: false, ..well() }, &[Configure(1472)]),
            (Actual { is_announced: false, ..well() }, &[Announce]),
            (Actual { is_announced: false, ..without(&[Clatd]) }, &[Make(Clatd)]),
            (Actual { mtu: None, ..without(&[Device]) }, &on_another_device),
            (
                Actual { is_renamed: true, ..well() },
                &[Make(Device), Make(Rule), Make(Clatd), Make(Offload), AwaitClatd],
            ),
            (Actual { has_uplink: false, ..well() }, &[End(StopReason::UplinkGone)]),
        ] {
            assert_eq!(reconcile(&desired(true), &actual), actions, "{actual:?}");
        }
        // netd restores these.
        let down = Actual { is_configured: false, is_route_set: false, ..well() };
        assert_eq!(reconcile(&desired(false), &down), []);
    }

    #[test]
    fn a_fight_ends() {
        let (start, mut limit) = (Instant::now(), Limit::new(5, Duration::from_secs(60)));
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..5 {
            assert!(limit.note(at(second)));
        }
        assert_eq!((limit.free_at(at(59)), limit.free_at(at(62))), (at(60), at(62)));
        assert!(!limit.clone().note(at(59)));
        assert!(limit.note(at(60)));
    }
}
