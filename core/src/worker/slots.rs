//! Slots for calls: which lane gets one, what it is fed, when it has to give it up. The worker's capacity is one, whether processes
//! or calls take it.

use super::calls::{Applied, CallBatch, CallId, CallOutput, LaneId, Over, Refuse};
use super::calls_table::{Action, Event, State};
use super::{OVERTAKEN_MAX, Serial, Unseen, Worker};
use crate::ids::{Handle, Micros, ShapeId};
use crate::messages::OutcomeClass;
use crate::resources::Resources;

/// Who may start next.
pub(super) enum Turn {
    Process(Serial),
    Lane(LaneId),
}

impl Worker {
    /// Opens a lane of a shape. Nothing when the shape was never announced, can never fit, or
    /// [`LANES_MAX`](super::calls::LANES_MAX) are open.
    pub fn open_lane(&mut self, shape: ShapeId) -> Option<LaneId> {
        let request = self.shapes.get(&shape)?.request.clone();
        if !self.capacity.fits(&Resources::default(), &request) {
            return None;
        }
        self.calls.open_lane(request)
    }

    /// Closes a lane that has neither calls nor slots, those included whose objects are on their way. False when it has.
    pub fn close_lane(&mut self, lane: LaneId) -> bool {
        let held = |row: &super::calls::Lane| row.queued == 0 && row.fetching == 0 && row.granted == 0;
        let idle = self.calls.lane(lane).is_some_and(held);
        if idle {
            self.calls.lanes[lane.0 as usize] = None;
        }
        idle
    }

    /// Takes calls that were dispatched together, and says the number they are known under until the last of them is over
    /// ([`Worker::take_done`], to be asked before the next batch).
    pub fn dispatch_calls(&mut self, batch: CallBatch) -> u32 {
        let (draining, unseen) = (self.draining.is_some(), &mut self.unseen);
        let number = self.calls.add(batch, |handle| {
            let known = if unseen.is_empty() { None } else { unseen.remove(&handle) };
            match known {
                Some(Unseen::Retracted) => Refuse::Silently,
                Some(Unseen::Cancelled) => Refuse::As(OutcomeClass::Cancelled),
                None if draining => Refuse::As(OutcomeClass::Preempted),
                None => Refuse::No,
            }
        });
        self.grant_what_fits();
        number
    }

    /// What is wanted with calls, since this was last asked.
    pub fn take_calls(&mut self, to: &mut Vec<CallOutput>) {
        to.append(&mut self.calls.out);
    }

    /// Numbers of batches of which no call is left, since this was last asked.
    pub fn take_done(&mut self, to: &mut Vec<u32>) {
        self.calls.take_done(to);
    }

    /// Hands at most `max` of a lane's oldest calls to slots of it, `fresh` of which have not been fed before. Nothing when an older
    /// attempt's turn has come: then the slot is to be given up when nothing is left in it.
    pub fn feed(&mut self, lane: LaneId, max: u32, fresh: u32, to: &mut Vec<CallId>) -> u32 {
        if max == 0 || self.paused || self.has_to_yield(lane) {
            return 0;
        }
        let fed = self.calls.feed(lane, max, to);
        if fed > 0
            && let Some(row) = self.calls.lane_mut(lane)
        {
            row.unfed = row.unfed.saturating_sub(fresh);
        }
        fed
    }

    /// Calls of a lane that wait for a slot.
    pub fn lane_queued(&self, lane: LaneId) -> u32 {
        self.calls.lane(lane).map_or(0, |row| row.queued)
    }

    /// Takes every waiting call of a lane, in order: no host of it can be had.
    pub fn take_all(&mut self, lane: LaneId, to: &mut Vec<CallId>) {
        self.calls.feed(lane, u32::MAX, to);
    }

    /// True when an older attempt waits that would fit if this lane gave up a slot, or that was overtaken too often.
    fn has_to_yield(&mut self, lane: LaneId) -> bool {
        let Some(head) = self.calls.head(lane) else { return false };
        let Some(row) = self.calls.lane(lane) else { return false };
        let mut without = self.used.clone();
        without.remove(&row.request);
        let mut lanes = std::mem::take(&mut self.wanting);
        self.calls.wanting(&mut lanes);
        let oldest = self.candidates(&lanes).filter(|(serial, other, _)| *other != Some(lane) && *serial < head);
        let oldest = oldest.min_by_key(|(serial, ..)| *serial);
        let oldest = oldest.map(|(serial, other, request)| (serial, other, self.capacity.fits(&without, request)));
        self.wanting = lanes;
        let (serial, other) = match oldest {
            None => return false,
            Some((.., true)) => return true,
            Some((serial, other, false)) => (serial, other),
        };
        let overtaken = match other {
            Some(other) => self.calls.lane_mut(other).map(|row| &mut row.overtaken),
            None => self.rows.get_mut(&serial).map(|row| &mut row.overtaken),
        };
        overtaken.is_some_and(|overtaken| {
            *overtaken += 1;
            *overtaken > OVERTAKEN_MAX
        })
    }

    /// A slot has nothing left and is given up. `fresh` when it was never fed.
    pub fn slot_free(&mut self, lane: LaneId, fresh: bool, now: Micros, out: &mut Vec<super::Output>) {
        let Some(row) = self.calls.lane_mut(lane).filter(|row| row.granted > 0) else { return };
        row.granted -= 1;
        if fresh {
            row.unfed = row.unfed.saturating_sub(1);
        }
        let request = row.request.clone();
        self.used.remove(&request);
        self.start_what_fits(now, out);
        self.say_drained(out);
    }

