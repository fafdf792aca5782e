//! The reactor's way to functions: what they need of the agent, and what follows for processes.

use std::collections::VecDeque;
use std::time::Instant;

use scalable_core::worker::Output;

use super::{Agent, Told};
use scalable_core::worker::calls::CallId;
use scalable_store::Released;

use crate::function::{Brought, Cx, Fetched, Functions, PreparedHost, TellBrought, TellFetched, TellPrepared, TellReleased};

impl Agent {
    /// Does something with functions, and what follows from it.
    pub(super) fn functions(&mut self, what: impl FnOnce(&mut Functions, &mut Cx<'_>)) {
        let mut outputs = Vec::new();
        self.calls(&mut outputs, what);
        self.go_on(VecDeque::new(), outputs);
    }

    /// Does something with functions; what the machine wants done with processes because of it is in `outputs`.
    pub(super) fn calls<R>(&mut self, outputs: &mut Vec<Output>, what: impl FnOnce(&mut Functions, &mut Cx<'_>) -> R) -> R {
        let (told, watch) = (&self.told, &self.watch);
        let prepared = |serial: u64| {
            let told = told.clone();
            let tell = move |found: Result<PreparedHost, String>| drop(told.send(Told::Host(serial, Box::new(found))));
            Box::new(tell) as TellPrepared
        };
        let brought = |call: CallId, serial: u64| {
            let told = told.clone();
            let tell = move |objects: Brought| drop(told.send(Told::Brought(call, serial, objects)));
            Box::new(tell) as TellBrought
        };
        let fetched = || {
            let told = told.clone();
            let tell = move |object: Fetched| drop(told.send(Told::Fetched(Box::new(object))));
            Box::new(tell) as TellFetched
        };
        let released = |serial: u64, number: u32| {
            let told = told.clone();
            let tell = move |how: Released| drop(told.send(Told::Segment(serial, number, how)));
            Box::new(tell) as TellReleased
        };
        let now = self.born.elapsed().as_micros() as u64;
        let mut cx = Cx {
            machine: &mut self.machine,
            processes: &mut self.lane,
            catalog: &mut self.catalog,
            batch: &mut self.batch,
            helpers: &self.helpers,
            prepared: &prepared,
            brought: &brought,
            fetched: &fetched,
            released: &released,
            watch: &|serial, pid, limit| watch.watch(serial, pid, limit),
            cgroups: self.cgroups.as_ref(),
            container: self.container.as_deref(),
            memory_limit: self.options.memory_limit,
            now,
            instant: Instant::now(),
            next_serial: &mut self.next_serial,
            out: outputs,
        };
        what(&mut self.functions, &mut cx)
    }
}
