// SPDX-License-Identifier: Apache-2.0

//! Where the output goes: nothing is seen of it before it is whole.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use tempfile::NamedTempFile;

/// Whether a path means standard input or output.
pub(super) fn is_stdio(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// An output that appears at once, on [`Sink::commit`], or not at all.
pub(super) struct Sink {
    buffer: BufWriter<File>,
    target: Target,
    /// The output as the user wrote it.
    name: PathBuf,
}

enum Target {
    /// A regular file, replaced by a temporary file beside it. `mode` is that of the file replaced.
    File { temporary: NamedTempFile, path: PathBuf, mode: Option<u32> },
    /// Standard output, a pipe, a device: written to at the end.
    Stream(Box<dyn Write>),
}

impl Sink {
    /// Makes ready to write `path`.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let name = path.to_owned();
        let stream = |to: Box<dyn Write>| -> anyhow::Result<Sink> {
            let spool = tempfile::tempfile()
                .context("cannot make a temporary file; set TMPDIR to a writable folder")?;
            Ok(Self {
                buffer: BufWriter::new(spool),
                target: Target::Stream(to),
                name: name.clone(),
            })
        };
        if is_stdio(path) {
            return stream(Box::new(io::stdout()));
        }
        // Through symbolic links: the file is replaced, not the link to it.
        let (path, mode) = match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                bail!("{}: is a folder; give the name of a file", path.display())
            }
            Ok(meta) if meta.is_file() => {
                (fs::canonicalize(path)?, Some(meta.permissions().mode()))
            }
            Ok(_) => {
                let to = File::options()
                    .write(true)
                    .open(path)
                    .with_context(|| path.display().to_string())?;
                return stream(Box::new(to));
            }
            Err(_) => (path.to_owned(), None),
        };
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(".clatctl-")
            .permissions(Permissions::from_mode(0o666)) // less the umask
            .tempfile_in(folder)
            .with_context(|| {
                format!("{}: cannot write to the folder {}", path.display(), folder.display())
            })?;
        let buffer = BufWriter::new(temporary.reopen()?);
        Ok(Self { buffer, target: Target::File { temporary, path, mode }, name })
    }

    /// Where to write.
    pub(super) fn writer(&mut self) -> &mut impl Write {
        &mut self.buffer
    }

    /// Lets the output appear.
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
            Target::File { temporary, path, mode } => {
                if let Some(mode) = mode {
                    file.set_permissions(Permissions::from_mode(mode))?;
                }
                temporary.persist(&path).map_err(|err| err.error).with_context(name)?;
            }
            Target::Stream(mut to) => {
                file.rewind()?;
                io::copy(&mut file, &mut to).and_then(|_| to.flush()).with_context(name)?;
            }
        }
        Ok(())
    }
}
