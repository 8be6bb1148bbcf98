// SPDX-License-Identifier: Apache-2.0

//! Automatic CLATs on the real kernel, with handmade router advertisements and a DNS server.

use std::io::ErrorKind;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use clat_tests::{
    can_run, eventually, Controller, Lab, Mode, Netns, Offloads, Router, PREFIX, PREFIX2, SERVER4,
    SERVER6, UPLINK6,
};
use clat_xlat::Prefix;

const NEEDS: &[&str] = &["ip", "ethtool", "ping", "dnsmasq"];

/// Far longer than any step takes; the real time is printed.
const PATIENCE: Duration = Duration::from_secs(20);

/// The server's echo port.
const PORT: u16 = 7007;

/// The router's address on the phone's first link, where its DNS server is.
const ROUTER: &str = "2001:db8:1::1";

/// An echo server on the internet, until dropped.
struct Echo {
    end: Arc<AtomicBool>,
}

impl Echo {
    fn new(lab: &Lab) -> Result<Self> {
        Self::at(lab, SERVER6)
    }

    fn at(lab: &Lab, server: Ipv6Addr) -> Result<Self> {
        let socket = Lab::udp(&lab.internet, SocketAddr::new(server.into(), PORT))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let end = Arc::new(AtomicBool::new(false));
        let ending = Arc::clone(&end);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !ending.load(Ordering::Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..len], from);
                }
            }
        });
        Ok(Self { end })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// Sends datagrams until one comes back; returns the time.
fn first_packet(lab: &Lab) -> Result<Duration> {
    let begun = Instant::now();
    lab.phone.enter(|| {
        let server = SocketAddrV4::new(SERVER4, PORT);
        let mut buffer = [0; 64];
        while begun.elapsed() < PATIENCE {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(2)))?;
            if socket.connect(server).is_ok() && socket.send(b"here").is_ok() {
                match socket.recv(&mut buffer) {
                    Ok(_) => return Ok(begun.elapsed()),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            } else {
                thread::sleep(Duration::from_micros(500));
            }
        }
        anyhow::bail!("no IPv4 within {PATIENCE:?}")
    })
}

/// Waits until IPv4 has no route; returns the time.
fn no_route(lab: &Lab) -> Result<Duration> {
    let begun = Instant::now();
    lab.phone.enter(|| {
        while begun.elapsed() < PATIENCE {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            if socket.connect(SocketAddrV4::new(SERVER4, PORT)).is_err() {
                return Ok(begun.elapsed());
            }
            thread::sleep(Duration::from_micros(200));
        }
        anyhow::bail!("IPv4 is still there after {PATIENCE:?}")
    })
}

fn prefix(controller: &Controller<'_>, iface: &str) -> Option<String> {
    Some(controller.status(iface).ok()?["nat64Prefix"].as_str()?.to_owned())
}

/// A lab with a router on its link, and a controller with automatic CLATs.
fn run(
    mode: Mode,
    more: &[&str],
    test: impl Fn(&Lab, &Router, &Controller<'_>) -> Result<()>,
) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let _echo = Echo::new(&lab)?;
    let router = Router::new(&lab.router, "ph0")?;
    let options = [&["--auto", "--uplink", "up?"], more].concat();
    let controller = Controller::new(&lab, mode, &options)?;
    test(&lab, &router, &controller)
}

