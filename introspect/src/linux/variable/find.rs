//! From texts to places: names in the symbol table, types in the type information, pointers in memory.
//!
//! All variables take each step together, so following pointers costs a round for each `->` of the longest text.

use std::collections::{BTreeMap, HashSet};

use remote_memory::{GuestPhys, KernelVirt, LinkError};

use super::error::{Near, VariableError};
use super::expression::{Expression, STEPS_MAX, Step};
use super::{Place, Variable};
use crate::btf::Btf;
use crate::kallsyms;
use crate::linux::walk::Walk;
use crate::memory::{holds, word};
use crate::sources::RawSymbols;

/// Types of variables that type information does not describe, since it describes per-CPU ones only.
const KNOWN: &[(&str, &str)] = &[
    ("_totalram_pages", "atomic_long_t"),
    ("init_mm", "struct mm_struct"),
    ("init_net", "struct net"),
    ("init_pid_ns", "struct pid_namespace"),
    ("init_task", "struct task_struct"),
    ("init_ucounts", "struct ucounts"),
    ("init_user_ns", "struct user_namespace"),
    ("jiffies", "unsigned long"),
    ("max_threads", "int"),
    ("nr_cpu_ids", "unsigned int"),
    ("nr_threads", "int"),
    ("oom_kills", "int"),
    ("pid_max", "int"),
    ("root_user", "struct user_struct"),
    ("tcp_memory_allocated", "atomic_long_t"),
    ("total_forks", "unsigned long"),
    ("total_swap_pages", "long"),
    ("vm_node_stat", "atomic_long_t[]"),
    ("vm_numa_event", "atomic_long_t[]"),
    ("vm_zone_stat", "atomic_long_t[]"),
];

/// Bounds of the per-CPU symbols, whose addresses are offsets.
const PER_CPU: [&str; 2] = ["__per_cpu_start", "__per_cpu_end"];

/// Elements of an array whose length is not stated.
const ELEMENTS_MAX: u64 = 4096;

/// A variable has no more places than this; processors that a kernel may have, at most.
const PLACES_MAX: usize = 8192;

/// What is near is at most so many changes of letters away.
const DISTANCE_MAX: usize = 3;

/// So many names are told.
const NEAR_MAX: usize = 3;

/// What was read to find variables by.
pub(super) struct Finder {
    texts: Vec<String>,
    expressions: Vec<Result<Expression, VariableError>>,
    symbols: BTreeMap<String, Vec<u64>>,
    raw: RawSymbols,
    btf: Btf,
}

/// A variable on its way down.
struct Search<'e> {
    expression: &'e Expression,
    /// The text up to here.
    passed: String,
    next: usize,
    /// `None` for an array without a stated length: then of what.
    type_id: u32,
    unbounded: bool,
    bits: Option<(u8, u8)>,
    followed: bool,
    places: Vec<(Option<u32>, u64)>,
}

impl Finder {
    /// Reads the kernel's description of itself.
    pub(super) fn read(walk: &mut Walk<'_>, texts: &[&str]) -> Result<Result<Self, String>, LinkError> {
        let kernel = walk.kernel;
        let Some(sources) = &kernel.sources else {
            return Ok(Err("this description of it was saved by an earlier version".into()));
        };
        let raw = match sources.read_symbols(&mut walk.memory, &kernel.space)? {
            Ok(raw) => raw,
            Err(wrong) => return Ok(Err(wrong)),
        };
        let btf = match sources.read_btf(&mut walk.memory, &kernel.space)? {
            Ok(blob) => Btf::parse(&blob).map_err(|error| error.to_string()),
            Err(wrong) => Err(wrong),
        };
        let expressions: Vec<_> = texts.iter().map(|text| Expression::parse(text)).collect();
        let mut wanted: HashSet<&str> = expressions.iter().flatten().map(|one| one.symbol.as_str()).collect();
        wanted.extend(PER_CPU);
        let symbols = kallsyms::data_symbols(&raw.tables(), &wanted, ("_stext", sources.stext));
        let texts = texts.iter().map(|text| (*text).to_owned()).collect();
        Ok(btf.and_then(|btf| Ok(Self { texts, expressions, symbols: symbols?, raw, btf })))
    }

