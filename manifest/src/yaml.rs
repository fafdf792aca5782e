//! From YAML text to [`Node`]s: one document, duplicate keys refused, depth and size bounded, anchors copied within those bounds,
//! merge keys (`<<`) resolved.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use crate::diagnostic::{At, Sink, show};
use crate::node::{Key, Node, Scalar, Value};

/// Longest manifest, bytes.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 16 << 20;
/// Deepest nesting of lists and mappings.
const DEPTH_MAX: usize = 64;
/// Most values in a document, with those that aliases repeat and those that are kept for aliases.
const NODES_MAX: usize = 2_000_000;
/// Most values that aliases repeat: a few lines of text can ask for any number.
const ALIASED_MAX: usize = 200_000;
/// Longest key the scanner looks ahead for. Keys above the limits of names get a better message than "no colon found".
const KEY_BYTES_MAX: usize = 1 << 20;

struct Open {
    at: At,
    anchor: usize,
    kind: OpenKind,
    size: usize,
}

enum OpenKind {
    Seq(Vec<Node>),
    Map { entries: Vec<(Key, Node)>, seen: HashMap<String, At>, key: Option<Key>, merged: Vec<(Key, Node)> },
}

struct Builder<'s> {
    sink: &'s mut Sink,
    stack: Vec<Open>,
    /// Anchored nodes with the number of values in each.
    anchors: HashMap<usize, (Node, usize)>,
    root: Option<Node>,
    nodes: usize,
    aliased: usize,
}

/// Reads one document. Nothing when it is not YAML or breaks a bound; the reason is in the sink.
pub(crate) fn parse(text: &str, sink: &mut Sink) -> Option<Node> {
    let mut options = Options::default();
    options.emit_comments = false;
    options.simple_key_max_lookahead = KEY_BYTES_MAX;
    options.flow_nesting_limit = DEPTH_MAX + 8;
    options.block_nesting_limit = DEPTH_MAX + 8;
    let mut builder = Builder { sink, stack: Vec::new(), anchors: HashMap::new(), root: None, nodes: 0, aliased: 0 };
    let mut documents = 0;
    for next in Parser::new_from_str_with_options(text, options) {
        match next {
            Ok((Event::DocumentStart(..), span)) => {
                documents += 1;
                if documents > 1 {
                    let message = "malformed YAML: a manifest is one document, here begins a second";
                    builder.sink.error("E_YAML", "manifest", at(&span), message);
                    return None;
                }
            }
            Ok((event, span)) => builder.event(event, &span)?,
            Err(error) => {
                let marker = error.marker();
                let place = place(marker.line(), marker.col());
                let message = format!("malformed YAML: {}", show(&error.info()));
                let help = yaml_help(text, place);
                builder.sink.error("E_YAML", "manifest", place, message).maybe_help(help);
                return None;
            }
        }
    }
    let root = builder.root.take().filter(|root| !root.is_null());
    if root.is_none() {
        builder.sink.error("E_EMPTY", "manifest", At::default(), "manifest document is empty");
    }
    root
}

fn yaml_help(text: &str, at: At) -> Option<String> {
    let line = text.lines().nth((at.line as usize).checked_sub(1)?)?;
    if line.contains('\t') && line.trim_start_matches(' ').starts_with('\t') {
        return Some("YAML indents with spaces, this line begins with a tab".to_owned());
    }
    line.contains('{').then(|| "a value that begins with or contains `{…}` is written in quotes".to_owned())
}

fn place(line: usize, column: usize) -> At {
    let bound = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    At { line: bound(line), column: bound(column.saturating_add(1)) }
}