#[test]
fn a_prefix_appears_changes_and_goes() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(mode, &[], |lab, router, controller| {
            ensure!(prefix(controller, "up0").is_none(), "nothing was advertised");
            router.advertise(&[(PREFIX, 1800)], None)?;
            eprintln!("{mode:?}: advertisement to first packet: {:?}", first_packet(lab)?);
            eventually("status", || Ok(prefix(controller, "up0").as_deref() == Some(PREFIX)))?;
            // A repeated advertisement changes nothing.
            let pids = controller.clatds();
            router.advertise(&[(PREFIX, 1800)], None)?;
            thread::sleep(Duration::from_millis(300));
            ensure!(controller.clatds() == pids, "another clatd");

            router.advertise(&[(PREFIX, 0), (PREFIX2, 1800)], None)?;
            eventually("another prefix", || {
                Ok(prefix(controller, "up0").as_deref() == Some(PREFIX2))
            })?;
            router.advertise(&[(PREFIX2, 0), (PREFIX, 1800)], None)?;
            eventually("the first again", || {
                Ok(prefix(controller, "up0").as_deref() == Some(PREFIX))
            })?;
            first_packet(lab)?;

            router.advertise(&[(PREFIX, 0)], None)?;
            eprintln!("{mode:?}: withdrawal to no route: {:?}", no_route(lab)?);
            eventually("no CLAT", || Ok(prefix(controller, "up0").is_none()))?;
            eventually("no device", || Ok(!lab.phone.run("ip -o link")?.contains("v4-up0")))
        })?;
    }
    Ok(())
}

/// BPF programs do /96 only; clatd does all lengths.
#[test]
fn every_length_of_prefix() -> Result<()> {
    run(Mode::Offload, &[], |lab, router, controller| {
        for text in [
            "2001:dba::/32",
            "2001:db8:6400::/40",
            "2001:db8:6401::/48",
            "2001:db8:6402:ff00::/56",
            "2001:db8:6403:1::/64",
            "2001:db8:6404:1:0:1::/96",
        ] {
            let network: Prefix = text.parse().ok().context("a prefix")?;
            lab.internet.run(&format!("ip -6 route add local {text} dev lo"))?;
            lab.router.run(&format!("ip -6 route add {text} via 2001:db8:ff::2"))?;
            let _echo = Echo::at(lab, network.embed(SERVER4))?;
            router.advertise(&[(text, 1800)], None)?;
            eprintln!("{text}: {:?}", first_packet(lab)?);
            ensure!(prefix(controller, "up0").as_deref() == Some(text));
            lab.phone.run(&format!("ping -n -c 1 -W 1 {SERVER4}"))?;
            router.advertise(&[(text, 0)], None)?;
            no_route(lab)?;
        }
        Ok(())
    })
}

#[test]
fn a_prefix_expires() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, _| {
        let begun = Instant::now();
        router.advertise(&[(PREFIX, 8)], None)?;
        first_packet(lab)?;
        no_route(lab)?;
        let lived = begun.elapsed();
        ensure!(lived >= Duration::from_secs(8), "gone after {lived:?}");
        eprintln!("8 s of lifetime: {lived:?}");
        Ok(())
    })
}

/// A DNS64 on the router.
fn dns(lab: &Lab, prefix: &str) -> Result<clat_tests::Daemon> {
    let prefix: Prefix = prefix.parse().ok().context("a prefix")?;
    let of =
        |last| format!("--host-record=ipv4only.arpa,{}", prefix.embed([192, 0, 0, last].into()));
    let options = format!("--listen-address={ROUTER} {} {}", of(170), of(171));
    lab.router.dnsmasq(&options, &lab.dir().join("dns.log"))
}

#[test]
fn dns64_where_no_router_says_it() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, controller| {
        let _dns = dns(lab, PREFIX)?;
        router.advertise(&[], Some(ROUTER))?;
        eprintln!("DNS server to first packet: {:?}", first_packet(lab)?);
        eventually("status", || Ok(prefix(controller, "up0").as_deref() == Some(PREFIX)))?;
        // Both: the router's advertisement has precedence.
        router.advertise(&[(PREFIX2, 1800)], Some(ROUTER))?;
        eventually("the router's", || Ok(prefix(controller, "up0").as_deref() == Some(PREFIX2)))?;
        router.advertise(&[(PREFIX2, 0)], Some(ROUTER))?;
        eventually("DNS again", || Ok(prefix(controller, "up0").as_deref() == Some(PREFIX)))?;
        first_packet(lab).map(drop)
    })
}

