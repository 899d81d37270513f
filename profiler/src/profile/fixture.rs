//! Windows for the tests of the encoders: a builder, and the windows several
//! tests share.

use std::time::{Duration, SystemTime};

use crate::symbolize::{
    Event, FrameKind, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId,
    Process, ProcessId, Reason, Sample, SymbolizedWindow, Thread, Values,
};

/// Builds a window frame by frame.
pub(super) struct Builder {
    window: SymbolizedWindow,
}

/// A source frame: name, file, start line, line.
pub(super) type Source<'a> = (&'a str, &'a str, u32, u32);

impl Builder {
    pub(super) fn new() -> Self {
        Builder {
            window: SymbolizedWindow {
                event: Event::Cpu,
                start: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
                duration: Duration::from_secs(10),
                period: 10_101_010,
                processes: Vec::new(),
                samples: Vec::new(),
                locations: Vec::new(),
                functions: Vec::new(),
                mappings: Vec::new(),
            },
        }
    }

    pub(super) fn process(&mut self, pid: u32, comm: &str, exe: &str) -> ProcessId {
        self.window.processes.push(Process {
            pid,
            comm: comm.to_owned(),
            exe: exe.to_owned(),
            cgroup_id: 0,
            go_version: "go1.26.8".to_owned(),
        });
        ProcessId(self.window.processes.len() as u32 - 1)
    }

    pub(super) fn mapping(&mut self, file: &str, start: u64, end: u64) -> MappingId {
        self.window.mappings.push(Mapping {
            start,
            end,
            offset: 0x1000,
            file: file.to_owned(),
            build_id: "ab12".to_owned(),
        });
        MappingId(self.window.mappings.len() as u32 - 1)
    }

    /// Adds a location with the given source frames, leaf first.
    pub(super) fn location(
        &mut self,
        kind: FrameKind,
        mapping: Option<MappingId>,
        sources: &[Source<'_>],
    ) -> LocationId {
        let id = self.window.locations.len() as u32;
        let start = mapping.map_or(0, |m| self.window.mappings[m.0 as usize].start);
        let lines = sources
            .iter()
            .map(|&(name, file, start_line, line)| Line {
                function: self.function(name, file, start_line),
                line,
            })
            .collect();
        self.window.locations.push(Location {
            address: start + u64::from(id) * 16,
            mapping,
            kind,
            lines,
            reason: None,
        });
        LocationId(id)
    }

    fn function(&mut self, name: &str, file: &str, start_line: u32) -> FunctionId {
        let function = Function {
            name: name.to_owned(),
            file: file.to_owned(),
            start_line,
        };
        let known = self.window.functions.iter().position(|f| *f == function);
        FunctionId(known.unwrap_or_else(|| {
            self.window.functions.push(function);
            self.window.functions.len() - 1
        }) as u32)
    }

    /// Adds a sample; the stack is leaf first.
    pub(super) fn sample(&mut self, process: ProcessId, stack: &[LocationId], count: i64) {
        self.window.samples.push(Sample {
            process,
            thread: None,
            goid: None,
            labels: Vec::new(),
            block_bytes: None,
            stack: stack.to_vec(),
            values: cpu(count),
        });
    }

    pub(super) fn build(self) -> SymbolizedWindow {
        self.window
    }
}

/// The values of so many samples of the builder's windows.
pub(super) fn cpu(count: i64) -> Values {
    [count, count.saturating_mul(10_101_010), 0, 0]
}

/// One Go process: `main.main` calls `main.work`, into which `main.hot` is
/// inlined; once in the kernel, once in an address without a mapping.
pub(super) fn one_process() -> SymbolizedWindow {
    let mut b = Builder::new();
    let app = b.process(42, "app", "/srv/app");
    let kernel = b.mapping("[kernel]", 0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000);
    let libc = b.mapping("/lib/libc.so.6", 0x7f00_0000_0000, 0x7f00_0010_0000);
    let bin = b.mapping("/srv/app", 0x40_1000, 0x80_0000);
    let main = b.location(
        FrameKind::Go,
        Some(bin),
        &[("main.main", "/src/main.go", 30, 33)],
    );
    let hot = b.location(
        FrameKind::Go,
        Some(bin),
        &[
            ("main.hot", "/src/hot.go", 5, 7),
            ("main.work", "/src/main.go", 10, 14),
        ],
    );
    let write = b.location(FrameKind::Native, Some(libc), &[("write", "", 0, 0)]);
    let vfs = b.location(FrameKind::Kernel, Some(kernel), &[("vfs_write", "", 0, 0)]);
    let lost = b.location(FrameKind::Native, None, &[("[no mapping]", "", 0, 0)]);
    b.sample(app, &[hot, main], 70);
    b.sample(app, &[vfs, write, main], 20);
    b.sample(app, &[lost, main], 1);
    let mut window = b.build();
    window.locations[lost.0 as usize].reason = Some(Reason::NoMapping);
    window
}

/// Two processes, the second the busier one.
pub(super) fn two_processes() -> SymbolizedWindow {
    let mut b = Builder::new();
    let first = b.process(7, "api", "/srv/api");
    let second = b.process(8, "worker", "/srv/worker");
    let api = b.mapping("/srv/api", 0x40_0000, 0x50_0000);
    let worker = b.mapping("/srv/worker", 0x40_0000, 0x60_0000);
    let serve = b.location(
        FrameKind::Go,
        Some(api),
        &[("net/http.(*conn).serve", "server.go", 1890, 2009)],
    );
    let run = b.location(FrameKind::Go, Some(worker), &[("main.run", "w.go", 3, 9)]);
    b.sample(first, &[serve], 3);
    b.sample(second, &[run], 5);
    b.build()
}

/// `window` with every sample on a thread of its own.
pub(super) fn with_threads(mut window: SymbolizedWindow) -> SymbolizedWindow {
    for (sample, tid) in window.samples.iter_mut().zip(1000..) {
        sample.thread = Some(Thread {
            tid,
            name: "netpoll".to_owned(),
        });
    }
    window
}

/// A heap: two sites of a process, the second of which has freed all, and the
/// first of which has a type.
pub(super) fn heap(event: Event) -> SymbolizedWindow {
    let mut b = Builder::new();
    let app = b.process(42, "app", "/srv/app");
    let bin = b.mapping("/srv/app", 0x40_1000, 0x80_0000);
    let main = b.location(
        FrameKind::Go,
        Some(bin),
        &[("main.main", "/src/main.go", 30, 33)],
    );
    let keep = b.location(
        FrameKind::Go,
        Some(bin),
        &[("main.keep", "/src/k.go", 5, 7)],
    );
    let free = b.location(
        FrameKind::Go,
        Some(bin),
        &[("main.free", "/src/f.go", 5, 7)],
    );
    b.sample(app, &[keep, main], 0);
    b.sample(app, &[free, main], 0);
    let mut window = b.build();
    (window.event, window.period) = (event, 524_288);
    window.duration = Duration::ZERO;
    let figures = [[30, 1920, 20, 1280], [8, 8192, 0, 0]];
    for (sample, values) in window.samples.iter_mut().zip(figures) {
        sample.values = values;
        sample.block_bytes = Some(values[1].unsigned_abs() / values[0].unsigned_abs());
    }
    window.samples[0].labels = vec![("type".to_owned(), "main.node".to_owned())];
    window
}
