//! The formats besides pprof, and the options that choose what is in a
//! profile.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::path::Path;

use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{go, goprof, quiet};
use regex::Regex;

/// Records a program into a file of the given name and returns its text.
#[track_caller]
fn record_text(program: &str, file_name: &str, args: &[&str]) -> String {
    let binary = go::build(program);
    let _turn = quiet::measuring();
    let dir = tempfile::tempdir().expect("make a directory");
    let file = dir.path().join(file_name);
    let target = Target::start(&binary, &[]);
    let pid = target.pid_arg();
    let mut all = vec!["record", "-p", &pid, "-d", "2", "-r", "499", "-o"];
    all.push(file.to_str().expect("a UTF-8 path"));
    all.extend(args);
    goprof::run(&all).succeeded();
    std::fs::read_to_string(&file).expect("read the profile")
}

/// Records with these arguments.
#[track_caller]
fn record(target: &Target, args: &[&str]) -> Profile {
    let pid = target.pid_arg();
    let mut all = vec!["-p", &pid, "-d", "2", "-r", "499"];
    all.extend(args);
    goprof::record(&all).profile
}

#[test]
fn a_flame_graph_loads_nothing_from_elsewhere() {
    // A link that is followed by a click would do no harm; a load would.
    let loads = Regex::new(
        r"(?i)(src\s*=|@import|url\s*\(|<link|fetch\s*\(|XMLHttpRequest|import\s*\()[^>;]{0,40}",
    );
    let loads = loads.expect("a pattern");
    for page in [
        record_text("busy_loop", "flame.html", &[]),
        record_text("busy_loop", "flame", &["-f", "flamegraph"]),
    ] {
        for name in ["main.spinThree", "main.spinOne", "main.mix", "runtime.main"] {
            assert!(page.contains(name), "{name} is not in the page");
        }
        for load in loads.find_iter(&page) {
            assert!(!load.as_str().contains("//"), "it loads {}", load.as_str());
        }
        assert!(
            page.contains("</html>") || page.contains("</svg>"),
            "it is cut short"
        );
    }
}

#[test]
fn folded_stacks_are_one_line_each_from_the_root() {
    let text = record_text("busy_loop", "stacks.folded", &["--no-kernel"]);
    let line = Regex::new(r"^busy_loop;(\S.*;)?\S.* [0-9]+$").expect("a pattern");
    let mut spinning = 0;
    let mut all = 0;
    for stack in text.lines() {
        assert!(line.is_match(stack), "{stack:?}");
        let (frames, count) = stack.rsplit_once(' ').expect("a count");
        let count: u64 = count.parse().expect("a number");
        all += count;
        let spin = "runtime.main;main.main;main.spin;main.spin";
        spinning += if frames.contains(spin) { count } else { 0 };
    }
    assert!(
        all >= 250 && spinning * 10 >= all * 8,
        "{spinning} of {all}\n{text}"
    );
}

#[test]
fn speedscope_json_names_frames_and_weighs_samples() {
    let text = record_text("busy_loop", "profile.speedscope.json", &[]);
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let schema = "https://www.speedscope.app/file-format-schema.json";
    assert_eq!(json["$schema"], schema);
    let frames = json["shared"]["frames"].as_array().expect("frames");
    let index = frames.iter().position(|f| f["name"] == "main.spinThree");
    let index = index.expect("main.spinThree") as u64;
    assert!(
        frames[index as usize]["file"]
            .as_str()
            .expect("a file")
            .ends_with("main.go")
    );
    let profile = &json["profiles"][0];
    let samples = profile["samples"].as_array().expect("samples");
    let weights = profile["weights"].as_array().expect("weights");
    assert_eq!(samples.len(), weights.len());
    assert!(samples.iter().any(|s| {
        let stack = s.as_array().expect("a stack");
        stack.iter().any(|f| f.as_u64() == Some(index))
    }));
}

#[test]
fn kernel_frames_come_and_go_with_their_flag() {
    let binary = go::build("oracle");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let kernel = |p: &Profile| p.share(|s| s.frames.iter().any(|f| f.is_kernel()));
    let with = record(&target, &["--kernel"]);
    assert!(
        kernel(&with) > 0.0,
        "the system calls are not there\n{}",
        with.top(30)
    );
    // Kernel frames lie over the user frames that called.
    let under = with.share(|s| {
        s.frames.first().is_some_and(|f| f.is_kernel()) && s.has("main.(*worker).smallCalls")
    });
    assert!(
        under > 0.0,
        "no kernel frame under main.(*worker).smallCalls"
    );
    let without = record(&target, &["--no-kernel"]);
    assert_eq!(kernel(&without), 0.0);
    let calls = without.cumulative_share("main.(*worker).smallCalls");
    assert!(calls > 0.0, "the time in the kernel is its caller's then");
}

#[test]
fn threads_are_told_apart_when_asked() {
    let binary = go::build("goroutines");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let tasks = format!("/proc/{}/task", target.pid());
    let profile = record(&target, &["-t"]);
    for stack in &profile.stacks {
        let tid = stack.labels.get("tid").expect("a thread id");
        assert!(
            Path::new(&tasks).join(tid).exists(),
            "{tid} is no thread of it"
        );
        assert_eq!(
            stack.labels.get("thread").map(String::as_str),
            Some("goroutines")
        );
    }
    let plain = record(&target, &[]);
    assert!(plain.stacks.iter().all(|s| !s.labels.contains_key("tid")));
}

#[test]
fn stacks_are_kept_and_dropped_by_function() {
    let binary = go::build("busy_loop");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let kept = record(&target, &["--include", r"^main\.spinOne$"]);
    assert_eq!(kept.cumulative_share("main.spinOne"), 1.0);
    let left = record(&target, &["--exclude", r"^main\.spinOne$"]);
    assert_eq!(left.cumulative_share("main.spinOne"), 0.0);
    assert!(left.main_share("main.spinThree") > 0.9);
}

#[test]
fn several_processes_are_labelled() {
    let (busy, closures) = (go::build("busy_loop"), go::build("closures"));
    let _turn = quiet::measuring();
    let (busy, closures) = (Target::start(&busy, &[]), Target::start(&closures, &[]));
    let check = |profile: &Profile| {
        for (target, comm, function) in [
            (&busy, "busy_loop", "main.spinThree"),
            (&closures, "closures", "main.deferred.func1"),
        ] {
            let pid = target.pid_arg();
            let mut seen = 0;
            for stack in profile.stacks.iter().filter(|s| s.has(function)) {
                assert_eq!(stack.labels.get("pid"), Some(&pid), "{function}");
                assert_eq!(stack.labels.get("comm").map(String::as_str), Some(comm));
                seen += stack.count;
            }
            assert_ne!(seen, 0, "{function} of {comm} is not there");
        }
    };
    check(&record(&busy, &["-p", &closures.pid_arg()]));
    check(&goprof::record(&["-a", "-d", "2", "-r", "499"]).profile);
    check(&goprof::record(&["-n", "^(busy_loop|closures)$", "-d", "2", "-r", "499"]).profile);
    let one = goprof::record(&["-n", "^busy_lo", "-d", "2", "-r", "499"]).profile;
    assert_eq!(one.cumulative_share("main.deferred.func1"), 0.0);
    assert!(one.cumulative_share("main.spinThree") > 0.5);
}
