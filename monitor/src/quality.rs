//! How well a path carries samples: whether it loses so many packets that somebody should look at it. A lossy path says
//! nothing about the target and never leads to an action; samples come later over it and are as good as any.

/// Samples that are judged together: 50 ms to 2 s, by the usual periods.
const WINDOW_SAMPLES: u32 = 200;

/// In a window, samples for which something had to be sent again, above which the path is called lossy; it is well
/// again below half of that. A busy machine at either end looks like a loss now and then.
const REPEATED_MAX: u32 = WINDOW_SAMPLES / 50;

/// What is known of one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quality {
    repetitions: u64,
    samples: u32,
    repeated: u32,
    is_lossy: bool,
}

/// What a sample added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Noted {
    /// Repetitions since the sample before.
    pub repetitions: u64,
    /// If the path has become lossy or well again: which, and the share of repeated samples in percent.
    pub turned: Option<(bool, u32)>,
}

impl Quality {
    /// Takes in a sample after which the path counts `repetitions` in all; a number that fell is that of a new path.
    pub fn note(&mut self, repetitions: u64) -> Noted {
        let before = std::mem::replace(&mut self.repetitions, repetitions);
        let new = repetitions.checked_sub(before).unwrap_or(repetitions);
        self.samples += 1;
        self.repeated += u32::from(new > 0);
        if self.samples < WINDOW_SAMPLES {
            return Noted { repetitions: new, turned: None };
        }
        let repeated = std::mem::take(&mut self.repeated);
        self.samples = 0;
        let is_lossy = if self.is_lossy { repeated >= REPEATED_MAX / 2 } else { repeated > REPEATED_MAX };
        let turned = (is_lossy != self.is_lossy).then_some((is_lossy, repeated * 100 / WINDOW_SAMPLES));
        self.is_lossy = is_lossy;
        Noted { repetitions: new, turned }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What turned in two windows of samples of which one in `every` was repeated.
    fn turns(quality: &mut Quality, every: Option<u32>) -> Vec<(bool, u32)> {
        let mut turns = Vec::new();
        for sample in 0..2 * WINDOW_SAMPLES {
            let more = u64::from(every.is_some_and(|every| sample % every == 0));
            turns.extend(quality.note(quality.repetitions + more).turned);
        }
        turns
    }

    #[test]
    fn a_path_is_called_lossy_once_and_well_again_once() {
        let mut quality = Quality::default();
        assert_eq!(turns(&mut quality, None), []);
        assert_eq!(turns(&mut quality, Some(100)), [], "one in a hundred is a busy machine");
        assert_eq!(turns(&mut quality, Some(20)), [(true, 5)]);
        assert_eq!(turns(&mut quality, Some(100)), [], "on the border it stays what it was");
        assert_eq!(turns(&mut quality, None), [(false, 0)]);
    }

    #[test]
    fn a_new_connection_counts_from_its_own_zero() {
        let mut quality = Quality::default();
        assert_eq!(quality.note(7).repetitions, 7);
        assert_eq!(quality.note(9).repetitions, 2);
        assert_eq!(quality.note(1).repetitions, 1);
    }
}
