//! The oracle of `goprof::gobinary`: Go programs of every supported version tell
//! what their own runtime knows of their own addresses, and goprof must say the
//! same of their files, to the last frame, file and line.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says why and fails"
)]

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use goprof::gobinary::{FuncKind, GoBinary, GoFrame};
use goprof::image::Image;

/// Addresses asked per program, at least. They are spread evenly over its text.
const MIN_ADDRESSES: usize = 10_000;
/// Distance of two addresses asked, in bytes; coprime to instruction alignments.
const STRIDE: usize = 13;

/// How a program is linked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    Plain,
    Stripped,
    Pie,
    StrippedPie,
    /// Linked by the C linker, which merges and moves Go's sections.
    CgoStrippedPie,
}

impl Build {
    const ALL: [Build; 5] = [
        Build::Plain,
        Build::Stripped,
        Build::Pie,
        Build::StrippedPie,
        Build::CgoStrippedPie,
    ];

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Build::Plain => &[],
            Build::Stripped => &["-ldflags=-s -w"],
            Build::Pie => &["-buildmode=pie"],
            Build::StrippedPie => &["-buildmode=pie", "-ldflags=-s -w"],
            Build::CgoStrippedPie => &[
                "-buildmode=pie",
                "-tags=cgo_call",
                "-ldflags=-s -w -linkmode=external",
            ],
        }
    }
}

/// Builds the oracle program. The toolchain comes through Go's module proxy.
fn build(version: &str, build: Build, dir: &Path) -> PathBuf {
    let program = dir.join(format!("{version}-{build:?}"));
    let output = Command::new("go")
        .arg("build")
        .args(build.arguments())
        .arg("-o")
        .arg(&program)
        .arg(".")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/go/frame_oracle"))
        .env("GOTOOLCHAIN", format!("go{version}"))
        .env("GOFLAGS", "-buildvcs=false")
        .env(
            "CGO_ENABLED",
            if build == Build::CgoStrippedPie {
                "1"
            } else {
                "0"
            },
        )
        .output()
        .expect("Go is missing: install it and have `go` in PATH");
    assert!(
        output.status.success(),
        "go{version} {build:?}: go build failed (a missing toolchain needs the module proxy, \
         cgo needs gcc): {}",
        String::from_utf8_lossy(&output.stderr)
    );
    program
}

fn open(path: &Path) -> GoBinary {
    let file = File::open(path).unwrap();
    GoBinary::parse(Arc::new(Image::open(file).unwrap())).unwrap()
}

/// What the program answers, by distance from `main.anchor`; None for an address
/// it cannot be asked about.
fn ask(program: &Path, distances: &[i64]) -> HashMap<i64, Option<Vec<String>>> {
    let mut child = Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let questions: String = distances
        .iter()
        .map(|distance| {
            let sign = if *distance < 0 { "-" } else { "" };
            format!("{sign}{:x}\n", distance.unsigned_abs())
        })
        .collect();
    let writer = std::thread::spawn(move || stdin.write_all(questions.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());

    let mut answers = HashMap::new();
    let mut frames = Vec::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let (distance, rest) = line.split_once('\t').unwrap();
        let digits = distance.trim_start_matches('-');
        let mut key = i64::from_str_radix(digits, 16).unwrap();
        if distance.starts_with('-') {
            key = -key;
        }
        match rest {
            "boundary" => drop(answers.insert(key, None)),
            "end" => drop(answers.insert(key, Some(std::mem::take(&mut frames)))),
            frame => frames.push(frame.to_owned()),
        }
    }
    answers
}

/// Leaves out wrappers as Go does when it expands a stack's last address
/// (`runtime/pprof.runtime_expandFinalInlineFrame`).
fn without_wrappers(frames: Vec<GoFrame>, go_minor: u16) -> Vec<GoFrame> {
    if frames.len() < 2 {
        return frames;
    }
    let mut callee = FuncKind::Normal;
    let mut kept = Vec::new();
    for frame in frames {
        let kind = frame.kind;
        let wrapper = kind == FuncKind::Wrapper && callee.elides_calling_wrapper();
        // Up to 1.20 the physical function always stays.
        if !wrapper || (!frame.inlined && go_minor <= 20) {
            kept.push(frame);
        }
        callee = kind;
    }
    kept
}

