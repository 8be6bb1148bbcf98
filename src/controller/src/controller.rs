// SPDX-License-Identifier: Apache-2.0

//! The controller: a tracker for each CLAT, and the requests that start and stop them.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::dump::Dump;
use crate::ebpf_mode::{decide, EbpfMode};
use crate::errors::{Error, Step};
use crate::host::{
    Child, Detach, Devices, Hook, Host, Offload, Orphan, ProbeTarget, Processes, Programs,
};
use crate::model::{Clat, Event, Observer, PacketPath, Running, StopReason};
use crate::offload::Attached;
use crate::original;
use crate::reconcile::Desired;
use crate::resources::Resources;
use crate::tracker::{Outcome, Tracker};
use clat_host::{Fwmark, IfaceName};

/// Starts and stops CLATs on a host.
pub struct Controller<H: Host> {
    /// Dropped first: CLATs use the shared resources.
    state: Mutex<State<H>>,
    resources: Resources<H>,
    /// Why there were no programs at the start, if so.
    no_programs: Option<String>,
    /// Notified whenever an interface is unlocked.
    idle: Condvar,
}

/// A clatd of a previous controller on a host.
pub type OrphanOf<H> = Orphan<<H as Processes>::Child, <H as Devices>::Tun>;

struct State<H: Host> {
    closed: bool,
    networks: BTreeMap<IfaceName, u16>,
    places: BTreeMap<IfaceName, Place<H>>,
}

impl<H: Host> State<H> {
    fn is_busy(&self, iface: &IfaceName) -> bool {
        matches!(self.places.get(iface), Some(Place::Busy(_)))
    }
}

/// The state of an uplink.
enum Place<H: Host> {
    /// A CLAT that is not locked.
    Idle(Box<Tracker<H>>),
    /// Locked; the status of the CLAT, if any, that is shown meanwhile.
    Busy(Option<Box<Running>>),
}

impl<H: Host> Place<H> {
    fn shown(&self) -> Option<Running> {
        match self {
            Self::Idle(tracker) => Some(tracker.shown()),
            Self::Busy(shown) => shown.as_deref().cloned(),
        }
    }

    fn offload(&self) -> Option<&Attached<<H as Offload>::Programs>> {
        match self {
            Self::Idle(tracker) => tracker.offload(),
            Self::Busy(_) => None,
        }
    }
}

/// An exclusive lock on an interface, with its CLAT, if any.
struct InterfaceLock<'c, H: Host> {
    controller: &'c Controller<H>,
    iface: IfaceName,
    tracker: Option<Box<Tracker<H>>>,
}

impl<H: Host> InterfaceLock<'_, H> {
    /// Updates the CLAT's shown status.
    fn show(&self) {
        let shown = self.tracker.as_ref().map(|tracker| tracker.shown());
        let place = Place::Busy(shown.map(Box::new));
        self.controller.state().places.insert(self.iface.clone(), place);
    }

    /// Takes the CLAT out, so that it is no longer shown.
    fn take(&mut self) -> Option<Box<Tracker<H>>> {
        let tracker = self.tracker.take();
        self.show();
        tracker
    }
}

impl<H: Host> Drop for InterfaceLock<'_, H> {
    fn drop(&mut self) {
        let mut state = self.controller.state();
        match self.tracker.take() {
            Some(tracker) => state.places.insert(self.iface.clone(), Place::Idle(tracker)),
            None => state.places.remove(&self.iface),
        };
        drop(state);
        self.controller.idle.notify_all();
    }
}

impl<H: Host> Controller<H> {
    /// A controller without CLATs. If `standalone`, every interface that exists has a network, and
    /// a CLAT's IPv4 default route is set and removed with it. `observer` gets the events.
    pub fn new(host: Arc<H>, standalone: bool, observer: Observer) -> Self {
        let decided = decide_mode(host.as_ref());
        let (mode, programs, no_programs) = match get_programs(host.as_ref(), decided) {
            Ok(programs) => (decided, Some(programs), None),
            Err((mode, why)) => (mode, None, Some(why)),
        };
        log::info!("eBPF mode: {mode}; {}", if standalone { "standalone" } else { "with netd" });
        let resources = Resources {
            host,
            observer,
            standalone,
            mode,
            direct: false,
            probe_target: None,
            pool: Arc::default(),
            programs: Mutex::new(programs.map(Arc::new)),
            follower: Arc::default(),
        };
        let state = State { closed: false, networks: BTreeMap::new(), places: BTreeMap::new() };
        Self { state: Mutex::new(state), resources, no_programs, idle: Condvar::new() }
    }

