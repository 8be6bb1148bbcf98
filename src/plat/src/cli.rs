// SPDX-License-Identifier: Apache-2.0

//! The command line.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clat_sys::{like, whole};
use clat_xlat::Prefix;
use hickory_proto::rr::Name;
use nix::unistd::{Gid, Uid, User};

use crate::flow::Bounds;
use crate::forward::Forward;
use crate::frame::Mac;
use crate::link::Impairment;
use crate::resolv_conf;
use crate::settings::{DualStack, Label, Outbound, Settings, LEAST_MTU};

/// An IPv6-only carrier network in one unprivileged process: router advertisements, DNS64 and NAT64
/// for a virtual machine, a namespace or a test.
#[derive(Debug, Parser)]
#[command(name = "platd", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// A subcommand instead of a network for a guest.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The link to the guest.
    #[command(flatten)]
    pub link: LinkArgs,
    /// Options of the process.
    #[command(flatten)]
    pub process: ProcessArgs,
    /// The network.
    #[command(flatten)]
    pub net: Net,
}

/// Links to a guest; one of them.
#[derive(Args, Debug)]
#[group(multiple = false)]
pub struct LinkArgs {
    /// A Unix stream socket, each frame after its length: QEMU's `-netdev
    /// stream,id=n,server=off,addr.type=unix,addr.path=PATH`
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// A Unix datagram socket, one frame per message: QEMU's `-netdev
    /// dgram,id=n,local.type=unix,local.path=OTHER,remote.type=unix,remote.path=PATH`
    #[arg(long, value_name = "PATH")]
    pub frames: Option<PathBuf>,
    /// A Unix packet socket (SOCK_SEQPACKET), one frame per message
    #[arg(long, value_name = "PATH")]
    pub packets: Option<PathBuf>,
    /// A TAP device in the network namespace of this process, or of this file (/run/netns/…)
    #[arg(long, value_name = "PID|PATH")]
    pub netns: Option<String>,
    /// An inherited, connected socket of the kind of --socket or --packets; platd ends when the
    /// peer closes it
    #[arg(long, value_name = "NUMBER", value_parser = whole(0..=RawFd::MAX))]
    pub fd: Option<RawFd>,
}

