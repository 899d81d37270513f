//! pprof: a window as gzipped `profile.proto`, shaped as Go's own profiles
//! are. Locations, functions and mappings keep their order; nothing is merged
//! or dropped.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use prost::Message as _;

use super::{Options, generator, proto};
use crate::symbolize::{FrameKind, Location, MappingId, Sample, SymbolizedWindow, ValueType};

/// Encodes a window as gzipped `profile.proto`. The same window gives the same
/// bytes.
///
/// # Errors
/// Only when the compressor fails.
pub(super) fn encode(window: &SymbolizedWindow, options: &Options) -> Result<Vec<u8>> {
    compress(&profile(window, options))
}

/// The message as it is written to a file, or sent.
///
/// # Errors
/// Only when the compressor fails.
pub(super) fn compress(profile: &proto::Profile) -> Result<Vec<u8>> {
    // Go's runtime compresses at the fastest level too.
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&profile.encode_to_vec())
        .context("compress the profile")?;
    gzip.finish().context("compress the profile")
}

/// Builds the message from a window whose indices are in range (which
/// [`super::encode`] checks).
pub(super) fn profile(window: &SymbolizedWindow, options: &Options) -> proto::Profile {
    let mut strings = Strings::new();
    let kinds = window.event.value_types();
    let types: Vec<_> = kinds.iter().map(|t| value_type(*t, &mut strings)).collect();
    let (mapping, mapping_ids) = mappings(window, &mut strings);
    let labels = Labels::new(window, &mut strings);
    let sample = window
        .samples
        .iter()
        .map(|sample| proto::Sample {
            location_id: sample.stack.iter().map(|l| u64::from(l.0) + 1).collect(),
            value: sample.values[..types.len()].to_vec(),
            label: labels.of(window, sample, &mut strings),
        })
        .collect();
    let location = window
        .locations
        .iter()
        .zip(1..)
        .map(|(location, id)| proto::Location {
            id,
            mapping_id: location.mapping.map_or(0, |m| mapping_ids[m.0 as usize]),
            address: location.address,
            line: lines(location),
        })
        .collect();
    let function = window
        .functions
        .iter()
        .zip(1..)
        .map(|(function, id)| {
            let name = strings.index(&function.name);
            proto::Function {
                id,
                name,
                system_name: name,
                filename: strings.index(&function.file),
                start_line: i64::from(function.start_line),
            }
        })
        .collect();
    let comment = std::iter::once(generator())
        .chain(options.notes.iter().cloned())
        .map(|text| strings.index(&text))
        .collect();
    let default = window.event.default_type();
    proto::Profile {
        sample_type: types,
        sample,
        mapping,
        location,
        function,
        time_nanos: nanos_since_epoch(window.start),
        duration_nanos: nanos(window.duration),
        period_type: Some(value_type(window.event.period_type(), &mut strings)),
        period: clamp(window.period),
        comment,
        default_sample_type: default.map_or(0, |kind| strings.index(kind.name)),
        string_table: strings.table,
    }
}

fn value_type(kind: ValueType, strings: &mut Strings) -> proto::ValueType {
    proto::ValueType {
        r#type: strings.index(kind.name),
        unit: strings.index(kind.unit),
    }
}

fn lines(location: &Location) -> Vec<proto::Line> {
    location
        .lines
        .iter()
        .map(|line| proto::Line {
            function_id: u64::from(line.function.0) + 1,
            line: i64::from(line.line),
        })
        .collect()
}

/// The mapping table, the main binary first, and the id of each of the
/// window's mappings.
///
/// pprof takes the first mapping for the profiled program. Where no frame lies
/// in that program's binary (all time in the kernel, say) an entry without
/// addresses stands for it, so that the report does not name `[kernel]`.
fn mappings(window: &SymbolizedWindow, strings: &mut Strings) -> (Vec<proto::Mapping>, Vec<u64>) {
    let main_exe = main_exe(window);
    let main = window.mappings.iter().position(|m| m.file == main_exe);
    let mut table = Vec::with_capacity(window.mappings.len() + 1);
    let mut ids = vec![0; window.mappings.len()];
    if main.is_none() && !main_exe.is_empty() {
        table.push(proto::Mapping {
            id: 1,
            filename: strings.index(main_exe),
            has_functions: true,
            ..proto::Mapping::default()
        });
    }
    let rest = (0..window.mappings.len()).filter(|&i| Some(i) != main);
    let flags = flags(window);
    for i in main.into_iter().chain(rest) {
        let mapping = &window.mappings[i];
        ids[i] = table.len() as u64 + 1;
        table.push(proto::Mapping {
            id: ids[i],
            memory_start: mapping.start,
            memory_limit: mapping.end,
            file_offset: mapping.offset,
            filename: strings.index(&mapping.file),
            build_id: strings.index(&mapping.build_id),
            ..flags[i]
        });
    }
    (table, ids)
}

