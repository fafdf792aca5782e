//! Calls on their way to hosts: how many at a time, and how they are written.

use std::io;
use std::sync::Arc;

use scalable_core::messages::OutcomeClass;
use scalable_core::worker::calls::{CallId, LaneId};
use scalable_lane::agent::{self, INPUTS_MAX, Input, Object, VALUES_INLINE_MAX};
use scalable_lane::frame::CallHead;
use scalable_lane::host::Parameter;
use scalable_lane::memory::Lent;
use scalable_proto::v1::{FunctionCall, input_source::Select, parameter, task_template};
use scalable_template::Axes;

use super::host::{Fate, Host, Number, Stage};
use super::objects::Found;
use super::payload::Payload;
use super::{Cx, Functions, PASS_EVERY, failure};
use crate::catalog::Group;

/// Begins the sentence of a call whose function the program does not have, or has with other types: no attempt can succeed.
pub const VERSION_SKEW: &str = "version skew: ";

/// Why a call could not be written.
struct Unwritten {
    class: OutcomeClass,
    message: String,
}

impl Functions {
    /// Gives every host of a lane what its slots can take.
    pub(super) fn fill_lane(&mut self, cx: &mut Cx<'_>, lane: LaneId) {
        let Some(row) = self.lanes.get(&lane) else { return };
        // Usually one.
        for nth in 0..row.hosts.len() {
            let Some(serial) = self.lanes.get(&lane).and_then(|row| row.hosts.get(nth)).copied() else { return };
            self.fill(cx, serial);
        }
    }

    /// Gives a host what its slots can take, and gives up slots for which there is nothing.
    pub(super) fn fill(&mut self, cx: &mut Cx<'_>, serial: u64) {
        let Some(host) = self.hosts.get_mut(&serial).filter(|host| host.stage == Stage::Ready && host.slots > 0) else { return };
        match host.send_pending() {
            Ok(true) => {}
            Ok(false) => return self.await_room(cx, serial),
            // Its end is heard of in a moment.
            Err(_) => return,
        }
        loop {
            let Some(host) = self.hosts.get_mut(&serial) else { return };
            let Some(lane) = self.lanes.get(&host.lane) else { return };
            let ahead = if host.stuck { 1 } else { lane.ahead() };
            let most = ahead.saturating_mul(host.slots);
            let room = most.saturating_sub(host.outstanding).min(host.free.len() as u32);
            // Topped up when half of it is gone: frames stay large.
            if room == 0 || (host.outstanding > host.slots && room < most / 2) {
                return;
            }
            if cx.batch.is_long() {
                // Goes on when the scheduler has taken some of it.
                self.held_back = true;
                return;
            }
            let (id, fresh, piece) = (host.lane, host.fresh, lane.piece());
            let mut fed = std::mem::take(&mut self.fed);
            fed.clear();
            cx.machine.feed(id, room, fresh, &mut fed);
            let done = fed.is_empty() || self.write(cx, serial, &fed, piece);
            let empty = fed.is_empty();
            self.fed = fed;
            if empty {
                return self.give_slots_up(cx, serial);
            }
            if done {
                return self.await_room(cx, serial);
            }
        }
    }

    /// Goes on where too much waited to be told to the scheduler.
    pub fn go_on(&mut self, cx: &mut Cx<'_>) {
        if std::mem::take(&mut self.held_back) {
            let serials: Vec<u64> = self.hosts.keys().copied().collect();
            for serial in serials {
                self.fill(cx, serial);
            }
            self.act(cx);
        }
    }

    /// True when [`Functions::go_on`] has something to do as soon as there is room.
    pub fn is_held_back(&self) -> bool {
        self.held_back
    }

    /// Slots of a host for which nothing waits and in which nothing is.
    fn give_slots_up(&mut self, cx: &mut Cx<'_>, serial: u64) {
        let Some(host) = self.hosts.get_mut(&serial) else { return };
        let (lane, free) = (host.lane, host.slots.saturating_sub(host.outstanding));
        // Those that were never fed come last: a slot that has had its work is the one that is over.
        let fresh = host.fresh.min(free);
        host.slots -= free;
        host.fresh -= fresh;
        if host.slots == 0 {
            host.since = cx.instant;
            host.stuck = false;
        }
        for slot in 0..free {
            cx.machine.slot_free(lane, slot < fresh, cx.now, cx.out);
        }
    }

    /// Hears of it when a socket takes more.
    pub(super) fn await_room(&mut self, cx: &mut Cx<'_>, serial: u64) {
        let Some(host) = self.hosts.get(&serial) else { return };
        if let Some(fd) = host.socket_fd() {
            cx.processes.watch_writable(serial, fd, !host.pending.is_empty());
        }
    }

