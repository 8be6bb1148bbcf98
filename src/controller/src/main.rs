// SPDX-License-Identifier: Apache-2.0

//! `clat_controller`: starts and stops CLATs for callers by binder.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{anyhow, Context, Result};
use clat_controller::args::Args;
use clat_controller::auto::Auto;
use clat_controller::binder_adapter::{self, has_service_manager, Transport};
use clat_controller::confinement::{change_only, refuse_calls};
use clat_controller::controller::{end_orphans, Controller};
use clat_controller::follow::Follower;
use clat_controller::host::linux::{
    LinuxHost, NamespaceLock, Objects, Properties, Share, HAS_NETD,
};
use clat_controller::host::Recovery as _;
use clat_controller::listeners::Listeners;
use clat_controller::logging;
use clat_controller::service::{ClatdService, CALLERS, SHELL};
use clat_controller::{DEFAULT_SOCKET, SERVICE_NAME};
use clat_host::RUN_DIR;
use clat_sandbox::{
    close_standard_input_and_output, keep_capabilities, may_have, without, Capability,
};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::geteuid;

/// The paths of an installed clatd, if it is not in this program's directory.
const CLATD_PLACES: [&str; 4] =
    ["/usr/libexec/clat/clatd", "/usr/local/bin/clatd", "/usr/bin/clatd", "/system/bin/clatd"];

fn main() {
    let result = try_main();
    if let Err(e) = &result {
        log::error!("{e:#}");
    }
    log::logger().flush();
    if result.is_err() {
        std::process::exit(1);
    }
}

fn try_main() -> Result<()> {
    // Blocked in every thread, and waited for below. clatd gets an empty mask.
    let mut signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    if !ignores_hangup() {
        signals.add(Signal::SIGHUP);
    }
    let blocked = signals.thread_block();
    logging::init();
    blocked.context("cannot block signals")?;
    let args = Args::read()?;
    if args.auto.check {
        return Ok(());
    }
    // clatd inherits them.
    close_standard_input_and_output()?;

    // First what needs privileges, before anything that callers reach.
    let auto = Auto::open(&args.auto)
        .context("cannot listen to routers (clat_controller runs as root)")?;

    let (offload, mut direct) = args.offload();
    if direct && !args.auto.share.is_empty() {
        log::warn!("packets do not go directly: those of hosts behind this one cannot (--share)");
        direct = false;
    }
    let standalone = args.standalone || !(args.no_standalone || HAS_NETD);
    let clatd = args.clatd.map_or_else(find_clatd, Ok)?;
    let properties = Properties::new(args.build_prop.as_deref(), args.first_api_level)?;
    let bpf_dir = offload.then_some(args.bpf_dir);

    make_dir(Path::new(RUN_DIR))?;
    check_owner(Path::new(RUN_DIR))?;
    let transport = match args.socket {
        Some(socket) => Transport::Rpc(socket),
        None if args.binder || has_service_manager() => Transport::Binder,
        None => Transport::Rpc(PathBuf::from(DEFAULT_SOCKET)),
    };
    if let Transport::Rpc(socket) = &transport {
        make_dir(socket.parent().ok_or_else(|| anyhow!("--socket needs a path of a file"))?)?;
    }
    let lock = NamespaceLock::take(Path::new(RUN_DIR))?;
    let secret = if args.sweep { None } else { args.auto.secret() };
    let share = Share::begin(if args.sweep { Vec::new() } else { args.auto.share });
    let share = share.inspect_err(|e| log::error!("cannot share: {e}")).unwrap_or_default();
    let programs = bpf_dir.clone().filter(|_| !args.sweep);
    let host = LinuxHost::new(clatd.clone(), properties, programs);
    let host = Arc::new(host.sharing(share).direct(direct).stable(secret));
    // Only the start may inspect other processes.
    let orphans = host.orphans();
    let (kept, ended) = if args.keep { (orphans, Vec::new()) } else { (Vec::new(), orphans) };

    let listeners = Arc::new(Listeners::default());
    let observer = {
        let (listeners, note) = (Arc::clone(&listeners), auto.observer());
        Arc::new(move |event| {
            note(&event);
            listeners.tell(&event);
        })
    };
    // Others end while this waits for the kernel, and loads programs.
    let (controller, _lock) = thread::scope(|scope| {
        scope.spawn(|| end_orphans(ended));
        let lock = lock.settle()?;
        anyhow::Ok((Controller::new(host, standalone, observer), lock))
    })?;
    let controller = Arc::new(controller.probing(args.probe).direct(direct));
    // Threads that stay are made after this.
    let socket = match &transport {
        Transport::Rpc(socket) => Some(std::path::absolute(socket)?),
        Transport::Binder => None,
    };
    let folder = socket.as_deref().and_then(Path::parent);
    let devices = binder_adapter::DEVICES.iter().filter(|_| socket.is_none());
    let changed = [RUN_DIR, "/proc/sys/net", "/dev/null", "/dev/net/tun"].iter().chain(devices);
    let changed = changed.map(Path::new).chain(folder).chain(bpf_dir.as_deref());
    change_only(&changed.collect::<Vec<_>>())?;
    refuse_calls()?;
    keep_capabilities(&needed(&clatd)?).context("cannot give up capabilities")?;
    controller.recover(kept);
    if args.sweep {
        controller.shut_down();
        return Ok(bpf_dir.map_or(Ok(()), |dir| Objects::remove(&dir))?);
    }
    let callers = [&CALLERS[..], &args.allow_uid[..]].concat();
    let dumpers = if HAS_NETD { vec![SHELL] } else { Vec::new() };
    let service = ClatdService::new(
        Arc::clone(&controller),
        Arc::clone(&listeners),
        callers.clone(),
        dumpers,
    )
    .showing(auto.uplinks());
    let service = binder_adapter::new_binder(service);
    let server = binder_adapter::serve(&transport, SERVICE_NAME, &service, &callers)?;
    let follower = Follower::start(Arc::clone(&controller)).context("cannot follow the network")?;
    let auto = auto.start(Arc::clone(&controller)).context("cannot watch over uplinks")?;
    log::info!("ready on {transport}");
    logging::tell_ready();

    let signal = loop {
        let signal = signals.wait().context("cannot wait for signals")?;
        if signal != Signal::SIGHUP {
            break signal;
        }
        match Args::read() {
            Ok(args) => auto.reload(&args.auto),
            Err(e) => log::error!("{e:#}; going on as before"),
        }
    };
    log::info!("{signal}: {}", if args.keep { "leaving" } else { "stopping" });
    drop(follower);
    drop(auto);
    // CLATs first: clients that wait for a start or a stop still get their answers.
    if args.keep {
        controller.detach();
    } else {
        controller.shut_down();
        if let Err(e) = Share::end() {
            log::error!("cannot end sharing: {e}");
        }
    }
    listeners.detach();
    drop(server);
    Ok(())
}

