// SPDX-License-Identifier: Apache-2.0
//! The policy (sepolicy/), compiled as AOSP compiles its own (m4, checkpolicy, secilc) over a
//! substitute platform (tests/sepolicy) with those rules of AOSP's that apply to ours. A rule that
//! asks for BPF fails here, not on a device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use clat_tests::can_run;

const NEEDS: &[&str] = &["m4", "checkpolicy", "secilc"];

/// What a product uses: the natives' rules are optional, and used without others.
const NATIVES: &str = "natives";
const SERVICE: &str = "service";
/// Not for certified devices.
const WITH_BPF: &str = "service-bpf";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The .te files of a folder of sepolicy/.
fn rules(folder: &str) -> Result<Vec<PathBuf>> {
    let folder = repository().join("sepolicy").join(folder);
    let files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(files.into_iter().filter(|path| path.extension().is_some_and(|e| e == "te")).collect())
}

/// Compiles `folders` and the rules `more` over the platform; the error has the compilers' output.
fn compile(folders: &[&str], more: &str) -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let at = |name: &str| temporary.path().join(name);
    let platform = |name: &str| repository().join("tests/sepolicy").join(name);
    fs::write(at("more.te"), more)?;
    let mut m4 = Command::new("m4");
    m4.args(["macros.m4", "classes.conf", "base.te"].map(platform));
    for folder in folders {
        m4.args(rules(folder)?);
    }
    let policy = run(m4.arg(at("more.te")).args(["neverallow.te", "users.conf"].map(platform)))?;
    fs::write(at("policy.conf"), policy)?;
    let version = ["-c", "30", "-o"];
    let mut checkpolicy = Command::new("checkpolicy");
    run(checkpolicy.arg("-C").args(version).args([at("policy.cil"), at("policy.conf")]))?;
    let mut secilc = Command::new("secilc");
    run(secilc.args(version).args([at("policy"), "-f".into(), at("contexts"), at("policy.cil")]))?;
    Ok(())
}

/// Runs a program and returns its output.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

#[test]
fn the_policy_breaks_no_rule_of_the_platform() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    compile(&[], "").context("the platform alone")?;
    for folders in [&[NATIVES][..], &[SERVICE], &[SERVICE, NATIVES]] {
        compile(folders, "").with_context(|| format!("{folders:?}"))?;
    }
    Ok(())
}

#[test]
fn bpf_is_noticed() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for rule in [
        "allow clat_controller bpfloader:bpf map_read;",
        "allow clat_controller bpfloader:bpf prog_run;",
        "allow clat_controller self:bpf { map_create prog_load };",
        "allow clatd bpfloader:bpf map_write;",
        "allow clat_controller fs_bpf:file { getattr read };",
        "allow clat_controller fs_bpf_net_shared:file write;",
        "allow clatd fs_bpf_netd_shared:file read;",
        "typeattribute clat_controller bpfdomain;",
        "allow clat_controller self:capability sys_admin;",
        "allow untrusted_app clatd_controller_service:service_manager find;",
        "allow shell clatd_controller_service:service_manager add;",
    ] {
        let said = compile(&[SERVICE, NATIVES], rule).err().context(rule)?.to_string();
        ensure!(said.contains("neverallow check failed"), "{rule}: {said}");
    }
    Ok(())
}

/// The flavour with BPF breaks the five rules that docs/android.md names, one of them for two
/// classes; nothing else.
#[test]
fn the_flavour_with_bpf_breaks_five_rules() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let said = compile(&[SERVICE, WITH_BPF], "").err().context("no rule is broken")?.to_string();
    let broken: Vec<_> =
        said.lines().filter_map(|line| line.trim().strip_prefix("(neverallow ")).collect();
    ensure!(broken.len() == 6, "{said}");
    for rule in [
        "fs_bpf_net_shared (file (getattr read))",
        "fs_bpf_net_shared (dir (",
        "bpffs_type (file (write))",
        "(net_admin net_raw)",
    ] {
        ensure!(broken.iter().any(|line| line.contains(rule)), "{rule}: {said}");
    }
    Ok(())
}

/// The natives' rules are four, each an allow: on a frozen policy clat does without them.
#[test]
fn the_natives_need_no_rule_of_their_own_types() -> Result<()> {
    let mut allows = Vec::new();
    for file in rules(NATIVES)? {
        let text = fs::read_to_string(file)?;
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let rules = lines.join(" ");
        let rules = rules.split(';').map(str::trim).filter(|rule| !rule.is_empty());
        allows.extend(rules.map(str::to_owned));
    }
    ensure!(allows.len() == 4 && allows.iter().all(|rule| rule.starts_with("allow")), "{allows:?}");
    Ok(())
}

/// All labels used are declared.
#[test]
fn the_labels_are_declared() -> Result<()> {
    let mut declared = fs::read_to_string(repository().join("tests/sepolicy/base.te"))?;
    for file in rules(SERVICE)? {
        declared += &fs::read_to_string(file)?;
    }
    for name in ["file_contexts", "service_contexts"] {
        let text = fs::read_to_string(repository().join("sepolicy").join(SERVICE).join(name))?;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let label = line.split_whitespace().nth(1).context("no label")?;
            let label = label.strip_prefix("u:object_r:").and_then(|rest| rest.strip_suffix(":s0"));
            let label = label.with_context(|| format!("not a label: {line}"))?;
            ensure!(declared.contains(&format!("type {label}")), "{name}: no type {label}");
        }
    }
    Ok(())
}
