//! The stamp of the committed eBPF object: a fingerprint of everything it is
//! built from, and of the object itself. `build.rs` and `cargo xtask ebpf` both
//! compile this file, so it depends on the standard library alone.

use std::path::{Path, PathBuf};
use std::{fmt, fs, io};

/// The committed object, relative to the workspace.
pub const OBJECT_PATH: &str = "profiler/src/probe/goprof.bpf.o";

/// The stamp beside it, relative to the workspace.
pub const STAMP_PATH: &str = "profiler/src/probe/goprof.bpf.stamp";

const CRATE: &str = "profiler-ebpf";
const LOCK_FILE: &str = "Cargo.lock";
const TOOLCHAIN_FILE: &str = "rust-toolchain.toml";

/// What an object was built from, and which object came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Fingerprint of the eBPF crate's files, its locked dependencies and the
    /// pinned toolchain.
    pub sources: u64,
    /// Fingerprint of the object's bytes: a merge that takes the object of one
    /// side and the stamp of the other is caught.
    pub object: u64,
}

impl Stamp {
    /// Computes the stamp of `object` and of the sources below `workspace`.
    ///
    /// Fails where a source file cannot be read or the lock file lacks the crate.
    pub fn compute(workspace: &Path, object: &[u8]) -> io::Result<Self> {
        let mut object_fingerprint = Fingerprint::default();
        object_fingerprint.add(object);
        Ok(Self {
            sources: fingerprint_sources(workspace)?,
            object: object_fingerprint.0,
        })
    }

    /// Reads what `Display` wrote; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let mut field = |name: &str| {
            let value = lines.next()?.strip_prefix(name)?.strip_prefix(' ')?;
            u64::from_str_radix(value, 16).ok()
        };
        Some(Self {
            sources: field("sources")?,
            object: field("object")?,
        })
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "sources {:016x}", self.sources)?;
        writeln!(f, "object {:016x}", self.object)
    }
}

/// Files and folders that the object is made from, relative to the workspace.
pub fn inputs() -> [PathBuf; 4] {
    [
        Path::new(CRATE).join("src"),
        Path::new(CRATE).join("Cargo.toml"),
        PathBuf::from(LOCK_FILE),
        PathBuf::from(TOOLCHAIN_FILE),
    ]
}

fn fingerprint_sources(workspace: &Path) -> io::Result<u64> {
    let mut fingerprint = Fingerprint::default();
    for input in inputs() {
        if input == Path::new(LOCK_FILE) {
            let lock = fs::read_to_string(workspace.join(LOCK_FILE))?;
            for package in locked_packages(&lock, CRATE) {
                fingerprint.add(package.as_bytes());
            }
            continue;
        }
        let mut files = Vec::new();
        list_files(workspace, input, &mut files)?;
        files.sort();
        for file in files {
            fingerprint.add(file.as_os_str().as_encoded_bytes());
            fingerprint.add(&fs::read(workspace.join(file))?);
        }
    }
    Ok(fingerprint.0)
}

/// Adds `path`, or the files below it, to `files`.
fn list_files(workspace: &Path, path: PathBuf, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !workspace.join(&path).is_dir() {
        files.push(path);
        return Ok(());
    }
    for entry in fs::read_dir(workspace.join(&path))? {
        list_files(workspace, path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

/// Name, version and checksum of `root` and of everything it depends on, from
/// the text of a `Cargo.lock`, sorted. Only this closure counts, so that a new
/// dependency of the profiler alone does not make the object stale.
fn locked_packages(lock: &str, root: &str) -> Vec<String> {
    struct Package<'a> {
        name: &'a str,
        version: &'a str,
        checksum: &'a str,
        dependencies: Vec<&'a str>,
    }
    let packages: Vec<Package> = lock
        .split("[[package]]")
        .skip(1)
        .map(|block| {
            let value = |key: &str| {
                let mut lines = block.lines();
                lines
                    .find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
                    .map_or("", |value| value.trim_matches('"'))
            };
            Package {
                name: value("name"),
                version: value("version"),
                checksum: value("checksum"),
                dependencies: block
                    .lines()
                    .filter_map(|line| line.strip_prefix(" \"")?.strip_suffix("\","))
                    .collect(),
            }
        })
        .collect();

    // An entry is "name", or "name version" where the name alone is ambiguous.
    let mut wanted = vec![root];
    let mut found = vec![false; packages.len()];
    while let Some(entry) = wanted.pop() {
        let mut words = entry.split(' ');
        let (name, version) = (words.next().unwrap_or(entry), words.next());
        for (package, found) in packages.iter().zip(&mut found) {
            let matches = package.name == name && version.is_none_or(|v| v == package.version);
            if matches && !*found {
                *found = true;
                wanted.extend(&package.dependencies);
            }
        }
    }
    let mut closure: Vec<String> = packages
        .iter()
        .zip(found)
        .filter(|(_, found)| *found)
        .map(|(p, _)| format!("{} {} {}", p.name, p.version, p.checksum))
        .collect();
    closure.sort();
    closure
}

/// FNV-1a, 64 bits. It guards against forgetting, not against an adversary.
struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    /// Adds one field; its length goes first, so that fields cannot run together.
    fn add(&mut self, field: &[u8]) {
        let length = (field.len() as u64).to_le_bytes();
        for byte in length.iter().chain(field) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
