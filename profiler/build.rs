//! Refuses to build with an eBPF object that its sources have outgrown. It
//! compiles nothing and fetches nothing: `cargo xtask ebpf` does.

#[path = "build/ebpf_sources.rs"]
mod ebpf_sources;

use std::path::Path;
use std::{env, fs, io};

use ebpf_sources::{OBJECT_PATH, STAMP_PATH, Stamp};

fn main() {
    if let Err(problem) = check() {
        println!("cargo::error={problem}: run `cargo xtask ebpf` and commit what it writes");
    }
}

fn check() -> Result<(), String> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build/ebpf_sources.rs");
    let package = env::var("CARGO_MANIFEST_DIR").map_err(|error| error.to_string())?;
    let workspace = Path::new(&package).join("..");
    let inputs = ebpf_sources::inputs();
    if !inputs.iter().all(|input| workspace.join(input).exists()) {
        // A packaged or vendored copy carries the object without its sources:
        // there is nothing here that it could be older than.
        return Ok(());
    }
    for input in inputs {
        println!("cargo::rerun-if-changed=../{}", input.display());
    }
    for output in [OBJECT_PATH, STAMP_PATH] {
        println!("cargo::rerun-if-changed=../{output}");
    }

    let unreadable = |path: &str, error: io::Error| format!("cannot read {path} ({error})");
    let object =
        fs::read(workspace.join(OBJECT_PATH)).map_err(|error| unreadable(OBJECT_PATH, error))?;
    let stamp = fs::read_to_string(workspace.join(STAMP_PATH))
        .map_err(|error| unreadable(STAMP_PATH, error))?;
    let committed = Stamp::parse(&stamp).ok_or_else(|| format!("{STAMP_PATH} is damaged"))?;
    let current = Stamp::compute(&workspace, &object)
        .map_err(|error| format!("cannot read the eBPF sources ({error})"))?;
    if committed.object != current.object {
        return Err(format!(
            "{OBJECT_PATH} and {STAMP_PATH} do not belong together"
        ));
    }
    if committed.sources != current.sources {
        return Err(format!(
            "the eBPF sources have changed since {OBJECT_PATH} was built"
        ));
    }
    Ok(())
}
