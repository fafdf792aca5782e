//! Both machines of this crate against each other: the scheduler's and the worker's, over two streams that overtake each other.
//! The book that the scheduler keeps of a worker has to agree with what the worker does, without either asking.

use super::super::task_table::{TaskEvent, TaskState};
use super::super::{Config, Scheduler, TransitionCounts};
use super::oracle::{Oracle, Report};
use super::rng::Rng;
use super::specs::random_run;
use crate::ids::*;
use crate::messages::*;
use crate::resources::Resources;
use crate::worker;
use crate::worker::Serial;
use std::collections::{BTreeMap, VecDeque};

/// What goes to the worker on its control connection.
enum Order {
    Retract(Vec<Handle>),
    Cancel(Vec<Handle>),
}

struct Side {
    session: SessionId,
    machine: worker::Worker,
    orders: VecDeque<Order>,
    dispatches: VecDeque<Dispatch>,
    events: VecDeque<WorkerEvent>,
    replies: VecDeque<(Vec<Handle>, Vec<Handle>)>,
    by_serial: BTreeMap<Serial, Dispatch>,
    running: Vec<Serial>,
    settling: Vec<Serial>,
    next: u64,
}

struct Pair {
    rng: Rng,
    scheduler: Scheduler,
    oracle: Oracle,
    now: Micros,
    token: u32,
    sides: Vec<Side>,
}

impl Pair {
    fn feed(&mut self, input: Input) -> Result<(), String> {
        self.oracle.before(&input);
        let mut out = Vec::new();
        self.scheduler.step(self.now, input, &mut out);
        self.scheduler.check()?;
        self.oracle.after(self.now, &out)?;
        for output in out {
            match output {
                Output::Dispatch { session, dispatch } => self.side(session).dispatches.push_back(dispatch),
                Output::Retract { session, handles } => self.side(session).orders.push_back(Order::Retract(handles)),
                Output::CancelAttempts { session, handles } => self.side(session).orders.push_back(Order::Cancel(handles)),
                Output::CloseSession { reason, .. } => return Err(format!("a session was closed: {reason}")),
                Output::Refused { message, .. } => return Err(message),
                _ => {}
            }
        }
        Ok(())
    }

    fn side(&mut self, session: SessionId) -> &mut Side {
        self.sides.iter_mut().find(|side| side.session == session).unwrap()
    }

