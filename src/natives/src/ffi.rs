// SPDX-License-Identifier: Apache-2.0
//! The C ABI: `include/clat_natives.h` says what each function does. No function unwinds into its
//! caller: a panic ends the process, as it does in any Rust of the platform.

use std::ffi::{c_char, c_int, CStr};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};

use crate::coordinator::{self, Clatd};
use crate::Failure;

/// Room for the message of an error, with its terminator.
const MESSAGE: usize = 256;

/// `struct clat_error`.
#[repr(C)]
pub struct Error {
    exception: i32,
    message: [c_char; MESSAGE],
}

/// Returns the result of the work, or -1 with the failure in `error`.
///
/// # Safety
/// `error` is null or valid for writing.
unsafe fn answer(error: *mut Error, work: Result<c_int, Failure>) -> c_int {
    let failure = match work {
        Ok(value) => return value,
        Err(failure) => failure,
    };
    // SAFETY: the caller's promise.
    if let Some(error) = unsafe { error.as_mut() } {
        error.exception = match failure {
            Failure::Io(_) => 1,
            Failure::IllegalArgument(_) => 2,
            Failure::Null => 3,
        };
        write_text(&mut error.message, &failure.to_string());
    }
    -1
}

/// Writes text and its terminator; text that does not fit is cut at a character boundary.
fn write_text(to: &mut [c_char], text: &str) {
    let Some(room) = to.len().checked_sub(1) else { return };
    let end = (0..=room.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    let bytes = &text.as_bytes()[..end.unwrap_or(0)];
    for (to, from) in to.iter_mut().zip(bytes.iter().chain(&[0])) {
        *to = *from as c_char;
    }
}

/// Borrows the caller's text.
///
/// # Safety
/// `text` is null, or has a terminator and does not change meanwhile.
unsafe fn text<'a>(text: *const c_char) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::Null);
    }
    // SAFETY: not null, and the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::io("not UTF-8"))
}

/// Borrows the caller's descriptor; -1 is an error with the message `otherwise`.
fn descriptor<'a>(fd: RawFd, otherwise: &'static str) -> Result<BorrowedFd<'a>, Failure> {
    if fd < 0 {
        return Err(Failure::io(otherwise));
    }
    // SAFETY: not -1. The caller owns it; if it is closed meanwhile, system calls fail with EBADF.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

fn owned(fd: OwnedFd) -> c_int {
    fd.into_raw_fd()
}

/// `clat_init_log`.
#[no_mangle]
pub extern "C" fn clat_init_log() {
    crate::init_log();
}

/// `clat_select_ipv4_address`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_select_ipv4_address(
    v4addr: *const c_char,
    prefixlen: c_int,
    address: *mut [c_char; 16],
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises, here and below.
    unsafe {
        let work = || {
            let found = coordinator::select_ipv4_address(text(v4addr)?, prefixlen)?;
            write_text(address.as_mut().ok_or(Failure::Null)?, &Ipv4Addr::to_string(&found));
            Ok(0)
        };
        answer(error, work())
    }
}

/// `clat_generate_ipv6_address`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_generate_ipv6_address(
    iface: *const c_char,
    v4: *const c_char,
    prefix64: *const c_char,
    mark: u32,
    address: *mut [c_char; 46],
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises.
    unsafe {
        let work = || {
            if iface.is_null() {
                return Err(Failure::io("Invalid null interface name"));
            }
            let (iface, v4, prefix) = (text(iface)?, text(v4)?, text(prefix64)?);
            let made = coordinator::generate_ipv6_address(iface, v4, prefix, mark)?;
            write_text(address.as_mut().ok_or(Failure::Null)?, &Ipv6Addr::to_string(&made));
            Ok(0)
        };
        answer(error, work())
    }
}

/// `clat_create_tun_interface`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_create_tun_interface(
    name: *const c_char,
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises.
    unsafe { answer(error, text(name).and_then(coordinator::create_tun_interface).map(owned)) }
}

