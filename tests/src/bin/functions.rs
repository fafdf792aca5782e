//! A user's program with functions of its own, driven by the end-to-end tests: `functions VERB [ARGUMENT…]` finds its cluster in the
//! environment, does one thing and prints what came of it, one line an outcome.

#![allow(clippy::unwrap_used, reason = "a driver that cannot go on fails, and says where")]
#![allow(clippy::print_stdout, reason = "stdout is where the driver says what it saw")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use scalable::{Error, Session, TaskError};

#[scalable::task]
fn add(a: u64, b: u64) -> u64 {
    a + b
}

#[scalable::task(isolation = "thread")]
fn double(n: u64) -> u64 {
    n * 2
}

#[scalable::task]
fn sum(parts: Vec<u64>) -> u64 {
    parts.iter().sum()
}

#[scalable::task]
async fn later(n: u64) -> u64 {
    tokio::task::yield_now().await;
    n + 1
}

#[scalable::task]
fn refuse(n: u64) -> Result<u64, String> {
    Err(format!("{n} is not to my liking"))
}

/// Ends in the way it is asked to.
#[scalable::task]
fn end(how: String) -> u64 {
    match how.as_str() {
        "panic" => panic!("it was asked to panic"),
        "abort" => std::process::abort(),
        "segfault" => {
            let nowhere = std::ptr::without_provenance::<u64>(64);
            // SAFETY: it is not, and that is what is to be seen: nothing is mapped there, and the process ends.
            unsafe { nowhere.read_volatile() }
        }
        "exit" => std::process::exit(9),
        _ => 1,
    }
}

/// Says that it has begun, and never ends.
#[scalable::task]
fn spin(mark: String) -> u64 {
    std::fs::write(mark, "").unwrap();
    loop {
        std::hint::spin_loop();
    }
}

/// Waits until nobody has the gate's file for himself.
#[scalable::task]
fn wait_for(gate: String, n: u64) -> u64 {
    std::fs::File::open(gate).unwrap().lock_shared().unwrap();
    n
}

/// So many bytes that no frame of the scheduler carries them.
#[scalable::task]
fn fill(bytes: u64, with: u8) -> Vec<u8> {
    vec![with; usize::try_from(bytes).unwrap()]
}

#[scalable::task]
fn count(bytes: Vec<u8>, value: u8) -> u64 {
    bytes.iter().filter(|byte| **byte == value).count() as u64
}

/// As [`fill`], and leaves a line in the directory's file `made`.
#[scalable::task]
fn make(directory: String, n: u64, bytes: u64) -> Vec<u8> {
    note(&directory, "made", n);
    vec![n as u8; usize::try_from(bytes).unwrap()]
}

/// As [`make`], once nobody has the gate's file for himself.
#[scalable::task]
fn make_behind(gate: String, directory: String, n: u64, bytes: u64) -> Vec<u8> {
    std::fs::File::open(gate).unwrap().lock_shared().unwrap();
    note(&directory, "made", n);
    vec![n as u8; usize::try_from(bytes).unwrap()]
}

