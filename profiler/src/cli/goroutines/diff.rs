//! `goprof goroutines --diff`: what changed between two lists that were saved: which
//! stacks have more goroutines, which fewer, which are new or gone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    io::{self, Write},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::saved::{Saved, SavedFrame, SavedGroup};
use crate::cli::printable;

/// Places that start goroutines which are shown of a stack.
const MAX_CREATORS: usize = 3;

/// What changed.
#[derive(Debug, Serialize)]
pub(super) struct Diff<'a> {
    pid: u32,
    comm: &'a str,
    go_version: &'a str,
    before: Side,
    after: Side,
    /// The largest change first.
    changes: Vec<Change<'a>>,
    unchanged_groups: usize,
    notes: Vec<String>,
}

/// One of the lists.
#[derive(Debug, Serialize)]
struct Side {
    time_unix_ns: u64,
    goroutines: usize,
}

/// A stack of which there are more goroutines than before, or fewer.
#[derive(Debug, Serialize)]
struct Change<'a> {
    /// `new`, `grown`, `shrunk` or `gone`.
    change: &'static str,
    before: usize,
    after: usize,
    /// Of those after, how many began since; None of another process.
    #[serde(skip_serializing_if = "Option::is_none")]
    began: Option<usize>,
    /// Of those before, how many have ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended: Option<usize>,
    /// What they do or wait for, and how many; of what is gone, did.
    states: BTreeMap<&'a str, usize>,
    created_by: Vec<Creator<'a>>,
    labels: &'a BTreeMap<String, String>,
    stack: &'a [SavedFrame],
}

/// Where goroutines were started.
#[derive(Debug, Serialize)]
struct Creator<'a> {
    #[serde(flatten)]
    at: &'a SavedFrame,
    count: usize,
}

/// The groups of a stack and labels on both sides: a list has one, but of functions
/// whose addresses alone differ two.
type Sides<'a> = [Vec<&'a SavedGroup>; 2];

impl<'a> Diff<'a> {
    /// Compares two lists.
    pub(super) fn of(before: &'a Saved, after: &'a Saved) -> Self {
        let mut stacks: BTreeMap<_, Sides<'a>> = BTreeMap::new();
        for (side, list) in [before, after].into_iter().enumerate() {
            for group in &list.groups {
                let sides = stacks.entry((&group.stack, &group.labels)).or_default();
                sides[side].push(group);
            }
        }
        let is_same_process = (before.pid, &before.exe) == (after.pid, &after.exe);
        let ids = |list: &Saved| -> HashSet<u64> { list.goroutines().map(|g| g.id).collect() };
        let ids = is_same_process.then(|| [ids(before), ids(after)]);
        let groups = stacks.len();
        let changes = stacks
            .values()
            .filter_map(|sides| change(sides, ids.as_ref()));
        let mut changes: Vec<Change<'a>> = changes.collect();
        changes.sort_by_key(|change| Reverse(change.before.abs_diff(change.after)));
        Self {
            pid: after.pid,
            comm: &after.comm,
            go_version: &after.go_version,
            before: Side::of(before),
            after: Side::of(after),
            unchanged_groups: groups - changes.len(),
            changes,
            notes: notes(before, after, is_same_process),
        }
    }
}

impl Side {
    fn of(list: &Saved) -> Self {
        let since = list.time().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            time_unix_ns: since.map_or(0, |since| since.as_nanos() as u64),
            goroutines: list.goroutines().count(),
        }
    }
}

/// What a reader must know, one sentence each.
fn notes(before: &Saved, after: &Saved, is_same_process: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if !is_same_process {
        notes.push(format!(
            "they are of two processes, {} ({}) and {} ({}): which goroutines are the same is not known",
            before.pid, before.comm, after.pid, after.comm
        ));
    }
    if after.time() < before.time() {
        notes.push("the second was taken before the first".to_owned());
    }
    for (which, list) in [("first", before), ("second", after)] {
        let said = list.notes.iter();
        notes.extend(said.map(|note| format!("of the {which}: {note}")));
    }
    notes
}

