// SPDX-License-Identifier: Apache-2.0

//! The binder interface `android.net.clat`, under the paths that Soong's `aidl_interface` gives it:
//! `android_net_clat_aidl::aidl::android::net::clat::IClatdController`.

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/aidl.rs"));
}

/// Root of the generated packages.
pub mod aidl {
    pub use crate::generated::*;
}
