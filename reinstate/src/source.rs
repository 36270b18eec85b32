//! The dead machine as a spare sees it: the link to its memory, the kernel that was learned, and what is read of both.
//!
//! ```text
//!   survey        sockets, receive queues, measures of send queues      all clients can be asked
//!   pair          boxes, and what lies between processes                who goes on, and how
//!   read_queues   send queues, the short ones first                     each session can speak as its bytes come
//! ```
//! Of a target without a region `ram`, connections come out of the table that its kernel keeps ([`crate::tables`]), and
//! send queues out of its boxes.

use std::{net::IpAddr, sync::mpsc::Sender, time::Duration};

use control::{
    backdoor::{FenceToken, RegionEntry},
    reinstate::Assignment,
};
use introspect::{
    Extent, Kernel,
    linux::tcp::{self, Survey, TcpFilter, TcpSocket},
};
use link::{Link, Options};
use remote_memory::{Region, RemoteKey};

use crate::{
    config::Config,
    extract::{self, Extracted},
    tables::{self, Tables},
};

/// Send queues are read in groups of about this many bytes: some hundred packets, so that a round trip does not count,
/// and about a millisecond, so that whoever waits for a short queue need not wait for all.
const GROUP_BYTES: usize = 512 << 10;

/// Nor of more than so many sessions: those that are live are taken by their application while the next are made so.
const GROUP_SESSIONS: usize = 48;

/// Failures of the link, each followed by a new connection, before the queues that are left are given up: clients wait,
/// and other sessions have begun to go on.
const LINK_TRIES: u32 = 3;

/// All memory of a target, and the table in which its kernel keeps connections.
const RAM: &str = "ram";
const TABLE: &str = tcptable::layout::NAME;

/// Nobody does that: a source is one or the other for its life.
const CHANGED: &str = "extraction: what can be read of the target has changed";

/// A target's memory and what is known of its kernel.
#[derive(Debug)]
pub struct Source {
    link: Link,
    incarnation: u64,
    /// How often it had been reset when its kernel was found: each reset makes another one.
    resets: u64,
    sight: Sight,
}

/// What of the target can be read.
#[derive(Debug)]
enum Sight {
    /// All memory, with this kernel in it.
    Memory(Box<Kernel>),
    /// What was registered: the table of connections, which lies here.
    Tables(Region),
}

/// The connections of a target, with the places of what they had still to send.
#[derive(Debug)]
pub struct Surveyed {
    /// Where its boxes are, if it registered any.
    pool: Option<Region>,
    found: Connections,
}

#[derive(Debug)]
enum Connections {
    Walked(Survey),
    Kept(Tables),
}

impl Surveyed {
    /// The connections, until they are paired with their boxes.
    pub fn sockets(&self) -> &[TcpSocket] {
        match &self.found {
            Connections::Walked(survey) => &survey.sockets,
            Connections::Kept(tables) => &tables.sockets,
        }
    }

    fn queued_bytes(&self, number: usize) -> usize {
        match &self.found {
            Connections::Walked(survey) => survey.queued_bytes(number),
            Connections::Kept(tables) => tables.queued_bytes(number),
        }
    }
}

/// Send queues that have been read: the number of each in the survey, and its bytes if all of them could be.
pub type Group = Vec<(usize, Option<Vec<u8>>)>;

fn named<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// The kernel that lives, and how often the target had been reset before.
fn discover(link: &mut Link) -> Result<(Kernel, u64), String> {
    let ram = named("backdoor", link.region(RAM))?;
    let resets = named("backdoor", link.stats())?.resets;
    let (key, extents) = (RemoteKey::new(ram.key), extents(&ram));
    let found = match resets {
        // Spares a look at all of a large memory.
        0 => Kernel::discover(link.memory(), key, &extents),
        _ => Kernel::discover_living(link.memory(), key, &extents),
    };
    Ok((named("kernel of the target", found)?, resets))
}

fn extents(ram: &RegionEntry) -> Vec<Extent> {
    ram.stretches().iter().map(|stretch| Extent { start: stretch.start, len: stretch.len }).collect()
}

