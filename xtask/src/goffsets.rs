//! `cargo xtask goffsets`: makes the table of struct offsets that the profiler
//! holds, from the DWARF of programs built with every Go version, several patch
//! releases of each and for both processors. Writes no offset in which they differ.

use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, SectionHeader, SectionTable};

use crate::command;
use crate::go::Go;
use crate::workspace::Workspace;

// The profiler's own reader, which it uses on programs newer than the table:
// the table proves it on every version.
#[path = "../../profiler/src/gobinary/dwarf.rs"]
mod dwarf;
#[path = "../../profiler/src/gobinary/structs.rs"]
mod structs;

use dwarf::Sections;
use structs::StructOffsets;

/// Where the table is committed.
const TABLE_PATH: &str = "profiler/src/gobinary/offsets_table.rs";

/// An early and a late patch release of each minor one, oldest first: offsets
/// that moved between them are not for a table by minor release.
const VERSIONS: [&str; 18] = [
    "1.19.1", "1.19.13", "1.20.1", "1.20.14", "1.21.0", "1.21.13", "1.22.0", "1.22.10", "1.23.0",
    "1.23.9", "1.24.0", "1.24.11", "1.25.0", "1.25.5", "1.26.0", "1.26.6", "1.27.0", "1.27.3",
];

/// The processors, by Go's names.
const PROCESSORS: [&str; 2] = ["amd64", "arm64"];

/// A program that keeps the runtime's types and those of labels.
const MODULE: &str = "module example.com/goffsets\n\ngo 1.19\n";
const PROGRAM: &str = r#"package main

import (
	"context"
	"runtime/pprof"
)

func main() {
	pprof.Do(context.Background(), pprof.Labels("key", "value"), func(context.Context) {})
}
"#;

/// Arguments of `cargo xtask goffsets`.
#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Fail if the committed table is not what would be written
    #[arg(long)]
    pub check: bool,
}

/// Writes the table, or compares it.
pub fn run(workspace: &Workspace, args: &Args) -> Result<()> {
    let text = format(workspace, &render(&read_all(workspace)?)?)?;
    let path = workspace.root.join(TABLE_PATH);
    if !args.check {
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        println!("goffsets: wrote {TABLE_PATH}");
        return Ok(());
    }
    let committed =
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    if committed != text {
        bail!("{TABLE_PATH} is not what Go's releases say: run `cargo xtask goffsets`");
    }
    println!(
        "goffsets: {TABLE_PATH} is what {} builds of Go say",
        VERSIONS.len() * PROCESSORS.len()
    );
    Ok(())
}

/// The offsets of each minor release, oldest first. Fails if releases of one
/// minor release differ, or the processors.
fn read_all(workspace: &Workspace) -> Result<Vec<(u16, StructOffsets)>> {
    let go = Go::prepare(workspace)?;
    let folder = workspace.target().join("goffsets");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for (name, text) in [("go.mod", MODULE), ("main.go", PROGRAM)] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let mut minors: Vec<(u16, StructOffsets)> = Vec::new();
    for version in VERSIONS {
        go.provide(version)?;
        let minor = minor_of(version)?;
        for processor in PROCESSORS {
            let offsets = read_build(&go, &folder, version, processor)
                .with_context(|| format!("Go {version} for {processor}"))?;
            match minors.last() {
                Some((last, known)) if *last == minor && *known != offsets => bail!(
                    "Go {version} for {processor} differs from another build of Go 1.{minor}: \
                     its table would be wrong for one of them\n{known:#?}\n{offsets:#?}"
                ),
                Some((last, _)) if *last == minor => {}
                _ => minors.push((minor, offsets)),
            }
        }
    }
    Ok(minors)
}

fn minor_of(version: &str) -> Result<u16> {
    let minor = version.split('.').nth(1).and_then(|word| word.parse().ok());
    minor.with_context(|| format!("{version} is no Go version"))
}