    /// Probes IPv4 by a host on the IPv4 internet.
    #[must_use]
    pub fn probing(mut self, target: Option<ProbeTarget>) -> Self {
        self.resources.probe_target = target;
        self
    }

    /// Uses the direct way if wanted, where we set default routes and the kernel supports it.
    #[must_use]
    pub fn direct(mut self, wanted: bool) -> Self {
        self.resources.direct = wanted && self.resources.standalone;
        self
    }

    fn state(&self) -> MutexGuard<'_, State<H>> {
        // A panic leaves the state consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks `iface`, waiting if needed.
    fn lock(&self, iface: &IfaceName) -> InterfaceLock<'_, H> {
        let state = self.idle.wait_while(self.state(), |state| state.is_busy(iface));
        self.lock_idle(iface, state.unwrap_or_else(PoisonError::into_inner))
    }

    /// Locks `iface` unless it is locked.
    fn try_lock(&self, iface: &IfaceName) -> Option<InterfaceLock<'_, H>> {
        let state = self.state();
        (!state.is_busy(iface)).then(|| self.lock_idle(iface, state))
    }

    fn lock_idle(
        &self,
        iface: &IfaceName,
        mut state: MutexGuard<'_, State<H>>,
    ) -> InterfaceLock<'_, H> {
        let place = state.places.remove(iface);
        let shown = place.as_ref().and_then(Place::shown);
        state.places.insert(iface.clone(), Place::Busy(shown.map(Box::new)));
        let tracker = match place {
            Some(Place::Idle(tracker)) => Some(tracker),
            _ => None,
        };
        InterfaceLock { controller: self, iface: iface.clone(), tracker }
    }

    /// Starts a CLAT (docs/contract.md, "start") and returns its IPv6 address.
    ///
    /// # Errors
    /// EINVAL and ENAMETOOLONG for the name, EBUSY where one runs, ENODEV where the interface has
    /// no network, EINVAL and EAFNOSUPPORT for the prefix, EADDRNOTAVAIL where no address is left
    /// or the uplink has none, ESHUTDOWN at the end, and those of the host.
    pub fn start(&self, iface: &str, prefix: &str) -> Result<Ipv6Addr, Error> {
        let iface = parse_name(iface)?;
        // Read before waiting for the lock.
        let index = self.resources.host.index_of(&iface).unwrap_or_default();
        iface
            .v4iface(index)
            .map_err(|e| Error::new(e.errno(), &iface, Step::CheckName, e.to_string()))?;
        let mut lock = self.lock(&iface);
        let desired = self.desire(&lock, prefix)?;
        let tracker = Tracker::start(&self.resources, desired)?;
        log::info!("clatd started on {iface}");
        let clat = tracker.clat().clone();
        lock.tracker = Some(Box::new(tracker));
        lock.show();
        let v6 = clat.v6;
        (self.resources.observer)(Event::Started(clat));
        drop(lock);
        // Changes meanwhile were not reconciled.
        self.resources.waker()();
        Ok(v6)
    }

    /// The request, if a CLAT may be started there (docs/contract.md, "start", 1 and 2).
    fn desire(&self, lock: &InterfaceLock<'_, H>, prefix: &str) -> Result<Desired, Error> {
        let iface = &lock.iface;
        let index = self.resources.host.index_of(iface);
        let state = self.state();
        if state.closed {
            let cause = "the controller is ending";
            return Err(Error::new(Errno::ESHUTDOWN, iface, Step::Start, cause));
        }
        let shown = state.places.values().filter_map(Place::shown);
        // It may run under another name that has just changed.
        let mut running =
            shown.filter(|it| it.clat.iface == *iface || Some(it.clat.index) == index);
        if let Some(running) = running.next() {
            log::error!("clatd pid={} already started on {iface}", running.pid);
            let cause = match running.pid {
                0 => "one runs there already, whose clatd is just being started again".to_owned(),
                pid => format!("one runs there already, with clatd pid {pid}"),
            };
            return Err(Error::new(Errno::EBUSY, iface, Step::Start, cause));
        }
        let standalone = self.resources.standalone;
        let net_id = state.networks.get(iface).copied();
        let net_id = net_id.or_else(|| index.filter(|_| standalone).map(own_net_id));
        let (Some(net_id), Some(index)) = (net_id, index) else {
            log::error!("Interface {iface} not assigned to any netId");
            let cause = match index {
                None => "there is no such interface",
                Some(_) => "it was assigned to none (networkAddInterface)",
            };
            return Err(Error::new(Errno::ENODEV, iface, Step::FindNetwork, cause));
        };
        let (iface, prefix, mark) = (iface.clone(), prefix.to_owned(), Fwmark::new(net_id));
        Ok(Desired { iface, index, prefix, mark, standalone })
    }

    /// Sets the `follower` to wake when there is something to reconcile without a change in the
    /// kernel.
    pub(crate) fn wake(&self, follower: Arc<EventFd>) {
        // There is one follower.
        let _ = self.resources.follower.set(follower);
    }

    /// Reconciles every CLAT with the state of the network, and returns when to do so again even
    /// without a change. CLATs that are being started or stopped are left to their requests.
    pub fn reconcile(&self) -> Option<Instant> {
        let ifaces: Vec<_> = self.state().places.keys().cloned().collect();
        for mut lock in ifaces.iter().filter_map(|iface| self.try_lock(iface)) {
            // First release old names: two uplinks may have swapped theirs.
            if let Some(tracker) = &mut lock.tracker {
                tracker.release_name(self.resources.host.as_ref());
            }
        }
        let reconcile = |iface| self.reconcile_one(self.try_lock(iface)?);
        ifaces.iter().filter_map(reconcile).min()
    }

    /// Whether a CLAT carries packets that is not locked.
    fn is_another(&self) -> bool {
        let carries = |place: &Place<H>| matches!(place, Place::Idle(it) if it.carries());
        self.state().places.values().any(carries)
    }

    fn reconcile_one(&self, mut lock: InterfaceLock<'_, H>) -> Option<Instant> {
        let mut dues = Vec::new();
        // It may have been stopped meanwhile.
        while let Some(tracker) = &mut lock.tracker {
            let before = tracker.clat().clone();
            let outcome = loop {
                let now = Instant::now();
                match tracker.reconcile(&self.resources, self.is_another(), now) {
                    Ok(outcome) => break outcome,
                    Err(e) if tracker.may_look_again(now) => log::warn!("{e}; looking again"),
                    Err(e) => {
                        log::error!("{e}");
                        break Outcome::Over(StopReason::Failed);
                    }
                }
            };
            dues.extend(tracker.due());
            let (clat, events) = (tracker.clat().clone(), tracker.take_events());
            lock.show();
            events.into_iter().for_each(self.resources.observer.as_ref());
            if let Outcome::Over(reason) = outcome {
                self.end(lock.take(), reason);
                break;
            }
            if clat != before {
                log::info!("{}: goes on by {}, {}", clat.iface, clat.v4iface, clat.v6);
                (self.resources.observer)(Event::Started(clat.clone()));
            }
            if clat.iface == lock.iface {
                break;
            }
            // Its uplink has another name. Nobody but who follows the network holds two of these.
            // What is found there has yet another, and is seen to next.
            let mut its = self.lock(&clat.iface);
            std::mem::swap(&mut its.tracker, &mut lock.tracker);
            its.show();
            lock.show();
        }
        dues.into_iter().min()
    }

    /// Takes over the CLATs of a previous controller that have these clatds, as far as they are
    /// complete, and removes its other remains. To be called before the first start, by the only
    /// controller in the network namespace. No events are sent, since there are no listeners yet.
    pub fn recover(&self, kept: Vec<OrphanOf<H>>) {
        let host = &self.resources.host;
        let wanted: Vec<_> = kept.iter().map(|orphan| orphan.args.clone()).collect();
        let rules = host.adopt_rules(&wanted).unwrap_or_else(|e| {
            log::error!("cannot take over the drop rules of a previous controller: {e}");
            Vec::new()
        });
        let programs = self.resources.programs();
        // Without a rule there is no CLAT.
        let mut rules = rules.into_iter();
        for orphan in kept {
            let (iface, pid) = (orphan.args.uplink.clone(), orphan.child.pid());
            let Some(rule) = rules.next() else { continue };
            match Tracker::adopt(&self.resources, orphan, rule) {
                Ok(tracker) => {
                    log::info!("going on with the CLAT on {iface}, clatd pid {pid}");
                    let iface = tracker.clat().iface.clone();
                    self.state().places.insert(iface, Place::Idle(Box::new(tracker)));
                }
                Err(e) => log::warn!("removing an incomplete CLAT of a previous controller: {e}"),
            }
        }
        let state = self.state();
        let offloads: Vec<_> = state.places.values().filter_map(Place::offload).collect();
        let filters: Vec<_> = offloads.iter().flat_map(|offload| offload.filters()).collect();
        host.remove_filters(&filters);
        let egress: Vec<_> = offloads.iter().flat_map(|offload| offload.egress_entries()).collect();
        let ingress: Vec<_> = offloads.iter().map(|offload| &offload.entries.1).collect();
        if let Some(Err(e)) = programs.map(|programs| programs.clear_maps(&egress, &ingress)) {
            log::error!("cannot clear the maps: {e}");
        }
    }

    /// Refuses further starts, and leaves every CLAT to the next controller. To be called at the
    /// end of the process: the CLATs are not supervised meanwhile.
    pub fn detach(&self) {
        let trackers = self.close();
        if trackers.is_empty() {
            return self.shut_down();
        }
        for tracker in trackers {
            log::info!("leaving the CLAT on {}, clatd pid {}", tracker.clat().iface, tracker.pid());
            tracker.detach();
        }
        let programs =
            self.resources.programs.lock().unwrap_or_else(PoisonError::into_inner).take();
        programs.into_iter().for_each(Detach::detach);
    }

    /// Refuses further starts, and waits for those in progress.
    fn close(&self) -> Vec<Box<Tracker<H>>> {
        self.state().closed = true;
        let is_busy = |state: &mut State<H>| {
            state.places.values().any(|place| matches!(place, Place::Busy(_)))
        };
        let state = self.idle.wait_while(self.state(), is_busy);
        let places = std::mem::take(&mut state.unwrap_or_else(PoisonError::into_inner).places);
        let tracker = |place| match place {
            Place::Idle(tracker) => Some(tracker),
            Place::Busy(_) => None,
        };
        places.into_values().filter_map(tracker).collect()
    }

    /// Stops a CLAT (docs/contract.md, "stop"), after waiting for a start in progress on that
    /// interface.
    ///
    /// # Errors
    /// ENODEV where none runs, EINVAL and ENAMETOOLONG for the name.
    pub fn stop(&self, iface: &str) -> Result<(), Error> {
        let iface = parse_name(iface)?;
        let mut lock = self.lock(&iface);
        if lock.tracker.is_none() {
            log::error!("clatd already stopped");
            return Err(Error::new(Errno::ENODEV, &iface, Step::Stop, "none runs there"));
        }
        self.end(lock.take(), StopReason::Requested);
        Ok(())
    }

    fn end(&self, tracker: Option<Box<Tracker<H>>>, reason: StopReason) {
        let Some(tracker) = tracker else { return };
        let iface = tracker.clat().iface.clone();
        log::info!("Stopping clatd pid={} on {iface}", tracker.pid());
        drop(tracker);
        log::info!("clatd on {iface} stopped");
        (self.resources.observer)(Event::Stopped { iface, reason });
    }

    /// Stops every CLAT and refuses further starts.
    pub fn shut_down(&self) {
        all_at_once(self.close(), |tracker| self.end(Some(tracker), StopReason::Shutdown));
        *self.resources.programs.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Notes that `iface` belongs to network `net_id`.
    ///
    /// # Errors
    /// EINVAL for a number outside 1..=65535, EBUSY where it belongs to another network.
    pub fn add_interface(&self, net_id: i32, iface: &str) -> Result<(), Error> {
        let iface = parse_name(iface)?;
        let net_id = parse_net_id(net_id, &iface)?;
        let mut state = self.state();
        match state.networks.get(&iface) {
            Some(other) if *other != net_id => {
                let cause = format!("it belongs to network {other}");
                Err(Error::new(Errno::EBUSY, &iface, Step::ChangeNetwork, cause))
            }
            _ => {
                state.networks.insert(iface, net_id);
                Ok(())
            }
        }
    }

    /// Stops a CLAT on `iface`, and notes that it no longer belongs to network `net_id`. Waits for
    /// a start in progress there.
    ///
    /// # Errors
    /// ENOENT where it does not belong to that network.
    pub fn remove_interface(&self, net_id: i32, iface: &str) -> Result<(), Error> {
        let iface = parse_name(iface)?;
        if u16::try_from(net_id).is_ok_and(|net_id| self.leave_network(net_id, &iface)) {
            return Ok(());
        }
        let cause = format!("it does not belong to network {net_id}");
        Err(Error::new(Errno::ENOENT, &iface, Step::ChangeNetwork, cause))
    }

    /// Ends the CLATs of network `net_id`, and notes that its interfaces belong to none.
    ///
    /// # Errors
    /// EINVAL for a number outside 1..=65535.
    pub fn destroy_network(&self, net_id: i32) -> Result<(), Error> {
        let net_id = parse_net_id(net_id, "all interfaces")?;
        let of_it = |(iface, id): (&IfaceName, &u16)| (*id == net_id).then(|| iface.clone());
        let ifaces: Vec<_> = self.state().networks.iter().filter_map(of_it).collect();
        for iface in ifaces {
            self.leave_network(net_id, &iface);
        }
        Ok(())
    }

    /// Takes `iface` out of network `net_id`, and returns whether it was in it.
    fn leave_network(&self, net_id: u16, iface: &IfaceName) -> bool {
        let mut lock = self.lock(iface);
        {
            let mut state = self.state();
            if state.networks.get(iface) != Some(&net_id) {
                return false;
            }
            state.networks.remove(iface);
        }
        self.end(lock.take(), StopReason::NetworkGone);
        true
    }

    /// Whether packets may be translated in the kernel.
    #[must_use]
    pub fn ebpf_mode(&self) -> EbpfMode {
        self.resources.mode
    }

    /// Whether there is no netd.
    #[must_use]
    pub fn is_standalone(&self) -> bool {
        self.resources.standalone
    }

    /// The running CLATs, in the order of the uplinks' names.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        let programs = self.resources.programs();
        let mut running: Vec<_> = self.state().places.values().filter_map(Place::shown).collect();
        let counters = |hook, clat: &Clat| {
            let counters = programs.as_ref()?.counters(hook, clat.v4);
            counters.inspect_err(|e| log::warn!("{}: no numbers: {e}", clat.iface)).ok()?
        };
        for it in &mut running {
            let v4iface = &it.clat.v4iface;
            let traffic = self.resources.host.traffic(v4iface);
            it.traffic = traffic.inspect_err(|e| log::warn!("{v4iface}: no numbers: {e}")).ok();
            if it.path != PacketPath::Daemon {
                it.egress = counters(Hook::Egress, &it.clat);
                it.ingress = counters(Hook::Ingress, &it.clat);
            }
        }
        running
    }

    /// The text of `dumpsys` (docs/contract.md, "dump").
    #[must_use]
    pub fn dump(&self) -> String {
        let running = self.running();
        let clats: Vec<_> = running.iter().map(|running| running.clat.clone()).collect();
        let programs = self.resources.programs();
        let mode = match &self.no_programs {
            None => format!("{} (maps and programs present)", self.resources.mode),
            Some(why) => format!("Disabled: {why}"),
        };
        let mut more = vec![format!("eBPF mode: {mode}")];
        for Running { clat, pid, restarts, egress, ingress, hindrances, .. } in &running {
            let (iface, up) = (&clat.iface, clat.since.elapsed().as_secs());
            more.push(format!("{iface}: clatd pid {pid}, {restarts} restarts, up {up} s"));
            more.extend(hindrances.iter().map(|hindrance| format!("{iface}: eBPF {hindrance}")));
            for (name, counters) in [("egress", egress), ("ingress", ingress)] {
                more.extend(
                    counters.iter().map(|counters| format!("{iface}: eBPF {name} {counters}")),
                );
            }
        }
        let ingress = programs.as_ref().map(|programs| programs.ingress_map());
        let egress = programs.as_ref().map(|programs| programs.egress_map());
        Dump { clats: &clats, ingress, egress, links: self.resources.host.as_ref(), more }.render()
    }
}

