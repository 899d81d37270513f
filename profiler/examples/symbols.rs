//! Names addresses of a Go binary through the library alone, for
//! `cargo xtask bench`: `symbols addresses BINARY COUNT` chooses addresses,
//! `symbols name BINARY` times and `symbols answer BINARY` prints what those on
//! standard input are. It knows nothing of processes and loads no eBPF.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use goprof::gobinary::{GoBinary, GoFrame};
use goprof::image::Image;
use object::{Object, ObjectSection};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context("usage: symbols MODE BINARY [COUNT]");
    let (mode, path) = (next()?, PathBuf::from(next()?));
    match mode.as_str() {
        "addresses" => choose(&open(&path)?.1, next()?.parse()?),
        "name" => time(&path),
        "answer" => answer(&open(&path)?.1),
        other => bail!("no mode {other}: addresses, name or answer"),
    }
}

/// The binary, and how long it took to recognise and find its tables, in
/// milliseconds: without, and with opening and mapping.
fn open(path: &PathBuf) -> Result<([f64; 2], GoBinary)> {
    let begun = Instant::now();
    let image = Arc::new(Image::open(File::open(path)?)?);
    let mapped = Instant::now();
    let binary = GoBinary::parse(image)?;
    Ok(([ms(mapped), ms(begun)], binary))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Prints `count` addresses of instructions spread evenly over the code, in no
/// order. Beside each stands what to ask `go tool addr2line` for it: that takes
/// the beginning of the section `.text` for that of Go's code (as of Go 1.26,
/// cmd/internal/objfile/elf.go), which it is not where C is linked in.
fn choose(binary: &GoBinary, count: usize) -> Result<()> {
    let text = binary.text();
    let length = text.end - text.start;
    let file = object::File::parse(binary.image().bytes())?;
    let section = file.section_by_name(".text").context("it has no .text")?;
    let shift = text.start - section.address();
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut frames = Vec::new();
    let mut chosen = 0;
    for index in 0..count as u64 * 2 {
        // Steps of the golden ratio fall evenly and never where others did.
        let spread = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let address = text.start + ((u128::from(spread) * u128::from(length)) >> 64) as u64;
        frames.clear();
        let named = binary.frames(address, &mut frames);
        // No line: filling between two functions, where nothing is executed.
        if named.is_ok() && frames.first().is_some_and(|leaf| leaf.line > 0) {
            writeln!(output, "{address:#x} {:#x}", address - shift)?;
            chosen += 1;
        }
        if chosen == count {
            return Ok(output.flush()?);
        }
    }
    bail!("the code is more filling than instructions")
}

fn read_addresses() -> Result<Vec<u64>> {
    let parse = |line: std::io::Result<String>| -> Result<u64> {
        let line = line?;
        let digits = line.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).with_context(|| format!("`{line}` is no address"))
    };
    std::io::stdin().lines().map(parse).collect()
}

/// Prints, as JSON, what opening and naming took in time and memory. The names
/// are not kept: what is left is what the binary itself holds.
fn time(path: &PathBuf) -> Result<()> {
    let addresses = read_addresses()?;
    let mut frames: Vec<GoFrame> = Vec::with_capacity(64);
    let before_kb = memory_kb("Anonymous")?;
    let resident_before_kb = memory_kb("Rss")?;
    let ([parse_ms, open_ms], binary) = open(path)?;
    let opened_kb = memory_kb("Anonymous")?;

    let begun = Instant::now();
    let (mut named, mut unnamed) = (0, 0);
    for address in &addresses {
        frames.clear();
        match binary.frames(*address, &mut frames) {
            Ok(()) => named += frames.len(),
            Err(_) => unnamed += 1,
        }
    }
    let name_ms = ms(begun);
    let result = serde_json::json!({
        "size_bytes": binary.image().id().size_bytes,
        "go_version": binary.version().to_string(),
        "parse_ms": parse_ms,
        "open_ms": open_ms,
        "opened_kb": opened_kb.saturating_sub(before_kb),
        "addresses": addresses.len(),
        "frames": named,
        "unnamed": unnamed,
        "name_ms": name_ms,
        "named_kb": memory_kb("Anonymous")?.saturating_sub(before_kb),
        "resident_kb": memory_kb("Rss")?.saturating_sub(resident_before_kb),
    });
    println!("{result}");
    Ok(())
}

/// Prints what `go tool addr2line` prints: the function that holds the code,
/// then the file and line that the instruction came from.
fn answer(binary: &GoBinary) -> Result<()> {
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut frames = Vec::new();
    for address in read_addresses()? {
        frames.clear();
        // A frame without a name shows as one that differs.
        let _ = binary.frames(address, &mut frames);
        match (frames.first(), frames.last()) {
            (Some(leaf), Some(function)) => {
                writeln!(output, "{}\n{}:{}", function.name, leaf.file, leaf.line)?;
            }
            _ => writeln!(output, "?\n?:0")?,
        }
    }
    Ok(output.flush()?)
}

/// A sum over this process's mappings, in kB: `Anonymous` is its own memory,
/// `Rss` has the pages of files too, which it shares with the page cache.
fn memory_kb(key: &str) -> Result<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup")
        .context("read /proc/self/smaps_rollup")?;
    rollup
        .lines()
        .find_map(|line| {
            line.strip_prefix(key)?
                .strip_prefix(':')?
                .split_whitespace()
                .next()
        })
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("/proc/self/smaps_rollup has no {key}"))
}
