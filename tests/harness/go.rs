//! Building the Go programs of `tests/go/` with any Go version, in every shape
//! a binary comes in, once per change of their sources.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::hash::{Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::command::{self, Outcome};
use crate::quiet;

/// The Go versions the live tests cover.
pub const VERSIONS: [&str; 7] = [
    "1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3",
];

/// Every version that goprof promises exact stacks of: those of the oracle.
pub const EVERY_VERSION: [&str; 9] = [
    "1.19.13", "1.20.14", "1.21.13", "1.22.10", "1.23.9", "1.24.11", "1.25.5", "1.26.6", "1.27.3",
];

/// One test per Go version, and one that none is forgotten:
/// `test_each_version! { check, VERSIONS: go_1_27 "1.27.3", }`, where `check`
/// takes the version and `VERSIONS` is one of this module's lists.
#[macro_export]
macro_rules! test_each_version {
    ($check:path, $list:ident: $($name:ident $version:literal,)*) => {
        $(
            #[test]
            fn $name() {
                $check($version);
            }
        )*

        #[test]
        fn every_version_is_tested() {
            assert_eq!([$($version),*], $crate::go::$list);
        }
    };
}

/// The newest of [`VERSIONS`], for tests that need only one.
pub const NEWEST: &str = VERSIONS[VERSIONS.len() - 1];

/// The programs that need a C compiler.
const CGO_PROGRAMS: [&str; 6] = [
    "cgo_call",
    "cgo_callback",
    "forks",
    "hard_cases",
    "hostile",
    "nested_callback",
];

/// How to get Go, for the message when it is missing.
pub const REMEDY: &str = "install Go 1.21 or later and put it on PATH (or name it in GOPROF_GO); \
     `cargo xtask test` does that by itself";

/// The shape of a binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Variant {
    /// As `go build` makes it.
    Plain,
    /// Without symbol table and DWARF (`-ldflags=-s -w`).
    Stripped,
    /// Position-independent (`-buildmode=pie`).
    Pie,
    /// Both.
    StrippedPie,
}

impl Variant {
    fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Stripped => "stripped",
            Variant::Pie => "pie",
            Variant::StrippedPie => "stripped-pie",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Variant::Plain => &[],
            Variant::Stripped => &["-ldflags=-s -w"],
            Variant::Pie => &["-buildmode=pie"],
            Variant::StrippedPie => &["-ldflags=-s -w", "-buildmode=pie"],
        }
    }
}

/// Builds a program with the newest Go version, as `go build` does by default.
#[track_caller]
pub fn build(program: &str) -> PathBuf {
    build_with(program, NEWEST, Variant::Plain)
}

/// Builds a program; a build of the same sources is used again. The file is
/// named like the program.
#[track_caller]
pub fn build_with(program: &str, version: &str, variant: Variant) -> PathBuf {
    let key = format!(
        "{program}-go{version}-{}-{:016x}",
        variant.name(),
        sources_hash(program)
    );
    let dir = crate::cache_dir().join(key);
    let binary = dir.join(program);
    if binary.exists() {
        return binary;
    }
    let _turn = quiet::building();
    let making = tempfile::tempdir_in(crate::cache_dir()).expect("make a directory to build in");
    let made = making.path().join(program);
    go_build(program, version, variant.flags(), &made).succeeded();
    // Two tests may build the same; each puts its own in place whole.
    std::fs::create_dir_all(&dir).expect("make a directory for the program");
    std::fs::rename(&made, &binary).expect("put the program in place");
    binary
}

/// Builds a program with extra flags of `go build`, always anew, and says what
/// the compiler said.
#[track_caller]
pub fn go_build(program: &str, version: &str, flags: &[&str], output: &Path) -> Outcome {
    let mut go = go(version);
    go.arg("build").args(flags).arg("-o").arg(output);
    go.arg(format!("./{program}"));
    go.current_dir(source_dir(""));
    let needs_c = CGO_PROGRAMS.contains(&program);
    go.env("CGO_ENABLED", if needs_c { "1" } else { "0" });
    command::run(&mut go, Duration::from_secs(540), REMEDY)
}

/// The `go` command of a version, fetched by Go itself if it is not there.
pub fn go(version: &str) -> Command {
    let program = std::env::var_os("GOPROF_GO").unwrap_or_else(|| OsString::from("go"));
    let mut go = Command::new(program);
    go.env("GOTOOLCHAIN", format!("go{version}"))
        .env("GOFLAGS", "-buildvcs=false")
        .env("GOWORK", "off");
    go
}

/// Builds a tool of `tests/go_tools`, by the path of its package; Go itself keeps what
/// it built before.
#[track_caller]
pub fn tool(package: &str) -> PathBuf {
    let _turn = quiet::building();
    let name = package.rsplit('/').next().expect("a name");
    let program = crate::cache_dir().join(name);
    let mut go = go(NEWEST);
    go.args(["build", "-o"]).arg(&program).arg(package);
    go.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go_tools"));
    go.env("CGO_ENABLED", "0");
    let remedy = "it takes Go and modules from the module proxy (GOPROXY)";
    command::run(&mut go, Duration::from_secs(540), remedy).succeeded();
    program
}

/// The line number (from 1) of the source line of a program that ends in the
/// comment `// line:MARK`.
#[track_caller]
pub fn marked_line(program: &str, mark: &str) -> i64 {
    let path = source_dir(program).join("main.go");
    let text = std::fs::read_to_string(&path).expect("read a program's source");
    let ending = format!("// line:{mark}");
    let at = text.lines().position(|line| line.ends_with(&ending));
    let at = at.unwrap_or_else(|| panic!("no line of {} ends in `{ending}`", path.display()));
    i64::try_from(at).expect("a line number") + 1
}

/// Where the sources of a program lie; of all programs for "".
pub fn source_dir(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("go")
        .join(program)
}

fn sources_hash(program: &str) -> u64 {
    let mut files = vec![source_dir("go.mod")];
    list_files(&source_dir("internal"), &mut files);
    list_files(&source_dir(program), &mut files);
    files.sort();
    let mut hasher = DefaultHasher::new();
    for file in files {
        file.strip_prefix(source_dir("")).unwrap().hash(&mut hasher);
        std::fs::read(&file)
            .unwrap_or_else(|e| panic!("read {}: {e}", file.display()))
            .hash(&mut hasher);
    }
    hasher.finish()
}

fn list_files(dir: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("list {}: {e}", dir.display()));
    for entry in entries {
        let path = entry.expect("read a directory").path();
        if path.is_dir() {
            list_files(&path, files);
        } else {
            files.push(path);
        }
    }
}
