//! Spool: a bounded folder of objects that are on their way to the store. What
//! [`Spool::put`] returned for survives the agent and the machine; when the
//! bound is reached the oldest goes first, and is counted. Knows no store.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::sync::Notify;

/// The first bytes of an entry: what it is, and its layout.
const MAGIC: &[u8; 8] = b"goprof1\n";
/// Magic, length of the key, length of the object, checksum of both.
const HEADER_BYTES: usize = 8 + 4 + 8 + 4;
/// The longest key.
const MAX_KEY_BYTES: usize = 4096;

const ENTRY: &str = "entry";
const DAMAGED: &str = "damaged";
const UNFINISHED: &str = "tmp";

/// What happened to entries since the spool was opened.
#[derive(Debug, Default)]
pub struct SpoolCounters {
    /// Entries put on disk.
    pub stored: AtomicU64,
    /// Entries that went because the bound was reached or the disk was full.
    pub dropped: AtomicU64,
    /// Bytes of those.
    pub dropped_bytes: AtomicU64,
    /// Entries found damaged, and set aside.
    pub damaged: AtomicU64,
    /// Entries that were never finished: the agent was killed as it wrote them.
    pub unfinished: AtomicU64,
    /// Objects that could not be put on disk at all.
    pub refused: AtomicU64,
}

/// An entry of the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The object's key.
    pub key: String,
    /// The object.
    pub bytes: Vec<u8>,
    number: u64,
}

/// A bounded folder of objects on their way. One agent at a time has it.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    max_bytes: u64,
    is_synced: bool,
    kept: Mutex<Kept>,
    arrived: Notify,
    counters: SpoolCounters,
    // Held as long as the spool is.
    _lock: File,
}

#[derive(Debug, Default)]
struct Kept {
    files: BTreeMap<u64, Kind>,
    /// Of all files, and of those that are being written.
    bytes: u64,
    next: u64,
    /// The entry that is being uploaded: evicting it would waste the work.
    taken: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    bytes: u64,
    is_damaged: bool,
}

impl Spool {
    /// Opens the folder, makes it where it is not there, and lists what a
    /// former agent left. Entries that it did not finish are removed, entries
    /// of the wrong length are set aside; both are counted.
    ///
    /// # Errors
    /// One line, where the folder cannot be made or written, or another agent
    /// has it.
    pub fn open(folder: &Path, max_bytes: u64) -> Result<Spool> {
        let shown = folder.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .and_then(|()| fs::set_permissions(folder, Permissions::from_mode(0o700)))
            .with_context(|| format!("make the spool folder {shown}"))?;
        let lock = lock(folder)?;
        let counters = SpoolCounters::default();
        let kept =
            list(folder, &counters).with_context(|| format!("read the spool folder {shown}"))?;
        let spool = Spool {
            folder: folder.to_owned(),
            max_bytes,
            is_synced: true,
            kept: Mutex::new(kept),
            arrived: Notify::new(),
            counters,
            _lock: lock,
        };
        // The bound may be lower than it was.
        spool.make_room(&mut spool.kept(), 0);
        Ok(spool)
    }

    /// The same without waiting for the disk: entries survive the agent, but not
    /// the machine. For many small ones.
    #[must_use]
    pub fn without_sync(self) -> Spool {
        Spool {
            is_synced: false,
            ..self
        }
    }

    /// Puts an object on disk. When this returns, it is there to stay. Blocks
    /// for as long as the disk takes; where there is no room, the oldest entries
    /// go.
    ///
    /// # Errors
    /// The object is larger than the bound, or the disk takes nothing even with
    /// every older entry gone. It is counted then.
    pub fn put(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let stored = self.store(key, bytes);
        match stored {
            Ok(()) => {
                self.counters.stored.fetch_add(1, Ordering::Relaxed);
                self.arrived.notify_one();
            }
            Err(_) => {
                self.counters.refused.fetch_add(1, Ordering::Relaxed);
            }
        }
        stored
    }

