//! Before an attempt: its directory, its inputs under the names it knows them by, the files it wants beside it. Runs on a helper
//! thread; everything here may wait for a disk.
//!
//! Every input gets a name of its own in the attempt's directory, also where the command would take any path: `sed -i` on a path
//! below `objects/` would replace what others read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use scalable_proto::v1::{ObjectRef, Output, OutputKind, input_source::Select};
use scalable_template::Axes;

use crate::catalog::Group;
use crate::content::{Kind, digest_file, place, walk};
use crate::layout::{self, BadPath, Place};

/// An attempt's directory, ready.
#[derive(Debug, Default)]
pub struct Staged {
    /// `attempts/<group>/<index>/<attempt>`.
    pub directory: PathBuf,
    /// `work` in it: `{workdir}`.
    pub work: PathBuf,
    /// Paths of each input, in the template's order.
    pub inputs: Vec<(String, Vec<PathBuf>)>,
    /// Files with one path a line, for inputs whose list the command names.
    pub lists: Vec<(String, PathBuf)>,
    /// Where each output is to be written.
    pub outputs: Vec<(String, PathBuf)>,
    /// Standard input.
    pub stdin: Option<File>,
    /// Standard output, where it is an output.
    pub stdout: Option<File>,
    /// Standard error, where it is an output.
    pub stderr: Option<File>,
    /// What inputs looked like when the command started.
    pub prints: Vec<Print>,
}

/// What one file of an input looked like.
#[derive(Debug)]
pub struct Print {
    /// Name of the input.
    pub input: String,
    /// Its place in the attempt's directory.
    pub path: PathBuf,
    /// Where it came from.
    pub source: PathBuf,
    /// BLAKE3 of its content, where the scheduler said it for the file alone.
    pub digest: Option<Vec<u8>>,
    seen: Seen,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Seen {
    fn of(path: &Path) -> io::Result<Seen> {
        let m = fs::symlink_metadata(path)?;
        Ok(Seen { inode: m.ino(), size: m.size(), mtime: (m.mtime(), m.mtime_nsec()), ctime: (m.ctime(), m.ctime_nsec()) })
    }
}

/// Why an attempt could not be made ready: one sentence.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StageError(String);

impl From<BadPath> for StageError {
    fn from(error: BadPath) -> Self {
        StageError(error.to_string())
    }
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StageError {
    let hint = match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => "; free some space, or choose another directory for runs",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => "; the worker must be able to write there",
        _ => "",
    };
    StageError(format!("{what} {}: {error}{hint}", path.display()))
}

/// Makes the directory and puts everything there.
///
/// # Errors
/// A name that leaves the directory, an object that is not there, a disk that refuses.
pub fn stage(group: &Group, at: &Place, objects: &[Vec<ObjectRef>]) -> Result<Staged, StageError> {
    let directory = at.directory();
    if fs::symlink_metadata(&directory).is_ok() {
        // Left over from an agent that was killed: attempts have numbers of their own, so nobody uses it.
        crate::content::remove_tree(&directory).map_err(|e| failed("cannot remove the old directory", &directory, &e))?;
    }
    let work = directory.join("work");
    make_directory(&work)?;
    let mut staged = Staged { directory, work, ..Staged::default() };
    stage_files(group, &staged)?;
    for (ordinal, input) in group.template.inputs.iter().enumerate() {
        let objects = objects.get(ordinal).map(Vec::as_slice).unwrap_or_default();
        stage_input(group, input, objects, &mut staged)?;
    }
    if let Some(source) = &group.template.stdin {
        let objects = objects.get(group.template.inputs.len()).map(Vec::as_slice).unwrap_or_default();
        staged.stdin = open_stdin(group, source, objects)?;
    }
    for output in &group.template.outputs {
        let path = output_path(&staged, output)?;
        if let Some(parent) = path.parent() {
            make_directory(parent)?;
        }
        staged.outputs.push((output.name.clone(), path));
    }
    let stream = |name: &str| -> Result<Option<File>, StageError> {
        let Some((_, path)) = staged.outputs.iter().find(|(n, _)| n == name) else {
            return if name.is_empty() {
                Ok(None)
            } else {
                Err(StageError(format!("the stream's output `{name}` is not declared")))
            };
        };
        let open = File::options().append(true).create(true).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path);
        open.map(Some).map_err(|e| failed("cannot open", path, &e))
    };
    let template = &group.template;
    let (stdout, stderr) = (stream(&template.stdout)?, stream(&template.stderr)?);
    (staged.stdout, staged.stderr) = (stdout, stderr);
    Ok(staged)
}

