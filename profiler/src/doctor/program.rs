//! Program: what a binary gives to a CPU profile and what it does not. Reads
//! the file as it is mapped; everything in it is taken for hostile.

use object::{
    Endianness,
    elf::{self, FileHeader64},
    read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _},
};

use super::Check;
use crate::{
    gobinary::{BuildInfo, GoBinary, GoBinaryError, Machine},
    process::{Code, Object, Process},
};

/// Functions and addresses of each that are looked at for an inlined call:
/// programs that have any have one in the first few.
const MAX_FUNCTIONS: usize = 2000;
const MAX_ADDRESSES: usize = 64;
/// Section headers looked at; programs have some dozen.
const MAX_SECTIONS: usize = 1 << 16;

/// How a program was linked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Shape {
    has_symbols: bool,
    is_dynamic: bool,
    is_position_independent: bool,
}

impl Shape {
    /// None where the headers make no sense.
    fn read(bytes: &[u8]) -> Option<Self> {
        let header = FileHeader64::<Endianness>::parse(bytes).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, bytes).ok()?;
        // Without its section headers a program runs as well, and has no symbols.
        let sections = header.section_headers(endian, bytes).unwrap_or_default();
        Some(Self {
            has_symbols: sections.iter().take(MAX_SECTIONS).any(|section| {
                section.sh_type(endian) == elf::SHT_SYMTAB && section.sh_size(endian) > 0
            }),
            is_dynamic: segments
                .iter()
                .any(|segment| segment.p_type(endian) == elf::PT_INTERP),
            is_position_independent: header.e_type(endian) == elf::ET_DYN,
        })
    }
}

/// Checks the program `object`, which runs in `process`.
pub(super) fn checks(object: &Object, process: Option<&Process>) -> Vec<Check> {
    let binary = match &object.code {
        Code::Go(binary) => binary,
        Code::Native(error) => return vec![not_go(error)],
    };
    let info = binary.build_info();
    let shape = Shape::read(binary.image().bytes()).unwrap_or_default();
    let is_cgo = binary.has_cgo();
    let inlines = has_inlined_calls(binary);
    let mut checks = vec![
        program(info),
        mapped(process),
        machine(binary.machine()),
        version(binary),
        module(info),
        linking(shape, is_cgo),
        build_id(object),
        tables(binary),
        inlining(inlines),
    ];
    if is_cgo {
        checks.push(c_code(shape));
    }
    checks.push(unchanged(object));
    checks.push(profiles(inlines, is_cgo.then_some(shape.has_symbols)));
    checks
}

fn not_go(error: &GoBinaryError) -> Check {
    let check = Check::ok("program", "program", error.to_string());
    match error {
        GoBinaryError::UnsupportedVersion(_) => {
            check.fail("build it with a Go version that goprof knows")
        }
        GoBinaryError::NoPclntab | GoBinaryError::Damaged(_) => {
            check.fail("build it anew with the go command, and pack or edit nothing in the file")
        }
        _ => check.fail("choose a process that runs a Go program; goprof names only those"),
    }
}

fn program(info: &BuildInfo) -> Check {
    let path = match info.path.as_str() {
        "" => "of a package that is not named",
        path => path,
    };
    Check::ok("program", "program", format!("Go: {path}"))
}

fn mapped(process: Option<&Process>) -> Check {
    let check = |found: &str| Check::ok("mapped", "Go code", found);
    match process {
        Some(process) if process.go_object().is_some() => check("mapped and readable"),
        Some(_) => check("not mapped from the file of the process")
            .fail("start the program without a packer or loader that unpacks it in memory"),
        None => {
            check("its mappings cannot be read").fail("run goprof as root, or with CAP_SYS_PTRACE")
        }
    }
}

fn machine(machine: Machine) -> Check {
    let (name, is_ours) = match machine {
        Machine::X86_64 => ("amd64", cfg!(target_arch = "x86_64")),
        Machine::Aarch64 => ("arm64", cfg!(target_arch = "aarch64")),
    };
    let check = |found: String| Check::ok("frame_pointers", "frame pointers", found);
    if is_ours {
        check(format!("yes, as Go keeps them on {name}"))
    } else {
        check(format!("of {name}, which this machine only emulates"))
            .fail("profile it on a machine of its own kind")
    }
}

fn version(binary: &GoBinary) -> Check {
    let version = binary.version();
    let check = |found: String| Check::ok("go_version", "Go version", found);
    if version.is_newer_than_known() {
        check(format!(
            "{version}, newer than goprof knows; the newest known tables fit"
        ))
        .warn("compare a few names with the program's own, and look for a newer goprof")
    } else if version.is_devel() {
        check(format!("{version}, a snapshot; known tables fit"))
            .warn("compare a few names with the program's own")
    } else {
        check(format!("{version}, whose tables goprof knows"))
    }
}

