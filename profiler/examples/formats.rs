//! Writes a made-up profile in every format to a folder, to look at them:
//! `cargo run -p goprof --example formats -- DIR [NODES]`. The call tree has
//! about NODES nodes (20,000 unless told), like that of a busy Go server.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use goprof::profile::{Format, Options, encode};
use goprof::symbolize::{
    Event, FrameKind, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId,
    Process, ProcessId, Reason, Sample, SymbolizedWindow,
};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().context("usage: formats DIR [NODES]")?);
    let nodes = args.next().map_or(Ok(20_000), |n| n.parse())?;
    let window = Server::new().window(nodes);
    let options = Options {
        subject: "checkout --listen :8080 --workers 16".to_owned(),
        notes: vec!["lost 3 samples (ring buffer full)".to_owned()],
        value: None,
    };
    std::fs::create_dir_all(&dir)?;
    for format in Format::ALL {
        let begun = std::time::Instant::now();
        let bytes = encode(&window, format, &options)?;
        let path = dir.join(format!("checkout.{}", format.extension()));
        std::fs::write(&path, &bytes)?;
        println!(
            "{} {} bytes in {:?}",
            path.display(),
            bytes.len(),
            begun.elapsed()
        );
    }
    Ok(())
}

/// Packages of a made-up server, and how many functions each has.
const PACKAGES: [(&str, FrameKind, u32); 12] = [
    ("net/http", FrameKind::Go, 60),
    (
        "github.com/example/checkout/internal/cart",
        FrameKind::Go,
        80,
    ),
    (
        "github.com/example/checkout/internal/pricing",
        FrameKind::Go,
        70,
    ),
    ("encoding/json", FrameKind::Go, 60),
    ("database/sql", FrameKind::Go, 50),
    ("runtime", FrameKind::Go, 90),
    ("strconv", FrameKind::Go, 20),
    ("compress/flate", FrameKind::Go, 25),
    ("crypto/tls", FrameKind::Go, 40),
    ("internal/poll", FrameKind::Go, 15),
    ("libcrypto", FrameKind::Native, 20),
    ("kernel", FrameKind::Kernel, 120),
];
const VERBS: [&str; 16] = [
    "Serve",
    "decode",
    "Lookup",
    "encodeState",
    "mallocgc",
    "ReadRow",
    "apply",
    "scanobject",
    "Write",
    "marshal",
    "Do",
    "next",
    "Verify",
    "mapaccess2",
    "flush",
    "Exec",
];

struct Server {
    window: SymbolizedWindow,
    /// First location and number of locations, by package.
    ranges: Vec<(u32, u32)>,
    state: u64,
}

impl Server {
    fn new() -> Self {
        let mapping = |file: &str, start: u64| Mapping {
            start,
            end: start + 0x80_0000,
            offset: 0,
            file: file.to_owned(),
            build_id: String::new(),
        };
        let mut server = Server {
            window: SymbolizedWindow {
                event: Event::Cpu,
                start: SystemTime::now(),
                duration: Duration::from_secs(30),
                period: 10_101_010,
                processes: vec![Process {
                    pid: 4711,
                    comm: "checkout".to_owned(),
                    exe: "/srv/checkout".to_owned(),
                    cgroup_id: 0,
                    go_version: "go1.26.8".to_owned(),
                }],
                samples: Vec::new(),
                locations: Vec::new(),
                functions: Vec::new(),
                mappings: vec![
                    mapping("/srv/checkout", 0x40_0000),
                    mapping("/usr/lib/libcrypto.so.3", 0x7f00_0000_0000),
                    mapping("[kernel]", 0xffff_ffff_8100_0000),
                ],
            },
            ranges: Vec::new(),
            state: 42,
        };
        for (package, kind, functions) in PACKAGES {
            let first = server.window.locations.len() as u32;
            for i in 0..functions {
                server.add_location(package, kind, i);
            }
            server.ranges.push((first, functions));
        }
        server
    }

    fn add_location(&mut self, package: &str, kind: FrameKind, i: u32) {
        let verb = VERBS[(i as usize * 7 + package.len()) % VERBS.len()];
        let name = match kind {
            FrameKind::Go if i.is_multiple_of(3) => format!("{package}.(*T{i}).{verb}"),
            FrameKind::Go => format!("{package}.{verb}{i}"),
            FrameKind::Native => format!("EVP_{verb}_{i}"),
            FrameKind::Kernel => format!("__x64_{}_{i}", verb.to_lowercase()),
        };
        let file = match kind {
            FrameKind::Go => format!("/src/{package}/file{}.go", i % 5),
            _ => String::new(),
        };
        self.window.functions.push(Function {
            name,
            file,
            start_line: i * 40 + 7,
        });
        let function = self.window.functions.len() as u32 - 1;
        let line = |function, line| Line {
            function: FunctionId(function),
            line,
        };
        let mut lines = vec![line(function, i * 40 + 19)];
        if kind == FrameKind::Go && i % 4 == 1 {
            lines.insert(0, line(function - 1, i * 40 + 3));
        }
        let (mapping, base) = match kind {
            FrameKind::Go => (0, 0x40_0000),
            FrameKind::Native => (1, 0x7f00_0000_0000),
            FrameKind::Kernel => (2, 0xffff_ffff_8100_0000),
        };
        let nameless = kind == FrameKind::Native && i % 10 == 9;
        self.window.locations.push(Location {
            address: base + u64::from(function) * 64,
            mapping: Some(MappingId(mapping)),
            kind,
            lines,
            reason: nameless.then_some(Reason::NoSymbol),
        });
    }

    /// A number below `bound`, small ones far likelier: hot paths exist.
    fn pick(&mut self, bound: u32) -> u32 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let unit = (self.state >> 11) as f64 / (1_u64 << 53) as f64;
        (unit.powi(7) * f64::from(bound)) as u32
    }

    /// A stack, leaf first. Packages only call what stands further down, and a
    /// function has its favourites among what it calls.
    fn stack(&mut self) -> Vec<LocationId> {
        let mut stack = Vec::new();
        let (mut package, mut caller) = (0, 0);
        while package < PACKAGES.len() {
            for _ in 0..=self.pick(5) {
                let (first, len) = self.ranges[package];
                caller = first + (caller * 7 + 3 + self.pick(len)) % len;
                stack.push(LocationId(caller));
            }
            package += 1 + (caller as usize + self.pick(4) as usize) % 3;
            if self.pick(100) > 70 {
                break;
            }
        }
        stack.reverse();
        stack
    }

    fn window(mut self, nodes: usize) -> SymbolizedWindow {
        let mut seen = std::collections::HashSet::new();
        while seen.len() < nodes {
            let stack = self.stack();
            for i in 0..stack.len() {
                seen.insert(stack[i..].to_vec());
            }
            let count = 1 + i64::from(self.pick(40));
            self.window.samples.push(Sample {
                process: ProcessId(0),
                thread: None,
                goid: None,
                labels: Vec::new(),
                block_bytes: None,
                stack,
                values: [count, count * 10_101_010, 0, 0],
            });
        }
        self.window
    }
}
