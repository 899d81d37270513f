//! Where probes can sit in the runtime of every Go version, held against what a
//! disassembler says of the same place and against the runtime's own tables.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use goprof::gobinary::{FuncKind, GoBinary, NoProbePlace, PlaceInstruction, ProbePlace};
use goprof::image::Image;
use goprof_tests::go::{self, EVERY_VERSION, Variant};

/// What events are made of, in all versions.
const FUNCTIONS: [&str; 9] = [
    "runtime.gopark",
    "runtime.execute",
    "runtime.ready",
    "runtime.(*semaRoot).queue",
    "runtime.readyWithTime",
    "runtime.profilealloc",
    "runtime.mallocgc",
    "runtime.(*mcache).refill",
    "runtime.(*mcache).allocLarge",
];

fn parse(path: &Path) -> GoBinary {
    let file = File::open(path).expect("open the program");
    let image = Image::open(file).expect("map the program");
    GoBinary::parse(Arc::new(image)).expect("a Go program")
}

/// The functions that a version's programs call to allocate, `mallocgc` aside.
fn size_specialised(version: &str) -> Vec<String> {
    if !version.starts_with("1.27") {
        return Vec::new();
    }
    let scan = (1..=7).map(|class| format!("runtime.mallocgcSmallScanNoHeaderSC{class}"));
    let no_scan = (2..=7).map(|class| format!("runtime.mallocgcSmallNoScanSC{class}"));
    let tiny = ["runtime.mallocgcTinySC2".to_owned()];
    scan.chain(no_scan).chain(tiny).collect()
}

/// The places in everything that is probed; fails where there is none.
fn places(binary: &GoBinary, version: &str, what: &str) -> Vec<(String, ProbePlace)> {
    let names: Vec<String> = FUNCTIONS
        .iter()
        .map(ToString::to_string)
        .chain(size_specialised(version))
        .collect();
    let asked: Vec<&str> = names.iter().map(String::as_str).collect();
    let places = binary.probe_places(&asked);
    let all = names.into_iter().zip(places);
    all.map(|(name, place)| {
        let place = place.unwrap_or_else(|why| panic!("{what} {name}: {why}"));
        (name, place)
    })
    .collect()
}

/// What the disassembler says of the instruction at an address.
fn disassemble(path: &Path, vaddr: u64) -> String {
    let output = Command::new("objdump")
        .args(["-d", "--no-show-raw-insn"])
        .arg(format!("--start-address={vaddr:#x}"))
        .arg(format!("--stop-address={:#x}", vaddr + 16))
        .arg(path)
        .output()
        .expect("objdump is missing: install binutils");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("  {vaddr:x}:")));
    let line = line.unwrap_or_else(|| panic!("objdump shows nothing at {vaddr:#x}: {text}"));
    line.split_whitespace()
        .skip(1)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The bytes of the file at a place.
fn bytes(binary: &GoBinary, place: &ProbePlace) -> [u8; 8] {
    let at = usize::try_from(place.file_offset).expect("an offset in the file");
    let bytes = &binary.image().bytes()[at..at + 8];
    bytes.try_into().expect("eight bytes")
}

/// The name of the function at an address.
fn name_at(binary: &GoBinary, vaddr: u64) -> String {
    let mut frames = Vec::new();
    binary.frames(vaddr, &mut frames).expect("Go code");
    frames.pop().expect("a frame").name.to_string()
}

/// What the pcsp table says right before and right after the instruction.
fn deltas(binary: &GoBinary, place: &ProbePlace, length: u64) -> (Option<i32>, Option<i32>) {
    let delta = |vaddr| binary.stack_delta(vaddr);
    (delta(place.vaddr), delta(place.vaddr + length))
}

/// Where a function has its stack grown.
fn grows_at(binary: &GoBinary, name: &str) -> u64 {
    let mut functions = binary.functions_by_name(name);
    let function = functions.find(|function| function.kind != FuncKind::Wrapper);
    let function = function.expect("it was found before");
    binary
        .stack_grows_at(function)
        .expect("it checks its stack")
}

/// The code there puts the arguments onto the stack, and calls `runtime.morestack`.
fn check_growth(path: &Path, binary: &GoBinary, name: &str, what: &str) {
    let grow = grows_at(binary, name);
    let mut objdump = Command::new("objdump");
    objdump.args(["-d", "--no-show-raw-insn"]);
    objdump.arg(format!("--start-address={grow:#x}"));
    objdump.arg(format!("--stop-address={:#x}", grow + 64));
    let output = objdump.arg(path).output().expect("objdump");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace().skip_while(|word| *word != "call");
    let target = words.nth(1).and_then(|target| {
        let digits = target.strip_prefix("0x").unwrap_or(target);
        u64::from_str_radix(digits, 16).ok()
    });
    let target = target.unwrap_or_else(|| panic!("{what}: no call at {grow:#x}: {text}"));
    let called = name_at(binary, target);
    assert!(called.starts_with("runtime.morestack"), "{what}: {called}");
}

