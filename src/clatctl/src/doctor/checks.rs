// SPDX-License-Identifier: Apache-2.0

//! What a CLAT needs. The kernel is asked to do each thing; its version is not compared.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use clat_controller::binder_adapter::Transport;
use clat_sys::privileges::{Capabilities, Capability};
use nix::errno::Errno;
use nix::sys::socket::{socket, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn6};

use super::probe::{attempt, find, in_namespace, install, is_program, program, sysctl};
use super::{Answer, Check, Problem};
use crate::client::Client;

const IPROUTE: [&str; 4] = ["iproute2", "iproute", "iproute2", "iproute2"];
const TC: [&str; 4] = ["iproute2", "iproute-tc", "iproute2", "iproute2-tc"];

/// All checks, in the order in which to show them.
pub(super) fn all(transport: Option<&Transport>) -> Vec<Check> {
    const NEEDED: bool = true;
    const OPTIONAL: bool = false;
    vec![
        Check::new("kernel", "TUN", NEEDED, tun()),
        Check::new("kernel", "IPv6", NEEDED, ipv6()),
        Check::new("kernel", "raw IPv6 sockets", NEEDED, raw_ipv6()),
        Check::new("kernel", "AF_PACKET", NEEDED, packet()),
        Check::new("kernel", "seccomp", NEEDED, seccomp()),
        Check::new("kernel", "BPF", OPTIONAL, bpf()),
        Check::new("kernel", "clsact, cls_bpf", OPTIONAL, cls_bpf()),
        Check::new("tools", "clat_controller", NEEDED, own("clat_controller")),
        Check::new("tools", "clatd", NEEDED, own("clatd")),
        Check::new("tools", "ip", OPTIONAL, program("ip", IPROUTE)),
        Check::new("tools", "tc", OPTIONAL, program("tc", TC)),
        Check::new("sysctl", "IPv6 enabled", NEEDED, ipv6_enabled()),
        Check::new("sysctl", "router advertisements", OPTIONAL, accept_ra()),
        Check::new("permissions", "capabilities", NEEDED, capabilities()),
        Check::new("permissions", "user clat", OPTIONAL, user()),
        Check::new("permissions", "capability for BPF", OPTIONAL, bpf_capability()),
        Check::new("network", "controller", OPTIONAL, controller(transport)),
        Check::new("network", "IPv6 uplink", OPTIONAL, uplink()),
        Check::new("network", "IPv4 by CLATs", OPTIONAL, working(transport)),
    ]
}

/// A missing kernel module; loading it helps if it was built.
fn module(err: impl std::fmt::Display, module: &str) -> Problem {
    Problem::missing(err.to_string(), format!("modprobe {module}"))
}

/// A check that needs root.
fn not_root(err: impl std::fmt::Display) -> Problem {
    Problem::unknown(format!("cannot be asked: {err}"), with_rights())
}

/// How to get the missing permissions.
fn with_rights() -> &'static str {
    if nix::unistd::geteuid().is_root() {
        "docker run --cap-add=NET_ADMIN --cap-add=NET_RAW --device=/dev/net/tun …"
    } else {
        "sudo clatctl doctor"
    }
}

/// Opens the device, and creates a TUN device in a temporary namespace.
fn tun() -> Answer {
    const DEVICE: &str = "/dev/net/tun";
    if let Err(err) = File::options().read(true).write(true).open(DEVICE) {
        return Err(match err.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EACCES | Errno::EPERM) => not_root(err),
            Some(Errno::ENOENT) if misc_has_tun() => Problem::missing(
                format!("{DEVICE} is not there, though the kernel has TUN"),
                "mkdir -p /dev/net && mknod -m 666 /dev/net/tun c 10 200",
            ),
            _ => module(format!("{DEVICE}: {err}"), "tun"),
        });
    }
    let Some(ip) = find("ip") else { return Ok(DEVICE.into()) };
    match in_namespace(|| attempt(&ip, &["tuntap", "add", "mode", "tun", "name", "v4-doctor"])) {
        Ok(Ok(())) => Ok("a TUN device could be made".into()),
        Ok(Err(said)) => Err(module(said, "tun")),
        // A container may not be allowed to create namespaces; a CLAT does not need them.
        Err(_) => Ok(DEVICE.into()),
    }
}

/// Whether the kernel lists TUN's device number, even if /dev lacks it.
fn misc_has_tun() -> bool {
    let misc = fs::read_to_string("/proc/misc").unwrap_or_default();
    misc.lines().any(|line| line.split_whitespace().eq(["200", "tun"]))
}