/// How the process runs.
#[derive(Args, Clone, Debug, Default)]
pub struct ProcessArgs {
    /// End when the first guest has left
    #[arg(long)]
    pub one_off: bool,
    /// Write the process id to a file when ready
    #[arg(long, value_name = "FILE")]
    pub pid: Option<PathBuf>,
    /// Write a line to this inherited descriptor, and close it, when ready
    #[arg(long, value_name = "NUMBER", value_parser = whole(0..=RawFd::MAX))]
    pub ready_fd: Option<RawFd>,
    /// Run in the background: the command returns when the network is ready
    #[arg(long, conflicts_with_all = ["ready_fd", "fd"])]
    pub background: bool,
    /// (Internal) starts a new session.
    #[arg(long, hide = true)]
    pub new_session: bool,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new network namespace with only this network; no root needed
    Run {
        /// The network.
        #[command(flatten)]
        net: Box<Net>,
        /// Do not make a PID namespace: processes may outlive the command
        #[arg(long)]
        no_pid_ns: bool,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Show the status of a platd started with --status
    Status {
        /// Its status socket
        socket: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Add or remove port forwards of a platd started with --control
    Forward {
        /// What to do
        #[command(subcommand)]
        action: ForwardAction,
    },
    /// Networks of several nodes, which reach each other by name; no root needed
    Net {
        /// What to do
        #[command(subcommand)]
        action: NetAction,
    },
    /// Print the manual page, for man(1): `platd man | man -l -`
    Man,
    /// (Internal) prepares a namespace.
    #[command(name = "__netns-helper", hide = true)]
    NetnsHelper(crate::netns_helper::NetnsHelper),
    /// (Internal) does what platd has no permission for.
    #[command(name = "__host-helper", hide = true)]
    HostHelper(crate::host_helper::HostHelper),
    /// (Internal) is the first process of a PID namespace.
    #[command(name = "__init", hide = true)]
    Init(crate::netns_helper::Init),
}

/// Operations on networks of several nodes.
#[derive(Debug, Subcommand)]
pub enum NetAction {
    /// Start a network in the background; the command returns when it is ready
    Up {
        /// Its name
        #[arg(value_name = "NETWORK")]
        network: Label,
        /// The network.
        #[command(flatten)]
        net: Box<Net>,
        /// (Internal) runs it in this process.
        #[arg(long, hide = true, value_parser = whole(0..=RawFd::MAX))]
        ready_fd: Option<RawFd>,
    },
    /// Run a command in a new network namespace that is a node of the network while the command
    /// runs, or make an existing one a node
    Join {
        /// The network's name
        #[arg(value_name = "NETWORK")]
        network: Label,
        /// The node's name, for which the network's DNS server has its address [default: node1,
        /// node2, …]
        #[arg(long, value_name = "NAME")]
        name: Option<Label>,
        /// Do not make a PID namespace: processes may outlive the command
        #[arg(long)]
        no_pid_ns: bool,
        /// Instead of a command: make the network namespace of this process, or of this file, a
        /// node until platd is ended
        #[arg(long, value_name = "PID|PATH", conflicts_with_all = ["no_pid_ns", "command"])]
        netns: Option<String>,
        /// The command and its arguments
        #[arg(required_unless_present = "netns", trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// End a network, and with it its nodes' commands
    Down {
        /// Its name
        #[arg(value_name = "NETWORK")]
        network: Label,
    },
    /// List this user's networks, each with its nodes
    List,
}

/// Operations on forwarded ports.
#[derive(Debug, Subcommand)]
pub enum ForwardAction {
    /// Forward ports to the guest
    Add {
        /// Its control socket
        socket: PathBuf,
        /// Which ones, written as for --forward
        #[arg(required = true, value_name = "SPEC")]
        ports: Vec<Forward>,
    },
    /// Stop forwarding ports; open connections stay
    Remove {
        /// Its control socket
        socket: PathBuf,
        /// Which ones, written as for --forward
        #[arg(required = true, value_name = "SPEC")]
        ports: Vec<Forward>,
    },
    /// List the forwarded ports
    List {
        /// Its control socket
        socket: PathBuf,
    },
}

/// An address, as an example.
const AN_IP: &str = "192.0.2.1 or 2001:db8::1";

/// The largest bound of flows, far more than a machine's ports and memory allow.
const MOST_FLOWS: usize = 10_000_000;

/// The network.
#[derive(Args, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is an option of its own
pub struct Net {
    /// A preset, mobile, no-pref64, lossy, renumbering or tiny-mtu, or a file with options
    #[arg(long, value_name = "NAME|FILE")]
    pub profile: Option<String>,
    /// The /64 to advertise
    #[arg(long, value_name = "PREFIX/64", value_parser = parse_prefix)]
    pub prefix: Option<Ipv6Addr>,
    /// The NAT64 prefix, of 32, 40, 48, 56, 64 or 96 bits
    #[arg(long, default_value = "64:ff9b::/96")]
    pub prefix64: Prefix,
    /// MTU of the link, 1280 to 65520
    #[arg(long, default_value_t = 1500, value_parser = whole(LEAST_MTU..=65520))]
    pub mtu: u16,
    /// Resolvers to forward questions to [default: those of the host]
    #[arg(long, value_name = "IP[:PORT]", value_parser = resolver)]
    pub dns: Vec<SocketAddr>,
    /// No PREF64 in router advertisements
    #[arg(long)]
    pub no_pref64: bool,
    /// No synthesized AAAA records
    #[arg(long)]
    pub no_dns64: bool,
    /// Synthesize AAAA records also for names that have some: for a host without IPv6
    #[arg(long, conflicts_with = "no_dns64")]
    pub dns64_always: bool,
    /// Answer for this name with this address
    #[arg(long, value_name = "NAME=IP", value_parser = host)]
    pub host: Vec<(Name, IpAddr)>,
    /// Also offer IPv4 by ARP and DHCP, with option 108; optionally with this router address and
    /// prefix length
    #[arg(long, value_name = "ADDRESS/LENGTH", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "192.168.64.1/24", value_parser = dual_stack)]
    pub dual_stack: Option<DualStack>,
    /// Do not tell guests of the DNS server; `run` leaves /etc/resolv.conf as it is
    #[arg(long)]
    pub no_dns: bool,
    /// The guests' search domains [default for `run`: those of the host]
    #[arg(long, value_name = "DOMAIN", value_parser = name)]
    pub search: Vec<Name>,
    /// The router's Ethernet address
    #[arg(long, value_name = "MAC")]
    pub mac: Option<Mac>,
    /// The source address of the host's sockets, one for each family
    #[arg(long, value_name = "IP", value_parser = like::<IpAddr>(AN_IP))]
    pub outbound: Vec<IpAddr>,
    /// The interface that the host's sockets use
    #[arg(long, value_name = "NAME")]
    pub outbound_interface: Option<String>,
    /// An address that guests can use to reach the host's loopback, which is otherwise unreachable
    #[arg(long, value_name = "IP", value_parser = like::<IpAddr>(AN_IP))]
    pub map_host: Vec<IpAddr>,
    /// The share of packets lost in each direction, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    pub loss: f64,
    /// The delay of packets in each direction, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    #[arg(value_parser = whole(0..=60_000_u64))]
    pub delay: u64,
    /// Advertise another prefix every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = whole(1..=86_400_u64))]
    pub prefix_churn: Option<u64>,
    /// Forward ports of the host to the guest: `[tcp:|udp:][HOSTIP:]HOSTPORTS[:GUESTPORTS]`, with
    /// ports like 80, 8000-8010 or 80,443
    #[arg(long, value_name = "SPEC")]
    pub forward: Vec<Forward>,
    /// Write all frames to a capture file
    #[arg(long, value_name = "FILE")]
    pub pcap: Option<PathBuf>,
    /// Report the status on this Unix socket (`platd status`)
    #[arg(long, value_name = "PATH")]
    pub status: Option<PathBuf>,
    /// Accept changes of port forwards on this Unix socket (`platd forward`)
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// The user, by name or number, to become when started by root [default: nobody]
    #[arg(long, value_name = "USER", value_parser = user)]
    pub runas: Option<(Uid, Gid)>,
    /// The device in the namespace
    #[arg(long, default_value = "plat0")]
    pub ifname: String,
    /// No CLAT in the namespace: no IPv4
    #[arg(long)]
    pub no_clat: bool,
    /// Also a CLAT in the namespace of --netns
    #[arg(long, conflicts_with = "no_clat")]
    pub clat: bool,
    /// The most flows at a time
    #[arg(long, default_value_t = Bounds::default().flows)]
    #[arg(value_parser = whole(1..=MOST_FLOWS))]
    pub max_flows: usize,
    /// The most flows of one guest at a time [default: no other limit]
    #[arg(long, value_parser = whole(1..=MOST_FLOWS))]
    pub max_flows_each: Option<usize>,
}

fn resolver(text: &str) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>().ok().or_else(|| resolv_conf::resolver(text)).ok_or_else(|| {
        "not an address; write it like 192.0.2.53, [2001:db8::53]:5353 or fe80::53%eth0".to_owned()
    })
}

fn host(text: &str) -> Result<(Name, IpAddr), String> {
    let wrong = || "write it like db.example=192.0.2.1 or db.example=2001:db8::1".to_owned();
    let (name, address) = text.split_once('=').ok_or_else(wrong)?;
    let address = address.parse().map_err(|_| wrong())?;
    Ok((self::name(name)?, address))
}

fn name(text: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(text).map_err(|e| format!("{text:?} is no name: {e}"))?;
    // With or without the final dot.
    name.set_fqdn(true);
    Ok(name)
}

fn dual_stack(text: &str) -> Result<DualStack, String> {
    let wrong = || "write it like 192.168.64.1/24, with at least two host bits".to_owned();
    let (router, len) = text.split_once('/').ok_or_else(wrong)?;
    let router: Ipv4Addr = router.parse().map_err(|_| wrong())?;
    let prefix_len: u8 = len.parse().ok().filter(|len| (8..=30).contains(len)).ok_or_else(wrong)?;
    // The first address that is not the router's.
    let network = router.to_bits() & (u32::MAX << (32 - prefix_len));
    let guest = network + if router.to_bits() == network + 1 { 2 } else { 1 };
    if router.to_bits() == network || router.to_bits() == network | (u32::MAX >> prefix_len) {
        return Err(format!("{router} is no address of a host in that network"));
    }
    Ok(DualStack { router, guest: guest.into(), prefix_len })
}

fn percent(text: &str) -> Result<f64, &'static str> {
    let share = text.parse().ok().filter(|share| (0.0..=100.0).contains(share));
    share.ok_or("not a share; write a number from 0 to 100")
}

fn user(text: &str) -> Result<(Uid, Gid), String> {
    let found = match text.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(text),
    };
    let found = found.map_err(|errno| errno.desc().to_owned())?;
    found.map(|user| (user.uid, user.gid)).ok_or_else(|| "there is no such user".to_owned())
}

