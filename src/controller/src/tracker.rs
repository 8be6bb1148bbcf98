// SPDX-License-Identifier: Apache-2.0

//! The resources of one CLAT, and how they are acquired.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clat_datapath::next_hop::tun_mtu;
use clat_datapath::path::Direction;
use clat_host::address::{self, Lease};
use clat_host::IfaceName;
use clat_sys::HostError;
use clat_xlat::{Local, Prefix, PrefixError};
use nix::errno::Errno;

use crate::errors::{Error, Step};
use crate::host::{Child, ClatdArgs, Detach, Host, Orphan, Progress, RouteAttributes};
use crate::model::{Clat, Event, PacketPath, Running, StopReason, Working};
use crate::offload::Attached;
use crate::original;
use crate::probe::{Probe, Questions};
use crate::reconcile::{reconcile, Action, Actual, Desired, Limit, Part, MOST_REPAIRS};
use crate::resources::Resources;
use crate::supervisor::{Restarts, Supervisor, Work};

/// Base metric of CLATs' default routes, to which the uplink's index is added: higher than native
/// routes', and different for each CLAT.
const ROUTE_METRIC: u32 = 2048;

/// Limit of new IPv6 addresses for duplicates on the link: a number in a time.
const MOST_DUPLICATES: (usize, Duration) = (3, Duration::from_secs(60));

/// A CLAT, complete or partly built. The fields are in the order of their release, which is Rust's
/// drop order: the reverse of their acquisition.
pub(crate) struct Tracker<H: Host> {
    route: Option<H::Route>,
    offload: Option<Attached<H::Programs>>,
    clatd: Option<Supervisor<H::Child>>,
    rule: Option<H::Rule>,
    /// The claim of the IPv6 address, so that the kernel answers neighbours while there is no
    /// clatd.
    claim: Option<H::Claim>,
    lease: Option<Lease>,
    tun: Option<H::Tun>,
    desired: Desired,
    /// Its description. Addresses are unspecified and indices 0 until they are known.
    clat: Clat,
    restarts: Restarts,
    /// When to start another clatd.
    due: Option<Instant>,
    /// Whether clatd has ever run: then it is restarted without end.
    has_run: bool,
    repairs: Limit,
    /// Limits new IPv6 addresses after duplicates.
    duplicates: Limit,
    /// How many addresses in the /64 of its uplink other nodes have had.
    dad_counter: u32,
    /// The last announced Ethernet address.
    announced: Option<[u8; 6]>,
    /// Whether IPv4 works, probed for each address, device and path MTU.
    probe: Probe<(Ipv6Addr, u32, Option<u32>)>,
    /// The last reported result.
    told: Working,
    /// Events that were not yet taken.
    events: Vec<Event>,
    /// Whether the offload was tried; it may be unavailable.
    is_offload_tried: bool,
    /// Whether there is no offload because another filter has its place.
    is_offload_blocked: bool,
    /// Whether its device was ever configured.
    was_configured: bool,
    /// Whether the route is withdrawn because the CLAT does not carry packets.
    is_withdrawn: bool,
}

/// The result of [`Tracker::reconcile`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The CLAT is as desired, as far as possible now.
    Whole,
    /// It will be when clatd has configured its device.
    AwaitsClatd,
    /// The CLAT has to end.
    Over(StopReason),
}

impl<H: Host> Tracker<H> {
    /// A CLAT without any resources.
    fn nothing(desired: Desired) -> Self {
        let clat = Clat {
            iface: desired.iface.clone(),
            index: desired.index,
            v4iface: desired.iface.clone(),
            v4index: 0,
            prefix: Prefix::WELL_KNOWN,
            v4: Ipv4Addr::UNSPECIFIED,
            v6: Ipv6Addr::UNSPECIFIED,
            mark: desired.mark,
            since: Instant::now(),
        };
        Self {
            route: None,
            offload: None,
            clatd: None,
            rule: None,
            claim: None,
            lease: None,
            tun: None,
            desired,
            clat,
            restarts: Restarts::default(),
            due: None,
            has_run: false,
            repairs: Limit::new(MOST_REPAIRS.0, MOST_REPAIRS.1),
            duplicates: Limit::new(MOST_DUPLICATES.0, MOST_DUPLICATES.1),
            dad_counter: 0,
            announced: None,
            probe: Probe::default(),
            told: Working::Unknown,
            events: Vec::new(),
            is_offload_tried: false,
            is_offload_blocked: false,
            was_configured: false,
            is_withdrawn: false,
        }
    }

