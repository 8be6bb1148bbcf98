// SPDX-License-Identifier: Apache-2.0

//! The helper process: it enters or makes the guest's namespaces, makes the devices there, passes
//! them to the parent, and runs the command.
//!
//! It runs this program again, since platd stays in its own namespaces.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clap::Args;
use clat_tun::{handover, Options, Tun};
use nix::errno::Errno;
use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::mount::{mount, MsFlags};
use nix::net::if_::if_nametoindex;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sched::{setns, unshare, CloneFlags};
use nix::sys::prctl;
use nix::sys::signal::{kill, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::{getegid, geteuid, Pid};

use crate::resolv_conf::{self, Watch};
use crate::settings::Settings;
use crate::{clat, netlink};

/// How long to wait for the autoconfiguration.
const CONFIGURATION_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of the helper.
#[derive(Args, Debug)]
pub struct NetnsHelper {
    /// The socket to the parent.
    #[arg(long)]
    pub control: RawFd,
    /// The namespace, by process id or file; else new ones are made.
    #[arg(long)]
    pub netns: Option<String>,
    /// The TAP device.
    #[arg(long)]
    pub ifname: String,
    /// Its MTU.
    #[arg(long)]
    pub mtu: u16,
    /// The MTU of the CLAT's device; else there is no CLAT.
    #[arg(long)]
    pub clat_mtu: Option<u16>,
    /// Without virtio headers.
    #[arg(long)]
    pub plain: bool,
    /// Use the network's DNS server; else the host's resolv.conf stays.
    #[arg(long)]
    pub dns: bool,
    /// Search domains; else the host's.
    #[arg(long)]
    pub search: Vec<String>,
    /// The IPv4 address of the TAP device.
    #[arg(long, requires = "router4")]
    pub v4: Option<Ipv4Addr>,
    /// The IPv4 router.
    #[arg(long)]
    pub router4: Option<Ipv4Addr>,
    /// Make a PID namespace, so that no process outlives the command.
    #[arg(long)]
    pub pid_ns: bool,
    /// What to run.
    #[arg(trailing_var_arg = true)]
    pub command: Vec<String>,
}

impl NetnsHelper {
    /// Runs the helper.
    ///
    /// # Errors
    /// The step that failed.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        // The command must not inherit it.
        fcntl(self.control, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("--control")?;
        match &self.netns {
            Some(netns) => enter(netns)?,
            None => make(self.pid_ns)?,
        }
        let tap = Tun::create_tap(&self.ifname, !self.plain)?;
        let clat = match self.clat_mtu {
            Some(_) => Some(Tun::create(&self.clat_name(), Options::default())?),
            None => None,
        };
        self.configure()?;
        let fds: Vec<BorrowedFd<'_>> =
            std::iter::once(tap.as_fd()).chain(clat.as_ref().map(AsFd::as_fd)).collect();
        handover::send(self.control, b"d", &fds).context("cannot hand the devices over")?;
        if self.command.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        // The devices are closed when platd ends, not when this process does.
        drop((tap, clat));
        let prefix = self.wait_until_configured()?;
        let covers = self.dns.then(|| Settings { prefix, ..Settings::default() }.dns());
        let covers = covers.and_then(|dns| {
            let covers = self.set_resolver(dns);
            covers
                .inspect_err(|e| {
                    log::warn!("the command has the host's {}: {e:#}", resolv_conf::PATH);
                })
                .ok()
        });
        let control = clat_sys::adopt(self.control).context("--control")?;
        let network = Network { control, covers };
        let [program, arguments @ ..] = &self.command[..] else { bail!("no command") };
        if !self.pid_ns {
            return supervise(Command::new(program).args(arguments), Some(&network));
        }
        let mut init = Command::new(own_program());
        supervise(init.args(["__init", "--"]).args(&self.command), Some(&network))
    }

    fn clat_name(&self) -> String {
        let mut name = format!("v4-{}", self.ifname);
        name.truncate(15);
        name
    }

    fn configure(&self) -> anyhow::Result<()> {
        let conf = format!("/proc/sys/net/ipv6/conf/{}", self.ifname);
        // Addresses are by EUI-64, of a random Ethernet address: no duplicates are possible, and no
        // delay is needed.
        for (name, value) in [
            ("addr_gen_mode", "0"),
            ("disable_ipv6", "0"),
            ("accept_ra", "2"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("router_solicitation_delay", "0"),
        ] {
            if let Err(e) = fs::write(format!("{conf}/{name}"), value) {
                log::debug!("{conf}/{name}: {e}");
            }
        }
        netlink::up("lo", None).context("cannot bring lo up")?;
        netlink::up(&self.ifname, Some(self.mtu.into()))
            .with_context(|| format!("cannot bring {} up", self.ifname))?;
        if let Some((v4, router)) = self.v4.zip(self.router4) {
            netlink::configure_via(&self.ifname, v4, router)
                .with_context(|| format!("cannot give {} an IPv4 address", self.ifname))?;
        }
        if let Some(mtu) = self.clat_mtu {
            let name = self.clat_name();
            let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
            netlink::up(&name, Some(mtu.into()))
                .and_then(|()| netlink::configure(&name, clat::V4))
                .with_context(|| format!("cannot configure {name}"))?;
        }
        Ok(())
    }

    /// Waits until router advertisements have provided an address and a route, and returns the
    /// /64 of the address.
    fn wait_until_configured(&self) -> anyhow::Result<Ipv6Addr> {
        let index = if_nametoindex(self.ifname.as_str())?;
        let until = Instant::now() + CONFIGURATION_TIMEOUT;
        loop {
            if let Some(prefix) = configured_prefix(index) {
                return Ok(prefix);
            }
            if Instant::now() >= until {
                bail!("{} has not configured itself by router advertisements", self.ifname);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Makes the network's DNS server the only one that programs find.
    fn set_resolver(&self, dns: Ipv6Addr) -> anyhow::Result<Covers> {
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .context("cannot keep mounts to ourselves")?;
        // Read before any file is covered.
        let mut texts = vec![(resolv_conf::PATH, resolv_conf::with_server(dns, &self.search))];
        // The host's cache and resolver services have sockets in the file system, and know nothing
        // of this network.
        if let Ok(hosts) = fs::read_to_string(NSSWITCH_CONF) {
            texts.push((NSSWITCH_CONF, nsswitch_conf(&hosts)));
        }
        for folder in CACHES {
            if Path::new(folder).is_dir() {
                mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), none)
                    .with_context(|| format!("cannot cover {folder}"))?;
            }
        }
        // Fails at the user's inotify limits; covers are then not renewed.
        let watch = Watch::new(&[resolv_conf::PATH, NSSWITCH_CONF]).ok();
        let covers = Covers { texts, watch };
        covers.renew()?;
        Ok(covers)
    }
}

/// Files of the host covered by others for the command.
struct Covers {
    texts: Vec<(&'static str, String)>,
    watch: Option<Watch>,
}

impl Covers {
    /// Covers files again: when the host renames a file over one, the kernel removes the mount on
    /// it (rename(2) in another mount namespace).
    fn renew(&self) -> anyhow::Result<()> {
        self.watch.as_ref().map_or(Ok(()), Watch::renew)?;
        for (path, text) in &self.texts {
            if fs::read(path).is_ok_and(|now| now == text.as_bytes()) {
                continue;
            }
            cover(path, text)?;
        }
        Ok(())
    }
}

const NSSWITCH_CONF: &str = "/etc/nsswitch.conf";
/// The directory of nscd's socket.
const CACHES: [&str; 1] = ["/run/nscd"];

/// Mounts a file with this text over another.
fn cover(path: &str, text: &str) -> anyhow::Result<()> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let target = fs::canonicalize(path).with_context(|| path.to_owned())?;
    let none: Option<&str> = None;
    mount(Some(file.path()), &target, none, MsFlags::MS_BIND, none)
        .with_context(|| format!("cannot mount over {}", target.display()))
}

/// The host's nsswitch.conf(5) without sources that ask services of the host for host names; DNS is
/// asked instead.
fn nsswitch_conf(hosts: &str) -> String {
    const SERVICES: [&str; 4] = ["resolve", "mymachines", "libvirt", "libvirt_guest"];
    let mut text = String::new();
    for line in hosts.lines() {
        let Some(sources) = line.trim_start().strip_prefix("hosts:") else {
            text += line;
            text += "\n";
            continue;
        };
        text += "hosts:";
        let mut has_dns = false;
        let mut skipped = false;
        for word in sources.split_whitespace() {
            // An action belongs to the source before it.
            skipped = SERVICES.contains(&word) || (skipped && word.starts_with('['));
            if !skipped {
                has_dns |= word == "dns";
                text += " ";
                text += word;
            }
        }
        text += if has_dns { "\n" } else { " dns\n" };
    }
    text
}

/// The first process of a PID namespace; the kernel kills all others there when it ends.
#[derive(Args, Debug)]
pub struct Init {
    /// What to run.
    #[arg(trailing_var_arg = true, required = true)]
    pub command: Vec<String>,
}

impl Init {
    /// Runs it.
    ///
    /// # Errors
    /// The step that failed.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        // It must not outlive its parent.
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let none: Option<&str> = None;
        if let Err(errno) = mount(Some("proc"), "/proc", Some("proc"), flags, none) {
            // The kernel refuses a new /proc in a container that covers parts of its own.
            log::warn!(
                "the command sees the host's /proc ({}); --no-pid-ns may serve",
                errno.desc()
            );
        }
        let [program, arguments @ ..] = &self.command[..] else { bail!("no command") };
        supervise(Command::new(program).args(arguments), None)
    }
}

/// Resources of a running command.
struct Network {
    /// Closed when platd ends.
    control: OwnedFd,
    covers: Option<Covers>,
}

/// Runs a command until it or its network ends. Also reaps other children of this process.
fn supervise(command: &mut Command, network: Option<&Network>) -> anyhow::Result<ExitCode> {
    // Before signals are blocked and their descriptor is opened, which the command would inherit.
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            log::error!("cannot run {}: {e}", command.get_program().to_string_lossy());
            // As shells report it.
            let is_missing = e.kind() == std::io::ErrorKind::NotFound;
            return Ok(ExitCode::from(if is_missing { 127 } else { 126 }));
        }
    };
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    let mask = signals();
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let control = network.map(|network| network.control.as_fd());
    let covers = network.and_then(|network| network.covers.as_ref());
    loop {
        loop {
            let code = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(ended, code)) if ended == pid => code,
                Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => 128 + signal as i32,
                Ok(WaitStatus::StillAlive) | Err(_) => break,
                Ok(_) => continue,
            };
            return Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(1)));
        }
        let changes = covers.and_then(|covers| covers.watch.as_ref()).map(AsFd::as_fd);
        if wait(control, [Some(signals.as_fd()), changes].into_iter().flatten())? {
            let _ = child.kill();
            let _ = child.wait();
            bail!("the network has ended");
        }
        if let Some(Err(e)) = covers.map(Covers::renew) {
            log::debug!("cannot cover a file yet: {e:#}");
        }
        if let Some(signal) = signals.read_signal()? {
            if i32::try_from(signal.ssi_signo) == Ok(nix::libc::SIGTERM) {
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
    }
}

