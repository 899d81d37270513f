//! The store: real profiles through encoder, spool and uploader into a folder
//! or a real S3 server that fails in every way, and out again by the engines
//! that read it, with the sums of the same window's pprof.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use goprof::identity::{Target, label};
use goprof::process::ProcessTable;
use goprof::profile::{self, Batch, Format, parquet};
use goprof::sink::{Failure, Spool, Store, Uploader, key};
use goprof::symbolize::ProcessId;
use goprof_tests::disk::Disk;
use goprof_tests::fixture::{self, Fixture};
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::replay::{Settings, replay};
use goprof_tests::s3::{self, Fault};
use goprof_tests::{batch, python};
use serde_json::Value;

const DUCKDB: &str = "duckdb==2.0.0";
const CHDB: &str = "chdb==4.4.0";
const SPARK: &str = "pyspark==4.3.0";

/// 2026-11-15, 10:20:00 UTC.
const START: u64 = 1_794_738_000;
/// A program of which two versions are among the fixtures.
const SERVICE: &str = "inlined_leaf";
const BEFORE: &str = "v1.24.11";
const AFTER: &str = "v1.26.6";

/// A node that runs the programs of every fixture.
fn node() -> Batch {
    let batches = fixture::cases().into_iter().map(|name| one(&name));
    let mut node = batches.reduce(batch::join).expect("there are fixtures");
    node.window.start = SystemTime::UNIX_EPOCH + Duration::from_secs(START);
    node
}

fn one(name: &str) -> Batch {
    let fixture = Fixture::open(name);
    let mut table = ProcessTable::default();
    let process = fixture.process(&mut table.objects);
    table.insert(process);
    let settings = Settings {
        rate_hz: 99,
        threads: fixture.case.threads,
        kallsyms: &fixture.kallsyms,
    };
    let window = replay(&fixture.records, table, &settings).window;
    let process = &window.processes[0];
    let labels = [
        (label::SERVICE_NAME, fixture.case.program.clone()),
        (label::EXE, process.exe.clone()),
        (label::MODULE_VERSION, format!("v{}", fixture.case.go)),
        (label::POD, name.to_owned()),
    ];
    let target = Target {
        pid: process.pid,
        labels: BTreeMap::from(labels),
        is_partial: false,
    };
    let targets = vec![target];
    Batch { window, targets }
}

/// A key and the object for it.
fn object(batch: &Batch) -> (String, Vec<u8>) {
    let place = key::Place {
        cluster: "test/one".to_owned(),
        node: "node-1".to_owned(),
    };
    let name = key::name(batch.window.start);
    let origin = parquet::Origin {
        cluster: place.cluster.clone(),
        node: place.node.clone(),
        ulid: name.to_string(),
        lost: vec![(3, "ring buffer full"), (2, "record not readable")],
    };
    let object = parquet::encode(batch, &origin).unwrap();
    (key::raw(&place, batch.window.start, name), object)
}

/// A folder with the node's object, as an agent leaves it.
fn filled_store(batch: &Batch) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Spool::open(&dir.path().join("spool"), 1 << 30).unwrap());
    let (key, object) = object(batch);
    spool.put(&key, &object).unwrap();
    let store = Store::open(dir.path().join("store").to_str().unwrap()).unwrap();
    let uploader = Uploader::new(store, spool);
    let deadline = Instant::now() + Duration::from_secs(30);
    assert_eq!(runtime().block_on(uploader.flush(deadline)), 0);
    dir
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap()
}

/// The service's stacks as pprof has them, each with its version.
fn stacks(batch: &Batch) -> Vec<(String, Stack)> {
    let mut stacks = Vec::new();
    for (target, id) in batch.targets.iter().zip(0..) {
        if target.label(label::SERVICE_NAME) == SERVICE {
            let part = batch::of_process(&batch.window, ProcessId(id));
            let options = profile::Options::default();
            let bytes = profile::encode(&part, Format::Pprof, &options).unwrap();
            let version = target.label(label::MODULE_VERSION);
            let own = Profile::decode(&bytes).stacks.into_iter();
            stacks.extend(own.map(|stack| (version.to_owned(), stack)));
        }
    }
    assert!(stacks.len() > 20, "the service has stacks");
    stacks
}

/// The answers of an engine to the three ready queries.
fn ask(engine: &str, requirement: &str, store: &Path) -> Vec<Vec<Value>> {
    let queries = ["top_functions", "flame_graph", "diff_versions"];
    ask_for(engine, requirement, store, &queries)
}

