//! Packet sequence numbers.

/// A packet sequence number: an integer modulo 2^24.
///
/// Deliberately not `Ord`: two of them compare only inside a window, see [`Psn::is_after`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Psn(u32);

impl Psn {
    const BITS: u32 = 24;
    const MASK: u32 = (1 << Self::BITS) - 1;

    /// The low 24 bits of `raw`.
    pub const fn new(raw: u32) -> Self {
        Self(raw & Self::MASK)
    }

    /// The number, below 2^24.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The number `count` packets later.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        Self::new(self.0.wrapping_add(count))
    }

    /// The number `count` packets earlier.
    #[must_use]
    pub const fn minus(self, count: u32) -> Self {
        Self::new(self.0.wrapping_sub(count))
    }

    /// Signed distance from `origin`: negative if this lies in the half of the circle before it.
    pub const fn distance_from(self, origin: Self) -> i32 {
        (self.0.wrapping_sub(origin.0) << (32 - Self::BITS)).cast_signed() >> (32 - Self::BITS)
    }

    /// Whether this lies in the half of the circle after `other`.
    pub const fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_holds_across_the_wrap() {
        let check = |a, b, distance| assert_eq!(Psn::new(a).distance_from(Psn::new(b)), distance, "{a:#x} - {b:#x}");
        check(0, 0xff_ffff, 1);
        check(0xff_ffff, 0, -1);
        check(0x80_0000, 1, 0x7f_ffff);
        check(0x80_0000, 0, -0x80_0000);
        assert!(Psn::new(3).is_after(Psn::new(0xff_fff0)));
    }

    #[test]
    fn arithmetic_stays_within_24_bits() {
        assert_eq!(Psn::new(0xff_ffff).plus(1).raw(), 0);
        assert_eq!(Psn::new(0).minus(1).raw(), 0xff_ffff);
        assert_eq!(Psn::new(0x1ff_ffff).raw(), 0xff_ffff);
    }
}
