//! The command line under bad input and odd ends: one clear line, the right
//! exit code, never a panic; and what scripts rely on.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use goprof_tests::command::{self, Outcome, Running};
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{go, goprof, quiet};
use regex::Regex;

const LIMIT: Duration = Duration::from_secs(30);

/// Whatever the outcome, these never show.
#[track_caller]
fn assert_civil(outcome: &Outcome) {
    for word in ["panicked", "backtrace", "RUST_", "thread '"] {
        assert!(!outcome.stderr.contains(word), "{}", outcome.stderr);
    }
}

/// It failed with this code, one line on stderr that holds the words, and
/// nothing on stdout.
#[track_caller]
fn assert_fails(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_civil(outcome);
    let said = outcome.stderr.trim_end();
    assert_eq!(outcome.code(), code, "`{}`: {said}", outcome.command);
    assert_eq!(outcome.text(), "", "`{}` wrote to stdout", outcome.command);
    assert_eq!(said.lines().count(), 1, "not one line: {said}");
    for word in words {
        assert!(said.contains(word), "no {word:?} in {said:?}");
    }
}

/// It was used wrongly: code 2, the first line says what is wrong.
#[track_caller]
fn assert_usage(outcome: &Outcome, words: &[&str]) {
    assert_civil(outcome);
    let said = &outcome.stderr;
    assert_eq!(outcome.code(), 2, "`{}`: {said}", outcome.command);
    assert_eq!(outcome.text(), "");
    let first = said.lines().next().unwrap_or_default();
    for word in words {
        assert!(first.contains(word), "no {word:?} in {first:?}");
    }
}

fn start(program: &str) -> Target {
    Target::start(&go::build(program), &[])
}

fn path_arg(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[test]
fn a_pid_that_is_not_there_is_said() {
    let pid = u32::MAX >> 2;
    let outcome = goprof::run(&["record", "-p", &pid.to_string(), "-d", "20"]);
    assert_fails(&outcome, 1, &["no process", &pid.to_string()]);
    assert_usage(&goprof::run(&["record", "-p", "me"]), &["me"]);
    assert_usage(&goprof::run(&["record", "-p", "0"]), &["0"]);
    assert_usage(&goprof::run(&["record", "-p", "-1"]), &["-1"]);
}

#[test]
fn a_process_that_is_not_go_is_named() {
    let target = Target::spawn(Command::new("sleep").arg("60"));
    target.descendant("sleep");
    let outcome = goprof::run(&["record", "-p", &target.pid_arg(), "-d", "20"]);
    assert_fails(&outcome, 1, &["sleep", "not a Go program"]);
    // Process 2 is kthreadd, which has no executable; a container has none.
    let outcome = goprof::run(&["record", "-p", "2", "-d", "20"]);
    assert_fails(&outcome, 1, &["2"]);
}

#[test]
fn a_thread_id_is_not_taken_for_a_process() {
    let target = start("goroutines");
    let threads = std::fs::read_dir(format!("/proc/{}/task", target.pid())).expect("threads");
    let thread = threads
        .map(|t| {
            t.expect("a thread")
                .file_name()
                .into_string()
                .expect("a number")
        })
        .find(|t| *t != target.pid_arg())
        .expect("a second thread");
    let outcome = goprof::run(&["record", "-p", &thread, "-d", "20"]);
    assert_fails(&outcome, 1, &[&thread, &target.pid_arg()]);
}

#[test]
fn without_rights_the_missing_capability_is_said() {
    let target = start("busy_loop");
    // The build directory may be closed to others.
    let dir = tempfile::tempdir().expect("make a directory");
    open_to_all(dir.path());
    let copy = dir.path().join("goprof");
    std::fs::copy(goprof::binary(), &copy).expect("copy goprof");
    for who in [
        vec!["-p".to_owned(), target.pid_arg()],
        vec!["-a".to_owned()],
    ] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
        command.arg(&copy).args(["record", "-d", "20", "-o"]);
        command.arg(dir.path().join("p.pb.gz")).args(&who);
        let outcome = command::run(&mut command, LIMIT, "install util-linux, which has setpriv");
        assert_fails(&outcome, 1, &["root", "CAP_"]);
    }
}

fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).expect("open it");
}

