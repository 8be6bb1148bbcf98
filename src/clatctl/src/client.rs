//! The controller's service, seen from here: calls, and errors as one line that says what to do.

use std::path::Path;

use crate::status::Status;
use crate::Failure;

/// Where the controller listens unless it is told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/clat/controller.sock";

/// A connection to the controller.
pub(crate) struct Client {}

impl Client {
    /// Connects to the service on `socket`.
    pub(crate) fn connect(socket: &Path) -> Result<Self, Failure> {
        Err(Failure::unreachable(format!("cannot reach the controller on {}", socket.display())))
    }

    pub(crate) fn start(&self, _iface: &str, _prefix: &str) -> Result<String, Failure> {
        Err(Failure::unreachable(""))
    }

    pub(crate) fn stop(&self, _iface: &str) -> Result<(), Failure> {
        Err(Failure::unreachable(""))
    }

    pub(crate) fn status(&self) -> Result<Status, Failure> {
        Err(Failure::unreachable(""))
    }

    pub(crate) fn dump(&self) -> Result<String, Failure> {
        Err(Failure::unreachable(""))
    }
}
