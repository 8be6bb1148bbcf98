// SPDX-License-Identifier: Apache-2.0

//! Whether a clatd handles what arrives on its uplink, by /proc.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::libc;

use crate::packet_sockets::{packet_socket_table, packet_sockets};

/// Whether a clatd handles the packets of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whether packets are queued for it.
    pub packets_wait: bool,
    /// A counter that grows while it works.
    pub done: u64,
}

/// Whether the process `pid` handles what arrives on the interface `uplink`: whether packets are
/// queued in its user's packet sockets there, and the processor time that it has used, in clock
/// ticks. The kernel does not count what is read from a packet socket.
///
/// # Errors
/// Those of reading /proc; EINVAL where it is not as proc(5) has it.
pub fn progress(pid: i32, uplink: u32) -> io::Result<Progress> {
    let read = |path: &str| fs::read_to_string(path);
    let sockets = packet_socket_table()?;
    let user = user_of(&read(&format!("/proc/{pid}/status"))?).ok_or(Errno::EINVAL)?;
    let done = ticks_of(&read(&format!("/proc/{pid}/stat"))?).ok_or(Errno::EINVAL)?;
    Ok(Progress { packets_wait: packets_wait(&sockets, uplink, user), done })
}

/// Whether packets are queued in an IPv6 packet socket of `user` on the interface `index`.
fn packets_wait(table: &str, index: u32, user: u32) -> bool {
    let mut sockets = packet_sockets(table);
    sockets.any(|socket| {
        (i32::from(socket.protocol), socket.iface, socket.user) == (libc::ETH_P_IPV6, index, user)
            && socket.queued > 0
    })
}

/// The effective user, by /proc/PID/status.
fn user_of(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

/// User and system time, by /proc/PID/stat, whose second field may contain anything.
fn ticks_of(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    // The third is the first of these; utime is the 14th.
    let mut times = fields.split(' ').skip(14 - 3).map(|field| field.parse::<u64>().ok());
    Some(times.next()?? + times.next()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits() {
        let sockets = "sk               RefCnt Type Proto  Iface R Rmem   User   Inode
ffff8d1a03c8d000 3      3    86dd   5     1 0      1029   21034
ffff8d1a03c8d800 3      3    86dd   7     1 2304   1029   21035
ffff8d1a03c8e000 3      3    0003   9     1 2304   1029   21036
ffff8d1a03c8e800 3      3    86dd   11    1 2304   0      21037
";
        let waiting: Vec<_> = (0..20).filter(|index| packets_wait(sockets, *index, 1029)).collect();
        assert_eq!(waiting, [7]);
    }

    #[test]
    fn of_this_process() {
        let own = std::process::id().try_into().expect("a process id");
        let before = progress(own, u32::MAX).expect("readable");
        assert!(!before.packets_wait);
        while progress(own, u32::MAX).expect("readable").done == before.done {}
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14";
        assert_eq!((ticks_of(stat), ticks_of("7 (a) S 1")), (Some(11 + 12), None));
    }
}
