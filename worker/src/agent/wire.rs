//! What the scheduler says, and what is made of it.

use std::collections::VecDeque;
use std::time::Instant;

use scalable_core::ids::{Handle, MILLISECOND, Micros, ShapeId};
use scalable_core::resources::{Names, Resources};
use scalable_core::worker::{Attempt as Dispatched, Input, Serial};
use scalable_proto::v1::{self, DispatchBatch, scheduler_control, scheduler_data, worker_control};

use super::{Agent, Ended, Leaving, resources};
use crate::attempt::{Attempt, Order};
use crate::connection::Arrived;
use crate::link::Said;

/// Columns of a dispatch that stand for more than they hold: one entry for all, or nothing for what follows from the others.
fn spread(batch: &mut DispatchBatch) {
    fn one_for_all<T: Copy>(column: &mut Vec<T>, count: usize) {
        if let [value] = column[..] {
            column.resize(count, value);
        }
    }
    let count = batch.handle.len();
    one_for_all(&mut batch.group, count);
    one_for_all(&mut batch.attempt, count);
    one_for_all(&mut batch.shape, count);
    one_for_all(&mut batch.timeout_ms, count);
    if batch.task_id.is_empty() {
        batch.task_id =
            batch.group.iter().zip(&batch.index).map(|(group, index)| u64::from(*group) << 32 | u64::from(*index)).collect();
    }
    if batch.fence.is_empty() {
        batch.fence.resize(count, 0);
    }
}

impl Agent {
    pub(super) fn arrived(&mut self, arrived: Arrived) {
        let mut said = Vec::new();
        self.link.arrived(arrived, Instant::now(), &mut said);
        for said in said {
            match said {
                Said::NewSession => {
                    self.begin_anew();
                    if self.machine.is_draining() && self.leaving == Leaving::No {
                        let drain = v1::Drain { deadline_ms: 0, reason: "the worker drains".to_owned() };
                        self.link.send_control(worker_control::Body::Draining(drain));
                    }
                }
                Said::Welcome { object_key, store_address } => self.functions.objects().welcome(&object_key, &store_address),
                Said::Resumed => tracing::info!("the session goes on"),
                Said::Control(body) => self.control(body),
                Said::Data(body) => self.data(body),
                Said::Fatal(why) => self.end(Ended::Badly(why)),
            }
        }
    }

    fn control(&mut self, body: scheduler_control::Body) {
        let handles = |raw: Vec<u64>| raw.into_iter().map(Handle::from_u64).collect();
        match body {
            scheduler_control::Body::Retract(retract) => {
                let handles: Vec<Handle> = handles(retract.handles);
                self.functions(|functions, cx| functions.take_back(cx, &handles));
                self.step(Input::Retract(handles));
            }
            scheduler_control::Body::Cancel(cancel) => self.step(Input::Cancel(handles(cancel.handles))),
            scheduler_control::Body::Release(release) => {
                if !release.runs.is_empty() {
                    self.functions(|functions, cx| functions.release(cx, &release.runs));
                    self.release_held(&release.runs);
                    self.catalog.release(&release.runs);
                }
                if !release.groups.is_empty() {
                    let mut groups = release.groups;
                    groups.sort_unstable();
                    self.functions(|functions, _| functions.forget_groups(&groups));
                    self.catalog.forget_groups(&groups);
                }
            }
            scheduler_control::Body::Drain(drain) => {
                tracing::info!(reason = %drain.reason, "the scheduler wants this worker drained");
                let own = self.options.drain_deadline.as_micros() as Micros;
                let wait = if drain.deadline_ms == 0 { own } else { drain.deadline_ms.saturating_mul(MILLISECOND) };
                self.begin_drain(self.now().saturating_add(wait));
            }
            scheduler_control::Body::Goodbye(goodbye) => self.dismissed(&goodbye.reason),
            // The link takes it.
            scheduler_control::Body::Welcome(_) => {}
            scheduler_control::Body::Drop(drop) => {
                for (group, index) in drop.group.into_iter().zip(drop.index) {
                    self.functions.objects().drop_element(group, index);
                    self.drop_held(group, index);
                }
            }
            scheduler_control::Body::Stored(stored) => self.stored(&stored),
            scheduler_control::Body::ReadLog(asked) => self.read_log(asked),
        }
    }

