//! Go programs of more than 100 MB, made for the measurement: no distribution has
//! five. Each calls through all of its functions at random, so that hardly any
//! stack comes twice. They are made of the same packages, of which each leaves
//! others out, so that nothing lies where it does in another.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Bench;
use crate::command;

/// Smaller ones do not show what is asked.
const MIN_SIZE_BYTES: u64 = 100_000_000;
const PACKAGES: usize = 58;
const FUNCTIONS_PER_PACKAGE: usize = 1_600;
/// How deep the calls go.
const DEPTH: usize = 24;

/// Builds so many programs, or finds them built.
pub(super) fn build(bench: &Bench, count: usize) -> Result<Vec<PathBuf>> {
    let folder = bench.folder.join("large");
    let packages = (0..PACKAGES).map(|package| {
        let name = package_name(package);
        (format!("{name}/{name}.go"), functions(package))
    });
    let mains = (0..count).map(|number| (format!("{}/main.go", name(number)), main(number)));
    let sources = [("go.mod".to_owned(), MODULE.to_owned())]
        .into_iter()
        .chain([("calls/calls.go".to_owned(), CALLS.to_owned())])
        .chain(packages)
        .chain(mains);
    for (path, text) in sources {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&folder)).context("make a folder")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    bench.progress("compiling large programs, for some minutes the first time");
    (0..count)
        .map(|number| compile(bench, &folder, &name(number)))
        .collect()
}

/// Go finds in its cache what has not changed.
fn compile(bench: &Bench, folder: &Path, name: &str) -> Result<PathBuf> {
    let program = bench.folder.join(name);
    let mut build = bench.go.command(None);
    build.args(["build", "-buildvcs=false", "-o"]).arg(&program);
    build.current_dir(folder).env("CGO_ENABLED", "0");
    command::run(build.arg(format!("./{name}")))?;
    let size = fs::metadata(&program).context("look at the program")?.len();
    if size < MIN_SIZE_BYTES {
        bail!(
            "{} has {size} bytes: give it more functions",
            program.display()
        );
    }
    Ok(program)
}

/// How many functions each has, small ones that are inlined aside.
pub(super) fn functions_in_all() -> usize {
    (PACKAGES - 1) * FUNCTIONS_PER_PACKAGE
}

fn name(number: usize) -> String {
    format!("large{number}")
}

fn package_name(package: usize) -> String {
    format!("part{package:02}")
}

const MODULE: &str = "module example.com/large\n\ngo 1.21\n";

/// Every function is called through a table: so none is inlined or left out.
const CALLS: &str = "\
// Package calls has every function of the program.
package calls

// All of them.
var All []func(x uint64, depth int) uint64

// Next calls one of them, which x chooses.
func Next(x uint64, depth int) uint64 {
	if depth == 0 {
		return x
	}
	return All[(x>>17)%uint64(len(All))](x, depth-1)
}
";

fn main(number: usize) -> String {
    let mut text = String::from("// Command large is busy in all of its functions.\n");
    text += "package main\n\nimport (\n\t\"os\"\n\t\"time\"\n\n\t\"example.com/large/calls\"\n";
    for package in (0..PACKAGES).filter(|package| *package != number) {
        let _ = writeln!(text, "\t_ \"example.com/large/{}\"", package_name(package));
    }
    text += ")\n\n// Sink keeps the results alive.\nvar Sink uint64\n\nfunc main() {\n";
    text += "\tos.Stdout.WriteString(\"ready\\n\")\n\tx := uint64(time.Now().UnixNano())\n";
    let _ = writeln!(
        text,
        "\tfor {{\n\t\tx = calls.Next(x*6364136223846793005+1442695040888963407, {DEPTH})\n\
         \t\tSink += x\n\t}}\n}}"
    );
    text
}

/// A package: its functions, a few small ones that are inlined into them, and
/// their entry into the table.
fn functions(package: usize) -> String {
    let name = package_name(package);
    let mut text = format!(
        "// Package {name} is made up.\npackage {name}\n\n\
         import \"example.com/large/calls\"\n\n\
         type state struct{{ words [16]uint64 }}\n\n\
         func mix(x uint64) uint64 {{ return (x ^ x>>29) * 0xbf58476d1ce4e5b9 }}\n\n\
         func (s *state) at(i uint64) *uint64 {{ return &s.words[i%16] }}\n\n\
         func init() {{\n\tcalls.All = append(calls.All,\n"
    );
    for function in 0..FUNCTIONS_PER_PACKAGE {
        let _ = writeln!(text, "\t\t{},", function_name(function));
    }
    text += "\t)\n}\n";
    for function in 0..FUNCTIONS_PER_PACKAGE {
        let constant = package * FUNCTIONS_PER_PACKAGE + function;
        let _ = write!(
            text,
            "\nfunc {}(x uint64, depth int) uint64 {{\n\
             \tvar s state\n\
             \tfor i := uint64(0); i < 16; i++ {{\n\
             \t\t*s.at(i + x) += mix(x + i*{constant})\n\
             \t}}\n\
             \tswitch x % 5 {{\n\
             \tcase 0:\n\t\tx = mix(x) + *s.at(x)\n\
             \tcase 1:\n\t\tx ^= s.words[3] - {constant}\n\
             \tcase 2:\n\t\t*s.at(x>>8) = mix(s.words[5] + x)\n\
             \tdefault:\n\t\tx += mix(*s.at(x>>3)) ^ *s.at(x>>5)\n\
             \t}}\n\
             \tx = calls.Next(mix(x+{constant}), depth)\n\
             \treturn x + *s.at(x)\n}}\n",
            function_name(function)
        );
    }
    text
}

/// Names as long as people give them.
fn function_name(function: usize) -> String {
    const WORDS: [&str; 8] = [
        "Order",
        "Customer",
        "Invoice",
        "Shipment",
        "Session",
        "Inventory",
        "Payment",
        "Catalog",
    ];
    const VERBS: [&str; 5] = ["resolve", "validate", "reconcile", "publish", "snapshot"];
    let word = WORDS[function % WORDS.len()];
    let verb = VERBS[function % VERBS.len()];
    format!("{verb}{word}{function:04}")
}