/// The capabilities needed to start and stop CLATs, without those that only the start of the
/// controller needs: for mounting, other users' files and processes, and limits.
fn needed(clatd: &Path) -> Result<Vec<Capability>> {
    use Capability::{
        CAP_BPF, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_KILL, CAP_NET_ADMIN, CAP_NET_RAW,
        CAP_SETGID, CAP_SETPCAP, CAP_SETUID, CAP_SYS_ADMIN,
    };
    // The last three let clatd drop the others.
    let mut needed =
        vec![CAP_NET_ADMIN, CAP_NET_RAW, CAP_KILL, CAP_SETUID, CAP_SETGID, CAP_SETPCAP];
    // Before Linux 5.8 CAP_SYS_ADMIN was needed for BPF.
    needed.push(if may_have(CAP_BPF)? { CAP_BPF } else { CAP_SYS_ADMIN });
    let files = [CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH];
    if without(&files, || File::open(clatd))?.is_err() {
        log::warn!(
            "{} is where only its owner gets; the right to read everything is kept for that",
            clatd.display()
        );
        needed.push(CAP_DAC_READ_SEARCH);
    }
    Ok(needed)
}

/// Makes a directory that others may not enter, unless it exists.
fn make_dir(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(dir)
        .with_context(|| format!("cannot make {} (clat_controller runs as root)", dir.display()))
}

/// The owner of the directory, and those who may write to it, could remove the lock and replace the
/// socket.
fn check_owner(dir: &Path) -> Result<()> {
    let about = || format!("cannot use {}", dir.display());
    let found = std::fs::symlink_metadata(dir).with_context(about)?;
    let cause = if !found.is_dir() {
        "it is no directory".to_owned()
    } else if found.uid() != geteuid().as_raw() {
        format!("it belongs to uid {}", found.uid())
    } else if found.mode() & 0o022 != 0 {
        format!("others may write to it (mode {:o})", found.mode() & 0o7777)
    } else {
        return Ok(());
    };
    Err(anyhow!("{cause}; remove it, and it will be made anew").context(about()))
}

/// Whether SIGHUP is ignored, as nohup(1) arranges. sigwait(3) would receive it all the same.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|m| m & 1 != 0)
}

fn find_clatd() -> Result<PathBuf> {
    let beside = std::env::current_exe().ok().map(|exe| exe.with_file_name("clatd"));
    beside
        .into_iter()
        .chain(CLATD_PLACES.map(PathBuf::from))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            anyhow!("clatd is neither beside clat_controller nor installed; say where with --clatd")
        })
}
