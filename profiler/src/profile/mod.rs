//! Profile: a symbolized window in the formats that other tools read. Encoders
//! turn data into bytes; they do no I/O and never drop a frame.

mod calltree;
mod flamegraph;
mod folded;
mod frames;
#[cfg(feature = "agent")]
pub mod parquet;
mod pprof;
pub mod proto;
#[cfg(feature = "agent")]
pub mod push;
mod speedscope;

#[cfg(test)]
mod fixture;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, ensure};

#[cfg(feature = "agent")]
use crate::identity::Target;
use crate::symbolize::SymbolizedWindow;

/// A format a window can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Gzipped `profile.proto`, read by `go tool pprof` and `go build -pgo`.
    Pprof,
    /// One line of text per stack, read by flamegraph.pl and inferno.
    Folded,
    /// A flame graph: one HTML file that needs no network.
    Flamegraph,
    /// JSON for <https://www.speedscope.app>.
    Speedscope,
}

impl Format {
    /// Every format, the default first.
    pub const ALL: [Format; 4] = [
        Format::Pprof,
        Format::Folded,
        Format::Flamegraph,
        Format::Speedscope,
    ];

    /// The name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Pprof => "pprof",
            Format::Folded => "folded",
            Format::Flamegraph => "flamegraph",
            Format::Speedscope => "speedscope",
        }
    }

    /// The extension of files in this format, without a leading dot.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Pprof => "pb.gz",
            Format::Folded => "folded",
            Format::Flamegraph => "html",
            Format::Speedscope => "speedscope.json",
        }
    }

    /// The format a file name asks for by its extension, or `None` where the
    /// extension says nothing.
    pub fn from_path(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let any = |extensions: &[&str]| extensions.iter().any(|e| name.ends_with(e));
        if any(&[".pb.gz", ".pprof", ".pgo", ".pb"]) {
            Some(Format::Pprof)
        } else if any(&[".folded", ".collapsed", ".txt"]) {
            Some(Format::Folded)
        } else if any(&[".html", ".htm"]) {
            Some(Format::Flamegraph)
        } else if any(&[".json"]) {
            Some(Format::Speedscope)
        } else {
            None
        }
    }

    /// Whether the bytes are unfit for a terminal.
    pub fn is_binary(self) -> bool {
        self == Format::Pprof
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A format name that is none of [`Format::ALL`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown format {0:?}: use pprof, folded, flamegraph or speedscope")]
pub struct UnknownFormat(String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Format::ALL
            .into_iter()
            .find(|f| f.name() == s)
            .ok_or_else(|| UnknownFormat(s.to_owned()))
    }
}

/// What an encoder is told besides the window.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What was profiled, for a human: a command line, `pid 42`, `every Go
    /// process`. May be empty.
    pub subject: String,
    /// What a reader must know to trust the figures, one sentence each, such as
    /// `lost 3 samples (ring buffer full)`. Empty when all is well.
    pub notes: Vec<String>,
    /// Which value formats show that have one for each stack, by its index in
    /// [`crate::symbolize::Event::value_types`]; what suits the format where
    /// `None`. pprof has all of them, whatever this says.
    pub value: Option<usize>,
}

/// A window, and who its processes are.
#[cfg(feature = "agent")]
#[derive(Debug, Clone)]
pub struct Batch {
    /// What was sampled.
    pub window: SymbolizedWindow,
    /// Who the processes of the window are, in their order.
    pub targets: Vec<Target>,
}

/// Encodes a window.
///
/// # Errors
/// When the window's tables do not fit together (an index out of range, a
/// location without a line), or an encoder fails.
pub fn encode(window: &SymbolizedWindow, format: Format, options: &Options) -> Result<Vec<u8>> {
    check(window)?;
    let types = window.event.value_types().len();
    ensure!(
        options.value.is_none_or(|index| index < types),
        "a sample of {} has {types} values",
        window.event.name()
    );
    match format {
        Format::Pprof => pprof::encode(window, options),
        Format::Folded => Ok(folded::encode(window, options)),
        Format::Flamegraph => flamegraph::encode(window, options),
        Format::Speedscope => speedscope::encode(window, options),
    }
}

/// How goprof names itself in what it writes.
fn generator() -> String {
    format!("goprof {}", env!("CARGO_PKG_VERSION"))
}

