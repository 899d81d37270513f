//! Symbolize: turns a window of addresses into named frames.
//!
//! The result, [`SymbolizedWindow`], is what every output format reads. It is
//! typed data throughout; no stage passes text to the next.

mod event;
mod filter;
mod kallsyms;
mod native;
mod tables;
mod tracing;
mod waits;
mod window;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use foldhash::HashMap;

use crate::{
    aggregate::{Window, Words},
    gobinary::{FuncKind, GoFrame},
    memory::Watch,
    process::{Mapped, Object, ProcessIndex, ProcessTable},
    unwind::{GAP, KERNEL_THREAD},
};

use native::{NativeFrame, NativeSymbols};
use tables::Tables;

pub use crate::aggregate::{Labels, MAX_VALUES, StackValues, Thread, Values};
pub use event::{Event, ValueType};
pub use filter::Filter;
pub use window::{
    FrameKind, Function, FunctionId, Line, Location, LocationId, Mapping, MappingId, Process,
    ProcessId, Reason, Sample, SymbolizedWindow,
};

/// When and how a window was taken.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    /// What was sampled.
    pub event: Event,
    /// When sampling began.
    pub start: SystemTime,
    /// How long it went on.
    pub duration: Duration,
    /// What one sample stands for, in the unit of [`Event::period_type`].
    pub period: u64,
    /// Whether waits are wanted that nobody asks about.
    pub all_waits: bool,
}

/// How many frames have a name, counted once for each sample they are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Naming {
    /// Frames with a name, inlined ones included.
    pub named: u64,
    /// Frames without, by reason.
    pub unnamed: BTreeMap<Reason, u64>,
    /// Places in stacks where frames are missing.
    pub gaps: u64,
    /// Times that what was learned of files was let go of, as memory was short.
    pub evictions: u64,
    /// Waits that nobody asks about, which are left out.
    pub left_out: u64,
    /// How long these were together, in nanoseconds.
    pub left_out_ns: u64,
}

impl Naming {
    /// The share of frames that have a name; 1 where there are none.
    pub fn share(&self) -> f64 {
        let unnamed: u64 = self.unnamed.values().sum();
        match self.named + unnamed {
            0 => 1.0,
            all => self.named as f64 / all as f64,
        }
    }
}

/// Names addresses. Keeps what it learned of each file from window to window.
#[derive(Default)]
pub struct Symbolizer {
    native: NativeSymbols,
    relief: Option<Relief>,
}

/// What a symbolizer does where memory is limited.
struct Relief {
    limit_bytes: u64,
    watch: Watch,
    /// Addresses named since the last look.
    named: u32,
}

/// How many addresses are named between two looks at the memory. Each may need a
/// few pages of its file, and the kernel maps those around them as well.
const LOOK_EVERY: u32 = 16;

impl Symbolizer {
    /// A symbolizer that names kernel addresses from a copy of `/proc/kallsyms`
    /// rather than from that of the kernel it runs on.
    pub fn with_kallsyms(path: PathBuf) -> Self {
        Self {
            native: NativeSymbols::with_kallsyms(path),
            ..Self::default()
        }
    }

    /// Lets go of what it learned, and of what was read of files, when the process
    /// comes near a limit.
    pub fn limit_memory(&mut self, limit_bytes: u64) {
        let limit = self.relief.as_ref().map(|relief| relief.limit_bytes);
        if limit != Some(limit_bytes) {
            self.relief = Some(Relief {
                limit_bytes,
                watch: Watch::new(limit_bytes),
                named: 0,
            });
        }
    }

    /// Names every frame of `window`.
    pub fn symbolize(
        &mut self,
        taken: Taken,
        window: &Window,
        processes: &ProcessTable,
    ) -> (SymbolizedWindow, Naming) {
        self.name_stacks(taken, (&window.stacks(), window.words()), processes)
    }

