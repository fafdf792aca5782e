//! What reaches a person: stdout for data, stderr for everything else, and nothing from a task or a name that could drive the
//! terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::exit::Failure;

/// How data is written to stdout: for people, or for programs as one document with a `schema`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// What the user wants of the output, and what it is connected to.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    /// Data on stdout.
    pub format: Format,
    /// Bars that are drawn over each other; else plain lines.
    pub bars: bool,
    /// No progress at all.
    pub quiet: bool,
    /// Colours and bold on stderr.
    pub colour: bool,
    /// Stdout is a terminal: what comes from tasks is made harmless.
    pub stdout_is_terminal: bool,
    /// Stderr is a terminal.
    pub stderr_is_terminal: bool,
}

impl Ui {
    /// Looks at the terminal and the environment once.
    pub fn new(format: Format, no_progress: bool) -> Ui {
        let stderr_is_terminal = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Ui {
            format,
            bars: stderr_is_terminal && !dumb && !no_progress,
            quiet: no_progress,
            colour: stderr_is_terminal && !dumb && !no_colour,
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal,
        }
    }

    /// True for `-o json`.
    pub fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// Writes text to stdout.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub fn out(&self, text: impl AsRef<str>) -> Result<(), Failure> {
        let text = text.as_ref();
        let text = if self.stdout_is_terminal { harmless(text) } else { Cow::Borrowed(text) };
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            stdout.write_all(b"\n")?;
        }
        Ok(stdout.flush()?)
    }

    /// Writes a document to stdout, indented.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub fn out_json(&self, document: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(document)
            .map_err(|error| Failure::infrastructure(format!("cannot write JSON: {error}")))?;
        self.out(text)
    }

    /// A line for people on stderr.
    pub fn say(&self, text: impl AsRef<str>) {
        let text = harmless_if(self.stderr_is_terminal, text.as_ref());
        // Nobody can be told that stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{text}");
    }

    /// Text on stderr as it is: it was made here, with colours where they are wanted, and what came from elsewhere is harmless.
    pub fn show(&self, text: impl AsRef<str>) {
        let _ = io::stderr().lock().write_all(text.as_ref().as_bytes());
    }

    /// A warning.
    pub fn warn(&self, text: impl AsRef<str>) {
        let text = harmless_if(self.stderr_is_terminal, text.as_ref());
        let _ = writeln!(io::stderr().lock(), "{} {text}", self.paint("33;1", "warning:"));
    }

    /// An error with its help.
    pub fn fail(&self, failure: &Failure) {
        if failure.message.is_empty() {
            return;
        }
        let mut stderr = io::stderr().lock();
        if self.json() {
            let document = serde_json::json!({
                "schema": "scalable.error.v1", "exit_code": failure.code, "message": failure.message, "help": failure.help,
            });
            let _ = writeln!(stderr, "{document}");
            return;
        }
        let message = harmless_if(self.stderr_is_terminal, &failure.message);
        let _ = writeln!(stderr, "{} {message}", self.paint("31;1", "error:"));
        if let Some(help) = &failure.help {
            let help = harmless_if(self.stderr_is_terminal, help);
            let _ = writeln!(stderr, "{} {help}", self.paint("36;1", "help:"));
        }
    }

    /// `text` in a colour (SGR numbers) where colours are wanted.
    pub fn paint<'a>(&self, sgr: &str, text: &'a str) -> Cow<'a, str> {
        if self.colour { Cow::Owned(format!("\x1b[{sgr}m{text}\x1b[0m")) } else { Cow::Borrowed(text) }
    }
}

fn harmless_if(terminal: bool, text: &str) -> Cow<'_, str> {
    if terminal { harmless(text) } else { Cow::Borrowed(text) }
}

