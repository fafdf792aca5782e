//! Sessions inside this process: what a program sees of its tasks.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use scalable::{Error, Handle, Isolation, Session, TaskError, TaskSet};

#[scalable::task]
fn square(n: u64) -> u64 {
    n * n
}

#[scalable::task]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[scalable::task]
fn sum(values: Vec<u64>) -> u64 {
    values.iter().sum()
}

#[scalable::task(retries = 2, backoff = "1ms")]
fn odd_only(n: u64) -> Result<u64, String> {
    if n % 2 == 1 { Ok(n) } else { Err(format!("{n} is even")) }
}

#[scalable::task]
fn nothing() {}

/// An asynchronous one.
#[scalable::task]
async fn later(n: u64) -> Result<u64, std::io::Error> {
    tokio::time::sleep(Duration::from_millis(1)).await;
    Ok(n + 1)
}

#[scalable::task]
fn boom(n: u64) -> u64 {
    assert!(n != 3, "three is too many");
    n
}

#[scalable::task(timeout = "20ms")]
fn spin(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[scalable::task(name = "with another name")]
fn renamed(text: String, more: Option<Vec<(u8, f64)>>) -> (String, usize) {
    (text, more.map_or(0, |more| more.len()))
}

async fn session() -> Session {
    Session::local().workers(2).start().await.unwrap()
}

fn task_error<T: std::fmt::Debug>(result: Result<T, Error>) -> TaskError {
    match result {
        Err(Error::Task(error)) => error,
        other => panic!("a task error was expected, not {other:?}"),
    }
}

#[tokio::test]
async fn a_task_is_a_function_and_its_handle_gives_the_result() {
    assert_eq!(square(3), 9);
    assert_eq!(later(1).await.unwrap(), 2);
    let session = session().await;
    let nine = session.submit(square, (3,)).await.unwrap();
    assert_eq!((&nine).await.unwrap(), 9);
    assert_eq!(nine.await.unwrap(), 9, "a handle can be awaited again by reference");
    session.submit(nothing, ()).await.unwrap().await.unwrap();
    assert_eq!(session.submit(later, (1,)).await.unwrap().await.unwrap(), 2);
    let handle = session.submit(renamed, ("text", Some(vec![(1, 2.0)]))).await.unwrap();
    assert_eq!(handle.name(), "with another name[0]");
    assert_eq!(handle.await.unwrap(), ("text".to_owned(), 1));
}

#[tokio::test]
async fn handles_are_arguments() {
    let session = session().await;
    let mut total: Handle<u64> = session.submit(square, (1,)).await.unwrap();
    for n in 2..=20 {
        let next = session.submit(square, (n,)).await.unwrap();
        total = session.submit(add, (&total, next)).await.unwrap();
    }
    assert_eq!(total.await.unwrap(), (1..=20).map(|n| n * n).sum::<u64>());
    // Two functions that read each other's results in turn.
    let mut value = session.submit(square, (2,)).await.unwrap();
    for _ in 0..3 {
        let more = session.submit(add, (value, 1)).await.unwrap();
        value = session.submit(square, (more,)).await.unwrap();
    }
    let mut expected: u64 = 4;
    for _ in 0..3 {
        expected = (expected + 1).wrapping_mul(expected + 1);
    }
    assert_eq!(value.await.unwrap(), expected);
}

#[tokio::test]
async fn a_map_takes_columns_rows_streams_and_handles() {
    let session = session().await;
    let squares = session.map(square, (0..1000,)).await.unwrap();
    assert_eq!(squares.len(), 1000);
    let total = session.submit(sum, (squares.all(),)).await.unwrap();
    let expected: u64 = (0..1000).map(|n| n * n).sum();
    assert_eq!((&total).await.unwrap(), expected);
    // One handle for all, an array element by element, the same value for all.
    let more = session.map(add, (&squares, &total)).await.unwrap();
    assert_eq!(more.gather().await.unwrap()[10], 100 + expected);
    let more = session.map(add, (&squares, scalable::same(1))).await.unwrap();
    assert_eq!((more.handle(3)).await.unwrap(), 10);
    let handles: Vec<Handle<u64>> = (0..5).map(|n| squares.handle(n)).collect();
    assert_eq!(session.map(add, (handles, 0..)).await.unwrap().gather().await.unwrap(), [0, 2, 6, 12, 20]);
    let rows = scalable::rows((0..3).map(|n| (n, n)));
    assert_eq!(session.map(add, rows).await.unwrap().gather().await.unwrap(), [0, 2, 4]);
    let stream = tokio_stream::iter(0..3u64);
    assert_eq!(session.map(square, (scalable::streamed(stream),)).await.unwrap().gather().await.unwrap(), [0, 1, 4]);
    let spawned = session.map(square, (0..50_000u64,)).buffered(100).spawn().await.unwrap();
    assert_eq!(spawned.gather().await.unwrap().len(), 50_000);
    assert_eq!(session.map(nothing, scalable::rows(std::iter::repeat_n((), 7))).await.unwrap().gather().await.unwrap().len(), 7);
    assert!(session.map(square, (0..0,)).await.unwrap().gather().await.unwrap().is_empty());
}

#[tokio::test]
async fn results_come_as_they_end_and_are_forgotten() {
    let session = session().await;
    let mut seen = vec![false; 20_000];
    let counted = session.map(square, (0..20_000u64,)).for_each(|index, result| {
        assert_eq!(result?, (index * index) as u64);
        assert!(!std::mem::replace(&mut seen[index], true), "{index} came twice");
        Ok(())
    });
    counted.await.unwrap();
    assert!(seen.iter().all(|seen| *seen));
    let array = session.map(square, (0..10u64,)).await.unwrap();
    let mut completed = Vec::new();
    while let Some((index, result)) = array.next_completed().await {
        completed.push((index as u64, result.unwrap()));
    }
    completed.sort_unstable();
    assert_eq!(completed, (0..10).map(|n| (n, n * n)).collect::<Vec<_>>());
    assert_eq!(array.gather().await.unwrap().len(), 10, "an array can be read again");
}

#[tokio::test]
async fn sets_give_results_as_they_end_and_take_more() {
    let session = session().await;
    let mut set = TaskSet::new();
    set.insert("one", session.submit(square, (1,)).await.unwrap());
    let mut seen = Vec::new();
    while let Some((key, result)) = set.next().await {
        seen.push((key, result.unwrap()));
        if key == "one" {
            set.insert("two", session.submit(square, (2,)).await.unwrap());
        }
    }
    assert_eq!(seen, [("one", 1), ("two", 4)]);
    let handles = [session.submit(square, (5,)).await.unwrap(), session.submit(square, (6,)).await.unwrap()];
    assert!(scalable::wait(&handles, Duration::from_secs(60)).await);
    assert!(scalable::first_completed(&handles).await.is_some());
    assert_eq!(scalable::gather(&handles).await.unwrap(), [25, 36]);
}

#[tokio::test]
async fn failures_say_what_happened_and_where() {
    let session = session().await;
    let failed = session.submit(odd_only, (4,)).await.unwrap();
    let dependent = session.submit(add, (&failed, 1)).await.unwrap();
    match task_error(failed.await) {
        TaskError::Failed { message, attempt, .. } => {
            assert_eq!((message.as_str(), attempt.number, attempt.task.as_str()), ("4 is even", 3, "odd_only[0]"));
            assert!(attempt.worker.starts_with("local-"));
        }
        other => panic!("{other:?}"),
    }
    match task_error(dependent.await) {
        TaskError::DependencyFailed { root, .. } => assert_eq!(root, "odd_only[0]"),
        other => panic!("{other:?}"),
    }
    match task_error(session.submit(boom, (3,)).await.unwrap().await) {
        TaskError::Panicked { message, backtrace, .. } => {
            assert!(message.starts_with("three is too many"), "{message}");
            assert!(backtrace.contains("boom"), "{backtrace}");
        }
        other => panic!("{other:?}"),
    }
    let each = session.map(boom, (0..5,)).await.unwrap().gather_each().await.unwrap();
    assert_eq!(each.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, true, false, true]);
    let array = session.map(boom, (0..5,)).await.unwrap();
    array.wait().await;
    assert_eq!((array.progress().over, array.progress().failed), (5, 1));
    assert!(matches!(task_error(array.gather().await), TaskError::Panicked { .. }));
}

