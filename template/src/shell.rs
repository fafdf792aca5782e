//! Substitutions in `shell:` texts. Each value becomes one single-quoted word, so nothing in it can be anything but data, and a
//! place where a quoted word would not be one (inside quotes, comments, here-documents, …) is refused before anything runs.

use scalable_proto::v1::{Text, piece::Kind};

/// `value` as one word of a POSIX shell. Always quoted: a bare `2` before `>` or a bare word after `$x` would change meaning.
pub fn quote(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    quote_into(&mut out, value);
    out
}

pub(crate) fn quote_into(out: &mut String, value: &str) {
    out.push('\'');
    for (nth, part) in value.split('\'').enumerate() {
        if nth > 0 {
            out.push_str("'\\''");
        }
        out.push_str(part);
    }
    out.push('\'');
}

/// A command line for people to paste: words are quoted only where a shell needs it. Bytes that are not UTF-8 are shown replaced.
pub fn quote_argv<S: AsRef<std::ffi::OsStr>>(argv: &[S]) -> String {
    let bare = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"_@%+:,./-=".contains(&b));
    let words = argv.iter().enumerate().map(|(at, word)| {
        let word = word.as_ref().to_string_lossy();
        // An equals sign in the first word would make it an assignment.
        if bare(&word) && !(at == 0 && word.contains('=')) { word.into_owned() } else { quote(&word) }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A substitution stands where a quoted word would not be one word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("substitution {piece} of the shell text stands {place}")]
pub struct ShellError {
    /// Which piece of the text, from 0.
    pub piece: usize,
    /// Where it stands: `inside double quotes`.
    pub place: &'static str,
    /// What to do instead.
    pub help: &'static str,
}

/// What the reader is inside of, innermost last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// Commands: the text itself, `( … )` and `$( … )`. True for `$(`.
    Commands(bool),
    Single,
    Double,
    Backtick,
    /// `${ … }`
    Expansion,
    /// `$(( … ))`, with parentheses still open in it.
    Arithmetic(u32),
}

struct Reader {
    stack: Vec<Inside>,
    comment: bool,
    /// Delimiters of here-documents whose body begins on the next line; true strips tabs.
    pending: Vec<(String, bool)>,
    /// Set by what is not followed (`case` inside `$( … )` has parentheses of its own): nothing after it is certain.
    uncertain: Option<Refusal>,
    /// The word being read, to know `case` and where a comment may begin.
    word: String,
}

/// Deepest nesting that is followed.
const DEPTH_MAX: usize = 64;

/// Checks that every substitution of a `shell:` text stands where its quoted value is a word, or part of one.
///
/// # Errors
/// The first substitution that does not.
pub fn check_shell(text: &Text) -> Result<(), ShellError> {
    let mut reader = Reader {
        stack: vec![Inside::Commands(false)],
        comment: false,
        pending: Vec::new(),
        uncertain: None,
        word: String::new(),
    };
    let mut last = None;
    for (at, piece) in text.pieces.iter().enumerate() {
        match &piece.kind {
            Some(Kind::Literal(literal)) => {
                last = reader.literal(literal).or(if literal.is_empty() { last } else { None });
            }
            Some(_) => {
                if let Some((place, help)) = last.take().or_else(|| reader.refusal()) {
                    return Err(ShellError { piece: at, place, help });
                }
                reader.word.push('\u{0}');
            }
            None => {}
        }
    }
    Ok(())
}

type Refusal = (&'static str, &'static str);
const UNQUOTE: &str = "remove the quotes: each {…} already becomes one quoted word, also beside other text";
const VARIABLE: &str = "set a variable at the beginning, x={…}, and use \"$x\" there";

impl Reader {
    fn refusal(&self) -> Option<Refusal> {
        if self.comment {
            return Some(("inside a comment", "remove it"));
        }
        if self.uncertain.is_some() {
            return self.uncertain;
        }
        match self.stack.last() {
            Some(Inside::Commands(_)) => None,
            Some(Inside::Single) => Some(("inside single quotes", UNQUOTE)),
            Some(Inside::Double) => Some(("inside double quotes", UNQUOTE)),
            Some(Inside::Backtick) => Some(("inside backquotes", "write $(…) instead of `…`")),
            Some(Inside::Expansion) => Some(("inside `${…}`", VARIABLE)),
            Some(Inside::Arithmetic(_)) => Some(("inside `$((…))`", "set a variable before, x={…}, and use x there")),
            None => Some(("after an unbalanced parenthesis", "balance the parentheses")),
        }
    }

