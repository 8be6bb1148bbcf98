//! The controller's service, seen from here: calls, and errors as one line that says what to do.

use std::path::Path;

use clat_controller::binder_adapter::{
    ClatStatus, ControllerStatus, ExceptionCode, IClatdController, OffloadCounters,
    Status as BinderStatus, Strong,
};
use clat_controller::client::{connect, describe, errno};

use crate::status::{Clat, Offload, Status};
use crate::{Failure, FAILED};

/// A connection to the controller.
pub(crate) struct Client(Strong<dyn IClatdController>);

impl Client {
    /// Connects to the service on `socket`.
    pub(crate) fn connect(socket: &Path) -> Result<Self, Failure> {
        connect(socket).map(Self).map_err(Failure::unreachable)
    }

    /// Starts a CLAT; gives its IPv6 address.
    pub(crate) fn start(&self, iface: &str, prefix: &str) -> Result<String, Failure> {
        self.0.clatdStart(iface, prefix).map_err(|status| failure(&status))
    }

    /// Stops a CLAT.
    pub(crate) fn stop(&self, iface: &str) -> Result<(), Failure> {
        self.0.clatdStop(iface).map_err(|status| failure(&status))
    }

    /// What runs.
    pub(crate) fn status(&self) -> Result<Status, Failure> {
        self.0.getStatus().map(Status::from).map_err(|status| failure(&status))
    }

    /// The text of `dumpsys`.
    pub(crate) fn dump(&self) -> Result<String, Failure> {
        self.0.dumpText().map_err(|status| failure(&status))
    }
}

/// The service's words, with the name of the errno value that programs know the error by.
fn failure(status: &BinderStatus) -> Failure {
    let message = describe(status);
    if let Some(errno) = errno(status) {
        return Failure { code: FAILED, message: format!("{message} ({errno:?})") };
    }
    match status.exception_code() {
        ExceptionCode::TransactionFailed => Failure::unreachable(message),
        ExceptionCode::Security => Failure {
            code: FAILED,
            message: format!(
                "{message}; call it as root, or start clat_controller with --allow-uid"
            ),
        },
        _ => Failure { code: FAILED, message },
    }
}

impl From<ControllerStatus> for Status {
    fn from(status: ControllerStatus) -> Self {
        Self {
            pid: status.pid,
            ebpf_mode: status.ebpfMode,
            standalone: status.standalone,
            clats: status.clats.into_iter().map(Clat::from).collect(),
        }
    }
}

impl From<OffloadCounters> for Offload {
    fn from(counters: OffloadCounters) -> Self {
        Self {
            packets: counters.packets,
            bytes: counters.bytes,
            super_packets: counters.superPackets,
            neighbour: counters.neighbour,
            lost: counters.lost,
            passed: counters
                .passed
                .into_iter()
                .map(|passed| (passed.reason, passed.count))
                .collect(),
        }
    }
}

impl From<ClatStatus> for Clat {
    fn from(clat: ClatStatus) -> Self {
        Self {
            iface: clat.iface,
            if_index: clat.ifIndex,
            v4iface: clat.v4iface,
            v4if_index: clat.v4ifIndex,
            nat64_prefix: clat.nat64Prefix,
            v4: clat.v4,
            v6: clat.v6,
            // AIDL knows no unsigned numbers.
            fwmark: u32::from_ne_bytes(clat.fwmark.to_ne_bytes()),
            pid: clat.pid,
            restarts: clat.restarts,
            uptime_millis: clat.uptimeMillis,
            tx_packets: clat.txPackets,
            tx_bytes: clat.txBytes,
            rx_packets: clat.rxPackets,
            rx_bytes: clat.rxBytes,
            offloaded: clat.offloaded,
            egress: clat.egress.map(Offload::from),
            ingress: clat.ingress.map(Offload::from),
            rates: None,
        }
    }
}
