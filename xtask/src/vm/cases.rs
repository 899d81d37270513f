//! What is tried on every kernel: a Go program, a command of goprof's that looks at
//! it, and what must come out. A new event is one entry of the table.

mod block_io;
mod cpu;
mod memory;
mod threads;
mod waits;

use anyhow::Result;

use super::console::Section;
use super::kernels::Arch;

/// One thing that is tried.
#[derive(Debug)]
pub struct Case {
    /// Its name in the tables.
    pub name: &'static str,
    /// A program of tests/go.
    pub program: &'static str,
    /// Its arguments.
    pub arguments: &'static str,
    /// What is in its environment besides, as the shell writes it.
    pub environment: &'static str,
    /// A line that it is told five times a second, on standard input.
    pub feed: &'static str,
    /// The arguments of goprof; without `$PID` it starts the program itself.
    pub command: &'static str,
    /// The oldest kernel that can do it; on older ones goprof must fail and say why.
    pub since: (u32, u32),
    /// Modules of the kernel for it, with their parameters. The last makes a device,
    /// and is gone after it.
    pub modules: &'static [&'static str],
    /// What is done to the device before, by the shell.
    pub setting: &'static str,
    /// A processor for which Debian's kernels lack the module.
    pub lacking: Option<Arch>,
    /// What is wrong, or what was seen.
    pub judge: fn(&Section) -> Result<String>,
}

/// The oldest kernel that goprof samples on.
const OLDEST: (u32, u32) = (5, 17);

/// What most cases have.
const USUAL: Case = Case {
    name: "",
    program: "",
    arguments: "",
    environment: "",
    feed: "",
    command: "",
    since: OLDEST,
    modules: &[],
    setting: "",
    lacking: None,
    judge: cpu::shares,
};

