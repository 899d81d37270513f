//! A real Go binary, damaged in every way that comes to mind: each damage must
//! end in an answer or an error, soon and without a panic.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::*;

/// Longer than any lookup may take, on a busy machine and without optimisation.
const PATIENCE: Duration = Duration::from_secs(20);

const PROGRAM: &str = r#"package main

import "fmt"

func inner(n int) int { return n * 3 }
func outer(n int) int { return inner(n) + 1 }

func main() { fmt.Println(outer(4)) }
"#;

/// Builds a Go program once for all tests here, with the Go that is installed.
fn binary() -> &'static [u8] {
    static BINARY: OnceLock<Vec<u8>> = OnceLock::new();
    BINARY.get_or_init(|| std::fs::read(build(&[])).unwrap())
}

fn build(arguments: &[&str]) -> PathBuf {
    let dir = tempfile::tempdir().unwrap().keep();
    std::fs::write(dir.join("main.go"), PROGRAM).unwrap();
    std::fs::write(
        dir.join("go.mod"),
        "module example.com/hostile\n\ngo 1.19\n",
    )
    .unwrap();
    let output = Command::new("go")
        .args(["build", "-o", "program"])
        .args(arguments)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(&dir)
        .output()
        .expect("Go is missing: install it and have `go` in PATH");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "go build: {message}");
    dir.join("program")
}

fn temporary(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn parse(file: &File) -> Result<GoBinary, GoBinaryError> {
    let file = file.try_clone().unwrap();
    GoBinary::parse(Arc::new(Image::open(file).unwrap()))
}

/// Looks up addresses all over the text. Any answer will do; returns how many
/// had names.
fn look_up(binary: &GoBinary, count: u64) -> u64 {
    let text = binary.text();
    let mut frames = Vec::new();
    let mut named = 0;
    for index in 0..count {
        let span = text.end.saturating_sub(text.start);
        let vaddr = text.start.wrapping_add(span / count * index);
        frames.clear();
        match binary.frames(vaddr, &mut frames) {
            Ok(()) => {
                assert!(!frames.is_empty());
                assert!(!frames.last().unwrap().inlined);
                named += 1;
            }
            Err(_) => assert!(frames.is_empty()),
        }
        binary.function(vaddr);
        binary.stack_delta(vaddr);
    }
    named
}

/// Parses and looks up what it can, within the time allowed.
fn survive(file: &File, what: &str) {
    let start = Instant::now();
    if let Ok(binary) = parse(file) {
        look_up(&binary, 20);
        binary.g_location();
        binary.variables();
        binary.wait_reasons();
        binary.probe_places(&["runtime.gopark", "runtime.goexit"]);
        let _ = binary.allocator_places();
        let sites = binary.allocation_sites();
        for function in binary.functions().take(20) {
            sites.type_at(&binary, function.entry + 16);
            binary.type_name(function.entry);
            binary.allocated_type(function.entry);
        }
    }
    assert!(start.elapsed() < PATIENCE, "{what}: {:?}", start.elapsed());
}

/// File offset of a section. Before 1.26 moduledata had none of its own.
fn section_start(binary: &GoBinary, name: &str) -> u64 {
    let data = binary.image().bytes();
    let section = binary.elf.section(data, name);
    let section = section.or_else(|| binary.elf.section(data, ".noptrdata"));
    section.unwrap().range.start as u64
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[test]
fn threads_may_share_a_binary() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&parse(&temporary(binary())).unwrap());
}

#[test]
fn whole_binary_is_named() {
    let binary = parse(&temporary(binary())).unwrap();
    assert_eq!(look_up(&binary, 1000), 1000);
    assert_eq!(binary.build_info().path, "example.com/hostile");
    let variables = binary.variables();
    assert_eq!(
        variables.buckets.is_empty(),
        cfg!(not(target_arch = "x86_64"))
    );
    assert!(!variables.reads_mem_profile, "it reads no heap profile");
    let reasons = binary.wait_reasons().unwrap();
    assert_eq!(reasons[..2], ["", "GC assist marking"]);
    assert!(reasons.iter().any(|reason| reason == "chan receive"));
    let main = binary.function_by_name("main.main").unwrap();
    assert_eq!(binary.function(main).unwrap().entry, main);
    let offset = binary.vaddr_to_file_offset(main).unwrap();
    assert_eq!(binary.file_offset_to_vaddr(offset), Some(main));
    let mut frames = Vec::new();
    let text = binary.text();
    assert_eq!(binary.frames(text.end, &mut frames), Err(Reason::NoSymbol));
    assert_eq!(binary.frames(0, &mut frames), Err(Reason::NoSymbol));
    assert_eq!(binary.frames(u64::MAX, &mut frames), Err(Reason::NoSymbol));
    assert_eq!(binary.stack_delta(0), None);
    assert_eq!(binary.function_by_name("main.main\0x"), None);
    assert_eq!(binary.function_by_name(""), None);
}