    /// Where each text leads.
    pub(super) fn find(&self, walk: &mut Walk<'_>) -> Result<Vec<Result<Variable, VariableError>>, LinkError> {
        let bases = walk.cpu_bases()?;
        let mut searches: Vec<Result<Search<'_>, VariableError>> = self
            .expressions
            .iter()
            .map(|expression| expression.as_ref().map_err(Clone::clone).and_then(|it| self.begin(it, &bases)))
            .collect();
        for _ in 0..=STEPS_MAX {
            for search in &mut searches {
                let failed = search.as_mut().ok().and_then(|search| self.walk_types(search).err());
                if let Some(error) = failed {
                    *search = Err(error);
                }
            }
            if !self.follow(walk, &mut searches)? {
                break;
            }
        }
        let found: Vec<_> = searches.into_iter().map(|search| search.and_then(|search| self.number(search))).collect();
        self.place(walk, found)
    }

    /// The symbol, its type, and its address for each processor that has it.
    fn begin<'e>(&self, expression: &'e Expression, bases: &[(u32, u64)]) -> Result<Search<'e>, VariableError> {
        let symbol = expression.symbol.clone();
        let address = match self.symbols.get(&symbol).map(Vec::as_slice) {
            Some([one]) => *one,
            Some(several) => return Err(VariableError::SeveralSymbols { symbol, count: several.len() }),
            None => return Err(VariableError::UnknownSymbol { near: self.symbols_near(&symbol), symbol }),
        };
        let known = KNOWN.iter().find(|(name, _)| *name == symbol).map(|(_, of_type)| *of_type);
        let (type_id, unbounded) = match (expression.of_type.as_deref(), self.btf.variable(&symbol)) {
            (Some(stated), _) => self.type_named(stated)?,
            (None, Some(described)) => (described, false),
            (None, None) => self.type_named(known.ok_or(VariableError::NoType { symbol: symbol.clone() })?)?,
        };
        let places = match self.is_per_cpu(address) {
            true => bases.iter().take(PLACES_MAX).map(|(cpu, base)| (Some(*cpu), base.wrapping_add(address))).collect(),
            false => vec![(None, address)],
        };
        let (next, bits, followed) = (0, None, false);
        Ok(Search { expression, passed: symbol, next, type_id, unbounded, bits, followed, places })
    }

    fn is_per_cpu(&self, address: u64) -> bool {
        let bound = |name: &str| self.symbols.get(name).and_then(|found| found.first().copied());
        let (start, end) = (bound(PER_CPU[0]), bound(PER_CPU[1]));
        start.zip(end).is_some_and(|(start, end)| (start..end).contains(&address))
    }

    /// A type by its name, and whether it is an array of such without a stated length.
    fn type_named(&self, name: &str) -> Result<(u32, bool), VariableError> {
        let (plain, unbounded) = match name.strip_suffix("[]") {
            Some(element) => (element.trim(), true),
            None => (name, false),
        };
        let found = self.btf.named(plain);
        let bare = plain.split(' ').next_back().unwrap_or(plain);
        let near = || near(bare, self.btf.type_names());
        let id = found.ok_or_else(|| VariableError::UnknownType { name: plain.to_owned(), near: near() })?;
        Ok((id, unbounded))
    }

    /// All steps up to the next pointer that has to be read.
    fn walk_types(&self, search: &mut Search<'_>) -> Result<(), VariableError> {
        while let Some(step) = search.expression.steps.get(search.next) {
            match step {
                Step::Follow(member) => {
                    let is_pointer = !search.unbounded && self.btf.pointee_of(search.type_id).is_some();
                    return if is_pointer { Ok(()) } else { Err(self.wrong_mark(search, "no pointer", ".", member)) };
                }
                Step::Member(member) => self.member(search, member)?,
                Step::Index(index) => self.element(search, *index, &format!("[{index}]"))?,
                Step::Enumerator(name) => {
                    let index = self.enumerator(name)?;
                    self.element(search, index, &format!("[{name}]"))?;
                }
            }
            search.next += 1;
        }
        Ok(())
    }

    fn wrong_mark(&self, search: &Search<'_>, is: &'static str, mark: &'static str, member: &str) -> VariableError {
        VariableError::WrongMark { of: search.passed.clone(), is, mark, member: member.to_owned() }
    }

    fn member(&self, search: &mut Search<'_>, name: &str) -> Result<(), VariableError> {
        if !search.unbounded && self.btf.pointee_of(search.type_id).is_some() {
            return Err(self.wrong_mark(search, "a pointer", "->", name));
        }
        let found = self.btf.member_of(search.type_id, name).filter(|_| !search.unbounded);
        let found = found.ok_or_else(|| {
            let names = self.btf.member_names(search.type_id);
            let near = near(name, names.iter().map(String::as_str));
            VariableError::NoMember { of: search.passed.clone(), member: name.to_owned(), near }
        })?;
        search.type_id = found.id;
        search.bits = (found.width != 0).then_some(((found.bit % 8) as u8, found.width as u8));
        search.advance(found.bit / 8);
        search.passed += &format!(".{name}");
        Ok(())
    }

    fn element(&self, search: &mut Search<'_>, index: u64, text: &str) -> Result<(), VariableError> {
        let of = search.passed.clone();
        let (element, bytes, count) = match search.unbounded {
            true => (search.type_id, self.btf.bytes_of(search.type_id), ELEMENTS_MAX),
            false => match self.btf.element_of(search.type_id) {
                Some((element, bytes, count)) => (element, Some(bytes), count.into()),
                None => return Err(VariableError::NoArray { of }),
            },
        };
        let bytes = bytes.ok_or_else(|| VariableError::NoArray { of: of.clone() })?;
        if index >= count {
            return Err(VariableError::BeyondArray { of, count, index });
        }
        (search.type_id, search.unbounded) = (element, false);
        search.advance(index.saturating_mul(bytes as u64));
        search.passed += text;
        Ok(())
    }

    fn enumerator(&self, name: &str) -> Result<u64, VariableError> {
        match self.btf.enumerator(name) {
            [one] if *one >= 0 => Ok(one.cast_unsigned()),
            [] | [_] => {
                let near = near(name, self.btf.enumerator_names());
                Err(VariableError::UnknownEnumerator { name: name.to_owned(), near })
            }
            several => Err(VariableError::SeveralValues { name: name.to_owned(), count: several.len() }),
        }
    }

    /// Reads the pointers at which searches wait, in one round; false if none does.
    fn follow(
        &self,
        walk: &mut Walk<'_>,
        searches: &mut [Result<Search<'_>, VariableError>],
    ) -> Result<bool, LinkError> {
        let waits = |search: &&mut Search<'_>| search.next < search.expression.steps.len();
        let at: Vec<u64> = searches
            .iter_mut()
            .flatten()
            .filter(waits)
            .flat_map(|search| search.places.iter().map(|(_, at)| *at).collect::<Vec<_>>())
            .collect();
        if at.is_empty() {
            return Ok(false);
        }
        let virts: Vec<_> = at.iter().map(|at| KernelVirt::new(*at)).collect();
        let records = walk.kernel.space.fetch_equal(&mut walk.memory, &virts, 8)?;
        let mut words = records.iter().map(|bytes| bytes.map_or(0, |bytes| word(bytes, 0, 8)));
        for one in searches.iter_mut() {
            let Some(search) = one.as_mut().ok().filter(waits) else { continue };
            let is_whole = search.places.iter_mut().fold(true, |is_whole, (_, at)| {
                *at = words.next().unwrap_or(0);
                is_whole && *at != 0
            });
            let pointee = self.btf.pointee_of(search.type_id);
            let (Some(pointee), true) = (pointee, is_whole) else {
                *one = Err(VariableError::Nowhere { of: search.passed.clone() });
                continue;
            };
            let Some(Step::Follow(member)) = search.expression.steps.get(search.next) else { continue };
            (search.type_id, search.followed, search.next) = (pointee, true, search.next + 1);
            if let Err(error) = self.member(search, member) {
                *one = Err(error);
            }
        }
        Ok(true)
    }

    /// The number at which a search has ended.
    fn number<'e>(&self, search: Search<'e>) -> Result<(Search<'e>, Variable), VariableError> {
        let leaf = self.btf.leaf_of(search.type_id).filter(|_| !search.unbounded);
        let leaf = leaf.ok_or_else(|| {
            let names = self.btf.member_names(search.type_id);
            let near = Near(names.into_iter().take(NEAR_MAX).collect());
            VariableError::NoNumber { of: search.passed.clone(), near }
        })?;
        // A bit field has the bytes that it reaches into, not those of its type.
        let reach = |(first, count): (u8, u8)| usize::from(first.saturating_add(count)).div_ceil(8);
        let bytes = search.bits.map_or(leaf.bytes, reach).min(8) as u8;
        let (bits, followed, signed) = (search.bits, search.followed, leaf.signed);
        Ok((search, Variable { text: String::new(), places: Vec::new(), bytes, signed, bits, followed }))
    }

    /// Physical addresses for what was found; those in no arithmetic region cost a walk of the page tables.
    fn place(
        &self,
        walk: &mut Walk<'_>,
        found: Vec<Result<(Search<'_>, Variable), VariableError>>,
    ) -> Result<Vec<Result<Variable, VariableError>>, LinkError> {
        let space = &walk.kernel.space;
        let unknown: Vec<u64> = found
            .iter()
            .flatten()
            .flat_map(|(search, variable)| search.places.iter().map(move |(_, at)| (*at, u64::from(variable.bytes))))
            .filter(|(at, bytes)| space.known(KernelVirt::new(*at), *bytes).is_none())
            .map(|(at, _)| at)
            .collect();
        let walked = space.walk_pages(&mut walk.memory, &unknown)?;
        let walked: BTreeMap<u64, GuestPhys> =
            unknown.into_iter().zip(walked).filter_map(|(at, phys)| Some((at, phys?))).collect();
        let place = |at: u64, bytes: u64| {
            let found = space.known(KernelVirt::new(at), bytes).or_else(|| walked.get(&at).copied());
            found.filter(|phys| holds(&space.extents, *phys, bytes))
        };
        let results = found.into_iter().zip(&self.texts).map(|(found, text)| {
            let (search, mut variable) = found?;
            for (cpu, at) in &search.places {
                let nowhere = || VariableError::Nowhere { of: search.passed.clone() };
                let at = place(*at, variable.bytes.into()).ok_or_else(nowhere)?;
                variable.places.push(Place { cpu: *cpu, at });
            }
            variable.text.clone_from(text);
            Ok(variable)
        });
        Ok(results.collect())
    }

    fn symbols_near(&self, name: &str) -> Near {
        let mut best = Best::of(name);
        // A table that was read once to its end can be read again.
        let _ = kallsyms::each_name(&self.raw.tables(), |_, kind, symbol| {
            if !kallsyms::is_function(kind) {
                best.offer(symbol);
            }
        });
        best.near()
    }
}