    /// Names every frame of `stacks`, each of which becomes a sample, in their order.
    pub fn symbolize_stacks(
        &mut self,
        taken: Taken,
        stacks: &[StackValues<'_>],
        processes: &ProcessTable,
    ) -> (SymbolizedWindow, Naming) {
        self.name_stacks(taken, (stacks, Words::default()), processes)
    }

    fn name_stacks(
        &mut self,
        taken: Taken,
        (stacks, words): (&[StackValues<'_>], Words<'_>),
        processes: &ProcessTable,
    ) -> (SymbolizedWindow, Naming) {
        let kernel = self
            .native
            .kernel(stacks.iter().flat_map(|stack| kernel_calls(stack.kernel)));
        let mut naming_window = NamingWindow::new(self, processes, kernel);
        let samples = stacks
            .iter()
            .map(|stack| naming_window.sample(stack, words, taken))
            .collect();
        let NamingWindow {
            tables, mut naming, ..
        } = naming_window;
        self.native.end_window();
        let mut window = tables.into_window(taken, samples);
        let (count, ns) = waits::show(&mut window, taken.all_waits);
        (naming.left_out, naming.left_out_ns) = (count, ns);
        (window, naming)
    }

    /// The functions that hold addresses of user code, by the name of their
    /// frame; of inlined functions the one they are part of.
    pub fn functions(
        &mut self,
        addresses: &[(ProcessIndex, u64)],
        processes: &ProcessTable,
    ) -> Vec<String> {
        let mut naming = NamingWindow::new(self, processes, HashMap::default());
        addresses
            .iter()
            .map(|(process, address)| {
                let place = naming.user_place(*process, *address);
                naming.tables.outermost(place.location).to_owned()
            })
            .collect()
    }
}

/// Where the calls of a kernel stack are: its leaf, then each return address
/// less one.
fn kernel_calls(stack: &[u64]) -> impl Iterator<Item = u64> + '_ {
    stack
        .iter()
        .enumerate()
        .map(|(index, address)| address - u64::from(index > 0 && *address > 0))
}

/// What an address came to.
#[derive(Clone, Copy)]
struct Place {
    location: LocationId,
    /// Hidden, as Go's own profiles hide the wrappers that the compiler makes,
    /// unless a panic called from it is on the stack.
    wrapper: bool,
    /// A function of the panic machinery.
    panics: bool,
    lines: u32,
    reason: Option<Reason>,
}

/// The work of naming one window.
struct NamingWindow<'a> {
    native: &'a mut NativeSymbols,
    relief: Option<&'a mut Relief>,
    processes: &'a ProcessTable,
    kernel: HashMap<u64, Option<NativeFrame>>,
    tables: Tables,
    places: HashMap<(Option<ProcessIndex>, u64), Place>,
    process_ids: HashMap<ProcessIndex, ProcessId>,
    changed: HashMap<*const Object, bool>,
    naming: Naming,
}

impl<'a> NamingWindow<'a> {
    fn new(
        symbolizer: &'a mut Symbolizer,
        processes: &'a ProcessTable,
        kernel: HashMap<u64, Option<NativeFrame>>,
    ) -> Self {
        Self {
            native: &mut symbolizer.native,
            relief: symbolizer.relief.as_mut(),
            processes,
            kernel,
            tables: Tables::default(),
            places: HashMap::default(),
            process_ids: HashMap::default(),
            changed: HashMap::default(),
            naming: Naming::default(),
        }
    }

    fn sample(&mut self, stack: &StackValues<'_>, words: Words<'_>, taken: Taken) -> Sample {
        // Of memory a stack is one sample: its objects are not frames.
        let count = match taken.event {
            Event::Heap | Event::Allocs | Event::AllocEvents => 1,
            _ => stack.values[0].unsigned_abs(),
        };
        let mut locations = Vec::with_capacity(stack.kernel.len() + stack.user.len());
        let tracing = self.tracing_frames(stack.kernel, taken.event);
        for address in kernel_calls(stack.kernel).skip(tracing) {
            let place = self.kernel_place(address);
            self.tally(place, count);
            locations.push(place.location);
        }
        // Only as a leaf: what a target has further up is an address like any other.
        let word = stack.user.first().and_then(|leaf| words.of(*leaf));
        if let Some(word) = word {
            let place = self.word_place(stack.user[0], word);
            self.tally(place, count);
            locations.push(place.location);
        }
        let mut callee_panics = false;
        for address in &stack.user[usize::from(word.is_some())..] {
            let place = self.user_place(stack.process, *address);
            if place.wrapper && !callee_panics {
                continue;
            }
            callee_panics = place.panics;
            self.tally(place, count);
            locations.push(place.location);
        }
        Sample {
            process: self.process(stack.process),
            thread: stack.thread.clone(),
            goid: stack.goid,
            labels: stack.labels.to_vec(),
            block_bytes: stack.block_bytes,
            stack: locations,
            values: taken.event.values(stack.values, taken.period),
        }
    }

