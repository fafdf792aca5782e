//! What calls read: objects inside the dispatch, kept here, on this worker's disk, or with a peer. A call whose objects are not all here
//! waits beside the queues and takes nothing; one whose objects cannot be had is over, and not to blame.

use bytes::Bytes;
use scalable_core::messages::OutcomeClass;
use scalable_core::worker::calls::{CallId, LaneId};
use scalable_proto::v1::{AttemptReport, ObjectRef};

use super::objects::{Come, Coming, Found, Looked};
use super::{Cx, Functions, failure};

/// What one call reads.
#[derive(Debug)]
pub struct Inputs {
    /// As the scheduler named them, by input.
    pub refs: Vec<Vec<ObjectRef>>,
    /// As `refs`; nothing while it is on its way.
    pub found: Vec<Vec<Option<Found>>>,
}

/// Objects of one call that are on their way: input, place in it, the object.
pub type OnTheirWay = Vec<(usize, usize, Coming)>;
/// As they came, or why not.
pub type Brought = Vec<(usize, usize, Result<Come, String>)>;

impl Functions {
    /// Objects of a call that have come. It can be executed when all have, and is over when one cannot be had.
    pub fn brought(&mut self, cx: &mut Cx<'_>, call: CallId, serial: u64, brought: Brought) {
        if serial < self.session_since {
            // In another session the same numbers name other objects.
            return;
        }
        let mut missing = Vec::new();
        for (input, at, come) in brought {
            let found = match come {
                Ok(Come::Loaded(pinned)) => self.objects.found(pinned).map_err(|error| error.to_string()),
                Ok(Come::Fetched(id, content)) => {
                    cx.batch.copied(id.group, id.index);
                    self.objects.copied(id, content).map_err(|error| error.to_string())
                }
                Err(why) => Err(why),
            };
            let payload = self.payloads.get_mut(call.batch as usize).and_then(Option::as_mut).filter(|of| of.serial == serial);
            // It was cancelled or retracted meanwhile: what came is here for others.
            let Some(inputs) = payload.and_then(|payload| payload.inputs.get_mut(&call.at)) else { continue };
            match found {
                Ok(found) => inputs.found[input][at] = Some(found),
                Err(why) => missing.push((bare(&inputs.refs[input][at]), why)),
            }
        }
        let known = self.payloads.get(call.batch as usize).and_then(Option::as_ref).is_some_and(|of| of.serial == serial);
        if !known {
            return;
        }
        if missing.is_empty() {
            if cx.machine.call_ready(call) {
                let part = self.payloads.get(call.batch as usize).and_then(Option::as_ref).map(|of| of.group(call.at).0);
                let lanes: Vec<LaneId> =
                    self.by_group.iter().filter(|((group, _), _)| Some(*group) == part).map(|(_, lane)| *lane).collect();
                self.act(cx);
                for lane in lanes {
                    self.fill_lane(cx, lane);
                }
            }
        } else if let Some(over) = cx.machine.call_over(call, cx.out) {
            let report = match over.cause {
                None => lost_inputs(missing),
                Some(cause) => failure(cause, "it was cancelled before it started".to_owned()),
            };
            self.report(cx, &over, report);
        }
        self.act(cx);
    }

    /// Where the objects of a call are.
    pub(super) fn find_inputs(&self, run: u32, refs: Vec<Vec<ObjectRef>>) -> Result<(Inputs, OnTheirWay), Box<AttemptReport>> {
        let (mut on_their_way, mut missing) = (Vec::new(), Vec::new());
        let mut found = Vec::with_capacity(refs.len());
        for (input, objects) in refs.iter().enumerate() {
            let mut of_input = Vec::with_capacity(objects.len());
            for (at, object) in objects.iter().enumerate() {
                of_input.push(match self.objects.look(run, object) {
                    Looked::Found(found) => Some(found),
                    Looked::Coming(coming) => {
                        on_their_way.push((input, at, coming));
                        None
                    }
                    Looked::Missing(why) => {
                        missing.push((bare(object), why));
                        None
                    }
                });
            }
            found.push(of_input);
        }
        if missing.is_empty() { Ok((Inputs { refs, found }, on_their_way)) } else { Err(Box::new(lost_inputs(missing))) }
    }
}

/// Waits for objects beside the reactor's other work.
pub fn bring(cx: &Cx<'_>, call: CallId, serial: u64, on_their_way: OnTheirWay) {
    let tell = (cx.brought)(call, serial);
    tokio::spawn(async move {
        let mut brought = Vec::with_capacity(on_their_way.len());
        // All are on their way already: waiting for one does not put off another.
        for (input, at, coming) in on_their_way {
            brought.push((input, at, coming.come().await));
        }
        tell(brought);
    });
}

/// An object's name without its content.
fn bare(object: &ObjectRef) -> ObjectRef {
    ObjectRef { inline: Bytes::new(), ..object.clone() }
}

fn lost_inputs(missing: Vec<(ObjectRef, String)>) -> AttemptReport {
    let (missing, why): (Vec<ObjectRef>, Vec<String>) = missing.into_iter().unzip();
    let first = why.into_iter().next().unwrap_or_default();
    let message = format!("{} of the objects it reads could not be had: {first}", missing.len());
    AttemptReport { missing, ..failure(OutcomeClass::InputLost, message) }
}