    /// Steps 3 to 10 of docs/contract.md, "start". An early return rolls back: it drops the
    /// acquired resources in reverse order.
    pub(crate) fn start(resources: &Resources<H>, desired: Desired) -> Result<Self, Error> {
        Self::nothing(desired).complete(resources)
    }

    /// Takes over a CLAT of a previous controller, unless a part is missing that cannot be
    /// restored. An early return removes it by dropping its resources.
    pub(crate) fn adopt(
        resources: &Resources<H>,
        orphan: Orphan<H::Child, H::Tun>,
        rule: H::Rule,
    ) -> Result<Self, Error> {
        let Orphan { tun, args, index, child } = orphan;
        let host = &resources.host;
        let ClatdArgs { uplink: iface, mark, prefix, v4, v6 } = args;
        let fail = |errno, step, cause: &str| Error::new(errno, &iface, step, cause);
        let mut it = Self::nothing(Desired {
            iface: iface.clone(),
            index,
            prefix: prefix.to_string(),
            mark,
            standalone: resources.standalone,
        });
        (it.tun, it.rule) = (Some(tun), Some(rule));
        let v4iface =
            iface.v4iface(index).map_err(|e| fail(e.errno(), Step::CheckName, &e.to_string()))?;
        let v4index = host.index_of(&v4iface);
        (it.clat.v4iface, it.clat.v4index) = (v4iface.clone(), v4index.unwrap_or(0));
        it.clat.v6 = v6;
        (it.clatd, it.has_run) = (Some(it.watch(resources, child)?), true);
        let v4index = v4index.ok_or_else(|| fail(Errno::ENODEV, Step::CreateTun, "it is gone"))?;
        it.lease = resources.pool.take(v4);
        if it.lease.is_none() {
            return Err(fail(Errno::EADDRNOTAVAIL, Step::PickV4, &format!("{v4} is another's")));
        }
        if !address::is_usable_source(v6, !resources.standalone) {
            return Err(fail(Errno::EADDRNOTAVAIL, Step::MakeV6, &format!("{v6} is not global")));
        }
        let is_configured = host.is_configured(&v4iface, v4);
        if !is_configured.map_err(|e| Error::io(&e, &iface, Step::AwaitClatd))? {
            let cause = format!("{v4iface} has no address {v4}");
            return Err(fail(Errno::EADDRNOTAVAIL, Step::AwaitClatd, &cause));
        }
        if resources.standalone {
            let metric = ROUTE_METRIC.saturating_add(index);
            let route = host.adopt_route(v4index, v4, metric);
            it.route = Some(route.map_err(|e| Error::io(&e, &iface, Step::AddRoute))?);
        }
        (it.clat.prefix, it.clat.v4) = (prefix, v4);
        it.announced = host.link_address(index);
        it.complete(resources)
    }

    /// Acquires the missing parts, and waits for clatd.
    fn complete(mut self, resources: &Resources<H>) -> Result<Self, Error> {
        loop {
            match self.reconcile(resources, false, Instant::now())? {
                Outcome::Whole => break,
                Outcome::AwaitsClatd => self
                    .await_clatd(resources.host.as_ref())
                    .map_err(|e| Error::io(&e, &self.clat.iface, Step::AwaitClatd))?,
                Outcome::Over(_) => {
                    let cause = "it has just gone";
                    return Err(Error::new(
                        Errno::ENODEV,
                        &self.clat.iface,
                        Step::FindNetwork,
                        cause,
                    ));
                }
            }
        }
        self.clat.since = Instant::now();
        Ok(self)
    }

