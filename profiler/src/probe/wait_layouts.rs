//! Which waits of which processes are followed: faces `programs/waits.rs`.

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use profiler_ebpf::wire::{Parked, Queue, WaitKey, WaitLayout, Waiter};
use zerocopy::{FromBytes, IntoBytes};

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

/// A map whose keys are the bytes of a [`WaitKey`].
type Waits<const BYTES: usize> = HashMap<MapData, [u8; size_of::<WaitKey>()], [u8; BYTES]>;

/// The maps `PARKED`, `WAITERS` and `QUEUES`, whose values are the bytes of a [`Parked`], a
/// [`Waiter`] and a [`Queue`].
pub struct OpenWaits {
    parked: Waits<{ size_of::<Parked>() }>,
    waiters: Waits<{ size_of::<Waiter>() }>,
    queues: Waits<{ size_of::<Queue>() }>,
}

impl OpenWaits {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| anyhow!("the map {name} was taken before"))
        };
        Ok(Self {
            parked: HashMap::try_from(take("PARKED")?)?,
            waiters: HashMap::try_from(take("WAITERS")?)?,
            queues: HashMap::try_from(take("QUEUES")?)?,
        })
    }

    /// Forgets the waits of process `pid`. Takes as long as there are waits of all.
    pub fn forget(&mut self, pid: u32) {
        forget(&mut self.parked, pid);
        forget(&mut self.waiters, pid);
        forget(&mut self.queues, pid);
    }

    /// Since when a goroutine waits, by the address of its `g`: for anything, or for a
    /// semaphore; None where the kernel side did not see it begin.
    pub fn since(&self, pid: u32, g: u64) -> Option<u64> {
        let mut key = [0; size_of::<WaitKey>()];
        let of = WaitKey {
            address: g,
            pid: pid.into(),
        };
        key.copy_from_slice(of.as_bytes());
        let parked = self.parked.get(&key, 0).ok();
        let parked = parked.and_then(|bytes| Parked::read_from_bytes(&bytes).ok());
        let waiter = self.waiters.get(&key, 0).ok();
        let waiter = waiter.and_then(|bytes| Waiter::read_from_bytes(&bytes).ok());
        parked
            .map(|parked| parked.since_ns)
            .max(waiter.map(|waiter| waiter.since_ns))
    }
}

fn forget<const BYTES: usize>(waits: &mut Waits<BYTES>, pid: u32) {
    let of_process = |key: &[u8; size_of::<WaitKey>()]| {
        WaitKey::read_from_bytes(key).is_ok_and(|key| key.pid == u64::from(pid))
    };
    // What changes meanwhile is of others.
    let keys: Vec<_> = waits.keys().flatten().filter(of_process).collect();
    for key in keys {
        let _ = waits.remove(&key);
    }
}
