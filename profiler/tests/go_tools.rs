//! Go's own tools read what the pprof encoder writes, without a warning:
//! `go tool pprof` and `go build -pgo`. Needs Go; the profile is synthetic, its
//! names and lines are those of the program below.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "what a test cannot do without ends it"
)]

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use goprof::profile::{Format, Options, encode};
use goprof::symbolize::{
    Event, FrameKind, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId,
    Process, ProcessId, Sample, SymbolizedWindow, Thread,
};

/// `step` is too large for the inliner's ordinary budget (80 nodes in Go 1.21
/// to 1.26) and small enough for that of a hot call (2000).
const PROGRAM: &str = r#"package main

import "fmt"

func step(x uint64) uint64 {
	x ^= x << 13; x ^= x >> 7; x ^= x << 17; x += 0x9e3779b97f4a7c15
	x ^= x << 13; x ^= x >> 7; x ^= x << 17; x += 0x9e3779b97f4a7c15
	x ^= x << 13; x ^= x >> 7; x ^= x << 17; x += 0x9e3779b97f4a7c15
	x ^= x << 13; x ^= x >> 7; x ^= x << 17; x += 0x9e3779b97f4a7c15
	x ^= x << 13; x ^= x >> 7; x ^= x << 17; x += 0x9e3779b97f4a7c15
	x ^= x << 13; x ^= x >> 7; x ^= x << 17; x += 0x9e3779b97f4a7c15
	return x
}

func loop(n int) (sum uint64) {
	for i := 0; i < n; i++ {
		sum += step(uint64(i))
	}
	return sum
}

func main() {
	fmt.Println(loop(1000))
}
"#;

/// The line of `step`'s call in `loop`, and where the functions begin.
const STEP: u32 = 5;
const LOOP: u32 = 15;
const CALL: u32 = 17;
const MAIN: u32 = 22;

fn go(dir: &Path, args: &[&str]) -> Output {
    Command::new("go")
        .args(args)
        .current_dir(dir)
        .env("PPROF_TMPDIR", dir)
        .env("PPROF_BINARY_PATH", dir)
        .env("GOFLAGS", "-buildvcs=false")
        .output()
        .expect("run go: install Go 1.21 or later and put it into PATH")
}

/// Runs `go` and returns its stdout; fails on an error or any word on stderr.
fn quiet_go(dir: &Path, args: &[&str]) -> String {
    let out = go(dir, args);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "go {args:?}: {stderr}");
    assert_eq!(stderr, "", "go {args:?} warns");
    String::from_utf8(out.stdout).unwrap()
}

/// A scratch module with the program and the profile `cpu.pb.gz`.
fn module(window: &SymbolizedWindow) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        subject: "app".to_owned(),
        notes: vec!["lost 3 samples (ring buffer full)".to_owned()],
        value: None,
    };
    let profile = encode(window, Format::Pprof, &options).unwrap();
    std::fs::write(dir.path().join("cpu.pb.gz"), profile).unwrap();
    std::fs::write(dir.path().join("main.go"), PROGRAM).unwrap();
    std::fs::write(
        dir.path().join("go.mod"),
        "module example.com/app\n\ngo 1.21\n",
    )
    .unwrap();
    dir
}

fn function(name: &str, start_line: u32) -> Function {
    Function {
        name: name.to_owned(),
        file: if start_line == 0 { "" } else { "/src/main.go" }.to_owned(),
        start_line,
    }
}

fn location(address: u64, mapping: Option<u32>, kind: FrameKind, lines: &[(u32, u32)]) -> Location {
    Location {
        address,
        mapping: mapping.map(MappingId),
        kind,
        lines: lines
            .iter()
            .map(|&(function, line)| Line {
                function: FunctionId(function),
                line,
            })
            .collect(),
        reason: None,
    }
}

fn mapping(file: &str, start: u64, end: u64, build_id: &str) -> Mapping {
    Mapping {
        start,
        end,
        offset: 0x1000,
        file: file.to_owned(),
        build_id: build_id.to_owned(),
    }
}

