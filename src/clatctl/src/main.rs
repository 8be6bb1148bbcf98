// SPDX-License-Identifier: Apache-2.0

//! `clatctl`: see the library.

fn main() -> std::process::ExitCode {
    clatctl::run()
}
