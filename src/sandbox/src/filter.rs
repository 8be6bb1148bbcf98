// SPDX-License-Identifier: Apache-2.0

//! The system calls that are left, as a program of classic BPF over `struct seccomp_data`
//! (linux/seccomp.h).

use std::collections::BTreeMap;

use anyhow::{ensure, Context};
use clat_sys::classic_bpf::{jump, sock_filter, step, AND, JUMP_IF_EQUAL, LOAD_WORD, RETURN};
use clat_sys::seccomp::filter_all_threads;
use nix::libc::{self, c_int, c_long};

/// What every loop, its last words and the end of its process need.
const COMMON: &[c_long] = &[
    // The loop. On some architectures there is only the p variant of epoll_wait.
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_ctl,
    libc::SYS_clock_gettime,
    // Packets, what signalfd holds, the log. What is done with sockets beyond that the daemon says.
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
    // The end, also the bad one: abort() wants its signal.
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

/// linux/audit.h: AUDIT_ARCH_ of what this is compiled for, whose numbers the system calls have.
const ARCH: Option<u32> = if cfg!(target_arch = "x86_64") {
    Some(0xc000_003e)
} else if cfg!(target_arch = "aarch64") {
    Some(0xc000_00b7)
} else if cfg!(target_arch = "riscv64") {
    Some(0xc000_00f3)
} else {
    None
};

/// Where `struct seccomp_data` has them: the number, what numbers mean, and the arguments of 8
/// bytes each, whose lower half comes first on all of these.
const NUMBER_AT: u32 = 0;
const ARCH_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;

/// SECCOMP_RET_ALLOW and SECCOMP_RET_KILL_PROCESS, which libc has for Android since 2025 alone.
const ALLOW: sock_filter = step(RETURN, 0x7fff_0000);
const KILL: sock_filter = step(RETURN, 0x8000_0000);

/// That of an argument the bits of `mask` are those of `value`.
#[derive(Clone, Copy, Debug)]
struct Condition {
    index: u8,
    mask: u64,
    value: u64,
}

impl Condition {
    /// Of an argument that is an int, of which the kernel sees 32 bits.
    fn int(index: u8, value: c_int) -> Self {
        let value = u32::from_ne_bytes(value.to_ne_bytes()).into();
        Self { index, mask: u32::MAX.into(), value }
    }

    /// Of one that is 64 bits: that it has none of these.
    fn without(index: u8, bits: c_int) -> Self {
        Self { value: 0, mask: Self::int(index, bits).value, index }
    }

    /// Allows the call where it holds, else goes on behind these steps.
    fn steps(self) -> anyhow::Result<Vec<sock_filter>> {
        let at = ARGUMENTS_AT + 8 * u32::from(self.index);
        let mut steps = vec![ALLOW];
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

/// Jumps over `steps` unless what is loaded is `value`.
fn unless_equal(value: u32, steps: &[sock_filter]) -> anyhow::Result<sock_filter> {
    let over = steps.len().try_into().context("too many values of an argument")?;
    Ok(jump(JUMP_IF_EQUAL, value, 0, over))
}

/// System calls that are left. Any other ends the process, with a line in the kernel's log
/// (`type=1326`): its loop never needs it, so it would be someone else's code.
#[derive(Debug)]
pub struct Filter(BTreeMap<c_long, Vec<Condition>>);

impl Filter {
    /// These, and what every loop needs.
    ///
    /// # Errors
    /// None that is known of.
    pub fn new(calls: &[c_long]) -> anyhow::Result<Self> {
        let all = COMMON.iter().chain(calls);
        let mut filter = Self(all.map(|&number| (number, Vec::new())).collect());
        // abort() sends itself its signal, and nobody else any.
        let own = c_int::try_from(std::process::id())?;
        filter.0.insert(libc::SYS_tgkill, vec![Condition::int(0, own)]);
        // Memory, but never code.
        for number in [libc::SYS_mmap, libc::SYS_mprotect] {
            filter.0.insert(number, vec![Condition::without(2, libc::PROT_EXEC)]);
        }
        Ok(filter)
    }

    /// Also this one, where its argument `index` (from 0), an int, is one of `values`.
    ///
    /// # Errors
    /// When there can be no such argument.
    pub fn only(self, call: c_long, index: u8, values: &[c_int]) -> anyhow::Result<Self> {
        values.iter().try_fold(self, |all, &value| all.when(call, Condition::int(index, value)))
    }

    /// Also this one, where its argument `index` is a null pointer.
    ///
    /// # Errors
    /// When there can be no such argument.
    pub fn only_null(self, call: c_long, index: u8) -> anyhow::Result<Self> {
        self.when(call, Condition { index, mask: u64::MAX, value: 0 })
    }

    fn when(mut self, call: c_long, condition: Condition) -> anyhow::Result<Self> {
        ensure!(condition.index < 6, "system calls have six arguments");
        self.0.entry(call).or_default().push(condition);
        Ok(self)
    }

    /// Leaves these system calls, and no other, to all threads, none of which gets new privileges
    /// any more.
    ///
    /// # Errors
    /// What the kernel said; the caller must not go on.
    pub fn apply(&self) -> anyhow::Result<()> {
        let Some(arch) = ARCH else {
            log::warn!("no system call filter on {}", std::env::consts::ARCH);
            return Ok(());
        };
        filter_all_threads(&self.program(arch)?).context("cannot filter system calls")
    }

    /// For the numbers of `arch`.
    fn program(&self, arch: u32) -> anyhow::Result<Vec<sock_filter>> {
        let mut program = vec![
            step(LOAD_WORD, ARCH_AT),
            jump(JUMP_IF_EQUAL, arch, 1, 0),
            KILL,
            step(LOAD_WORD, NUMBER_AT),
        ];
        for (&number, conditions) in &self.0 {
            let mut steps = Vec::new();
            for condition in conditions {
                steps.append(&mut condition.steps()?);
            }
            steps.push(if conditions.is_empty() { ALLOW } else { KILL });
            program.push(unless_equal(number.try_into()?, &steps)?);
            program.append(&mut steps);
        }
        program.push(KILL);
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARCHS: [u32; 3] = [0xc000_003e, 0xc000_00b7, 0xc000_00f3];

    /// What the kernel would do about a call.
    fn verdict(program: &[sock_filter], arch: u32, number: c_long, arguments: [u64; 6]) -> u32 {
        let mut data = u32::try_from(number).unwrap().to_le_bytes().to_vec();
        data.extend(arch.to_le_bytes());
        // Where it was called from.
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
                RETURN => return k,
                _ => panic!("{code:#x}"),
            }
        }
    }

    fn argument(index: usize, value: u64) -> [u64; 6] {
        // Others do not count; as what to do with memory, this is not to run code.
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
            // Numbers that mean something else, as those of x32 do.
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
            // Of an int, the kernel sees 32 bits; above them is whatever was in a register.
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

    /// What is 64 bits is looked at as a whole.
    #[test]
    fn both_halves_count() {
        let (value, mask) = (0x1_0000_0002, u64::MAX);
        for mask in [mask, mask ^ 0x10_0000_0010, 0xf_0000_000f] {
            let mut filter = Filter(BTreeMap::new());
            filter.0.insert(libc::SYS_clone, vec![Condition { index: 5, mask, value }]);
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
