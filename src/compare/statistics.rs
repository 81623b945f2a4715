//! What samples say, and what they do not say: quantiles, noise, and which ratios are more than noise.

/// Fewest samples of which something is claimed.
pub const FEWEST: usize = 4;

/// The quantile by nearest rank: a sample that was seen. None of no samples.
pub fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 0 and the number of samples
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

/// The middle sample, or halfway between the two in the middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(sorted.len().checked_sub(1)? / 2)?, sorted.get(sorted.len() / 2)?);
    Some(f64::midpoint(*low, *high))
}

/// How far apart two numbers are, as a factor of at least 1. Two zeros are not apart.
pub fn factor(one: f64, other: f64) -> f64 {
    match (one <= 0.0, other <= 0.0) {
        (true, true) => 1.0,
        (false, false) => (one / other).max(other / one),
        _ => f64::INFINITY,
    }
}

/// The noise within one series: how far the medians of its odd and of its even samples are apart. Neighbours were
/// measured in turn, so what drifts slowly shows only a little, and what scatters shows. None of fewer than [`FEWEST`].
pub fn scatter(samples: &[f64]) -> Option<f64> {
    if samples.len() < FEWEST {
        return None;
    }
    let half = |first: usize| samples.iter().copied().skip(first).step_by(2).collect::<Vec<_>>();
    Some(factor(median(&half(0))?, median(&half(1))?))
}

/// What may be claimed of `other` beside `base`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// `other` by `base`, medians.
    pub ratio: f64,
    /// A factor: what the same subject differs by from itself.
    pub noise: f64,
    /// The middle halves of the two series do not overlap.
    pub apart: bool,
}

impl Verdict {
    /// Holds `other` against `base`. `again` is the base measured once more: the A/A test. None where the noise is not
    /// known, for fewer than [`FEWEST`] samples.
    pub fn of(base: &[f64], again: &[f64], other: &[f64]) -> Option<Self> {
        let (middle, second) = (median(base)?, median(again)?);
        let noise = [factor(middle, second), scatter(base)?, scatter(again)?, scatter(other)?];
        let ratio = if middle > 0.0 { median(other)? / middle } else { return None };
        let ends = |samples: &[f64]| Some((quantile(samples, 0.25)?, quantile(samples, 0.75)?));
        let ((low, high), (other_low, other_high)) = (ends(base)?, ends(other)?);
        let apart = other_low > high || low > other_high;
        Some(Self { ratio, noise: noise.into_iter().fold(1.0, f64::max), apart })
    }

    /// Whether the two differ by more than the noise.
    pub fn differs(&self) -> bool {
        self.apart && factor(self.ratio, 1.0) > self.noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_that_were_seen() {
        let samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&samples, 0.5), Some(50.0));
        assert_eq!(quantile(&samples, 0.99), Some(99.0));
        assert_eq!(quantile(&[3.0, 1.0], 0.99), Some(3.0));
        assert_eq!(quantile(&[7.0], 0.0), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(median(&samples), Some(50.5));
        assert_eq!((median(&[2.0, 9.0, 1.0]), median(&[])), (Some(2.0), None));
    }

    #[test]
    fn a_subject_does_not_differ_from_itself() {
        // The same scattered series, cut into three: whatever their medians are, nothing is claimed.
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            10.0 + f64::from(state >> 16 & 0xff) / 100.0
        };
        let mut series = |count: usize| (0..count).map(|_| next()).collect::<Vec<_>>();
        let mut wrong = 0;
        for _ in 0..100 {
            let (base, again, other) = (series(10), series(10), series(10));
            wrong += usize::from(Verdict::of(&base, &again, &other).unwrap().differs());
        }
        assert!(wrong < 15, "{wrong} of 100");
        let base = [10.0, 10.2, 10.1, 9.9];
        assert!(!Verdict::of(&base, &base, &base).unwrap().differs());
    }

    #[test]
    fn only_what_is_beyond_the_noise_is_claimed() {
        let base = [10.0, 11.0, 10.0, 11.0]; // its halves are 1.1 apart
        let verdict = |other: [f64; 4]| Verdict::of(&base, &base, &other).unwrap();
        assert!(!verdict([11.0, 11.0, 11.0, 11.0]).differs());
        assert!(verdict([30.0, 30.0, 31.0, 30.0]).differs());
        assert!(verdict([3.0, 3.0, 3.0, 3.1]).differs());
        assert!(!verdict([12.0, 30.0, 12.0, 30.0]).differs(), "what scatters by 2.5 says nothing of 2");
        let wide = [9.0, 9.0, 30.0, 30.0];
        assert!(!verdict(wide).differs(), "its middle half has the base in it");
        let apart = Verdict::of(&[1.0; 4], &[2.0; 4], &[1.5; 4]).unwrap();
        assert_eq!((apart.noise, apart.differs()), (2.0, false), "the base is twice itself");
    }

    #[test]
    fn a_few_samples_say_nothing() {
        assert_eq!(Verdict::of(&[1.0; 3], &[1.0; 3], &[9.0; 3]), None);
        assert_eq!(Verdict::of(&[], &[], &[]), None);
        assert_eq!(Verdict::of(&[0.0; 4], &[0.0; 4], &[1.0; 4]), None, "nothing is a multiple of nothing");
        assert_eq!((factor(0.0, 0.0), factor(0.0, 1.0)), (1.0, f64::INFINITY));
    }
}
