// SPDX-License-Identifier: Apache-2.0

//! What a caller is told when the host fails.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A failure of the host, with the number that it amounts to. It travels as an [`io::Error`], whose
/// text is this one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// What was tried, or on what, if `detail` does not say so.
    pub operation: Option<String>,
    /// The number for programs.
    pub errno: Errno,
    /// What happened, and what helps.
    pub detail: String,
}

impl HostError {
    /// One whose `detail` says it all.
    pub fn because(errno: Errno, detail: impl Into<String>) -> io::Error {
        Self { operation: None, errno, detail: detail.into() }.into()
    }

    /// `error` with words in front that say what was tried, or on what; its number stays.
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

/// The number of an I/O error, also of a [`HostError`]; `EIO` where the system gave none.
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
