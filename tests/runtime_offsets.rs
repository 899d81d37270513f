//! What `goprof::gobinary` says of the runtime's structs, held against live
//! programs of every Go version, linked in every way: goroutines that say who
//! they are must be found so from outside. amd64 only.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says why and fails"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use goprof::gobinary::{
    GLocation, GoBinary, LabelFormat, Labels, MAX_LABEL_BYTES, MAX_LABELS, RuntimeOffsets,
    StructOffsets, ThreadWord, read_labels,
};
use goprof::image::Image;
use goprof::process::{Objects, Process};
use goprof_tests::{cache_dir, go};

/// How the program is linked, and where it must then keep g.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    Static,
    Pie,
    /// By the C linker.
    Cgo,
    CgoPie,
    /// With 4 KiB of thread-local storage in its C code.
    LargeTls,
    LargeTlsPie,
    /// Loaded by a C program while that runs.
    Library,
    /// Linked into a C program.
    Archive,
}

impl Build {
    const ALL: [Build; 8] = [
        Build::Static,
        Build::Pie,
        Build::Cgo,
        Build::CgoPie,
        Build::LargeTls,
        Build::LargeTlsPie,
        Build::Library,
        Build::Archive,
    ];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Build::Static => &[],
            Build::Pie | Build::CgoPie | Build::LargeTlsPie => &["-buildmode=pie"],
            Build::Cgo | Build::LargeTls => &["-ldflags=-linkmode=external"],
            Build::Library => &["-buildmode=c-shared"],
            Build::Archive => &["-buildmode=c-archive"],
        }
    }

    fn has_cgo(self) -> bool {
        !matches!(self, Build::Static | Build::Pie)
    }

    fn has_large_tls(self) -> bool {
        matches!(self, Build::LargeTls | Build::LargeTlsPie)
    }

    /// The file that holds the Go program, beside which a host may be.
    fn make(self, version: &str) -> Program {
        let folder = cache_dir().join(format!("runtime_facts-{version}-{self:?}"));
        fs::create_dir_all(&folder).unwrap();
        let made = folder.join(match self {
            Build::Archive => "facts.a",
            _ => "facts",
        });
        let source = go::source_dir("runtime_facts");
        let mut build = go::go(version);
        build
            .arg("build")
            .args(self.flags())
            .arg("-o")
            .arg(&made)
            .arg(".")
            .current_dir(&source)
            .env("CGO_ENABLED", if self.has_cgo() { "1" } else { "0" });
        if self.has_large_tls() {
            build.env("CGO_CFLAGS", "-O2 -DLARGE_TLS");
        }
        succeed(&mut build);

        let host = folder.join("host");
        let mut cc = Command::new("cc");
        cc.arg("-o").arg(&host).arg(source.join("host/host.c"));
        match self {
            // Taken whole: the host's reference to it is weak.
            Build::Archive => {
                cc.arg("-Wl,--whole-archive").arg(&made);
                succeed(cc.args(["-Wl,--no-whole-archive", "-lpthread", "-ldl"]));
                Program::of(host, None)
            }
            Build::Library => {
                succeed(cc.arg("-ldl"));
                Program::of(made, Some(host))
            }
            _ => Program::of(made, None),
        }
    }
}

struct Program {
    whole: PathBuf,
    stripped: PathBuf,
    host: Option<PathBuf>,
}

impl Program {
    fn of(whole: PathBuf, host: Option<PathBuf>) -> Program {
        let stripped = whole.with_extension("stripped");
        succeed(Command::new("strip").arg("-o").arg(&stripped).arg(&whole));
        Program {
            whole,
            stripped,
            host,
        }
    }
}

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error} (install Go, gcc and binutils)"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}");
}

fn parse(path: &Path) -> GoBinary {
    GoBinary::parse(Arc::new(Image::open(File::open(path).unwrap()).unwrap())).unwrap()
}

/// A goroutine of the program, by its own words.
struct Announced {
    name: String,
    tid: i32,
    goid: u64,
}

/// The program, running. Dropping it kills it.
struct Live {
    child: Child,
    goroutines: Vec<Announced>,
    /// The goroutine that started the others.
    parent: u64,
    memory: File,
    bias: u64,
}

