// SPDX-License-Identifier: Apache-2.0

//! Conversions between Java and Rust: arguments, results, and errors as exceptions.

use std::any::Any;
use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::OnceLock;

use clat_natives::Failure;
use jni::errors::Error;
use jni::objects::{JFieldID, JObject, JString};

use crate::env::{self, Env, NativeEnv};

/// The field of java.io.FileDescriptor with the descriptor's number: on Android, and in OpenJDK.
const DESCRIPTOR_FIELDS: [&str; 2] = ["descriptor", "fd"];

/// Why a native throws.
#[derive(Debug)]
pub(crate) enum Thrown {
    /// The native's own error.
    Failure(Failure),
    /// `java.lang.IllegalStateException`: a panic, which is a bug of ours.
    Panic(String),
    /// A call into Java failed; usually its exception is pending.
    Java(Error),
}

impl Thrown {
    /// An IOException with the step that failed, and why.
    pub(crate) fn io(message: impl Into<String>) -> Self {
        Self::Failure(Failure::io(message))
    }

    fn class_and_message(&self) -> (&'static str, String) {
        match self {
            Self::Failure(failure) => {
                let class = match failure {
                    Failure::Io(_) => "java/io/IOException",
                    Failure::IllegalArgument(_) => "java/lang/IllegalArgumentException",
                    Failure::Null => "java/lang/NullPointerException",
                };
                (class, failure.to_string())
            }
            Self::Panic(message) => ("java/lang/IllegalStateException", message.clone()),
            Self::Java(error) => ("java/lang/IllegalStateException", error.to_string()),
        }
    }
}

impl fmt::Display for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (class, message) = self.class_and_message();
        write!(f, "{class}: {message}")
    }
}

impl From<Failure> for Thrown {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<Error> for Thrown {
    fn from(error: Error) -> Self {
        match error {
            Error::NullPtr(_) => Self::Failure(Failure::Null),
            error => Self::Java(error),
        }
    }
}

/// Runs a native's work. A panic must not unwind into Java's frames: it becomes an error here if
/// the program is built to unwind; otherwise (Soong builds for devices with `panic=abort`) it ends
/// the process.
pub(crate) fn caught<T>(work: impl FnOnce() -> Result<T, Thrown>) -> Result<T, Thrown> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(Thrown::Panic(text_of(panic.as_ref()))))
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_default())
}

/// Runs a native: returns its result, or `failed` with an exception pending.
pub(crate) fn native<'l, T: Copy>(
    mut env: NativeEnv<'l>,
    failed: T,
    work: impl FnOnce(&mut Env<'l>) -> Result<T, Thrown>,
) -> T {
    env::entered(&mut env, failed, |env| match caught(|| work(env)) {
        Ok(value) => value,
        Err(thrown) => {
            throw(env, &thrown);
            failed
        }
    })
}

fn throw(env: &mut Env<'_>, thrown: &Thrown) {
    // A pending exception says more, and Java cannot be called while it is pending.
    if env::has_exception(env) {
        return;
    }
    let (class, message) = thrown.class_and_message();
    if let Err(error) = env::throw_new(env, class, &message) {
        log::error!("cannot throw {thrown}: {error}");
    }
}

/// The text of a Java string.
pub(crate) fn text(env: &mut Env<'_>, string: &JString<'_>) -> Result<String, Thrown> {
    Ok(env::text(env, string)?)
}

/// The descriptor in a java.io.FileDescriptor; if it has none, an IOException with the message
/// `otherwise`.
pub(crate) fn descriptor<'o>(
    env: &mut Env<'_>,
    object: &'o JObject<'_>,
    otherwise: &'static str,
) -> Result<BorrowedFd<'o>, Thrown> {
    if env::is_null(object) {
        return Err(Thrown::io(otherwise));
    }
    let field = descriptor_field(env, object)?;
    let number: RawFd = env::int_field(env, object, field)?;
    if number < 0 {
        return Err(Thrown::io(otherwise));
    }
    // SAFETY: not -1. Java's object owns the descriptor and outlives the borrow; if another thread
    // closes it meanwhile, system calls fail with EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(number) })
}

/// The field of a FileDescriptor with its number; looked up once.
fn descriptor_field(env: &mut Env<'_>, object: &JObject<'_>) -> Result<JFieldID, Thrown> {
    static FIELD: OnceLock<JFieldID> = OnceLock::new();
    if let Some(field) = FIELD.get() {
        return Ok(*field);
    }
    for name in DESCRIPTOR_FIELDS {
        match env::int_field_id(env, object, name) {
            Ok(field) => return Ok(*FIELD.get_or_init(|| field)),
            Err(_) => env::clear_exception(env)?,
        }
    }
    Err(Thrown::io("this Java keeps no number in a FileDescriptor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_exception() {
        let thrown = caught::<()>(|| panic!("out of {}", "luck")).expect_err("it panicked");
        assert_eq!(thrown.to_string(), "java/lang/IllegalStateException: panicked: out of luck");
        let thrown = caught::<()>(|| panic!("bad luck")).expect_err("it panicked");
        assert_eq!(thrown.to_string(), "java/lang/IllegalStateException: panicked: bad luck");
        assert_eq!(caught(|| Ok(7)).ok(), Some(7));
    }
}