impl Source {
    /// Connects to the target's backdoor and learns its kernel.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn connect(config: &Config, assignment: &Assignment) -> Result<Self, String> {
        let carrier = config.carrier(&assignment.target);
        let options = Options { port: config.roce_port, carrier, ..Options::new(format!("reinstate@{}", config.name)) };
        let mut link = named("backdoor", Link::connect(assignment.backdoor, config.listen, options))?;
        let welcome = link.welcome();
        if welcome.target != assignment.target {
            return Err(format!("the backdoor at {} serves {}", assignment.backdoor, welcome.target));
        }
        let regions = named("backdoor", link.regions(None))?;
        let is_there = |name: &str| regions.iter().any(|region| region.name == name);
        let (sight, resets) = if config.only_tables || !is_there(RAM) {
            let Some(table) = regions.iter().find(|region| region.name == TABLE) else {
                return Err(format!("{} has registered neither its memory nor a table of connections", welcome.target));
            };
            (Sight::Tables(table.clone().into()), named("backdoor", link.stats())?.resets)
        } else {
            let (kernel, resets) = discover(&mut link)?;
            (Sight::Memory(Box::new(kernel)), resets)
        };
        Ok(Self { incarnation: welcome.incarnation, resets, link, sight })
    }

    /// The target's kernel release, as far as it can be seen.
    pub fn kernel(&self) -> &str {
        match &self.sight {
            Sight::Memory(kernel) => &kernel.release,
            Sight::Tables(_) => "out of sight: its table of connections is read",
        }
    }

    /// Looks whether the link and what was learned still stand while the target is healthy. A target that was started
    /// anew is learned anew. Also keeps the walk's code and the link warm, and says where its clients are now.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn refresh(&mut self, filter: &TcpFilter) -> Result<Vec<IpAddr>, String> {
        if let Sight::Tables(table) = &self.sight {
            let table = table.clone();
            return self.refresh_tables(table, filter);
        }
        named("backdoor", self.link.ping())?;
        let incarnation = self.link.welcome().incarnation;
        let resets = named("backdoor", self.link.stats())?.resets;
        let is_another = (incarnation, resets) != (self.incarnation, self.resets);
        let Sight::Memory(kernel) = &mut self.sight else { return Err(CHANGED.to_owned()) };
        let ram = named("backdoor", self.link.region(RAM))?;
        let surveyed = tcp::survey(kernel, self.link.memory(), RemoteKey::new(ram.key), filter);
        let survey = named("sockets of the target", surveyed)?;
        // A busy machine tears a chain now and then; a rebooted one has nothing where it was.
        if is_another || (survey.sockets.is_empty() && !survey.damage.is_empty()) {
            (**kernel, self.resets) = discover(&mut self.link)?;
            self.incarnation = incarnation;
        }
        Ok(survey.sockets.iter().map(|socket| socket.peer.ip()).collect())
    }

    /// Looks at the table where it was. Only if it is not there any more the target's agent is asked: its user space
    /// may have hung a moment ago, and an order to take over would wait until nobody answers.
    fn refresh_tables(&mut self, table: Region, filter: &TcpFilter) -> Result<Vec<IpAddr>, String> {
        let peers = |tables: Tables| tables.sockets.iter().map(|socket| socket.peer.ip()).collect();
        if let Ok(Ok(tables)) = tables::survey(self.link.memory(), &table, filter) {
            return Ok(peers(tables));
        }
        let table = Region::from(named("agent", self.link.region(TABLE))?);
        let tables = named("table of connections", tables::survey(self.link.memory(), &table, filter))?;
        let tables = named("table of connections", tables)?;
        self.sight = Sight::Tables(table);
        Ok(peers(tables))
    }

    /// Surveys the connections of the fenced target.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn survey(&mut self, token: &FenceToken, filter: &TcpFilter) -> Result<Surveyed, String> {
        let regions = named("regions under the fence", self.link.regions(Some(token)))?;
        let named_so = |name: &str| regions.iter().find(|region| region.name == name).cloned().map(Region::from);
        let found = match &self.sight {
            Sight::Memory(kernel) => {
                let ram = RemoteKey::new(token.ram_key);
                let survey = tcp::survey(kernel, self.link.memory(), ram, filter);
                Connections::Walked(named("extraction", survey)?)
            }
            Sight::Tables(_) => {
                let table = named_so(TABLE).ok_or("extraction: the table of connections is not registered any more")?;
                let tables = named("extraction", tables::survey(self.link.memory(), &table, filter))?;
                Connections::Kept(named("extraction", tables)?)
            }
        };
        Ok(Surveyed { pool: named_so("cb"), found })
    }

    /// Finds the boxes of the surveyed connections, and the channels of their sessions; takes their sockets out of the
    /// survey.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn pair(&mut self, surveyed: &mut Surveyed, token: &FenceToken, silent: Duration) -> Result<Extracted, String> {
        let (memory, pool) = (self.link.memory(), surveyed.pool.as_ref());
        let paired = match (&self.sight, &mut surveyed.found) {
            (Sight::Memory(kernel), Connections::Walked(survey)) => {
                extract::pair_all(kernel, memory, RemoteKey::new(token.ram_key), pool, survey, silent)
            }
            (_, Connections::Kept(tables)) => extract::pair_tables(memory, pool, tables, silent),
            (Sight::Tables(_), Connections::Walked(_)) => return Err(CHANGED.to_owned()),
        };
        named("extraction", paired)
    }

    fn read_queued(
        &mut self,
        surveyed: &Surveyed,
        token: &FenceToken,
        numbers: &[usize],
    ) -> Result<Vec<Option<Vec<u8>>>, String> {
        let memory = self.link.memory();
        let read = match (&self.sight, &surveyed.found) {
            (Sight::Memory(kernel), Connections::Walked(survey)) => {
                survey.read_queued(kernel, memory, RemoteKey::new(token.ram_key), numbers)
            }
            (_, Connections::Kept(tables)) => tables.read_queued(memory, surveyed.pool.as_ref(), numbers),
            (Sight::Tables(_), Connections::Walked(_)) => return Err(CHANGED.to_owned()),
        };
        read.map_err(|error| error.to_string())
    }

    /// Reads the send queues of the connections `numbers`, the short ones first, until all are read or nobody takes
    /// them any more.
    pub fn read_queues(
        &mut self,
        survey: &Surveyed,
        token: &FenceToken,
        mut numbers: Vec<usize>,
        taker: &Sender<Group>,
    ) {
        numbers.sort_by_key(|number| survey.queued_bytes(*number));
        let mut tries = LINK_TRIES;
        for group in groups(&numbers, |number| survey.queued_bytes(number)) {
            let mut queues = None;
            while tries > 0 && queues.is_none() {
                match self.read_queued(survey, token, group) {
                    Ok(read) => queues = Some(read),
                    Err(error) => {
                        tries -= 1;
                        tracing::warn!(%error, tries, "send queues cannot be read");
                    }
                }
            }
            let queues = queues.unwrap_or_else(|| vec![None; group.len()]);
            if taker.send(group.iter().copied().zip(queues).collect()).is_err() {
                return;
            }
        }
    }
}