/// A frame as the oracle writes it.
fn line_of(frame: &GoFrame, go_minor: u16) -> String {
    // Go writes "?" for a file it does not know, goprof leaves it empty. 1.19
    // records no start line, goprof derives one.
    let file = if frame.file.is_empty() {
        "?"
    } else {
        &frame.file
    };
    let start_line = if go_minor < 20 { 0 } else { frame.start_line };
    format!("{}\t{file}\t{}\t{start_line}", frame.name, frame.line)
}

fn compare(version: &str, mode: Build, program: &Path) {
    let binary = open(program);
    let go_minor = binary.version().major_minor().1;
    assert_eq!(binary.version().as_str(), format!("go{version}"));
    assert_eq!(binary.build_info().path, "example.com/frame_oracle");
    assert!(!binary.version().is_newer_than_known());

    check_build_id(&binary, mode, program);
    check_kinds(&binary);

    let anchor = binary.function_by_name("main.anchor").unwrap();
    let text = binary.text();
    let distances: Vec<i64> = text
        .clone()
        .step_by(STRIDE)
        .map(|vaddr| vaddr as i64 - anchor as i64)
        .collect();
    assert!(
        distances.len() >= MIN_ADDRESSES,
        "{} addresses",
        distances.len()
    );
    let answers = ask(program, &distances);

    let mut asked = 0;
    let mut inlined = 0;
    let mut boundaries = 0;
    let mut nameless: HashSet<String> = HashSet::new();
    let mut frames = Vec::new();
    for distance in &distances {
        let Some(answer) = &answers[distance] else {
            boundaries += 1;
            continue;
        };
        let vaddr = (anchor as i64 + distance) as u64;
        frames.clear();
        let found = binary.frames(vaddr, &mut frames);
        let frames = without_wrappers(std::mem::take(&mut frames), go_minor);
        let mut ours = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            let mut line = line_of(frame, go_minor);
            // The runtime takes offset 0 in the name table for no name, and so
            // never names the one function whose name stands first in it.
            if answer.get(index).is_some_and(|line| line.starts_with('\t')) {
                nameless.insert(frame.name.clone());
                line.drain(..frame.name.len());
            }
            ours.push(line);
        }
        assert_eq!(
            &ours, answer,
            "go{version} {mode:?} at {vaddr:#x} ({found:?}): ours, then Go's"
        );
        asked += 1;
        inlined += usize::from(frames.len() > 1);
    }
    assert!(nameless.len() <= 1, "{nameless:?} have no name in Go");
    // 1 byte in some dozens ends a function; were it more, the comparison would
    // be hollow. So it would without inlined frames.
    assert!(boundaries * 10 < distances.len(), "{boundaries} boundaries");
    assert!(
        inlined * 20 > asked,
        "{inlined} of {asked} with inlined frames"
    );
    println!("go{version} {mode:?}: {asked} addresses identical, {inlined} with inlined frames");
}

/// Go's linker writes a GNU build id since 1.24, the C linker always does.
fn check_build_id(binary: &GoBinary, mode: Build, program: &Path) {
    let output = Command::new("readelf")
        .arg("-n")
        .arg(program)
        .output()
        .expect("readelf is missing: install it (apt-get install binutils)");
    let notes = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = notes
        .lines()
        .find_map(|line| line.trim().strip_prefix("Build ID: "))
        .unwrap_or_default();
    assert_eq!(binary.build_id(), expected);
    let written = binary.version().major_minor().1 >= 24 || mode == Build::CgoStrippedPie;
    assert_eq!(!binary.build_id().is_empty(), written, "{expected}");
}

