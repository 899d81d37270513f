//! What becomes of the agent's windows when it is told to end, killed at any
//! moment, or its clock is set.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use goprof_tests::agent::{self, Agent, Object};
use goprof_tests::command;
use goprof_tests::go;
use goprof_tests::target::Target;

const FLUSH: Duration = Duration::from_secs(1);
/// For what a loaded machine may take to write a window.
const SLACK: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(30);

fn busy() -> Target {
    Target::start(&go::build("busy_loop"), &[])
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("make a directory")
}

fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    nanos(now.expect("a time after 1970"))
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).expect("a time in this century")
}

#[test]
fn sigterm_writes_what_is_open() {
    let _target = busy();
    let dir = folder();
    let agent = Agent::start(dir.path(), &["--flush", "1h"]);
    std::thread::sleep(Duration::from_secs(3));
    assert!(agent::files(&agent::store(dir.path())).is_empty());
    let asked = Instant::now();
    let outcome = agent.stop().succeeded();
    assert!(asked.elapsed() < Duration::from_secs(10));
    assert!(outcome.stderr.contains("objects_left_in_spool=0"));
    let objects = agent::objects(dir.path());
    assert_eq!(objects.len(), 1);
    assert!(objects[0].duration_ns > nanos(Duration::from_secs(3)));
    assert!(objects[0].samples > 10, "{objects:?}");
}

/// One life of an agent, in nanoseconds since 1970.
#[derive(Debug)]
struct Life {
    started_ns: i64,
    ready_ns: i64,
    killed_ns: i64,
}

/// Every file of store and spool, finished or not.
fn on_disk(dir: &Path) -> Vec<PathBuf> {
    let mut files = agent::files(&agent::store(dir));
    files.extend(agent::files(&dir.join("spool")));
    files.sort();
    files
}

/// Kills an agent that is at work: at any moment, or as soon as it begins,
/// finishes or removes a file and `after` that.
fn live_and_die(dir: &Path, at_work: Duration, after: Option<Duration>) -> Life {
    let started_ns = now_ns();
    let mut agent = Agent::start(dir, &["--flush", "1s"]);
    let ready_ns = now_ns();
    std::thread::sleep(at_work);
    if let Some(after) = after {
        let (before, begun) = (on_disk(dir), Instant::now());
        while on_disk(dir) == before {
            assert!(begun.elapsed() < LIMIT, "nothing is written");
        }
        std::thread::sleep(after);
    }
    assert!(agent.is_running());
    agent.signal(libc::SIGKILL);
    let killed_ns = now_ns();
    Life {
        started_ns,
        ready_ns,
        killed_ns,
    }
}

#[test]
fn sigkill_at_any_moment_tears_nothing_and_loses_the_open_window_alone() {
    let _target = busy();
    let dir = folder();
    let mut lives = Vec::new();
    for number in 0..8 {
        // Anywhere in a window, and then anywhere in the writing of one.
        let at_work = FLUSH + Duration::from_millis(number * 457 % 1000);
        let after = (number % 2 == 1).then(|| Duration::from_micros(number * 700));
        lives.push(live_and_die(dir.path(), at_work, after));
        for path in agent::files(&agent::store(dir.path())) {
            // What is not finished has a name that no reader takes.
            let is_object = path.extension().is_some_and(|e| e == "parquet");
            assert!(is_object || path.to_string_lossy().contains('#'));
            if is_object {
                agent::object(&path);
            }
        }
    }
    // The next one sends what was left in the spool.
    Agent::start(dir.path(), &["--flush", "1h"])
        .stop()
        .succeeded();
    let left = agent::files(&dir.path().join("spool"));
    let left: Vec<_> = left.iter().filter(|p| p.extension().is_some()).collect();
    assert!(left.is_empty(), "{left:?}");

    let mut objects = agent::objects(dir.path());
    objects.sort_by_key(|object| object.start_ns);
    for life in &lives {
        check_life(life, &objects);
    }
}