impl Live {
    fn start(file: &Path, host: Option<&Path>, binary: &GoBinary) -> Live {
        let mut command = Command::new(host.unwrap_or(file));
        if host.is_some() {
            command.arg(file);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut goroutines = Vec::new();
        let mut parent = None;
        let stdout = child.stdout.take().unwrap();
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["goroutine", name, tid, goid] => goroutines.push(Announced {
                    name: name.to_owned(),
                    tid: tid.parse().unwrap(),
                    goid: goid.parse().unwrap(),
                }),
                ["ready", goid] => {
                    parent = Some(goid.parse().unwrap());
                    break;
                }
                _ => panic!("{line}"),
            }
        }
        let pid = child.id();
        Live {
            memory: File::open(format!("/proc/{pid}/mem")).unwrap(),
            bias: load_bias(pid, file, binary),
            parent: parent.expect("the program ended before it was ready"),
            child,
            goroutines,
        }
    }

    fn read(&self, address: u64, buffer: &mut [u8]) -> bool {
        self.memory.read_exact_at(buffer, address).is_ok()
    }

    #[track_caller]
    fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        assert!(self.read(address, &mut bytes), "cannot read {address:#x}");
        u64::from_le_bytes(bytes)
    }

    /// The stack pointer of a thread once it is in `read(0, ...)`.
    fn stack_pointer_in_read(&self, tid: i32) -> u64 {
        let path = format!("/proc/{}/task/{tid}/syscall", self.child.id());
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = fs::read_to_string(&path).unwrap();
            let words: Vec<&str> = text.split_whitespace().collect();
            if words.len() == 9 && words[..2] == ["0", "0x0"] {
                return u64::from_str_radix(words[7].trim_start_matches("0x"), 16).unwrap();
            }
            assert!(Instant::now() < deadline, "{tid} does not block: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the loader added to the addresses of a file.
fn load_bias(pid: u32, file: &Path, binary: &GoBinary) -> u64 {
    let file = file.canonicalize().unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let start = maps
        .lines()
        .filter(|line| line.ends_with(file.to_str().unwrap()))
        .map(|line| u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap())
        .min()
        .expect("the file is mapped");
    let segments = binary.segments().iter();
    let first = segments.map(|segment| segment.vaddr & !0xfff).min();
    start.wrapping_sub(first.unwrap())
}

/// The FS base of a thread of a program of our own.
fn fs_base(tid: i32) -> u64 {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    // SAFETY: ptrace writes only to `registers`, which is as large as it says
    // for GETREGS; waitpid only to `status`.
    unsafe {
        let null = std::ptr::null_mut::<libc::c_void>;
        assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, tid, null(), null()), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, tid, null(), null()), 0);
        let mut status = 0;
        assert_eq!(libc::waitpid(tid, &mut status, libc::__WALL), tid);
        let at = registers.as_mut_ptr();
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGS, tid, null(), at), 0);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, tid, null(), null()), 0);
        registers.assume_init().fs_base
    }
}

/// The reason of a wait in `time.Sleep`, as `runtime.waitReasonSleep`.
fn sleep_reason(minor: u16) -> u8 {
    match minor {
        ..=24 => 19,
        25 => 20,
        _ => 14,
    }
}

