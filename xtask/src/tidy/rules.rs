//! The rules about single files: how they open, what they are called, how long
//! they are, and what must not be written in them.

use super::Finding;

const MAX_FILE_LINES: usize = 600;
const MAX_ARCHITECTURE_LINES: usize = 200;
const MAX_OBJECT_BYTES: usize = 160 * 1024;

/// Names that say nothing, and so attract everything.
const EMPTY_NAMES: [&str; 11] = [
    "common",
    "handler",
    "handlers",
    "helper",
    "helpers",
    "manager",
    "misc",
    "processor",
    "types",
    "util",
    "utils",
];

/// Folders of one machine. They count where a path begins: `/proc/PID/root/` is
/// none of them. (Written in two parts, as this file is checked as well.)
const PRIVATE_FOLDERS: [&str; 3] = [
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
];

/// Hosts that a machine may reach through a mirror of another name: its package
/// managers know which, the project does not.
const MIRROR_HOSTS: [&str; 8] = [
    concat!("deb.deb", "ian.org"),
    concat!("snapshot.deb", "ian.org"),
    concat!("security.deb", "ian.org"),
    concat!("static.crates", ".io"),
    concat!("proxy.gol", "ang.org"),
    concat!("py", "pi.org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
];

const OPEN_ENDS: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// A Rust file says first what it does and what it must not do.
pub(super) fn opening(text: &str) -> Option<Finding> {
    let opens = text.starts_with("//!") || text.is_empty();
    (!opens).then(|| {
        Finding::new(
            1,
            "does not open with `//!`: say what the file does and what it must not do",
        )
    })
}

/// A module is named for what it is about.
pub(super) fn name(path: &str) -> Option<Finding> {
    let empty = path.split('/').find_map(|part| {
        let stem = part.strip_suffix(".rs").unwrap_or(part);
        EMPTY_NAMES.contains(&stem).then_some(stem)
    })?;
    Some(Finding::new(
        0,
        format!("`{empty}` says nothing: name the module for what it holds"),
    ))
}

/// A file stays readable in one sitting. Its inline tests and generated files
/// do not count.
pub(super) fn length(text: &str) -> Option<Finding> {
    let generated = text.lines().take(5).any(|line| line.contains("@generated"));
    let lines = without_tests(text).len();
    (lines > MAX_FILE_LINES && !generated).then(|| {
        Finding::new(
            0,
            format!(
                "{lines} lines without tests, {MAX_FILE_LINES} are allowed: split it by subject"
            ),
        )
    })
}

/// What is left to do is an issue, and its number stands beside the mark.
pub(super) fn open_ends(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let Some((_, comment)) = line.split_once("//") else {
            continue;
        };
        for mark in OPEN_ENDS {
            let numbered = comment
                .split('#')
                .skip(1)
                .any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            if comment.contains(mark) && !numbered {
                findings.push(Finding::new(
                    index + 1,
                    format!("{mark} without an issue: do it, or write its number as `#12`"),
                ));
            }
        }
    }
    findings
}

/// The public repository names no machine and no mirror.
pub(super) fn private_places(path: &str, bytes: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        // A Go checksum database or a lock file would be full of false hits;
        // neither is written by hand.
        if path.ends_with(".lock") {
            break;
        }
        let folder = PRIVATE_FOLDERS
            .into_iter()
            .find(|folder| starts_path(line, folder.as_bytes()));
        let host = MIRROR_HOSTS
            .into_iter()
            .find(|host| find(line, host.as_bytes()).is_some());
        if let Some(folder) = folder {
            findings.push(Finding::new(
                index + 1,
                format!("a path below {folder} exists on one machine: derive it at run time"),
            ));
        }
        if let Some(host) = host {
            findings.push(Finding::new(
                index + 1,
                format!("{host} may be mirrored elsewhere: leave the host to the package manager"),
            ));
        }
    }
    findings
}

/// Whether `folder` stands in `line` as the beginning of a path.
fn starts_path(line: &[u8], folder: &[u8]) -> bool {
    let mut from = 0;
    while let Some(at) = find(&line[from..], folder) {
        let at = from + at;
        let before = at.checked_sub(1).map(|index| line[index]);
        let continues =
            before.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_-.}>])*$".contains(&byte));
        if !continues {
            return true;
        }
        from = at + 1;
    }
    false
}

fn find(line: &[u8], wanted: &[u8]) -> Option<usize> {
    line.windows(wanted.len())
        .position(|window| window == wanted)
}

/// A committed object is stripped; its history stays in every clone.
pub(super) fn size_in_bytes(path: &str, bytes: &[u8]) -> Option<Finding> {
    (path.ends_with(".bpf.o") && bytes.len() > MAX_OBJECT_BYTES).then(|| {
        Finding::new(
            0,
            format!(
                "{} bytes, {MAX_OBJECT_BYTES} are allowed: `cargo xtask ebpf` strips it",
                bytes.len()
            ),
        )
    })
}

