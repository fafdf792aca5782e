//! What the scheduler says, and what is made of it.

use std::time::Instant;

use scalable_core::ids::{Handle, MILLISECOND, Micros, ShapeId};
use scalable_core::resources::{Names, Resources};
use scalable_core::worker::{Attempt as Dispatched, Input, Serial};
use scalable_proto::v1::{self, DispatchBatch, scheduler_control, scheduler_data, worker_control};

use super::{Agent, Ended, Leaving, resources};
use crate::attempt::{Attempt, Order};
use crate::connection::Arrived;
use crate::link::Said;

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
            scheduler_control::Body::Retract(retract) => self.step(Input::Retract(handles(retract.handles))),
            scheduler_control::Body::Cancel(cancel) => self.step(Input::Cancel(handles(cancel.handles))),
            scheduler_control::Body::Release(release) => self.catalog.release(&release.runs),
            scheduler_control::Body::Drain(drain) => {
                tracing::info!(reason = %drain.reason, "the scheduler wants this worker drained");
                let own = self.options.drain_deadline.as_micros() as Micros;
                let wait = if drain.deadline_ms == 0 { own } else { drain.deadline_ms.saturating_mul(MILLISECOND) };
                self.step(Input::Drain { deadline: self.now().saturating_add(wait) });
            }
            scheduler_control::Body::Goodbye(goodbye) => self.dismissed(&goodbye.reason),
            // The link takes it.
            scheduler_control::Body::Welcome(_) => {}
            // Nothing is kept that could be dropped.
            scheduler_control::Body::Drop(_) => {}
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
            // Nothing is fetched from peers.
            scheduler_data::Body::Peer(_) => Ok(()),
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

    fn dispatch(&mut self, batch: DispatchBatch) -> Result<(), String> {
        let DispatchBatch { handle, group, index, attempt, shape, timeout_ms, task_id, fence, args_end: _, args: _ } = batch;
        let count = handle.len();
        let columns = [group.len(), index.len(), attempt.len(), shape.len(), timeout_ms.len(), task_id.len(), fence.len()];
        if columns.iter().any(|column| *column != count) {
            return Err("the columns of a dispatch do not fit together".to_owned());
        }
        for at in 0..count {
            let serial = Serial(self.next_serial);
            self.next_serial += 1;
            let (row, shape) = (Handle::from_u64(handle[at]), ShapeId(shape[at]));
            let request = self.machine.request(shape);
            let memory = request.map_or(0, |r| r.memory_bytes);
            let order = Order {
                handle: row,
                group: self.catalog.group(group[at]).cloned(),
                index: index[at],
                attempt: attempt[at],
                task_id: task_id[at],
                fence: fence[at],
                milli_cpus: request.map_or(0, |r| r.milli_cpus),
                memory_bytes: if memory == Resources::MEMORY_UNACCOUNTED { 0 } else { memory },
                objects: self.catalog.take_inputs(handle[at]),
            };
            let grace = order.group.as_ref().map_or(0, |group| group.grace);
            self.attempts.insert(serial, Attempt::new(order));
            let timeout = timeout_ms[at].saturating_mul(MILLISECOND);
            self.step(Input::Dispatch(Dispatched { serial, handle: row, attempt: attempt[at], shape, timeout, grace }));
        }
        Ok(())
    }
}
