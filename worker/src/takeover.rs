//! Outputs of an earlier run that are still right: a task whose `key` is unchanged takes them over instead of being executed.
//! Runs on a helper thread.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use rustc_hash::FxHashMap;
use scalable_proto::v1::{OutputKind, OutputReport};
use serde_json::Value;

use crate::catalog::Group;
use crate::content::{Kind, copy, digest_file, digest_tree, remove_tree, walk};
use crate::layout::{self, Place};

/// Longest line of `tasks.jsonl` that is looked at, bytes. A longer one is a task that is executed again.
const LINE_BYTES_MAX: usize = 4 << 20;

/// What an earlier run has committed, by key.
#[derive(Debug, Default)]
pub struct Earlier {
    directory: PathBuf,
    name: String,
    by_key: FxHashMap<[u8; 32], Vec<Kept>>,
}

#[derive(Debug)]
struct Kept {
    name: String,
    path: PathBuf,
    digest: Vec<u8>,
}

/// What was taken over.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Name of the earlier run.
    pub from: String,
    /// As if the attempt had published them.
    pub outputs: Vec<OutputReport>,
}

impl Earlier {
    /// Reads the records of a run. What is not there or not readable is a task that is executed again.
    pub fn read(directory: &Path) -> Self {
        let name = directory.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut earlier = Earlier { directory: directory.to_owned(), name, by_key: FxHashMap::default() };
        let Ok(file) = File::open(directory.join("tasks.jsonl")) else { return earlier };
        for line in BufReader::new(file).split(b'\n') {
            let Ok(line) = line else { break };
            if line.len() <= LINE_BYTES_MAX
                && let Some((key, outputs)) = parse(&line)
            {
                earlier.by_key.insert(key, outputs);
            }
        }
        earlier
    }

    /// Puts the outputs of the task with this key under the attempt's `objects/`. Nothing when there is none, when something of it
    /// is missing, or when its content is not what was recorded.
    pub fn take(&self, group: &Group, at: &Place, key: &[u8; 32]) -> Option<Taken> {
        let kept = self.by_key.get(key)?;
        let objects = at.objects();
        // Left over from an agent that was killed: attempts have numbers of their own, so nobody uses it.
        remove_tree(&objects).ok()?;
        let taken = self.take_all(group, kept, &objects);
        if taken.is_none() {
            // It is executed as if nothing had been tried.
            let _ = remove_tree(&objects);
        }
        Some(Taken { from: self.name.clone(), outputs: taken? })
    }

    fn take_all(&self, group: &Group, kept: &[Kept], objects: &Path) -> Option<Vec<OutputReport>> {
        let mut outputs = Vec::new();
        for output in &group.template.outputs {
            let name = layout::name("output", &output.name).ok()?;
            let mut report = OutputReport { name: name.to_owned(), ..OutputReport::default() };
            match kept.iter().find(|kept| kept.name == name) {
                Some(kept) => {
                    let from = self.directory.join(&kept.path);
                    let (digest, size) = take_one(&from, &objects.join(name), output.kind()).ok()?;
                    if digest[..] != kept.digest[..] {
                        tracing::warn!(path = %from.display(), "an output of the earlier run was changed: the task is executed again");
                        return None;
                    }
                    report.written = true;
                    report.digest = digest.to_vec().into();
                    report.size = size;
                }
                None if output.optional => {}
                None => return None,
            }
            outputs.push(report);
        }
        Some(outputs)
    }
}

fn take_one(from: &Path, to: &Path, kind: OutputKind) -> io::Result<([u8; 32], u64)> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    if kind == OutputKind::File {
        link_or_copy(from, to)?;
        return digest_file(to);
    }
    fs::create_dir(to)?;
    for entry in walk(from)? {
        let to = to.join(entry.path.strip_prefix(from).unwrap_or(&entry.path));
        match entry.kind {
            Kind::EmptyDirectory => fs::create_dir_all(to)?,
            Kind::File(_) => {
                if let Some(parent) = to.parent() {
                    fs::create_dir_all(parent)?;
                }
                link_or_copy(&entry.path, &to)?;
            }
        }
    }
    if kind == OutputKind::List
        && let Some(mark) = layout::list_mark(to)
    {
        File::create(mark)?;
    }
    digest_tree(to)
}

/// A second name where the file can be written by nobody, else its bytes.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::symlink_metadata(from)?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    if metadata.mode() & 0o222 == 0 && fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    copy(File::open(from)?, to, 0o444 | (metadata.mode() & 0o111))
}

/// The key and kept outputs of a succeeded task's line.
fn parse(line: &[u8]) -> Option<([u8; 32], Vec<Kept>)> {
    let line: Value = serde_json::from_slice(line).ok()?;
    if line["state"] != "succeeded" {
        return None;
    }
    let key = unhex(line["key"].as_str()?)?.try_into().ok()?;
    let mut outputs = Vec::new();
    for (name, output) in line["outputs"].as_object().into_iter().flatten() {
        if output["kept"] == Value::Bool(false) {
            continue;
        }
        let path = layout::relative("path", output["path"].as_str()?).ok()?.to_owned();
        outputs.push(Kept { name: name.clone(), path, digest: unhex(output["digest"].as_str()?)? });
    }
    Some((key, outputs))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_prefix("blake3:").unwrap_or(text);
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
