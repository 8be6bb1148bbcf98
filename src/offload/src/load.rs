// SPDX-License-Identifier: Apache-2.0

//! Loads the programs of this build and pins them. An equal program or map of a previous controller
//! stays, without interruption; a different one is replaced atomically.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use libbpf_rs::libbpf_sys::BPF_FUNC_redirect_neigh;
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions, ProgramInfo};
use libbpf_rs::{MapCore, ObjectBuilder, OpenMapMut, PrintLevel, Program, ProgramType};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{mount, MsFlags};
use nix::sys::statfs::{statfs, FsType};

use clat_netlink::LinkKind;
use clat_sys::HostError;

use crate::model::Hook;
use crate::pins::{from_libbpf, name_in_object, program_name, PinnedMap, GUARD, MAPS, PROGRAMS};
use crate::BPF_DIR;

/// bpf_progs/clatd.c as compiled by build.rs.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/clatd.o"));

/// The object's section of constants: only `clat_has_redirect_neigh`.
const CONSTANTS: &str = ".rodata";

/// linux/magic.h
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// Suffix of a new pin that is about to replace another one.
const NEW: &str = "_new";

/// The programs of the direct way.
const DIRECT: [&str; 3] = [
    program_name(Hook::Direct, LinkKind::RawIp),
    program_name(Hook::Direct, LinkKind::Ethernet),
    GUARD,
];

/// Our pinned objects, in a folder that no other controller uses. Dropping this removes the pins,
/// while users keep the objects.
#[derive(Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Pins this build's objects in `dir`, and those of the direct way if wanted and supported by
    /// the kernel.
    pub(crate) fn make(dir: &Path, direct: bool) -> io::Result<Self> {
        prepare(dir)?;
        let pins = Self::lock(dir)?;
        match pins.load(direct) {
            Err(e) if direct => {
                log::warn!("without the direct way: {e}");
                pins.load(false)?;
            }
            done => done?,
        }
        Ok(pins)
    }

    /// Removes those of a previous controller, if any.
    pub(crate) fn remove(dir: &Path) -> io::Result<()> {
        if dir.exists() {
            drop(Self::lock(dir)?);
        }
        Ok(())
    }

    /// Those of `dir`, whichever there are, unless another controller has them.
    fn lock(dir: &Path) -> io::Result<Self> {
        let lock = File::open(dir).map_err(|e| HostError::during(dir.display(), e))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let cause = format!(
                "another clat_controller has its programs in {}; give this one a --bpf-dir of its \
                    own",
                dir.display()
            );
            if errno == Errno::EAGAIN {
                HostError::because(Errno::EBUSY, cause)
            } else {
                HostError::during(dir.display(), errno)
            }
        })?;
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    /// Leaves the pins.
    pub(crate) fn detach(mut self) {
        self.dir = PathBuf::from("/nonexistent");
    }

    /// Loads the programs with the pinned maps that fit, and pins what differs.
    fn load(&self, direct: bool) -> io::Result<()> {
        libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| log::warn!("{}", text.trim_end()))));
        let mut object = ObjectBuilder::default().open_memory(OBJECT).map_err(from_libbpf)?;
        let has_redirect_neigh = ProgramType::SchedCls
            .is_helper_supported(BPF_FUNC_redirect_neigh)
            .map_err(from_libbpf)?;
        let mut is_told = false;
        // In the order of `MAPS`: whether it is pinned already.
        let mut old = [false; MAPS.len()];
        for mut map in object.maps_mut() {
            let name = map.name().to_string_lossy().into_owned();
            if name.ends_with(CONSTANTS) {
                if let Some([switch]) = map.initial_value_mut() {
                    *switch = has_redirect_neigh.into();
                    is_told = true;
                }
            }
            for (pinned, old) in MAPS.iter().zip(&mut old) {
                if name_in_object(pinned.name) == name {
                    *old = self.reuse(&mut map, pinned)?;
                }
            }
        }
        if !is_told {
            return Err(foreign(CONSTANTS));
        }
        for mut program in object.progs_mut() {
            let is_direct = DIRECT.iter().any(|pin| program.name() == name_in_object(pin));
            program.set_autoload(direct || !is_direct);
        }
        let mut object = object
            .load()
            .map_err(|e| HostError::during("cannot load bpf_progs/clatd.c", from_libbpf(e)))?;

        let mut shared = Vec::new();
        for (pinned, is_old) in MAPS.iter().zip(old) {
            let mut map = object
                .maps_mut()
                .find(|map| map.name() == name_in_object(pinned.name))
                .ok_or_else(|| foreign(pinned.name))?;
            shared.push(map.info().map_err(from_libbpf)?.info.id);
            if !is_old {
                self.replace(pinned.name, |path| map.pin(path))?;
            }
        }
        let programs = PROGRAMS.map(|(hook, link)| program_name(hook, link));
        for name in programs.into_iter().chain(DIRECT.into_iter().filter(|_| direct)) {
            let mut program = object
                .progs_mut()
                .find(|program| program.name() == name_in_object(name))
                .ok_or_else(|| foreign(name))?;
            let is_same = Program::fd_from_pinned_path(self.dir.join(name))
                .is_ok_and(|old| is_same(old.as_fd(), program.as_fd(), &shared));
            if !is_same {
                self.replace(name, |path| program.pin(path))?;
            }
        }
        Ok(())
    }

    /// Reuses the pinned map for `map`, if it fits.
    fn reuse(&self, map: &mut OpenMapMut<'_>, pinned: &PinnedMap) -> io::Result<bool> {
        let path = self.dir.join(pinned.name);
        match pinned.open(&self.dir) {
            Ok(_) => {
                map.reuse_pinned_map(path).map_err(from_libbpf)?;
                Ok(true)
            }
            Err(e) => {
                if path.exists() {
                    log::warn!("replacing a pinned map: {e}");
                }
                Ok(false)
            }
        }
    }

    /// Pins something as `name`, replacing an existing pin.
    fn replace(
        &self,
        name: &str,
        pin: impl FnOnce(&Path) -> libbpf_rs::Result<()>,
    ) -> io::Result<()> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}{NEW}")));
        // A previous controller may have been killed here.
        let _ = fs::remove_file(&new);
        pin(&new).map_err(from_libbpf)?;
        fs::rename(&new, &path).map_err(|e| HostError::during(path.display(), e))
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let programs = PROGRAMS.map(|(hook, link)| program_name(hook, link));
        for name in MAPS.map(|map| map.name).into_iter().chain(programs).chain(DIRECT) {
            match fs::remove_file(self.dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {e}", self.dir.join(name).display());
                }
                _ => {}
            }
        }
    }
}

