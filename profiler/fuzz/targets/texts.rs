//! Fuzz target: arbitrary text as `/proc/PID/maps` and as `/proc/PID/cgroup`, and as
//! what becomes a label. Looks for panics, for more than is kept of a process, and
//! for text that is not fit to be shown.
#![no_main]

use goprof::identity::{
    cgroup::Cgroup,
    text::{MAX_VALUE_BYTES, clean},
};
use goprof::process::{MAX_MAPPINGS, parse_maps};
use goprof_tests::seeds::TextInput;
use libfuzzer_sys::fuzz_target;

/// The most containers that are kept of a path.
const MAX_CONTAINERS: usize = 4;

fuzz_target!(|data: &[u8]| match TextInput::of(data) {
    Some(TextInput::Maps(text)) => maps(text),
    Some(TextInput::Cgroup { own, text }) => cgroup(own, text),
    Some(TextInput::Label(text)) => label(text),
    None => {}
});

fn maps(text: &[u8]) {
    let lines = parse_maps(text);
    assert!(lines.len() <= MAX_MAPPINGS);
    assert!(lines.is_sorted_by_key(|line| line.start));
    for line in &lines {
        assert!(line.start < line.end && !line.path.contains('\n'));
        let name = line.map_files_name();
        let both = name.split_once('-').expect("two addresses");
        let read = |digits| u64::from_str_radix(digits, 16).expect("an address");
        assert_eq!((read(both.0), read(both.1)), (line.start, line.end));
    }
}

fn cgroup(own: &[u8], text: &[u8]) {
    let found = Cgroup::parse(text, &String::from_utf8_lossy(own));
    assert!(found.containers.len() <= MAX_CONTAINERS);
    for container in &found.containers {
        assert!(is_plain(&container.id), "{:?}", container.id);
    }
    assert!(found.pod_uid.as_deref().is_none_or(is_plain));
    let unit = found.unit.unwrap_or_default();
    assert!(unit.is_empty() || unit.ends_with(".service") && !unit.contains('/'));
}

/// Whether it has the characters that ids have.
fn is_plain(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f' | b'-');
    !id.is_empty() && id.len() <= 64 && id.bytes().all(plain)
}

fn label(text: &[u8]) {
    let value = clean(text);
    assert!(value.len() <= MAX_VALUE_BYTES);
    assert!(!value.contains(|c: char| c.is_control()), "{value:?}");
    // What is clean stays as it is, but for what the bound left at the end.
    assert_eq!(clean(&value), value.trim());
}