fn check_amd64(version: &str, variant: Variant) {
    let what = format!("go{version} {variant:?}");
    let path = go::build_with("alloc_sites", version, variant);
    let binary = parse(&path);
    let has_push = !version.starts_with("1.19") && !version.starts_with("1.20");
    for (name, place) in places(&binary, version, &what) {
        let what = format!("{what} {name} {place:x?}");
        let entry = binary.function_by_name(&name).expect("it was found before");
        assert!(place.vaddr > entry, "{what}: the first instruction");
        let says = disassemble(&path, place.vaddr);
        check_growth(&path, &binary, &name, &what);
        if has_push {
            assert_eq!(
                place.instruction,
                PlaceInstruction::PushFramePointer,
                "{what}"
            );
            assert_eq!(says, "push %rbp", "{what}");
            assert_eq!(bytes(&binary, &place)[0], 0x55, "{what}");
            assert_eq!(deltas(&binary, &place, 1), (Some(0), Some(8)), "{what}");
        } else {
            assert_eq!(
                place.instruction,
                PlaceInstruction::StackCheckBranch,
                "{what}"
            );
            assert!(says.starts_with("jbe "), "{what}: {says}");
            let bytes = bytes(&binary, &place);
            let short = bytes[0] == 0x76;
            assert!(short || bytes[..2] == [0x0f, 0x86], "{what}: {bytes:x?}");
            let length = if short { 2 } else { 6 };
            assert_eq!(
                deltas(&binary, &place, length),
                (Some(0), Some(0)),
                "{what}"
            );
        }
    }
}

#[test]
fn places_are_what_the_disassembler_says() {
    for version in EVERY_VERSION {
        for variant in [Variant::Plain, Variant::Stripped, Variant::Pie] {
            check_amd64(version, variant);
        }
    }
    check_amd64(go::NEWEST, Variant::StrippedPie);
}

/// Where a branch of arm64 with a distance of so many bits leads to.
fn arm64_target(vaddr: u64, word: u32, shift: u32, bits: u32) -> u64 {
    let distance = i64::from((word >> shift << (32 - bits)) as i32 >> (32 - bits)) * 4;
    vaddr.wrapping_add_signed(distance)
}

/// On arm64 the branch of the place leads to code that calls `runtime.morestack`.
fn check_arm64(version: &str, dir: &Path) {
    let path = dir.join(version);
    let mut build = go::go(version);
    build
        .args(["build", "-ldflags=-s -w", "-o"])
        .arg(&path)
        .arg("./alloc_sites");
    build
        .current_dir(go::source_dir(""))
        .env("GOARCH", "arm64")
        .env("CGO_ENABLED", "0");
    let output = build.output().expect("go build");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "go{version} for arm64: {said}");

    let binary = parse(&path);
    let what = format!("go{version} arm64");
    let word_at = |vaddr: u64| {
        let at = binary
            .vaddr_to_file_offset(vaddr)
            .expect("code in the file");
        let at = usize::try_from(at).expect("an offset in the file");
        let bytes = &binary.image().bytes()[at..at + 4];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    };
    for (name, place) in places(&binary, version, &what) {
        let what = format!("{what} {name} {place:x?}");
        assert_eq!(
            place.instruction,
            PlaceInstruction::StackCheckBranch,
            "{what}"
        );
        assert_eq!(deltas(&binary, &place, 4), (Some(0), Some(0)), "{what}");
        let word = word_at(place.vaddr);
        assert_eq!(word & 0xff00_001f, 0x5400_0009, "{what}: b.ls");
        // The arguments are put onto the stack, then comes the call.
        let grow = arm64_target(place.vaddr, word, 5, 19);
        let call = (grow..grow + 64)
            .step_by(4)
            .find(|at| word_at(*at) >> 26 == 0x25);
        let call = call.unwrap_or_else(|| panic!("{what}: no call at {grow:#x}"));
        assert_eq!(grows_at(&binary, &name), grow, "{what}");
        let called = name_at(&binary, arm64_target(call, word_at(call), 0, 26));
        assert!(called.starts_with("runtime.morestack"), "{what}: {called}");
    }
}

#[test]
fn arm64_programs_have_places_too() {
    let dir = tempfile::tempdir().expect("a directory");
    for version in ["1.19.13", "1.22.10", go::NEWEST] {
        check_arm64(version, dir.path());
    }
}

#[test]
fn what_has_no_place_says_why() {
    let binary = parse(&go::build_with(
        "alloc_sites",
        go::NEWEST,
        Variant::Stripped,
    ));
    let found = binary.probe_places(&["runtime.noSuchFunction", "runtime.publicationBarrier"]);
    assert_eq!(
        found,
        [
            Err(NoProbePlace::NoFunction),
            Err(NoProbePlace::NotEmulated)
        ]
    );
    assert_eq!(binary.probe_places(&[]), []);
}
