//! What leaks, for people and for programs.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::SystemTime,
};

use serde::Serialize;

use super::Seen;
use crate::{
    cli::{
        goroutines::{go_version, target::Target},
        printable,
    },
    session::{
        goroutines::{Groups, NamedFrame},
        leaks::{Kind, Leak},
    },
    symbolize::Filter,
};

/// Ids of goroutines that are given of a leak.
const MAX_IDS: usize = 5;

/// All there is to say, as programs get it.
#[derive(Serialize)]
pub(super) struct Report {
    pid: u32,
    comm: String,
    exe: String,
    go_version: String,
    snapshots: usize,
    span_ns: u64,
    leaks: Vec<LeakJson>,
    /// What is open more and more, how much at each snapshot.
    open_growing: BTreeMap<String, Vec<u32>>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct LeakJson {
    kind: &'static str,
    /// How many there were in each snapshot.
    counts: Vec<u32>,
    new: u32,
    new_per_second: f64,
    wait_reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<Frame>,
    oldest: Vec<u64>,
    stack: Vec<Frame>,
}

#[derive(Serialize)]
struct Frame {
    function: String,
    file: String,
    line: u32,
    inlined: bool,
}

impl From<NamedFrame<'_>> for Frame {
    fn from(frame: NamedFrame<'_>) -> Self {
        Self {
            function: frame.function.to_owned(),
            file: frame.file.to_owned(),
            line: frame.line,
            inlined: frame.is_inlined,
        }
    }
}

impl Report {
    pub(super) fn new(target: &Target, seen: &Seen, leaks: Vec<Leak>, filter: &Filter) -> Self {
        let process = target.process();
        let groups = leaks.iter().map(|leak| leak.group.clone()).collect();
        let now = SystemTime::now();
        let named = seen
            .last
            .name(groups, filter, now, (target.index, &target.table));
        // The filter may have dropped some; the others are in their order.
        let mut kept = named.groups.iter().enumerate().peekable();
        let mut shown = Vec::new();
        for leak in &leaks {
            if let Some((index, _)) = kept.next_if(|(_, group)| **group == leak.group) {
                shown.push(describe(leak, seen, (index, &named)));
            }
        }
        let open = seen.open_that_grows().into_iter();
        Self {
            pid: process.pid,
            comm: process.comm.clone(),
            exe: process.exe.clone(),
            go_version: go_version(process),
            snapshots: seen.watch.snapshots(),
            span_ns: seen.span.as_nanos() as u64,
            leaks: shown,
            open_growing: open
                .map(|(kind, counts)| (kind.to_owned(), counts))
                .collect(),
            notes: seen.notes(),
        }
    }

    pub(super) fn has_leaks(&self) -> bool {
        !self.leaks.is_empty()
    }

    pub(super) fn write_json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)
    }

    pub(super) fn write_text(&self, out: &mut impl Write) -> io::Result<()> {
        let found = match self.leaks.len() {
            0 => "no leak".to_owned(),
            1 => "1 leak".to_owned(),
            count => format!("{count} leaks"),
        };
        writeln!(
            out,
            "process {} ({}), {}: {found} in {} snapshots over {:.1} s",
            self.pid,
            printable(&self.comm),
            printable(&self.go_version),
            self.snapshots,
            self.span_ns as f64 / 1e9
        )?;
        for note in &self.notes {
            writeln!(out, "  {}", printable(note))?;
        }
        if self.has_leaks() {
            for (kind, counts) in &self.open_growing {
                let counts = series(counts);
                writeln!(out, "  open meanwhile, {}: {counts}", printable(kind))?;
            }
        }
        self.leaks.iter().try_for_each(|leak| leak.write(out))
    }
}

impl LeakJson {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let waits = printable(&self.wait_reason);
        writeln!(
            out,
            "\n{}: {} goroutines, {:.2} new a second: {waits}",
            self.kind,
            series(&self.counts),
            self.new_per_second
        )?;
        if let Some(by) = &self.created_by {
            let line = format!("created by {} at {}:{}", by.function, by.file, by.line);
            writeln!(out, "  {}", printable(&line))?;
        }
        let ids: Vec<String> = self.oldest.iter().map(u64::to_string).collect();
        writeln!(out, "  the oldest: {}", ids.join(", "))?;
        for frame in &self.stack {
            let inlined = if frame.inlined { " (inlined)" } else { "" };
            let line = format!("{}{inlined}  {}:{}", frame.function, frame.file, frame.line);
            writeln!(out, "    {}", printable(&line))?;
        }
        Ok(())
    }
}

fn describe(leak: &Leak, seen: &Seen, (index, named): (usize, &Groups)) -> LeakJson {
    let first = seen.last.first(&leak.group);
    let reason = first.map_or("", |first| match seen.last.reason(first) {
        "" => first.status.name(),
        reason => reason,
    });
    let members = seen.last.members(&leak.group);
    LeakJson {
        kind: match leak.kind {
            Kind::Grows => "grows",
            Kind::Ages => "ages",
        },
        counts: leak.counts.clone(),
        new: leak.newcomers(),
        new_per_second: f64::from(leak.newcomers()) / seen.span.as_secs_f64().max(1e-9),
        wait_reason: reason.to_owned(),
        created_by: first
            .and_then(|first| named.creator(first))
            .map(Frame::from),
        oldest: members.map(|member| member.goid).take(MAX_IDS).collect(),
        stack: named.frames(index).map(Frame::from).collect(),
    }
}

/// Counts, one for each snapshot.
fn series(counts: &[u32]) -> String {
    let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
    counts.join(" > ")
}
