//! What the names of a large Go binary cost goprof's library, beside
//! `go tool addr2line` for the same addresses. Every process starts anew; the
//! file is in the page cache for both.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Bench;
use super::process;
use super::report::{Figure, Section};
use super::stats::Summary;
use crate::command;
use crate::debian::{self, Package};

/// A Debian package with one Go program of 107 MB.
const PACKAGE: &str = "packer";
const PROGRAM: &str = "usr/bin/packer";

/// Smaller binaries are refused: the figures would be praised for the wrong
/// reason.
const MIN_SIZE_BYTES: u64 = 100_000_000;

/// What `symbols name` prints.
#[derive(Debug, Deserialize)]
struct Naming {
    go_version: String,
    parse_ms: f64,
    opened_kb: f64,
    addresses: f64,
    frames: f64,
    unnamed: f64,
    name_ms: f64,
    named_kb: f64,
    resident_kb: f64,
}

/// What both tools are given.
struct Inputs {
    symbols: PathBuf,
    addr2line: PathBuf,
    binary: PathBuf,
    size_bytes: u64,
    addresses: PathBuf,
    /// The same for addr2line, and by how much they are lower.
    shifted: PathBuf,
    shift: u64,
    /// A single address: what the tool takes to load.
    one: PathBuf,
}

/// Measures.
pub fn measure(bench: &Bench) -> Result<Section> {
    let (rounds, count) = if bench.quick {
        (3, 20_000)
    } else {
        (11, 100_000)
    };
    bench.progress("symbols: preparing");
    let inputs = prepare(bench, count)?;
    let agreeing = agreement(&inputs)?;
    let (mut ours, mut loads_s, mut wholes_s) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        bench.progress(&format!("symbols: round {} of {rounds}", round + 1));
        let mut name = Command::new(&inputs.symbols);
        name.arg("name").arg(&inputs.binary);
        name.stdin(open(&inputs.addresses)?);
        let output = name.output().context("run the example `symbols`")?;
        if !output.status.success() {
            bail!("`{}` failed: {}", command::line(&name), output.status);
        }
        let naming: Naming =
            serde_json::from_slice(&output.stdout).context("read what `symbols` measured")?;
        ours.push(naming);
        let addr2line = |addresses: &Path| {
            let mut tool = Command::new(&inputs.addr2line);
            process::cost_reading(tool.arg(&inputs.binary), open(addresses)?)
        };
        loads_s.push(addr2line(&inputs.one)?.wall_s);
        wholes_s.push(addr2line(&inputs.shifted)?.wall_s);
    }
    Ok(section(&inputs, &ours, &loads_s, &wholes_s, agreeing))
}

fn open(path: &Path) -> Result<Stdio> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(Stdio::from(file))
}

fn prepare(bench: &Bench, count: u32) -> Result<Inputs> {
    let binary = match &bench.large_binary {
        Some(binary) => binary.clone(),
        None => {
            let package = Package {
                name: PACKAGE,
                version: None,
                suite: None,
                arch: None,
            };
            debian::unpack(bench.workspace, &package)
                .context("give a Go program of at least 100 MB with --large-binary FILE instead")?
                .join(PROGRAM)
        }
    };
    // Reading it all puts it into the page cache.
    let size_bytes = fs::read(&binary)
        .with_context(|| format!("read {}", binary.display()))?
        .len() as u64;
    if size_bytes < MIN_SIZE_BYTES {
        bail!("{} is smaller than 100 MB", binary.display());
    }
    let mut build = bench.workspace.cargo();
    build.args(["build", "--release", "--package", "goprof"]);
    build.args(["--no-default-features", "--example", "symbols"]);
    command::run(&mut build)?;
    let symbols = bench.workspace.target().join("release/examples/symbols");

    // Since Go 1.25 the tool is built when first used; then this is its path.
    command::output(bench.go.command(None).args(["tool", "addr2line", "--help"])).ok();
    let addr2line = command::output(bench.go.command(None).args(["tool", "-n", "addr2line"]))?;
    let mut choose = Command::new(&symbols);
    choose.arg("addresses").arg(&binary).arg(count.to_string());
    let chosen = command::output(&mut choose)?;
    let [addresses, shifted, one] =
        ["addresses", "shifted", "address"].map(|name| bench.folder.join(format!("{name}.txt")));
    let (ours, theirs) = columns(&chosen)?;
    fs::write(&addresses, ours.join("\n")).context("write the addresses")?;
    fs::write(&shifted, theirs.join("\n")).context("write the addresses")?;
    fs::write(&one, theirs[0]).context("write an address")?;
    Ok(Inputs {
        symbols,
        addr2line: PathBuf::from(addr2line.trim()),
        binary,
        size_bytes,
        addresses,
        shifted,
        shift: hexadecimal(ours[0])?.abs_diff(hexadecimal(theirs[0])?),
        one,
    })
}

/// Both columns of what `symbols addresses` prints, at least one line of each.
fn columns(chosen: &str) -> Result<(Vec<&str>, Vec<&str>)> {
    let columns: (Vec<&str>, Vec<&str>) = chosen
        .lines()
        .filter_map(|line| line.split_once(' '))
        .unzip();
    if columns.0.is_empty() {
        bail!("`symbols addresses` chose none");
    }
    Ok(columns)
}

