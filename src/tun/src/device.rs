// SPDX-License-Identifier: Apache-2.0

//! A TUN/TAP device inside the process: for tests, and for sandboxes without `/dev/net/tun`.
//!
//! As in Linux it has two sides. A program opens a [`Device`], attaches it to an interface
//! ([`Device::set_iff`], that is TUNSETIFF), reads and writes. The network finds the interface by
//! name ([`Devices::interface`]) and is at the other end of both queues. Both sides can poll a
//! descriptor.

mod snapshot;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::{is_interface_name, PACKET_INFO};

pub use snapshot::{SavedDevice, SavedFrame, SavedInterface, Snapshot};

/// Most frames waiting in one direction; further ones are dropped.
pub const QUEUE: usize = 1024;

const ETHERNET: usize = 14;
/// The longest packet: an IPv6 header and the largest Payload Length.
const MAX_PACKET: usize = 40 + 65535;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Set in the packet info of a packet that did not fit the reader's buffer (`TUN_PKT_STRIP`).
const STRIPPED: u8 = 1;

/// Flags of TUNSETIFF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Flags {
    /// `IFF_TUN`: IP packets.
    pub tun: bool,
    /// `IFF_TAP`: Ethernet frames.
    pub tap: bool,
    /// `IFF_NO_PI`: no packet info (`struct tun_pi`, 4 bytes) in front of each.
    pub no_packet_info: bool,
}

/// What a device carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Kind {
    /// IP packets.
    Tun,
    /// Ethernet frames.
    Tap,
}

/// A frame that a program has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its EtherType: from the packet info, else the Ethernet header, else the IP version.
    pub protocol: u16,
    /// The Ethernet source; zeroes on a TUN device.
    pub source: [u8; 6],
    /// The frame: with Ethernet header on a TAP device, without packet info.
    pub frame: Vec<u8>,
}

/// The devices of one network, by name. Clones share the network.
#[derive(Clone, Debug, Default)]
pub struct Devices {
    nics: Arc<Mutex<HashMap<String, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    nic: Arc<Nic>,
    /// Number of descriptors attached.
    open: usize,
}

impl Devices {
    /// Opens a descriptor without device, as opening `/dev/net/tun` does.
    #[must_use]
    pub fn open(&self) -> Device {
        Device { devices: self.clone(), attached: OnceLock::new() }
    }

    /// The network's side of the device `name`.
    #[must_use]
    pub fn interface(&self, name: &str) -> Option<Interface> {
        Some(Interface { nic: lock(&self.nics).get(name)?.nic.clone() })
    }

    /// Removes a device as `ip link del` does: its descriptors then read and write EIO. Returns
    /// whether it existed.
    pub fn remove(&self, name: &str) -> bool {
        let Some(entry) = lock(&self.nics).remove(name) else { return false };
        entry.nic.remove();
        true
    }

    /// Attaches to the device `name`, or creates it.
    fn attach(&self, name: &str, kind: Kind) -> Result<Arc<Nic>, Errno> {
        let mut nics = lock(&self.nics);
        let name = match name {
            "" if kind == Kind::Tun => free_name(&nics, "tun", ""),
            "" => free_name(&nics, "tap", ""),
            name => match name.split_once("%d") {
                Some((before, after)) => free_name(&nics, before, after),
                None => name.to_owned(),
            },
        };
        if !is_interface_name(&name) {
            return Err(Errno::EINVAL);
        }
        if let Some(entry) = nics.get_mut(&name) {
            if entry.nic.kind != kind {
                return Err(Errno::EINVAL);
            }
            entry.open += 1;
            return Ok(entry.nic.clone());
        }
        let nic = Arc::new(Nic::new(name.clone(), kind)?);
        nics.insert(name, Entry { nic: nic.clone(), open: 1 });
        Ok(nic)
    }

    /// The last descriptor removes the device.
    fn detach(&self, nic: &Arc<Nic>) {
        let mut nics = lock(&self.nics);
        // A removed device may have a successor of the same name.
        let Some(entry) = nics.get_mut(&nic.name).filter(|e| Arc::ptr_eq(&e.nic, nic)) else {
            return;
        };
        entry.open -= 1;
        if entry.open == 0 {
            nics.remove(&nic.name);
            nic.remove();
        }
    }
}

/// The first free number (`dev_alloc_name`). Of one more numbers than there are devices, one is
/// free.
fn free_name(nics: &HashMap<String, Entry>, before: &str, after: &str) -> String {
    let mut names = (0..=nics.len()).map(|n| format!("{before}{n}{after}"));
    names.find(|name| !nics.contains_key(name)).unwrap_or_default()
}