/// Where an output is to be written: its own path, else one chosen here. For a pattern this is the pattern itself.
fn output_path(staged: &Staged, output: &Output) -> Result<PathBuf, StageError> {
    if output.path.is_empty() {
        Ok(staged.directory.join("out").join(layout::name("output", &output.name)?))
    } else {
        layout::name("output", &output.name)?;
        Ok(staged.work.join(layout::relative("path", &output.path)?))
    }
}

/// What a stub does instead of running: every declared output is made, empty.
///
/// # Errors
/// The disk refuses.
pub fn touch_outputs(group: &Group, staged: &Staged) -> Result<(), StageError> {
    for (output, (_, path)) in group.template.outputs.iter().zip(&staged.outputs) {
        let path = match output.kind() {
            OutputKind::List if !output.path.is_empty() => staged.work.join(output.path.replace('*', "stub").replace('?', "x")),
            OutputKind::File => path.clone(),
            OutputKind::Dir | OutputKind::List => {
                make_directory(path)?;
                continue;
            }
        };
        if let Some(parent) = path.parent() {
            make_directory(parent)?;
        }
        let touched = File::options().append(true).create(true).open(&path);
        touched.map_err(|e| failed("cannot touch", &path, &e))?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> Result<(), StageError> {
    fs::create_dir_all(path).map_err(|e| failed("cannot make directory", path, &e))
}

fn stage_files(group: &Group, staged: &Staged) -> Result<(), StageError> {
    for file in &group.template.files {
        let to = staged.work.join(layout::relative("files", &file.path)?);
        if let Some(parent) = to.parent() {
            make_directory(parent)?;
        }
        let from = layout::content(group.run.directory(), &file.digest);
        // Always a copy of its own (of the blocks only, where the file system can): two entries with the same content may differ
        // in being executable, which a link could not.
        place(&from, &to).map_err(|e| failed(&format!("cannot put `{}` there: its content", file.path), &from, &e))?;
        let mode = if file.executable { 0o555 } else { 0o444 };
        let now = fs::symlink_metadata(&to).map_err(|e| failed("cannot look at", &to, &e))?;
        if now.mode() & 0o777 != mode {
            if now.nlink() > 1 {
                fs::remove_file(&to).map_err(|e| failed("cannot replace", &to, &e))?;
                let source = File::open(&from).map_err(|e| failed("cannot read", &from, &e))?;
                crate::content::copy(source, &to, mode).map_err(|e| failed("cannot write", &to, &e))?;
            } else {
                let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
                fs::set_permissions(&to, permissions).map_err(|e| failed("cannot set permissions of", &to, &e))?;
            }
        }
    }
    Ok(())
}

fn stage_input(
    group: &Group,
    input: &scalable_proto::v1::Input,
    objects: &[ObjectRef],
    staged: &mut Staged,
) -> Result<(), StageError> {
    let source = input.source.clone().unwrap_or_default();
    let upstream = upstream(group, source.group)?;
    let name = layout::name("input", &input.name)?;
    let to = match input.r#as.as_str() {
        "" => staged.directory.join("in").join(name),
        path => staged.work.join(layout::relative("as", path)?),
    };
    let many = match &source.select {
        Some(Select::All(_)) => true,
        Some(Select::Projection(projection)) => Axes::new(projection).map_or(true, |axes| axes.count() > 1),
        Some(Select::Index(_) | Select::Element(_)) | None => false,
    };
    let mut paths = Vec::with_capacity(objects.len());
    let written: Vec<&ObjectRef> = objects.iter().filter(|object| object.attempt > 0).collect();
    if written.is_empty() && !source.optional && objects.is_empty() {
        return Err(StageError(format!("input `{name}`: the scheduler named no object for it")));
    }
    if let Some(parent) = to.parent() {
        make_directory(parent)?;
    }
    if many {
        make_directory(&to)?;
    }
    for object in written {
        let output = layout::name("output", &source.output)?;
        let from = layout::objects(group.run.directory(), upstream, object.index, object.attempt).join(output);
        let to = if many { to.join(object.index.to_string()) } else { to.clone() };
        stage_object(name, &from, &to, object, staged, &mut paths)?;
    }
    if group.lists.contains(name) {
        let list = staged.directory.join("in").join(format!(".{name}.list"));
        if let Some(parent) = list.parent() {
            make_directory(parent)?;
        }
        write_list(&list, &paths).map_err(|e| failed("cannot write", &list, &e))?;
        staged.lists.push((name.to_owned(), list));
    }
    staged.inputs.push((name.to_owned(), paths));
    Ok(())
}

fn upstream(group: &Group, ordinal: u32) -> Result<&str, StageError> {
    let name = group.run.groups.get(ordinal as usize);
    let name = name.ok_or_else(|| StageError(format!("an input comes from group {ordinal}, which the run does not have")))?;
    Ok(layout::name("group", name)?)
}

fn stage_object(
    input: &str,
    from: &Path,
    to: &Path,
    object: &ObjectRef,
    staged: &mut Staged,
    paths: &mut Vec<PathBuf>,
) -> Result<(), StageError> {
    let gone = |e: io::Error| failed(&format!("input `{input}` is not there any more:"), from, &e);
    if fs::symlink_metadata(from).map_err(gone)?.is_file() {
        stage_one(input, from, to, Some(object.digest.to_vec()), staged)?;
        paths.push(to.to_owned());
        return Ok(());
    }
    make_directory(to)?;
    // The files of a list are the input's paths, in the order of their names, which is the order of a walk.
    let list = layout::list_mark(from).is_some_and(|mark| mark.is_file());
    let mut files = Vec::new();
    for entry in walk(from).map_err(gone)? {
        let below = entry.path.strip_prefix(from).unwrap_or(&entry.path);
        let to = to.join(below);
        match entry.kind {
            Kind::EmptyDirectory => make_directory(&to)?,
            Kind::File(_) => {
                if let Some(parent) = to.parent() {
                    make_directory(parent)?;
                }
                stage_one(input, &entry.path, &to, None, staged)?;
                files.push(to);
            }
        }
    }
    if list {
        paths.extend(files);
    } else {
        paths.push(to.to_owned());
    }
    Ok(())
}

fn stage_one(input: &str, from: &Path, to: &Path, digest: Option<Vec<u8>>, staged: &mut Staged) -> Result<(), StageError> {
    place(from, to).map_err(|e| failed(&format!("cannot put input `{input}` there:"), from, &e))?;
    let seen = Seen::of(to).map_err(|e| failed("cannot look at", to, &e))?;
    let (path, source) = (to.to_owned(), from.to_owned());
    staged.prints.push(Print { input: input.to_owned(), path, source, digest, seen });
    Ok(())
}

fn write_list(list: &Path, paths: &[PathBuf]) -> io::Result<()> {
    let mut file = io::BufWriter::new(File::options().write(true).create_new(true).open(list)?);
    for path in paths {
        file.write_all(path.as_os_str().as_bytes())?;
        file.write_all(b"\n")?;
    }
    file.flush()
}

fn open_stdin(
    group: &Group,
    source: &scalable_proto::v1::InputSource,
    objects: &[ObjectRef],
) -> Result<Option<File>, StageError> {
    let object = match objects {
        [] if source.optional => return Ok(None),
        [object] if object.attempt == 0 => return Ok(None),
        [object] => object,
        _ => return Err(StageError(format!("standard input is {} objects, it must be one", objects.len()))),
    };
    let output = layout::name("output", &source.output)?;
    let at = layout::objects(group.run.directory(), upstream(group, source.group)?, object.index, object.attempt).join(output);
    let gone = |e: io::Error| failed("standard input is not there any more:", &at, &e);
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&at).map_err(gone)?;
    if !file.metadata().map_err(gone)?.is_file() {
        return Err(StageError(format!("standard input {} is not a file", at.display())));
    }
    Ok(Some(file))
}

/// Looks whether the command has changed one of its inputs: by size, times and inode, and by content where they differ. One that
/// was removed or renamed is not a change: the name was the attempt's own.
///
/// Gives the sentence to report.
pub fn changed_input(prints: &[Print]) -> Option<String> {
    prints.iter().find_map(|print| {
        let now = Seen::of(&print.path).ok()?;
        if now == print.seen {
            return None;
        }
        let before = match &print.digest {
            Some(digest) => Some(digest.clone()),
            None => digest_file(&print.source).ok().map(|(digest, _)| digest.to_vec()),
        };
        let after = digest_file(&print.path).ok().map(|(digest, _)| digest.to_vec());
        if before.is_some() && before == after {
            return None;
        }
        Some(format!(
            "the command changed its input `{}` ({}); an input is only to be read: write to an output, or copy it first",
            print.input,
            print.path.display()
        ))
    })
}