    fn store(&self, key: &str, bytes: &[u8]) -> Result<()> {
        ensure!(key.len() <= MAX_KEY_BYTES, "the key is too long: {key}");
        let size = (HEADER_BYTES + key.len() + bytes.len()) as u64;
        if size > self.max_bytes {
            bail!(
                "an object of {size} bytes does not fit into the spool of {} bytes: give the spool more",
                self.max_bytes
            );
        }
        let number = {
            let mut kept = self.kept();
            self.make_room(&mut kept, size);
            kept.bytes += size;
            kept.next += 1;
            kept.next - 1
        };
        let header = header(key, bytes);
        let written = loop {
            match self.write(number, &[&header, key.as_bytes(), bytes]) {
                // The disk is smaller than the bound, or not ours alone.
                Err(e) if is_full(&e) && self.could_fit(size) => {
                    if !self.drop_oldest(&mut self.kept()) {
                        break Err(e);
                    }
                }
                written => break written,
            }
        };
        let mut kept = self.kept();
        if let Err(e) = written {
            kept.bytes -= size;
            let shown = self.folder.display();
            return Err(anyhow!(e).context(format!("write to the spool folder {shown}")));
        }
        let is_damaged = false;
        kept.files.insert(
            number,
            Kind {
                bytes: size,
                is_damaged,
            },
        );
        Ok(())
    }

    /// Whether the disk would have room with every entry gone. Where it would
    /// not, dropping them is for nothing.
    fn could_fit(&self, bytes: u64) -> bool {
        let kept: u64 = self.kept().files.values().map(|kind| kind.bytes).sum();
        free_bytes(&self.folder).is_none_or(|free| free.saturating_add(kept) >= bytes)
    }

    /// Writes an entry under a name that does not count, and gives it its own
    /// when all of it is on disk.
    fn write(&self, number: u64, parts: &[&[u8]]) -> io::Result<()> {
        let temporary = self.path(number, UNFINISHED);
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            for part in parts {
                file.write_all(part)?;
            }
            if self.is_synced {
                file.sync_all()?;
            }
            fs::rename(&temporary, self.path(number, ENTRY))?;
            if self.is_synced {
                // The name too must survive.
                File::open(&self.folder)?.sync_all()?;
            }
            Ok(())
        })();
        if written.is_err() {
            // Whatever is left of it would only take room.
            let _ = fs::remove_file(&temporary);
            let _ = fs::remove_file(self.path(number, ENTRY));
        }
        written
    }

    /// The oldest entry after the one of that number, or the oldest of all
    /// where none comes after it; `None` where there is none. A damaged one is
    /// set aside on the way and counted. It stays in the spool until
    /// [`Spool::remove`]. Reads a file: not for an async thread.
    pub fn take(&self, after: Option<u64>) -> Option<Entry> {
        loop {
            let number = {
                let mut kept = self.kept();
                let good = |(number, kind): (&u64, &Kind)| (!kind.is_damaged).then_some(*number);
                let number = after
                    .and_then(|after| kept.files.range(after + 1..).find_map(good))
                    .or_else(|| kept.files.iter().find_map(good));
                kept.taken = number;
                number?
            };
            let read = read(&self.path(number, ENTRY));
            match read {
                Ok((key, bytes)) => return Some(Entry { key, bytes, number }),
                Err(_) => self.set_aside(number),
            }
        }
    }

    /// Removes an entry that has arrived. An entry that stays because the disk
    /// refuses comes again at the next start.
    pub fn remove(&self, entry: &Entry) {
        let mut kept = self.kept();
        kept.taken = None;
        if let Some(kind) = kept.files.remove(&entry.number) {
            kept.bytes -= kind.bytes;
            let _ = fs::remove_file(self.path(entry.number, ENTRY));
        }
    }

    fn set_aside(&self, number: u64) {
        let mut kept = self.kept();
        kept.taken = None;
        if let Some(kind) = kept.files.get_mut(&number) {
            kind.is_damaged = true;
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            let _ = fs::rename(self.path(number, ENTRY), self.path(number, DAMAGED));
        }
    }

    /// Drops the oldest until that many bytes more are within the bound.
    fn make_room(&self, kept: &mut Kept, bytes: u64) {
        while kept.bytes.saturating_add(bytes) > self.max_bytes && self.drop_oldest(kept) {}
    }

    /// Drops a damaged file, else the oldest entry, preferably one that is not
    /// being uploaded. False where there is none.
    fn drop_oldest(&self, kept: &mut Kept) -> bool {
        let files = kept.files.iter();
        let damaged = files.clone().find(|(_, kind)| kind.is_damaged);
        let oldest = || {
            files
                .clone()
                .find(|(number, _)| kept.taken != Some(**number))
        };
        let found = damaged
            .or_else(oldest)
            .or_else(|| kept.files.first_key_value());
        let Some((&number, &kind)) = found else {
            return false;
        };
        kept.files.remove(&number);
        kept.bytes -= kind.bytes;
        if kind.is_damaged {
            // Counted as damaged already.
            let _ = fs::remove_file(self.path(number, DAMAGED));
        } else {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            let counter = &self.counters.dropped_bytes;
            counter.fetch_add(kind.bytes, Ordering::Relaxed);
            let _ = fs::remove_file(self.path(number, ENTRY));
        }
        true
    }

    /// Waits until something is put. Returns at once if that happened since the
    /// last call.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// How many entries wait, damaged ones not counted.
    pub fn len(&self) -> usize {
        let kept = self.kept();
        kept.files.values().filter(|kind| !kind.is_damaged).count()
    }

    /// Whether no entry waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes on disk, damaged entries included.
    pub fn bytes(&self) -> u64 {
        self.kept().bytes
    }

    /// The bound, in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// What happened so far.
    pub fn counters(&self) -> &SpoolCounters {
        &self.counters
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing in here can be left half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64, extension: &str) -> PathBuf {
        path(&self.folder, number, extension)
    }
}

