//! Results that are told of again: objects that have moved, or were lost for good.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

fn group() -> Arc<Group> {
    let shared = Shared::new("nowhere".to_owned(), None);
    Group::new(Arc::new(Stake { shared, processes: None }), 0, "f".to_owned(), false)
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    fn times(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is told of elements, in order of `ends`: something else than an inline result, or one.
fn told(ends: Vec<(u32, Result<v1::other_end::End, &'static [u8]>)>) -> v1::ResultBatch {
    let mut batch = v1::ResultBatch { weight: 1, ..Default::default() };
    let mut results = Vec::new();
    for (at, (index, end)) in (0..).zip(ends) {
        batch.index.push(index);
        match end {
            Ok(end) => batch.others.push(v1::OtherEnd { at, end: Some(end) }),
            Err(inline) => results.extend_from_slice(inline),
        }
        batch.result_end.push(results.len() as u32);
    }
    batch.results = results.into();
    batch
}

fn object(attempt: u32) -> Result<v1::other_end::End, &'static [u8]> {
    Ok(v1::other_end::End::Object(v1::ObjectRef { attempt, size: 1 << 20, ..Default::default() }))
}

fn lost() -> Result<v1::other_end::End, &'static [u8]> {
    Ok(v1::other_end::End::Error(v1::TaskError { class: v1::OutcomeClass::LostWorker.into(), ..Default::default() }))
}

/// What is known of element 0 now.
fn known(group: &Group) -> Raw {
    let waiter = || panic!("it is over");
    group.poll(0, waiter).unwrap().unwrap()
}

fn known_object(group: &Group) -> Arc<Other> {
    match known(group) {
        Raw::Other(other) => other,
        Raw::Inline(_) => panic!("an object"),
    }
}

fn attempt_of(other: &Other) -> u32 {
    match other {
        Other::Object(object) => object.attempt,
        Other::Finished(_) | Other::Failed(_) => panic!("an object"),
    }
}

#[test]
fn who_asks_where_an_object_is_hears_when_it_has_moved() {
    let (group, woken) = (group(), Arc::new(Woken::default()));
    let waker = Waker::from(woken.clone());
    group.arrived(told(vec![(0, object(1)), (1, object(1))]), 2);
    let first = known_object(&group);
    assert!(group.poll_moved(0, &first, &waker).is_pending());
    assert!(group.poll_moved(0, &first, &waker).is_pending(), "asked twice, told once");
    // What is told of its neighbour is none of its business.
    group.arrived(told(vec![(1, object(2))]), 2);
    assert_eq!(woken.times(), 0);
    group.arrived(told(vec![(0, object(2))]), 2);
    assert_eq!(woken.times(), 1);
    let Poll::Ready(Ok(second)) = group.poll_moved(0, &first, &waker) else { panic!("it has moved") };
    assert_eq!(attempt_of(&second), 2);
    assert_eq!(attempt_of(&known_object(&group)), 2, "whoever comes later hears of the new place only");
    assert!(group.poll_moved(0, &second, &waker).is_pending());
    let progress = group.progress();
    assert_eq!((progress.over, progress.failed), (2, 0), "over once, however often it is told");
}

#[test]
fn one_who_asks_after_it_has_moved_need_not_wait() {
    let (group, woken) = (group(), Arc::new(Woken::default()));
    group.arrived(told(vec![(0, object(1))]), 1);
    let first = known_object(&group);
    group.arrived(told(vec![(0, object(2))]), 1);
    let polled = group.poll_moved(0, &first, &Waker::from(woken.clone()));
    assert!(matches!(polled, Poll::Ready(Ok(second)) if attempt_of(&second) == 2));
    assert_eq!(woken.times(), 0);
}

#[test]
fn an_object_that_is_made_again_may_come_with_the_news() {
    let (group, woken) = (group(), Arc::new(Woken::default()));
    let waker = Waker::from(woken.clone());
    group.arrived(told(vec![(0, object(1))]), 1);
    let first = known_object(&group);
    assert!(group.poll_moved(0, &first, &waker).is_pending());
    group.arrived(told(vec![(0, Err(b"small"))]), 1);
    assert_eq!(woken.times(), 1);
    let Poll::Ready(Ok(now)) = group.poll_moved(0, &first, &waker) else { panic!("it is there") };
    assert!(matches!(&*now, Other::Object(object) if object.inline == b"small"[..] && object.size == 5), "{now:?}");
}

#[test]
fn an_object_that_is_given_up_has_failed_once_and_for_all() {
    let (group, woken) = (group(), Arc::new(Woken::default()));
    let waker = Waker::from(woken.clone());
    group.arrived(told(vec![(0, object(1))]), 1);
    let first = known_object(&group);
    assert!(group.poll_moved(0, &first, &waker).is_pending());
    group.arrived(told(vec![(0, lost())]), 1);
    assert_eq!(woken.times(), 1);
    let Poll::Ready(Ok(end)) = group.poll_moved(0, &first, &waker) else { panic!("it is lost") };
    assert!(matches!(&*end, Other::Failed(TaskError::WorkerLost { .. })), "{end:?}");
    assert_eq!((group.progress().over, group.progress().failed), (1, 1));
    for late in [lost(), object(3)] {
        group.arrived(told(vec![(0, late)]), 1);
        assert!(Arc::ptr_eq(&known_object(&group), &end), "a failure is final");
    }
    assert_eq!((group.progress().over, group.progress().failed), (1, 1));
}

#[test]
fn a_result_that_came_whole_stays_what_it_is() {
    let group = group();
    group.arrived(told(vec![(0, Err(b"first"))]), 1);
    for again in [object(2), lost(), Err(&b"other"[..])] {
        group.arrived(told(vec![(0, again)]), 1);
        assert!(matches!(known(&group), Raw::Inline(bytes) if bytes == b"first"[..]));
    }
    assert_eq!((group.progress().over, group.progress().failed), (1, 0));
}

#[test]
fn nobody_waits_for_what_was_dropped_or_will_never_come() {
    let (group, woken) = (group(), Arc::new(Woken::default()));
    let waker = Waker::from(woken.clone());
    group.arrived(told(vec![(0, object(1)), (1, object(1))]), 2);
    let first = known_object(&group);
    group.dropped(0);
    let polled = group.poll_moved(0, &first, &waker);
    assert!(matches!(polled, Poll::Ready(Ok(same)) if Arc::ptr_eq(&same, &first)), "there is nothing newer to be had");
    group.arrived(told(vec![(0, object(2))]), 2);
    assert_eq!(group.state().slot(0).batch, GONE);

    let Some(Ok(Raw::Other(other))) = group.poll(1, || panic!("it is over")) else { panic!("an object") };
    assert!(group.poll_moved(1, &other, &waker).is_pending());
    group.lost(&Error::Lost { address: "nowhere".to_owned(), reason: "it went away".to_owned() });
    assert_eq!(woken.times(), 1);
    assert!(matches!(group.poll_moved(1, &other, &waker), Poll::Ready(Err(Error::Lost { .. }))));
}
