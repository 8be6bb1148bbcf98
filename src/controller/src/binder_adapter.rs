// SPDX-License-Identifier: Apache-2.0

//! Everything that differs between binder libraries: rsbinder under Cargo, AOSP's libbinder_rs
//! under Soong (`--cfg soong`). The rest of the crate uses binder only through this module, and
//! compiles unchanged against both.

use std::path::PathBuf;

use nix::errno::Errno;

pub use imp::*;

/// Paths of the kernel's driver: in binderfs, or its own device.
pub const DEVICES: [&str; 2] = ["/dev/binderfs/binder", "/dev/binder"];

/// How callers and the controller reach one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// The kernel's binder driver, with a service manager that knows services by their names.
    Binder,
    /// Binder's RPC transport, the wire of Android 13 and later, on a Unix socket at this path.
    Rpc(PathBuf),
}

impl std::fmt::Display for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Binder => f.write_str("kernel binder"),
            Self::Rpc(socket) => write!(f, "unix://{}", socket.display()),
        }
    }
}

/// A security exception.
#[must_use]
pub fn security(message: &str) -> Status {
    exception(SECURITY, message)
}

/// The text of a failed call, for people.
#[must_use]
pub fn describe(status: &Status) -> String {
    match (status.exception_code(), message(status)) {
        (_, Some(message)) if !message.is_empty() => message,
        (SECURITY, _) => "this user may not use the controller".to_owned(),
        (TRANSACTION_FAILED, _) => {
            format!("the connection to the controller was lost ({:?})", status.transaction_error())
        }
        _ => status.to_string(),
    }
}

/// The errno value of a service-specific exception.
#[must_use]
pub fn errno(status: &Status) -> Option<Errno> {
    (status.exception_code() == SERVICE_SPECIFIC)
        .then(|| Errno::from_raw(status.service_specific_error()))
}

#[cfg(not(soong))]
mod imp {
    use std::fs;
    use std::io::{self, BufRead, BufReader, Read};
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::Duration;

    use android_net_clat_aidl::aidl::android::net::clat;
    use nix::errno::Errno;
    use nix::sys::stat::{umask, Mode};
    use rsbinder::entry::{WireProfile, WireVersion};
    use rsbinder::rpc::RpcServer;
    use rsbinder::{
        Client, Endpoint, FromIBinder, ProcessState, ServerGuard, TransportCaps, Uri, WIBinder,
    };

    use super::Transport;
    use crate::gate::Gate;
    use clat_sys::HostError;

    pub use clat::ClatStatus::ClatStatus;
    pub use clat::ControllerStatus::ControllerStatus;
    pub use clat::IClatdController::{BnClatdController, IClatdController};
    pub use clat::IClatdEventListener::{
        BnClatdEventListener, IClatdEventListener, STOP_FAILED, STOP_NETWORK_GONE, STOP_REQUESTED,
        STOP_SHUTDOWN, STOP_UPLINK_GONE,
    };
    pub use clat::OffloadCounters::OffloadCounters;
    pub use clat::ReasonCount::ReasonCount;
    pub use rsbinder::{BinderResult, ExceptionCode, Interface, Status, StatusCode, Strong};

    /// EX_SECURITY.
    pub const SECURITY: ExceptionCode = ExceptionCode::Security;
    /// EX_SERVICE_SPECIFIC.
    pub const SERVICE_SPECIFIC: ExceptionCode = ExceptionCode::ServiceSpecific;
    /// EX_TRANSACTION_FAILED: the call may not have arrived.
    pub const TRANSACTION_FAILED: ExceptionCode = ExceptionCode::TransactionFailed;
    /// The result of a refused dump.
    pub const PERMISSION_DENIED: StatusCode = StatusCode::PermissionDenied;
    /// The result of a dump that cannot be written.
    pub const UNKNOWN_ERROR: StatusCode = StatusCode::Unknown;

    /// An argument of a dump.
    pub type DumpArg<'a> = String;

    /// The text of an argument of a dump.
    #[must_use]
    pub fn dump_arg(arg: &DumpArg<'_>) -> String {
        arg.clone()
    }