/// The site's own, its NAT64's among them.
#[test]
fn unique_local_addresses_alone() -> Result<()> {
    run(Mode::Offload, &[], |lab, router, controller| {
        lab.phone.run(&format!("ip -6 addr del {UPLINK6}/64 dev up0"))?;
        lab.router.run("ip -6 addr add fd00:1::1/64 dev ph0 nodad")?;
        lab.phone.run("ip -6 addr add fd00:1::2/64 dev up0 nodad")?;
        router.advertise(&[(PREFIX, 1800)], None)?;
        eprintln!("{:?}", first_packet(lab)?);
        let v6 = controller.status("up0")?["v6"].to_string();
        ensure!(v6.starts_with("\"fd00:1:"), "{v6}");
        // What is better is taken, once there is nothing else.
        lab.phone.run(&format!("ip -6 addr add {UPLINK6}/64 dev up0 nodad"))?;
        lab.phone.run("ip -6 addr del fd00:1::2/64 dev up0")?;
        eventually("renumbered", || {
            Ok(controller.status("up0")?["v6"].to_string().starts_with("\"2001:db8:1:"))
        })?;
        first_packet(lab).map(drop)
    })
}

/// As on a link whose prefix has no A flag.
#[test]
fn an_address_by_dhcpv6_alone() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, controller| {
        lab.phone.run(&format!("ip -6 addr del {UPLINK6}/64 dev up0"))?;
        lab.phone.run(&format!("ip -6 addr add {UPLINK6}/128 dev up0 nodad"))?;
        lab.phone.run("ip -6 route add 2001:db8:1::/64 dev up0")?;
        router.advertise(&[(PREFIX, 1800)], None)?;
        eventually("it is told so", || Ok(controller.daemon.log().contains("one address alone")))?;
        ensure!(prefix(controller, "up0").is_none());
        // One that somebody has set is of a network where hosts have more.
        lab.phone.run("ip -6 addr add 2001:db8:1::3/64 dev up0 nodad")?;
        first_packet(lab).map(drop)
    })
}

#[test]
fn a_network_whose_dns_lies() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, controller| {
        let options = format!("--listen-address={ROUTER} --address=/#/2001:db8::bad");
        let mut dns = lab.router.dnsmasq(&options, &lab.dir().join("dns.log"))?;
        router.advertise(&[], Some(ROUTER))?;
        let log = || controller.daemon.log().contains("this network has no NAT64");
        eventually("it is told so", || Ok(log()))?;
        ensure!(prefix(controller, "up0").is_none());
        dns.stop(nix::sys::signal::Signal::SIGTERM).map(drop)
    })
}