#[test]
fn file_cut_at_every_page_is_survived() {
    let whole = binary();
    let file = temporary(whole);
    let mut errors = 0;
    for length in (1..whole.len()).step_by(4096).rev() {
        file.set_len(length as u64).unwrap();
        errors += u64::from(parse(&file).is_err());
        survive(&file, &format!("cut to {length} bytes"));
    }
    assert!(errors > 0, "a file of one byte is no program");
}

#[test]
fn file_cut_while_open_is_survived() {
    let file = temporary(binary());
    let opened = parse(&file).unwrap();
    assert!(!opened.image().changed());
    for length in (0..binary().len()).step_by(64 << 10).rev() {
        file.set_len(length as u64).unwrap();
        look_up(&opened, 20);
    }
    assert!(opened.image().changed());
    assert_eq!(look_up(&opened, 20), 0, "nothing is left to name them with");
}

#[test]
fn flipped_bits_are_survived() {
    let whole = binary();
    let opened = parse(&temporary(whole)).unwrap();
    let header_at = |name| section_start(&opened, name);
    // Headers of everything, and the first functions' records.
    let places = [
        0..4096,
        header_at(".gopclntab")..header_at(".gopclntab") + 72,
        header_at(".go.buildinfo")..header_at(".go.buildinfo") + 64,
        header_at(".go.module")..header_at(".go.module") + 400,
        whole.len() as u64 - 4096..whole.len() as u64,
        opened.module.gofunc.start as u64..opened.module.gofunc.start as u64 + 65536,
        header_at(".gopclntab")..whole.len() as u64,
    ];
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let file = temporary(whole);
    for round in 0..1500 {
        let place = &places[round % places.len()];
        let flips: Vec<u64> = (0..1 + dice.roll(8))
            .map(|_| place.start + dice.roll(place.end - place.start))
            .collect();
        for offset in &flips {
            let byte = [dice.roll(256) as u8];
            file.write_all_at(&byte, *offset).unwrap();
        }
        survive(&file, &format!("round {round}: bytes {flips:x?}"));
        for offset in &flips {
            let at = *offset as usize;
            file.write_all_at(&whole[at..at + 1], *offset).unwrap();
        }
    }
    assert_eq!(
        look_up(&parse(&file).unwrap(), 100),
        100,
        "all was put back"
    );
}

#[test]
fn huge_claims_are_survived() {
    let whole = binary();
    let opened = parse(&temporary(whole)).unwrap();
    let file = temporary(whole);
    let sections = [".gopclntab", ".go.buildinfo", ".go.module"].map(|name| {
        let start = section_start(&opened, name) as usize;
        (start, start + 400)
    });
    let section_headers = (whole.len() - 4096, whole.len());
    let places = [(0, 560), section_headers].into_iter().chain(sections);
    for (start, end) in places {
        for at in (start..end).step_by(8) {
            for claim in [1u64 << 60, u64::MAX, 1 << 32] {
                file.write_all_at(&claim.to_le_bytes(), at as u64).unwrap();
                survive(&file, &format!("{claim:#x} at {at:#x}"));
            }
            file.write_all_at(&whole[at..at + 8], at as u64).unwrap();
        }
    }
}