    /// A call's host said how it ended, or died while executing it. Nothing when nobody waits for it any more.
    pub fn call_over(&mut self, call: CallId, out: &mut Vec<super::Output>) -> Option<Over> {
        let Applied { over, .. } = self.calls.apply(call, Event::Returned, None)?;
        self.say_drained(out);
        Some(over)
    }

    /// Everything a call reads is here: it waits for a slot. False when it is not on the worker any more.
    pub fn call_ready(&mut self, call: CallId) -> bool {
        let ready = self.calls.apply(call, Event::Fetched, None).is_some();
        if ready {
            self.grant_what_fits();
        }
        ready
    }

    /// Nothing new is started while the worker is paused: its memory is nearly full of results.
    pub fn pause(&mut self, paused: bool, now: Micros, out: &mut Vec<super::Output>) {
        self.paused = paused;
        self.start_what_fits(now, out);
    }

    /// True while nothing new is started.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// A call was not begun and is with its host no more. It waits again, at the front; when it was to end, it has.
    pub fn call_back(&mut self, call: CallId) {
        if let Some(Applied { action: Action::Report, over }) = self.calls.apply(call, Event::TakenBack, None) {
            self.calls.out.push(CallOutput::Over(over));
        }
    }

    /// The agent sees it executing, since then. Says what to tell the scheduler the first time.
    pub fn call_seen(&mut self, call: CallId, since: Micros) -> Option<Over> {
        self.calls.see(call, since)
    }

    /// The handle of a call, while it is on the worker.
    pub fn call_handle(&self, call: CallId) -> Option<Handle> {
        self.calls.handle(call)
    }

    /// The call of a handle that is with a host: the agent may be able to take it back before a retract or a drain.
    pub fn held_call(&self, handle: Handle) -> Option<CallId> {
        let call = self.calls.find(handle)?;
        (self.calls.state(call) == Some(State::Held)).then_some(call)
    }

    /// True when it is to end.
    pub fn is_unwanted(&self, call: CallId) -> bool {
        self.calls.state(call) == Some(State::Unwanted)
    }

    /// Every call on the worker, oldest first.
    pub fn all_calls(&self) -> Vec<CallId> {
        self.calls.all()
    }

    /// Calls came back to their queues: starts what fits by now.
    pub fn wake(&mut self, now: Micros, out: &mut Vec<super::Output>) {
        self.start_what_fits(now, out);
    }

    /// True when [`Worker::take_calls`] has something to say.
    pub fn wants_calls(&self) -> bool {
        !self.calls.out.is_empty()
    }

    /// Grants what a dispatch of calls may take at once. Processes cannot have become able to start.
    fn grant_what_fits(&mut self) {
        while let Some(Turn::Lane(lane)) = self.first_that_fits() {
            self.grant(lane);
        }
    }

    /// Who could start next: the oldest of each shape and lane, and what it takes.
    fn candidates<'a>(
        &'a self,
        lanes: &'a [(Serial, LaneId)],
    ) -> impl Iterator<Item = (Serial, Option<LaneId>, &'a Resources)> + 'a {
        let processes = self.waiting.iter().map(|id| &self.shapes[id]);
        let processes = processes.filter_map(|shape| Some((*shape.queue.front()?, None, &shape.request)));
        let lanes = lanes.iter().filter_map(|(serial, lane)| Some((*serial, Some(*lane), &self.calls.lane(*lane)?.request)));
        processes.chain(lanes)
    }

    pub(super) fn grant(&mut self, lane: LaneId) {
        let Some(row) = self.calls.lane_mut(lane) else { return };
        row.granted += 1;
        row.unfed += 1;
        let request = row.request.clone();
        self.used.add(&request);
        self.calls.out.push(CallOutput::Slot(lane));
    }

    pub(super) fn first_that_fits(&mut self) -> Option<Turn> {
        if self.paused {
            return None;
        }
        let mut lanes = std::mem::take(&mut self.wanting);
        self.calls.wanting(&mut lanes);
        let (mut oldest, mut first) = (None::<(Serial, Option<LaneId>)>, None::<(Serial, Option<LaneId>)>);
        for (serial, lane, request) in self.candidates(&lanes) {
            oldest = Some(oldest.map_or((serial, lane), |o| o.min((serial, lane))));
            if self.capacity.fits(&self.used, request) {
                first = Some(first.map_or((serial, lane), |f| f.min((serial, lane))));
            }
        }
        self.wanting = lanes;
        let (first, oldest) = (first?, oldest?);
        if first != oldest {
            let overtaken = match oldest {
                (_, Some(lane)) => self.calls.lane_mut(lane).map(|row| &mut row.overtaken),
                (serial, None) => self.rows.get_mut(&serial).map(|row| &mut row.overtaken),
            };
            if let Some(overtaken) = overtaken {
                if *overtaken >= OVERTAKEN_MAX {
                    return None;
                }
                *overtaken += 1;
            }
        }
        Some(match first {
            (_, Some(lane)) => Turn::Lane(lane),
            (serial, None) => Turn::Process(serial),
        })
    }
}
