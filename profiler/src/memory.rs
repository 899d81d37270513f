//! This process's own memory: how much it is, when it comes near its limit, and
//! giving back what is free. Holds nothing that could be let go of.

/// Watches the memory of the process against a limit, for somebody who holds
/// what can be had again.
#[derive(Debug, Clone)]
pub struct Watch {
    limit_bytes: u64,
    /// What was left when something was let go of last, or less.
    floor_bytes: u64,
}

impl Watch {
    /// Nothing was let go of yet.
    pub fn new(limit_bytes: u64) -> Self {
        Self {
            limit_bytes,
            floor_bytes: 0,
        }
    }

    /// Whether to let go of what can be had again: more than three quarters of
    /// the limit are taken, and more than were left the last time. Asks the
    /// kernel, in some microseconds.
    pub fn is_short(&mut self) -> bool {
        self.is_short_at(resident_bytes())
    }

    fn is_short_at(&mut self, resident_bytes: u64) -> bool {
        self.floor_bytes = self.floor_bytes.min(resident_bytes);
        // Where little can be let go of, not again and again.
        let again = self.floor_bytes + self.limit_bytes / 32;
        resident_bytes > self.high().max(again)
    }

    /// Something was let go of: gives it back to the kernel. Says whether more
    /// than three quarters of the limit are taken even so.
    pub fn eased(&mut self) -> bool {
        trim();
        self.floor_bytes = resident_bytes();
        self.floor_bytes > self.high()
    }

    fn high(&self) -> u64 {
        self.limit_bytes / 4 * 3
    }
}

/// Resident memory, pages of mapped files included, in bytes; 0 where the kernel
/// does not say.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0u64) * u64::try_from(page).unwrap_or(4096)
}

/// Gives free memory back to the kernel, where the allocator knows how.
pub fn trim() {
    // SAFETY: no preconditions; other threads may allocate meanwhile.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_known() {
        let bytes = resident_bytes();
        assert!((1 << 20..1 << 40).contains(&bytes), "{bytes}");
        trim();
    }

    #[test]
    fn memory_is_short_above_three_quarters() {
        let mut watch = Watch::new(128);
        assert!(!watch.is_short_at(96));
        assert!(watch.is_short_at(97));
        assert!(watch.is_short_at(97), "nothing was let go of");
    }

    #[test]
    fn what_little_was_left_to_let_go_of_is_not_asked_for_again_at_once() {
        let mut watch = Watch::new(128);
        watch.floor_bytes = 100;
        assert!(!watch.is_short_at(104));
        assert!(watch.is_short_at(105));
        // What was let go of elsewhere counts as well.
        assert!(!watch.is_short_at(80));
        assert!(watch.is_short_at(97));
    }

    #[test]
    fn easing_notes_what_is_left() {
        let mut watch = Watch::new(1);
        assert!(watch.is_short());
        assert!(watch.eased(), "a process is larger than a byte");
        assert!(watch.floor_bytes > 1 << 20);
        assert!(!Watch::new(u64::MAX).eased());
    }
}
