//! Where things are: the workspace, the cache that outlives it, the toolchain.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// The folders every subcommand works with.
#[derive(Debug)]
pub struct Workspace {
    /// The checkout that `cargo xtask` was called in.
    pub root: PathBuf,
    /// Tools fetched or built once for this user: `$XDG_CACHE_HOME/goprof`, or
    /// `~/.cache/goprof`. Every checkout shares it, and it may be deleted.
    pub cache: PathBuf,
}

impl Workspace {
    /// Finds both folders and creates the cache.
    pub fn find() -> Result<Self> {
        // Cargo sets it when it runs xtask; the value from compile time serves
        // a binary that is called by its path.
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .parent()
            .context("xtask lies in no workspace")?
            .canonicalize()
            .context("find the workspace")?;

        let base = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
            Some(base) => PathBuf::from(base),
            None => env::home_dir()
                .context("neither XDG_CACHE_HOME nor HOME is set: set one, tools are kept there")?
                .join(".cache"),
        };
        let cache = base.join("goprof");
        std::fs::create_dir_all(&cache)
            .with_context(|| format!("create the cache folder {}", cache.display()))?;
        Ok(Self { root, cache })
    }

    /// A `cargo` that runs in the workspace, of the toolchain pinned there.
    pub fn cargo(&self) -> Command {
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(&self.root);
        cargo
    }

    /// The folder of build results, wherever the user put it.
    pub fn target(&self) -> PathBuf {
        match env::var_os("CARGO_TARGET_DIR") {
            Some(target) => self.root.join(target),
            None => self.root.join("target"),
        }
    }

    /// The folder of the pinned compiler, its libraries and its tools.
    pub fn sysroot(&self) -> Result<PathBuf> {
        let mut rustc = self.rustc();
        let sysroot = command::output(rustc.args(["--print", "sysroot"]))?;
        Path::new(sysroot.trim())
            .canonicalize()
            .context("find the sysroot of rustc")
    }

    /// What `rustc --version --verbose` says under `key`, such as `release`,
    /// `host` or `LLVM version`.
    pub fn rustc_fact(&self, key: &str) -> Result<String> {
        let version = command::output(self.rustc().args(["--version", "--verbose"]))?;
        version
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
            .map(str::to_owned)
            .with_context(|| format!("rustc --version --verbose does not say its {key}"))
    }

    fn rustc(&self) -> Command {
        let mut rustc = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.current_dir(&self.root);
        rustc
    }
}