fn hexadecimal(address: &str) -> Result<u64> {
    u64::from_str_radix(address.trim_start_matches("0x"), 16)
        .with_context(|| format!("`{address}` is no address"))
}

/// The share of addresses for which both tools say the same function, file and
/// line: speed is worth nothing without it.
fn agreement(inputs: &Inputs) -> Result<f64> {
    let mut ours = Command::new(&inputs.symbols);
    ours.arg("answer").arg(&inputs.binary);
    let mut theirs = Command::new(&inputs.addr2line);
    theirs.arg(&inputs.binary);
    let answers = |tool: &mut Command, addresses: &Path| -> Result<String> {
        let output = tool
            .stdin(open(addresses)?)
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start `{}`", command::line(tool)))?;
        if !output.status.success() {
            bail!("`{}` failed: {}", command::line(tool), output.status);
        }
        String::from_utf8(output.stdout).context("a tool answered something other than text")
    };
    Ok(agreeing(
        &answers(&mut ours, &inputs.addresses)?,
        &answers(&mut theirs, &inputs.shifted)?,
    ))
}

/// The share of answers, of two lines each, that are the same.
fn agreeing(ours: &str, theirs: &str) -> f64 {
    let pairs = |text: &str| -> Vec<String> {
        let lines: Vec<&str> = text.lines().collect();
        lines.chunks(2).map(|pair| pair.join("\n")).collect()
    };
    let (ours, theirs) = (pairs(ours), pairs(theirs));
    let same = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count();
    same as f64 / ours.len().max(theirs.len()).max(1) as f64
}

fn section(
    inputs: &Inputs,
    ours: &[Naming],
    loads_s: &[f64],
    wholes_s: &[f64],
    agreeing: f64,
) -> Section {
    let addresses = ours.first().map_or(0.0, |naming| naming.addresses);
    let version = ours.first().map_or("", |naming| &naming.go_version);
    let unnamed = Summary::of(ours.iter().map(|naming| naming.unnamed)).median;
    let rates: Vec<f64> = ours
        .iter()
        .map(|naming| naming.addresses / naming.name_ms * 1e3)
        .collect();
    let their_rates: Vec<f64> = wholes_s
        .iter()
        .zip(loads_s)
        .map(|(whole, load)| addresses / (whole - load))
        .collect();
    let binary = inputs.binary.file_name().unwrap_or_default();
    let mut figures = our_figures(ours, &rates);
    figures.extend(their_figures(loads_s, &their_rates));
    figures.push(Figure::new(
        "symbols.ratio",
        "goprof over addr2line, addresses a second",
        "ratio",
        Summary::of_ratios(&rates, &their_rates),
    ));
    Section {
        title: "Names of a large Go binary",
        method: format!(
            "{} ({:.0} MB, {version}): {addresses} addresses spread over its code, each tool \
             started anew each round with the file in the page cache. Of goprof's answers {:.3}% \
             are those of go tool addr2line (function, file, line); {unnamed:.0} have no name. \
             addr2line names no inlined calls, its rate is without loading, and it was asked for \
             addresses {} bytes lower: where C is linked in, it is off by as much.",
            binary.to_string_lossy(),
            inputs.size_bytes as f64 / 1e6,
            agreeing * 100.0,
            inputs.shift,
        ),
        figures,
    }
}

fn our_figures(ours: &[Naming], rates: &[f64]) -> Vec<Figure> {
    let figure = |id, what: &str, unit, value: fn(&Naming) -> f64| {
        Figure::new(id, what, unit, Summary::of(ours.iter().map(value)))
    };
    vec![
        figure("symbols.parse", "goprof: load", "ms", |n| n.parse_ms),
        figure(
            "symbols.loaded_memory",
            "goprof: own memory once loaded",
            "kB",
            |n| n.opened_kb,
        ),
        figure(
            "symbols.named_memory",
            "goprof: own memory once all are named",
            "kB",
            |n| n.named_kb,
        ),
        figure(
            "symbols.resident",
            "goprof: the same with pages of the file, shared",
            "kB",
            |n| n.resident_kb,
        ),
        figure(
            "symbols.frames",
            "goprof: frames named, inlined ones included",
            "per s",
            |n| n.frames / n.name_ms * 1e3,
        ),
        Figure::new(
            "symbols.addresses",
            "goprof: addresses named",
            "per s",
            Summary::of(rates.iter().copied()),
        ),
    ]
}

fn their_figures(loads_s: &[f64], rates: &[f64]) -> [Figure; 2] {
    [
        Figure::new(
            "symbols.addr2line_load",
            "addr2line: start, load, one address",
            "ms",
            Summary::of(loads_s.iter().map(|seconds| seconds * 1e3)),
        ),
        Figure::new(
            "symbols.addr2line",
            "addr2line: addresses named",
            "per s",
            Summary::of(rates.iter().copied()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_agree_where_both_lines_do() {
        let ours = "main.a\na.go:1\nmain.b\nb.go:2\n";
        assert_eq!(agreeing(ours, ours), 1.0);
        assert_eq!(agreeing(ours, "main.a\na.go:1\nmain.b\nb.go:3\n"), 0.5);
        assert_eq!(agreeing(ours, "main.a\na.go:1\n"), 0.5);
        assert_eq!(agreeing("", ""), 0.0);
    }
}