/// Ends clatds of a previous controller, and removes their devices.
pub fn end_orphans<C: Child, T: Send>(orphans: Vec<Orphan<C, T>>) {
    for Orphan { args, child, .. } in &orphans {
        log::warn!("ending an abandoned clatd on {}, pid {}", args.uplink, child.pid());
    }
    all_at_once(orphans, drop);
}

/// Ends each in another thread: one whose clatd ignores signals takes seconds.
fn all_at_once<T: Send>(those: impl IntoIterator<Item = T>, end: impl Fn(T) + Sync) {
    thread::scope(|scope| {
        for one in those {
            scope.spawn(|| end(one));
        }
    });
}

fn parse_name(text: &str) -> Result<IfaceName, Error> {
    IfaceName::parse(text).map_err(|e| {
        // The caller's text, printable and short, since it is logged.
        let shown: String = text.escape_debug().take(32).collect();
        Error::new(e.errno(), format!("\"{shown}\""), Step::CheckName, e.to_string())
    })
}

fn parse_net_id(net_id: i32, iface: impl Into<String>) -> Result<u16, Error> {
    u16::try_from(net_id).ok().filter(|id| *id != 0).ok_or_else(|| {
        let cause = format!("{net_id} is not between 1 and 65535");
        Error::new(Errno::EINVAL, iface, Step::ChangeNetwork, cause)
    })
}