#[test]
fn native_ipv4_comes_and_goes() -> Result<()> {
    for mode in [Mode::Offload, Mode::Daemon] {
        run(mode, &[], |lab, router, controller| {
            router.advertise(&[(PREFIX, 1800)], None)?;
            first_packet(lab)?;
            // An incomplete native IPv4 changes nothing.
            for half in ["169.254.1.2/16", "192.0.2.130/25"] {
                lab.phone.run(&format!("ip addr add {half} dev up0"))?;
            }
            thread::sleep(Duration::from_millis(300));
            ensure!(prefix(controller, "up0").is_some(), "given up for half of it");
            // The router itself answers for the server.
            lab.router.run("ip addr add 192.0.2.129/25 dev ph0")?;
            lab.router.run("ip addr add 192.0.2.1/32 dev lo")?;
            let native = Lab::udp(&lab.router, SocketAddr::new(SERVER4.into(), PORT))?;
            let answering = thread::spawn(move || {
                let mut buffer = [0; 64];
                let (len, from) = native.recv_from(&mut buffer)?;
                native.send_to(&buffer[..len], from)
            });
            lab.phone.run("ip route add default via 192.0.2.129 dev up0")?;
            let swapped = first_packet(lab)?;
            eprintln!("{mode:?}: native route to first packet by it: {swapped:?}");
            ensure!(answering.join().is_ok_and(|sent| sent.is_ok()), "it went another way");
            eventually("no CLAT", || Ok(prefix(controller, "up0").is_none()))?;
            lab.phone.run("ip route del default via 192.0.2.129")?;
            eprintln!("{mode:?}: native route gone to first packet: {:?}", first_packet(lab)?);
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn two_uplinks_each_with_its_own() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, controller| {
        lab.second_uplink()?;
        let second = Router::new(&lab.router, "ph1")?;
        router.advertise(&[(PREFIX, 1800)], None)?;
        second.advertise(&[(PREFIX2, 1800)], None)?;
        let both = || {
            let of = |iface| prefix(controller, iface);
            (of("up0").as_deref() == Some(PREFIX)) && (of("up1").as_deref() == Some(PREFIX2))
        };
        eventually("both", || Ok(both()))?;
        router.advertise(&[(PREFIX, 0)], None)?;
        eventually("one", || {
            Ok(prefix(controller, "up0").is_none() && prefix(controller, "up1").is_some())
        })?;
        let ping = format!("ping -n -c 1 -W 1 {SERVER4}");
        eventually("IPv4 by the second", || Ok(lab.phone.run(&ping).is_ok()))
    })
}

/// To a network without NAT64, and back.
#[test]
fn roaming() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, controller| {
        router.advertise(&[(PREFIX, 1800)], None)?;
        first_packet(lab)?;
        // Link down and up changes nothing if the router is still there. The router loses its
        // address by it.
        let bounce = || -> Result<()> {
            lab.router.run("ip link set ph0 down")?;
            no_route(lab)?;
            lab.router.run("ip link set ph0 up")?;
            lab.router.run(&format!("ip -6 addr add {ROUTER}/64 dev ph0 nodad")).map(drop)
        };
        bounce()?;
        let back = first_packet(lab)?;
        eprintln!("carrier back to first packet: {back:?}");
        router.advertise(&[(PREFIX, 1800)], None)?;
        // Another network, without NAT64.
        bounce()?;
        eventually("no CLAT", || Ok(prefix(controller, "up0").is_none()))?;
        router.advertise(&[(PREFIX, 1800)], None)?;
        eprintln!("back to first packet: {:?}", first_packet(lab)?);
        Ok(())
    })
}

/// A CLAT started by hand is left alone.
#[test]
fn what_is_asked_for_by_hand() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, controller| {
        controller.start("up0", PREFIX)?;
        router.advertise(&[(PREFIX2, 1800)], None)?;
        thread::sleep(Duration::from_millis(300));
        ensure!(prefix(controller, "up0").as_deref() == Some(PREFIX), "it was taken away");
        controller.ctl(&["stop", "up0"])?;
        eventually("ours", || Ok(prefix(controller, "up0").as_deref() == Some(PREFIX2)))?;
        // An automatic one that was stopped stays so until the network changes.
        controller.ctl(&["stop", "up0"])?;
        thread::sleep(Duration::from_millis(300));
        ensure!(prefix(controller, "up0").is_none(), "it came back");
        router.advertise(&[(PREFIX2, 0)], None)?;
        router.advertise(&[(PREFIX, 1800)], None)?;
        first_packet(lab).map(drop)
    })
}

/// Whatever IPv4 there is, and whether the NAT64 answers.
#[test]
fn ready_to_do_without_ipv4() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, _| {
        let program = clat_tests::program("clatctl")?.display().to_string();
        let words = [&program, "ready", "up0", "--wait", "3", "--probe", "192.0.2.1"];
        let ask = || lab.phone.output(&words);
        let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        let none = ask()?;
        ensure!(none.status.code() == Some(1) && said(&none).contains("up0: not ready: "));
        lab.phone.run("ip addr add 192.0.2.130/25 dev up0")?;
        lab.phone.run("ip route add default via 192.0.2.129 dev up0")?;
        // As solicited: it starts to listen at some time.
        let advertised = || {
            thread::scope(|scope| {
                let asked = scope.spawn(ask);
                while !asked.is_finished() {
                    router.advertise(&[(PREFIX, 1800)], None)?;
                    thread::sleep(Duration::from_millis(100));
                }
                asked.join().map_err(|_| anyhow::anyhow!("it panicked"))?
            })
        };
        let asked = advertised()?;
        ensure!(asked.status.success(), "{}", said(&asked));
        ensure!(asked.stdout == format!("{PREFIX}\n").as_bytes(), "{asked:?}");
        lab.internet.run("ip link set net0 down")?;
        let asked = advertised()?;
        ensure!(asked.status.code() == Some(1) && said(&asked).contains("no answer through"));
        Ok(())
    })
}

