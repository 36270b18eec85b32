//! The fence: over a link that is kept warm, asked again when its answer was lost.
//!
//! Never released here. A target whose sessions were taken over must not run on; only a reset ([`crate::after`]) leads
//! to the end of its fence, and the target is then another one. The claim is in the journal since the watch began, so
//! that a successor can ask for a fence whose token was never written down.

use control::backdoor::FenceToken;
use link::LinkFailure;

use crate::sample::Door;

/// Times a fence is asked for while its answers are lost.
const ASKED_MAX: usize = 3;

/// Fences the target behind `door`.
///
/// # Errors
/// [`LinkFailure::Refused`] if somebody else holds the fence or the hypervisor did not obey; a path failure if the
/// answer was lost [`ASKED_MAX`] times: the target may then be fenced, and the next call learns the token.
pub fn fence(door: &mut impl Door, reason: &str, claim: u64) -> Result<FenceToken, LinkFailure> {
    let mut asked = 1;
    loop {
        match door.fence(reason, claim) {
            Err(failure) if failure.is_path() && asked < ASKED_MAX => {
                tracing::warn!(%failure, "fencing again");
                asked += 1;
            }
            outcome => return outcome,
        }
    }
}