/// The executable of the process with the most samples.
fn main_exe(window: &SymbolizedWindow) -> &str {
    let mut counts = vec![0_u64; window.processes.len()];
    for sample in &window.samples {
        let count = &mut counts[sample.process.0 as usize];
        *count = count.saturating_add(sample.values[0].unsigned_abs());
    }
    let mut best: Option<(u64, &str)> = None;
    for (process, count) in window.processes.iter().zip(counts) {
        if best.is_none_or(|(most, _)| count > most) {
            best = Some((count, &process.exe));
        }
    }
    best.map_or("", |(_, exe)| exe)
}

/// The `has_*` flags of each mapping. All of them have names: a frame that
/// could not be named says so in its name, and pprof must not replace that by
/// what a file of the same path on the reader's machine says.
fn flags(window: &SymbolizedWindow) -> Vec<proto::Mapping> {
    let named = proto::Mapping {
        has_functions: true,
        ..proto::Mapping::default()
    };
    let mut flags = vec![named; window.mappings.len()];
    for location in &window.locations {
        let Some(MappingId(mapping)) = location.mapping else {
            continue;
        };
        let flags = &mut flags[mapping as usize];
        // Go's inline tree was asked wherever Go code was named.
        flags.has_inline_frames |= location.kind == FrameKind::Go || location.lines.len() > 1;
        for line in &location.lines {
            let function = &window.functions[line.function.0 as usize];
            flags.has_filenames |= !function.file.is_empty();
            flags.has_line_numbers |= line.line != 0;
        }
    }
    flags
}

/// The string table: each string once.
struct Strings {
    table: Vec<String>,
    index: HashMap<String, i64>,
}

impl Strings {
    /// A table with the empty string, which has to come first.
    fn new() -> Self {
        Strings {
            table: vec![String::new()],
            index: HashMap::from([(String::new(), 0)]),
        }
    }

    fn index(&mut self, string: &str) -> i64 {
        if let Some(&index) = self.index.get(string) {
            return index;
        }
        let index = self.table.len() as i64;
        self.table.push(string.to_owned());
        self.index.insert(string.to_owned(), index);
        index
    }
}

/// Which labels samples get: those that the program set, and those that tell
/// processes, threads and goroutines apart where they are told apart.
struct Labels {
    processes: bool,
    comm: i64,
    pid: i64,
    thread: i64,
    tid: i64,
    goid: i64,
    bytes: i64,
}

impl Labels {
    fn new(window: &SymbolizedWindow, strings: &mut Strings) -> Self {
        let processes = window.processes.len() > 1;
        let threads = window.samples.iter().any(|s| s.thread.is_some());
        let goroutines = window.samples.iter().any(|s| s.goid.is_some());
        let blocks = window.samples.iter().any(|s| s.block_bytes.is_some());
        let mut key = |wanted: bool, name: &str| if wanted { strings.index(name) } else { 0 };
        Labels {
            processes,
            comm: key(processes, "comm"),
            pid: key(processes, "pid"),
            thread: key(threads, "thread"),
            tid: key(threads, "tid"),
            goid: key(goroutines, "goid"),
            bytes: key(blocks, "bytes"),
        }
    }

    fn of(
        &self,
        window: &SymbolizedWindow,
        sample: &Sample,
        strings: &mut Strings,
    ) -> Vec<proto::Label> {
        let mut labels = Vec::new();
        if self.processes {
            let process = &window.processes[sample.process.0 as usize];
            labels.extend(text(self.comm, strings.index(&process.comm)));
            labels.push(number(self.pid, process.pid.into()));
        }
        if let Some(thread) = &sample.thread {
            labels.extend(text(self.thread, strings.index(&thread.name)));
            labels.push(number(self.tid, thread.tid.into()));
        }
        if let Some(goid) = sample.goid {
            labels.push(number(self.goid, goid));
        }
        if let Some(bytes) = sample.block_bytes {
            labels.push(number(self.bytes, bytes));
        }
        for (key, value) in &sample.labels {
            let key = strings.index(key);
            labels.extend(text(key, strings.index(value)));
        }
        labels
    }
}

/// A string label, or none for the empty string (index 0), which a reader
/// would take for a numeric label.
fn text(key: i64, str: i64) -> Option<proto::Label> {
    (str != 0).then_some(proto::Label {
        key,
        str,
        ..proto::Label::default()
    })
}