/// NetworkManager's is on the uplink itself, that of tayga's on a device of its own.
#[test]
fn the_clat_of_another_program() -> Result<()> {
    run(Mode::Daemon, &[], |lab, router, controller| {
        lab.phone.run("ip addr add 192.0.0.6/32 dev up0")?;
        router.advertise(&[(PREFIX, 1800)], None)?;
        let said = || controller.daemon.log().contains("another program has a CLAT");
        eventually("it is told so", || Ok(said()))?;
        ensure!(prefix(controller, "up0").is_none());
        lab.phone.run("ip addr del 192.0.0.6/32 dev up0")?;
        first_packet(lab)?;
        lab.phone.run("ip tuntap add clat mode tun")?;
        lab.phone.run("ip addr add 192.0.0.1/29 dev clat")?;
        eventually("no fight", || Ok(prefix(controller, "up0").is_none()))
    })
}

/// wg-quick's rules: what is not the VPN's own goes into it, by IPv4 and by IPv6.
#[test]
fn a_vpn_that_takes_everything() -> Result<()> {
    run(Mode::Offload, &[], |lab, router, controller| {
        router.advertise(&[(PREFIX, 1800)], None)?;
        first_packet(lab)?;
        lab.phone.run("ip tuntap add wg0 mode tun")?;
        lab.phone.run("ip link set wg0 up")?;
        for (version, address) in [(4, "10.9.0.2/32"), (6, "fd09::2/128")] {
            for words in [
                format!("addr add {address} dev wg0"),
                "route add default dev wg0 table 51820".to_owned(),
                "rule add not fwmark 51820 table 51820".to_owned(),
                "rule add table main suppress_prefixlength 0".to_owned(),
            ] {
                lab.phone.run(&format!("ip -{version} {words}"))?;
            }
        }
        let by_vpn = || lab.phone.run(&format!("ip route get {SERVER4}"));
        ensure!(by_vpn()?.contains("dev wg0"), "{}", by_vpn()?);
        // The VPN's own packets, to a server that has IPv4 alone.
        lab.phone.run(&format!("ping -n -c 3 -i 0.2 -W 1 -m 51820 {SERVER4}"))?;
        // And the same with all that a CLAT does at its start.
        router.advertise(&[(PREFIX, 0)], None)?;
        eventually("no CLAT", || Ok(prefix(controller, "up0").is_none()))?;
        router.advertise(&[(PREFIX, 1800)], None)?;
        let ping = format!("ping -n -c 1 -W 1 -m 51820 {SERVER4}");
        eventually("a CLAT again", || Ok(lab.phone.run(&ping).is_ok()))?;
        ensure!(by_vpn()?.contains("dev wg0"), "{}", by_vpn()?);
        Ok(())
    })
}

