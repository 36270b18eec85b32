//! A cable that treats packets badly for a while: loses some, sends some twice, and lets some be overtaken.
//!
//! ```text
//!   client's machine   service0 (tap) ══ two tasks of the testbed ══ (tap) service-client   bridge
//!                                         lose, double, delay
//!   bridge rdma0       rough-near (tap) ═══════════════════════════ (tap) rough-far         bridge rdma1
//! ```
//!
//! In place of the veth pair there are two taps, and what comes out of one is written into the other. Both directions
//! have a generator of their own from the run's seed: the n-th packet of a direction meets the same fate in each run.
//! While the cable is good every packet passes, in order.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde::Serialize;
use tokio::{runtime::Runtime, sync::oneshot, time::sleep};
use tokio_tun::Tun;

use super::{Place, wires::Network};

/// How a cable treats packets while it is bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// As a cable does.
    #[default]
    Good,
    /// One packet in twenty is lost.
    Lossy,
    /// One in eight is late by some milliseconds, and others overtake it; one in fifty comes twice.
    Shuffled,
    /// Both.
    Rough,
}

/// What happens to packets of a direction: one in so many is lost, late by some milliseconds so that others overtake
/// it, or comes twice; none where it is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Harm {
    /// Is lost.
    pub lost: u32,
    /// Is late.
    pub late: u32,
    /// Comes twice.
    pub twice: u32,
}

/// A packet's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passes,
    IsLost,
    ComesTwice,
    IsLate(Duration),
}

/// One packet in so many.
const LOST: u32 = 20;
const LATE: u32 = 8;
const TWICE: u32 = 50;

/// By how many milliseconds a packet is late.
const LATE_MS: std::ops::Range<u64> = 1..12;

/// More than any frame of either network.
const FRAME_BYTES_MAX: usize = 10_240;

impl Wire {
    /// Its name on the command line and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Lossy => "lossy",
            Self::Shuffled => "shuffled",
            Self::Rough => "rough",
        }
    }

    /// What it does while it is bad.
    fn harm(self) -> Harm {
        let lost = if matches!(self, Self::Lossy | Self::Rough) { LOST } else { 0 };
        let (late, twice) = if matches!(self, Self::Shuffled | Self::Rough) { (LATE, TWICE) } else { (0, 0) };
        Harm { lost, late, twice }
    }
}

impl Harm {
    /// None.
    pub const NONE: Self = Self { lost: 0, late: 0, twice: 0 };

    fn fate(self, random: &mut StdRng) -> Fate {
        let mut one_in = |many: u32| many > 0 && random.random_range(0..many) == 0;
        if one_in(self.lost) {
            Fate::IsLost
        } else if one_in(self.late) {
            Fate::IsLate(Duration::from_millis(random.random_range(LATE_MS)))
        } else if one_in(self.twice) {
            Fate::ComesTwice
        } else {
            Fate::Passes
        }
    }
}

/// What the cable is doing and has done.
#[derive(Debug, Default)]
pub struct Weather {
    /// While it is bad.
    usual: Harm,
    now: Mutex<Harm>,
    /// Packets that were lost, late or doubled.
    pub harmed: AtomicU64,
}

impl Weather {
    fn of(wire: Wire) -> Self {
        Self { usual: wire.harm(), ..Self::default() }
    }

    /// Turns the cable bad or good.
    pub fn turn(&self, bad: bool) {
        self.set(if bad { self.usual } else { Harm::NONE });
    }

