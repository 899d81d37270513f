//! Every Go version, in every shape of binary: the busy loop's functions with
//! their shares, inlined leaf, files and lines.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use goprof_tests::go::{self, Variant, marked_line};
use goprof_tests::pprof::{Frame, Profile};
use goprof_tests::target::Target;
use goprof_tests::{goprof, quiet};

const PROGRAM: &str = "busy_loop";

/// Records the busy loop as built by `version` in each shape.
fn check(version: &str) {
    let variants = [
        Variant::Plain,
        Variant::Stripped,
        Variant::Pie,
        Variant::StrippedPie,
    ];
    for variant in variants {
        let binary = go::build_with(PROGRAM, version, variant);
        let _turn = quiet::measuring();
        let target = Target::start(&binary, &[]);
        let recording = goprof::record(&["-p", &target.pid_arg(), "-d", "2", "-r", "499"]);
        println!("go{version} {variant:?}: {}", recording.outcome.stderr);
        check_shares(&recording.profile);
        check_leaf(&recording.profile);
        check_lines(&recording.profile);
    }
}

fn check_shares(profile: &Profile) {
    // Two seconds of one CPU are 998; a machine shared with others gives less.
    let total = profile.total();
    assert!(total >= 250, "{total} samples\n{}", profile.top(20));
    let (named, frames) = profile.named_share(PROGRAM);
    assert!(named >= 0.99, "{named} of {frames} frames are named");
    let three = profile.main_share("main.spinThree");
    let one = profile.main_share("main.spinOne");
    let ratio = three / (three + one);
    assert!(
        three + one >= 0.9,
        "the loops have {three} and {one}\n{}",
        profile.top(20)
    );
    assert!((ratio - 0.75).abs() < 0.1, "spinThree has {ratio}, not 3/4");
    for root in ["main.spin", "main.main", "runtime.main"] {
        let share = profile.main_share(root);
        assert!(share >= 0.99, "{root} is over {share} of main.main");
    }
}

/// The leaf is inlined into both loops and is a frame of its own.
fn check_leaf(profile: &Profile) {
    for caller in ["main.spinThree", "main.spinOne"] {
        let share = profile.share(|stack| match stack.frames.as_slice() {
            [leaf, next, ..] => {
                leaf.function == "main.mix"
                    && leaf.inlined
                    && next.function == caller
                    && !next.inlined
            }
            _ => false,
        });
        let all = profile.cumulative_share(caller);
        assert!(
            share > all * 0.4,
            "main.mix inlined into {caller} has {share} of {all}"
        );
    }
}

fn check_lines(profile: &Profile) {
    let frames = || profile.stacks.iter().flat_map(|s| &s.frames);
    let ours = frames().filter(|f| f.function.starts_with("main."));
    for frame in ours {
        assert!(
            frame.start_line > 0 && frame.line >= frame.start_line,
            "{frame:?}"
        );
        assert!(frame.file.ends_with("busy_loop/main.go"), "{frame:?}");
    }
    for function in ["mix", "spinThree", "spinOne", "spin"] {
        let start = marked_line(PROGRAM, &format!("func_{function}"));
        let name = format!("main.{function}");
        let of_function = || frames().filter(|f| f.function == name);
        assert_ne!(of_function().count(), 0, "{name} is not there");
        for frame in of_function() {
            assert_eq!(frame.start_line, start, "{frame:?}");
        }
    }
    // The line of a caller is the line of the call, inlined or not.
    check_call(profile, "main.mix", "main.spinThree", "spinThree");
    check_call(profile, "main.mix", "main.spinOne", "spinOne");
    check_call(profile, "main.spinThree", "main.spin", "callThree");
}

fn check_call(profile: &Profile, callee: &str, caller: &str, mark: &str) {
    let line = marked_line(PROGRAM, mark);
    let mut seen = 0;
    for stack in &profile.stacks {
        for pair in stack.frames.windows(2) {
            let [inner, outer]: &[Frame; 2] = pair.try_into().expect("two frames");
            if inner.function == callee && outer.function == caller {
                assert_eq!(outer.line, line, "the call of {callee}: {outer:?}");
                seen += 1;
            }
        }
    }
    assert_ne!(seen, 0, "{caller} never calls {callee}");
}

goprof_tests::test_each_version! {
    check, VERSIONS:
    go_1_21 "1.21.13",
    go_1_22 "1.22.10",
    go_1_23 "1.23.9",
    go_1_24 "1.24.11",
    go_1_25 "1.25.5",
    go_1_26 "1.26.6",
    go_1_27 "1.27.3",
}
