//! The stage of these tests: a target whose sensors follow virtual time, the door to it, spares that play a part.

use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use control::backdoor::{FenceState, FenceToken, LockHolder};
use control::reinstate::{Outcome, Reply, Report, Request, Session, Stage as ReportStage};
use control::{Channel, VERSION};
use link::LinkFailure;
use monitor::absent::Absent;
use monitor::clock::Clock;
use monitor::config::{self, Config};
use monitor::evacuate::Standby;
use monitor::journal::{Journal, Line, heritage, replay};
use monitor::metrics::{Metrics, TargetMetrics};
use monitor::partner::Partner;
use monitor::repair::Ward;
use monitor::sample::Door;
use monitor::watch::{Tools, Watch};
use remote_memory::faults::{Faults, Rates};
use remote_memory::image::Image;
use remote_memory::{LinkError, Read, Region, RemoteKey, RemoteRead, Rights};
use sensorbox::layout::RECORD_WORDS;
use sensorbox::{Class, Description, Name, Producer};

pub const MS: u64 = 1_000_000;

/// What one read costs in virtual time.
const READ_NS: u64 = 50_000;

/// Records of the box.
const CAPACITY: usize = 7;

/// Virtual time: sleeping makes it pass.
#[derive(Clone, Debug, Default)]
pub struct VirtualClock(Rc<Cell<u64>>);

impl Clock for VirtualClock {
    fn now_ns(&self) -> u64 {
        self.0.get()
    }

    fn sleep_until(&self, until_ns: u64) {
        self.0.set(self.0.get().max(until_ns));
    }
}

impl VirtualClock {
    pub fn pass(&self, ns: u64) {
        self.0.set(self.0.get() + ns);
    }
}

/// The order in which things happened, told by everybody on the stage.
pub type Log = Arc<Mutex<Vec<String>>>;

/// A target with two CPUs that tick every 5 ms until each stops.
pub struct Target {
    words: Vec<AtomicU64>,
    boot: u8,
    pub stops_ns: [u64; 2],
}

impl Target {
    pub fn new(stops_ns: [u64; 2]) -> Self {
        let words: Vec<_> = (0..(CAPACITY + 1) * RECORD_WORDS).map(|_| AtomicU64::new(0)).collect();
        let target = Self { words, boot: 1, stops_ns };
        target.boot();
        target
    }

    fn boot(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        let producer = Producer::create(&self.words, [self.boot; 16]).unwrap();
        for cpu in 0..2 {
            producer.new_sensor_at(1 + cpu, &described("tick", Class::Progress, Some(cpu), 1)).unwrap();
        }
        producer.new_sensor_at(4, &described("tasks", Class::Level, None, 100)).unwrap();
    }

    /// Another life of the same machine.
    pub fn reboot(&mut self) {
        self.boot += 1;
        self.stops_ns = [u64::MAX; 2];
        self.boot();
    }

    pub fn set_tasks(&self, tasks: u64) {
        self.words[4 * RECORD_WORDS + 2].store(tasks, Ordering::Relaxed);
    }

    fn image_at(&self, now_ns: u64) -> Image {
        for (cpu, stops_ns) in self.stops_ns.iter().enumerate() {
            let value = 1 + now_ns.min(*stops_ns) / (5 * MS);
            self.words[(1 + cpu) * RECORD_WORDS + 2].store(value, Ordering::Relaxed);
        }
        let bytes: Vec<u8> = self.words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
        let mut image = Image::new();
        image.write_at(0, &bytes);
        image
    }
}

fn described(name: &str, class: Class, cpu: Option<u32>, limit: u64) -> Description {
    Description { name: Name::new(name).unwrap(), class, cpu, limit, period_ns: 0, floor: false }
}

/// What the path to the target does.
pub struct Path {
    pub clock: VirtualClock,
    pub target: Rc<RefCell<Target>>,
    pub faults: Faults<Image>,
    pub rates: Rates,
    pub seed: u64,
    pub down: std::ops::Range<u64>,
    pub fence: Result<(), &'static str>,
    pub fences: Fences,
    pub is_reset: Rc<Cell<bool>>,
    pub locked_until_ns: Rc<Cell<u64>>,
    pub log: Log,
}

impl RemoteRead for Path {
    fn read(&mut self, batch: &mut [Read<'_>]) -> Result<(), LinkError> {
        let begin_ns = self.clock.now_ns();
        self.clock.pass(READ_NS);
        if self.down.contains(&begin_ns) {
            self.clock.pass(20 * MS);
            return Err(LinkError::Lost { tries: 7 });
        }
        let image = self.target.borrow().image_at(begin_ns + READ_NS / 2);
        self.seed += 1;
        self.faults = Faults::new(image, self.rates, self.seed);
        self.faults.read(batch)
    }
}

impl Door for Path {
    fn region(&mut self) -> Result<Region, LinkFailure> {
        if self.down.contains(&self.clock.now_ns()) {
            self.clock.pass(20 * MS);
            let backdoor = "127.0.0.1:4790".parse().unwrap();
            return Err(LinkFailure::Unreachable { backdoor, source: std::io::ErrorKind::TimedOut.into() });
        }
        let len = ((CAPACITY + 1) * RECORD_WORDS * 8) as u64;
        Ok(Region { name: "sb".into(), key: RemoteKey::new(7), base: 0, len, rights: Rights::READ })
    }

