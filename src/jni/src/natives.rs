// SPDX-License-Identifier: Apache-2.0

//! The natives as Java calls them: eleven entries that convert arguments and results.

use std::os::fd::IntoRawFd;

use clat_natives::coordinator as clat;
use jni::objects::{JClass, JObject, JString};
use jni::sys::{jint, jlong, jstring};

use crate::env::{is_null, new_string, Env, NativeEnv};
use crate::java::{descriptor, native, text, Thrown};
use crate::Native;

/// The table for RegisterNatives, with AOSP's names and signatures.
pub(crate) fn table() -> [Native; 11] {
    macro_rules! entry {
        ($name:literal, $signature:literal, $function:ident) => {
            Native { name: $name, signature: $signature, function: $function as *mut _ }
        };
    }
    [
        entry!(
            "native_selectIpv4Address",
            "(Ljava/lang/String;I)Ljava/lang/String;",
            select_ipv4_address
        ),
        entry!(
            "native_generateIpv6Address",
            "(Ljava/lang/String;Ljava/lang/String;Ljava/lang/String;I)Ljava/lang/String;",
            generate_ipv6_address
        ),
        entry!("native_createTunInterface", "(Ljava/lang/String;)I", create_tun_interface),
        entry!("native_detectMtu", "(Ljava/lang/String;II)I", detect_mtu),
        entry!("native_openPacketSocket", "()I", open_packet_socket),
        entry!("native_openRawSocket6", "(I)I", open_raw_socket6),
        entry!(
            "native_addAnycastSetsockopt",
            "(Ljava/io/FileDescriptor;Ljava/lang/String;I)V",
            add_anycast_setsockopt
        ),
        entry!(
            "native_configurePacketSocket",
            "(Ljava/io/FileDescriptor;Ljava/lang/String;I)V",
            configure_packet_socket
        ),
        entry!(
            "native_startClatd",
            "(Ljava/io/FileDescriptor;Ljava/io/FileDescriptor;Ljava/io/FileDescriptor;\
             Ljava/lang/String;Ljava/lang/String;Ljava/lang/String;Ljava/lang/String;)I",
            start_clatd
        ),
        entry!("native_stopClatd", "(I)V", stop_clatd),
        entry!("native_getSocketCookie", "(Ljava/io/FileDescriptor;)J", get_socket_cookie),
    ]
}

fn java_string(env: &mut Env<'_>, text: &str) -> Result<jstring, Thrown> {
    Ok(new_string(env, text)?)
}

extern "system" fn select_ipv4_address(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    v4addr: JString<'_>,
    prefixlen: jint,
) -> jstring {
    native(env, std::ptr::null_mut(), |env| {
        let v4addr = text(env, &v4addr)?;
        java_string(env, &clat::select_ipv4_address(&v4addr, prefixlen)?.to_string())
    })
}

extern "system" fn generate_ipv6_address(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    iface: JString<'_>,
    v4: JString<'_>,
    prefix64: JString<'_>,
    mark: jint,
) -> jstring {
    native(env, std::ptr::null_mut(), |env| {
        if is_null(&iface) {
            return Err(Thrown::io("Invalid null interface name"));
        }
        let (iface, v4, prefix64) = (text(env, &iface)?, text(env, &v4)?, text(env, &prefix64)?);
        let v6 = clat::generate_ipv6_address(&iface, &v4, &prefix64, mark as u32)?;
        java_string(env, &v6.to_string())
    })
}

extern "system" fn create_tun_interface(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    tuniface: JString<'_>,
) -> jint {
    native(env, -1, |env| {
        let tuniface = text(env, &tuniface)?;
        Ok(clat::create_tun_interface(&tuniface)?.into_raw_fd())
    })
}

extern "system" fn detect_mtu(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    plat_subnet: JString<'_>,
    plat_suffix: jint,
    mark: jint,
) -> jint {
    native(env, -1, |env| {
        let plat_subnet = text(env, &plat_subnet)?;
        Ok(clat::detect_mtu(&plat_subnet, plat_suffix as u32, mark as u32)?)
    })
}

extern "system" fn open_packet_socket(env: NativeEnv<'_>, _class: JClass<'_>) -> jint {
    native(env, -1, |_| Ok(clat::open_packet_socket()?.into_raw_fd()))
}

extern "system" fn open_raw_socket6(env: NativeEnv<'_>, _class: JClass<'_>, mark: jint) -> jint {
    native(env, -1, |_| Ok(clat::open_raw_socket6(mark as u32)?.into_raw_fd()))
}

extern "system" fn add_anycast_setsockopt(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    sock: JObject<'_>,
    v6: JString<'_>,
    ifindex: jint,
) {
    native(env, (), |env| {
        let fd = descriptor(env, &sock, "Invalid file descriptor")?;
        Ok(clat::add_anycast_setsockopt(fd, &text(env, &v6)?, ifindex as u32)?)
    });
}

extern "system" fn configure_packet_socket(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    sock: JObject<'_>,
    v6: JString<'_>,
    ifindex: jint,
) {
    native(env, (), |env| {
        let fd = descriptor(env, &sock, "Invalid file descriptor")?;
        Ok(clat::configure_packet_socket(fd, &text(env, &v6)?, ifindex as u32)?)
    });
}

// JNI passes arguments one by one, and this native has seven.
#[allow(clippy::too_many_arguments)]
extern "system" fn start_clatd(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    tunfd: JObject<'_>,
    readsock6: JObject<'_>,
    writesock6: JObject<'_>,
    iface: JString<'_>,
    pfx96: JString<'_>,
    v4: JString<'_>,
    v6: JString<'_>,
) -> jint {
    native(env, -1, |env| {
        Ok(clat::start_clatd(&clat::Clatd {
            tun: descriptor(env, &tunfd, "Invalid tun file descriptor")?,
            read_sock: descriptor(env, &readsock6, "Invalid read socket")?,
            write_sock: descriptor(env, &writesock6, "Invalid write socket")?,
            iface: &text(env, &iface)?,
            pfx96: &text(env, &pfx96)?,
            v4: &text(env, &v4)?,
            v6: &text(env, &v6)?,
        })?)
    })
}

extern "system" fn stop_clatd(env: NativeEnv<'_>, _class: JClass<'_>, pid: jint) {
    native(env, (), |_| Ok(clat::stop_clatd(pid)?));
}

extern "system" fn get_socket_cookie(
    env: NativeEnv<'_>,
    _class: JClass<'_>,
    sock: JObject<'_>,
) -> jlong {
    native(env, -1, |env| {
        let fd = descriptor(env, &sock, "Invalid socket file descriptor")?;
        Ok(clat::get_socket_cookie(fd)? as jlong)
    })
}