/// The signals that both processes handle. An interrupt from the terminal is for the command.
pub(crate) fn signals() -> nix::sys::signal::SigSet {
    let mut mask = nix::sys::signal::SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask
}

/// Waits until the parent has closed the other end of `control` (`true`), or another descriptor is
/// readable. The parent sends nothing.
pub(crate) fn wait<'fd>(
    control: Option<BorrowedFd<'fd>>,
    others: impl IntoIterator<Item = BorrowedFd<'fd>>,
) -> nix::Result<bool> {
    let all = control.into_iter().chain(others);
    let mut fds: Vec<_> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    loop {
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            done => return done.map(|_| control.is_some() && fds[0].any().unwrap_or(true)),
        }
    }
}

/// Makes new namespaces, in which this process is root. The new PID namespace, if any, contains
/// only children.
fn make(pid_ns: bool) -> anyhow::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    let mut flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWPID, pid_ns);
    unshare(flags).context(
        "cannot make namespaces; an administrator may have to allow unprivileged ones \
             (sysctl kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns)",
    )?;
    fs::write("/proc/self/setgroups", "deny").context("cannot deny setgroups")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).context("cannot map the user")?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).context("cannot map the group")?;
    Ok(())
}

/// Enters the user and network namespaces of a process, or the network namespace of a file.
fn enter(target: &str) -> anyhow::Result<()> {
    let (user, net) = match target.parse::<i32>() {
        Ok(pid) => (
            Some(PathBuf::from(format!("/proc/{pid}/ns/user"))),
            format!("/proc/{pid}/ns/net").into(),
        ),
        Err(_) => (None, PathBuf::from(target)),
    };
    let open = |path: &Path| {
        fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))
    };
    // The user namespace first: it may give the permission to enter the other.
    let net_file = open(&net)?;
    if let Some(path) = user {
        let same = fs::read_link(&path)? == fs::read_link("/proc/self/ns/user")?;
        if !same {
            setns(open(&path)?, CloneFlags::CLONE_NEWUSER)
                .with_context(|| format!("cannot enter {}", path.display()))?;
        }
    }
    setns(net_file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter {}", net.display()))
}