fn ask_for(engine: &str, requirement: &str, store: &Path, queries: &[&str]) -> Vec<Vec<Value>> {
    let root = goprof_tests::workspace();
    let mut command = python::command(requirement, &root.join("tests/store/query.py"));
    command.arg(engine).arg(store);
    for query in queries {
        command.arg(root.join(format!("docs/queries/{engine}/{query}.sql")));
    }
    command.arg(format!("service={SERVICE}"));
    command.args(["first_day=2026-11-15", "last_day=2026-11-15"]);
    command.args([format!("before={BEFORE}"), format!("after={AFTER}")]);
    let printed = python::run(&mut command, Duration::from_secs(300));
    let answers: Vec<Vec<Value>> = serde_json::from_str(&printed).expect("rows as JSON");
    assert_eq!(answers.len(), queries.len());
    answers
}

#[track_caller]
fn number(value: &Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("a number: {value}"))
}

/// What the ready queries say must be what pprof says.
#[track_caller]
fn check(engine: &str, requirement: &str) {
    let batch = node();
    let store = filled_store(&batch);
    let answers = ask(engine, requirement, &store.path().join("store"));
    let stacks = stacks(&batch);
    let period = batch.window.period;
    check_top_functions(&answers[0], &stacks, period);
    check_flame_graph(&answers[1], &stacks, period);
    check_diff(&answers[2], &stacks, period);
}

#[track_caller]
fn check_top_functions(rows: &[Value], stacks: &[(String, Stack)], period: u64) {
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (_, stack) in stacks {
        let value = stack.count * period;
        for function in stack.names().into_iter().collect::<BTreeSet<_>>() {
            sums.entry(function).or_default().1 += value;
        }
        sums.get_mut(stack.names()[0]).unwrap().0 += value;
    }
    let mut expected: Vec<_> = sums
        .into_iter()
        .map(|(function, (own, total))| (function.to_owned(), own, total))
        .collect();
    expected.sort_by(|a, b| (b.1, b.2, &a.0).cmp(&(a.1, a.2, &b.0)));
    expected.truncate(100);
    let found = rows.iter().map(|row| {
        let function = row[0].as_str().unwrap().to_owned();
        (function, number(&row[1]), number(&row[2]))
    });
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[track_caller]
fn check_flame_graph(rows: &[Value], stacks: &[(String, Stack)], period: u64) {
    let mut boxes: BTreeMap<Vec<String>, (u64, u64)> = BTreeMap::new();
    for (_, stack) in stacks {
        let mut path = Vec::new();
        for function in stack.names().into_iter().rev() {
            path.push(function.to_owned());
            boxes.entry(path.clone()).or_default().1 += stack.count * period;
        }
        boxes.get_mut(&path).unwrap().0 += stack.count * period;
    }
    let found: Vec<_> = rows
        .iter()
        .map(|row| {
            let path = row[0].as_array().unwrap().iter();
            let path: Vec<String> = path.map(|f| f.as_str().unwrap().to_owned()).collect();
            assert_eq!(number(&row[1]), path.len() as u64);
            (path, (number(&row[2]), number(&row[3])))
        })
        .collect();
    // Sorted too: parents come before their children.
    assert_eq!(found, boxes.into_iter().collect::<Vec<_>>());
}

#[track_caller]
fn check_diff(rows: &[Value], stacks: &[(String, Stack)], period: u64) {
    let mut sums: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
    let mut totals = [0, 0];
    for (version, stack) in stacks {
        let side = usize::from(version == AFTER);
        totals[side] += stack.count * period;
        for function in stack.names().into_iter().collect::<BTreeSet<_>>() {
            sums.entry(function).or_default()[side] += stack.count * period;
        }
    }
    assert!(totals[0] > 0 && totals[1] > 0, "both versions are there");
    assert_eq!(rows.len(), sums.len().min(100));
    let mut last = f64::MAX;
    for row in rows {
        let [before, after] = sums[row[0].as_str().unwrap()];
        assert_eq!([number(&row[1]), number(&row[2])], [before, after], "{row}");
        let change = row[3].as_f64().unwrap();
        let share = |value: u64, side: usize| 100.0 * value as f64 / totals[side] as f64;
        let expected = share(after, 1) - share(before, 0);
        assert!((change - expected).abs() < 0.011, "{row}: {expected}");
        assert!(change.abs() <= last, "{row} comes too late");
        last = change.abs();
    }
}

#[test]
fn duckdb_reads_the_store_as_it_stands() {
    check("duckdb", DUCKDB);
}

#[test]
fn clickhouse_reads_the_store_as_it_stands() {
    check("clickhouse", CHDB);
}

#[test]
fn spark_reads_the_store_as_it_stands() {
    let java = Command::new("java").arg("-version").output();
    assert!(
        java.is_ok_and(|java| java.status.success()),
        "Spark needs Java: install default-jre-headless; `.ci/run` does that by itself"
    );
    check("spark", SPARK);
}

#[test]
fn losses_are_in_the_metadata_by_reason() {
    let store = filled_store(&node());
    let store = store.path().join("store");
    let answers = ask_for("duckdb", DUCKDB, &store, &["losses"]);
    let expected = serde_json::json!([["ring buffer full", 3], ["record not readable", 2]]);
    assert_eq!(Value::Array(answers[0].clone()), expected);
}

/// Objects as an agent would have them: different, and large enough to be cut
/// in the middle.
fn objects(count: usize) -> Vec<(String, Vec<u8>)> {
    let batch = node();
    (0..count)
        .map(|i| {
            let (key, mut object) = object(&batch);
            object.extend(i.to_le_bytes());
            (key, object)
        })
        .collect()
}

/// Every object is in the bucket, byte for byte, and nothing else.
#[track_caller]
fn assert_arrived(bucket: &Path, objects: &[(String, Vec<u8>)]) {
    for (key, object) in objects {
        let found = std::fs::read(bucket.join("some/prefix").join(key));
        assert!(found.is_ok_and(|found| found == *object), "{key}");
    }
    assert_eq!(parquet_files(bucket).len(), objects.len());
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|e| e == "parquet") => files.push(path),
                false => {}
            }
        }
    }
    files
}