/// A numeric label without a unit. pprof then takes the key for the unit, which
/// it knows no scale for: it prints the bare number, and `-tagfocus=pid=42`
/// selects it.
fn number(key: i64, num: u64) -> proto::Label {
    proto::Label {
        key,
        num: clamp(num),
        ..proto::Label::default()
    }
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds since the epoch, 0 (unknown to pprof) for a clock before it.
fn nanos_since_epoch(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::super::fixture;
    use super::*;
    use crate::symbolize::Event;

    /// Encodes, decompresses and decodes.
    fn round_trip(window: &SymbolizedWindow, options: &Options) -> proto::Profile {
        let bytes = encode(window, options).unwrap();
        let mut raw = Vec::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_end(&mut raw)
            .unwrap();
        proto::Profile::decode(&raw[..]).unwrap()
    }

    fn text_at(profile: &proto::Profile, index: i64) -> &str {
        &profile.string_table[index as usize]
    }

    /// A sample's labels as `key=value`.
    fn labels(profile: &proto::Profile, sample: usize) -> Vec<String> {
        profile.sample[sample]
            .label
            .iter()
            .map(|l| match l.str {
                0 => format!("{}={}", text_at(profile, l.key), l.num),
                s => format!("{}={:?}", text_at(profile, l.key), text_at(profile, s)),
            })
            .collect()
    }

    #[test]
    fn types_period_and_times_are_those_of_gos_cpu_profile() {
        let p = round_trip(&fixture::one_process(), &Options::default());
        let types: Vec<_> = p
            .sample_type
            .iter()
            .map(|t| (text_at(&p, t.r#type), text_at(&p, t.unit)))
            .collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(p.period_type, Some(p.sample_type[1]));
        assert_eq!(p.default_sample_type, 0);
        assert_eq!(p.period, 10_101_010);
        assert_eq!(p.time_nanos, 1_800_000_000_000_000_000);
        assert_eq!(p.duration_nanos, 10_000_000_000);
        assert_eq!(p.string_table[0], "");
        let values: Vec<_> = p.sample.iter().map(|s| s.value.clone()).collect();
        assert_eq!(values[0], [70, 707_070_700]);
        assert_eq!(values[2], [1, 10_101_010]);
    }

    #[test]
    fn a_heap_is_shaped_as_gos_own() {
        for (event, shown) in [(Event::Heap, ""), (Event::Allocs, "alloc_space")] {
            let p = round_trip(&fixture::heap(event), &Options::default());
            let types: Vec<_> = p
                .sample_type
                .iter()
                .map(|t| (text_at(&p, t.r#type), text_at(&p, t.unit)))
                .collect();
            assert_eq!(
                types,
                [
                    ("alloc_objects", "count"),
                    ("alloc_space", "bytes"),
                    ("inuse_objects", "count"),
                    ("inuse_space", "bytes"),
                ]
            );
            let period = p.period_type.unwrap();
            let period = (text_at(&p, period.r#type), text_at(&p, period.unit));
            assert_eq!((period, p.period), (("space", "bytes"), 524_288));
            assert_eq!(text_at(&p, p.default_sample_type), shown);
            assert_eq!(p.duration_nanos, 0);
            assert_eq!(p.sample[0].value, [30, 1920, 20, 1280]);
            assert_eq!(labels(&p, 0), ["bytes=64", "type=\"main.node\""]);
            assert_eq!(labels(&p, 1), ["bytes=1024"]);
        }
    }

    #[test]
    fn inlined_frames_share_their_callers_location_leaf_first() {
        let p = round_trip(&fixture::one_process(), &Options::default());
        let leaf = p.sample[0].location_id[0];
        let location = p.location.iter().find(|l| l.id == leaf).unwrap();
        let lines: Vec<_> = location
            .line
            .iter()
            .map(|l| {
                let f = &p.function[l.function_id as usize - 1];
                assert_eq!(f.id, l.function_id);
                assert_eq!(f.name, f.system_name);
                (
                    text_at(&p, f.name),
                    text_at(&p, f.filename),
                    f.start_line,
                    l.line,
                )
            })
            .collect();
        assert_eq!(
            lines,
            [
                ("main.hot", "/src/hot.go", 5, 7),
                ("main.work", "/src/main.go", 10, 14)
            ]
        );
    }

    #[test]
    fn the_main_binary_is_the_first_mapping_and_ids_follow() {
        let p = round_trip(&fixture::one_process(), &Options::default());
        let files: Vec<_> = p.mapping.iter().map(|m| text_at(&p, m.filename)).collect();
        assert_eq!(files, ["/srv/app", "[kernel]", "/lib/libc.so.6"]);
        assert!(p.mapping.iter().zip(1..).all(|(m, id)| m.id == id));
        let main = &p.mapping[0];
        assert_eq!(
            (main.memory_start, main.memory_limit, main.file_offset),
            (0x40_1000, 0x80_0000, 0x1000)
        );
        assert_eq!(text_at(&p, main.build_id), "ab12");
        for (sample, file) in [(0, "/srv/app"), (1, "[kernel]")] {
            let location = &p.location[p.sample[sample].location_id[0] as usize - 1];
            let mapping = p
                .mapping
                .iter()
                .find(|m| m.id == location.mapping_id)
                .unwrap();
            assert_eq!(text_at(&p, mapping.filename), file);
        }
    }

    #[test]
    fn a_frame_without_a_mapping_is_kept() {
        let p = round_trip(&fixture::one_process(), &Options::default());
        let location = &p.location[p.sample[2].location_id[0] as usize - 1];
        assert_eq!(location.mapping_id, 0);
        assert_eq!(location.line.len(), 1);
    }

    #[test]
    fn flags_tell_what_is_known_and_forbid_a_second_guess() {
        let p = round_trip(&fixture::one_process(), &Options::default());
        let flags = |m: &proto::Mapping| {
            (
                m.has_functions,
                m.has_filenames,
                m.has_line_numbers,
                m.has_inline_frames,
            )
        };
        assert_eq!(flags(&p.mapping[0]), (true, true, true, true));
        assert_eq!(flags(&p.mapping[1]), (true, false, false, false));
        assert_eq!(flags(&p.mapping[2]), (true, false, false, false));
    }

    #[test]
    fn a_program_without_frames_of_its_own_still_names_the_profile() {
        let mut b = fixture::Builder::new();
        let app = b.process(1, "app", "/srv/app");
        let kernel = b.mapping("[kernel]", 1 << 63, 1 << 63 | 4096);
        let idle = b.location(FrameKind::Kernel, Some(kernel), &[("do_idle", "", 0, 0)]);
        b.sample(app, &[idle], 1);
        let p = round_trip(&b.build(), &Options::default());
        assert_eq!(text_at(&p, p.mapping[0].filename), "/srv/app");
        assert!(p.mapping[0].has_functions);
        assert_eq!(p.location[0].mapping_id, 2);
        assert_eq!(p.mapping[1].id, 2);
    }

    #[test]
    fn labels_appear_only_where_they_tell_samples_apart() {
        let one = round_trip(&fixture::one_process(), &Options::default());
        assert!(labels(&one, 0).is_empty());
        assert!(!one.string_table.iter().any(|s| s == "comm" || s == "tid"));

        let two = round_trip(&fixture::two_processes(), &Options::default());
        assert_eq!(labels(&two, 0), ["comm=\"api\"", "pid=7"]);
        assert_eq!(labels(&two, 1), ["comm=\"worker\"", "pid=8"]);
        assert_eq!(text_at(&two, two.mapping[0].filename), "/srv/worker");

        let window = fixture::with_threads(fixture::one_process());
        let threads = round_trip(&window, &Options::default());
        assert_eq!(labels(&threads, 1), ["thread=\"netpoll\"", "tid=1001"]);
    }

    #[test]
    fn an_empty_thread_name_gives_no_label() {
        let mut window = fixture::with_threads(fixture::one_process());
        window.samples[0].thread.as_mut().unwrap().name.clear();
        let p = round_trip(&window, &Options::default());
        assert_eq!(labels(&p, 0), ["tid=1000"]);
    }

    #[test]
    fn comments_name_goprof_and_what_was_lost() {
        let options = Options {
            notes: vec!["lost 3 samples (ring buffer full)".to_owned()],
            ..Options::default()
        };
        let p = round_trip(&fixture::one_process(), &options);
        let comments: Vec<_> = p.comment.iter().map(|&c| text_at(&p, c)).collect();
        assert!(comments[0].starts_with("goprof "), "{comments:?}");
        assert_eq!(comments[1], options.notes[0]);
    }

    #[test]
    fn values_beyond_the_formats_range_stay_at_its_end() {
        let mut window = fixture::one_process();
        window.samples[0].values = [i64::MAX; 4];
        window.period = u64::MAX;
        window.start = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        window.duration = Duration::MAX;
        let p = round_trip(&window, &Options::default());
        assert_eq!(p.sample[0].value, [i64::MAX, i64::MAX]);
        assert_eq!(p.period, i64::MAX);
        assert_eq!((p.time_nanos, p.duration_nanos), (0, i64::MAX));
    }

    #[test]
    fn the_same_window_gives_the_same_bytes() {
        let window = fixture::two_processes();
        let bytes = || encode(&window, &Options::default()).unwrap();
        assert_eq!(bytes(), bytes());
    }
}
