//! The committed table of struct offsets is what Go's releases say. A test, not
//! a step of `cargo xtask ci`, so that it cannot be left out of `xtask test`.

#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says why and fails"
)]

use std::process::Command;

#[test]
fn table_is_what_builds_say() {
    let checked = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .args(["goffsets", "--check"])
        .current_dir(goprof_tests::workspace())
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}
