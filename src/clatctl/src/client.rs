// SPDX-License-Identifier: Apache-2.0

//! The controller's service, seen from here: calls, and errors as one line that says what to do.

use std::io;
use std::sync::mpsc::{channel, Sender};

use clat_controller::binder_adapter::{
    link_to_death, new_listener, BinderResult, IClatdController, IClatdEventListener, Interface,
    Status as BinderStatus, Strong, Transport, SECURITY, STOP_NETWORK_GONE, STOP_REQUESTED,
    STOP_SHUTDOWN, TRANSACTION_FAILED,
};
use clat_controller::client::{connect, describe, errno};
use clat_controller::status::Status;

use crate::{Failure, FAILED};

/// A connection to the controller.
pub(crate) struct Client(Strong<dyn IClatdController>);

impl Client {
    /// Connects to the service by `transport`, or by what is there.
    pub(crate) fn connect(transport: Option<&Transport>) -> Result<Self, Failure> {
        connect(transport, false).map(Self).map_err(Failure::unreachable)
    }

    /// Connects, and calls `put` with each event that the controller tells of, as a line; returns
    /// when that fails, or the controller is gone.
    pub(crate) fn listen(
        transport: Option<&Transport>,
        mut put: impl FnMut(&str) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let service = connect(transport, true).map_err(Failure::unreachable)?;
        let (lines, events) = channel();
        let last = lines.clone();
        let _link = link_to_death(&service, move || {
            let _ = last.send(None);
        })
        .map_err(|e| Failure::unreachable(format!("the controller is gone ({e:?})")))?;
        let listener = new_listener(Lines(lines));
        service.registerEventListener(&listener).map_err(|status| failure(&status))?;
        while let Ok(Some(line)) = events.recv() {
            put(&line)?;
        }
        Err(Failure::unreachable("the controller is gone"))
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

    /// The text of `dumpsys`, given these arguments.
    pub(crate) fn dump(&self, args: &[String]) -> Result<String, Failure> {
        self.0.dumpText(args).map_err(|status| failure(&status))
    }
}

/// The service's words, with the name of the errno value that programs know the error by.
fn failure(status: &BinderStatus) -> Failure {
    let message = describe(status);
    if let Some(errno) = errno(status) {
        return Failure { code: FAILED, message: format!("{message} ({errno:?})") };
    }
    match status.exception_code() {
        TRANSACTION_FAILED => Failure::unreachable(message),
        SECURITY => Failure {
            code: FAILED,
            message: format!(
                "{message}; call it as root, or start clat_controller with --allow-uid"
            ),
        },
        _ => Failure { code: FAILED, message },
    }
}

/// Events as lines of JSON, and `None` when there will be no more.
struct Lines(Sender<Option<String>>);

impl Lines {
    fn put(&self, event: &serde_json::Value) -> BinderResult<()> {
        // Nobody reads them once the program ends.
        let _ = self.0.send(Some(event.to_string()));
        Ok(())
    }
}

impl Interface for Lines {}

#[allow(non_snake_case)] // AIDL's names
impl IClatdEventListener for Lines {
    fn onClatdStarted(&self, iface: &str, prefix: &str, v4: &str, v6: &str) -> BinderResult<()> {
        self.put(&serde_json::json!({
            "event": "started", "iface": iface, "nat64Prefix": prefix, "v4": v4, "v6": v6,
        }))
    }

    fn onClatdStopped(&self, iface: &str, reason: i32) -> BinderResult<()> {
        let reason = match reason {
            STOP_REQUESTED => "requested",
            STOP_SHUTDOWN => "shutdown",
            STOP_NETWORK_GONE => "network-gone",
            _ => "other",
        };
        self.put(&serde_json::json!({ "event": "stopped", "iface": iface, "reason": reason }))
    }

    fn onClatdRestarted(
        &self,
        iface: &str,
        pid: i32,
        restarts: i32,
        cause: &str,
    ) -> BinderResult<()> {
        self.put(&serde_json::json!({
            "event": "restarted", "iface": iface, "pid": pid, "restarts": restarts, "cause": cause,
        }))
    }
}
