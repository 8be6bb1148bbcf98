// SPDX-License-Identifier: Apache-2.0

//! `platd net`: finds networks by their names, and joins them.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context};
use clat_tun::handover;
use nix::errno::Errno;
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{
    connect as connect_to, getsockopt, socket as new_socket, sockopt, AddressFamily, SockFlag,
    SockType, UnixAddr,
};
use nix::unistd::{geteuid, Pid};

use crate::link::{Answer, Request};
use crate::netns_helper::{wait, NetnsHelper};
use crate::settings::Label;

/// Bytes of the longest answer, a list of all nodes.
const LONGEST: usize = 1 << 14;

/// The folder of this user's networks, each a socket by its name.
fn folder() -> anyhow::Result<PathBuf> {
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    let folder = match own {
        Some(folder) => Path::new(&folder).join("platd"),
        None => std::env::temp_dir().join(format!("platd-{}", geteuid())),
    };
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            return Err(e).with_context(|| format!("cannot make {}", folder.display()));
        }
        _ => {}
    }
    // Others may make it in a folder for everybody.
    let there = fs::symlink_metadata(&folder)?;
    let is_ours = there.is_dir() && there.uid() == geteuid().as_raw() && there.mode() & 0o77 == 0;
    ensure!(is_ours, "{} is not this user's alone; remove it", folder.display());
    Ok(folder)
}

/// The socket of a network.
///
/// # Errors
/// If its folder cannot be made, or belongs to others.
pub(crate) fn socket(network: &Label) -> anyhow::Result<PathBuf> {
    Ok(folder()?.join(network.to_string()))
}

/// Connects to a network.
///
/// # Errors
/// If there is none of that name.
pub(crate) fn connect(network: &Label) -> anyhow::Result<OwnedFd> {
    let path = socket(network)?;
    let address = UnixAddr::new(&path).with_context(|| path.display().to_string())?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let connection = new_socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    match connect_to(connection.as_raw_fd(), &address) {
        Ok(()) => Ok(connection),
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => {
            bail!("there is no network {network}; `platd net up {network}` starts it")
        }
        Err(e) => Err(e).with_context(|| format!("cannot connect to {}", path.display())),
    }
}

fn ask(connection: &OwnedFd, request: &Request) -> anyhow::Result<Answer> {
    handover::send(connection.as_raw_fd(), &serde_json::to_vec(request)?, &[])
        .context("cannot ask platd")?;
    let mut message = vec![0; LONGEST];
    let (len, _) = handover::receive(connection, &mut message).context("platd does not answer")?;
    match serde_json::from_slice(&message[..len]).context("platd's answer makes no sense")? {
        Answer::Error(why) => bail!(why),
        answer => Ok(answer),
    }
}

/// Runs a command as a node of a network, with a PID namespace or without; or makes a namespace a
/// node.
///
/// # Errors
/// What could not be made ready, or ended it.
pub fn join(
    network: &Label,
    name: Option<&Label>,
    netns: Option<&str>,
    (command, pid_ns): (&[String], bool),
) -> anyhow::Result<ExitCode> {
    let connection = connect(network)?;
    let Answer::Joined(terms) = ask(&connection, &Request::Join(name.cloned()))? else {
        bail!("platd's answer makes no sense");
    };
    let helper = NetnsHelper {
        control: connection.as_raw_fd(),
        netns: netns.map(str::to_owned),
        ifname: terms.ifname,
        mtu: terms.mtu,
        clat_mtu: None,
        plain: terms.plain,
        dns: terms.dns,
        search: terms.search,
        v4: None,
        router4: None,
        pid_ns,
        command: command.to_vec(),
    };
    if netns.is_none() {
        // It closes the connection.
        let _ = connection.into_raw_fd();
        return helper.run();
    }
    helper.run()?;
    wait(Some(connection.as_fd()), [])?;
    bail!("the network has ended")
}

/// Ends a network, and waits until it has ended.
///
/// # Errors
/// If there is none, or it cannot be ended.
pub fn down(network: &Label) -> anyhow::Result<ExitCode> {
    let connection = connect(network)?;
    let pid = getsockopt(&connection, sockopt::PeerCredentials)?.pid();
    ensure!(pid > 0, "network {network} is of another PID namespace; end it there");
    kill(Pid::from_raw(pid), Signal::SIGTERM)
        .with_context(|| format!("cannot end process {pid} of network {network}"))?;
    // The connection is closed with the process.
    let _ = handover::receive(&connection, &mut [0]);
    Ok(ExitCode::SUCCESS)
}

/// A line for each network of this user: its name, and its nodes.
///
/// # Errors
/// If one does not answer.
pub fn list() -> anyhow::Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder()?)? {
        names.extend(entry?.file_name().to_str().and_then(|name| name.parse::<Label>().ok()));
    }
    names.sort();
    let mut text = String::new();
    for name in names {
        // What is left of one that was killed with its helper does not answer.
        let Ok(connection) = connect(&name) else { continue };
        let Answer::Nodes(nodes) = ask(&connection, &Request::List)? else { continue };
        let nodes: Vec<String> = nodes.iter().map(|node| format!(" {node}")).collect();
        writeln!(text, "{name}:{}", nodes.join(","))?;
    }
    Ok(text)
}