impl Search<'_> {
    fn advance(&mut self, bytes: u64) {
        self.places.iter_mut().for_each(|(_, at)| *at = at.wrapping_add(bytes));
    }
}

fn near<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Near {
    let mut best = Best::of(name);
    names.for_each(|one| best.offer(one));
    best.near()
}

/// The names that come nearest.
struct Best<'n> {
    name: &'n str,
    found: Vec<(usize, String)>,
}

impl<'n> Best<'n> {
    fn of(name: &'n str) -> Self {
        Self { name, found: Vec::new() }
    }

    fn offer(&mut self, other: &str) {
        // Names of symbols are up to 512 bytes: only those of about the same length are looked at closely.
        if self.name.len().abs_diff(other.len()) > DISTANCE_MAX {
            return;
        }
        let distance = strsim::osa_distance(self.name, other);
        let entry = (distance, other.to_owned());
        if distance <= DISTANCE_MAX.min(self.name.len() / 2) && !self.found.contains(&entry) {
            self.found.push(entry);
            self.found.sort();
            self.found.truncate(NEAR_MAX);
        }
    }

    fn near(self) -> Near {
        Near(self.found.into_iter().map(|(_, name)| name).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_told_and_nothing_else() {
        let names = ["nr_threads", "nr_thread", "threads", "nr_cpus", "x"];
        assert_eq!(near("nr_treads", names.into_iter()).0, ["nr_threads", "nr_thread"]);
        assert_eq!(near("y", names.into_iter()).0, [""; 0]);
        assert_eq!(near("entirely_different", names.into_iter()).0, [""; 0]);
    }
}
