//! Allocations as probes see them: of programs that keep no heap profile, against what
//! the program is known to allocate, and of one that does, against that profile.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::alloc_mix::{PLACES, check_labels, leaf, number_before};
use goprof_tests::go::{self, NEWEST, Variant};
use goprof_tests::goprof;
use goprof_tests::pprof::Profile;
use goprof_tests::talker::Talker;
use goprof_tests::target::Target;

/// A program without a heap profile: what each place allocates, by the mix that it is
/// known to have, with its type, size, goroutine and nothing of the allocator.
#[track_caller]
fn check_mix(version: &str, variant: Variant) {
    let program = Target::start(&go::build_with("alloc_mix", version, variant), &[]);
    let pid = program.pid_arg();
    let args = ["-e", "alloc-events", "-d", "8", "--probe-budget", "50%"];
    let recording = goprof::record(&[&args[..], &["-p", &pid]].concat());
    let said = &recording.outcome.stderr;
    assert!(said.contains("windows over mallocgc"), "{said}");
    assert!(
        said.contains("calibrated by the runtime's totals"),
        "{said}"
    );
    // Neither twice, nor by a way that nobody looks at.
    let seen = number_before(said, "% of what it counted was seen");
    assert!((90.0..110.0).contains(&seen), "{seen}% seen: {said}");
    assert!(!said.contains("in bursts"), "it is steady: {said}");

    let profile = &recording.profile;
    assert_eq!(profile.text(profile.raw.default_sample_type), "");
    let mut found: BTreeMap<&str, [i64; 2]> = BTreeMap::new();
    for stack in &profile.stacks {
        let sums = found.entry(leaf(stack)).or_default();
        sums[0] += stack.values[0];
        sums[1] += stack.values[1];
    }
    let all: i64 = found.values().map(|sums| sums[1]).sum();
    for place in &PLACES {
        let [objects, bytes] = found.get(place.function).copied().unwrap_or_default();
        let share = bytes as f64 / all as f64;
        let expected = place.share();
        assert!(expected > 0.02, "{} is too small", place.function);
        let off = share / expected - 1.0;
        assert!(
            off.abs() < 0.1,
            "go{version}: {} has {share:.4} of the bytes, not {expected:.4}: {found:?}\n{said}",
            place.function
        );
        let each = bytes as f64 / objects as f64 / place.taken_bytes as f64;
        assert!((each - 1.0).abs() < 0.01, "{}: {each}", place.function);
        check_labels(profile, place);
    }
    let [often, seldom] = ["main.often", "main.seldom"].map(|name| found[name][0] as f64);
    assert!(
        (often / seldom - 6.9).abs() < 0.5,
        "go{version}: {} for one",
        often / seldom
    );
    let of_places: i64 = PLACES.iter().map(|p| found[p.function][1]).sum();
    assert!(of_places as f64 / all as f64 > 0.999, "{found:?}");
}

#[test]
fn without_a_heap_profile_go_1_23() {
    check_mix("1.23.9", Variant::Plain);
}

#[test]
fn without_a_heap_profile_go_1_26() {
    check_mix("1.26.6", Variant::Stripped);
}

#[test]
fn without_a_heap_profile_go_1_27() {
    check_mix("1.27.3", Variant::Pie);
}

/// What a profile says of each site in `main.round`: its frames with their lines and
/// the size of its blocks; objects and bytes.
fn sites(profile: &Profile) -> BTreeMap<String, [i64; 2]> {
    let mut sites: BTreeMap<String, [i64; 2]> = BTreeMap::new();
    for stack in &profile.stacks {
        if !stack.frames.iter().any(|f| f.function == "main.round") {
            continue;
        }
        let frames = stack.frames.iter();
        let frames: Vec<_> = frames
            .map(|f| format!("{}:{}", f.function, f.line))
            .collect();
        let size = stack.labels.get("bytes").map_or("", String::as_str);
        let sums = sites.entry(format!("{size} {}", frames.join(" < ")));
        let sums = sums.or_default();
        sums[0] += stack.values[0];
        sums[1] += stack.values[1];
    }
    sites
}

fn own(program: &mut Talker, name: &str, dir: &Path) -> BTreeMap<String, [i64; 2]> {
    let path = dir.join(name);
    program.tell(&format!("allocs {}", path.display()));
    sites(&Profile::read(&path))
}

/// Waits until goprof has put its probes on: the kernel tells of them with what it has
/// open, once the thread that does it is there.
#[track_caller]
fn wait_for_probes(goprof: u32) {
    let texts = |of: &str, file: &str| -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{goprof}/{of}"));
        let entries = entries.into_iter().flatten().flatten();
        let texts = entries.map(|entry| fs::read_to_string(entry.path().join(file)));
        texts.filter_map(Result::ok).collect()
    };
    let links = || -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{goprof}/fdinfo"));
        let entries = entries.into_iter().flatten().flatten();
        let texts = entries.map(|entry| fs::read_to_string(entry.path()));
        texts.filter_map(Result::ok).collect()
    };
    let is_on = || {
        let watches = texts("task", "comm")
            .iter()
            .any(|comm| comm.trim() == "probes");
        watches && links().iter().any(|text| text.contains("uprobe_multi"))
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_on() {
        assert!(Instant::now() < deadline, "goprof puts no probes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(100));
}

/// A program with a heap profile: each of its samples is seen, and stands for what it
/// does in the program's own profile.
#[test]
fn samples_of_the_runtime_are_those_of_its_own_profile() {
    let dir = tempfile::tempdir().expect("make a directory");
    let binary = go::build_with("alloc_sites", NEWEST, Variant::Stripped);
    let mut command = Command::new(binary);
    command.envs([("GODEBUG", "memprofilerate=512"), ("GOMAXPROCS", "1")]);
    let mut program = Talker::start_command(&mut command);
    program.tell("round");
    program.tell("settle");
    let before = own(&mut program, "before.pb.gz", dir.path());
    let file = dir.path().join("ours.pb.gz");
    let (pid, path) = (program.pid_arg(), file.to_str().expect("UTF-8"));
    let args = ["record", "-e", "alloc-events", "-p", &pid, "-o", path];
    let running = goprof::start(&[&args[..], &["--probe-budget", "off"]].concat());
    wait_for_probes(running.pid());
    program.tell("round");
    program.tell("settle");
    std::thread::sleep(Duration::from_millis(300));
    running.signal(libc::SIGINT);
    let outcome = running.finish(Duration::from_secs(60)).succeeded();
    let after = own(&mut program, "after.pb.gz", dir.path());
    let said = &outcome.stderr;
    assert!(
        said.contains("sampled by the runtime (once in 512 bytes)"),
        "{said}"
    );
    let ours = sites(&Profile::read(&file));
    assert!(ours.len() > 50, "{} sites", ours.len());
    let mut wrong = Vec::new();
    for site in after.keys().chain(ours.keys()) {
        let of = |sites: &BTreeMap<String, [i64; 2]>| sites.get(site).copied().unwrap_or_default();
        let (ours, old, new) = (of(&ours), of(&before), of(&after));
        let own = [new[0] - old[0], new[1] - old[1]];
        let is_close =
            |index: usize| (ours[index] - own[index]).abs() <= own[index].abs() / 100 + 2;
        if !is_close(0) || !is_close(1) {
            wrong.push(format!("{site}: {ours:?}, its own {own:?}"));
        }
    }
    wrong.sort_unstable();
    wrong.dedup();
    assert!(
        wrong.is_empty(),
        "{} of {} differ: {:#?}\n{said}",
        wrong.len(),
        after.len(),
        &wrong[..wrong.len().min(8)]
    );
}
