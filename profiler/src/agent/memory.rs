//! How the memory limit is shared out among those who hold what cannot be had
//! again. Measures nothing: see `crate::memory`.

use super::{config::Config, kind::Kind};
use crate::{profile::parquet, session::MemoryLimit};

/// The part of the limit that windows may take together while they are written;
/// open and waiting they take a fraction of it.
const WINDOWS: u64 = 4;
/// The part of the limit that profiles may take which are kept for the next reading,
/// and half of which those may take that are kept for a profile by HTTP.
const PROFILES: u64 = 8;
/// The part of the limit that the ring buffers may take together.
const RINGS: u64 = 32;
/// Sizes of a ring buffer: the largest lasts for more than ten seconds of 64 busy
/// CPUs at 19 Hz, the least for three.
const RING_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=4 << 20;

/// The shares of the memory limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shares {
    limit_bytes: u64,
    samplers: u64,
}

impl Shares {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            limit_bytes: config.memory_limit.0,
            samplers: Kind::all(config).len().max(1) as u64,
        }
    }

    /// What one session may take.
    pub(super) fn of_session(self) -> MemoryLimit {
        let (_, windows_bytes) = parquet::share_out(self.windows_bytes());
        MemoryLimit {
            process_bytes: self.limit_bytes,
            window_bytes: windows_bytes / usize::try_from(self.samplers).unwrap_or(usize::MAX),
        }
    }

    /// What the writer of windows may take beside the window that it writes.
    pub(super) fn writer_bytes(self) -> usize {
        parquet::share_out(self.windows_bytes()).0
    }

    /// What profiles may take that are kept for the next reading.
    pub(super) fn kept_bytes(self) -> usize {
        usize::try_from(self.limit_bytes / PROFILES).unwrap_or(usize::MAX)
    }

    fn windows_bytes(self) -> usize {
        usize::try_from(self.limit_bytes / WINDOWS).unwrap_or(usize::MAX)
    }

    /// All of it.
    pub(super) fn limit_bytes(self) -> u64 {
        self.limit_bytes
    }

    /// Size of a sampler's ring buffer, a power of two.
    pub(super) fn ring_bytes(self) -> u32 {
        let bytes = self.limit_bytes / RINGS / self.samplers;
        let bytes = bytes.clamp(*RING_BYTES.start(), *RING_BYTES.end());
        // At most the largest, which fits.
        1 << bytes.ilog2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(text: &str) -> Shares {
        Shares::of(&Config::parse(text).unwrap())
    }

    #[test]
    fn shares_follow_the_limit_and_the_number_of_rates() {
        let default = shares("");
        assert_eq!(default.of_session().window_bytes, 20 << 20);
        assert_eq!(default.writer_bytes(), 12 << 20);
        assert_eq!(default.ring_bytes(), 4 << 20);
        assert_eq!(shares("memory_limit = \"64MiB\"").ring_bytes(), 2 << 20);
        assert_eq!(shares("memory_limit = \"32MiB\"").ring_bytes(), 1 << 20);
        assert_eq!(shares("memory_limit = \"8GiB\"").ring_bytes(), 4 << 20);
        let three = shares(
            "[[rules]]\nrate_hz = 7\ninclude = [{ name = \"a\" }]\n\
             [[rules]]\nrate_hz = 11\ninclude = [{ name = \"b\" }]\n[[rules]]\n",
        );
        assert_eq!(three.of_session().window_bytes, (20 << 20) / 3);
        assert_eq!(three.writer_bytes(), 12 << 20);
        assert_eq!(three.ring_bytes(), 1 << 20);
    }
}
