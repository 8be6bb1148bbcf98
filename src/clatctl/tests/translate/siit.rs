//! Whole packets through the whole program.
