//! Who may travel next: a bound on the bytes in flight and two queues, each first come first served. Pure.

use std::collections::VecDeque;

/// Gives out the right to have bytes in flight.
pub(super) struct Admission<T> {
    bytes_max: u64,
    small: Lane<T>,
    large: Lane<T>,
}

struct Lane<T> {
    bytes: u64,
    count: usize,
    waiting: VecDeque<(T, u64)>,
}

impl<T> Lane<T> {
    fn new() -> Self {
        Self { bytes: 0, count: 0, waiting: VecDeque::new() }
    }

    /// The head of the queue if it fits below `bytes_max`, or if nothing of this lane travels.
    fn next(&mut self, bytes_max: u64) -> Option<(T, u64)> {
        let (_, size) = self.waiting.front()?;
        if self.count > 0 && self.bytes + size > bytes_max {
            return None;
        }
        let (item, size) = self.waiting.pop_front()?;
        self.bytes += size;
        self.count += 1;
        Some((item, size))
    }
}

impl<T> Admission<T> {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, small: Lane::new(), large: Lane::new() }
    }

    pub(super) fn is_large(&self, size: u64) -> bool {
        size > self.bytes_max / 8
    }

    /// Puts it at the end of its queue.
    pub(super) fn push(&mut self, item: T, size: u64) {
        if self.is_large(size) { &mut self.large } else { &mut self.small }.waiting.push_back((item, size));
    }

    /// The next that may travel.
    ///
    /// Large ones have half of the bytes (one above that has its size: it cannot be made smaller). Small ones have what large ones do not
    /// use, but at least the other half.
    pub(super) fn next(&mut self) -> Option<(T, u64)> {
        let half = self.bytes_max / 2;
        let small_max = self.bytes_max - self.large.bytes.min(half);
        self.small.next(small_max).or_else(|| self.large.next(half))
    }

    /// One that travelled has arrived or failed.
    pub(super) fn done(&mut self, size: u64) {
        let lane = if self.is_large(size) { &mut self.large } else { &mut self.small };
        debug_assert!(lane.count > 0 && lane.bytes >= size, "every end follows a beginning");
        lane.bytes -= size;
        lane.count -= 1;
    }

    #[cfg(test)]
    /// Bytes that travel.
    pub(super) fn bytes(&self) -> u64 {
        self.small.bytes + self.large.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(admission: &mut Admission<u32>) -> Vec<u32> {
        std::iter::from_fn(|| admission.next().map(|(item, _)| item)).collect()
    }

    #[test]
    fn a_large_one_does_not_hold_up_small_ones_nor_they_it() {
        let mut admission = Admission::new(80);
        admission.push(1, 1000);
        admission.push(2, 1000);
        (3..20).for_each(|i| admission.push(i, 10));
        assert_eq!(all(&mut admission), [3, 4, 5, 6, 7, 8, 9, 10, 1]);
        admission.done(10);
        assert_eq!(all(&mut admission), [0_u32; 0], "small ones give back what large ones are entitled to");
        (0..4).for_each(|_| admission.done(10));
        assert_eq!(all(&mut admission), [11]);
        admission.done(1000);
        assert_eq!(all(&mut admission), [12, 13, 14, 15, 2]);
    }

    #[test]
    fn nothing_is_too_large_to_travel() {
        let mut admission = Admission::new(0);
        admission.push(1, 5);
        admission.push(2, 0);
        assert_eq!(all(&mut admission), [2, 1]);
        admission.done(5);
        admission.done(0);
        assert_eq!(admission.bytes(), 0);
    }

    proptest! {
        #[test]
        fn order_is_kept_in_each_lane_and_the_bound_holds(sizes in proptest::collection::vec(0u64..60, 1..60)) {
            let mut admission = Admission::new(100);
            for (i, size) in sizes.iter().enumerate() { admission.push(i, *size); }
            let (mut travelling, mut order) = (VecDeque::new(), Vec::new());
            loop {
                while let Some((item, size)) = admission.next() {
                    travelling.push_back(size);
                    order.push(item);
                }
                prop_assert!(admission.bytes() <= 160, "a hundred, and one large beyond its half");
                match travelling.pop_front() {
                    Some(size) => admission.done(size),
                    None => break,
                }
            }
            prop_assert_eq!(order.len(), sizes.len(), "all travel");
            for large in [false, true] {
                let lane: Vec<usize> = order.iter().copied().filter(|i| (sizes[*i] > 12) == large).collect();
                prop_assert!(lane.is_sorted());
            }
        }
    }
}
