//! Fuzz target: arbitrary text as what a client of the agent's HTTP server asks for.
//! Looks for panics, for processes that are not among those that can be asked for,
//! and for times without a bound.
#![no_main]

use goprof::agent::{MAX_SECONDS, understand};
use libfuzzer_sys::fuzz_target;

/// Processes that can be asked for.
const PIDS: [u32; 3] = [1, 2, u32::MAX];

fuzz_target!(|data: &[u8]| {
    let Ok(query) = std::str::from_utf8(data) else {
        return;
    };
    match understand(query, &PIDS) {
        Ok(asked) => {
            assert!(!asked.pids.is_empty());
            assert!(asked.pids.iter().all(|pid| PIDS.contains(pid)));
            assert!(asked.duration.as_secs() <= MAX_SECONDS);
        }
        Err((status, why)) => {
            assert!((400..500).contains(&status), "{status}: {why}");
            assert!(
                !why.is_empty() && !why.contains(char::is_control),
                "{why:?}"
            );
        }
    }
});
