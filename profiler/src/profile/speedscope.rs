//! Speedscope: a window in speedscope's own JSON format, whose schema is
//! `file-format-schema.json` in the npm package `speedscope` 1.25.0. One
//! profile per process, or per thread where threads are told apart; goroutines
//! and labels have no place in it, and stacks that differ in them are one.

use std::{cmp::Reverse, collections::HashMap};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Options, frames, generator};
use crate::symbolize::{FunctionId, MappingId, Sample, SymbolizedWindow};

const SCHEMA: &str = "https://www.speedscope.app/file-format-schema.json";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct File<'w> {
    #[serde(rename = "$schema")]
    schema: &'static str,
    name: String,
    exporter: String,
    active_profile_index: usize,
    shared: Shared<'w>,
    profiles: Vec<Profile>,
}

#[derive(Serialize)]
struct Shared<'w> {
    frames: Vec<Frame<'w>>,
}

#[derive(Serialize)]
struct Frame<'w> {
    name: &'w str,
    #[serde(skip_serializing_if = "str::is_empty")]
    file: &'w str,
    #[serde(skip_serializing_if = "is_zero")]
    line: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    r#type: &'static str,
    name: String,
    unit: &'static str,
    start_value: u64,
    end_value: u64,
    /// Indices of frames, outermost first.
    samples: Vec<Vec<usize>>,
    /// In `unit`, one for each of `samples`.
    weights: Vec<u64>,
}

fn is_zero(line: &u32) -> bool {
    *line == 0
}

/// Encodes a window as speedscope JSON.
///
/// # Errors
/// Only when the JSON cannot be written.
pub(super) fn encode(window: &SymbolizedWindow, options: &Options) -> Result<Vec<u8>> {
    let value = options.value.unwrap_or(window.event.default_value());
    // The other units of the format are of time.
    let unit = match window.event.value_types()[value].unit {
        "count" => "none",
        unit => unit,
    };
    let mut frames = Frames::default();
    let mut stacks: Vec<Stacks> = Vec::new();
    let mut index_by_name: HashMap<String, usize> = HashMap::new();
    for sample in &window.samples {
        let Some(weight) = frames::weight(sample, value) else {
            continue;
        };
        let name = profile_name(window, sample);
        let index = *index_by_name.entry(name).or_insert_with_key(|name| {
            stacks.push(Stacks::new(name.clone()));
            stacks.len() - 1
        });
        let stack = frames::outermost_first(window, sample)
            .map(|frame| frames.index(window, &frame))
            .collect();
        stacks[index].add(stack, weight);
    }
    let mut profiles: Vec<Profile> = stacks
        .into_iter()
        .map(|stacks| stacks.finish(unit))
        .collect();
    // The busiest first: that is the one speedscope opens.
    profiles.sort_by_key(|p| Reverse(p.end_value));
    if profiles.is_empty() {
        // speedscope refuses a file without a profile.
        profiles.push(Stacks::new("no samples".to_owned()).finish(unit));
    }
    let file = File {
        schema: SCHEMA,
        name: format!("{} {}", profiles[0].name, window.event.name()),
        exporter: generator(),
        active_profile_index: 0,
        shared: Shared {
            frames: frames.table,
        },
        profiles,
    };
    serde_json::to_vec(&file).context("write the speedscope JSON")
}

/// The stacks of one profile while they are added up.
struct Stacks {
    name: String,
    /// Weights by stack, with the order of first sight.
    weights: HashMap<Vec<usize>, (usize, u64)>,
}

impl Stacks {
    fn new(name: String) -> Self {
        Self {
            name,
            weights: HashMap::new(),
        }
    }

    fn add(&mut self, stack: Vec<usize>, weight: u64) {
        let next = self.weights.len();
        let (_, sum) = self.weights.entry(stack).or_insert((next, 0));
        *sum = sum.saturating_add(weight);
    }

