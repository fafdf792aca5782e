//! Ctrl-C and the other ways in which a command line is told to stop, and the question it then asks on a terminal.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal as UnixSignal;
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use nix::unistd::{getpgrp, tcgetpgrp};
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Failure, code};

/// A second Ctrl-C in this time after the first cancels without an answer.
pub const SECOND_WITHIN: Duration = Duration::from_secs(5);

/// What told the command line to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal is gone.
    Hangup,
}

impl Told {
    /// Exit code of a command line that cancelled its run because of this.
    pub fn exit_code(self) -> u8 {
        match self {
            Told::Interrupt => code::INTERRUPTED,
            Told::Terminate => code::TERMINATED,
            Told::Hangup => code::HANGUP,
        }
    }

    /// For the records: why the run was cancelled.
    pub fn reason(self) -> &'static str {
        match self {
            Told::Interrupt => "cancelled by Ctrl-C (SIGINT)",
            Told::Terminate => "cancelled by SIGTERM",
            Told::Hangup => "cancelled because the terminal went away (SIGHUP)",
        }
    }
}

/// The signals, from the moment it is made. A SIGHUP that was ignored when the program started (`nohup`) stays ignored.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// Takes the signals over.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn new() -> Result<Signals, Failure> {
        let take = |kind| signal(kind).map_err(|error| Failure::io("take over the signals", &error));
        let hangup = if is_ignored(UnixSignal::SIGHUP) { None } else { Some(take(SignalKind::hangup())?) };
        Ok(Signals { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())?, hangup })
    }

    /// The next one.
    pub async fn next(&mut self) -> Told {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Told::Interrupt,
            _ = self.terminate.recv() => Told::Terminate,
            _ = hangup => Told::Hangup,
        }
    }

    /// Does `work`, unless a signal comes first.
    ///
    /// # Errors
    /// Those of `work`; that a signal has interrupted it, with that signal's exit code.
    pub async fn unless<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::select! {
            done = work => done,
            told = self.next() => Err(Failure { code: told.exit_code(), message: "interrupted".to_owned(), help: None }),
        }
    }
}

fn is_ignored(which: UnixSignal) -> bool {
    // SAFETY: with no new action sigaction only writes the current one to `old`, which is a plain struct of integers.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(which as libc::c_int, std::ptr::null(), &raw mut old) == 0 && old.sa_sigaction == libc::SIG_IGN
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing, or nothing yet.
    GoOn,
    /// Ask on the terminal.
    Ask,
    /// Leave the run alone and end.
    Detach,
    /// End the run.
    Cancel(Told),
    /// It was being cancelled already: do not wait for it.
    Force(Told),
}

/// Decides what a signal or an answer means. Knows no terminal and no clock: both come in.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// There is a terminal that can be asked.
    pub terminal: bool,
    /// The run can outlive the command line even when nobody has time to ask.
    pub outlives: bool,
    asked: Option<Instant>,
    cancelling: bool,
}

impl Policy {
    /// Nothing was said yet.
    pub fn new(terminal: bool, outlives: bool) -> Policy {
        Policy { terminal, outlives, asked: None, cancelling: false }
    }

    /// A signal came.
    pub fn signal(&mut self, told: Told, now: Instant) -> Decision {
        if self.cancelling {
            return Decision::Force(told);
        }
        let decision = match told {
            Told::Interrupt if !self.terminal => Decision::Cancel(told),
            Told::Interrupt => match self.asked {
                Some(asked) if now.duration_since(asked) <= SECOND_WITHIN => Decision::Cancel(told),
                _ => Decision::Ask,
            },
            Told::Terminate => Decision::Cancel(told),
            Told::Hangup if self.outlives => Decision::Detach,
            Told::Hangup => Decision::Cancel(told),
        };
        match decision {
            Decision::Ask => self.asked = Some(now),
            Decision::Cancel(_) => self.cancelling = true,
            _ => {}
        }
        decision
    }

    /// A key was pressed after the question.
    pub fn answer(&mut self, key: u8) -> Decision {
        match key {
            b'd' | b'D' => Decision::Detach,
            b'c' | b'C' => {
                self.cancelling = true;
                Decision::Cancel(Told::Interrupt)
            }
            _ => {
                self.asked = None;
                Decision::GoOn
            }
        }
    }
}

