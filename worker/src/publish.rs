//! After an attempt: its outputs are looked at, made read-only, digested and given their names under `objects/`, before its end
//! is reported. Runs on a helper thread.
//!
//! A file is published by a second name (a hard link) and not moved, so outputs may overlap. One that already has a second name
//! somewhere else is copied: taking the write permission of `ln /somewhere/else out` away would reach out of the attempt. A link
//! is published as the content it points to, which must lie in the attempt's directory or be one of its inputs.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use scalable_core::messages::OutcomeClass;
use scalable_proto::v1::{Output, OutputKind, OutputReport};

use crate::catalog::Group;
use crate::content::{TREE_DEPTH_MAX, TREE_FILES_MAX, copy, digest_file, digest_tree, remove_tree};
use crate::layout::{self, Place};
use crate::pattern;
use crate::stage::{Staged, changed_input};

/// Most names shown of what was there instead of a missing output.
const SHOWN_MAX: usize = 20;
/// Most entries looked at for that.
const LOOKED_AT_MAX: usize = 2_000;

/// Why a command that succeeded did not make a successful attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpublished {
    /// The class of the failure.
    pub class: OutcomeClass,
    /// One sentence.
    pub message: String,
}

impl Unpublished {
    fn new(class: OutcomeClass, message: impl Into<String>) -> Self {
        Unpublished { class, message: message.into() }
    }
}

/// Checks inputs, publishes outputs. On failure nothing of the attempt is left under `objects/`.
///
/// # Errors
/// A changed input, a missing output, one of the wrong type or a link out of the directory; a disk that refuses.
pub fn publish(group: &Group, at: &Place, staged: &Staged) -> Result<Vec<OutputReport>, Unpublished> {
    if let Some(message) = changed_input(&staged.prints) {
        return Err(Unpublished::new(OutcomeClass::InputChanged, message));
    }
    let objects = at.objects();
    if fs::symlink_metadata(&objects).is_ok() {
        remove_tree(&objects).map_err(|e| disk(&objects, &e))?;
    }
    let published = publish_all(group, staged, &objects);
    if published.is_err() {
        // The first error is the one to tell; what cannot be removed is named by its attempt and disturbs nobody.
        let _ = remove_tree(&objects);
    }
    published
}

fn publish_all(group: &Group, staged: &Staged, objects: &Path) -> Result<Vec<OutputReport>, Unpublished> {
    let mut reports = Vec::with_capacity(group.template.outputs.len());
    let mut publisher = Publisher { roots: roots(staged), ours: BTreeMap::new() };
    if !group.template.outputs.is_empty() {
        fs::create_dir_all(objects).map_err(|e| disk(objects, &e))?;
    }
    for (output, (name, path)) in group.template.outputs.iter().zip(&staged.outputs) {
        let to = objects.join(name);
        let written = match output.kind() {
            OutputKind::File => publisher.file(output, path, &to)?,
            OutputKind::Dir => publisher.directory(output, path, &to)?,
            OutputKind::List => publisher.list(output, staged, path, &to)?,
        };
        let mut report = OutputReport { name: name.clone(), written, ..OutputReport::default() };
        if written {
            let digested = if output.kind() == OutputKind::File { digest_file(&to) } else { digest_tree(&to) };
            let (digest, size) = digested.map_err(|e| disk(&to, &e))?;
            report.digest = digest.to_vec().into();
            report.size = size;
        } else if !output.optional {
            return Err(missing(output, group, staged));
        }
        reports.push(report);
    }
    Ok(reports)
}

/// Where content may come from: the attempt's directory, and the originals of its inputs.
fn roots(staged: &Staged) -> Vec<PathBuf> {
    let originals = staged.prints.iter().map(|print| print.source.clone());
    [staged.directory.clone()].into_iter().chain(originals).filter_map(|path| fs::canonicalize(path).ok()).collect()
}

fn disk(path: &Path, error: &io::Error) -> Unpublished {
    let hint = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "; free some space, or choose another directory for runs",
        _ => "",
    };
    Unpublished::new(OutcomeClass::InfraStart, format!("the outputs could not be published: {}: {error}{hint}", path.display()))
}

struct Publisher {
    roots: Vec<PathBuf>,
    /// How often a file (device, inode) was given a second name here.
    ours: BTreeMap<(u64, u64), u64>,
}

impl Publisher {
    fn file(&mut self, output: &Output, path: &Path, to: &Path) -> Result<bool, Unpublished> {
        let Some((real, metadata)) = self.resolve(output, path)? else { return Ok(false) };
        if !metadata.is_file() {
            return Err(wrong_type(output, path, &metadata, "a file"));
        }
        self.publish_file(&real, &metadata, to).map_err(|e| disk(to, &e))?;
        Ok(true)
    }