/// `clat_detect_mtu`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_detect_mtu(
    plat_subnet: *const c_char,
    plat_suffix: u32,
    mark: u32,
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises.
    unsafe {
        let mtu =
            text(plat_subnet).and_then(|subnet| coordinator::detect_mtu(subnet, plat_suffix, mark));
        answer(error, mtu)
    }
}

/// `clat_open_packet_socket`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_open_packet_socket(error: *mut Error) -> c_int {
    // SAFETY: the header's promises.
    unsafe { answer(error, coordinator::open_packet_socket().map(owned)) }
}

/// `clat_open_raw_socket6`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_open_raw_socket6(mark: u32, error: *mut Error) -> c_int {
    // SAFETY: the header's promises.
    unsafe { answer(error, coordinator::open_raw_socket6(mark).map(owned)) }
}

/// `clat_add_anycast`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_add_anycast(
    sock: RawFd,
    v6: *const c_char,
    ifindex: u32,
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises.
    unsafe {
        let work = || {
            let sock = descriptor(sock, "Invalid file descriptor")?;
            coordinator::add_anycast_setsockopt(sock, text(v6)?, ifindex).map(|()| 0)
        };
        answer(error, work())
    }
}

/// `clat_configure_packet_socket`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_configure_packet_socket(
    sock: RawFd,
    v6: *const c_char,
    ifindex: u32,
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises.
    unsafe {
        let work = || {
            let sock = descriptor(sock, "Invalid file descriptor")?;
            coordinator::configure_packet_socket(sock, text(v6)?, ifindex).map(|()| 0)
        };
        answer(error, work())
    }
}

/// `clat_start_clatd`.
///
/// # Safety
/// As in the header.
// C passes arguments one by one.
#[allow(clippy::too_many_arguments)]
#[no_mangle]
pub unsafe extern "C" fn clat_start_clatd(
    tun: RawFd,
    read_sock: RawFd,
    write_sock: RawFd,
    iface: *const c_char,
    pfx96: *const c_char,
    v4: *const c_char,
    v6: *const c_char,
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises.
    unsafe {
        let work = || {
            coordinator::start_clatd(&Clatd {
                tun: descriptor(tun, "Invalid tun file descriptor")?,
                read_sock: descriptor(read_sock, "Invalid read socket")?,
                write_sock: descriptor(write_sock, "Invalid write socket")?,
                iface: text(iface)?,
                pfx96: text(pfx96)?,
                v4: text(v4)?,
                v6: text(v6)?,
            })
        };
        answer(error, work())
    }
}

/// `clat_stop_clatd`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_stop_clatd(pid: c_int, error: *mut Error) -> c_int {
    // SAFETY: the header's promises.
    unsafe { answer(error, coordinator::stop_clatd(pid).map(|()| 0)) }
}

/// `clat_get_socket_cookie`.
///
/// # Safety
/// As in the header.
#[no_mangle]
pub unsafe extern "C" fn clat_get_socket_cookie(
    sock: RawFd,
    cookie: *mut u64,
    error: *mut Error,
) -> c_int {
    // SAFETY: the header's promises.
    unsafe {
        let work = || {
            let sock = descriptor(sock, "Invalid socket file descriptor")?;
            *cookie.as_mut().ok_or(Failure::Null)? = coordinator::get_socket_cookie(sock)?;
            Ok(0)
        };
        answer(error, work())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_at_a_characters_end() {
        let mut error = Error { exception: 0, message: [1; MESSAGE] };
        let long = "ä".repeat(MESSAGE);
        // SAFETY: ours, and alive.
        let answered = unsafe { answer(&mut error, Err(Failure::io(long))) };
        assert_eq!((answered, error.exception), (-1, 1));
        let bytes = error.message.map(|byte| byte as u8);
        let text = CStr::from_bytes_until_nul(&bytes).expect("a terminator").to_str();
        assert_eq!(text, Ok("ä".repeat((MESSAGE - 1) / 2).as_str()));
    }

    #[test]
    fn nobody_has_to_take_the_error() {
        // SAFETY: null is allowed.
        let answered = unsafe { answer(std::ptr::null_mut(), Err(Failure::Null)) };
        assert_eq!(answered, -1);
    }
}
