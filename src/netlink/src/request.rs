// SPDX-License-Identifier: Apache-2.0

//! Requests to rtnetlink(7). Messages of an answer are given as they come: the library stumbles
//! over some that are not ours, and has other words for the same in each release.

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
/// Above it are flags.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A socket for requests, one after the other: for who may make no more when there is something to
/// ask.
pub struct Connection(Socket);

impl Connection {
    /// Makes one, in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of netlink(7).
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The kernel then lists only what was asked for (4.20). Where it does not, whoever reads
        // sorts it out.
        let _ = socket.set_netlink_get_strict_chk(true);
        Ok(Self(socket))
    }

    /// Sends one request, with `flags` beside those that any has, gives what each message of the
    /// answer holds to `each`, and returns when the kernel has said that it is done. [`NLM_F_DUMP`]
    /// asks for a list.
    ///
    /// # Errors
    /// What the kernel answered; those of netlink(7).
    pub fn request(
        &self,
        message: impl NetlinkSerializable,
        flags: u16,
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        // A list has an end of its own.
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

/// One request by a [`Connection`] of its own.
///
/// # Errors
/// What the kernel answered; those of netlink(7).
pub fn request(
    message: impl NetlinkSerializable,
    flags: u16,
    each: impl FnMut(&[u8]),
) -> io::Result<()> {
    Connection::new()?.request(message, flags, each)
}

/// Reads messages that came together; true when the last of them ends the answer.
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

/// Gives type and payload of each message to `each`.
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

/// A message in bytes, where the library has no words for it.
#[derive(Clone, Debug)]
pub struct RawMessage {
    /// What it is: RTM_… (linux/rtnetlink.h).
    pub kind: u16,
    /// The structure that such a message begins with, then attributes: see [`attribute_bytes`].
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

/// An attribute (`struct nlattr`) with the bytes that fill up its last word. What is longer than
/// one can be is cut.
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

/// The value of the first attribute of a kind, among those that are whole.
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

/// The same of one that is a number.
pub(crate) fn number(attributes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_ne_bytes(attribute(attributes, kind)?.try_into().ok()?))
}

/// The number of 32 bits that stands at a place in a message's own header.
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
        // One that is cut, or lies about its length.
        assert_eq!(attribute(&bytes[..bytes.len() - 1], 3), None);
        assert_eq!(attribute(&[3, 0, 1, 0, 0, 0, 0, 0], 1), None);
        assert_eq!(attribute_bytes(1, &[0; 1 << 17]).len(), 1 << 16);
    }
}