    /// A service-specific exception with an errno value.
    #[must_use]
    pub fn service_specific(errno: Errno, message: &str) -> Status {
        Status::new_service_specific_error(errno as i32, Some(message.to_owned()))
    }

    /// An exception with a message.
    #[must_use]
    pub fn exception(code: ExceptionCode, message: &str) -> Status {
        Status::from((code, message))
    }

    /// The message of an exception.
    #[must_use]
    pub fn message(status: &Status) -> Option<String> {
        status.message().map(str::to_owned)
    }

    /// The user id of the caller of the present transaction, from the kernel (SO_PEERCRED on a
    /// socket); `u32::MAX` if unknown.
    #[must_use]
    pub fn calling_uid() -> u32 {
        rsbinder::get_calling_uid()
    }

    /// Whether the transport of the present transaction can call its caller back at any time.
    #[must_use]
    pub fn can_call_back() -> bool {
        rsbinder::thread_state::calling_caps()
            .is_some_and(|caps| caps.contains(TransportCaps::CALLBACKS))
    }

    /// Makes a binder of a service.
    pub fn new_binder<T: IClatdController + Send + Sync + 'static>(
        service: T,
    ) -> Strong<dyn IClatdController> {
        BnClatdController::new_binder(service)
    }

    /// Makes a binder of a listener.
    pub fn new_listener<T: IClatdEventListener + Send + Sync + 'static>(
        listener: T,
    ) -> Strong<dyn IClatdEventListener> {
        BnClatdEventListener::new_binder(listener)
    }

    struct Died<F>(F);

    impl<F: Fn() + Send + Sync> rsbinder::DeathRecipient for Died<F> {
        fn binder_died(&self, _: &WIBinder) {
            (self.0)();
        }
    }

    /// A subscription to the death of a process, until dropped.
    pub struct DeathLink {
        _recipient: Arc<dyn rsbinder::DeathRecipient>,
    }

    /// Calls `died` when the process of `binder` dies. Over RPC this needs a connection with
    /// callbacks.
    ///
    /// # Errors
    /// If it is dead already, or is this process.
    pub fn link_to_death<I: FromIBinder + ?Sized>(
        binder: &Strong<I>,
        died: impl Fn() + Send + Sync + 'static,
    ) -> Result<DeathLink, StatusCode> {
        let recipient = Arc::new(Died(died));
        binder.as_binder().link_to_death_arc(&recipient)?;
        Ok(DeathLink { _recipient: recipient })
    }

    /// Timeout of a new connection's handshake.
    const HANDSHAKE: Duration = Duration::from_secs(5);

    /// Timeout of a client's call. A start waits for duplicate address detection and the firewall's
    /// lock.
    const CALL_TIMEOUT: Duration = Duration::from_secs(60);

    /// How long a client waits for the text of a refusal.
    const REFUSAL: Duration = Duration::from_secs(1);

    /// Whether there is a binder driver, and behind it a service manager that answers.
    #[must_use]
    pub fn has_service_manager() -> bool {
        super::DEVICES.iter().any(|path| Path::new(path).exists())
            && ProcessState::init_default().is_ok()
            && rsbinder::hub::default().is_ok()
    }

    fn uri(transport: &Transport) -> io::Result<Uri> {
        Ok(match transport {
            Transport::Binder => Uri::new(Endpoint::kernel()),
            Transport::Rpc(socket) => {
                let path: PathBuf = std::path::absolute(socket)?;
                Uri::new(Endpoint::unix(path))
                    .with_wire(WireProfile::Android13Plus(WireVersion::MAX))
            }
        })
    }

    fn failed(code: StatusCode, transport: &Transport) -> io::Error {
        let errno = match code {
            StatusCode::Errno(negative) => Errno::from_raw(-negative),
            StatusCode::AlreadyExists => Errno::EEXIST,
            StatusCode::PermissionDenied => Errno::EACCES,
            StatusCode::NameNotFound => Errno::ENOENT,
            _ => Errno::EIO,
        };
        HostError::because(errno, format!("{transport}: {code}"))
    }

    /// A service that answers until dropped, which closes its connections and removes the socket. A
    /// service of kernel binder ends with its process.
    pub enum Server {
        /// By kernel binder.
        Binder(ServerGuard),
        /// On a socket.
        Rpc(Gate, SocketFile),
    }

    /// A socket's file, removed when dropped.
    pub struct SocketFile {
        path: PathBuf,
        /// Device and inode of the file, since another controller may have replaced it.
        file: (u64, u64),
    }

    impl Drop for SocketFile {
        fn drop(&mut self) {
            if file_id(&self.path).is_ok_and(|file| file == self.file) {
                let _ = fs::remove_file(&self.path);
            }
        }
    }

    fn file_id(path: &Path) -> io::Result<(u64, u64)> {
        let file = fs::symlink_metadata(path)?;
        Ok((file.dev(), file.ino()))
    }

    /// Offers `service` under `name`: to the service manager, or on a Unix socket of mode 0660 to
    /// the users `callers`. A socket that nobody listens on is replaced.
    ///
    /// # Errors
    /// EADDRINUSE if another process listens there, EEXIST if it is no socket, and those of
    /// bind(2); EACCES if the service manager refuses, EIO if there is none.
    pub fn serve(
        transport: &Transport,
        name: &str,
        service: &Strong<dyn IClatdController>,
        callers: &[u32],
    ) -> io::Result<Server> {
        let Transport::Rpc(socket) = transport else {
            let guard = rsbinder::serve(uri(transport)?)
                .and_then(|server| server.add(name, service.as_binder())?.spawn());
            return Ok(Server::Binder(guard.map_err(|code| failed(code, transport))?));
        };
        // The socket is created with its mode; it is never open to all.
        let before = umask(Mode::S_IXUSR | Mode::S_IXGRP | Mode::S_IRWXO);
        let bound = bind(transport, socket);
        umask(before);
        let (server, listener, file) = bound?;
        offer(&server, name, service).map_err(|code| failed(code, transport))?;
        Ok(Server::Rpc(Gate::open(listener, server, callers)?, file))
    }

    fn offer(
        server: &RpcServer,
        name: &str,
        service: &Strong<dyn IClatdController>,
    ) -> Result<(), StatusCode> {
        server.set_android13plus(WireVersion::MAX.get());
        server.set_handshake_timeout(Some(HANDSHAKE));
        server.add_service(name, service.as_binder())
    }

    /// Sends `bytes` to a service as a caller of this process's user, and returns all that the
    /// service sends until the connection is closed.
    ///
    /// # Errors
    /// If no socket can be made.
    #[cfg(any(test, fuzzing))]
    pub fn say(
        bytes: &[u8],
        name: &str,
        service: &Strong<dyn IClatdController>,
    ) -> io::Result<Vec<u8>> {
        use std::io::{Read, Write};
        use std::net::Shutdown;
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::SocketAddr;
        use std::sync::atomic::{AtomicU64, Ordering};

        static COUNT: AtomicU64 = AtomicU64::new(0);
        let place =
            || format!("clat {} {}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let server = RpcServer::setup_unix_server_abstract(place().as_bytes());
        let server = server.map_err(|code| io::Error::other(code.to_string()))?;
        offer(&server, name, service).map_err(|code| io::Error::other(code.to_string()))?;
        let address = SocketAddr::from_abstract_name(place())?;
        let listener = UnixListener::bind_addr(&address)?;
        let _gate = Gate::open(listener, server, &[nix::unistd::geteuid().as_raw()])?;
        let mut stream = UnixStream::connect_addr(&address)?;
        // The service may close the connection before all is sent.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        Ok(answers)
    }

    /// The library's server, and a socket of ours. The library insists on its own, and checks for
    /// an existing listener before making it; its file is removed, so that nobody bypasses the
    /// gate.
    fn bind(
        transport: &Transport,
        socket: &Path,
    ) -> io::Result<(Arc<RpcServer>, UnixListener, SocketFile)> {
        let path = std::path::absolute(socket)?;
        let server = RpcServer::setup_unix_server(&path).map_err(|code| {
            let error = failed(code, transport);
            let socket = socket.display();
            match error.kind() {
                io::ErrorKind::AddrInUse => HostError::because(
                    Errno::EADDRINUSE,
                    format!("another controller answers on {socket}"),
                ),
                io::ErrorKind::AlreadyExists => {
                    HostError::because(Errno::EEXIST, format!("{socket} exists and is no socket"))
                }
                _ => error,
            }
        })?;
        fs::remove_file(&path)?;
        let listener = UnixListener::bind(&path)?;
        let file = file_id(&path)?;
        Ok((server, listener, SocketFile { path, file }))
    }

    /// Connects to the service `name`. With `callbacks`, it can call this process at any time; the
    /// connection then stays until the process ends.
    ///
    /// # Errors
    /// ENOENT if the service manager does not know the service; those of connect(2), and of the
    /// first exchange.
    pub fn connect(
        transport: &Transport,
        name: &str,
        callbacks: bool,
    ) -> io::Result<Strong<dyn IClatdController>> {
        let client = Client::open_with(uri(transport)?, |options, _| {
            if let Transport::Rpc(_) = transport {
                options.timeout = Some(CALL_TIMEOUT);
                options.incoming_connections = callbacks.then_some(1);
            }
        });
        let service = client.and_then(|client| client.try_get(name));
        match (service, transport) {
            (Ok(service), _) => service.ok_or_else(|| failed(StatusCode::NameNotFound, transport)),
            (Err(code), Transport::Binder) => Err(failed(code, transport)),
            // The system's error, or the refusal of a controller, says more than the library's.
            (Err(code), Transport::Rpc(socket)) => Err(match UnixStream::connect(socket) {
                Err(e) => HostError::during(socket.display(), e),
                Ok(stream) => refusal(stream).unwrap_or_else(|| failed(code, transport)),
            }),
        }
    }

    /// The gate's text for a refused connection. A controller that admits this process sends
    /// nothing on its own.
    fn refusal(stream: UnixStream) -> Option<io::Error> {
        stream.set_read_timeout(Some(REFUSAL)).ok()?;
        let mut why = String::new();
        BufReader::new(stream.take(1000)).read_line(&mut why).ok()?;
        (!why.is_empty()).then(|| HostError::because(Errno::EPERM, why.trim_end()))
    }
}

