//! Fuzz target: arbitrary bytes as a record of the ring buffer, of every kind.
//! Looks for panics, and for parts that lie outside of the record, overlap or are
//! out of order.
#![no_main]

use std::ops::Range;

use goprof::decode::{Event, Sample, Segment, decode};
use goprof_tests::fuzzing::words;
use libfuzzer_sys::fuzz_target;
use profiler_ebpf::wire::{self, kind};
use zerocopy::IntoBytes as _;

fuzz_target!(|data: &[u8]| {
    let words = words(data);
    let bytes = words.as_bytes();
    let Ok(event) = decode(bytes) else {
        return;
    };
    let said = words[0] as u32;
    let mut parts = Parts {
        record: bytes.as_ptr_range(),
        end: bytes.as_ptr(),
    };
    match event {
        Event::Sample(sample) => {
            assert_eq!(said, kind::SAMPLE);
            parts.sample(&sample);
        }
        Event::Measured(head, sample) => {
            assert_eq!(said, kind::MEASURED);
            parts.next(head.as_bytes());
            parts.sample(&sample);
        }
        Event::Ended(head) => {
            assert_eq!(said, kind::ENDED);
            parts.next(head.as_bytes());
        }
        Event::Exec { .. } => assert_eq!(said, kind::EXEC),
        Event::Thread { .. } => assert_eq!(said, kind::THREAD),
        Event::Exit { .. } => assert_eq!(said, kind::EXIT),
        Event::ShareSpent { .. } => {
            assert_eq!(said, kind::SHARE_SPENT);
            assert!(bytes.len() >= size_of::<wire::ShareSpent>());
        }
    }
});

/// The parts of a record, one behind the other.
struct Parts {
    record: Range<*const u8>,
    /// Where the last of them ended.
    end: *const u8,
}

impl Parts {
    fn next(&mut self, part: &[u8]) {
        let Range { start, end } = part.as_ptr_range();
        // None is nowhere.
        if start == end {
            return;
        }
        assert!(self.end <= start, "parts overlap");
        assert!(end <= self.record.end, "a part lies behind the record");
        self.end = end;
    }

    fn sample(&mut self, sample: &Sample<'_>) {
        self.next(sample.head.as_bytes());
        self.segment(&sample.thread);
        if let Some(goroutine) = &sample.goroutine {
            self.segment(goroutine);
        }
        self.next(sample.kernel.as_bytes());
        let mut labels = 0;
        for label in sample.labels() {
            labels += 1;
            self.next(label.key);
            self.next(label.value);
        }
        let most = sample.labels.len() / size_of::<wire::Label>();
        assert!(labels <= most, "{labels} labels");
    }

    fn segment(&mut self, segment: &Segment<'_>) {
        self.next(segment.callers.as_bytes());
        self.next(segment.slice.as_bytes());
        if let Some(far) = &segment.far {
            self.next(far.words.as_bytes());
        }
    }
}