/// The network of an interface without netd: its index, mapped to 1..=65535.
fn own_net_id(index: u32) -> u16 {
    u16::try_from(index.saturating_sub(1) % 0xffff + 1).unwrap_or(u16::MAX)
}

/// The programs, or why there are none. The mode is `Disabled` if they are unavailable or not
/// wanted.
fn get_programs<H: Host>(
    host: &H,
    mode: EbpfMode,
) -> Result<<H as Offload>::Programs, (EbpfMode, String)> {
    if mode == EbpfMode::Disabled {
        return Err((mode, "kernel or first API level is too old".to_owned()));
    }
    match host.programs() {
        Ok(Some(programs)) => Ok(programs),
        Ok(None) => Err((EbpfMode::Disabled, host.why_no_programs().to_owned())),
        Err(e) => {
            log::error!("{}", original::no_maps(&e));
            log::error!("no translation in the kernel, clatd does it all: {e}");
            Err((EbpfMode::Disabled, e.to_string()))
        }
    }
}

/// Reads the input of [`decide`].
fn decide_mode<H: Host>(host: &H) -> EbpfMode {
    let number = |name| host.property(name).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let first_api_level = number("ro.product.first_api_level");
    if first_api_level == 0 {
        log::error!("{}", original::NO_API_LEVEL);
    }
    let mode = decide(host.kernel_version(), first_api_level, number("ro.build.version.sdk"));
    log::info!("{}", original::mode(mode));
    mode
}

#[cfg(test)]
mod tests;
