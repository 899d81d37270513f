//! Goroutines: their ids and labels come out as the program has them, and their
//! own stacks follow those of the system stack.

use goprof_tests::go::{self, Variant};
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::target::Target;
use goprof_tests::{goprof, quiet};

/// One version for each form of labels and each layout of the runtime's structs.
const VERSIONS: [&str; 5] = ["1.21.13", "1.23.9", "1.24.11", "1.25.5", "1.27.3"];

fn record(target: &Target, more: &[&str]) -> Profile {
    let pid = target.pid_arg();
    let args = [&["-p", &pid, "-d", "2", "-r", "499"], more].concat();
    goprof::record(&args).profile
}

fn label<'s>(stack: &'s Stack, key: &str) -> Option<&'s str> {
    stack.labels.get(key).map(String::as_str)
}

#[test]
fn labels_and_ids_are_the_programs_own() {
    for version in VERSIONS {
        for variant in [Variant::Plain, Variant::StrippedPie] {
            let binary = go::build_with("labels", version, variant);
            let _turn = quiet::measuring();
            let target = Target::start(&binary, &[]);
            let ids: Vec<&str> = target.details.split_whitespace().collect();
            let [first, second] = ids[..] else {
                panic!("two goroutine ids, not {ids:?}");
            };
            let profile = record(&target, &[]);
            assert!(profile.total() >= 200, "{} samples", profile.total());

            let working = profile.share(|s| s.has("main.burn"));
            let a = profile.share(|s| label(s, "path") == Some("/a"));
            let b = profile.share(|s| label(s, "path") == Some("/b"));
            let say = format!("go{version} {variant:?}: /a {a:.3} /b {b:.3} of {working:.3}");
            println!("{say}");
            assert!(working > 0.9 && a + b > working - 0.02, "{say}");
            assert!((0.55..0.78).contains(&(a / (a + b))), "{say}");

            for stack in profile.stacks.iter().filter(|s| s.has("main.burn")) {
                match label(stack, "path") {
                    Some("/a") => {
                        assert_eq!(label(stack, "user"), Some("bob"), "go{version}");
                        assert_eq!(label(stack, "goid"), Some(first), "go{version}");
                    }
                    Some("/b") => {
                        assert_eq!(label(stack, "goid"), Some(second), "go{version}");
                        assert_eq!(label(stack, "n9"), Some("9"), "go{version}");
                        let text = label(stack, "text").expect("the long label");
                        assert_eq!(text, &"long ".repeat(100)[..256], "go{version}");
                    }
                    // Between two rounds.
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn labels_cut_short_are_counted() {
    let binary = go::build("labels");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let pid = target.pid_arg();
    let outcome = goprof::run(&["record", "-p", &pid, "-d", "1", "-o", "/dev/null"]);
    assert!(
        outcome.stderr.contains("labels of samples cut short"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_label_selects() {
    let binary = go::build("labels");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let profile = record(&target, &["--label", "path=^/b$", "--label", "n1=1"]);
    assert!(profile.total() >= 50, "{} samples", profile.total());
    assert_eq!(profile.share(|s| label(s, "path") == Some("/b")), 1.0);
}

#[test]
fn goroutine_ids_are_left_out_when_asked() {
    let binary = go::build("shop");
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let (with, without) = (record(&target, &[]), record(&target, &["--no-goroutines"]));
    // Its goroutines run the same code: with their ids, equal stacks are
    // several samples, without them one.
    let identities = |profile: &Profile| {
        let mut stacks: Vec<Vec<u64>> = profile
            .stacks
            .iter()
            .map(|stack| stack.frames.iter().map(|frame| frame.address).collect())
            .collect();
        let all = stacks.len();
        stacks.sort_unstable();
        stacks.dedup();
        (all, stacks.len())
    };
    let labelled = |stack: &Stack| label(stack, "goid").is_some();
    // The rest is the scheduler's own: no goroutine runs.
    assert!(with.share(labelled) > 0.5, "{}", with.top(20));
    let (all, distinct) = identities(&with);
    assert!(all > distinct * 101 / 100, "{all} of {distinct} stacks");
    assert_eq!(without.share(labelled), 0.0);
    // Addresses do not tell all apart: an unnamed one can be in two mappings.
    let (all, distinct) = identities(&without);
    assert!(all <= distinct * 101 / 100, "{all} of {distinct} stacks");
}

#[test]
fn spans_pass_through_under_their_own_names() {
    for version in ["1.23.9", go::NEWEST] {
        let binary = go::build_with("spans", version, Variant::Plain);
        let _turn = quiet::measuring();
        let target = Target::start(&binary, &[]);
        let profile = record(&target, &[]);
        let traced = profile.share(|s| label(s, "span_id").is_some());
        assert!(traced > 0.9, "go{version}: {traced}\n{}", profile.top(20));
        for stack in &profile.stacks {
            let Some(span) = label(stack, "span_id") else {
                continue;
            };
            assert_eq!(span, "00f067aa0ba902b7");
            assert_eq!(label(stack, "profile_id"), Some(span));
            assert_eq!(label(stack, "span_name"), Some("GET /cart/{id}"));
            let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
            assert_eq!(label(stack, "trace_id"), Some(trace));
        }
        // As strings: Pyroscope looks for these keys among string labels alone,
        // and a hexadecimal id that reads as a number must not become one.
        let keys = ["span_id", "trace_id", "profile_id"];
        let labels = profile.raw.sample.iter().flat_map(|sample| &sample.label);
        let ids = labels.filter(|label| keys.contains(&profile.text(label.key)));
        let (mut seen, mut strings) = (0, 0);
        for id in ids {
            seen += 1;
            strings += usize::from(id.str != 0 && id.num == 0);
        }
        assert!(seen > 0 && seen == strings, "{strings} of {seen}");
    }
}

#[test]
fn a_stack_that_grows_is_whole_down_to_its_goroutine() {
    for version in VERSIONS {
        let binary = go::build_with("stack_growth", version, Variant::Plain);
        let _turn = quiet::measuring();
        let target = Target::start(&binary, &[]);
        let profile = record(&target, &["--no-kernel"]);
        let growing = profile.share(|s| s.has("runtime.copystack"));
        let whole = profile.share(|s| {
            s.has("runtime.copystack")
                && s.has("main.grow")
                && s.names().last() == Some(&"main.begin")
        });
        println!("go{version}: {growing:.3} growing, {whole:.3} whole");
        assert!(growing > 0.02, "{}", profile.top(20));
        assert!(whole > growing * 0.99, "go{version}\n{}", profile.top(20));
    }
}
