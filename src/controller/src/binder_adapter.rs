//! All that differs between binder libraries: rsbinder under Cargo, AOSP's libbinder_rs under Soong. The rest of the
//! crate uses only what stands here.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::{umask, Mode};
use rsbinder::entry::{WireProfile, WireVersion};
use rsbinder::{Client, Endpoint, ServerGuard, Uri};

pub use android_net_clat_aidl::aidl::android::net::clat::ClatStatus::ClatStatus;
pub use android_net_clat_aidl::aidl::android::net::clat::ControllerStatus::ControllerStatus;
pub use android_net_clat_aidl::aidl::android::net::clat::IClatdController::{
    BnClatdController, IClatdController,
};
pub use android_net_clat_aidl::aidl::android::net::clat::{
    OffloadCounters::OffloadCounters, ReasonCount::ReasonCount,
};
pub use rsbinder::{BinderResult, ExceptionCode, Interface, Status, StatusCode, Strong};

use crate::errors::{explain, worded};

/// How long a client waits for an answer. A start waits for duplicate address detection and the firewall's lock.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a new connection gets for its handshake; also how long one that says nothing can hold up the end.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connections at one time; more wait in the kernel's queue. Each costs a thread.
const MAX_CONNECTIONS: usize = 64;

/// A service-specific exception with an errno value.
#[must_use]
pub fn service_specific(errno: Errno, message: &str) -> Status {
    Status::new_service_specific_error(errno as i32, Some(message.to_owned()))
}

/// A security exception.
#[must_use]
pub fn security(message: &str) -> Status {
    Status::from((ExceptionCode::Security, message))
}

/// The user that the transaction in progress came from, as the kernel vouches for it (SO_PEERCRED on a socket);
/// `u32::MAX` where nobody does.
#[must_use]
pub fn calling_uid() -> u32 {
    rsbinder::get_calling_uid()
}

/// What a call's failure says, for people.
#[must_use]
pub fn describe(status: &Status) -> String {
    match (status.exception_code(), status.message()) {
        (_, Some(message)) if !message.is_empty() => message.to_owned(),
        (ExceptionCode::Security, _) => "this user may not use the controller".to_owned(),
        (ExceptionCode::TransactionFailed, _) => {
            format!("the connection to the controller was lost ({})", status.transaction_error())
        }
        _ => status.to_string(),
    }
}

/// The errno value of a service-specific exception.
#[must_use]
pub fn errno(status: &Status) -> Option<Errno> {
    (status.exception_code() == ExceptionCode::ServiceSpecific)
        .then(|| Errno::from_raw(status.service_specific_error()))
}

/// Makes a binder of a service.
pub fn new_binder<T: IClatdController + Send + Sync + 'static>(
    service: T,
) -> Strong<dyn IClatdController> {
    BnClatdController::new_binder(service)
}

/// A service that answers on a socket until dropped. Then its connections are closed and the socket is removed.
pub struct SocketServer {
    _guard: ServerGuard,
}

/// Binder's RPC transport, the wire of Android 13 and later, on a Unix socket.
fn uri(socket: &Path) -> io::Result<Uri> {
    let path: PathBuf = std::path::absolute(socket)?;
    Ok(Uri::new(Endpoint::unix(path)).with_wire(WireProfile::Android13Plus(WireVersion::MAX)))
}

fn transport(code: StatusCode, socket: &Path) -> io::Error {
    let errno = match code {
        StatusCode::Errno(negative) => Errno::from_raw(-negative),
        StatusCode::AlreadyExists => Errno::EEXIST,
        StatusCode::PermissionDenied => Errno::EACCES,
        StatusCode::NameNotFound => Errno::ENOENT,
        _ => Errno::EIO,
    };
    worded(errno, format!("{}: {code}", socket.display()))
}

/// Offers `service` under `name` on a Unix socket of mode 0660. A socket that nobody listens on is replaced.
///
/// # Errors
/// EADDRINUSE when somebody listens there, EEXIST when it is no socket, and those of bind(2).
pub fn serve(
    socket: &Path,
    name: &str,
    service: &Strong<dyn IClatdController>,
) -> io::Result<SocketServer> {
    let failed = |code| transport(code, socket);
    let server = rsbinder::serve(uri(socket)?)
        .and_then(|server| server.add(name, service.as_binder()))
        .map_err(failed)?
        .with(|options| {
            options.max_connections = Some(MAX_CONNECTIONS);
            options.handshake_timeout = Some(HANDSHAKE);
        });
    // The socket comes to be with its mode; there is no moment at which it is open to all.
    let before = umask(Mode::S_IXUSR | Mode::S_IXGRP | Mode::S_IRWXO);
    let guard = server.spawn();
    umask(before);
    let guard = guard.map_err(|code| match transport(code, socket) {
        e if e.kind() == io::ErrorKind::AddrInUse => {
            worded(Errno::EADDRINUSE, format!("another controller answers on {}", socket.display()))
        }
        e if e.kind() == io::ErrorKind::AlreadyExists => {
            worded(Errno::EEXIST, format!("{} exists and is no socket", socket.display()))
        }
        e => e,
    })?;
    Ok(SocketServer { _guard: guard })
}

/// Connects to the service `name` on a Unix socket.
///
/// # Errors
/// Those of connect(2), and of the first exchange.
pub fn connect(socket: &Path, name: &str) -> io::Result<Strong<dyn IClatdController>> {
    Client::open_with(uri(socket)?, |options, _| options.timeout = Some(PATIENCE))
        .and_then(|client| client.get(name))
        // The system's error, where there is one, says more than the library's.
        .map_err(|code| match UnixStream::connect(socket) {
            Err(e) => explain(e, socket.display()),
            Ok(_) => transport(code, socket),
        })
}