fn module(info: &BuildInfo) -> Check {
    let check = |found: String| Check::ok("module", "main module", found);
    let version = match info.module_version.as_str() {
        "" => "without a version",
        version => version,
    };
    match info.module_path.as_str() {
        "" => check("none: built without modules".into()),
        path => check(format!("{path} {version}")),
    }
}

fn linking(shape: Shape, is_cgo: bool) -> Check {
    let words = [
        if shape.is_dynamic {
            "dynamic"
        } else {
            "static"
        },
        if shape.is_position_independent {
            "position-independent"
        } else {
            "at a fixed address"
        },
        if is_cgo { "with cgo" } else { "without cgo" },
        if shape.has_symbols {
            "with symbols"
        } else {
            "stripped, which takes no Go name away"
        },
    ];
    Check::ok("linking", "linked", words.join(", "))
}

fn build_id(object: &Object) -> Check {
    let check = |found: String| Check::ok("build_id", "build id", found);
    match object.build_id() {
        id if id.is_empty() => check("none; the profile goes by the file's name".into()),
        id => check(id),
    }
}

fn tables(binary: &GoBinary) -> Check {
    let check = |found: String| Check::ok("tables", "function table", found);
    match binary.functions().count() {
        0 => check("it names no function".into())
            .fail("build it anew with the go command, and pack or edit nothing in the file"),
        count => check(format!("{count} functions, with files and lines")),
    }
}

/// Whether an inlined call is found.
fn has_inlined_calls(binary: &GoBinary) -> bool {
    let mut frames = Vec::new();
    binary.functions().take(MAX_FUNCTIONS).any(|function| {
        // The step is prime to the size of instructions on either machine.
        (function.entry..function.end)
            .step_by(4)
            .take(MAX_ADDRESSES)
            .any(|address| {
                frames.clear();
                binary.frames(address, &mut frames).is_ok() && frames.len() > 1
            })
    })
}

fn inlining(inlines: bool) -> Check {
    let check = |found: &str| Check::ok("inline_tables", "inlined calls", found);
    if inlines {
        check("found in the binary's inline tables")
    } else {
        check("none found, as after -gcflags=-l")
            .warn("build without -gcflags=-l; profiles then are those of what runs in production")
    }
}

fn c_code(shape: Shape) -> Check {
    let check = |found: &str| Check::ok("c_code", "C code", found);
    if shape.has_symbols {
        check("named by the symbol table")
    } else {
        check("stripped: C functions of the program itself are shown by address")
            .warn("build without -ldflags=-s (-w alone keeps the symbols)")
    }
}

fn unchanged(object: &Object) -> Check {
    let check = |found: &str| Check::ok("unchanged", "content", found);
    if object.changed() {
        check("written to while it was read").warn("restart the program after it was rebuilt")
    } else {
        check("unchanged while it was read")
    }
}

/// What a recording of this program gives. `c_names` is for programs with C
/// code: whether it has names.
fn profiles(inlines: bool, c_names: Option<bool>) -> Check {
    let mut found = "cpu: Go functions with files and lines".to_owned();
    if inlines {
        found.push_str(", inlined calls");
    }
    match c_names {
        Some(true) => found.push_str(", C functions"),
        Some(false) => found.push_str("; C functions by address"),
        None => {}
    }
    Check::ok("profiles", "gives", found)
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    /// An ELF header for amd64 with one program header of type `segment`.
    fn header(kind: u8, segment: u8) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[16] = kind;
        bytes[18] = 62;
        bytes[20] = 1;
        bytes[32] = 64;
        bytes[52] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = segment;
        bytes
    }

    #[test]
    fn the_shape_is_read_from_the_headers() {
        let fixed = Shape::read(&header(2, 1)).unwrap();
        assert_eq!(fixed, Shape::default());
        let pie = Shape::read(&header(3, 3)).unwrap();
        assert!(pie.is_dynamic && pie.is_position_independent && !pie.has_symbols);
        assert_eq!(Shape::read(b"#!/bin/sh"), None);
        assert_eq!(Shape::read(&header(2, 1)[..80]), None);
    }

    #[test]
    fn this_test_has_symbols() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let shape = Shape::read(&own).unwrap();
        assert!(shape.has_symbols && shape.is_dynamic);
    }

    #[test]
    fn what_is_missing_is_not_promised() {
        assert!(profiles(true, None).found.contains("inlined"));
        assert!(!profiles(false, None).found.contains("inlined"));
        assert!(profiles(true, Some(false)).found.contains("by address"));
        let stripped = c_code(Shape::default());
        assert_eq!(stripped.status, Status::Warn);
    }

    #[test]
    fn a_refused_program_says_what_it_is() {
        let check = not_go(&GoBinaryError::NotElf);
        assert_eq!(check.found, "not an ELF file");
        assert_eq!(check.status, Status::Fail);
        let old = not_go(&GoBinaryError::UnsupportedVersion("go1.12".into()));
        assert!(old.found.contains("go1.12"));
    }
}
