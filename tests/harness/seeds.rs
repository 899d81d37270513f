//! Inputs that fuzzing begins with where no fixture has any: records of every kind,
//! text of `/proc`, configurations, queries, files of the spool and a core; and how
//! the targets read theirs.

use std::fs;

use profiler_ebpf::wire::{Header, Measured, Segment, ShareSpent, event, kind};
use zerocopy::IntoBytes as _;

use crate::{fixture, fuzzing, workspace};

/// A container's id, and a pod's.
const ID: &str = "3f1c2a0e9b8d7c6f5a4e3d2c1b0a99887766554433221100ffeeddccbbaa9988";
const UID: &str = "7f2c9a44-0d1e-4b6a-9a57-2b1f0c8e6d31";

/// An input of the target `texts`: what the first byte says that the rest is.
pub enum TextInput<'a> {
    /// `/proc/PID/maps`.
    Maps(&'a [u8]),
    /// `/proc/PID/cgroup`, and behind a zero where the reader itself is.
    Cgroup {
        /// The reader's own cgroup.
        own: &'a [u8],
        /// The file.
        text: &'a [u8],
    },
    /// What is to become a label.
    Label(&'a [u8]),
}

impl<'a> TextInput<'a> {
    /// Reads an input; `None` where it is empty.
    pub fn of(data: &'a [u8]) -> Option<Self> {
        let (which, text) = data.split_first()?;
        Some(match which % 3 {
            0 => Self::Maps(text),
            1 => {
                let mut parts = text.splitn(2, |byte| *byte == 0);
                let text = parts.next().unwrap_or_default();
                let own = parts.next().unwrap_or_default();
                Self::Cgroup { own, text }
            }
            _ => Self::Label(text),
        })
    }
}

/// An input of the target `spool`: files, each behind its length.
pub struct SpoolInput<'a> {
    /// What they hold.
    pub files: Vec<&'a [u8]>,
}

impl<'a> SpoolInput<'a> {
    /// Most files.
    const MAX_FILES: usize = 4;

    /// Reads an input: the last file is what is left.
    pub fn of(mut data: &'a [u8]) -> Self {
        let mut files = Vec::new();
        while let Some((length, rest)) = data.split_first_chunk() {
            if files.len() == Self::MAX_FILES {
                break;
            }
            let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
            let (file, later) = rest.split_at(length);
            files.push(file);
            data = later;
        }
        Self { files }
    }

    /// A file of the spool, whole: magic, lengths, checksum, key and object.
    pub fn entry(key: &str, object: &[u8]) -> Vec<u8> {
        let mut both = flate2::Crc::new();
        both.update(key.as_bytes());
        both.update(object);
        let mut file = b"goprof1\n".to_vec();
        file.extend((key.len() as u32).to_le_bytes());
        file.extend((object.len() as u64).to_le_bytes());
        file.extend(both.sum().to_le_bytes());
        file.extend(key.as_bytes());
        file.extend(object);
        file
    }
}

/// The targets' names, each with its inputs to begin with.
pub fn all() -> Vec<(&'static str, Vec<Vec<u8>>)> {
    vec![
        ("records", records()),
        ("texts", texts()),
        ("config", configurations()),
        ("queries", queries()),
        ("spool", spools()),
        ("cores", vec![core()]),
    ]
}

/// Some of the fixtures' samples, the same as what was measured, and one record of
/// each other kind.
fn records() -> Vec<Vec<u8>> {
    const SAMPLES: usize = 8;
    let header = |kind| Header {
        kind,
        cpu: 1,
        time_ns: 2,
        pid: 3,
        tid: 4,
    };
    let measured = |kind| Measured {
        header: header(kind),
        event: event::BLOCK_IO,
        weight: 1,
        duration_ns: 5,
        part_ns: 6,
        detail: 7,
        window: 8,
    };
    let spent = ShareSpent {
        header: header(kind::SHARE_SPENT),
        window: 9,
    };
    let mut records = vec![
        measured(kind::ENDED).as_bytes().to_vec(),
        spent.as_bytes().to_vec(),
    ];
    for kind in [kind::EXEC, kind::EXIT, kind::THREAD] {
        records.push(header(kind).as_bytes().to_vec());
    }
    let begun = measured(kind::MEASURED);
    let made = fuzzing::record(Segment::default(), &[1, 2, 3], &[4, 5]);
    let known = fuzzing::known().iter();
    let samples = known.flat_map(|known| known.records.iter().take(SAMPLES));
    for sample in samples.chain([&made]) {
        let sample = fixture::bytes_of(sample);
        records.push(sample.to_vec());
        records.push([begun.as_bytes(), sample].concat());
    }
    records
}

fn texts() -> Vec<Vec<u8>> {
    let maps = "00400000-00480000 r-xp 00000000 fe:01 1234    /bin/a b (deleted)\n\
                00480000-00490000 r--p 00080000 fe:01 1234    /bin/a b\n\
                7fff0000-7fff2000 r-xp 00000000 00:00 0       [vdso]\n\
                00100000-00101000 rwxp 00000000 00:00 0 \n";
    let below = "/kubepods.slice/kubepods-burstable.slice";
    let slice = UID.replace('-', "_");
    let cgroups = [
        format!("0::{below}/kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope\n"),
        format!("4:memory:/x\n1:name=systemd:/docker/{ID}\n0::/\n"),
        format!("0::/kubepods/pod{UID}/{ID}"),
        format!("0::/../../system.slice/libpod-{ID}.scope/container\0/machine.slice/a.scope"),
        "0::/system.slice/etcd.service".to_owned(),
        "3:cpu:/ecs/0123456789abcdef0123456789abcdef-2718281828\n".to_owned(),
    ];
    let labels = [
        "größe \u{202e}\u{1b}[31m",
        " a\0b\r\n ",
        "\u{2028}\u{feff}x",
    ];
    let mut texts = vec![[&[0], maps.as_bytes()].concat()];
    texts.extend(cgroups.map(|text| [&[1], text.as_bytes()].concat()));
    texts.extend(labels.map(|text| [&[2], text.as_bytes()].concat()));
    texts.push([&[2][..], &[0xff; 300]].concat());
    texts
}

