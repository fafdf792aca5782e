//! A token bucket: how many requests may begin now, and when the next may. It has no clock of its own.

use std::time::{Duration, Instant};

/// Requests a second in the long run, and at once after a rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens a second, at least 1.
    pub per_second: u32,
    /// Most tokens that are kept, at least 1.
    pub burst: u32,
}

/// The bucket.
#[derive(Debug)]
pub struct Bucket {
    rate: Rate,
    /// Millionths of a token.
    micro_tokens: u64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new(rate: Rate, now: Instant) -> Bucket {
        Bucket { rate, micro_tokens: u64::from(rate.burst.max(1)) * 1_000_000, filled: now }
    }

    /// Takes a token; without one, how long until there is one.
    ///
    /// # Errors
    /// The time to wait.
    pub fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let passed = now.saturating_duration_since(self.filled);
        let per_second = u64::from(self.rate.per_second.max(1));
        // A micro-token takes a microsecond at one token a second. A day fills every bucket.
        let micros = u64::try_from(passed.as_micros()).unwrap_or(u64::MAX).min(86_400_000_000);
        let most = u64::from(self.rate.burst.max(1)) * 1_000_000;
        self.micro_tokens = self.micro_tokens.saturating_add(micros.saturating_mul(per_second)).min(most);
        self.filled = now;
        if self.micro_tokens >= 1_000_000 {
            self.micro_tokens -= 1_000_000;
            return Ok(());
        }
        Err(Duration::from_micros((1_000_000 - self.micro_tokens).div_ceil(per_second)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 20, burst: 3 }, start);
        for _ in 0..3 {
            assert_eq!(bucket.take(start), Ok(()));
        }
        assert_eq!(bucket.take(start), Err(Duration::from_millis(50)));
        assert_eq!(bucket.take(start + Duration::from_millis(30)), Err(Duration::from_millis(20)));
        assert_eq!(bucket.take(start + Duration::from_millis(50)), Ok(()));
        let rested = start + Duration::from_secs(1000);
        let taken = (0..10).filter(|_| bucket.take(rested).is_ok()).count();
        assert_eq!(taken, 3);
    }
}
