// SPDX-License-Identifier: Apache-2.0

//! The command line: the options of AOSP's clatd, and a long name for each.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use clap::{Parser, ValueEnum};
use clat_sys::whole;
use clat_tun::Options;
use clat_xlat::{Local, Prefix, PrefixError};

/// The CLAT's translator daemon (RFC 6877): translates IPv4 packets of a TUN device to IPv6 packets
/// on the uplink, and back.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "clatd", version)]
pub struct Args {
    /// The uplink, an interface with IPv6
    #[arg(short, long, value_name = "IFACE", value_parser = interface)]
    pub interface: String,
    /// Routing mark of the packets sent, hexadecimal with 0x or decimal
    #[arg(short, long, default_value = "0", value_parser = number)]
    pub mark: u32,
    /// The network's NAT64 prefix; a /96 if it has no length
    #[arg(short, long, value_name = "PREFIX", value_parser = prefix)]
    pub plat_prefix: Prefix,
    /// The CLAT's IPv4 address
    #[arg(short = '4', long, value_name = "V4", value_parser = ipv4)]
    pub ipv4_addr: Ipv4Addr,
    /// The CLAT's IPv6 address
    #[arg(short = '6', long, value_name = "V6", value_parser = ipv6)]
    pub ipv6_addr: Ipv6Addr,
    /// Descriptor of the TUN device
    #[arg(short, long, value_name = "FD", value_parser = descriptor)]
    pub tunfd: RawFd,
    /// What precedes each packet of the TUN device, used if the kernel may not be asked
    #[arg(long, value_name = "LAYOUT", default_value = "packet-info")]
    pub tun_layout: TunLayout,
    /// Descriptor of a packet socket, bound and filtered by the caller, who also sets up the TUN
    /// device and handles neighbour discovery
    #[arg(short, long, value_name = "FD", value_parser = descriptor, requires = "write_sock")]
    pub read_sock: Option<RawFd>,
    /// Descriptor of a raw IPv6 socket, bound by the caller
    #[arg(short, long, value_name = "FD", value_parser = descriptor, requires = "read_sock")]
    pub write_sock: Option<RawFd>,
    /// Queues of a TUN device that supports several, each served by its own thread under load
    /// [default: half the number of processors, at least 2 and at most 8; 1 on one processor]
    #[arg(long, value_name = "N", value_parser = whole(1..=256_u16))]
    pub queues: Option<u16>,
}

/// What precedes each packet of a TUN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TunLayout {
    /// Nothing
    Plain,
    /// Packet info, 4 bytes: a device without IFF_NO_PI, like AOSP's
    PacketInfo,
    /// A virtio header, 10 bytes: IFF_NO_PI and IFF_VNET_HDR
    Vnet,
}

impl From<TunLayout> for Options {
    fn from(layout: TunLayout) -> Self {
        Self {
            packet_info: layout == TunLayout::PacketInfo,
            vnet_header: layout == TunLayout::Vnet,
        }
    }
}

/// The options that AOSP's clatd of 2026 takes by position, in this order.
const POSITIONAL: [&str; 7] = ["-i", "-p", "-4", "-6", "-t", "-r", "-w"];

/// Adds option names to a command line of seven arguments without names, as AOSP's clatd of 2026
/// has it. Returns others unchanged.
#[must_use]
pub fn named(line: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let line: Vec<OsString> = line.collect();
    let Some((program, values)) = line.split_first() else { return line };
    let is_name = |value: &OsString| value.as_encoded_bytes().starts_with(b"-");
    if values.len() != POSITIONAL.len() || values.iter().any(is_name) {
        return line;
    }
    let pairs =
        POSITIONAL.iter().zip(values).flat_map(|(name, value)| [name.into(), value.clone()]);
    std::iter::once(program.clone()).chain(pairs).collect()
}

impl Args {
    /// The CLAT's pair of addresses.
    #[must_use]
    pub fn local(&self) -> Local {
        Local { v4: self.ipv4_addr, v6: self.ipv6_addr }
    }
}

fn interface(text: &str) -> Result<String, &'static str> {
    if clat_tun::is_interface_name(text) {
        Ok(text.to_owned())
    } else {
        Err("no interface can have this name: 1 to 15 bytes, no blanks, '/', ':' or '%'")
    }
}

fn number(text: &str) -> Result<u32, &'static str> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = digits.map_or((text, 10), |digits| (digits, 16));
    // from_str_radix would accept a sign.
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("not a number");
    }
    u32::from_str_radix(digits, radix).map_err(|_| "not a number of 32 bits")
}

