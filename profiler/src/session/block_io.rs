//! The side of a recorder that takes requests to block devices: whose they are, what
//! they asked of which device, and how long that took.

use std::{collections::HashMap, fs};

use profiler_ebpf::wire::{Header, Measured};

use super::{
    recorder::{Recorder, Sampled},
    waits::{Wait, Waits},
};
use crate::{
    aggregate::{Owner, Values},
    decode::Sample,
    process::{Identity, Process, ProcessIndex},
    symbolize::Event,
    unwind::KERNEL_THREAD,
};

/// The labels of a request.
pub(super) const DEVICE: &str = "device";
const OPERATION: &str = "operation";
/// The label of the kernel's own: which thread made it.
const THREAD: &str = "kernel_thread";

/// Most devices whose names are remembered, and told apart.
const MAX_DEVICES: usize = 1024;
/// A request that is not done after this long never will be, as far as we are told.
const GIVEN_UP_NS: u64 = 600_000_000_000;
/// What the others are called.
const OTHER: &str = "other";

/// Requests to block devices.
#[derive(Default)]
pub(super) struct BlockIo {
    /// Those that are not done, by when and where they began.
    pub open: Waits,
    devices: HashMap<u32, String>,
    /// What the requests of the kernel's threads belong to.
    pub kernel: Option<ProcessIndex>,
}

impl<T: Sampled> Recorder<T> {
    /// Takes a request that is made.
    pub(super) fn io_begins(&mut self, measured: &Measured, sample: &Sample<'_>, kernel: bool) {
        let owner = match kernel {
            true => Some(self.kernels_own(sample)),
            false => self.unwind(sample),
        };
        let Some(mut owner) = owner else {
            return;
        };
        let device = self.block_io.device((measured.detail >> 32) as u32);
        let letters = (measured.detail as u32).to_le_bytes();
        owner.labels.push((DEVICE.to_owned(), device));
        owner
            .labels
            .push((OPERATION.to_owned(), operation(letters, measured.part_ns)));
        owner.labels.sort_unstable();
        let wait = Wait {
            owner,
            stack: self.stack.as_slice().into(),
            kernel_frames: sample.head.kernel_frames,
            weight: 1,
            is_runnable: false,
            began_ns: measured.header.time_ns,
            counted_ns: 0,
            ran_ns: None,
        };
        if self.block_io.open.begin(key(&measured.header), wait) {
            self.tally.ends_missed += 1;
        }
    }

    /// Takes a request that is done, or has become part of another.
    pub(super) fn io_ends(&mut self, measured: &Measured) {
        let Some(wait) = self.block_io.open.end(key(&measured.header)) else {
            return;
        };
        if measured.weight == 0 {
            // One that was given up the kernel side has counted.
            self.tally.io_merged += u64::from(measured.part_ns == 0);
            return;
        }
        let ns = measured.duration_ns;
        let device = wait.owner.labels.iter().find(|(key, _)| key == DEVICE);
        let device = device.map_or(OTHER, |(_, name)| name.as_str());
        let latency = self.tally.latency.entry(device.to_owned()).or_default();
        latency.add(ns);
        let clamped = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let (bytes, queued_ns) = (measured.detail, measured.part_ns);
        let values: Values = [1, clamped(ns), clamped(bytes), clamped(queued_ns)];
        let window = self.windows.get(Event::Io);
        window.add_values(wait.owner, &wait.stack, wait.kernel_frames, values);
    }

    /// Gives up requests whose end nobody has told of by `now_ns` for long; all of them
    /// where `is_last`.
    pub(super) fn give_up_io(&mut self, now_ns: u64, is_last: bool) {
        let before = self.block_io.open.open().count();
        self.block_io
            .open
            .retain_waits(|wait| !is_last && now_ns.saturating_sub(wait.began_ns) < GIVEN_UP_NS);
        let given_up = before - self.block_io.open.open().count();
        self.tally.io_open += given_up as u64;
    }

