//! What workers do with what they were sent, and what of it arrives.

use super::*;

impl Sim {
    pub(super) fn worker_turn(&mut self) -> Result<(), String> {
        if let Some(at) = self.some_worker() {
            self.receive(at);
            self.start_what_fits(at);
            let ends = self.rng.below(3);
            for _ in 0..ends {
                self.end_one(at);
            }
            self.report_settled(at);
            self.start_what_fits(at);
        }
        Ok(())
    }

    /// Takes what has come over connections that stand, each in order, one ahead of the other as it happens.
    pub(super) fn receive(&mut self, at: usize) {
        let control_first = self.rng.chance(50);
        for control in [control_first, !control_first] {
            while self.rng.chance(85) || self.healing {
                let worker = &mut self.workers[at];
                if control {
                    let Some(order) = worker.control.then(|| worker.orders.pop_front()).flatten() else { break };
                    self.obey(at, order);
                } else {
                    let Some(dispatch) = worker.data.then(|| worker.dispatches.pop_front()).flatten() else { break };
                    self.take(at, dispatch);
                }
            }
        }
    }

    fn take(&mut self, at: usize, dispatch: Dispatch) {
        let takes = self.machine.shape(dispatch.shape).cloned().unwrap_or_default();
        let worker = &mut self.workers[at];
        worker.seen.insert(dispatch.handle, dispatch.attempt);
        if worker.unseen_retracts.remove(&dispatch.handle) {
            return;
        }
        if worker.unseen_cancels.remove(&dispatch.handle) {
            return self.report(at, &dispatch, OutcomeClass::Cancelled);
        }
        if worker.draining {
            return self.report(at, &dispatch, OutcomeClass::Preempted);
        }
        worker.queue.push(Item { dispatch, takes, cancelled: false });
    }

    fn obey(&mut self, at: usize, order: Order) {
        match order {
            Order::Retract(handles) => {
                let worker = &mut self.workers[at];
                let (mut given_back, mut kept) = (Vec::new(), Vec::new());
                for handle in handles {
                    if let Some(queued) = worker.queue.iter().position(|item| item.dispatch.handle == handle) {
                        worker.queue.remove(queued);
                        given_back.push(handle);
                    } else if worker.seen.contains_key(&handle) {
                        kept.push(handle);
                    } else {
                        worker.unseen_retracts.insert(handle);
                        given_back.push(handle);
                    }
                }
                worker.words.push_back(Word::Reply { given_back, kept });
            }
            Order::Cancel(handles) => {
                for handle in handles {
                    let worker = &mut self.workers[at];
                    if let Some(queued) = worker.queue.iter().position(|item| item.dispatch.handle == handle) {
                        let item = worker.queue.remove(queued);
                        self.report(at, &item.dispatch, OutcomeClass::Cancelled);
                    } else if let Some(item) = worker.running.iter_mut().find(|item| item.dispatch.handle == handle) {
                        item.cancelled = true;
                    } else if !worker.seen.contains_key(&handle) {
                        worker.unseen_cancels.insert(handle);
                    }
                }
            }
            Order::Drain => self.begin_drain(at),
        }
    }

    /// In order of dispatch, the first that fits.
    pub(super) fn start_what_fits(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        while let Some(first) = worker.queue.iter().position(|item| worker.spec.capacity.fits(&worker.used, &item.takes)) {
            let item = worker.queue.remove(first);
            worker.used.add(&item.takes);
            let (handle, attempt) = (item.dispatch.handle, item.dispatch.attempt);
            if !self.rng.chance(35) {
                worker.events.push_back(WorkerEvent { handle, attempt, kind: EventKind::Started });
            }
            worker.running.push(item);
        }
    }

