//! Which processes the kernel side samples.

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use profiler_ebpf::wire::{GoLayout, Target, target};
use zerocopy::IntoBytes;

/// The map `TARGETS`.
pub struct Targets {
    /// The values are the bytes of a [`Target`].
    map: HashMap<MapData, u32, [u8; size_of::<Target>()]>,
}

impl Targets {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf
            .take_map("TARGETS")
            .ok_or_else(|| anyhow!("the target table was taken before"))?;
        Ok(Self {
            map: HashMap::try_from(map).context("the target table has another layout")?,
        })
    }

    /// Samples `pid` from now on, with its goroutines where the layout of its
    /// runtime is known.
    ///
    /// # Errors
    /// The table is full.
    pub fn insert(&mut self, pid: u32, layout: GoLayout) -> Result<()> {
        let target = Target {
            state: target::WANTED,
            reserved: 0,
            go: layout,
        };
        let mut value = [0; size_of::<Target>()];
        value.copy_from_slice(target.as_bytes());
        self.map
            .insert(pid, value, 0)
            .with_context(|| format!("cannot add process {pid} to the kernel's target table"))
    }

    /// No longer samples `pid`; nothing happens where it was not sampled.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn remove(&mut self, pid: u32) -> Result<()> {
        match self.map.remove(&pid) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(())
            }
            Err(error) => Err(error)
                .with_context(|| format!("cannot remove process {pid} from the target table")),
        }
    }

    /// The pids in the table, those included whose program userspace has not
    /// looked at yet. An entry that changes meanwhile may be missing.
    pub fn pids(&self) -> Vec<u32> {
        self.map.keys().filter_map(Result::ok).collect()
    }
}