    /// Makes it as desired, as far as possible now; at the start, from nothing. `is_another` says
    /// whether another CLAT [`Self::carries`] packets.
    ///
    /// # Errors
    /// Those of acquiring a part. The caller decides what to do with the rest.
    pub(crate) fn reconcile(
        &mut self,
        resources: &Resources<H>,
        is_another: bool,
        now: Instant,
    ) -> Result<Outcome, Error> {
        self.see_clatd(resources.host.as_ref());
        self.restore_rule(resources.host.as_ref());
        if let Some((offload, programs)) = self.offload.as_mut().zip(resources.programs()) {
            offload.reconcile(programs.as_ref(), &self.clat, now);
        }
        if self.is_offload_blocked && resources.has_room(&self.clat) {
            self.drop_part(Part::Offload);
        }
        let uplink = resources.host.name_of(self.clat.index);
        let uplink = uplink.and_then(|name| IfaceName::parse(&name).ok());
        let actual = self.actual(resources.host.as_ref(), uplink.as_ref(), is_another, now);
        let actions = reconcile(&self.desired, &actual);
        if actions.is_empty() {
            self.ask(resources, actual.wanted_mtu, now);
            self.set_direct_route(resources, &actual, now);
            return Ok(Outcome::Whole);
        }
        if self.was_configured {
            log::info!("{}: {actions:?}", self.clat.iface);
        }
        if self.is_repair(&actions, &actual) && !self.repairs.note(now) {
            log::error!("{}: what is put back does not last; giving up", self.clat.iface);
            return Ok(Outcome::Over(StopReason::Failed));
        }
        if actual.is_taken {
            self.duplicates.note(now);
            self.dad_counter += 1;
        }
        if actual.has_other_prefix {
            self.dad_counter = 0;
        }
        for action in actions.iter().rev() {
            match action {
                Action::Make(part) => self.drop_part(*part),
                Action::AwaitClatd => self.drop_part(Part::Route),
                _ => {}
            }
        }
        self.clat.iface = uplink.unwrap_or_else(|| self.clat.iface.clone());
        let mut outcome = Outcome::Whole;
        for action in actions {
            match action {
                Action::End(reason) => return Ok(Outcome::Over(reason)),
                Action::AwaitClatd => outcome = Outcome::AwaitsClatd,
                Action::Make(Part::Clatd) if self.has_run => {
                    if let Err(e) = self.make(Part::Clatd, resources) {
                        log::error!("{e}");
                        self.restarts.failed(&e.cause, now);
                        self.due = self.restarts.due();
                        return Ok(Outcome::Whole);
                    }
                }
                Action::Make(part) => self.make(part, resources)?,
                Action::SetMtu(mtu) => {
                    let set = resources.host.set_mtu(self.clat.v4index, mtu);
                    set.map_err(|e| self.failed(&e, Step::AwaitClatd))?;
                }
                Action::Configure(mtu) => {
                    let Clat { v4index, v4, .. } = self.clat;
                    let set = resources.host.configure(v4index, v4, mtu);
                    set.map_err(|e| self.failed(&e, Step::AwaitClatd))?;
                }
                Action::Announce => self.announce(resources.host.as_ref()),
                Action::WithdrawRoute | Action::RestoreRoute => {
                    self.move_route(resources.host.as_ref(), action);
                }
            }
        }
        self.set_direct_route(resources, &actual, now);
        Ok(outcome)
    }

    /// Whether to reconcile again after an error: what an action was for may have gone since it was
    /// looked at. Each time counts as a repair.
    pub(crate) fn may_look_again(&mut self, now: Instant) -> bool {
        self.repairs.note(now)
    }

    /// Drops the parts named after the uplink if that was renamed: another uplink may have the name
    /// now.
    pub(crate) fn release_name(&mut self, host: &H) {
        let is_renamed = |name: String| name != self.clat.iface.as_str();
        if host.name_of(self.clat.index).is_some_and(is_renamed) {
            for part in [Part::Route, Part::Offload, Part::Clatd, Part::Rule, Part::Device] {
                self.drop_part(part);
            }
        }
    }

    /// Uses the direct way while the CLAT's own route would carry packets.
    fn set_direct_route(&mut self, resources: &Resources<H>, actual: &Actual, now: Instant) {
        let may = self.route.is_some() && !self.is_withdrawn && actual.is_configured;
        let metric = ROUTE_METRIC.saturating_add(self.clat.index);
        let route = actual.wanted_mtu.filter(|_| may).map(|mtu| RouteAttributes { metric, mtu });
        if let Some((offload, programs)) = self.offload.as_mut().zip(resources.programs()) {
            offload.set_route(programs.as_ref(), &self.clat, route, now);
        }
    }

