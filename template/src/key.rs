//! The key of a task: a digest of all that decides its result. Equal keys mean that a committed output can be taken over.

use std::borrow::Cow;

use scalable_proto::v1::{Builtin, Input, Output, TaskTemplate, Text, piece::Kind, task_template::Command};

/// Version of the derivation; part of every key, so a change of it can never match an older key.
pub const KEY_VERSION: u32 = 1;

/// 32 bytes of BLAKE3.
pub type Key = [u8; 32];

/// Content of one input: the digests of its objects in index order (empty for an optional output that was not written).
/// `name` is the input's, or empty for standard input.
#[derive(Clone, Copy, Debug)]
pub struct InputDigests<'a> {
    /// Name of the input.
    pub name: &'a str,
    /// One a path.
    pub digests: &'a [&'a [u8]],
}

/// The key of one element: command template, parameters, environment, image, `files` with their digests, declared inputs and
/// outputs, and the content of the inputs. No path of an attempt and no time; the index only where the command names it or
/// nothing else tells elements apart, so that a value added to an axis leaves the keys of the others as they are.
/// `inputs` may come in any order; `values` in the order of the space.
pub fn key(template: &TaskTemplate, index: u32, values: &[(&str, Cow<'_, str>)], inputs: &[InputDigests<'_>]) -> Key {
    let mut digest = Digest(blake3::Hasher::new());
    digest.bytes(b"scalable task key");
    digest.number(u64::from(KEY_VERSION));
    digest.number(u64::from(template.stub));
    match &template.command {
        None => digest.number(0),
        Some(Command::Argv(argv)) => {
            digest.number(1);
            digest.number(argv.args.len() as u64);
            for text in &argv.args {
                digest.text(text);
            }
        }
        Some(Command::Shell(text)) => {
            digest.number(2);
            digest.text(text);
        }
        Some(Command::Function(function)) => {
            digest.number(3);
            digest.bytes(function.name.as_bytes());
            digest.bytes(function.codec.as_bytes());
            digest.bytes(function.executable.as_ref().map_or(&[][..], |executable| &executable.digest));
            digest.bytes(function.native.as_bytes());
            digest.bytes(&function.signature);
        }
    }
    let mut env: Vec<_> = template.env.iter().collect();
    env.sort_unstable_by_key(|(name, _)| name.as_str());
    digest.number(env.len() as u64);
    for (name, text) in env {
        digest.bytes(name.as_bytes());
        digest.text(text);
    }
    digest.bytes(template.image.as_bytes());
    digest.number(u64::from(template.start_in as u32));
    digest.number(u64::from(template.stdin.is_some()));
    digest.bytes(template.stdout.as_bytes());
    digest.bytes(template.stderr.as_bytes());
    digest.number(template.success_codes.len() as u64);
    for code in &template.success_codes {
        digest.bytes(&code.to_le_bytes());
    }
    digest.files(template);
    digest.number(template.outputs.len() as u64);
    for output in &template.outputs {
        digest.output(output);
    }
    digest.number(template.inputs.len() as u64);
    for Input { name, r#as, source: _ } in &template.inputs {
        digest.bytes(name.as_bytes());
        digest.bytes(r#as.as_bytes());
    }
    digest.number(values.len() as u64);
    for (name, value) in values {
        digest.bytes(name.as_bytes());
        digest.bytes(value.as_bytes());
    }
    let index_matters = values.is_empty() || names_index(template);
    digest.number(if index_matters { u64::from(index) + 1 } else { 0 });
    let mut inputs: Vec<_> = inputs.iter().collect();
    inputs.sort_unstable_by_key(|input| input.name);
    digest.number(inputs.len() as u64);
    for input in inputs {
        digest.bytes(input.name.as_bytes());
        digest.number(input.digests.len() as u64);
        for content in input.digests {
            digest.bytes(content);
        }
    }
    *digest.0.finalize().as_bytes()
}

fn names_index(template: &TaskTemplate) -> bool {
    let names_it = |text: &Text| text.pieces.iter().any(|piece| piece.kind == Some(Kind::Builtin(Builtin::Index as i32)));
    let command = match &template.command {
        Some(Command::Argv(argv)) => argv.args.iter().any(names_it),
        Some(Command::Shell(text)) => names_it(text),
        Some(Command::Function(_)) | None => false,
    };
    command || template.env.values().any(names_it)
}

/// Every field with its length before it, so that no two sequences of fields are the same bytes.
struct Digest(blake3::Hasher);

impl Digest {
    fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &Text) {
        self.number(text.pieces.len() as u64);
        for piece in &text.pieces {
            let (tag, name) = match &piece.kind {
                None => (0, ""),
                Some(Kind::Literal(name)) => (1, name.as_str()),
                Some(Kind::Parameter(name)) => (2, name.as_str()),
                Some(Kind::Input(name)) => (3, name.as_str()),
                Some(Kind::InputList(name)) => (4, name.as_str()),
                Some(Kind::Output(name)) => (5, name.as_str()),
                Some(Kind::Builtin(builtin)) => (6 + u64::from(*builtin as u32), ""),
            };
            self.number(tag);
            self.bytes(name.as_bytes());
        }
    }

    fn files(&mut self, template: &TaskTemplate) {
        let mut files: Vec<_> = template.files.iter().collect();
        files.sort_unstable_by_key(|file| file.path.as_str());
        self.number(files.len() as u64);
        for file in files {
            self.bytes(file.path.as_bytes());
            self.bytes(&file.digest);
            self.number(u64::from(file.executable));
        }
    }

    fn output(&mut self, output: &Output) {
        self.bytes(output.name.as_bytes());
        self.number(u64::from(output.kind as u32));
        self.bytes(output.path.as_bytes());
        self.number(u64::from(output.optional));
    }
}
