// SPDX-License-Identifier: Apache-2.0

//! The client side: how a program reaches a running controller.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::binder_adapter::{self, has_service_manager, IClatdController, Strong, Transport};
use crate::{DEFAULT_SOCKET, SERVICE_NAME};
use clat_sys::{errno_of, HostError};

pub use crate::binder_adapter::{describe, errno};

/// Connects to the controller: by `transport`, else by kernel binder if it is registered there,
/// else by its usual socket. With `callbacks`, the controller can send events to this process; the
/// connection then stays until the process ends.
///
/// # Errors
/// ENOENT or ECONNREFUSED if there is none, EACCES if this user may not call it, each with a text
/// that says what to do.
pub fn connect(
    transport: Option<&Transport>,
    callbacks: bool,
) -> io::Result<Strong<dyn IClatdController>> {
    if let Some(transport) = transport {
        return connect_by(transport, callbacks);
    }
    if has_service_manager() {
        match connect_by(&Transport::Binder, callbacks) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => return done,
        }
    }
    connect_by(&Transport::Rpc(PathBuf::from(DEFAULT_SOCKET)), callbacks)
}

fn connect_by(transport: &Transport, callbacks: bool) -> io::Result<Strong<dyn IClatdController>> {
    if let Transport::Rpc(socket) = transport {
        // connect(2) refuses a file that is no socket like a socket without listener.
        if std::fs::metadata(socket).is_ok_and(|found| !found.file_type().is_socket()) {
            let cause = format!("{} is no socket; give that of clat_controller", socket.display());
            return Err(HostError::because(Errno::ENOTSOCK, cause));
        }
    }
    if matches!(transport, Transport::Binder) && !has_service_manager() {
        return Err(HostError::because(
            Errno::ENODEV,
            "no service manager of kernel binder answers here; leave --binder out",
        ));
    }
    let failed = |e: io::Error| match (e.kind(), transport) {
        (io::ErrorKind::NotFound, Transport::Binder) => HostError::because(
            Errno::ENOENT,
            format!("the service manager knows no {SERVICE_NAME}; start clat_controller as root"),
        ),
        (io::ErrorKind::NotFound, Transport::Rpc(socket)) => HostError::because(
            Errno::ENOENT,
            format!("no controller listens on {}; start clat_controller as root", socket.display()),
        ),
        (io::ErrorKind::ConnectionRefused, Transport::Rpc(socket)) => HostError::because(
            Errno::ECONNREFUSED,
            format!(
                "the controller that made {} is gone; start clat_controller as root",
                socket.display()
            ),
        ),
        (io::ErrorKind::PermissionDenied, Transport::Rpc(socket))
            if errno_of(&e) == Errno::EACCES =>
        {
            HostError::because(
                Errno::EACCES,
                format!(
                    "you may not use {}; try as root, or as a member of the socket's group",
                    socket.display()
                ),
            )
        }
        _ => e,
    };
    binder_adapter::connect(transport, SERVICE_NAME, callbacks).map_err(failed)
}
