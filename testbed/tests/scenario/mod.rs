//! A scenario as its users run it: the program, the folder that it leaves its results in, and the line of JSON that it
//! ends with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use serde_json::Value;

/// A folder for what a run leaves; it goes with this value, unless the test has failed.
pub struct Out(PathBuf);

#[allow(dead_code, reason = "each test file uses its part")]
impl Out {
    /// An empty one for the run called `name`.
    pub fn named(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("cargo's folder for tests can be written");
        Self(path)
    }

    /// Where a run leaves the file `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// What a run has left in the file `name`.
    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// The same, as JSON.
    pub fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// `testbed run ARGUMENTS`, into this folder; its line of JSON. A run that fails shows what it said.
    pub fn run(&self, arguments: &[&str]) -> Value {
        let program = Command::new(env!("CARGO_BIN_EXE_testbed"))
            .arg("run")
            .args(arguments)
            .arg("--out")
            .arg(&self.0)
            .output()
            .expect("testbed can be started");
        let (said, log) = (String::from_utf8_lossy(&program.stdout), String::from_utf8_lossy(&program.stderr));
        assert!(program.status.success(), "{}\n{log}\n{said}", program.status);
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if !thread::panicking() {
            fs::remove_dir_all(&self.0).expect("the results are ours");
        }
    }
}
