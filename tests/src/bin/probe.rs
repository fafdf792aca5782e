//! The program that plays the tasks in the end-to-end tests. Every verb does one thing that a test wants to see happen.

#![allow(clippy::unwrap_used, reason = "a task that cannot go on fails, and says where")]
#![allow(clippy::print_stdout, reason = "stdout is where a task says things")]

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        // Notes its start, waits for the gate, notes its end.
        ["gate", notes, name, gate] => {
            note(notes, "start", name);
            wait_until(|| Path::new(gate).exists());
            note(notes, "end", name);
        }
        // As `gate`, but only the first start of this name waits. Which start it was is written into `file`.
        ["gate-first", notes, name, gate, file] => {
            let nth = note_start(notes, name);
            if nth == 1 {
                wait_until(|| Path::new(gate).exists());
            }
            note(notes, "end", name);
            std::fs::write(file, nth.to_string()).unwrap();
        }
        // Notes its start, waits until `count` have started, notes its end.
        ["meet", notes, name, count] => {
            note(notes, "start", name);
            let count: usize = count.parse().unwrap();
            wait_until(|| {
                std::fs::read_to_string(notes).unwrap().lines().filter(|line| line.starts_with("start ")).count() >= count
            });
            note(notes, "end", name);
        }
        // Fails the first `times` times.
        ["flaky", notes, times] => {
            let nth = note_start(notes, "flaky");
            if nth <= times.parse().unwrap() {
                eprintln!("start {nth} does not want to");
                std::process::exit(9);
            }
        }
        // Touches `bytes` of memory, keeps them, and says so.
        ["hog", bytes] => {
            let bytes: usize = bytes.parse().unwrap();
            let mut memory: Vec<u8> = Vec::with_capacity(bytes);
            for at in 0..bytes / 4096 {
                memory.resize((at + 1) * 4096, at as u8 | 1);
            }
            println!("{} bytes, {}", memory.len(), memory.iter().map(|byte| u64::from(*byte)).sum::<u64>());
        }
        // Does not listen to SIGTERM and has children that do not either: one in its process group, one in a session of its own.
        ["deaf", notes] => {
            // SAFETY: ignoring a signal and forking from a process with one thread.
            unsafe {
                libc::signal(libc::SIGTERM, libc::SIG_IGN);
                if libc::fork() == 0 {
                    note(notes, "child", "same-group");
                    wait_until(|| false);
                }
                if libc::fork() == 0 {
                    libc::setsid();
                    note(notes, "child", "own-session");
                    wait_until(|| false);
                }
            }
            note(notes, "start", "deaf");
            wait_until(|| false);
        }
        // Leaves a child behind that holds the streams open, and ends well.
        ["leave", notes] => {
            // SAFETY: forking from a process with one thread.
            if unsafe { libc::fork() } == 0 {
                note(notes, "child", "left");
                wait_until(|| false);
            }
            wait_until(|| Path::new(notes).exists());
        }
        // Writes what the task is told about itself.
        ["environment", file] => {
            let mut told: Vec<String> = std::env::vars()
                .filter(|(name, _)| name.starts_with("SCALABLE_"))
                .map(|(name, value)| format!("{name}={value}\n"))
                .collect();
            told.sort();
            std::fs::write(file, told.concat()).unwrap();
        }
        // Its arguments, one a line, with line breaks shown.
        ["arguments", file, rest @ ..] => {
            let text: String = rest.iter().map(|word| format!("{word:?}\n")).collect();
            append(file, &text);
        }
        // Copies files one after the other into the first.
        ["concatenate", file, list] => {
            let paths = std::fs::read_to_string(list).unwrap();
            let all: String = paths.lines().map(|path| std::fs::read_to_string(path).unwrap()).collect();
            std::fs::write(file, all).unwrap();
        }
        // Writes a file.
        ["write", file, text] => std::fs::write(file, text).unwrap(),
        // Ends with this code and these words.
        ["fail", code, words] => {
            eprintln!("{words}");
            std::process::exit(code.parse().unwrap());
        }
        ["nothing"] => {}
        other => panic!("no such verb: {other:?}"),
    }
}

/// Notes a start and returns how many of this name there have been. Attempt numbers do not say that: one that was taken back
/// before it executed has had a number too.
fn note_start(notes: &str, name: &str) -> usize {
    note(notes, "start", name);
    let begin = format!("start {name} ");
    std::fs::read_to_string(notes).unwrap().lines().filter(|line| line.starts_with(&begin)).count()
}

/// One line, written in one piece: `event name pid parent`.
fn note(notes: &str, event: &str, name: &str) {
    // SAFETY: always succeeds.
    let parent = unsafe { libc::getppid() };
    append(notes, &format!("{event} {name} pid={} parent={parent}\n", std::process::id()));
}

fn append(file: &str, text: &str) {
    OpenOptions::new().append(true).create(true).open(file).unwrap().write_all(text.as_bytes()).unwrap();
}

fn wait_until(mut happened: impl FnMut() -> bool) {
    while !happened() {
        std::thread::sleep(Duration::from_millis(5));
    }
}
