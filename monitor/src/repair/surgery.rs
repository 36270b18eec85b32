//! Edits, carried out: compared, written, read back.

use introspect::linux::kill::Edit;
use remote_memory::{Fenced, LinkError, Read, RemoteAddr, RemoteWrite, Warrant};

use super::RepairError;

/// Edits that are compared in one round: as many stretches as a window has, and no more memory of ours than caches
/// hold.
const EDITS_PER_ROUND: usize = 16 * 1024;

/// Which side of the edits memory is compared with.
#[derive(Clone, Copy)]
enum Side {
    Was,
    Now,
}

/// Writes `edits` in their order under the authority of `fenced`, if memory holds what each of them expects, and reads
/// back what was written.
///
/// # Errors
/// See [`RepairError`]; what it says of what was written holds.
pub fn carry_out(memory: &mut dyn RemoteWrite, fenced: &Fenced, edits: &[Edit]) -> Result<(), RepairError> {
    if let Some(edit) = first_different(memory, fenced, edits, Side::Was)? {
        return Err(RepairError::Changed { what: edit.what.to_string(), at: edit.at });
    }
    let place = |edit: &Edit| RemoteAddr::new(fenced.ram(), edit.at);
    let writes: Vec<_> = edits.iter().map(|edit| (place(edit), &*edit.now)).collect();
    memory.write_all(Warrant::Fenced(fenced), &writes).map_err(|(written, error)| RepairError::NotWritten {
        what: edits[written].what.to_string(),
        written,
        error,
    })?;
    match first_different(memory, fenced, edits, Side::Now)? {
        Some(edit) => Err(RepairError::NotHeld { what: edit.what.to_string(), at: edit.at }),
        None => Ok(()),
    }
}

/// The first edit whose place does not hold what that side of it says.
fn first_different<'a>(
    memory: &mut dyn RemoteWrite,
    fenced: &Fenced,
    edits: &'a [Edit],
    side: Side,
) -> Result<Option<&'a Edit>, LinkError> {
    for edits in edits.chunks(EDITS_PER_ROUND) {
        if let Some(edit) = first_different_of(memory, fenced, edits, side)? {
            return Ok(Some(edit));
        }
    }
    Ok(None)
}

/// The same of those that are read in one round.
fn first_different_of<'a>(
    memory: &mut dyn RemoteWrite,
    fenced: &Fenced,
    edits: &'a [Edit],
    side: Side,
) -> Result<Option<&'a Edit>, LinkError> {
    let expected = |edit: &'a Edit| match side {
        Side::Was => &edit.was,
        Side::Now => &edit.now,
    };
    if let Some(edit) = edits.iter().find(|edit| edit.was.len() != edit.now.len()) {
        return Ok(Some(edit));
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
        |(edit, read): (&'a Edit, Read<'_>)| (read.outcome.is_err() || *read.into != **expected(edit)).then_some(edit);
    Ok(edits.iter().zip(batch).find_map(differs))
}
