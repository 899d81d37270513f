//! `cargo xtask ebpf`: builds the eBPF object that is committed and embedded.
//! The same sources give the same bytes in any folder on any machine, and
//! `--check` proves it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::BpfToolchain;
use crate::command;
use crate::workspace::Workspace;

#[path = "../../profiler/build/ebpf_sources.rs"]
mod ebpf_sources;

use ebpf_sources::{OBJECT_PATH, STAMP_PATH, Stamp};

const PACKAGE: &str = "profiler-ebpf";
const BINARY: &str = "goprof-ebpf";
const TARGET: &str = "bpfel-unknown-none";

/// The whole profile stands here, so that a change of the release profile,
/// which is userspace's, cannot change the object.
const PROFILE: [&str; 9] = [
    "profile.bpf.inherits='release'",
    "profile.bpf.opt-level=3",
    "profile.bpf.lto='thin'",
    "profile.bpf.codegen-units=1",
    "profile.bpf.panic='abort'",
    "profile.bpf.debug=2",
    "profile.bpf.strip='none'",
    "profile.bpf.incremental=false",
    "profile.bpf.overflow-checks=false",
];

/// Arguments of `cargo xtask ebpf`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Rebuild from nothing and fail unless the committed object is identical
    #[arg(long)]
    pub check: bool,
}

/// Builds the object and writes it, or compares it with the committed one.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let toolchain = BpfToolchain::prepare(workspace)?;
    if args.check {
        return check(workspace, &toolchain);
    }
    let object = build(workspace, &toolchain, &workspace.target().join("bpf"))?;
    let stamp = Stamp::compute(&workspace.root, &object).context("fingerprint the eBPF sources")?;
    write(&workspace.root.join(OBJECT_PATH), &object)?;
    write(
        &workspace.root.join(STAMP_PATH),
        stamp.to_string().as_bytes(),
    )?;
    println!("{OBJECT_PATH}: {} bytes", object.len());
    Ok(())
}

/// A `cargo <subcommand>` for the eBPF crate and the BPF target.
///
/// `RUSTC_BOOTSTRAP` lets the stable compiler build `core` for a target that
/// comes without one.
pub fn cargo(workspace: &Workspace, toolchain: &BpfToolchain, subcommand: &str) -> Result<Command> {
    let cargo_home = cargo_home()?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec![
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Compiler messages keep the paths that an editor can open.
        "--remap-path-scope=object".to_owned(),
        remap(&workspace.root, "/goprof"),
        remap(&cargo_home, "/cargo"),
        remap(&toolchain.sysroot, "/rust"),
    ];
    // A mirror of the registry unpacks crates into a folder of another name.
    for registry in registries(workspace, &cargo_home)? {
        flags.push(remap(&registry, "/cargo/registry"));
    }
    let mut cargo = workspace.cargo();
    cargo
        .args([subcommand, "--package", PACKAGE, "--bin", BINARY])
        .args(["--target", TARGET, "-Zbuild-std=core"])
        .env("PATH", toolchain.path()?)
        .env("RUSTC_BOOTSTRAP", "1")
        // Unlike RUSTFLAGS it allows spaces in paths, and it takes precedence.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // Registers are laid out as on the machine that the object will run on.
        .env("AYA_BPF_TARGET_ARCH", "x86_64");
    Ok(cargo)
}

fn build(workspace: &Workspace, toolchain: &BpfToolchain, target: &Path) -> Result<Vec<u8>> {
    let mut cargo = cargo(workspace, toolchain, "build")?;
    for setting in PROFILE {
        cargo.args(["--config", setting]);
    }
    cargo.args(["--profile", "bpf", "--target-dir"]).arg(target);
    command::run(&mut cargo).context("build the eBPF programs")?;

    // The kernel reads .BTF and .BTF.ext; the DWARF they were made from is
    // most of the file and of no further use.
    let linked = target.join(TARGET).join("bpf").join(BINARY);
    let stripped = linked.with_extension("bpf.o");
    let mut objcopy = Command::new(&toolchain.objcopy);
    objcopy
        .arg("--strip-debug")
        .args([&linked, &stripped])
        // It does not find the compiler's LLVM by itself.
        .env("LD_LIBRARY_PATH", toolchain.sysroot.join("lib"));
    command::output(&mut objcopy).context("strip the eBPF object")?;
    fs::read(&stripped).with_context(|| format!("read {}", stripped.display()))
}