#[test]
fn an_output_that_cannot_be_written_is_found_before_sampling() {
    let target = start("busy_loop");
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("a file");
    std::fs::write(&file, "").expect("write a file");
    let below = file.join("p.pb.gz");
    for output in [
        "/nonexistent/p.pb.gz",
        "/proc/p.pb.gz",
        path_arg(dir.path()),
        path_arg(&below),
    ] {
        let begin = Instant::now();
        let outcome = goprof::run(&["record", "-p", &target.pid_arg(), "-d", "20", "-o", output]);
        assert_fails(&outcome, 1, &[output]);
        assert!(
            begin.elapsed() < Duration::from_secs(10),
            "it sampled first"
        );
    }
}

#[test]
fn an_output_that_fails_leaves_the_old_file() {
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("p.pb.gz");
    std::fs::write(&file, "precious").expect("write a file");
    let pid = (u32::MAX >> 2).to_string();
    assert_ne!(
        goprof::run(&["record", "-p", &pid, "-o", path_arg(&file)]).code(),
        0
    );
    assert_eq!(std::fs::read_to_string(&file).expect("read it"), "precious");
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("list it").count(),
        1,
        "litter is left"
    );
}

#[test]
fn usage_errors_exit_with_2() {
    for (args, words) in [
        (&["record", "-a", "-r", "0"][..], &["0"][..]),
        (&["record", "-a", "-r", "100000"], &["100000"]),
        (&["record", "-a", "-r", "many"], &["many"]),
        (&["record", "-a", "-d", "0"], &["0"]),
        (&["record", "-a", "-d", "-5"], &["-5"]),
        (&["record", "-a", "-d", "soon"], &["soon"]),
        (&["record", "-a", "-f", "gif"], &["gif"]),
        (&["record", "-n", "("], &["("]),
        (&["record", "-a", "--include", "("], &["("]),
        (&["record", "-a", "--exclude", "("], &["("]),
        (&["record", "-a", "--frobnicate"], &["--frobnicate"]),
        (&["record", "-a", "-p", "1"], &["-p"]),
        (&["record", "-a", "--", "true"], &["-a"]),
        (&["record", "--"], &[]),
        (&["frobnicate"], &["frobnicate"]),
        (&[], &[]),
    ] {
        assert_usage(&goprof::run(args), words);
    }
}

#[test]
fn a_command_passes_its_exit_code_through() {
    let binary = go::build("exits_at_once");
    let binary = path_arg(&binary);
    for code in ["0", "7", "255"] {
        let outcome = goprof::run(&["record", "-o", "-", "--", binary, "-code", code]);
        assert_civil(&outcome);
        assert_eq!(outcome.code().to_string(), code, "{}", outcome.stderr);
    }
    let outcome = goprof::run(&["record", "--", "/nonexistent/program"]);
    assert_fails(&outcome, 127, &["/nonexistent/program"]);
    let outcome = goprof::run(&["record", "-o", "-", "--", "sh", "-c", "kill -9 $$"]);
    assert_civil(&outcome);
    assert_eq!(outcome.code(), 128 + 9, "{}", outcome.stderr);
}

#[test]
fn a_command_that_cannot_be_executed_is_said() {
    let dir = tempfile::tempdir().expect("make a directory");
    let whole = std::fs::read(go::build("exits_at_once")).expect("read a program");
    for length in [0, 4, 63, 64, 100, 4096] {
        let cut = write_program(dir.path(), "cut", &whole[..length]);
        let outcome = goprof::run(&["record", "-o", "-", "--", path_arg(&cut)]);
        assert_civil(&outcome);
        assert_ne!(outcome.code(), 0, "{length} bytes of a program ran?");
        assert!(
            !outcome.stderr.is_empty(),
            "it says nothing of {length} bytes of a program"
        );
    }
}

fn write_program(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("write a program");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, executable).expect("make it executable");
    path
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    let bytes: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes");
    usize::try_from(u64::from_le_bytes(bytes)).expect("an offset")
}

