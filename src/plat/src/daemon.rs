// SPDX-License-Identifier: Apache-2.0

//! The process: it opens all resources, drops its privileges, and runs one loop.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context};
use clat_tun::{handover, Tun};
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, socketpair, sockopt, AddressFamily, SockFlag, SockType};
use nix::unistd::setsid;
use pcap_file::pcap::{PcapHeader, PcapWriter};
use pcap_file::DataLink;

use crate::cli::{LinkArgs, Net, ProcessArgs};
use crate::control::{Control, Request};
use crate::driver::{Driver, Extras};
use crate::flow::Bounds;
use crate::forward::Forward;
use crate::host_helper::Helper;
use crate::link::{Datagrams, Link, Packets, Server, Stream, Switch, Tap, Terms};
use crate::netns_helper::keep_on_exec;
use crate::settings::{Label, Settings, LONGEST_SEARCH};
use crate::status::Status;
use crate::{clat, driver, net, netns_helper, resolvers, sandbox};

/// Numbers of the descriptors watched beside the network's.
const SIGNALS: u8 = 0;
const STATUS: u8 = 1;
const CONTROL: u8 = 2;
const HELPER: u8 = 3;

/// Descriptors reserved for other uses than flows, mainly questions to resolvers and forwarded
/// ports.
const RESERVED: u64 = 256 + resolvers::MOST as u64 + driver::FORWARDS;

/// Runs a network for a guest that connects by itself.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn serve(args: &LinkArgs, process: &ProcessArgs, net: &Net) -> anyhow::Result<ExitCode> {
    if process.background {
        return in_background(&["--new-session"]);
    }
    if process.new_session {
        setsid().context("cannot leave the terminal")?;
    }
    let settings = net.settings();
    if let Some(number) = args.fd {
        let process = ProcessArgs { one_off: true, ..process.clone() };
        return run(net, &process, settings, given(number)?, None, (None, None));
    }
    let socket: Option<(Box<dyn Link>, &Path)> = match args {
        LinkArgs { socket: Some(path), .. } => Some((Box::new(Stream::listen(path)?), path)),
        LinkArgs { frames: Some(path), .. } => Some((Box::new(Datagrams::bind(path)?), path)),
        LinkArgs { packets: Some(path), .. } => Some((Box::new(Packets::listen(path)?), path)),
        _ => None,
    };
    if let Some((link, path)) = socket {
        return run(net, process, settings, link, Some(path), (None, None));
    }
    let Some(netns) = &args.netns else {
        bail!(
            "no link to a guest: give --socket, --frames, --packets, --netns or --fd, or \
             `platd run -- COMMAND`; see --help"
        );
    };
    let mut devices = Devices::make(net, &settings, Some(netns), net.clat, (&[], false))?;
    let status = devices.helper.wait()?;
    if !status.success() {
        bail!("the namespace could not be prepared");
    }
    log::info!("{} is up in {netns}", net.ifname);
    let link = Box::new(Tap::new(devices.tap));
    run(net, process, settings, link, None, (devices.clat, None))
}

/// Runs a network for nodes in the background; returns when it is ready.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn net_up(name: &Label, net: &Net, ready_fd: Option<RawFd>) -> anyhow::Result<ExitCode> {
    ensure!(!net.clat, "--clat: nodes have no IPv4; `platd run` has a CLAT");
    if ready_fd.is_none() {
        ensure!(
            net::connect(name).is_err(),
            "network {name} is up already; `platd net down {name}` ends it"
        );
        return in_background(&[]);
    }
    setsid().context("cannot leave the terminal")?;
    let settings = net.settings();
    let terms = Terms {
        ifname: net.ifname.clone(),
        mtu: net.mtu,
        plain: net.loss > 0.0,
        dns: settings.dns,
        search: settings.search.iter().map(ToString::to_string).collect(),
    };
    let path = net::socket(name)?;
    let link = Box::new(Switch::listen(&path, terms, settings.mac)?);
    let process = ProcessArgs { ready_fd, ..ProcessArgs::default() };
    run(net, &process, settings, link, Some(&path), (None, None))
}

/// The socket of `--fd`.
fn given(number: RawFd) -> anyhow::Result<Box<dyn Link>> {
    let fd = clat_sys::adopt(number)
        .with_context(|| format!("--fd {number}: no descriptor of that number is open"))?;
    let kind = getsockopt(&fd, sockopt::SockType)
        .with_context(|| format!("--fd {number} is no socket"))?;
    Ok(match kind {
        SockType::Stream => Box::new(Stream::connected(fd.into())?),
        SockType::SeqPacket => Box::new(Packets::connected(fd.into())?),
        _ => bail!("--fd {number}: it is neither a stream socket nor a packet socket"),
    })
}

