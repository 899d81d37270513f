//! Upload: empties a spool into the store or a receiver, the oldest entry first,
//! for as long as it takes. One that is away never holds up those who fill the
//! spool.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::future::Future;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout_at};

use super::spool::Spool;
use super::store::{Failure, PutError, Store};

/// Waits between attempts: the first, and where doubling ends.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Between attempts when there is little time.
const FLUSH_WAIT: Duration = Duration::from_millis(200);

/// What became of uploads.
#[derive(Debug, Default)]
pub struct UploadCounters {
    /// Objects that arrived.
    pub uploaded: AtomicU64,
    /// Their bytes.
    pub uploaded_bytes: AtomicU64,
    /// Attempts that failed, by [`Failure::ALL`].
    failed: [AtomicU64; Failure::ALL.len()],
    /// When the last object arrived, in seconds since 1970; 0 for never.
    pub last_success_seconds: AtomicU64,
    /// How long the successful uploads took together, in microseconds.
    pub upload_micros: AtomicU64,
}

impl UploadCounters {
    /// Attempts that failed for a reason.
    pub fn failed(&self, failure: Failure) -> u64 {
        self.failed[failure as usize].load(Ordering::Relaxed)
    }
}

/// Where entries go.
pub trait Destination: fmt::Display + Send + Sync {
    /// Puts an object under a key.
    ///
    /// # Errors
    /// It did not arrive, as far as is known: trying again does no harm, unless
    /// the failure is final.
    fn put(&self, key: &str, bytes: Vec<u8>) -> impl Future<Output = Result<(), PutError>> + Send;
}

/// Empties a spool into a store, or whatever else takes objects.
#[derive(Debug)]
pub struct Uploader<D = Store> {
    destination: D,
    spool: Arc<Spool>,
    counters: Arc<UploadCounters>,
    /// One upload at a time.
    turn: tokio::sync::Mutex<Turn>,
}

#[derive(Debug, Default)]
struct Turn {
    /// The entry that was tried last: the next attempt is at the one after it, so
    /// that one which the other side will not have stops no other.
    last: Option<u64>,
    /// Failures that an entry was given up for and that were told.
    told: Vec<Failure>,
}

/// What an attempt came to.
enum Attempt {
    Nothing,
    Arrived,
    Failed(PutError),
    /// It was given up.
    Dropped(PutError),
}

impl<D: Destination> Uploader<D> {
    /// Nothing is uploaded yet.
    pub fn new(destination: D, spool: Arc<Spool>) -> Self {
        Uploader {
            destination,
            spool,
            counters: Arc::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// What became of uploads, as it goes on.
    pub fn counters(&self) -> Arc<UploadCounters> {
        Arc::clone(&self.counters)
    }

    /// Uploads whatever is in the spool and comes into it, until `shutdown`. An
    /// upload that is under way then is given up; its entry stays.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.upload_forever() => {}
        }
    }

    async fn upload_forever(&self) {
        let mut failures = 0;
        loop {
            match self.attempt().await {
                Attempt::Nothing => self.spool.arrived().await,
                Attempt::Arrived => {
                    if failures > 0 {
                        log::info!("uploads to {} go on", self.destination);
                    }
                    failures = 0;
                }
                Attempt::Failed(error) => {
                    let wait = wait(failures);
                    failures += 1;
                    log::warn!(
                        "upload to {} failed, {} objects wait, again in {:.1} s: {error}",
                        self.destination,
                        self.spool.len(),
                        wait.as_secs_f64()
                    );
                    sleep(wait).await;
                }
                Attempt::Dropped(error) => self.tell_once(&error).await,
            }
        }
    }

    /// Says why an entry was given up, the first time that it is for this reason.
    async fn tell_once(&self, error: &PutError) {
        let told = &mut self.turn.lock().await.told;
        if !told.contains(&error.failure) {
            told.push(error.failure);
            log::warn!(
                "{} takes not all; what it does not is dropped and counted: {error}",
                self.destination
            );
        }
    }

    /// Uploads what is in the spool until it is empty or the time is over, and
    /// returns how many entries are left, which the next agent finds.
    pub async fn flush(&self, deadline: Instant) -> usize {
        let upload = async {
            loop {
                match self.attempt().await {
                    Attempt::Nothing => return,
                    Attempt::Arrived => {}
                    Attempt::Failed(_) => sleep(FLUSH_WAIT).await,
                    Attempt::Dropped(error) => self.tell_once(&error).await,
                }
            }
        };
        // What is left is what counts.
        let _ = timeout_at(deadline.into(), upload).await;
        self.spool.len()
    }

    /// Tries one entry.
    async fn attempt(&self) -> Attempt {
        let mut turn = self.turn.lock().await;
        let (spool, after) = (Arc::clone(&self.spool), turn.last);
        let taken = spawn_blocking(move || spool.take(after)).await;
        let Some(mut entry) = taken.ok().flatten() else {
            return Attempt::Nothing;
        };
        let started = Instant::now();
        let bytes = std::mem::take(&mut entry.bytes);
        let length = bytes.len() as u64;
        turn.last = Some(entry.number());
        let attempt = match self.destination.put(&entry.key, bytes).await {
            Ok(()) => {
                self.count_success(length, started.elapsed());
                Attempt::Arrived
            }
            Err(error) => {
                let failed = &self.counters.failed[error.failure as usize];
                failed.fetch_add(1, Ordering::Relaxed);
                if !error.failure.is_final() {
                    return Attempt::Failed(error);
                }
                Attempt::Dropped(error)
            }
        };
        let spool = Arc::clone(&self.spool);
        // It is done with, whatever becomes of the file.
        let _ = spawn_blocking(move || spool.remove(&entry)).await;
        attempt
    }