/// Every case.
pub const CASES: [Case; 24] = [
    Case {
        name: "cpu",
        program: "busy_loop",
        command: "record -p $PID -d 4 -v -f folded -o -",
        ..USUAL
    },
    Case {
        name: "command",
        program: "busy_loop",
        arguments: "-duration 3s",
        command: "record -v -f folded -o -",
        ..USUAL
    },
    Case {
        name: "kernel stacks",
        program: "system_calls",
        command: "record -p $PID -d 3 -v -f folded -o -",
        judge: cpu::kernel_stacks,
        ..USUAL
    },
    Case {
        name: "deep stacks",
        program: "stack_depth",
        arguments: "-frames 300",
        command: "record -p $PID -d 3 -r 49 -v -f folded -o -",
        judge: cpu::deep_stacks,
        ..USUAL
    },
    Case {
        name: "labels",
        program: "stack_depth",
        arguments: "-labels 3",
        command: "record -p $PID -d 3 -v --label label2=value -f folded -o -",
        judge: cpu::labels,
        ..USUAL
    },
    Case {
        name: "heap",
        program: "alloc_sites",
        feed: "round",
        command: "record -e heap -p $PID -v --sample-type alloc_space -f folded -o -",
        since: (0, 0),
        judge: memory::allocations,
        ..USUAL
    },
    Case {
        name: "allocs",
        program: "alloc_sites",
        feed: "round",
        command: "record -e allocs -p $PID -d 3 -v --sample-type alloc_space -f folded -o -",
        since: (0, 0),
        judge: memory::allocations,
        ..USUAL
    },
    Case {
        name: "alloc-events",
        program: "alloc_mix",
        command: "record -e alloc-events -p $PID -d 8 --probe-budget 50% -v \
                  --sample-type alloc_space -f folded -o -",
        judge: memory::mix,
        ..USUAL
    },
    Case {
        name: "alloc-events, spans",
        program: "alloc_mix",
        command: "record -e alloc-events --alloc-source spans -p $PID -d 8 --probe-budget 50% -v \
                  --sample-type alloc_space -f folded -o -",
        judge: memory::mix,
        ..USUAL
    },
    Case {
        name: "goroutines",
        program: "goroutines",
        command: "goroutines -p $PID -f json",
        since: (0, 0),
        judge: memory::goroutines,
        ..USUAL
    },
    Case {
        name: "stats",
        program: "goroutines",
        command: "stats -p $PID --json",
        since: (0, 0),
        judge: memory::stats,
        ..USUAL
    },
    Case {
        name: "mutex",
        program: "contention",
        feed: "waited",
        command: "record -e mutex -p $PID -d 5 --probe-budget off -v \
                  --sample-type delay -f folded -o -",
        judge: waits::mutex,
        ..USUAL
    },
    Case {
        name: "mutex, by who waited",
        program: "contention",
        feed: "waited",
        command: "record -e mutex -p $PID -d 5 --probe-budget off -v --at waiter \
                  --sample-type delay -f folded -o -",
        judge: waits::mutex_waiters,
        ..USUAL
    },
    Case {
        name: "block",
        program: "contention",
        feed: "waited",
        command: "record -e block -p $PID -d 5 --probe-budget off -v \
                  --sample-type delay -f folded -o -",
        judge: waits::block,
        ..USUAL
    },
    Case {
        name: "block, under a budget",
        program: "contention",
        feed: "waited",
        command: "record -e block -p $PID -d 10 --probe-budget 5% -v \
                  --sample-type delay -f folded -o -",
        judge: waits::block_in_windows,
        ..USUAL
    },
    Case {
        name: "wall",
        program: "waiting",
        feed: "shares",
        command: "record -e wall -p $PID -d 4 -r 49 -v --sample-type wall -f folded -o -",
        since: (0, 0),
        judge: waits::wall,
        ..USUAL
    },
    Case {
        name: "goroutine",
        program: "waiting",
        command: "record -e goroutine -p $PID -v -f folded -o -",
        since: (0, 0),
        judge: waits::goroutine,
        ..USUAL
    },
    Case {
        name: "offcpu",
        program: "off_cpu",
        arguments: "-wait 3s -parts sleeps,blocks,contends",
        environment: threads::ENVIRONMENT,
        command: "record -e offcpu -v --sample-type off_cpu -f folded -o -",
        judge: threads::off_cpu,
        ..USUAL
    },
    Case {
        name: "cpu and offcpu combined",
        program: "off_cpu",
        arguments: "-wait 60s -parts sleeps,blocks,contends",
        environment: threads::ENVIRONMENT,
        command: "record -e cpu,offcpu --combine -p $PID -d 4 -v -f folded -o -",
        judge: threads::combined,
        ..USUAL
    },
    Case {
        name: "io, how long",
        program: "block_io",
        arguments: "-device /dev/nullb0 -reads 200 -writes 100 -flushes 20",
        command: "record -e io -v --sample-type latency -f folded -o -",
        modules: &block_io::DELAYED,
        judge: block_io::latency,
        ..USUAL
    },
    Case {
        name: "io, how much",
        program: "block_io",
        arguments: "-device /dev/nullb0 -reads 200 -writes 100 -flushes 20",
        command: "record -e io -v --sample-type size -f folded -o -",
        modules: &block_io::DELAYED,
        judge: block_io::bytes,
        ..USUAL
    },
    Case {
        name: "io, merged and split",
        program: "block_io",
        arguments: "-device /dev/nullb0 -reads 0 -writes 0 -flushes 0 -buffered 1024 -large 8",
        command: "record -e io -v --sample-type size -f folded -o -",
        modules: &block_io::DELAYED,
        setting: block_io::SMALL_REQUESTS,
        judge: block_io::merged_and_split,
        ..USUAL
    },
    Case {
        name: "io, sent back by the device",
        program: "block_io",
        arguments: "-device /dev/sda -reads 200 -writes 100 -flushes 0",
        command: "record -e io -v --sample-type size -f folded -o -",
        modules: &block_io::BUSY,
        setting: block_io::WAIT_FOR_DISK,
        lacking: Some(Arch::Aarch64),
        judge: block_io::sent_back,
        ..USUAL
    },
    Case {
        name: "io, done in parts",
        program: "block_io",
        arguments: "-device /dev/sda -reads 200 -writes 100 -flushes 0",
        command: "record -e io -v --sample-type size -f folded -o -",
        modules: &block_io::SHORT,
        setting: block_io::WAIT_FOR_DISK,
        lacking: Some(Arch::Aarch64),
        judge: block_io::in_parts,
        ..USUAL
    },
];
