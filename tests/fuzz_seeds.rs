//! Writes the inputs that fuzzing begins with: `cargo xtask fuzz` runs it with
//! a folder, in which each target gets one of its own. Writes nothing else.

#![expect(clippy::expect_used, reason = "a tool: a failure is a panic")]

use std::path::PathBuf;

use goprof_tests::fuzzing;

fn main() {
    let folder = std::env::args_os().nth(1).expect("name a folder");
    for (target, seeds) in fuzzing::seeds() {
        let folder = PathBuf::from(&folder).join(target);
        std::fs::create_dir_all(&folder).expect("make the folder");
        for (index, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("{index:04}")), seed).expect("write a seed");
        }
    }
}
