//! Which threads of the runtime are merely idle, by the functions on their stack.

/// What a thread is in that has no work, or is there for what comes now and then: it
/// looks for a goroutine to run (and waits for the network and timers meanwhile, up
/// to Go 1.13 in a goroutine of its own), is parked until there is one, or until the
/// goroutine that it is locked to can run; it watches over the others, makes threads
/// from one in a known state, or waits for signals to hand on.
const IDLE: [&str; 9] = [
    "runtime.findRunnable",
    "runtime.findrunnable",
    "runtime.stopm",
    "runtime.stoplockedm",
    "runtime.mPark",
    "runtime.sysmon",
    "runtime.templateThread",
    "runtime.timerproc",
    "os/signal.signal_recv",
];

/// What a thread is in that waits for another one, whatever it is about to do.
const LOCKS: [&str; 2] = ["runtime.lock2", "runtime.stopTheWorldWithSema"];

/// Whether a thread is idle with these Go functions on its stack, leaf first. Work
/// of the collector is a goroutine's (`gcBgMarkWorker`): a thread without any of it is
/// one that looks for a goroutine.
pub fn is_idle_thread<'n>(functions: impl IntoIterator<Item = &'n str>) -> bool {
    for function in functions {
        if LOCKS.contains(&function) {
            return false;
        }
        if IDLE.contains(&function) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_without_work_are_idle() {
        let idle: [&[&str]; 4] = [
            &[
                "runtime.futex",
                "runtime.notesleep",
                "runtime.mPark",
                "runtime.stopm",
            ],
            &[
                "runtime.epollwait",
                "runtime.netpoll",
                "runtime.findRunnable",
            ],
            &["runtime.usleep", "runtime.sysmon", "runtime.mstart1"],
            &[
                "runtime.futex",
                "runtime.notetsleepg",
                "os/signal.signal_recv",
            ],
        ];
        for functions in idle {
            assert!(is_idle_thread(functions.iter().copied()), "{functions:?}");
        }
    }

    #[test]
    fn what_waits_for_something_is_not() {
        let busy: [&[&str]; 4] = [
            &[],
            &[
                "syscall.Syscall",
                "syscall.read",
                "main.main",
                "runtime.main",
            ],
            &["runtime.futex", "runtime.lock2", "runtime.findRunnable"],
            &[
                "runtime.futex",
                "runtime.stopTheWorldWithSema",
                "runtime.gcStart",
            ],
        ];
        for functions in busy {
            assert!(!is_idle_thread(functions.iter().copied()), "{functions:?}");
        }
    }
}
