//! Reading pprof files back: stacks of named frames, inlined ones included, and
//! what the tests ask about them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Read as _;
use std::path::Path;

use goprof::profile::proto;
use prost::Message as _;

/// A profile, decoded.
pub struct Profile {
    /// The message as it stands in the file.
    pub raw: proto::Profile,
    /// Its samples.
    pub stacks: Vec<Stack>,
}

/// One sample of a profile.
pub struct Stack {
    /// The frames, leaf first; inlined functions are frames of their own.
    pub frames: Vec<Frame>,
    /// How many times it was seen.
    pub count: u64,
    /// All of its values.
    pub values: Vec<i64>,
    /// The labels, numbers as text.
    pub labels: BTreeMap<String, String>,
}

/// One source frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The function's name.
    pub function: String,
    /// The source file.
    pub file: String,
    /// The line being executed.
    pub line: i64,
    /// The line at which the function begins.
    pub start_line: i64,
    /// Whether it was inlined into the next frame.
    pub inlined: bool,
    /// The file of its mapping, empty for none.
    pub mapping: String,
    /// The address.
    pub address: u64,
}

impl Frame {
    /// Whether it is in the kernel.
    pub fn is_kernel(&self) -> bool {
        self.mapping.starts_with("[kernel")
    }

    /// Whether it carries the name of a function. Placeholders are in brackets
    /// or are addresses.
    pub fn is_named(&self) -> bool {
        !(self.function.is_empty()
            || self.function.starts_with('[')
            || self.function.starts_with('<')
            || self.function.starts_with("0x"))
    }
}

impl Profile {
    /// Reads a gzipped pprof file.
    #[track_caller]
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        Self::decode(&bytes)
    }

    /// Decodes a gzipped profile.
    #[track_caller]
    pub fn decode(gzipped: &[u8]) -> Self {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(gzipped)
            .read_to_end(&mut bytes)
            .unwrap_or_else(|e| {
                let start = &gzipped[..gzipped.len().min(200)];
                panic!("not gzipped: {e}: {}", String::from_utf8_lossy(start))
            });
        let raw = proto::Profile::decode(&bytes[..]).expect("decode profile.proto");
        let stacks = Tables::new(&raw).stacks();
        Profile { raw, stacks }
    }

    /// A string of the string table.
    pub fn text(&self, index: i64) -> &str {
        &self.raw.string_table[usize::try_from(index).expect("an index")]
    }

    /// How many samples there are.
    pub fn total(&self) -> u64 {
        self.stacks.iter().map(|s| s.count).sum()
    }

    /// The samples for which `wanted` holds, as a share of all from 0 to 1.
    #[track_caller]
    pub fn share(&self, wanted: impl Fn(&Stack) -> bool) -> f64 {
        assert_ne!(self.total(), 0, "the profile has no samples");
        let found: u64 = self
            .stacks
            .iter()
            .filter(|s| wanted(s))
            .map(|s| s.count)
            .sum();
        found as f64 / self.total() as f64
    }

    /// The share of samples whose leaf is `function`.
    #[track_caller]
    pub fn flat_share(&self, function: &str) -> f64 {
        self.share(|s| s.frames.first().is_some_and(|f| f.function == function))
    }

    /// The share of samples with `function` anywhere in the stack.
    #[track_caller]
    pub fn cumulative_share(&self, function: &str) -> f64 {
        self.share(|s| s.has(function))
    }

    /// The share that `function` has of the samples of the main goroutine. What
    /// the runtime's own threads take besides depends on the machine: `sysmon`,
    /// which sleeps by the clock, had a tenth of a busy program's samples where
    /// setting a timer is dear.
    #[track_caller]
    pub fn main_share(&self, function: &str) -> f64 {
        let main = self.cumulative_share("main.main");
        assert!(main > 0.5, "main.main has {main}\n{}", self.top(20));
        self.share(|s| s.has("main.main") && s.has(function)) / main
    }

    /// The share, from 0 to 1, of the frames in a file called `file_name` that
    /// are named, frames weighted by their samples; and how many there are.
    #[track_caller]
    pub fn named_share(&self, file_name: &str) -> (f64, u64) {
        let (mut named, mut all) = (0, 0);
        for stack in &self.stacks {
            for frame in &stack.frames {
                if Path::new(&frame.mapping)
                    .file_name()
                    .is_some_and(|n| n == file_name)
                {
                    all += stack.count;
                    named += if frame.is_named() { stack.count } else { 0 };
                }
            }
        }
        assert_ne!(all, 0, "no frame lies in {file_name}\n{}", self.top(20));
        (named as f64 / all as f64, all)
    }

    /// The names of all functions.
    pub fn functions(&self) -> HashSet<&str> {
        let frames = self.stacks.iter().flat_map(|s| &s.frames);
        frames.map(|f| f.function.as_str()).collect()
    }

    /// The functions with the most samples as leaf, for messages.
    pub fn top(&self, count: usize) -> String {
        let mut flat: HashMap<&str, u64> = HashMap::new();
        for stack in &self.stacks {
            let leaf = stack.frames.first().map_or("", |f| f.function.as_str());
            *flat.entry(leaf).or_default() += stack.count;
        }
        let mut rows: Vec<_> = flat.into_iter().collect();
        rows.sort_by_key(|&(name, samples)| (std::cmp::Reverse(samples), name));
        let lines = rows
            .iter()
            .take(count)
            .map(|(name, samples)| format!("{samples:8} {name}\n"));
        lines.collect()
    }
}