/// The error for a name that the object lacks. A test loads all of them, so this is a bug.
fn foreign(name: &str) -> io::Error {
    HostError::because(Errno::EINVAL, format!("bpf_progs/clatd.c has no {name}"))
}

/// Whether the pinned program equals the one that we have loaded, and uses the same shared maps.
fn is_same(old: BorrowedFd<'_>, new: BorrowedFd<'_>, shared: &[u32]) -> bool {
    let Some((old, new)) = info(old).zip(info(new)) else { return false };
    let maps = |program: &ProgramInfo| {
        let mut ids = program.map_ids.clone();
        ids.retain(|id| shared.contains(id));
        ids.sort_unstable();
        ids
    };
    old.tag.0 == new.tag.0 && maps(&old) == maps(&new)
}

fn info(program: BorrowedFd<'_>) -> Option<ProgramInfo> {
    let id = Program::id_from_fd(program).ok()?;
    let options = ProgInfoQueryOptions::default().include_map_ids(true);
    ProgInfoIter::with_query_opts(options).find(|program| program.id == id)
}

/// Creates `dir` if needed, on a BPF file system; mounts that at its usual place.
fn prepare(dir: &Path) -> io::Result<()> {
    let failed = |e: io::Error| HostError::during(dir.display(), e);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let is_bpf_fs = || Ok::<_, io::Error>(statfs(dir)?.filesystem_type() == BPF_FS);
    if is_bpf_fs().map_err(failed)? {
        return Ok(());
    }
    if dir == Path::new(BPF_DIR) {
        let none = None::<&str>;
        return mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), none).map_err(|e| {
            HostError::during(format!("cannot mount a BPF file system on {BPF_DIR}"), e)
        });
    }
    let cause = format!(
        "{} is not on a BPF file system; make it a folder in {BPF_DIR}, or mount -t bpf bpf {}",
        dir.display(),
        dir.display()
    );
    Err(HostError::because(Errno::EINVAL, cause))
}
