//! Fuzz target: arbitrary files, and the binaries of the fixtures with words
//! changed, taken for Go programs and asked for what a recording asks. Looks
//! for panics, for work without an end, and for frames beside an error.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use goprof::gobinary::GoBinary;
use goprof::image::Image;
use goprof_tests::fuzzing::{BinaryInput, Known, known, words};
use libfuzzer_sys::fuzz_target;
use zerocopy::IntoBytes as _;

/// Addresses looked up in each binary.
const LOOKUPS: usize = 8;

thread_local! {
    /// A copy of each case's binary: changed in place, and changed back.
    static BINARIES: RefCell<Vec<File>> =
        RefCell::new(known().iter().map(|known| file(&known.tables)).collect());
    static WHOLE: File = file(&[0]);
}

fuzz_target!(|data: &[u8]| {
    let words = words(data);
    match BinaryInput::of(&words) {
        Some(BinaryInput::Whole([])) | None => {}
        Some(BinaryInput::Whole(words)) => WHOLE.with(|file| {
            file.set_len(0).expect("cut the file");
            file.write_all_at(words.as_bytes(), 0)
                .expect("write the file");
            ask(file, &[]);
        }),
        Some(BinaryInput::Patched { case, patches }) => BINARIES.with_borrow(|files| {
            let (known, file) = (&known()[case], &files[case]);
            for patch in patches {
                let value = patch[1].to_le_bytes();
                file.write_all_at(&value, known.place(patch[0]))
                    .expect("patch the file");
            }
            ask(file, sample(known, patches.len()));
            for patch in patches {
                let at = known.place(patch[0]);
                let original = &known.tables[at as usize..][..8];
                file.write_all_at(original, at).expect("restore the file");
            }
        }),
    }
});

/// Some of the addresses that the case's binary has tables for.
fn sample(known: &Known, from: usize) -> &[u64] {
    let addresses = &known.link_addresses;
    let from = from * LOOKUPS % addresses.len().max(1);
    &addresses[from..addresses.len().min(from + LOOKUPS)]
}

fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().expect("make a file");
    file.write_all_at(bytes, 0).expect("write the file");
    file
}

/// What a recording asks of a binary.
fn ask(file: &File, addresses: &[u64]) {
    let file = file.try_clone().expect("open the file again");
    let image = Image::open(file).expect("a file that is not empty");
    let Ok(binary) = GoBinary::parse(Arc::new(image)) else {
        return;
    };
    binary.g_location();
    binary.runtime_offsets();
    binary.variables();
    binary.wait_reasons();
    binary.dependencies();
    binary.label_format();
    binary.all_goroutines();
    binary.has_cgo();
    let places = binary.probe_places(&["runtime.gopark", "runtime.mallocgc", "main.main"]);
    assert_eq!(places.len(), 3);
    let sites = binary.allocation_sites();
    let mut frames = Vec::new();
    let text = binary.text();
    for address in addresses.iter().chain([&text.start, &text.end]) {
        if binary.frames(*address, &mut frames).is_err() {
            assert!(frames.is_empty(), "frames beside an error");
        }
        frames.clear();
        if let Some(function) = binary.function(*address) {
            assert!((function.entry..function.end).contains(address));
        }
        binary.stack_delta(*address);
        binary.inlined_calls(*address);
        sites.type_at(&binary, *address);
        binary.allocated_type(*address);
    }
}
