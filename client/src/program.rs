//! This program as an object that workers can run: its content's digest, and what it needs of a machine.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use scalable_proto::v1;

use crate::Error;
use crate::session::refused;

/// Largest program that is shipped.
const PROGRAM_BYTES_MAX: u64 = 256 << 20;
/// Largest table of an ELF file that is looked at.
const TABLE_BYTES_MAX: u64 = 4 << 20;

/// Describes the program that is running. Reads all of it: not to be called where nothing may wait.
///
/// # Errors
/// [`Error::Refused`] when it cannot be read, is too large, or is none that a worker could run.
pub(crate) fn describe_running() -> Result<v1::Executable, Error> {
    let path = std::env::current_exe().map_err(|error| unusable(Path::new("this program"), &error.to_string()))?;
    describe(&path)
}

fn unusable(path: &Path, why: &str) -> Error {
    let message = format!("{} cannot be run by workers: {why}", path.display());
    refused("PROGRAM_UNUSABLE", message, "build it into the component's image and name it there: native = \"/path\"")
}

fn describe(path: &Path) -> Result<v1::Executable, Error> {
    let failed = |error: io::Error| unusable(path, &error.to_string());
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > PROGRAM_BYTES_MAX {
        let why = format!("it has {} MiB, the limit is {}; `strip` makes it smaller", size >> 20, PROGRAM_BYTES_MAX >> 20);
        return Err(unusable(path, &why));
    }
    let needs = needs(&mut file).map_err(failed)?;
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    // In pieces that are large enough for all of the processor's lanes.
    hasher.update_reader(&mut file).map_err(failed)?;
    Ok(v1::Executable {
        digest: hasher.finalize().as_bytes().to_vec().into(),
        size,
        path: path.to_string_lossy().into_owned(),
        architecture: needs.architecture,
        loader: needs.loader,
        libc: needs.libc,
    })
}

/// What a program needs of a machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    architecture: String,
    loader: String,
    libc: String,
}

/// A reader of the few fields of an ELF file that are needed: little endian, 64 bits.
struct Elf<'a, R> {
    file: &'a mut R,
}

impl<R: Read + Seek> Elf<'_, R> {
    fn at(&mut self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        if length > TABLE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a table of its ELF file is too large"));
        }
        self.file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        self.file.take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let mut value = [0; 8];
    let found = bytes.get(at..).unwrap_or_default();
    let length = length.min(found.len());
    value[..length].copy_from_slice(&found[..length]);
    u64::from_le_bytes(value)
}

fn text(bytes: &[u8], at: u64) -> String {
    let found = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let end = found.iter().position(|byte| *byte == 0).unwrap_or(found.len());
    String::from_utf8_lossy(&found[..end]).into_owned()
}

const PROGRAM_INTERPRETER: u64 = 3;
const SECTION_VERSIONS_NEEDED: u64 = 0x6fff_fffe;

fn needs(file: &mut (impl Read + Seek)) -> io::Result<Needs> {
    let mut elf = Elf { file };
    let head = elf.at(0, 64)?;
    if head.get(..6) != Some(&[0x7f, b'E', b'L', b'F', 2, 1]) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no ELF file of 64 bits, little endian"));
    }
    let architecture = match number(&head, 18, 2) {
        62 => "x86_64".to_owned(),
        183 => "aarch64".to_owned(),
        243 => "riscv64".to_owned(),
        other => format!("ELF machine {other}"),
    };
    let mut needs = Needs { architecture, ..Needs::default() };

    let (offset, size, count) = (number(&head, 32, 8), number(&head, 54, 2), number(&head, 56, 2));
    let segments = elf.at(offset, size * count)?;
    for segment in segments.chunks_exact((size as usize).max(1)) {
        if number(segment, 0, 4) == PROGRAM_INTERPRETER {
            let loader = elf.at(number(segment, 8, 8), number(segment, 32, 8))?;
            needs.loader = text(&loader, 0);
        }
    }

    let (offset, size, count) = (number(&head, 40, 8), number(&head, 58, 2), number(&head, 60, 2));
    let sections = elf.at(offset, size * count)?;
    let sections: Vec<&[u8]> = sections.chunks_exact((size as usize).max(1)).collect();
    let mut newest: Option<(u32, u32)> = None;
    for section in sections.iter().filter(|section| number(section, 4, 4) == SECTION_VERSIONS_NEEDED) {
        let Some(strings) = sections.get(number(section, 40, 4) as usize) else { continue };
        let strings = elf.at(number(strings, 24, 8), number(strings, 32, 8))?;
        let versions = elf.at(number(section, 24, 8), number(section, 32, 8))?;
        for name in names(&versions, &strings) {
            let version = name.strip_prefix("GLIBC_").and_then(|version| {
                let mut parts = version.split('.');
                Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
            });
            newest = newest.max(version);
        }
    }
    needs.libc = match newest {
        Some((major, minor)) => format!("glibc {major}.{minor}"),
        None if needs.loader.contains("ld-musl") => "musl".to_owned(),
        None => String::new(),
    };
    Ok(needs)
}

/// Names of the versions in a table of needed versions: entries for each library, in each a chain of versions.
fn names(versions: &[u8], strings: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let mut entry = 0;
    // Both loops move on by at least a byte, within a table that is bounded.
    while entry + 16 <= versions.len() {
        let count = number(versions, entry + 2, 2);
        let mut version = entry + number(versions, entry + 8, 4) as usize;
        for _ in 0..count {
            if version + 16 > versions.len() {
                break;
            }
            found.push(text(strings, number(versions, version + 8, 4)));
            version += (number(versions, version + 12, 4) as usize).max(1);
        }
        match number(versions, entry + 12, 4) {
            0 => break,
            next => entry += next as usize,
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_running_program_is_described_as_the_system_sees_it() {
        let described = describe_running().unwrap();
        assert_eq!(described.architecture, std::env::consts::ARCH);
        let path = std::env::current_exe().unwrap();
        assert_eq!(described.size, std::fs::metadata(&path).unwrap().len());
        assert_eq!(described.digest.as_ref(), blake3::hash(&std::fs::read(&path).unwrap()).as_bytes());
        if cfg!(all(target_env = "gnu", target_os = "linux")) {
            assert!(described.loader.contains("ld-linux"), "{described:?}");
            let version = described.libc.strip_prefix("glibc 2.").unwrap().parse::<u32>().unwrap();
            // Rust's own minimum is 2.17; weak symbols of later versions are counted as needed by the linker, too.
            assert!((17..100).contains(&version), "{described:?}");
        }
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0x7f, b'E', b'L', b'F', 1, 1]] {
            assert!(needs(&mut io::Cursor::new(bytes)).is_err(), "{bytes:?}");
        }
        // Offsets that point nowhere end in nothing.
        let mut broken = vec![0xff; 64];
        broken[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        let _ = needs(&mut io::Cursor::new(broken));
    }
}
