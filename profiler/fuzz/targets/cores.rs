//! Fuzz target: arbitrary files as cores of programs, with a file behind what was
//! not dumped. Looks for panics, for work without an end, and for memory that is
//! nowhere in the core.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use goprof::gomemory::{Core, Memory as _};
use goprof::image::Image;
use goprof::process::parse_maps;
use libfuzzer_sys::fuzz_target;

/// Segments that are read of.
const SEGMENTS: usize = 16;

thread_local! {
    static CORE: File = tempfile::tempfile().expect("make a file");
    static BEHIND: RefCell<Option<Arc<Image>>> = const { RefCell::new(None) };
}

fn behind() -> Arc<Image> {
    BEHIND.with_borrow_mut(|image| {
        let image = image.get_or_insert_with(|| {
            let file = tempfile::tempfile().expect("make a file");
            file.write_all_at(&[9; 0x3000], 0).expect("write the file");
            Arc::new(Image::open(file).expect("a file that is not empty"))
        });
        Arc::clone(image)
    })
}

fuzz_target!(|data: &[u8]| {
    let core = CORE.with(|file| {
        file.set_len(0).expect("cut the file");
        file.write_all_at(data, 0).expect("write the file");
        Core::open(file.try_clone().expect("open the file again"))
    });
    let Ok(mut core) = core else {
        return;
    };
    core.back(|path| path.starts_with('/').then(behind));
    core.is_cut();
    let text = core.maps();
    assert!(!text.contains('\0'));
    let lines = parse_maps(text.as_bytes());
    let starts = lines.iter().take(SEGMENTS).map(|line| line.start);
    let registers = core.threads().iter().take(SEGMENTS);
    let registers = registers.flat_map(|thread| [thread.pc, thread.sp]);
    for address in starts.chain(registers).chain([0, u64::MAX - 3]) {
        let mut bytes = [0; 4096];
        let is_read = core.read(address, &mut bytes);
        assert!(is_read || !core.is_dumped(address, bytes.len()) || core.is_cut());
        core.word(address);
    }
    assert!(core.files().iter().all(|file| !file.addresses.is_empty()));
});