    fn count_success(&self, bytes: u64, took: Duration) {
        let counters = &self.counters;
        counters.uploaded.fetch_add(1, Ordering::Relaxed);
        counters.uploaded_bytes.fetch_add(bytes, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        counters.upload_micros.fetch_add(micros, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seconds = now.map_or(0, |now| now.as_secs());
        let last = &counters.last_success_seconds;
        last.store(seconds, Ordering::Relaxed);
    }
}

/// How long to wait after that many failures in a row: twice as long each time
/// up to a minute, of which a random half, so that a thousand nodes do not come
/// back at once.
fn wait(failures: u32) -> Duration {
    let longest = FIRST_WAIT
        .saturating_mul(1 << failures.min(10))
        .min(LONGEST_WAIT);
    // Seeded anew for each state: a random number without a generator.
    let random = RandomState::new().hash_one(failures) % 1_000;
    longest / 2 + longest.mul_f64(random as f64 / 2_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn spool(folder: &Path) -> Arc<Spool> {
        Arc::new(Spool::open(&folder.join("spool"), 1 << 20).unwrap())
    }

    fn uploader(folder: &Path, spool: &Arc<Spool>) -> Uploader {
        let store = Store::open(folder.join("store").to_str().unwrap()).unwrap();
        Uploader::new(store, Arc::clone(spool))
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn what_comes_while_it_runs_is_uploaded_and_leaves_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let uploader = uploader(dir.path(), &spool);
        spool.put("v1/a", b"one").unwrap();
        let fill = async {
            sleep(Duration::from_millis(50)).await;
            spool.put("v1/b", b"two").unwrap();
            while !spool.is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        uploader.run(fill).await;
        let read = |key: &str| std::fs::read(dir.path().join("store").join(key)).unwrap();
        assert_eq!(
            (read("v1/a"), read("v1/b")),
            (b"one".to_vec(), b"two".to_vec())
        );
        let counters = uploader.counters();
        assert_eq!(counters.uploaded.load(Ordering::Relaxed), 2);
        assert_eq!(counters.uploaded_bytes.load(Ordering::Relaxed), 6);
        assert_ne!(counters.last_success_seconds.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn an_object_that_arrived_before_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let uploader = uploader(dir.path(), &spool);
        for _ in 0..2 {
            spool.put("v1/a", b"one").unwrap();
            assert_eq!(uploader.flush(soon()).await, 0);
        }
        assert_eq!(uploader.counters().uploaded.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn one_that_the_store_refuses_stays_and_stops_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let uploader = uploader(dir.path(), &spool);
        std::fs::create_dir_all(dir.path().join("store/v1")).unwrap();
        std::fs::write(dir.path().join("store/v1/a"), b"of another").unwrap();
        for key in ["v1/a", "v1/b", "v1/c"] {
            spool.put(key, b"one").unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        assert_eq!(uploader.flush(deadline).await, 1);
        assert!(Instant::now() >= deadline, "it tries for as long as it may");
        assert_eq!(spool.take(None).unwrap().key, "v1/a");
        assert!(dir.path().join("store/v1/c").exists());
        assert_ne!(uploader.counters().failed(Failure::Conflict), 0);
    }

    /// Takes no object that is called so, for the reason that it is called.
    struct Picky(std::sync::Mutex<Vec<String>>);

    impl fmt::Display for Picky {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("picky")
        }
    }

    impl Destination for Picky {
        async fn put(&self, key: &str, _: Vec<u8>) -> Result<(), PutError> {
            self.0.lock().unwrap().push(key.to_owned());
            let failure = Failure::ALL.into_iter().find(|f| key.starts_with(f.name()));
            let message = String::new();
            failure.map_or(Ok(()), |failure| Err(PutError { failure, message }))
        }
    }

    #[tokio::test]
    async fn what_is_refused_for_good_is_given_up_and_what_fails_waits_for_its_turn() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let tried = std::sync::Mutex::default();
        let uploader = Uploader::new(Picky(tried), Arc::clone(&spool));
        for key in ["rejected", "overloaded", "a", "too_old", "b"] {
            spool.put(key, b"one").unwrap();
        }
        let left = uploader.flush(Instant::now() + Duration::from_millis(500));
        assert_eq!(left.await, 1);
        assert_eq!(spool.take(None).unwrap().key, "overloaded");
        let tried = uploader.destination.0.lock().unwrap().clone();
        // Each once, and again only the one that may still arrive.
        let first = ["rejected", "overloaded", "a", "too_old", "b", "overloaded"];
        assert_eq!(tried[..6], first);
        assert!(tried[6..].iter().all(|key| key == "overloaded"));
        let counters = uploader.counters();
        assert_eq!(counters.uploaded.load(Ordering::Relaxed), 2);
        for failure in [Failure::Rejected, Failure::TooOld] {
            assert_eq!(counters.failed(failure), 1, "{failure:?}");
        }
    }

    #[test]
    fn waits_double_up_to_a_minute_and_differ() {
        for (failures, longest) in [(0, 1), (1, 2), (5, 32), (6, 60), (1_000, 60)] {
            let longest = Duration::from_secs(longest);
            let waits: Vec<_> = (0..50).map(|_| wait(failures)).collect();
            assert!(
                waits
                    .iter()
                    .all(|wait| *wait >= longest / 2 && *wait <= longest)
            );
            assert!(waits.iter().any(|wait| *wait != waits[0]));
        }
    }
}
