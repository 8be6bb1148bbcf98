// SPDX-License-Identifier: Apache-2.0

//! posix_spawn(3) of the C library. The libc crate lacks it for Android, where bionic has it since
//! API level 28 (bionic, libc/include/spawn.h).

#[cfg(not(target_os = "android"))]
mod imp {
    pub(crate) use libc::{
        posix_spawn, posix_spawn_file_actions_adddup2, posix_spawn_file_actions_addopen,
        posix_spawn_file_actions_destroy, posix_spawn_file_actions_init,
        posix_spawn_file_actions_t, posix_spawnattr_destroy, posix_spawnattr_init,
        posix_spawnattr_setflags, posix_spawnattr_setsigdefault, posix_spawnattr_setsigmask,
        posix_spawnattr_t,
    };
}

#[cfg(target_os = "android")]
mod imp {
    use libc::{c_char, c_int, c_short, c_void, mode_t, pid_t, sigset_t};

    /// Pointers to memory that bionic allocates.
    #[allow(non_camel_case_types)] // C's name
    pub(crate) type posix_spawnattr_t = *mut c_void;
    #[allow(non_camel_case_types)] // C's name
    pub(crate) type posix_spawn_file_actions_t = *mut c_void;

    extern "C" {
        pub(crate) fn posix_spawn(
            pid: *mut pid_t,
            path: *const c_char,
            actions: *const posix_spawn_file_actions_t,
            attributes: *const posix_spawnattr_t,
            argv: *const *mut c_char,
            environment: *const *mut c_char,
        ) -> c_int;
        pub(crate) fn posix_spawnattr_init(attributes: *mut posix_spawnattr_t) -> c_int;
        pub(crate) fn posix_spawnattr_destroy(attributes: *mut posix_spawnattr_t) -> c_int;
        pub(crate) fn posix_spawnattr_setflags(
            attributes: *mut posix_spawnattr_t,
            flags: c_short,
        ) -> c_int;
        pub(crate) fn posix_spawnattr_setsigmask(
            attributes: *mut posix_spawnattr_t,
            mask: *const sigset_t,
        ) -> c_int;
        pub(crate) fn posix_spawnattr_setsigdefault(
            attributes: *mut posix_spawnattr_t,
            signals: *const sigset_t,
        ) -> c_int;
        pub(crate) fn posix_spawn_file_actions_init(
            actions: *mut posix_spawn_file_actions_t,
        ) -> c_int;
        pub(crate) fn posix_spawn_file_actions_destroy(
            actions: *mut posix_spawn_file_actions_t,
        ) -> c_int;
        pub(crate) fn posix_spawn_file_actions_adddup2(
            actions: *mut posix_spawn_file_actions_t,
            from: c_int,
            to: c_int,
        ) -> c_int;
        pub(crate) fn posix_spawn_file_actions_addopen(
            actions: *mut posix_spawn_file_actions_t,
            fd: c_int,
            path: *const c_char,
            flags: c_int,
            mode: mode_t,
        ) -> c_int;
    }
}

pub(crate) use imp::*;

// The same numbers in glibc, musl and bionic; the libc crate gives them different types.
pub(crate) const POSIX_SPAWN_SETSIGDEF: libc::c_short = 0x4;
pub(crate) const POSIX_SPAWN_SETSIGMASK: libc::c_short = 0x8;
/// Ignored by musl, which always uses vfork semantics.
pub(crate) const POSIX_SPAWN_USEVFORK: libc::c_short = 0x40;
/// bionic's, since API level 30.
pub(crate) const POSIX_SPAWN_CLOEXEC_DEFAULT: libc::c_short = 0x100;

/// Whether the C library closes all descriptors but those kept. Elsewhere they are set
/// close-on-exec before, which Android's system_server may not do before Android 14: its seccomp
/// filter lacks close_range(2).
pub(crate) const CLOSES_ALL: bool = cfg!(target_os = "android");
