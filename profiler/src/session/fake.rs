//! A recorder that is told of made-up samples in tests.

use anyhow::Result;
use profiler_ebpf::wire::{self, GoLayout, WalkEnd, kind};

use super::{
    Config,
    recorder::{Recorder, Sampled},
};
use crate::{
    process::{Identity, Process, ProcessIndex, ProcessTable, Selection},
    symbolize,
};

/// No process has it: pids end at 2^22.
pub(super) const PID: u32 = i32::MAX as u32;

/// The layouts that the kernel side was told of; None where a process is no
/// longer sampled.
#[derive(Default)]
pub(super) struct Told(pub(super) Vec<(u32, Option<GoLayout>)>);

impl Sampled for Told {
    fn insert(&mut self, pid: u32, layout: GoLayout) -> Result<()> {
        self.0.push((pid, Some(layout)));
        Ok(())
    }

    fn remove(&mut self, pid: u32) -> Result<()> {
        self.0.push((pid, None));
        Ok(())
    }

    fn pids(&self) -> Vec<u32> {
        self.0.iter().map(|(pid, _)| *pid).collect()
    }
}

/// A recorder of the process [`PID`], which has no Go code mapped: a layout
/// that it is asked for is wrong.
pub(super) fn recorder() -> Recorder<Told> {
    let config = Config {
        selection: Selection::Pids(vec![PID]),
        events: vec![symbolize::Event::Cpu],
        rate_hz: 99,
        duration: None,
        kernel_stacks: false,
        threads: false,
        goroutines: true,
        labels: true,
        kernel_threads: false,
        idle: false,
        combine: false,
        ring_bytes: 4096,
        probes: super::ProbeConfig::default(),
    };
    let mut recorder = Recorder::new(&config, Told::default());
    process(&mut recorder.table);
    recorder
}

/// Adds a program with a page of code to a table.
pub(super) fn process(table: &mut ProcessTable) -> ProcessIndex {
    let identity = Identity {
        pid: PID,
        comm: "liar".to_owned(),
        exe: "/bin/liar".to_owned(),
    };
    let maps = b"1000-2000 r-xp 00000000 00:00 0 code\n";
    let process = Process::from_maps(identity, maps, &mut table.objects, |_| None);
    table.insert(process);
    table.current(PID).unwrap()
}

pub(super) const PLAIN: wire::Sample = wire::Sample {
    header: wire::Header {
        kind: kind::SAMPLE,
        cpu: 0,
        time_ns: 1,
        pid: PID,
        tid: PID,
    },
    cgroup_id: 0,
    comm: [0; 16],
    goid: 0,
    thread: SEGMENT,
    goroutine: wire::Segment {
        ip: 0,
        sp: 0,
        fp: 0,
        ..SEGMENT
    },
    kernel_frames: 0,
    labels_words: 0,
    labels: 0,
    labels_missed: 0,
    flags: wire::flags::IN_USER,
    reserved: 0,
};
pub(super) const SEGMENT: wire::Segment = wire::Segment {
    ip: 0x1010,
    sp: 0x7000,
    fp: 0x7000,
    lr: 0,
    frames: 0,
    slice_words: 0,
    walk_end: WalkEnd::Root as u8,
    reserved: 0,
    far_words: 0,
};
