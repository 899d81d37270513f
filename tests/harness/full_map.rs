//! Filling maps of the kernel side from outside, past those that own them: what
//! happens when one is full need not wait for so many processes, threads or waits.

use std::os::fd::{AsFd as _, AsRawFd as _};

/// `BPF_MAP_UPDATE_ELEM`, and of its flags `BPF_NOEXIST` (`include/uapi/linux/bpf.h`).
const UPDATE: libc::c_long = 2;
const NO_EXIST: u64 = 1;

/// Fills the map of that name that this process has loaded, with keys that nothing
/// real has, and returns how many went in. One that gives up what was used least takes
/// as many as it has room for.
///
/// The kernel gives maps the first 15 bytes of their names.
#[track_caller]
pub fn fill(name: &str) -> u64 {
    let own: Vec<u32> = own_maps();
    let mut found = aya::maps::loaded_maps().filter_map(|map| {
        let map = map.ok()?;
        let is_it = own.contains(&map.id()) && map.name_as_str() == Some(name);
        is_it.then_some(map)
    });
    let map = found.next().unwrap_or_else(|| panic!("no map {name}"));
    let fd = map.fd().expect("root, to open a map");
    let mut key = vec![0xff_u8; map.key_size() as usize];
    let value = vec![0_u8; map.value_size() as usize];
    for filled in 0..=u64::from(map.max_entries()) {
        // From the end: the highest pids, and addresses that no process has.
        let bytes = (u64::MAX - filled).to_le_bytes();
        let len = key.len().min(8);
        key[..len].copy_from_slice(&bytes[..len]);
        let attributes = [
            fd.as_fd().as_raw_fd() as u64,
            key.as_ptr() as u64,
            value.as_ptr() as u64,
            NO_EXIST,
        ];
        // SAFETY: the kernel reads a key and a value of the sizes that it told.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                UPDATE,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        if result < 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::E2BIG), "{name}: {error}");
            return filled;
        }
    }
    // Of a table that gives up what was used least.
    map.max_entries().into()
}

/// The ids of the maps that this process holds.
fn own_maps() -> Vec<u32> {
    let files = std::fs::read_dir("/proc/self/fdinfo").expect("our own descriptors");
    let texts = files.filter_map(|file| std::fs::read_to_string(file.ok()?.path()).ok());
    texts
        .filter_map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("map_id:"));
            line?.trim().parse().ok()
        })
        .collect()
}