impl Net {
    /// The settings of these options.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let defaults = Settings::default();
        let interface = self.outbound_interface.clone();
        let mut outbound = Outbound { interface, ..Outbound::default() };
        for address in &self.outbound {
            match address {
                IpAddr::V4(v4) => outbound.v4 = Some(*v4),
                IpAddr::V6(v6) => outbound.v6 = Some(*v6),
            }
        }
        let resolvers =
            if self.dns.is_empty() { resolv_conf::resolvers() } else { self.dns.clone() };
        if resolvers.is_empty() {
            log::warn!("there is no nameserver in {}: give one with --dns", resolv_conf::PATH);
        }
        Settings {
            prefix: self.prefix.unwrap_or(defaults.prefix),
            prefix64: self.prefix64,
            mtu: self.mtu,
            pref64: !self.no_pref64,
            dns64: !self.no_dns64,
            dns64_always: self.dns64_always,
            hosts: self.host.clone(),
            resolvers,
            dns: !self.no_dns,
            search: self.search.clone(),
            outbound,
            mac: self.mac.unwrap_or(defaults.mac),
            dual_stack: self.dual_stack,
            map_host: self.map_host.clone(),
            ..defaults
        }
    }

    /// The impairment.
    #[must_use]
    pub fn impairment(&self) -> Impairment {
        Impairment { loss: self.loss / 100.0, delay: Duration::from_millis(self.delay) }
    }
}

