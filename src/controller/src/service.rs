// SPDX-License-Identifier: Apache-2.0

//! The binder service: checks callers, and converts requests and errors for the transport.

use std::io::Write;
use std::sync::Arc;

use crate::binder_adapter::{
    calling_uid, dump_arg, security, service_specific, BinderResult, ClatStatus, ControllerStatus,
    DumpArg, IClatdController, IClatdEventListener, Interface, OffloadCounters as AidlCounters,
    ReasonCount, Status, StatusCode, Strong, PERMISSION_DENIED, UNKNOWN_ERROR,
};
use crate::controller::Controller;
use crate::errors::Error;
use crate::host::{Host, OffloadCounters};
use crate::listeners::Listeners;
use crate::model::{PacketPath, Running};
use crate::status::{self, Uplinks};

/// Who may call on every machine: root, system and network_stack (AOSP,
/// android_filesystem_config.h).
pub const CALLERS: [u32; 3] = [0, 1000, 1073];

/// Android's shell, which dumpstate becomes too before it makes a bug report (AID_SHELL).
pub const SHELL: u32 = 2000;

/// A controller as a binder service.
pub struct ClatdService<H: Host> {
    controller: Arc<Controller<H>>,
    listeners: Arc<Listeners>,
    callers: Vec<u32>,
    dumpers: Vec<u32>,
    uplinks: Arc<Uplinks>,
}

impl<H: Host> ClatdService<H> {
    /// A service for `callers`, by user id; `dumpers` may call dump only. `listeners` get the
    /// controller's events.
    #[must_use]
    pub fn new(
        controller: Arc<Controller<H>>,
        listeners: Arc<Listeners>,
        callers: Vec<u32>,
        dumpers: Vec<u32>,
    ) -> Self {
        Self { controller, listeners, callers, dumpers, uplinks: Arc::default() }
    }

    /// The same, which shows these uplinks.
    #[must_use]
    pub fn showing(self, uplinks: Arc<Uplinks>) -> Self {
        Self { uplinks, ..self }
    }

    /// The controller, if the caller may use it.
    fn for_caller(&self) -> BinderResult<&Controller<H>> {
        self.check(|uid| self.may_call(uid))
            .map_err(|uid| security(&format!("uid {uid} may not use the CLAT controller")))
    }

    fn may_call(&self, uid: u32) -> bool {
        self.callers.contains(&uid)
    }

    fn may_dump(&self, uid: u32) -> bool {
        self.may_call(uid) || self.dumpers.contains(&uid)
    }

    /// The controller, or the user id of a caller who may not use it.
    fn check(&self, may: impl FnOnce(u32) -> bool) -> Result<&Controller<H>, u32> {
        let uid = calling_uid();
        if may(uid) {
            return Ok(&self.controller);
        }
        log::warn!("refused a call by uid {uid}");
        Err(uid)
    }

    fn status(&self, controller: &Controller<H>) -> ControllerStatus {
        ControllerStatus {
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            ebpfMode: controller.ebpf_mode().to_string(),
            standalone: controller.is_standalone(),
            clats: controller.running().into_iter().map(ClatStatus::from).collect(),
        }
    }

    /// The text of `dumpsys` with these arguments.
    fn dump_text(&self, controller: &Controller<H>, args: &[String]) -> String {
        // No version of the interface has these yet.
        if args.iter().any(|arg| arg == "--uplinks") {
            return self.uplinks.json() + "\n";
        }
        if args.iter().any(|arg| arg == "--json") {
            return status::Status::from(self.status(controller)).json() + "\n";
        }
        format!("{}    listeners: {}\n", controller.dump(), self.listeners.count())
    }
}

impl From<Error> for Status {
    /// Logs the error, and tells the caller the same.
    fn from(error: Error) -> Self {
        log::error!("{error}");
        service_specific(error.errno, &error.to_string())
    }
}

/// AIDL has no unsigned integers; a larger value becomes the maximum.
fn signed<S: TryFrom<u64> + Max>(number: impl Into<u64>) -> S {
    S::try_from(number.into()).unwrap_or(S::MAX)
}

trait Max {
    const MAX: Self;
}
impl Max for i32 {
    const MAX: Self = i32::MAX;
}
impl Max for i64 {
    const MAX: Self = i64::MAX;
}

fn aidl_counters(counters: &OffloadCounters) -> AidlCounters {
    let reason = |(reason, count): (&str, u64)| ReasonCount {
        reason: reason.to_owned(),
        count: signed(count),
    };
    AidlCounters {
        passed: counters.passed_by_reason().map(reason).collect(),
        packets: signed(counters.packets),
        bytes: signed(counters.bytes),
        superPackets: signed(counters.super_packets),
        neighbour: signed(counters.neighbour),
        lost: signed(counters.lost),
    }
}

