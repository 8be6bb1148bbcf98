// SPDX-License-Identifier: Apache-2.0

//! TUN/TAP devices.
//!
//! A [`Tun`] is one descriptor (a queue) of a kernel device: created here ([`Tun::create`]), or
//! taken over from its creator ([`Tun::from_fd`]), in which case the kernel is asked for its
//! layout. The kernel removes the device with its last descriptor.

pub mod device;
pub mod handover;
mod sys;
mod vnet;

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use clat_sys::{errno_of, set_nonblocking};
use nix::errno::Errno;
use nix::sys::uio::{readv, writev};
use nix::unistd::{geteuid, write};

pub use vnet::{GsoType, VirtioHeader};

/// The device file that queues are opened from.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Most bytes in front of a packet: packet info and the largest virtio header supported.
pub const MAX_HEAD: usize = PACKET_INFO + MAX_VNET;
/// Packets up to this size, headers included, are copied and written as one piece: that costs less
/// than passing the kernel several pieces.
const SMALL: usize = 256;
const PACKET_INFO: usize = 4;
const MAX_VNET: usize = 64;

/// The most pieces that [`Tun::send_pieces`] takes.
pub const MAX_PIECES: usize = 32;

/// What the kernel may leave to a reader with virtio headers (`TUN_F_` of linux/if_tun.h): L4
/// checksums and TCP segmentation, also with ECN. `bpf_skb_change_proto` needs the first for
/// UDP_SEGMENT packets.
const CSUM_AND_TSO: i32 = 0x01 | 0x02 | 0x04 | 0x08;
/// UDP_SEGMENT, since Linux 6.2.
const USO: i32 = 0x20 | 0x40;

/// Why a device could not be created or taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is empty, too long (16 bytes with terminator) or has a character that interface
    /// names cannot have.
    #[error("{0:?} cannot name an interface: 1 to 15 bytes, no blanks, '/', ':' or '%'")]
    Name(String),
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open /dev/net/tun: {}; is the tun module loaded, and may this user open the \
        file?", .0.desc())]
    Open(Errno),
    /// The device exists already, and was to be created.
    #[error("cannot create {name}: it exists already; remove it with `ip link del {name}`")]
    Exists {
        /// The device.
        name: String,
    },
    /// The kernel refuses to create the device.
    #[error("cannot create {name}: {errno}; it takes CAP_NET_ADMIN")]
    Create {
        /// The device.
        name: String,
        /// The kernel's error.
        errno: Errno,
    },
    /// A descriptor of something else, or of a device that has been removed.
    #[error("file descriptor {fd} is not a TUN device: {errno}")]
    NotTun {
        /// The descriptor.
        fd: i32,
        /// The kernel's error.
        errno: Errno,
    },
    /// A TAP device, where a TUN device is needed.
    #[error("{0} is a TAP device; a TUN device is needed")]
    Tap(String),
    /// A virtio header of an unsupported size.
    #[error("the TUN device has a virtio header of {0} bytes; 10 to 64 are supported")]
    HeaderSize(usize),
}

impl Error {
    /// The error as errno.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Name(_) | Self::Tap(_) | Self::HeaderSize(_) => Errno::EINVAL,
            Self::Exists { .. } => Errno::EBUSY,
            Self::Open(errno) | Self::Create { errno, .. } | Self::NotTun { errno, .. } => *errno,
        }
    }

    /// The error as an errno number, like [`io::Error::raw_os_error`].
    #[must_use]
    pub fn raw_os_error(&self) -> Option<i32> {
        Some(self.errno() as i32)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        Self::new(Self::from(error.errno()).kind(), error)
    }
}

/// What precedes each packet of a device that is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Four bytes of flags and protocol (`struct tun_pi`).
    pub packet_info: bool,
    /// A virtio header. Checksums and segmentation can then be left to the reader (TUNSETOFFLOAD).
    pub vnet_header: bool,
}

impl Default for Options {
    /// No packet info, but a virtio header.
    fn default() -> Self {
        Self { packet_info: false, vnet_header: true }
    }
}

/// A descriptor of a TUN device; non-blocking.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    packet_info: bool,
    vnet_header_len: usize,
    takes_queues: bool,
}

impl Tun {
    /// Creates the TUN device `name`, which must not exist (`IFF_TUN_EXCL`); close-on-exec.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Open`], [`Error::Exists`] or [`Error::Create`].
    pub fn create(name: &str, options: Options) -> Result<Self, Error> {
        Self::make(name, libc::IFF_TUN, 0, options)
    }