    fn directory(&mut self, output: &Output, path: &Path, to: &Path) -> Result<bool, Unpublished> {
        let Some((real, metadata)) = self.resolve(output, path)? else { return Ok(false) };
        if !metadata.is_dir() {
            return Err(wrong_type(output, path, &metadata, "a directory"));
        }
        let mut budget = TREE_FILES_MAX;
        self.tree(output, &real, to, 0, &mut budget)?;
        Ok(true)
    }

    fn list(&mut self, output: &Output, staged: &Staged, path: &Path, to: &Path) -> Result<bool, Unpublished> {
        // Without a path of its own a list is the directory that the command was given, and all files in it.
        let (root, pattern) = if output.path.is_empty() { (path, "*") } else { (staged.work.as_path(), output.path.as_str()) };
        let found = pattern::expand(root, pattern).map_err(|e| Unpublished::new(OutcomeClass::BadOutput, e.to_string()))?;
        if found.is_empty() {
            return Ok(false);
        }
        let prefix = root.join(pattern::literal_prefix(pattern));
        fs::create_dir(to).map_err(|e| disk(to, &e))?;
        for path in found {
            let Some((real, metadata)) = self.resolve(output, &path)? else { continue };
            if !metadata.is_file() {
                return Err(wrong_type(output, &path, &metadata, "a file, as everything in a list"));
            }
            let to = to.join(path.strip_prefix(&prefix).unwrap_or(&path));
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(|e| disk(parent, &e))?;
            }
            self.publish_file(&real, &metadata, &to).map_err(|e| disk(&to, &e))?;
        }
        if let Some(mark) = layout::list_mark(to) {
            File::create(&mark).map_err(|e| disk(&mark, &e))?;
        }
        Ok(true)
    }

    fn tree(&mut self, output: &Output, from: &Path, to: &Path, depth: usize, budget: &mut usize) -> Result<(), Unpublished> {
        // A link to a directory above itself would go on for ever.
        if depth > TREE_DEPTH_MAX {
            let message =
                format!("output `{}` is deeper than {TREE_DEPTH_MAX} levels; is there a link to a directory above?", output.name);
            return Err(Unpublished::new(OutcomeClass::BadOutput, message));
        }
        fs::create_dir(to).map_err(|e| disk(to, &e))?;
        for entry in fs::read_dir(from).map_err(|e| disk(from, &e))? {
            let entry = entry.map_err(|e| disk(from, &e))?;
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            *budget = budget.checked_sub(1).ok_or_else(|| {
                let message = format!("output `{}` has more than {TREE_FILES_MAX} files", output.name);
                Unpublished::new(OutcomeClass::BadOutput, message)
            })?;
            let Some((real, metadata)) = self.resolve(output, &path)? else {
                let message = format!("output `{}` has a link to nothing: {}", output.name, path.display());
                return Err(Unpublished::new(OutcomeClass::BadOutput, message));
            };
            if metadata.is_dir() {
                self.tree(output, &real, &to, depth + 1, budget)?;
            } else if metadata.is_file() {
                self.publish_file(&real, &metadata, &to).map_err(|e| disk(&to, &e))?;
            } else {
                return Err(wrong_type(output, &path, &metadata, "a file or a directory"));
            }
        }
        Ok(())
    }

    /// Follows links, and refuses what they lead to outside. Nothing when there is nothing.
    fn resolve(&self, output: &Output, path: &Path) -> Result<Option<(PathBuf, Metadata)>, Unpublished> {
        let real = match fs::canonicalize(path) {
            Ok(real) => real,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return match fs::read_link(path) {
                    Ok(target) => Err(Unpublished::new(
                        OutcomeClass::BadOutput,
                        format!(
                            "output `{}` ({}) is a link to {}, which is not there",
                            output.name,
                            path.display(),
                            target.display()
                        ),
                    )),
                    Err(_) => Ok(None),
                };
            }
            Err(error) => {
                let message = format!("output `{}` ({}) cannot be looked at: {error}", output.name, path.display());
                return Err(Unpublished::new(OutcomeClass::BadOutput, message));
            }
        };
        if !self.roots.iter().any(|root| real.starts_with(root)) {
            return Err(Unpublished::new(
                OutcomeClass::BadOutput,
                format!(
                    "output `{}` ({}) leads to {}, outside the attempt's directory and its inputs; write or copy the content there",
                    output.name,
                    path.display(),
                    real.display()
                ),
            ));
        }
        let metadata = fs::symlink_metadata(&real).map_err(|e| disk(&real, &e))?;
        Ok(Some((real, metadata)))
    }

    fn publish_file(&mut self, real: &Path, metadata: &Metadata, to: &Path) -> io::Result<()> {
        let mode = 0o444 | (metadata.mode() & 0o111);
        let names = self.ours.entry((metadata.dev(), metadata.ino())).or_insert(0);
        if metadata.nlink() <= 1 + *names && metadata.uid() == nix::unistd::geteuid().as_raw() {
            // The permissions first: at no time is the published name writable.
            fs::set_permissions(real, Permissions::from_mode(mode))?;
            if fs::hard_link(real, to).is_ok() {
                *names += 1;
                return Ok(());
            }
        }
        let source = File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(real)?;
        copy(source, to, mode)
    }
}