fn prefix(text: &str) -> Result<Prefix, String> {
    if text.contains('/') {
        return text.parse().map_err(|e: PrefixError| e.to_string());
    }
    let addr = text.parse().map_err(|_| "not an IPv6 address, like 64:ff9b::")?;
    Prefix::new(addr, 96).map_err(|e| e.to_string())
}

fn ipv4(text: &str) -> Result<Ipv4Addr, &'static str> {
    let addr: Ipv4Addr = text.parse().map_err(|_| "not an IPv4 address")?;
    if addr.is_unspecified() || addr.is_loopback() || addr.octets()[0] >= 224 {
        return Err("no host can have this address");
    }
    Ok(addr)
}

fn ipv6(text: &str) -> Result<Ipv6Addr, &'static str> {
    let addr: Ipv6Addr = text.parse().map_err(|_| "not an IPv6 address")?;
    if addr.is_unspecified() || addr.is_loopback() || addr.is_multicast() {
        return Err("no host can have this address");
    }
    Ok(addr)
}

fn descriptor(text: &str) -> Result<RawFd, &'static str> {
    let fd = number(text).ok().and_then(|n| RawFd::try_from(n).ok());
    fd.filter(|fd| *fd > 2).ok_or("not a file descriptor beyond stderr's")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const GOOD: &str =
        "clatd -i wlan0 -m 0xf0064 -p 64:ff9b:: -4 192.0.0.4 -6 2001:db8::1:2:3:4 -t 5";

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split(' '))
    }

    #[test]
    fn short_and_long_say_the_same() {
        Args::command().debug_assert();
        let short = parse(&format!("{GOOD} -r 6 -w 7")).unwrap();
        let long = "clatd-wlan0 --interface wlan0 --mark 983140 --plat-prefix 64:ff9b:: \
                    --ipv4-addr 192.0.0.4 --ipv6-addr 2001:db8::1:2:3:4 --tunfd 5 --read-sock 6 \
                    --write-sock 7";
        assert_eq!(short, parse(long).unwrap());
        assert_eq!(short.mark, 0xf0064);
        assert_eq!((short.tunfd, short.read_sock, short.write_sock), (5, Some(6), Some(7)));
        assert_eq!(parse(GOOD).unwrap().read_sock, None);
        assert_eq!(parse(GOOD).unwrap().queues, None);
        assert_eq!(parse(&format!("{GOOD} --queues 4")).unwrap().queues, Some(4));
    }

    #[test]
    fn seven_values_without_names() {
        let line = "clatd wlan0 64:ff9b:: 192.0.0.4 2001:db8::1:2:3:4 5 6 7";
        let args = Args::try_parse_from(named(line.split(' ').map(OsString::from))).unwrap();
        let named_line = GOOD.replace(" -m 0xf0064", "");
        assert_eq!(args, parse(&format!("{named_line} -r 6 -w 7")).unwrap());
        for other in [GOOD, "clatd", "clatd 1 2 3 4 5 6", "clatd -i wlan0 -p 64:ff9b:: -4 1 -t"] {
            let words = || other.split(' ').map(OsString::from);
            assert_eq!(named(words()), words().collect::<Vec<_>>());
        }
        assert!(named(std::iter::empty()).is_empty());
    }

    #[test]
    fn bad_values() {
        for (good, bad) in [
            ("wlan0", "wlan0:1"),
            ("wlan0", "sixteen-letters-"),
            ("wlan0", "../x"),
            ("0xf0064", "0x"),
            ("0xf0064", "-1"),
            ("0xf0064", "0x+1"),
            ("0xf0064", "f0064"),
            ("0xf0064", "0x100000000"),
            ("64:ff9b::", "64:ff9b::/95"),
            ("64:ff9b::", "64:ff9b::1"),
            ("64:ff9b::", "192.0.2.1"),
            ("192.0.0.4", "192.0.0"),
            ("192.0.0.4", "255.255.255.255"),
            ("192.0.0.4", "0.0.0.0"),
            ("2001:db8::1:2:3:4", "::"),
            ("2001:db8::1:2:3:4", "ff02::1"),
            ("2001:db8::1:2:3:4", "fe80::1%wlan0"),
            ("-t 5", "-t 2"),
            ("-t 5", "-t 99999999999"),
            ("-t 5", "-t 5 -r 6"),
            ("-t 5", "-t 5 -w 6"),
            ("-t 5", "-t 5 --queues 0"),
            ("-t 5", "-t 5 --queues 257"),
            ("-t 5", "-t 5 --tun-layout tap"),
        ] {
            let line = GOOD.replacen(good, bad, 1);
            assert!(parse(&line).is_err(), "{line}");
        }
    }
}
