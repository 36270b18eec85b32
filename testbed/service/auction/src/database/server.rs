//! A PostgreSQL server for the time of a run: its cluster is made in a folder of the run, and both go with it.
//!
//! PostgreSQL refuses to run as root, and root is what a sandbox without privileges has for its only user. So the
//! server gets a user namespace of its own in which that same user has another number. One way for both: root outside
//! of any sandbox, and an ordinary user who is root in one; the files stay the caller's. An IPC namespace beside it
//! takes PostgreSQL's shared memory with it, even after SIGKILL.
//!
//! The server is killed when the thread that started it ends, and its processes end with it: [`Server::start`] belongs
//! onto a thread that lives as long as the run.
//!
//! It does not write through to disk: its files end with the run, and a database that fails is not what is tested.

use std::{
    fs::{self, File},
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The number that the user has in there: Debian's `daemon`. PostgreSQL looks its name up.
const OTHER_USER: &str = "1";
/// Name of the database's superuser, and of the database.
const NAME: &str = "auction";
/// Part of the name of the Unix socket, which exists whether or not somebody listens at TCP.
const SOCKET_PORT: u16 = 5432;
/// A busy machine included.
const START_BOUND: Duration = Duration::from_secs(60);
/// From the order to end to the end, before it is killed.
const END_BOUND: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Lines of the log that are quoted when it fails.
const TAIL_LINES: usize = 10;

/// Where `scripts/setup` unpacks PostgreSQL; it is not installed.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../.cache/postgresql/usr/lib/postgresql/15/bin")
}

/// A running server; dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    folder: PathBuf,
}

impl Server {
    /// Makes a cluster in `folder`, which must be empty or missing, and a server that listens at a Unix socket there
    /// (`folder` must be short: such a path has 107 bytes) and, if asked to, at a TCP address, where it trusts
    /// everybody.
    ///
    /// # Errors
    /// When PostgreSQL is not there, or does not start; quotes what it said.
    pub fn start(folder: &Path, listen: Option<SocketAddr>, connections_max: u32) -> Result<Self> {
        let programs = programs();
        ensure!(programs.join("postgres").is_file(), "{} is not there: scripts/setup fetches it", programs.display());
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let cluster = folder.join("cluster");
        let made = as_other_user(&programs.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--locale=C", "--encoding=UTF8", "--username", NAME, "--pgdata"])
            .arg(&cluster)
            .output()
            .context("cannot run unshare (of util-linux)")?;
        ensure!(made.status.success(), "initdb: {}: {}", made.status, String::from_utf8_lossy(&made.stderr).trim());
        if listen.is_some_and(|at| !at.ip().is_loopback()) {
            // What initdb writes trusts this machine alone.
            let trusted = cluster.join("pg_hba.conf");
            let mut file = File::options().append(true).open(&trusted).context("pg_hba.conf")?;
            file.write_all(b"host all all all trust\n").context("pg_hba.conf")?;
        }
        let log = File::create(folder.join("postgresql.log")).context("a log for PostgreSQL")?;
        let child = as_other_user(&programs.join("postgres"))
            .arg("-D")
            .arg(&cluster)
            .args(settings(folder, listen, connections_max).iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run unshare (of util-linux)")?;
        let mut server = Self { child, folder: folder.to_owned() };
        server.wait_until_it_answers(&programs)?;
        let made = Command::new(programs.join("createdb")).args(server.socket_arguments()).arg(NAME).output()?;
        ensure!(made.status.success(), "createdb: {}", String::from_utf8_lossy(&made.stderr).trim());
        Ok(server)
    }

    /// Its address by Unix socket, as PostgreSQL's clients write it.
    pub fn address(&self) -> String {
        format!("host={} port={SOCKET_PORT} user={NAME} dbname={NAME}", self.folder.display())
    }

    /// Its address by TCP, if it listens there.
    pub fn tcp_address(listen: SocketAddr) -> String {
        format!("host={} port={} user={NAME} dbname={NAME}", listen.ip(), listen.port())
    }

    /// The end of its log.
    pub fn tail(&self) -> String {
        let log = fs::read_to_string(self.folder.join("postgresql.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    fn socket_arguments(&self) -> [String; 6] {
        let folder = self.folder.display().to_string();
        ["-h".into(), folder, "-p".into(), SOCKET_PORT.to_string(), "-U".into(), NAME.into()]
    }

    fn wait_until_it_answers(&mut self, programs: &Path) -> Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("PostgreSQL ended ({status}):\n{}", self.tail());
            }
            let asked = Command::new(programs.join("pg_isready")).arg("-q").args(self.socket_arguments()).status()?;
            if asked.success() {
                return Ok(());
            }
            ensure!(began.elapsed() < START_BOUND, "PostgreSQL does not answer:\n{}", self.tail());
            thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // At once, without writing anything that nobody will read.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGQUIT);
        let began = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && began.elapsed() < END_BOUND {
            thread::sleep(LOOK_AGAIN);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `program`, as a user that is not root, killed when the calling thread ends. The signal is asked for last: a change
/// of user forgets it.
fn as_other_user(program: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--user", "--ipc", "--map-user", OTHER_USER, "--map-group", OTHER_USER, "--"]);
    command.args(["setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn settings(folder: &Path, listen: Option<SocketAddr>, connections_max: u32) -> Vec<String> {
    let (addresses, port) = match listen {
        Some(at) => (at.ip().to_string(), at.port()),
        None => (String::new(), SOCKET_PORT),
    };
    vec![
        format!("unix_socket_directories={}", folder.display()),
        "unix_socket_permissions=0700".into(),
        format!("listen_addresses={addresses}"),
        format!("port={port}"),
        format!("max_connections={connections_max}"),
        "fsync=off".into(),
        "full_page_writes=off".into(),
        "jit=off".into(),
        // In the IPC namespace, not in files of the machine.
        "dynamic_shared_memory_type=sysv".into(),
    ]
}
