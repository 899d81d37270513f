//! Objects read back by the crate's own reader, and what hostile or empty
//! windows become. Other engines read them in `tests/store.rs`.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, RecordBatch};
use hyper::body::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::ParquetMetaData;

use super::super::fixture;
use super::*;
use crate::identity::{Target, label};
use crate::symbolize::Event;

fn batch(window: SymbolizedWindow) -> Batch {
    let targets = window.processes.iter().map(|process| Target {
        pid: process.pid,
        labels: BTreeMap::from([
            (label::SERVICE_NAME, process.comm.clone()),
            (label::EXE, process.exe.clone()),
        ]),
        is_partial: false,
    });
    Batch {
        targets: targets.collect(),
        window,
    }
}

fn origin() -> Origin {
    Origin {
        cluster: "c".to_owned(),
        node: "n".to_owned(),
        ulid: "U".to_owned(),
        lost: vec![(3, "ring buffer full")],
    }
}

fn read(batch: &Batch) -> (Vec<RecordBatch>, Arc<ParquetMetaData>) {
    let bytes = encode(batch, &origin()).unwrap();
    let reader = ParquetRecordBatchReaderBuilder::try_new(Bytes::from(bytes)).unwrap();
    let metadata = Arc::clone(reader.metadata());
    let batches = reader.build().unwrap().map(|batch| batch.unwrap());
    (batches.collect(), metadata)
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<Vec<String>> {
    let lists = batch.column_by_name(column).unwrap().as_list::<i32>();
    let lists = lists.iter().map(|list| {
        let list = list.unwrap();
        let texts = list.as_string::<i32>().iter();
        texts.map(|text| text.unwrap().to_owned()).collect()
    });
    lists.collect()
}

fn counts(batch: &RecordBatch, column: &str) -> Vec<i64> {
    let column = batch.column_by_name(column).unwrap();
    column.as_primitive::<Int64Type>().values().to_vec()
}

#[test]
fn rows_are_stacks_outermost_first_with_what_is_known_of_them() {
    let (batches, _) = read(&batch(fixture::one_process()));
    let [rows] = &batches[..] else {
        panic!("one batch")
    };
    assert_eq!(
        texts(rows, "functions"),
        [
            vec!["main.main", "[no mapping]"],
            vec!["main.main", "main.work", "main.hot"],
            vec!["main.main", "write", "vfs_write"],
        ]
    );
    assert_eq!(counts(rows, "count"), [1, 70, 20]);
    assert_eq!(
        counts(rows, "value"),
        [10_101_010, 707_070_700, 202_020_200]
    );
    assert_eq!(
        texts(rows, "sources")[1],
        ["/src/main.go:33", "/src/main.go:14", "/src/hot.go:7"]
    );
    assert_eq!(
        texts(rows, "sources")[2],
        ["/src/main.go:33", "/lib/libc.so.6", "[kernel]"]
    );
    assert_eq!(texts(rows, "sources")[0], ["/src/main.go:33", ""]);
    assert_eq!(texts(rows, "kinds")[2], ["go", "native", "kernel"]);
}

#[test]
fn rows_are_sorted_and_the_object_says_by_what() {
    let (batches, metadata) = read(&batch(fixture::two_processes()));
    let services = batches[0].column_by_name("service_name").unwrap();
    let services: Vec<_> = services.as_string::<i32>().iter().flatten().collect();
    assert_eq!(services, ["api", "worker"]);
    let columns = metadata.file_metadata().schema_descr();
    let sorted = metadata.row_group(0).sorting_columns().unwrap();
    let names = sorted.iter().map(|by| {
        assert!(by.nulls_first && !by.descending);
        columns.column(by.column_idx as usize).name().to_owned()
    });
    assert_eq!(names.collect::<Vec<_>>(), columns::SORTED_BY);
    let service = metadata.row_group(0).column(5);
    assert_eq!(service.column_path().string(), "service_name");
    let bounds = service.statistics().unwrap();
    assert_eq!(bounds.min_bytes_opt(), Some(&b"api"[..]));
    assert_eq!(bounds.max_bytes_opt(), Some(&b"worker"[..]));
}

#[test]
fn the_metadata_says_where_the_object_comes_from_and_what_is_missing() {
    let (_, metadata) = read(&batch(fixture::one_process()));
    let pairs = metadata.file_metadata().key_value_metadata().unwrap();
    let pairs: BTreeMap<&str, &str> = pairs
        .iter()
        .map(|pair| (pair.key.as_str(), pair.value.as_deref().unwrap()))
        .collect();
    for (key, value) in [
        ("goprof.version", env!("CARGO_PKG_VERSION")),
        ("goprof.schema_version", "1"),
        ("goprof.cluster", "c"),
        ("goprof.node", "n"),
        ("goprof.ulid", "U"),
        ("goprof.event", "cpu"),
        ("goprof.start_ns", "1800000000000000000"),
        ("goprof.duration_ns", "10000000000"),
        ("goprof.period_ns", "10101010"),
        ("goprof.lost", "3"),
        ("goprof.lost: ring buffer full", "3"),
    ] {
        assert_eq!(pairs.get(key), Some(&value), "{key}");
    }
    assert!(!pairs.contains_key("ARROW:schema"));
}

#[test]
fn samples_that_differ_in_addresses_alone_are_one_row() {
    let mut window = fixture::one_process();
    let mut twin = window.locations[1].clone();
    twin.address += 4;
    window.locations.push(twin);
    let mut sample = window.samples[0].clone();
    sample.stack[0] = crate::symbolize::LocationId(window.locations.len() as u32 - 1);
    sample.values = fixture::cpu(5);
    window.samples.push(sample);
    let (batches, _) = read(&batch(window));
    assert_eq!(counts(&batches[0], "count"), [1, 75, 20]);
}

#[test]
fn a_heap_has_what_is_in_use_and_allocs_what_was_allocated() {
    let rows = |event| read(&batch(fixture::heap(event))).0.remove(0);
    let heap = rows(Event::Heap);
    assert_eq!(counts(&heap, "count"), [20]);
    assert_eq!(counts(&heap, "value"), [1280]);
    assert_eq!(counts(&heap, "period_ns"), [0]);
    let text = |rows: &RecordBatch, column: &str| {
        let column = rows.column_by_name(column).unwrap();
        column.as_string::<i32>().value(0).to_owned()
    };
    assert_eq!(text(&heap, "value_unit"), "bytes");
    assert_eq!(text(&heap, "event"), "heap");
    let allocs = rows(Event::Allocs);
    assert_eq!(counts(&allocs, "count"), [8, 30]);
    assert_eq!(counts(&allocs, "value"), [8192, 1920]);
    assert_eq!(text(&allocs, "event"), "allocs");
    let labels = allocs.column_by_name("labels").unwrap().as_map();
    let entry = labels.value(1);
    assert_eq!(entry.column(0).as_string::<i32>().value(0), "type");
}

#[test]
fn threads_goroutines_and_labels_keep_rows_apart() {
    let mut window = fixture::with_threads(fixture::one_process());
    let mut other = window.samples[0].clone();
    other.goid = Some(7);
    window.samples.push(other.clone());
    other.labels = vec![("path".to_owned(), "/\u{1f980}".to_owned())];
    window.samples.push(other);
    let (batches, _) = read(&batch(window));
    let rows = &batches[0];
    assert_eq!(counts(rows, "count"), [1, 70, 70, 70, 20]);
    let goids = rows.column_by_name("goid").unwrap();
    let goids: Vec<_> = goids.as_primitive::<Int64Type>().iter().collect();
    assert_eq!(goids, [None, None, Some(7), Some(7), None]);
    let labels = rows.column_by_name("labels").unwrap().as_map();
    assert_eq!(labels.value(2).len(), 0);
    let entry = labels.value(3);
    assert_eq!(entry.column(0).as_string::<i32>().value(0), "path");
    assert_eq!(entry.column(1).as_string::<i32>().value(0), "/\u{1f980}");
    let threads = rows.column_by_name("thread").unwrap();
    assert_eq!(threads.as_string::<i32>().value(0), "netpoll");
}

#[test]
fn unknown_labels_are_null_whether_missing_or_empty() {
    let mut batch = batch(fixture::one_process());
    let labels = &mut batch.targets[0].labels;
    labels.insert(label::POD, String::new());
    let (batches, _) = read(&batch);
    for column in ["pod", "namespace"] {
        let column = batches[0].column_by_name(column).unwrap();
        assert_eq!(column.null_count(), column.len());
    }
}

#[test]
fn hostile_names_and_figures_round_trip() {
    let mut batch = batch(fixture::one_process());
    let nasty = "a\0b\"';--\n\u{202e}\u{fffd}{}[]";
    let huge = "x".repeat(2 << 20);
    batch.window.functions[0].name = nasty.to_owned();
    batch.window.functions[1].name = huge.clone();
    batch.window.functions[1].file = huge.clone();
    batch.window.samples[0].values = [i64::MAX; 4];
    batch.window.samples[0].labels = vec![(String::new(), huge.clone())];
    batch.window.period = u64::MAX;
    batch.window.duration = std::time::Duration::MAX;
    batch.window.start = SystemTime::UNIX_EPOCH - std::time::Duration::from_secs(9);
    batch.targets[0].labels.insert(label::EXE, nasty.to_owned());
    for line in &mut batch.window.locations[0].lines {
        line.line = u32::MAX;
    }
    let (batches, _) = read(&batch);
    let functions = texts(&batches[0], "functions");
    assert!(functions.iter().flatten().any(|name| name == nasty));
    assert!(functions.iter().flatten().any(|name| *name == huge));
    assert!(counts(&batches[0], "value").contains(&i64::MAX));
    let sources = texts(&batches[0], "sources");
    let last = format!("/src/main.go:{}", u32::MAX);
    assert!(sources.iter().flatten().any(|source| *source == last));
}

#[test]
fn an_empty_window_is_an_object_without_rows() {
    let (batches, metadata) = read(&batch(fixture::Builder::new().build()));
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 0);
    assert_eq!(metadata.file_metadata().num_rows(), 0);
}