fn ipv6() -> Answer {
    match socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
        Ok(_) => Ok("sockets".into()),
        Err(err) => Err(Problem::missing(
            format!("no IPv6 socket: {err}"),
            "modprobe ipv6  # or take ipv6.disable=1 off the kernel's command line",
        )),
    }
}

fn raw_ipv6() -> Answer {
    match socket(AddressFamily::Inet6, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw) {
        Ok(_) => Ok("sockets".into()),
        Err(err @ (Errno::EPERM | Errno::EACCES)) => Err(not_root(err)),
        Err(err) => Err(module(err, "ipv6")),
    }
}

fn packet() -> Answer {
    match socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None) {
        Ok(_) => Ok("sockets".into()),
        Err(err @ (Errno::EPERM | Errno::EACCES)) => Err(not_root(err)),
        Err(err) => Err(module(err, "af_packet")),
    }
}

fn seccomp() -> Answer {
    match sysctl("kernel.seccomp.actions_avail") {
        Some(actions) if actions.split(' ').any(|action| action == "kill_process") => {
            Ok("filters".into())
        }
        _ => Err(Problem::missing("no filters", "boot a kernel with CONFIG_SECCOMP_FILTER")),
    }
}

/// Whether the kernel supports BPF, and the filesystem for pinned objects is mounted.
fn bpf() -> Answer {
    const FOLDER: &str = "/sys/fs/bpf";
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known.lines().any(|line| line.split_whitespace().eq(["nodev", "bpf"])) {
        return Err(Problem::missing("no BPF", "boot a kernel with CONFIG_BPF_SYSCALL"));
    }
    match nix::sys::statfs::statfs(FOLDER) {
        Ok(stat) if stat.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC => {
            Ok(format!("{FOLDER} is mounted"))
        }
        _ => Err(Problem::missing(
            format!("{FOLDER} is not mounted"),
            format!("mount -t bpf bpf {FOLDER}"),
        )),
    }
}

/// Attaches a direct-action classifier in a temporary namespace.
fn cls_bpf() -> Answer {
    let Some(tc) = find("tc") else {
        return Err(Problem::unknown("cannot be asked without tc", install(TC)));
    };
    let attach = || {
        attempt(&tc, &["qdisc", "add", "dev", "lo", "clsact"])
            .map_err(|said| module(said, "sch_ingress"))?;
        // One instruction of classic BPF: return 0.
        let filter = "filter add dev lo ingress protocol ipv6 prio 4 bpf direct-action bytecode";
        let args: Vec<_> = filter.split(' ').chain(["1,6 0 0 0,"]).collect();
        attempt(&tc, &args).map_err(|said| module(said, "cls_bpf"))
    };
    match in_namespace(attach) {
        Ok(answer) => answer.map(|()| "a filter could be attached".into()),
        Err(err) => Err(not_root(err)),
    }
}

/// One of our programs: beside this one, or where packages install it.
fn own(program: &str) -> Answer {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(program)));
    let libexec = PathBuf::from("/usr/libexec/clat").join(program);
    match beside
        .into_iter()
        .chain([libexec])
        .find(|file| is_program(file))
        .or_else(|| find(program))
    {
        Some(path) => Ok(path.display().to_string()),
        None => Err(Problem::missing(
            "not found",
            format!(
                "cargo build --release && install -D -t /usr/local/bin target/release/{program}"
            ),
        )),
    }
}

fn ipv6_enabled() -> Answer {
    for which in ["all", "default"] {
        let name = format!("net.ipv6.conf.{which}.disable_ipv6");
        match sysctl(&name).as_deref() {
            Some("0") => {}
            Some(_) => {
                return Err(Problem::missing(format!("{name} is 1"), format!("sysctl -w {name}=0")))
            }
            None => return Err(Problem::missing(format!("no {name}"), "modprobe ipv6")),
        }
    }
    Ok("on".into())
}

/// An interface that forwards ignores router advertisements unless `accept_ra` is 2.
fn accept_ra() -> Answer {
    let folder = fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten();
    let mut names: Vec<_> =
        folder.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    for name in names.iter().filter(|name| !matches!(name.as_str(), "all" | "default" | "lo")) {
        // By the file's path: in a sysctl's name, the interface's dots would be separators.
        let value = |key| {
            let path = Path::new("/proc/sys/net/ipv6/conf").join(name).join(key);
            fs::read_to_string(path).unwrap_or_default().trim().to_owned()
        };
        if value("forwarding") == "1" && value("accept_ra") == "1" {
            let key = format!("net.ipv6.conf.{}.accept_ra", name.replace('.', "/"));
            let detail =
                format!("{name} forwards and so ignores them; as an uplink it needs accept_ra=2");
            return Err(Problem::missing(detail, format!("sysctl -w {key}=2")));
        }
    }
    Ok("accepted".into())
}