    /// Puts the stack of a thread of the kernel into `self.stack`, and says what it
    /// belongs to.
    fn kernels_own(&mut self, sample: &Sample<'_>) -> Owner {
        let table = &mut self.table;
        let process = *self.block_io.kernel.get_or_insert_with(|| {
            let identity = Identity {
                pid: 0,
                comm: "kernel".to_owned(),
                exe: "[kernel]".to_owned(),
            };
            let process = Process::from_maps(identity, b"", &mut table.objects, |_| None);
            let index = table.insert(process);
            // None that runs, or is looked for.
            table.forget(0);
            index
        });
        self.stack.clear();
        self.stack.extend_from_slice(sample.kernel);
        self.stack.push(KERNEL_THREAD);
        let head = sample.head;
        Owner {
            process,
            thread: self.threads.then_some((head.header.tid, head.comm)),
            labels: vec![(THREAD.to_owned(), thread_kind(&head.comm))],
            ..Owner::default()
        }
    }
}

impl BlockIo {
    /// What a device is called; `major:minor` where it is gone.
    fn device(&mut self, number: u32) -> String {
        if let Some(name) = self.devices.get(&number) {
            return name.clone();
        }
        if self.devices.len() >= MAX_DEVICES {
            return OTHER.to_owned();
        }
        let numbers = format!("{}:{}", number >> 20, number & 0xf_ffff);
        let link = fs::read_link(format!("/sys/dev/block/{numbers}")).ok();
        let name = link.and_then(|link| Some(link.file_name()?.to_str()?.to_owned()));
        let name = name.unwrap_or(numbers);
        self.devices.insert(number, name.clone());
        name
    }
}

/// What tells a request: no CPU begins two in the same nanosecond. Clocks come around
/// to the same after months.
fn key(header: &Header) -> u64 {
    header.time_ns << 10 | u64::from(header.cpu & 0x3ff)
}

/// The operation out of the letters that the kernel has for a request
/// (`blk_fill_rwbs`, `kernel/trace/blktrace.c`): R, W, D for discard, F for flush, N
/// for others. An F before another letter is a flush before it, or a flush alone where
/// there are no `bytes`.
fn operation(letters: [u8; 4], bytes: u64) -> String {
    let (first, second) = (letters[0], letters[1]);
    let letter = match first {
        b'F' if second.is_ascii_uppercase() && bytes > 0 => second,
        first if first.is_ascii_uppercase() => first,
        _ => b'?',
    };
    char::from(letter).to_string()
}