    /// Reads a literal piece. Answers with why a substitution right after it would not be a word by itself.
    fn literal(&mut self, text: &str) -> Option<Refusal> {
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let after = &rest[c.len_utf8()..];
            if self.comment {
                if c == '\n' {
                    self.comment = false;
                    match self.newline(after) {
                        Ok(next) => rest = next,
                        Err(refusal) => return Some(refusal),
                    }
                } else {
                    rest = after;
                }
                continue;
            }
            if self.stack.len() > DEPTH_MAX {
                self.uncertain = Some(("after deep nesting", VARIABLE));
                return None;
            }
            match self.stack.last().copied() {
                None => return None,
                Some(Inside::Single) => {
                    if c == '\'' {
                        self.stack.pop();
                    }
                    rest = after;
                }
                Some(inside) => match self.step(inside, c, after) {
                    Ok(next) => rest = next,
                    Err(refusal) => return Some(refusal),
                },
            }
        }
        None
    }

    fn step<'a>(&mut self, inside: Inside, c: char, after: &'a str) -> Result<&'a str, Refusal> {
        let commands = matches!(inside, Inside::Commands(_));
        match c {
            '\\' => {
                let mut chars = after.chars();
                if chars.next().is_none() {
                    return Err(("after a backslash", "remove the backslash"));
                }
                self.word.push('\\');
                return Ok(chars.as_str());
            }
            '$' if after.is_empty() => return Err(("after `$`", "remove the `$`, or write `\\$` for the character")),
            '$' => {
                self.word.push('$');
                if let Some(next) = after.strip_prefix("((") {
                    self.stack.push(Inside::Arithmetic(0));
                    return Ok(next);
                }
                if let Some(next) = after.strip_prefix('(') {
                    self.stack.push(Inside::Commands(true));
                    self.word.clear();
                    return Ok(next);
                }
                if let Some(next) = after.strip_prefix('{') {
                    self.stack.push(Inside::Expansion);
                    return Ok(next);
                }
                if after.starts_with('\'') {
                    // Some shells read escapes in it and some do not.
                    self.uncertain = Some(("after `$'`", VARIABLE));
                }
                // `$#` is not a comment.
                return Ok(after.strip_prefix('#').unwrap_or(after));
            }
            '`' => {
                if inside == Inside::Backtick {
                    self.stack.pop();
                } else {
                    self.stack.push(Inside::Backtick);
                }
                return Ok(after);
            }
            '"' => {
                if inside == Inside::Double {
                    self.stack.pop();
                } else {
                    self.stack.push(Inside::Double);
                }
                self.word.push('"');
                return Ok(after);
            }
            '\'' if inside != Inside::Double => {
                self.stack.push(Inside::Single);
                self.word.push('\'');
                return Ok(after);
            }
            _ => {}
        }
        match inside {
            Inside::Expansion if c == '}' => {
                self.stack.pop();
            }
            Inside::Arithmetic(open) => self.arithmetic(open, c),
            _ if commands => return self.command_character(c, after),
            _ => {}
        }
        Ok(after)
    }

    fn arithmetic(&mut self, open: u32, c: char) {
        self.stack.pop();
        match c {
            '(' => self.stack.push(Inside::Arithmetic(open.saturating_add(1))),
            // The first of the two that close it leaves an ordinary parenthesis to be closed.
            ')' if open == 0 => self.stack.push(Inside::Commands(true)),
            ')' => self.stack.push(Inside::Arithmetic(open - 1)),
            _ => self.stack.push(Inside::Arithmetic(open)),
        }
    }

    fn command_character<'a>(&mut self, c: char, after: &'a str) -> Result<&'a str, Refusal> {
        let separator = c.is_whitespace() || matches!(c, ';' | '&' | '|' | '(' | ')' | '<' | '>');
        if !separator {
            if c == '#' && self.word.is_empty() {
                self.comment = true;
            }
            self.word.push(c);
            return Ok(after);
        }
        if self.word == "case" && self.stack.len() > 1 {
            self.uncertain = Some(("after `case` inside `$(…)`", VARIABLE));
        }
        self.word.clear();
        match c {
            '(' => self.stack.push(Inside::Commands(false)),
            // At the outermost level a lone `)` belongs to a pattern of `case`.
            ')' if self.stack.len() > 1 => {
                let of_a_word = self.stack.pop() == Some(Inside::Commands(true));
                // The word goes on after `$(…)`: a `#` there is no comment.
                self.word.extend(of_a_word.then_some(')'));
            }
            '<' => {
                if let Some(here) = after.strip_prefix('<') {
                    if here.starts_with('<') {
                        return Ok(here.trim_start_matches('<'));
                    }
                    return self.here_document(here);
                }
            }
            '\n' => return self.newline(after),
            _ => {}
        }
        Ok(after)
    }

    fn here_document<'a>(&mut self, text: &'a str) -> Result<&'a str, Refusal> {
        const HELP: &str = "write the delimiter of the here-document as a plain word";
        let (text, tabs) = match text.strip_prefix('-') {
            Some(text) => (text, true),
            None => (text, false),
        };
        let text = text.trim_start_matches([' ', '\t']);
        let end = text.find(|c: char| c.is_whitespace() || ";&|()<>".contains(c)).ok_or(("inside a here-document", HELP))?;
        let delimiter: String = text[..end].chars().filter(|c| !matches!(c, '\'' | '"' | '\\')).collect();
        self.pending.push((delimiter, tabs));
        Ok(&text[end..])
    }

    /// Skips the bodies of here-documents that begin after this line's end.
    fn newline<'a>(&mut self, mut text: &'a str) -> Result<&'a str, Refusal> {
        for (delimiter, tabs) in std::mem::take(&mut self.pending) {
            loop {
                let (line, next) = text
                    .split_once('\n')
                    .ok_or(("inside a here-document", "set a variable before, x={…}, and use $x in the here-document"))?;
                text = next;
                let line = if tabs { line.trim_start_matches('\t') } else { line };
                if line == delimiter {
                    break;
                }
            }
        }
        Ok(text)
    }
}
