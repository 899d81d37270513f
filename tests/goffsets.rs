//! The committed table of struct offsets is what Go's releases say. A test, not
//! a step of `cargo xtask ci`, so that it cannot be left out of `xtask test`.

use std::process::Command;

#[test]
fn table_is_what_builds_say() {
    let checked = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--"])
        .args(["goffsets", "--check"])
        .current_dir(goprof_tests::workspace())
        .output()
        .expect("run cargo");
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}