    fn memory(&mut self) -> Option<&mut dyn RemoteRead> {
        Some(self)
    }

    fn lock_holder(&mut self) -> Result<Option<LockHolder>, LinkFailure> {
        let now_ns = self.clock.now_ns();
        let left_ms = |until_ns: u64| until_ns.checked_sub(now_ns).map(|left_ns| left_ns / MS);
        let holder = |left_ms| LockHolder { peer: "ops".into(), reason: "a look".into(), left_ms };
        Ok(left_ms(self.locked_until_ns.get()).map(holder))
    }

    fn fence(&mut self, reason: &str, claim: u64) -> Result<FenceToken, LinkFailure> {
        self.log.lock().unwrap().push(format!("fence: {reason}"));
        let refused = |why: &str| Err(LinkFailure::Refused { why: why.to_owned() });
        let mut standing = self.fences.lock().unwrap();
        match (self.fence, *standing.get_or_insert(claim)) {
            (Err(why), _) => refused(why),
            (Ok(()), holder) if holder != claim => refused("somebody else has fenced it"),
            (Ok(()), _) => Ok(token()),
        }
    }

    fn fence_state(&mut self, presented: &FenceToken) -> Result<FenceState, LinkFailure> {
        let is_standing = self.fences.lock().unwrap().is_some() && *presented == token();
        Ok(match (is_standing, self.is_reset.get()) {
            (false, _) => FenceState::Ended,
            (true, false) => FenceState::Stands,
            (true, true) => FenceState::Reset,
        })
    }

    fn reset(&mut self, presented: &FenceToken) -> Result<(), LinkFailure> {
        if self.fence_state(presented)? == FenceState::Ended {
            return Err(LinkFailure::Refused { why: "the token is not that of a standing fence".into() });
        }
        if !self.is_reset.replace(true) {
            self.log.lock().unwrap().push("reset".into());
            self.target.borrow_mut().reboot();
        }
        Ok(())
    }

    fn plug(&mut self, presented: &FenceToken) -> Result<(), LinkFailure> {
        if self.fence_state(presented)? != FenceState::Reset {
            return Err(LinkFailure::Refused { why: "the token is not that of a standing fence".into() });
        }
        self.log.lock().unwrap().push("links up".into());
        self.is_reset.set(false);
        *self.fences.lock().unwrap() = None;
        Ok(())
    }
}

/// The claim of the fence that stands, as the backdoor keeps it: several monitors may share it.
pub type Fences = Arc<Mutex<Option<u64>>>;

pub fn token() -> FenceToken {
    FenceToken { target: "web".into(), epoch: 1, ram_key: 9, secret: 42 }
}

/// How a spare answers an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Takes over two sessions and loses one.
    TakesOver,
    /// Refuses.
    Refuses,
    /// Takes the order and closes the connection without an answer, every time.
    FallsSilent,
    /// Takes over, and its first answer is lost.
    LosesAnAnswer,
    /// Dies with the order; its next life, which comes a little later, knows nothing of it.
    DiesAndIsBack,
}

/// A spare on the loopback device, answering until its connection ends.
pub struct Spare {
    pub address: SocketAddr,
    _thread: JoinHandle<()>,
}

impl Spare {
    pub fn playing(name: &'static str, part: Part, log: &Log) -> Self {
        Self::holding(name, part, log, Arc::default())
    }

