//! The command line of clat.
