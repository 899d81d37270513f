//! What probes took of each process, and the windows in which they may: the maps
//! that faces `programs/budget.rs`.

use anyhow::{Context, Result, anyhow};
use aya::{
    Ebpf,
    maps::{HashMap, MapData, MapError},
};
use profiler_ebpf::wire::{ProbeShare, ProbeWindow};
use zerocopy::{FromBytes, IntoBytes};

use super::window_ticks::WindowTicks;

type Table<const BYTES: usize> = HashMap<MapData, u32, [u8; BYTES]>;

/// The maps `PROBE_SHARES`, `PROBE_WINDOWS` and `PROBE_SPENT`, and the ticks that add to
/// the first.
pub struct Shares {
    /// The values are the bytes of a [`ProbeShare`].
    shares: Table<{ size_of::<ProbeShare>() }>,
    /// The values are the bytes of a [`ProbeWindow`].
    windows: Table<{ size_of::<ProbeWindow>() }>,
    spent: HashMap<MapData, u32, u64>,
    ticks: WindowTicks,
}

impl Shares {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let ticks = WindowTicks::load(ebpf)?;
        let mut take = |name: &str| {
            ebpf.take_map(name)
                .ok_or_else(|| anyhow!("the map {name} was taken before"))
        };
        Ok(Self {
            shares: HashMap::try_from(take("PROBE_SHARES")?)?,
            windows: HashMap::try_from(take("PROBE_WINDOWS")?)?,
            spent: HashMap::try_from(take("PROBE_SPENT")?)?,
            ticks,
        })
    }

    /// The ticks that look at processes with a window.
    pub(super) fn ticks(&self) -> WindowTicks {
        self.ticks.clone()
    }

    /// Counts the hits of process `pid` from now on, from zero. No window is open.
    ///
    /// # Errors
    /// The table is full.
    pub fn insert(&mut self, pid: u32) -> Result<()> {
        self.remove(pid)?;
        self.shares
            .insert(pid, bytes(&ProbeShare::default()), 0)
            .with_context(|| format!("cannot count the probe hits of process {pid}"))
    }

    /// What probes took of process `pid` so far.
    ///
    /// # Errors
    /// It was not inserted.
    pub fn of(&self, pid: u32) -> Result<ProbeShare> {
        let bytes = self.shares.get(&pid, 0);
        let bytes = bytes.with_context(|| format!("no probe hits of process {pid} are counted"))?;
        ProbeShare::read_from_bytes(&bytes).map_err(|_| anyhow!("the map has another layout"))
    }

    /// Sets the window of process `pid`, in place of the one before.
    ///
    /// # Errors
    /// The table is full.
    pub fn open(&mut self, pid: u32, window: &ProbeWindow) -> Result<()> {
        // Whoever still tells of the window before does so by its number.
        ignore_missing(self.spent.remove(&pid))?;
        self.windows
            .insert(pid, bytes(window), 0)
            .with_context(|| format!("cannot open a window for the probes of process {pid}"))
    }

    /// Whether the share of this window of process `pid` is spent.
    ///
    /// # Errors
    /// The map cannot be read.
    pub(super) fn is_spent(&self, pid: u32, window: u64) -> Result<bool> {
        match self.spent.get(&pid, 0) {
            Ok(spent) => Ok(spent == window),
            Err(error) => ignore_missing(Err(error)).map(|()| false),
        }
    }

    /// Ends the window of process `pid` at once.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn close(&mut self, pid: u32) -> Result<()> {
        ignore_missing(self.windows.remove(&pid))
    }

    /// Forgets process `pid`. Its probes must be off.
    ///
    /// # Errors
    /// A map cannot be written.
    pub fn remove(&mut self, pid: u32) -> Result<()> {
        ignore_missing(self.windows.remove(&pid))?;
        ignore_missing(self.spent.remove(&pid))?;
        ignore_missing(self.shares.remove(&pid))
    }
}

fn bytes<const BYTES: usize>(value: &(impl IntoBytes + zerocopy::Immutable)) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    bytes.copy_from_slice(value.as_bytes());
    bytes
}

fn ignore_missing(result: Result<(), MapError>) -> Result<()> {
    match result {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(error) => Err(error).context("cannot use the table of probe windows"),
    }
}