    /// The actual state. What cannot be read is taken to be as desired.
    fn actual(
        &mut self,
        host: &H,
        uplink: Option<&IfaceName>,
        is_another: bool,
        now: Instant,
    ) -> Actual {
        let Clat { iface, index, v4iface, v4index, prefix, v4, v6, mark, .. } = &self.clat;
        let asked = |what, asked: io::Result<bool>, otherwise| {
            asked.unwrap_or_else(|e| {
                log::debug!("{iface}: cannot tell {what}: {e}");
                otherwise
            })
        };
        let mtu = self.tun.as_ref().and_then(|_| host.mtu(*v4index).ok());
        let source =
            uplink.and_then(|uplink| host.source_towards(uplink, *mark, prefix.addr()).ok());
        let with_netd = !self.desired.standalone;
        let source = source.filter(|source| address::is_usable_source(*source, with_netd));
        let is_taken = source.is_some() && self.clatd.as_ref().is_some_and(Supervisor::is_taken);
        // For a duplicate address, a new address is needed, not only a new clatd.
        self.due = if is_taken { Some(self.duplicates.free_at(now)) } else { self.restarts.due() };
        let is_due = self.due.is_some_and(|due| due <= now);
        let parts: BTreeSet<_> = [
            (Part::Device, mtu.is_some()),
            (Part::V4, self.lease.is_some()),
            (Part::V6, !v6.is_unspecified()),
            (Part::Rule, self.rule.is_some()),
            // A clatd that has ended counts as present until the next one is due.
            (Part::Clatd, !is_due && (self.clatd.is_some() || self.due.is_some())),
            (Part::Offload, self.is_offload_tried),
            (Part::Route, self.route.is_some() || !self.desired.standalone),
        ]
        .into_iter()
        .filter_map(|(part, is_there)| is_there.then_some(part))
        .collect();
        let has_addresses = parts.contains(&Part::V4) && parts.contains(&Part::V6);
        let is_configured = parts.contains(&Part::Device)
            && has_addresses
            && asked("the device's address", host.is_configured(v4iface, *v4), true);
        let wanted_mtu = uplink.filter(|_| has_addresses).and_then(|uplink| {
            let path_mtu = host.path_mtu(uplink, *mark, prefix).ok()?;
            Some(tun_mtu(path_mtu))
        });
        let has_prefix = asked("its addresses", host.has_prefix(*index, *v6), true);
        let is_other = source.is_some_and(|source| source.segments()[..4] != v6.segments()[..4]);
        let is_route_set = self
            .route
            .as_ref()
            .is_some_and(|route| asked("its route", host.is_route_set(route), true));
        self.was_configured |= is_configured;
        Actual {
            has_uplink: uplink.is_some(),
            is_renamed: uplink.is_some_and(|uplink| uplink != iface),
            parts,
            has_other_prefix: has_addresses && !has_prefix && is_other,
            is_taken: is_taken && is_due,
            is_spare: is_another && self.probe.answer() == Working::No,
            wanted_mtu,
            mtu,
            is_configured,
            was_configured: self.was_configured,
            is_route_set,
            is_announced: self.announced == host.link_address(*index),
        }
    }

    /// Probes whether IPv4 works, for each address and path and when packets are not answered, and
    /// reports the result.
    fn ask(&mut self, resources: &Resources<H>, path: Option<u32>, now: Instant) {
        let Some(target) = resources.probe_target else { return };
        let Clat { iface, index, v4index, prefix, mark, v6, .. } = self.clat.clone();
        let [asked, watched] = [Arc::clone(&resources.host), Arc::clone(&resources.host)];
        let ask = move |patience| match asked.probe(&iface, mark, &prefix, target, patience) {
            Ok(true) => Working::Yes,
            Ok(false) => Working::No,
            Err(e) => {
                log::warn!("{iface}: cannot ask whether IPv4 works: {e}");
                Working::Unknown
            }
        };
        let taps = move || watched.taps(v4index, index, v6, &prefix);
        let questions = Questions { ask, taps };
        self.probe.ask((v6, v4index, path), now, questions, resources.waker());
        let working = self.probe.answer();
        if working != Working::Unknown && working != self.told {
            let iface = self.clat.iface.clone();
            log::info!("{iface}: does IPv4 work? {}", working.as_str());
            self.events.push(Event::Probed { iface, working });
            self.told = working;
        }
    }