/// Holds one goroutine against what it says of itself.
fn check_goroutine(live: &Live, binary: &GoBinary, offsets: &StructOffsets, announced: &Announced) {
    let StructOffsets {
        g,
        m,
        labels,
        lists,
        spans: _,
    } = offsets;
    // What stands for goroutines in queues, the tests of their list hold to it.
    let lists = lists.expect("a known release");
    let stack_pointer = live.stack_pointer_in_read(announced.tid);
    let offset = match binary.g_location() {
        GLocation::FsOffset(offset) => offset,
        GLocation::GotSlot(slot) => live.word(live.bias + slot) as i64,
        other => panic!("{other:?}"),
    };
    let current = live.word(fs_base(announced.tid).wrapping_add_signed(offset));
    let at = |base: u64, offset: u32| live.word(base + u64::from(offset));
    let thread = at(current, g.m);
    let goroutine = at(thread, m.curg);

    // The thread.
    let in_c = announced.name == "c";
    let system = at(thread, m.g0);
    assert_eq!(current, if in_c { system } else { goroutine });
    assert_eq!(at(system, g.m), thread);
    assert_eq!(at(at(thread, m.gsignal), g.m), thread);
    assert_eq!(at(thread, m.procid), announced.tid as u64);
    assert!(at(thread, m.id) < 1000);

    // The goroutine.
    let stack = at(goroutine, g.stack.lo)..at(goroutine, g.stack.hi);
    let text = binary.text();
    let in_text = |pc: u64| text.contains(&pc.wrapping_sub(live.bias));
    assert_eq!(at(goroutine, g.m), thread);
    assert_eq!(at(goroutine, g.goid), announced.goid);
    assert_eq!(at(goroutine, g.atomic_status) as u32, 3, "in a system call");
    let current_stack = at(current, g.stack.lo)..=at(current, g.stack.hi);
    assert!(current_stack.contains(&stack_pointer), "{current_stack:x?}");
    let minor = binary.version().major_minor().1;
    let saved_bp = (in_c || minor >= 23).then_some(g.sched.bp);
    for sp in [g.syscall.sp, g.sched.sp].into_iter().chain(saved_bp) {
        let sp = at(goroutine, sp);
        assert!(stack.contains(&sp), "{sp:x}, {stack:x?}");
    }
    assert!(in_text(at(goroutine, g.syscall.pc)) && in_text(at(goroutine, g.sched.pc)));
    if let Some(bp) = g.syscall.bp {
        assert!(stack.contains(&at(goroutine, bp)));
    }
    let mut frames = Vec::new();
    let start = at(goroutine, g.start_pc).wrapping_sub(live.bias);
    binary.frames(start, &mut frames).unwrap();
    assert!(frames.last().unwrap().name.starts_with("main."));
    assert!(in_text(at(goroutine, lists.go_pc)));
    assert_eq!(
        (
            at(goroutine, lists.waiting),
            at(goroutine, lists.wait_since)
        ),
        (0, 0)
    );
    if let Some(parent) = lists.parent_goid {
        assert_eq!(at(goroutine, parent), live.parent);
    }
    assert_eq!(at(goroutine, lists.wait_reason) as u8, sleep_reason(minor));

    let pointer = at(goroutine, g.labels);
    let found = read_labels(labels.unwrap(), pointer, |address, buffer| {
        live.read(address, buffer)
    });
    check_labels(&announced.name, &found);
}

/// Holds labels against those that the program sets.
fn check_labels(name: &str, found: &Labels) {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let many = |count: usize| {
        let pairs = (0..count).map(|i| pair(&format!("key{i}"), &format!("value{i}")));
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort();
        pairs
    };
    let mut expected = Labels::default();
    expected.pairs = match name {
        "plain" => Vec::new(),
        "one" => vec![pair("path", "/api/users")],
        "eight" => many(8),
        "twenty" => many(20),
        "fifty-three" => many(53),
        "c" => vec![pair("in", "c")],
        "long" => {
            expected.cut = 2;
            let (key, value) = ("k".repeat(MAX_LABEL_BYTES), "v".repeat(MAX_LABEL_BYTES));
            vec![pair("", "nameless"), pair("empty", ""), pair(&key, &value)]
        }
        "hundred" => {
            assert_eq!(found.pairs.len(), MAX_LABELS);
            let all = many(100);
            assert!(found.pairs.iter().all(|pair| all.contains(pair)));
            assert!(found.pairs.windows(2).all(|two| two[0] < two[1]));
            expected.excess = 100 - MAX_LABELS as u64;
            found.pairs.clone()
        }
        _ => panic!("{name}"),
    };
    assert_eq!(*found, expected);
}

/// Where g must be, as far as the way of linking says it.
fn check_location(build: Build, location: GLocation) {
    let right = match (build, location) {
        (Build::Library, GLocation::GotSlot(_)) => true,
        (Build::Library, _) => false,
        (_, GLocation::FsOffset(offset)) if build.has_large_tls() => offset < -4096,
        (_, GLocation::FsOffset(offset)) => (-64..0).contains(&offset),
        _ => false,
    };
    assert!(right, "{location:?}");
}

/// The program's own type says of labels what its version does.
fn check_label_format(binary: &GoBinary, offsets: &RuntimeOffsets) {
    let by_version = offsets.get().unwrap().labels;
    assert!(by_version.is_some());
    assert_eq!(binary.label_format(), by_version, "{}", binary.version());
}

fn check_build(version: &str, build: Build) {
    let program = build.make(version);
    let whole = parse(&program.whole);
    let stripped = parse(&program.stripped);
    let offsets = stripped.runtime_offsets();
    assert!(matches!(offsets, RuntimeOffsets::Known(_)), "{offsets:?}");
    assert_eq!(whole.runtime_offsets(), offsets);
    check_label_format(&whole, &offsets);
    check_label_format(&stripped, &offsets);
    let location = stripped.g_location();
    assert_eq!(whole.g_location(), location);
    check_location(build, location);

    let live = Live::start(&program.stripped, program.host.as_deref(), &stripped);
    let expected = if build.has_cgo() { 8 } else { 7 };
    assert_eq!(live.goroutines.len(), expected);
    let process = Process::read(live.child.id(), &mut Objects::default()).unwrap();
    let layout = process.go_layout();
    let is_proven = layout.as_ref().is_ok_and(|layout| layout.is_proven);
    assert!(is_proven, "{version} {build:?}: {layout:?}");
    for announced in &live.goroutines {
        println!("{version} {build:?} {location:?} {}", announced.name);
        check_goroutine(&live, &stripped, offsets.get().unwrap(), announced);
    }
}

