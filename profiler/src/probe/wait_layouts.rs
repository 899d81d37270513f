//! Which waits of which processes are followed: faces `programs/waits.rs`.

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use profiler_ebpf::wire::WaitLayout;
use zerocopy::IntoBytes;

/// The map `WAIT_LAYOUTS`.
pub struct WaitLayouts {
    /// The values are the bytes of a [`WaitLayout`].
    map: HashMap<MapData, u32, [u8; size_of::<WaitLayout>()]>,
}

impl WaitLayouts {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf
            .take_map("WAIT_LAYOUTS")
            .ok_or_else(|| anyhow!("the table of wait layouts was taken before"))?;
        Ok(Self {
            map: HashMap::try_from(map).context("the table of wait layouts is another")?,
        })
    }

    /// Says what is wanted of process `pid`.
    ///
    /// # Errors
    /// The table is full.
    pub fn insert(&mut self, pid: u32, layout: &WaitLayout) -> Result<()> {
        let mut value = [0; size_of::<WaitLayout>()];
        value.copy_from_slice(layout.as_bytes());
        self.map
            .insert(pid, value, 0)
            .with_context(|| format!("cannot follow the waits of process {pid}"))
    }

    /// Forgets process `pid`.
    pub fn remove(&mut self, pid: u32) {
        // It may never have been there.
        let _ = self.map.remove(&pid);
    }
}
