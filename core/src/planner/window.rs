//! The memory of the scale-down delay: the most that was wanted within a window of time.

use crate::ids::Micros;
use std::collections::VecDeque;

/// The window is cut into this many slices, and one figure is kept for each: a figure may be remembered for 1/64 longer.
const SLICES: u64 = 64;

/// Sliding maximum. Bounded: at most `SLICES` + 2 figures.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    /// Falling figures with the latest time at which each was, or may have been, the largest.
    kept: VecDeque<(Micros, u32)>,
}

impl Window {
    /// Takes note of `value` and answers with the most within the `length` before `now`. Time does not go back.
    pub(super) fn most(&mut self, now: Micros, length: Micros, value: u32) -> u32 {
        let slice = (length / SLICES).max(1);
        while self.kept.back().is_some_and(|&(_, kept)| kept <= value) {
            self.kept.pop_back();
        }
        match self.kept.back_mut() {
            Some((at, _)) if *at / slice == now / slice => *at = now,
            _ => self.kept.push_back((now, value)),
        }
        while self.kept.front().is_some_and(|&(at, _)| at + length < now) {
            self.kept.pop_front();
        }
        self.kept.front().map_or(value, |&(_, most)| most.max(value))
    }

    /// How many figures are kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_of_the_window_is_remembered_and_memory_is_bounded() {
        let mut window = Window::default();
        assert_eq!(window.most(0, 640, 5), 5);
        assert_eq!(window.most(640, 640, 1), 5);
        assert_eq!(window.most(660, 640, 1), 1);
        let mut value = 1_000_000;
        for now in 1_000..100_000 {
            value -= 1;
            let most = window.most(now, 6_400, value);
            assert!(most >= value && most <= value + 6_400 + 2 * 100, "{most} {value}");
            assert!(window.len() <= SLICES as usize + 2);
        }
        let mut window = Window::default();
        assert_eq!((window.most(0, 0, 5), window.most(1, 0, 2), window.most(1, 0, 1)), (5, 2, 2));
    }
}