fn check(version: &str) {
    for build in Build::ALL {
        check_build(version, build);
    }
}

#[test]
fn go_1_19_is_found() {
    check("1.19.13");
}

#[test]
fn go_1_20_is_found() {
    check("1.20.14");
}

#[test]
fn go_1_21_is_found() {
    check("1.21.13");
}

#[test]
fn go_1_22_is_found() {
    check("1.22.10");
}

#[test]
fn go_1_23_is_found() {
    check("1.23.9");
}

#[test]
fn go_1_24_is_found() {
    check("1.24.11");
}

#[test]
fn go_1_25_is_found() {
    check("1.25.5");
}

#[test]
fn go_1_26_is_found() {
    check("1.26.6");
}

#[test]
fn go_1_27_is_found() {
    check("1.27.3");
}

/// Holds the place of the list of goroutines against the symbols.
fn check_list(file: &Path, binary: &GoBinary) {
    let found = binary.all_goroutines().expect("runtime.allgadd says it");
    let output = Command::new("nm").arg(file).output().unwrap();
    let symbols = String::from_utf8_lossy(&output.stdout).into_owned();
    let symbol = |name: &str| {
        let line = symbols.lines().find(|line| line.ends_with(name)).unwrap();
        u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
    };
    assert_eq!(found.array, symbol(" runtime.allgptr"));
    assert_eq!(found.count, symbol(" runtime.allglen"));
}

/// Builds the program for arm64, which needs no C compiler.
fn check_arm64(version: &str, build: Build) {
    let made = cache_dir().join(format!("runtime_facts-{version}-{build:?}-arm64"));
    let mut go = go::go(version);
    go.arg("build").args(build.flags()).arg("-o").arg(&made);
    go.arg(".").current_dir(go::source_dir("runtime_facts"));
    succeed(go.env("CGO_ENABLED", "0").env("GOARCH", "arm64"));
    let binary = parse(&made);
    let offsets = binary.runtime_offsets();
    assert!(matches!(offsets, RuntimeOffsets::Known(_)), "{offsets:?}");
    let register = GLocation::Register {
        number: 28,
        in_c: Some(ThreadWord::Offset(16)),
    };
    assert_eq!(binary.g_location(), register, "{version} {build:?}");
    check_label_format(&binary, &offsets);
    check_list(&made, &binary);
}

#[test]
fn arm64_keeps_g_in_a_register() {
    for version in go::EVERY_VERSION {
        check_arm64(version, Build::Static);
    }
    check_arm64("1.19.13", Build::Pie);
    check_arm64(go::NEWEST, Build::Pie);
}

/// The program with another version written over its own.
fn disguised(path: &Path, own: &str, other: &str) -> GoBinary {
    assert_eq!(own.len(), other.len());
    let mut bytes = fs::read(path).unwrap();
    let magic = b"\xff Go buildinf:";
    let header = bytes
        .windows(magic.len())
        .position(|window| window == magic)
        .unwrap();
    let version = header + 33..header + 33 + own.len();
    assert_eq!(&bytes[version.clone()], own.as_bytes());
    bytes[version].copy_from_slice(other.as_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("facts");
    fs::write(&path, bytes).unwrap();
    parse(&path)
}

#[test]
fn newer_versions_are_read_from_dwarf_or_unknown() {
    for build in [Build::Static, Build::CgoPie, Build::Library] {
        let program = build.make("1.27.3");
        let known = parse(&program.whole).runtime_offsets();
        let newer = disguised(&program.whole, "go1.27.3", "go1.28.0").runtime_offsets();
        let RuntimeOffsets::FromDwarf(read) = newer else {
            panic!("{build:?}: {newer:?}");
        };
        assert_eq!(Some(&read), known.get());
        assert_eq!(read.labels, Some(LabelFormat::Slice));

        let blind = disguised(&program.stripped, "go1.27.3", "go1.28.0").runtime_offsets();
        let RuntimeOffsets::Unknown { why } = blind else {
            panic!("{build:?}: {blind:?}");
        };
        assert_eq!(
            why,
            "go1.28.0 is not a release of Go 1.19 to 1.27, and it has no DWARF"
        );
    }
}