    /// Reports a clatd that has ended.
    fn see_clatd(&mut self, host: &H) {
        let Some(clatd) = &self.clatd else { return };
        let Some(ended) = self.restarts.see(clatd) else { return };
        let (iface, pid, cause) = (self.clat.iface.clone(), clatd.started_as(), ended.how);
        log::warn!("clatd on {iface} (pid {pid}) {cause}");
        self.events.push(Event::Died { iface, pid, cause });
        if !self.clatd.as_ref().is_some_and(Supervisor::is_taken) {
            self.claim(host);
        }
    }

    /// Restores the drop rule if others have removed it.
    fn restore_rule(&self, host: &H) {
        let (Some(rule), Clat { iface, v6, .. }) = (&self.rule, &self.clat) else { return };
        match host.restore_rule(rule) {
            Ok(false) => {}
            Ok(true) => log::warn!("{iface}: put back what keeps the kernel from {v6}"),
            Err(e) => log::error!("{iface}: cannot keep the kernel from {v6}: {e}"),
        }
    }

    /// Whether these actions repair changes of others.
    fn is_repair(&self, actions: &[Action], actual: &Actual) -> bool {
        actions.iter().any(|action| match action {
            Action::Make(Part::Device) => self.was_configured && !actual.is_renamed,
            Action::Configure(_) => true,
            // A route also disappears with other parts, and when we withdraw it.
            Action::RestoreRoute => actions.len() == 1 && !self.is_withdrawn,
            _ => false,
        })
    }

    fn drop_part(&mut self, part: Part) {
        match part {
            Part::Route => self.route = None,
            Part::Offload => {
                self.offload = None;
                (self.is_offload_tried, self.is_offload_blocked) = (false, false);
            }
            Part::Clatd => self.clatd = None,
            Part::Rule => self.rule = None,
            Part::V6 => (self.claim, self.clat.v6) = (None, Ipv6Addr::UNSPECIFIED),
            Part::V4 => self.lease = None,
            Part::Device => (self.tun, self.was_configured) = (None, false),
        }
    }

    fn make(&mut self, part: Part, resources: &Resources<H>) -> Result<(), Error> {
        let host = resources.host.as_ref();
        match part {
            Part::Device => self.make_device(host, resources.direct),
            Part::V4 => self.pick_v4(resources),
            Part::V6 => self.make_v6(host),
            Part::Rule => {
                let Clat { iface, prefix, v6, .. } = &self.clat;
                let rule = host.drop_rule(iface, prefix, *v6);
                self.rule = Some(rule.map_err(|e| self.failed(&e, Step::AddRule))?);
                Ok(())
            }
            Part::Clatd => self.start_clatd(resources),
            Part::Offload => {
                (self.offload, self.is_offload_tried) = (resources.offload(&self.clat), true);
                let is_blocked = self.offload.is_none() && !resources.has_room(&self.clat);
                self.is_offload_blocked = is_blocked;
                Ok(())
            }
            Part::Route => {
                let Clat { index, v4index, v4, .. } = self.clat;
                let route = host.default_route(v4index, v4, ROUTE_METRIC.saturating_add(index));
                self.route = Some(route.map_err(|e| self.failed(&e, Step::AddRoute))?);
                self.is_withdrawn = false;
                Ok(())
            }
        }
    }

