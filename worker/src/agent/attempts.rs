//! What the machine wants done with attempts, and what comes of it: from helpers, the lane, the log writer and the watch.

use std::collections::VecDeque;
use std::time::{Instant, SystemTime};

use scalable_core::ids::Handle;
use scalable_core::messages::OutcomeClass;
use scalable_core::worker::{Input, Output, Serial};
use scalable_proto::v1::{self, worker_control};

use super::memory::{by_kernel, kills};
use super::{Agent, LEAVE_MAX, Leaving, Told};
use crate::attempt::{Attempt, Settle, command, marker};
use crate::job::{self, Prepare, Ready, Settled};
use crate::lane::{End, Job, LaneEvent, Stream, Which};
use crate::logs::Written;
use crate::options::MemoryLimit;
use crate::remote::Unready;
use crate::watch::{AGE, AGE_WITH_LIMIT};

impl Agent {
    /// The only way into the machine: does what it says, and tells it what came of that, until nothing follows.
    pub(super) fn step(&mut self, input: Input) {
        self.go_on(VecDeque::from([input]), Vec::new());
    }

    pub(super) fn go_on(&mut self, mut inputs: VecDeque<Input>, mut outputs: Vec<Output>) {
        loop {
            for output in outputs.drain(..) {
                self.act(output, &mut inputs);
            }
            if let Some(input) = inputs.pop_front() {
                self.machine.step(self.now(), input, &mut outputs);
            } else if self.machine.wants_calls() {
                self.calls(&mut outputs, |functions, cx| functions.act(cx));
            } else {
                return;
            }
        }
    }

    fn act(&mut self, output: Output, inputs: &mut VecDeque<Input>) {
        match output {
            Output::Stage(serial) => self.stage(serial, inputs),
            Output::Spawn(serial) => self.spawn(serial, inputs),
            Output::Terminate(serial) => self.lane.terminate(serial.0),
            Output::Kill(serial) => {
                if let Some(attempt) = self.attempts.get_mut(&serial) {
                    attempt.killed = true;
                }
                self.lane.kill(serial.0);
            }
            Output::Publish(serial) => self.settle(serial, Settle::Publish, inputs),
            Output::Discard(serial, class) => self.settle(serial, Settle::Discard(class), inputs),
            Output::Started(serial) => {
                if let Some(attempt) = self.attempts.get(&serial) {
                    self.batch.started(attempt.order.handle, attempt.order.attempt);
                }
            }
            Output::Finished(serial, class) => self.finished(serial, class),
            Output::Forget(serial) => drop(self.remove(serial)),
            Output::Retracted { given_back, kept } => {
                let raw = |handles: Vec<Handle>| handles.into_iter().map(Handle::to_u64).collect();
                let reply = v1::RetractReply { given_back: raw(given_back), kept: raw(kept) };
                self.link.send_control(worker_control::Body::RetractReply(reply));
            }
            Output::Drained => {
                // What only this worker has is copied first.
                let wait = if self.held.is_copied() { LEAVE_MAX } else { self.options.drain_deadline.max(LEAVE_MAX) };
                self.leaving = Leaving::Reports(Instant::now() + wait);
            }
        }
    }

    pub(super) fn stage(&mut self, serial: Serial, inputs: &mut VecDeque<Input>) {
        let group = self.attempts.get(&serial).and_then(|attempt| attempt.order.group.clone());
        if let Some(group) = group.filter(|group| group.refusal.is_none())
            && !self.is_decided(serial, &group)
        {
            return;
        }
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        let refusal = match &attempt.order.group {
            None => Some("the scheduler never announced its group".to_owned()),
            Some(group) => group.refusal.clone(),
        };
        let (Some(group), Some(place), None) = (attempt.order.group.clone(), attempt.place(), &refusal) else {
            attempt.message = refusal.unwrap_or_default();
            return inputs.push_back(Input::StageFailed(serial, OutcomeClass::InfraStart));
        };
        let limit = attempt.order.memory_bytes;
        let cgroup = self.cgroups.as_ref().filter(|_| limit > 0 && !group.template.stub);
        if !group.needs_directory && cgroup.is_none() && group.run.takes_over.is_none() {
            if !group.template.stub {
                match command(&attempt.order, &group, None) {
                    Ok(made) => attempt.command = Some(made),
                    Err(why) => {
                        attempt.message = why;
                        return inputs.push_back(Input::StageFailed(serial, OutcomeClass::InfraStart));
                    }
                }
            }
            return inputs.push_back(Input::Staged(serial));
        }
        let prepare = Prepare {
            key: group.run.takes_over.as_ref().and_then(|_| attempt.key()),
            order: attempt.order.clone(),
            cgroup: cgroup.map(|cgroups| (cgroups.clone(), serial.0.to_string(), limit)),
            cgroup_required: self.options.memory_limit == MemoryLimit::Cgroup,
            remote: self.remote.clone(),
            group,
            place,
        };
        let told = self.told.clone();
        let reads_elsewhere = prepare.order.objects.iter().flatten().any(|object| object.held);
        let helpers = if prepare.group.run.is_shared() && !reads_elsewhere { &self.helpers } else { &self.bringers };
        helpers.run(move || drop(told.send(Told::Ready(serial, Box::new(job::prepare(&prepare))))));
    }