fn uploader(address: std::net::SocketAddr, spool: &Arc<Spool>) -> Uploader {
    let url = format!("s3://{}/some/prefix", s3::BUCKET);
    let store = Store::with_options(&url, s3::options(address)).unwrap();
    Uploader::new(store, Arc::clone(spool))
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

#[test]
fn a_server_killed_and_started_again_has_every_object_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = s3::Server::start(&dir.path().join("s3"));
    let spool = Arc::new(Spool::open(&dir.path().join("spool"), 1 << 30).unwrap());
    let uploader = uploader(server.address(), &spool);
    let objects = objects(30);
    runtime().block_on(async {
        let fill = async {
            for (i, (key, object)) in objects.iter().enumerate() {
                match i {
                    10 => server.kill(),
                    20 => server.restart(),
                    _ => {}
                }
                let started = Instant::now();
                spool.put(key, object).unwrap();
                assert!(
                    started.elapsed() < Duration::from_secs(5),
                    "a put was held up"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let deadline = Instant::now() + Duration::from_secs(60);
            while !spool.is_empty() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        uploader.run(fill).await;
    });
    assert!(spool.is_empty());
    assert_arrived(&server.bucket(), &objects);
    let counters = uploader.counters();
    assert_eq!(count(&counters.uploaded), 30);
    assert_ne!(counters.failed(Failure::Unreachable), 0);
    assert_eq!(count(&spool.counters().dropped), 0);
}

#[test]
fn a_server_that_fails_in_every_way_has_every_object_once_it_works() {
    let dir = tempfile::tempdir().unwrap();
    let server = s3::Server::start(&dir.path().join("s3"));
    let proxy = s3::Proxy::start(server.address());
    let spool = Arc::new(Spool::open(&dir.path().join("spool"), 1 << 30).unwrap());
    let uploader = uploader(proxy.address(), &spool);
    let faults = [
        (Fault::Answer(500), Failure::Refused),
        (Fault::Answer(503), Failure::Refused),
        (Fault::Answer(403), Failure::Denied),
        (Fault::Answer(404), Failure::NotFound),
        (Fault::CutAfter(10), Failure::Unreachable),
        (Fault::CutAfter(3_000), Failure::Unreachable),
        (Fault::CutAnswer, Failure::Unreachable),
        (Fault::Silence, Failure::Timeout),
    ];
    let objects = objects(faults.len());
    let counters = uploader.counters();
    for ((fault, failure), (key, object)) in faults.into_iter().zip(&objects) {
        spool.put(key, object).unwrap();
        proxy.set(fault);
        let before = counters.failed(failure);
        let hits = proxy.hits();
        let deadline = Instant::now() + Duration::from_secs(6);
        let left = runtime().block_on(uploader.flush(deadline));
        assert_eq!(left, 1, "{fault:?}");
        assert!(proxy.hits() > hits, "{fault:?} was met");
        assert!(
            counters.failed(failure) > before,
            "{fault:?} is {failure:?}"
        );
        for file in parquet_files(&server.bucket()) {
            let found = std::fs::read(&file).unwrap();
            let is_whole = objects.iter().any(|(_, object)| *object == found);
            assert!(is_whole, "{fault:?} left a torn object: {}", file.display());
        }
        proxy.set(Fault::None);
        let deadline = Instant::now() + Duration::from_secs(30);
        assert_eq!(runtime().block_on(uploader.flush(deadline)), 0, "{fault:?}");
    }
    assert_arrived(&server.bucket(), &objects);
    assert_eq!(count(&counters.uploaded), objects.len() as u64);
}

#[test]
fn an_outage_longer_than_the_bound_loses_the_oldest_and_counts_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = s3::Server::start(&dir.path().join("s3"));
    server.kill();
    let objects = objects(10);
    let size = objects[0].1.len() as u64;
    let spool = Spool::open(&dir.path().join("spool"), 5 * size).unwrap();
    for (key, object) in &objects {
        spool.put(key, object).unwrap();
    }
    // Header and key of each entry take the room of one.
    assert_eq!(count(&spool.counters().dropped), 6);
    drop(spool);
    // The next agent finds the rest.
    let spool = Arc::new(Spool::open(&dir.path().join("spool"), 5 * size).unwrap());
    let uploader = uploader(server.address(), &spool);
    server.restart();
    let deadline = Instant::now() + Duration::from_secs(30);
    assert_eq!(runtime().block_on(uploader.flush(deadline)), 0);
    assert_arrived(&server.bucket(), &objects[6..]);
}

#[test]
fn what_was_put_outlives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("spool");
    let mut put = 0;
    for round in 0..10 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spool_writer"));
        let mut child = command
            .arg(&folder)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(100 + round * 17));
        child.kill().unwrap();
        let printed = child.wait_with_output().unwrap().stdout;
        let printed = String::from_utf8(printed).unwrap();
        // A line that was cut is no promise.
        let lines = printed.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        let promised = lines.count();
        put += promised;

        let spool = Spool::open(&folder, 1 << 30).unwrap();
        assert_eq!(count(&spool.counters().damaged), 0);
        let kept = spool.len();
        assert!(
            (promised..=promised + 1).contains(&kept),
            "{kept} of {promised}"
        );
        for number in 0..kept {
            let entry = spool.take(None).unwrap();
            assert_eq!(entry.key, number.to_string());
            let number = u32::try_from(number).unwrap();
            assert_eq!(entry.bytes, number.to_le_bytes().repeat(5_000));
            spool.remove(&entry);
        }
        assert!(spool.is_empty());
        assert_eq!(count(&spool.counters().damaged), 0);
    }
    assert!(put > 10, "only {put} objects were put");
}