impl Stack {
    /// Whether `function` is in the stack.
    pub fn has(&self, function: &str) -> bool {
        self.frames.iter().any(|f| f.function == function)
    }

    /// The names of the functions, leaf first.
    pub fn names(&self) -> Vec<&str> {
        self.frames.iter().map(|f| f.function.as_str()).collect()
    }
}

/// The tables of a message by id.
struct Tables<'p> {
    raw: &'p proto::Profile,
    mappings: HashMap<u64, &'p proto::Mapping>,
    locations: HashMap<u64, &'p proto::Location>,
    functions: HashMap<u64, &'p proto::Function>,
}

impl<'p> Tables<'p> {
    fn new(raw: &'p proto::Profile) -> Self {
        Tables {
            raw,
            mappings: raw.mapping.iter().map(|m| (m.id, m)).collect(),
            locations: raw.location.iter().map(|l| (l.id, l)).collect(),
            functions: raw.function.iter().map(|f| (f.id, f)).collect(),
        }
    }

    fn stacks(&self) -> Vec<Stack> {
        self.raw.sample.iter().map(|s| self.stack(s)).collect()
    }

    fn stack(&self, sample: &proto::Sample) -> Stack {
        let frames = sample.location_id.iter().flat_map(|id| {
            let location = self
                .locations
                .get(id)
                .expect("a sample names a known location");
            self.frames(location)
        });
        let labels = sample.label.iter().map(|label| {
            let value = match label.str {
                0 => label.num.to_string(),
                text => self.text(text),
            };
            (self.text(label.key), value)
        });
        Stack {
            frames: frames.collect(),
            count: u64::try_from(sample.value[0]).expect("a count of samples"),
            values: sample.value.clone(),
            labels: labels.collect(),
        }
    }

    fn frames(&self, location: &proto::Location) -> Vec<Frame> {
        let mapping = match location.mapping_id {
            0 => String::new(),
            id => self.text(self.mappings[&id].filename),
        };
        let physical = location.line.len().saturating_sub(1);
        let lines = location.line.iter().enumerate();
        lines
            .map(|(i, line)| {
                let function = self.functions[&line.function_id];
                Frame {
                    function: self.text(function.name),
                    file: self.text(function.filename),
                    line: line.line,
                    start_line: function.start_line,
                    inlined: i < physical,
                    mapping: mapping.clone(),
                    address: location.address,
                }
            })
            .collect()
    }

    fn text(&self, index: i64) -> String {
        self.raw.string_table[usize::try_from(index).expect("an index")].clone()
    }
}
