//! What a path names: a file below the root, or synthetic content `/synthetic/SEED/BYTES`.

use crate::synthetic;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

/// Something to download.
#[derive(Debug)]
pub enum Content {
    /// Bytes computed from a seed.
    Synthetic {
        /// The seed.
        seed: u64,
        /// How many.
        length: u64,
    },
    /// A file of the root directory, with the length it had when it was opened.
    Stored {
        /// The open file.
        file: File,
        /// Its length in bytes.
        length: u64,
    },
}

impl Content {
    /// Opens what `path` names.
    ///
    /// # Errors
    /// `NotFound` also for paths that leave the root and for directories.
    pub fn open(root: &Path, path: &str) -> io::Result<Self> {
        if let Some(synthetic) = path.strip_prefix("/synthetic/") {
            let (seed, length) = synthetic.split_once('/').ok_or(io::ErrorKind::NotFound)?;
            let number = |text: &str| text.parse::<u64>().map_err(|_| io::Error::from(io::ErrorKind::NotFound));
            return Ok(Self::Synthetic { seed: number(seed)?, length: number(length)? });
        }
        let file = File::open(stored_path(root, path).ok_or(io::ErrorKind::NotFound)?)?;
        let metadata = file.metadata()?;
        let length = metadata.is_file().then_some(metadata.len()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self::Stored { file, length })
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Synthetic { length, .. } | Self::Stored { length, .. } => *length,
        }
    }

    /// The entity tag: from seed and size only, so that two nodes agree about it.
    pub fn etag(&self, path: &str) -> String {
        match self {
            Self::Synthetic { seed, length } => format!("\"s{seed:x}-{length:x}\""),
            Self::Stored { length, .. } => {
                let name = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
                    (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
                });
                format!("\"f{name:x}-{length:x}\"")
            }
        }
    }

    /// Reads exactly `into.len()` bytes from `offset`.
    ///
    /// # Errors
    /// Those of the storage; a file that has become shorter is an unexpected end.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Synthetic { seed, .. } => {
                synthetic::fill(*seed, offset, into);
                Ok(())
            }
            Self::Stored { file, .. } => file.read_exact_at(into, offset),
        }
    }
}

/// The place of a request path below `root`; `None` for anything but plain names, so that nothing leaves the root.
pub fn stored_path(root: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path.strip_prefix('/')?);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    (plain && relative.file_name().is_some() && !path.contains('\0')).then(|| root.join(relative))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_root() {
        let root = Path::new("/srv");
        assert_eq!(stored_path(root, "/a/b"), Some("/srv/a/b".into()));
        for path in ["/../etc/passwd", "/a/../../x", "//etc/passwd", "/", "", "a", "/x\0y"] {
            let outside = stored_path(root, path);
            assert!(outside.as_ref().is_none_or(|it| it.starts_with("/srv/")), "{path}: {outside:?}");
        }
        assert_eq!(stored_path(root, "/.."), None);
    }

    #[test]
    fn synthetic_names_give_seed_and_length() {
        let content = Content::open(Path::new("/nowhere"), "/synthetic/5/100").unwrap();
        assert_eq!(content.length(), 100);
        assert_eq!(content.etag("x"), "\"s5-64\"");
        assert!(Content::open(Path::new("/nowhere"), "/synthetic/5").is_err());
    }
}