    /// How many frames of a kernel stack are there only as it was looked at.
    fn tracing_frames(&self, stack: &[u64], event: Event) -> usize {
        let name = |address: u64| {
            let frame = self.kernel.get(&address)?.as_ref()?;
            Some(frame.lines.last()?.name.as_str())
        };
        tracing::tracing_frames(event, kernel_calls(stack).map(name))
    }

    fn tally(&mut self, place: Place, count: u64) {
        match place.reason {
            None => self.naming.named += u64::from(place.lines) * count,
            // No frame, but the place of some.
            Some(Reason::Gap) => self.naming.gaps += count,
            Some(reason) => *self.naming.unnamed.entry(reason).or_default() += count,
        }
    }

    fn process(&mut self, index: ProcessIndex) -> ProcessId {
        if let Some(id) = self.process_ids.get(&index) {
            return *id;
        }
        let process = self.processes.get(index);
        let go_version = process
            .go_object()
            .and_then(|object| object.go())
            .map(|binary| binary.version().to_string());
        let id = self.tables.process(Process {
            pid: process.pid,
            comm: process.comm.clone(),
            exe: process.exe.clone(),
            cgroup_id: process.cgroup_id,
            go_version: go_version.unwrap_or_default(),
        });
        self.process_ids.insert(index, id);
        id
    }

    fn kernel_place(&mut self, address: u64) -> Place {
        if let Some(place) = self.places.get(&(None, address)) {
            return *place;
        }
        let mapping = self.tables.kernel_mapping();
        let frame = self.kernel.get(&address).cloned().flatten();
        let place = self.native_place(address, mapping, FrameKind::Kernel, frame, "kernel");
        self.places.insert((None, address), place);
        place
    }

    fn word_place(&mut self, address: u64, word: &str) -> Place {
        if let Some(place) = self.places.get(&(None, address)) {
            return *place;
        }
        let function = self.tables.function(word, "", 0);
        let location = self.tables.location(Location {
            address,
            mapping: None,
            kind: FrameKind::Go,
            lines: vec![Line { function, line: 0 }],
            reason: None,
        });
        let place = Place {
            location,
            wrapper: false,
            panics: false,
            lines: 1,
            reason: None,
        };
        self.places.insert((None, address), place);
        place
    }

    fn user_place(&mut self, process: ProcessIndex, address: u64) -> Place {
        if let Some(place) = self.places.get(&(Some(process), address)) {
            return *place;
        }
        self.ease();
        let processes = self.processes;
        let place = match processes.get(process).locate(address) {
            _ if address == KERNEL_THREAD => self.kernel_thread(),
            _ if address == GAP => self.unnamed(address, None, Reason::Gap, ""),
            None => self.unnamed(address, None, Reason::NoMapping, ""),
            Some(mapped) => self.mapped_place(mapped, address),
        };
        self.places.insert((Some(process), address), place);
        place
    }

    /// What stands for the code of a thread of the kernel.
    fn kernel_thread(&mut self) -> Place {
        let function = self.tables.function("[kernel thread]", "", 0);
        let location = self.tables.location(Location {
            address: KERNEL_THREAD,
            mapping: None,
            kind: FrameKind::Kernel,
            lines: vec![Line { function, line: 0 }],
            reason: None,
        });
        Place {
            location,
            wrapper: false,
            panics: false,
            lines: 1,
            reason: None,
        }
    }

    /// Lets go of what can be had again, now and then, where memory is short.
    fn ease(&mut self) {
        let Some(relief) = &mut self.relief else {
            return;
        };
        relief.named += 1;
        if relief.named < LOOK_EVERY {
            return;
        }
        relief.named = 0;
        if relief.watch.is_short() {
            self.naming.evictions += 1;
            self.processes.release();
            // What is dear to have again goes only where that was not enough.
            if relief.watch.eased() {
                self.native.forget();
                relief.watch.eased();
            }
        }
    }

