//! Go programs of more than 100 MB, made for the measurement: no distribution has
//! five. Each has functions, names and tables of its own, and calls through all
//! of them at random, so that hardly any stack comes twice.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::Bench;
use crate::command;

/// Smaller ones do not show what is asked.
const MIN_SIZE_BYTES: u64 = 100_000_000;
const PACKAGES: usize = 48;
const FUNCTIONS_PER_PACKAGE: usize = 1_800;
/// How deep the calls go.
const DEPTH: usize = 24;

/// Builds the program of that number, or finds it built.
pub(super) fn build(bench: &Bench, number: usize) -> Result<PathBuf> {
    let folder = bench.folder.join(format!("large{number}"));
    let program = folder.join(format!("large{number}"));
    let sources = [("go.mod".to_owned(), module(number))]
        .into_iter()
        .chain([("main.go".to_owned(), main(number))])
        .chain([("calls/calls.go".to_owned(), CALLS.to_owned())])
        .chain((0..PACKAGES).map(|package| {
            let name = package_name(number, package);
            (format!("{name}/{name}.go"), functions(number, package))
        }));
    for (path, text) in sources {
        let path = folder.join(path);
        // What has not changed stays as it is, for Go's cache and for us.
        if fs::read_to_string(&path).is_ok_and(|there| there == text) {
            continue;
        }
        fs::create_dir_all(path.parent().unwrap_or(&folder)).context("make a folder")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        let _ = fs::remove_file(&program);
    }
    if !program.exists() {
        bench.progress(&format!("compiling {}", program.display()));
        let mut build = bench.go.command(None);
        build.args(["build", "-buildvcs=false", "-o"]).arg(&program);
        build.current_dir(&folder).env("CGO_ENABLED", "0");
        command::run(build.arg("."))?;
    }
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
    PACKAGES * FUNCTIONS_PER_PACKAGE
}

fn package_name(number: usize, package: usize) -> String {
    format!("part{number}x{package:02}")
}

fn module(number: usize) -> String {
    format!("module example.com/large{number}\n\ngo 1.21\n")
}

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
    let mut text =
        String::from("// Command large is busy in all of its functions.\npackage main\n\n");
    text += "import (\n\t\"os\"\n\t\"time\"\n\n";
    let _ = writeln!(text, "\t\"example.com/large{number}/calls\"");
    for package in 0..PACKAGES {
        let name = package_name(number, package);
        let _ = writeln!(text, "\t_ \"example.com/large{number}/{name}\"");
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
fn functions(number: usize, package: usize) -> String {
    let name = package_name(number, package);
    let mut text = format!(
        "// Package {name} is made up.\npackage {name}\n\n\
         import \"example.com/large{number}/calls\"\n\n\
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
        let constant = (number * PACKAGES + package) * FUNCTIONS_PER_PACKAGE + function;
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