#[test]
fn on_a_full_disk_the_oldest_goes_and_what_never_fits_is_refused() {
    let disk = Disk::new("size=512k");
    let spool = Spool::open(&disk.path().join("spool"), 1 << 30).unwrap();
    for i in 0..10 {
        spool.put(&i.to_string(), &[7; 100_000]).unwrap();
    }
    let counters = spool.counters();
    let dropped = count(&counters.dropped);
    assert!((5..=7).contains(&dropped), "{dropped} dropped");
    assert_eq!(spool.len() as u64, 10 - dropped);
    let oldest = spool.take(None).unwrap();
    assert_eq!(oldest.key, dropped.to_string());

    let error = format!("{:#}", spool.put("huge", &[7; 600_000]).unwrap_err());
    assert!(
        error.contains("spool") && error.contains("No space"),
        "{error}"
    );
    assert_eq!(count(&counters.refused), 1);
    assert_eq!(count(&counters.dropped), dropped, "nothing goes in vain");
    // Nothing of it is left, and it goes on.
    spool.put("next", &[7; 100_000]).unwrap();
    drop(spool);
    let spool = Spool::open(&disk.path().join("spool"), 1 << 30).unwrap();
    let mut keys = Vec::new();
    while let Some(entry) = spool.take(None) {
        spool.remove(&entry);
        keys.push(entry.key);
    }
    assert_eq!(keys.last().unwrap(), "next");
    assert!(keys.len() >= 3, "{keys:?}");
    assert_eq!(count(&spool.counters().unfinished), 0);
}
