// SPDX-License-Identifier: Apache-2.0

//! A host on platd's network gets IPv4 automatically.

use anyhow::{ensure, Result};
use clat_tests::{can_run, program};

use super::{wait_until, World, SERVER};

const NEEDS: &[&str] = &["python3", "ip6tables", "ping"];

/// The prefix comes by router advertisements, then by DNS only; `clatctl discover` reports the
/// same.
#[test]
fn a_clat_comes_by_itself() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    let world = World::new()?;
    for (name, options, source) in [
        ("pref64", &[][..], "PREF64 of router fe80::1"),
        ("dns64", &["--no-pref64"], "DNS64 at 2001:db8:464::53"),
    ] {
        let (guest, _platd) = world.guest(name, options)?;
        let (socket, log) =
            (world.path(&format!("{name}.sock")), world.path(&format!("{name}.log2")));
        let argv = [
            program("clat_controller")?.into_os_string(),
            "--socket".into(),
            socket.into(),
            "--clatd".into(),
            program("clatd")?.into(),
            "--auto".into(),
            "--uplink=plat0".into(),
        ];
        let controller = guest.spawn(&argv, &log)?;
        wait_until("IPv4", || Ok(guest.run(&format!("ping -n -c 1 -W 1 {SERVER}")).is_ok()))?;
        ensure!(controller.log().contains(source), "{}", controller.log());
        let clatctl = program("clatctl")?.display().to_string();
        let said = guest.run(&format!("{clatctl} discover plat0"))?;
        ensure!(said.contains(source) && said.contains("64:ff9b::/96"), "{said}");
        ensure!(said.lines().all(|line| line.len() <= 80), "{said}");
    }
    Ok(())
}