/// Hosts behind this one, as containers are.
#[test]
fn hosts_behind_a_shared_interface() -> Result<()> {
    if !can_run(&[NEEDS, &["nft"]].concat()) {
        return Ok(());
    }
    for mode in [Mode::Offload, Mode::Daemon] {
        let lab = Lab::new(Offloads::Default)?;
        let guest = Netns::new(900, "guest")?;
        lab.phone
            .run(&format!("ip link add br7 type veth peer name eth0 netns {}", guest.name()))?;
        lab.phone.run("ip addr add 10.99.0.1/24 dev br7")?;
        lab.phone.run("ip link set br7 up")?;
        guest.run("ip addr add 10.99.0.2/24 dev eth0")?;
        guest.run("ip link set eth0 up")?;
        guest.run("ip route add default via 10.99.0.1")?;
        let options = ["--share", "br7", "--auto", "--uplink", "up0", "--keep"];
        let mut controller = Controller::new(&lab, mode, &options)?;
        Router::new(&lab.router, "ph0")?.advertise(&[(PREFIX, 1800)], None)?;
        let ping = format!("ping -n -c 1 -W 1 {SERVER4}");
        eventually("IPv4 behind", || Ok(guest.run(&ping).is_ok()))?;
        let forwards = || lab.phone.run("sysctl -n net.ipv4.conf.br7.forwarding");
        let rules = || lab.phone.run("nft list tables");
        ensure!(forwards()?.trim() == "1" && rules()?.contains("clat_share"));
        // An upgrade leaves it, an end does not.
        controller.daemon.stop(nix::sys::signal::Signal::SIGTERM)?;
        guest.run(&ping)?;
        let mut controller = Controller::new(&lab, mode, &options[..5])?;
        ensure!(rules()?.contains("clat_share"));
        controller.daemon.stop(nix::sys::signal::Signal::SIGTERM)?;
        ensure!(forwards()?.trim() == "0", "br7 goes on forwarding");
        ensure!(!rules()?.contains("clat_share"), "{}", rules()?);
    }
    Ok(())
}

/// An upgrade: the next controller takes over the running CLATs and follows the network.
#[test]
fn another_life() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let _echo = Echo::new(&lab)?;
    let router = Router::new(&lab.router, "ph0")?;
    let options = ["--auto", "--uplink", "up0", "--keep"];
    let mut first = Controller::new(&lab, Mode::Daemon, &options)?;
    router.advertise(&[(PREFIX, 1800)], None)?;
    first_packet(&lab)?;
    let clatds = first.clatds();
    first.daemon.stop(nix::sys::signal::Signal::SIGTERM)?;
    let second = Controller::new(&lab, Mode::Daemon, &options)?;
    ensure!(second.clatds() == clatds && first_packet(&lab)? < PATIENCE);
    router.advertise(&[(PREFIX, 1800)], None)?;
    thread::sleep(Duration::from_secs(12));
    ensure!(second.clatds() == clatds, "it was made anew");
    router.advertise(&[(PREFIX, 0)], None)?;
    no_route(&lab).map(drop)
}

#[test]
fn the_configuration() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let lab = Lab::new(Offloads::Default)?;
    let _echo = Echo::new(&lab)?;
    let file = lab.dir().join("clat.toml");
    let config = file.display().to_string();
    let write = |prefix: &str| {
        std::fs::write(&file, format!("auto = true\nuplink = \"up0\"\nprefix = \"up*={prefix}\"\n"))
    };
    write("64:ff9b::/95")?;
    let program = clat_tests::program("clat_controller")?.display().to_string();
    let check = || lab.phone.output(&[&program, "--config", &config, "--check"]);
    let wrong = check()?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(!wrong.status.success() && said.contains("clat.toml:3:10: "), "{said}");
    write(PREFIX2)?;
    ensure!(check()?.status.success());
    let controller = Controller::new(&lab, Mode::Daemon, &["--config", &config])?;
    eventually("configured", || Ok(prefix(&controller, "up0").as_deref() == Some(PREFIX2)))?;
    write(PREFIX)?;
    lab.phone.run(&format!("kill -HUP {}", controller.daemon.pid()))?;
    eventually("reloaded", || Ok(prefix(&controller, "up0").as_deref() == Some(PREFIX)))?;
    first_packet(&lab)?;
    // An invalid file changes nothing.
    write("nonsense")?;
    lab.phone.run(&format!("kill -HUP {}", controller.daemon.pid()))?;
    eventually("said", || Ok(controller.daemon.log().contains("going on as before")))?;
    first_packet(&lab).map(drop)
}
