//! What the pinned stable compiler lacks to build eBPF: the source of `core`,
//! and a linker that uses the compiler's own LLVM. Both are provided here where
//! they are missing; no nightly and no system LLVM are involved.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::debian::{self, Package};
use crate::workspace::Workspace;

/// The pinned compiler; its source and its LLVM below are of this release.
const RUST_RELEASE: &str = "1.95.0";

/// The source of the same release, architecture-independent, in a suite that
/// every Debian mirror carries.
const RUST_SRC: Package = Package {
    name: "rust-src",
    version: Some("1.95.0+dfsg1-2~bpo13+1"),
    suite: Some("trixie-backports"),
    arch: None,
};

const LINKER_VERSION: &str = "0.13.0";
/// bpf-linker's feature for the LLVM that Rust 1.95 carries.
const LINKER_FEATURE: &str = "llvm-22";

/// The tools that a build for the BPF target needs, present and checked.
#[derive(Debug)]
pub struct BpfToolchain {
    /// The pinned compiler's folder.
    pub sysroot: PathBuf,
    /// LLVM's objcopy, which rustup installs with the compiler.
    pub objcopy: PathBuf,
    /// The folder that holds `bpf-linker`.
    linker_folder: PathBuf,
}

impl BpfToolchain {
    /// Finds each part and provides those that are missing, telling so on
    /// standard error.
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        let release = workspace.rustc_fact("release")?;
        if release != RUST_RELEASE {
            bail!(
                "the eBPF object is built by Rust {RUST_RELEASE}, this is {release}: \
                 run `rustup toolchain install {RUST_RELEASE}` and unset RUSTUP_TOOLCHAIN"
            );
        }
        let sysroot = workspace.sysroot()?;
        let objcopy = objcopy(workspace)?;
        provide_core(workspace, &sysroot)?;
        Ok(Self {
            linker_folder: provide_linker(workspace, &sysroot)?,
            objcopy,
            sysroot,
        })
    }

    /// `PATH` with the linker's folder in front: rustc looks it up by name, and
    /// no path of this machine gets into the flags that cargo hashes.
    pub fn path(&self) -> Result<OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let folders =
            std::iter::once(self.linker_folder.clone()).chain(env::split_paths(&inherited));
        env::join_paths(folders).context("put bpf-linker on PATH")
    }
}

/// LLVM's objcopy, which rustup installs with the compiler; it knows every processor.
pub fn objcopy(workspace: &Workspace) -> Result<PathBuf> {
    let host = workspace.rustc_fact("host")?;
    let objcopy = workspace
        .sysroot()?
        .join(format!("lib/rustlib/{host}/bin/rust-objcopy"));
    if !objcopy.exists() {
        bail!(
            "{} is missing: install Rust {RUST_RELEASE} through rustup, which brings it",
            objcopy.display()
        );
    }
    Ok(objcopy)
}

/// `-Z build-std` wants the standard library's source inside the sysroot.
fn provide_core(workspace: &Workspace, sysroot: &Path) -> Result<()> {
    let library = sysroot.join("lib/rustlib/src/rust/library");
    if library.join("core/Cargo.toml").exists() {
        return Ok(());
    }
    eprintln!("xtask: fetching the source of core (about 20 s, once)");
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", RUST_RELEASE]);
    let refusal = match command::output(rustup.current_dir(&workspace.root)) {
        Ok(_) if library.join("core/Cargo.toml").exists() => return Ok(()),
        Ok(_) => "rustup added rust-src to another toolchain".to_owned(),
        Err(error) => format!("{error:#}"),
    };
    let unpacked = debian::unpack(workspace, &RUST_SRC).with_context(|| {
        format!(
            "get the source of core for Rust {RUST_RELEASE}: rustup did not add it ({refusal}), \
             and Debian's package did not replace it"
        )
    })?;
    let source = unpacked.join(format!("usr/src/rustc-{RUST_RELEASE}/library"));
    let parent = library
        .parent()
        .context("the sysroot has no library folder")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;

    // Renamed into place once complete; another run may do the same meanwhile.
    let partial = parent.join(format!("library.{}", std::process::id()));
    command::output(
        Command::new("cp")
            .arg("--recursive")
            .args([&source, &partial]),
    )?;
    if let Err(error) = fs::rename(&partial, &library) {
        let _ = fs::remove_dir_all(&partial);
        if !library.join("core/Cargo.toml").exists() {
            return Err(error).with_context(|| format!("create {}", library.display()));
        }
    }
    // The package holds the whole compiler's source.
    fs::remove_dir_all(&unpacked).with_context(|| format!("remove {}", unpacked.display()))
}

/// Builds bpf-linker against the very libLLVM that rustc uses, and returns the
/// folder of the binary.
fn provide_linker(workspace: &Workspace, sysroot: &Path) -> Result<PathBuf> {
    let root = workspace
        .cache
        .join(format!("bpf-linker-{LINKER_VERSION}-rust-{RUST_RELEASE}"));
    link_llvm(&root.join("llvm/lib"), sysroot)?;
    let folder = root.join("bin");
    let linker = folder.join("bpf-linker");
    // Asking for its version also shows that it finds its libLLVM.
    if command::output(Command::new(&linker).arg("--version")).is_ok() {
        return Ok(folder);
    }
    eprintln!("xtask: building bpf-linker {LINKER_VERSION} (about 90 s, once)");
    let mut install = workspace.cargo();
    install
        .args(["install", "bpf-linker", "--force", "--locked", "--quiet"])
        .args(["--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", LINKER_FEATURE])
        .arg("--root")
        .arg(&root)
        // The folder of this package, not of the workspace's targets and flags.
        .current_dir(&root)
        .env("RUSTUP_TOOLCHAIN", RUST_RELEASE)
        .env("LLVM_PREFIX", root.join("llvm"))
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    command::run(&mut install).context("build bpf-linker; it needs a C compiler and libstdc++")?;
    command::output(Command::new(&linker).arg("--version"))
        .context("start the bpf-linker just built")?;
    Ok(folder)
}

/// bpf-linker looks for `libLLVM.so` below its prefix, and at run time for the
/// name that library carries inside; both lead to the compiler's own.
fn link_llvm(folder: &Path, sysroot: &Path) -> Result<()> {
    let library = fs::read_dir(sysroot.join("lib"))
        .context("list the compiler's libraries")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.starts_with("libLLVM.so."))
        .context("the compiler brings no shared libLLVM: install it through rustup")?;
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let target = sysroot.join("lib").join(&library);
    for name in ["libLLVM.so", &library] {
        let link = folder.join(name);
        if fs::read_link(&link).is_ok_and(|current| current == target) {
            continue;
        }
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&target, &link)
            .with_context(|| format!("link {}", link.display()))?;
    }
    Ok(())
}
