//! Survives SIGBUS: a page of a mapped file that is no longer there becomes a
//! page of zeros. Everything the handler does is async-signal-safe: atomics,
//! mmap, and the previous action.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Pages replaced since the program began, over all mappings.
static REPAIRS: AtomicU64 = AtomicU64::new(0);
/// The machine's page size, 0 until the handler is installed.
static PAGE_SIZE: AtomicUsize = AtomicUsize::new(0);
/// The ranges watched: a list that only grows, its nodes are reused.
static RANGES: AtomicPtr<Range> = AtomicPtr::new(ptr::null_mut());
/// Held while a node is taken or given back; never by the handler.
static RANGES_LOCK: Mutex<()> = Mutex::new(());
/// What SIGBUS did before.
static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::zeroed()));

struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written once, by `install`, before the handler can run; read after.
unsafe impl Sync for Previous {}

/// A watched address range; `start` is 0 while the node is free.
#[derive(Debug)]
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
    repairs: AtomicU64,
    next: *const Range,
}

/// Counts the pages of one mapping that were replaced.
#[derive(Debug)]
pub(super) struct Watch(&'static Range);

// SAFETY: `Range` is atomics and a pointer to another node, set before the
// node is published and never changed.
unsafe impl Send for Watch {}
// SAFETY: as above.
unsafe impl Sync for Watch {}

impl Watch {
    /// Watches `len` bytes from `start`. A node is allocated only when more
    /// ranges are watched at once than ever before.
    pub(super) fn start(start: usize, len: usize) -> Watch {
        let _guard = RANGES_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let head = RANGES.load(Ordering::Acquire);
        // SAFETY: nodes are leaked boxes, so every pointer in the list lives on.
        let mut node = unsafe { head.as_ref() };
        while let Some(range) = node {
            if range.start.load(Ordering::Acquire) == 0 {
                range.repairs.store(0, Ordering::Release);
                range.end.store(start + len, Ordering::Release);
                range.start.store(start, Ordering::Release);
                return Watch(range);
            }
            // SAFETY: as above.
            node = unsafe { range.next.as_ref() };
        }
        let range: &'static mut Range = Box::leak(Box::new(Range {
            start: AtomicUsize::new(start),
            end: AtomicUsize::new(start + len),
            repairs: AtomicU64::new(0),
            next: head,
        }));
        RANGES.store(range, Ordering::Release);
        Watch(range)
    }

    /// Pages of this range replaced so far.
    pub(super) fn repairs(&self) -> u64 {
        self.0.repairs.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _guard = RANGES_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.start.store(0, Ordering::Release);
    }
}

/// Pages of mapped files found missing when read, and replaced by zeros, since
/// the program began.
pub fn repairs() -> u64 {
    REPAIRS.load(Ordering::Acquire)
}

/// Installs the handler, once.
pub(super) fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| install_handler().map_err(|error| error.raw_os_error().unwrap_or(0)))
        .map_err(io::Error::from_raw_os_error)
}

fn install_handler() -> io::Result<()> {
    // SAFETY: sysconf has no preconditions.
    let page_size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page_size = usize::try_from(page_size).map_err(|_| io::Error::last_os_error())?;
    PAGE_SIZE.store(page_size, Ordering::Release);
    // SAFETY: both structures are plain data; the handler is async-signal-safe.
    // The previous action is read into PREVIOUS before the new one is set, so
    // that the handler never finds it unset.
    unsafe {
        if libc::sigaction(libc::SIGBUS, ptr::null(), PREVIOUS.0.get().cast()) != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_sigbus(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo under SA_SIGINFO; errno is the
    // interrupted code's and is put back.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        let missing_page = (*info).si_code == libc::BUS_ADRERR;
        if !missing_page || !repair((*info).si_addr() as usize) {
            chain(signal, info, context);
        }
        *errno = saved;
    }
}

/// Puts a page of zeros at `address`. Readable only: who writes to a page that
/// is gone must not believe it was stored.
fn repair(address: usize) -> bool {
    let page_size = PAGE_SIZE.load(Ordering::Acquire);
    if page_size == 0 {
        return false;
    }
    let page = address & !(page_size - 1);
    // SAFETY: the kernel just found no page behind this address, in a mapping
    // of a file: replacing it takes nothing from anybody.
    let mapped = unsafe {
        libc::mmap(
            page as *mut libc::c_void,
            page_size,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    REPAIRS.fetch_add(1, Ordering::AcqRel);
    // SAFETY: nodes of the list are never freed.
    let mut node = unsafe { RANGES.load(Ordering::Acquire).as_ref() };
    while let Some(range) = node {
        let start = range.start.load(Ordering::Acquire);
        if start != 0 && start <= address && address < range.end.load(Ordering::Acquire) {
            range.repairs.fetch_add(1, Ordering::AcqRel);
        }
        // SAFETY: as above.
        node = unsafe { range.next.as_ref() };
    }
    true
}

/// Does what SIGBUS did before the handler was installed.
///
/// # Safety
/// To be called from a signal handler with what the kernel passed to it.
unsafe fn chain(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: PREVIOUS was set before the handler was. A function found there
    // has the type its SA_SIGINFO flag tells.
    unsafe {
        let previous = (*PREVIOUS.0.get()).assume_init_ref();
        let from_kernel = (*info).si_code > 0;
        match previous.sa_sigaction {
            libc::SIG_IGN if !from_kernel => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                let mut default: libc::sigaction = MaybeUninit::zeroed().assume_init();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                // Blocked while the handler runs; kills when it returns.
                libc::raise(signal);
            }
            function if previous.sa_flags & libc::SA_SIGINFO != 0 => {
                let function: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(function);
                function(signal, info, context);
                // Rust's own handler restores the default and expects the
                // fault to come again; a signal that was sent does not.
                let mut now: libc::sigaction = MaybeUninit::zeroed().assume_init();
                libc::sigaction(signal, ptr::null(), &raw mut now);
                if !from_kernel && now.sa_sigaction == libc::SIG_DFL {
                    libc::raise(signal);
                }
            }
            function => {
                let function: extern "C" fn(i32) = std::mem::transmute(function);
                function(signal);
            }
        }
    }
}