/// Checks every index once, so that the encoders may index freely.
fn check(window: &SymbolizedWindow) -> Result<()> {
    for sample in &window.samples {
        let process = sample.process.0 as usize;
        ensure!(
            process < window.processes.len(),
            "no process {process} in the window"
        );
        for location in &sample.stack {
            let location = location.0 as usize;
            ensure!(
                location < window.locations.len(),
                "no location {location} in the window"
            );
        }
    }
    for (i, location) in window.locations.iter().enumerate() {
        ensure!(!location.lines.is_empty(), "location {i} has no line");
        if let Some(mapping) = location.mapping {
            ensure!(
                (mapping.0 as usize) < window.mappings.len(),
                "no mapping {} in the window",
                mapping.0
            );
        }
        for line in &location.lines {
            let function = line.function.0 as usize;
            ensure!(
                function < window.functions.len(),
                "no function {function} in the window"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::symbolize::{Event, FunctionId, LocationId, MappingId, ProcessId};

    #[test]
    fn the_extension_chooses_the_format() {
        let cases = [
            ("a.pb.gz", Some(Format::Pprof)),
            ("dir.html/cpu.pprof", Some(Format::Pprof)),
            ("default.pgo", Some(Format::Pprof)),
            ("A.FOLDED", Some(Format::Folded)),
            ("a.txt", Some(Format::Folded)),
            ("a.collapsed", Some(Format::Folded)),
            ("a.html", Some(Format::Flamegraph)),
            ("a.speedscope.json", Some(Format::Speedscope)),
            ("a.json", Some(Format::Speedscope)),
            ("a.gz", None),
            ("html", None),
            ("-", None),
            ("/", None),
        ];
        for (path, want) in cases {
            assert_eq!(Format::from_path(Path::new(path)), want, "{path}");
        }
    }

    #[test]
    fn names_extensions_and_the_command_line_agree() {
        for format in Format::ALL {
            assert_eq!(format.name().parse(), Ok(format));
            assert_eq!(format.to_string(), format.name());
            let file = format!("x.{}", format.extension());
            assert_eq!(Format::from_path(Path::new(&file)), Some(format));
            let value = clap::ValueEnum::to_possible_value(&format).unwrap();
            assert_eq!(value.get_name(), format.name());
        }
        let error = "svg".parse::<Format>().unwrap_err().to_string();
        assert!(error.contains("\"svg\"") && error.contains("flamegraph"));
    }

    #[test]
    fn a_window_that_does_not_fit_together_is_refused_by_every_format() {
        let broken: [fn(&mut SymbolizedWindow); 5] = [
            |w| w.samples[0].process = ProcessId(99),
            |w| w.samples[0].stack.push(LocationId(99_999)),
            |w| w.locations[0].mapping = Some(MappingId(99)),
            |w| w.locations[0].lines[0].function = FunctionId(99_999),
            |w| w.locations[0].lines.clear(),
        ];
        for break_it in broken {
            let mut window = fixture::one_process();
            break_it(&mut window);
            for format in Format::ALL {
                assert!(encode(&window, format, &Options::default()).is_err());
            }
        }
    }

    #[test]
    fn only_pprof_tells_goroutines_apart() {
        let plain = fixture::one_process();
        let mut split = plain.clone();
        split.samples = Vec::new();
        for sample in &plain.samples {
            // Two goroutines, the second with a label, have one half each.
            let count = sample.values[0];
            let (less, more) = (count / 2, count - count / 2);
            for (goid, count) in [(17, more), (18, less)] {
                let mut part = sample.clone();
                (part.goid, part.values) = (Some(goid), fixture::cpu(count));
                if goid == 18 {
                    part.labels = vec![("path".into(), "/".into())];
                }
                split.samples.push(part);
            }
        }
        for format in Format::ALL {
            let bytes = |window| encode(window, format, &Options::default()).unwrap();
            let same = bytes(&plain) == bytes(&split);
            assert_eq!(same, format != Format::Pprof, "{format}");
        }
    }

    #[test]
    fn a_value_that_samples_do_not_have_is_refused() {
        let options = Options {
            value: Some(2),
            ..Options::default()
        };
        for format in Format::ALL {
            assert!(encode(&fixture::one_process(), format, &options).is_err());
            assert!(encode(&fixture::heap(Event::Heap), format, &options).is_ok());
        }
    }

    #[test]
    fn an_empty_window_is_encoded_by_every_format() {
        let window = fixture::Builder::new().build();
        for format in Format::ALL {
            encode(&window, format, &Options::default()).unwrap();
        }
    }
}
