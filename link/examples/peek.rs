//! Looks at a target's Sensor Box over and over, by either carrier, and says whenever what it sees changes: that the
//! sensors move, or that the path is lost and why. For tests in guests, and to try a path by hand.
//!
//! `peek BACKDOOR:PORT LOCAL soft|verbs SECONDS`

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use link::{Carrier, Link, LinkFailure, Options};
use remote_memory::{AccessError, Read, Region, RemoteAddr, RemoteRead};
use sensorbox::SensorBox;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(20);

/// A tick comes each 5 ms while a processor works; this many looks without one are a stillness.
const STILL_LOOKS: u32 = 25;

struct Peek {
    backdoor: SocketAddr,
    local: Ipv4Addr,
    options: Options,
    link: Option<(Link, Region)>,
}

impl Peek {
    /// The sum of all ticks.
    fn look(&mut self) -> Result<u64, String> {
        let (link, region) = match self.link.take() {
            Some(kept) => self.link.insert(kept),
            None => {
                let mut link = Link::connect(self.backdoor, self.local, self.options.clone()).map_err(said)?;
                let region = link.region("sb").map_err(said)?.into();
                self.link.insert((link, region))
            }
        };
        let mut bytes = vec![0; region.len as usize];
        let outcome = link.memory().read_one(RemoteAddr::new(region.key, region.base), &mut bytes);
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                // The key is of before: ask what it is now.
                match link.region("sb") {
                    Ok(now) => *region = now.into(),
                    Err(LinkFailure::Restarted) => *region = link.region("sb").map_err(said)?.into(),
                    Err(failure) => return Err(said(failure)),
                }
                return Err(error.to_string());
            }
            Err(error) => return Err(error.to_string()),
        }
        let sensors = SensorBox::parse(&bytes).map_err(|error| error.to_string())?;
        Ok(sensors.named("tick").map(|reading| reading.value).sum())
    }

    /// Reads beyond the end of the box and inside it, in one batch: the first is refused, the second is not.
    fn refuse(&mut self) -> Result<(), String> {
        let (link, region) = self.link.as_mut().ok_or("no link")?;
        let beyond = RemoteAddr::new(region.key, region.base + region.len);
        let (mut refused, mut granted) = ([0; 8], [0; 8]);
        let inside = RemoteAddr::new(region.key, region.base);
        let mut batch = [Read::new(beyond, &mut refused), Read::new(inside, &mut granted)];
        link.memory().read(&mut batch).map_err(|error| error.to_string())?;
        match (batch[0].outcome, batch[1].outcome) {
            (Err(AccessError::Refused), Ok(())) => Ok(()),
            outcomes => Err(format!("{outcomes:?}")),
        }
    }
}

fn said(failure: LinkFailure) -> String {
    failure.to_string()
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [backdoor, local, carrier, seconds] = &arguments[..] else {
        eprintln!("usage: peek BACKDOOR:PORT LOCAL soft|verbs SECONDS");
        std::process::exit(2);
    };
    let carrier = match carrier.as_str() {
        "verbs" => Carrier::Verbs { device: None, port: None },
        _ => Carrier::Soft,
    };
    let patience = Duration::from_millis(500);
    let options = Options { carrier, control_patience: patience, memory_patience: patience, ..Options::new("peek") };
    let (backdoor, local) = (backdoor.parse().expect("an address and a port"), local.parse().expect("an address"));
    let mut peek = Peek { backdoor, local, options, link: None };
    let until = Instant::now() + Duration::from_secs(seconds.parse().expect("seconds"));
    let (mut state, mut ticks, mut still, mut has_refused) = (String::new(), 0, 0, false);
    while Instant::now() < until {
        let now = match peek.look() {
            Ok(found) => {
                still = if found == ticks { still + 1 } else { 0 };
                ticks = found;
                if still < STILL_LOOKS { "moving".to_owned() } else { "still".to_owned() }
            }
            Err(why) => format!("lost: {why}"),
        };
        if now == "moving" && !std::mem::replace(&mut has_refused, true) {
            match peek.refuse() {
                Ok(()) => println!("refused and gone on"),
                Err(why) => println!("not gone on after a refusal: {why}"),
            }
        }
        if now != state {
            println!("{now}");
            let _ = std::io::stdout().flush();
            state = now;
        }
        thread::sleep(EVERY);
    }
}