#[tokio::test]
async fn timeouts_and_cancels_end_attempts() {
    let session = session().await;
    assert!(matches!(task_error(session.submit(spin, (60_000,)).await.unwrap().await), TaskError::Timeout { .. }));
    let endless = session.submit(spin.with().timeout("1h"), (60_000,)).await.unwrap();
    let waiting = session.submit(spin.with().timeout("1h"), (60_000,)).await.unwrap();
    assert!(endless.wait(Duration::from_millis(5)).await.is_none(), "it goes on");
    endless.cancel();
    assert!(matches!(task_error(endless.await), TaskError::Cancelled { .. }));
    let dropped = session.submit(add, (1, 1)).await.unwrap().cancel_on_drop();
    drop(dropped);
    drop(waiting.cancel_on_drop());
    let array = session.map(spin.with().timeout("1h"), (std::iter::repeat_n(60_000, 10),)).await.unwrap();
    array.cancel();
    let each = array.gather_each().await.unwrap();
    assert!(each.into_iter().all(|result| matches!(task_error(result), TaskError::Cancelled { .. })));
    assert_eq!(session.submit(square, (2,)).await.unwrap().await.unwrap(), 4, "the workers are still there");
}

#[tokio::test]
async fn what_cannot_be_is_refused_at_once() {
    let session = session().await;
    let other = Session::local().start().await.unwrap();
    let foreign = other.submit(square, (1,)).await.unwrap();
    let code = |error: Error| match error {
        Error::Refused { code, .. } => code,
        other => panic!("{other:?}"),
    };
    assert_eq!(code(session.submit(add, (&foreign, 1)).await.unwrap_err()), "HANDLE_OF_ANOTHER_SESSION");
    assert_eq!(code(session.map(add, (&foreign, 0..3)).await.unwrap_err()), "HANDLE_OF_ANOTHER_SESSION");
    assert_eq!(code(session.submit(sum, (vec![u64::MAX; 200_000],)).await.unwrap_err()), "ARGUMENTS_TOO_LARGE");
    assert_eq!(code(session.submit(square.with().memory("lots"), (1,)).await.unwrap_err()), "BAD_OPTION");
    assert_eq!(code(Session::local().workers(0).start().await.unwrap_err()), "NO_WORKERS");
    // A map that breaks off still ends what it has begun.
    let arguments = [vec![1], vec![u64::MAX; 200_000]];
    assert_eq!(code(session.map(sum, (arguments,)).await.unwrap_err()), "ARGUMENTS_TOO_LARGE");
    let never = session.submit(square.with().cpus(64), (1,)).await.unwrap();
    match task_error(never.await) {
        TaskError::Rejected { code, .. } => assert_eq!(code, "E_NO_POOL_FITS"),
        other => panic!("{other:?}"),
    }
}

