// SPDX-License-Identifier: Apache-2.0

//! Loads the programs of this build and pins them. What an earlier life has pinned stays where it
//! is the same, so that nobody who uses it notices, and is replaced at one blow where it is not.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use libbpf_rs::libbpf_sys::BPF_FUNC_redirect_neigh;
use libbpf_rs::query::{ProgInfoIter, ProgInfoQueryOptions, ProgramInfo};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapMut, OpenMapMut, PrintLevel, Program, ProgramMut, ProgramType};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{mount, MsFlags};
use nix::sys::statfs::{statfs, FsType};

use clat_netlink::LinkKind;
use clat_sys::HostError;

use crate::model::Hook;
use crate::pins::{
    from_libbpf, program_name, PinnedMap, BPF_DIR, COUNTERS_MAP, EGRESS_MAP, INGRESS_MAP,
    NEXT_HOP_MAP, PROGRAMS,
};

/// What libbpf-cargo makes of bpf_progs/clatd.c.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used
)]
mod skeleton {
    include!(concat!(env!("OUT_DIR"), "/clatd.skel.rs"));
}

/// linux/magic.h
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// Behind the name of what is about to replace another pin.
const NEW: &str = "_new";

/// Our objects, pinned in a folder that no other controller uses. The pins go away when this is
/// dropped, but not under who uses the objects.
#[derive(Debug)]
pub(crate) struct Pins {
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Pins {
    /// Makes sure that this build's objects are pinned in `dir`.
    pub(crate) fn make(dir: &Path) -> io::Result<Self> {
        prepare(dir)?;
        let lock = File::open(dir).map_err(|e| HostError::during(dir.display(), e))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
            let cause = format!(
                "another clat_controller has its programs in {}; give this one a --bpf-dir of its own",
                dir.display()
            );
            if errno == Errno::EAGAIN { HostError::because(Errno::EBUSY, cause) } else { HostError::during(dir.display(), errno) }
        })?;
        let pins = Self { dir: dir.to_owned(), _lock: lock };
        pins.load()?;
        Ok(pins)
    }

    /// Has the pins stay.
    pub(crate) fn detach(mut self) {
        self.dir = PathBuf::from("/nonexistent");
    }

    /// Loads the programs, with the maps that are pinned already where they fit, and pins what is
    /// not the same there.
    fn load(&self) -> io::Result<()> {
        libbpf_rs::set_print(Some((PrintLevel::Warn, |_, text| log::warn!("{}", text.trim_end()))));
        let mut object = MaybeUninit::uninit();
        let mut open =
            skeleton::ClatdSkelBuilder::default().open(&mut object).map_err(from_libbpf)?;
        let has_redirect_neigh = ProgramType::SchedCls
            .is_helper_supported(BPF_FUNC_redirect_neigh)
            .map_err(from_libbpf)?;
        open.maps.rodata_data.clat_has_redirect_neigh = has_redirect_neigh.into();

        let maps = &mut open.maps;
        let old = [
            self.reuse(&mut maps.clat_egress_map, &EGRESS_MAP)?,
            self.reuse(&mut maps.clat_ingress_map, &INGRESS_MAP)?,
            self.reuse(&mut maps.clat_next_hop_map, &NEXT_HOP_MAP)?,
            self.reuse(&mut maps.clat_counters_map, &COUNTERS_MAP)?,
        ];
        let mut loaded = open
            .load()
            .map_err(|e| HostError::during("cannot load bpf_progs/clatd.c", from_libbpf(e)))?;

        let maps = &mut loaded.maps;
        let new: [(&mut MapMut<'_>, _); 4] = [
            (&mut maps.clat_egress_map, EGRESS_MAP.name),
            (&mut maps.clat_ingress_map, INGRESS_MAP.name),
            (&mut maps.clat_next_hop_map, NEXT_HOP_MAP.name),
            (&mut maps.clat_counters_map, COUNTERS_MAP.name),
        ];
        let mut shared = Vec::new();
        for ((map, name), is_old) in new.into_iter().zip(old) {
            shared.push(map.info().map_err(from_libbpf)?.info.id);
            if !is_old {
                self.replace(name, |path| map.pin(path))?;
            }
        }
        for (hook, link) in PROGRAMS {
            let programs = &mut loaded.progs;
            let program: &mut ProgramMut<'_> = match (hook, link) {
                (Hook::Egress, LinkKind::RawIp) => &mut programs.schedcls_egress_clat_rawip,
                (Hook::Egress, LinkKind::Ethernet) => &mut programs.schedcls_egress_clat_ether,
                (Hook::Ingress, LinkKind::RawIp) => &mut programs.schedcls_ingress_clat_rawip,
                (Hook::Ingress, LinkKind::Ethernet) => &mut programs.schedcls_ingress_clat_ether,
            };
            let name = program_name(hook, link);
            let is_same = Program::fd_from_pinned_path(self.dir.join(name))
                .is_ok_and(|old| is_same(old.as_fd(), program.as_fd(), &shared));
            if !is_same {
                self.replace(name, |path| program.pin(path))?;
            }
        }
        Ok(())
    }

    /// Has `map` be the one that is pinned, if that fits.
    fn reuse<K, V>(&self, map: &mut OpenMapMut<'_>, pinned: &PinnedMap<K, V>) -> io::Result<bool> {
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
        let maps = [EGRESS_MAP.name, INGRESS_MAP.name, NEXT_HOP_MAP.name, COUNTERS_MAP.name];
        for name in maps.into_iter().chain(programs) {
            match fs::remove_file(self.dir.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    log::warn!("cannot remove {}: {e}", self.dir.join(name).display());
                }
                _ => {}
            }
        }
    }
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
