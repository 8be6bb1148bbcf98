// SPDX-License-Identifier: Apache-2.0

//! The direct way: nothing ever leaves as native IPv4, whatever dies or is taken away; and what a
//! device of its own gives a CLAT for nothing.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clat_tests::packet::Seen;
use clat_tests::wire::{send_raw, Sniffer};
use clat_tests::{
    can_run, eventually, Controller, Lab, Mode, Netns, Offloads, Uplink, PREFIX, PREFIX2, SERVER4,
    SERVER6,
};
use nix::sys::signal::{kill, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;

const NEEDS: &[&str] = &["ip", "ethtool", "ping", "tc", "nft"];
const PATIENCE: Duration = Duration::from_secs(20);

/// On an Ethernet and on a raw-IP uplink.
fn run(test: fn(&Lab, Controller<'_>) -> Result<()>) -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    for uplink in [Uplink::Ethernet, Uplink::RawIp] {
        let lab = Lab::on(uplink, Offloads::Default)?;
        let controller = Controller::new(&lab, Mode::Direct, &[])?;
        controller.start("up0", PREFIX)?;
        leads(&lab).with_context(|| format!("{uplink:?}: {}", controller.daemon.log()))?;
        takes(&controller, "direct")?;
        test(&lab, controller).with_context(|| format!("{uplink:?}"))?;
    }
    Ok(())
}

/// Waits until the route leads by the uplink.
fn leads(lab: &Lab) -> Result<()> {
    eventually("a route by the uplink", || is_led(lab))
}

/// Waits until its status says that packets take this path.
fn takes(controller: &Controller<'_>, path: &str) -> Result<()> {
    eventually(path, || Ok(controller.status("up0")?["path"] == path))
}

fn is_led(lab: &Lab) -> Result<bool> {
    Ok(lab.phone.run("ip -4 route show default")?.contains("dev up0"))
}

fn works(lab: &Lab) -> Result<()> {
    eventually("an answer", || Ok(lab.phone.run("ping -n -c 1 -W 1 192.0.2.1").is_ok()))
}

/// Has packets of many kinds go out all the time while `during` runs, and what goes by the link
/// watched at its other end: no IPv4 packet may come, and others must.
fn while_sending(lab: &Lab, during: impl FnOnce() -> Result<()>) -> Result<()> {
    let watch = Sniffer::new(&lab.router, "ph0")?;
    let over = AtomicBool::new(false);
    let socket = lab.phone.enter(|| Ok(UdpSocket::bind("0.0.0.0:0")?))?;
    setsockopt(&socket, sockopt::Broadcast, &true)?;
    let (done, seen) = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for (size, to) in [
                    (22, SERVER4),
                    // In fragments, which clatd has.
                    (4000, SERVER4),
                    // Kinds that the kernel sends past what a default route asks for.
                    (22, Ipv4Addr::new(239, 1, 2, 3)),
                    (22, Ipv4Addr::BROADCAST),
                ] {
                    // There may be no route.
                    let _ = socket.send_to(&vec![7; size], (to, 9));
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        let watching = scope.spawn(|| -> Result<(usize, Vec<String>)> {
            let (mut others, mut native) = (0, Vec::new());
            loop {
                let is_over = over.load(Ordering::Relaxed);
                match watch.next(Duration::from_millis(50))? {
                    Some(packet) if packet.first().is_some_and(|first| first >> 4 == 4) => {
                        let seen = Seen::read(&packet).map(|seen| format!("{seen:?}"));
                        native.push(seen.unwrap_or_else(|| format!("{packet:02x?}")));
                    }
                    Some(_) => others += 1,
                    None if is_over => return Ok((others, native)),
                    None => {}
                }
            }
        });
        let done = during();
        over.store(true, Ordering::Relaxed);
        (done, watching.join().expect("no panic"))
    });
    let (others, native) = seen?;
    done?;
    ensure!(native.is_empty(), "{} left as IPv4: {}", native.len(), native[0]);
    ensure!(others > 100, "only {others} packets came");
    Ok(())
}

#[test]
fn its_filter_is_taken_away() -> Result<()> {
    run(|lab, controller| {
        while_sending(lab, || {
            // More often than they are put back.
            for round in 0..8 {
                for line in [
                    "tc filter del dev up0 egress",
                    "tc qdisc del dev up0 clsact",
                    "ip -4 route del default dev up0",
                ] {
                    let _ = lab.phone.run(line);
                    works(lab).with_context(|| format!("{round}: {line}"))?;
                }
            }
            Ok(())
        })?;
        // With clsact the filter on ingress went, too.
        takes(&controller, "daemon")?;
        let status = controller.status("up0")?;
        ensure!(status["hindrances"].to_string().contains("the direct way"), "{status}");
        Ok(())
    })
}

#[test]
fn all_is_killed_and_taken_away() -> Result<()> {
    run(|lab, controller| {
        while_sending(lab, || {
            let clatds = controller.clatds();
            kill(Pid::from_raw(controller.daemon.pid()), Signal::SIGKILL)?;
            // Translated in the kernel all the same.
            works(lab)?;
            lab.phone.run("tc qdisc del dev up0 clsact")?;
            thread::sleep(Duration::from_millis(100));
            for pid in clatds {
                kill(Pid::from_raw(pid), Signal::SIGKILL)?;
            }
            // With the device goes the address, and with that the route.
            eventually("no route", || Ok(lab.phone.run("ip -4 route show default")?.is_empty()))
        })
    })
}