/// Which thread of the kernel it is, without what only numbers it: `kworker` of
/// `kworker/u8:3+loop0`.
fn thread_kind(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(16);
    let name = String::from_utf8_lossy(&comm[..end]);
    match name.split_once(['/', ':']) {
        Some((kind, _)) => kind.to_owned(),
        None => name
            .trim_end_matches(|c: char| c.is_ascii_digit())
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use profiler_ebpf::wire::{self, event, kind};
    use zerocopy::IntoBytes;

    use super::*;
    use crate::session::fake::{PLAIN, Told, recorder};

    /// Device 1023:1023, which no machine has.
    const DEVICE_NUMBER: u64 = 1023 << 20 | 1023;

    fn begins(recorder: &mut Recorder<Told>, event: u32, time_ns: u64, letters: &[u8; 4]) {
        let letters = u64::from(u32::from_le_bytes(*letters));
        let begin = Measured {
            header: Header {
                kind: kind::MEASURED,
                time_ns,
                ..PLAIN.header
            },
            event,
            weight: 1,
            duration_ns: 0,
            part_ns: 4096,
            detail: DEVICE_NUMBER << 32 | letters,
            window: 0,
        };
        let sample = wire::Sample {
            header: begin.header,
            comm: *b"kworker/u8:3+lo\0",
            ..PLAIN
        };
        recorder.take(&[begin.as_bytes(), sample.as_bytes()].concat());
    }

    /// It is done, or where `weight` is 0 part of another.
    fn ends(recorder: &mut Recorder<Told>, time_ns: u64, weight: u32) {
        let end = Measured {
            header: Header {
                kind: kind::ENDED,
                time_ns,
                ..PLAIN.header
            },
            event: event::BLOCK_IO,
            weight,
            duration_ns: 5_000,
            part_ns: if weight > 0 { 100 } else { 0 },
            detail: 4096,
            window: 0,
        };
        recorder.take(end.as_bytes());
    }

    fn stacks(recorder: &mut Recorder<Told>) -> Vec<(String, Values)> {
        let window = recorder.windows.get(Event::Io);
        let stacks = window.stacks();
        let of = |labels: &[(String, String)]| {
            let labels = labels.iter().map(|(key, value)| format!("{key}={value}"));
            labels.collect::<Vec<_>>().join(" ")
        };
        stacks.iter().map(|s| (of(s.labels), s.values)).collect()
    }

    #[test]
    fn requests_are_told_apart_by_device_and_operation() {
        let mut recorder = recorder();
        begins(&mut recorder, event::BLOCK_IO, 10, b"WS\0\0");
        begins(&mut recorder, event::BLOCK_IO, 11, b"R\0\0\0");
        ends(&mut recorder, 11, 1);
        ends(&mut recorder, 10, 1);
        // Told before, or never begun.
        ends(&mut recorder, 10, 1);
        let mut found = stacks(&mut recorder);
        found.sort_unstable();
        let of = |operation: &str| format!("device=1023:1023 operation={operation}");
        let values = [1, 5_000, 4096, 100];
        assert_eq!(found, [(of("R"), values), (of("W"), values)]);
        let latency = &recorder.tally.latency["1023:1023"];
        assert_eq!((latency.count(), latency.sum_ns()), (2, 10_000));
    }

    #[test]
    fn one_that_becomes_part_of_another_is_none_of_its_own() {
        let mut recorder = recorder();
        begins(&mut recorder, event::BLOCK_IO, 10, b"W\0\0\0");
        ends(&mut recorder, 10, 0);
        assert!(stacks(&mut recorder).is_empty());
        assert_eq!(recorder.tally.io_merged, 1);
        assert_eq!(recorder.block_io.open.open().count(), 0);
    }

    #[test]
    fn one_that_never_ends_is_given_up_and_counted() {
        let mut recorder = recorder();
        begins(&mut recorder, event::BLOCK_IO, 10, b"W\0\0\0");
        recorder.give_up_io(GIVEN_UP_NS, false);
        assert_eq!(recorder.tally.io_open, 0);
        recorder.give_up_io(GIVEN_UP_NS + 10, false);
        assert_eq!(recorder.tally.io_open, 1);
        begins(&mut recorder, event::BLOCK_IO, 20, b"W\0\0\0");
        recorder.give_up_io(30, true);
        assert_eq!(recorder.tally.io_open, 2);
        assert_eq!(recorder.block_io.open.open().count(), 0);
    }

    #[test]
    fn the_kernels_own_are_the_kernels() {
        let mut recorder = recorder();
        begins(&mut recorder, event::BLOCK_IO_OF_KERNEL, 10, b"W\0\0\0");
        ends(&mut recorder, 10, 1);
        let found = stacks(&mut recorder);
        assert_eq!(found.len(), 1);
        assert!(found[0].0.contains("kernel_thread=kworker"), "{found:?}");
        let process = recorder.block_io.kernel.unwrap();
        assert_eq!(recorder.table.get(process).comm, "kernel");
        assert_eq!(recorder.table.current(0), None);
        let (_, _, processes, _) = recorder.split_off(&[]);
        assert_eq!(processes.get(process).comm, "kernel");
        begins(&mut recorder, event::BLOCK_IO_OF_KERNEL, 20, b"W\0\0\0");
        ends(&mut recorder, 20, 1);
        assert_eq!(stacks(&mut recorder).len(), 1, "of the next window");
    }

    #[test]
    fn operations_are_letters() {
        for (letters, bytes, expected) in [
            (b"R\0\0\0", 512, "R"),
            (b"WSM\0", 512, "W"),
            (b"FWFS", 512, "W"),
            (b"FWS\0", 0, "F"),
            (b"FF\0\0", 0, "F"),
            (b"F\0\0\0", 0, "F"),
            (b"DE\0\0", 512, "D"),
            (b"\0\0\0\0", 0, "?"),
        ] {
            assert_eq!(operation(*letters, bytes), expected);
        }
        assert_eq!(thread_kind(b"jbd2/loop0-8\0\0\0\0"), "jbd2");
        assert_eq!(thread_kind(b"kswapd0\0\0\0\0\0\0\0\0\0"), "kswapd");
    }
}
