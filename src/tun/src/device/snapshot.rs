// SPDX-License-Identifier: Apache-2.0

//! Saves and restores devices with the contents of their queues.

use std::sync::OnceLock;

use nix::errno::Errno;

use super::{
    lock, signal, Device, Devices, Flags, Interface, Kind, Nic, Written, ETHERNET, MAX_PACKET,
    QUEUE,
};
use crate::is_interface_name;

/// Descriptors and their devices, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot {
    /// The descriptors, in the order given.
    pub devices: Vec<SavedDevice>,
    /// Their devices.
    pub interfaces: Vec<SavedInterface>,
}

/// One descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedDevice {
    /// Flags of TUNSETIFF.
    pub flags: Flags,
    /// The device, as an index into [`Snapshot::interfaces`]; `None` before TUNSETIFF, or if the
    /// device has been removed.
    pub interface: Option<usize>,
    /// Whether its device had been removed.
    pub removed: bool,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedInterface {
    /// Its name.
    pub name: String,
    /// What it carries.
    pub kind: Kind,
    /// Frames that the network has not received yet.
    pub to_network: Vec<SavedFrame>,
    /// Frames that no program has read yet.
    pub to_program: Vec<Vec<u8>>,
    /// Frames dropped so far: towards the network, and towards the program.
    pub dropped: (u64, u64),
}

/// One frame that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SavedFrame {
    /// Its Ethernet protocol.
    pub protocol: u16,
    /// Its Ethernet source; zeroes on a TUN device.
    pub source: [u8; 6],
    /// Its bytes.
    pub frame: Vec<u8>,
}

impl Devices {
    /// Saves these descriptors and their devices with their queues.
    #[must_use]
    pub fn save(&self, devices: &[&Device]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for device in devices {
            let mut saved = SavedDevice { flags: device.flags(), interface: None, removed: false };
            if let Some((nic, _)) = device.attached.get() {
                saved.interface = snapshot.index(nic);
                saved.removed = saved.interface.is_none();
            }
            snapshot.devices.push(saved);
        }
        snapshot
    }

    /// Makes a network from a snapshot, and returns the descriptors in their order. A removed
    /// device stays removed.
    ///
    /// # Errors
    /// `EINVAL` for an inconsistent snapshot.
    pub fn restore(snapshot: &Snapshot) -> Result<(Self, Vec<Device>), Errno> {
        let devices = Self::default();
        let files = snapshot
            .devices
            .iter()
            .map(|saved| devices.restore_device(saved, &snapshot.interfaces))
            .collect::<Result<Vec<_>, _>>()?;
        for saved in &snapshot.interfaces {
            // A device without descriptor would never be removed.
            let interface = devices.interface(&saved.name).ok_or(Errno::EINVAL)?;
            saved.refill(&interface)?;
        }
        Ok((devices, files))
    }

    fn restore_device(
        &self,
        saved: &SavedDevice,
        interfaces: &[SavedInterface],
    ) -> Result<Device, Errno> {
        if saved.removed {
            let kind = if saved.flags.tap { Kind::Tap } else { Kind::Tun };
            let nic = Nic::new(String::new(), kind)?;
            nic.remove();
            let attached = OnceLock::from((nic.into(), saved.flags));
            return Ok(Device { devices: self.clone(), attached });
        }
        let device = self.open();
        if let Some(index) = saved.interface {
            let interface = interfaces.get(index).ok_or(Errno::EINVAL)?;
            if !is_interface_name(&interface.name) {
                return Err(Errno::EINVAL);
            }
            device.set_iff(&interface.name, saved.flags)?;
        }
        Ok(device)
    }
}

impl Snapshot {
    /// The index of a saved device; `None` if it has been removed.
    fn index(&mut self, nic: &Nic) -> Option<usize> {
        drop(nic.queues().ok()?);
        // Existing devices have different names.
        if let Some(index) = self.interfaces.iter().position(|saved| saved.name == nic.name) {
            return Some(index);
        }
        self.interfaces.push(SavedInterface::of(nic)?);
        Some(self.interfaces.len() - 1)
    }
}

impl SavedInterface {
    /// `None` if it has been removed.
    fn of(nic: &Nic) -> Option<Self> {
        let queues = nic.queues().ok()?;
        let to_network = queues.to_network.frames.iter().map(|w| SavedFrame {
            protocol: w.protocol,
            source: w.source,
            frame: w.frame.clone(),
        });
        Some(Self {
            name: nic.name.clone(),
            kind: nic.kind,
            to_network: to_network.collect(),
            to_program: queues.to_program.frames.iter().cloned().collect(),
            dropped: (queues.to_network.dropped, queues.to_program.dropped),
        })
    }

    fn refill(&self, interface: &Interface) -> Result<(), Errno> {
        let nic = &interface.nic;
        let mut queues = lock(&nic.queues);
        let fits = |frame: &[u8]| frame.len() <= ETHERNET + MAX_PACKET;
        if nic.kind != self.kind
            // Two devices of one name.
            || !queues.to_network.frames.is_empty()
            || !queues.to_program.frames.is_empty()
            || self.to_network.len() > QUEUE
            || self.to_program.len() > QUEUE
            || !self.to_network.iter().all(|saved| fits(&saved.frame))
            || !self.to_program.iter().all(|frame| fits(frame) && nic.carries(frame))
        {
            return Err(Errno::EINVAL);
        }
        queues.to_network.frames = self
            .to_network
            .iter()
            .map(|f| Written { protocol: f.protocol, source: f.source, frame: f.frame.clone() })
            .collect();
        queues.to_program.frames = self.to_program.iter().cloned().collect();
        (queues.to_network.dropped, queues.to_program.dropped) = self.dropped;
        if !queues.to_network.frames.is_empty() {
            signal(&nic.network_event);
        }
        if !queues.to_program.frames.is_empty() {
            signal(&nic.program_event);
        }
        Ok(())
    }
}
