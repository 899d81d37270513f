//! What the kernel side and userspace share: the layouts of records, map
//! entries and counters ([`wire`]), and the stack walk ([`walk`]), which runs
//! over any memory and so is tested on the host. Builds for both; nothing here
//! may call a kernel helper.
#![no_std]

pub mod walk;
pub mod wire;