/// Builds the program and reads its DWARF.
fn read_build(go: &Go, folder: &Path, version: &str, processor: &str) -> Result<StructOffsets> {
    let binary = folder.join(format!("{version}-{processor}"));
    let mut build = go.command(Some(version));
    build
        .args(["build", "-ldflags=-compressdwarf=false", "-o"])
        .arg(&binary)
        .arg(".")
        .current_dir(folder)
        .env("GOFLAGS", "-buildvcs=false")
        .env("GOOS", "linux")
        .env("GOARCH", processor)
        .env("CGO_ENABLED", "0");
    command::output(&mut build)?;
    let data = fs::read(&binary).with_context(|| format!("read {}", binary.display()))?;
    let header = FileHeader64::<LittleEndian>::parse(&*data)?;
    let sections = header.sections(LittleEndian, &*data)?;
    let offsets = StructOffsets::read(Sections {
        info: section(&sections, &data, ".debug_info")?,
        abbrev: section(&sections, &data, ".debug_abbrev")?,
        str: &[],
    })
    .map_err(|why| anyhow!(why))?;
    if let Some(unlike) = offsets.lists.err().or(offsets.spans.err()) {
        bail!("{unlike}");
    }
    if offsets.labels.is_none() {
        bail!("its DWARF does not say how labels are stored");
    }
    Ok(offsets)
}

fn section<'a>(
    sections: &SectionTable<'a, FileHeader64<LittleEndian>>,
    data: &'a [u8],
    name: &str,
) -> Result<&'a [u8]> {
    let (_, section) = sections
        .section_by_name(LittleEndian, name.as_bytes())
        .with_context(|| format!("no section {name}"))?;
    Ok(section.data(LittleEndian, data)?)
}

/// The table's source. Neighbours that agree share an entry.
fn render(minors: &[(u16, StructOffsets)]) -> Result<String> {
    let mut entries: Vec<(u16, u16, StructOffsets)> = Vec::new();
    for (minor, offsets) in minors {
        match entries.last_mut() {
            Some((_, end, same)) if same == offsets => *end = *minor,
            _ => entries.push((*minor, *minor, *offsets)),
        }
    }
    let (_, latest, _) = entries.last().context("no Go version")?;
    let mut text = String::from(
        "//! Struct offsets by Go release, for amd64 and arm64 alike. @generated by\n\
         //! `cargo xtask goffsets` from the DWARF of builds; do not edit.\n\n\
         use std::ops::RangeInclusive;\n\n\
         use super::structs::LabelFormat::{Map, Slice};\n\
         use super::structs::{\n\
         GOffsets, ListOffsets, MOffsets, SavedRegisters, SpanOffsets, StackBounds,\n\
         StructOffsets, SudogOffsets, SyscallRegisters,\n\
         };\n\n",
    );
    writeln!(
        text,
        "/// Go 1.x that the table ends with.\n\
         pub(super) const LATEST: u16 = {latest};\n\n\
         /// Go 1.x, first and last, with the offsets of all their releases.\n\
         pub(super) static TABLE: [(RangeInclusive<u16>, StructOffsets); {}] = [",
        entries.len()
    )?;
    for (first, last, offsets) in &entries {
        // Its Debug form is the Rust expression that makes it.
        writeln!(text, "({first}..={last}, {offsets:#?}),")?;
    }
    text.push_str("];\n");
    Ok(text)
}

/// Formats Rust source as `cargo fmt` does.
fn format(workspace: &Workspace, source: &str) -> Result<String> {
    let rustfmt = workspace.sysroot()?.join("bin/rustfmt");
    let mut formatter = Command::new(&rustfmt)
        .args(["--edition", "2024"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", rustfmt.display()))?;
    // It reads all of its input before it writes.
    formatter
        .stdin
        .take()
        .context("a pipe was asked for")?
        .write_all(source.as_bytes())
        .context("write to rustfmt")?;
    let output = formatter.wait_with_output().context("run rustfmt")?;
    if !output.status.success() {
        bail!("rustfmt refused the table: {}", output.status);
    }
    String::from_utf8(output.stdout).context("rustfmt wrote something other than text")
}
