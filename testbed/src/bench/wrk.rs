//! wrk, the load generator, and nginx, the server that everybody knows: Debian's programs, run as processes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// Where `scripts/setup` unpacks nginx; it is not installed, so that nobody's port 80 is taken.
fn nginx_program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/nginx/usr/sbin/nginx")
}

/// One run of wrk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load<'a> {
    /// Path to get.
    pub(super) path: &'a str,
    /// Connections at the same time.
    pub(super) connections: usize,
    /// Whether each connection serves one request only.
    pub(super) once: bool,
    /// How long.
    pub(super) seconds: u64,
}

impl Load<'_> {
    /// Requests per second that `server` answered.
    ///
    /// # Errors
    /// If wrk is missing, or any request failed.
    pub(super) fn run(&self, server: SocketAddr) -> Result<f64> {
        let mut command = Command::new("wrk");
        command.args(["--threads", "1", "--connections", &self.connections.to_string()]);
        command.args(["--duration", &format!("{}s", self.seconds)]);
        if self.once {
            command.args(["--header", "Connection: close"]);
        }
        let output = command.arg(format!("http://{server}{}", self.path)).output();
        let output = output.context("wrk cannot be started: scripts/setup installs it")?;
        let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "wrk failed: {said}{error}");
        requests_per_second(&said)
    }
}

/// Reads what wrk says.
fn requests_per_second(said: &str) -> Result<f64> {
    let value = |name: &str| said.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    for failure in ["Socket errors:", "Non-2xx or 3xx responses:"] {
        if let Some(count) = value(failure) {
            bail!("{failure} {count}");
        }
    }
    let rate: f64 = value("Requests/sec:").and_then(|rate| rate.parse().ok()).context("wrk said no rate")?;
    ensure!(rate > 0.0, "no request was answered");
    Ok(rate)
}

/// nginx in the foreground, with one worker; dropping it ends it.
#[derive(Debug)]
pub(super) struct Nginx(Child);

impl Nginx {
    /// Serves `root` at `at`; configuration and scratch files go to `folder`.
    ///
    /// # Errors
    /// If `scripts/setup` has not fetched it.
    pub(super) fn start(at: SocketAddr, root: &Path, folder: &Path) -> Result<Self> {
        let (configuration, root) = (folder.join("nginx.conf"), root.display());
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary = temporary.map(|name| format!("    {name}_temp_path {}/{name};\n", folder.display())).concat();
        let text = format!(
            "daemon off;\nmaster_process off;\npid {folder}/nginx.pid;\nerror_log stderr;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n    access_log off;\n    sendfile on;\n    tcp_nopush on;\n    keepalive_requests 100000000;\n\
             {temporary}    server {{ listen {at}; root {root}; }}\n}}\n",
            folder = folder.display()
        );
        fs::write(&configuration, text).context("nginx.conf")?;
        let program = nginx_program();
        let mut command = Command::new(&program);
        command.arg("-p").arg(folder).arg("-c").arg(&configuration).args(["-e", "stderr"]);
        command.stdin(Stdio::null()).stderr(fs::File::create(folder.join("nginx.log"))?);
        let child = command.spawn();
        Ok(Self(child.with_context(|| format!("{} is missing: scripts/setup fetches it", program.display()))?))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "Running 1s test @ http://127.0.0.1:1/\n  1 threads and 16 connections\n  \
                        Thread Stats   Avg      Stdev     Max   +/- Stdev\n  30002 requests in 1.00s, 1.00MB read\n\
                        Requests/sec:  29873.51\nTransfer/sec:      1.00MB\n";

    #[test]
    fn a_rate_counts_only_if_nothing_failed() {
        assert_eq!(requests_per_second(SAID).unwrap(), 29_873.51);
        let failures = "  Socket errors: connect 0, read 3, write 0, timeout 0\n";
        assert!(requests_per_second(&SAID.replace("Requests", &format!("{failures}Requests"))).is_err());
        assert!(requests_per_second("  Non-2xx or 3xx responses: 12\nRequests/sec: 1.0\n").is_err());
        assert!(requests_per_second("").is_err());
    }
}