    /// The same with sessions that are `left` of those it took over.
    pub fn holding(name: &'static str, part: Part, log: &Log, left: Arc<AtomicU64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::clone(log);
        let thread = std::thread::spawn(move || {
            let (mut orders, mut lives) = (0, 0);
            for stream in listener.incoming() {
                // The first two knocks after its death are at a closed door.
                lives += usize::from(orders > 0);
                if part == Part::DiesAndIsBack && (1..3).contains(&lives) {
                    continue;
                }
                let mut channel = Channel::new(stream.unwrap());
                while let Ok(request) = channel.receive::<Request>() {
                    let reply = match request {
                        Request::Hello(_) => Reply::Welcome { version: VERSION },
                        Request::Prepare(_) => Reply::Ready { kernel: "6.1".into() },
                        Request::GiveBack(order) => {
                            let left = left.load(Ordering::Relaxed);
                            log.lock().unwrap().push(format!("{name}: asked to give back, {left} left"));
                            match left > 0 && order.drain_ms > 0 {
                                true => Reply::Draining { recovered: left, others: 1 },
                                false => Reply::GivenBack { aborted: left },
                            }
                        }
                        Request::Sessions { .. } => {
                            Reply::Draining { recovered: left.load(Ordering::Relaxed), others: 1 }
                        }
                        Request::Withdraw(order) => {
                            assert_eq!(order.token, token());
                            log.lock().unwrap().push(format!("{name}: asked to let go"));
                            match part {
                                Part::DiesAndIsBack => Reply::Withdrawn,
                                Part::LosesAnAnswer => Reply::Evacuated(report()),
                                _ => break,
                            }
                        }
                        Request::Evacuate(order) => {
                            assert_eq!(order.token, token());
                            let share = order.share.map(|share| format!(" part {} of {}", share.index, share.of));
                            let share = share.unwrap_or_default();
                            let absent = order.absent.iter().map(|address| format!(" without {address}"));
                            let what = share + &absent.collect::<String>();
                            log.lock().unwrap().push(format!("{name}: ordered{what}, silent {} ms", order.silent_ms));
                            orders += 1;
                            match part {
                                Part::LosesAnAnswer if orders == 1 => break,
                                Part::TakesOver | Part::LosesAnAnswer => Reply::Evacuated(report()),
                                Part::Refuses => Reply::Refused { why: "the service does not run here".into() },
                                Part::FallsSilent | Part::DiesAndIsBack => break,
                            }
                        }
                    };
                    channel.send(&reply).unwrap();
                }
            }
        });
        Self { address, _thread: thread }
    }
}

pub fn report() -> Report {
    let session = |port, outcome| Session {
        local: "10.77.0.100:8080".parse().unwrap(),
        peer: SocketAddr::new("10.77.0.4".parse().unwrap(), port),
        outcome,
        bytes: 100,
        live_us: Some(900),
    };
    let lost = Outcome::Lost { why: "its snapshot is damaged".into() };
    Report {
        sessions: vec![session(1, Outcome::Resumed), session(2, Outcome::Resumed), session(3, lost)],
        stages: vec![ReportStage { name: "extract".into(), begin_us: 10, end_us: 400 }],
        damage: Vec::new(),
    }
}

/// A journal's file, gone when the test is.
struct JournalFile(PathBuf);

impl Drop for JournalFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.0.with_added_extension("web.order"));
    }
}

/// A watch on stage, with all that it touches.
pub struct Play {
    pub watch: Watch<Path, VirtualClock>,
    pub clock: VirtualClock,
    pub target: Rc<RefCell<Target>>,
    pub metrics: TargetMetrics,
    pub standby: Arc<Standby>,
    /// Who else was fenced.
    pub absent: Arc<Absent>,
    pub log: Log,
    journal: JournalFile,
    writer: JoinHandle<()>,
}

