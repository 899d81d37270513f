//! What the tests share: building Go programs, running goprof, reading and
//! comparing profiles. A missing prerequisite panics with the way to get it;
//! nothing here skips.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

#[cfg(feature = "agent")]
#[path = "harness/agent.rs"]
pub mod agent;
#[path = "harness/alloc_mix.rs"]
pub mod alloc_mix;
#[cfg(feature = "agent")]
#[path = "harness/batch.rs"]
pub mod batch;
#[path = "harness/certificates.rs"]
pub mod certificates;
#[path = "harness/command.rs"]
pub mod command;
#[path = "harness/compare.rs"]
pub mod compare;
#[cfg(feature = "agent")]
#[path = "harness/containerd.rs"]
pub mod containerd;
#[path = "harness/debian.rs"]
pub mod debian;
#[path = "harness/disk.rs"]
pub mod disk;
#[path = "harness/fixture.rs"]
pub mod fixture;
#[path = "harness/full_map.rs"]
pub mod full_map;
#[path = "harness/fuzzing.rs"]
pub mod fuzzing;
#[path = "harness/go.rs"]
pub mod go;
#[path = "harness/goprof.rs"]
pub mod goprof;
#[path = "harness/http.rs"]
pub mod http;
#[cfg(feature = "agent")]
#[path = "harness/identity.rs"]
pub mod identity;
#[path = "harness/listing.rs"]
pub mod listing;
#[path = "harness/loop_device.rs"]
pub mod loop_device;
#[path = "harness/memory.rs"]
pub mod memory;
#[path = "harness/pprof.rs"]
pub mod pprof;
#[path = "harness/python.rs"]
pub mod python;
#[path = "harness/quiet.rs"]
pub mod quiet;
#[path = "harness/receivers.rs"]
pub mod receivers;
#[path = "harness/replay.rs"]
pub mod replay;
#[path = "harness/s3.rs"]
pub mod s3;
#[path = "harness/seeds.rs"]
pub mod seeds;
#[path = "harness/talker.rs"]
pub mod talker;
#[path = "harness/target.rs"]
pub mod target;

use std::path::{Path, PathBuf};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests lie in the workspace")
        .to_path_buf()
}

/// Where cargo puts what it builds: `CARGO_TARGET_DIR`, else `target` of the
/// workspace.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// Where the tests keep what is costly to make: built Go programs, unpacked
/// packages.
pub fn cache_dir() -> PathBuf {
    let dir = target_dir().join("go-fixtures");
    std::fs::create_dir_all(&dir)
        .unwrap_or_else(|e| panic!("create the cache {}: {e}", dir.display()));
    dir
}
