//! What Go programs do that a profiler can get wrong: goroutines, generics,
//! closures, deep recursion, cgo, inlining, short lives.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::target::Target;
use goprof_tests::{go, goprof, quiet};

/// Builds a program, records it for two seconds and checks that nearly every
/// frame of it is named.
#[track_caller]
fn record(program: &str, args: &[&str]) -> Profile {
    let binary = go::build(program);
    let _turn = quiet::measuring();
    let target = Target::start(&binary, args);
    let pid = target.pid_arg();
    let profile = goprof::record(&["-p", &pid, "-d", "2", "-r", "499"]).profile;
    assert!(profile.total() >= 250, "{} samples", profile.total());
    let (named, frames) = profile.named_share(program);
    assert!(named >= 0.99, "{named} of {frames} frames are named");
    profile
}

/// Others on the CPU take samples from the program, not shares from its
/// functions: the kernel's work for it lies on top of them. The runtime's own
/// thread (sysmon) keeps to the clock and is left out: it was at 3% where the
/// program got 6% of a CPU, and at a tenth where setting a timer was dear.
#[track_caller]
fn assert_share(profile: &Profile, function: &str, least: f64, most: f64) {
    let share = profile.share(|s| s.has(function)) / profile.share(|s| !s.has("runtime.sysmon"));
    assert!(
        (least..=most).contains(&share),
        "{function} has {share}, expected {least} to {most}\n{}",
        profile.top(20)
    );
}

#[test]
fn a_goroutine_begins_at_its_own_function() {
    let profile = record("goroutines", &[]);
    assert_share(&profile, "main.burn", 0.9, 1.0);
    assert_share(&profile, "main.runFunction", 0.2, 0.47);
    assert_share(&profile, "main.(*pool).runMethod", 0.2, 0.47);
    let from_main = profile.share(|s| s.has("main.burn") && s.has("main.main"));
    assert_eq!(
        from_main, 0.0,
        "main starts the goroutines, it does not call"
    );
    let starts = [
        "main.runFunction",
        "main.(*pool).runMethod",
        "main.main.func2",
    ];
    let whole = profile.share(|s| {
        let names = s.names();
        s.has("main.burn") && names.last().is_some_and(|root| starts.contains(root))
    });
    assert!(
        whole >= 0.9,
        "{whole} of the stacks end where a goroutine begins"
    );
}

#[test]
fn generic_functions_and_methods_are_told_apart_by_shape() {
    let profile = record("generics", &[]);
    for function in [
        "main.sumOf[go.shape.int32]",
        "main.sumOf[go.shape.float64]",
        "main.(*ring[go.shape.string]).rotate",
        "main.(*ring[go.shape.int64]).rotate",
    ] {
        assert_share(&profile, function, 0.02, 0.9);
    }
}

#[test]
fn closures_have_the_names_of_where_they_are_written() {
    let profile = record("closures", &[]);
    for function in [
        "main.main.func1",
        "main.nested.func1",
        "main.nested.func1.1",
        "main.(*counter).advance",
        "main.deferred.func1",
    ] {
        assert_share(&profile, function, 0.15, 0.35);
    }
    // The inner closure runs in the outer one, through `call` both times.
    let chain = [
        "main.nested.func1.1",
        "main.call",
        "main.nested.func1",
        "main.call",
    ];
    let whole = profile.share(|s| s.names().windows(4).any(|names| names == chain));
    assert!(whole >= 0.15, "{whole} of the stacks have {chain:?}");
    // The wrapper behind a method value is the compiler's and not shown.
    assert_share(&profile, "main.(*counter).advance-fm", 0.0, 0.0);
}

#[test]
fn a_deep_recursion_is_whole() {
    let profile = record("deep_recursion", &["-depth", "400"]);
    // Where the program was, whatever interrupted it there: where a CPU has
    // many to run, one sample in twenty is in the kernel's switch to it.
    let user_names = |stack: &Stack| -> Vec<String> {
        let frames = stack.frames.iter().filter(|frame| !frame.is_kernel());
        frames.map(|frame| frame.function.clone()).collect()
    };
    let in_leaf = |names: &[String]| names.first().is_some_and(|name| name == "main.leaf");
    let leaf = profile.share(|s| in_leaf(&user_names(s)));
    assert!(leaf >= 0.9, "main.leaf has {leaf}\n{}", profile.top(20));
    let whole = profile.share(|s| {
        let names = user_names(s);
        let depth = names.iter().filter(|name| *name == "main.descend").count();
        in_leaf(&names) && depth == 400 && names[401..] == ["main.main", "runtime.main"]
    });
    assert!(
        whole >= leaf * 0.99,
        "{whole} of {leaf} have all 400 frames"
    );
}

