//! The tables of a symbolized window while it grows: each function, location
//! and mapping once.

use foldhash::{HashMap, fast::RandomState};
use indexmap::IndexSet;

use super::{
    Function, FunctionId, Location, LocationId, Mapping, MappingId, Process, ProcessId, Sample,
    SymbolizedWindow, Taken,
};
use crate::process::Mapped;

/// Kernel addresses on both architectures lie in the upper half.
const KERNEL_START: u64 = 1 << 63;

#[derive(Default)]
pub(super) struct Tables {
    functions: IndexSet<Function, RandomState>,
    locations: Vec<Location>,
    location_ids: HashMap<(Option<MappingId>, u64), LocationId>,
    mappings: Vec<Mapping>,
    mapping_ids: HashMap<MappingKey, MappingId>,
    processes: Vec<Process>,
}

/// Mappings of several processes are one where the file and the part of it are
/// the same; their addresses are rebased to the first.
#[derive(PartialEq, Eq, Hash)]
struct MappingKey {
    /// The object's address in this process's memory; 0 without one.
    object: usize,
    path: String,
    offset: u64,
    size: u64,
}

impl Tables {
    pub(super) fn function(&mut self, name: &str, file: &str, start_line: u32) -> FunctionId {
        let function = Function {
            name: name.to_owned(),
            file: file.to_owned(),
            start_line,
        };
        let (index, _) = self.functions.insert_full(function);
        FunctionId(index as u32)
    }

    /// The function that the inlined ones of a location are part of.
    pub(super) fn outermost(&self, id: LocationId) -> &str {
        let line = self.locations[id.0 as usize].lines.last();
        line.map_or("", |line| &self.functions[line.function.0 as usize].name)
    }

    pub(super) fn location(&mut self, location: Location) -> LocationId {
        let next = LocationId(self.locations.len() as u32);
        let key = (location.mapping, location.address);
        let id = *self.location_ids.entry(key).or_insert(next);
        if id == next {
            self.locations.push(location);
        }
        id
    }

    /// The mapping, and `address` as it would be in the first process that
    /// had it.
    pub(super) fn mapping(&mut self, mapped: &Mapped, address: u64) -> (MappingId, u64) {
        let key = MappingKey {
            object: mapped
                .object
                .as_ref()
                .map_or(0, |object| std::sync::Arc::as_ptr(object) as usize),
            path: mapped.path.clone(),
            offset: mapped.offset,
            size: mapped.end - mapped.start,
        };
        let next = MappingId(self.mappings.len() as u32);
        let id = *self.mapping_ids.entry(key).or_insert(next);
        if id == next {
            self.mappings.push(Mapping {
                start: mapped.start,
                end: mapped.end,
                offset: mapped.offset,
                file: mapped.path.clone(),
                build_id: mapped
                    .object
                    .as_ref()
                    .map_or(String::new(), |object| object.build_id()),
            });
        }
        let start = self.mappings[id.0 as usize].start;
        (id, start.wrapping_add(address - mapped.start))
    }

    pub(super) fn kernel_mapping(&mut self) -> MappingId {
        let next = MappingId(self.mappings.len() as u32);
        let key = MappingKey {
            object: 0,
            path: "[kernel]".to_owned(),
            offset: 0,
            size: 0,
        };
        let id = *self.mapping_ids.entry(key).or_insert(next);
        if id == next {
            self.mappings.push(Mapping {
                start: KERNEL_START,
                end: u64::MAX,
                offset: 0,
                file: "[kernel]".to_owned(),
                build_id: String::new(),
            });
        }
        id
    }

    pub(super) fn process(&mut self, process: Process) -> ProcessId {
        let id = ProcessId(self.processes.len() as u32);
        self.processes.push(process);
        id
    }

    pub(super) fn into_window(self, taken: Taken, samples: Vec<Sample>) -> SymbolizedWindow {
        SymbolizedWindow {
            event: taken.event,
            start: taken.start,
            duration: taken.duration,
            period: taken.period,
            processes: self.processes,
            samples,
            locations: self.locations,
            functions: self.functions.into_iter().collect(),
            mappings: self.mappings,
        }
    }
}