    /// Creates the TUN device `name` as [`Tun::create`] does, with support for several queues
    /// ([`Tun::add_queue`]). Its owner becomes this user, since the kernel lets anybody open a
    /// queue of a device without owner. Until then others can open one, if they may open
    /// `/dev/net/tun`: check the number of queues afterwards (`IFLA_TUN_NUM_QUEUES`).
    ///
    /// The kernel allocates 256 queues, each with its queueing discipline: 3.5 MB with
    /// `pfifo_fast`.
    ///
    /// # Errors
    /// As of [`Tun::create`].
    pub fn create_with_queues(name: &str, options: Options) -> Result<Self, Error> {
        let tun = Self::make(name, libc::IFF_TUN, libc::IFF_MULTI_QUEUE, options)?;
        sys::set_owner(tun.fd.as_fd(), geteuid().as_raw())
            .map_err(|errno| Error::Create { name: name.to_owned(), errno })?;
        Ok(tun)
    }

    /// Opens one more queue of the device. The kernel then chooses the queue of a packet to be
    /// read: the one that last wrote packets of its flow, or else by a hash, which is equal for all
    /// fragments of a datagram.
    ///
    /// # Errors
    /// [`Error::Open`]; [`Error::Create`] for a device with a single queue (`EINVAL`) or of another
    /// owner.
    pub fn add_queue(&self) -> Result<Self, Error> {
        let (name, flags) = sys::get_iff(self.fd.as_fd())
            .map_err(|errno| Error::NotTun { fd: self.fd.as_raw_fd(), errno })?;
        let fd = open()?;
        // Flags that are not set here are cleared for the whole device.
        let kept = flags & (libc::IFF_TUN | libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_NAPI);
        let no_pi = if self.packet_info { 0 } else { libc::IFF_NO_PI };
        sys::set_iff(fd.as_fd(), &name, kept | no_pi | libc::IFF_MULTI_QUEUE)
            .map_err(|errno| Error::Create { name, errno })?;
        Self::adopt(fd, flags & (libc::IFF_TUN | libc::IFF_TAP))
    }

    /// Whether the device supports several queues.
    #[must_use]
    pub fn takes_queues(&self) -> bool {
        self.takes_queues
    }

    /// Creates the TAP device `name` as [`Tun::create`] does a TUN device. It carries Ethernet
    /// frames without packet info.
    ///
    /// # Errors
    /// As of [`Tun::create`].
    pub fn create_tap(name: &str, vnet_header: bool) -> Result<Self, Error> {
        Self::make(name, libc::IFF_TAP, 0, Options { packet_info: false, vnet_header })
    }

    fn make(name: &str, kind: i32, more: i32, options: Options) -> Result<Self, Error> {
        if !is_interface_name(name) {
            return Err(Error::Name(name.to_owned()));
        }
        let fd = open()?;
        let mut wanted = kind | more | libc::IFF_TUN_EXCL;
        if !options.packet_info {
            wanted |= libc::IFF_NO_PI;
        }
        if options.vnet_header {
            wanted |= libc::IFF_VNET_HDR;
        }
        sys::set_iff(fd.as_fd(), name, wanted).map_err(|errno| match errno {
            // EINVAL: a device of that name that is no TUN.
            Errno::EBUSY | Errno::EEXIST | Errno::EINVAL => Error::Exists { name: name.to_owned() },
            errno => Error::Create { name: name.to_owned(), errno },
        })?;
        // Android's SELinux policy allows system_server TUNSETIFF, but none of the ioctls below.
        let tun = match sys::get_iff(fd.as_fd()) {
            Err(errno) if is_denied(errno) => Self::told(fd, name, options, more != 0)?,
            _ => Self::adopt(fd, kind)?,
        };
        match tun.take_offloads() {
            Err(errno) if !is_denied(errno) => Err(Error::Create { name: name.to_owned(), errno }),
            _ => Ok(tun),
        }
    }

