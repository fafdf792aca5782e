//! What is wrong with a manifest, where, and what to do: collected, never thrown one by one.

use serde::Serialize;
use serde_json::{Value, json};

/// Most diagnostics kept of one load; what is beyond is counted in a last one.
pub const DIAGNOSTICS_MAX: usize = 500;
/// Longest part of a user's text that a message repeats, characters.
const SHOWN_MAX: usize = 80;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is planned or run.
    Error,
    /// It runs, but not as someone might think.
    Warning,
}

/// A place in the manifest, both from 1; 0 where there is none (an unreadable file).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// Error or warning. A warning's code keeps its `W_` where `strict` makes an error of it.
    #[serde(skip)]
    pub severity: Severity,
    /// `E_…` or `W_…`; docs/manifest.md has a line for each.
    pub code: &'static str,
    /// The key: `tasks.simulate.retries`, or `manifest` for the file as a whole.
    pub path: String,
    /// What is wrong, with the figures.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Line in the manifest, from 1; 0 where there is none.
    pub line: u32,
    /// Column in characters, from 1; 0 where there is none.
    pub column: u32,
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.line > 0 {
            write!(f, "{}:{}: ", self.line, self.column)?;
        }
        write!(f, "{} {}: {}", self.code, self.path, self.message)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// Findings in the order of their places. Mutably lent through every stage.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    found: Vec<Diagnostic>,
    dropped: usize,
    /// Findings that say "accepted, but without effect" are errors.
    pub strict: bool,
}

impl Sink {
    pub(crate) fn new(strict: bool) -> Sink {
        Sink { strict, ..Sink::default() }
    }

    pub(crate) fn error(&mut self, code: &'static str, path: &str, at: At, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Error, code, path, at, message.into())
    }

    pub(crate) fn warn(&mut self, code: &'static str, path: &str, at: At, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Warning, code, path, at, message.into())
    }

    /// A warning that `strict` makes an error.
    pub(crate) fn lenient(&mut self, code: &'static str, path: &str, at: At, message: impl Into<String>) -> &mut Diagnostic {
        let severity = if self.strict { Severity::Error } else { Severity::Warning };
        self.push(severity, code, path, at, message.into())
    }

    fn push(&mut self, severity: Severity, code: &'static str, path: &str, at: At, message: String) -> &mut Diagnostic {
        let new = Diagnostic { severity, code, path: path.to_owned(), message, help: None, line: at.line, column: at.column };
        let full = self.found.len() >= DIAGNOSTICS_MAX;
        if full {
            // An error must never be crowded out by warnings.
            let victim = self.found.iter().rposition(|d| d.severity > severity).unwrap_or(self.found.len() - 1);
            self.found.remove(victim);
            self.dropped += 1;
        }
        self.found.push(new);
        let last = self.found.len() - 1;
        &mut self.found[last]
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.found.iter().any(|d| d.severity == Severity::Error)
    }

    /// All findings by place.
    pub(crate) fn into_sorted(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|d| (d.line == 0, d.line, d.column));
        self.found.dedup();
        if self.dropped > 0 {
            let severity = if self.has_errors() { Severity::Error } else { Severity::Warning };
            let message = format!("{} more findings are not shown", self.dropped);
            let code = if severity == Severity::Error { "E_MORE" } else { "W_MORE" };
            let path = "manifest".to_owned();
            self.found.push(Diagnostic { severity, code, path, message, help: None, line: 0, column: 0 });
        }
        self.found
    }
}

impl Diagnostic {
    /// Adds what to do.
    pub(crate) fn help(&mut self, help: impl Into<String>) {
        self.help = Some(help.into());
    }

    /// Adds what to do, where there is something.
    pub(crate) fn maybe_help(&mut self, help: Option<String>) {
        self.help = help.or(self.help.take());
    }
}

/// The document `scalable validate` prints: `{"errors": […], "ok": bool, "warnings": […]}`.
pub fn report(diagnostics: &[Diagnostic]) -> Value {
    let of = |severity| diagnostics.iter().filter(|d| d.severity == severity).collect::<Vec<_>>();
    let errors = of(Severity::Error);
    json!({ "errors": errors, "ok": errors.is_empty(), "warnings": of(Severity::Warning) })
}

/// A user's text in a message: control characters escaped, cut where it is long.
pub(crate) fn show(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN_MAX).flat_map(|c| c.escape_debug()).collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
        shown.push_str(&format!(" ({} bytes)", text.len()));
    }
    shown.replace("\\'", "'").replace("\\\"", "\"")
}

/// A list of names in a message: `a`, `b`; at most a dozen.
pub(crate) fn show_names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    let shown: Vec<_> = names.iter().take(12).map(|name| format!("`{}`", show(name))).collect();
    match (shown.is_empty(), names.len() - shown.len()) {
        (true, _) => "none".to_owned(),
        (_, 0) => shown.join(", "),
        (_, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// "did you mean `retries`?" for a name that is close to one of the known.
pub fn suggestion<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    if name.len() > 64 {
        return None;
    }
    let lower = name.to_lowercase();
    let distance = |candidate: &str| strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
    let best = known.into_iter().map(|candidate| (distance(candidate), candidate)).min_by_key(|(distance, _)| *distance)?;
    let near = best.0 <= 1 + best.1.len().min(name.len()) / 4;
    near.then(|| format!("did you mean `{}`?", show(best.1)))
}
