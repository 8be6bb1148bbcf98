// SPDX-License-Identifier: Apache-2.0

//! The work of the natives. Error messages are AOSP's, word for word.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use clat_datapath::socket;
use clat_host::address::{is_usable_source, pick};
use clat_host::links::{has_address, source_towards};
use clat_host::{spawn, ClatdProcess, Fwmark, IfaceName, HAS_NETD};
use clat_sys::{errno_of, random_bytes};
use clat_tun::{Error as TunError, Options, Tun};
use clat_xlat::{Local, Prefix};
use nix::errno::Errno;

use crate::Failure;

/// Path of clatd in the module that has ClatCoordinator.
const ANDROIDS_CLATD: &str = "/apex/com.android.tethering/bin/for-system/clatd";

/// The environment variable with another path, for tests.
const CLATD_VARIABLE: &str = "CLATD";

/// The running clatds. A process id from Java is killed only if it is in here; removing an entry
/// stops the process.
static RUNNING: Mutex<BTreeMap<i32, ClatdProcess>> = Mutex::new(BTreeMap::new());

fn running() -> MutexGuard<'static, BTreeMap<i32, ClatdProcess>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The text of an errno, as from strerror(3).
fn strerror(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    // The standard library appends the number in parentheses.
    let end = text.rfind(" (os error").unwrap_or(text.len());
    text[..end].to_owned()
}

/// "step: strerror", the form of most of AOSP's messages.
fn failed(step: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::io(format!("{step}: {}", strerror(errno_of(&error))))
}

/// The first address from `v4addr` on, wrapping inside its prefix, that no interface has.
pub fn select_ipv4_address(v4addr: &str, prefixlen: i32) -> Result<Ipv4Addr, Failure> {
    let first: Ipv4Addr = v4addr
        .parse()
        .map_err(|_| Failure::io(format!("invalid address: {}", strerror(Errno::EINVAL))))?;
    let free = |addr| !has_address(addr).unwrap_or(true);
    u8::try_from(prefixlen)
        .ok()
        .and_then(|len| pick(first, len, free))
        .ok_or_else(|| Failure::io(format!("No free IPv4 address in {v4addr}/{prefixlen}")))
}

/// The IPv6 address of a CLAT on `iface`: checksum-neutral, in the /64 of the source address
/// towards the prefix.
pub fn generate_ipv6_address(
    iface: &str,
    v4: &str,
    prefix64: &str,
    mark: u32,
) -> Result<Ipv6Addr, Failure> {
    let v4: Ipv4Addr =
        v4.parse().map_err(|_| Failure::io(format!("Invalid clat v4 address {v4}")))?;
    let prefix = prefix64.parse().ok().and_then(|addr| Prefix::new(addr, 96).ok());
    let prefix = prefix.ok_or_else(|| Failure::io(format!("Invalid prefix {prefix64}")))?;
    let source = IfaceName::parse(iface)
        .ok()
        .and_then(|uplink| source_towards(&uplink, Fwmark::from_bits(mark), prefix.addr()).ok())
        .filter(|source| is_usable_source(*source, true))
        .ok_or_else(|| {
            Failure::io(format!("Unable to find global source address on {iface} for {prefix64}"))
        })?;
    let random = random_bytes().map_err(io::Error::from).map_err(failed("no random numbers"))?;
    Ok(Local::neutral(v4, source, &prefix, random).v6)
}

/// A TUN device that did not exist, as clatd wants it: non-blocking, with a virtio header.
pub fn create_tun_interface(tuniface: &str) -> Result<OwnedFd, Failure> {
    let tun = Tun::create(tuniface, Options::default()).map_err(|error| {
        let step = match error {
            TunError::Open(_) => "open tun device failed",
            _ => "ioctl(TUNSETIFF) failed",
        };
        Failure::io(format!("{step} ({})", strerror(error.errno())))
    })?;
    Ok(tun.into())
}

/// The path MTU to the IPv4 address `plat_suffix` (8.8.8.8 is 0x08080808) inside a /96.
pub fn detect_mtu(plat_subnet: &str, plat_suffix: u32, mark: u32) -> Result<i32, Failure> {
    let subnet: Ipv6Addr = plat_subnet
        .parse()
        .map_err(|_| Failure::io(format!("Invalid plat prefix address {plat_subnet}")))?;
    let to = Ipv6Addr::from_bits(subnet.to_bits() >> 32 << 32 | u128::from(plat_suffix));
    let mtu = socket::path_mtu(None, mark, to).map_err(failed("detect mtu failed"))?;
    i32::try_from(mtu).map_err(|e| Failure::io(format!("detect mtu failed: {e}")))
}