/// True when this process has a terminal and is in its foreground: Ctrl-C there reaches its children too.
pub fn is_in_foreground() -> bool {
    File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(terminal.as_fd()).is_ok_and(|group| group == getpgrp()))
}

/// The terminal, in a mode in which one key is an answer. Put back as it was when dropped.
pub struct Keys {
    terminal: AsyncFd<File>,
    before: Termios,
}

impl Keys {
    /// Opens the controlling terminal; nothing where there is none or this process is in the background.
    pub fn open() -> Option<Keys> {
        let terminal =
            File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open("/dev/tty").ok()?;
        if tcgetpgrp(terminal.as_fd()).ok()? != getpgrp() {
            return None;
        }
        let before = termios::tcgetattr(terminal.as_fd()).ok()?;
        let mut single = before.clone();
        single.local_flags.remove(LocalFlags::ICANON | LocalFlags::ECHO);
        termios::tcsetattr(terminal.as_fd(), SetArg::TCSANOW, &single).ok()?;
        // SAFETY: the file is owned by the registration, never replaced, and closed only after it is dropped.
        match unsafe { AsyncFd::register(terminal) } {
            Ok(terminal) => Some(Keys { terminal, before }),
            Err(_) => None,
        }
    }

    /// The next key; nothing when the terminal is gone.
    pub async fn next(&self) -> Option<u8> {
        loop {
            let mut ready = self.terminal.readable().await.ok()?;
            let mut key = [0];
            match ready.try_io(|terminal| terminal.get_ref().read(&mut key)) {
                Ok(Ok(1)) => return Some(key[0]),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => return None,
                Err(_would_block) => {}
            }
        }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // A terminal that is gone cannot be put back.
        let _ = termios::tcsetattr(self.terminal.get_ref().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Decision::{Ask, Cancel, Detach, Force, GoOn};
    use Told::{Hangup, Interrupt, Terminate};

    #[test]
    fn without_a_terminal_signals_cancel_at_once() {
        for told in [Interrupt, Terminate, Hangup] {
            assert_eq!(Policy::new(false, false).signal(told, Instant::now()), Cancel(told));
        }
        assert_eq!(Policy::new(false, true).signal(Hangup, Instant::now()), Detach);
        assert_eq!(Policy::new(true, true).signal(Hangup, Instant::now()), Detach);
        assert_eq!(Policy::new(true, false).signal(Hangup, Instant::now()), Cancel(Hangup));
        assert_eq!(Policy::new(true, true).signal(Terminate, Instant::now()), Cancel(Terminate));
    }

    #[test]
    fn on_a_terminal_the_first_asks_and_a_second_in_time_cancels() {
        let begun = Instant::now();
        let mut policy = Policy::new(true, false);
        assert_eq!(policy.signal(Interrupt, begun), Ask);
        assert_eq!(policy.signal(Interrupt, begun + SECOND_WITHIN + Duration::from_millis(1)), Ask, "too late: asks again");
        assert_eq!(policy.signal(Interrupt, begun + SECOND_WITHIN + Duration::from_secs(2)), Cancel(Interrupt));
        assert_eq!(policy.signal(Interrupt, begun + SECOND_WITHIN + Duration::from_secs(3)), Force(Interrupt));
    }

    #[test]
    fn answers() {
        let begun = Instant::now();
        for (key, expected) in
            [(b'd', Detach), (b'c', Cancel(Interrupt)), (b'C', Cancel(Interrupt)), (b'\n', GoOn), (b'x', GoOn), (0x1b, GoOn)]
        {
            let mut policy = Policy::new(true, false);
            assert_eq!(policy.signal(Interrupt, begun), Ask);
            assert_eq!(policy.answer(key), expected);
        }
        let mut policy = Policy::new(true, false);
        policy.signal(Interrupt, begun);
        policy.answer(b'x');
        assert_eq!(
            policy.signal(Interrupt, begun + Duration::from_secs(1)),
            Ask,
            "after going on the next one is a first one again"
        );
    }
}