/// Every package is held to the workspace's lints.
pub(super) fn inherited_lints(text: &str) -> Option<Finding> {
    let is_package = text.lines().any(|line| line.trim() == "[package]");
    let inherits = text
        .split_once("\n[lints]\n")
        .is_some_and(|(_, rest)| rest.trim_start().starts_with("workspace = true"));
    (is_package && !inherits).then(|| {
        Finding::new(
            0,
            "does not inherit the workspace's lints: add `[lints]` with `workspace = true`",
        )
    })
}

/// ARCHITECTURE.md is read in one go, or not at all.
pub(super) fn architecture(text: &str) -> Option<Finding> {
    let lines = text.lines().count();
    (lines >= MAX_ARCHITECTURE_LINES).then(|| {
        Finding::new(
            0,
            format!(
                "{lines} lines, it stays under {MAX_ARCHITECTURE_LINES}: move detail into the code"
            ),
        )
    })
}

/// The lines of a Rust file outside of its `#[cfg(test)]` modules, numbered
/// from 1. rustfmt puts such a module's end in the first column.
pub(super) fn without_tests(text: &str) -> Vec<(usize, &str)> {
    let mut kept = Vec::new();
    let mut lines = text.lines().enumerate().peekable();
    while let Some((index, line)) = lines.next() {
        let inline_module = line == "#[cfg(test)]"
            && lines
                .peek()
                .is_some_and(|(_, next)| next.starts_with("mod ") && next.ends_with('{'));
        if !inline_module {
            kept.push((index + 1, line));
            continue;
        }
        for (_, line) in lines.by_ref() {
            if line == "}" {
                break;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_opens_with_its_purpose() {
        assert_eq!(opening("//! Reads.\n"), None);
        assert_eq!(opening("use std::fs;\n").map(|f| f.line), Some(1));
        assert!(opening("// Reads.\n").is_some());
    }

    #[test]
    fn a_module_has_a_telling_name() {
        assert_eq!(name("profiler/src/decode.rs"), None);
        assert_eq!(name("profiler/src/process/mod.rs"), None);
        assert!(name("profiler/src/util.rs").is_some());
        assert!(name("profiler/src/helpers/elf.rs").is_some());
        assert!(name("profiler/src/symbolize/types.rs").is_some());
    }

    #[test]
    fn inline_tests_do_not_count_towards_the_length() {
        let code = "fn f() {}\n".repeat(MAX_FILE_LINES);
        let tests = format!(
            "#[cfg(test)]\nmod tests {{\n{}}}\n",
            "    // A line.\n".repeat(50)
        );
        assert_eq!(length(&code), None);
        assert_eq!(length(&format!("{code}{tests}")), None);
        assert!(length(&format!("{code}fn g() {{}}\n")).is_some());
        assert!(length(&format!("{code}{tests}fn g() {{}}\n")).is_some());
        assert_eq!(length(&format!("// @generated\n{code}")), None);
    }

    #[test]
    fn what_is_left_to_do_names_its_issue() {
        let mark = OPEN_ENDS[0];
        assert_eq!(open_ends(&format!("// {mark}(#12): read more\n")), []);
        assert_eq!(open_ends(&format!("let {mark} = 1;\n")), []);
        let found = open_ends(&format!("fn f() {{}}\n// {mark}: read # more\n"));
        assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn paths_of_one_machine_are_found() {
        let check = |line: String| private_places("a.rs", line.as_bytes()).len();
        for folder in PRIVATE_FOLDERS {
            assert_eq!(check(format!("open(\"{folder}x\")")), 1);
            assert_eq!(check(format!("/proc/{{pid}}{folder}x")), 0);
            assert_eq!(check(format!("/proc/1{folder}x then {folder}y")), 1);
        }
        assert_eq!(check("/proc/self/maps".to_owned()), 0);
    }

    #[test]
    fn mirror_hosts_are_found_in_any_file() {
        for host in MIRROR_HOSTS {
            let line = format!("first\x00\nURL=https://{host}/x\n");
            let found = private_places("a.bin", line.as_bytes());
            assert_eq!(found.iter().map(|f| f.line).collect::<Vec<_>>(), [2]);
        }
    }

    #[test]
    fn only_a_large_object_is_refused() {
        let large = vec![0; MAX_OBJECT_BYTES + 1];
        assert!(size_in_bytes("a/b.bpf.o", &large).is_some());
        assert_eq!(size_in_bytes("a/b.bpf.o", &large[1..]), None);
        assert_eq!(size_in_bytes("a/b.bin", &large), None);
    }

    #[test]
    fn a_package_inherits_the_lints() {
        let inherits = "[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n";
        assert_eq!(inherited_lints(inherits), None);
        assert_eq!(inherited_lints("[workspace]\n"), None);
        assert!(inherited_lints("[package]\nname = \"a\"\n").is_some());
        assert!(inherited_lints("[package]\nname = \"a\"\n\n[lints]\nrust = {}\n").is_some());
    }

    #[test]
    fn the_architecture_stays_short() {
        assert_eq!(
            architecture(&"line\n".repeat(MAX_ARCHITECTURE_LINES - 1)),
            None
        );
        assert!(architecture(&"line\n".repeat(MAX_ARCHITECTURE_LINES)).is_some());
    }
}
