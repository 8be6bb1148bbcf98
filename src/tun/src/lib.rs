//! TUN/TAP devices.
