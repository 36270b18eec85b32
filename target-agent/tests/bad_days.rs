//! What an operator can do to the agent: each case ends in a sentence that says what to do. What a machine can do to it
//! is in `testbed/tests/agent_vm.rs`.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contbox::service::{BoxClient, BoxService};
use contbox::{ContinuationBox, Geometry, Opening, Pool};
use prometheus_client::registry::Registry;
use service::metrics::text_of;
use target_agent::metrics;

/// A bound for waiting that only a broken build reaches.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_missing_capability_is_named_before_anything_is_touched() {
    for more in [&["--check"][..], &["--box-socket", "/nowhere/box.sock", "--pin-dir", "/nowhere"]] {
        let program = Command::new("setpriv")
            .args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", "--pdeathsig", "KILL"])
            .arg(env!("CARGO_BIN_EXE_target-agent"))
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&program.stderr);
        assert!(!program.status.success());
        assert!(said.contains("CAP_SYS_ADMIN is missing, for eBPF programs"), "{said}");
    }
}

#[test]
fn a_size_of_the_pool_that_cannot_be_is_refused_with_the_range() {
    for slots in ["0", "10901"] {
        let program = Command::new(env!("CARGO_BIN_EXE_target-agent")).args(["--pool-slots", slots]).output().unwrap();
        let said = String::from_utf8_lossy(&program.stderr);
        assert!(!program.status.success() && said.contains("1..=10900"), "{said}");
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The number that `line` begins with in the metrics, once it is `expected`; the last one seen after [`PATIENCE`].
fn shown(registry: &Registry, line: &str, expected: impl Fn(u64) -> bool) -> Option<u64> {
    let begin = Instant::now();
    loop {
        let text = text_of(registry);
        let value = text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        if value.is_some_and(&expected) || begin.elapsed() > PATIENCE {
            return value;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_full_pool_shows_in_the_metrics_with_whom_it_has_and_whom_it_refuses() {
    let folder = Folder(std::env::temp_dir().join(format!("agent-full-pool-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0).unwrap();
    let socket = folder.0.join("box.sock");
    let (fd, pool) = Pool::memfd(Geometry::standard(2), 1).unwrap();
    let service = Arc::new(BoxService::start(&socket, pool, fd).unwrap());
    let registry = metrics::registry(&service, None);
    assert_eq!(shown(&registry, "target_agent_boxes ", |_| true), Some(2));
    assert_eq!(shown(&registry, "target_agent_boxes_free ", |_| true), Some(2));

    // The first application gets the whole pool, and has a connection in one of its boxes.
    let (greedy, _handed) = BoxClient::connect(&socket, "greedy", &[80]).unwrap();
    assert!(greedy.wait_ready(PATIENCE));
    let (slot, owner) = greedy.lease().expect("a free box");
    let ends = [80, 8080].map(|port| ([127, 0, 0, 1], port).into());
    let opening = Opening { owner, ..Opening::fresh(owner, ends[0], ends[1]) };
    let _open = ContinuationBox::create(slot, &opening).unwrap();
    let of = |metric: &str, application: &str| format!("target_agent_{metric}{{application=\"{application}\"}} ");
    assert_eq!(shown(&registry, &of("application_boxes", "greedy"), |boxes| boxes == 2), Some(2));
    assert_eq!(shown(&registry, &of("application_boxes_open", "greedy"), |open| open == 1), Some(1));
    assert_eq!(shown(&registry, "target_agent_boxes_free ", |free| free == 0), Some(0));

    // The second one gets none: its connections go unprotected, and the metrics say whose do.
    let (late, _handed) = BoxClient::connect(&socket, "late", &[81]).unwrap();
    let refused = shown(&registry, &of("refused_requests_total", "late"), |refused| refused > 0);
    assert!(refused.is_some_and(|refused| refused > 0), "{}", text_of(&registry));
    assert!(late.lease().is_none());
    assert_eq!(shown(&registry, &of("application_boxes", "late"), |_| true), Some(0));

    // Not for ever: boxes of an application that has gone are free again.
    greedy.stop();
    assert_eq!(shown(&registry, "target_agent_boxes_free ", |free| free > 0).map(|free| free > 0), Some(true));
    late.stop();
}
