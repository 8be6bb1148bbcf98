// SPDX-License-Identifier: Apache-2.0

//! Which files may still be changed, although root owns them: what SELinux says on Android,
//! Landlock (landlock(7), Linux 5.13) says elsewhere.

/// Leaves to this thread, to those that it makes from now on, and to the programs that they run, no
/// more to change than these files, and what is in these directories. Reading stays as it is. No
/// program gets more rights by its file than this one has.
///
/// # Errors
/// What the kernel said.
#[cfg(not(target_os = "android"))]
pub fn change_only(those: &[&std::path::Path]) -> anyhow::Result<()> {
    use anyhow::Context;
    use landlock::{
        path_beneath_rules, AccessFs, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
        RulesetStatus, ABI,
    };

    // Of what a kernel does not know yet, the rest.
    let changes = AccessFs::from_write(ABI::V3);
    let confined = Ruleset::default()
        .handle_access(changes)
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rules(path_beneath_rules(those, changes)))
        .and_then(RulesetCreated::restrict_self)
        .context("cannot confine what may be changed")?;
    if confined.ruleset == RulesetStatus::NotEnforced {
        log::info!("this kernel has no Landlock: what root may change stays open to change");
    }
    Ok(())
}

/// SELinux has said so already.
///
/// # Errors
/// None.
#[cfg(target_os = "android")]
pub fn change_only(_: &[&std::path::Path]) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;
    use std::thread;

    use super::*;

    /// From inside, by the thread and by a program that it runs.
    #[test]
    fn what_is_not_named_cannot_be_changed() {
        let [inside, outside] = ["inside", "outside"].map(|name| {
            let name = format!("clat-confined-{}-{name}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            fs::create_dir(&dir).expect("a directory");
            fs::write(dir.join("old"), "old").expect("written");
            dir
        });
        let attempts = |dir: &Path| {
            let shell = |script: &str| {
                let done = Command::new("sh").args(["-c", script]).current_dir(dir).status();
                done.expect("runs").success()
            };
            [
                fs::write(dir.join("new"), "new").is_ok(),
                fs::write(dir.join("old"), "new").is_ok(),
                fs::rename(dir.join("old"), dir.join("renamed")).is_ok(),
                fs::remove_file(dir.join("renamed")).is_ok(),
                fs::create_dir(dir.join("dir")).is_ok(),
                shell("echo 1 > by-a-program"),
                shell("mkfifo fifo"),
            ]
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                change_only(&[&inside]).expect("confined");
                assert_eq!(attempts(&inside), [true; 7]);
                if fs::write(outside.join("new"), "new").is_err() {
                    assert_eq!(attempts(&outside), [false; 7]);
                } else {
                    assert!(std::env::var_os("CI").is_none(), "this kernel has no Landlock");
                    eprintln!("SKIPPED: this kernel has no Landlock");
                }
                assert_eq!(fs::read_to_string(outside.join("old")).expect("readable"), "old");
            });
        });
        for dir in [inside, outside] {
            fs::remove_dir_all(dir).expect("removed");
        }
    }
}