    fn spawn(&mut self, serial: Serial, inputs: &mut VecDeque<Input>) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        attempt.began = Some((SystemTime::now(), Instant::now()));
        attempt.kills_before = kills(self.container.as_deref());
        let prepared = attempt.command.as_mut().and_then(|command| command.prepared.take());
        let Some(prepared) = prepared else {
            // A stub, or outputs that were taken over: there is nothing to execute.
            attempt.over = attempt.began.map(|(_, instant)| instant);
            attempt.end = Some(End::default());
            return inputs.push_back(Input::Exited(serial, OutcomeClass::Succeeded));
        };
        let (stdin, stdout, stderr) = match attempt.staged.as_deref_mut() {
            Some(staged) => (staged.stdin.take(), staged.stdout.take(), staged.stderr.take()),
            None => (None, None, None),
        };
        let stream = |file: Option<std::fs::File>| file.map_or(Stream::Capture, Stream::File);
        let job = Job {
            serial: serial.0,
            prepared,
            stdin,
            stdout: stream(stdout),
            stderr: stream(stderr),
            cgroup: attempt.cgroup.as_ref().and_then(|(_, procs)| procs.try_clone().ok()),
            marker: marker(&attempt.order),
            fourth: None,
        };
        if let Err(error) = self.lane.start(job) {
            attempt.message =
                format!("no process could be started: {error}; a limit of the system (ulimit -u, -n, pids of the cgroup)?");
            attempt.began = None;
            return inputs.push_back(Input::Exited(serial, OutcomeClass::InfraStart));
        }
        let by_watch = attempt.order.memory_bytes > 0 && attempt.cgroup.is_none();
        // A container that is shared is filled in less than a tenth of a second.
        let age = if by_watch || self.container.is_some() { AGE_WITH_LIMIT } else { AGE };
        let due = Instant::now() + age;
        // Kept in order: the two ages are constants, so only few are passed.
        let at = self.unwatched.iter().rposition(|(at, _)| *at <= due).map_or(0, |at| at + 1);
        self.unwatched.insert(at, (due, serial));
    }

    fn settle(&mut self, serial: Serial, what: Settle, inputs: &mut VecDeque<Input>) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        if attempt.unwritten > 0 {
            // Told again when the last byte of its output is in its file.
            attempt.settle = Some(what);
            return;
        }
        attempt.settle = None;
        let cgroup = attempt.cgroup.take().map(|(cgroup, _)| cgroup);
        let staged = attempt.staged.take();
        let (Some(group), Some(place)) = (attempt.order.group.clone(), attempt.place()) else {
            return inputs.push_back(Input::Settled(serial, None));
        };
        let logs = !group.run.is_shared() && attempt.tails.iter().any(|tail| tail.total > 0);
        if staged.is_none() && cgroup.is_none() && !logs {
            return inputs.push_back(Input::Settled(serial, None));
        }
        let (told, remote) = (self.told.clone(), self.remote.clone());
        self.helpers.run(move || {
            let settled = job::settle(&group, &place, what, staged, cgroup, &remote);
            drop(told.send(Told::Settled(serial, Box::new(settled))));
        });
    }

    fn finished(&mut self, serial: Serial, class: OutcomeClass) {
        let Some(attempt) = self.remove(serial) else { return };
        let (handle, number) = (attempt.order.handle, attempt.order.attempt);
        if class == OutcomeClass::Succeeded && attempt.is_brief() {
            return self.batch.brief(handle, number, attempt.brief(self.agent_memory));
        }
        let limit = match self.options.memory_limit {
            MemoryLimit::None => 0,
            _ => attempt.order.memory_bytes,
        };
        let report = attempt.report(class, limit, self.agent_memory);
        self.hold(&attempt, &report);
        if report.class() == v1::OutcomeClass::InfraStart {
            tracing::warn!(task = %attempt.name(), attempt = number, message = %report.message, "could not be run");
        }
        self.batch.report(handle, number, report);
    }

    fn remove(&mut self, serial: Serial) -> Option<Attempt> {
        let attempt = self.attempts.remove(&serial)?;
        if attempt.tails.iter().any(|tail| tail.total > 0) {
            self.writer.close(serial.0);
        }
        Some(attempt)
    }

    /// True when the lane had something to say.
    pub(super) fn poll_lane(&mut self) -> bool {
        let mut events = std::mem::take(&mut self.lane_events);
        let more = self.lane.poll(&mut events);
        self.lane_events = events;
        self.take_lane_events();
        more
    }

    pub(super) fn take_lane_events(&mut self) {
        let mut events = std::mem::take(&mut self.lane_events);
        for event in events.drain(..) {
            match event {
                LaneEvent::Socket { serial } => self.functions(|functions, cx| functions.socket_ready(cx, serial)),
                LaneEvent::Output { serial, which, bytes } if self.functions.has_host(serial) => {
                    self.functions.output(serial, which, &bytes);
                    // Only its end is kept: more may be read.
                    self.lane.written(serial, which, bytes.len());
                }
                LaneEvent::Ended { serial, end } if self.functions.has_host(serial) => {
                    self.watch.forget(serial);
                    self.guarded_ended(serial);
                    self.functions(|functions, cx| functions.host_ended(cx, serial, &end));
                }
                LaneEvent::Output { serial, which, bytes } => {
                    let Some(attempt) = self.attempts.get_mut(&Serial(serial)) else { continue };
                    attempt.tail(which).push(&bytes);
                    let Some(place) = attempt.place() else { continue };
                    attempt.unwritten += bytes.len();
                    let name = if which == Which::Stdout { "stdout" } else { "stderr" };
                    self.writer.write(serial, which, place.log(name), bytes);
                }
                LaneEvent::Ended { serial, end } => self.process_ended(Serial(serial), end),
            }
        }
        self.lane_events = events;
    }

    fn process_ended(&mut self, serial: Serial, end: End) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        let now = Instant::now();
        attempt.over = Some(now);
        attempt.sampled_now = 0;
        attempt.cgroup_seen = attempt.cgroup.as_ref().map(|(cgroup, _)| cgroup.seen());
        if !attempt.killed {
            attempt.of_container = by_kernel(self.container.as_deref(), &end, attempt.kills_before);
        }
        let class = attempt.class_of_end(&end);
        attempt.end = Some(end);
        if attempt.began.is_some_and(|(_, began)| now - began >= AGE_WITH_LIMIT) {
            self.watch.forget(serial.0);
        }
        self.guarded_ended(serial.0);
        self.step(Input::Exited(serial, class));
    }

    pub(super) fn hear(&mut self, told: Told) {
        match told {
            Told::Ready(serial, ready) => self.ready(serial, *ready),
            Told::Looked(run) => self.looked(run),
            Told::Settled(serial, settled) => {
                let Some(attempt) = self.attempts.get_mut(&serial) else { return };
                let Settled { outcome, logs, kept, staged } = *settled;
                (attempt.kept, attempt.staged, attempt.logs) = (kept, staged, logs);
                let class = match outcome {
                    Ok(outputs) => {
                        if attempt.taken_over_from.is_empty() {
                            attempt.outputs = outputs;
                        }
                        None
                    }
                    Err(unpublished) => {
                        attempt.message = unpublished.message;
                        Some(unpublished.class)
                    }
                };
                self.step(Input::Settled(serial, class));
            }
            Told::Host(serial, prepared) => self.functions(|functions, cx| functions.prepared(cx, serial, *prepared)),
            Told::Brought(call, serial, brought) => {
                self.functions(|functions, cx| functions.brought(cx, call, serial, brought));
            }
            Told::Fetched(object) => self.functions(|functions, cx| functions.fetched(cx, *object)),
            Told::Segment(serial, number, how) => {
                self.functions(|functions, cx| functions.segment_released(cx, serial, number, how));
            }
            Told::Look(look) if self.functions.has_host(look.serial) => self.functions(|functions, cx| functions.look(cx, look)),
            Told::Look(look) => {
                let serial = Serial(look.serial);
                let Some(attempt) = self.attempts.get_mut(&serial).filter(|a| a.over.is_none()) else { return };
                attempt.sampled_peak = attempt.sampled_peak.max(look.peak_bytes);
                attempt.sampled_now = look.now_bytes;
                if look.over {
                    self.step(Input::OverMemory(serial));
                }
            }
            Told::Near(measured) => self.container_near(measured),
            Told::Log(chunk) => self.tell_log(chunk),
            Told::Written(Written { serial, which, bytes }) => {
                self.lane.written(serial, which, bytes);
                let Some(attempt) = self.attempts.get_mut(&Serial(serial)) else { return };
                attempt.unwritten = attempt.unwritten.saturating_sub(bytes);
                if attempt.unwritten == 0
                    && let Some(what) = attempt.settle.take()
                {
                    let mut inputs = VecDeque::new();
                    self.settle(Serial(serial), what, &mut inputs);
                    for input in inputs {
                        self.step(input);
                    }
                }
            }
        }
    }

    fn ready(&mut self, serial: Serial, ready: Result<Ready, Unready>) {
        let Some(attempt) = self.attempts.get_mut(&serial) else { return };
        match ready {
            Ok(Ready { staged, command, cgroup, taken }) => {
                (attempt.staged, attempt.command, attempt.cgroup) = (staged, command, cgroup);
                if let Some(taken) = taken {
                    (attempt.outputs, attempt.taken_over_from) = (taken.outputs, taken.from);
                }
                self.step(Input::Staged(serial));
            }
            Err(Unready { class, message, missing }) => {
                (attempt.message, attempt.missing) = (message, missing);
                self.step(Input::StageFailed(serial, class));
            }
        }
    }
}
