//! Fixtures in `bpf-fixtures/`: records that the kernel side once wrote, and
//! what is needed to name their frames without the machine, the processes and
//! the binaries of then. Reads and writes them; records nothing.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use goprof::process::{Identity, Objects, Process, VDSO};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes as _;

/// Where a fixture's program lies in the maps and profiles of its replay.
pub const PROGRAM_FOLDER: &str = "/fixture";

/// The vdso of the kernel that a case was recorded on, in its folder. Absent
/// where no sample has a frame in it.
pub const VDSO_FILE: &str = "vdso.so.gz";

/// `case.toml`: what to record, written by hand, and what was.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What the case is there to show, in a sentence.
    pub about: String,
    /// The program of `tests/go/`.
    pub program: String,
    /// The Go version it is built with.
    pub go: String,
    /// Flags of `go build` beside `-trimpath`.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Whether kernel stacks are recorded.
    #[serde(default)]
    pub kernel_stacks: bool,
    /// Whether the replay tells threads apart.
    #[serde(default)]
    pub threads: bool,
    /// Whether only samples are kept whose frame-pointer chain lacks the
    /// caller: from prologues, epilogues, leaves and assembly.
    #[serde(default)]
    pub only_lost_callers: bool,
    /// Only samples are kept that have this function of Go's in their stack.
    pub function: Option<String>,
    /// Only samples are kept that were taken in the mapping of this path.
    pub mapping: Option<String>,
    /// How many records are kept as they come, so that stacks repeat; after
    /// them only those at an instruction not seen yet, so that many are covered.
    #[serde(default = "as_they_come")]
    pub as_they_come: usize,
    /// How many records to keep.
    pub records: usize,
    /// What the recorder found; absent in a case not recorded yet.
    pub recorded: Option<Recorded>,
}

fn as_they_come() -> usize {
    16
}

/// The machine and process of a recording.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recorded {
    /// The kernel's release.
    pub kernel: String,
    /// The processor's architecture, as Rust calls it.
    pub arch: String,
    /// Samples a second.
    pub rate_hz: u32,
    /// The process id.
    pub pid: u32,
    /// The process's name.
    pub comm: String,
}

impl Case {
    /// Reads the `case.toml` of a case.
    #[track_caller]
    pub fn read(name: &str) -> Case {
        let path = folder(name).join("case.toml");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The program's process, with the files behind its mappings.
    pub fn process(
        &self,
        pid: u32,
        maps: &str,
        files: Files<'_>,
        objects: &mut Objects,
    ) -> Process {
        let exe = self.exe();
        let identity = Identity {
            pid,
            comm: self.program.clone(),
            exe: exe.clone(),
        };
        Process::from_maps(identity, maps.as_bytes(), objects, |line| {
            let file = match &line.path {
                path if *path == exe => Some(files.program),
                path if path == VDSO => files.vdso,
                _ => None,
            };
            file.map(|file| File::open(file).expect("open what is mapped"))
        })
    }

    /// The program's path in the replay.
    pub fn exe(&self) -> String {
        format!("{PROGRAM_FOLDER}/{}", self.program)
    }
}

/// The files behind a process's mappings.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    /// The program.
    pub program: &'a Path,
    /// A copy of the vdso, where the case's samples need one.
    pub vdso: Option<&'a Path>,
}

/// The folder of a case.
pub fn folder(name: &str) -> PathBuf {
    crate::workspace().join("bpf-fixtures").join(name)
}

/// The names of all cases.
#[track_caller]
pub fn cases() -> Vec<String> {
    let folders = std::fs::read_dir(folder("")).expect("list bpf-fixtures");
    let mut names: Vec<String> = folders
        .map(|entry| entry.expect("read bpf-fixtures").file_name())
        .map(|name| name.into_string().expect("a case's name is UTF-8"))
        .collect();
    names.sort();
    names
}

/// A recording, unpacked.
pub struct Fixture {
    /// What was recorded.
    pub case: Case,
    /// The machine and process.
    pub recorded: Recorded,
    /// The records, as words: the kernel side aligns them so.
    pub records: Vec<Vec<u64>>,
    /// The lines of `/proc/PID/maps`.
    pub maps: String,
    /// The kernel's symbols around the recorded addresses: a file, absent in a
    /// case without kernel stacks.
    pub kallsyms: PathBuf,
    tables: PathBuf,
    vdso: Option<PathBuf>,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// Reads a case and unpacks its tables.
    #[track_caller]
    pub fn open(name: &str) -> Fixture {
        let case = Case::read(name);
        let recorded = case.recorded.clone().unwrap_or_else(|| {
            panic!("{name} was never recorded: run `cargo xtask fixture {name}` as root")
        });
        let unpacked = tempfile::tempdir().expect("make a folder to unpack into");
        let tables = unpacked.path().join(&case.program);
        let bytes = unpack(&folder(name).join("tables.elf.gz"));
        std::fs::write(&tables, bytes).expect("unpack the tables");
        let vdso = folder(name).join(VDSO_FILE);
        let vdso = vdso.exists().then(|| {
            let file = unpacked.path().join("vdso.so");
            std::fs::write(&file, unpack(&vdso)).expect("unpack the vdso");
            file
        });
        Fixture {
            recorded,
            records: split(&unpack(&folder(name).join("records.bin.gz"))),
            maps: std::fs::read_to_string(folder(name).join("maps.txt")).expect("read maps.txt"),
            kallsyms: folder(name).join("kallsyms.txt"),
            tables,
            vdso,
            case,
            _folder: unpacked,
        }
    }

    /// The binary, with zeros in place of what the records do not need.
    #[track_caller]
    pub fn tables(&self) -> Vec<u8> {
        std::fs::read(&self.tables).expect("read the tables")
    }

    /// The process, as its maps and the kept tables describe it.
    pub fn process(&self, objects: &mut Objects) -> Process {
        let files = Files {
            program: &self.tables,
            vdso: self.vdso.as_deref(),
        };
        self.case
            .process(self.recorded.pid, &self.maps, files, objects)
    }
}

/// Writes a gzipped file.
#[track_caller]
pub fn pack(path: &Path, bytes: &[u8]) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("compress");
    let packed = encoder.finish().expect("compress");
    std::fs::write(path, packed).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

#[track_caller]
fn unpack(path: &Path) -> Vec<u8> {
    let file = File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let mut bytes = Vec::new();
    GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap_or_else(|e| panic!("unpack {}: {e}", path.display()));
    bytes
}

/// Records one after the other, each after its length in words; all in
/// little-endian words.
pub fn join(records: &[Vec<u64>]) -> Vec<u8> {
    let mut words = Vec::new();
    for record in records {
        words.push(record.len() as u64);
        words.extend_from_slice(record);
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[track_caller]
fn split(bytes: &[u8]) -> Vec<Vec<u64>> {
    let (words, rest) = bytes.as_chunks::<8>();
    assert!(rest.is_empty(), "records.bin.gz is cut short");
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let mut records = Vec::new();
    let mut rest = &words[..];
    while let Some((length, after)) = rest.split_first() {
        let (record, after) = after.split_at(usize::try_from(*length).expect("a length"));
        records.push(record.to_vec());
        rest = after;
    }
    records
}

/// A record as the ring buffer hands it out.
pub fn bytes_of(record: &[u64]) -> &[u8] {
    record.as_bytes()
}