    pub(super) fn end_one(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        if worker.running.is_empty() {
            return;
        }
        let which = worker.running.iter().position(|item| item.cancelled);
        let which = which.unwrap_or_else(|| self.rng.below(worker.running.len() as u64) as usize);
        let item = worker.running.remove(which);
        worker.used.remove(&item.takes);
        let reads = !self.healing && !self.oracle.inputs(item.dispatch.task).is_empty();
        let worker = &mut self.workers[at];
        let class = if reads && !item.cancelled && self.rng.chance(25) {
            OutcomeClass::InputLost
        } else if item.cancelled && self.rng.chance(80) {
            OutcomeClass::Cancelled
        } else if self.rng.chance(if self.healing { 0 } else { self.failing }) {
            *self.rng.pick(&[
                OutcomeClass::AppError,
                OutcomeClass::AppError,
                OutcomeClass::Timeout,
                OutcomeClass::Oom,
                OutcomeClass::Oom,
                OutcomeClass::MissingOutput,
                OutcomeClass::BadOutput,
                OutcomeClass::InfraStart,
                OutcomeClass::Preempted,
                OutcomeClass::LostWorker,
                OutcomeClass::InputLost,
                OutcomeClass::InputLost,
            ])
        } else {
            OutcomeClass::Succeeded
        };
        worker.settling.push((item, class));
    }

    pub(super) fn report_settled(&mut self, at: usize) {
        while !self.workers[at].settling.is_empty() && (self.rng.chance(70) || self.healing) {
            let (item, class) = self.workers[at].settling.remove(0);
            self.report(at, &item.dispatch, class);
        }
    }

    pub(super) fn report(&mut self, at: usize, dispatch: &Dispatch, class: OutcomeClass) {
        let session = self.workers[at].session;
        let result = match (class, self.rng.below(4)) {
            (OutcomeClass::Succeeded, 0 | 1) if dispatch.task.group.0.is_multiple_of(5) => {
                Stored::Files(1 + self.rng.below(1 << 28))
            }
            (OutcomeClass::Succeeded, 0 | 1) => Stored::Held(1 + self.rng.below(1 << 28)),
            (OutcomeClass::Succeeded, 2) => Stored::Inline(self.rng.below(1 << 16) as u32),
            _ => Stored::None,
        };
        let token = self.token(session, dispatch.handle, dispatch.attempt, class, true, result);
        let mut report = finish(class, token);
        report.result = result;
        if class == OutcomeClass::InputLost {
            report.missing = Some(Box::new(Missing(self.missing(dispatch.task))));
        }
        report.wall = *self.rng.pick(&[10, MILLISECOND, 5 * MILLISECOND, SECOND]);
        report.cpu = report.wall / 2;
        report.exit_code = (class == OutcomeClass::AppError).then(|| *self.rng.pick(&[1, 75]));
        report.peak_memory_bytes = self.rng.below(4 << 30);
        let says = self.oracle.says_length(TaskRef { group: dispatch.task.group, index: dispatch.task.index });
        report.length = (says && self.rng.chance(80)).then(|| self.rng.below(5) as u32);
        let kind = EventKind::Finished(report);
        self.workers[at].events.push_back(WorkerEvent { handle: dispatch.handle, attempt: dispatch.attempt, kind });
    }

    pub(super) fn deliver_some(&mut self) -> Result<(), String> {
        let live: Vec<usize> = (0..self.workers.len()).filter(|at| !self.workers[*at].closed).collect();
        if live.is_empty() {
            return Ok(());
        }
        let at = *self.rng.pick(&live);
        self.deliver(at)
    }

    pub(super) fn deliver(&mut self, at: usize) -> Result<(), String> {
        let session = self.workers[at].session;
        if self.workers[at].data && !self.workers[at].events.is_empty() {
            let count = 1 + self.rng.below(self.workers[at].events.len() as u64) as usize;
            let events: Vec<WorkerEvent> = self.workers[at].events.drain(..count).collect();
            self.workers[at].said.extend(events.iter().cloned());
            self.feed(Input::Events { session, events })?;
        }
        if self.workers[at].control && !self.workers[at].closed {
            match self.workers[at].words.pop_front() {
                Some(Word::Reply { given_back, kept }) => {
                    self.feed(Input::RetractReply { session, given_back, kept })?;
                }
                Some(Word::Draining) => {
                    self.feed(Input::Draining { session })?;
                }
                Some(Word::Left) => {
                    self.workers[at].closed = true;
                    self.workers[at].alive = false;
                    self.feed(Input::Left { session })?;
                }
                None => {
                    let worker = &mut self.workers[at];
                    if worker.draining && worker.alive && worker.is_idle() {
                        worker.words.push_back(Word::Left);
                    }
                }
            }
        }
        Ok(())
    }
}