/// A packet socket that receives nothing until it is configured.
pub fn open_packet_socket() -> Result<OwnedFd, Failure> {
    socket::open_packet_socket().map_err(failed("packet socket failed"))
}

/// A raw IPv6 socket with the mark.
pub fn open_raw_socket6(mark: u32) -> Result<OwnedFd, Failure> {
    let fd = socket::open_raw_socket().map_err(failed("raw socket failed"))?;
    clat_sys::socket::set_mark(fd.as_fd(), mark)
        .map_err(|errno| failed("could not set mark on raw socket")(errno.into()))?;
    Ok(fd)
}

fn ipv6(text: &str) -> Result<Ipv6Addr, Failure> {
    text.parse().map_err(|_| Failure::io(format!("Invalid IPv6 address {text}")))
}

/// Makes `v6` an anycast address of the interface, for as long as the socket is open.
pub fn add_anycast_setsockopt(fd: BorrowedFd<'_>, v6: &str, ifindex: u32) -> Result<(), Failure> {
    socket::join_anycast(fd, ifindex, ipv6(v6)?)
        .map_err(failed("setsockopt IPV6_JOIN_ANYCAST failed"))
}

/// Binds the packet socket to the interface, for packets to `v6` and no others.
pub fn configure_packet_socket(fd: BorrowedFd<'_>, v6: &str, ifindex: u32) -> Result<(), Failure> {
    socket::configure_packet_socket(fd, ifindex, ipv6(v6)?)
        .map_err(failed("configure packet socket failed"))
}

/// The descriptors and arguments of a clatd.
pub struct Clatd<'a> {
    /// The TUN device.
    pub tun: BorrowedFd<'a>,
    /// The packet socket that it reads.
    pub read_sock: BorrowedFd<'a>,
    /// The raw socket that it writes.
    pub write_sock: BorrowedFd<'a>,
    /// The uplink's name.
    pub iface: &'a str,
    /// The NAT64 prefix, without its length.
    pub pfx96: &'a str,
    /// The CLAT's IPv4 address.
    pub v4: &'a str,
    /// The CLAT's IPv6 address.
    pub v6: &'a str,
}

impl Clatd<'_> {
    /// Its command line. clatd checks the arguments itself; none can be taken for an option, since
    /// each follows one.
    fn argv(&self) -> Vec<String> {
        let options = [
            ("-i", self.iface.to_owned()),
            ("-p", self.pfx96.to_owned()),
            ("-4", self.v4.to_owned()),
            ("-6", self.v6.to_owned()),
            ("-t", self.tun.as_raw_fd().to_string()),
            ("-r", self.read_sock.as_raw_fd().to_string()),
            ("-w", self.write_sock.as_raw_fd().to_string()),
            // The layout made by create_tun_interface; Android's policy forbids clatd to ask the
            // kernel.
            ("--tun-layout", "vnet".to_owned()),
        ];
        std::iter::once(format!("clatd-{}", self.iface))
            .chain(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]))
            .collect()
    }
}

/// Starts clatd with copies of the descriptors, and returns its process id.
pub fn start_clatd(clatd: &Clatd<'_>) -> Result<i32, Failure> {
    let kept = [clatd.tun, clatd.read_sock, clatd.write_sock];
    let child = spawn(&program(), &clatd.argv(), &kept).map_err(failed("posix_spawn failed"))?;
    let pid = child.pid();
    running().insert(pid, child);
    Ok(pid)
}

fn program() -> PathBuf {
    let named = if HAS_NETD { None } else { std::env::var_os(CLATD_VARIABLE) };
    named.map_or_else(|| Path::new(ANDROIDS_CLATD).to_owned(), PathBuf::from)
}

/// Ends a clatd (SIGTERM, a few seconds, SIGKILL) and reaps it. An unknown id is no error.
pub fn stop_clatd(pid: i32) -> Result<(), Failure> {
    if pid <= 0 {
        return Err(Failure::IllegalArgument("Invalid pid"));
    }
    // Drop it after the lock is released: ending a process can take seconds.
    let child = running().remove(&pid);
    match child {
        Some(child) => drop(child),
        None => log::error!("{pid} is no clatd of ours"),
    }
    Ok(())
}

/// The kernel's unique number of a socket (SO_COOKIE).
pub fn get_socket_cookie(fd: BorrowedFd<'_>) -> Result<u64, Failure> {
    socket::socket_cookie(fd).map_err(failed("get socket cookie failed"))
}