/// `text` without anything that a terminal would obey: escape sequences are removed whole, other control characters and those
/// that change the direction of writing are shown as `\u{..}`; line feeds and tabs stay, a carriage return at a line's end goes.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(must_go) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => match rest.peek() {
                Some('[') => {
                    rest.next();
                    skip_until(&mut rest, |c| ('\x40'..='\x7e').contains(&c));
                }
                Some(']' | 'P' | 'X' | '^' | '_') => skip_string(&mut rest),
                Some(_) => {
                    rest.next();
                }
                None => {}
            },
            '\u{9b}' => skip_until(&mut rest, |c| ('\x40'..='\x7e').contains(&c)),
            '\u{90}' | '\u{9d}' | '\u{98}' | '\u{9e}' | '\u{9f}' => skip_string(&mut rest),
            '\r' if matches!(rest.peek(), Some('\n') | None) => {}
            '\r' => out.push('\n'),
            c if must_go(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

fn must_go(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

/// Skips parameters up to and with the final character. A sequence never crosses a line: garbage cannot swallow what follows.
fn skip_until(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, last: impl Fn(char) -> bool) {
    while let Some(&c) = rest.peek() {
        if c == '\n' {
            return;
        }
        rest.next();
        if last(c) {
            return;
        }
    }
}

/// Skips an operating system command or the like: up to BEL, ST, or the end of the line.
fn skip_string(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while let Some(&c) = rest.peek() {
        if c == '\n' {
            return;
        }
        rest.next();
        match c {
            '\x07' | '\u{9c}' => return,
            '\x1b' => {
                if rest.peek() == Some(&'\\') {
                    rest.next();
                }
                return;
            }
            _ => {}
        }
    }
}

/// `text` on one line of at most `max` characters, harmless, for cells of tables and bars.
pub fn one_line(text: &str, max: usize) -> String {
    let flat: String = harmless(text).chars().map(|c| if matches!(c, '\n' | '\t') { ' ' } else { c }).collect();
    if flat.chars().count() <= max {
        return flat;
    }
    let mut cut: String = flat.chars().take(max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// Bytes for people: `512 MiB`, `1.5 GiB`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut unit = 0;
    let mut scaled = bytes as f64;
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    if unit == 0 || (scaled.fract() < 0.05) {
        format!("{scaled:.0} {}", UNITS[unit])
    } else {
        format!("{scaled:.1} {}", UNITS[unit])
    }
}

/// A time span for people: `0.8 s`, `12 s`, `3 min 20 s`, `2 h`.
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let two = |large: u64, unit: &str, small: u64, small_unit: &str| {
        if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {small_unit}") }
    };
    match whole {
        0..=9 if seconds < 0.095 => format!("{:.0} ms", seconds.max(0.0) * 1000.0),
        0..=9 => format!("{seconds:.1} s"),
        10..=59 => format!("{whole} s"),
        60..=3599 => two(whole / 60, "min", whole % 60, "s"),
        3600..=86_399 => two(whole / 3600, "h", whole % 3600 / 60, "min"),
        _ => two(whole / 86_400, "d", whole % 86_400 / 3600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_drives_a_terminal_passes() {
        let check = |input: &str, expected: &str| assert_eq!(harmless(input), expected, "{input:?}");
        check("plain äöü 🌍\ttab\nline", "plain äöü 🌍\ttab\nline");
        check("\x1b[31mred\x1b[0m", "red");
        check("\x1b]0;title\x07text", "text");
        check("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link");
        check("\x1b]52;c;AAAA", "");
        check("\x1b[12", "");
        check("\x1b[1\nnext line stays", "\nnext line stays");
        check("\u{9b}2Jcleared", "cleared");
        check("\x1bPq\x1b\\x", "x");
        check("over\rwrite\r\n", "over\nwrite\n");
        check("bell\x07 nul\0", "bell\\u{7} nul\\u{0}");
        check("a\u{202e}b", "a\\u{202e}b");
        check("\x1b", "");
    }

    #[test]
    fn cells_are_one_line_and_bounded() {
        assert_eq!(one_line("a\nb\tc", 10), "a b c");
        assert_eq!(one_line("0123456789", 5), "0123…");
        assert_eq!(one_line("🌍🌍🌍", 2), "🌍…");
    }

    #[test]
    fn figures_for_people() {
        let spans: Vec<String> = [0.04, 0.3, 9.4, 12.3, 61.0, 1800.0, 3661.0, 90_000.0].map(span).into();
        assert_eq!(spans, ["40 ms", "0.3 s", "9.4 s", "12 s", "1 min 1 s", "30 min", "1 h 1 min", "1 d 1 h"]);
        let sizes: Vec<String> = [0, 1023, 1024, 1536, 512 << 20, 3 << 40, u64::MAX].map(bytes).into();
        assert_eq!(sizes, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "512 MiB", "3 TiB", "16384 PiB"]);
    }
}
