// SPDX-License-Identifier: Apache-2.0

//! The packet filter, by ip6tables-restore, as netd does it.

use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clat_sys::HostError;
use clat_xlat::Prefix;
use nix::errno::Errno;

use crate::{ClatdArgs, IfaceName, HAS_NETD, PATH};

/// The chain of the drop rules. netd makes it up to Android 12; elsewhere this module does.
const CHAIN: &str = "clat_raw_PREROUTING";

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
    // The input fits into a pipe, so writing cannot block; if it fails, stderr has the reason.
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

/// Finds a program in [`PATH`].
fn find_program(name: &str) -> io::Result<PathBuf> {
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file()).ok_or_else(
        || {
            HostError::because(
                Errno::ENOENT,
                format!("{name} is not installed (on Debian: apt-get install iptables)"),
            )
        },
    )
}

/// Applies changes to the raw table in one transaction.
fn restore(changes: &[String]) -> io::Result<()> {
    let input = format!("*raw\n{}\nCOMMIT\n", changes.join("\n"));
    run("ip6tables-restore", &["-w", "--noflush"], &input).map(drop)
}

/// `-A` or `-D`, and the rule of docs/contract.md, start, 7.
fn drop_rule(change: &str, uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> String {
    format!("{change} {CHAIN} -i {uplink} -s {prefix} -d {v6} -j DROP")
}

/// Makes the chain and the jump to it.
fn make_chain() -> io::Result<()> {
    restore(&[format!(":{CHAIN} - [0:0]"), format!("-A PREROUTING -j {CHAIN}")])
}

/// The commands that remove the chain and the given number of jumps to it.
fn removal(jumps: usize) -> Vec<String> {
    let jumps = std::iter::repeat(format!("-D PREROUTING -j {CHAIN}")).take(jumps);
    jumps.chain([format!("-F {CHAIN}"), format!("-X {CHAIN}")]).collect()
}

/// The raw table as text.
fn save() -> io::Result<String> {
    run("ip6tables-save", &["-t", "raw"], "")
}

fn has_chain(saved: &str) -> bool {
    saved.lines().any(|line| line.starts_with(&format!(":{CHAIN} ")))
}

/// The commands that remove what a previous controller left in the raw table: its rules, and the
/// chain unless that is netd's.
fn leftovers(saved: &str, has_netd: bool) -> Vec<String> {
    if has_netd {
        let rules = saved.lines().filter_map(|line| line.strip_prefix(&format!("-A {CHAIN} ")));
        rules.map(|rule| format!("-D {CHAIN} {rule}")).collect()
    } else if has_chain(saved) {
        removal(saved.lines().filter(|line| *line == format!("-A PREROUTING -j {CHAIN}")).count())
    } else {
        Vec::new()
    }
}

/// Takes over what a controller left behind: the chain, and in it one rule for each of `kept`, in
/// this order, and no other; in one transaction. Without any, the chain goes, too, unless it is
/// netd's.
///
/// # Errors
/// Those of running ip6tables-save and ip6tables-restore.
pub fn adopt(kept: &[ClatdArgs]) -> io::Result<Option<(Chain, Vec<Rule>)>> {
    let saved = save()?;
    let rule = |change, ClatdArgs { uplink, prefix, v6, .. }: &ClatdArgs| {
        drop_rule(change, uplink, prefix, *v6)
    };
    let mut changes = leftovers(&saved, HAS_NETD);
    if !kept.is_empty() {
        // No `-X`: the chain is kept and gets other rules.
        changes.retain(|change| !change.starts_with("-X"));
        if !HAS_NETD {
            if !has_chain(&saved) {
                changes.push(format!(":{CHAIN} - [0:0]"));
            }
            changes.push(format!("-A PREROUTING -j {CHAIN}"));
        }
        changes.extend(kept.iter().map(|args| rule("-A", args)));
    }
    if !changes.is_empty() {
        log::warn!("tidying up firewall rules of a former life");
        restore(&changes)?;
    }
    if kept.is_empty() {
        return Ok(None);
    }
    let rules = kept.iter().map(|args| Rule { removal: rule("-D", args) }).collect();
    Ok(Some((Chain { is_ours: !HAS_NETD }, rules)))
}

/// The chain and the jump to it. netd's is not touched.
#[derive(Debug)]
pub struct Chain {
    is_ours: bool,
}

/// A drop rule.
#[derive(Debug)]
pub struct Rule {
    removal: String,
}

/// Makes sure of the chain that drop rules live in.
///
/// # Errors
/// Those of running ip6tables-restore.
pub fn chain() -> io::Result<Chain> {
    // From Android 13 on netd does not make it.
    let is_ours = !HAS_NETD || !has_chain(&save()?);
    if is_ours {
        make_chain()?;
    }
    Ok(Chain { is_ours })
}

/// Adds the rule that keeps the kernel from answering what is clatd's: packets from `prefix` to
/// `v6` on `uplink` are dropped.
///
/// # Errors
/// Those of running ip6tables-restore.
pub fn add_drop_rule(uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> io::Result<Rule> {
    let addition = [drop_rule("-A", uplink, prefix, v6)];
    if let Err(e) = restore(&addition) {
        // A firewall that reloads its rules removes the chain and this rule with it.
        if has_chain(&save()?) {
            return Err(e);
        }
        log::warn!("the firewall chain {CHAIN} was gone; making it again");
        make_chain()?;
        restore(&addition)?;
    }
    Ok(Rule { removal: drop_rule("-D", uplink, prefix, v6) })
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
        if !self.is_ours {
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

    #[test]
    fn what_is_left_over() {
        let ours = "-A clat_raw_PREROUTING -s 64:ff9b::/96 -d 2001:db8::1/128 -i wlan0 -j DROP";
        let saved = format!(
            "*raw\n:PREROUTING ACCEPT [1:2]\n:OUTPUT ACCEPT [0:0]\n:clat_raw_PREROUTING - [0:0]\n\
             -A PREROUTING -i other0 -j ACCEPT\n-A PREROUTING -j clat_raw_PREROUTING\n{ours}\nCOMMIT\n"
        );
        assert_eq!(
            leftovers(&saved, false),
            [
                "-D PREROUTING -j clat_raw_PREROUTING",
                "-F clat_raw_PREROUTING",
                "-X clat_raw_PREROUTING"
            ]
        );
        assert_eq!(leftovers(&saved, true), [ours.replace("-A", "-D")]);
        assert_eq!(leftovers("*raw\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n", false), [""; 0]);
        assert_eq!(leftovers("*raw\n:clat_raw_PREROUTING - [0:0]\nCOMMIT\n", true), [""; 0]);
    }
}
