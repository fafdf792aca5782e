//! What attempts that execute have written so far: somebody asks, the worker is asked, and its answer goes to whoever waits for it. The
//! bytes pass as they are; nothing of them is kept here.

use rustc_hash::FxHashMap;
use scalable_core::ids::{SessionId, TaskRef};
use scalable_proto::v1;
use tokio::sync::oneshot;
use tonic::Status;

use super::Reactor;

/// Questions that workers have not answered.
const OPEN_MAX: usize = 256;

/// What comes of a question, when its worker has answered.
pub(crate) type Answer = oneshot::Receiver<v1::ReadLogReply>;

/// Questions that workers have not answered. Who has stopped waiting is seen when there are many.
#[derive(Debug, Default)]
pub(super) struct LiveLogs {
    next: u64,
    open: FxHashMap<u64, (SessionId, oneshot::Sender<v1::ReadLogReply>)>,
}

impl LiveLogs {
    fn ask(&mut self, session: SessionId) -> Option<(u64, Answer)> {
        if self.open.len() >= OPEN_MAX {
            self.open.retain(|_, (_, reply)| !reply.is_closed());
        }
        if self.open.len() >= OPEN_MAX {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        self.next += 1;
        self.open.insert(self.next, (session, reply));
        Some((self.next, answer))
    }

    /// A worker has answered. What nobody has asked it for is of no interest.
    pub(super) fn answered(&mut self, session: SessionId, chunk: v1::LogChunk) {
        if self.open.get(&chunk.call).is_none_or(|(asked, _)| *asked != session) {
            return;
        }
        if let Some((_, reply)) = self.open.remove(&chunk.call) {
            let _ = reply.send(v1::ReadLogReply { data: chunk.data, over: chunk.over });
        }
    }

    /// A worker is gone, and whoever waits for its answers is told so.
    pub(super) fn left(&mut self, session: SessionId) {
        self.open.retain(|_, (asked, _)| *asked != session);
    }
}

impl Reactor {
    /// Asks the worker that an attempt is on for what it has written. Nothing to wait for: the attempt is on no worker any more.
    pub(crate) fn read_log(&mut self, request: &v1::ReadLogRequest) -> Result<Option<Answer>, Status> {
        let run = self.wanted_run(&request.run)?;
        let group = self.wanted_group(run, &request.group)?.id;
        let task = TaskRef { group, index: request.index };
        let Some(session) = self.machine.task_worker(task).filter(|_| self.machine.task_attempt(task) == request.attempt) else {
            return Ok(None);
        };
        let Some(worker) = self.workers.get_mut(&session) else { return Ok(None) };
        let Some((call, answer)) = self.live_logs.ask(session) else {
            return Err(Status::resource_exhausted(format!(
                "{OPEN_MAX} readers of logs wait for workers that do not answer; try again"
            )));
        };
        let (index, attempt, stderr, offset) = (request.index, request.attempt, request.stderr, request.offset);
        let read = v1::ReadLog { call, group: group.0, index, attempt, stderr, offset };
        worker.send_control(v1::scheduler_control::Body::ReadLog(read));
        Ok(Some(answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(call: u64, data: &'static [u8]) -> v1::LogChunk {
        v1::LogChunk { call, data: data.into(), over: false }
    }

    #[test]
    fn an_answer_reaches_who_asked_and_nobody_else() {
        let (one, two) = (SessionId(1), SessionId(2));
        let mut logs = LiveLogs::default();
        let (first, mut answer) = logs.ask(one).expect("room");
        logs.answered(two, chunk(first, b"false"));
        logs.answered(one, chunk(first + 1, b"never asked"));
        assert!(answer.try_recv().is_err());
        logs.answered(one, chunk(first, b"text"));
        assert_eq!(answer.try_recv().expect("answered").data, &b"text"[..]);
        logs.answered(one, chunk(first, b"again"));
    }

    #[test]
    fn who_waits_for_a_worker_that_is_gone_is_told() {
        let mut logs = LiveLogs::default();
        let (_, mut answer) = logs.ask(SessionId(1)).expect("room");
        logs.left(SessionId(2));
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        logs.left(SessionId(1));
        assert_eq!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    }

    #[test]
    fn questions_are_bounded_and_those_that_nobody_waits_for_make_room() {
        let mut logs = LiveLogs::default();
        let mut answers: Vec<_> = (0..OPEN_MAX).map(|_| logs.ask(SessionId(1)).expect("room")).collect();
        assert!(logs.ask(SessionId(1)).is_none());
        answers.truncate(OPEN_MAX - 1);
        answers.push(logs.ask(SessionId(1)).expect("room"));
        assert!(logs.ask(SessionId(1)).is_none());
    }
}
