// SPDX-License-Identifier: Apache-2.0

//! Drops what the loop does not need: user, groups, capabilities, and most system calls.

use std::os::fd::RawFd;

use anyhow::{bail, Context};
use clat_sandbox::{become_user, become_user_with, drop_privileges, Capability, Filter};
use nix::libc::{self, c_int};
use nix::unistd::{getegid, geteuid, Gid, Uid, User};

/// The users to run as, in order of preference: Android's clat (AID_CLAT, 1029), or the user
/// without files.
const USERS: [&str; 2] = ["clat", "nobody"];

/// Not in `libc` for every C library (linux/prctl.h).
const PR_SET_VMA: c_int = 0x5356_4d41;

/// Becomes the daemon's user, with the capabilities needed to open sockets. Then the sockets'
/// traffic is counted, and matched by firewall rules, as that user's.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub fn become_user_for_sockets() -> anyhow::Result<()> {
    let (uid, gid) = target()?;
    become_user_with(&[Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW], uid, gid)
}

/// Drops user, groups and capabilities, also for threads created later.
///
/// # Errors
/// The step that failed; the caller must not go on.
pub fn drop_all() -> anyhow::Result<()> {
    drop_privileges(|| {
        let (uid, gid) = target()?;
        become_user(uid, gid)
    })?;
    if geteuid().is_root() {
        bail!("still root after becoming another");
    }
    Ok(())
}

fn target() -> anyhow::Result<(Uid, Gid)> {
    if !geteuid().is_root() {
        // clatd may be a set-user-ID program, as in Android's module. Then the effective user
        // becomes the real user, too.
        return Ok((geteuid(), getegid()));
    }
    for name in USERS {
        if let Some(user) =
            User::from_name(name).with_context(|| format!("cannot look up user {name}"))?
        {
            return Ok((user.uid, user.gid));
        }
    }
    bail!("there is neither a user clat nor a user nobody; create one with `useradd -r clat`")
}