fn check(workspace: &Workspace, toolchain: &BpfToolchain) -> Result<()> {
    let path = workspace.root.join(OBJECT_PATH);
    let committed = fs::read(&path)
        .with_context(|| format!("read {OBJECT_PATH}: run `cargo xtask ebpf` and commit it"))?;

    // Nothing of an earlier build is trusted.
    let target = workspace.target().join("bpf-check");
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("empty {}", target.display()))?;
    }
    let rebuilt = build(workspace, toolchain, &target)?;
    let stamp =
        Stamp::compute(&workspace.root, &rebuilt).context("fingerprint the eBPF sources")?;
    let same_object = rebuilt == committed;
    let same_stamp = fs::read_to_string(workspace.root.join(STAMP_PATH))
        .is_ok_and(|text| Stamp::parse(&text) == Some(stamp));
    if !same_object || !same_stamp {
        let kept = target.join("goprof.bpf.o");
        write(&kept, &rebuilt)?;
        bail!(
            "{} is not what its sources give ({} bytes committed, {} rebuilt, kept in {}): \
             run `cargo xtask ebpf` and commit what it writes",
            if same_object { STAMP_PATH } else { OBJECT_PATH },
            committed.len(),
            rebuilt.len(),
            kept.display()
        );
    }
    println!("{OBJECT_PATH}: byte-identical, {} bytes", committed.len());
    fs::remove_dir_all(&target).with_context(|| format!("remove {}", target.display()))
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

/// The folders that hold unpacked crates; they are there once cargo has fetched.
fn registries(workspace: &Workspace, cargo_home: &Path) -> Result<Vec<PathBuf>> {
    command::output(workspace.cargo().args(["fetch", "--quiet"])).context("fetch the crates")?;
    let Ok(entries) = fs::read_dir(cargo_home.join("registry/src")) else {
        return Ok(Vec::new());
    };
    let mut folders: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    folders.sort();
    Ok(folders)
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(PathBuf::from(home));
    }
    let home = std::env::home_dir().context("neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n\
        [[package]]\nname = \"aya-ebpf\"\nversion = \"0.2.1\"\nchecksum = \"aa\"\n\
        dependencies = [\n \"syn 2.0.1\",\n]\n\n\
        [[package]]\nname = \"clap\"\nversion = \"4.0.0\"\nchecksum = \"bb\"\n\n\
        [[package]]\nname = \"profiler-ebpf\"\nversion = \"0.1.0\"\n\
        dependencies = [\n \"aya-ebpf\",\n]\n\n\
        [[package]]\nname = \"syn\"\nversion = \"2.0.1\"\nchecksum = \"cc\"\n\n\
        [[package]]\nname = \"syn\"\nversion = \"3.0.1\"\nchecksum = \"dd\"\n";

    /// Changes one file of a workspace and says whether that makes it stale.
    fn is_stale_after(file: &str, content: &str) -> bool {
        let workspace = tempfile::tempdir().unwrap();
        let put = |file: &str, content: &str| {
            write(&workspace.path().join(file), content.as_bytes()).unwrap();
        };
        put("Cargo.lock", LOCK);
        put("rust-toolchain.toml", "[toolchain]\n");
        put("profiler-ebpf/Cargo.toml", "[package]\n");
        put("profiler-ebpf/src/main.rs", "//! Main.\n");
        put("profiler-ebpf/src/programs/cpu.rs", "//! Samples.\n");
        let before = Stamp::compute(workspace.path(), b"object").unwrap();
        put(file, content);
        Stamp::compute(workspace.path(), b"object").unwrap() != before
    }

    #[test]
    fn the_object_is_stale_once_a_source_changes() {
        assert!(!is_stale_after("profiler-ebpf/src/main.rs", "//! Main.\n"));
        assert!(is_stale_after("profiler-ebpf/src/main.rs", "//! Mein.\n"));
        assert!(is_stale_after("profiler-ebpf/src/programs/cpu.rs", ""));
        assert!(is_stale_after("profiler-ebpf/src/programs/new.rs", ""));
        assert!(is_stale_after("profiler-ebpf/Cargo.toml", "[lib]\n"));
        assert!(is_stale_after("rust-toolchain.toml", ""));
        assert!(!is_stale_after("profiler-ebpf/README.md", ""));
    }

    #[test]
    fn only_its_own_locked_dependencies_make_it_stale() {
        for (checksum, stale) in [("aa", true), ("bb", false), ("cc", true), ("dd", false)] {
            let changed = LOCK.replace(checksum, "ff");
            assert_eq!(is_stale_after("Cargo.lock", &changed), stale, "{checksum}");
        }
    }

    #[test]
    fn a_stamp_reads_as_it_was_written() {
        let stamp = Stamp {
            sources: 0x0123,
            object: u64::MAX,
        };
        assert_eq!(Stamp::parse(&stamp.to_string()), Some(stamp));
        assert_eq!(Stamp::parse("<<<<<<< ours\nsources 1\nobject 2\n"), None);
        assert_eq!(Stamp::parse("sources 1\n"), None);
    }
}
