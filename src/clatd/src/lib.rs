//! The CLAT's translator daemon.