/// How a stack changed; None where as many are there.
fn change<'a>(sides: &Sides<'a>, ids: Option<&[HashSet<u64>; 2]>) -> Option<Change<'a>> {
    let goroutines = |side: usize| sides[side].iter().flat_map(|group| &group.goroutines);
    let [before, after] = [0, 1].map(|side| goroutines(side).count());
    let change = match (before, after) {
        (0, 0) => return None,
        (0, _) => "new",
        (_, 0) => "gone",
        _ if after > before => "grown",
        _ if after < before => "shrunk",
        _ => return None,
    };
    let shown = usize::from(after > 0);
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    let mut creators: BTreeMap<&SavedFrame, usize> = BTreeMap::new();
    for goroutine in goroutines(shown) {
        *states.entry(goroutine.does()).or_default() += 1;
        if let Some(creator) = &goroutine.created_by {
            *creators.entry(creator).or_default() += 1;
        }
    }
    let creators = creators
        .into_iter()
        .map(|(at, count)| Creator { at, count });
    let mut created_by: Vec<Creator<'a>> = creators.collect();
    created_by.sort_by_key(|creator| Reverse(creator.count));
    let not_among = |side: usize, other: &HashSet<u64>| {
        goroutines(side).filter(|g| !other.contains(&g.id)).count()
    };
    let group = sides[shown].first()?;
    Some(Change {
        change,
        before,
        after,
        began: ids.map(|[before, _]| not_among(1, before)),
        ended: ids.map(|[_, after]| not_among(0, after)),
        states,
        created_by,
        labels: &group.labels,
        stack: &group.stack,
    })
}

/// Writes it for programs.
pub(super) fn write_json(diff: &Diff<'_>, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, diff)?;
    writeln!(out)
}

/// Writes it for people.
pub(super) fn write_text(diff: &Diff<'_>, out: &mut impl Write) -> io::Result<()> {
    let (before, after) = (&diff.before, &diff.after);
    let later_ns = after.time_unix_ns.saturating_sub(before.time_unix_ns);
    let later = Duration::from_millis(later_ns / 1_000_000);
    writeln!(
        out,
        "process {} ({}), {}: {} goroutines, and {} later {}",
        diff.pid,
        printable(diff.comm),
        printable(diff.go_version),
        before.goroutines,
        humantime::format_duration(later),
        after.goroutines,
    )?;
    let of = |change: &str| diff.changes.iter().filter(|c| c.change == change).count();
    writeln!(
        out,
        "stacks: {} new, {} grown, {} shrunk, {} gone, {} with as many as before",
        of("new"),
        of("grown"),
        of("shrunk"),
        of("gone"),
        diff.unchanged_groups
    )?;
    for note in &diff.notes {
        writeln!(out, "  {}", printable(note))?;
    }
    for change in &diff.changes {
        writeln!(out)?;
        write_change(change, out)?;
    }
    Ok(())
}

