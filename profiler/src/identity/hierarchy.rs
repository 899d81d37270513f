//! The mounted tree of cgroup v2: where this process's own cgroup lies in it,
//! and which cgroup has an id. Reads the names of directories, never what is in
//! them.

use std::{
    collections::VecDeque,
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirEntryExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

/// Where the tree is mounted, without cgroup v1 and beside it.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// The inode of the root of the whole tree: kernfs numbers from 1 (Linux's
/// `kernfs_create_root`).
const ROOT: u64 = 1;
/// Processes whose mounts are tried: the host's first is the first of them, but
/// may be out of reach.
const MAX_PROCESSES: usize = 1024;
/// Cgroups that a search looks at before it gives up: a node with the most pods
/// that Kubernetes allows (250) has some thousands.
const MAX_CGROUPS: usize = 16_384;
/// The inode of the host's cgroup namespace (`PROC_CGROUP_INIT_INO` in Linux's
/// `include/linux/proc_ns.h`).
const HOST_NAMESPACE: &str = "cgroup:[4026531835]";

/// The mounted tree.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    mount: Option<PathBuf>,
}

impl Hierarchy {
    /// Finds the tree: the whole one where some process in reach sees it, since
    /// a container may have only its own part mounted.
    pub fn find() -> Self {
        let own = || own_mounts().map(PathBuf::from);
        let others = || {
            let pids = crate::process::all_pids().into_iter().take(MAX_PROCESSES);
            // What others mount may be anything; the host's own is looked at.
            pids.filter(|pid| is_in_host_namespace(&pid.to_string()))
                .flat_map(|pid| MOUNTS.map(|mount| format!("/proc/{pid}/root{mount}")))
                .map(PathBuf::from)
                .filter(|path| is_unified(path))
        };
        let is_whole = |path: &PathBuf| fs::metadata(path).is_ok_and(|root| root.ino() == ROOT);
        let whole = own().find(is_whole).or_else(|| others().find(is_whole));
        Self {
            mount: whole.or_else(|| own().next()),
        }
    }

    /// The absolute path of the cgroup to which this process sees others in
    /// relation; empty where paths are absolute, or it cannot be found.
    pub fn own(&self) -> String {
        if is_in_host_namespace("self") {
            return String::new();
        }
        // In a namespace of its own a container sees its part at the mount.
        own_mounts()
            .find_map(|path| fs::metadata(path).ok())
            .and_then(|own| self.path_of(own.ino()))
            .unwrap_or_default()
    }

    /// The path of the cgroup with an id, which is the inode of its directory
    /// (`cgroup_id` in Linux's `include/linux/cgroup.h`).
    pub fn path_of(&self, id: u64) -> Option<String> {
        let mount = self.mount.as_ref()?;
        let mut left = MAX_CGROUPS;
        let mut folders = VecDeque::from([mount.clone()]);
        while let Some(folder) = folders.pop_front() {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = entry.path();
                if entry.ino() == id {
                    let inside = path.strip_prefix(mount).ok()?;
                    return Some(format!("/{}", inside.to_string_lossy()));
                }
                left = left.checked_sub(1)?;
                folders.push_back(path);
            }
        }
        None
    }
}

/// Whether a process, by its name in `/proc`, has the host's cgroup namespace.
fn is_in_host_namespace(process: &str) -> bool {
    fs::read_link(format!("/proc/{process}/ns/cgroup"))
        .is_ok_and(|namespace| namespace.as_os_str() == HOST_NAMESPACE)
}

fn own_mounts() -> impl Iterator<Item = &'static Path> {
    let mounts = MOUNTS.iter().map(Path::new);
    mounts.filter(|path| is_unified(path))
}

/// Whether a cgroup v2 tree is mounted at `path`.
fn is_unified(path: &Path) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return false;
    };
    // SAFETY: all zeros is a value of this C struct of numbers.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid for the call, and the path ends in a zero.
    let result = unsafe { libc::statfs(path.as_ptr(), &mut found) };
    result == 0 && found.f_type == libc::CGROUP2_SUPER_MAGIC
}
