//! The rule about modules: a stage may use what lies before it and beside it,
//! never what lies after it. It reads `crate::` paths, so it knows nothing of
//! what the compiler resolves through other names.

use super::Finding;
use super::rules::without_tests;

/// Where the profiler's modules lie.
const SOURCES: &str = "profiler/src/";

/// The stages, in the order that a sample passes them.
const STAGES: [&str; 8] = [
    "probe",
    "ringbuf",
    "decode",
    "unwind",
    "aggregate",
    "symbolize",
    "profile",
    "sink",
];

/// What any stage may use.
const BESIDE: [&str; 8] = [
    "gobinary", "gomemory", "identity", "image", "memory", "process", "metrics", "doctor",
];

/// What puts the stages together; nothing below may use it.
const ABOVE: [&str; 5] = ["lib", "main", "cli", "session", "agent"];

/// Checks the imports of the Rust file at `path`.
pub(super) fn check(path: &str, text: &str) -> Vec<Finding> {
    let Some(inside) = path.strip_prefix(SOURCES) else {
        return Vec::new();
    };
    let module = inside.split(['/', '.']).next().unwrap_or(inside);
    let known = [&STAGES[..], &BESIDE, &ABOVE];
    if !known.iter().any(|modules| modules.contains(&module)) {
        return vec![Finding::new(
            0,
            format!(
                "`{module}` has no place in the pipeline: give it one in xtask/src/tidy/pipeline.rs"
            ),
        )];
    }
    let mut findings = Vec::new();
    for (line, used) in uses(text) {
        if let Some(message) = objection(module, &used) {
            findings.push(Finding::new(line, message));
        }
    }
    findings
}

/// Why `module` may not use `used`, if it may not.
fn objection(module: &str, used: &str) -> Option<String> {
    if used == "aya_ebpf" {
        return Some("aya-ebpf is for the kernel side: share through profiler-ebpf".to_owned());
    }
    if ABOVE.contains(&module) {
        return None;
    }
    if ABOVE.contains(&used) {
        return Some(format!(
            "`{module}` uses `{used}`, which stands above it: turn the call around"
        ));
    }
    let place = |name: &str| STAGES.iter().position(|stage| *stage == name);
    if place(used)? > place(module)? {
        return Some(format!(
            "`{module}` uses `{used}`, a later stage: move what both need to the earlier one"
        ));
    }
    None
}

/// The modules that `crate::` paths lead to, with their lines; also `aya_ebpf`.
fn uses(text: &str) -> Vec<(usize, String)> {
    let mut uses = Vec::new();
    // Some while a `crate::{` is open: how many braces deep.
    let mut depth: Option<usize> = None;
    for (number, line) in without_tests(text) {
        let code = line.split_once("//").map_or(line, |(code, _)| code);
        if code.contains("aya_ebpf::") {
            uses.push((number, "aya_ebpf".to_owned()));
        }
        let mut rest = code;
        loop {
            if let Some(open) = depth {
                let closed =
                    names_in_group(rest, open, |name| uses.push((number, name.to_owned())));
                match closed {
                    Ok(after) => (rest, depth) = (after, None),
                    Err(still_open) => {
                        depth = Some(still_open);
                        break;
                    }
                }
            }
            let Some((_, after)) = rest.split_once("crate::") else {
                break;
            };
            if let Some(group) = after.strip_prefix('{') {
                (rest, depth) = (group, Some(1));
                continue;
            }
            uses.push((number, leading_name(after).to_owned()));
            rest = after;
        }
    }
    uses
}

/// Calls `found` with each name directly inside of a `crate::{` group. Returns
/// what follows the group, or how many braces are open at the end.
fn names_in_group<'a>(
    text: &'a str,
    mut depth: usize,
    mut found: impl FnMut(&'a str),
) -> Result<&'a str, usize> {
    // A name of the group stands at its start or after a comma; in a line of its
    // own it stands at the start of that line.
    let mut expected = depth == 1;
    for (index, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => return Ok(&text[index + 1..]),
            '}' => depth -= 1,
            ',' => expected = depth == 1,
            _ if expected && !character.is_whitespace() => {
                found(leading_name(&text[index..]));
                expected = false;
            }
            _ => {}
        }
    }
    Err(depth)
}

fn leading_name(text: &str) -> &str {
    let end = text
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        check(path, text)
            .iter()
            .map(|finding| finding.line)
            .collect()
    }

    #[test]
    fn a_stage_uses_earlier_stages_and_those_beside() {
        let text =
            "use crate::decode::Event;\nuse crate::process::Pid;\nuse crate::aggregate::X;\n";
        assert_eq!(lines("profiler/src/aggregate.rs", text), [0; 0]);
        assert_eq!(
            lines("profiler/src/session.rs", "use crate::sink::Sink;\n"),
            [0; 0]
        );
        assert_eq!(
            lines("xtask/src/main.rs", "use crate::sink::Sink;\n"),
            [0; 0]
        );
    }

    #[test]
    fn a_stage_uses_no_later_one() {
        let text = "use std::fs;\nuse crate::symbolize::Reason;\n";
        assert_eq!(lines("profiler/src/decode.rs", text), [2]);
        assert_eq!(
            lines("profiler/src/probe/cpu.rs", "fn f() { crate::sink::g() }\n"),
            [1]
        );
    }

    #[test]
    fn nothing_below_uses_what_stands_above() {
        assert_eq!(
            lines("profiler/src/image.rs", "use crate::session::Session;\n"),
            [1]
        );
        assert_eq!(
            lines("profiler/src/sink/mod.rs", "use crate::cli::Config;\n"),
            [1]
        );
    }

    #[test]
    fn groups_are_read_over_several_lines() {
        let text = "use crate::{\n    decode::{Event, sink},\n    profile::Profile,\n};\nuse crate::{image, sink};\n";
        assert_eq!(lines("profiler/src/aggregate.rs", text), [3, 5]);
        let nested =
            "use crate::{decode::{\n    profile,\n    Event}, sink::Sink}; use crate::profile;\n";
        assert_eq!(lines("profiler/src/aggregate.rs", nested), [3, 3]);
    }

    #[test]
    fn comments_and_tests_may_name_anything() {
        let text = "// crate::sink\n#[cfg(test)]\nmod tests {\n    use crate::sink;\n}\n";
        assert_eq!(lines("profiler/src/decode.rs", text), [0; 0]);
    }

    #[test]
    fn a_new_module_is_given_a_place() {
        assert_eq!(lines("profiler/src/novelty.rs", ""), [0]);
    }

    #[test]
    fn userspace_does_not_use_aya_ebpf() {
        assert_eq!(
            lines(
                "profiler/src/probe/mod.rs",
                "use aya_ebpf::maps::RingBuf;\n"
            ),
            [1]
        );
    }
}