/// The windows of a life follow each other from its start to the one that was
/// open, or being written, when it ended.
#[track_caller]
fn check_life(life: &Life, objects: &[Object]) {
    let is_of_life =
        |object: &&Object| (life.started_ns..life.killed_ns).contains(&object.start_ns);
    let windows: Vec<&Object> = objects.iter().filter(is_of_life).collect();
    let between = |from: i64, to: i64| Duration::from_nanos(from.abs_diff(to));
    // None where it was killed in its first window.
    let first = windows
        .first()
        .map_or(life.ready_ns, |first| first.start_ns);
    assert!(
        first <= life.ready_ns + nanos(FLUSH / 2),
        "{life:?}: {windows:#?}"
    );
    let (mut end_ns, mut longest) = (first, FLUSH);
    for window in &windows {
        let gap = between(end_ns, window.start_ns);
        assert!(gap < FLUSH / 2, "{gap:?} lost of {life:?}: {windows:#?}");
        end_ns = window.start_ns + window.duration_ns;
        longest = longest.max(between(window.start_ns, end_ns));
    }
    // A machine that is busy otherwise makes windows longer.
    let lost = between(end_ns, life.killed_ns);
    assert!(
        lost < longest + SLACK,
        "{lost:?} lost of {life:?}: {windows:#?}"
    );
}

/// A library that sets the clock of whoever preloads it.
fn clock_library(dir: &Path) -> PathBuf {
    let library = dir.join("wall_clock.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("agent/wall_clock.c");
    let mut compile = Command::new("cc");
    compile
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library);
    let remedy = "install gcc and libc6-dev";
    command::run(compile.arg(source), Duration::from_secs(60), remedy).succeeded();
    library
}

#[test]
fn a_clock_that_is_set_leaves_windows_whole() {
    let _target = busy();
    let dir = folder();
    let clock = dir.path().join("clock");
    let set = |seconds: i64| {
        // In one step: it is read all the time.
        let next = dir.path().join("clock.next");
        std::fs::write(&next, seconds.to_string()).expect("write the time");
        std::fs::rename(&next, &clock).expect("set the clock");
    };
    set(0);
    let library = clock_library(dir.path());
    let started = Instant::now();
    let agent = Agent::start_with(dir.path(), &["--flush", "1s"], |command| {
        command.env("LD_PRELOAD", &library);
        command.env("GOPROF_TEST_CLOCK", &clock);
    });
    let ready = Instant::now();
    // Back an hour, on to another year, on a little, and right again; each in the
    // middle of a window.
    const YEAR: i64 = 365 * 86_400;
    let steps = [-3_600, 20 * YEAR, 20 * YEAR + 5, 0];
    for seconds in steps {
        std::thread::sleep(2 * FLUSH + FLUSH / 2);
        set(seconds);
    }
    std::thread::sleep(2 * FLUSH + FLUSH / 2);
    let sampled = ready.elapsed();
    let outcome = agent.stop().succeeded();
    let lived = started.elapsed();
    assert!(!outcome.stderr.contains("lost"), "{}", outcome.stderr);

    let objects = agent::objects(dir.path());
    let now_ns = now_ns();
    for seconds in steps {
        let wanted = |object: &&Object| {
            let off = now_ns + seconds * 1_000_000_000 - object.start_ns;
            (0..nanos(2 * lived)).contains(&off)
        };
        let found = objects.iter().filter(wanted).count();
        assert!(found >= 1, "no window at {seconds} s: {objects:#?}");
    }
    let mut all = 0;
    for object in &objects {
        let duration = Duration::from_nanos(object.duration_ns.unsigned_abs());
        assert!(object.duration_ns > 0 && duration < lived);
        assert!(object.samples > 0);
        let seconds = object.start_ns / 1_000_000_000;
        let hour = format!("/hour={:02}/", seconds % 86_400 / 3_600);
        let key = object.path.to_string_lossy();
        assert!(key.contains(&hour), "{key} begins at {seconds}");
        all += object.duration_ns;
    }
    // Nothing is missing between them, and nothing is there twice.
    let all = Duration::from_nanos(all.unsigned_abs());
    assert!(sampled <= all && all <= lived, "{all:?} of {lived:?}");
}
