//! How the runtime keeps those that wait for semaphores, and what of `sync` a
//! semaphore belongs to (`runtime/sema.go`, `sync/*.go`), by what is the same in all
//! versions from 1.19 to 1.27.

/// How `runtime.semtable` is laid out on amd64: roots of trees, each in a line of
/// the cache, and in each tree a node for each semaphore.
#[derive(Debug, Clone, Copy)]
pub struct SemaphoreTable;

impl SemaphoreTable {
    /// How many roots there are (`semTabSize`).
    pub const ROOTS: u64 = 251;
    /// Bytes from one to the next (`cpu.CacheLinePadSize`).
    pub const STRIDE: u64 = 64;
    /// Where in it the tree is (`semaRoot.treap`), behind a lock.
    pub const TREE: u64 = 8;

    /// Which root has a semaphore (`semTable.rootFor`).
    pub fn root_of(semaphore: u64) -> u64 {
        (semaphore >> 3) % Self::ROOTS
    }
}

/// What goroutines wait for that wait for semaphores, and what it is that the
/// semaphore is part of, with the bytes before it. Up to 1.19 the runtime has one
/// reason for all of them, and up to 1.23 none for groups.
const OWNERS: [(&str, &str, u64); 5] = [
    ("sync.Mutex.Lock", "mutex", 4),
    ("sync.RWMutex.Lock", "rwmutex", 8),
    ("sync.RWMutex.RLock", "rwmutex", 12),
    ("sync.WaitGroup.Wait", "waitgroup", 8),
    ("sync.Cond.Wait", "cond", 16),
];

/// The reason without an owner (`waitReasonSemacquire`).
const BARE: &str = "semacquire";

/// Whether goroutines that wait for this wait for a semaphore. Those of a `sync.Cond`
/// are in a list of their own.
pub fn is_for_semaphore(reason: &str) -> bool {
    let mut owners = OWNERS.iter().filter(|(_, what, _)| *what != "cond");
    reason == BARE || owners.any(|(known, ..)| *known == reason)
}

/// What a goroutine waits for that waits for a semaphore with this reason: what it
/// is, and its address.
pub fn owner_of_semaphore(reason: &str, semaphore: u64) -> (&'static str, u64) {
    let known = OWNERS.iter().find(|(known, ..)| *known == reason);
    known.map_or(("semaphore", semaphore), |(_, what, before)| {
        (what, semaphore.wrapping_sub(*before))
    })
}
