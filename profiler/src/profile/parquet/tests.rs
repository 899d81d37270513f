//! Objects read back by the crate's own reader, and what hostile or empty
//! windows become. Other engines read them in `tests/store.rs`.

use std::collections::BTreeMap;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array as _, RecordBatch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::ParquetMetaData;

use super::super::fixture;
use super::*;
use crate::identity::{Target, label};
use crate::symbolize::SymbolizedWindow;

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
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(bytes)).unwrap();
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
        texts(rows, "files")[1],
        ["/src/main.go", "/src/main.go", "/src/hot.go"]
    );
    assert_eq!(texts(rows, "kinds")[2], ["go", "native", "kernel"]);
    assert_eq!(
        texts(rows, "mappings")[2],
        ["/srv/app", "/lib/libc.so.6", "[kernel]"]
    );
}
