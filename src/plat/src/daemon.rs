// SPDX-License-Identifier: Apache-2.0

//! The process: made ready with what rights it has, then without any, one loop for everything.

use std::fs::File;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context};
use clat_tun::{handover, Tun};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{socketpair, AddressFamily, SockFlag, SockType};
use pcap_file::pcap::{PcapHeader, PcapWriter};
use pcap_file::DataLink;

use crate::cli::{LinkArgs, Net};
use crate::driver::{Driver, Extras};
use crate::flow::Bounds;
use crate::forward::Forward;
use crate::link::{Datagrams, Link, Packets, Server, Stream, Tap};
use crate::settings::Settings;
use crate::status::Status;
use crate::{clat, netns_helper, sandbox};

/// Descriptors that are watched beside the network's.
const SIGNALS: u8 = 0;
const STATUS: u8 = 1;

/// Descriptors that are not flows'.
const SPARE: u64 = 256;

/// Runs a network for a guest that comes by itself.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn serve(args: &LinkArgs, net: &Net) -> anyhow::Result<ExitCode> {
    let settings = net.settings();
    let socket: Option<(Box<dyn Link>, &Path)> = match args {
        LinkArgs { socket: Some(path), .. } => Some((Box::new(Stream::listen(path)?), path)),
        LinkArgs { frames: Some(path), .. } => Some((Box::new(Datagrams::bind(path)?), path)),
        LinkArgs { packets: Some(path), .. } => Some((Box::new(Packets::listen(path)?), path)),
        _ => None,
    };
    if let Some((link, path)) = socket {
        log::info!("waiting for a guest on {}", path.display());
        return run(net, settings, link, None, None);
    }
    let Some(netns) = &args.netns else {
        bail!(
            "no way in: give --socket, --frames, --packets or --netns, or `platd run -- COMMAND`; see --help"
        );
    };
    let mut devices = Devices::make(net, &settings, Some(netns), net.clat, (&[], false))?;
    let status = devices.helper.wait()?;
    if !status.success() {
        bail!("the namespace could not be prepared");
    }
    log::info!("{} is up in {netns}", net.ifname);
    run(net, settings, Box::new(Tap::new(devices.tap)), devices.clat, None)
}

/// Runs a network and a command in it, with a PID namespace or without.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn run_command(net: &Net, command: &[String], pid_ns: bool) -> anyhow::Result<ExitCode> {
    let settings = net.settings();
    let devices = Devices::make(net, &settings, None, !net.no_clat, (command, pid_ns))?;
    let command = RunningCommand { helper: devices.helper, _control: devices.control };
    run(net, settings, Box::new(Tap::new(devices.tap)), devices.clat, Some(command))
}

/// The command that runs in the network. When the socket is closed, it is ended.
struct RunningCommand {
    helper: Child,
    _control: std::os::fd::OwnedFd,
}

struct Devices {
    tap: Tun,
    clat: Option<Tun>,
    helper: Child,
    control: std::os::fd::OwnedFd,
}

impl Devices {
    /// Has devices made in a namespace.
    fn make(
        net: &Net,
        settings: &Settings,
        netns: Option<&str>,
        with_clat: bool,
        (command, pid_ns): (&[String], bool),
    ) -> anyhow::Result<Self> {
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::empty())
                .context("cannot make a socket pair")?;
        close_on_exec(&control)?;
        let mut helper = Command::new(netns_helper::own_program());
        helper.args(["__netns-helper", "--control", &theirs.as_raw_fd().to_string()]);
        helper.args(["--ifname", &net.ifname, "--mtu", &settings.mtu.to_string()]);
        helper.args(["--dns", &settings.dns().to_string()]);
        if with_clat {
            helper.args(["--clat-mtu", &clat::mtu(settings).to_string()]);
        }
        if let Some(netns) = netns {
            helper.args(["--netns", netns]);
        }
        if net.loss > 0.0 {
            helper.arg("--plain");
        }
        if pid_ns {
            helper.arg("--pid-ns");
        }
        if command.is_empty() {
            helper.stdin(Stdio::null());
        } else {
            helper.arg("--").args(command);
        }
        let helper = helper.spawn().context("cannot start a helper")?;
        drop(theirs);
        let mut byte = [0];
        let (n, fds) = handover::receive(&control, &mut byte)?;
        let mut fds = fds.into_iter();
        let (1, Some(tap)) = (n, fds.next()) else {
            // It has said why.
            bail!("no device in the namespace");
        };
        let tap = Tun::tap_from_fd(tap)?;
        let clat = fds.next().map(Tun::from_fd).transpose()?;
        Ok(Self { tap, clat, helper, control })
    }
}

