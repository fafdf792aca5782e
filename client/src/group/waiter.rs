//! Who waits for an element.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Who is told that an element is over.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// Woken.
    Task(Waker),
    /// Its token is put there.
    Queue(Arc<Ready>, u64),
}

/// Tokens of elements that are over, in the order in which they ended.
#[derive(Debug, Default)]
pub(crate) struct Ready(Mutex<(VecDeque<u64>, Option<Waker>)>);

impl Ready {
    fn inner(&self) -> MutexGuard<'_, (VecDeque<u64>, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a token in its place; returns who is to be woken.
    pub(crate) fn push(&self, token: u64) -> Option<Waker> {
        let mut inner = self.inner();
        inner.0.push_back(token);
        inner.1.take()
    }

    /// The next token, or the promise that the waker is woken when there is one.
    pub(crate) fn pop(&self, waker: &Waker) -> Option<u64> {
        let mut inner = self.inner();
        let token = inner.0.pop_front();
        if token.is_none() {
            inner.1 = Some(waker.clone());
        }
        token
    }
}

impl Waiter {
    /// Tells a queue; a task is to be woken when no lock is held.
    pub(super) fn told(self) -> Option<Waker> {
        match self {
            Waiter::Task(waker) => Some(waker),
            Waiter::Queue(ready, token) => ready.push(token),
        }
    }
}
