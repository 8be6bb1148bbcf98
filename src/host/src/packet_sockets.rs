// SPDX-License-Identifier: Apache-2.0

//! The packet sockets of a network namespace, as /proc lists them.

use std::fs;
use std::io;

/// A packet socket (packet(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketSocket {
    /// The EtherType that it receives; ETH_P_ALL (3) for all.
    pub protocol: u16,
    /// The index of its interface; 0 for all.
    pub iface: u32,
    /// Bytes of memory of the packets queued in it.
    pub queued: u64,
    /// Its user.
    pub user: u32,
    /// Its inode number.
    pub inode: u64,
}

/// The table of this thread's network namespace, for [`packet_sockets`].
///
/// # Errors
/// Those of reading /proc.
pub fn packet_socket_table() -> io::Result<String> {
    fs::read_to_string("/proc/thread-self/net/packet")
}

/// The sockets in a table: address, references, type, protocol, interface, whether it runs, bytes
/// queued, user, inode.
pub fn packet_sockets(table: &str) -> impl Iterator<Item = PacketSocket> + '_ {
    table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [_, _, _, protocol, iface, _, queued, user, inode, ..] = fields[..] else {
            return None;
        };
        Some(PacketSocket {
            protocol: u16::from_str_radix(protocol, 16).ok()?,
            iface: iface.parse().ok()?,
            queued: queued.parse().ok()?,
            user: user.parse().ok()?,
            inode: inode.parse().ok()?,
        })
    })
}
