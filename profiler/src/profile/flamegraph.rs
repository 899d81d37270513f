//! Flame graph: a window as one HTML file that needs no network. The call tree
//! is embedded as JSON; the page's script (in `flamegraph/`) does the rest.

use std::collections::HashMap;
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::Serialize;

use super::calltree::{self, CallTree, Key};
use super::{Options, frames, generator};
use crate::symbolize::{FrameKind, SymbolizedWindow};

const PAGE: &str = include_str!("flamegraph/page.html");
const STYLE: &str = include_str!("flamegraph/page.css");
const SCRIPTS: [&str; 3] = [
    include_str!("flamegraph/tree.js"),
    include_str!("flamegraph/canvas.js"),
    include_str!("flamegraph/page.js"),
];

/// What the page is told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    generator: String,
    event: &'static str,
    subject: &'a str,
    notes: &'a [String],
    /// Milliseconds since the epoch, as JavaScript's `Date` takes them.
    start_ms: u64,
    duration_ns: u64,
    /// What a sample stands for, where nodes count samples; else 0.
    period_ns: u64,
    /// What nodes count, and its unit.
    value: &'static str,
    unit: &'static str,
    strings: Vec<&'a str>,
    /// Per frame: name and file (indices of strings), start line, kind,
    /// whether inlined. The kinds are `KINDS` of tree.js.
    frames: Vec<[u32; 5]>,
    /// Per node in preorder: frame, depth, own weight, line.
    nodes: Vec<[u64; 4]>,
}

/// Encodes a window as a flame graph.
///
/// # Errors
/// Only when the JSON cannot be written.
pub(super) fn encode(window: &SymbolizedWindow, options: &Options) -> Result<Vec<u8>> {
    let value = frames::counted(window, options);
    let tree = calltree::build(window, value);
    let data = data(window, options, &tree, value);
    let json = serde_json::to_string(&data).context("write the flame graph's JSON")?;
    let title = match options.subject.as_str() {
        "" => format!("{} flame graph", window.event.name()),
        subject => format!("{subject} - {} flame graph", window.event.name()),
    };
    let script = SCRIPTS.concat();
    let page = fill(
        PAGE,
        &[
            ("title", &escape_html(&title)),
            ("style", STYLE),
            ("data", &escape_script(&json)),
            ("script", &script),
        ],
    );
    Ok(page.into_bytes())
}

fn data<'a>(
    window: &'a SymbolizedWindow,
    options: &'a Options,
    tree: &'a CallTree,
    value: usize,
) -> Data<'a> {
    let kind = window.event.value_types()[value];
    let mut strings = Strings::default();
    let frames = tree
        .keys
        .iter()
        .map(|key| frame(window, key, &mut strings))
        .collect();
    let nodes = tree
        .nodes
        .iter()
        .map(|n| {
            let (key, depth, line) = (n.key.into(), n.depth.into(), n.line.into());
            [key, depth, n.self_weight, line]
        })
        .collect();
    Data {
        generator: generator(),
        event: window.event.name(),
        subject: &options.subject,
        notes: &options.notes,
        start_ms: window
            .start
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| d.as_millis() as u64),
        duration_ns: u64::try_from(window.duration.as_nanos()).unwrap_or(u64::MAX),
        period_ns: if window.event.is_periodic() && value == 0 {
            window.period
        } else {
            0
        },
        value: kind.name,
        unit: kind.unit,
        strings: strings.table,
        frames,
        nodes,
    }
}

fn frame<'a>(window: &'a SymbolizedWindow, key: &'a Key, strings: &mut Strings<'a>) -> [u32; 5] {
    match key {
        Key::Group(name) => [strings.index(name), strings.index(""), 0, 0, 0],
        Key::Frame {
            function,
            mapping,
            kind,
            inlined,
            named,
        } => {
            let function = &window.functions[function.0 as usize];
            let file = mapping.map_or(&function.file, |m| &window.mappings[m.0 as usize].file);
            let kind = match (named, kind) {
                (false, _) => 4,
                (true, FrameKind::Go) => 1,
                (true, FrameKind::Native) => 2,
                (true, FrameKind::Kernel) => 3,
            };
            [
                strings.index(&function.name),
                strings.index(file),
                function.start_line,
                kind,
                u32::from(*inlined),
            ]
        }
    }
}

#[derive(Default)]
struct Strings<'a> {
    table: Vec<&'a str>,
    index: HashMap<&'a str, u32>,
}

impl<'a> Strings<'a> {
    fn index(&mut self, string: &'a str) -> u32 {
        let next = self.table.len() as u32;
        *self.index.entry(string).or_insert_with(|| {
            self.table.push(string);
            next
        })
    }
}

