//! The `goprof` command: parse, run, exit code.

fn main() {}
