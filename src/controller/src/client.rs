//! The other side: how a program reaches a running controller.

use std::io;
use std::path::Path;

use nix::errno::Errno;

use crate::binder_adapter::{self, IClatdController, Strong};
use crate::errors::worded;
use crate::SERVICE_NAME;

pub use crate::binder_adapter::{describe, errno};

/// Connects to the controller that listens on `socket`.
///
/// # Errors
/// ENOENT or ECONNREFUSED when none does, EACCES when this user may not, each with words that say what helps.
pub fn connect(socket: &Path) -> io::Result<Strong<dyn IClatdController>> {
    binder_adapter::connect(socket, SERVICE_NAME).map_err(|e| {
        let shown = socket.display();
        match e.kind() {
            io::ErrorKind::NotFound => worded(
                Errno::ENOENT,
                format!("no controller listens on {shown}; start clat_controller as root"),
            ),
            io::ErrorKind::ConnectionRefused => worded(
                Errno::ECONNREFUSED,
                format!("the controller that made {shown} is gone; start clat_controller as root"),
            ),
            io::ErrorKind::PermissionDenied => worded(
                Errno::EACCES,
                format!(
                    "you may not use {shown}; try as root, or as a member of the socket's group"
                ),
            ),
            _ => e,
        }
    })
}
