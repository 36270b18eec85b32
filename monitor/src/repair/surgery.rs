//! Edits, carried out: compared, written, read back.

use std::collections::BTreeMap;

use introspect::linux::kill::Edit;
use remote_memory::{Fenced, Gather, LinkError, Member, Read, RemoteAddr, RemoteWrite, Warrant};

use super::RepairError;

/// Edits of one length that are worth a round of their own, in which each costs no more than its address and its bytes.
const ALIKE_MIN: usize = 256;

/// Longer ones travel by themselves.
const ALIKE_BYTES_MAX: usize = 16;

/// Which side of the edits memory is compared with.
#[derive(Clone, Copy)]
enum Side {
    Was,
    Now,
}

impl Side {
    fn of(self, edit: &Edit) -> &[u8] {
        match self {
            Self::Was => &edit.was,
            Self::Now => &edit.now,
        }
    }
}

/// Writes `edits` in their order under the authority of `fenced`, if memory holds what each of them expects, and reads
/// back what was written.
///
/// # Errors
/// See [`RepairError`]; what it says of what was written holds.
pub fn carry_out(memory: &mut dyn RemoteWrite, fenced: &Fenced, edits: &[Edit]) -> Result<(), RepairError> {
    if let Some(edit) = different(memory, fenced, edits, Side::Was)? {
        return Err(RepairError::Changed { what: edit.what.to_string(), at: edit.at });
    }
    let place = |edit: &Edit| RemoteAddr::new(fenced.ram(), edit.at);
    let writes: Vec<_> = edits.iter().map(|edit| (place(edit), &*edit.now)).collect();
    memory.write_all(Warrant::Fenced(fenced), &writes).map_err(|(written, error)| RepairError::NotWritten {
        what: edits[written].what.to_string(),
        written,
        error,
    })?;
    match different(memory, fenced, edits, Side::Now)? {
        Some(edit) => Err(RepairError::NotHeld { what: edit.what.to_string(), at: edit.at }),
        None => Ok(()),
    }
}

/// An edit whose place does not hold what that side of it says.
fn different<'a>(
    memory: &mut dyn RemoteWrite,
    fenced: &Fenced,
    edits: &'a [Edit],
    side: Side,
) -> Result<Option<&'a Edit>, LinkError> {
    if let Some(edit) = edits.iter().find(|edit| edit.was.len() != edit.now.len()) {
        return Ok(Some(edit));
    }
    let mut others: Vec<&Edit> = Vec::new();
    for (len, alike) in by_length(edits) {
        if len > ALIKE_BYTES_MAX || alike.len() < ALIKE_MIN {
            others.extend(alike);
        } else if let Some(edit) = different_of_length(memory, fenced, (len, &alike), side)? {
            return Ok(Some(edit));
        }
    }
    different_of_any(memory, fenced, &others, side)
}

fn by_length(edits: &[Edit]) -> BTreeMap<usize, Vec<&Edit>> {
    let mut by_length: BTreeMap<usize, Vec<&Edit>> = BTreeMap::new();
    edits.iter().for_each(|edit| by_length.entry(edit.was.len()).or_default().push(edit));
    by_length
}

/// The same of edits of one length, which are read as structs of one member.
fn different_of_length<'a>(
    memory: &mut dyn RemoteWrite,
    fenced: &Fenced,
    (len, edits): (usize, &[&'a Edit]),
    side: Side,
) -> Result<Option<&'a Edit>, LinkError> {
    let places: Vec<u64> = edits.iter().map(|edit| edit.at).collect();
    let members = [Member { offset: 0, len: len as u32 }];
    let mut different = None;
    memory.gather(&Gather { key: fenced.ram(), bases: &places, members: &members }, &mut |number, found| {
        if found != Ok(side.of(edits[number])) {
            different.get_or_insert(edits[number]);
        }
    })?;
    Ok(different)
}

/// The same of edits of any length.
fn different_of_any<'a>(
    memory: &mut dyn RemoteWrite,
    fenced: &Fenced,
    edits: &[&'a Edit],
    side: Side,
) -> Result<Option<&'a Edit>, LinkError> {
    if edits.is_empty() {
        return Ok(None);
    }
    let mut found = vec![0; edits.iter().map(|edit| edit.was.len()).sum()];
    let mut rest = found.as_mut_slice();
    let mut batch = Vec::with_capacity(edits.len());
    for edit in edits {
        let (place, later) = std::mem::take(&mut rest).split_at_mut(edit.was.len());
        batch.push(Read::new(RemoteAddr::new(fenced.ram(), edit.at), place));
        rest = later;
    }
    memory.read(&mut batch)?;
    let differs =
        |(edit, read): (&&'a Edit, Read<'_>)| (read.outcome.is_err() || *read.into != *side.of(edit)).then_some(*edit);
    Ok(edits.iter().zip(batch).find_map(differs))
}
