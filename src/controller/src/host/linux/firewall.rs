//! The packet filter, by ip6tables-restore, as netd does it.

use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::process::{Command, Stdio};

use clat_xlat::Prefix;

use super::{find_program, LinuxHost, PATH};
use crate::host::Firewall;
use crate::names::IfaceName;

/// The chain that netd makes for CLATs. Elsewhere we do.
const CHAIN: &str = "clat_raw_PREROUTING";

/// Whether the chain is netd's, to be left alone.
pub(super) const IS_NETDS: bool = cfg!(target_os = "android");

/// Runs an iptables program and returns what it prints.
fn run(program: &str, args: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(find_program(program)?)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Small enough for the pipe. A program that does not read it says why on stderr.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or("no word why").trim();
        return Err(io::Error::other(format!("{program} failed ({}): {words}", output.status)));
    }
    written?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Applies changes to the raw table, all or none of them.
fn restore(changes: &[String]) -> io::Result<()> {
    let input = format!("*raw\n{}\nCOMMIT\n", changes.join("\n"));
    run("ip6tables-restore", &["-w", "--noflush"], &input).map(drop)
}

/// `-A` or `-D`, and the rule of DESIGN §3.2, 7.
fn drop_rule(change: &str, uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> String {
    format!("{change} {CHAIN} -i {uplink} -s {prefix} -d {v6} -j DROP")
}

/// Makes the chain and the jump to it.
fn make_chain() -> io::Result<()> {
    restore(&[format!(":{CHAIN} - [0:0]"), format!("-A PREROUTING -j {CHAIN}")])
}

/// What takes the chain away, given how often something jumps to it.
fn removal(jumps: usize) -> Vec<String> {
    let jumps = std::iter::repeat_n(format!("-D PREROUTING -j {CHAIN}"), jumps);
    jumps.chain([format!("-F {CHAIN}"), format!("-X {CHAIN}")]).collect()
}

/// The raw table as text, if it has our chain.
fn saved_with_chain() -> io::Result<Option<String>> {
    let saved = run("ip6tables-save", &["-t", "raw"], "")?;
    Ok(saved.lines().any(|line| line.starts_with(&format!(":{CHAIN} "))).then_some(saved))
}

/// Removes the chain that a controller left behind.
pub(super) fn remove_leftovers() -> io::Result<()> {
    let Some(saved) = saved_with_chain()? else { return Ok(()) };
    let jumps = saved.lines().filter(|line| *line == format!("-A PREROUTING -j {CHAIN}")).count();
    log::warn!("removing the firewall chain {CHAIN} of a former life");
    restore(&removal(jumps))
}

/// Our chain and the jump to it; netd's is not touched.
#[derive(Debug)]
pub struct Chain(());

/// A drop rule.
#[derive(Debug)]
pub struct Rule {
    removal: String,
}

impl Firewall for LinuxHost {
    type Chain = Chain;
    type Rule = Rule;

    fn chain(&self) -> io::Result<Chain> {
        if !IS_NETDS {
            make_chain()?;
        }
        Ok(Chain(()))
    }

    fn drop_rule(&self, uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> io::Result<Rule> {
        let addition = [drop_rule("-A", uplink, prefix, v6)];
        if let Err(e) = restore(&addition) {
            // Firewalls that reload their rules take ours away, and the chain.
            if IS_NETDS || saved_with_chain()?.is_some() {
                return Err(e);
            }
            log::warn!("the firewall chain {CHAIN} was gone; making it again");
            make_chain()?;
            restore(&addition)?;
        }
        Ok(Rule { removal: drop_rule("-D", uplink, prefix, v6) })
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        if let Err(e) = restore(std::slice::from_ref(&self.removal)) {
            log::error!("cannot remove a drop rule: {e}");
        }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        if IS_NETDS {
            return;
        }
        if let Err(e) = restore(&removal(1)) {
            log::error!("cannot remove the firewall chain {CHAIN}: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_is_netds() {
        let uplink = IfaceName::parse("wlan0").expect("a name");
        let v6 = "2001:db8::1:2:3:4".parse().expect("an address");
        assert_eq!(
            drop_rule("-A", &uplink, &Prefix::WELL_KNOWN, v6),
            "-A clat_raw_PREROUTING -i wlan0 -s 64:ff9b::/96 -d 2001:db8::1:2:3:4 -j DROP"
        );
    }
}
