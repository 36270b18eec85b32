//! Edits, carried out: compared, written, read back.

use introspect::linux::kill::Edit;
use remote_memory::{Fenced, LinkError, Read, RemoteAddr, RemoteWrite, Warrant};

use super::RepairError;

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
        return Err(RepairError::Changed { what: edit.what.clone(), at: edit.at });
    }
    let place = |edit: &Edit| RemoteAddr::new(fenced.ram(), edit.at);
    let writes: Vec<_> = edits.iter().map(|edit| (place(edit), edit.now.as_slice())).collect();
    memory.write_all(Warrant::Fenced(fenced), &writes).map_err(|(written, error)| RepairError::NotWritten {
        what: edits[written].what.clone(),
        written,
        error,
    })?;
    match first_different(memory, fenced, edits, Side::Now)? {
        Some(edit) => Err(RepairError::NotHeld { what: edit.what.clone(), at: edit.at }),
        None => Ok(()),
    }
}

/// The first edit whose place does not hold what that side of it says, all read in one round.
fn first_different<'a>(
    memory: &mut dyn RemoteWrite,
    fenced: &Fenced,
    edits: &'a [Edit],
    side: Side,
) -> Result<Option<&'a Edit>, LinkError> {
    let expected = |edit: &'a Edit| match side {
        Side::Was => &edit.was,
        Side::Now => &edit.now,
    };
    let mut found: Vec<Vec<u8>> = edits.iter().map(|edit| vec![0; expected(edit).len()]).collect();
    let places = edits.iter().zip(&mut found);
    let mut batch: Vec<_> =
        places.map(|(edit, bytes)| Read::new(RemoteAddr::new(fenced.ram(), edit.at), bytes.as_mut_slice())).collect();
    memory.read(&mut batch)?;
    let is_read: Vec<bool> = batch.iter().map(|read| read.outcome.is_ok()).collect();
    let differs = |(edit, (bytes, is_read)): (&'a Edit, (&Vec<u8>, &bool))| {
        (!is_read || bytes != expected(edit) || edit.was.len() != edit.now.len()).then_some(edit)
    };
    Ok(edits.iter().zip(found.iter().zip(&is_read)).find_map(differs))
}
