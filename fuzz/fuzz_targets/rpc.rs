// SPDX-License-Identifier: Apache-2.0

//! A caller of the controller, through its gate and the binder library's server up to a service that does
//! nothing. The first byte chooses: a connection of these bytes, one whose handshake is right and the
//! rest these bytes, or a call with these arguments; its second byte is then the number of the call.
#![no_main]

#[path = "../../src/controller/src/gate.rs"]
#[allow(dead_code)]
mod gate;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use android_net_clat_aidl::aidl::android::net::clat::ControllerStatus::ControllerStatus;
use android_net_clat_aidl::aidl::android::net::clat::IClatdController::{
    BnClatdController, IClatdController,
};
use android_net_clat_aidl::aidl::android::net::clat::IClatdEventListener::IClatdEventListener;
use gate::Gate;
use libfuzzer_sys::fuzz_target;
use rsbinder::entry::{WireProfile, WireVersion};
use rsbinder::rpc::RpcServer;
use rsbinder::{BinderResult, Client, Endpoint, Interface, SIBinder, Strong, Uri};

const NAME: &str = "clatd_controller";

/// RpcConnectionHeader of a new session in version 2, and RpcOutgoingConnectionInit.
const HANDSHAKE: [u8; 24] = *b"\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0cci\0\0\0\0\0";

struct Nothing;

impl Interface for Nothing {}

#[allow(non_snake_case)] // AIDL's names
impl IClatdController for Nothing {
    fn clatdStart(&self, iface: &str, prefix: &str) -> BinderResult<String> {
        Ok(format!("{iface}{prefix}"))
    }
    fn clatdStop(&self, _: &str) -> BinderResult<()> {
        Ok(())
    }
    fn networkAddInterface(&self, _: i32, _: &str) -> BinderResult<()> {
        Ok(())
    }
    fn networkRemoveInterface(&self, _: i32, _: &str) -> BinderResult<()> {
        Ok(())
    }
    fn networkDestroy(&self, _: i32) -> BinderResult<()> {
        Ok(())
    }
    fn getStatus(&self) -> BinderResult<ControllerStatus> {
        Ok(ControllerStatus::default())
    }
    fn dumpText(&self, args: &[String]) -> BinderResult<String> {
        Ok(args.concat())
    }
    fn registerEventListener(&self, _: &Strong<dyn IClatdEventListener>) -> BinderResult<()> {
        Ok(())
    }
    fn unregisterEventListener(&self, _: &Strong<dyn IClatdEventListener>) -> BinderResult<()> {
        Ok(())
    }
}

struct Target {
    path: PathBuf,
    _gate: Gate,
}

static TARGET: OnceLock<Target> = OnceLock::new();

fn target() -> Target {
    let path = std::env::temp_dir().join(format!("clat-fuzz-{}", std::process::id()));
    let server = RpcServer::setup_unix_server(&path).expect("a socket");
    std::fs::remove_file(&path).expect("there");
    let listener = UnixListener::bind(&path).expect("a socket");
    server.set_android13plus(WireVersion::MAX.get());
    server.set_handshake_timeout(Some(Duration::from_millis(200)));
    server.add_service(NAME, BnClatdController::new_binder(Nothing).as_binder()).expect("a service");
    let uid = nix::unistd::geteuid().as_raw();
    Target { path, _gate: Gate::open(listener, server, &[uid]).expect("a thread") }
}

/// Says all of it, and listens until there is no more to hear.
fn say(target: &Target, bytes: &[&[u8]]) {
    let Ok(mut stream) = UnixStream::connect(&target.path) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    for bytes in bytes {
        if stream.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.take(1 << 20).read_to_end(&mut Vec::new());
}

fn call(target: &Target, code: u8, arguments: &[u8]) -> rsbinder::Result<()> {
    let uri = Uri::new(Endpoint::unix(&target.path))
        .with_wire(WireProfile::Android13Plus(WireVersion::MAX));
    let client = Client::open_with(uri, |options, _| {
        options.timeout = Some(Duration::from_secs(5));
    })?;
    let service: Strong<dyn IClatdController> =
        client.try_get(NAME)?.ok_or(rsbinder::StatusCode::NameNotFound)?;
    let binder: SIBinder = service.as_binder();
    let remote = binder.as_remote().ok_or(rsbinder::StatusCode::BadType)?;
    let mut data = remote.prepare_transact(true)?;
    for word in arguments.chunks(4) {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        data.write(&i32::from_le_bytes(bytes))?;
    }
    remote.submit_transact(u32::from(code % 16), &data, 0)?;
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(target);
    match data.split_first() {
        Some((choice, bytes)) if choice % 3 == 0 => say(target, &[bytes]),
        Some((choice, bytes)) if choice % 3 == 1 => say(target, &[&HANDSHAKE, bytes]),
        Some((_, [code, arguments @ ..])) => drop(call(target, *code, arguments)),
        _ => {}
    }
    // The gate still listens.
    let status = UnixStream::connect(&target.path).map(|_| ());
    assert!(status.is_ok(), "{status:?}");
});
