//! Records through unwind, aggregate, symbolize and pprof. Shared by the replay
//! of fixtures and by what records them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use goprof::aggregate::{Owner, Window};
use goprof::decode::{Event, decode};
use goprof::process::{ProcessIndex, ProcessTable};
use goprof::profile::{self, Format};
use goprof::symbolize::{self, Naming, SymbolizedWindow, Symbolizer, Taken};
use goprof::unwind::{StackEnd, unwind};

use crate::fixture::bytes_of;

/// What a replay came to.
pub struct Replay {
    /// The stacks, named.
    pub window: SymbolizedWindow,
    /// How many frames have names.
    pub naming: Naming,
    /// How the stacks ended.
    pub ends: BTreeMap<StackEnd, u64>,
}

impl Replay {
    /// The pprof file.
    #[track_caller]
    pub fn encode(&self) -> Vec<u8> {
        let options = profile::Options::default();
        profile::encode(&self.window, Format::Pprof, &options).expect("encode the profile")
    }
}

/// How to replay.
pub struct Settings<'a> {
    /// The rate the records were taken at, in samples a second.
    pub rate_hz: u32,
    /// Whether threads are told apart.
    pub threads: bool,
    /// The kernel's symbols.
    pub kallsyms: &'a Path,
}

/// Replays the records of the one process in `table`.
#[track_caller]
pub fn replay(records: &[Vec<u64>], mut table: ProcessTable, settings: &Settings<'_>) -> Replay {
    let index = ProcessIndex(0);
    let mut window = Window::default();
    let mut ends = BTreeMap::new();
    let mut frames = Vec::new();
    for record in records {
        let Ok(Event::Sample(sample)) = decode(bytes_of(record)) else {
            panic!("a record that is no sample");
        };
        assert_eq!(table.current(sample.head.header.pid), Some(index));
        let unwound = unwind(&sample, table.get(index), &mut frames);
        assert!(!unwound.unmapped, "an address in no mapping: {frames:x?}");
        *ends.entry(unwound.end).or_default() += 1;
        table.note_cgroup(index, sample.head.cgroup_id);
        let owner = Owner {
            process: index,
            thread: (settings.threads).then_some((sample.head.header.tid, sample.head.comm)),
            ..Owner::default()
        };
        let stack = [sample.kernel, &frames].concat();
        window.add(owner, &stack, sample.head.kernel_frames);
    }
    let taken = Taken {
        event: symbolize::Event::Cpu,
        start: SystemTime::UNIX_EPOCH,
        duration: Duration::from_secs(10),
        period: 1_000_000_000 / u64::from(settings.rate_hz),
        all_waits: false,
    };
    let mut symbolizer = Symbolizer::with_kallsyms(settings.kallsyms.to_owned());
    let (window, naming) = symbolizer.symbolize(taken, &window, &table);
    Replay {
        window,
        naming,
        ends,
    }
}