/// A program's side, a descriptor of `/dev/net/tun`. Never blocks.
#[derive(Debug)]
pub struct Device {
    devices: Devices,
    attached: OnceLock<(Arc<Nic>, Flags)>,
}

impl Device {
    /// TUNSETIFF: attaches to the device `name`, or creates it. An empty name is `tun%d` or
    /// `tap%d`; `%d` becomes the first free number.
    ///
    /// # Errors
    /// `EINVAL` if this descriptor has a device already, for neither or both of TUN and TAP, for an
    /// invalid name, or for the name of a device of the other kind.
    pub fn set_iff(&self, name: &str, flags: Flags) -> Result<(), Errno> {
        let kind = match flags {
            Flags { tun: true, tap: false, .. } => Kind::Tun,
            Flags { tun: false, tap: true, .. } => Kind::Tap,
            _ => return Err(Errno::EINVAL),
        };
        if self.attached.get().is_some() {
            return Err(Errno::EINVAL);
        }
        let nic = self.devices.attach(name, kind)?;
        self.attached.set((nic, flags)).map_err(|(nic, _)| {
            // Another thread has attached this descriptor first.
            self.devices.detach(&nic);
            Errno::EINVAL
        })
    }

    /// The device's name; empty while there is none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.attached.get().map_or("", |(nic, _)| &nic.name)
    }

    /// What [`Device::set_iff`] was given; all false before it.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.attached.get().map_or(Flags::default(), |(_, flags)| *flags)
    }

    /// Writes one frame and returns its length. A frame shorter than its headers, or for which the
    /// queue has no room, is dropped.
    ///
    /// # Errors
    /// `EBADFD` before [`Device::set_iff`], `EIO` once the device is removed, `EINVAL` for neither
    /// IPv4 nor IPv6 without packet info, `EMSGSIZE` for more than the longest packet.
    pub fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        let (nic, flags) = self.attached.get().ok_or(Errno::EBADFD)?;
        let mut queues = nic.queues()?;
        let mut frame = data;
        let mut announced = None;
        if !flags.no_packet_info {
            let Some((&[_, _, high, low], rest)) = data.split_first_chunk() else {
                return Ok(data.len());
            };
            announced = Some(u16::from_be_bytes([high, low]));
            frame = rest;
        }
        let (header, mut source) = (frame.first_chunk::<ETHERNET>(), [0; 6]);
        let own = match (nic.kind, header) {
            (Kind::Tap, None) => return Ok(data.len()),
            (Kind::Tap, Some(header)) => {
                source.copy_from_slice(&header[6..12]);
                Some(u16::from_be_bytes([header[12], header[13]]))
            }
            (Kind::Tun, _) => version(frame),
        };
        let protocol = announced.or(own).ok_or(Errno::EINVAL)?;
        if frame.len() > ETHERNET + MAX_PACKET {
            return Err(Errno::EMSGSIZE);
        }
        queues.to_network.push(&nic.network_event, || Written {
            protocol,
            source,
            frame: frame.to_vec(),
        });
        Ok(data.len())
    }

    /// Reads one frame into `buf` and returns its length. A longer frame is cut, and flagged in the
    /// packet info.
    ///
    /// # Errors
    /// `EBADFD` before [`Device::set_iff`], `EIO` once the device is removed, `EAGAIN` if no frame
    /// waits, `EINVAL` for a buffer without room for the packet info.
    pub fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        let (nic, flags) = self.attached.get().ok_or(Errno::EBADFD)?;
        let mut queues = nic.queues()?;
        if flags.no_packet_info {
            let frame = queues.to_program.pop(&nic.program_event).ok_or(Errno::EAGAIN)?;
            let len = frame.len().min(buf.len());
            buf[..len].copy_from_slice(&frame[..len]);
            return Ok(len);
        }
        let (info, room) = buf.split_first_chunk_mut::<PACKET_INFO>().ok_or(Errno::EINVAL)?;
        let frame = queues.to_program.pop(&nic.program_event).ok_or(Errno::EAGAIN)?;
        let protocol = match (nic.kind, frame.first_chunk::<ETHERNET>()) {
            (Kind::Tap, Some(header)) => [header[12], header[13]],
            _ => version(&frame).unwrap_or(0).to_be_bytes(),
        };
        let len = frame.len().min(room.len());
        room[..len].copy_from_slice(&frame[..len]);
        // Flags are in host byte order, the protocol in network byte order.
        let flags = u16::from(if len < frame.len() { STRIPPED } else { 0 }).to_ne_bytes();
        *info = [flags[0], flags[1], protocol[0], protocol[1]];
        Ok(PACKET_INFO + len)
    }

    /// A descriptor that is readable while [`Device::read`] would not fail with EAGAIN, for polling
    /// only. (Writing never blocks.)
    ///
    /// # Errors
    /// `EBADFD` before [`Device::set_iff`].
    pub fn event(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.attached.get().map(|(nic, _)| nic.program_event.as_fd()).ok_or(Errno::EBADFD)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Some((nic, _)) = self.attached.get() {
            self.devices.detach(nic);
        }
    }
}

