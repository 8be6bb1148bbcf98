// SPDX-License-Identifier: Apache-2.0

//! Third-party clients on platd's network: rdisc6 and ndisc6, dhclient, dig, tshark, and the
//! kernel's autoconfiguration.
#![allow(clippy::unwrap_used)] // helpers are tests too

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clat_tests::{can_run, install, program, Daemon, Netns};

/// Its DNS server, and a name with IPv4 addresses only.
const DNS: &str = "2001:db8:464::53";
const SYNTHESIZED: &str = "64:ff9b::c633:6401";
const ROUTER_MAC: &str = "02:00:00:00:04:64";

static COUNT: AtomicU32 = AtomicU32::new(800);

/// A host with its own resolver, a guest's namespace, and a platd between.
struct Carrier {
    guest: Netns,
    dir: PathBuf,
    _platd: Daemon,
    _dnsmasq: Daemon,
    _host: Netns,
}

impl Carrier {
    fn new(options: &[&str]) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("clatlab-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (host, guest) =
            (Netns::new(number, "host").unwrap(), Netns::new(number, "guest").unwrap());
        let hosts: String = (1..=200).map(|n| format!("203.0.113.{n} many.example\n")).collect();
        fs::write(dir.join("hosts"), hosts).unwrap();
        let records = format!(
            "--addn-hosts={} --listen-address=127.0.0.1 --host-record=v4.example,198.51.100.1 \
             --host-record=both.example,198.51.100.2,2001:db8:7::2 --cname=www.example,v4.example",
            dir.join("hosts").display()
        );
        let dnsmasq = host.dnsmasq(&records, &dir.join("dnsmasq.log")).unwrap();
        let platd = program("platd").unwrap();
        let path = format!("/run/netns/{}", guest.name());
        let mut argv = vec![platd.to_str().unwrap(), "--netns", &path, "--dns", "127.0.0.1"];
        argv.extend(options);
        let platd = host.spawn(&argv, &dir.join("platd.log")).unwrap();
        let carrier = Self { guest, dir, _platd: platd, _dnsmasq: dnsmasq, _host: host };
        let deadline = Instant::now() + Duration::from_secs(15);
        while !carrier.run("ip -6 addr show scope global").contains("2001:db8:464:") {
            assert!(Instant::now() < deadline, "no address by router advertisement");
            std::thread::sleep(Duration::from_millis(50));
        }
        carrier
    }

    fn run(&self, line: &str) -> String {
        self.guest.run(line).unwrap_or_default()
    }

