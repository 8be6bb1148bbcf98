//! The guest is smoltcp.
