//! The configuration file: one target, where its machine is, and where to listen.
//!
//! `backdoor.example.toml` shows every key. Unknown keys are errors; every error names file, line and key.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, de::Error};

/// Longest name of a target, in bytes: it stands in every log line.
const NAME_BYTES_MAX: usize = 64;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the target, as monitors know it.
    #[serde(deserialize_with = "name")]
    pub target: String,
    /// Address at which memory and control are served.
    pub listen: Ipv4Addr,
    /// TCP port of the control plane.
    #[serde(default = "control_port")]
    pub control_port: u16,
    /// UDP port of RoCEv2. Others than 4791 are for tests: real NICs know no other.
    #[serde(default = "roce_port")]
    pub roce_port: u16,
    /// TCP port for Prometheus; none by default.
    #[serde(default)]
    pub metrics_port: Option<u16>,
    /// Addresses that may use the control plane; all if empty.
    #[serde(default)]
    pub peers: Vec<IpAddr>,
    /// Processor to which the thread that serves memory is bound; none by default.
    #[serde(default)]
    pub cpu: Option<usize>,
    /// The file that remembers a standing fence when the daemon is started anew; none by default.
    #[serde(default)]
    pub fence_record: Option<PathBuf>,
    /// The machine.
    pub vm: Vm,
}

/// Where the target's machine is found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vm {
    /// QEMU's monitor socket. It must be this daemon's alone: QEMU serves one client at a time.
    pub qmp: PathBuf,
    /// The socket of the agent's virtio-serial port; without it there are no boxes, only `ram`.
    #[serde(default)]
    pub agent_port: Option<PathBuf>,
    /// The file that holds the memory. By default QEMU is asked.
    #[serde(default)]
    pub ram: Ram,
    /// A file with QEMU's process number. By default the monitor socket tells it.
    #[serde(default)]
    pub pid_file: Option<PathBuf>,
}

/// Where the memory is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "PathBuf")]
pub enum Ram {
    /// QEMU is asked, and its open files are searched.
    #[default]
    Auto,
    /// In this file.
    File(PathBuf),
}

impl Ram {
    /// The file, if it was named.
    pub fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Auto => None,
            Self::File(path) => Some(path.clone()),
        }
    }
}

impl From<PathBuf> for Ram {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == "auto" { Self::Auto } else { Self::File(path) }
    }
}

/// Why a configuration cannot be used: the writer's fault.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file does not say what it must.
    #[error("{path}: {source}")]
    Content {
        /// Which.
        path: PathBuf,
        /// Line, key and reason.
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::File { path: path.to_owned(), source })?;
        let content = |source| ConfigError::Content { path: path.to_owned(), source: Box::new(source) };
        toml::from_str(&text).map_err(content)
    }
}

fn control_port() -> u16 {
    control::backdoor::PORT
}

fn roce_port() -> u16 {
    rdma::soft::PORT
}

fn name<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let name = String::deserialize(from)?;
    let proper = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(proper) {
        return Err(D::Error::custom("a target's name is 1 to 64 letters, digits, `-`, `_` and `.`"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let error = toml::from_str::<Config>(text).unwrap_err().to_string();
        for part in expected {
            assert!(error.contains(part), "{part:?} is missing in:\n{error}");
        }
    }

    #[test]
    fn the_example_is_a_configuration_and_shows_every_key() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("backdoor.example.toml");
        let config = Config::read(&path).unwrap();
        assert_eq!((config.control_port, config.roce_port), (4790, 4791));
        assert_eq!(config.vm.ram, Ram::Auto);
        let text = fs::read_to_string(path).unwrap();
        for key in ["peers", "metrics_port", "cpu", "agent_port", "pid_file", "fence_record"] {
            assert!(text.contains(key), "{key}");
        }
    }

    #[test]
    fn an_error_names_line_and_key() {
        let good = "target = \"a\"\nlisten = \"10.0.0.1\"\n[vm]\nqmp = \"q\"\n";
        toml::from_str::<Config>(good).unwrap();
        check(&good.replace("10.0.0.1", "10.0.0"), &["line 2", "listen"]);
        check(&good.replace("target = \"a\"", "target = \"a b\""), &["line 1", "target"]);
        check(&good.replace("qmp", "qnp"), &["line 4", "qnp"]);
        check(&good.replace("\"q\"", "7"), &["line 4", "qmp"]);
        check(&format!("metrics_port = 70000\n{good}"), &["line 1", "metrics_port"]);
    }
}