fn write_change(change: &Change<'_>, out: &mut impl Write) -> io::Result<()> {
    let (before, after) = (change.before, change.after);
    let sign = if after > before { '+' } else { '-' };
    let mut line = format!(
        "{sign}{} {}: {before} -> {after}",
        before.abs_diff(after),
        change.change
    );
    for (count, what) in [(change.began, "began"), (change.ended, "ended")] {
        if let Some(count) = count.filter(|count| *count > 0) {
            line += &format!(", {count} {what}");
        }
    }
    writeln!(out, "{line}")?;
    let states = change.states.iter();
    let states: Vec<String> = states.map(|(state, n)| format!("{n} {state}")).collect();
    writeln!(out, "  {}", printable(&states.join(", ")))?;
    for Creator { at, count } in change.created_by.iter().take(MAX_CREATORS) {
        let line = format!(
            "  {count} created by {} at {}:{}",
            at.function, at.file, at.line
        );
        writeln!(out, "{}", printable(&line))?;
    }
    if let Some(more) = change
        .created_by
        .len()
        .checked_sub(MAX_CREATORS)
        .filter(|n| *n > 0)
    {
        writeln!(out, "  and others at {more} places more")?;
    }
    if !change.labels.is_empty() {
        let labels = change.labels.iter();
        let labels: Vec<String> = labels.map(|(k, v)| format!("{k}={v}")).collect();
        writeln!(out, "  labels {}", printable(&labels.join(", ")))?;
    }
    for frame in change.stack {
        let inlined = if frame.inlined { " (inlined)" } else { "" };
        let place = match (frame.file.as_str(), frame.line) {
            ("", _) => String::new(),
            (file, line) => format!("  {}:{line}", printable(file)),
        };
        writeln!(out, "    {}{inlined}{place}", printable(&frame.function))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A list of stacks by their function, each with goroutines of these ids.
    fn saved(pid: u32, stacks: &[(&str, &[u64])]) -> Saved {
        let group = |(function, ids): &(&str, &[u64])| {
            let goroutines = ids
                .iter()
                .map(|id| format!(r#"{{"id":{id},"state":"waiting","wait_reason":"select"}}"#));
            let goroutines: Vec<String> = goroutines.collect();
            let goroutines = goroutines.join(",");
            format!(
                r#"{{"stack":[{{"function":"{function}","file":"","line":1}}],
                     "goroutines":[{goroutines}]}}"#
            )
        };
        let groups: Vec<String> = stacks.iter().map(group).collect();
        let groups = groups.join(",");
        serde_json::from_str(&format!(
            r#"{{"pid":{pid},"comm":"a","exe":"/a","go_version":"go1.27","time_unix_ns":1,
                 "groups":[{groups}]}}"#
        ))
        .unwrap()
    }

    fn changes(diff: &Diff<'_>) -> Vec<(&'static str, String, usize, usize)> {
        let changes = diff.changes.iter();
        let name = |change: &Change<'_>| change.stack[0].function.clone();
        changes
            .map(|c| (c.change, name(c), c.before, c.after))
            .collect()
    }

    #[test]
    fn stacks_are_new_grown_shrunk_or_gone() {
        let before = saved(
            1,
            &[("a", &[1]), ("b", &[2, 3, 4]), ("c", &[5]), ("d", &[6, 7])],
        );
        let after = saved(
            1,
            &[
                ("a", &[1]),
                ("b", &[2]),
                ("d", &[7, 8, 9, 10, 3]),
                ("e", &[11]),
            ],
        );
        let diff = Diff::of(&before, &after);
        assert_eq!(
            changes(&diff),
            [
                ("grown", "d".to_owned(), 2, 5),
                ("shrunk", "b".to_owned(), 3, 1),
                ("gone", "c".to_owned(), 1, 0),
                ("new", "e".to_owned(), 0, 1),
            ]
        );
        assert_eq!(diff.unchanged_groups, 1);
        // One of them came from another stack, one ended.
        let grown = &diff.changes[0];
        assert_eq!((grown.began, grown.ended), (Some(3), Some(1)));
        assert_eq!(grown.states, BTreeMap::from([("select", 5)]));
    }

    #[test]
    fn ids_of_two_processes_say_nothing() {
        let (before, after) = (saved(1, &[("a", &[1])]), saved(2, &[("a", &[1, 2])]));
        let diff = Diff::of(&before, &after);
        assert_eq!((diff.changes[0].began, diff.changes[0].ended), (None, None));
        assert!(diff.notes[0].contains("two processes"), "{:?}", diff.notes);
        let mut text = Vec::new();
        write_text(&diff, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.contains("+1 grown: 1 -> 2\n  2 select\n    a\n"),
            "{text}"
        );
    }
}
