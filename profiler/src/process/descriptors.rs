//! What a process has open, by kind: sockets, pipes, files. Reads `/proc/PID/fd`.

use std::{collections::BTreeMap, fs, io};

/// How many descriptors a process has open, by kind: `socket`, `pipe`, `file`, or
/// what the kernel calls its own, as `eventpoll`.
///
/// # Errors
/// The process is gone, or may not be looked at.
pub fn open_by_kind(pid: u32) -> io::Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile is not open.
        if let Ok(target) = fs::read_link(entry?.path()) {
            *counts.entry(kind(&target.to_string_lossy())).or_default() += 1;
        }
    }
    Ok(counts)
}

fn kind(target: &str) -> String {
    if target.starts_with('/') {
        return "file".to_owned();
    }
    match target.split_once(':') {
        Some(("anon_inode", name)) => name.trim_matches(['[', ']']).to_owned(),
        Some((kind, _)) => kind.to_owned(),
        None => "other".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_what_links_name() {
        assert_eq!(kind("socket:[123]"), "socket");
        assert_eq!(kind("pipe:[1]"), "pipe");
        assert_eq!(kind("anon_inode:[eventpoll]"), "eventpoll");
        assert_eq!(kind("anon_inode:bpf-map"), "bpf-map");
        assert_eq!(kind("/var/log/x:[1]"), "file");
        assert_eq!(kind("strange"), "other");
    }

    #[test]
    fn what_is_opened_is_counted() {
        let count = || open_by_kind(std::process::id()).map(|all| all["socket"]);
        let _one = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let many: Vec<_> = (0..200)
            .map(|_| std::os::unix::net::UnixDatagram::unbound().unwrap())
            .collect();
        let with = count().unwrap();
        assert!(with > many.len() as u32, "{with}");
    }
}
