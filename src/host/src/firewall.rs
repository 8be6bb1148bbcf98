// SPDX-License-Identifier: Apache-2.0

//! Keeps the kernel from answering clatd's packets where there is netd: a drop rule in the packet
//! filter, set by ip6tables-restore as netd did it.

use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use clat_sys::HostError;
use clat_xlat::Prefix;
use nix::errno::Errno;
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use crate::{ClatdArgs, IfaceName, PATH};

/// The chain that netd made for CLATs until Android 12. Made here if it is missing.
const CHAIN: &str = "clat_raw_PREROUTING";

/// How long such a program may take, including waiting for the lock of the tables.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a program that changes the firewall, and returns what it prints.
pub(crate) fn run(program: &str, args: &[&str], input: &str) -> io::Result<String> {
    run_within(TIMEOUT, &find_program(program)?, args, input)
}

/// Runs any program, and kills it and its children after `timeout`.
fn run_within(timeout: Duration, program: &Path, args: &[&str], input: &str) -> io::Result<String> {
    let mut child = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = Pid::from_raw(i32::try_from(child.id()).map_err(|_| Errno::EOVERFLOW)?);
    let (ended, end) = mpsc::channel::<()>();
    let watch = move || {
        let is_late = end.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout);
        is_late && killpg(group, Signal::SIGKILL).is_ok()
    };
    let watch = thread::Builder::new().name("iptables".to_owned()).spawn(watch);
    // The input fits into a pipe, so writing cannot block; if it fails, stderr has the reason.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    drop(ended);
    let program = program.file_name().unwrap_or_default().to_string_lossy();
    if watch?.join().unwrap_or(false) {
        let cause = format!(
            "{program} has not ended within {} s and was killed; does another program hold the \
             firewall's lock? (/run/xtables.lock)",
            timeout.as_secs_f32()
        );
        return Err(HostError::because(Errno::ETIMEDOUT, cause));
    }
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().next().unwrap_or("no message").trim();
        return Err(io::Error::other(format!("{program} failed ({}): {words}", output.status)));
    }
    written?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Finds a program in [`PATH`].
fn find_program(name: &str) -> io::Result<PathBuf> {
    let package = if name == "nft" { "nftables" } else { "iptables" };
    PATH.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file()).ok_or_else(
        || {
            HostError::because(
                Errno::ENOENT,
                format!("{name} is not installed (on Debian: apt-get install {package})"),
            )
        },
    )
}

/// Applies changes to the raw table in one transaction.
fn restore(changes: &[String]) -> io::Result<()> {
    let input = format!("*raw\n{}\nCOMMIT\n", changes.join("\n"));
    run("ip6tables-restore", &["-w", "--noflush"], &input).map(drop)
}

/// The rule of docs/contract.md, start, step 7; `change` is `-A` or `-D`.
fn drop_rule(change: &str, uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> String {
    format!("{change} {CHAIN} -i {uplink} -s {prefix} -d {v6} -j DROP")
}

/// Lines that make the chain and the jump to it.
fn chain() -> [String; 2] {
    [format!(":{CHAIN} - [0:0]"), format!("-A PREROUTING -j {CHAIN}")]
}

/// The raw table as text.
fn save() -> io::Result<String> {
    run("ip6tables-save", &["-t", "raw"], "")
}

fn has_chain(saved: &str) -> bool {
    saved.lines().any(|line| line.starts_with(&format!(":{CHAIN} ")))
}

/// Lines that remove the rules that a previous controller left behind.
fn leftovers(saved: &str) -> Vec<String> {
    let rules = saved.lines().filter_map(|line| line.strip_prefix(&format!("-A {CHAIN} ")));
    rules.map(|rule| format!("-D {CHAIN} {rule}")).collect()
}

/// A drop rule, removed when dropped.
#[derive(Debug)]
pub struct Rule {
    removal: String,
}

impl Rule {
    /// Adds the rule that drops packets from `prefix` to `v6` on `uplink` before the kernel answers
    /// them. The chain is made if it is missing, and stays.
    ///
    /// # Errors
    /// Those of running ip6tables-save and ip6tables-restore.
    pub fn add(uplink: &IfaceName, prefix: &Prefix, v6: Ipv6Addr) -> io::Result<Self> {
        let mut changes = Vec::new();
        // netd has no chain from Android 13 on, and firewalls remove it when they reload their
        // rules.
        if !has_chain(&save()?) {
            changes.extend(chain());
        }
        changes.push(drop_rule("-A", uplink, prefix, v6));
        restore(&changes)?;
        Ok(Self { removal: drop_rule("-D", uplink, prefix, v6) })
    }

    /// Takes over the rules that a previous controller left behind: one for each of `kept`, in this
    /// order. Removes others, in the same transaction.
    ///
    /// # Errors
    /// Those of running ip6tables-save and ip6tables-restore.
    pub fn adopt(kept: &[ClatdArgs]) -> io::Result<Vec<Self>> {
        let saved = save()?;
        let rule = |change, ClatdArgs { uplink, prefix, v6, .. }: &ClatdArgs| {
            drop_rule(change, uplink, prefix, *v6)
        };
        let mut changes = leftovers(&saved);
        if !kept.is_empty() && !has_chain(&saved) {
            changes.extend(chain());
        }
        changes.extend(kept.iter().map(|args| rule("-A", args)));
        if !changes.is_empty() {
            log::warn!("replacing firewall rules of a previous controller");
            restore(&changes)?;
        }
        Ok(kept.iter().map(|args| Self { removal: rule("-D", args) }).collect())
    }

    /// Always false: there is no notification when a rule is removed.
    ///
    /// # Errors
    /// None.
    pub fn restore(&self) -> io::Result<bool> {
        Ok(false)
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        if let Err(e) = restore(std::slice::from_ref(&self.removal)) {
            log::error!("cannot remove a drop rule: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// With its children.
    #[test]
    fn a_program_that_hangs_is_ended() {
        let begin = Instant::now();
        let (timeout, shell) = (Duration::from_millis(100), Path::new("/bin/sh"));
        let hanging = run_within(timeout, shell, &["-c", "sleep 1000; true"], "");
        let error = hanging.expect_err("it hangs");
        assert_eq!(clat_sys::errno_of(&error), Errno::ETIMEDOUT);
        let said = "sh has not ended within 0.1 s and was killed";
        assert!(error.to_string().starts_with(said), "{error}");
        assert!(begin.elapsed() < Duration::from_secs(100));
        let quick = run_within(Duration::from_secs(100), shell, &["-c", "read a; echo $a"], "b\n");
        assert_eq!(quick.expect("it ends"), "b\n");
    }

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
             -A PREROUTING -i other0 -j ACCEPT\n-A PREROUTING -j clat_raw_PREROUTING\n{ours}\n\
             COMMIT\n"
        );
        assert_eq!(leftovers(&saved), [ours.replace("-A", "-D")]);
        assert_eq!(leftovers("*raw\n:clat_raw_PREROUTING - [0:0]\nCOMMIT\n"), [""; 0]);
    }
}