    fn make_device(&mut self, host: &H, direct: bool) -> Result<(), Error> {
        let iface = &self.clat.iface;
        let v4iface = iface
            .v4iface(self.clat.index)
            .map_err(|e| Error::new(e.errno(), iface, Step::CheckName, e.to_string()))?;
        let tun = host.create_tun(&v4iface).map_err(|e| self.failed(&e, Step::CreateTun))?;
        let v4index = host.index_of(&v4iface).ok_or_else(|| {
            let cause = "it vanished as soon as it was there";
            Error::new(Errno::ENODEV, iface, Step::CreateTun, cause)
        })?;
        if let Err(e) = host.disable_ipv6(&v4iface) {
            log::error!("{}", original::ipv6_stays(&v4iface, &e));
        }
        // clatd's packets arrive there, while the route back leads through the uplink.
        if let Some(Err(e)) = direct.then(|| host.accept_from_anywhere(&v4iface)) {
            log::error!("{v4iface}: cannot accept packets from anywhere (rp_filter): {e}");
        }
        self.tun = Some(tun);
        (self.clat.v4iface, self.clat.v4index) = (v4iface, v4index);
        Ok(())
    }

    fn pick_v4(&mut self, resources: &Resources<H>) -> Result<(), Error> {
        let iface = &self.clat.iface;
        let prefix = parse_prefix(&self.desired.prefix, resources.standalone)
            .map_err(|(errno, cause)| Error::new(errno, iface, Step::ParsePrefix, cause))?;
        let is_on_link = resources.host.is_on_link(self.clat.index, &prefix);
        if is_on_link.unwrap_or_else(|e| {
            log::warn!("{iface}: cannot tell its networks: {e}");
            false
        }) {
            let cause = format!("{prefix} is of the network that it is on itself, not the NAT64's");
            return Err(Error::new(Errno::EINVAL, iface, Step::ParsePrefix, cause));
        }
        let taken = |addr| {
            resources.host.has_address(addr).unwrap_or_else(|e| {
                log::warn!("cannot tell whether {addr} is taken: {e}");
                true
            })
        };
        let lease = resources.pool.lease(taken).ok_or_else(|| {
            log::error!("No free IPv4 address in 192.0.0.4/{}", address::POOL_LEN);
            let cause =
                format!("every one of 192.0.0.0/{} is taken; stop a CLAT", address::POOL_LEN);
            Error::new(Errno::EADDRNOTAVAIL, iface, Step::PickV4, cause)
        })?;
        (self.clat.prefix, self.clat.v4) = (prefix, lease.addr());
        self.lease = Some(lease);
        Ok(())
    }

    fn make_v6(&mut self, host: &H) -> Result<(), Error> {
        let Clat { iface, prefix, v4, mark, .. } = &self.clat;
        let fail = |cause: String| {
            log::error!("{}", original::no_source(iface, prefix.addr()));
            Error::new(Errno::EADDRNOTAVAIL, iface, Step::MakeV6, cause)
        };
        let source = host
            .source_towards(iface, *mark, prefix.addr())
            .map_err(|e| fail(format!("it has no route to {prefix}: {e}")))?;
        if !address::is_usable_source(source, !self.desired.standalone) {
            return Err(fail(format!("it has no global IPv6 address, only {source}")));
        }
        let identifier = host.identifier(iface, source, self.dad_counter);
        let identifier = identifier.map_err(|e| self.failed(&e, Step::MakeV6))?;
        self.clat.v6 = Local::neutral(*v4, source, prefix, identifier).v6;
        Ok(())
    }

    /// Lets the kernel answer neighbour solicitations for the IPv6 address, as clatd does.
    fn claim(&mut self, host: &H) {
        let Clat { iface, index, v6, .. } = &self.clat;
        let claim = host.claim(*index, *v6);
        let claim = claim.inspect_err(|e| log::debug!("{iface}: cannot claim {v6}: {e}"));
        self.claim = claim.ok();
    }

    fn announce(&mut self, host: &H) {
        let Clat { iface, index, v6, .. } = &self.clat;
        let own = host.link_address(*index);
        let tell = |own| host.announce(&host.claim(*index, *v6)?, *v6, own);
        match own.map_or(Ok(()), tell) {
            Ok(()) => self.announced = own,
            // For example while the link is down.
            Err(e) => log::debug!("{iface}: cannot tell neighbours of {v6}: {e}"),
        }
    }

