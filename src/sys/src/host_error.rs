// SPDX-License-Identifier: Apache-2.0

//! Errors of the host, with an errno and an explanation.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A failure of the host. It is passed as an [`io::Error`] with the same text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// What was tried, or on what; `None` if `detail` says so.
    pub operation: Option<String>,
    /// The errno for programs.
    pub errno: Errno,
    /// What happened, and what can be done about it.
    pub detail: String,
}

impl HostError {
    /// An error that `detail` explains completely.
    pub fn because(errno: Errno, detail: impl Into<String>) -> io::Error {
        Self { operation: None, errno, detail: detail.into() }.into()
    }

    /// `error` with its errno, and with `operation` in front of its text: what was tried, or on
    /// what.
    pub fn during(operation: impl fmt::Display, error: impl Into<io::Error>) -> io::Error {
        let error = error.into();
        let (errno, detail) = (errno_of(&error), error.to_string());
        Self { operation: Some(operation.to_string()), errno, detail }.into()
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(operation) = &self.operation {
            write!(f, "{operation}: ")?;
        }
        f.write_str(&self.detail)
    }
}

impl std::error::Error for HostError {}

impl From<HostError> for io::Error {
    fn from(error: HostError) -> Self {
        Self::new(Self::from(error.errno).kind(), error)
    }
}

/// The errno of an I/O error, also of a [`HostError`]; `EIO` if it has none.
#[must_use]
pub fn errno_of(error: &io::Error) -> Errno {
    let raw = error.raw_os_error().map(Errno::from_raw);
    let of_host = || Some(error.get_ref()?.downcast_ref::<HostError>()?.errno);
    raw.or_else(of_host).unwrap_or(Errno::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_explained_error_keeps_its_number() {
        let error = HostError::during("/dev/net/tun", Errno::EPERM);
        assert_eq!(errno_of(&error), Errno::EPERM);
        assert_eq!(error.to_string(), "/dev/net/tun: Operation not permitted (os error 1)");
        let error = HostError::during("clatd", error);
        assert_eq!(errno_of(&error), Errno::EPERM);
        assert_eq!(errno_of(&io::Error::other("no number")), Errno::EIO);
        let error = HostError::because(Errno::EBUSY, "another has it");
        assert_eq!((errno_of(&error), error.to_string()), (Errno::EBUSY, "another has it".into()));
    }
}