    /// Takes over a descriptor of a device that someone else created, asks the kernel for its
    /// layout (TUNGETIFF, TUNGETVNETHDRSZ) and makes it non-blocking.
    ///
    /// Linux 4.14 to 5.0 tell whether there is packet info only of a device that is up; one that is
    /// down is assumed to have it.
    ///
    /// # Errors
    /// [`Error::NotTun`], [`Error::Tap`] or [`Error::HeaderSize`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        Self::adopt(fd, libc::IFF_TUN)
    }

    /// The same where the kernel may not be asked (EACCES), as under Android's policy for clatd:
    /// the caller supplies `name` and `layout`; virtio headers have the kernel's default size.
    ///
    /// # Errors
    /// As of [`Tun::from_fd`].
    pub fn from_fd_as(fd: OwnedFd, name: &str, layout: Options) -> Result<Self, Error> {
        match sys::get_iff(fd.as_fd()) {
            Err(errno) if is_denied(errno) => Self::told(fd, name, layout, false),
            _ => Self::from_fd(fd),
        }
    }

    /// A device whose layout is known without asking the kernel.
    fn told(fd: OwnedFd, name: &str, layout: Options, takes_queues: bool) -> Result<Self, Error> {
        set_nonblocking(&fd).map_err(|errno| Error::NotTun { fd: fd.as_raw_fd(), errno })?;
        let vnet_header_len = if layout.vnet_header { VirtioHeader::LEN } else { 0 };
        let (name, packet_info) = (name.to_owned(), layout.packet_info);
        Ok(Self { fd, name, packet_info, vnet_header_len, takes_queues })
    }

    /// Takes over a descriptor of a TAP device created by [`Tun::create_tap`].
    ///
    /// # Errors
    /// [`Error::NotTun`] or [`Error::HeaderSize`].
    pub fn tap_from_fd(fd: OwnedFd) -> Result<Self, Error> {
        Self::adopt(fd, libc::IFF_TAP)
    }

    /// The same for a process that may not ask the kernel: the caller knows whether there is a
    /// virtio header.
    ///
    /// # Errors
    /// [`Error::NotTun`].
    pub fn tap_from_fd_as(fd: OwnedFd, vnet_header: bool) -> Result<Self, Error> {
        Self::told(fd, "", Options { packet_info: false, vnet_header }, false)
    }

    fn adopt(fd: OwnedFd, kind: i32) -> Result<Self, Error> {
        let not_tun = |errno| Error::NotTun { fd: fd.as_raw_fd(), errno };
        let (name, flags) = sys::get_iff(fd.as_fd()).map_err(not_tun)?;
        let found = flags & (libc::IFF_TUN | libc::IFF_TAP);
        if found != kind {
            return Err(match kind {
                libc::IFF_TUN => Error::Tap(name),
                _ => not_tun(Errno::EINVAL),
            });
        }
        let vnet_header_len = if flags & libc::IFF_VNET_HDR != 0 {
            match sys::vnet_header_len(fd.as_fd()) {
                // The kernel's default size, which nobody has changed.
                Err(errno) if is_denied(errno) => VirtioHeader::LEN,
                len => len.map_err(not_tun)?,
            }
        } else {
            0
        };
        if !matches!(vnet_header_len, 0 | VirtioHeader::LEN..=MAX_VNET) {
            return Err(Error::HeaderSize(vnet_header_len));
        }
        set_nonblocking(&fd).map_err(not_tun)?;
        let packet_info = kind == libc::IFF_TUN
            && (flags & libc::IFF_NO_PI == 0 || takes_packet_info(&fd, vnet_header_len));
        let takes_queues = flags & libc::IFF_MULTI_QUEUE != 0;
        Ok(Self { fd, name, packet_info, vnet_header_len, takes_queues })
    }

    /// Tells the kernel that the reader completes checksums and segmentation, if the device has
    /// virtio headers (TUNSETOFFLOAD). Returns whether UDP_SEGMENT packets can be read and written,
    /// too (since Linux 6.2).
    ///
    /// # Errors
    /// The kernel's error.
    pub fn take_offloads(&self) -> Result<bool, Errno> {
        if self.vnet_header_len == 0 {
            return Ok(false);
        }
        match sys::set_offload(self.fd.as_fd(), CSUM_AND_TSO | USO) {
            Err(Errno::EINVAL) => sys::set_offload(self.fd.as_fd(), CSUM_AND_TSO).map(|()| false),
            done => done.map(|()| true),
        }
    }

    /// The device's name when it was created or taken over.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether each packet has four bytes of packet info in front.
    #[must_use]
    pub fn has_packet_info(&self) -> bool {
        self.packet_info
    }

    /// Bytes of the virtio header in front of each packet; 0 without one.
    #[must_use]
    pub fn vnet_header_len(&self) -> usize {
        self.vnet_header_len
    }

    /// Reads one packet into `buf`. Returns its virtio header (the default where the device has
    /// none) and its length in bytes.
    ///
    /// # Errors
    /// `EAGAIN` if none waits, `EBADFD` if the device has been removed, `EBADMSG` for a packet
    /// shorter than its own headers.
    pub fn recv(&self, buf: &mut [u8]) -> Result<(VirtioHeader, usize), Errno> {
        let mut head = [0; MAX_HEAD];
        let head = &mut head[..self.head_len()];
        let got = readv(&self.fd, &mut [IoSliceMut::new(head), IoSliceMut::new(buf)])?;
        let len = got.checked_sub(head.len()).ok_or(Errno::EBADMSG)?;
        if len > buf.len() {
            return Err(Errno::EBADMSG);
        }
        Ok((self.vnet(head), len))
    }

    /// Reads one packet as [`Tun::recv`] does, with its packet info and virtio header ([`MAX_HEAD`]
    /// bytes at most) at the start of `buf`, which is faster for single packets. Also returns the
    /// packet's range in `buf`.
    ///
    /// # Errors
    /// As of [`Tun::recv`].
    pub fn recv_behind_head(&self, buf: &mut [u8]) -> Result<(VirtioHeader, Range<usize>), Errno> {
        let len = readv(&self.fd, &mut [IoSliceMut::new(buf)])?;
        let head = buf.get(..self.head_len()).ok_or(Errno::EBADMSG)?;
        if len < head.len() {
            return Err(Errno::EBADMSG);
        }
        Ok((self.vnet(head), head.len()..len))
    }

    /// The virtio header at the end of `head`, the bytes in front of a packet.
    fn vnet(&self, head: &[u8]) -> VirtioHeader {
        let bytes = &head[head.len() - self.vnet_header_len..];
        VirtioHeader::from_bytes(bytes).unwrap_or_default()
    }

    /// Writes one packet. `vnet` is ignored if the device has no virtio headers.
    ///
    /// # Errors
    /// `EIO` if the device is down, `EBADFD` if it has been removed, `EAGAIN` if it is full,
    /// `EINVAL` for an empty packet, or for [`GsoType::UdpL4`] before Linux 6.2.
    pub fn send(&self, vnet: &VirtioHeader, packet: &[u8]) -> Result<(), Errno> {
        self.send_pieces(vnet, &[IoSlice::new(packet)])
    }

    /// Writes one packet in at most [`MAX_PIECES`] pieces, the first of which begins with the IP
    /// header.
    ///
    /// # Errors
    /// As [`Self::send`]; `EMSGSIZE` for more pieces.
    pub fn send_pieces(&self, vnet: &VirtioHeader, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        if pieces.len() > MAX_PIECES {
            return Err(Errno::EMSGSIZE);
        }
        let mut small = [0; SMALL];
        let head_len = self.head_len();
        let (head, room) = small.split_at_mut(head_len);
        if self.packet_info {
            let protocol = match pieces.first().and_then(|piece| piece.first()).map(|b| b >> 4) {
                Some(6) => libc::ETH_P_IPV6,
                _ => libc::ETH_P_IP,
            };
            head[2..4].copy_from_slice(&protocol.to_be_bytes()[2..]);
        }
        if self.vnet_header_len > 0 {
            let at = head_len - self.vnet_header_len;
            head[at..at + VirtioHeader::LEN].copy_from_slice(&vnet.to_bytes());
        }
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        if len <= room.len() {
            let mut rest = room;
            for piece in pieces {
                let place;
                (place, rest) = rest.split_at_mut(piece.len());
                place.copy_from_slice(piece);
            }
            write(&self.fd, &small[..head_len + len])?;
            return Ok(());
        }
        let mut all = [IoSlice::new(&[]); MAX_PIECES + 1];
        all[0] = IoSlice::new(head);
        all[1..=pieces.len()].copy_from_slice(pieces);
        writev(&self.fd, &all[..=pieces.len()])?;
        Ok(())
    }

    fn head_len(&self) -> usize {
        self.vnet_header_len + if self.packet_info { PACKET_INFO } else { 0 }
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Tun> for OwnedFd {
    fn from(tun: Tun) -> Self {
        tun.fd
    }
}

/// Whether the error is a policy's, not that of a kernel without the ioctl.
fn is_denied(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM)
}

