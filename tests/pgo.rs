//! What Go's own tools make of a profile: pprof reads it, `go build -pgo`
//! takes it, and it is shaped as Go's own.

use std::process::{Command, Stdio};
use std::time::Duration;

use goprof_tests::command;
use goprof_tests::go::{self, NEWEST, VERSIONS};
use goprof_tests::goprof::Recording;
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{goprof, http, quiet};

const LIMIT: Duration = Duration::from_secs(300);

/// Records a program for three seconds.
#[track_caller]
fn record(program: &str, rate: &str) -> (Target, Recording) {
    let binary = go::build(program);
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let recording = goprof::record(&["-p", &target.pid_arg(), "-d", "3", "-r", rate]);
    (target, recording)
}

#[test]
fn go_build_takes_the_profile_without_a_word() {
    let (_, recording) = record("shop", "499");
    let flag = format!("-pgo={}", recording.file.display());
    let dir = tempfile::tempdir().expect("make a directory");
    for version in [VERSIONS[0], NEWEST] {
        let outcome = go::go_build("shop", version, &[&flag], &dir.path().join("shop"));
        let outcome = outcome.succeeded();
        assert_eq!(outcome.stderr, "", "go{version} warns");
    }
    // The compiler did use it: it marks the binary.
    let mut show = go::go(NEWEST);
    show.args(["version", "-m"]).arg(dir.path().join("shop"));
    let shown = command::run(&mut show, LIMIT, go::REMEDY).succeeded();
    assert!(shown.text().contains("-pgo="), "{}", shown.text());
}

#[test]
fn go_tool_pprof_reads_the_profile_without_a_word() {
    let (_, recording) = record("busy_loop", "99");
    for version in [VERSIONS[0], NEWEST] {
        let mut top = go::go(version);
        top.args(["tool", "pprof", "-top"]).arg(&recording.file);
        let outcome = command::run(&mut top, LIMIT, go::REMEDY).succeeded();
        assert_eq!(outcome.stderr, "", "go{version}'s pprof warns");
        for text in [
            "File: busy_loop",
            "Type: cpu",
            "main.spinThree",
            "main.mix (inline)",
        ] {
            assert!(
                outcome.text().contains(text),
                "no {text:?}\n{}",
                outcome.text()
            );
        }
    }
}

#[test]
fn go_tool_pprof_serves_the_profile() {
    let (_, recording) = record("busy_loop", "99");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("find a free port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let mut serve = go::go(NEWEST);
    serve.args(["tool", "pprof", "-no_browser", &format!("-http={address}")]);
    serve.arg(&recording.file);
    let _server = Target::spawn(serve.stdout(Stdio::null()).stderr(Stdio::null()));
    let url = format!("http://{address}/ui/flamegraph");
    let page = (0..150).find_map(|_| {
        std::thread::sleep(Duration::from_millis(200));
        http::request("GET", &url, b"", LIMIT).ok()
    });
    let page = String::from_utf8(page.expect("pprof serves a page")).expect("UTF-8");
    assert!(page.contains("main.spinThree") && page.contains("main.mix"));
}

/// The type and unit of each value, and the same of the period.
fn types(profile: &Profile) -> Vec<(&str, &str)> {
    let period = profile.raw.period_type.iter();
    profile
        .raw
        .sample_type
        .iter()
        .chain(period)
        .map(|t| (profile.text(t.r#type), profile.text(t.unit)))
        .collect()
}

#[test]
fn the_profile_is_shaped_as_gos_own() {
    let (target, recording) = record("oracle", "250");
    let ours = recording.profile;
    let url = format!("{}/debug/pprof/profile?seconds=2", target.details);
    let own = Profile::decode(&http::get(&url));

    assert_eq!(types(&ours), types(&own));
    assert_eq!(ours.raw.period, 4_000_000);
    for sample in &ours.raw.sample {
        assert_eq!(sample.value.len(), 2);
        assert_eq!(sample.value[1], sample.value[0] * ours.raw.period);
    }
    let duration = Duration::from_nanos(ours.raw.duration_nanos.try_into().expect("positive"));
    let off = duration.abs_diff(Duration::from_secs(3));
    assert!(off < Duration::from_millis(500), "it ran for {duration:?}");
    assert!(ours.raw.time_nanos > 1_600_000_000_000_000_000);

    let (our_main, own_main) = (&ours.raw.mapping[0], &own.raw.mapping[0]);
    assert_eq!(ours.text(our_main.filename), own.text(own_main.filename));
    assert_eq!(ours.text(our_main.build_id), own.text(own_main.build_id));
    assert_ne!(ours.text(our_main.build_id), "");
    assert_eq!(our_main.memory_start, own_main.memory_start);
    assert_eq!(our_main.memory_limit, own_main.memory_limit);
    assert_eq!(our_main.file_offset, own_main.file_offset);
    assert!(our_main.has_functions && our_main.has_filenames);
    assert!(our_main.has_line_numbers && our_main.has_inline_frames);
    for mapping in &ours.raw.mapping {
        // Else pprof would look for names on the reader's own disk.
        assert!(mapping.has_functions, "{}", ours.text(mapping.filename));
    }
    assert!(
        !ours.functions().contains("runtime.goexit"),
        "Go leaves it out"
    );
}

#[test]
fn pprof_is_found_by_the_command_goprof_prints() {
    let (_, recording) = record("busy_loop", "99");
    let said = &recording.outcome.stderr;
    let path = recording.file.to_str().expect("UTF-8");
    let line = said
        .lines()
        .find(|l| l.contains("go tool pprof") && l.contains(path));
    let line = line.unwrap_or_default().trim();
    assert!(line.starts_with("go tool pprof "), "{said}");
    // The command as it stands, with the browser exchanged for a report.
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(line.replace("-http=:", "-top"));
    shell.env("GOTOOLCHAIN", "local");
    let outcome = command::run(&mut shell, LIMIT, go::REMEDY).succeeded();
    assert!(
        outcome.text().contains("main.spinThree"),
        "{}",
        outcome.text()
    );
}
