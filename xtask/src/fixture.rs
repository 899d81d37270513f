//! `cargo xtask fixture`: records the cases of `bpf-fixtures/` anew, on this
//! machine's kernel.

use std::fs;

use anyhow::{Context, Result};

use crate::command;
use crate::go::Go;
use crate::test::{mount_tracefs, require_root};
use crate::workspace::Workspace;

/// Arguments of `cargo xtask fixture`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folders of bpf-fixtures/ that hold a case.toml; all when absent
    names: Vec<String>,
}

/// Records each case and writes its expected text, to be looked at.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    require_root("cargo xtask fixture")?;
    mount_tracefs()?;
    let go = Go::prepare(workspace)?;
    let names = if args.names.is_empty() {
        every_case(workspace)?
    } else {
        args.names.clone()
    };
    for name in &names {
        let mut record = workspace.cargo();
        record
            .args(["run", "--quiet", "--package", "goprof-tests"])
            .args(["--example", "record_fixture", "--", name])
            .env("PATH", go.path()?)
            .env("GOPROF_GO", &go.program);
        command::run(&mut record)?;
        let mut replay = workspace.cargo();
        replay
            .args(["test", "--quiet", "--package", "goprof-tests"])
            .args(["--test", "replay", "--", "--exact", name])
            .env("UPDATE_EXPECT", "1");
        command::run(&mut replay)?;
        eprintln!("xtask: look at bpf-fixtures/{name}/expected.txt before you commit it");
    }
    Ok(())
}

fn every_case(workspace: &Workspace) -> Result<Vec<String>> {
    let folder = workspace.root.join("bpf-fixtures");
    let entries = fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}