/// The network's side of a device. Never blocks, and does not keep the device alive.
#[derive(Clone, Debug)]
pub struct Interface {
    nic: Arc<Nic>,
}

impl Interface {
    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.nic.name
    }

    /// What it carries.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.nic.kind
    }

    /// Queues a frame for the program: an Ethernet frame for a TAP device, an IP packet for a TUN
    /// device. Returns whether there was room.
    ///
    /// # Errors
    /// `EIO` once the device is removed, `EINVAL` for no valid frame or packet, `EMSGSIZE` for more
    /// than the longest packet.
    pub fn send(&self, frame: &[u8]) -> Result<bool, Errno> {
        let mut queues = self.nic.queues()?;
        if !self.nic.carries(frame) {
            return Err(Errno::EINVAL);
        }
        if frame.len() > ETHERNET + MAX_PACKET {
            return Err(Errno::EMSGSIZE);
        }
        Ok(queues.to_program.push(&self.nic.program_event, || frame.to_vec()))
    }

    /// The next frame written by the program, if one waits.
    ///
    /// # Errors
    /// `EIO` once the device is removed.
    pub fn recv(&self) -> Result<Option<Written>, Errno> {
        Ok(self.nic.queues()?.to_network.pop(&self.nic.network_event))
    }

    /// Frames dropped because a queue was full: towards the network, and towards the program.
    #[must_use]
    pub fn dropped(&self) -> (u64, u64) {
        let queues = lock(&self.nic.queues);
        (queues.to_network.dropped, queues.to_program.dropped)
    }
}

impl AsFd for Interface {
    /// A descriptor that is readable while [`Interface::recv`] has a frame or an error, for polling
    /// only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.nic.network_event.as_fd()
    }
}

/// One device. An event is readable while its queue is not empty, and for good once the device is
/// removed.
#[derive(Debug)]
struct Nic {
    name: String,
    kind: Kind,
    queues: Mutex<Queues>,
    program_event: EventFd,
    network_event: EventFd,
}

#[derive(Debug, Default)]
struct Queues {
    removed: bool,
    to_network: Queue<Written>,
    to_program: Queue<Vec<u8>>,
}

#[derive(Debug)]
struct Queue<T> {
    frames: VecDeque<T>,
    dropped: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { frames: VecDeque::new(), dropped: 0 }
    }
}

impl<T> Queue<T> {
    fn push(&mut self, event: &EventFd, frame: impl FnOnce() -> T) -> bool {
        if self.frames.len() >= QUEUE {
            self.dropped += 1;
            return false;
        }
        if self.frames.is_empty() {
            signal(event);
        }
        self.frames.push_back(frame());
        true
    }

    fn pop(&mut self, event: &EventFd) -> Option<T> {
        let frame = self.frames.pop_front()?;
        if self.frames.is_empty() {
            // The count is 1 and it does not block: this cannot fail.
            let _ = event.read();
        }
        Some(frame)
    }
}

impl Nic {
    fn new(name: String, kind: Kind) -> Result<Self, Errno> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            name,
            kind,
            queues: Mutex::default(),
            program_event: event()?,
            network_event: event()?,
        })
    }

    /// The queues, unless the device is removed.
    fn queues(&self) -> Result<MutexGuard<'_, Queues>, Errno> {
        let queues = lock(&self.queues);
        if queues.removed {
            return Err(Errno::EIO);
        }
        Ok(queues)
    }

    fn remove(&self) {
        let mut queues = lock(&self.queues);
        *queues = Queues { removed: true, ..Queues::default() };
        signal(&self.program_event);
        signal(&self.network_event);
    }

    fn carries(&self, frame: &[u8]) -> bool {
        match self.kind {
            Kind::Tun => version(frame).is_some(),
            Kind::Tap => frame.len() >= ETHERNET,
        }
    }
}

/// Makes an event readable. Its count stays far below the maximum: this cannot fail.
fn signal(event: &EventFd) {
    let _ = event.write(1);
}

/// Code that holds the lock does not panic; even if it did, the queues would be consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The EtherType of an IP packet, by its version.
fn version(packet: &[u8]) -> Option<u16> {
    match packet.first()? >> 4 {
        4 => Some(ETHERTYPE_IPV4),
        6 => Some(ETHERTYPE_IPV6),
        _ => None,
    }
}