fn at(span: &Span) -> At {
    place(span.start.line(), span.start.col())
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Option<()> {
        let at = at(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let mut plain = style == ScalarStyle::Plain;
                if let Some(tag) = tag {
                    match tag.core_suffix() {
                        Some("str") => plain = false,
                        Some(_) => {}
                        None => return self.refuse(at, "tags such as `!name` have no meaning in a manifest"),
                    }
                }
                let node = Node { value: Value::Scalar(Scalar::new(text.into_owned(), plain)), at };
                self.add(node, anchor, 1)
            }
            Event::SequenceStart(_, anchor, _) => self.open(at, anchor, OpenKind::Seq(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                self.open(at, anchor, OpenKind::Map { entries: Vec::new(), seen: HashMap::new(), key: None, merged: Vec::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let open = self.stack.pop()?;
                let value = match open.kind {
                    OpenKind::Seq(items) => Value::Seq(items),
                    OpenKind::Map { mut entries, merged, .. } => {
                        let mut own: HashSet<String> = entries.iter().map(|(key, _)| key.text.clone()).collect();
                        entries.extend(merged.into_iter().filter(|(key, _)| own.insert(key.text.clone())));
                        Value::Map(entries)
                    }
                };
                self.add(Node { value, at: open.at }, open.anchor, open.size)
            }
            Event::Alias(id) => {
                let Some(size) = self.anchors.get(&id).map(|(_, size)| *size) else {
                    return self.refuse(at, "an alias cannot stand inside what it names");
                };
                // Counted before anything is copied.
                self.aliased = self.aliased.saturating_add(size);
                if self.aliased > ALIASED_MAX {
                    return self.refuse(at, &format!("aliases repeat more than {ALIASED_MAX} values"));
                }
                self.nodes = self.nodes.saturating_add(size);
                self.bound(at)?;
                let (node, _) = self.anchors.get(&id)?.clone();
                self.add(node, 0, size)
            }
            _ => Some(()),
        }
    }

    fn open(&mut self, at: At, anchor: usize, kind: OpenKind) -> Option<()> {
        if self.stack.len() >= DEPTH_MAX {
            return self.refuse(at, &format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.stack.push(Open { at, anchor, kind, size: 1 });
        Some(())
    }

    fn bound(&mut self, at: At) -> Option<()> {
        if self.nodes > NODES_MAX {
            return self.refuse(at, &format!("the document has more than {NODES_MAX} values"));
        }
        Some(())
    }

    fn refuse(&mut self, at: At, why: &str) -> Option<()> {
        self.sink.error("E_YAML", "manifest", at, format!("malformed YAML: {why}"));
        None
    }

    fn add(&mut self, node: Node, anchor: usize, size: usize) -> Option<()> {
        self.nodes += 1;
        self.bound(node.at)?;
        if anchor != 0 {
            self.nodes = self.nodes.saturating_add(size);
            self.bound(node.at)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(open) = self.stack.last_mut() else {
            self.root = Some(node);
            return Some(());
        };
        open.size = open.size.saturating_add(size);
        let (entries, seen, key, merged) = match &mut open.kind {
            OpenKind::Seq(items) => {
                items.push(node);
                return Some(());
            }
            OpenKind::Map { entries, seen, key, merged } => (entries, seen, key, merged),
        };
        let Some(named) = key.take() else {
            let at = node.at;
            let Value::Scalar(scalar) = node.value else {
                return self.refuse(at, "a key must be a name, not a list or mapping (a value such as {x} is written in quotes)");
            };
            *key = Some(Key { text: scalar.text, at });
            return Some(());
        };
        if named.text == "<<" {
            let sources = match node.value {
                Value::Map(entries) => vec![entries],
                Value::Seq(items) => {
                    items.into_iter().filter_map(|item| if let Value::Map(m) = item.value { Some(m) } else { None }).collect()
                }
                Value::Scalar(_) => Vec::new(),
            };
            merged.extend(sources.into_iter().flatten());
            return Some(());
        }
        match seen.get(&named.text) {
            Some(first) => {
                let message = format!("key `{}` is written twice, first in line {}", show(&named.text), first.line);
                self.sink.error("E_DUPLICATE_KEY", &show(&named.text), named.at, message);
            }
            None => {
                seen.insert(named.text.clone(), named.at);
                entries.push((named, node));
            }
        }
        Some(())
    }
}
