// SPDX-License-Identifier: Apache-2.0

//! The programs under test, started in a lab: controller and command line; or tayga in their place.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clat_tun::{Options, Tun};
use clat_xlat::{Local, Prefix};
use nix::fcntl::{fcntl, FcntlArg, FdFlag};
use nix::net::if_::if_nametoindex;

use crate::lab::{Lab, Uplink, PREFIX, SERVER4, UPLINK6};
use crate::netns::{host, Daemon};

/// The IPv4 interface.
const DEV: &str = "v4-up0";
/// The default IPv4 address of a CLAT.
const LOCAL4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 4);

/// The path of one of our programs: in `CLAT_BIN_DIR`, else in `target`, where of a release and a
/// debug build the newer one counts.
///
/// # Errors
/// If it was not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let dirs = match std::env::var_os("CLAT_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => ["release", "debug"].map(|profile| target.join(profile)).to_vec(),
    };
    let built = |path: &PathBuf| path.metadata().and_then(|it| it.modified()).ok();
    let found = dirs.iter().map(|dir| dir.join(name)).filter(|path| path.is_file());
    let newest = found.max_by_key(built);
    newest.with_context(|| format!("{name} is not in {dirs:?}: run cargo build --release"))
}

/// Copies a program to `to`, to be run there. Another process copies it: while we had the file open
/// for writing, a program just being started by another thread would inherit the descriptor until
/// its exec, and the file could not be run (ETXTBSY of execve(2)).
///
/// # Errors
/// If it cannot be copied.
pub fn install(from: &Path, to: &Path) -> Result<()> {
    host(&format!("cp {} {}", from.display(), to.display())).map(drop)
}

/// A running controller, and a client of it.
#[derive(Debug)]
pub struct Controller<'l> {
    lab: &'l Lab,
    socket: PathBuf,
    argv: Vec<OsString>,
    /// The process.
    pub daemon: Daemon,
}

impl<'l> Controller<'l> {
    /// Starts `clat_controller` in the lab's phone and waits until it is ready.
    ///
    /// # Errors
    /// If it does not become ready; with its log.
    pub fn new(lab: &'l Lab, mode: Mode, more: &[&str]) -> Result<Self> {
        let mut controller = Self::spawn(lab, mode, more)?;
        controller.daemon.wait_for("ready on unix:")?;
        Ok(controller)
    }

    /// The same with another clatd, and without the programs in the kernel.
    ///
    /// # Errors
    /// If it does not become ready; with its log.
    pub fn with_clatd(lab: &'l Lab, clatd: &Path) -> Result<Self> {
        let mut controller = Self::spawn_with(lab, Mode::Daemon, clatd, &[])?;
        controller.daemon.wait_for("ready on unix:")?;
        Ok(controller)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(lab: &'l Lab, mode: Mode, more: &[&str]) -> Result<Self> {
        Self::spawn_with(lab, mode, &program("clatd")?, more)
    }

    fn spawn_with(lab: &'l Lab, mode: Mode, clatd: &Path, more: &[&str]) -> Result<Self> {
        let socket = lab.dir().join("controller.sock");
        let mut argv = vec![
            program("clat_controller")?.into_os_string(),
            "--socket".into(),
            socket.clone().into(),
            "--clatd".into(),
            clatd.into(),
            mode.option().into(),
        ];
        argv.extend(more.iter().map(Into::into));
        let daemon = lab.phone.spawn(&argv, &lab.dir().join("controller.log"))?;
        Ok(Self { lab, socket, argv, daemon })
    }

    /// Starts another one with the same options after this one has been killed, and waits until it
    /// is ready.
    ///
    /// # Errors
    /// When it does not get that far; with its log.
    pub fn again(&self) -> Result<Self> {
        let Self { lab, socket, argv, .. } = self;
        let daemon = lab.phone.spawn(argv, &lab.dir().join("controller-again.log"))?;
        let mut again = Self { lab, socket: socket.clone(), argv: argv.clone(), daemon };
        again.daemon.wait_for("ready on unix:")?;
        Ok(again)
    }

    /// Where it runs.
    #[must_use]
    pub fn lab(&self) -> &'l Lab {
        self.lab
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Runs `clatctl` with these arguments.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn try_ctl(&self, args: &[&str]) -> Result<Output> {
        let mut argv = vec![program("clatctl")?.into_os_string()];
        argv.extend(["--socket".into(), self.socket.clone().into()]);
        argv.extend(args.iter().map(Into::into));
        self.lab.phone.output(&argv)
    }

    /// Runs `clatctl` and returns what it printed.
    ///
    /// # Errors
    /// If it fails; with its output and the controller's log.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = self.try_ctl(args)?;
        ensure!(
            output.status.success(),
            "clatctl {args:?}: {}: {}controller said: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.daemon.log()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a CLAT and returns its addresses.
    ///
    /// # Errors
    /// Those of `clatctl start` and of a status that lacks it.
    pub fn start(&self, iface: &str, prefix: &str) -> Result<(Ipv4Addr, Ipv6Addr)> {
        self.ctl(&["start", iface, "--prefix", prefix])?;
        let clat = self.status(iface)?;
        let text = |key: &str| clat[key].as_str().with_context(|| format!("no {key}: {clat}"));
        Ok((text("v4")?.parse()?, text("v6")?.parse()?))
    }

    /// The CLAT on `iface` in `clatctl status --json`.
    ///
    /// # Errors
    /// Those of `clatctl`, and if there is none.
    pub fn status(&self, iface: &str) -> Result<serde_json::Value> {
        let status: serde_json::Value = serde_json::from_str(&self.ctl(&["status", "--json"])?)?;
        let clats = status["clats"].as_array().context("status has no clats")?;
        clats.iter().find(|c| c["iface"] == iface).cloned().context("status lacks it")
    }

    /// The process ids of its clatds.
    #[must_use]
    pub fn clatds(&self) -> Vec<i32> {
        let ours = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.starts_with(b"clatd-"))
        };
        self.lab.phone.pids().into_iter().filter(ours).collect()
    }
}