    fn start_clatd(&mut self, resources: &Resources<H>) -> Result<(), Error> {
        let Clat { iface, mark, prefix, v4, v6, .. } = self.clat.clone();
        let Some(tun) = &self.tun else {
            return Err(Error::new(Errno::ENODEV, &iface, Step::Spawn, "it has no device"));
        };
        log::info!("starting clatd on {iface} v4={v4} v6={v6} pfx96={}", prefix.addr());
        let args = ClatdArgs { uplink: iface.clone(), mark, prefix, v4, v6 };
        let spawned = resources.host.spawn_clatd(&args, tun);
        let spawned = spawned.inspect_err(|e| log::error!("{}", original::no_clatd(e)));
        let child = spawned.map_err(|e| self.failed(&e, Step::Spawn))?;
        let clatd = self.watch(resources, child)?;
        self.claim = None;
        // clatd announces it.
        self.announced = resources.host.link_address(self.clat.index);
        self.due = None;
        if let Some((restarts, ended)) = self.restarts.started() {
            let (pid, cause) = (clatd.pid(), ended.how);
            log::info!("clatd on {iface} started again with pid {pid}");
            self.events.push(Event::Restarted { iface, pid, restarts, cause });
        }
        (self.clatd, self.has_run) = (Some(clatd), true);
        Ok(())
    }

    /// Supervises a clatd, which has to read its device's packets.
    fn watch(
        &self,
        resources: &Resources<H>,
        child: H::Child,
    ) -> Result<Supervisor<H::Child>, Error> {
        let Clat { index, v4iface, v4index, v6, .. } = self.clat.clone();
        let [arrives, gets_on] = [Arc::clone(&resources.host), Arc::clone(&resources.host)];
        let pid = child.pid();
        let work = Work {
            arrival: move |way| match way {
                Direction::Egress => arrives.outgoing(v4index),
                Direction::Ingress => arrives.incoming(index, v6),
            },
            progress: move |way| match way {
                Direction::Egress => {
                    let taken = gets_on.traffic(&v4iface)?.tx_packets;
                    Ok(Progress { packets_wait: true, done: taken })
                }
                Direction::Ingress => gets_on.progress(pid, index),
            },
        };
        let clatd = Supervisor::watch(child, work, resources.waker());
        clatd.map_err(|e| self.failed(&e, Step::Supervise))
    }

    fn move_route(&mut self, host: &H, action: Action) {
        let (Some(route), iface) = (&self.route, &self.clat.iface) else { return };
        if action == Action::WithdrawRoute {
            log::warn!("{iface}: no way to the PLAT, or no answer; its IPv4 default route goes");
            self.is_withdrawn = host
                .withdraw_route(route)
                .inspect_err(|e| log::error!("{iface}: cannot take its route away: {e}"))
                .is_ok();
            return;
        }
        match host.restore_route(route) {
            Ok(()) => {
                self.is_withdrawn = false;
                log::warn!("{iface}: put its IPv4 default route back");
            }
            // For example while its device is down.
            Err(e) => log::debug!("{iface}: cannot put its route back: {e}"),
        }
    }

    /// Waits until clatd has set the device's address.
    fn await_clatd(&self, host: &H) -> io::Result<()> {
        // Most are done in a few milliseconds; a busy machine is not asked all the time.
        const LONGEST: Duration = Duration::from_millis(20);
        let mut step = Duration::from_millis(1);
        let Clat { v4iface, v4, .. } = &self.clat;
        let deadline = Instant::now() + host.clatd_patience();
        while !host.is_configured(v4iface, *v4)? {
            if let Some(ended) = self.clatd.as_ref().and_then(|clatd| clatd.wait(step)) {
                let cause = format!("it {} before {v4iface} was set up", ended.how);
                return Err(io::Error::other(cause));
            }
            if Instant::now() > deadline {
                let cause = format!("{v4iface} still has no address {v4}");
                return Err(HostError::because(Errno::ETIMEDOUT, cause));
            }
            step = LONGEST.min(step * 2);
        }
        Ok(())
    }

    fn failed(&self, error: &io::Error, step: Step) -> Error {
        Error::io(error, &self.clat.iface, step)
    }

    /// Whether it carries IPv4 packets, as far as is known.
    pub(crate) fn carries(&self) -> bool {
        self.route.is_some() && !self.is_withdrawn && self.probe.answer() != Working::No
    }

    /// What it is.
    pub(crate) fn clat(&self) -> &Clat {
        &self.clat
    }

