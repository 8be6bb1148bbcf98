// SPDX-License-Identifier: Apache-2.0

//! What brings a CLAT from how it is to how it has to be: at its start from nothing, after a
//! restart of the controller from what the last one left, and from then on from whatever has become
//! of it.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use clat_host::{Fwmark, IfaceName};

use crate::model::StopReason;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Desired {
    /// The uplink, by the name that it had then.
    pub(crate) iface: IfaceName,
    /// Its index, by which it is known from then on.
    pub(crate) index: u32,
    /// The NAT64 prefix, in the words of who asked.
    pub(crate) prefix: String,
    /// Mark of the packets that leave.
    pub(crate) mark: Fwmark,
    /// Whether its device and its route are ours to put back.
    pub(crate) standalone: bool,
}

/// The parts of a CLAT, in the order in which they come (docs/contract.md, "start"). They go in the
/// reverse order.
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
    /// The translation in the kernel, where it can be had.
    Offload,
    /// The IPv4 default route, where it is ours.
    Route,
}

impl Part {
    pub(crate) const ALL: [Self; 7] =
        [Self::Device, Self::V4, Self::V6, Self::Rule, Self::Clatd, Self::Offload, Self::Route];

    /// Without which other parts, as they are, it is of no use.
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

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actual {
    /// Whether the uplink is there.
    pub(crate) has_uplink: bool,
    /// Whether its name is another than the parts know.
    pub(crate) is_renamed: bool,
    /// The parts that are there.
    pub(crate) parts: BTreeSet<Part>,
    /// Whether the uplink has addresses to send from, all of them in other /64s than the CLAT's.
    pub(crate) has_other_prefix: bool,
    /// Whether another node has the CLAT's IPv6 address.
    pub(crate) is_taken: bool,
    /// The MTU that the device should have; `None` where no path leads to the PLAT.
    pub(crate) wanted_mtu: Option<u32>,
    /// The MTU that it has; `None` where there is none.
    pub(crate) mtu: Option<u32>,
    /// Whether it is up and has its address.
    pub(crate) is_configured: bool,
    /// Whether that has ever been so.
    pub(crate) was_configured: bool,
    /// Whether the kernel has the default route.
    pub(crate) is_route_set: bool,
    /// Whether neighbours were told of the Ethernet address that the uplink has.
    pub(crate) is_announced: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// End the CLAT.
    End(StopReason),
    /// Make a part, in the place of the one that is there.
    Make(Part),
    /// Have the device carry packets of this size.
    SetMtu(u32),
    /// Bring the device up, with its address and this MTU.
    Configure(u32),
    /// Wait until clatd has set up the device: a route by it cannot be set before.
    AwaitClatd,
    /// Tell neighbours where the IPv6 address is.
    Announce,
    /// Take the default route away for a while, so that programs use another one or are told at
    /// once.
    WithdrawRoute,
    /// Have the default route be there again.
    RestoreRoute,
}

/// What brings a CLAT to what is desired, in this order. All parts that are to be made go first.
pub(crate) fn reconcile(desired: &Desired, actual: &Actual) -> Vec<Action> {
    if !actual.has_uplink {
        return vec![Action::End(StopReason::UplinkGone)];
    }
    let wanted_mtu = actual.wanted_mtu.or(actual.mtu);
    let is_right = |part| match part {
        Part::Device | Part::Rule => !actual.is_renamed,
        Part::V6 => !actual.has_other_prefix && !actual.is_taken,
        // It believes in the path that it has found first, and in smaller ones.
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
    // Before, it is clatd that sets it up.
    if let Some(mtu) = wanted_mtu.filter(|_| device_stays && actual.was_configured) {
        if desired.standalone && !actual.is_configured {
            actions.push(Action::Configure(mtu));
        } else if Some(mtu) != actual.mtu {
            actions.push(Action::SetMtu(mtu));
        }
    }
    // A new clatd does it by itself.
    if !actual.is_announced && stay.contains(&Part::Clatd) {
        actions.push(Action::Announce);
    }
    if desired.standalone && stay.contains(&Part::Route) {
        match (actual.wanted_mtu.is_some(), actual.is_route_set) {
            (false, true) => actions.push(Action::WithdrawRoute),
            (true, false) => actions.push(Action::RestoreRoute),
            _ => {}
        }
    }
    actions
}

/// So many repairs in so long, and no more: somebody else wants it otherwise.
pub(crate) const MOST_REPAIRS: (usize, Duration) = (5, Duration::from_secs(60));

/// How often something may happen in so long.
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

    /// When it may happen again, `now` or later.
    pub(crate) fn free_at(&self, now: Instant) -> Instant {
        let oldest = self.noted.len().checked_sub(self.most).map(|at| self.noted[at]);
        oldest.map_or(now, |oldest| now.max(oldest + self.period))
    }

    /// Notes that it happens at `now`; false where that is too often.
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
            // From what a former life has left.
            (without(&[Offload, Route]), &[Make(Offload), Make(Route)]),
            // Until there is another prefix, nothing can be done but to step aside.
            (Actual { wanted_mtu: None, ..well() }, &[WithdrawRoute]),
            (Actual { wanted_mtu: None, is_route_set: false, ..well() }, &[]),
            (Actual { is_route_set: false, ..well() }, &[RestoreRoute]),
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
        // netd's to put back.
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
