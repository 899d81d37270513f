//! The `goprof` command: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use goprof::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("goprof: {error}");
            error.exit_code()
        }
    }
}
