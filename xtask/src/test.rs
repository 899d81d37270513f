//! `cargo xtask test`: provides what the tests need, fuzzes for a minute, then
//! runs every test. Its last line is the test runner's own summary.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::fuzz;
use crate::go::{self, Go};
use crate::workspace::Workspace;

/// Debian's packages that the live tests unpack and profile.
const SERVERS: [&str; 4] = ["prometheus", "etcd-server", "etcd-client", "buildah"];

/// Arguments of `cargo xtask test`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Given to `cargo test` instead of every target, such as `--test oracle`
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

/// Prepares the machine and runs the tests.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    require_root("cargo xtask test")?;
    mount_tracefs()?;
    require_c_compiler()?;
    know_packages()?;
    let go = Go::prepare(workspace)?;
    for version in go::VERSIONS {
        go.provide(version)?;
    }
    // First, so that the ordinary one stays where one looks for it.
    let in_image = build_static(workspace)?;
    let goprof = build_checked(workspace)?;

    let cargo_test = |arguments: &[&str]| -> Result<Command> {
        let mut test = workspace.cargo();
        test.args(["test", "--no-fail-fast"]);
        // Cargo would take the whole workspace beside the package named.
        let names_package = |word: &&str| word.starts_with("-p") || word.starts_with("--package");
        if !arguments.iter().any(names_package) {
            test.arg("--workspace");
        }
        test.args(arguments)
            .env("PATH", go.path()?)
            .env("GOPROF_GO", &go.program)
            .env("GOPROF_BIN", &goprof)
            .env("GOPROF_STATIC_BIN", &in_image);
        // Measurements side by side would compete for the CPU they measure.
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            test.env("RUST_TEST_THREADS", "1");
        }
        Ok(test)
    };
    if args.arguments.is_empty() {
        fuzz::run_for_a_minute(workspace)?;
        command::run(&mut cargo_test(&["--doc", "--quiet"])?).context("documentation tests")?;
        return command::run(&mut cargo_test(&["--all-targets"])?);
    }
    let arguments: Vec<&str> = args.arguments.iter().map(String::as_str).collect();
    command::run(&mut cargo_test(&arguments)?)
}

/// Builds goprof with the compiler's checks in it, from what the tests are built
/// from too, and returns the binary's path. What users get takes ten minutes more.
fn build_checked(workspace: &Workspace) -> Result<std::path::PathBuf> {
    command::run(workspace.cargo().args(["build", "--package", "goprof"]))?;
    Ok(workspace.target().join("debug/goprof"))
}

/// Links goprof so that it loads nothing, as `deploy/Containerfile` does, out of
/// what the ordinary build is made of, and returns the binary's path.
pub fn build_static(workspace: &Workspace) -> Result<std::path::PathBuf> {
    let mut build = workspace.cargo();
    build.args(["rustc", "--package", "goprof", "--bin", "goprof"]);
    command::run(build.args(["--", "-C", "target-feature=+crt-static"]))?;
    let folder = workspace.target().join("debug/static");
    fs::create_dir_all(&folder).context("make a folder for goprof")?;
    let goprof = folder.join("goprof");
    let built = workspace.target().join("debug/goprof");
    // Beside its place and then into it: it may be running.
    let new = folder.join("new");
    fs::copy(built, &new)
        .and_then(|_| fs::rename(&new, &goprof))
        .context("put the static goprof in place")?;
    Ok(goprof)
}

/// Builds goprof without the agent, which takes a fraction of the time, and
/// returns the binary's path.
pub fn build_recorder(workspace: &Workspace) -> Result<std::path::PathBuf> {
    let mut build = workspace.cargo();
    build.args(["build", "--release", "--package", "goprof"]);
    command::run(build.arg("--no-default-features"))?;
    // Out of the place where one looks for the whole of goprof.
    let folder = workspace.target().join("release/recorder");
    fs::create_dir_all(&folder).context("make a folder for goprof")?;
    let built = workspace.target().join("release/goprof");
    let goprof = folder.join("goprof");
    fs::rename(built, &goprof).context("put goprof without the agent in place")?;
    Ok(goprof)
}

/// Builds goprof as users get it, and returns the binary's path.
pub fn build_whole(workspace: &Workspace) -> Result<std::path::PathBuf> {
    command::run(
        workspace
            .cargo()
            .args(["build", "--release", "--package", "goprof"]),
    )?;
    let folder = workspace.target().join("release/whole");
    fs::create_dir_all(&folder).context("make a folder for goprof")?;
    let goprof = folder.join("goprof");
    // A copy: the other one is replaced where goprof is built without the agent.
    fs::copy(workspace.target().join("release/goprof"), &goprof).context("keep goprof")?;
    Ok(goprof)
}

/// Fails unless this process is root's; `command_line` is what to run instead.
pub fn require_root(command_line: &str) -> Result<()> {
    let uid = fs::metadata("/proc/self").context("read /proc/self")?.uid();
    if uid != 0 {
        bail!(
            "goprof loads eBPF programs, for which it must be root: \
             run `sudo --preserve-env=PATH,HOME {command_line}`"
        );
    }
    Ok(())
}

/// Mounts tracefs, where the kernel describes its tracepoints, if nobody has.
pub fn mount_tracefs() -> Result<()> {
    let folder = Path::new("/sys/kernel/tracing");
    let debugfs = Path::new("/sys/kernel/debug/tracing");
    if folder.join("events").exists() || debugfs.join("events").exists() {
        return Ok(());
    }
    eprintln!("xtask: mounting tracefs on {}", folder.display());
    let mut mount = Command::new("mount");
    mount.args(["-t", "tracefs", "tracefs"]).arg(folder);
    command::run(&mut mount).context("goprof finds the kernel's tracepoints in tracefs")
}

fn require_c_compiler() -> Result<()> {
    if command::find("cc").is_none() || command::find("gcc").is_none() {
        bail!("the cgo test builds C: run `apt-get install gcc libc6-dev`");
    }
    Ok(())
}

/// Makes sure that apt's lists name the servers; the tests unpack them.
fn know_packages() -> Result<()> {
    let known = || {
        let mut show = Command::new("apt-cache");
        command::output(show.args(["show", "--no-all-versions"]).args(SERVERS))
    };
    if known().is_err() {
        eprintln!("xtask: updating apt's package lists");
        command::output(Command::new("apt-get").args(["update", "--quiet"]))
            .and_then(|_| known())
            .with_context(|| {
                format!(
                    "the live tests profile real servers from Debian's packages ({}), \
                 and this machine's apt does not offer them",
                    SERVERS.join(", ")
                )
            })?;
    }
    Ok(())
}