    /// The scheduler ended the session. One that was given up while it could not be heard begins a new one.
    fn dismissed(&mut self, reason: &str) {
        tracing::info!(reason, "the scheduler says goodbye");
        self.begin_anew();
        if reason.contains("violation") {
            self.end(Ended::Badly(format!("the scheduler ended the session: {reason}")));
        } else if ["lost", "superseded", "silent"].iter().any(|word| reason.contains(word)) {
            self.link.forget(Instant::now());
        } else {
            self.end(Ended::Well(format!("the scheduler said goodbye: {reason}")));
        }
    }

    fn data(&mut self, body: scheduler_data::Body) {
        let taken = match body {
            scheduler_data::Body::Run(run) => self.catalog.announce_run(run).map_err(|e| e.to_string()),
            scheduler_data::Body::Group(group) => self.catalog.announce_group(group).map_err(|e| e.to_string()),
            scheduler_data::Body::Input(chunk) => self.catalog.input(chunk).map_err(|e| e.to_string()),
            scheduler_data::Body::Shape(shape) => self.shape(shape),
            scheduler_data::Body::Dispatch(batch) => self.dispatch(batch),
            // The link takes it.
            scheduler_data::Body::Bound(_) => Ok(()),
            scheduler_data::Body::Keep(keep) => {
                self.functions(|functions, cx| functions.keep_objects(cx, &keep.objects));
                Ok(())
            }
            scheduler_data::Body::Peer(peer) => {
                self.functions.objects().peer(peer.peer, peer.address, peer.host);
                Ok(())
            }
        };
        if let Err(why) = taken {
            // Both sides' books differ: a new session makes them equal.
            tracing::error!(why, "the scheduler broke the protocol: a new session begins");
            self.link.forget(Instant::now());
            self.begin_anew();
        }
    }

    fn shape(&mut self, shape: v1::AnnounceShape) -> Result<(), String> {
        let wanted = resources(&shape.resources.unwrap_or_default(), &mut self.names, false);
        let wanted = wanted.ok_or_else(|| format!("more than {} custom resources", Names::MAX))?;
        match self.machine.shape(ShapeId(shape.shape), wanted) {
            true => Ok(()),
            false => Err(format!("shape {} was announced again with other figures", shape.shape)),
        }
    }

    fn dispatch(&mut self, mut batch: DispatchBatch) -> Result<(), String> {
        spread(&mut batch);
        let DispatchBatch { handle, group, index, attempt, shape, timeout_ms, task_id, fence, .. } = &batch;
        let count = handle.len();
        let columns = [group.len(), index.len(), attempt.len(), shape.len(), timeout_ms.len(), task_id.len(), fence.len()];
        if columns.iter().any(|column| *column != count) {
            return Err("the columns of a dispatch do not fit together".to_owned());
        }
        // Stretches of one group and shape: calls stay such a stretch, commands become rows.
        let (mut first, mut calls) = (0, Vec::new());
        while first < count {
            let same = |at: &usize| group[*at] == group[first] && shape[*at] == shape[first];
            let end = (first + 1..count).find(|at| !same(at)).unwrap_or(count);
            if self.catalog.group(group[first]).is_some_and(|group| group.is_function) {
                calls.push((first as u32, (end - first) as u32));
            } else {
                (first..end).for_each(|at| self.dispatch_command(&batch, at));
            }
            first = end;
        }
        if calls.is_empty() {
            return Ok(());
        }
        let mut outputs = Vec::new();
        let taken = self.calls(&mut outputs, |functions, cx| functions.dispatch(cx, batch, &calls));
        self.go_on(VecDeque::new(), outputs);
        taken
    }

    fn dispatch_command(&mut self, batch: &DispatchBatch, at: usize) {
        let serial = Serial(self.next_serial);
        self.next_serial += 1;
        let (row, shape) = (Handle::from_u64(batch.handle[at]), ShapeId(batch.shape[at]));
        let request = self.machine.request(shape);
        let memory = request.map_or(0, |r| r.memory_bytes);
        let order = Order {
            handle: row,
            group: self.catalog.group(batch.group[at]).cloned(),
            index: batch.index[at],
            attempt: batch.attempt[at],
            task_id: batch.task_id[at],
            fence: batch.fence[at],
            milli_cpus: request.map_or(0, |r| r.milli_cpus),
            memory_bytes: if memory == Resources::MEMORY_UNACCOUNTED { 0 } else { memory },
            objects: self.catalog.take_inputs(batch.handle[at]),
        };
        let grace = order.group.as_ref().map_or(0, |group| group.grace);
        self.attempts.insert(serial, Attempt::new(order));
        let timeout = batch.timeout_ms[at].saturating_mul(MILLISECOND);
        self.step(Input::Dispatch(Dispatched { serial, handle: row, attempt: batch.attempt[at], shape, timeout, grace }));
    }
}
