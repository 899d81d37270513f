//! The kernels, from Debian's packages: one of each release, the oldest first.
//! Which package that is, the release's own metapackage says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::{self, Package};
use crate::workspace::Workspace;

use super::modules::{self, Module};

/// A kernel of a Debian release.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Its name on the command line.
    pub series: &'static str,
    /// The suite that has it.
    pub suite: &'static str,
}

/// Every kernel that is tried, the oldest first. The last is the newest that
/// Debian builds for a release.
pub const KERNELS: [Kernel; 4] = [
    Kernel {
        series: "5.10",
        suite: "bullseye",
    },
    Kernel {
        series: "6.1",
        suite: "bookworm",
    },
    Kernel {
        series: "6.12",
        suite: "trixie",
    },
    Kernel {
        series: "7.x",
        suite: "trixie-backports",
    },
];

/// A processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Arch {
    /// x86-64.
    #[default]
    #[value(name = "x86_64")]
    X86_64,
    /// arm64.
    Aarch64,
}

impl Arch {
    /// As the command line and rustc name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As Go and Debian name it.
    pub fn go(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }
}

/// What a kernel's packages hold.
#[derive(Debug)]
pub struct Unpacked {
    /// What is booted.
    pub image: PathBuf,
    /// Modules, and what they need before them.
    pub modules: Vec<Module>,
}

/// Downloads the kernel if it is missing, with the modules `wanted`.
pub fn provide(
    workspace: &Workspace,
    kernel: &Kernel,
    arch: Arch,
    wanted: &[&str],
) -> Result<Unpacked> {
    let all = format!("linux-image-cloud-{}", arch.go());
    let name = debian::dependency(workspace, &package(kernel, arch, &all), "linux-image-")?;
    let mut folder = debian::unpack(workspace, &package(kernel, arch, &name))?;
    // Since Linux 7.2 what is booted and what is loaded later are in two packages that
    // this one depends on.
    let beside = |prefix| {
        let name = name.replacen("linux-image-", prefix, 1);
        debian::unpack(workspace, &package(kernel, arch, &name))
    };
    let image = match find_image(&folder)? {
        Some(found) => found,
        None => {
            if !wanted.is_empty() {
                folder = beside("linux-modules-")?;
            }
            let binary = beside("linux-binary-")?;
            find_image(&binary)?.with_context(|| format!("{} holds no kernel", binary.display()))?
        }
    };
    let folders = ["lib/modules", "usr/lib/modules"].map(|place| folder.join(place));
    let mut modules = Vec::new();
    for name in wanted {
        modules::add(&mut modules, &folders, name)
            .with_context(|| format!("get modules of Linux {}", kernel.series))?;
    }
    Ok(Unpacked { image, modules })
}

fn package<'a>(kernel: &Kernel, arch: Arch, name: &'a str) -> Package<'a> {
    Package {
        name,
        version: None,
        suite: Some(kernel.suite),
        arch: Some(arch.go()),
    }
}

/// A shell and what else `init` calls, in one program.
pub fn busybox(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let unpacked = debian::unpack(
        workspace,
        &Package {
            name: "busybox-static",
            version: None,
            suite: Some("bookworm"),
            arch: Some(arch.go()),
        },
    )?;
    let places = ["bin/busybox", "usr/bin/busybox"];
    let found = places.map(|place| unpacked.join(place));
    let found = found.into_iter().find(|path| path.is_file());
    found.context("the package busybox-static holds no busybox")
}

/// In `boot`, or since Linux 7.2 beside the modules.
fn find_image(unpacked: &Path) -> Result<Option<PathBuf>> {
    let mut folders = vec![unpacked.join("boot")];
    let modules = unpacked.join("usr/lib/modules");
    if modules.is_dir() {
        for entry in fs::read_dir(&modules).context("list the kernel's modules")? {
            folders.push(entry?.path());
        }
    }
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder).context("list the kernel's package")? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("vmlinuz") {
                return Ok(Some(entry.path()));
            }
        }
    }
    Ok(None)
}