    fn python(&self, code: &str) -> String {
        let out = self.guest.output(&["python3", "-c", code]).unwrap();
        assert!(out.status.success(), "{out:?}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn dig(&self, line: &str) -> Vec<String> {
        let out = self.guest.run(&format!("dig +short +time=5 @{DNS} {line}")).unwrap();
        out.lines().map(str::to_owned).collect()
    }

    /// Runs dhclient until it has logged or done `what`, and returns what its script was given by
    /// then. The script configures nothing.
    fn dhclient(&self, options: &str, requests: &str, what: &str) -> Vec<String> {
        let file = |name: &str| self.dir.join(name).display().to_string();
        let (script, env, log) = (file("script"), file("env"), self.dir.join("dhclient.log"));
        let text = self.dir.join("script.text");
        fs::write(&text, format!("#!/bin/sh\nenv >>{env}\n")).unwrap();
        fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).unwrap();
        install(&text, script.as_ref()).unwrap();
        let conf = "option v6only code 108 = unsigned integer 32;\n";
        fs::write(file("conf"), format!("{conf}request {requests};\n")).unwrap();
        let (conf, leases) = (file("conf"), file("leases"));
        let line = format!(
            "dhclient {options} -1 -v -d --no-pid -sf {script} -cf {conf} -lf {leases} plat0"
        );
        let argv: Vec<&str> = line.split_whitespace().collect();
        let daemon = self.guest.spawn(&argv, &log).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = fs::read_to_string(&env).unwrap_or_default();
            if text.contains(what) || daemon.log().contains(what) {
                return text.lines().map(str::to_owned).collect();
            }
            assert!(Instant::now() < deadline, "no {what}: {}", daemon.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn has(lines: &[String], line: &str) -> bool {
    lines.iter().any(|l| l == line)
}

#[test]
fn rdisc6_and_ndisc6() {
    if !can_run(&["ip", "rdisc6", "ndisc6", "dnsmasq"]) {
        return;
    }
    let carrier = Carrier::new(&["--mtu", "1400"]);
    let out = carrier.guest.run("rdisc6 -1 plat0").unwrap();
    let line = |name: &str| {
        let line = out.lines().find(|line| line.trim().starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no {name}: {out}")).trim();
        line[name.len()..].trim_start_matches([' ', ':']).trim().to_owned()
    };
    assert_eq!(line("Hop limit"), "64 (      0x40)", "{out}");
    assert_eq!(line("Stateful address conf."), "No");
    assert_eq!(line("Stateful other conf."), "Yes");
    assert!(line("Router lifetime").starts_with("1800 "));
    assert_eq!(line("Prefix"), "2001:db8:464::/64");
    assert_eq!(line("On-link"), "No");
    assert_eq!(line("Autonomous address conf."), "Yes");
    assert!(line("MTU").starts_with("1400 "));
    assert_eq!(line("Source link-layer address"), ROUTER_MAC);
    assert_eq!(line("Recursive DNS server"), DNS);
    assert_eq!(line("from"), "fe80::1");
    for addr in ["fe80::1", "2001:db8:464::1", DNS] {
        let out = carrier.guest.run(&format!("ndisc6 -1 {addr} plat0")).unwrap();
        assert!(out.contains(&ROUTER_MAC.to_uppercase()) || out.contains(ROUTER_MAC), "{out}");
    }
    // The kernel has taken the same from it.
    assert!(carrier.run("ip -6 route show default").contains("via fe80::1 dev plat0 proto ra"));
    assert!(carrier.run("cat /proc/sys/net/ipv6/conf/plat0/mtu").starts_with("1400"));
}

/// RFC 8781, as Wireshark reads it.
#[test]
fn tshark_on_pref64() {
    if !can_run(&["ip", "tshark", "dnsmasq"]) {
        return;
    }
    // Length code, prefix, lifetime in units of 8 seconds.
    for (options, pref64) in [
        (&[][..], "0x0000 64:ff9b:: 225"),
        (&["--prefix64", "2001:db8:64:1::/64"], "0x0001 2001:db8:64:1:: 225"),
        (&["--prefix64", "2001:db8:64:ab00::/56"], "0x0002 2001:db8:64:ab00:: 225"),
        (&["--prefix64", "2001:db8::/32"], "0x0005 2001:db8:: 225"),
        (&["--no-pref64"], ""),
    ] {
        let name = format!("clatlab-{}-pref64.pcap", std::process::id());
        let pcap = std::env::temp_dir().join(name).display().to_string();
        let carrier = Carrier::new(&[&["--pcap", &pcap], options].concat());
        let tshark = |filter: &str, fields: &str| {
            let line = format!(
                "tshark -r {pcap} -Y icmpv6.type==134{filter} -T fields -E separator=/s {fields}"
            );
            carrier.guest.run(&line).unwrap()
        };
        let p = "-e icmpv6.opt.pref64";
        let out = tshark("", &format!("{p}.plc {p}.prefix {p}.scaled_lifetime"));
        assert_eq!(out.lines().next().map(str::trim), Some(pref64), "{options:?}");
        let wrong = tshark("&&(_ws.malformed||_ws.expert)", "-e _ws.expert.message");
        assert_eq!(wrong, "", "{options:?}");
        fs::remove_file(pcap).unwrap();
    }
}

#[test]
fn dhclient_for_ipv6() {
    if !can_run(&["ip", "dhclient", "dig", "dnsmasq"]) {
        return;
    }
    let carrier = Carrier::new(&[]);
    let env = carrier.dhclient("-6", "dhcp6.name-servers", "reason=BOUND6");
    let addr = env.iter().find_map(|line| line.strip_prefix("new_ip6_address="));
    let addr = addr.unwrap_or_else(|| panic!("no address: {env:?}"));
    assert!(addr.starts_with("2001:db8:464:0:d:"), "{env:?}");
    assert!(has(&env, &format!("new_dhcp6_name_servers={DNS}")), "{env:?}");
    assert!(has(&env, "new_max_life=7200") && has(&env, "new_preferred_life=3600"), "{env:?}");
    // It can be used.
    carrier.guest.run(&format!("ip addr add {addr}/128 dev plat0 nodad")).unwrap();
    assert_eq!(carrier.dig(&format!("-b {addr} AAAA v4.example")), [SYNTHESIZED]);
}

/// A client with an address asks for other configuration (RFC 8415 §18.2.6).
#[test]
fn dhclient_for_information() {
    if !can_run(&["ip", "dhclient", "dnsmasq"]) {
        return;
    }
    let carrier = Carrier::new(&[]);
    let env = carrier.dhclient("-6 -S", "dhcp6.name-servers", "reason=RENEW6");
    assert!(has(&env, &format!("new_dhcp6_name_servers={DNS}")), "{env:?}");
    assert!(!env.iter().any(|line| line.starts_with("new_ip6_address=")), "{env:?}");
}

#[test]
fn dhclient_for_ipv4() {
    if !can_run(&["ip", "dhclient", "dnsmasq"]) {
        return;
    }
    let carrier = Carrier::new(&["--dual-stack"]);
    let requests = "subnet-mask, routers, domain-name-servers, interface-mtu";
    let env = carrier.dhclient("-4", requests, "reason=BOUND");
    for line in [
        "new_ip_address=192.168.64.2",
        "new_subnet_mask=255.255.255.0",
        "new_routers=192.168.64.1",
        "new_domain_name_servers=192.168.64.1",
        "new_interface_mtu=1500",
        "new_dhcp_lease_time=3600",
    ] {
        assert!(has(&env, line), "no {line}: {env:?}");
    }
    // It supports RFC 8925: if told to request the option, it does without IPv4.
    let said = "v6 only preferred for 1800";
    let env = carrier.dhclient("-4", &format!("{requests}, v6only"), said);
    assert_eq!(env.iter().filter(|line| *line == "reason=BOUND").count(), 1, "{env:?}");
}

#[test]
fn dig() {
    if !can_run(&["ip", "dig", "dnsmasq"]) {
        return;
    }
    let carrier = Carrier::new(&[]);
    assert_eq!(carrier.dig("AAAA ipv4only.arpa"), ["64:ff9b::c000:aa", "64:ff9b::c000:ab"]);
    assert_eq!(carrier.dig("AAAA v4.example"), [SYNTHESIZED]);
    assert_eq!(carrier.dig("A v4.example"), ["198.51.100.1"]);
    assert_eq!(carrier.dig("AAAA both.example"), ["2001:db8:7::2"]);
    assert_eq!(carrier.dig("AAAA www.example"), ["v4.example.", SYNTHESIZED]);
    let reverse = carrier.dig(&format!("-x {SYNTHESIZED}"));
    assert_eq!(reverse, ["1.100.51.198.in-addr.arpa.", "v4.example."]);
    let whole = |line: &str| carrier.guest.run(&format!("dig +time=5 @{DNS} {line}")).unwrap();
    let out = whole("AAAA no.example");
    assert!(out.contains("status: NXDOMAIN") && out.contains("ANSWER: 0"), "{out}");
    assert!(!out.contains("WARNING") && !out.contains("mismatch"), "{out}");
    let out = whole("+cdflag +dnssec AAAA v4.example");
    assert!(out.contains("status: NOERROR") && out.contains("ANSWER: 0"), "{out}");
    // Without EDNS, and with all of dig's options.
    assert!(whole("+noedns AAAA v4.example").contains(SYNTHESIZED));
    assert!(whole("+nsid +cookie +ednsopt=65001 AAAA v4.example").contains(SYNTHESIZED));
}

#[test]
fn another_prefix_and_no_dns64() {
    if !can_run(&["ip", "dig", "dnsmasq"]) {
        return;
    }
    let carrier = Carrier::new(&["--prefix64", "2001:db8:64::/56"]);
    assert_eq!(carrier.dig("AAAA v4.example"), ["2001:db8:64:c6:33:6401::"]);
    drop(carrier);
    let carrier = Carrier::new(&["--no-dns64"]);
    assert!(carrier.dig("AAAA v4.example").is_empty());
    assert_eq!(carrier.dig("A v4.example"), ["198.51.100.1"]);
}

/// RFC 7766, and answers too large for a datagram.
#[test]
fn dig_by_tcp() {
    if !can_run(&["ip", "dig", "dnsmasq", "python3"]) {
        return;
    }
    let carrier = Carrier::new(&["--dual-stack"]);
    assert_eq!(carrier.dig("+tcp AAAA v4.example"), [SYNTHESIZED]);
    assert_eq!(carrier.dig("+tcp AAAA both.example"), ["2001:db8:7::2"]);
    assert_eq!(carrier.dig("+tcp AAAA ipv4only.arpa").len(), 2);
    let whole = |line: &str| carrier.guest.run(&format!("dig +time=5 @{DNS} {line}")).unwrap();
    for kind in ["A", "AAAA"] {
        let out = whole(&format!("+ignore {kind} many.example"));
        assert!(out.contains(" tc ") && out.contains("(UDP)"), "{out}");
        // It tries again by itself.
        let out = whole(&format!("{kind} many.example"));
        assert!(out.contains("ANSWER: 200,") && out.contains("(TCP)"), "{out}");
        assert!(out.contains("Truncated, retrying in TCP mode"), "{out}");
    }
    assert!(whole("+noedns +tcp AAAA many.example").contains("ANSWER: 200,"));
    // Several on one connection, and from the router's other addresses.
    let out = whole("+tcp +keepopen AAAA v4.example AAAA many.example A www.example");
    assert_eq!(out.matches("status: NOERROR").count(), 3, "{out}");
    for server in ["2001:db8:464::1", "fe80::1%plat0"] {
        let out = carrier.guest.run(&format!("dig +tcp +short +time=5 @{server} v4.example"));
        assert_eq!(out.unwrap(), "198.51.100.1\n", "{server}");
    }
    // An idle connection is closed.
    let nothing = format!("import socket; print(socket.create_connection(('{DNS}', 53)).recv(9))");
    assert_eq!(carrier.python(&nothing), "b''\n");
    // By IPv4, at the address that DHCP tells.
    carrier.guest.run("ip addr add 192.168.64.2/24 dev plat0").unwrap();
    let out = carrier.guest.run("dig +tcp +short +time=5 @192.168.64.1 AAAA v4.example").unwrap();
    assert_eq!(out, format!("{SYNTHESIZED}\n"));
}
