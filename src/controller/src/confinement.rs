// SPDX-License-Identifier: Apache-2.0

//! Restricts a controller that runs as root: the files that it may change, and its system calls. On
//! Android SELinux does that; elsewhere Landlock (landlock(7), Linux 5.13) and seccomp(2).

/// Allows this thread, its later threads and the programs that they run to change only these files,
/// and the contents of these directories. Reading is not restricted. Sets no_new_privs (prctl(2)).
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

    // An older kernel enforces the part that it knows.
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

/// SELinux does this.
///
/// # Errors
/// None.
#[cfg(target_os = "android")]
pub fn change_only(_: &[&std::path::Path]) -> anyhow::Result<()> {
    Ok(())
}

/// Refuses system calls that neither this process nor clatd needs, and that Landlock and
/// capabilities leave open, or would in a new user namespace: access to other processes' memory,
/// namespaces, mounts, modules, the clock, keys, and often attacked parts of the kernel. This is no
/// list of allowed calls, since that would depend on the C library and the dynamic loader. To be
/// called after [`change_only`].
///
/// # Errors
/// What the kernel said.
#[cfg(not(target_os = "android"))]
pub fn refuse_calls() -> anyhow::Result<()> {
    use nix::libc;

    clat_sandbox::refuse(&[
        // Processes.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kcmp,
        libc::SYS_pidfd_getfd,
        libc::SYS_personality,
        // Namespaces and mounts.
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        // The system.
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_syslog,
        // Keys, and often attacked parts of the kernel.
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_fanotify_init,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ])
}

/// SELinux does this.
///
/// # Errors
/// None.
#[cfg(target_os = "android")]
pub fn refuse_calls() -> anyhow::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::process::Command;
    use std::thread;

    use clat_sandbox::attempt;

    use super::*;

    /// By the confined thread and by a program that it runs.
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

    #[test]
    fn calls_are_refused() {
        let inside = attempt::attempt("confinement::tests::attempts_from_inside", "all");
        let inside = inside.expect("runs");
        assert!(inside.status.success(), "{}", String::from_utf8_lossy(&inside.stderr));
    }

    /// Runs in another process: attempts by an older thread, by this one, and by a program.
    #[test]
    fn attempts_from_inside() {
        if attempt::attempted().is_none() {
            return;
        }
        use nix::errno::Errno;
        use nix::sched::{unshare, CloneFlags};
        let (go, told) = std::sync::mpsc::channel();
        let refused = |flags| unshare(flags) == Err(Errno::EPERM);
        let before = thread::spawn(move || {
            told.recv().expect("told");
            refused(CloneFlags::CLONE_NEWUSER)
        });
        change_only(&[]).expect("confined");
        refuse_calls().expect("refused");
        go.send(()).expect("it waits");
        assert!(before.join().expect("no panic"));
        assert!(refused(CloneFlags::CLONE_NEWNET) && refused(CloneFlags::CLONE_NEWUSER));
        let mount = nix::mount::mount::<str, str, str, str>(
            None,
            "/",
            None,
            nix::mount::MsFlags::MS_REMOUNT,
            None,
        );
        assert_eq!(mount, Err(Errno::EPERM));
        // Threads and programs can still be started.
        assert!(thread::spawn(|| true).join().expect("no panic"));
        let shell = |script: &str| {
            let done = Command::new("sh").args(["-c", script]).output().expect("runs");
            done.status.success()
        };
        assert!(shell("true") && !shell("unshare --user true") && !shell("nsenter -t $$ -n true"));
    }
}
