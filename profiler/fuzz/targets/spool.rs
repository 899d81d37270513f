//! Fuzz target: arbitrary files in the spool, as an agent finds them when it starts.
//! Looks for panics, for entries that are not what was put, and for files that are
//! neither given out, nor counted and set aside.
#![no_main]

use std::path::Path;
use std::sync::atomic::Ordering;

use goprof::sink::Spool;
use goprof_tests::seeds::SpoolInput;
use libfuzzer_sys::fuzz_target;

const MAX_BYTES: u64 = 1 << 20;

thread_local! {
    // In memory where there is such a folder: thousands of files a second.
    static FOLDER: tempfile::TempDir = match Path::new("/dev/shm").is_dir() {
        true => tempfile::tempdir_in("/dev/shm").expect("make a folder"),
        false => tempfile::tempdir().expect("make a folder"),
    };
}

fuzz_target!(|data: &[u8]| {
    let input = SpoolInput::of(data);
    FOLDER.with(|folder| {
        let folder = folder.path();
        for (number, file) in input.files.iter().enumerate() {
            let name = format!("{number:020}.entry");
            std::fs::write(folder.join(name), file).expect("write a file");
        }
        let spool = Spool::open(folder, MAX_BYTES).expect("a folder of our own");
        let mut given = 0;
        while let Some(entry) = spool.take(None) {
            let whole = SpoolInput::entry(&entry.key, &entry.bytes);
            assert!(input.files.contains(&whole.as_slice()), "{:?}", entry.key);
            spool.remove(&entry);
            given += 1;
        }
        let damaged = spool.counters().damaged.load(Ordering::Relaxed);
        assert_eq!(given + damaged, input.files.len() as u64);
        assert!(spool.is_empty());
        drop(spool);
        for file in std::fs::read_dir(folder).expect("list the folder") {
            let file = file.expect("an entry").path();
            std::fs::remove_file(file).expect("remove a file");
        }
    });
});