static CALLS: AtomicU32 = AtomicU32::new(0);

#[scalable::task(retries = 5, backoff = "1ms", isolation = "thread", resources())]
fn third_time() -> Result<u32, &'static str> {
    let call = CALLS.fetch_add(1, Ordering::Relaxed) + 1;
    if call < 3 { Err("not yet") } else { Ok(call) }
}

#[tokio::test]
async fn a_task_is_tried_again() {
    let session = session().await;
    let urgent = third_time.with().priority(5).name("urgent").isolation(Isolation::Process);
    let handle = session.submit(urgent, ()).await.unwrap();
    assert_eq!(handle.name(), "urgent[0]");
    assert_eq!(handle.await.unwrap(), 3);
}

#[tokio::test]
async fn handles_outlive_the_session() {
    let session = session().await;
    let handle = session.submit(square, (7,)).await.unwrap();
    drop(session);
    assert_eq!(handle.await.unwrap(), 49);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_users_of_one_session() {
    let session = session().await;
    let users = (0..8u64).map(|user| {
        let session = session.clone();
        tokio::spawn(async move {
            let mut handles = Vec::new();
            for n in 0..200 {
                handles.push(session.submit(add, (user, n)).await.unwrap());
            }
            for (n, handle) in handles.into_iter().enumerate() {
                assert_eq!(handle.await.unwrap(), user + n as u64);
            }
        })
    });
    for user in users.collect::<Vec<_>>() {
        user.await.unwrap();
    }
}