/// Starts this program again without the terminal, with `more` arguments, and waits until it is
/// ready.
fn in_background(more: &[&str]) -> anyhow::Result<ExitCode> {
    let (mut ready, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    keep_on_exec(&theirs)?;
    let arguments = std::env::args_os().skip(1).filter(|argument| argument != "--background");
    let mut command = Command::new(netns_helper::own_program());
    command.args(arguments).args(more).args(["--ready-fd", &theirs.as_raw_fd().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start")?;
    drop(theirs);
    // Its log is forwarded until it is ready. After that it has no open descriptors on whose end
    // the caller may wait.
    let log = child
        .stderr
        .take()
        .map(|mut log| std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr())));
    let mut line = [0; READY.len()];
    if ready.read_exact(&mut line).is_ok() {
        return Ok(ExitCode::SUCCESS);
    }
    // It has logged why.
    if let Some(log) = log {
        let _ = log.join();
    }
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.filter(|code| *code > 0).unwrap_or(1)))
}

/// The message for `--ready-fd`.
const READY: &[u8] = b"ready\n";

/// Runs a network and a command in it, with a PID namespace or without.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn run_command(net: &Net, command: &[String], pid_ns: bool) -> anyhow::Result<ExitCode> {
    let settings = net.settings();
    let with_clat = !net.no_clat && net.dual_stack.is_none();
    let devices = Devices::make(net, &settings, None, with_clat, (command, pid_ns))?;
    let command = RunningCommand { helper: devices.helper, _control: devices.control };
    let (process, link) = (ProcessArgs::default(), Box::new(Tap::new(devices.tap)));
    run(net, &process, settings, link, None, (devices.clat, Some(command)))
}

/// The command that runs in the network. Closing the socket ends it.
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
    /// Makes devices in a namespace, by a helper process.
    fn make(
        net: &Net,
        settings: &Settings,
        netns: Option<&str>,
        with_clat: bool,
        (command, pid_ns): (&[String], bool),
    ) -> anyhow::Result<Self> {
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .context("cannot make a socket pair")?;
        keep_on_exec(&theirs)?;
        let mut helper = Command::new(netns_helper::own_program());
        helper.args(["__netns-helper", "--control", &theirs.as_raw_fd().to_string()]);
        helper.args(["--ifname", &net.ifname, "--mtu", &settings.mtu.to_string()]);
        if settings.dns {
            helper.arg("--dns");
        }
        helper.args(
            settings.search.iter().flat_map(|name| ["--search".to_owned(), name.to_string()]),
        );
        if with_clat {
            helper.args(["--clat-mtu", &clat::mtu(settings).to_string()]);
        }
        if let Some(netns) = netns {
            helper.args(["--netns", netns]);
        }
        if let Some(dual) = settings.dual_stack.filter(|_| !command.is_empty()) {
            // As a DHCP client would.
            let (guest, router) = (dual.guest.to_string(), dual.router.to_string());
            helper.args(["--v4", &guest, "--router4", &router]);
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
            // It has logged why.
            bail!("no device in the namespace");
        };
        let tap = Tun::tap_from_fd(tap)?;
        let clat = fds.next().map(Tun::from_fd).transpose()?;
        Ok(Self { tap, clat, helper, control })
    }
}

/// Limits the number of flows by that of descriptors.
fn bounds(net: &Net) -> Bounds {
    let mut flows = net.max_flows.max(16);
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = (flows as u64 + RESERVED).min(hard);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        let possible = usize::try_from(wanted.saturating_sub(RESERVED)).unwrap_or(flows).max(16);
        if possible < flows {
            log::debug!("{possible} flows at a time: no more descriptors are allowed (ulimit -n)");
            flows = possible;
        }
    }
    let flows_each = net.max_flows_each.map_or(flows, |each| each.min(flows));
    Bounds { flows, flows_each, ..Bounds::default() }
}