/// Function ids are numbers that differ between versions: the functions that
/// matter to a stack walk must come out as what they are.
fn check_kinds(binary: &GoBinary) {
    let kinds = [
        ("runtime.goexit", FuncKind::Goexit),
        ("runtime.mstart", FuncKind::Mstart),
        ("runtime.mcall", FuncKind::Mcall),
        ("runtime.morestack", FuncKind::Morestack),
        ("runtime.systemstack", FuncKind::Systemstack),
        ("runtime.systemstack_switch", FuncKind::SystemstackSwitch),
        ("runtime.sigpanic", FuncKind::SigPanic),
        ("runtime.gopanic", FuncKind::GoPanic),
        ("runtime.gogo", FuncKind::Gogo),
        ("runtime.main", FuncKind::RuntimeMain),
        ("runtime.rt0_go", FuncKind::Rt0Go),
        ("runtime.asyncPreempt", FuncKind::AsyncPreempt),
        ("main.named.area", FuncKind::Wrapper),
        ("main.main", FuncKind::Normal),
    ];
    for (name, kind) in kinds {
        let entry = binary
            .function_by_name(name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        let function = binary.function(entry).unwrap();
        assert_eq!(function.entry, entry, "{name}");
        assert_eq!(function.kind, kind, "{name}");
        let outermost = matches!(kind, FuncKind::Goexit | FuncKind::Mstart | FuncKind::Rt0Go);
        assert_eq!(function.top_frame, outermost, "{name}");
        let delta = binary.stack_delta(entry);
        assert_eq!(delta, Some(0), "{name}: nothing is pushed at the entry");
    }
    let asm = |name: &str| binary.function(binary.function_by_name(name).unwrap());
    assert!(asm("runtime.goexit").unwrap().asm);
    assert!(!asm("main.main").unwrap().asm);
}

fn check(version: &str) {
    let dir = tempfile::tempdir().unwrap();
    for mode in Build::ALL {
        compare(version, mode, &build(version, mode, dir.path()));
    }
}

/// Go's own reading of a program that cannot run here: function, file and line
/// of the innermost frame, by address (`go tool addr2line`, which reads pclntab
/// with `debug/gosym`, another implementation than the runtime's).
fn addr2line(version: &str, program: &Path, addresses: &[u64]) -> Vec<(String, String)> {
    let mut child = Command::new("go")
        .args(["tool", "addr2line"])
        .arg(program)
        .env("GOTOOLCHAIN", format!("go{version}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Go is missing: install it and have `go` in PATH");
    let mut stdin = child.stdin.take().unwrap();
    let questions: String = addresses.iter().map(|pc| format!("{pc:#x}\n")).collect();
    let writer = std::thread::spawn(move || stdin.write_all(questions.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2 * addresses.len());
    lines
        .chunks(2)
        .map(|pair| (pair[0].to_owned(), pair[1].to_owned()))
        .collect()
}

/// Compares an arm64 program, stripped, with what Go's tool says of it. The tool
/// knows no inlining: function of the outermost frame, line of the innermost.
fn check_arm64(version: &str) {
    let dir = tempfile::tempdir().unwrap();
    let build = |name: &str, flags: &str| {
        let program = dir.path().join(name);
        let status = Command::new("go")
            .args(["build", flags, "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/go/frame_oracle"))
            .env("GOTOOLCHAIN", format!("go{version}"))
            .env("GOFLAGS", "-buildvcs=false")
            .env("GOARCH", "arm64")
            .env("CGO_ENABLED", "0")
            .status()
            .expect("Go is missing: install it and have `go` in PATH");
        assert!(status.success(), "go{version}: go build for arm64 failed");
        program
    };
    // The linker places the same code at the same addresses in both.
    let binary = open(&build("stripped", "-ldflags=-s -w"));
    let whole = build("whole", "-ldflags=");
    let addresses: Vec<u64> = binary.text().step_by(4 * 13).collect();
    let answers = addr2line(version, &whole, &addresses);
    let mut inlined = 0;
    let mut frames = Vec::new();
    for (vaddr, (function, place)) in addresses.iter().zip(&answers) {
        frames.clear();
        let found = binary.frames(*vaddr, &mut frames);
        if found.is_err() {
            let go_too = function == "?" && place == "?:0";
            assert!(go_too, "{vaddr:#x}: {found:?}, Go: {function} {place}");
            continue;
        }
        let (leaf, outermost) = (&frames[0], &frames[frames.len() - 1]);
        // Where no file is known the tool says so in several ways.
        let unknown = ["?:0", "?:-1", ":-1"].contains(&place.as_str());
        let ours = match leaf.file.as_str() {
            "" if unknown => place.clone(),
            file => format!("{file}:{}", leaf.line),
        };
        assert_eq!((&outermost.name, &ours), (function, place), "at {vaddr:#x}");
        inlined += usize::from(frames.len() > 1);
    }
    assert!(addresses.len() >= MIN_ADDRESSES);
    assert!(
        inlined * 20 > addresses.len(),
        "{inlined} with inlined frames"
    );
    check_kinds(&binary);
}

#[test]
fn arm64_frames_are_those_of_gos_own_tool() {
    check_arm64("1.21.13");
    check_arm64("1.25.5");
    check_arm64("1.27.3");
}

/// Go code inside a C program: a shared library it loads, an archive linked into
/// it. Both are named as the program's own functions are.
#[test]
fn libraries_for_c_programs_are_named() {
    for version in ["1.21.13", "1.26.6", "1.27.3"] {
        let dir = tempfile::tempdir().unwrap();
        let build = |mode: &str, name: &str| {
            let path = dir.path().join(name);
            let output = Command::new("go")
                .args(["build", "-buildmode", mode, "-ldflags=-s -w", "-o"])
                .arg(&path)
                .arg(".")
                .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/go/c_library"))
                .env("GOTOOLCHAIN", format!("go{version}"))
                .env("GOFLAGS", "-buildvcs=false")
                .env("CGO_ENABLED", "1")
                .output()
                .expect("Go is missing: install it and have `go` in PATH");
            let message = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "go{version} {mode}: {message}");
            path
        };
        let shared = build("c-shared", "library.so");
        let archive = build("c-archive", "library.a");
        std::fs::write(
            dir.path().join("main.c"),
            "extern int triple(int); int main(void) { return triple(2) != 6; }",
        )
        .unwrap();
        let program = dir.path().join("program");
        let status = Command::new("gcc")
            .arg(dir.path().join("main.c"))
            .arg(&archive)
            .args(["-s", "-pthread", "-o"])
            .arg(&program)
            .status()
            .expect("gcc is missing: install it (apt-get install gcc)");
        assert!(status.success());
        assert!(Command::new(&program).status().unwrap().success());
        for path in [&shared, &program] {
            let binary = open(path);
            assert_eq!(binary.version().as_str(), format!("go{version}"));
            let entry = binary.function_by_name("main.triple").unwrap();
            let mut frames = Vec::new();
            binary.frames(entry, &mut frames).unwrap();
            let outermost = frames.last().unwrap();
            assert_eq!(outermost.name, "main.triple");
            assert!(outermost.file.ends_with("c_library/library.go"));
            assert_eq!(outermost.start_line, 10);
            let named = |vaddr: &u64| binary.frames(*vaddr, &mut Vec::new()).is_ok();
            let functions: Vec<u64> = binary.functions().map(|function| function.entry).collect();
            assert!(functions.len() > 1000);
            assert!(functions.iter().all(named));
        }
    }
}

#[test]
fn go_1_19_frames_are_the_runtimes() {
    check("1.19.13");
}

#[test]
fn go_1_20_frames_are_the_runtimes() {
    check("1.20.14");
}

#[test]
fn go_1_21_frames_are_the_runtimes() {
    check("1.21.13");
}

#[test]
fn go_1_22_frames_are_the_runtimes() {
    check("1.22.10");
}

#[test]
fn go_1_23_frames_are_the_runtimes() {
    check("1.23.9");
}

#[test]
fn go_1_24_frames_are_the_runtimes() {
    check("1.24.11");
}

#[test]
fn go_1_25_frames_are_the_runtimes() {
    check("1.25.5");
}

#[test]
fn go_1_26_frames_are_the_runtimes() {
    check("1.26.6");
}

#[test]
fn go_1_27_frames_are_the_runtimes() {
    check("1.27.3");
}
