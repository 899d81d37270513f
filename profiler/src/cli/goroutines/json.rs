//! Goroutines as JSON for programs: one object, written as it is made, so that a
//! million of them take no memory.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io::{self, Write},
    time::SystemTime,
};

use foldhash::HashMap;
use serde::{Serialize, Serializer};

use super::{Report, signal_name};
use crate::session::goroutines::{Group, NamedFrame, Place, Record};

#[derive(Serialize)]
struct Document<'a> {
    pid: u32,
    comm: &'a str,
    exe: &'a str,
    go_version: &'a str,
    time_unix_ns: u64,
    took_ns: u64,
    goroutines: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    crash: Option<CrashJson>,
    groups: GroupsOf<'a>,
    waited_for: WaitedFor<'a>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct CrashJson {
    signal: u16,
    signal_name: String,
    thread: u32,
    goroutine: Option<u64>,
}

#[derive(Serialize)]
struct PlaceJson {
    what: &'static str,
    address: String,
}

/// What goroutines wait for, each with all that do, the most first.
struct WaitedFor<'a>(&'a HashMap<Place, Vec<u64>>);

#[derive(Serialize)]
struct Waited<'a> {
    #[serde(flatten)]
    place: PlaceJson,
    goroutines: &'a [u64],
}

/// The groups, each made when it is written.
struct GroupsOf<'a>(&'a Report<'a>);

#[derive(Serialize)]
struct GroupJson<'a> {
    count: usize,
    labels: BTreeMap<&'a str, &'a str>,
    stack: Vec<Frame<'a>>,
    stack_end: &'static str,
    goroutines: Members<'a>,
}

struct Members<'a>(&'a Report<'a>, &'a Group);

#[derive(Serialize)]
struct Frame<'a> {
    function: &'a str,
    file: &'a str,
    line: u32,
    inlined: bool,
}

#[derive(Serialize)]
struct Member<'a> {
    id: u64,
    state: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    wait_reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    waits_at_least_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_by: Option<Frame<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waits_for: Vec<PlaceJson>,
}

impl From<Place> for PlaceJson {
    fn from(place: Place) -> Self {
        Self {
            what: place.what,
            address: format!("{:#x}", place.address),
        }
    }
}

impl<'a> From<NamedFrame<'a>> for Frame<'a> {
    fn from(frame: NamedFrame<'a>) -> Self {
        Self {
            function: frame.function,
            file: frame.file,
            line: frame.line,
            inlined: frame.is_inlined,
        }
    }
}

impl Serialize for GroupsOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let report = self.0;
        let groups = report.groups.groups.iter().enumerate();
        serializer.collect_seq(groups.map(|(index, group)| {
            let labels = report.groups.labels(index).iter();
            let first = report.snapshot.first(group);
            GroupJson {
                count: group.members.len(),
                labels: labels.map(|(k, v)| (k.as_str(), v.as_str())).collect(),
                stack: report.groups.frames(index).map(Frame::from).collect(),
                stack_end: first.map_or("", |first| first.end.describe()),
                goroutines: Members(report, group),
            }
        }))
    }
}

impl Serialize for WaitedFor<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut all: Vec<(&Place, &Vec<u64>)> = self.0.iter().collect();
        all.sort_by_key(|(place, waiters)| (Reverse(waiters.len()), **place));
        serializer.collect_seq(all.into_iter().map(|(place, waiters)| Waited {
            place: (*place).into(),
            goroutines: waiters,
        }))
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Members(report, group) = self;
        let members = report.snapshot.members(group);
        serializer.collect_seq(members.map(|goroutine| member(report, goroutine)))
    }
}

fn member<'a>(report: &'a Report<'a>, goroutine: &Record) -> Member<'a> {
    Member {
        id: goroutine.goid,
        state: goroutine.status.name(),
        wait_reason: report.snapshot.reason(goroutine),
        waits_at_least_ns: goroutine.waits_ns,
        parent: goroutine.parent,
        created_by: report.groups.creator(goroutine).map(Frame::from),
        waits_for: report
            .snapshot
            .places(goroutine)
            .into_iter()
            .map(PlaceJson::from)
            .collect(),
    }
}

/// Writes all there is, and ends the line.
pub(super) fn write(report: &Report<'_>, out: &mut impl Write) -> io::Result<()> {
    let since = report.taken_at.duration_since(SystemTime::UNIX_EPOCH);
    let document = Document {
        pid: report.process.pid,
        comm: &report.process.comm,
        exe: &report.process.exe,
        go_version: &report.go_version,
        time_unix_ns: since.map_or(0, |since| since.as_nanos() as u64),
        took_ns: report.snapshot.took.as_nanos() as u64,
        goroutines: report.groups.goroutines(),
        crash: report.snapshot.crash.map(|crash| CrashJson {
            signal: crash.signal,
            signal_name: signal_name(crash.signal),
            thread: crash.tid,
            goroutine: crash.goid,
        }),
        groups: GroupsOf(report),
        waited_for: WaitedFor(&report.waiters),
        notes: &report.notes,
    };
    serde_json::to_writer(&mut *out, &document)?;
    writeln!(out)
}