impl From<Running> for ClatStatus {
    fn from(running: Running) -> Self {
        let Running {
            clat,
            pid,
            restarts,
            traffic,
            path,
            working,
            egress,
            ingress,
            hindrances,
            ..
        } = running;
        let traffic = traffic.unwrap_or_default();
        Self {
            iface: clat.iface.to_string(),
            ifIndex: signed(clat.index),
            v4iface: clat.v4iface.to_string(),
            v4ifIndex: signed(clat.v4index),
            nat64Prefix: clat.prefix.to_string(),
            v4: clat.v4.to_string(),
            v6: clat.v6.to_string(),
            fwmark: signed(clat.mark.bits()),
            pid,
            restarts: signed(restarts),
            uptimeMillis: i64::try_from(clat.since.elapsed().as_millis()).unwrap_or(i64::MAX),
            txPackets: signed(traffic.tx_packets),
            txBytes: signed(traffic.tx_bytes),
            rxPackets: signed(traffic.rx_packets),
            rxBytes: signed(traffic.rx_bytes),
            offloaded: path != PacketPath::Daemon,
            egress: egress.as_ref().map(aidl_counters),
            ingress: ingress.as_ref().map(aidl_counters),
            working: working.as_str().to_owned(),
            hindrances,
            path: path.as_str().to_owned(),
        }
    }
}

impl<H: Host> Interface for ClatdService<H> {
    /// Writes the text of `dumpsys clatd_controller`.
    fn dump(&self, out: &mut dyn Write, args: &[DumpArg<'_>]) -> Result<(), StatusCode> {
        let text = self.check(|uid| self.may_dump(uid)).map(|controller| {
            let args: Vec<_> = args.iter().map(dump_arg).collect();
            self.dump_text(controller, &args)
        });
        // Refusals have the form of Android's own services.
        let refused =
            |uid| format!("Permission Denial: can't dump ClatdController from uid={uid}\n");
        let (text, result) = match text {
            Ok(text) => (text, Ok(())),
            Err(uid) => (refused(uid), Err(PERMISSION_DENIED)),
        };
        out.write_all(text.as_bytes()).map_err(|e| {
            log::warn!("cannot write a dump: {e}");
            UNKNOWN_ERROR
        })?;
        result
    }
}

#[allow(non_snake_case)] // AIDL's names
impl<H: Host> IClatdController for ClatdService<H> {
    fn clatdStart(&self, ifName: &str, nat64Prefix: &str) -> BinderResult<String> {
        let v6 = self.for_caller()?.start(ifName, nat64Prefix)?;
        Ok(v6.to_string())
    }

    fn clatdStop(&self, ifName: &str) -> BinderResult<()> {
        Ok(self.for_caller()?.stop(ifName)?)
    }

    fn networkAddInterface(&self, netId: i32, iface: &str) -> BinderResult<()> {
        Ok(self.for_caller()?.add_interface(netId, iface)?)
    }

    fn networkRemoveInterface(&self, netId: i32, iface: &str) -> BinderResult<()> {
        Ok(self.for_caller()?.remove_interface(netId, iface)?)
    }

    fn networkDestroy(&self, netId: i32) -> BinderResult<()> {
        Ok(self.for_caller()?.destroy_network(netId)?)
    }

    fn getStatus(&self) -> BinderResult<ControllerStatus> {
        Ok(self.status(self.for_caller()?))
    }

    fn dumpText(&self, args: &[String]) -> BinderResult<String> {
        Ok(self.dump_text(self.for_caller()?, args))
    }

    fn registerEventListener(
        &self,
        listener: &Strong<dyn IClatdEventListener>,
    ) -> BinderResult<()> {
        self.for_caller()?;
        self.listeners.add(listener)
    }

    fn unregisterEventListener(
        &self,
        listener: &Strong<dyn IClatdEventListener>,
    ) -> BinderResult<()> {
        self.for_caller()?;
        self.listeners.leave(listener)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    #[test]
    fn a_shell_may_dump_and_nothing_else() {
        let host = Arc::new(FakeHost::default());
        let controller = Arc::new(Controller::new(host, false, Arc::new(|_| ())));
        let service = ClatdService::new(controller, Arc::default(), CALLERS.to_vec(), vec![SHELL]);
        for uid in [0, 1000, 1073] {
            assert!(service.may_call(uid) && service.may_dump(uid), "{uid}");
        }
        assert!(service.may_dump(SHELL) && !service.may_call(SHELL));
        for uid in [1, 1001, 1029, 10_000] {
            assert!(!service.may_call(uid) && !service.may_dump(uid), "{uid}");
        }
    }
}
