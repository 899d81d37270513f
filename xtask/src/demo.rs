//! `cargo xtask demo`: a realistic Go workload, recorded by pid and
//! system-wide, with each command shown as a user would type it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command;
use crate::go::Go;
use crate::test;
use crate::workspace::Workspace;

/// Longer than the recordings take; the workload ends by itself at the latest
/// then, should the demo be killed.
const WORKLOAD_DURATION: &str = "3m";

/// Builds goprof and the workload, records it and shows the results.
pub fn run(workspace: &Workspace) -> Result<()> {
    test::require_root("cargo xtask demo")?;
    test::mount_tracefs()?;
    let go = Go::prepare(workspace)?;
    let goprof = test::build_recorder(workspace)?;
    let folder = workspace.target().join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;

    let shop = folder.join("shop");
    show_and_run(
        go.command(None)
            .args(["build", "-buildvcs=false", "-o"])
            .arg(&shop)
            .arg("./shop")
            .current_dir(workspace.root.join("tests/go"))
            .env("CGO_ENABLED", "0"),
    )?;
    let workload = Workload::start(&shop)?;
    let pid = workload.0.id().to_string();

    let [by_pid, everything, flames] =
        ["shop.pb.gz", "all.pb.gz", "shop.html"].map(|name| folder.join(name));
    let record = |options: &[&str], output: &Path| {
        let mut record = Command::new(&goprof);
        record.arg("record").args(options).args(["-d", "5", "-o"]);
        show_and_run(record.arg(output))
    };
    record(&["-p", &pid], &by_pid)?;
    record(&["-a"], &everything)?;
    record(&["-p", &pid, "-f", "flamegraph"], &flames)?;

    for profile in [&by_pid, &everything] {
        let mut top = go.command(None);
        show_and_run(
            top.args(["tool", "pprof", "-top", "-nodecount=15"])
                .arg(profile),
        )?;
    }
    println!("\nFlame graph, for any browser: {}", flames.display());
    println!(
        "Profiles: {} and {}",
        by_pid.display(),
        everything.display()
    );
    println!("Explore:  go tool pprof -http=: {}", by_pid.display());
    Ok(())
}

fn show_and_run(command: &mut Command) -> Result<()> {
    println!("\n$ {}", command::line(command));
    command::run(command)
}

/// The workload; it ends with this value.
struct Workload(Child);

impl Workload {
    /// Starts it and waits until it says that it is at work.
    fn start(binary: &Path) -> Result<Self> {
        let mut shop = Command::new(binary);
        shop.args(["-duration", WORKLOAD_DURATION]);
        println!("\n$ {} &", command::line(&shop));
        let child = shop
            .stdout(Stdio::piped())
            .spawn()
            .context("start the workload")?;
        let mut workload = Self(child);
        let output = workload
            .0
            .stdout
            .take()
            .context("read the workload's output")?;
        let mut line = String::new();
        BufReader::new(output)
            .read_line(&mut line)
            .context("wait for the workload")?;
        if !line.starts_with("ready") {
            bail!("the workload did not start: {}", line.trim());
        }
        Ok(workload)
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        // Either fails only where the workload has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
