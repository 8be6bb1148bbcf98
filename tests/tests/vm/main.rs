//! The virtual device: QEMU boots Debian's stock kernel, which has the binder driver, with an initramfs made of our programs.
//! In it the service is called over `/dev/binder`, by our clients and by a foreign one, with TUN, tc, BPF and ip6tables for
//! real; `guest.sh` says what is tried. Emulated, so that no KVM is needed.

mod fetch;
mod image;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use clat_tests::{can_run, program};
use serde_json::Value;
use tempfile::TempDir;

use fetch::{sh, Kernel};
use image::Image;

/// On the machine that builds the device.
const NEEDS: &[&str] = &[
    "qemu-system-x86_64",
    "busybox",
    "cpio",
    "modprobe",
    "xz",
    "gcc",
    "pkg-config",
    "clang",
    "apt-get",
    "setpriv",
    "bash",
    "ping",
    "tc",
    "ip6tables",
    "ethtool",
];

/// In the device, besides busybox, whose own are not the same: its sh takes its ip, its sleep goes by argv[0].
const PROGRAMS: &[&str] = &[
    "dash",
    "bash",
    "ip",
    "tc",
    "ping",
    "setpriv",
    "ethtool",
    "sysctl",
    "sleep",
    "timeout",
    "xtables-legacy-multi",
];

const MODULES: &[&str] = &[
    "binder_linux",
    "tun",
    "veth",
    "cls_bpf",
    "sch_ingress",
    "act_bpf",
    "act_mirred",
    "cls_u32",
    "ip6table_raw",
    "ip6table_filter",
];

/// Booting and all the tries; it takes two minutes on two idle cores.
const PATIENCE: Duration = Duration::from_secs(1200);

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm").join(name)
}

/// The test programs of the workspace that run in the device: the contract of the service, and the rulebook.
fn tests() -> Result<[PathBuf; 2]> {
    // As the whole workspace has them, or other features of crates would have them built once more.
    let output = Command::new(env!("CARGO"))
        .args(["test", "--workspace", "--locked", "--no-run", "--message-format=json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "cargo test --no-run: {}", output.status);
    let messages: Vec<Value> = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let find = |root: &str| {
        let built = messages.iter().find(|message| {
            let source = message["target"]["src_path"].as_str().unwrap_or_default();
            source.ends_with(root) && message["executable"].is_string()
        });
        built
            .and_then(|built| built["executable"].as_str())
            .map(PathBuf::from)
            .context(root.to_owned())
    };
    Ok([find("src/controller/tests/service/main.rs")?, find("tests/tests/rulebook.rs")?])
}

fn image(kernel: &Kernel, folder: &Path) -> Result<PathBuf> {
    let mut image = Image::new(folder.join("root"))?;
    image.program(Path::new("/bin/busybox"), "/bin/busybox")?;
    for name in PROGRAMS {
        image.system_program(name)?;
    }
    image.link("dash", "/bin/sh")?;
    for name in ["ip6tables", "ip6tables-restore", "ip6tables-save"] {
        image.link("/usr/bin/xtables-legacy-multi", &format!("/usr/sbin/{name}"))?;
    }
    image.folder(
        Path::new("/usr/lib/x86_64-linux-gnu/xtables"),
        "/usr/lib/x86_64-linux-gnu/xtables",
    )?;
    for name in ["clatd", "clat_controller", "clatctl"] {
        image.program(&program(name)?, &format!("/usr/local/bin/{name}"))?;
    }
    let tools = fetch::tools()?;
    for name in ["rsb_hub", "rsb_service"] {
        image.program(&tools.join(name), &format!("/usr/local/bin/{name}"))?;
    }
    let [service, rulebook] = tests()?;
    image.program(&service, "/usr/local/bin/service")?;
    image.program(&rulebook, "/usr/local/bin/rulebook")?;

    let object = folder.join("clatd.o");
    let compile = format!(
        "clang -O2 -g -target bpf -I/usr/include/{}-linux-gnu -c bpf_progs/clatd.c -o {}",
        std::env::consts::ARCH,
        object.display()
    );
    sh(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &compile)?;
    image.put(&object, "/clatd.o")?;

    image.folder(&fetch::foreign(&source("foreign.c"))?, "/sid")?;
    image.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nclat:x:1029:1029::/:/bin/sh\n")?;
    image.write("/etc/group", "root:x:0:\nclat:x:1029:\n")?;
    image.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\n")?;
    image.write("/init", &fs::read_to_string(source("init.sh"))?)?;
    image.write("/guest.sh", &fs::read_to_string(source("guest.sh"))?)?;
    image.modules(kernel, MODULES)?;
    let archive = folder.join("initramfs");
    image.pack(&archive)?;
    Ok(archive)
}

/// Boots it and waits for its end; gives what the guest reported.
fn boot(kernel: &Kernel, initramfs: &Path, folder: &Path) -> Result<String> {
    let (console, report) = (folder.join("console"), folder.join("report"));
    let log = File::create(&console)?;
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel.root.join("boot").join(format!("vmlinuz-{}", kernel.release)))
        .arg("-initrd")
        .arg(initramfs)
        .args([
            "-append",
            "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on",
        ])
        .args(["-serial", "stdio", "-serial", &format!("file:{}", report.display())])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let begin = Instant::now();
    let ended = loop {
        if let Some(status) = qemu.try_wait()? {
            break status.success();
        }
        if begin.elapsed() > PATIENCE {
            qemu.kill()?;
            qemu.wait()?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let console = fs::read(&console)?;
    eprintln!("{}", String::from_utf8_lossy(&console));
    let report = fs::read_to_string(&report).unwrap_or_default().replace('\r', "");
    if !ended || !report.ends_with("end\n") {
        bail!(
            "the device did not come to its end in {:?}; it reported:\n{report}",
            begin.elapsed()
        );
    }
    eprintln!("{} s", begin.elapsed().as_secs());
    Ok(report)
}

#[test]
fn the_virtual_device() -> Result<()> {
    if !can_run(NEEDS) {
        return Ok(());
    }
    fs::create_dir_all(fetch::cache())?;
    let kernel = fetch::kernel()?;
    let folder = TempDir::new()?;
    let initramfs = image(&kernel, folder.path())?;
    let report = boot(&kernel, &initramfs, folder.path())?;
    eprintln!("{report}");
    let failed: Vec<_> = report.lines().filter(|line| line.starts_with("FAILED")).collect();
    ensure!(failed.is_empty(), "on {}: {failed:#?}", kernel.release);
    // As many as there are in the script, lest one goes missing without a word.
    let tries = fs::read_to_string(source("guest.sh"))?;
    let tries = tries.lines().filter(|line| line.trim_start().starts_with("try ")).count();
    let ok = report.lines().filter(|line| line.starts_with("OK ")).count();
    ensure!(ok == tries, "{ok} of {tries} tries");
    Ok(())
}