/// The example, and a file with every table.
#[track_caller]
fn configurations() -> Vec<Vec<u8>> {
    let example = fs::read(workspace().join("deploy/goprof.toml"));
    let all = "cluster = \"a\"\nnode = \"b\"\nrate_hz = 29\nflush = \"5s\"\nlabels = false\n\
               memory_limit = \"256MiB\"\nkernel = false\ngoroutines = true\nthreads = true\n\
               [http]\nlisten = \"[::1]:70\"\ninsecure = true\ntoken_file = \"/t\"\n\
               [http.tls]\ncert_file = \"/c\"\nkey_file = \"/k\"\nclient_ca_file = \"/a\"\n\
               [store]\nurl = \"s3://bucket/a\"\n[spool]\npath = \"/s\"\nlimit = \"1GiB\"\n\
               [metrics]\nmax_targets = 3\nruntimes = false\n";
    let rules = "[[rules]]\nrate_hz = 97\ninclude = [{ name = \"etcd\" }]\n\
                 [[rules]]\nevent = \"mutex\"\nprobe_budget = \"1%\"\n\
                 exclude = [{ namespace = \"kube-.*\", labels = { unit = \"a|b\" } }]\n";
    let push = "[[push]]\nkind = \"pyroscope\"\nurl = \"http://localhost:4040\"\n\
                limit = \"16MiB\"\nheaders = { a = \"b\" }\n";
    let made = [
        all,
        rules,
        push,
        "rate_hz = 0",
        "a = [1, {b = 2}]\nc.d = 'e'",
    ];
    let mut files = vec![example.expect("read the example of a configuration")];
    files.extend(made.map(|text| text.as_bytes().to_vec()));
    files
}

fn queries() -> Vec<Vec<u8>> {
    let queries = [
        "pid=1",
        "pid=2&seconds=30&event=cpu",
        "pod=pod-1&event=goroutine",
        "service=service-2&event=wall&seconds=300",
        "service=%73ervice-1&event=alloc+events",
        "pid=4294967295&pod=x",
        "seconds=18446744073709551615&pid=1",
    ];
    queries.map(|query| query.as_bytes().to_vec()).into()
}

fn spools() -> Vec<Vec<u8>> {
    let entry = SpoolInput::entry("v1/cluster=a/x.parquet", b"PAR1 an object PAR1");
    let file = |bytes: &[u8]| [&(bytes.len() as u16).to_le_bytes(), bytes].concat();
    let (cut, empty) = (&entry[..entry.len() - 1], SpoolInput::entry("", b""));
    vec![
        file(&entry),
        [file(&entry), file(cut), file(&empty)].concat(),
        file(b"goprof1\n"),
    ]
}

/// A core of three segments: one dumped in part, one in full, one not at all; with
/// the notes of a process, a thread and a file.
fn core() -> Vec<u8> {
    let words = |words: &[u64]| -> Vec<u8> { words.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let halves = |halves: &[u32]| -> Vec<u8> {
        let bytes = halves.iter().flat_map(|half| half.to_le_bytes());
        bytes.collect()
    };
    let mut files = words(&[1, 4096, 0x40_0000, 0x40_1000, 2]);
    files.extend(b"/bin/app\0");
    let mut status = vec![0; 336];
    status[12] = 11;
    status[32] = 77;
    status[112 + 16 * 8..][..8].copy_from_slice(&0x40_0010_u64.to_le_bytes());
    status[112 + 19 * 8..][..8].copy_from_slice(&0xc0_0000_u64.to_le_bytes());
    let mut about = vec![0; 136];
    about[24] = 76;
    about[40..43].copy_from_slice(b"app");
    let mut notes = Vec::new();
    for (kind, text) in [(3, &about), (1, &status), (0x4649_4c45, &files)] {
        notes.extend(halves(&[5, text.len() as u32, kind]));
        notes.extend(b"CORE\0\0\0\0");
        notes.extend(text.as_slice());
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
    let at = 64 + 4 * 56;
    let dumped = at + notes.len() as u64;
    let mut core = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x04\0\x3e\0\x01\0\0\0".to_vec();
    core.extend(words(&[0, 64, 0]));
    core.extend(b"\0\0\0\0\x40\0\x38\0\x04\0\0\0\0\0\0\0");
    for (kind, flags, [offset, address, in_file, size]) in [
        (4, 0, [at, 0, notes.len() as u64, 0]),
        (1, 5, [dumped, 0x40_0000, 16, 0x1000]),
        (1, 6, [dumped + 16, 0xc0_0000, 16, 16]),
        (1, 6, [0, 0xd0_0000, 0, 0x1000]),
    ] {
        core.extend(halves(&[kind, flags]));
        core.extend(words(&[offset, address, address, in_file, size, 1]));
    }
    core.extend(&notes);
    core.extend(0..32);
    core
}