#[test]
fn tables_full_of_one_byte_are_survived() {
    let whole = binary();
    let opened = parse(&temporary(whole)).unwrap();
    let file = temporary(whole);
    let pclntab = opened.elf.section(whole, ".gopclntab").unwrap().range;
    let offsets = opened
        .module
        .pclntab
        .part_offsets
        .map(|offset| offset as usize);
    let parts: Vec<_> = (0..4)
        .map(|part| pclntab.start + offsets[part]..pclntab.start + offsets[part + 1])
        .collect();
    for part in parts.iter().chain([&opened.module.gofunc]) {
        for byte in [0x00, 0x01, 0x02, 0x7f, 0x80, 0xff] {
            let fill = vec![byte; part.len()];
            file.write_all_at(&fill, part.start as u64).unwrap();
            survive(&file, &format!("{byte:#x} in {part:x?}"));
        }
        file.write_all_at(&whole[part.clone()], part.start as u64)
            .unwrap();
    }
}

#[test]
fn other_files_are_told_apart() {
    let check = |bytes: &[u8]| parse(&temporary(bytes)).unwrap_err();
    assert_eq!(check(b"#!/bin/sh\n"), GoBinaryError::NotElf);
    assert_eq!(check(b"\x7fELF"), GoBinaryError::Damaged("ELF header"));
    let mut bits_32 = binary()[..4096].to_vec();
    bits_32[4] = 1;
    assert!(matches!(check(&bits_32), GoBinaryError::WrongArch(_)));
    let mut riscv = binary().to_vec();
    riscv[18] = 243;
    assert!(matches!(check(&riscv), GoBinaryError::WrongArch(_)));
    let this_test = File::open("/proc/self/exe").unwrap();
    assert!(matches!(parse(&this_test), Err(GoBinaryError::NotGo(_))));
}

#[test]
fn without_section_headers() {
    // As sstrip leaves it: no section table at all.
    let mut bytes = binary().to_vec();
    bytes[40..48].fill(0);
    bytes[58..64].fill(0);
    let opened = parse(&temporary(&bytes)).unwrap();
    assert!(!opened.elf.has_sections());
    assert_eq!(look_up(&opened, 1000), 1000);
}

#[test]
fn sparse_giant_is_survived() {
    // Four TiB that cost no disk, all of it claimed by every program header, and
    // no section table to say where anything is.
    let file = temporary(binary());
    let size = 4u64 << 40;
    file.set_len(size).unwrap();
    file.write_all_at(&[0; 8], 40).unwrap();
    let headers = u64::from(binary()[56]);
    for header in 0..headers {
        let at = 64 + 56 * header;
        file.write_all_at(&1u32.to_le_bytes(), at).unwrap();
        file.write_all_at(&4u32.to_le_bytes(), at + 4).unwrap();
        file.write_all_at(&0u64.to_le_bytes(), at + 8).unwrap();
        file.write_all_at(&size.to_le_bytes(), at + 32).unwrap();
        file.write_all_at(&size.to_le_bytes(), at + 40).unwrap();
    }
    survive(&file, "a sparse giant");
}

#[test]
fn versions_beyond_the_known_are_tried() {
    let patched = |from: &str, to: &str| {
        let mut bytes = binary().to_vec();
        let opened = parse(&temporary(&bytes)).unwrap();
        let section = opened.elf.section(&bytes, ".go.buildinfo").unwrap().range;
        let at = section.start
            + bytes[section.clone()]
                .windows(from.len())
                .position(|window| window == from.as_bytes())
                .unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        parse(&temporary(&bytes))
    };
    let (_, minor) = parse(&temporary(binary())).unwrap().version().major_minor();
    let current = format!("go1.{minor}");
    // With another layout than the version's nothing proves right: no names
    // rather than wrong ones.
    assert_eq!(
        patched(&current, "go1.18")
            .unwrap_err()
            .to_string()
            .get(..17),
        Some("built with go1.18")
    );
    assert!(patched(&current, "go1.19").is_err());
    assert!(patched(&current, "gopher").is_err());
    match patched(&current, "go1.91") {
        Ok(newer) => {
            assert!(newer.version().is_newer_than_known());
            assert_eq!(look_up(&newer, 100), 100);
        }
        Err(error) => assert!(matches!(error, GoBinaryError::UnsupportedVersion(_))),
    }
}

