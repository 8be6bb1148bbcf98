// SPDX-License-Identifier: Apache-2.0

//! The frozen AIDL (aidl/aidl_api): today's files must be able to replace each frozen version, and
//! a frozen version stays as it was frozen. The checks are those of AOSP's build
//! (system/tools/aidl/build).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clat_tests::can_run;
use tempfile::TempDir;

/// The frozen versions, oldest first, and the previous version given to AOSP's hash_gen.sh.
const FROZEN: [(&str, &str); 2] = [("1", "latest-version"), ("2", "1")];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../aidl")
}

fn sh(dir: &Path, command: &str) -> Output {
    Command::new("sh").args(["-ec", command]).current_dir(dir).output().expect("sh")
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat()
}

/// The signatures of today's files, as dumped by the compiler.
fn today() -> TempDir {
    let out = TempDir::new().expect("a folder");
    let command = format!(
        "aidl --dumpapi --structured -I . --out={} $(find android -name '*.aidl')",
        out.path().display()
    );
    let output = sh(&folder(), &command);
    assert!(output.status.success(), "{}", said(&output));
    out
}

/// The frozen interface, without its hash, which this compiler would read as AIDL.
fn frozen(version: &str) -> TempDir {
    let copy = TempDir::new().expect("a folder");
    let command =
        format!("cp -r aidl_api/android_net_clat_aidl/{version}/android {}", copy.path().display());
    let output = sh(&folder(), &command);
    assert!(output.status.success(), "{}", said(&output));
    copy
}

fn check(old: &Path, new: &Path) -> Output {
    sh(&folder(), &format!("aidl --checkapi {} {}", old.display(), new.display()))
}

#[test]
fn today_can_replace_what_is_frozen() {
    if !can_run(&["aidl"]) {
        return;
    }
    let today = today();
    for (version, _) in FROZEN {
        let output = check(frozen(version).path(), today.path());
        assert!(output.status.success(), "{version}: {}", said(&output));
    }
    // "current" is today's interface in the format of AOSP's compiler, which differs from version
    // to version.
    let current = frozen("current");
    for (old, new) in [(&current, &today), (&today, &current)] {
        let output = check(old.path(), new.path());
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn a_change_that_breaks_callers_is_noticed() {
    if !can_run(&["aidl"]) {
        return;
    }
    let old = frozen("2");
    for (file, from, to) in [
        (
            "IClatdController",
            "void clatdStop(in @utf8InCpp String ifName)",
            "void clatdStop(int it)",
        ),
        ("IClatdEventListener", "int restarts", "long restarts"),
        ("ClatStatus", "int fwmark;", ""),
        ("IClatdController", "void networkDestroy(int netId)", "void networkDestroyed(int netId)"),
    ] {
        let new = today();
        let path = new.path().join(format!("android/net/clat/{file}.aidl"));
        let text = fs::read_to_string(&path).expect("dumped");
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).expect("written");
        assert!(!check(old.path(), new.path()).status.success(), "{file}: {from}");
    }
}

#[test]
fn a_frozen_version_is_as_it_was() {
    for (version, before) in FROZEN {
        let folder = folder().join("aidl_api/android_net_clat_aidl").join(version);
        let command = format!(
            r#"{{
                find ./ -name "*.aidl" -print0 | LC_ALL=C sort -z | xargs -0 sha1sum &&
                echo {before}
            }} | sha1sum | cut -d " " -f 1"#
        );
        let output = sh(&folder, &command);
        let hash = fs::read_to_string(folder.join(".hash")).expect("frozen with its hash");
        assert_eq!(String::from_utf8_lossy(&output.stdout), hash, "{version}");
    }
}

/// With `frozen: true` in Android.bp AOSP's build compares the latest version with today's as text;
/// with `false` there has to be something that is not frozen yet.
#[test]
fn what_is_unfrozen_is_said() {
    let (latest, _) = FROZEN[FROZEN.len() - 1];
    let output = sh(
        &folder().join("aidl_api/android_net_clat_aidl"),
        &format!("diff -r -x .hash {latest} current || true"),
    );
    assert!(output.status.success(), "{}", said(&output));
    let blueprint = fs::read_to_string(folder().join("Android.bp")).expect("Android.bp");
    let is_frozen = blueprint.contains("frozen: true,");
    assert!(is_frozen || blueprint.contains("frozen: false,"), "{blueprint}");
    assert_eq!(output.stdout.is_empty(), is_frozen, "{}", said(&output));
}
