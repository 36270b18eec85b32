//! Axes: values to places, and the round values that are written beside them.

/// How values lie on an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Equal steps.
    Linear,
    /// Equal factors. What is not above the begin lies on it: a zero is drawn on the edge.
    Log,
}

/// One axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How values lie on it.
    pub scale: Scale,
    /// Value at its begin; above zero for [`Scale::Log`].
    pub from: f64,
    /// Value at its end, above `from`.
    pub to: f64,
}

/// Round values at most on a linear axis.
const STEPS_MAX: f64 = 6.0;

impl Axis {
    /// An axis from `from` to `to`.
    pub fn new(label: &str, scale: Scale, from: f64, to: f64) -> Self {
        Self { label: label.to_owned(), scale, from, to: if to > from { to } else { from + 1.0 } }
    }

    /// A linear axis from zero up to a round value above all of `values`.
    pub fn above(label: &str, values: impl Iterator<Item = f64>) -> Self {
        let most = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        let to = if most > 0.0 { ((most / round_step(most)).floor() + 1.0) * round_step(most) } else { 1.0 };
        Self::new(label, Scale::Linear, 0.0, to)
    }

    /// Where `value` lies: 0 at the begin, 1 at the end; what is beyond lies on the edge.
    pub fn place(&self, value: f64) -> f64 {
        let part = match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Log => (value.max(self.from) / self.from).ln() / (self.to / self.from).ln(),
        };
        part.clamp(0.0, 1.0)
    }

    /// Round values along the axis.
    pub fn ticks(&self) -> Vec<f64> {
        let within = |value: &f64| *value >= self.from * (1.0 - 1e-9) && *value <= self.to * (1.0 + 1e-9);
        match self.scale {
            Scale::Linear => {
                let step = round_step(self.to - self.from);
                let first = (self.from / step).ceil() as i64;
                (first..)
                    .map(|count| count as f64 * step)
                    .take_while(|value| *value <= self.to * (1.0 + 1e-9))
                    .collect()
            }
            Scale::Log => {
                let powers = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
                let factors: &[f64] = if powers.clone().count() > 4 { &[1.0] } else { &[1.0, 2.0, 5.0] };
                let values = powers.flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
                values.filter(within).collect()
            }
        }
    }
}

/// A step of 1, 2 or 5 times a power of ten that divides `length` into few parts.
fn round_step(length: f64) -> f64 {
    let rough = length / STEPS_MAX;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough * (1.0 - 1e-9));
    step.unwrap_or(10.0 * power)
}

/// A value as short as it can be said: 1500 as 1.5 k.
pub fn words(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        1e6.. => (value / 1e6, " M"),
        1e4.. => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let text = if scaled.abs() >= 100.0 { format!("{scaled:.0}") } else { format!("{scaled:.2}") };
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_ends_above_its_values_at_a_round_one() {
        let axis = Axis::above("x", [3.0, 47.0].into_iter());
        assert_eq!((axis.from, axis.to), (0.0, 50.0));
        assert_eq!(axis.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(axis.place(25.0), 0.5);
        assert_eq!(Axis::above("x", std::iter::empty()).to, 1.0);
    }

    #[test]
    fn a_log_axis_has_equal_factors_and_takes_zeros_at_its_begin() {
        let axis = Axis::new("x", Scale::Log, 5.0, 500.0);
        assert!((axis.place(50.0) - 0.5).abs() < 1e-9);
        assert_eq!(axis.place(0.0), 0.0);
        assert_eq!(axis.ticks(), [5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        assert_eq!(Axis::new("x", Scale::Log, 0.1, 100_000.0).ticks().len(), 7);
    }

    #[test]
    fn values_are_said_shortly() {
        for (value, text) in [(0.0, "0"), (0.5, "0.5"), (200.0, "200"), (15_000.0, "15 k"), (2.5e6, "2.5 M")] {
            assert_eq!(words(value), text);
        }
    }
}