/// The capabilities that controller and clatd use before they drop them.
fn capabilities() -> Answer {
    let needed = [
        Capability::CAP_NET_ADMIN,
        Capability::CAP_NET_RAW,
        Capability::CAP_SETUID,
        Capability::CAP_SETGID,
    ];
    with_all(&needed, "all that the controller uses")
}

/// To load the programs; since Linux 5.8 there is a capability for that, and one of the verifier's
/// for programs that compare pointers.
fn bpf_capability() -> Answer {
    if has(Capability::CAP_SYS_ADMIN) {
        return Ok(Capability::CAP_SYS_ADMIN.to_string());
    }
    with_all(&[Capability::CAP_BPF, Capability::CAP_PERFMON], "CAP_BPF and CAP_PERFMON")
}

fn with_all(needed: &[Capability], good: &str) -> Answer {
    let lacking: Vec<_> =
        needed.iter().filter(|cap| !has(**cap)).map(Capability::to_string).collect();
    if lacking.is_empty() {
        return Ok(good.into());
    }
    Err(Problem::missing(format!("without {}", lacking.join(", ")), with_rights()))
}

fn has(capability: Capability) -> bool {
    Capabilities::read().is_ok_and(|have| have.effective.contains(capability))
}

/// The user that clatd runs as.
fn user() -> Answer {
    match nix::unistd::User::from_name("clat") {
        Ok(Some(user)) => Ok(format!("uid {}", user.uid)),
        Ok(None) => Err(Problem::missing(
            "there is none; clatd becomes nobody, if there is one",
            "useradd --system --no-create-home --shell /usr/sbin/nologin clat",
        )),
        Err(err) => Err(not_root(err)),
    }
}

/// A client of the controller.
fn connect(transport: Option<&Transport>) -> Result<Client, Problem> {
    let flag = match transport {
        None => String::new(),
        Some(Transport::Binder) => " --binder".to_owned(),
        Some(Transport::Rpc(socket)) => format!(" --socket {}", socket.display()),
    };
    Client::connect(transport)
        .map_err(|failure| Problem::missing(failure.message, format!("clat_controller{flag} &")))
}

/// Whether the controller answers.
fn controller(transport: Option<&Transport>) -> Answer {
    let client = connect(transport)?;
    match client.status() {
        Ok(status) => Ok(format!("pid {} answers", status.pid)),
        Err(failure) => Err(Problem::unknown(failure.message, with_rights())),
    }
}

/// Whether IPv4 works over the running CLATs, as the controller's probe of a host on the IPv4
/// internet says.
fn working(transport: Option<&Transport>) -> Answer {
    const LOOK: &str = "clatctl status  # and ask the network whether its NAT64 is there";
    const ASK: &str = "clat_controller --probe ADDR  # and a host that answers";
    let client = connect(transport).map_err(|problem| Problem { unknown: true, ..problem })?;
    let status = client.status();
    let status = status.map_err(|failure| Problem::unknown(failure.message, with_rights()))?;
    let of = |working| {
        let clats = status.clats.iter().filter(|clat| clat.working == working);
        clats.map(|clat| clat.iface.as_str()).collect::<Vec<_>>().join(", ")
    };
    match (of("no"), of("yes")) {
        (no, _) if !no.is_empty() => Err(Problem::missing(format!("no answer by {no}"), LOOK)),
        (_, yes) if !yes.is_empty() => Ok(yes),
        _ => Err(Problem::unknown("nobody was asked, or no CLAT runs", ASK)),
    }
}

/// An interface with a global or unique local IPv6 address, as an uplink needs.
fn uplink() -> Answer {
    let addresses = nix::ifaddrs::getifaddrs().map_err(|err| module(err, "ipv6"))?;
    let mut names: Vec<_> = addresses
        .filter(|interface| {
            let v6 = interface
                .address
                .as_ref()
                .and_then(|address| address.as_sockaddr_in6().map(SockaddrIn6::ip));
            // 2000::/3 and fc00::/7: neither link-local nor loopback.
            let top = v6.map(|v6| v6.segments()[0]);
            top.is_some_and(|top| top & 0xe000 == 0x2000 || top & 0xfe00 == 0xfc00)
        })
        .map(|interface| interface.interface_name)
        .collect();
    names.dedup();
    if names.is_empty() {
        Err(Problem::missing(
            "no interface has a global IPv6 address",
            "ip -6 address show scope global  # then ask the network for one",
        ))
    } else {
        Ok(names.join(", "))
    }
}