/// A descriptor that can become a queue of a device; non-blocking, close-on-exec.
fn open() -> Result<OwnedFd, Error> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    options.open(CLONE_DEVICE).map(OwnedFd::from).map_err(|e| Error::Open(errno_of(&e)))
}

/// Whether a device has packet info. TUNGETIFF does not tell: IFF_NO_PI is the same bit as
/// IFF_NOFILTER, which is set on every TUN device. But a device without packet info refuses four
/// zeros with EINVAL, since they are no IP packet; one with it takes them as the packet info of an
/// empty packet, which it drops.
fn takes_packet_info(fd: &OwnedFd, vnet_header_len: usize) -> bool {
    let zeroes = [0; MAX_HEAD];
    write(fd, &zeroes[..vnet_header_len + PACKET_INFO]) != Err(Errno::EINVAL)
}

/// Default number of queues of a TUN device served by one thread each: half of the processors that
/// this process may use, since both ends of a connection need them, too. At least 2, at most 8; 1
/// on a single processor.
#[must_use]
pub fn default_queues() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(processors.min(2), 8)
}

/// Whether the kernel allows this interface name (`dev_valid_name`) and would not take it as a
/// pattern (`%d`).
#[must_use]
pub fn is_interface_name(name: &str) -> bool {
    (1..libc::IFNAMSIZ).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
}
