//! What crosses crates: the network lab.
