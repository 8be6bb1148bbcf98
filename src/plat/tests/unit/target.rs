// SPDX-License-Identifier: Apache-2.0

//! Destinations that are the host itself, in every form.

use super::*;

#[test]
fn the_host_is_out_of_bounds() {
    let plain = Settings::default();
    for text in [
        "64:ff9b::127.0.0.1",
        "64:ff9b::127.1.2.3",
        "64:ff9b::0.0.0.0",
        "64:ff9b::0.1.2.3",
        "64:ff9b::169.254.169.254",
        "64:ff9b::224.0.0.1",
        "64:ff9b::255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:192.0.2.1",
        "fe80::1",
        "ff02::1",
    ] {
        let remote = text.parse().unwrap();
        assert_eq!(target(&plain, remote), Err(Refused::Forbidden), "{text}");
        let dual = Settings { dual_stack: Some(Default::default()), ..plain.clone() };
        let allowed = text == "::ffff:192.0.2.1";
        assert_eq!(target(&dual, remote).is_ok(), allowed, "{text}");
    }
    let own = "2001:db8:464::1234".parse().unwrap();
    assert_eq!(target(&plain, own), Err(Refused::NoRoute));
    let map_host = vec!["192.0.2.2".parse().unwrap(), "2001:db8:464::2".parse().unwrap()];
    let mapped = Settings { map_host, ..plain };
    for (text, host) in [
        ("64:ff9b::192.0.2.2", "127.0.0.1"),
        ("2001:db8:464::2", "::1"),
        ("64:ff9b::192.0.2.3", "192.0.2.3"),
        ("2001:db8::1", "2001:db8::1"),
    ] {
        let host: IpAddr = host.parse().unwrap();
        let name = text.parse().unwrap();
        assert_eq!(target(&mapped, name), Ok(host), "{text}");
        assert_eq!(seen(&mapped, host, own), name, "{text}");
    }
}
