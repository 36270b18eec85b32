//! A standing fence, remembered outside this process.
//!
//! Written when a fence stands and before its token is handed out; read once, at the start; removed by a release. It
//! holds the whole token, not a digest, so that the caller whose answer was lost still gets it under its claim; so the
//! file is its owner's alone. Its place belongs on a file system that ends with the host (`/run`), as the machine does:
//! then there is nothing to synchronise, and writing it costs microseconds.
//!
//! A file that cannot be written is an error in the log and not a failed fence: the machine does stand still. A file
//! that cannot be understood keeps the daemon from starting: it would serve a fenced machine to others.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use control::backdoor::FenceToken;
use serde::{Deserialize, Serialize};

use crate::fence::Stopped;
use crate::guest_ram::find::Process;

/// Owner only: who has the token may write the target's memory.
const MODE: u32 = 0o600;

/// Why it is not known whether a fence stands: an operator's matter.
#[derive(Debug, thiserror::Error)]
#[error("{path} does not tell whether {target} is fenced: {source}; look at the machine, then remove the file")]
pub struct RecordError {
    path: PathBuf,
    target: String,
    source: io::Error,
}

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub token: FenceToken,
    pub claim: Option<u64>,
    pub stopped: Stopped,
    /// QEMU, and the file of its memory: whether a machine that is found later is still this one.
    pub process: Option<Process>,
    pub identity: (u64, u64),
    /// Whether the machine was reset since, and runs behind its fence.
    #[serde(default)]
    pub is_reset: bool,
    /// The lease of a lock, in milliseconds; a fence has none.
    #[serde(default)]
    pub lease_ms: Option<u32>,
}

impl Record {
    /// The fence of `target` that `path` remembers, if any.
    pub(super) fn load(path: Option<&Path>, target: &str) -> Result<Option<Self>, RecordError> {
        let Some(path) = path else { return Ok(None) };
        let broken = |source| RecordError { path: path.to_owned(), target: target.to_owned(), source };
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(broken)?,
        };
        let record: Self = serde_json::from_slice(&bytes).map_err(|error| broken(error.into()))?;
        if record.token.target == target {
            Ok(Some(record))
        } else {
            Err(broken(io::Error::other(format!("it speaks of {}", record.token.target))))
        }
    }

    /// Writes the record, whole or not at all.
    pub(super) fn keep(&self, path: Option<&Path>) {
        let Some(path) = path else { return };
        if let Err(error) = self.write(path) {
            let path = path.display();
            tracing::error!(%path, %error, "the fence is not remembered: a restart of this daemon would forget it");
        }
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let fresh = path.with_added_extension("new");
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut file = File::options().write(true).create(true).truncate(true).mode(MODE).open(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        drop(file);
        fs::rename(&fresh, path)
    }
}

/// The fence is released.
pub(super) fn forget(path: Option<&Path>) {
    let Some(path) = path else { return };
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        let path = path.display();
        tracing::error!(%path, %error, "a fence that was released is still remembered: remove the file");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_is_its_owner_s_and_damage_is_told_with_its_place() {
        let folder = std::env::temp_dir().join(format!("backdoor-record-{}", std::process::id()));
        let path = folder.join("deep/web1.fence");
        let token = FenceToken { target: "web1".into(), epoch: 3, ram_key: 7, secret: u64::MAX };
        let record = Record {
            token,
            claim: Some(9),
            stopped: Stopped::gone(),
            process: None,
            identity: (1, 2),
            is_reset: false,
            lease_ms: None,
        };
        assert!(Record::load(Some(&path), "web1").unwrap().is_none());
        record.keep(Some(&path));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        assert_eq!(Record::load(Some(&path), "web1").unwrap().unwrap().token, record.token);
        let other = Record::load(Some(&path), "web2").unwrap_err().to_string();
        assert!(other.contains("web1.fence") && other.contains("speaks of web1"), "{other}");
        fs::write(&path, "{").unwrap();
        assert!(Record::load(Some(&path), "web1").is_err());
        forget(Some(&path));
        forget(Some(&path));
        assert!(Record::load(Some(&path), "web1").unwrap().is_none());
        fs::remove_dir_all(folder).unwrap();
    }
}