#[cfg(soong)]
mod imp {
    use std::ffi::CStr;
    use std::io;

    use android_net_clat_aidl::aidl::android::net::clat;
    use binder::{BinderFeatures, DeathRecipient, FromIBinder, IBinder, ProcessState, ThreadState};
    use nix::errno::Errno;

    use super::Transport;
    use clat_sys::HostError;

    pub use binder::{ExceptionCode, Interface, Status, StatusCode, Strong};
    pub use clat::ClatStatus::ClatStatus;
    pub use clat::ControllerStatus::ControllerStatus;
    pub use clat::IClatdController::{BnClatdController, IClatdController};
    pub use clat::IClatdEventListener::{
        BnClatdEventListener, IClatdEventListener, STOP_FAILED, STOP_NETWORK_GONE, STOP_REQUESTED,
        STOP_SHUTDOWN, STOP_UPLINK_GONE,
    };
    pub use clat::OffloadCounters::OffloadCounters;
    pub use clat::ReasonCount::ReasonCount;

    /// The result of a call.
    pub type BinderResult<T> = binder::Result<T>;

    /// EX_SECURITY.
    pub const SECURITY: ExceptionCode = ExceptionCode::SECURITY;
    /// EX_SERVICE_SPECIFIC.
    pub const SERVICE_SPECIFIC: ExceptionCode = ExceptionCode::SERVICE_SPECIFIC;
    /// EX_TRANSACTION_FAILED: the call may not have arrived.
    pub const TRANSACTION_FAILED: ExceptionCode = ExceptionCode::TRANSACTION_FAILED;
    /// The result of a refused dump.
    pub const PERMISSION_DENIED: StatusCode = StatusCode::PERMISSION_DENIED;
    /// The result of a dump that cannot be written.
    pub const UNKNOWN_ERROR: StatusCode = StatusCode::UNKNOWN_ERROR;