    /// Writes calls to a host. True when its socket takes no more.
    fn write(&mut self, cx: &mut Cx<'_>, serial: u64, calls: &[CallId], piece: u32) -> bool {
        let mut unwritten = Vec::new();
        if let Some(host) = self.hosts.get_mut(&serial) {
            host.fresh = 0;
            if host.slots != host.allowed && host.outstanding + calls.len() as u32 > host.slots.min(host.allowed) {
                host.allowed = host.slots;
                host.pending.push_back(agent::slots(host.slots));
            }
            for &call in calls {
                let Some(payload) = self.payloads.get(call.batch as usize).and_then(Option::as_ref) else { continue };
                if let Err(why) = write_one(host, call, payload) {
                    unwritten.push((call, why));
                }
                if host.calls.is_full() {
                    let frame = host.calls.finish(piece);
                    host.pending.push_back(frame);
                }
            }
            if host.calls.count() > 0 {
                let frame = host.calls.finish(piece);
                host.pending.push_back(frame);
            }
            if host.outstanding > 0 {
                self.pass_due.get_or_insert(cx.instant + PASS_EVERY);
            }
        }
        for (call, Unwritten { class, message }) in unwritten {
            if let Some(over) = cx.machine.call_over(call, cx.out) {
                let report = failure(over.cause.unwrap_or(class), message);
                self.report(cx, &over, report);
            }
        }
        let Some(host) = self.hosts.get_mut(&serial) else { return true };
        !matches!(host.send_pending(), Ok(true))
    }

    /// The socket of a host can be read or written, or is closed.
    pub fn socket_ready(&mut self, cx: &mut Cx<'_>, serial: u64) {
        self.receive(cx, serial);
        let waits = self.hosts.get(&serial).is_some_and(|host| !host.pending.is_empty());
        if waits {
            self.fill(cx, serial);
            self.await_room(cx, serial);
        }
        self.act(cx);
    }

    /// Looks at what threads execute: tells of calls that take long, and takes back what waits behind them.
    pub(super) fn pass(&mut self, cx: &mut Cx<'_>) {
        self.pass_due = None;
        let serials: Vec<u64> = self.hosts.iter().filter(|(_, host)| host.outstanding > 0).map(|(serial, _)| *serial).collect();
        if !serials.is_empty() {
            self.pass_due = Some(cx.instant + PASS_EVERY);
        }
        for serial in serials {
            let Some(host) = self.hosts.get_mut(&serial) else { continue };
            let mut long = Vec::new();
            for thread in 0..host.threads {
                let executes = host.shared.as_ref().and_then(|shared| shared.executes(thread));
                let seen = &mut host.seen[thread as usize];
                match (executes, *seen) {
                    (Some((number, finished)), Some((before, had_finished, since)))
                        if (number, finished) == (before, had_finished) =>
                    {
                        long.push((number, since));
                    }
                    (Some((number, finished)), _) => *seen = Some((number, finished, cx.instant)),
                    (None, _) => *seen = None,
                }
            }
            let busy = long.len() as u32;
            for (number, since) in long {
                let Some(Number::Live(call)) = host.numbers.get(number as usize).copied() else { continue };
                let ago = cx.instant.saturating_duration_since(since).as_micros() as u64;
                if let Some(over) = cx.machine.call_seen(call, cx.now.saturating_sub(ago)) {
                    cx.batch.started(over.handle, over.attempt);
                }
            }
            // Every slot is busy for long and calls wait behind: others may have room for them, and if not, nothing is lost.
            let stuck = busy > 0 && busy >= host.slots;
            if stuck && host.outstanding > host.slots {
                host.stuck = true;
                self.take_back_from(cx, serial);
                let lane = self.hosts.get(&serial).map(|host| host.lane);
                if let Some(lane) = lane {
                    cx.machine.wake(cx.now, cx.out);
                    self.fill_lane(cx, lane);
                }
            }
        }
        self.act(cx);
    }
}