fn close_on_exec(fd: &impl AsRawFd) -> anyhow::Result<()> {
    use nix::fcntl::{fcntl, FcntlArg, FdFlag};
    fcntl(fd.as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}

/// As many flows as there may be descriptors.
fn bounds(net: &Net) -> Bounds {
    let mut flows = net.max_flows.max(16);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = (flows as u64 + SPARE).min(hard);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        let possible = usize::try_from(wanted.saturating_sub(SPARE)).unwrap_or(flows).max(16);
        if possible < flows {
            log::debug!("{possible} flows at a time: no more descriptors are allowed (ulimit -n)");
            flows = possible;
        }
    }
    let flows_each = net.max_flows_each.map_or(flows, |each| each.get().min(flows));
    Bounds { flows, flows_each, ..Bounds::default() }
}

fn run(
    net: &Net,
    settings: Settings,
    link: Box<dyn Link>,
    clat: Option<Tun>,
    command: Option<RunningCommand>,
) -> anyhow::Result<ExitCode> {
    let mask = netns_helper::signals();
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let status = net.status.as_ref().map(|path| Server::listen(path, SockType::Stream));
    let status = status.transpose()?;
    let forwards = net.forward.iter().map(Forward::open).collect::<anyhow::Result<Vec<_>>>()?;
    let forwards = forwards.into_iter().flatten().collect();
    let clat = clat.map(|tun| clat::new(tun, &settings));
    let prefix = settings.prefix;
    let extras = Extras { clat, impairment: net.impairment(), bounds: bounds(net), forwards };
    let mut driver = Driver::new(settings, link, extras)?;
    driver.watch(&signals, SIGNALS)?;
    if let Some(server) = &status {
        driver.watch(server.fd(), STATUS)?;
    }
    if let Some(path) = &net.pcap {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let header =
            PcapHeader { snaplen: 1 << 17, datalink: DataLink::ETHERNET, ..PcapHeader::default() };
        driver.carrier_mut().set_pcap(PcapWriter::with_header(file, header)?);
    }
    sandbox::enter(net.runas)?;
    let churn = net.prefix_churn.map(Duration::from_secs);
    let churn = churn.map(|every| Churn { every, next: Instant::now() + every, prefix, round: 0 });
    let mut all = Daemon { driver, signals, status, command, churn };
    let end = all.run();
    all.driver.farewell();
    // To remove a socket's name takes a right that was given up. Whoever starts next finds that
    // nobody listens there.
    std::mem::forget(all);
    end
}

/// `--prefix-churn`.
struct Churn {
    every: Duration,
    next: Instant,
    prefix: Ipv6Addr,
    round: u16,
}

struct Daemon {
    driver: Driver,
    signals: SignalFd,
    status: Option<Server>,
    command: Option<RunningCommand>,
    churn: Option<Churn>,
}

impl Daemon {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        loop {
            let (mut signalled, mut asked) = (false, false);
            let next = self.churn.as_ref().map(|churn| churn.next);
            self.driver.poll(next, &mut |number| match number {
                SIGNALS => signalled = true,
                _ => asked = true,
            })?;
            if signalled {
                if let Some(code) = self.signal()? {
                    return Ok(code);
                }
            }
            if asked {
                self.tell();
            }
            self.renumber();
        }
    }

    /// The exit code, if that is the end.
    fn signal(&mut self) -> anyhow::Result<Option<ExitCode>> {
        while let Some(signal) = self.signals.read_signal()? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
            match (number, &mut self.command) {
                (nix::libc::SIGCHLD, Some(command)) => {
                    if let Some(status) = command.helper.try_wait()? {
                        let code = status.code().and_then(|code| u8::try_from(code).ok());
                        return Ok(Some(ExitCode::from(code.unwrap_or(1))));
                    }
                }
                // From the terminal: the command gets it too, and decides.
                (nix::libc::SIGCHLD, None) | (nix::libc::SIGINT, Some(_)) => {}
                _ => {
                    log::info!("ending");
                    return Ok(Some(ExitCode::SUCCESS));
                }
            }
        }
        Ok(None)
    }

    fn tell(&mut self) {
        let Some(server) = &mut self.status else { return };
        while let Ok(true) = server.accept() {
            if let Some(stream) = server.guest() {
                Status::of(self.driver.carrier()).tell(stream);
            }
            server.hang_up();
        }
    }

    fn renumber(&mut self) {
        let Some(churn) = &mut self.churn else { return };
        let now = Instant::now();
        if now < churn.next {
            return;
        }
        churn.next = now + churn.every;
        churn.round = churn.round.wrapping_add(1);
        // Another of the 65536 beside the first.
        let prefix = churn.prefix.to_bits() ^ u128::from(churn.round) << 64;
        self.driver.renumber(prefix.into());
    }
}
