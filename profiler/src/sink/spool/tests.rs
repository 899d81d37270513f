//! The spool through crashes, damage and want of room.

use super::*;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn open(folder: &tempfile::TempDir) -> Spool {
    Spool::open(&folder.path().join("spool"), 10_000).unwrap()
}

/// Keys in the order in which they leave.
fn drain(spool: &Spool) -> Vec<String> {
    let mut keys = Vec::new();
    while let Some(entry) = spool.take(None) {
        spool.remove(&entry);
        keys.push(entry.key);
    }
    keys
}

fn files(folder: &tempfile::TempDir) -> Vec<String> {
    let names = fs::read_dir(folder.path().join("spool")).unwrap();
    let mut names: Vec<_> = names
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn what_was_put_is_there_at_the_next_start_in_order() {
    let dir = folder();
    let spool = open(&dir);
    for key in ["a", "b", "c"] {
        spool.put(key, key.repeat(3).as_bytes()).unwrap();
    }
    let (len, bytes) = (spool.len(), spool.bytes());
    drop(spool);

    let spool = open(&dir);
    assert_eq!((spool.len(), spool.bytes()), (len, bytes));
    spool.put("d", b"").unwrap();
    let first = spool.take(None).unwrap();
    assert_eq!((first.key.as_str(), &first.bytes[..]), ("a", &b"aaa"[..]));
    assert_eq!(drain(&spool), ["a", "b", "c", "d"]);
    assert_eq!((spool.len(), spool.bytes()), (0, 0));
    assert_eq!(files(&dir), ["lock"]);
}

#[test]
fn the_folder_and_its_files_are_for_us_alone() {
    let dir = folder();
    let spool = open(&dir);
    spool.put("a", b"x").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("spool")), 0o700);
    for file in files(&dir) {
        assert_eq!(mode(&dir.path().join("spool").join(file)), 0o600);
    }
}

#[test]
fn a_second_agent_on_the_same_folder_is_refused() {
    let dir = folder();
    let spool = open(&dir);
    let error = Spool::open(&dir.path().join("spool"), 10_000).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("is used by another agent"), "{error}");
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    drop(spool);
    open(&dir);
}

#[test]
fn a_folder_that_cannot_be_made_is_one_clear_line() {
    let error = Spool::open(Path::new("/proc/spool"), 10_000).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("make the spool folder /proc/spool"),
        "{error}"
    );
}

#[test]
fn an_entry_cut_short_at_any_byte_is_set_aside_and_counted() {
    let dir = folder();
    let spool = open(&dir);
    spool.put("key", b"object").unwrap();
    drop(spool);
    let entry = dir.path().join("spool").join("00000000000000000000.entry");
    let whole = fs::read(&entry).unwrap();
    for length in 0..whole.len() {
        let dir = folder();
        let path = dir.path().join("spool");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("00000000000000000000.entry"), &whole[..length]).unwrap();
        let spool = open(&dir);
        assert_eq!(spool.len(), 0, "{length} bytes");
        assert!(spool.take(None).is_none());
        assert_eq!(count(&spool.counters().damaged), 1);
        assert_eq!(files(&dir), ["00000000000000000000.damaged", "lock"]);
        // It does not come back, nor is its name used again.
        spool.put("next", b"x").unwrap();
        drop(spool);
        let spool = open(&dir);
        assert_eq!(drain(&spool), ["next"]);
        assert_eq!(count(&spool.counters().damaged), 0);
    }
}

#[test]
fn a_byte_that_changed_on_disk_is_found_when_the_entry_is_read() {
    let dir = folder();
    let spool = open(&dir);
    spool.put("key", b"object").unwrap();
    let entry = dir.path().join("spool").join("00000000000000000000.entry");
    let whole = fs::read(&entry).unwrap();
    drop(spool);
    for changed in 0..whole.len() {
        let dir = folder();
        let path = dir.path().join("spool");
        fs::create_dir(&path).unwrap();
        let mut bytes = whole.clone();
        bytes[changed] ^= 0x10;
        fs::write(path.join("00000000000000000000.entry"), &bytes).unwrap();
        let spool = open(&dir);
        spool.put("next", b"x").unwrap();
        assert_eq!(drain(&spool), ["next"], "byte {changed}");
        assert_eq!(count(&spool.counters().damaged), 1);
    }
}