/// As [`count`], and leaves a line in the directory's file `read`. With ten lines there it waits until the directory has `go on`.
#[scalable::task]
fn read(directory: String, n: u64, bytes: Vec<u8>) -> u64 {
    let directory = Path::new(&directory);
    if std::fs::read_to_string(directory.join("read")).is_ok_and(|lines| lines.lines().count() >= 10) {
        while !directory.join("go on").exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    note(directory, "read", n);
    bytes.iter().filter(|byte| **byte == n as u8).count() as u64
}

/// Returns when the test, or a function in another process, has made this file.
async fn there(path: &Path) {
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Appends a line in one piece.
fn note(directory: impl AsRef<Path>, file: &str, n: u64) {
    let mut file = OpenOptions::new().append(true).create(true).open(directory.as_ref().join(file)).unwrap();
    file.write_all(format!("{n}\n").as_bytes()).unwrap();
}

fn main() {
    scalable::init!();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(drive(&words)).unwrap();
}

async fn drive(words: &[&str]) -> Result<(), Error> {
    let session = Session::from_env().await?;
    match words {
        ["results"] => {
            let three = session.submit(add, (1, 2)).await?;
            let five = session.submit(add, (&three, 2)).await?;
            let six = session.submit(later, (&five,)).await?;
            let shifted = session.map(add, (&three, 0..10_u64)).await?.gather().await?;
            println!("{} {} {} {}", three.await?, five.await?, six.await?, shifted.iter().sum::<u64>());
            let doubled = session.map(double, (0..1000_u64,)).await?;
            let total = session.submit(sum, (doubled.all(),)).await?;
            println!("{}", total.await?);
            let results = doubled.gather().await?;
            println!("{}", results.iter().enumerate().all(|(n, twice)| n as u64 * 2 == *twice));
        }
        ["ends"] => {
            for how in ["panic", "abort", "segfault", "exit"] {
                let fails = session.submit(end, (how.to_owned(),)).await?;
                let neighbours = session.map(add, (0..20_u64, scalable::same(1))).await?;
                println!("{how}: {}", said(fails.await));
                println!("neighbours: {}", neighbours.gather().await?.len());
            }
            println!("refuse: {}", said(session.submit(refuse, (7,)).await?.await));
            let after = session.submit(refuse, (8,)).await?;
            println!("after: {}", said(session.submit(add, (&after, 1)).await?.await));
        }
        ["cancel"] => {
            let mark = std::env::current_dir().unwrap().join("spins");
            let busy = session.submit(spin, (mark.display().to_string(),)).await?;
            there(&mark).await;
            let asked = Instant::now();
            busy.cancel();
            println!("{} {}", said(busy.await), asked.elapsed() < Duration::from_secs(1));
            println!("{}", session.submit(add, (1, 1)).await?.await?);
        }
        ["objects", count_of, bytes] => {
            let (count_of, bytes): (u64, u64) = (count_of.parse().unwrap(), bytes.parse().unwrap());
            let made = session.map(fill, (scalable::same(bytes), (0..count_of).map(|n| n as u8))).await?;
            let counted = session.map(count, (&made, (0..count_of).map(|n| n as u8))).await?;
            println!("{}", counted.gather().await?.iter().all(|counted| *counted == bytes));
            println!("{}", made.gather().await?.iter().all(|object| object.len() as u64 == bytes));
        }
        // Says when everything is made, and reads it when the directory has `read now`: by tasks of two cpus, then here.
        ["lose", directory, count_of, bytes] => {
            let (count_of, bytes): (u64, u64) = (count_of.parse().unwrap(), bytes.parse().unwrap());
            let here = || scalable::same((*directory).to_owned());
            let made = session.map(make, (here(), 0..count_of, scalable::same(bytes))).await?;
            made.wait().await;
            println!("made");
            there(&Path::new(directory).join("read now")).await;
            let counted = session.map(read.with().cpus(2), (here(), 0..count_of, &made)).await?;
            println!("{}", counted.gather().await?.iter().all(|counted| *counted == bytes));
            let made = made.gather().await?;
            println!("{}", made.iter().enumerate().all(|(n, object)| *object == vec![n as u8; bytes as usize]));
        }
        // Has everything made behind a gate and says when that is done; reads it when the directory has `read now`: by tasks, then here.
        ["leave", directory, gate, count_of, bytes] => {
            let (count_of, bytes): (u64, u64) = (count_of.parse().unwrap(), bytes.parse().unwrap());
            let (here, gate) = (scalable::same((*directory).to_owned()), scalable::same((*gate).to_owned()));
            let made = session.map(make_behind, (gate, here, 0..count_of, scalable::same(bytes))).await?;
            made.wait().await;
            println!("made");
            there(&Path::new(directory).join("read now")).await;
            let counted = session.map(count, (&made, (0..count_of).map(|n| n as u8))).await?;
            println!("{}", counted.gather().await?.iter().all(|counted| *counted == bytes));
            let made = made.gather().await?;
            println!("{}", made.iter().enumerate().all(|(n, object)| *object == vec![n as u8; bytes as usize]));
        }
        // Says when the first results are there, reads on when they come, and says how many there were and whether they were right.
        ["flood", tasks, bytes] => {
            let (tasks, bytes): (u64, u64) = (tasks.parse().unwrap(), bytes.parse().unwrap());
            let (mut seen, mut right) = (0, 0);
            let filled = session.map(fill, (scalable::same(bytes), (0..tasks).map(|n| n as u8)));
            let each = |n: usize, result: Result<Vec<u8>, Error>| {
                let result = result?;
                seen += 1;
                right += u64::from(result.len() as u64 == bytes && result.iter().all(|byte| *byte == n as u8));
                if seen == 10 {
                    println!("begun");
                }
                Ok(())
            };
            filled.for_each(each).await?;
            println!("{seen} {right}");
        }
        // So many sessions beside this one, one after the other, that do nothing.
        ["sessions", sessions] => {
            for _ in 0..sessions.parse::<u32>().unwrap() {
                drop(Session::from_env().await?);
            }
            println!("{}", session.submit(add, (1, 1)).await?.await?);
        }
        ["wait", gate, tasks] => {
            let tasks: u64 = tasks.parse().unwrap();
            let waits = session.map(wait_for, (scalable::same((*gate).to_owned()), 0..tasks)).await?;
            println!("{}", waits.gather().await?.iter().sum::<u64>());
        }
        other => panic!("no such verb: {other:?}"),
    }
    Ok(())
}

/// What became of a task, in one line without names that differ from run to run.
fn said<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    match outcome {
        Ok(value) => format!("{value:?}"),
        Err(Error::Task(TaskError::Failed { message, .. })) => format!("failed: {}", message.lines().next().unwrap_or_default()),
        Err(Error::Task(TaskError::Panicked { message, .. })) => {
            format!("panicked: {}", message.lines().next().unwrap_or_default())
        }
        Err(Error::Task(TaskError::DependencyFailed { root, .. })) => format!("not run because of {root}"),
        Err(Error::Task(TaskError::Cancelled { .. })) => "cancelled".to_owned(),
        Err(error) => format!("{error:?}"),
    }
}
