//! The agent's own memory: how much it is, and giving back what is free. Decides
//! nothing.

/// Resident memory, pages of mapped files included, in bytes; 0 where the kernel
/// does not say.
pub(super) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    // SAFETY: no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    pages.unwrap_or(0u64) * u64::try_from(page).unwrap_or(4096)
}

/// Gives free memory back to the kernel, where the allocator knows how.
pub(super) fn trim() {
    // SAFETY: no preconditions; other threads may allocate meanwhile.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn resident_memory_is_known() {
        let bytes = super::resident_bytes();
        assert!((1 << 20..1 << 40).contains(&bytes), "{bytes}");
        super::trim();
    }
}