#[test]
fn an_inlined_leaf_is_shown_under_both_inlined_callers() {
    let profile = record("inlined_leaf", &[]);
    let under = |caller: &str| {
        profile.share(|s| match s.frames.as_slice() {
            [leaf, next, work, ..] => {
                leaf.function == "main.hotLeaf"
                    && leaf.inlined
                    && next.function == caller
                    && next.inlined
                    && work.function == "main.work"
                    && !work.inlined
            }
            _ => false,
        })
    };
    let (twice, once) = (under("main.callerTwice"), under("main.callerOnce"));
    assert!(
        twice + once >= 0.6,
        "{twice} and {once}\n{}",
        profile.top(20)
    );
    let ratio = twice / (twice + once);
    assert!(
        (ratio - 2.0 / 3.0).abs() < 0.2,
        "callerTwice has {ratio}, not 2/3"
    );
}

#[test]
fn c_code_called_from_go_is_named() {
    let profile = record("cgo_call", &[]);
    for (c_function, go_caller) in [
        ("framed_inner", "main.callFramed"),
        ("frameless_inner", "main.callFrameless"),
    ] {
        assert_share(&profile, c_function, 0.1, 0.9);
        let flat = profile.flat_share(c_function);
        let cumulative = profile.cumulative_share(c_function);
        assert!(
            flat >= cumulative * 0.95,
            "{c_function}: {flat} of {cumulative}"
        );
        let wrong = profile.share(|s| {
            let other = if c_function == "framed_inner" {
                "main.callFrameless"
            } else {
                "main.callFramed"
            };
            s.has(c_function) && s.has(other)
        });
        assert_eq!(wrong, 0.0, "{c_function} is not called by the other one");
        println!(
            "{c_function}: {cumulative:.3}, under {go_caller}: {:.3}",
            profile.share(|s| s.has(c_function) && s.has(go_caller))
        );
    }
    // With and without frame pointers in C, the stack goes on into Go.
    for (c_function, go_caller) in [
        ("framed_inner", "main.callFramed"),
        ("frameless_inner", "main.callFrameless"),
    ] {
        let whole = profile.share(|s| s.has(c_function) && s.has(go_caller) && s.has("main.main"));
        let all = profile.cumulative_share(c_function);
        assert!(whole >= all * 0.95, "{c_function}: {whole} of {all} go on");
    }
}

#[test]
fn a_command_of_50_ms_is_profiled() {
    let binary = go::build("short_lived");
    let _turn = quiet::measuring();
    let binary = binary.to_str().expect("a UTF-8 path");
    let recording = goprof::record(&["-r", "499", "--", binary]);
    let profile = recording.profile;
    assert!(profile.total() >= 5, "{} samples", profile.total());
    assert_share(&profile, "main.flash", 0.3, 1.0);
    let (named, _) = profile.named_share("short_lived");
    assert!(named >= 0.99, "{named} of the frames are named");
}

#[test]
fn processes_of_50_ms_are_profiled_system_wide() {
    let binary = go::build("short_lived");
    let _turn = quiet::measuring();
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join("all.pb.gz");
    let path = file.to_str().expect("a UTF-8 path");
    let mut recorder = goprof::start(&["record", "-a", "-r", "499", "-o", path]);
    // Sampling has begun well before these start.
    std::thread::sleep(Duration::from_secs(5));
    let mut started = BTreeSet::new();
    while started.len() < 8 {
        assert!(recorder.is_running(), "goprof ended early");
        let mut child = Command::new(&binary)
            .spawn()
            .expect("start a short program");
        started.insert(child.id().to_string());
        assert!(child.wait().expect("wait for it").success());
    }
    recorder.signal(libc::SIGINT);
    recorder.finish(Duration::from_secs(30)).succeeded();
    let profile = Profile::read(&file);
    let seen: BTreeSet<String> = profile
        .stacks
        .iter()
        .filter(|s| s.has("main.flash"))
        .map(|s| s.labels.get("pid").cloned().unwrap_or_default())
        .collect();
    assert_eq!(seen, started, "the processes profiled, and those started");
    let (named, _) = profile.named_share("short_lived");
    assert!(named >= 0.99, "{named} of the frames are named");
}

#[test]
fn recording_ends_with_the_process() {
    let binary = go::build("busy_loop");
    let _turn = quiet::measuring();
    let mut command = Command::new(binary);
    let target = Target::start_command(command.args(["-duration", "3s"]));
    let begin = Instant::now();
    let recording = goprof::record(&["-p", &target.pid_arg(), "-d", "50"]);
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
    assert_share(&recording.profile, "main.spin", 0.9, 1.0);
}
