//! Keeps builds and measurements apart: cargo runs tests side by side, and a
//! compiler next to a measurement would cost it samples.

use std::fs::File;

/// Held while something is built or measured; the end of it lets others go on.
pub struct Turn(#[expect(dead_code, reason = "closing the file releases the lock")] File);

/// Waits until nobody measures. Any number of builds go on at once.
pub fn building() -> Turn {
    let file = lock_file();
    file.lock_shared().expect("wait for a turn to build");
    Turn(file)
}

/// Waits until nobody else builds or measures. Build what the measurement needs
/// before: building inside would wait for itself.
pub fn measuring() -> Turn {
    let file = lock_file();
    file.lock().expect("wait for a turn to measure");
    Turn(file)
}

fn lock_file() -> File {
    let path = crate::cache_dir().join("turn.lock");
    File::create(&path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()))
}