/// Cuts `numbers`, which are in order of their bytes, into groups of [`GROUP_SESSIONS`]: first those without any, then
/// by [`GROUP_BYTES`].
fn groups(numbers: &[usize], bytes: impl Fn(usize) -> usize) -> impl Iterator<Item = &[usize]> {
    let mut rest = numbers;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |number: &&usize| {
            sum += bytes(**number);
            sum <= GROUP_BYTES
        };
        let empty = rest.iter().take_while(|number| bytes(**number) == 0).count();
        let len = if empty > 0 { empty } else { rest.iter().take_while(fits).count().max(1) };
        let len = len.min(GROUP_SESSIONS);
        let (group, later) = rest.split_at_checked(len)?;
        rest = later;
        Some(group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_queues_come_first_and_none_is_left_out() {
        let bytes = [0, 0, 10, GROUP_BYTES - 10, 1, 5 * GROUP_BYTES];
        let check = |numbers: &[usize], expected: &[&[usize]]| {
            assert_eq!(groups(numbers, |number| bytes[number]).collect::<Vec<_>>(), expected);
        };
        check(&[0, 1, 2, 3, 4, 5], &[&[0, 1], &[2, 3], &[4], &[5]]);
        check(&[2, 3], &[&[2, 3]]);
        check(&[5], &[&[5]]);
        let many: Vec<usize> = (0..2 * GROUP_SESSIONS + 1).collect();
        let sizes = |bytes| groups(&many, |_| bytes).map(<[usize]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(0), [GROUP_SESSIONS, GROUP_SESSIONS, 1]);
        assert_eq!(sizes(9), [GROUP_SESSIONS, GROUP_SESSIONS, 1]);
        check(&[], &[]);
    }
}
