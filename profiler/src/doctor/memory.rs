//! Memory: whether a program keeps a heap profile that can be read, and why not.
//! Reads the program's memory; writes nothing.

use super::Check;
use crate::{
    gomemory::{Live, NoHeap},
    process::Process,
};

/// What to do about a program that takes no profile.
const REMEDY: &str = "goprof record -e alloc-events sees what it allocates without; for -e heap \
     and -e allocs: goprof record --enable-memprofile turns it on while it records (it writes a word \
     in the program); or import net/http/pprof or runtime/pprof in it";

/// Whether the program in `process` keeps a heap profile.
pub(super) fn heap_profile(process: &Process) -> Check {
    let check = |found: String| Check::ok("heap_profile", "heap profile", found);
    let unknown = "see that goprof is new enough for the program";
    let memory = match Live::open(process.pid) {
        Ok(memory) => memory,
        Err(error) => {
            return check(format!("its memory cannot be read: {error}"))
                .warn("run goprof as root, or with CAP_SYS_PTRACE");
        }
    };
    let Some(program) = process.go_program(&memory) else {
        return check("its Go code is not mapped".to_owned()).warn(unknown);
    };
    match program.heap() {
        Ok(profile) => check(format!(
            "on: samples once in {} bytes, {} stacks so far",
            profile.rate,
            profile.buckets.len()
        )),
        Err(NoHeap::Off { is_linked: false }) => {
            check("off: nothing in the program reads it, so Go's linker left it out".to_owned())
                .warn(REMEDY)
        }
        Err(NoHeap::Off { is_linked: true }) => {
            check("off: the program, or GODEBUG, set runtime.MemProfileRate to 0".to_owned())
                .warn(REMEDY)
        }
        Err(NoHeap::Unknown(why)) => check(why).warn(unknown),
    }
}