    /// The process id of its clatd; 0 while there is none.
    pub(crate) fn pid(&self) -> i32 {
        self.clatd.as_ref().map_or(0, Supervisor::pid)
    }

    /// Takes the events since the last call. To be sent when its status is shown: who hears that
    /// clatd was restarted may ask for its process id.
    pub(crate) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Its translation in the kernel, if attached.
    pub(crate) fn offload(&self) -> Option<&Attached<H::Programs>> {
        self.offload.as_ref()
    }

    /// When to reconcile it even without a change.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due.into_iter().chain(self.probe.due()).min()
    }

    /// Its status, without counters.
    pub(crate) fn shown(&self) -> Running {
        let hindrances = self.offload.as_ref().map(Attached::all_hindrances);
        Running {
            clat: self.clat.clone(),
            pid: self.pid(),
            restarts: self.restarts.count(),
            traffic: None,
            path: self.offload.as_ref().map_or(PacketPath::Daemon, Attached::path),
            working: self.probe.answer(),
            egress: None,
            ingress: None,
            hindrances: hindrances.unwrap_or_default(),
        }
    }

    /// Leaves it running for the next controller when this process ends.
    pub(crate) fn detach(self) {
        let Self { route, offload, clatd, rule, tun, .. } = self;
        route.into_iter().for_each(Detach::detach);
        offload.into_iter().for_each(Detach::detach);
        clatd.into_iter().for_each(Supervisor::detach);
        rule.into_iter().for_each(Detach::detach);
        tun.into_iter().for_each(Detach::detach);
    }
}

/// Parses a NAT64 prefix for a CLAT: of any length of RFC 6052 if `any_length`, else a /96, as on
/// Android.
fn parse_prefix(text: &str, any_length: bool) -> Result<Prefix, (Errno, String)> {
    let shown: String = text.escape_debug().take(64).collect();
    let prefix: Prefix = text.parse().map_err(|e: PrefixError| {
        let errno = if e == PrefixError::Ipv4 { Errno::EAFNOSUPPORT } else { Errno::EINVAL };
        (errno, format!("\"{shown}\": {e}"))
    })?;
    if !any_length && prefix.bits() != 96 {
        return Err((Errno::EINVAL, format!("\"{shown}\": a CLAT needs a /96")));
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(parse_prefix("64:ff9b::/96", false), Ok(Prefix::WELL_KNOWN));
        assert!(parse_prefix("2001:db8:6400::/40", true).is_ok());
        assert!(parse_prefix("64:ff9b::/95", true).is_err());
        for (text, errno) in [
            ("", Errno::EINVAL),
            ("64:ff9b::", Errno::EINVAL),
            ("64:ff9b::/", Errno::EINVAL),
            ("64:ff9b::/096x", Errno::EINVAL),
            ("64:ff9b::/+96", Errno::EINVAL),
            ("64:ff9b::/ 96", Errno::EINVAL),
            (" 64:ff9b::/96", Errno::EINVAL),
            ("64:ff9b::/96\n", Errno::EINVAL),
            ("64:ff9b::%eth0/96", Errno::EINVAL),
            ("wlan0", Errno::EINVAL),
            ("/96", Errno::EINVAL),
            ("64:ff9b::/64", Errno::EINVAL),
            ("64:ff9b::/95", Errno::EINVAL),
            ("64:ff9b::/128", Errno::EINVAL),
            ("64:ff9b::/4294967392", Errno::EINVAL),
            ("64:ff9b::1/96", Errno::EINVAL),
            ("2001:db8:0:0:ff00::/96", Errno::EINVAL),
            ("192.0.2.0/24", Errno::EAFNOSUPPORT),
            ("192.0.2.0/96", Errno::EAFNOSUPPORT),
        ] {
            assert_eq!(
                parse_prefix(text, false).map_err(|(errno, _)| errno),
                Err(errno),
                "{text:?}"
            );
        }
        let (_, cause) = parse_prefix("a\nb", true).expect_err("not a prefix");
        assert!(!cause.contains('\n'), "{cause:?}");
        let (_, cause) = parse_prefix(&"x".repeat(1 << 20), true).expect_err("not a prefix");
        assert!(cause.len() < 200, "{} bytes", cause.len());
    }
}