/// A build with the version of a candidate, which no table knows.
fn candidate(arguments: &[&str]) -> Vec<u8> {
    let mut bytes = std::fs::read(build(arguments)).unwrap();
    let opened = parse(&temporary(&bytes)).unwrap();
    let section = opened.elf.section(&bytes, ".go.buildinfo").unwrap().range;
    let at = section.start + 33;
    assert_eq!(&bytes[at..at + 4], b"go1.");
    assert_eq!(bytes[at + 6], b'.');
    bytes[at + 6..at + 8].copy_from_slice(b"rc");
    bytes
}

#[test]
fn damaged_dwarf_is_survived() {
    let known = parse(&temporary(binary())).unwrap().runtime_offsets();
    for arguments in [&[][..], &["-ldflags=-compressdwarf=false"]] {
        let whole = candidate(arguments);
        let file = temporary(&whole);
        let opened = parse(&file).unwrap();
        let RuntimeOffsets::FromDwarf(read) = opened.runtime_offsets() else {
            panic!("{:?}", opened.runtime_offsets());
        };
        let known = known.get().unwrap();
        assert_eq!((read.g, read.m), (known.g, known.m));
        assert_eq!(read.labels, None, "the program has no labels");

        let section = |name| opened.elf.section(&whole, name).unwrap().range;
        let (info, abbrev) = (section(".debug_info"), section(".debug_abbrev"));
        let places = [
            info.clone(),
            info.start..info.start + 64,
            abbrev.clone(),
            abbrev.start..abbrev.start + 32,
        ];
        let mut dice = Dice(0x2545_f491_4f6c_dd1d);
        let mut refused = 0;
        for round in 0..400 {
            let place = &places[round % places.len()];
            let at = place.start + dice.roll(place.len() as u64) as usize;
            file.write_all_at(&[dice.roll(256) as u8], at as u64)
                .unwrap();
            let start = Instant::now();
            refused += u32::from(opened.runtime_offsets().get().is_none());
            assert!(start.elapsed() < PATIENCE, "byte {at:#x}");
            file.write_all_at(&whole[at..=at], at as u64).unwrap();
        }
        assert!(refused > 0, "no damage was noticed");
    }
}

#[test]
fn endless_dwarf_is_left() {
    let mut whole = candidate(&["-ldflags=-compressdwarf=false"]);
    let opened = parse(&temporary(&whole)).unwrap();
    let section = |name| opened.elf.section(&whole, name).unwrap().range;
    let (info, abbrev) = (section(".debug_info"), section(".debug_abbrev"));
    // A unit with a name, and below it entries with as many attributes that take
    // no byte as their abbreviation has room for.
    whole[abbrev.clone()].fill(0);
    let mut table = vec![1, 0x11, 1, 0x03, 0x08, 0, 0, 2, 0x34, 0];
    let attributes = (abbrev.len() - table.len() - 3) / 2;
    table.extend([0x03, 0x19].repeat(attributes));
    whole[abbrev.start..abbrev.start + table.len()].copy_from_slice(&table);
    whole[info.clone()].fill(2);
    let length = info.len() as u32 - 4;
    let header = [
        &length.to_le_bytes()[..],
        &[4, 0, 0, 0, 0, 0, 8, 1],
        b"runtime\0",
    ]
    .concat();
    whole[info.start..info.start + header.len()].copy_from_slice(&header);
    let start = Instant::now();
    let offsets = parse(&temporary(&whole)).unwrap().runtime_offsets();
    let RuntimeOffsets::Unknown { why } = offsets else {
        panic!("{offsets:?}");
    };
    assert!(
        why.ends_with("too much DWARF in the runtime's unit"),
        "{why}"
    );
    assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
}

#[test]
fn opening_reads_little_memory() {
    // The private memory of this process, in KiB.
    let private = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon"));
        let value = line.unwrap().split_whitespace().nth(1).unwrap();
        value.parse::<u64>().unwrap()
    };
    let path = build(&["-ldflags=-s -w"]);
    let open = |path: &Path| parse(&File::open(path).unwrap()).unwrap();
    let _warm = open(&path);
    let before = private();
    let opened: Vec<GoBinary> = (0..200).map(|_| open(&path)).collect();
    let grown = private().saturating_sub(before);
    // Other tests run beside this one and grow too: 64 MiB for them.
    let copies = opened.len() as u64 * opened[0].image().bytes().len() as u64 / 1024;
    assert!(
        grown < 65536 && copies > 4 * 65536,
        "{grown} of {copies} KiB"
    );
}