fn wrong_type(output: &Output, path: &Path, metadata: &Metadata, wanted: &str) -> Unpublished {
    let kind = metadata.file_type();
    use std::os::unix::fs::FileTypeExt;
    let is = match () {
        () if kind.is_dir() => "a directory",
        () if kind.is_file() => "a file",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    };
    let message = format!("output `{}` ({}) is {is} and must be {wanted}", output.name, path.display());
    Unpublished::new(OutcomeClass::BadOutput, message)
}

fn missing(output: &Output, group: &Group, staged: &Staged) -> Unpublished {
    let (wanted, base) = if output.path.is_empty() {
        let path = staged.outputs.iter().find(|(name, _)| *name == output.name).map(|(_, path)| path.display().to_string());
        (path.unwrap_or_default(), staged.directory.as_path())
    } else {
        (output.path.clone(), staged.work.as_path())
    };
    let mut there = Vec::new();
    let mut looked_at = 0;
    for top in ["work", "out"] {
        list_below(&staged.directory.join(top), base, group, staged, &mut there, &mut looked_at);
    }
    let more = there.len().saturating_sub(SHOWN_MAX);
    there.truncate(SHOWN_MAX);
    let there = match (there.is_empty(), more, looked_at >= LOOKED_AT_MAX) {
        (true, ..) => "it wrote no file".to_owned(),
        (false, 0, false) => format!("what is there: {}", there.join(", ")),
        (false, more, false) => format!("what is there: {} and {more} more", there.join(", ")),
        (false, _, true) => format!("what is there: {} and many more", there.join(", ")),
    };
    let what = if output.kind() == OutputKind::List {
        "nothing matches output"
    } else {
        "the command ended well but did not write output"
    };
    Unpublished::new(OutcomeClass::MissingOutput, format!("{what} `{}` ({wanted}); {there}", output.name))
}

/// Names of what the command wrote, without what was put there for it.
fn list_below(directory: &Path, base: &Path, group: &Group, staged: &Staged, out: &mut Vec<String>, looked_at: &mut usize) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|e| e.path()).take(LOOKED_AT_MAX).collect();
    entries.sort();
    for path in entries {
        *looked_at += 1;
        if *looked_at >= LOOKED_AT_MAX {
            return;
        }
        let given = staged.prints.iter().any(|print| print.path == path)
            || group.template.files.iter().any(|file| staged.work.join(&file.path) == path);
        if given {
            continue;
        }
        if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
            list_below(&path, base, group, staged, out, looked_at);
        } else {
            out.push(
                path.strip_prefix(base).or_else(|_| path.strip_prefix(&staged.directory)).unwrap_or(&path).display().to_string(),
            );
        }
    }
}

/// Keeps the directory of a failed attempt under `failed/`, while the run keeps fewer than `keep`; says where, relative to the
/// run's directory. Otherwise, and when it cannot be moved, it is removed.
pub fn keep_or_remove(at: &Place, directory: &Path, keep: u32) -> Option<PathBuf> {
    let kept = at.kept();
    let target = at.run.join(&kept);
    let room = keep > 0 && count_kept(&at.run.join("failed"), keep) < keep;
    if room && target.parent().is_some_and(|parent| fs::create_dir_all(parent).is_ok()) && fs::rename(directory, &target).is_ok()
    {
        remove_empty_parents(directory);
        return Some(kept);
    }
    remove(directory);
    None
}

/// Removes an attempt's directory, and its parents while they are empty.
pub fn remove(directory: &Path) {
    if let Err(error) = remove_tree(directory) {
        tracing::warn!(directory = %directory.display(), %error, "an attempt's directory could not be removed");
    }
    remove_empty_parents(directory);
}

/// `<index>` goes with its last attempt; the group's directory stays for the next element.
fn remove_empty_parents(directory: &Path) {
    if let Some(parent) = directory.parent() {
        let _ = fs::remove_dir(parent);
    }
}

fn count_kept(failed: &Path, enough: u32) -> u32 {
    let mut count = 0;
    for group in fs::read_dir(failed).into_iter().flatten().flatten() {
        for _ in fs::read_dir(group.path()).into_iter().flatten().flatten() {
            count += 1;
            if count >= enough {
                return count;
            }
        }
    }
    count
}
