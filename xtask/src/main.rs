//! `cargo xtask`: one file per subcommand.

fn main() {}
