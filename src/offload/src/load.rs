// SPDX-License-Identifier: Apache-2.0

//! Loads the programs of this build and pins them. What an earlier life has pinned stays where it
//! is the same, so that nobody who uses it notices, and is replaced at one blow where it is not.

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

/// What build.rs makes of bpf_progs/clatd.c.
const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/clatd.o"));

/// Where the object keeps its constants, of which `clat_has_redirect_neigh` is the only one.
const CONSTANTS: &str = ".rodata";

/// linux/magic.h
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// Behind the name of what is about to replace another pin.
const NEW: &str = "_new";

/// The programs of the direct way.
const DIRECT: [&str; 3] = [
    program_name(Hook::Direct, LinkKind::RawIp),
    program_name(Hook::Direct, LinkKind::Ethernet),
    GUARD,
];

/// Our objects, pinned in a folder that no other controller uses. The pins go away when this is
/// dropped, but not under who uses the objects.
#[derive(Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Makes sure that this build's objects are pinned in `dir`; those of the direct way, too, if
    /// it is wanted and the kernel can.
    pub(crate) fn make(dir: &Path, direct: bool) -> io::Result<Self> {
        prepare(dir)?;
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
        let pins = Self { dir: dir.to_owned(), _lock: lock };
        match pins.load(direct) {
            Err(e) if direct => {
                log::warn!("without the direct way: {e}");
                pins.load(false)?;
            }
            done => done?,
        }
        Ok(pins)
    }

    /// Has the pins stay.
    pub(crate) fn detach(mut self) {
        self.dir = PathBuf::from("/nonexistent");
    }

    /// Loads the programs, with the maps that are pinned already where they fit, and pins what is
    /// not the same there.
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

    /// Has `map` be the one that is pinned, if that fits.
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

    /// Pins something as `name`, in place of what is there.
    fn replace(
        &self,
        name: &str,
        pin: impl FnOnce(&Path) -> libbpf_rs::Result<()>,
    ) -> io::Result<()> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}{NEW}")));
        // Of a former life that was killed right here.
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

/// The object and the list of pins are of one build, and a test loads them: only a fault of ours.
fn foreign(name: &str) -> io::Error {
    HostError::because(Errno::EINVAL, format!("bpf_progs/clatd.c has no {name}"))
}

/// Whether the pinned program is the one that we have loaded, on the same of the maps that others
/// see.
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

/// Makes sure that `dir` is there, on a BPF file system; mounts one where it usually is.
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