    /// The heaviest first.
    fn finish(self, unit: &'static str) -> Profile {
        let mut stacks: Vec<_> = self.weights.into_iter().collect();
        stacks.sort_by_key(|(_, (order, weight))| (Reverse(*weight), *order));
        let weights: Vec<u64> = stacks.iter().map(|(_, (_, weight))| *weight).collect();
        Profile {
            r#type: "sampled",
            name: self.name,
            unit,
            start_value: 0,
            end_value: weights.iter().fold(0, |sum, w| sum.saturating_add(*w)),
            samples: stacks.into_iter().map(|(stack, _)| stack).collect(),
            weights,
        }
    }
}

fn profile_name(window: &SymbolizedWindow, sample: &Sample) -> String {
    let process = frames::process_label(window, sample);
    match frames::thread_label(sample) {
        Some(thread) => format!("{process} / {thread}"),
        None => process,
    }
}

/// The shared frame table: a frame is a function, with the line it begins at,
/// and where it has no source file, with the mapping it lies in.
#[derive(Default)]
struct Frames<'w> {
    table: Vec<Frame<'w>>,
    index: HashMap<(FunctionId, Option<MappingId>), usize>,
}

impl<'w> Frames<'w> {
    fn index(&mut self, window: &'w SymbolizedWindow, frame: &frames::Frame<'w>) -> usize {
        let function = &window.functions[frame.function.0 as usize];
        let mapping = frames::mapping_as_source(window, frame);
        *self
            .index
            .entry((frame.function, mapping))
            .or_insert_with(|| {
                let file = mapping.map_or(&function.file, |m| &window.mappings[m.0 as usize].file);
                self.table.push(Frame {
                    name: &function.name,
                    file,
                    line: function.start_line,
                });
                self.table.len() - 1
            })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::symbolize::Event;
    use serde_json::{Value, json};

    fn encoded(window: &SymbolizedWindow) -> Value {
        let bytes = encode(window, &Options::default()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_window_is_a_sampled_profile_in_nanoseconds() {
        let file = encoded(&fixture::one_process());
        assert_eq!(file["$schema"], SCHEMA);
        assert_eq!(file["name"], "app cpu");
        assert_eq!(
            file["shared"]["frames"],
            json!([
                {"name": "main.main", "file": "/src/main.go", "line": 30},
                {"name": "main.work", "file": "/src/main.go", "line": 10},
                {"name": "main.hot", "file": "/src/hot.go", "line": 5},
                {"name": "write", "file": "/lib/libc.so.6"},
                {"name": "vfs_write", "file": "[kernel]"},
                {"name": "[no mapping]"},
            ])
        );
        assert_eq!(
            file["profiles"],
            json!([{
                "type": "sampled",
                "name": "app",
                "unit": "nanoseconds",
                "startValue": 0,
                "endValue": 919_191_910,
                "samples": [[0, 1, 2], [0, 3, 4], [0, 5]],
                "weights": [707_070_700, 202_020_200, 10_101_010],
            }])
        );
    }

    #[test]
    fn a_heap_is_weighed_in_bytes_and_counts_have_no_unit() {
        let window = fixture::heap(Event::Allocs);
        let file = encoded(&window);
        assert_eq!(file["profiles"][0]["unit"], "bytes");
        assert_eq!(file["profiles"][0]["weights"], json!([8192, 1920]));
        let options = Options {
            value: Some(2),
            ..Options::default()
        };
        let file = encode(&window, &options).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        assert_eq!(file["profiles"][0]["unit"], "none");
        assert_eq!(file["profiles"][0]["weights"], json!([20]));
    }

    #[test]
    fn each_process_is_a_profile_the_busiest_first() {
        let file = encoded(&fixture::two_processes());
        let names: Vec<_> = (0..2)
            .map(|i| file["profiles"][i]["name"].clone())
            .collect();
        assert_eq!(names, ["worker-8", "api-7"]);
        assert_eq!(file["activeProfileIndex"], 0);
    }

    #[test]
    fn each_thread_is_a_profile_where_threads_are_told_apart() {
        let file = encoded(&fixture::with_threads(fixture::one_process()));
        assert_eq!(file["profiles"].as_array().unwrap().len(), 3);
        assert_eq!(file["profiles"][0]["name"], "app / netpoll-1000");
    }

    #[test]
    fn an_empty_window_still_has_a_profile() {
        let file = encoded(&fixture::Builder::new().build());
        assert_eq!(file["profiles"].as_array().unwrap().len(), 1);
    }
}
