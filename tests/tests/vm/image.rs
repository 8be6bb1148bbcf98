// SPDX-License-Identifier: Apache-2.0

//! The initramfs: programs with their libraries, and kernel modules with their dependencies.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clat_tests::program;

use crate::fetch::{sh, Kernel};

/// Programs of every machine beside busybox, whose own differ: its sh uses its own ip, and its
/// sleep depends on argv[0].
pub(crate) const PROGRAMS: &[&str] = &["dash", "ip", "tc", "ping", "sysctl", "sleep", "timeout"];

/// Kernel modules that our CLAT needs.
const MODULES: &[&str] = &["tun", "cls_bpf", "sch_ingress", "act_bpf", "act_mirred"];

/// A file beside this one.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm").join(name)
}

/// A root file system under construction.
pub(crate) struct Image {
    root: PathBuf,
    libraries: BTreeSet<String>,
}

impl Image {
    /// One that boots by `init.sh`, with busybox, and with [`PROGRAMS`] and more of this machine.
    pub(crate) fn new(root: PathBuf, more: &[&str]) -> Result<Self> {
        fs::create_dir_all(&root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))?;
        // As Debian has them.
        for top in ["bin", "sbin", "lib", "lib64"] {
            fs::create_dir_all(root.join("usr").join(top))?;
            symlink(format!("usr/{top}"), root.join(top))?;
        }
        let mut image = Self { root, libraries: BTreeSet::new() };
        image.program(Path::new("/bin/busybox"), "/bin/busybox")?;
        for name in PROGRAMS.iter().chain(more) {
            image.system_program(name)?;
        }
        image.link("dash", "/bin/sh")?;
        image.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nclat:x:1029:1029::/:/bin/sh\n")?;
        image.write("/etc/group", "root:x:0:\nclat:x:1029:\n")?;
        image.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")?;
        image.write("/init", &fs::read_to_string(source("init.sh"))?)?;
        image.write("/lib.sh", &fs::read_to_string(source("lib.sh"))?)?;
        Ok(image)
    }

    /// Adds the script to run, which is next to this file.
    pub(crate) fn script(&mut self, name: &str) -> Result<()> {
        self.write("/script.sh", &fs::read_to_string(source(name))?)
    }

    /// Adds our CLAT.
    pub(crate) fn clat(&mut self) -> Result<()> {
        for name in ["clatd", "clat_controller", "clatctl"] {
            self.program(&program(name)?, &format!("/usr/local/bin/{name}"))?;
        }
        Ok(())
    }

    /// Copies a file to a path inside.
    pub(crate) fn put(&mut self, from: &Path, to: &str) -> Result<()> {
        let to = self.root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().context("a path of a file")?)?;
        fs::copy(from, &to).with_context(|| from.display().to_string())?;
        Ok(())
    }

    pub(crate) fn write(&mut self, path: &str, text: &str) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a path of a file")?)?;
        fs::write(&path, text)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
    }

    pub(crate) fn link(&mut self, target: &str, path: &str) -> Result<()> {
        let path = self.root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a path of a file")?)?;
        Ok(symlink(target, path)?)
    }

    /// Copies a program, and notes its libraries.
    pub(crate) fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        let list = format!("ldd {} | grep -o '/[^ ]*' || true", from.display());
        self.libraries.extend(sh(Path::new("/"), &list)?.lines().map(str::to_owned));
        self.put(from, to)
    }

    /// Copies a program of this machine to a folder that busybox does not use.
    pub(crate) fn system_program(&mut self, name: &str) -> Result<()> {
        let path = sh(Path::new("/"), &format!("command -v {name}")).context(name.to_owned())?;
        self.program(&fs::canonicalize(path.trim())?, &format!("/usr/bin/{name}"))?;
        self.link(&format!("/usr/bin/{name}"), &format!("/usr/sbin/{name}"))
    }

    /// Copies a whole folder, to a path that is not there yet.
    pub(crate) fn folder(&mut self, from: &Path, to: &str) -> Result<()> {
        let to = self.root.join(to.trim_start_matches('/'));
        fs::create_dir_all(&to)?;
        sh(from, &format!("cp -a . {}", to.display())).map(drop)
    }

    /// Copies our modules and more, each behind those that it needs, and a list of them in that
    /// order.
    pub(crate) fn modules(&mut self, kernel: &Kernel, more: &[&str]) -> Result<()> {
        let mut seen = BTreeSet::new();
        let mut list = String::new();
        for module in MODULES.iter().chain(more) {
            let command = format!(
                "modprobe -d {} -S {} --show-depends {module}",
                kernel.root.display(),
                kernel.release
            );
            for line in sh(Path::new("/"), &command)?.lines() {
                let Some(line) = line.strip_prefix("insmod ") else { continue };
                let (path, options) = line.split_once(' ').unwrap_or((line, ""));
                let name = Path::new(path).file_name().context("a module")?.to_string_lossy();
                if seen.insert(path.to_owned()) {
                    self.put(Path::new(path), &format!("/lib/modules/{name}"))?;
                    if let Some(plain) = name.strip_suffix(".xz") {
                        sh(&self.root.join("lib/modules"), &format!("xz -d {name}"))?;
                        list += &format!("/lib/modules/{plain} {options}\n");
                    } else {
                        list += &format!("/lib/modules/{name} {options}\n");
                    }
                }
            }
        }
        self.write("/modules", &list)
    }

    /// Packs it.
    pub(crate) fn pack(mut self, archive: &Path) -> Result<()> {
        // NSS loads this by name.
        let files = "/lib/x86_64-linux-gnu/libnss_files.so.2";
        self.libraries.extend(Path::new(files).exists().then(|| files.to_owned()));
        for library in std::mem::take(&mut self.libraries) {
            self.put(&fs::canonicalize(&library)?, &library)?;
        }
        let pack = format!("find . -print0 | cpio -0 -o -H newc --quiet >{}", archive.display());
        sh(&self.root, &pack).map(drop)
    }
}
