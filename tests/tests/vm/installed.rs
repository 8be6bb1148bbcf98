// SPDX-License-Identifier: Apache-2.0

//! Our package on a Debian 12 with systemd as process 1: installed, upgraded and removed under real
//! managers of network links. `installed.sh` says what is tried.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Result;
use clat_tests::program;

use crate::fetch::{self, sh};
use crate::guests::Carrier;
use crate::image::{source, Image};
use crate::machine::{all_ok, can_boot, Machine};

/// Besides what every machine needs.
const NEEDS: &[&str] =
    &["python3", "dnsmasq", "setpriv", "debootstrap", "mke2fs", "dpkg-shlibdeps"];
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "virtio_blk", "ext4", "autofs4"];

/// The package as it is, and as its next version will be.
fn packages(folder: &Path) -> Result<()> {
    let programs = folder.join("programs");
    fs::create_dir(&programs)?;
    for name in ["clat_controller", "clatctl", "clatd", "platd"] {
        symlink(program(name)?, programs.join(name))?;
    }
    // Of this build, whichever the others are of.
    symlink(env!("CARGO_BIN_EXE_pages"), programs.join("pages"))?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/deb");
    sh(folder, &format!("{} programs made", script.display()))?;
    let next = "mv made/clat_[0-9]*.deb clat_0.deb
        dpkg-deb -R clat_0.deb next
        sed -i 's/^Version: .*/Version: 9.9.9/' next/DEBIAN/control
        dpkg-deb --root-owner-group -Zgzip --build next clat_9.9.9.deb";
    sh(folder, next).map(drop)
}

#[test]
fn the_package_on_a_machine_with_systemd() -> Result<()> {
    if !can_boot(&[NEEDS]) {
        return Ok(());
    }
    let kernel = fetch::kernel()?;
    let disk = fetch::debian()?;
    let carrier = Carrier::new(602, "--socket")?;
    packages(&carrier.path(""))?;
    let mut image = Image::new(carrier.path("root"), &[])?;
    image.write("/init", &fs::read_to_string(source("disk.sh"))?)?;
    for (from, to) in [
        ("installed.sh", "/script.sh"),
        ("lib.sh", "/lib.sh"),
        ("installed.service", "/etc/systemd/system/installed.service"),
        ("uplink.network", "/etc/systemd/network/uplink.network"),
    ] {
        image.put(&source(from), &format!("/brought{to}"))?;
    }
    let wanted = "/brought/etc/systemd/system/multi-user.target.wants/installed.service";
    image.link("../installed.service", wanted)?;
    for package in ["clat_0.deb", "clat_9.9.9.deb"] {
        image.put(&carrier.path(package), &format!("/brought/debs/{package}"))?;
    }
    image.modules(&kernel, MODULES)?;
    let initramfs = carrier.path("initramfs");
    image.pack(&initramfs)?;
    let drive = format!("file={},if=virtio,format=raw,snapshot=on,cache=unsafe", disk.display());
    let netdev = carrier.netdev("stream,id=n,server=off,addr.type=unix,addr.path=DIR/p");
    let device = "virtio-net-pci,netdev=n,romfile=";
    let options = ["-m", "1024", "-drive", &drive, "-netdev", &netdev, "-device", device];
    let report = Machine::boot(&kernel, &initramfs, &carrier.path("run"), &options)?.end()?;
    all_ok(&report, "installed.sh")
}