/// Writes one call into the host's frame.
fn write_one(host: &mut Host, call: CallId, payload: &Payload) -> Result<(), Unwritten> {
    let (number, group) = payload.group(call.at);
    let known = match host.groups.get(&number) {
        Some(known) => known.clone(),
        None => {
            let announced = announce(host, number, group);
            host.groups.insert(number, announced.clone());
            announced
        }
    };
    known.map_err(|message| Unwritten { class: OutcomeClass::AppError, message })?;
    let at = call.at as usize;
    let values = payload.args.get(call.at);
    let Some(free) = host.free.pop() else {
        let message = "its lane host has no number left for it".to_owned();
        return Err(Unwritten { class: OutcomeClass::InfraStart, message });
    };
    let head = CallHead {
        call: free,
        group: number,
        index: payload.index[at],
        attempt: payload.attempt[at],
        task_id: payload.task_id[at],
        values: 0,
        inputs: 0,
    };
    let read = payload.values_of(call.at).map(|at| payload.values.get(at));
    let any = |host: &mut Host, inputs: Vec<Input<'_>>| {
        host.calls.push_any(head, values, &inputs).map_err(|error: io::Error| Unwritten {
            class: OutcomeClass::InfraStart,
            message: format!("its arguments could not be put into shared memory: {error}"),
        })
    };
    let written = if read.len() > 0 {
        match host.calls.push_small(head, values, read.clone()) {
            true => Ok(Vec::new()),
            false => any(host, read.map(|bytes| Input { many: false, objects: vec![Object::Here(bytes)] }).collect()),
        }
    } else if group.template.inputs.is_empty() && values.len() <= VALUES_INLINE_MAX {
        host.calls.push(head, values);
        Ok(Vec::new())
    } else {
        let found = payload.inputs.get(&call.at).map(|inputs| inputs.found.as_slice()).unwrap_or_default();
        read_inputs(group, found).and_then(|inputs| any(host, inputs))
    };
    match written {
        Ok(before) => {
            host.pending.extend(before);
            if let Some(shared) = &host.shared {
                shared.queue(free);
            }
            host.numbers[free as usize] = Number::Live(call);
            host.outstanding += 1;
            Ok(())
        }
        Err(why) => {
            host.free.push(free);
            Err(why)
        }
    }
}

/// Tells a host of a group, if it has its function as the group wants it.
fn announce(host: &mut Host, number: u32, group: &Group) -> Result<(), String> {
    let Some(task_template::Command::Function(function)) = &group.template.command else {
        return Err("it is no function".to_owned());
    };
    let FunctionCall { name, codec, signature, parameters, .. } = function;
    let Some(announced) = host.program.functions.get(name) else {
        return Err(format!(
            "{VERSION_SKEW}the program on this worker has no task function {name} (it has {}); build it from the same source as the \
             program that submits",
            host.program.functions.len()
        ));
    };
    if announced.codec != *codec {
        return Err(format!(
            "{VERSION_SKEW}the program on this worker encodes {name} as {}, the program that submits as {codec}; build both against \
             the same release",
            announced.codec
        ));
    }
    if !signature.is_empty() && announced.signature[..] != signature[..] {
        return Err(format!(
            "{VERSION_SKEW}argument or result types of {name} differ between the program on this worker and the one that submits; \
             build both from the same source"
        ));
    }
    let parameters: Vec<Parameter> = parameters
        .iter()
        .map(|parameter| match parameter.kind {
            Some(parameter::Kind::Input(input)) => Parameter::Input(input),
            _ => Parameter::Value,
        })
        .collect();
    let function = announced.number;
    host.pending.push_back(agent::group(number, function, &group.run.name, &group.name, &parameters));
    Ok(())
}

/// The inputs of a call, whose objects are all here.
fn read_inputs<'a>(group: &Group, found: &'a [Vec<Option<Found>>]) -> Result<Vec<Input<'a>>, Unwritten> {
    let infra = |message: String| Unwritten { class: OutcomeClass::InfraStart, message };
    if group.template.inputs.len() > INPUTS_MAX {
        return Err(infra(format!("a function has more than {INPUTS_MAX} inputs")));
    }
    let mut inputs = Vec::with_capacity(group.template.inputs.len());
    for (ordinal, input) in group.template.inputs.iter().enumerate() {
        let select = input.source.as_ref().and_then(|source| source.select.as_ref());
        let many = match select {
            Some(Select::All(_)) => true,
            Some(Select::Projection(projection)) => Axes::new(projection).map_or(true, |axes| axes.count() > 1),
            Some(Select::Index(_) | Select::Element(_)) | None => false,
        };
        let found = found.get(ordinal).map(Vec::as_slice).unwrap_or_default();
        let objects: Vec<Object<'_>> = found
            .iter()
            .flatten()
            .map(|found| match found {
                Found::Here(bytes) => Object::Here(bytes),
                Found::Kept(kept) => Object::Memory(kept.clone() as Arc<dyn Lent>),
            })
            .collect();
        if !many && objects.len() != 1 {
            return Err(infra(format!("input {ordinal}: the scheduler named {} objects where one is read", objects.len())));
        }
        inputs.push(Input { many, objects });
    }
    Ok(inputs)
}

impl Functions {
    /// The host broke the protocol: it is ended, and what it executed has that to say.
    pub(super) fn broken(&mut self, cx: &mut Cx<'_>, serial: u64, why: String) {
        tracing::warn!(why, "a lane host is ended");
        self.end_host(cx, serial, Fate::Broken(why));
        cx.processes.kill(serial);
    }
}
