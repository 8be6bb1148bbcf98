// SPDX-License-Identifier: Apache-2.0

//! The controller: one tracker for each CLAT, and the requests that make and end them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv6Addr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::eventfd::EventFd;

use crate::dump::Dump;
use crate::ebpf_mode::{decide, EbpfMode};
use crate::errors::{Error, Step};
use crate::host::{
    Child, Hook, Host, LinkKind, Offload, OffloadCounters, Orphan, Programs, Traffic,
};
use crate::model::{Clat, Event, Observer, StopReason};
use crate::offload::{self, Attached};
use crate::original;
use crate::reconcile::{reconcile, Action, Actual};
use crate::tracker::{Request, Tracker};
use clat_host::address::Pool;
use clat_host::IfaceName;

/// Starts and stops CLATs on a host.
pub struct Controller<H: Host> {
    host: Arc<H>,
    observer: Observer,
    /// Who reconciles, to be woken.
    follower: Arc<OnceLock<Arc<EventFd>>>,
    standalone: bool,
    mode: EbpfMode,
    /// Why there were no programs at the start, where there were none.
    no_programs: Option<String>,
    /// Of the translation in the kernel, until the end of the controller.
    programs: Mutex<Option<Arc<ProgramsOf<H>>>>,
    pool: Arc<Pool>,
    state: Mutex<State<H>>,
    /// The drop rules' chain, from the first CLAT to the end of the controller; below `state`, to
    /// go after the rules. Behind its own lock, since making it runs a program and `state` has to
    /// stay quick.
    chain: Mutex<Option<H::Chain>>,
    /// Told whenever an interface is no longer busy.
    idle: Condvar,
}

type ProgramsOf<H> = <H as Offload>::Programs;

struct State<H: Host> {
    closed: bool,
    networks: BTreeMap<IfaceName, u16>,
    /// Interfaces that a start or a stop is at work on.
    busy: BTreeSet<IfaceName>,
    trackers: BTreeMap<IfaceName, Tracker<H>>,
}

/// One running CLAT, for those who want to know.
#[derive(Clone, Debug)]
pub struct Running {
    /// What it is.
    pub clat: Clat,
    /// Process id of its clatd; 0 while that is being started again.
    pub pid: i32,
    /// How often clatd was started again.
    pub restarts: u32,
    /// What passed the TUN device, translated by clatd; `None` when it cannot be read.
    pub traffic: Option<Traffic>,
    /// Whether packets are translated in the kernel.
    pub offloaded: bool,
    /// IPv4 packets that were to leave by the TUN device, seen from the program there; `None`
    /// without.
    pub egress: Option<OffloadCounters>,
    /// IPv6 packets that arrived on the uplink, seen from the program there; `None` without.
    pub ingress: Option<OffloadCounters>,
}

/// The right to work on an interface. Others wait for theirs until it is dropped.
struct InterfaceLock<'c, H: Host> {
    controller: &'c Controller<H>,
    iface: IfaceName,
}

impl<H: Host> Drop for InterfaceLock<'_, H> {
    fn drop(&mut self) {
        self.controller.state().busy.remove(&self.iface);
        self.controller.idle.notify_all();
    }
}

