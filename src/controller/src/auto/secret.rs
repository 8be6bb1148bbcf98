// SPDX-License-Identifier: Apache-2.0

//! Stable addresses (RFC 7217): from a secret of this host, each network has its own interface
//! identifier, the same whenever the host is there.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::hash::Hasher;
use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use clat_host::IfaceName;
use clat_sys::HostError;
use nix::errno::Errno;
use siphasher::sip::SipHasher24;
use tempfile::NamedTempFile;

/// Directory of the secret. Accessible to root only.
pub(super) const STATE_DIR: &str = "/var/lib/clat";

/// What only this host knows (RFC 7217's secret_key).
pub struct Secret([u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Reads the file `secret` in a directory, and makes both the first time.
    ///
    /// # Errors
    /// Those of the file system; EINVAL if the file is no secret.
    pub fn keep_in(dir: &Path) -> io::Result<Self> {
        let path = dir.join("secret");
        let kept = || match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make(dir, &path)?;
                fs::read(&path)
            }
            read => read,
        };
        let secret = kept().map_err(|e| HostError::during(path.display(), e))?;
        secret.try_into().map(Self).map_err(|_| {
            let cause = format!("{} is no secret of 16 bytes; remove it", path.display());
            HostError::because(Errno::EINVAL, cause)
        })
    }

    /// The interface identifier in the /64 of `net` on `uplink`, after so many that other nodes
    /// had. The link address sets machines apart that were copied with the secret, and network
    /// namespaces of one machine.
    #[must_use]
    pub fn identifier(
        &self,
        net: Ipv6Addr,
        uplink: &IfaceName,
        link_address: Option<[u8; 6]>,
        duplicates: u32,
    ) -> [u8; 8] {
        let mut hasher = SipHasher24::new_with_key(&self.0);
        hasher.write(&net.octets()[..8]);
        hasher.write(&duplicates.to_be_bytes());
        hasher.write(&link_address.unwrap_or_default());
        hasher.write(uplink.as_str().as_bytes());
        hasher.finish().to_be_bytes()
    }
}

/// Makes a secret, unless another controller is faster.
fn make(dir: &Path, path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut file = NamedTempFile::new_in(dir)?;
    file.write_all(&clat_sys::random_bytes::<16>()?)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(e) if e.error.kind() != io::ErrorKind::AlreadyExists => Err(e.error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;
    use std::os::unix::fs::PermissionsExt;

    use clat_xlat::{Local, Prefix};

    use super::*;

    const NET: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 0, 0, 0, 5);
    const MAC: Option<[u8; 6]> = Some([2, 0, 0, 0, 0, 1]);

    fn name(text: &str) -> IfaceName {
        IfaceName::parse(text).expect("a name")
    }

    #[test]
    fn a_secret_is_made_once_and_is_root_s() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("lib/clat");
        let made = Secret::keep_in(&dir).expect("made");
        let file = dir.join("secret");
        for (path, mode) in [(&dir, 0o700), (&file, 0o600)] {
            let permissions = fs::metadata(path).expect("there").permissions();
            assert_eq!(permissions.mode() & 0o777, mode, "{}", path.display());
        }
        assert_eq!(fs::read_dir(&dir).expect("there").count(), 1);
        assert_eq!(Secret::keep_in(&dir).expect("read").0, made.0);
        fs::remove_file(&file).expect("removed");
        assert_ne!(Secret::keep_in(&dir).expect("made").0, made.0);

        fs::write(&file, "short").expect("written");
        let error = Secret::keep_in(&dir).expect_err("no secret").to_string();
        assert!(error.ends_with("lib/clat/secret is no secret of 16 bytes; remove it"), "{error}");
        let error = Secret::keep_in(&file).expect_err("no folder").to_string();
        assert!(error.contains("secret/secret"), "{error}");
        assert!(!format!("{made:?}").contains(char::is_numeric));
    }

    /// Wherever one of these is another, nothing is the same.
    #[test]
    fn each_network_has_its_identifier() {
        let up0 = name("up0");
        let (secret, other) = (Secret([7; 16]), Secret([8; 16]));
        let first = secret.identifier(NET, &up0, MAC, 0);
        let same_net = Ipv6Addr::from_bits(NET.to_bits() + 1);
        assert_eq!(secret.identifier(same_net, &up0, MAC, 0), first);
        let next_net = Ipv6Addr::from_bits(NET.to_bits() + (1 << 64));
        let others = [
            secret.identifier(next_net, &up0, MAC, 0),
            secret.identifier(NET, &name("up1"), MAC, 0),
            secret.identifier(NET, &up0, Some([2, 0, 0, 0, 0, 2]), 0),
            secret.identifier(NET, &up0, None, 0),
            secret.identifier(NET, &up0, MAC, 1),
            secret.identifier(NET, &up0, MAC, 2),
            other.identifier(NET, &up0, MAC, 0),
        ];
        let all: BTreeSet<_> = others.iter().chain([&first]).collect();
        assert_eq!(all.len(), others.len() + 1);
        for identifier in others {
            let differing = u64::from_be_bytes(identifier) ^ u64::from_be_bytes(first);
            assert!((16..=48).contains(&differing.count_ones()), "{differing:#x}");
        }
        let v4 = Ipv4Addr::new(192, 0, 0, 4);
        let local = Local::neutral(v4, NET, &Prefix::WELL_KNOWN, first);
        assert!(local.is_neutral(&Prefix::WELL_KNOWN));
    }

    /// A release that has another one would give every host another address.
    #[test]
    fn an_identifier_is_the_same_in_all_releases() {
        let identifier = Secret([7; 16]).identifier(NET, &name("up0"), MAC, 0);
        assert_eq!(u64::from_be_bytes(identifier), 0x88fc_ff46_844b_b9a0);
    }
}
