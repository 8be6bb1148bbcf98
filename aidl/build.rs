// SPDX-License-Identifier: Apache-2.0

//! Generates the Rust side of `android/net/clat/*.aidl`.

use std::path::PathBuf;

const INTERFACE: &str = "android/net/clat/IClatdController.aidl";

fn main() {
    println!("cargo:rerun-if-changed=android");
    rsbinder_aidl::Builder::new()
        .source(PathBuf::from(INTERFACE))
        .include_dir(PathBuf::from("."))
        .output(PathBuf::from("aidl.rs"))
        .generate()
        .unwrap_or_else(|e| panic!("{INTERFACE}: {e}"));
}
