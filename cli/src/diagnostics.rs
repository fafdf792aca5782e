//! Findings of a manifest as a person reads them: where in the file, what, and what to do.

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report, Severity};
use scalable_manifest::Diagnostic;

use crate::ui::Ui;

/// Columns of a finding.
const WIDTH: usize = 120;
/// A line of the manifest longer than this is not repeated.
const LINE_CHARS_MAX: usize = 300;

/// All findings, each with its place in the file.
pub fn render(ui: Ui, path: &str, source: &str, diagnostics: &[Diagnostic]) -> String {
    let theme = if ui.colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let handler = GraphicalReportHandler::new_themed(theme).with_width(WIDTH).with_links(false);
    let source = plain(source);
    let mut text = String::new();
    for diagnostic in diagnostics {
        let report = report(path, &source, diagnostic);
        let before = text.len();
        if handler.render_report(&mut text, report.as_ref()).is_err() {
            text.truncate(before);
            text.push_str(&format!("{diagnostic}\n"));
        }
    }
    text
}

/// `2 errors, 1 warning`.
pub fn count(diagnostics: &[Diagnostic]) -> String {
    let errors = diagnostics.iter().filter(|found| is_error(found)).count();
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    format!("{}, {}", plural(errors, "error"), plural(diagnostics.len() - errors, "warning"))
}

/// True for what stops a run.
pub fn is_error(diagnostic: &Diagnostic) -> bool {
    diagnostic.severity == scalable_manifest::Severity::Error
}

fn report(path: &str, source: &str, diagnostic: &Diagnostic) -> Report {
    let severity = if is_error(diagnostic) { Severity::Error } else { Severity::Warning };
    let mut made = MietteDiagnostic::new(format!("{}: {}", diagnostic.path, diagnostic.message))
        .with_code(diagnostic.code)
        .with_severity(severity);
    if let Some(help) = &diagnostic.help {
        made = made.with_help(help);
    }
    match span(source, diagnostic.line, diagnostic.column) {
        Some((offset, length)) => {
            let label = LabeledSpan::new(Some("here".to_owned()), offset, length);
            Report::new(made.with_label(label)).with_source_code(NamedSource::new(path, source.to_owned()))
        }
        None => Report::new(made),
    }
}

/// The source without what a terminal would obey, character by character, so that places stay.
fn plain(source: &str) -> String {
    source
        .chars()
        .map(|c| if c == '\n' || c == '\t' || crate::ui::harmless(c.encode_utf8(&mut [0; 4])) == c.to_string() { c } else { '·' })
        .collect()
}

/// Bytes of the word at a place that is counted in lines and characters from 1.
fn span(source: &str, line: u32, column: u32) -> Option<(usize, usize)> {
    let (line, column) = (usize::try_from(line).ok()?.checked_sub(1)?, usize::try_from(column).ok()?.saturating_sub(1));
    let begin: usize = source.split_inclusive('\n').take(line).map(str::len).sum();
    let text = source.get(begin..)?.lines().next()?;
    if text.chars().count() > LINE_CHARS_MAX {
        return None;
    }
    let at = text.char_indices().nth(column).map_or(text.len(), |(at, _)| at);
    let word = text[at..].find(|c: char| c.is_whitespace() || matches!(c, ':' | ',' | ']' | '}')).unwrap_or(text.len() - at);
    Some((begin + at, word.max(usize::from(at < text.len()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_in_characters() {
        let source = "version: 1\ntasks:\n  é: {retrys: 2}\n";
        assert_eq!(span(source, 1, 1), Some((0, 7)));
        let (at, length) = span(source, 3, 7).unwrap_or_default();
        assert_eq!(&source[at..at + length], "retrys");
        assert_eq!(span(source, 9, 1), None);
        assert_eq!(span(source, 0, 0), None);
        assert_eq!(span(source, 1, 99), Some((10, 0)), "beyond the line's end is its end");
        assert_eq!(span(&"x".repeat(LINE_CHARS_MAX + 1), 1, 1), None);
    }

    #[test]
    fn the_source_drives_no_terminal_and_keeps_its_places() {
        assert_eq!(plain("a\x1b[2Jé\tb\u{202e}\r\n"), "a·[2Jé\tb··\n");
    }
}
