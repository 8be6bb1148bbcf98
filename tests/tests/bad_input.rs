// SPDX-License-Identifier: Apache-2.0

//! Bad input through the real command line and socket: the right message, the right exit code, and
//! no side effect.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use anyhow::{ensure, Result};
use clat_tests::{
    can_run, command_lines, install, program, Controller, Lab, Mode, Offloads, PREFIX,
};

const NEEDS: &[&str] = &["ip", "ethtool", "setpriv"];

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A failure with one line on stderr that has `words` in it, and no other side effect.
fn refused(lab: &Lab, controller: &Controller<'_>, args: &[&str], words: &str) -> Result<()> {
    refused_with(1, lab, controller, args, words)
}

/// The same, with this exit code.
fn refused_with(
    code: i32,
    lab: &Lab,
    controller: &Controller<'_>,
    args: &[&str],
    words: &str,
) -> Result<()> {
    let links = lab.phone.run("ip -br link")?;
    let output = controller.try_ctl(args)?;
    let stderr = said(&output);
    ensure!(output.status.code() == Some(code), "{args:?}: {}: {stderr}", output.status);
    ensure!(stderr.trim_end().lines().count() == 1, "{args:?}: not one line: {stderr}");
    ensure!(stderr.contains(words), "{args:?}: no {words:?} in {stderr}");
    ensure!(lab.phone.run("ip -br link")? == links, "{args:?}: an interface came or went");
    let rules = lab.phone.run("ip -6 route show table local type blackhole")?;
    ensure!(rules.is_empty(), "{args:?}: a rule stayed: {rules}");
    ensure!(controller.clatds().is_empty(), "{args:?}: a clatd stayed");
    Ok(())
}

/// Tries bad values of all options of `command` and its subcommands; returns the errors that say
/// what a parser did, not what to write.
fn unhelpful_errors(mut command: clap::Command, path: &[String]) -> Vec<String> {
    const PARSERS_WORDS: [&str; 8] = [
        "invalid digit",
        "invalid float",
        "number too",
        "out of range",
        "from empty string",
        "invalid IP",
        "invalid socket",
        "is not in",
    ];
    command.build();
    let names: Vec<_> = path.iter().cloned().chain([command.get_name().to_owned()]).collect();
    let mut wrong: Vec<_> = command
        .get_subcommands()
        .filter(|subcommand| !subcommand.is_hide_set())
        .flat_map(|subcommand| unhelpful_errors(subcommand.clone(), &names))
        .collect();
    let takes_value =
        |arg: &&clap::Arg| arg.get_num_args().is_some_and(|number| number.takes_values());
    let options = command.get_arguments().filter(takes_value).filter_map(clap::Arg::get_long);
    for option in options {
        for value in ["x", "", "-1", "1.5.", "99999999999999999999"] {
            let line = [names[0].clone(), format!("--{option}={value}")];
            let Err(error) = command.clone().try_get_matches_from(line) else { continue };
            let said = error.to_string();
            if PARSERS_WORDS.iter().any(|words| said.contains(words)) {
                wrong.push(format!("{}: {said}", names.join(" ")));
            }
        }
    }
    wrong
}

