//! What a process says of itself: when it began, its service's name in the
//! environment, and what its binary says. Of the environment only the two
//! variables of OpenTelemetry are looked at and nothing is kept but the name.

use std::{
    fs::{self, File},
    io::{self, Read as _},
};

use super::text::clean_some;
use crate::process::Process;

/// How much of an environment is read; what lies behind is not seen.
const MAX_ENVIRONMENT_BYTES: u64 = 1 << 20;
/// Attributes of a resource that are looked at.
const MAX_ATTRIBUTES: usize = 256;
/// Fields of `/proc/PID/stat` behind the name up to the start time (22 of
/// proc_pid_stat(5), the name being the second).
const FIELDS_TO_START: usize = 19;

/// A program as the profiler saw it, which outlives the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// The executable, as the process sees it.
    pub exe: String,
    /// The process's name.
    pub comm: String,
    /// The id of its cgroup (v2) by a sample; 0 where none was taken.
    pub cgroup_id: u64,
    /// GNU build id in lower-case hex; empty where there is none.
    pub build_id: String,
    /// Go version, e.g. `go1.26.8`; empty in what is not Go.
    pub go_version: String,
    /// Path of the main module; empty where unknown.
    pub module: String,
    /// Version of the main module; empty where unknown.
    pub module_version: String,
}

impl Program {
    /// What `process` runs.
    pub fn of(process: &Process) -> Self {
        let mut program = Self {
            exe: process.exe.clone(),
            comm: process.comm.clone(),
            cgroup_id: process.cgroup_id,
            ..Self::default()
        };
        if let Some(object) = process.go_object() {
            program.build_id = object.build_id();
            if let Some(binary) = object.go() {
                let info = binary.build_info();
                program.go_version.clone_from(&info.go_version);
                program.module.clone_from(&info.module_path);
                program.module_version.clone_from(&info.module_version);
            }
        }
        program
    }
}

/// When a process began, in clock ticks since boot: with the pid it names a
/// process for good, where the pid alone is used again.
///
/// # Errors
/// It is gone.
pub fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    start_in(&stat).ok_or_else(|| io::Error::other("a stat file without a start time"))
}

/// The name ends at the last parenthesis: it may hold some itself.
fn start_in(stat: &[u8]) -> Option<u64> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    let fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let start = fields.split_ascii_whitespace().nth(FIELDS_TO_START)?;
    start.parse().ok()
}

/// What a process calls its service: `OTEL_SERVICE_NAME`, else `service.name`
/// in `OTEL_RESOURCE_ATTRIBUTES` (OpenTelemetry's specification of SDK
/// environment variables). `None` where neither is set or the environment
/// cannot be read.
pub fn service_name(pid: u32) -> Option<String> {
    let mut environment = Vec::new();
    let file = File::open(format!("/proc/{pid}/environ")).ok()?;
    // What could be read before an error is still the environment.
    let _ = file
        .take(MAX_ENVIRONMENT_BYTES)
        .read_to_end(&mut environment);
    service_name_in(&environment)
}

fn service_name_in(environment: &[u8]) -> Option<String> {
    let mut attributes: &[u8] = &[];
    for variable in environment.split(|byte| *byte == 0) {
        if let Some(value) = variable.strip_prefix(b"OTEL_SERVICE_NAME=")
            && let Some(name) = clean_some(value)
        {
            return Some(name);
        }
        if let Some(value) = variable.strip_prefix(b"OTEL_RESOURCE_ATTRIBUTES=") {
            attributes = value;
        }
    }
    attributes
        .split(|byte| *byte == b',')
        .take(MAX_ATTRIBUTES)
        .find_map(|attribute| {
            let at = attribute.iter().position(|byte| *byte == b'=')?;
            let (key, value) = attribute.split_at(at);
            (key.trim_ascii() == b"service.name").then(|| decode_percent(&value[1..]))
        })
        .and_then(clean_some)
}

/// `%2C` and the like as the bytes they stand for.
fn decode_percent(text: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        let pair = (digit(text.get(at + 1)), digit(text.get(at + 2)));
        match (byte, pair) {
            (b'%', (Some(high), Some(low))) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(*byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(environment: &str, expected: Option<&str>) {
        let found = service_name_in(environment.as_bytes());
        assert_eq!(found.as_deref(), expected, "{environment:?}");
    }

    #[test]
    fn the_service_is_named_by_either_variable() {
        check("PATH=/bin\0OTEL_SERVICE_NAME=shop\0HOME=/", Some("shop"));
        check(
            "OTEL_RESOURCE_ATTRIBUTES=a=b,service.name=shop%2Ceu,c=d\0",
            Some("shop,eu"),
        );
        check(
            "OTEL_RESOURCE_ATTRIBUTES=service.name=other\0OTEL_SERVICE_NAME=shop",
            Some("shop"),
        );
        check(
            "OTEL_SERVICE_NAME=\0OTEL_RESOURCE_ATTRIBUTES= service.name = shop ",
            Some("shop"),
        );
        check("", None);
        check("XOTEL_SERVICE_NAME=shop\0OTEL_SERVICE_NAME", None);
        check(
            "OTEL_RESOURCE_ATTRIBUTES=service.names=shop,service.name",
            None,
        );
        check("OTEL_RESOURCE_ATTRIBUTES=service.name=", None);
    }

    #[test]
    fn hostile_environments_are_survived() {
        check(
            "OTEL_SERVICE_NAME=a\nb\x1b[2J",
            Some("a\u{fffd}b\u{fffd}[2J"),
        );
        let long = format!("OTEL_SERVICE_NAME={}", "x".repeat(100_000));
        assert_eq!(service_name_in(long.as_bytes()).unwrap().len(), 1024);
        let many = format!("OTEL_RESOURCE_ATTRIBUTES={}", "a=b,".repeat(100_000));
        assert_eq!(service_name_in(many.as_bytes()), None);
        assert_eq!(decode_percent(b"%41%4%zz%"), b"A%4%zz%");
        assert_eq!(service_name_in(&[0; 1000]), None);
    }

    #[test]
    fn the_start_is_behind_any_name() {
        let stat = b"7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1000 5";
        assert_eq!(start_in(stat), Some(4711));
        for stat in [&b""[..], b"7 (a", b"7 (a)", b"7 (a) S 1", b"7 (\xff) S x"] {
            assert_eq!(start_in(stat), None);
        }
        let own = std::process::id();
        assert_eq!(start_ticks(own).unwrap(), start_ticks(own).unwrap());
        assert!(start_ticks(own).unwrap() > 0);
    }
}