impl Entry {
    /// Its place in the order of entries.
    pub fn number(&self) -> u64 {
        self.number
    }
}

fn path(folder: &Path, number: u64, extension: &str) -> PathBuf {
    folder.join(format!("{number:020}.{extension}"))
}

/// Takes the folder for this process.
fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = file.read_to_string(&mut pid);
            bail!(
                "the spool folder {} is used by another agent (pid {}): give each agent its own",
                folder.display(),
                pid.trim()
            );
        }
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("lock {}", path.display()));
        }
    }
    // Only for the message above: the lock is what counts.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// What a former agent left.
fn list(folder: &Path, counters: &SpoolCounters) -> io::Result<Kept> {
    let mut kept = Kept::default();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name();
        let Some((number, extension)) = name.to_str().and_then(|name| name.split_once('.')) else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        let mut is_damaged = match extension {
            ENTRY => false,
            DAMAGED => true,
            UNFINISHED => {
                counters.unfinished.fetch_add(1, Ordering::Relaxed);
                fs::remove_file(file.path())?;
                continue;
            }
            _ => continue,
        };
        let bytes = file.metadata()?.len();
        if !is_damaged && !is_whole(&file.path(), bytes) {
            is_damaged = true;
            counters.damaged.fetch_add(1, Ordering::Relaxed);
            fs::rename(file.path(), path(folder, number, DAMAGED))?;
        }
        kept.next = kept.next.max(number.saturating_add(1));
        kept.bytes += bytes;
        kept.files.insert(number, Kind { bytes, is_damaged });
    }
    Ok(kept)
}

fn header(key: &str, bytes: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&(key.len() as u32).to_le_bytes());
    header[12..20].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    header[20..].copy_from_slice(&checksum(key.as_bytes(), bytes).to_le_bytes());
    header
}

fn checksum(key: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(bytes);
    hasher.finalize()
}

/// Lengths of key and object, and the checksum.
fn parse(header: &[u8; HEADER_BYTES]) -> Option<(usize, u64, u32)> {
    let (magic, rest) = header.split_first_chunk()?;
    let (key, rest) = rest.split_first_chunk()?;
    let (bytes, rest) = rest.split_first_chunk()?;
    let checksum = rest.first_chunk()?;
    let key = u32::from_le_bytes(*key) as usize;
    let fits = magic == MAGIC && key <= MAX_KEY_BYTES;
    fits.then_some((
        key,
        u64::from_le_bytes(*bytes),
        u32::from_le_bytes(*checksum),
    ))
}

/// Whether a file is as long as its header says.
fn is_whole(path: &Path, size: u64) -> bool {
    let mut header = [0; HEADER_BYTES];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let Some((key, bytes, _)) = read.ok().and_then(|()| parse(&header)) else {
        return false;
    };
    let want = bytes.checked_add((HEADER_BYTES + key) as u64);
    want == Some(size)
}

/// Key and object of an entry.
fn read(path: &Path) -> Result<(String, Vec<u8>)> {
    let content = fs::read(path)?;
    let (header, rest) = content.split_first_chunk().context("too short")?;
    let (key, bytes, want) = parse(header).context("not an entry")?;
    ensure!(
        rest.len() as u64 == bytes.saturating_add(key as u64),
        "cut short"
    );
    let (key, bytes) = rest.split_at(key);
    ensure!(checksum(key, bytes) == want, "the checksum differs");
    Ok((String::from_utf8(key.to_vec())?, bytes.to_vec()))
}

/// Room on the disk for us, where the system tells.
fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros are a valid value of this struct of integers.
    let mut disk: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string and the struct writable, both for the call.
    let told = unsafe { libc::statvfs(folder.as_ptr(), &raw mut disk) };
    (told == 0).then(|| disk.f_bavail.saturating_mul(disk.f_frsize))
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

#[cfg(test)]
mod tests;
