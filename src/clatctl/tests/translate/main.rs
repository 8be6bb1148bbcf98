//! `clatctl translate`, run as a program on capture files.

mod files;
mod siit;
mod support;
