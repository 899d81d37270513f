//! Turns a program's memory profile on for the time of a recording, where the
//! program takes none and the user has asked for it. The one place in goprof that
//! writes into a program: a word, which is put back at the end.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
};

use anyhow::{Context, Result, ensure};

use crate::gomemory::Program;

/// What Go itself samples by, in bytes (`runtime.MemProfileRate`).
pub const DEFAULT_RATE: u64 = 512 * 1024;

/// A program whose rate goprof has set. Dropping it puts back what was there,
/// unless the program has changed it meanwhile.
pub struct EnabledProfile {
    /// Bound to the program: another one in the same process is not written to.
    memory: File,
    address: u64,
    before: u64,
    set: u64,
}

impl EnabledProfile {
    /// Sets the rate of a program in process `pid`.
    ///
    /// # Errors
    /// The rate cannot be found, or not be written.
    pub fn set(pid: u32, program: &Program<'_>, rate: u64) -> Result<Self> {
        let (address, before) = program
            .mem_profile_rate()
            .map_err(|why| anyhow::anyhow!("{why}"))?;
        let memory = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .context("cannot write into its memory")?;
        let enabled = Self {
            memory,
            address,
            before,
            set: rate,
        };
        // Of the program that was looked at, not of one that began since.
        ensure!(
            enabled.rate() == Some(before) && program.memory.is_there(),
            "it has changed its rate meanwhile"
        );
        enabled
            .write(rate)
            .context("cannot write into its memory")?;
        Ok(enabled)
    }

    fn rate(&self) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory.read_exact_at(&mut bytes, self.address).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn write(&self, rate: u64) -> std::io::Result<()> {
        self.memory.write_all_at(&rate.to_le_bytes(), self.address)
    }
}

impl Drop for EnabledProfile {
    fn drop(&mut self) {
        if self.rate() == Some(self.set) {
            // Where it cannot be written the program is gone.
            let _ = self.write(self.before);
        }
    }
}
