// SPDX-License-Identifier: Apache-2.0

//! A client of the controller's service, with errors as one line that says what to do.

use std::io;
use std::sync::mpsc::{channel, Sender};
use std::time::{Duration, Instant, SystemTime};

use clat_controller::binder_adapter::{
    link_to_death, new_listener, BinderResult, IClatdController, IClatdEventListener, Interface,
    Status as BinderStatus, Strong, Transport, SECURITY, STOP_FAILED, STOP_NETWORK_GONE,
    STOP_REQUESTED, STOP_SHUTDOWN, STOP_UPLINK_GONE, TRANSACTION_FAILED,
};
use clat_controller::client::{connect, describe, errno};
use clat_controller::status::Status;
use nix::errno::Errno;

use crate::{Failure, FAILED};

/// Time between two tries to start a CLAT.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// A connection to the controller.
pub(crate) struct Client(Strong<dyn IClatdController>);

impl Client {
    /// Connects to the service by `transport`, or by the transport that is available.
    pub(crate) fn connect(transport: Option<&Transport>) -> Result<Self, Failure> {
        connect(transport, false).map(Self).map_err(Failure::unreachable)
    }

    /// Connects, and calls `put` with each event of the controller. Returns when that fails, or
    /// when the controller has ended.
    pub(crate) fn listen(
        transport: Option<&Transport>,
        mut put: impl FnMut(&Event) -> io::Result<()>,
    ) -> Result<(), Failure> {
        let service = connect(transport, true).map_err(Failure::unreachable)?;
        let (sender, events) = channel();
        let last = sender.clone();
        let _link = link_to_death(&service, move || {
            let _ = last.send(None);
        })
        .map_err(|e| Failure::unreachable(format!("the controller is gone ({e:?})")))?;
        let listener = new_listener(Events(sender));
        service.registerEventListener(&listener).map_err(|status| failure(&status))?;
        while let Ok(Some(event)) = events.recv() {
            put(&event)?;
        }
        Err(Failure::unreachable("the controller is gone"))
    }

    /// Starts a CLAT and returns its IPv6 address. If the uplink has no IPv6 yet, waits up to
    /// `timeout` for it.
    pub(crate) fn start(
        &self,
        iface: &str,
        prefix: &str,
        timeout: Duration,
    ) -> Result<String, Failure> {
        let begun = Instant::now();
        loop {
            match self.0.clatdStart(iface, prefix) {
                Err(status)
                    if errno(&status) == Some(Errno::EADDRNOTAVAIL)
                        && begun.elapsed() < timeout =>
                {
                    std::thread::sleep(RETRY_INTERVAL);
                }
                done => return done.map_err(|status| failure(&status)),
            }
        }
    }

    /// Stops a CLAT.
    pub(crate) fn stop(&self, iface: &str) -> Result<(), Failure> {
        self.0.clatdStop(iface).map_err(|status| failure(&status))
    }

    /// The controller's status.
    pub(crate) fn status(&self) -> Result<Status, Failure> {
        let mut status = self.0.getStatus().map(Status::from).map_err(|e| failure(&e))?;
        // An older controller ignores the option and shows something else.
        let uplinks = self.0.dumpText(&["--uplinks".to_owned()]).unwrap_or_default();
        status.uplinks = serde_json::from_str(&uplinks).unwrap_or_default();
        Ok(status)
    }

    /// The controller's dump for these arguments.
    pub(crate) fn dump(&self, args: &[String]) -> Result<String, Failure> {
        self.0.dumpText(args).map_err(|status| failure(&status))
    }
}

/// The service's message, with the name of its errno, by which programs know the error.
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

/// One event, as JSON and as text.
pub(crate) struct Event {
    /// The object, with `time` in milliseconds since 1970.
    pub(crate) json: serde_json::Value,
    /// One line, with the time of day in UTC.
    pub(crate) text: String,
}

/// Sends events, and `None` at their end.
struct Events(Sender<Option<Event>>);

impl Events {
    fn put(&self, mut json: serde_json::Value, iface: &str, what: &str) -> BinderResult<()> {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let day = time.as_secs() % 86_400;
        let (hours, minutes, seconds) = (day / 3600, day / 60 % 60, day % 60);
        let text = format!("{hours:02}:{minutes:02}:{seconds:02}Z {iface}: {what}");
        json["time"] = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into();
        // The receiver is dropped only when the program ends; the event is not needed then.
        let _ = self.0.send(Some(Event { json, text }));
        Ok(())
    }
}

impl Interface for Events {}

#[allow(non_snake_case)] // AIDL's names
impl IClatdEventListener for Events {
    fn onClatdStarted(&self, iface: &str, prefix: &str, v4: &str, v6: &str) -> BinderResult<()> {
        let json = serde_json::json!({
            "event": "started", "iface": iface, "nat64Prefix": prefix, "v4": v4, "v6": v6,
        });
        self.put(json, iface, &format!("IPv4 is there: {v4}, as {v6} to {prefix}"))
    }

    fn onClatdStopped(&self, iface: &str, reason: i32) -> BinderResult<()> {
        let (reason, why) = match reason {
            STOP_REQUESTED => ("requested", "as asked"),
            STOP_SHUTDOWN => ("shutdown", "the controller is ending"),
            STOP_NETWORK_GONE => ("network-gone", "its network is gone"),
            STOP_UPLINK_GONE => ("uplink-gone", "its uplink is gone, or another one"),
            STOP_FAILED => {
                ("failed", "something could not be put back; the controller's log says what")
            }
            _ => ("other", "the controller's log says why"),
        };
        let json = serde_json::json!({ "event": "stopped", "iface": iface, "reason": reason });
        self.put(json, iface, &format!("IPv4 has ended: {why}"))
    }

    fn onClatdRestarted(
        &self,
        iface: &str,
        pid: i32,
        restarts: i32,
        cause: &str,
    ) -> BinderResult<()> {
        let json = serde_json::json!({
            "event": "restarted", "iface": iface, "pid": pid, "restarts": restarts, "cause": cause,
        });
        let what = format!("clatd was started again, time {restarts}: the last one {cause}");
        self.put(json, iface, &what)
    }

    fn onClatdProbed(&self, iface: &str, working: &str) -> BinderResult<()> {
        let json = serde_json::json!({ "event": "probed", "iface": iface, "working": working });
        let what = match working {
            "yes" => "IPv4 works: the host that was asked answers",
            _ => "IPv4 does not work: the host that was asked does not answer",
        };
        self.put(json, iface, what)
    }

    fn onClatdDied(&self, iface: &str, pid: i32, cause: &str) -> BinderResult<()> {
        let json =
            serde_json::json!({ "event": "died", "iface": iface, "pid": pid, "cause": cause });
        self.put(json, iface, &format!("clatd, pid {pid}, {cause}"))
    }
}
