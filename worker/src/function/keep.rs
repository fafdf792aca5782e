//! Objects that the scheduler wants kept here because another worker, which holds them, is to leave. They are fetched beside everything
//! else, take no slot, and stay until they are dropped; what came of each is told.

use scalable_proto::v1::ObjectRef;
use scalable_store::{Content, ObjectId};

use super::objects::Wanted;
use super::{Cx, Functions};

/// Objects on their way at a time; of one more it is said at once that it cannot be had.
const KEEPING_MAX: u32 = 1024;

/// Tells the reactor what became of a fetch.
pub type TellFetched = Box<dyn FnOnce(Fetched) + Send>;

/// An object that was fetched to be kept.
pub struct Fetched {
    /// Tells a session's from those of an earlier one.
    serial: u64,
    id: ObjectId,
    content: Result<Content, String>,
}

impl Functions {
    /// These are to be kept.
    pub fn keep_objects(&mut self, cx: &mut Cx<'_>, objects: &[ObjectRef]) {
        for object in objects {
            let wanted = match self.keeping < KEEPING_MAX {
                true => self.objects.want(object),
                false => Wanted::Never("too many others are on their way".to_owned()),
            };
            match wanted {
                Wanted::Here => cx.batch.kept(object.group, object.index),
                Wanted::Coming(id, fetch) => {
                    self.keeping += 1;
                    let (serial, tell) = (*cx.next_serial, (cx.fetched)());
                    *cx.next_serial += 1;
                    tokio::spawn(async move {
                        let content = fetch.await.map_err(|error| error.to_string());
                        tell(Fetched { serial, id, content });
                    });
                }
                Wanted::Never(why) => {
                    tracing::warn!(group = object.group, index = object.index, why, "a result cannot be kept here");
                    cx.batch.not_kept(object.group, object.index);
                }
            }
        }
    }

    /// One has come, or cannot be had.
    pub fn fetched(&mut self, cx: &mut Cx<'_>, fetched: Fetched) {
        let Fetched { serial, id, content } = fetched;
        if serial < self.session_since {
            // In another session these numbers mean something else.
            return;
        }
        self.keeping -= 1;
        let bytes = content.as_ref().map_or(0, Content::len);
        match content.and_then(|content| self.objects.put(id, content)) {
            Ok(()) => {
                tracing::debug!(%id, bytes, "a result is kept here that another worker leaves");
                cx.batch.kept(id.group, id.index);
            }
            Err(why) => {
                tracing::warn!(%id, why, "a result could not be kept here");
                cx.batch.not_kept(id.group, id.index);
            }
        }
    }
}