    /// One step of a worker's machine, and what its agent does at once.
    fn work(&mut self, at: usize, input: worker::Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            self.sides[at].machine.step(self.now, input, &mut out);
            for output in out {
                match output {
                    worker::Output::Stage(serial) => inputs.push_back(worker::Input::Staged(serial)),
                    worker::Output::Spawn(serial) => self.sides[at].running.push(serial),
                    worker::Output::Terminate(serial) | worker::Output::Kill(serial) => {
                        self.sides[at].running.retain(|running| *running != serial);
                        inputs.push_back(worker::Input::Exited(serial, OutcomeClass::AppError));
                    }
                    // Outputs take a while: the room is free meanwhile and the end not reported.
                    worker::Output::Publish(serial) | worker::Output::Discard(serial, _) => self.sides[at].settling.push(serial),
                    worker::Output::Started(serial) => self.say(at, serial, None),
                    worker::Output::Finished(serial, class) => self.say(at, serial, Some(class)),
                    worker::Output::Retracted { given_back, kept } => self.sides[at].replies.push_back((given_back, kept)),
                    worker::Output::Forget(_) | worker::Output::Drained => {}
                }
            }
        }
    }

    fn say(&mut self, at: usize, serial: Serial, class: Option<OutcomeClass>) {
        let session = self.sides[at].session;
        let Dispatch { handle, attempt, task, .. } = self.sides[at].by_serial[&serial].clone();
        let kind = match class {
            None => EventKind::Started,
            Some(class) => {
                self.token += 1;
                self.oracle.report(self.token, Report { session, handle, attempt, class, genuine: true, result: Stored::None });
                EventKind::Finished(Finish {
                    class,
                    exit_code: None,
                    signalled: false,
                    wall: MILLISECOND,
                    cpu: MILLISECOND,
                    peak_memory_bytes: 1 << 20,
                    length: self.oracle.says_length(task).then_some(3),
                    token: self.token,
                    result: Stored::None,
                    missing: None,
                })
            }
        };
        self.sides[at].events.push_back(WorkerEvent { handle, attempt, kind });
    }

    fn act(&mut self, calm: bool) -> Result<(), String> {
        self.now += self.rng.below(3 * MILLISECOND);
        let at = self.rng.below(self.sides.len() as u64) as usize;
        let session = self.sides[at].session;
        match self.rng.below(6) {
            0 | 1 => {
                if let Some(dispatch) = self.sides[at].dispatches.pop_front() {
                    let shape = self.scheduler.shape(dispatch.shape).cloned().ok_or("a shape is not known")?;
                    let side = &mut self.sides[at];
                    side.machine.shape(dispatch.shape, shape);
                    side.next += 1;
                    let serial = Serial(side.next);
                    let (handle, attempt, shape) = (dispatch.handle, dispatch.attempt, dispatch.shape);
                    side.by_serial.insert(serial, dispatch);
                    let attempt = worker::Attempt { serial, handle, attempt, shape, timeout: 0, grace: SECOND };
                    self.work(at, worker::Input::Dispatch(attempt));
                }
            }
            2 => match self.sides[at].orders.pop_front() {
                Some(Order::Retract(handles)) => self.work(at, worker::Input::Retract(handles)),
                Some(Order::Cancel(handles)) => self.work(at, worker::Input::Cancel(handles)),
                None => {}
            },
            3 => {
                if !self.sides[at].running.is_empty() {
                    let which = self.rng.below(self.sides[at].running.len() as u64) as usize;
                    let serial = self.sides[at].running.swap_remove(which);
                    let fails = !calm && self.rng.chance(10);
                    let class = if fails { OutcomeClass::AppError } else { OutcomeClass::Succeeded };
                    self.work(at, worker::Input::Exited(serial, class));
                }
                if !self.sides[at].settling.is_empty() && self.rng.chance(60) {
                    let serial = self.sides[at].settling.remove(0);
                    self.work(at, worker::Input::Settled(serial, None));
                }
            }
            4 => {
                let most = self.sides[at].events.len().min(1 + self.rng.below(8) as usize);
                let events: Vec<WorkerEvent> = self.sides[at].events.drain(..most).collect();
                if !events.is_empty() {
                    self.feed(Input::Events { session, events })?;
                }
            }
            _ => {
                if let Some((given_back, kept)) = self.sides[at].replies.pop_front() {
                    self.feed(Input::RetractReply { session, given_back, kept })?;
                }
                for at in 0..self.sides.len() {
                    let session = self.sides[at].session;
                    self.feed(Input::Frame { session })?;
                }
                self.feed(Input::Tick)?;
            }
        }
        Ok(())
    }

    fn join(&mut self, number: u64) -> Result<(), String> {
        let mut capacity =
            Resources { milli_cpus: *self.rng.pick(&[2_000, 4_000]), memory_bytes: 8 << 30, gpus: 1, ..Resources::default() };
        let scratch = self.scheduler.names_mut().intern(super::specs::SCRATCH).ok_or("too many names")?;
        capacity.custom.push((scratch, 2));
        let session = SessionId(number);
        self.sides.push(Side {
            session,
            machine: worker::Worker::new(capacity.clone()),
            orders: VecDeque::new(),
            dispatches: VecDeque::new(),
            events: VecDeque::new(),
            replies: VecDeque::new(),
            by_serial: BTreeMap::new(),
            running: Vec::new(),
            settling: Vec::new(),
            next: 0,
        });
        let worker = WorkerSpec { name: format!("w{number}"), pool: "p".to_owned(), components: vec!["*".to_owned()], capacity };
        self.feed(Input::Join { session, worker })?;
        self.feed(Input::Attach { session, connection: Connection::Data })
    }

    fn play(seed: u64) -> Result<TransitionCounts, String> {
        let mut pair = Pair {
            rng: Rng::new(seed),
            scheduler: Scheduler::new(Config::standard(), 0),
            oracle: Oracle::new(false),
            now: 1,
            token: 0,
            sides: Vec::new(),
        };
        let spec = random_run(&mut pair.rng, pair.scheduler.names_mut(), 1);
        pair.feed(Input::Submit(Box::new(spec)))?;
        pair.join(1)?;
        for step in 0..200_000u32 {
            if pair.oracle.unfinished_runs().is_empty() {
                return Ok(pair.scheduler.counts().clone());
            }
            if step == 60 || step == 300 {
                pair.join(u64::from(step))?;
            }
            if step == 500 && pair.rng.chance(20) {
                pair.feed(Input::Cancel { run: RunId(1), group: None, index: None })?;
            }
            // Backoffs take seconds: time makes a jump now and then, shorter than any lease.
            if step % 200 == 199 {
                pair.now += 2 * SECOND;
            }
            pair.act(step > 2_000)?;
        }
        Err("the run did not end".to_owned())
    }
}

#[test]
fn the_scheduler_and_its_workers_agree() {
    let mut total = TransitionCounts::default();
    for seed in 1..=1_500 {
        total.add(&Pair::play(seed).unwrap_or_else(|what| panic!("seed {seed}: {what}")));
    }
    // Work was really stolen, and some of it too late.
    for event in [TaskEvent::GiveBack, TaskEvent::Keep, TaskEvent::Start] {
        let taken = total.of_task(TaskState::Retracting, event);
        assert!(taken >= 20, "{event:?} of what was asked back: {taken} times");
    }
}