fn parse_prefix(text: &str) -> Result<Ipv6Addr, &'static str> {
    let (address, len) = text.split_once('/').unwrap_or((text, "64"));
    let address: Ipv6Addr = address.parse().map_err(|_| "write it like 2001:db8:464::/64")?;
    if len != "64" {
        return Err("a guest configures itself from a /64, no other length");
    }
    if address.to_bits() << 64 != 0 {
        return Err("bits are set behind the 64th");
    }
    if address.is_multicast() || address.is_unicast_link_local() || address.is_unspecified() {
        return Err("it is no prefix of unicast addresses");
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_router() {
        for (text, guest) in [
            ("192.168.64.1/24", Some([192, 168, 64, 2])),
            ("10.0.0.254/8", Some([10, 0, 0, 1])),
            ("192.0.2.2/30", Some([192, 0, 2, 1])),
            ("192.0.2.0/24", None),
            ("192.0.2.255/24", None),
            ("192.0.2.1/31", None),
            ("192.0.2.1", None),
        ] {
            let read = dual_stack(text).ok();
            assert_eq!(read.map(|dual| dual.guest), guest.map(Into::into), "{text}");
        }
        let mac: Mac = "02:00:00:00:04:65".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:00:04:65");
        for wrong in
            ["", "02:00:00:00:04", "02:00:00:00:04:65:1", "01:00:00:00:00:01", "0:0:0:0:0:0"]
        {
            assert!(wrong.parse::<Mac>().is_err(), "{wrong}");
        }
    }
}
