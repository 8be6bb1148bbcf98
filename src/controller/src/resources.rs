// SPDX-License-Identifier: Apache-2.0

//! The resources that all CLATs of a controller share: the host, addresses, programs and the
//! observer.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use clat_host::address::Pool;
use nix::sys::eventfd::EventFd;

use crate::ebpf_mode::EbpfMode;
use crate::host::{Hook, Host, LinkKind, Offload, ProbeTarget, Programs};
use crate::model::{Clat, Observer};
use crate::offload::{self, Attached};
use crate::original;

type ProgramsOf<H> = <H as Offload>::Programs;

/// See the module's documentation.
pub(crate) struct Resources<H: Host> {
    pub(crate) host: Arc<H>,
    pub(crate) observer: Observer,
    /// Whether there is no netd: every interface has a network, and we set default routes.
    pub(crate) standalone: bool,
    pub(crate) mode: EbpfMode,
    /// Whether to use the direct way where possible.
    pub(crate) direct: bool,
    /// The host to probe for IPv4.
    pub(crate) probe_target: Option<ProbeTarget>,
    /// The IPv4 addresses that CLATs hold.
    pub(crate) pool: Arc<Pool>,
    /// The programs of the translation in the kernel, until the controller ends.
    pub(crate) programs: Mutex<Option<Arc<ProgramsOf<H>>>>,
    /// The wake-up of the thread that reconciles.
    pub(crate) follower: Arc<OnceLock<Arc<EventFd>>>,
}

impl<H: Host> Resources<H> {
    pub(crate) fn programs(&self) -> Option<Arc<ProgramsOf<H>>> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Attaches the programs for a CLAT. Without them it still works, but slower.
    pub(crate) fn offload(&self, clat: &Clat) -> Option<Attached<ProgramsOf<H>>> {
        let programs = self.programs()?;
        if clat.prefix.bits() != 96 {
            log::info!("{}: {} is no /96: clatd translates it all", clat.iface, clat.prefix);
            return None;
        }
        let attached = Attached::attach(programs.as_ref(), clat, self.direct);
        let told = attached.inspect_err(|e| {
            let level = offload::severity(self.mode, e);
            let is_ethernet =
                programs.link_kind(clat.index).is_ok_and(|kind| kind == LinkKind::Ethernet);
            if let Some(line) = original::no_offload(e, level, clat, is_ethernet) {
                log::log!(level, "{line}");
            }
            log::log!(level, "{e}");
        });
        told.ok()
    }

    /// Whether filters for a CLAT can be attached: another program's may have their place.
    pub(crate) fn has_room(&self, clat: &Clat) -> bool {
        let places = [(clat.v4index, Hook::Egress), (clat.index, Hook::Ingress)];
        let has_room = |programs: Arc<ProgramsOf<H>>| {
            // An error, as for an interface that disappears, counts as free.
            places.into_iter().all(|(index, hook)| programs.has_room(index, hook).unwrap_or(true))
        };
        self.programs().map_or(true, has_room)
    }

    /// A function that makes the follower reconcile without a change in the kernel.
    pub(crate) fn waker(&self) -> impl Fn() + Send {
        let follower = Arc::clone(&self.follower);
        move || {
            if let Some(follower) = follower.get() {
                // Fails only if the eventfd's counter is full, and so readable.
                let _ = follower.write(1);
            }
        }
    }
}
