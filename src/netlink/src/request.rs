// SPDX-License-Identifier: Apache-2.0

//! Requests to rtnetlink(7). Callers get the bytes of each message of an answer: the library fails
//! on some messages that we do not need, and renames its types from release to release.

use std::io;

use netlink_packet_core::{
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NLM_F_ACK,
    NLM_F_DUMP, NLM_F_REQUEST,
};
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

/// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_ALIGN: usize = 4;
const NLA_HEADER_LEN: usize = 4;
const NLA_ALIGN: usize = 4;
/// The bits above are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A socket for one request after another. Kept open by processes that may open none later.
pub struct Connection(Socket);

impl Connection {
    /// Opens one, in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel then returns only what was asked for (since 4.20); callers filter in any case.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self(socket))
    }

    /// Sends one request with `flags` (beside NLM_F_REQUEST and NLM_F_ACK), calls `each` with the
    /// payload of each message of the answer, and returns when the answer is complete.
    /// [`NLM_F_DUMP`] asks for a list.
    ///
    /// # Errors
    /// The error in the kernel's answer; those of netlink(7).
    pub fn request(
        &self,
        message: impl NetlinkSerializable,
        flags: u16,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        // The end of a list is a message of its own (NLMSG_DONE), so no acknowledgement is needed.
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        header.flags = NLM_F_REQUEST | flags | if is_dump { 0 } else { NLM_F_ACK };
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        while !read(&self.0.recv_from_full()?.0, &mut each)? {}
        Ok(())
    }
}

/// As [`Connection::request`], by a new [`Connection`].
///
/// # Errors
/// The error in the kernel's answer; those of netlink(7).
pub fn request(
    message: impl NetlinkSerializable,
    flags: u16,
    each: impl FnMut(&[u8]),
) -> io::Result<()> {
    Connection::new()?.request(message, flags, each)
}

/// Reads the messages of one datagram; true if the last one ends the answer.
fn read(bytes: &[u8], each: &mut impl FnMut(&[u8])) -> io::Result<bool> {
    let mut ended = false;
    for_each_message(bytes, |kind, payload| {
        match kind {
            NLMSG_DONE | NLMSG_ERROR => {
                ended = true;
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                if code < 0 {
                    return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
            }
            _ => each(payload),
        }
        Ok(())
    })?;
    Ok(ended)
}

/// Calls `each` with type and payload of each message.
pub(crate) fn for_each_message(
    bytes: &[u8],
    mut each: impl FnMut(u16, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        each(message.message_type(), message.payload())?;
        let length = usize::try_from(message.length()).map_err(io::Error::other)?;
        rest = rest.get(length.next_multiple_of(NLMSG_ALIGN)..).unwrap_or_default();
    }
    Ok(())
}

/// A message as bytes, for types that the library lacks.
#[derive(Clone, Debug)]
pub struct RawMessage {
    /// Its type, RTM_… (linux/rtnetlink.h).
    pub kind: u16,
    /// The structure of this message type, followed by attributes: see [`attribute_bytes`].
    pub payload: Vec<u8>,
}

impl NetlinkSerializable for RawMessage {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.payload.len()].copy_from_slice(&self.payload);
    }
}

/// An attribute (`struct nlattr`) with padding to 4 bytes. A value that is too long is cut.
#[must_use]
pub fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    let value = &value[..value.len().min(usize::from(u16::MAX) - NLA_HEADER_LEN)];
    let len = NLA_HEADER_LEN + value.len();
    let mut bytes = u16::try_from(len).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(len.next_multiple_of(NLA_ALIGN), 0);
    bytes
}

/// The value of the first complete attribute of type `kind`.
#[must_use]
pub fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = attributes;
    loop {
        let [a, b, c, d] = *rest.first_chunk::<NLA_HEADER_LEN>()?;
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(NLA_HEADER_LEN..len)?;
        if u16::from_ne_bytes([c, d]) & NLA_TYPE_MASK == kind {
            return Some(value);
        }
        rest = rest.get(len.next_multiple_of(NLA_ALIGN)..)?;
    }
}

/// The same for a 32-bit integer.
pub(crate) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute(attributes, kind)?.try_into().ok()?))
}

/// The 32-bit integer at offset `at` of a message's header.
#[must_use]
pub fn number_at(message: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(message.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_among_others() {
        let mut bytes = attribute_bytes(1, b"odd");
        assert_eq!(bytes.len(), 8);
        bytes.extend(attribute_bytes(2, b""));
        // NLA_F_NESTED
        bytes.extend(attribute_bytes(3 | 1 << 15, &attribute_bytes(7, &[9; 4])));
        assert_eq!(attribute(&bytes, 1), Some(&b"odd"[..]));
        assert_eq!(attribute(&bytes, 2), Some(&b""[..]));
        assert_eq!(number(attribute(&bytes, 3).expect("nested"), 7), Some(0x0909_0909));
        assert_eq!(attribute(&bytes, 4), None);
        // Cut off, or with a wrong length.
        assert_eq!(attribute(&bytes[..bytes.len() - 1], 3), None);
        assert_eq!(attribute(&[3, 0, 1, 0, 0, 0, 0, 0], 1), None);
        assert_eq!(attribute_bytes(1, &[0; 1 << 17]).len(), 1 << 16);
    }
}