#[test]
fn all_is_killed_at_random() -> Result<()> {
    run(|lab, controller| {
        let mut random = fastrand::Rng::new();

        let mut controller = Some(controller);
        while_sending(lab, || {
            for _ in 0..10 {
                let running = controller.take().context("one")?;
                let mut victims = running.clatds();
                victims.push(running.daemon.pid());
                random.shuffle(&mut victims);
                for pid in victims {
                    thread::sleep(Duration::from_micros(random.u64(0..30_000)));
                    // Another clatd may be there by now.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                drop(running);
                let next = Controller::new(lab, Mode::Direct, &[])?;
                next.start("up0", PREFIX)?;
                works(lab)?;
                controller = Some(next);
            }
            Ok(())
        })
    })
}

/// What is bound to the uplink goes by it as IPv4, too; and by the right one of two.
#[test]
fn sockets_bound_to_their_uplinks() -> Result<()> {
    run(|lab, controller| {
        lab.second_uplink()?;
        controller.start("up1", PREFIX2)?;
        eventually("a second route", || {
            Ok(lab.phone.run("ip -4 route show default")?.contains("dev up1"))
        })?;
        for (uplink, prefix) in [("up0", PREFIX), ("up1", PREFIX2)] {
            let outside = Sniffer::new(&lab.internet, "net0")?;
            let v6 = controller.status(uplink)?["v6"].as_str().context("an address")?.to_owned();
            lab.phone.run(&format!("ping -n -c 2 -i 0.2 -W 3 -I {uplink} {SERVER4}"))?;
            let seen = outside.wait(PATIENCE, |seen| seen.src.to_string() == v6)?;
            let within = prefix.trim_end_matches(":/96").trim_end_matches(':');
            ensure!(seen.dst.to_string().starts_with(within), "{seen:?}");
        }
        Ok(())
    })
}

/// Also where the machine takes packets from whom it would answer by the same interface only.
#[test]
fn strict_reverse_path_filters() -> Result<()> {
    run(|lab, _controller| {
        lab.phone.run("sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.up0.rp_filter=1")?;
        works(lab)?;
        // In fragments, which clatd puts together.
        lab.phone.run("ping -n -c 1 -W 3 -s 4000 192.0.2.1")?;
        // Errors, which clatd translates.
        lab.narrow(1300)?;
        lab.phone.run("ping -n -c 5 -i 0.2 -W 3 -M do -s 1400 192.0.2.1").err().context("lost")?;
        lab.phone.run("ping -n -c 2 -i 0.2 -W 3 -s 1200 192.0.2.1").map(drop)
    })
}

/// A container behind the host: with the CLAT's address as source, its packets go directly. With
/// another, which a masquerade may pick since the uplink has none, they go nowhere.
#[test]
fn forwarded_from_a_container() -> Result<()> {
    run(|lab, controller| {
        let v4 = controller.status("up0")?["v4"].as_str().context("an address")?.to_owned();
        let container = Netns::new(9700, "container")?;
        let veth = format!("ip link add c0 type veth peer name c1 netns {}", container.name());
        let snat = format!("nft add rule ip nat post oifname up0 snat to {v4}");
        for line in [
            &*veth,
            "ip addr add 10.7.7.1/24 dev c0",
            "ip link set c0 up",
            "sysctl -qw net.ipv4.ip_forward=1",
            "nft add table ip nat",
            "nft add chain ip nat post { type nat hook postrouting priority srcnat ; }",
        ] {
            lab.phone.run(line).with_context(|| line.to_owned())?;
        }
        for line in [
            "ip addr add 10.7.7.2/24 dev c1",
            "ip link set c1 up",
            "ip route add default via 10.7.7.1",
        ] {
            container.run(line).with_context(|| line)?;
        }
        while_sending(lab, || {
            ensure!(container.run("ping -n -c 3 -i 0.2 -W 1 192.0.2.1").is_err(), "unmasked");
            let foreign = || {
                let status = controller.status("up0")?;
                Ok(status["egress"]["passed"]["foreign-source"].as_u64() >= Some(3))
            };
            eventually("left to clatd", foreign)?;
            lab.phone.run(&snat)?;
            container.run("ping -n -c 3 -i 0.2 -W 3 192.0.2.1")?;
            container.run("ping -n -c 1 -W 3 -s 4000 192.0.2.1").map(drop)
        })
    })
}

#[test]
fn a_raw_socket_sends_by_it() -> Result<()> {
    run(|lab, controller| {
        let v4: Ipv4Addr = controller.status("up0")?["v4"].as_str().context("v4")?.parse()?;
        let outside = Sniffer::new(&lab.internet, "net0")?;
        let packet = clat_tests::packet::V4::new(v4, SERVER4, 47).packet(&[7; 40]);
        send_raw(&lab.phone, &packet)?;
        outside.wait(PATIENCE, |seen| seen.dst == SERVER6 && seen.proto == 47).map(drop)
    })
}