#[test]
fn errors_of_options_say_what_to_write() {
    let wrong = command_lines().map(|(command, _)| unhelpful_errors(command, &[])).concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_and_prefixes() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let controller = Controller::new(&lab, Mode::Offload, &[])?;
    let start = |name: &str, words: &str| {
        refused(&lab, &controller, &["start", name, "--prefix", PREFIX], words)
    };
    for name in ["a b", "up0 ", "up0\nCOMMIT", "up0\t", "", ".", "..", "a/b", "a:b", "\u{1b}[31m"] {
        start(name, "EINVAL")?;
    }
    for name in ["a234567890123456", "a2345678901234567890"] {
        start(name, "ENAMETOOLONG")?;
    }
    start("a23456789012345", "ENODEV")?;
    // Thirteen characters do not fit behind "v4-", but the index does; the interface has no
    // address.
    lab.phone.run("ip link add a234567890123 type veth peer name p0")?;
    start("a234567890123", "EADDRNOTAVAIL")?;
    lab.phone.run("ip link del a234567890123")?;
    start("nosuch0", "ENODEV")?;
    // It would be an option to any program that gets it.
    refused(&lab, &controller, &["start", "--prefix", PREFIX, "--", "-j"], "EINVAL")?;

    // An invalid NAT64 prefix is a usage error in any case.
    for (prefix, words) in [
        ("", "not an IPv6 prefix"),
        ("64:ff9b::", "not an IPv6 prefix"),
        ("64:ff9b::/", "not an IPv6 prefix"),
        ("64:ff9b::/96x", "not an IPv6 prefix"),
        ("64:ff9b::/+96", "not an IPv6 prefix"),
        ("64:ff9b::/ 96", "not an IPv6 prefix"),
        ("64:ff9b:::/96", "not an IPv6 prefix"),
        ("64:ff9b::/128", "length"),
        ("64:ff9b::/129", "length"),
        ("64:ff9b::1/96", "bits are set"),
        ("64:ff9b::/96\n-A", "not an IPv6 prefix"),
        ("192.0.2.0/24", "an IPv4 prefix"),
    ] {
        refused_with(2, &lab, &controller, &["start", "up0", "--prefix", prefix], words)?;
    }
    refused(&lab, &controller, &["stop", "up0"], "ENODEV")?;
    refused(&lab, &controller, &["stop", "nosuch0"], "ENODEV")?;
    // After all that, valid input still works.
    controller.start("up0", PREFIX)?;
    Ok(())
}

/// Nobody reads the log of a controller that runs as a service, but everybody what `start` says.
#[test]
fn why_clatd_ended() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let clatd = lab.dir().join("clatd");
    let few = format!("#!/bin/sh\nulimit -n 5\nexec {} \"$@\"\n", program("clatd")?.display());
    fs::write(&clatd, few)?;
    fs::set_permissions(&clatd, fs::Permissions::from_mode(0o755))?;
    let controller = Controller::with_clatd(&lab, &clatd)?;
    let words = "cannot get clatd ready: it exited with status 1 (cannot ";
    refused(&lab, &controller, &["start", "up0", "--prefix", PREFIX], words)
}

#[test]
fn a_second_start_and_a_second_stop() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let controller = Controller::new(&lab, Mode::Offload, &[])?;
    controller.start("up0", PREFIX)?;
    let [clatd] = controller.clatds()[..] else { anyhow::bail!("{:?}", controller.clatds()) };
    let again = controller.try_ctl(&["start", "up0", "--prefix", PREFIX])?;
    ensure!(again.status.code() == Some(1), "{}", again.status);
    ensure!(said(&again).contains("EBUSY"), "{}", said(&again));
    ensure!(said(&again).contains(&clatd.to_string()), "no pid: {}", said(&again));
    assert_eq!(controller.clatds(), [clatd], "the first is left alone");
    controller.ctl(&["stop", "up0"])?;
    refused(&lab, &controller, &["stop", "up0"], "ENODEV")
}

