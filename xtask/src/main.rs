//! `cargo xtask`: one file per subcommand.

mod bench;
mod bpf_toolchain;
mod ci;
mod command;
mod debian;
mod demo;
mod ebpf;
mod fixture;
mod fuzz;
mod go;
mod goffsets;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use workspace::Workspace;

/// Automation for goprof. Start with `demo` and `test`.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    /// Record a realistic Go workload and show what comes out
    Demo,
    /// Run every test, after providing what they need
    Test(test::Args),
    /// Measure what goprof costs, beside perf and Go's own profiler
    Bench(bench::Args),
    /// Build the eBPF object that is committed and embedded
    Ebpf(ebpf::Args),
    /// Check the house rules
    Tidy,
    /// Run every check a change has to pass, the tests last
    Ci(ci::Args),
    /// Print the path of a Go toolchain, fetched if it is missing
    Go(go::Args),
    /// Record cases of bpf-fixtures/ for the replay tests
    Fixture(fixture::Args),
    /// Look for inputs that break the stack walk and what reads binaries
    Fuzz(fuzz::Args),
    /// Make the table of the runtime's struct offsets
    Goffsets(goffsets::Args),
    /// Boot other kernels in an emulator and record there
    Vm(vm::Args),
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
        Xtask::Bench(args) => bench::run(&workspace, &args),
        Xtask::Demo => demo::run(&workspace),
        Xtask::Test(args) => test::run(&workspace, &args),
        Xtask::Tidy => tidy::run(&workspace),
        Xtask::Ci(args) => ci::run(&workspace, &args),
        Xtask::Go(args) => go::run(&workspace, &args),
        Xtask::Fixture(args) => fixture::run(&workspace, &args),
        Xtask::Fuzz(args) => fuzz::run(&workspace, &args),
        Xtask::Goffsets(args) => goffsets::run(&workspace, &args),
        Xtask::Vm(args) => vm::run(&workspace, &args),
    }
}
