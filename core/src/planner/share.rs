//! One limit over several pools: max-min fair. Who has least gets the next worker, minimums come first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A pool's part in the sharing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// Workers it has.
    pub(super) has: u32,
    /// Workers it asks for on top.
    pub(super) asks: u32,
    /// Its minimum.
    pub(super) low: u32,
}

/// Divides `room` workers; answers with what each claim gets, at most what it asks.
pub(super) fn divide(room: u64, claims: &[Claim]) -> Vec<u32> {
    let mut given = vec![0; claims.len()];
    if claims.iter().map(|claim| u64::from(claim.asks)).sum::<u64>() <= room {
        return claims.iter().map(|claim| claim.asks).collect();
    }
    let rank = |at: usize, given: u32| {
        let has = claims[at].has.saturating_add(given);
        Reverse((has >= claims[at].low, has, at))
    };
    let mut next: BinaryHeap<_> = (0..claims.len()).filter(|&at| claims[at].asks > 0).map(|at| rank(at, 0)).collect();
    for _ in 0..room {
        let Some(Reverse((.., at))) = next.pop() else { break };
        given[at] += 1;
        if given[at] < claims[at].asks {
            next.push(rank(at, given[at]));
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(what: &str, room: u64, claims: &[(u32, u32, u32)], expected: &[u32]) {
        let claims: Vec<Claim> = claims.iter().map(|&(has, asks, low)| Claim { has, asks, low }).collect();
        assert_eq!(divide(room, &claims), expected, "{what}");
    }

    #[test]
    fn who_has_least_gets_next_and_minimums_come_first() {
        check("room for all", 10, &[(0, 4, 0), (3, 6, 0)], &[4, 6]);
        check("no room", 0, &[(0, 4, 0)], &[0]);
        check("equal levels", 6, &[(0, 100, 0), (0, 100, 0), (0, 1, 0)], &[3, 2, 1]);
        check("who has nothing first", 3, &[(5, 100, 0), (0, 100, 0)], &[0, 3]);
        check("minimums first", 4, &[(0, 100, 0), (3, 100, 6)], &[1, 3]);
    }
}