/// What a play begins with.
pub struct Setting {
    pub stops_ns: [u64; 2],
    pub rates: Rates,
    pub seed: u64,
    pub down: std::ops::Range<u64>,
    pub on_hang: &'static str,
    pub spares: Vec<(&'static str, SocketAddr)>,
    pub fence: Result<(), &'static str>,
    pub log: Log,
    /// The journal that an earlier monitor left.
    pub past: Vec<u8>,
    pub partner: Partner,
    pub fences: Fences,
    /// Whether the target was reset behind its fence.
    pub is_reset: Rc<Cell<bool>>,
    /// The table `[target.after]`.
    pub after: &'static str,
    /// Two addresses are served, and the spares share them.
    pub share: bool,
    /// Who treats the target in place.
    pub ward: Ward,
    /// Somebody else holds the target locked until then.
    pub locked_until_ns: Rc<Cell<u64>>,
}

impl Default for Setting {
    fn default() -> Self {
        Self {
            stops_ns: [u64::MAX; 2],
            rates: Rates::default(),
            seed: 1,
            down: 0..0,
            on_hang: "report",
            spares: Vec::new(),
            fence: Ok(()),
            log: Log::default(),
            past: Vec::new(),
            partner: Partner::None,
            fences: Fences::default(),
            is_reset: Rc::default(),
            after: "",
            share: false,
            ward: Ward::default(),
            locked_until_ns: Rc::default(),
        }
    }
}

pub fn configured(setting: &Setting) -> Config {
    let spares: Vec<_> =
        setting.spares.iter().map(|(name, at)| format!("{{ name = \"{name}\", control = \"{at}\" }}")).collect();
    let text = format!(
        "[monitor]\nname = \"m\"\nlocal = \"127.0.0.1\"\njournal = \"unused\"\n\
         [sampling]\nperiod_ms = 5\npath_deadline_ms = 200\n\
         [[rule]]\nsensors = \"tick.cpu*\"\ndeadline_ms = 20\nraises = \"hang\"\n\
         [[target]]\nname = \"web\"\nbackdoor = \"127.0.0.1:4790\"\non_hang = \"{}\"\n\
         spare = [{}]\nshare = {}\n\
         service = [{{ address = \"10.77.0.100\", ports = [8080] }}{}]\nevacuation_patience_s = 30\n\
         after = {{ {} }}\n",
        setting.on_hang,
        spares.join(", "),
        setting.share,
        if setting.share { ", { address = \"fd77::100\", ports = [8080] }" } else { "" },
        setting.after,
    );
    config::parse(std::path::Path::new("test.toml"), &text).unwrap()
}

impl Play {
    pub fn begin(setting: Setting) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut config = configured(&setting);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("monitor-{}-{number}.jsonl", std::process::id()));
        std::fs::write(&file, &setting.past).unwrap();
        config.journal.clone_from(&file);
        let heritage = heritage::inherit(&file, 1000 * MS).unwrap().remove("web").unwrap_or_default();
        let (journal, writer) = Journal::open(&file).unwrap();
        let clock = VirtualClock::default();
        clock.pass(1000 * MS);
        let target = Rc::new(RefCell::new(Target::new(setting.stops_ns)));
        let metrics = Metrics::default().of("web");
        let named = &config.targets[0];
        let assignment = control::reinstate::Assignment {
            target: named.name.clone(),
            backdoor: named.backdoor,
            services: named.services.clone(),
        };
        let absent = Arc::<Absent>::default();
        let standby = Standby::sharing("m", assignment, &named.spares, named.evacuation_patience, named.share);
        let standby = Arc::new(standby.among(Arc::clone(&absent), named.speaks_from()));
        let door = Path {
            clock: clock.clone(),
            target: Rc::clone(&target),
            faults: Faults::new(Image::new(), setting.rates, 0),
            rates: setting.rates,
            seed: setting.seed << 32,
            down: setting.down,
            fence: setting.fence,
            fences: setting.fences,
            is_reset: setting.is_reset,
            locked_until_ns: setting.locked_until_ns,
            log: Arc::clone(&setting.log),
        };
        let (standby_too, partner) = (Arc::clone(&standby), setting.partner);
        let tools = Tools {
            door,
            clock: clock.clone(),
            journal,
            metrics: metrics.clone(),
            standby: standby_too,
            partner,
            ward: setting.ward,
        };
        let watch = Watch::succeed(&config, named, tools, heritage);
        Self { watch, clock, target, metrics, standby, absent, log: setting.log, journal: JournalFile(file), writer }
    }

    /// Steps until virtual time has reached `until_ms`.
    pub fn run_until(&mut self, until_ms: u64) {
        while self.clock.now_ns() < until_ms * MS {
            self.watch.step();
        }
    }

    /// Leaves an operator's order.
    pub fn leave(&self, order: monitor::after::Order) {
        order.leave(&self.journal.0, "web").unwrap();
    }

    pub fn told(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Ends the play as a kill would and returns the journal up to the first line of `stage`, and half of the next one.
    pub fn killed_at(self, stage: &str) -> Vec<u8> {
        drop(self.watch);
        self.writer.join().unwrap();
        let text = std::fs::read_to_string(&self.journal.0).unwrap();
        // Written ahead of lines that happened before it, which a kill at one of those would not have let happen.
        let is_before_commit = ["watching", "verdict", "fenced"].contains(&stage);
        let kept = text.lines().filter(|line| !is_before_commit || !line.contains("\"stage\":\"committed\""));
        let mut kept: Vec<_> = kept.collect();
        if stage == "reset_ordered" {
            kept.sort_by_key(|line| serde_json::from_str::<Line>(line).unwrap().mono_ns);
        }
        let text = kept.join("\n");
        let wanted = format!("\"stage\":\"{stage}\"");
        let last = text.lines().position(|line| line.contains(&wanted)).unwrap_or_else(|| panic!("no {stage}"));
        let mut left = text.lines().take(last + 1).collect::<Vec<_>>().join("\n");
        left.push_str("\n{\"wall_ns\":17,\"mono_");
        left.into_bytes()
    }

    /// Ends the play and returns what was journaled.
    pub fn end(self) -> Vec<Line> {
        drop(self.watch);
        self.writer.join().unwrap();
        replay::lines(std::io::BufReader::new(std::fs::File::open(&self.journal.0).unwrap())).unwrap()
    }
}

/// The names of the stages, without the samples.
pub fn stages(lines: &[Line]) -> Vec<String> {
    let stage = |line: &Line| serde_json::to_value(line).unwrap()["stage"].as_str().unwrap().to_owned();
    lines.iter().map(stage).filter(|stage| stage != "sample").collect()
}