#[test]
fn a_peer_without_the_right_uid() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let controller = Controller::new(&lab, Mode::Offload, &["--allow-uid", "4242"])?;
    let mode = fs::metadata(controller.socket())?.permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "{mode:o}");
    // Open the file's mode, so that the peer's credentials decide.
    fs::set_permissions(controller.socket(), fs::Permissions::from_mode(0o666))?;
    let clatctl = lab.dir().join("clatctl");
    install(&program("clatctl")?, &clatctl)?;
    let as_uid = |uid: &str, args: &[&str]| {
        let clatctl = clatctl.display().to_string();
        let socket = controller.socket().display().to_string();
        let mut argv = vec!["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"];
        argv.extend([clatctl.as_str(), "--socket", &socket]);
        argv.extend(args);
        lab.phone.output(&argv)
    };
    for args in
        [&["start", "up0", "--prefix", PREFIX][..], &["stop", "up0"], &["status"], &["dump"]]
    {
        let output = as_uid("65534", args)?;
        ensure!(!output.status.success(), "{args:?} as nobody: {}", output.status);
        ensure!(said(&output).trim_end().lines().count() == 1, "{}", said(&output));
    }
    ensure!(controller.clatds().is_empty(), "nobody started a CLAT");
    let output = as_uid("4242", &["start", "up0", "--prefix", PREFIX])?;
    ensure!(output.status.success(), "an allowed uid: {}", said(&output));
    Ok(())
}

#[test]
fn no_controller() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let clatctl = program("clatctl")?.display().to_string();
    let output = lab.phone.output(&[&clatctl, "--socket", "/nonexistent/socket", "status"])?;
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    ensure!(said(&output).trim_end().lines().count() == 1, "{}", said(&output));
    for (args, words) in [
        (&["--binder", "status"][..], "leave --binder out"),
        (&["--socket", "/etc/passwd", "status"], "/etc/passwd is no socket"),
    ] {
        let output = lab.phone.output(&[&[clatctl.as_str()], args].concat())?;
        ensure!(output.status.code() == Some(3) && said(&output).contains(words), "{output:?}");
    }
    Ok(())
}

/// A pcap of LINKTYPE_RAW with one record whose header claims `claims` bytes of which `there`
/// follow.
fn pcap(claims: u32, there: &[u8]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 4 << 16 | 2, 0, 0, 65535, 101, 0, 0, claims, claims] {
        file.extend(word.to_le_bytes());
    }
    // Version 2.4 is two words of 16 bits.
    file[4..8].copy_from_slice(&[2, 0, 4, 0]);
    file.extend(there);
    file
}

#[test]
fn truncated_and_lying_captures() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("clatlab-{}-pcap", std::process::id()));
    fs::create_dir_all(&dir)?;
    let (input, output) = (dir.join("in.pcap"), dir.join("out.pcap"));
    let packet = clat_tests::packet::V4::new(
        [192, 0, 0, 4].into(),
        clat_tests::SERVER4,
        clat_tests::packet::proto::GRE,
    )
    .packet(&[0; 40]);
    let good = pcap(60, &packet);
    let translate = |bytes: &[u8]| -> Result<Output> {
        fs::write(&input, bytes)?;
        let clatctl = program("clatctl")?;
        let args = ["translate", "--prefix", PREFIX];
        Ok(std::process::Command::new(clatctl).args(args).arg(&input).arg(&output).output()?)
    };
    let fine = translate(&good)?;
    ensure!(fine.status.success(), "{}", said(&fine));
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("not a capture", b"not a capture at all, whatever its name says".to_vec()),
        ("half a file header", good[..12].to_vec()),
        ("half a record header", good[..30].to_vec()),
        ("half a packet", good[..60].to_vec()),
        ("a record of 4 GiB", pcap(u32::MAX, &packet)),
        ("a record longer than the file", pcap(5000, &packet)),
    ] {
        let result = translate(&bytes)?;
        ensure!(result.status.code() == Some(1), "{what}: {}: {}", result.status, said(&result));
        ensure!(
            !said(&result).is_empty() && !said(&result).contains("panicked"),
            "{what}: {}",
            said(&result)
        );
    }
    // A packet with a wrong header is no fault of the file: the packet is dropped, and the file is
    // translated.
    let mut lying = packet.clone();
    lying[2..4].copy_from_slice(&[0xff, 0xff]);
    let result = translate(&pcap(60, &lying))?;
    ensure!(result.status.success(), "{}", said(&result));
    fs::remove_dir_all(&dir)?;
    Ok(())
}
