//! What the virtual device is made of and Debian or crates.io has: fetched once, kept in `target`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{ensure, Context, Result};

/// Where it is kept.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm")
}

/// Runs a command in a folder; gives what it prints.
pub(crate) fn sh(folder: &Path, command: &str) -> Result<String> {
    let output = Command::new("sh").args(["-ec", command]).current_dir(folder).output()?;
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    ensure!(output.status.success(), "{command}: {out}{err}");
    Ok(out.into_owned())
}

/// Makes `folder` by `make`, unless it was made whole before.
fn once(folder: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let unfinished = folder.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    fs::create_dir_all(&unfinished)?;
    make(&unfinished)?;
    Ok(fs::rename(&unfinished, folder)?)
}

/// An unpacked kernel.
pub(crate) struct Kernel {
    /// The folder with `boot` and `lib/modules`.
    pub(crate) root: PathBuf,
    /// Its release, `6.1.0-56-amd64`.
    pub(crate) release: String,
}

static ONE: Mutex<()> = Mutex::new(());

/// Debian's stock kernel, whichever its meta package stands for today.
pub(crate) fn kernel() -> Result<Kernel> {
    let newest = "apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \\(linux-image-[0-9].*\\)/\\1/p'";
    let mut package = sh(Path::new("/"), newest)?.trim().to_owned();
    if package.is_empty() {
        sh(Path::new("/"), "apt-get update -qq")?;
        sh(Path::new("/"), newest)?.trim().clone_into(&mut package);
    }
    let release = package.strip_prefix("linux-image-").context("no linux-image-amd64")?.to_owned();
    // Tests that run at once want the same.
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let root = cache().join(&package);
    once(&root, |root| {
        // An index of yesterday may name what the mirror no longer has.
        let command = format!(
            "apt-get download -q {package} || {{ apt-get update -qq; apt-get download -q {package}; }}
             dpkg-deb -x {package}_*.deb . && rm {package}_*.deb && depmod -b . {release}"
        );
        sh(root, &command).map(drop)
    })?;
    Ok(Kernel { root, release })
}

/// A service manager for kernel binder and a dumpsys: the folder of `rsb_hub` and `rsb_service`, as new as our rsbinder.
pub(crate) fn tools() -> Result<PathBuf> {
    let root = cache().join("rsbinder-tools-0.12.0");
    once(&root, |root| {
        let command = format!(
            "CARGO_TARGET_DIR={} {} install --quiet --locked --version 0.12.0 --root . rsbinder-tools",
            cache().join("build").display(),
            env!("CARGO"),
        );
        sh(root, &command).map(drop)
    })?;
    Ok(root.join("bin"))
}

/// A root with Debian sid's libgbinder and all that it needs (it is not in Debian 12), and our program `foreign` in it.
pub(crate) fn foreign(source: &Path) -> Result<PathBuf> {
    let root = cache().join("sid");
    once(&root, |root| {
        // An apt of its own: nothing of sid gets near this machine's packages.
        fs::write(
            root.join("sources.list"),
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian sid main\n",
        )?;
        let apt = "-q -o APT::Sandbox::User=root -o Dir::Etc::sourcelist=$PWD/sources.list -o Dir::Etc::sourceparts=- \
                   -o Dir::State=$PWD/state -o Dir::State::status=$PWD/status -o Dir::Cache=$PWD/cache";
        let command = format!(
            "mkdir -p state/lists/partial cache/archives/partial; : >status
             apt-get {apt} update
             apt-get {apt} install -y --download-only --no-install-recommends libgbinder1
             cd cache/archives; apt-get $(echo \"{apt}\" | sed \"s,$PWD,$OLDPWD,g\") download libgbinder-dev libglibutil-dev
             cd $OLDPWD; mkdir usr; for top in bin lib lib64 sbin; do ln -s usr/$top $top; done
             for package in cache/archives/*.deb; do dpkg-deb --fsys-tarfile $package | tar -x --keep-directory-symlink; done
             rm -r cache state"
        );
        sh(root, &command)?;
        fs::create_dir_all(root.join("etc"))?;
        // The service manager's interface of Android 16; look-ups fail without.
        Ok(fs::write(root.join("etc/gbinder.conf"), "[General]\nApiLevel=36\n")?)
    })?;
    let build = format!(
        "gcc -Wall -Werror -o usr/bin/foreign {} -Iusr/include -Iusr/include/gbinder -Iusr/include/gutil $(pkg-config --cflags glib-2.0) \
         -Lusr/lib/{arch}-linux-gnu -lgbinder -Wl,--allow-shlib-undefined",
        source.display(),
        arch = std::env::consts::ARCH,
    );
    sh(&root, &format!("mkdir -p usr/bin; {build}"))?;
    Ok(root)
}
