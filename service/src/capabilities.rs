//! Rights that a daemon cannot do without, looked at before it begins: a daemon that starts and fails at its first
//! packet, when somebody's sessions depend on it, has told nobody.

use std::fmt;

use anyhow::{Context, Result, bail};

/// What the kernel says of this process, see proc_pid_status(5).
const STATUS: &str = "/proc/self/status";

/// A right of a process, by its number in capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Interfaces, addresses, routes, sockets under repair.
    NetAdmin = 12,
    /// Raw and packet sockets.
    NetRaw = 13,
    /// Page frame numbers, eBPF and its file system.
    SysAdmin = 21,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
        })
    }
}

/// Makes sure that this process may do what it is for.
///
/// # Errors
/// A sentence that names the first capability that is missing, what it is for, and how it is granted.
pub fn require(needs: &[(Capability, &str)]) -> Result<()> {
    let status = std::fs::read_to_string(STATUS).context(STATUS)?;
    check(&status, needs)
}

fn check(status: &str, needs: &[(Capability, &str)]) -> Result<()> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|word| u64::from_str_radix(word.trim(), 16).ok());
    let effective = effective.with_context(|| format!("{STATUS} shows no effective capabilities"))?;
    match needs.iter().find(|(capability, _)| effective >> *capability as u8 & 1 == 0) {
        Some((missing, what)) => {
            bail!("{missing} is missing, for {what}: run as root, or grant it (AmbientCapabilities= of a unit)")
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_capability_that_is_missing_is_named_with_what_it_is_for() {
        let needs = [(Capability::NetRaw, "RoCEv2"), (Capability::NetAdmin, "addresses")];
        let said = |effective: &str| {
            let status = format!("Name:\tx\nCapPrm:\t000001ffffffffff\nCapEff:\t{effective}\n");
            check(&status, &needs).err().map(|error| error.to_string())
        };
        assert_eq!(said("000001ffffffffff"), None);
        assert_eq!(said("0000000000003000"), None);
        assert!(said("0000000000001000").unwrap().starts_with("CAP_NET_RAW is missing, for RoCEv2: run as root"));
        assert!(said("0000000000002000").unwrap().starts_with("CAP_NET_ADMIN is missing, for addresses: "));
        assert!(said("none").unwrap().contains("no effective capabilities"));
    }
}