/// Filters the system calls of all threads, as the last step before packets are forwarded. Only on
/// the sockets `addressed` may a call name a destination; all others send to where they are bound
/// or connected.
///
/// # Errors
/// The kernel's error; the caller must not go on.
pub fn filter_all_threads(addressed: &[RawFd]) -> anyhow::Result<()> {
    Filter::new(&[
        libc::SYS_recvmmsg,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_ppoll,
        // glibc's allocator asks for the number of processors when a second thread first allocates.
        libc::SYS_sched_getaffinity,
    ])?
    // Argument 4 is the destination.
    .only_null(libc::SYS_sendto, 4)?
    .only(libc::SYS_sendto, 0, addressed)?
    // In debug builds, the standard library checks a descriptor before closing it.
    .only(libc::SYS_fcntl, 1, &[libc::F_GETFD])?
    // Android's allocator names its mappings.
    .only(libc::SYS_prctl, 0, &[PR_SET_VMA])?
    .apply()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::net::{Ipv6Addr, SocketAddrV6};
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};
    use std::sync::mpsc;
    use std::thread;

    use clat_datapath::socket::{lock_filter, NeighbourSocket, RawSocket};
    use clat_sandbox::attempt;
    use nix::net::if_::if_nametoindex;
    use nix::sys::signal::{kill, raise, Signal};
    use nix::sys::socket::{connect, sendmmsg, sendmsg, MsgFlags, MultiHeaders, SockaddrIn6};
    use nix::unistd::getppid;

    use super::*;

    /// Runs the test below in a child process, in the sandbox, to try something.
    fn attempt(what: &str) -> ExitStatus {
        attempt::attempt("privileges::tests::attempts_from_inside", what).unwrap().status
    }

    /// The child process of the tests below.
    #[test]
    fn attempts_from_inside() {
        let Some(what) = attempt::attempted() else { return };
        let (parent, lo) = (getppid(), if_nametoindex("lo").unwrap());
        let socket = NeighbourSocket::open(lo, Ipv6Addr::LOCALHOST).unwrap();
        lock_filter(&socket).unwrap();
        let [mut raw, handed] = [(), ()].map(|()| RawSocket::open("lo", 0).unwrap());
        raw.connect(Ipv6Addr::LOCALHOST);
        assert!(raw.is_connected());
        // An IPv6 header without payload.
        let mut packet = [[0x60, 0, 0, 0, 0, 0, 59, 64, 0, 0].as_slice(), &[0; 30]].concat();
        packet[39] = 1;
        let elsewhere = SockaddrIn6::from(SocketAddrV6::new("fe80::1".parse().unwrap(), 0, 0, lo));
        let open = clat_sys::socket::open;
        let fd = socket.as_fd();
        let (go, told) = mpsc::channel();
        let thread = thread::spawn(move || told.recv().is_ok() && File::open("/proc/self").is_ok());
        drop_all().unwrap();
        filter_all_threads(&[handed.as_fd().as_raw_fd()]).unwrap();
        let done = match what.as_str() {
            // Allowed.
            "nothing" => true,
            "abort" => raise(Signal::SIGABRT).is_ok(),
            "own-address" => socket.own_address().is_ok(),
            "send-frame" => socket.send(&packet, [0; 6]).is_ok(),
            "send" => raw.send(&packet).is_ok(),
            "send-handed" => handed.send(&packet).is_ok(),
            // Not allowed.
            "send-on" => raw.send_on(&packet, lo).is_ok(),
            "sendmsg" => {
                let packet = [IoSlice::new(&packet)];
                let raw = raw.as_fd().as_raw_fd();
                sendmsg(raw, &packet, &[], MsgFlags::empty(), Some(&elsewhere)).is_ok()
            }
            "sendmmsg" => {
                let packet = [[IoSlice::new(&packet)]];
                let raw = raw.as_fd().as_raw_fd();
                let mut headers = MultiHeaders::preallocate(1, None);
                let (to, flags) = ([Some(elsewhere)], MsgFlags::empty());
                sendmmsg(raw, &mut headers, &packet, to, [], flags).is_ok()
            }
            "connect" => connect(raw.as_fd().as_raw_fd(), &elsewhere).is_ok(),
            "mark" => clat_sys::socket::set_mark(raw.as_fd(), 1).is_ok(),
            "tgkill" => clat_sys::tgkill(parent, parent, Signal::SIGUSR1).is_ok(),
            "bind" => clat_sys::packet_socket::bind(fd, lo, 3).is_ok(),
            "detach-filter" => {
                let (level, name) = (libc::SOL_SOCKET, libc::SO_DETACH_FILTER);
                clat_sys::socket::set_int(fd, level, name, 0).is_ok()
            }
            "netlink-socket" => open(libc::AF_NETLINK, libc::SOCK_RAW, 16).is_ok(),
            "route-socket" => open(libc::AF_NETLINK, libc::SOCK_RAW, 0).is_ok(),
            "packet-socket" => open(libc::AF_PACKET, libc::SOCK_RAW, 0).is_ok(),
            "udp-socket" => open(libc::AF_INET, libc::SOCK_DGRAM, 0).is_ok(),
            "kill" => kill(parent, Signal::SIGUSR1).is_ok(),
            "open" => File::open("/etc/hostname").is_ok(),
            "open-by-thread" => go.send(()).is_ok() && thread.join().unwrap(),
            "run" => Command::new("true").status().is_ok(),
            "root" => nix::unistd::setuid(Uid::from_raw(0)).is_ok(),
            "dumpable" => clat_sys::privileges::set_dumpable(true).is_ok(),
            other => panic!("{other}"),
        };
        // Do not return to the test harness inside the sandbox.
        std::process::exit(if done { 0 } else { 3 });
    }

    /// Whether this test may drop privileges as the daemon does.
    fn is_root() -> bool {
        let root = geteuid().is_root();
        assert!(root || std::env::var_os("CI").is_none(), "needs root");
        root
    }

    #[test]
    fn what_the_loop_needs_is_left() {
        if !is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        for what in ["nothing", "own-address", "send-frame", "send", "send-handed"] {
            assert!(attempt(what).success(), "{what}: {:?}", attempt(what));
        }
        assert_eq!(attempt("abort").signal(), Some(libc::SIGABRT));
    }

    /// Each of these kills the process before the call returns.
    #[test]
    fn what_is_forbidden_ends_the_process() {
        if !is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        for what in [
            "send-on",
            "sendmsg",
            "sendmmsg",
            "connect",
            "mark",
            "tgkill",
            "bind",
            "detach-filter",
            "netlink-socket",
            "route-socket",
            "packet-socket",
            "udp-socket",
            "kill",
            "open",
            "open-by-thread",
            "run",
            "root",
            "dumpable",
        ] {
            let status = attempt(what);
            assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status:?}");
        }
    }
}