    /// From now on the cable does this.
    pub fn set(&self, harm: Harm) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = harm;
    }

    fn now(&self) -> Harm {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The cable; dropping it takes both ends away.
#[derive(Debug)]
pub(super) struct RoughCable {
    weather: Arc<Weather>,
    stop: Option<oneshot::Sender<()>>,
    carrier: Option<JoinHandle<()>>,
}

impl RoughCable {
    /// Lays it between the caller's namespace and `place`: the ends are named as a veth's would be.
    pub(super) fn lay(network: Network, place: &Place, wire: Wire, seed: u64) -> Result<Self> {
        let runtime = runtime()?;
        let near = tap(&runtime, &network.cable(place.name()))?;
        let far = place.run(|| tap(&runtime, network.interface()))?;
        Self::between(runtime, [near, far], wire, seed)
    }

    /// Lays it between two taps in the caller's namespace, with these names.
    pub(super) fn lay_here(names: [&str; 2], seed: u64) -> Result<Self> {
        let runtime = runtime()?;
        let ends = [tap(&runtime, names[0])?, tap(&runtime, names[1])?];
        Self::between(runtime, ends, Wire::Good, seed)
    }

    fn between(runtime: Runtime, [near, far]: [Tun; 2], wire: Wire, seed: u64) -> Result<Self> {
        let weather = Arc::new(Weather::of(wire));
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(&weather);
        let carrier = thread::Builder::new().name("rough cable".to_owned()).spawn(move || {
            let (near, far) = (Arc::new(near), Arc::new(far));
            runtime.block_on(async {
                let there = carry(&far, &near, seed.wrapping_mul(2), &shared);
                let back = carry(&near, &far, seed.wrapping_mul(2) + 1, &shared);
                tokio::select! {
                    ended = there => complain(&ended),
                    ended = back => complain(&ended),
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { weather, stop: Some(stop), carrier: Some(carrier) })
    }

    pub(super) fn weather(&self) -> Arc<Weather> {
        Arc::clone(&self.weather)
    }
}

impl Drop for RoughCable {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// A run with a torn cable fails by itself; this says why.
fn complain(ended: &io::Result<()>) {
    eprintln!("the rough cable ended: {ended:?}");
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// A tap in the caller's namespace, not yet up.
fn tap(runtime: &Runtime, name: &str) -> Result<Tun> {
    let _entered = runtime.enter();
    let mut taps = Tun::builder().name(name).tap().build().with_context(|| format!("making the tap {name}"))?;
    taps.pop().with_context(|| format!("no tap {name}"))
}

/// Carries frames until an end is gone.
async fn carry(from: &Arc<Tun>, to: &Arc<Tun>, seed: u64, weather: &Arc<Weather>) -> io::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut frame = vec![0; FRAME_BYTES_MAX];
    loop {
        let len = match from.recv(&mut frame).await {
            Ok(len) => len,
            // Not up yet, or taken down: a frame is lost, as on a cable that is not plugged in.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => {
                sleep(Duration::from_millis(1)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let fate = weather.now().fate(&mut random);
        weather.harmed.fetch_add(u64::from(fate != Fate::Passes), Ordering::Relaxed);
        match fate {
            Fate::IsLost => {}
            Fate::Passes => put(to, &frame[..len]).await,
            Fate::ComesTwice => {
                put(to, &frame[..len]).await;
                put(to, &frame[..len]).await;
            }
            Fate::IsLate(by) => {
                let (to, late) = (Arc::clone(to), frame[..len].to_vec());
                tokio::spawn(async move {
                    sleep(by).await;
                    put(&to, &late).await;
                });
            }
        }
    }
}

/// What an end does not take is lost.
async fn put(to: &Tun, frame: &[u8]) {
    let _ = to.send(frame).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fates(wire: Wire, seed: u64) -> Vec<Fate> {
        let mut random = StdRng::seed_from_u64(seed);
        (0..4000).map(|_| wire.harm().fate(&mut random)).collect()
    }

    #[test]
    fn a_good_cable_harms_nothing_and_each_other_does_what_its_name_says() {
        let count = |wire, like: fn(&Fate) -> bool| fates(wire, 5).iter().filter(|fate| like(fate)).count();
        assert_eq!(count(Wire::Good, |fate| *fate != Fate::Passes), 0);
        assert!((120..280).contains(&count(Wire::Lossy, |fate| *fate == Fate::IsLost)));
        assert_eq!(count(Wire::Lossy, |fate| matches!(fate, Fate::IsLate(_))), 0);
        assert!((400..600).contains(&count(Wire::Shuffled, |fate| matches!(fate, Fate::IsLate(_)))));
        assert_eq!(count(Wire::Shuffled, |fate| *fate == Fate::IsLost), 0);
        assert!(count(Wire::Rough, |fate| *fate == Fate::ComesTwice) > 20);
    }

    #[test]
    fn the_same_seed_harms_the_same_packets() {
        assert_eq!(fates(Wire::Rough, 9), fates(Wire::Rough, 9));
        assert_ne!(fates(Wire::Rough, 9), fates(Wire::Rough, 10));
    }
}