/// A program whose file is damaged where only tools look, and why.
fn damaged_programs(whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let change = |at: usize, with: &[u8]| {
        let mut bytes = whole.to_vec();
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    // Offsets of ELF64's header and section headers.
    let (shoff, shnum, shstrndx) = (40, 60, 62);
    let table = u64_at(whole, shoff);
    let count = usize::from(u16::from_le_bytes([whole[shnum], whole[shnum + 1]]));
    let every_section = |field: usize, with: u64| {
        let mut bytes = whole.to_vec();
        for i in 0..count {
            let at = table + i * 64 + field;
            bytes[at..at + 8].copy_from_slice(&with.to_le_bytes());
        }
        bytes
    };
    vec![
        ("no section headers", change(shoff, &[0; 8])),
        ("section headers past the end", change(shoff, &[0xff; 8])),
        ("65,535 sections", change(shnum, &[0xff, 0xff])),
        ("no section names", change(shstrndx, &[0xff, 0xff])),
        ("sections past the end", every_section(24, u64::MAX - 7)),
        ("sections of all sizes", every_section(32, u64::MAX)),
        ("sections at no address", every_section(16, u64::MAX - 1)),
        (
            "no symbols and no debug data",
            whole[..loaded_end(whole)].to_vec(),
        ),
    ]
}

/// Where the last segment that is loaded ends in the file.
fn loaded_end(elf: &[u8]) -> usize {
    let table = u64_at(elf, 32);
    let count = usize::from(u16::from_le_bytes([elf[56], elf[57]]));
    let ends = (0..count).filter_map(|i| {
        let header = &elf[table + i * 56..];
        (header[..4] == [1, 0, 0, 0]).then(|| u64_at(header, 8) + u64_at(header, 32))
    });
    ends.max().expect("a loaded segment")
}

#[test]
fn a_damaged_binary_that_runs_is_profiled_or_refused() {
    let whole = std::fs::read(go::build("busy_loop")).expect("read a program");
    let dir = tempfile::tempdir().expect("make a directory");
    for (i, (damage, bytes)) in damaged_programs(&whole).into_iter().enumerate() {
        let program = write_program(dir.path(), &format!("damaged_{i}"), &bytes);
        let mut target = Target::start(&program, &[]);
        let file = dir.path().join(format!("{i}.pb.gz"));
        let pid = target.pid_arg();
        let args = [
            "record",
            "-p",
            &pid,
            "-d",
            "1",
            "-r",
            "199",
            "-o",
            path_arg(&file),
        ];
        let outcome = goprof::run(&args);
        assert_civil(&outcome);
        target.assert_running();
        if outcome.code() == 0 {
            let profile = Profile::read(&file);
            let spin = profile.main_share("main.spin");
            println!(
                "{damage}: profiled, main.spin has {spin}\n{}",
                profile.top(5)
            );
            assert!(spin > 0.9, "{damage}: wrong names\n{}", profile.top(20));
        } else {
            println!("{damage}: {}", outcome.stderr.trim_end());
            assert_fails(&outcome, 1, &[&pid]);
        }
        // What goes for one process must not fail for all.
        let all = goprof::run(&["record", "-a", "-d", "1", "-q", "-o", "-"]);
        assert_civil(&all);
        assert_eq!(all.code(), 0, "{damage}: {}", all.stderr);
    }
}

#[test]
fn the_profile_goes_to_stdout_when_asked() {
    let target = start("busy_loop");
    let outcome = goprof::run(&["record", "-p", &target.pid_arg(), "-d", "1", "-o", "-"]);
    let outcome = outcome.succeeded();
    let profile = Profile::decode(&outcome.stdout);
    assert!(profile.main_share("main.spin") > 0.9);
}

#[test]
fn the_default_name_tells_what_was_profiled() {
    let target = start("busy_loop");
    let dir = tempfile::tempdir().expect("make a directory");
    let mut command = goprof::command(&["record", "-p", &target.pid_arg(), "-d", "1"]);
    let outcome = command::run(command.current_dir(dir.path()), LIMIT, "").succeeded();
    let mut files = std::fs::read_dir(dir.path()).expect("list the directory");
    let file = files.next().expect("a file").expect("a file").file_name();
    let name = file.to_str().expect("UTF-8");
    let pattern = format!(
        r"^busy_loop-{}-\d{{8}}T\d{{6}}Z\.cpu\.pb\.gz$",
        target.pid()
    );
    assert!(
        Regex::new(&pattern).expect("a pattern").is_match(name),
        "{name}"
    );
    assert!(files.next().is_none(), "one file only");
    assert!(outcome.stderr.contains(name), "{}", outcome.stderr);
}

#[test]
fn the_last_lines_say_what_was_done() {
    let target = start("busy_loop");
    let recording = goprof::record(&["-p", &target.pid_arg(), "-d", "1"]);
    let said = &recording.outcome.stderr;
    let samples = format!("{} samples", recording.profile.total());
    for word in [
        &*samples,
        "lost",
        " s at 99 Hz",
        "named",
        "CPU",
        "MB",
        "go tool pprof",
    ] {
        assert!(said.contains(word), "no {word:?} in:\n{said}");
    }
    // Progress is for terminals.
    assert!(!said.contains('\r') && !said.contains('\x1b'), "{said:?}");
}

#[test]
fn quiet_is_silent() {
    let target = start("busy_loop");
    let recording = goprof::record(&["-q", "-p", &target.pid_arg(), "-d", "1"]);
    assert_eq!(recording.outcome.stderr, "");
    assert_eq!(recording.outcome.text(), "");
    assert_ne!(recording.profile.total(), 0);
}

#[test]
fn ctrl_c_stops_and_writes() {
    let target = start("busy_loop");
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let dir = tempfile::tempdir().expect("make a directory");
        let file = dir.path().join("p.pb.gz");
        let running = goprof::start(&["record", "-p", &target.pid_arg(), "-o", path_arg(&file)]);
        std::thread::sleep(Duration::from_secs(4));
        running.signal(signal);
        running.finish(Duration::from_secs(15)).succeeded();
        assert!(Profile::read(&file).main_share("main.spin") > 0.9);
    }
}