#[test]
fn an_entry_that_was_never_finished_is_removed_and_counted() {
    let dir = folder();
    drop(open(&dir));
    let unfinished = dir.path().join("spool").join("00000000000000000003.tmp");
    fs::write(&unfinished, b"goprof").unwrap();
    let spool = open(&dir);
    assert_eq!(count(&spool.counters().unfinished), 1);
    assert_eq!(files(&dir), ["lock"]);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let dir = folder();
    drop(open(&dir));
    let others = ["README", "x.entry", "00.tmp.bak"];
    for name in others {
        fs::write(dir.path().join("spool").join(name), b"x").unwrap();
    }
    let spool = open(&dir);
    assert_eq!(spool.len(), 0);
    assert_eq!(files(&dir), ["00.tmp.bak", "README", "lock", "x.entry"]);
}

#[test]
fn at_the_bound_the_oldest_goes_and_is_counted() {
    let dir = folder();
    let spool = open(&dir);
    let object = [7; 2_400];
    for key in ["a", "b", "c", "d", "e", "f"] {
        spool.put(key, &object).unwrap();
        assert!(spool.bytes() <= spool.max_bytes());
    }
    assert_eq!(count(&spool.counters().dropped), 2);
    let size = (HEADER_BYTES + 1 + object.len()) as u64;
    assert_eq!(count(&spool.counters().dropped_bytes), 2 * size);
    assert_eq!(count(&spool.counters().stored), 6);
    assert_eq!(drain(&spool), ["c", "d", "e", "f"]);
}

#[test]
fn a_lower_bound_holds_from_the_start() {
    let dir = folder();
    let spool = open(&dir);
    for key in ["a", "b", "c"] {
        spool.put(key, &[7; 2_400]).unwrap();
    }
    drop(spool);
    let spool = Spool::open(&dir.path().join("spool"), 5_000).unwrap();
    assert_eq!(count(&spool.counters().dropped), 1);
    assert_eq!(drain(&spool), ["b", "c"]);
}

#[test]
fn an_entry_under_way_goes_last() {
    let dir = folder();
    let spool = open(&dir);
    for key in ["a", "b", "c", "d"] {
        spool.put(key, &[7; 2_400]).unwrap();
    }
    let under_way = spool.take(None).unwrap();
    assert_eq!(under_way.key, "a");
    spool.put("e", &[7; 2_400]).unwrap();
    spool.remove(&under_way);
    assert_eq!(drain(&spool), ["c", "d", "e"]);
    assert_eq!(count(&spool.counters().dropped), 1);
}

#[test]
fn damaged_entries_go_before_good_ones() {
    let dir = folder();
    let spool = open(&dir);
    for key in ["a", "b", "c", "d"] {
        spool.put(key, &[7; 2_400]).unwrap();
    }
    drop(spool);
    let third = dir.path().join("spool").join("00000000000000000002.entry");
    fs::write(third, [0; 2_425]).unwrap();
    let spool = open(&dir);
    spool.put("e", &[7; 2_400]).unwrap();
    assert_eq!(count(&spool.counters().dropped), 0);
    assert_eq!(drain(&spool), ["a", "b", "d", "e"]);
}

#[test]
fn an_object_larger_than_the_bound_is_refused_and_drops_nothing() {
    let dir = folder();
    let spool = open(&dir);
    spool.put("a", b"x").unwrap();
    let error = spool.put("b", &[7; 10_001]).unwrap_err().to_string();
    assert!(error.contains("give the spool more"), "{error}");
    assert!(spool.put(&"k".repeat(5_000), b"x").is_err());
    assert_eq!(count(&spool.counters().refused), 2);
    assert_eq!(drain(&spool), ["a"]);
}

#[test]
fn one_that_fails_does_not_stop_those_after_it() {
    let dir = folder();
    let spool = open(&dir);
    for key in ["a", "b", "c"] {
        spool.put(key, b"x").unwrap();
    }
    let a = spool.take(None).unwrap();
    let b = spool.take(Some(a.number())).unwrap();
    let c = spool.take(Some(b.number())).unwrap();
    assert_eq!((b.key.as_str(), c.key.as_str()), ("b", "c"));
    assert_eq!(spool.take(Some(c.number())).unwrap().key, "a");
}

#[tokio::test]
async fn arrivals_wake_whoever_waits() {
    let dir = folder();
    let spool = open(&dir);
    spool.put("a", b"x").unwrap();
    // Also one that came before the wait.
    spool.arrived().await;
}