/// Replaces each `{{name}}` of the template by its value, once: what a value
/// holds is never looked at again.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut parts = template.split("{{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
        let value = values.iter().find(|(n, _)| *n == name);
        out.push_str(value.map_or("", |(_, v)| v));
        out.push_str(rest);
    }
    out
}

/// JSON that cannot end the script element it stands in: a `<` occurs only in
/// strings, where JSON has an escape for it.
fn escape_script(json: &str) -> String {
    json.replace('<', "\\u003c")
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::symbolize::Event;
    use serde_json::{Value, json};

    fn page(window: &SymbolizedWindow, options: &Options) -> String {
        String::from_utf8(encode(window, options).unwrap()).unwrap()
    }

    /// The embedded JSON, found as a browser finds it: up to the first end tag.
    fn embedded(page: &str) -> Value {
        let (_, rest) = page
            .split_once("<script id=\"profile\" type=\"application/json\">")
            .unwrap();
        let (json, _) = rest.split_once("</script>").unwrap();
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_tree_and_what_was_recorded_are_embedded() {
        let options = Options {
            subject: "app --flag".to_owned(),
            notes: vec!["lost 3 samples (ring buffer full)".to_owned()],
            ..Options::default()
        };
        let page = page(&fixture::one_process(), &options);
        assert!(page.contains("<title>app --flag - cpu flame graph</title>"));
        let data = embedded(&page);
        assert_eq!(data["subject"], "app --flag");
        assert_eq!(data["notes"], json!(["lost 3 samples (ring buffer full)"]));
        assert_eq!(data["startMs"], 1_800_000_000_000_u64);
        assert_eq!(data["durationNs"], 10_000_000_000_u64);
        assert_eq!(data["periodNs"], 10_101_010);
        assert_eq!(
            (&data["value"], &data["unit"]),
            (&json!("samples"), &json!("count"))
        );
        let nodes = data["nodes"].as_array().unwrap();
        let described: Vec<_> = nodes
            .iter()
            .map(|node| {
                let frame = &data["frames"][node[0].as_u64().unwrap() as usize];
                let string = |i: usize| &data["strings"][frame[i].as_u64().unwrap() as usize];
                json!([
                    string(0),
                    string(1),
                    frame[2],
                    frame[3],
                    frame[4],
                    node[1],
                    node[2],
                    node[3]
                ])
            })
            .collect();
        assert_eq!(
            Value::from(described),
            json!([
                ["app", "", 0, 0, 0, 0, 0, 0],
                ["main.main", "/src/main.go", 30, 1, 0, 1, 0, 33],
                ["main.work", "/src/main.go", 10, 1, 0, 2, 0, 14],
                ["main.hot", "/src/hot.go", 5, 1, 1, 3, 70, 7],
                ["write", "/lib/libc.so.6", 0, 2, 0, 2, 0, 0],
                ["vfs_write", "[kernel]", 0, 3, 0, 3, 20, 0],
                ["[no mapping]", "", 0, 4, 0, 2, 1, 0],
            ])
        );
    }

    #[test]
    fn a_heap_shows_bytes() {
        let page = page(&fixture::heap(Event::Heap), &Options::default());
        assert!(page.contains("<title>heap flame graph</title>"));
        let data = embedded(&page);
        assert_eq!(data["periodNs"], 0);
        assert_eq!(
            (&data["value"], &data["unit"]),
            (&json!("inuse_space"), &json!("bytes"))
        );
        let nodes = data["nodes"].as_array().unwrap();
        let own: Vec<_> = nodes.iter().map(|node| node[2].as_u64().unwrap()).collect();
        assert_eq!(own, [0, 0, 1280]);
    }

    #[test]
    fn nothing_is_loaded_from_anywhere() {
        let page = page(&fixture::one_process(), &Options::default());
        for word in ["http:", "https:", "//cdn", " src=", "@import", "url(", "{{"] {
            assert!(!page.contains(word), "{word}");
        }
        assert!(page.contains("default-src 'none'"));
    }

    #[test]
    fn a_hostile_name_stays_data() {
        let hostile = "</script><script>alert(1)</script><!-- {{script}} &amp; \u{2028}";
        let mut window = fixture::one_process();
        for function in &mut window.functions {
            function.name = hostile.to_owned();
            function.file = hostile.to_owned();
        }
        window.processes[0].comm = hostile.to_owned();
        let options = Options {
            subject: hostile.to_owned(),
            notes: vec![hostile.to_owned()],
            ..Options::default()
        };
        let clean = page(&fixture::one_process(), &Options::default());
        let page = page(&window, &options);
        for tag in ["<script", "</script", "<!--"] {
            let count = |page: &str| page.matches(tag).count();
            assert_eq!(count(&page), count(&clean), "{tag}");
        }
        let data = embedded(&page);
        assert_eq!(data["subject"], hostile);
        assert_eq!(data["notes"][0], hostile);
        assert_eq!(data["strings"][0], hostile);
    }
}