/// What translates packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// BPF programs where possible, clatd the rest.
    Offload,
    /// The same, on the uplink itself.
    Direct,
    /// clatd only.
    Daemon,
}

impl Mode {
    /// The controller's option.
    fn option(self) -> &'static str {
        match self {
            Self::Offload => "--offload",
            Self::Direct => "--path=direct",
            Self::Daemon => "--no-offload",
        }
    }
}

/// A CLAT that runs on `up0`.
#[derive(Debug)]
pub struct Clat<'l> {
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The interface by which IPv4 packets arrive.
    pub dev: &'static str,
    /// The controller that runs it; `None` for another translator.
    pub controller: Option<Controller<'l>>,
    /// The other translator.
    other: Option<Daemon>,
    /// The device that it was given.
    _tun: Option<Tun>,
}

impl<'l> Clat<'l> {
    /// Starts ours; or tayga with `CLAT_LAB_WITH=tayga`, to distinguish faults of the lab from
    /// those of the CLAT.
    ///
    /// # Errors
    /// The programs' errors.
    pub fn new(lab: &'l Lab, mode: Mode) -> Result<Self> {
        if std::env::var("CLAT_LAB_WITH").as_deref() == Ok("tayga") {
            return Self::tayga(lab, PREFIX);
        }
        Self::ours(lab, PREFIX, mode)
    }

    /// Starts ours.
    ///
    /// # Errors
    /// The programs' errors.
    pub fn ours(lab: &'l Lab, prefix: &str, mode: Mode) -> Result<Self> {
        let controller = Controller::new(lab, mode, &[])?;
        let (v4, v6) = controller.start("up0", prefix)?;
        let dev = if mode == Mode::Direct { "up0" } else { DEV };
        Ok(Self { v4, v6, dev, controller: Some(controller), other: None, _tun: None })
    }

