//! Workers that are to be emptied, and what others make of being asked to keep something.

use super::*;

impl Sim {
    /// Some workers are to be emptied, one that holds something among them.
    pub(super) fn empty(&mut self) -> Result<(), String> {
        let held = self.oracle.held();
        if held.is_empty() {
            return Ok(());
        }
        let task = *self.rng.pick(&held);
        let mut sessions: Vec<SessionId> = self.machine.holders(task).take(1 + self.rng.below(2) as usize).collect();
        while self.rng.chance(20) {
            // One that is over, now and then.
            sessions.push(self.rng.pick(&self.workers).session);
        }
        self.feed(Input::MoveObjects { sessions: sessions.clone() })?;
        if self.rng.chance(50) {
            return self.answer_wanted();
        }
        if self.rng.chance(60) {
            // Whoever was asked is late, and the worker is named again.
            self.advance(4 * SECOND)?;
            return self.feed(Input::MoveObjects { sessions }).map(|_| ());
        }
        Ok(())
    }

    /// A worker that was asked to keep something does, or cannot, or never says; one that was not asked says so all the same.
    pub(super) fn answer_wanted(&mut self) -> Result<(), String> {
        let asked = |worker: &Box_| worker.alive && !worker.closed && worker.data && !worker.wanted.is_empty();
        let asked: Vec<usize> = (0..self.workers.len()).filter(|at| asked(&self.workers[*at])).collect();
        if asked.is_empty() || self.rng.chance(5) {
            return self.keep_unasked();
        }
        let at = *self.rng.pick(&asked);
        let session = self.workers[at].session;
        while let Some(task) = self.workers[at].wanted.pop_front() {
            let input = match self.rng.below(10) {
                0..5 => Input::ObjectKept { session, task },
                5..8 => Input::ObjectNotKept { session, task },
                _ => continue,
            };
            self.feed(input)?;
        }
        Ok(())
    }

    fn keep_unasked(&mut self) -> Result<(), String> {
        let held = self.oracle.held();
        let (Some(at), false) = (self.some_worker(), held.is_empty()) else { return Ok(()) };
        let (session, task) = (self.workers[at].session, *self.rng.pick(&held));
        let input = match self.rng.chance(50) {
            true => Input::ObjectKept { session, task },
            false => Input::ObjectNotKept { session, task },
        };
        self.feed(input).map(|_| ())
    }
}
