//! `cargo xtask`: one file per subcommand.

mod bpf_toolchain;
mod command;
mod debian;
mod ebpf;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use workspace::Workspace;

/// Automation for goprof. Start with `demo` and `test`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    /// Build the eBPF object that is committed and embedded
    Ebpf(ebpf::Args),
}

fn main() -> ExitCode {
    match run(Xtask::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The causes, without the backtrace that `RUST_BACKTRACE` would add:
            // nearly every failure here is that of another program.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(xtask: Xtask) -> Result<()> {
    let workspace = Workspace::find()?;
    match xtask {
        Xtask::Ebpf(args) => ebpf::run(&workspace, &args),
    }
}
