//! What the kernel side and userspace share: record layouts and the stack walk.
#![no_std]
