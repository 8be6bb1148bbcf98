// SPDX-License-Identifier: Apache-2.0

//! `libclat_jni.so`: the natives of `com.android.server.connectivity.ClatCoordinator`, by which
//! Android's ConnectivityService runs CLATs itself (AOSP, packages/modules/Connectivity,
//! service/jni).
//!
//! Names, signatures, checks and exceptions are AOSP's. The work is `clat_natives`'; `natives` is
//! what Java sees of it, `java` is all that touches Java's values and exceptions. Inside
//! com.android.tethering, where the crate jni may not enter, AOSP's own C++ calls `clat_natives`
//! instead.

mod java;
mod natives;

use std::ffi::c_void;

use jni::errors::Error;
use jni::sys::{jint, JNI_ERR, JNI_VERSION_1_6};
use jni::{JNIEnv, JavaVM};

/// Under which names the class may be there: as Android's build renames it inside the module, and
/// as it is in the source.
const CLASSES: [&str; 2] = [
    "android/net/connectivity/com/android/server/connectivity/ClatCoordinator",
    "com/android/server/connectivity/ClatCoordinator",
];

/// Registers the natives; called by the JVM when the library is loaded (JNI specification,
/// "Invocation API").
#[no_mangle]
pub extern "system" fn JNI_OnLoad(vm: JavaVM, _reserved: *mut c_void) -> jint {
    clat_natives::init_log();
    java::caught(|| Ok(register(&mut vm.get_env()?)?)).unwrap_or_else(|error| {
        log::error!("cannot register the natives of ClatCoordinator: {error}");
        JNI_ERR
    })
}

/// Registers the natives of whichever class the loader of our caller has.
fn register(env: &mut JNIEnv<'_>) -> Result<jint, Error> {
    let mut found = false;
    for name in CLASSES {
        match env.find_class(name) {
            Ok(class) => {
                env.register_native_methods(&class, &natives::table())?;
                found = true;
            }
            Err(_) => env.exception_clear()?,
        }
    }
    if found {
        Ok(JNI_VERSION_1_6)
    } else {
        log::error!("there is neither a class {} nor a class {}", CLASSES[0], CLASSES[1]);
        Ok(JNI_ERR)
    }
}
