//! Debian packages, downloaded and unpacked into the cache through the
//! machine's own apt. It installs nothing into the system and adds no source to
//! it, and it knows no mirror: it asks apt for the one in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::workspace::Workspace;

/// A package, and the suite to take it from where the system's own will not do.
#[derive(Debug)]
pub struct Package<'a> {
    /// The package's name.
    pub name: &'a str,
    /// The exact version, for a package that has to match something else.
    pub version: Option<&'a str>,
    /// A suite outside of the system's sources, such as `trixie-backports`.
    pub suite: Option<&'a str>,
}

/// Returns the folder in the cache that holds the unpacked files of `package`,
/// after downloading it if it is not there yet.
///
/// Fails where there is no apt, or where its mirror lacks the package.
pub fn unpack(workspace: &Workspace, package: &Package) -> Result<PathBuf> {
    let folder = workspace.cache.join("debian").join(match package.version {
        Some(version) => format!("{}-{version}", package.name),
        None => package.name.to_owned(),
    });
    if folder.exists() {
        return Ok(folder);
    }
    for tool in ["apt-get", "dpkg-deb"] {
        if command::find(tool).is_none() {
            bail!(
                "the Debian package {} is needed and this machine has no {tool}",
                package.name
            );
        }
    }
    // Unpacked beside its place and renamed into it, so that what was
    // interrupted half-way never passes for complete.
    let scratch = workspace
        .cache
        .join(format!("debian-{}-{}", package.name, std::process::id()));
    fs::create_dir_all(&scratch)
        .with_context(|| format!("create the folder {}", scratch.display()))?;
    let result = fetch(package, &scratch).and_then(|unpacked| {
        let parent = folder.parent().context("the cache has no parent")?;
        fs::create_dir_all(parent)?;
        match fs::rename(&unpacked, &folder) {
            // Another run was faster.
            Err(_) if folder.exists() => Ok(()),
            other => other.with_context(|| format!("create {}", folder.display())),
        }
    });
    // What is left of it is in the way of nothing.
    let _ = fs::remove_dir_all(&scratch);
    result.with_context(|| format!("unpack the Debian package {}", package.name))?;
    Ok(folder)
}

fn fetch(package: &Package, scratch: &Path) -> Result<PathBuf> {
    let wanted = match package.version {
        Some(version) => format!("{}={version}", package.name),
        None => package.name.to_owned(),
    };
    match package.suite {
        None => download(&[], &wanted, scratch).or_else(|_| {
            // The lists may be absent, as in a container image, or out of date.
            command::output(Command::new("apt-get").args(["update", "--quiet"]))?;
            download(&[], &wanted, scratch)
        })?,
        Some(suite) => download_from_suite(suite, &wanted, scratch)?,
    }
    let archive = fs::read_dir(scratch)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    let unpacked = scratch.join("unpacked");
    command::output(
        Command::new("dpkg-deb")
            .arg("--extract")
            .args([&archive, &unpacked]),
    )?;
    Ok(unpacked)
}

fn download(options: &[String], wanted: &str, folder: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    // Root's apt drops to a user of its own for downloads, who may not write here.
    apt.args(["--quiet", "-o", "APT::Sandbox::User=root"]);
    apt.args(options).args(["download", wanted]);
    command::output(apt.current_dir(folder)).map(drop)
}

/// Downloads `wanted` with an apt configuration of its own that knows only
/// `suite`, on whichever of the system's mirrors carries it.
fn download_from_suite(suite: &str, wanted: &str, scratch: &Path) -> Result<()> {
    let mut failure = None;
    for mirror in mirrors()? {
        match download_from_mirror(&mirror, suite, wanted, scratch) {
            Ok(()) => return Ok(()),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match failure {
        Some(error) => Err(error.context(format!("no mirror in use has {wanted} in {suite}"))),
        None => bail!("apt has no package source: {wanted} of {suite} is needed"),
    }
}

fn download_from_mirror(mirror: &str, suite: &str, wanted: &str, scratch: &Path) -> Result<()> {
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(scratch.join(folder))?;
    }
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    let signed_by = if keyring.exists() {
        format!("[signed-by={}] ", keyring.display())
    } else {
        String::new()
    };
    let sources = scratch.join("sources.list");
    fs::write(&sources, format!("deb {signed_by}{mirror} {suite} main\n"))?;

    let option =
        |name: &str, value: &Path| ["-o".to_owned(), format!("{name}={}", value.display())];
    let options: Vec<String> = [
        option("Dir::Etc::SourceList", &sources),
        option("Dir::Etc::SourceParts", Path::new("/dev/null")),
        option("Dir::State::Lists", &scratch.join("state/lists")),
        option("Dir::Cache", &scratch.join("cache")),
        option("APT::Sandbox::User", Path::new("root")),
    ]
    .concat();
    let mut update = Command::new("apt-get");
    update.args(["--quiet", "--error-on=any"]).args(&options);
    command::output(update.arg("update"))?;
    download(&options, wanted, scratch)
}

/// The archives that the system's apt uses for packages, in its own order.
fn mirrors() -> Result<Vec<String>> {
    let targets = command::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let mut mirrors: Vec<String> = Vec::new();
    for mirror in targets.lines() {
        if !mirrors.iter().any(|known| known == mirror) {
            mirrors.push(mirror.to_owned());
        }
    }
    Ok(mirrors)
}