/// The /64 of an interface's global, not tentative IPv6 address, once a default route exists.
fn configured_prefix(index: u32) -> Option<Ipv6Addr> {
    /// IFA_F_TENTATIVE
    const TENTATIVE: u32 = 0x40;
    // address, index, prefix length, scope, flags, name
    let addresses = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut prefixes = addresses.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let hex = |i: usize| fields.get(i).and_then(|f| u32::from_str_radix(f, 16).ok());
        let is_ready = hex(1) == Some(index)
            && hex(3) == Some(0)
            && hex(4).is_some_and(|flags| flags & TENTATIVE == 0);
        let address = u128::from_str_radix(fields.first()?, 16).ok().filter(|_| is_ready)?;
        Some(Ipv6Addr::from_bits(address & !u128::from(u64::MAX)))
    });
    let routes = fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default();
    // RTF_UP | RTF_GATEWAY of ::/0.
    let route = routes.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.first().is_some_and(|dst| dst.bytes().all(|b| b == b'0'))
            && fields.get(1) == Some(&"00")
            && fields
                .get(8)
                .and_then(|f| u32::from_str_radix(f, 16).ok())
                .is_some_and(|f| f & 3 == 3)
    });
    prefixes.next().filter(|_| route)
}

/// Lets a helper inherit a descriptor.
pub(crate) fn keep_on_exec(fd: &impl AsRawFd) -> anyhow::Result<()> {
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// The program's own path, for a helper.
pub(crate) fn own_program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_for_in_this_network() {
        for (hosts, wanted) in [
            ("hosts: files dns\n", "hosts: files dns\n"),
            (
                "passwd: files\nhosts: mymachines resolve [!UNAVAIL=return] files myhostname dns\n",
                "passwd: files\nhosts: files myhostname dns\n",
            ),
            ("hosts: files resolve [NOTFOUND=return]\n", "hosts: files dns\n"),
        ] {
            assert_eq!(nsswitch_conf(hosts), wanted);
        }
    }
}
