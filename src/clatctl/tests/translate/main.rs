// SPDX-License-Identifier: Apache-2.0

//! `clatctl translate`, run as a program on capture files.
#![allow(clippy::unwrap_used)] // helpers are tests too

mod files;
mod siit;
mod support;
