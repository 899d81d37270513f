//! The ring buffer: waits for records and hands out their bytes. Knows nothing
//! of what they mean.

use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

/// How long records may wait that did not wake us. To sleep and wake is dear on a
/// virtual machine, and tokio wakes twice for a time this far off: ten looks a second
/// were 27 wake-ups. What fills the ring faster wakes us.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What the ring keeps before each record (`BPF_RINGBUF_HDR_SZ`).
const RECORD_HEAD_BYTES: usize = 8;

/// The records of the kernel side. Needs a tokio runtime.
pub struct Records {
    ring: AsyncFd<RingBuf<MapData>>,
    /// Bytes taken since the ring was last found empty.
    waiting_bytes: usize,
    /// The most of that.
    peak_bytes: usize,
    /// Bytes taken so far.
    taken_bytes: u64,
}

impl Records {
    /// Wraps the ring buffer.
    ///
    /// # Errors
    /// Its descriptor cannot be polled.
    pub fn new(ring: RingBuf<MapData>) -> Result<Self> {
        // SAFETY: the ring buffer owns its descriptor, returns the same one each
        // time, and keeps it open until it is dropped.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
            .context("cannot wait for the ring buffer")?;
        Ok(Self {
            ring,
            waiting_bytes: 0,
            peak_bytes: 0,
            taken_bytes: 0,
        })
    }

    /// Waits until the kernel side wakes us, or until it is time to look for
    /// the records that do not.
    pub async fn ready(&mut self) {
        if let Ok(Ok(mut guard)) = tokio::time::timeout(LOOK_EVERY, self.ring.readable_mut()).await
        {
            guard.clear_ready();
        }
    }

    /// Hands every record that is there to `take`, oldest first, and says how
    /// many they were. Bounded by `limit`, so that a full ring cannot starve
    /// the caller.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let ring = self.ring.get_mut();
        let mut taken = 0;
        while taken < limit {
            let Some(record) = ring.next() else { break };
            take(&record);
            let bytes = record.len() + RECORD_HEAD_BYTES;
            self.waiting_bytes += bytes;
            self.taken_bytes += bytes as u64;
            taken += 1;
        }
        self.peak_bytes = self.peak_bytes.max(self.waiting_bytes);
        if taken < limit {
            self.waiting_bytes = 0;
        }
        taken
    }

    /// Bytes of the ring that were taken so far. Once these are as many more as the ring
    /// holds, all that was in it before has been taken.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// The most bytes of the ring that were in use at once since the last call,
    /// as far as was seen when they were taken.
    pub fn take_peak_bytes(&mut self) -> usize {
        std::mem::take(&mut self.peak_bytes)
    }
}
