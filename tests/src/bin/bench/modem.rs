// SPDX-License-Identifier: Apache-2.0

//! A raw-IP uplink whose packets are carried by the kernel, so that no other process is measured.

use anyhow::{Context, Result};
use clat_tests::{compile_bpf, Lab};
use nix::net::if_::if_nametoindex;

/// The address of both ends of the wire, as `modem.c` writes it.
const ADDRESS: &str = "02:00:00:00:00:00";

/// Makes a veth carry the packets of the uplink's TUN devices instead of the lab's thread.
pub(crate) fn carry_in_kernel(lab: &Lab) -> Result<()> {
    let router = lab.router.name();
    lab.phone.run(&format!(
        "ip link add wire0 address {ADDRESS} type veth peer name wire0 address {ADDRESS} netns \
            {router}"
    ))?;
    for (ns, device) in [(&lab.phone, "up0"), (&lab.router, "ph0")] {
        let index = |name: &str| ns.enter(|| if_nametoindex(name).with_context(|| name.to_owned()));
        let object = lab.dir().join(format!("{device}.o"));
        let ends = [format!("-DDEVICE={}", index(device)?), format!("-DWIRE={}", index("wire0")?)];
        let options = ["-Ibpf_progs", &ends[0], &ends[1]];
        compile_bpf("tests/src/bin/bench/modem.c".as_ref(), &options, &object)?;
        let object = object.display();
        ns.run("sysctl -qw net.ipv6.conf.wire0.disable_ipv6=1")?;
        ns.run("ip link set wire0 mtu 1500 up")?;
        // Behind a program of the CLAT's, which may have made what leaves IPv6.
        for (dev, hook, program) in [
            (device, "egress protocol all prio 9", "leaves"),
            ("wire0", "ingress protocol ipv6 prio 1", "arrives"),
        ] {
            ns.run(&format!("tc qdisc add dev {dev} clsact"))?;
            ns.run(&format!(
                "tc filter add dev {dev} {hook} bpf da obj {object} sec tc/{program}"
            ))?;
        }
    }
    Ok(())
}
