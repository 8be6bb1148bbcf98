// SPDX-License-Identifier: Apache-2.0

//! A seccomp filter of system calls: a classic BPF program over `struct seccomp_data`
//! (linux/seccomp.h).

use std::collections::BTreeMap;

use anyhow::{ensure, Context};
use clat_sys::classic_bpf::{
    jump, sock_filter, step, AND, JUMP_IF_AT_LEAST, JUMP_IF_EQUAL, LOAD_WORD, RETURN,
};
use clat_sys::seccomp::filter_all_threads;
use nix::libc::{self, c_int, c_long};

/// System calls that every daemon needs for its loop, its last log lines and its exit.
const COMMON: &[c_long] = &[
    // The loop. Some architectures have only the p variant of epoll_wait.
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_clock_gettime,
    // Packets, signalfd and the log. Further calls for sockets are up to each daemon.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    // Memory; mmap is below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    // The exit, also by abort(), which sends itself SIGABRT.
    libc::SYS_close,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// AUDIT_ARCH_… (linux/audit.h) of the target, whose system call numbers the filter knows.
const ARCH: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// Offsets in `struct seccomp_data`: the number, the architecture, and arguments of 8 bytes each,
/// lower half first (all targets are little-endian).
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// SECCOMP_RET_ALLOW and SECCOMP_RET_KILL_PROCESS, which libc has for Android only since 2025.
const ALLOW: sock_filter = step(RETURN, 0x7fff_0000);
const KILL: sock_filter = step(RETURN, 0x8000_0000);

/// A condition on an argument: its bits in `mask` equal `value`.
#[derive(Clone, Copy, Debug)]
struct Condition {
    index: u8,
    mask: u64,
    value: u64,
}

impl Condition {
    /// For an int, of which the kernel looks at 32 bits.
    fn int(index: u8, value: c_int) -> Self {
        let value = u32::from_ne_bytes(value.to_ne_bytes()).into();
        Self { index, mask: u32::MAX.into(), value }
    }

    /// For a 64-bit argument: none of `bits` is set.
    fn without(index: u8, bits: c_int) -> Self {
        Self { value: 0, mask: Self::int(index, bits).value, index }
    }

    /// Steps that go through `steps` if the condition holds, and go on behind them if not.
    fn before(self, mut steps: Vec<sock_filter>) -> anyhow::Result<Vec<sock_filter>> {
        let at = ARGUMENTS_AT + 8 * u32::from(self.index);
        for (at, shift) in [(at + 4, 32), (at, 0)] {
            let half = |bits: u64| (bits >> shift & 0xffff_ffff) as u32;
            let mut test = match half(self.mask) {
                0 => continue,
                u32::MAX => vec![step(LOAD_WORD, at)],
                mask => vec![step(LOAD_WORD, at), step(AND, mask)],
            };
            test.push(unless_equal(half(self.value), &steps)?);
            test.append(&mut steps);
            steps = test;
        }
        Ok(steps)
    }
}

/// Jumps over `steps` unless the loaded value is `value`.
fn unless_equal(value: u32, steps: &[sock_filter]) -> anyhow::Result<sock_filter> {
    let over = steps.len().try_into().context("too many values of an argument")?;
    Ok(jump(JUMP_IF_EQUAL, value, 0, over))
}

/// The system calls allowed. Any other kills the process, with a line in the kernel's log
/// (`type=1326`): the loop never makes it, so it would be injected code.
#[derive(Debug)]
pub struct Filter(BTreeMap<c_long, Vec<Vec<Condition>>>);

impl Filter {
    /// Allows `calls` and what every loop needs.
    ///
    /// # Errors
    /// None known.
    pub fn new(calls: &[c_long]) -> anyhow::Result<Self> {
        let all = COMMON.iter().chain(calls);
        let mut filter = Self(all.map(|&number| (number, Vec::new())).collect());
        // abort() sends a signal to its own process only.
        let own = c_int::try_from(std::process::id())?;
        filter.0.insert(libc::SYS_tgkill, vec![vec![Condition::int(0, own)]]);
        // Memory, but not executable.
        for number in [libc::SYS_mmap, libc::SYS_mprotect] {
            filter.0.insert(number, vec![vec![Condition::without(2, libc::PROT_EXEC)]]);
        }
        Ok(filter)
    }

    /// Also allows `call` if its argument `index` (from 0), an int, is one of `values`.
    ///
    /// # Errors
    /// If there can be no such argument.
    pub fn only(self, call: c_long, index: u8, values: &[c_int]) -> anyhow::Result<Self> {
        values.iter().try_fold(self, |all, &value| all.only_all(call, &[(index, value)]))
    }

    /// Also allows `call` if each of these arguments, an index from 0 and an int, has its value.
    ///
    /// # Errors
    /// If there can be no such argument.
    pub fn only_all(self, call: c_long, arguments: &[(u8, c_int)]) -> anyhow::Result<Self> {
        self.when(call, arguments.iter().map(|&(index, value)| Condition::int(index, value)))
    }

    /// Also allows `call` if its argument `index` is a null pointer.
    ///
    /// # Errors
    /// If there can be no such argument.
    pub fn only_null(self, call: c_long, index: u8) -> anyhow::Result<Self> {
        self.when(call, [Condition { index, mask: u64::MAX, value: 0 }])
    }

    fn when(
        mut self,
        call: c_long,
        all: impl IntoIterator<Item = Condition>,
    ) -> anyhow::Result<Self> {
        let all: Vec<_> = all.into_iter().collect();
        ensure!(all.iter().all(|it| it.index < 6), "system calls have six arguments");
        self.0.entry(call).or_default().push(all);
        Ok(self)
    }

    /// Restricts all threads to these system calls and sets no_new_privs.
    ///
    /// # Errors
    /// The kernel's error; the caller must not go on.
    pub fn apply(&self) -> anyhow::Result<()> {
        let Some(arch) = ARCH else {
            log::warn!("no system call filter on {}", std::env::consts::ARCH);
            return Ok(());
        };
        filter_all_threads(&self.program(arch)?).context("cannot filter system calls")
    }

    /// The filter for `arch`.
    fn program(&self, arch: u32) -> anyhow::Result<Vec<sock_filter>> {
        let mut program = vec![
            step(LOAD_WORD, ARCH_AT),
            jump(JUMP_IF_EQUAL, arch, 1, 0),
            KILL,
            step(LOAD_WORD, NUMBER_AT),
        ];
        for (&number, conditions) in &self.0 {
            let mut steps = Vec::new();
            for all in conditions {
                let allow = |steps, condition: &Condition| condition.before(steps);
                steps.append(&mut all.iter().try_fold(vec![ALLOW], allow)?);
            }
            steps.push(if conditions.is_empty() { ALLOW } else { KILL });
            program.push(unless_equal(number.try_into()?, &steps)?);
            program.append(&mut steps);
        }
        program.push(KILL);
        Ok(program)
    }
}

/// Refuses these system calls and new namespaces, with EPERM, in all threads and in programs that
/// they run. The process must have no_new_privs.
///
/// # Errors
/// The kernel's error; the caller must not go on.
pub fn refuse(calls: &[c_long]) -> anyhow::Result<()> {
    let Some(arch) = ARCH else {
        log::warn!("no system call filter on {}", std::env::consts::ARCH);
        return Ok(());
    };
    filter_all_threads(&refusals(calls, arch)?).context("cannot filter system calls")
}

/// The program of [`refuse`], for the numbers of `arch`.
fn refusals(calls: &[c_long], arch: u32) -> anyhow::Result<Vec<sock_filter>> {
    /// The numbers of x32 are those of x86_64 and this bit.
    const X32: u32 = 1 << 30;
    const NAMESPACES: c_int = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    let mut program = vec![
        step(LOAD_WORD, ARCH_AT),
        jump(JUMP_IF_EQUAL, arch, 1, 0),
        KILL,
        step(LOAD_WORD, NUMBER_AT),
        jump(JUMP_IF_AT_LEAST, X32, 0, 1),
        fail_with(libc::EPERM),
    ];
    for &number in calls {
        program.extend([unless_equal(number.try_into()?, &[ALLOW])?, fail_with(libc::EPERM)]);
    }
    // Its flags are in memory, where a filter cannot read them. C libraries call clone(2) then.
    program.extend([
        unless_equal(libc::SYS_clone3.try_into()?, &[ALLOW])?,
        fail_with(libc::ENOSYS),
        unless_equal(libc::SYS_clone.try_into()?, &[ALLOW; 4])?,
        step(LOAD_WORD, ARGUMENTS_AT),
        step(AND, NAMESPACES as u32),
        jump(JUMP_IF_EQUAL, 0, 1, 0),
        fail_with(libc::EPERM),
        ALLOW,
    ]);
    Ok(program)
}

/// SECCOMP_RET_ERRNO
const fn fail_with(errno: c_int) -> sock_filter {
    step(RETURN, 0x0005_0000 | errno as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHS: [u32; 3] = [0xc000_003e, 0xc000_00b7, 0xc000_00f3];

    /// The kernel's verdict about a call.
    fn verdict(program: &[sock_filter], arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
        let mut data = u32::try_from(number).unwrap().to_le_bytes().to_vec();
        data.extend(arch.to_le_bytes());
        // The instruction pointer.
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_le_bytes()));
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            match code {
                LOAD_WORD => {
                    let from = usize::try_from(k).unwrap();
                    loaded = u32::from_le_bytes(data[from..from + 4].try_into().unwrap());
                }
                AND => loaded &= k,
                JUMP_IF_EQUAL => at += usize::from(if loaded == k { jt } else { jf }),
                JUMP_IF_AT_LEAST => at += usize::from(if loaded >= k { jt } else { jf }),
                RETURN => return k,
                _ => panic!("{code:#x}"),
            }
        }
    }

    fn argument(index: usize, value: u64) -> [u64; 6] {
        // Other arguments are not checked; 0xaa… as protection bits lacks PROT_EXEC.
        let mut arguments = [0xaaaa_aaaa_aaaa_aaaa; 6];
        arguments[index] = value;
        arguments
    }

    #[test]
    fn what_is_named_is_left_and_nothing_else() {
        let filter = Filter::new(&[libc::SYS_sendmmsg]).unwrap();
        for arch in ARCHS {
            let program = filter.program(arch).unwrap();
            let any = |number| verdict(&program, arch, number, argument(0, 7)) == ALLOW.k;
            let mut allowed: Vec<_> = (0..1000).filter(|&number| any(number)).collect();
            let mut named = COMMON.to_vec();
            named.extend([libc::SYS_sendmmsg, libc::SYS_mmap, libc::SYS_mprotect]);
            allowed.sort_unstable();
            named.sort_unstable();
            assert_eq!(allowed, named);
            // Numbers of other ABIs, such as x32.
            for (arch, number) in [(arch ^ 1, libc::SYS_read), (arch, libc::SYS_read | 1 << 30)] {
                assert_eq!(verdict(&program, arch, number, argument(0, 7)), KILL.k);
            }
        }
    }

    #[test]
    fn an_argument_is_one_of_those_named() {
        let filter = Filter::new(&[]).unwrap().only(libc::SYS_socket, 1, &[2, -3]).unwrap();
        let own = u64::from(std::process::id());
        for arch in ARCHS {
            let program = filter.program(arch).unwrap();
            let is_left = |number, index, value| {
                verdict(&program, arch, number, argument(index, value)) == ALLOW.k
            };
            // The kernel looks at 32 bits of an int; the upper half of the register is arbitrary.
            for (value, left) in [(2, true), (3, false), (0xffff_fffd, true), (0xffff_ffff, false)]
            {
                for above in [0, 1 << 32, 0xffff_ffff << 32] {
                    assert_eq!(is_left(libc::SYS_socket, 1, value | above), left, "{value:#x}");
                }
            }
            assert!(is_left(libc::SYS_tgkill, 0, own) && !is_left(libc::SYS_tgkill, 0, own ^ 1));
            for prot in 0..16 {
                let code = prot & 4 != 0;
                for number in [libc::SYS_mmap, libc::SYS_mprotect] {
                    assert_eq!(is_left(number, 2, prot), !code, "{prot:#x}");
                    assert_eq!(is_left(number, 2, prot | 1 << 40), !code, "{prot:#x}");
                }
            }
        }
    }

    #[test]
    fn a_pointer_is_null_or_another_argument_is_right() {
        assert!(Filter::new(&[]).unwrap().only(libc::SYS_connect, 6, &[0]).is_err());
        let filter = Filter::new(&[]).unwrap().only_null(libc::SYS_connect, 4).unwrap();
        let filter = filter.only(libc::SYS_connect, 0, &[7, 9]).unwrap();
        for arch in ARCHS {
            let program = filter.program(arch).unwrap();
            let is_left = |index, value| {
                verdict(&program, arch, libc::SYS_connect, argument(index, value)) == ALLOW.k
            };
            assert!(is_left(4, 0) && is_left(0, 7) && is_left(0, 9));
            assert!(!is_left(4, 1) && !is_left(4, 1 << 32) && !is_left(0, 8) && !is_left(1, 7));
        }
    }

    #[test]
    fn all_arguments_are_right() {
        let filter = Filter::new(&[]).unwrap().only_all(libc::SYS_socketpair, &[(0, 1), (1, 2)]);
        let filter = filter.unwrap().only(libc::SYS_socketpair, 3, &[9]).unwrap();
        for arch in ARCHS {
            let program = filter.program(arch).unwrap();
            for (arguments, left) in [
                ([1, 2, 0, 0, 0, 0], true),
                ([1, 3, 0, 0, 0, 0], false),
                ([0, 2, 0, 0, 0, 0], false),
                ([0, 2, 0, 9, 0, 0], true),
            ] {
                let verdict = verdict(&program, arch, libc::SYS_socketpair, arguments);
                assert_eq!(verdict == ALLOW.k, left, "{arguments:?}");
            }
        }
    }

    #[test]
    fn what_is_refused_and_nothing_else() {
        let [eperm, enosys] = [libc::EPERM, libc::ENOSYS].map(|errno| fail_with(errno).k);
        for arch in ARCHS {
            let program = refusals(&[libc::SYS_ptrace, libc::SYS_unshare], arch).unwrap();
            for number in 0..1000 {
                let wanted = match number {
                    libc::SYS_ptrace | libc::SYS_unshare => eperm,
                    libc::SYS_clone3 => enosys,
                    _ => ALLOW.k,
                };
                assert_eq!(verdict(&program, arch, number, argument(0, 0)), wanted, "{number}");
            }
            let clone = |flags: c_int| {
                let flags = u64::from(u32::from_ne_bytes(flags.to_ne_bytes()));
                verdict(&program, arch, libc::SYS_clone, argument(0, flags))
            };
            assert_eq!(clone(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD), ALLOW.k);
            assert_eq!(clone(libc::CLONE_NEWUSER | libc::SIGCHLD), eperm);
            assert_eq!(clone(libc::CLONE_NEWNET), eperm);
            let x32 = libc::SYS_ptrace | 1 << 30;
            assert_eq!(verdict(&program, arch, x32, argument(0, 0)), eperm);
            assert_eq!(verdict(&program, arch ^ 1, libc::SYS_read, argument(0, 0)), KILL.k);
        }
    }

    /// All 64 bits of a pointer or mask are compared.
    #[test]
    fn both_halves_count() {
        let (value, mask) = (0x1_0000_0002, u64::MAX);
        for mask in [mask, mask ^ 0x10_0000_0010, 0xf_0000_000f] {
            let mut filter = Filter(BTreeMap::new());
            filter.0.insert(libc::SYS_clone, vec![vec![Condition { index: 5, mask, value }]]);
            let program = filter.program(ARCHS[0]).unwrap();
            for bit in 0..64 {
                let arguments = argument(5, value ^ 1 << bit);
                let left = verdict(&program, ARCHS[0], libc::SYS_clone, arguments) == ALLOW.k;
                assert_eq!(left, mask & 1 << bit == 0, "{mask:#x}, bit {bit}");
            }
            assert_eq!(verdict(&program, ARCHS[0], libc::SYS_clone, argument(5, value)), ALLOW.k);
        }
    }
}
