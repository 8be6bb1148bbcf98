// SPDX-License-Identifier: Apache-2.0

//! `libclat_jni.so`: the natives of `com.android.server.connectivity.ClatCoordinator`, with which
//! Android's ConnectivityService runs CLATs itself (AOSP, packages/modules/Connectivity,
//! service/jni).
//!
//! Names, signatures, checks and exceptions are AOSP's. `clat_natives` does the work; `natives` has
//! the entries that Java calls, `java` handles Java's values and exceptions, `env` has what differs
//! between releases of the crate jni. In com.android.tethering, which does not allow that crate,
//! AOSP's own C++ calls `clat_natives` instead.

#[cfg_attr(not(feature = "jni_0_22"), path = "env_0_21.rs")]
#[cfg_attr(feature = "jni_0_22", path = "env_0_22.rs")]
mod env;
mod java;
mod natives;

use std::ffi::c_void;

use jni::errors::Error;
use jni::sys::{jint, JavaVM, JNI_ERR, JNI_VERSION_1_6};

use crate::env::Env;

/// The names that the class may have: as Android's build renames it inside the module, and as in
/// the source.
const CLASSES: [&str; 2] = [
    "android/net/connectivity/com/android/server/connectivity/ClatCoordinator",
    "com/android/server/connectivity/ClatCoordinator",
];

/// A native as Java declares it: a static method, its signature, and our function.
struct Native {
    name: &'static str,
    signature: &'static str,
    function: *mut c_void,
}

/// Registers the natives; called by the JVM when the library is loaded (JNI specification,
/// "Invocation API").
#[no_mangle]
pub extern "system" fn JNI_OnLoad(vm: *mut JavaVM, _reserved: *mut c_void) -> jint {
    clat_natives::init_log();
    java::caught(|| Ok(env::loaded(vm, register)?)).unwrap_or_else(|error| {
        log::error!("cannot register the natives of ClatCoordinator: {error}");
        JNI_ERR
    })
}

/// Registers the natives of the class that the caller's class loader has.
fn register(env: &mut Env<'_>) -> Result<jint, Error> {
    let mut found = false;
    for name in CLASSES {
        match env::find_class(env, name) {
            Ok(class) => {
                env::register(env, &class, &natives::table())?;
                found = true;
            }
            Err(_) => env::clear_exception(env)?,
        }
    }
    if found {
        Ok(JNI_VERSION_1_6)
    } else {
        log::error!("there is neither a class {} nor a class {}", CLASSES[0], CLASSES[1]);
        Ok(JNI_ERR)
    }
}
