//! Whether the memory of a process is flat.

use serde::Serialize;

/// How much the last third's median may be above the second's: so much of it and so many bytes. Allocators keep what they have had,
/// and the stores of results breathe; a leak of a byte in four a no-op is more than that after 10^8.
const PART: u64 = 10;
const BYTES: u64 = 4 << 20;

/// Resident bytes of one process over the time.
pub struct Series {
    process: String,
    samples: Vec<u64>,
}

/// What came of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Which process.
    pub process: String,
    /// Medians of the thirds of the time, bytes.
    pub thirds: [u64; 3],
    /// The largest sample, bytes.
    pub peak: u64,
    /// The last third is not above the second.
    pub flat: bool,
}

impl Series {
    /// Without samples yet.
    pub fn new(process: &str) -> Series {
        Series { process: process.to_owned(), samples: Vec::new() }
    }

    /// The next sample.
    pub fn push(&mut self, bytes: u64) {
        self.samples.push(bytes);
    }

    /// Judges all samples. With too few it is not flat: nothing is known.
    pub fn judge(&self) -> Verdict {
        let third = self.samples.len() / 3;
        let median = |at: usize| {
            let mut part = self.samples[at * third..(at + 1) * third].to_vec();
            part.sort_unstable();
            part.get(third / 2).copied().unwrap_or(0)
        };
        let thirds = [0, 1, 2].map(median);
        let flat = third >= 3 && thirds[2] <= thirds[1] + thirds[1] / PART + BYTES;
        Verdict { process: self.process.clone(), thirds, peak: self.samples.iter().copied().max().unwrap_or(0), flat }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(samples: impl IntoIterator<Item = u64>) -> bool {
        let mut series = Series::new("process");
        samples.into_iter().for_each(|mib| series.push(mib << 20));
        series.judge().flat
    }

    #[test]
    fn what_rises_is_told_from_what_breathes() {
        for (what, samples, expected) in [
            ("level", vec![100; 30], true),
            ("warm after a third", (0..30).map(|n| if n < 10 { n * 10 } else { 100 }).collect(), true),
            ("breathing", (0..30).map(|n| 100 + 40 * (n % 2)).collect(), true),
            ("falling", (0..30).map(|n| 200 - n).collect(), true),
            ("rising to the end", (0..30).map(|n| 100 + 3 * n).collect(), false),
            ("a step at the end", (0..30).map(|n| if n < 22 { 100 } else { 130 }).collect(), false),
            ("too short to know", vec![100; 8], false),
        ] {
            assert_eq!(flat(samples), expected, "{what}");
        }
    }
}
