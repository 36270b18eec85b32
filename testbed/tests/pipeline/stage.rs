//! The monitor's watch on stage: its door leads over the virtual network to the target; its journal tells what it did.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use control::backdoor::{FenceState, FenceToken};
use control::reinstate::Assignment;
use link::LinkFailure;
use monitor::clock::Clock;
use monitor::config::{self, Config};
use monitor::evacuate::Standby;
use monitor::journal::{Event, Journal, Line, replay};
use monitor::metrics::Metrics;
use monitor::partner::Partner;
use monitor::repair::Ward;
use monitor::sample::Door;
use monitor::watch::{Standing, Tools, Watch};
use remote_memory::{Blocking, LinkError, Read, Region, RemoteRead};

use crate::network::{Incidents, MS, US, VirtualClock, Weather, Wire};
use crate::queue::{CONTROL_PATIENCE_NS, VirtualQueue};
use crate::target::{RAM_FENCED, Target};

pub const DEADLINE_NS: u64 = 20 * MS;
pub const PATH_DEADLINE_NS: u64 = 200 * MS;
pub const PERIOD_NS: u64 = 5 * MS;
/// What one look may take until its path counts as silent.
pub const PATIENCE: Duration = Duration::from_millis(60);
/// Virtual time at which a play begins.
pub const BEGIN_NS: u64 = 1000 * MS;

/// A look of the watch: when it was begun and ended, and whether it brought values.
pub type Looked = (u64, u64, bool);

/// What the watch did on its way to the target.
#[derive(Debug, Default)]
pub struct Record {
    pub looks: RefCell<Vec<Looked>>,
    /// Fences asked for.
    pub fences: Cell<u32>,
    /// What the network did to its packets.
    pub incidents: Cell<Incidents>,
}

/// The way to the target.
pub struct Path {
    memory: Blocking<VirtualQueue>,
    clock: VirtualClock,
    target: Rc<Target>,
    /// The next read opens a box and is no look.
    is_opening: bool,
    record: Rc<Record>,
}

impl RemoteRead for Path {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        let begin_ns = self.clock.now_ns();
        let outcome = self.memory.read(batch);
        let is_good = outcome.is_ok() && batch.iter().all(|read| read.outcome.is_ok());
        if !std::mem::take(&mut self.is_opening) {
            self.record.looks.borrow_mut().push((begin_ns, self.clock.now_ns(), is_good));
        }
        self.record.incidents.set(self.memory.queue().wire.incidents);
        outcome
    }
}

impl Path {
    /// One question over the control connection.
    fn ask(&mut self) -> Result<(), LinkFailure> {
        let wire = &mut self.memory.queue_mut().wire;
        if wire.weather.is_dark(self.clock.now_ns()) {
            self.clock.pass(CONTROL_PATIENCE_NS);
            let backdoor = "127.0.0.1:4790".parse().unwrap();
            return Err(LinkFailure::Unreachable { backdoor, source: std::io::ErrorKind::TimedOut.into() });
        }
        self.clock.pass(wire.roll(100 * US..2 * MS));
        Ok(())
    }
}

impl Door for Path {
    fn region(&mut self) -> Result<Region, LinkFailure> {
        self.ask()?;
        self.is_opening = true;
        Ok(self.target.sb())
    }

    fn memory(&mut self) -> Option<&mut dyn RemoteRead> {
        Some(self)
    }

    fn fence(&mut self, _: &str, _: u64) -> Result<FenceToken, LinkFailure> {
        self.record.fences.set(self.record.fences.get() + 1);
        self.ask()?;
        self.target.fence();
        Ok(FenceToken { target: "web".into(), epoch: 1, ram_key: RAM_FENCED.raw(), secret: 42 })
    }

    fn fence_state(&mut self, _: &FenceToken) -> Result<FenceState, LinkFailure> {
        self.ask()?;
        Ok(if self.record.fences.get() > 0 { FenceState::Stands } else { FenceState::Ended })
    }

    // The watch of this stage leaves a fenced target alone, which is the default; monitor/tests/pipeline has the rest.
    fn reset(&mut self, _: &FenceToken) -> Result<(), LinkFailure> {
        Err(LinkFailure::Refused { why: "nothing is reset on this stage".into() })
    }

    fn plug(&mut self, _: &FenceToken) -> Result<(), LinkFailure> {
        Err(LinkFailure::Refused { why: "nothing is reset on this stage".into() })
    }
}

/// A journal's file, gone when the test is.
struct JournalFile(PathBuf);

impl Drop for JournalFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A watch with all that it touches.
pub struct Play {
    pub watch: Watch<Path, VirtualClock>,
    pub record: Rc<Record>,
    clock: VirtualClock,
    journal: JournalFile,
    writer: JoinHandle<()>,
}

impl Play {
    pub fn begin(target: &Rc<Target>, clock: &VirtualClock, weather: Weather, seed: u64) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("pipeline-{}-{number}.jsonl", std::process::id()));
        let (journal, writer) = Journal::open(&file).unwrap();
        let journal_file = JournalFile(file);
        let queue = VirtualQueue::new(clock.clone(), Rc::clone(target), Wire::new(weather, seed));
        let record = Rc::new(Record::default());
        let door = Path {
            memory: Blocking::new(queue, PATIENCE),
            clock: clock.clone(),
            target: Rc::clone(target),
            is_opening: false,
            record: Rc::clone(&record),
        };
        let config = configured();
        let named = &config.targets[0];
        let assignment =
            Assignment { target: named.name.clone(), backdoor: named.backdoor, services: named.services.clone() };
        // No spare: who takes over is played by the test, without sockets.
        let standby = Arc::new(Standby::new("m", assignment, &[], named.evacuation_patience));
        let metrics = Metrics::default().of("web");
        let partner = Partner::None;
        let tools = Tools { door, clock: clock.clone(), journal, metrics, standby, partner, ward: Ward::default() };
        let watch = Watch::new(&config, named, tools);
        Self { watch, record, clock: clock.clone(), journal: journal_file, writer }
    }

    /// Steps until `until_ns`, or until the target is fenced.
    pub fn run_until(&mut self, until_ns: u64) {
        while self.clock.now_ns() < until_ns && !matches!(self.watch.standing(), Standing::Fenced(_)) {
            self.watch.step();
        }
    }

    /// Ends the play and returns what was journaled.
    pub fn end(self) -> Vec<Line> {
        drop(self.watch);
        self.writer.join().unwrap();
        replay::lines(std::io::BufReader::new(std::fs::File::open(&self.journal.0).unwrap())).unwrap()
    }
}

fn configured() -> Config {
    let text = format!(
        "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = \"unused\"\n\
         [sampling]\nperiod_ms = {}\npath_deadline_ms = {}\n\
         [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = {}\nraises = \"hang\"\n\
         [[target]]\nname = \"web\"\nbackdoor = \"127.0.0.1:4790\"\non_hang = \"evacuate\"\n\
         spare = [{{ name = \"spare\", control = \"127.0.0.1:4792\" }}]\n\
         service = [{{ address = \"10.0.2.15\", ports = [7000] }}]\n",
        PERIOD_NS / MS,
        PATH_DEADLINE_NS / MS,
        DEADLINE_NS / MS
    );
    config::parse(std::path::Path::new("test.toml"), &text).unwrap()
}

/// The names of what happened, without samples.
pub fn stages(lines: &[Line]) -> Vec<String> {
    let named = lines.iter().filter(|line| !matches!(line.event, Event::Sample { .. }));
    named.map(|line| serde_json::to_value(line).unwrap()["stage"].as_str().unwrap().to_owned()).collect()
}
