//! Which programs can run here, and where a program lies that a function is part of.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use scalable_proto::v1::Executable;

/// Largest program, bytes.
pub const EXECUTABLE_BYTES_MAX: u64 = 256 << 20;
/// Most files whose digest is remembered.
const REMEMBERED_MAX: usize = 1024;

/// This machine's, as in [`Executable`].
pub fn architecture() -> &'static str {
    std::env::consts::ARCH
}

/// The C library programs find here, e.g. `glibc 2.36`; empty when it is none that says its version.
pub fn libc() -> String {
    #[cfg(target_env = "gnu")]
    {
        c_library()
    }
    #[cfg(not(target_env = "gnu"))]
    {
        String::new()
    }
}

#[cfg(target_env = "gnu")]
#[allow(unsafe_code)]
fn c_library() -> String {
    // SAFETY: the library returns a text that lives as long as the process.
    let version = unsafe { std::ffi::CStr::from_ptr(::libc::gnu_get_libc_version()) };
    format!("glibc {}", version.to_string_lossy())
}

/// Finds programs. Called on helper threads: may wait for a disk or for the network.
pub trait Executables: Send + Sync {
    /// Where a program with this content lies on this machine.
    ///
    /// # Errors
    /// One sentence: what, where, why, what to do.
    fn find(&self, wanted: &Executable) -> Result<PathBuf, String>;
}

/// What identifies a file's content without reading it: path, device and inode, size, time of change.
type Stamp = (PathBuf, u64, u64, u64, i64, i64);

/// Programs on this machine: where they were submitted from, else in a directory of programs that are named by their digest.
#[derive(Debug)]
pub struct Local {
    cache: Option<PathBuf>,
    digests: Mutex<HashMap<Stamp, [u8; 32]>>,
}

impl Local {
    /// With a directory of programs, where there is one.
    pub fn new(cache: Option<PathBuf>) -> Self {
        Local { cache, digests: Mutex::default() }
    }

    /// True when this file is there and has that content. Its content is read once.
    fn is(&self, path: &Path, wanted: &Executable) -> io::Result<bool> {
        let meta = std::fs::metadata(path)?;
        if !meta.is_file() || meta.len() != wanted.size {
            return Ok(false);
        }
        let stamp = (path.to_owned(), meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec());
        let known = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(&stamp).copied();
        let digest = match known {
            Some(digest) => digest,
            None => {
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(File::open(path)?)?;
                let digest = *hasher.finalize().as_bytes();
                let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
                if digests.len() >= REMEMBERED_MAX {
                    digests.clear();
                }
                digests.insert(stamp, digest);
                digest
            }
        };
        Ok(digest[..] == wanted.digest[..])
    }
}

impl Executables for Local {
    fn find(&self, wanted: &Executable) -> Result<PathBuf, String> {
        let fits = |path: &Path| self.is(path, wanted).unwrap_or(false);
        let submitted = Path::new(&wanted.path);
        if submitted.is_absolute() && fits(submitted) {
            return Ok(submitted.to_owned());
        }
        let hex: String = wanted.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let cached = self.cache.as_ref().map(|directory| directory.join(&hex)).filter(|path| fits(path));
        cached.ok_or_else(|| {
            let why = match std::fs::metadata(submitted) {
                Ok(_) => "what lies there is another program (was it built again?)".to_owned(),
                Err(error) => error.to_string(),
            };
            format!(
                "the program {} (BLAKE3 {}…) is not on this worker: {why}; submit from a program that is still there, or name one in \
                 the worker's image with `native`",
                wanted.path,
                &hex[..hex.len().min(12)]
            )
        })
    }
}

/// Looks into a program before it is started, so that what the kernel says in one number is said in words.
///
/// # Errors
/// One sentence: it is not there, may not be executed, is of another machine, or its loader is missing.
pub fn check(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let meta = std::fs::metadata(path).map_err(|error| {
        format!("the program {shown} cannot be started on this worker: {error}; is it in the component's image, at this path?")
    })?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("the program {shown} cannot be started: it is no executable file; chmod +x helps where it is one"));
    }
    let file = File::open(path).and_then(|file| elf(file, meta.len()));
    let Ok(Elf { machine, loader }) = file else {
        return Err(format!("{shown} is no program of this system (no ELF file): a lane host is the user's compiled program"));
    };
    if machine != architecture() {
        return Err(format!(
            "the program {shown} is built for {machine}, this worker is {}: build it for the workers' architecture (cargo build \
             --target), or use workers of its own",
            architecture()
        ));
    }
    match loader {
        Some(loader) if !Path::new(&loader).exists() => Err(format!(
            "the program {shown} needs the loader {loader}, which is not on this worker: its C library is another one; build it \
             for the workers' libc, or statically (target *-linux-musl)"
        )),
        _ => Ok(()),
    }
}