    /// An argument of a dump.
    pub type DumpArg<'a> = &'a CStr;

    /// The text of an argument of a dump.
    #[must_use]
    pub fn dump_arg(arg: &DumpArg<'_>) -> String {
        arg.to_string_lossy().into_owned()
    }

    /// A service-specific exception with an errno value.
    #[must_use]
    pub fn service_specific(errno: Errno, message: &str) -> Status {
        Status::new_service_specific_error_str(errno as i32, Some(message))
    }

    /// An exception with a message.
    #[must_use]
    pub fn exception(code: ExceptionCode, message: &str) -> Status {
        Status::new_exception_str(code, Some(message))
    }

    /// The message of an exception, which in this library has its code in front.
    #[must_use]
    pub fn message(status: &Status) -> Option<String> {
        (status.exception_code() == SERVICE_SPECIFIC).then(|| status.get_description())
    }

    /// The user id of the caller of the present transaction.
    #[must_use]
    pub fn calling_uid() -> u32 {
        ThreadState::get_calling_uid()
    }

    /// Whether the transport of the present transaction can call its caller back at any time.
    #[must_use]
    pub fn can_call_back() -> bool {
        true
    }

    /// Makes a binder of a service.
    pub fn new_binder<T: IClatdController + Send + Sync + 'static>(
        service: T,
    ) -> Strong<dyn IClatdController> {
        BnClatdController::new_binder(service, BinderFeatures::default())
    }

    /// Makes a binder of a listener.
    pub fn new_listener<T: IClatdEventListener + Send + Sync + 'static>(
        listener: T,
    ) -> Strong<dyn IClatdEventListener> {
        BnClatdEventListener::new_binder(listener, BinderFeatures::default())
    }

    /// A subscription to the death of a process, until dropped.
    pub struct DeathLink {
        _recipient: DeathRecipient,
    }

    /// Calls `died` when the process of `binder` dies. Over RPC this needs a connection with
    /// callbacks.
    ///
    /// # Errors
    /// If it is dead already, or is this process.
    pub fn link_to_death<I: FromIBinder + ?Sized>(
        binder: &Strong<I>,
        died: impl Fn() + Send + Sync + 'static,
    ) -> Result<DeathLink, StatusCode> {
        let mut recipient = DeathRecipient::new(died);
        binder.as_binder().link_to_death(&mut recipient)?;
        Ok(DeathLink { _recipient: recipient })
    }

    /// Android always has one.
    #[must_use]
    pub fn has_service_manager() -> bool {
        true
    }

    fn failed(code: StatusCode) -> io::Error {
        let errno = match code {
            StatusCode::PERMISSION_DENIED => Errno::EACCES,
            StatusCode::NAME_NOT_FOUND => Errno::ENOENT,
            _ => Errno::EIO,
        };
        HostError::because(errno, format!("kernel binder: {code:?}"))
    }

    fn need_kernel(transport: &Transport) -> io::Result<()> {
        match transport {
            Transport::Binder => Ok(()),
            Transport::Rpc(_) => {
                Err(HostError::because(Errno::EOPNOTSUPP, "there is only kernel binder on Android"))
            }
        }
    }

    /// A service that answers until the process ends.
    pub struct Server;

    /// Registers `service` as `name` with the service manager. The service checks its callers.
    ///
    /// # Errors
    /// EACCES if the service manager refuses.
    pub fn serve(
        transport: &Transport,
        name: &str,
        service: &Strong<dyn IClatdController>,
        _callers: &[u32],
    ) -> io::Result<Server> {
        need_kernel(transport)?;
        ProcessState::start_thread_pool();
        binder::add_service(name, service.as_binder()).map_err(failed)?;
        Ok(Server)
    }

    /// Connects to the service `name`.
    ///
    /// # Errors
    /// ENOENT if the service manager does not know the service.
    pub fn connect(
        transport: &Transport,
        name: &str,
        callbacks: bool,
    ) -> io::Result<Strong<dyn IClatdController>> {
        need_kernel(transport)?;
        if callbacks {
            ProcessState::start_thread_pool();
        }
        binder::check_interface(name).map_err(failed)
    }
}