fn run(
    net: &Net,
    process: &ProcessArgs,
    settings: Settings,
    link: Box<dyn Link>,
    name: Option<&Path>,
    (clat, command): (Option<Tun>, Option<RunningCommand>),
) -> anyhow::Result<ExitCode> {
    ensure!(
        settings.search_list().len() <= LONGEST_SEARCH,
        "--search: the domains are longer than {LONGEST_SEARCH} bytes together"
    );
    let mask = netns_helper::signals();
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let status = net.status.as_ref().map(|path| Server::listen(path, SockType::Stream));
    let status = status.transpose()?;
    let control = net.control.as_deref().map(Control::listen).transpose()?;
    let forwards = net.forward.iter().map(Forward::open).collect::<anyhow::Result<Vec<_>>>()?;
    let forwards = forwards.into_iter().flatten().collect();
    let clat = clat.map(|tun| clat::new(tun, &settings)).transpose()?;
    let prefix = settings.prefix;
    let extras = Extras { clat, impairment: net.impairment(), bounds: bounds(net), forwards };
    let mut driver = Driver::new(settings, link, extras)?;
    driver.watch(&signals, SIGNALS)?;
    if let Some(server) = &status {
        driver.watch(server.fd(), STATUS)?;
    }
    if let Some(control) = &control {
        driver.watch(control.fd(), CONTROL)?;
    }
    if let Some(path) = &net.pcap {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let header =
            PcapHeader { snaplen: 1 << 17, datalink: DataLink::ETHERNET, ..PcapHeader::default() };
        driver.carrier_mut().set_pcap(PcapWriter::with_header(file, header)?);
    }
    if let Some(path) = &process.pid {
        fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let ready = process.ready_fd.map(|number| {
        clat_sys::adopt(number)
            .with_context(|| format!("--ready-fd {number}: no descriptor of that number is open"))
    });
    let ready = ready.transpose()?.map(File::from);
    let files = [name, net.status.as_deref(), net.control.as_deref(), process.pid.as_deref()];
    let files: Vec<&Path> = files.into_iter().flatten().collect();
    let helper = Helper::start(net.dns.is_empty(), &files)?;
    if let Some(helper) = &helper {
        driver.watch(helper, HELPER)?;
    }
    sandbox::enter(net.runas)?;
    if let Some(name) = name {
        log::info!("waiting for a guest on {}", name.display());
    }
    if let Some(mut ready) = ready {
        // The reader may have closed it.
        let _ = ready.write_all(READY);
    }
    let churn = net.prefix_churn.map(Duration::from_secs);
    let churn = churn.map(|every| Churn { every, next: Instant::now() + every, prefix, round: 0 });
    let one_off = process.one_off;
    let had_guest = false;
    let mut all =
        Daemon { driver, signals, status, control, helper, command, churn, one_off, had_guest };
    let end = all.run();
    all.driver.farewell();
    // The sandbox allows no removal of sockets. The helper does it.
    if let Some(helper) = all.helper.take() {
        helper.end();
    }
    std::mem::forget(all);
    end
}

/// State of `--prefix-churn`.
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
    control: Option<Control>,
    helper: Option<Helper>,
    command: Option<RunningCommand>,
    churn: Option<Churn>,
    /// Whether to end when the first guest leaves.
    one_off: bool,
    had_guest: bool,
}

impl Daemon {
    fn run(&mut self) -> anyhow::Result<ExitCode> {
        loop {
            let mut ready = [false; HELPER as usize + 1];
            let next = self.churn.as_ref().map(|churn| churn.next);
            self.driver.poll(next, &mut |number| ready[usize::from(number)] = true)?;
            let [signalled, asked, controlled, helped] = ready;
            if signalled {
                if let Some(code) = self.signal()? {
                    return Ok(code);
                }
            }
            if asked {
                self.tell();
            }
            if controlled {
                self.control()?;
            }
            if helped {
                self.helped();
            }
            self.renumber();
            let has_guest = self.driver.carrier().link().has_guest();
            if self.one_off && self.had_guest && !has_guest {
                return Ok(ExitCode::SUCCESS);
            }
            self.had_guest |= has_guest;
        }
    }

    /// Handles signals; returns the exit code if one ends the process.
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
                // A terminal sends it to the command as well, which decides.
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

    /// Handles a request of `platd forward`.
    fn control(&mut self) -> anyhow::Result<()> {
        let Self { driver, control: Some(control), .. } = self else { return Ok(()) };
        let came = control.event(|request, socket| match request {
            Request::Add(port) => {
                let socket = socket.context("the request has no socket")?;
                driver.add_forward(port, port.from_socket(socket)?)?;
                Ok(vec![port])
            }
            Request::Remove(port) if driver.remove_forward(port) => Ok(vec![port]),
            Request::Remove(port) => bail!("{port} is not the guest's"),
            Request::List => Ok(driver.forwards().collect()),
        });
        if came {
            driver.watch(control.fd(), CONTROL)?;
        }
        Ok(())
    }

    /// Handles a message of the helper, or its end.
    fn helped(&mut self) {
        match self.helper.as_ref().and_then(Helper::resolvers) {
            Some(resolvers) => {
                log::info!("new resolvers of the host: {resolvers:?}");
                self.driver.set_resolvers(resolvers);
            }
            None => self.helper = None,
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
        // One of the 65536 prefixes that differ from the first in their last 16 bits.
        let prefix = churn.prefix.to_bits() ^ u128::from(churn.round) << 64;
        self.driver.renumber(prefix.into());
    }
}