    fn mapped_place(&mut self, mapped: &Mapped, address: u64) -> Place {
        let (mapping, address_in_mapping) = self.tables.mapping(mapped, address);
        let Some(object) = &mapped.object else {
            let reason = if mapped.has_file {
                Reason::FileUnavailable
            } else {
                Reason::Anonymous
            };
            return self.unnamed(address_in_mapping, Some(mapping), reason, &mapped.path);
        };
        if self.object_changed(object) {
            let reason = Reason::FileChanged;
            return self.unnamed(address_in_mapping, Some(mapping), reason, &mapped.path);
        }
        if let (Some(binary), Some(vaddr)) = (object.go(), mapped.go_address(address))
            && binary.text().contains(&vaddr)
        {
            let mut frames = Vec::new();
            return match binary.frames(vaddr, &mut frames) {
                Ok(()) => self.go_place(address_in_mapping, mapping, &frames),
                Err(reason) => {
                    self.unnamed(address_in_mapping, Some(mapping), reason, &mapped.path)
                }
            };
        }
        let frame = self.native.object(object, mapped.file_offset(address));
        self.native_place(
            address_in_mapping,
            mapping,
            FrameKind::Native,
            frame,
            &mapped.path,
        )
    }

    fn object_changed(&mut self, object: &Arc<Object>) -> bool {
        *self
            .changed
            .entry(Arc::as_ptr(object))
            .or_insert_with(|| object.changed())
    }

    fn go_place(&mut self, address: u64, mapping: MappingId, frames: &[GoFrame]) -> Place {
        let shown = frames
            .iter()
            .filter(|frame| frame.kind != FuncKind::Wrapper)
            .count();
        let wrapper = shown == 0;
        let lines: Vec<Line> = frames
            .iter()
            .filter(|frame| wrapper || frame.kind != FuncKind::Wrapper)
            .map(|frame| Line {
                function: self
                    .tables
                    .function(&frame.name, &frame.file, frame.start_line),
                line: frame.line,
            })
            .collect();
        let panics = frames
            .last()
            .is_some_and(|frame| !frame.kind.elides_calling_wrapper());
        let place = Place {
            location: LocationId(0),
            wrapper,
            panics,
            lines: lines.len() as u32,
            reason: None,
        };
        let location = self.tables.location(Location {
            address,
            mapping: Some(mapping),
            kind: FrameKind::Go,
            lines,
            reason: None,
        });
        Place { location, ..place }
    }

    fn native_place(
        &mut self,
        address: u64,
        mapping: MappingId,
        kind: FrameKind,
        frame: Option<NativeFrame>,
        file: &str,
    ) -> Place {
        let Some(frame) = frame else {
            return self.unnamed_of_kind(address, Some(mapping), kind, Reason::NoSymbol, file);
        };
        let lines: Vec<Line> = frame
            .lines
            .iter()
            .map(|line| Line {
                function: self.tables.function(&line.name, &line.file, 0),
                line: line.line,
            })
            .collect();
        let count = lines.len() as u32;
        let location = self.tables.location(Location {
            address,
            mapping: Some(mapping),
            kind,
            lines,
            reason: None,
        });
        Place {
            location,
            wrapper: false,
            panics: false,
            lines: count,
            reason: None,
        }
    }

    fn unnamed(
        &mut self,
        address: u64,
        mapping: Option<MappingId>,
        reason: Reason,
        file: &str,
    ) -> Place {
        self.unnamed_of_kind(address, mapping, FrameKind::Native, reason, file)
    }

    fn unnamed_of_kind(
        &mut self,
        address: u64,
        mapping: Option<MappingId>,
        kind: FrameKind,
        reason: Reason,
        file: &str,
    ) -> Place {
        let file = file.rsplit('/').next().unwrap_or(file);
        let name = match file {
            "" => format!("[unknown: {}]", reason.describe()),
            file => format!("[{file}: {}]", reason.describe()),
        };
        let function = self.tables.function(&name, "", 0);
        let location = self.tables.location(Location {
            address,
            mapping,
            kind,
            lines: vec![Line { function, line: 0 }],
            reason: Some(reason),
        });
        Place {
            location,
            wrapper: false,
            panics: false,
            lines: 1,
            reason: Some(reason),
        }
    }
}