/// A busy `loop`: 100 samples in `step`, 10 in the kernel, 5 in a library
/// without symbols, 2 at an address without a mapping, 1 without a stack.
fn window(processes: u32) -> SymbolizedWindow {
    let stack = |ids: &[u32]| ids.iter().copied().map(LocationId).collect::<Vec<_>>();
    let mut window = SymbolizedWindow {
        event: Event::Cpu,
        start: SystemTime::now(),
        duration: Duration::from_secs(10),
        period: 10_101_010,
        processes: Vec::new(),
        samples: Vec::new(),
        locations: vec![
            location(0x40_2000, Some(1), FrameKind::Go, &[(0, STEP + 3)]),
            location(0x40_3000, Some(1), FrameKind::Go, &[(1, CALL)]),
            location(
                0x40_4000,
                Some(1),
                FrameKind::Go,
                &[(1, CALL), (2, MAIN + 1)],
            ),
            location(0x40_5000, Some(1), FrameKind::Go, &[(2, MAIN + 1)]),
            location(0xffff_ffff_8100_0100, Some(0), FrameKind::Kernel, &[(3, 0)]),
            location(0x7f00_0000_0200, Some(2), FrameKind::Native, &[(4, 0)]),
            location(0x10, None, FrameKind::Native, &[(5, 0)]),
        ],
        functions: vec![
            function("main.step", STEP),
            function("main.loop", LOOP),
            function("main.main", MAIN),
            function("asm_sysvec_apic_timer_interrupt", 0),
            function("[libc.so.6]", 0),
            function("[no mapping]", 0),
        ],
        mappings: vec![
            mapping("[kernel]", 0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000, ""),
            mapping("/nowhere/app", 0x40_1000, 0x80_0000, "0123456789abcdef"),
            mapping("/nowhere/libc.so.6", 0x7f00_0000_0000, 0x7f00_0010_0000, ""),
        ],
    };
    for pid in 1..=processes {
        window.processes.push(Process {
            pid: 4000 + pid,
            comm: format!("app{pid}"),
            exe: "/nowhere/app".to_owned(),
            cgroup_id: 0,
            go_version: "go1.26.8".to_owned(),
        });
        let stacks = [
            (&[0, 1, 3][..], 100),
            (&[4, 0, 2], 10),
            (&[5, 3], 5),
            (&[6], 2),
            (&[], 1),
        ];
        window.samples.extend(stacks.map(|(ids, count)| Sample {
            process: ProcessId(pid - 1),
            thread: None,
            stack: stack(ids),
            goid: None,
            labels: Vec::new(),
            block_bytes: None,
            values: [count, count * 10_101_010, 0, 0],
        }));
    }
    window
}

#[test]
fn pprof_reports_every_frame_without_a_warning() {
    let dir = module(&window(1));
    let dir = dir.path();
    let top = quiet_go(dir, &["tool", "pprof", "-top", "-nodecount=0", "cpu.pb.gz"]);
    for line in [
        "File: app",
        "Type: cpu",
        "Build ID: 0123456789abcdef",
        "Duration: 10s",
    ] {
        assert!(top.contains(line), "{line}: {top}");
    }
    for name in [
        "main.step",
        "main.loop",
        "main.main",
        "asm_sysvec",
        "[libc.so.6]",
        "[no mapping]",
    ] {
        assert!(top.contains(name), "{name}: {top}");
    }

    let raw = quiet_go(dir, &["tool", "pprof", "-raw", "cpu.pb.gz"]);
    assert!(raw.contains("samples/count cpu/nanoseconds"), "{raw}");
    assert!(raw.contains("lost 3 samples (ring buffer full)"), "{raw}");
    let traces = quiet_go(
        dir,
        &[
            "tool",
            "pprof",
            "-traces",
            "-sample_index=samples",
            "cpu.pb.gz",
        ],
    );
    assert!(traces.contains("100   main.step"), "{traces}");
    assert!(traces.contains("main.loop (inline)"), "{traces}");
}

#[test]
fn pprof_selects_a_process_and_a_thread_by_label() {
    let mut two = window(2);
    for (sample, tid) in two.samples.iter_mut().zip(9000..) {
        sample.thread = Some(Thread {
            tid,
            name: "netpoll".to_owned(),
        });
    }
    let dir = module(&two);
    let pprof = |arg: &str| {
        let args = [
            "tool",
            "pprof",
            "-traces",
            "-sample_index=samples",
            arg,
            "cpu.pb.gz",
        ];
        let out = go(dir.path(), &args);
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(
        pprof("-tagfocus=comm=app2")
            .matches("100   main.step")
            .count(),
        1
    );
    assert_eq!(
        pprof("-tagfocus=pid=4002")
            .matches("100   main.step")
            .count(),
        1
    );
    assert_eq!(
        pprof("-tagfocus=tid=9005")
            .matches("100   main.step")
            .count(),
        1
    );
    let tags = quiet_go(dir.path(), &["tool", "pprof", "-tags", "cpu.pb.gz"]);
    for tag in ["app1", "app2", "4001", "4002", "netpoll", "9000"] {
        assert!(tags.contains(tag), "{tag}: {tags}");
    }
    quiet_go(
        dir.path(),
        &["tool", "pprof", "-top", "-tagroot=comm", "cpu.pb.gz"],
    );
}

#[test]
fn the_compiler_inlines_what_the_profile_calls_hot() {
    let dir = module(&window(1));
    let inlines_step = |pgo: &str| {
        let out = go(dir.path(), &["build", pgo, "-gcflags=-m", "-o", "app", "."]);
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{stderr}");
        assert!(
            !stderr.contains("warning") && !stderr.contains("profile"),
            "{stderr}"
        );
        stderr.contains(&format!("main.go:{CALL}:14: inlining call to step"))
    };
    assert!(!inlines_step("-pgo=off"));
    assert!(inlines_step("-pgo=cpu.pb.gz"));
    quiet_go(dir.path(), &["build", "-pgo=cpu.pb.gz", "-o", "app", "."]);
}