#[test]
fn many_rows_are_several_batches_and_stay_in_order() {
    let mut window = fixture::one_process();
    let sample = window.samples[0].clone();
    window.samples = (0..5_000)
        .map(|goid| {
            let mut sample = sample.clone();
            sample.goid = Some(goid);
            sample
        })
        .collect();
    let (batches, _) = read(&batch(window));
    let goids: Vec<i64> = batches.iter().flat_map(|b| counts(b, "goid")).collect();
    assert_eq!(goids, (0..5_000).collect::<Vec<_>>());
}

#[test]
fn the_same_batch_gives_the_same_bytes() {
    let batch = batch(fixture::two_processes());
    let bytes = || encode(&batch, &origin()).unwrap();
    assert_eq!(bytes(), bytes());
}

#[test]
fn a_batch_that_does_not_fit_together_is_refused() {
    let mut batch = batch(fixture::two_processes());
    batch.targets.pop();
    let error = encode(&batch, &origin()).unwrap_err().to_string();
    assert_eq!(error, "1 targets for 2 processes");
}

#[test]
fn no_two_columns_have_the_same_name() {
    let schema = columns::schema();
    // Engines that ignore case take those for the same too.
    let names: std::collections::BTreeSet<String> = schema
        .fields()
        .iter()
        .map(|field| field.name().to_lowercase())
        .collect();
    assert_eq!(names.len(), schema.fields().len());
}