    /// Starts AOSP's clatd at `path`, or another with its options.
    ///
    /// # Errors
    /// The programs' errors.
    pub fn aosp(lab: &'l Lab, prefix: &str, path: &Path) -> Result<Self> {
        let pfx96: Prefix = prefix.parse().with_context(|| prefix.to_owned())?;
        // Any interface identifier; the bytes that are not random make it checksum-neutral.
        let local = Local::neutral(LOCAL4, UPLINK6, &pfx96, *b"\x02clatlab");
        let options = Options { packet_info: true, vnet_header: false };
        let tun = lab.phone.enter(|| Ok(Tun::create(DEV, options)?))?;
        lab.phone.run(&format!("sysctl -qw net.ipv6.conf.{DEV}.disable_ipv6=1"))?;
        let (v4, v6, address) = (local.v4.to_string(), local.v6.to_string(), pfx96.addr());
        lab.phone
            .run(&format!("ip6tables -t raw -A PREROUTING -i up0 -s {prefix} -d {v6} -j DROP"))?;
        // Keep it open across exec.
        fcntl(tun.as_fd().as_raw_fd(), FcntlArg::F_SETFD(FdFlag::empty()))?;
        let fd = tun.as_fd().as_raw_fd().to_string();
        let argv = [
            path.to_str().context("a path that is no text")?,
            "-i",
            "up0",
            "-m",
            "0x0",
            "-p",
            &address.to_string(),
            "-4",
            &v4,
            "-6",
            &v6,
            "-t",
            &fd,
        ];
        let clatd = lab.phone.spawn(&argv, &lab.dir().join("clatd.log"))?;
        fcntl(tun.as_fd().as_raw_fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // Older ones bring the device up themselves.
        let route = || lab.phone.run(&format!("ip route replace default dev {DEV}"));
        let up = (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(50));
            route().is_ok()
        });
        ensure!(up, "{DEV} did not come up: {}", clatd.log());
        let clat = Self {
            v4: local.v4,
            v6: local.v6,
            dev: DEV,
            controller: None,
            other: Some(clatd),
            _tun: Some(tun),
        };
        clat.wait_for_answer(lab)?;
        Ok(clat)
    }

    /// Starts ours without BPF programs, and attaches AOSP's: `object` is its bpf/progs/clatd.c
    /// with libbpf map definitions. Where they do not translate (uploads on Ethernet), our clatd
    /// does.
    ///
    /// # Errors
    /// The programs' errors.
    pub fn aosp_programs(lab: &'l Lab, prefix: &str, object: &Path) -> Result<Self> {
        let clat = Self::ours(lab, prefix, Mode::Daemon)?;
        let pfx96: Prefix = prefix.parse().with_context(|| prefix.to_owned())?;
        let index = |name: &str| lab.phone.enter(|| if_nametoindex(name).context("no such device"));
        let (uplink, v4index) = (index("up0")?.to_ne_bytes(), index(DEV)?.to_ne_bytes());
        let (link, ethernet) = match lab.uplink() {
            Uplink::Ethernet => ("ether", 1),
            Uplink::RawIp => ("rawip", 0),
        };
        let (object, v4) = (object.display(), clat.v4.octets());
        let (local6, pfx96) = (clat.v6.octets(), pfx96.addr().octets());
        with_bpffs(lab, |pins| {
            host(&format!("bpftool prog loadall {object} {pins}/programs pinmaps {pins}/maps"))?;
            let fill = |map: &str, key: String, value: String| {
                let map = format!("{pins}/maps/{map}");
                host(&format!("bpftool map update pinned {map} key hex {key} value hex {value}"))
            };
            // Each value ends with two counters (bpf/progs/clatd.h).
            let value = hex(&[&uplink, &local6, &pfx96, &[ethernet, 0, 0, 0], &[0; 16]]);
            fill("clat_egress4_map", hex(&[&v4index, &v4]), value)?;
            let value = hex(&[&v4index, &v4, &[0; 16]]);
            fill("clat_ingress6_map", hex(&[&uplink, &pfx96, &local6]), value)?;
            for (dev, hook, protocol, program) in [
                (DEV, "egress", "ip", "sched_cls_egress4_clat_rawip".to_owned()),
                ("up0", "ingress", "ipv6", format!("sched_cls_ingress6_clat_{link}_4_14")),
            ] {
                // A raw-IP uplink already has one if the kernel carries its packets.
                let _ = lab.phone.run(&format!("tc qdisc add dev {dev} clsact"));
                lab.phone.run(&format!(
                    "tc filter add dev {dev} {hook} protocol {protocol} prio 4 bpf da pinned \
                        {pins}/programs/{program}"
                ))?;
            }
            Ok(())
        })?;
        clat.wait_for_answer(lab)?;
        Ok(clat)
    }

    /// Translates on the uplink itself by programs named and configured as NetworkManager's are
    /// (its src/core/bpf/clat.bpf.c): `object` has them, and its `config` comes first in `.bss`.
    ///
    /// # Errors
    /// The programs' errors.
    pub fn on_uplink(lab: &'l Lab, prefix: &str, object: &Path) -> Result<Self> {
        let pfx96: Prefix = prefix.parse().with_context(|| prefix.to_owned())?;
        // A neutral address: no checksum changes.
        let Local { v4, v6 } = Local::neutral(LOCAL4, UPLINK6, &pfx96, *b"\x02clatlab");
        let (link, router) = match lab.uplink() {
            Uplink::Ethernet => ("eth", "via inet6 2001:db8:1::1"),
            Uplink::RawIp => ("rawip", ""),
        };
        let config = [&v6.octets()[..], &pfx96.addr().octets(), &v4.octets(), &96u32.to_ne_bytes()];
        with_bpffs(lab, |pins| {
            let object = object.display();
            host(&format!(
                "bpftool prog loadall {object} {pins}/programs type classifier pinmaps {pins}/maps"
            ))?;
            let mut maps = fs::read_dir(format!("{pins}/maps"))?.flatten().map(|map| map.path());
            let bss = maps.find(|map| map.to_string_lossy().ends_with("bss"));
            let map = format!("pinned {}", bss.context("no .bss in it")?.display());
            let shown: serde_json::Value =
                serde_json::from_str(&host(&format!("bpftool -j map show {map}"))?)?;
            let mut value = config.concat();
            value.resize(shown["bytes_value"].as_u64().context("its size")?.try_into()?, 0);
            let value = hex(&[&value]);
            host(&format!("bpftool map update {map} key hex 00 00 00 00 value hex {value}"))?;
            let _ = lab.phone.run("tc qdisc add dev up0 clsact");
            for hook in ["egress", "ingress"] {
                lab.phone.run(&format!(
                    "tc filter add dev up0 {hook} prio 4 bpf da pinned \
                        {pins}/programs/nm_clat_{hook}_{link}"
                ))?;
            }
            Ok(())
        })?;
        for line in [
            &format!("ip -6 addr add {v6}/128 dev up0 nodad"),
            &format!("ip addr add {v4}/32 dev up0"),
            // Room for the longer header.
            &format!("ip route add default src {v4} mtu 1480 dev up0 {router}"),
        ] {
            lab.phone.run(line)?;
        }
        Ok(Self { v4, v6, dev: "up0", controller: None, other: None, _tun: None })
    }

    /// Starts Debian's tayga as a CLAT: the kernel forwards between it and the uplink.
    ///
    /// # Errors
    /// The programs' errors.
    pub fn tayga(lab: &'l Lab, prefix: &str) -> Result<Self> {
        let v4 = LOCAL4;
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xc1a7);
        let dir = lab.dir().display();
        let conf = lab.dir().join("tayga.conf");
        fs::write(
            &conf,
            format!(
                "tun-device v4-up0\nipv4-addr 192.0.0.1\nipv6-addr 2001:db8:1::c1a8\n\
                 prefix {prefix}\nmap {v4} {v6}\ndata-dir {dir}\n"
            ),
        )?;
        let conf = conf.display();
        lab.phone.run(&format!("tayga -c {conf} --mktun"))?;
        for line in [
            "sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.proxy_ndp=1",
            "ip link set v4-up0 mtu 1472 up",
            &format!("ip addr add {v4}/32 dev v4-up0"),
            "ip route add default dev v4-up0",
            &format!("ip -6 route add {v6}/128 dev v4-up0"),
            "ip -6 route add 2001:db8:1::c1a8/128 dev v4-up0",
            &format!("ip -6 neigh add proxy {v6} dev up0"),
        ] {
            lab.phone.run(line)?;
        }
        let argv = ["tayga", "-c", &conf.to_string(), "-d"];
        let tayga = lab.phone.spawn(&argv, &lab.dir().join("tayga.log"))?;
        let clat = Self { v4, v6, dev: DEV, controller: None, other: Some(tayga), _tun: None };
        clat.wait_for_answer(lab)?;
        Ok(clat)
    }

    /// Waits until the server answers through it.
    fn wait_for_answer(&self, lab: &Lab) -> Result<()> {
        let mut answered = (0..10).map(|_| lab.phone.run(&format!("ping -n -c 1 -W 1 {SERVER4}")));
        let said = self.other.as_ref().map(Daemon::log).unwrap_or_default();
        ensure!(answered.any(|ping| ping.is_ok()), "no answer through it: {said}");
        Ok(())
    }

    /// Process ids of the translator and of our controller.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let clatds = self.controller.iter().flat_map(Controller::clatds);
        let controller = self.controller.as_ref().map(|controller| controller.daemon.pid());
        clatds.chain(controller).chain(self.other.as_ref().map(Daemon::pid)).collect()
    }
}

/// Has `attach` pin programs and maps in a file system of its own, which then goes: the filters
/// keep them.
fn with_bpffs(lab: &Lab, attach: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let pins = lab.dir().join("bpf");
    fs::create_dir(&pins)?;
    let pins = pins.display().to_string();
    host(&format!("mount -t bpf bpf {pins}"))?;
    let attached = attach(&pins);
    host(&format!("umount {pins}"))?;
    attached
}

/// Bytes as bpftool takes them.
fn hex(parts: &[&[u8]]) -> String {
    let bytes = parts.concat();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
