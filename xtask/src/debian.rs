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
    /// Another architecture than the machine's, as Debian names it; only of a suite.
    pub arch: Option<&'a str>,
}

/// Returns the folder in the cache that holds the unpacked files of `package`,
/// after downloading it if it is not there yet.
///
/// Fails where there is no apt, or where its mirror lacks the package.
pub fn unpack(workspace: &Workspace, package: &Package) -> Result<PathBuf> {
    let mut name = package.name.to_owned();
    for more in [package.version, package.arch].into_iter().flatten() {
        name = format!("{name}-{more}");
    }
    let folder = workspace.cache.join("debian").join(&name);
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
        Some(_) => from_mirrors(package, scratch, |options| {
            download(options, &wanted, scratch)
        })?,
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

/// The name of the package that `package`, which is of a suite, depends on and whose
/// name begins with `prefix`: for packages that stand for the newest of a kind. Asked
/// once; the cache remembers.
pub fn dependency(workspace: &Workspace, package: &Package, prefix: &str) -> Result<String> {
    let suite = package.suite.unwrap_or_default();
    let arch = package.arch.unwrap_or_default();
    let folder = workspace.cache.join("debian");
    let known = folder.join(format!("{}-{suite}-{arch}.depends", package.name));
    if let Ok(name) = fs::read_to_string(&known) {
        return Ok(name);
    }
    let scratch = workspace
        .cache
        .join(format!("debian-{suite}-{}", std::process::id()));
    let found = from_mirrors(package, &scratch, |options| {
        let mut apt = Command::new("apt-cache");
        let listing = command::output(apt.args(options).args(["depends", package.name]))?;
        listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("{} depends on no {prefix}*", package.name))
    });
    // What is left of it is in the way of nothing.
    let _ = fs::remove_dir_all(&scratch);
    let name = found?;
    fs::create_dir_all(&folder)
        .and_then(|()| fs::write(&known, &name))
        .with_context(|| format!("write {}", known.display()))?;
    Ok(name)
}

/// Calls `found` with options that have apt know nothing but the package's suite, for
/// each of the system's mirrors until it succeeds.
fn from_mirrors<T>(
    package: &Package,
    scratch: &Path,
    found: impl Fn(&[String]) -> Result<T>,
) -> Result<T> {
    let suite = package.suite.unwrap_or_default();
    let mut failure = None;
    for mirror in mirrors()? {
        match update_from(&mirror, suite, package.arch, scratch).and_then(|options| found(&options))
        {
            Ok(found) => return Ok(found),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let name = package.name;
    match failure {
        Some(error) => Err(error.context(format!("no mirror in use has {name} in {suite}"))),
        None => bail!("apt has no package source: {name} of {suite} is needed"),
    }
}

/// Fetches what a mirror says of `suite` into lists of our own, and gives the options
/// that have apt use them.
fn update_from(
    mirror: &str,
    suite: &str,
    arch: Option<&str>,
    scratch: &Path,
) -> Result<Vec<String>> {
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
    let mut options: Vec<String> = [
        option("Dir::Etc::SourceList", &sources),
        option("Dir::Etc::SourceParts", Path::new("/dev/null")),
        option("Dir::State::Lists", &scratch.join("state/lists")),
        option("Dir::Cache", &scratch.join("cache")),
        option("APT::Sandbox::User", Path::new("root")),
    ]
    .concat();
    for name in ["APT::Architecture", "APT::Architectures"] {
        options.extend(arch.map(|arch| format!("-o{name}={arch}")));
    }
    let mut update = Command::new("apt-get");
    update.args(["--quiet", "--error-on=any"]).args(&options);
    command::output(update.arg("update"))?;
    Ok(options)
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