#[test]
fn a_second_ctrl_c_aborts() {
    let binary = go::build("oracle");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    // Nobody reads the profile, and the pipe is too small for it: goprof hangs
    // in writing.
    let mut child = goprof::command(&["record", "-p", &target.pid_arg(), "-r", "999", "-o", "-"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start goprof");
    let mut pipe = child.stdout.take().expect("a pipe");
    // SAFETY: sets the size of a pipe that this process owns.
    let size = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert!(size > 0, "make the pipe small");
    std::thread::sleep(Duration::from_secs(6));
    command::send_signal(child.id(), libc::SIGINT);
    std::thread::sleep(Duration::from_secs(4));
    assert!(
        child.try_wait().expect("wait for it").is_none(),
        "it wrote into a full pipe?"
    );
    command::send_signal(child.id(), libc::SIGINT);
    let deadline = Instant::now() + Duration::from_secs(5);
    while child.try_wait().expect("wait for it").is_none() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = child.try_wait().expect("wait for it");
    let _ = child.kill();
    let mut rest = Vec::new();
    let _ = pipe.read_to_end(&mut rest);
    let status = ended.expect("the second Ctrl-C ends it at once");
    assert!(!status.success(), "an aborted recording is no success");
}

#[test]
fn ctrl_c_reaches_a_command_and_its_profile_is_written() {
    let binary = go::build("busy_loop");
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("p.pb.gz");
    let args = ["record", "-o", path_arg(&file), "--", path_arg(&binary)];
    let mut command = goprof::command(&args);
    // A terminal sends the signal to the whole foreground process group.
    use std::os::unix::process::CommandExt as _;
    command.args(["-duration", "5m"]).process_group(0);
    let running = Running::start(&mut command, "");
    std::thread::sleep(Duration::from_secs(4));
    let group = -i32::try_from(running.pid()).expect("a pid");
    // SAFETY: kill takes two integers; the group is the one made above.
    assert_eq!(unsafe { libc::kill(group, libc::SIGINT) }, 0);
    let outcome = running.finish(Duration::from_secs(15));
    assert_civil(&outcome);
    assert_eq!(
        outcome.code(),
        128 + libc::SIGINT,
        "the command's own end\n{}",
        outcome.stderr
    );
    assert!(Profile::read(&file).main_share("main.spin") > 0.9);
}

#[test]
fn help_mentions_every_flag() {
    let help = goprof::run(&["record", "--help"]).succeeded();
    for flag in [
        "-p",
        "--pid",
        "-a",
        "--all",
        "-n",
        "--name",
        "-d",
        "--duration",
        "-r",
        "--rate",
        "-o",
        "--output",
        "-f",
        "--format",
        "--kernel",
        "--no-kernel",
        "-t",
        "--threads",
        "--idle",
        "--combine",
        "--include",
        "--exclude",
        "-q",
        "--quiet",
        "-v",
        "--verbose",
        "pprof",
        "folded",
        "flamegraph",
        "speedscope",
        "99",
    ] {
        assert!(help.text().contains(flag), "{flag} is not in the help");
    }
    let top = goprof::run(&["--help"]).succeeded();
    assert!(top.text().contains("record"));
    let version = goprof::run(&["--version"]).succeeded();
    assert!(version.text().starts_with("goprof "), "{}", version.text());
}
