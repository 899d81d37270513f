//! The variables of Go's runtime that goprof reads from outside: found by the code
//! that uses them, held against the symbols of binaries that have some, and what is
//! in them against what the program says, on amd64.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use goprof::gobinary::{GoBinary, GoroutineStatus};
use goprof::gomemory::Live;
use goprof::image::Image;
use goprof::process::{Objects, Process};
use goprof_tests::cache_dir;
use goprof_tests::go::{self, EVERY_VERSION, Variant};
use goprof_tests::talker::Talker;

fn parse(path: &Path) -> GoBinary {
    let file = File::open(path).expect("open the program");
    let image = Image::open(file).expect("map the program");
    GoBinary::parse(Arc::new(image)).expect("a Go program")
}

/// The addresses of the runtime's symbols.
fn symbols(path: &Path) -> HashMap<String, u64> {
    let output = Command::new("nm").arg(path).output();
    let output = output.expect("nm is missing: install binutils");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let parse = |line: &str| {
        let mut words = line.split(' ');
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    };
    let found: HashMap<_, _> = text.lines().filter_map(parse).collect();
    assert!(!found.is_empty(), "no symbols in {}", path.display());
    found
}

/// Holds what the code of a program says against its symbols.
#[track_caller]
fn check_variables(path: &Path, what: &str) {
    let (binary, symbols) = (parse(path), symbols(path));
    let found = binary.variables();
    let at = |name: &str| symbols.get(&format!("runtime.{name}")).copied();
    let what = format!("{what}: {found:x?}");
    assert_eq!(found.mem_profile_rate, at("MemProfileRate"), "{what}");
    assert!(
        found.buckets.contains(&at("mbuckets").expect("mbuckets")),
        "{what}"
    );
    assert_eq!(found.gc_controller, at("gcController"), "{what}");
    assert_eq!(found.sched, at("sched"), "{what}");
    assert_eq!(found.gomaxprocs, at("gomaxprocs"), "{what}");
    assert_eq!(found.semaphores, at("semtable"), "{what}");
    assert!(found.reads_mem_profile, "{what}");
    let (stats, gc) = (at("memstats").expect("memstats"), found.num_gc);
    let gc = gc.unwrap_or_else(|| panic!("{what}"));
    assert!((stats..stats + (16 << 10)).contains(&gc), "{what}");
    let list = found.all_goroutines.expect("allgadd says it");
    assert_eq!(Some(list.array), at("allgptr"), "{what}");
    assert_eq!(Some(list.count), at("allglen"), "{what}");

    let reasons = binary.wait_reasons().expect("wait reasons");
    for reason in ["GC assist marking", "chan receive", "select", "sleep"] {
        assert!(reasons.iter().any(|r| r == reason), "{what}: {reasons:?}");
    }
}

/// alloc_sites, for arm64.
fn build_arm64(version: &str) -> PathBuf {
    let made = cache_dir().join(format!("alloc_sites-{version}-arm64"));
    let mut build = go::go(version);
    build.args(["build", "-o"]).arg(&made).arg(".");
    build.current_dir(go::source_dir("alloc_sites"));
    build.env("CGO_ENABLED", "0").env("GOARCH", "arm64");
    let status = build.status().expect("start go");
    assert!(status.success(), "go{version}: go build for arm64 failed");
    made
}

#[test]
fn the_code_says_where_the_variables_are() {
    for version in EVERY_VERSION {
        for variant in [Variant::Plain, Variant::Pie] {
            let path = go::build_with("alloc_sites", version, variant);
            check_variables(&path, &format!("go{version} {variant:?}"));
        }
    }
}

#[test]
fn the_code_of_arm64_says_it_too() {
    for version in EVERY_VERSION {
        check_variables(&build_arm64(version), &format!("go{version} arm64"));
    }
}
#[test]
fn what_is_in_the_variables_is_what_the_program_says() {
    for version in EVERY_VERSION {
        for variant in [Variant::Stripped, Variant::Pie] {
            let what = format!("go{version} {variant:?}");
            let mut talker = Talker::start(&go::build_with("alloc_sites", version, variant), &[]);
            talker.tell("round");
            talker.tell("settle");
            let stats = talker.tell("memstats");
            let said: Vec<u64> = stats
                .split(' ')
                .map(|n| n.parse().expect("a number"))
                .collect();
            let process = Process::read(talker.pid(), &mut Objects::default());
            let process = process.expect("a process");
            let memory = Live::open(talker.pid()).expect("its memory");
            let program = process.go_program(&memory).expect("Go");

            let gc = program.gc_controller().unwrap_or_else(|| panic!("{what}"));
            let off = (gc.total_alloc as f64 - said[0] as f64).abs() / said[0] as f64;
            assert!(off < 0.02, "{what}: {} for {}", gc.total_alloc, said[0]);
            assert_eq!((gc.gc_percent, gc.memory_limit), (100, i64::MAX), "{what}");
            let at = program.num_gc().unwrap_or_else(|| panic!("{what}"));
            let cycles = goprof::gomemory::Memory::half_word(&memory, at);
            assert_eq!(cycles.map(u64::from), Some(said[2]), "{what}");
            assert_eq!(program.gomaxprocs().map(u64::from), Some(said[3]), "{what}");
            assert!(program.sched().is_some(), "{what}");

            let offsets = program.binary.runtime_offsets();
            let offsets = offsets.get().expect("offsets");
            let mut ids = Vec::new();
            let listing = program.for_each_goroutine(offsets, |batch| {
                let unchanged = batch.unchanged(&memory);
                assert!(
                    unchanged.iter().all(|unchanged| *unchanged),
                    "it stands still"
                );
                for goroutine in &batch.goroutines {
                    let waits = goroutine.status == GoroutineStatus::Waiting;
                    let in_call = goroutine.status == GoroutineStatus::Syscall;
                    assert!(waits || in_call, "{what}: {goroutine:x?}");
                    ids.push(goroutine.goid);
                }
            });
            let listing = listing.expect("a list");
            assert_eq!((listing.nonsense, listing.unreadable), (0, 0), "{what}");
            assert!(
                ids.contains(&1) && listing.alive as usize == ids.len(),
                "{what}"
            );
        }
    }
}