impl<H: Host> Controller<H> {
    /// A controller that runs nothing yet. When `standalone`, every interface that exists has a
    /// network, and the IPv4 default route is set and taken away with a CLAT. `observer` is told of
    /// what happens.
    pub fn new(host: Arc<H>, standalone: bool, observer: Observer) -> Self {
        let decided = decide_mode(host.as_ref());
        let (mode, programs, no_programs) = match get_programs(host.as_ref(), decided) {
            Ok(programs) => (decided, Some(programs), None),
            Err((mode, why)) => (mode, None, Some(why)),
        };
        log::info!("eBPF mode: {mode}; {}", if standalone { "standalone" } else { "with netd" });
        let state = State {
            closed: false,
            networks: BTreeMap::new(),
            busy: BTreeSet::new(),
            trackers: BTreeMap::new(),
        };
        let follower = Arc::new(OnceLock::<Arc<EventFd>>::new());
        let observer: Observer = {
            let follower = Arc::clone(&follower);
            Arc::new(move |event| match (&event, follower.get()) {
                // A counter that is not full takes this.
                (Event::AddressTaken { .. }, Some(follower)) => drop(follower.write(1)),
                _ => observer(event),
            })
        };
        Self {
            host,
            observer,
            follower,
            standalone,
            mode,
            no_programs,
            programs: Mutex::new(programs.map(Arc::new)),
            pool: Arc::default(),
            state: Mutex::new(state),
            chain: Mutex::new(None),
            idle: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<H>> {
        // What the lock guards is never left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn programs(&self) -> Option<Arc<ProgramsOf<H>>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the right to work on `iface`.
    fn lock(&self, iface: &IfaceName) -> InterfaceLock<'_, H> {
        let mut state = self
            .idle
            .wait_while(self.state(), |state| state.busy.contains(iface))
            .unwrap_or_else(PoisonError::into_inner);
        state.busy.insert(iface.clone());
        InterfaceLock { controller: self, iface: iface.clone() }
    }

    /// Starts a CLAT (docs/contract.md, "start") and returns its IPv6 address.
    ///
    /// # Errors
    /// EINVAL and ENAMETOOLONG for the name, EBUSY where one runs, ENODEV where the interface has
    /// no network, EINVAL and EAFNOSUPPORT for the prefix, EADDRNOTAVAIL where no address is left
    /// or the uplink has none, ESHUTDOWN at the end, and those of the host.
    pub fn start(&self, iface: &str, prefix: &str) -> Result<Ipv6Addr, Error> {
        let iface = parse_name(iface)?;
        // Before others are waited for.
        iface
            .v4iface()
            .map_err(|e| Error::new(e.errno(), &iface, Step::CheckName, e.to_string()))?;
        let _lock = self.lock(&iface);
        let tracker = self.make(&iface, prefix)?;
        Ok(self.keep(tracker))
    }

    /// Makes a CLAT, for who holds the lock of its uplink.
    fn make(&self, iface: &IfaceName, prefix: &str) -> Result<Tracker<H>, Error> {
        let v4iface = iface
            .v4iface()
            .map_err(|e| Error::new(e.errno(), iface, Step::CheckName, e.to_string()))?;
        let net_id = {
            let state = self.state();
            if state.closed {
                return Err(Error::new(
                    Errno::ESHUTDOWN,
                    iface,
                    Step::Start,
                    "the controller is ending",
                ));
            }
            if let Some(running) = state.trackers.get(iface) {
                log::error!("clatd pid={} already started on {iface}", running.clatd.pid());
                let cause = match running.clatd.pid() {
                    0 => {
                        "one runs there already, whose clatd is just being started again".to_owned()
                    }
                    pid => format!("one runs there already, with clatd pid {pid}"),
                };
                return Err(Error::new(Errno::EBUSY, iface, Step::Start, cause));
            }
            state.networks.get(iface).copied()
        };
        let index = self.host.index_of(iface);
        let net_id = net_id.or_else(|| index.filter(|_| self.standalone).map(own_net_id));
        let (Some(net_id), Some(index)) = (net_id, index) else {
            log::error!("Interface {iface} not assigned to any netId");
            let cause = match index {
                None => "there is no such interface",
                Some(_) => "it was assigned to none (networkAddInterface)",
            };
            return Err(Error::new(Errno::ENODEV, iface, Step::FindNetwork, cause));
        };

        let request = Request {
            iface: iface.clone(),
            v4iface,
            index,
            net_id,
            prefix,
            standalone: self.standalone,
        };
        let offload = |clat: &Clat| self.offload(clat);
        let tracker = Tracker::start(
            &self.host,
            &self.observer,
            &self.pool,
            || self.need_chain(),
            offload,
            request,
        )?;
        log::info!("clatd started on {iface}");
        Ok(tracker)
    }

    /// Keeps a CLAT that was made or has changed, and tells of it.
    fn keep(&self, tracker: Tracker<H>) -> Ipv6Addr {
        let clat = tracker.clat.clone();
        let v6 = clat.v6;
        self.state().trackers.insert(clat.iface.clone(), tracker);
        (self.observer)(Event::Started(clat));
        v6
    }

    /// Has `follower` written to when there is something to reconcile that the kernel does not tell.
    pub(crate) fn wake(&self, follower: Arc<EventFd>) {
        // There is one follower.
        let _ = self.follower.set(follower);
    }

    /// Brings every CLAT to what is wanted of it, as the network is now.
    pub fn reconcile(&self) {
        let ifaces: Vec<_> = self.state().trackers.keys().cloned().collect();
        for iface in ifaces {
            let _lock = self.lock(&iface);
            let known = |tracker: &Tracker<H>| (tracker.clat.clone(), tracker.clatd.is_taken());
            let known = self.state().trackers.get(&iface).map(known);
            // It may have been stopped meanwhile.
            let Some((clat, is_taken)) = known else { continue };
            let actual = Actual::of(self.host.as_ref(), &clat, is_taken);
            let actions = reconcile(&actual, self.standalone);
            if actions.is_empty() {
                self.reconcile_route(&iface, &actual, true);
                continue;
            }
            log::info!("{iface}: the network has changed: {actions:?}");
            // A CLAT whose device alone changes stays in sight.
            if let [Action::SetMtu(mtu)] = actions[..] {
                let index = self.state().trackers.get(&iface).map(|tracker| tracker.clat.v4index);
                if index.is_some_and(|index| self.host.set_mtu(index, mtu).is_ok()) {
                    self.reconcile_route(&iface, &actual, false);
                    continue;
                }
            }
            // It is not shown until it is whole again.
            let Some(mut tracker) = self.state().trackers.remove(&iface) else { continue };
            let is_repair = |action: &Action| {
                matches!(action, Action::Remake | Action::Configure(_))
                    || is_taken && *action == Action::Renumber
            };
            if actions.iter().any(is_repair) && !tracker.repairs.note(Instant::now()) {
                log::error!("{iface}: what is put back does not last; giving up");
                self.end(tracker, StopReason::Failed);
                continue;
            }
            self.bring_about(tracker, &actual, &actions);
        }
    }

    /// Does what is to be done, and keeps the CLAT or ends it.
    fn bring_about(&self, mut tracker: Tracker<H>, actual: &Actual, actions: &[Action]) {
        let Clat { iface, v4index, v4, prefix, v6, .. } = tracker.clat.clone();
        let (host, observer) = (&self.host, &self.observer);
        for action in actions {
            let failed = |e: io::Error| Error::io(&e, &iface, Step::AwaitClatd);
            let done = match *action {
                Action::End(reason) => return self.end(tracker, reason),
                Action::Remake => {
                    let repairs = tracker.repairs.clone();
                    drop(tracker);
                    match self.make(&iface, &prefix.to_string()) {
                        Ok(mut made) => {
                            made.repairs = repairs;
                            self.keep(made);
                        }
                        Err(e) => {
                            log::error!("{e}");
                            (self.observer)(Event::Stopped { iface, reason: StopReason::Failed });
                        }
                    }
                    return;
                }
                Action::Renumber => tracker.renumber(host, observer, |clat| self.offload(clat)),
                Action::ReplaceClatd => tracker.replace_clatd(host, observer),
                Action::SetMtu(mtu) => host.set_mtu(v4index, mtu).map_err(failed),
                Action::Configure(mtu) => host.configure(v4index, v4, mtu).map_err(failed),
            };
            if let Err(e) = done {
                log::error!("{e}");
                return self.end(tracker, StopReason::Failed);
            }
        }
        let has_moved = tracker.clat.v6 != v6;
        let iface = tracker.clat.iface.clone();
        if has_moved {
            log::info!("{iface}: goes on with {}", tracker.clat.v6);
            self.keep(tracker);
        } else {
            self.state().trackers.insert(iface.clone(), tracker);
        }
        // Taken along by what has just been repaired.
        self.reconcile_route(&iface, actual, false);
    }

    /// Has the default route be there while a path leads to the PLAT, and only then, so that programs
    /// use another one or are told at once. Putting back what others took away may count as a repair.
    fn reconcile_route(&self, iface: &IfaceName, actual: &Actual, counts: bool) {
        let mut state = self.state();
        let Some(tracker) = state.trackers.get_mut(iface) else { return };
        let Some(route) = &tracker.route else { return };
        if !actual.has_path() {
            if !tracker.is_withdrawn {
                log::warn!("{iface}: no path to the PLAT; its IPv4 default route goes");
                tracker.is_withdrawn = self
                    .host
                    .withdraw_route(route)
                    .inspect_err(|e| log::error!("{iface}: cannot take its route away: {e}"))
                    .is_ok();
            }
            return;
        }
        let counts = counts && !tracker.is_withdrawn;
        match self.host.restore_route(route) {
            Ok(false) => tracker.is_withdrawn = false,
            Ok(true) => {
                tracker.is_withdrawn = false;
                log::warn!("{iface}: put its IPv4 default route back");
                if counts && !tracker.repairs.note(Instant::now()) {
                    log::error!("{iface}: somebody else keeps taking its route away; giving up");
                    let tracker = state.trackers.remove(iface);
                    drop(state);
                    if let Some(tracker) = tracker {
                        self.end(tracker, StopReason::Failed);
                    }
                }
            }
            // As while its device is down.
            Err(e) => log::debug!("{iface}: cannot put its route back: {e}"),
        }
    }

    /// Removes what a former life has left; with `keep`, goes on with those of its CLATs that are
    /// whole. To be called before the first start, by the only controller in the network namespace.
    /// Nobody is told of it: no listener is there yet.
    pub fn recover(&self, keep: bool) {
        let (kept, ended): (Vec<_>, Vec<_>) = self.host.orphans().into_iter().partition(|_| keep);
        let wanted: Vec<_> = kept.iter().map(|orphan| orphan.args.clone()).collect();
        let adopted = self.host.adopt_rules(&wanted).unwrap_or_else(|e| {
            log::error!("cannot take over the firewall rules of a former life: {e}");
            None
        });
        let (chain, rules) =
            adopted.map_or((None, Vec::new()), |(chain, rules)| (Some(chain), rules));
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        let programs = self.programs();
        // Where there is no rule, there is no CLAT.
        let mut rules = rules.into_iter();
        for orphan in kept {
            let (iface, pid) = (orphan.args.uplink.clone(), orphan.child.pid());
            let Some(rule) = rules.next() else { continue };
            let offload = |clat: &Clat| self.offload(clat);
            let (host, pool) = (&self.host, &self.pool);
            let tracker =
                Tracker::adopt(host, &self.observer, pool, offload, orphan, rule, self.standalone);
            match tracker {
                Ok(tracker) => {
                    log::info!("going on with the CLAT on {iface}, clatd pid {pid}");
                    self.state().trackers.insert(iface, tracker);
                }
                Err(e) => log::warn!("the CLAT of a former life is not whole and goes: {e}"),
            }
        }
        let state = self.state();
        let offloads: Vec<_> = state.trackers.values().filter_map(|t| t.offload.as_ref()).collect();
        let entries: Vec<_> = offloads.iter().map(|offload| &offload.entries).collect();
        let filters = entries.iter().flat_map(|(egress, ingress)| {
            [(egress.iif, Hook::Egress), (ingress.iif, Hook::Ingress)]
        });
        self.host.remove_filters(&filters.collect::<Vec<_>>());
        for Orphan { args, child, .. } in &ended {
            log::warn!("ending a clatd of a former life on {}, pid {}", args.uplink, child.pid());
        }
        drop(ended);
        if let Some(Err(e)) = programs.map(|programs| programs.clear_maps(&entries)) {
            log::error!("cannot clear the maps: {e}");
        }
    }

    /// Has the kernel translate for a CLAT; failing to leaves a working, slower one.
    fn offload(&self, clat: &Clat) -> Option<Attached<ProgramsOf<H>>> {
        let programs = self.programs()?;
        let attached = Attached::attach(programs.as_ref(), clat);
        let told = attached.inspect_err(|e| {
            let level = offload::severity(self.mode, e);
            let is_ethernet =
                programs.link_kind(clat.index).is_ok_and(|kind| kind == LinkKind::Ethernet);
            if let Some(line) = original::no_offload(e, level, clat, is_ethernet) {
                log::log!(level, "{line}");
            }
            log::log!(level, "{e}");
        });
        told.ok()
    }

    /// Starts no more, and leaves every CLAT as it is, for the next controller to go on with. To be
    /// called at the end of the process: nobody watches over them meanwhile.
    pub fn detach(&self) {
        let trackers = self.close();
        if trackers.is_empty() {
            return self.shut_down();
        }
        for tracker in trackers.into_values() {
            let (clat, pid) = (&tracker.clat, tracker.clatd.pid());
            log::info!("leaving the CLAT on {}, clatd pid {pid}", clat.iface);
            std::mem::forget(tracker);
        }
        std::mem::forget(self.chain.lock().unwrap_or_else(PoisonError::into_inner).take());
        std::mem::forget(self.programs.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Has no start begin any more, and waits for those under way.
    fn close(&self) -> BTreeMap<IfaceName, Tracker<H>> {
        self.state().closed = true;
        let mut state = self
            .idle
            .wait_while(self.state(), |state| !state.busy.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut state.trackers)
    }

    fn need_chain(&self) -> io::Result<()> {
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        if chain.is_none() {
            *chain = Some(self.host.chain()?);
        }
        Ok(())
    }

    /// Stops a CLAT (docs/contract.md, "stop"). A start under way on that interface is waited for.
    ///
    /// # Errors
    /// ENODEV where none runs, EINVAL and ENAMETOOLONG for the name.
    pub fn stop(&self, iface: &str) -> Result<(), Error> {
        let iface = parse_name(iface)?;
        let _lock = self.lock(&iface);
        let tracker = self.state().trackers.remove(&iface);
        let Some(tracker) = tracker else {
            log::error!("clatd already stopped");
            return Err(Error::new(Errno::ENODEV, &iface, Step::Stop, "none runs there"));
        };
        self.end(tracker, StopReason::Requested);
        Ok(())
    }

    fn end(&self, tracker: Tracker<H>, reason: StopReason) {
        let iface = tracker.clat.iface.clone();
        log::info!("Stopping clatd pid={} on {iface}", tracker.clatd.pid());
        drop(tracker);
        log::info!("clatd on {iface} stopped");
        (self.observer)(Event::Stopped { iface, reason });
    }

    /// Stops every CLAT and starts no more.
    pub fn shut_down(&self) {
        self.close().into_values().for_each(|tracker| self.end(tracker, StopReason::Shutdown));
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.programs.lock().unwrap_or_else(PoisonError::into_inner) = None;
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

    /// Ends a CLAT on `iface`, and notes that it no longer belongs to network `net_id`. A start
    /// under way there is waited for.
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
        let _lock = self.lock(iface);
        let tracker = {
            let mut state = self.state();
            if state.networks.get(iface) != Some(&net_id) {
                return false;
            }
            state.networks.remove(iface);
            state.trackers.remove(iface)
        };
        if let Some(tracker) = tracker {
            self.end(tracker, StopReason::NetworkGone);
        }
        true
    }

    /// Whether packets may be translated in the kernel.
    #[must_use]
    pub fn ebpf_mode(&self) -> EbpfMode {
        self.mode
    }

    /// Whether it works without netd.
    #[must_use]
    pub fn is_standalone(&self) -> bool {
        self.standalone
    }

    /// What runs, in the order of the uplinks' names.
    #[must_use]
    pub fn running(&self) -> Vec<Running> {
        let programs = self.programs();
        let known: Vec<_> = self
            .state()
            .trackers
            .values()
            .map(|tracker| {
                let Tracker { clat, clatd, offload, .. } = tracker;
                let whole = offload.as_ref().zip(programs.as_deref());
                let offloaded = whole.is_some_and(|(offload, programs)| offload.is_whole(programs));
                (clat.clone(), clatd.pid(), clatd.restarts(), offloaded)
            })
            .collect();
        let counters = |hook, clat: &Clat| {
            let counters = programs.as_ref()?.counters(hook, clat.v4);
            counters.inspect_err(|e| log::warn!("{}: no numbers: {e}", clat.iface)).ok()?
        };
        known
            .into_iter()
            .map(|(clat, pid, restarts, offloaded)| {
                let traffic = self.host.traffic(&clat.v4iface);
                let traffic =
                    traffic.inspect_err(|e| log::warn!("{}: no numbers: {e}", clat.v4iface)).ok();
                let [egress, ingress] = [Hook::Egress, Hook::Ingress]
                    .map(|hook| offloaded.then(|| counters(hook, &clat))?);
                Running { clat, pid, restarts, traffic, offloaded, egress, ingress }
            })
            .collect()
    }

    /// The text of `dumpsys` (docs/contract.md, "dump").
    #[must_use]
    pub fn dump(&self) -> String {
        let running = self.running();
        let clats: Vec<_> = running.iter().map(|running| running.clat.clone()).collect();
        let programs = self.programs();
        let mode = match &self.no_programs {
            None => format!("{} (maps and programs present)", self.mode),
            Some(why) => format!("Disabled: {why}"),
        };
        let mut more = vec![format!("eBPF mode: {mode}")];
        for Running { clat, pid, restarts, egress, ingress, .. } in &running {
            let (iface, up) = (&clat.iface, clat.since.elapsed().as_secs());
            more.push(format!("{iface}: clatd pid {pid}, {restarts} restarts, up {up} s"));
            for (name, counters) in [("egress", egress), ("ingress", ingress)] {
                more.extend(
                    counters.iter().map(|counters| format!("{iface}: eBPF {name} {counters}")),
                );
            }
        }
        let ingress = programs.as_ref().map(|programs| programs.ingress_map());
        let egress = programs.as_ref().map(|programs| programs.egress_map());
        Dump { clats: &clats, ingress, egress, links: self.host.as_ref(), more }.render()
    }
}

fn parse_name(text: &str) -> Result<IfaceName, Error> {
    IfaceName::parse(text).map_err(|e| {
        // The caller's text, made printable and short: it goes into a log.
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

/// The network of an interface without netd: its index, brought into 1..=65535.
fn own_net_id(index: u32) -> u16 {
    u16::try_from(index.saturating_sub(1) % 0xffff + 1).unwrap_or(u16::MAX)
}

/// The programs, or why there are none. The mode is `Disabled` where they cannot be had; what is
/// possible is shown even where it is not wanted.
fn get_programs<H: Host>(host: &H, mode: EbpfMode) -> Result<ProgramsOf<H>, (EbpfMode, String)> {
    if mode == EbpfMode::Disabled {
        return Err((mode, "kernel or first API level is too old".to_owned()));
    }
    match host.programs() {
        Ok(Some(programs)) => Ok(programs),
        Ok(None) => Err((mode, host.why_no_programs().to_owned())),
        Err(e) => {
            log::error!("{}", original::no_maps(&e));
            log::error!("no translation in the kernel, clatd does it all: {e}");
            Err((EbpfMode::Disabled, e.to_string()))
        }
    }
}

/// Reads what [`decide`] wants to know.
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