struct Elf {
    machine: String,
    loader: Option<String>,
}

/// Machine and interpreter of a 64-bit little-endian ELF file.
fn elf(mut file: File, size: u64) -> io::Result<Elf> {
    const LOADER: u32 = 3;
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = [0; 64];
    file.read_exact(&mut head)?;
    if head[..6] != [0x7f, b'E', b'L', b'F', 2, 1] {
        return Err(bad());
    }
    let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let machine = match short(18) {
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        other => format!("machine {other}"),
    };
    let table = u64::from_le_bytes(head[32..40].try_into().map_err(|_| bad())?);
    let (entry, count) = (u64::from(short(54)), u64::from(short(56)));
    let mut loader = None;
    for nth in 0..count.min(128) {
        let mut row = [0; 56];
        file.seek(SeekFrom::Start(table.saturating_add(nth * entry)))?;
        file.read_exact(&mut row)?;
        let long = |at: usize| u64::from_le_bytes(row[at..at + 8].try_into().unwrap_or_default());
        let (offset, bytes) = (long(8), long(32));
        if u32::from_le_bytes(row[..4].try_into().map_err(|_| bad())?) == LOADER && bytes <= 4096 && offset < size {
            let mut text = vec![0; bytes as usize];
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(&mut text)?;
            text.retain(|byte| *byte != 0);
            loader = Some(String::from_utf8(text).map_err(|_| bad())?);
        }
    }
    Ok(Elf { machine, loader })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(path: &Path, content: &[u8]) -> Executable {
        let digest = blake3::hash(content).as_bytes().to_vec().into();
        Executable { digest, size: content.len() as u64, path: path.display().to_string(), ..Executable::default() }
    }

    #[test]
    fn a_program_is_found_by_its_content() {
        let directory = tempfile::tempdir().expect("a directory");
        let (cache, path) = (directory.path().join("cache"), directory.path().join("program"));
        std::fs::create_dir(&cache).expect("made");
        let local = Local::new(Some(cache.clone()));
        let one = wanted(&path, b"one");
        assert!(local.find(&one).is_err_and(|why| why.contains("not on this worker") && why.contains("program")));
        std::fs::write(&path, b"one").expect("written");
        assert_eq!(local.find(&one), Ok(path.clone()));
        let two = wanted(&path, b"two");
        assert!(local.find(&two).is_err_and(|why| why.contains("another program")));
        let hex = blake3::hash(b"two").to_hex();
        std::fs::write(cache.join(hex.as_str()), b"two").expect("written");
        assert_eq!(local.find(&two), Ok(cache.join(hex.as_str())));
    }

    #[test]
    fn a_program_of_another_machine_is_refused_in_words() {
        let own = std::env::current_exe().expect("it runs");
        assert_eq!(check(&own), Ok(()));
        assert!(libc().starts_with("glibc ") || cfg!(not(target_env = "gnu")));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("program");
        let refused = |part: &str| check(&path).is_err_and(|why| why.contains(part));
        assert!(refused("No such file"));
        std::fs::write(&path, b"text").expect("written");
        assert!(refused("no executable file"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("changed");
        assert!(refused("no ELF file"));
        // Its beginning is all that is looked at.
        let mut bytes = vec![0; 64 << 10];
        File::open(&own).and_then(|mut file| file.read_exact(&mut bytes)).expect("read");
        let machine = [bytes[18], bytes[19]];
        bytes[18] = 243;
        std::fs::write(&path, &bytes).expect("written");
        assert!(refused("built for riscv64"));
        bytes[18..20].copy_from_slice(&machine);
        let loader = b"/lib64/ld-linux-x86-64.so.2";
        if let Some(at) = bytes.windows(loader.len()).position(|part| part == loader) {
            bytes[at..at + 6].copy_from_slice(b"/nope/");
            std::fs::write(&path, &bytes).expect("written");
            assert!(refused("/nope/"));
        }
    }
}
