//! Requests to rtnetlink(7). Messages of an answer are given as they come: the library stumbles over some that are not
//! ours.

use std::io;

use netlink_packet_core::{
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NLM_F_ACK, NLM_F_DUMP,
    NLM_F_REQUEST,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{protocols::NETLINK_ROUTE, Socket, SocketAddr};

/// linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_ALIGN: usize = 4;

/// Sends one request.
fn send(message: RouteNetlinkMessage, flags: u16) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    if flags & NLM_F_DUMP == NLM_F_DUMP {
        // The kernel then lists only what was asked for (4.20). Where it does not, whoever reads sorts it out.
        let _ = socket.set_netlink_get_strict_chk(true);
    }

    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    Ok(socket)
}

/// Sends one request, with `flags` beside those that any has, and waits for its acknowledgement.
///
/// # Errors
/// What the kernel answered; those of netlink(7).
pub fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let socket = send(message, NLM_F_ACK | flags)?;
    read(&socket, |_| ())?;
    Ok(())
}

/// Asks for one thing, and gives what the answer holds to `each`.
///
/// # Errors
/// What the kernel answered; those of netlink(7).
pub fn ask(message: RouteNetlinkMessage, each: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = send(message, 0)?;
    read(&socket, each)?;
    Ok(())
}

/// Asks for a list, and gives what each message of the answer holds to `each`.
///
/// # Errors
/// What the kernel answered; those of netlink(7).
pub fn dump(message: RouteNetlinkMessage, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let socket = send(message, NLM_F_DUMP)?;
    while !read(&socket, &mut each)? {}
    Ok(())
}

/// Reads messages that come together; true when the last of them ends an answer of several.
fn read(socket: &Socket, mut each: impl FnMut(&[u8])) -> io::Result<bool> {
    let (bytes, _) = socket.recv_from_full()?;
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        match message.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code =
                    message.payload().first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 {
                    return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                }
            }
            _ => each(message.payload()),
        }
        let length = usize::try_from(message.length()).map_err(io::Error::other)?;
        rest = rest.get(length.next_multiple_of(NLMSG_ALIGN)..).unwrap_or_default();
    }
    Ok(false)
}
