// SPDX-License-Identifier: Apache-2.0

//! The output file, which appears only when it is complete.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::{fchown, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use clat_sys::link_open_file;
use nix::fcntl::OFlag;
use nix::sys::signal::{SigSet, SigmaskHow};

/// Whether a path means standard input or output.
pub(super) fn is_stdio(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// An output that appears as a whole on [`Sink::commit`], or not at all. Until then the file has no
/// name, so that nothing is left behind however the program ends.
pub(super) struct Sink {
    buffer: BufWriter<File>,
    target: Target,
    /// The output's path as given by the user.
    name: PathBuf,
}

enum Target {
    /// A regular file in `folder`, and the file that it replaces.
    File { folder: PathBuf, path: PathBuf, replaced: Option<Box<Metadata>> },
    /// Standard output, a pipe or a device: written at the end.
    Stream(Box<dyn Write>),
}

impl Sink {
    /// Prepares to write `path`.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let name = path.to_owned();
        let stream = |to: Box<dyn Write>| -> anyhow::Result<Sink> {
            let spool = tempfile::tempfile()
                .context("cannot make a temporary file; set TMPDIR to a writable folder")?;
            let (buffer, target) = (BufWriter::new(spool), Target::Stream(to));
            Ok(Self { buffer, target, name: name.clone() })
        };
        if is_stdio(path) {
            return stream(Box::new(io::stdout()));
        }
        // Resolve symbolic links: the file is replaced, not the link to it.
        let (path, replaced) = match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                bail!("{}: is a folder; give the name of a file", path.display())
            }
            Ok(meta) if meta.is_file() => (fs::canonicalize(path)?, Some(Box::new(meta))),
            Ok(_) => {
                let to = File::options()
                    .write(true)
                    .open(path)
                    .with_context(|| path.display().to_string())?;
                return stream(Box::new(to));
            }
            Err(_) => (path.to_owned(), None),
        };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let spool = unnamed(&folder).with_context(|| {
            format!("{}: cannot write to the folder {}", path.display(), folder.display())
        })?;
        let target = Target::File { folder, path, replaced };
        Ok(Self { buffer: BufWriter::new(spool), target, name })
    }

    /// The writer for the contents.
    pub(super) fn writer(&mut self) -> &mut impl Write {
        &mut self.buffer
    }

    /// Makes the output appear.
    pub(super) fn commit(self) -> anyhow::Result<()> {
        let name = || {
            if is_stdio(&self.name) {
                "standard output".into()
            } else {
                self.name.display().to_string()
            }
        };
        let mut file =
            self.buffer.into_inner().map_err(io::IntoInnerError::into_error).with_context(name)?;
        match self.target {
            Target::File { folder, path, replaced } => {
                let _uninterrupted = Uninterrupted::begin();
                let temporary = tempfile::Builder::new()
                    .prefix(".clatctl-")
                    .make_in(folder, |path| give_name(&mut file, path))
                    .with_context(name)?;
                if let Some(replaced) = replaced {
                    keep(temporary.as_file(), &replaced).with_context(name)?;
                }
                temporary.persist(path).map_err(|err| err.error).with_context(name)?;
            }
            Target::Stream(mut to) => {
                file.rewind()?;
                io::copy(&mut file, &mut to).and_then(|_| to.flush()).with_context(name)?;
            }
        }
        Ok(())
    }
}

/// Creates an unnamed file in `folder`, with the mode of a new file.
fn unnamed(folder: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .mode(0o666) // less the umask
        .custom_flags(OFlag::O_TMPFILE.bits())
        .open(folder)
        // Without O_TMPFILE, the file has a name for a moment.
        .or_else(|_| tempfile::tempfile_in(folder))
}

/// Links `file` to `path`, or copies it there if it cannot be linked.
fn give_name(file: &mut File, path: &Path) -> io::Result<File> {
    if link_open_file(&*file, path).is_ok() {
        return file.try_clone();
    }
    let mut copy = File::options().write(true).create_new(true).mode(0o666).open(path)?;
    file.rewind()
        .and_then(|()| io::copy(file, &mut copy))
        .inspect_err(|_| drop(fs::remove_file(path)))?;
    Ok(copy)
}

/// Gives `file` owner and mode of the file that it will replace.
fn keep(file: &File, replaced: &Metadata) -> anyhow::Result<()> {
    let own = file.metadata()?;
    let (user, group) = (replaced.uid(), replaced.gid());
    if (own.uid(), own.gid()) != (user, group) {
        fchown(file, Some(user), Some(group)).with_context(|| {
            format!("cannot leave it to user {user}, group {group}; write to another file")
        })?;
    }
    // After the owner, since changing that clears set-user-ID bits.
    file.set_permissions(replaced.permissions())?;
    Ok(())
}

/// Blocks signals until dropped: a signal between naming the file and moving it into place would
/// leave it behind.
struct Uninterrupted(SigSet);

impl Uninterrupted {
    fn begin() -> Self {
        // Cannot fail with this mask; if it did, an empty mask unblocks all signals afterwards.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        Self(before.unwrap_or_else(|_| SigSet::empty()))
    }
}

impl Drop for Uninterrupted {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask();
    }
}
