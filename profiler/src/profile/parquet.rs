//! Parquet: the windows of a node as one object that SQL engines read as it
//! stands, one row for each distinct stack of a process. `docs/store.md`
//! describes the schema and why it is so; nothing here does I/O.

mod columns;
mod rows;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use arrow_schema::Schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{Batch, check, generator};
use crate::symbolize::SymbolizedWindow;
use columns::Columns;
use rows::{Row, Rows};

/// The schema's number, in each object's metadata. It grows when a column
/// changes its meaning or goes; new columns leave it.
pub const SCHEMA_VERSION: u32 = 1;

/// Frames that are turned into columns at once, which bounds the memory for it.
const FRAMES_AT_ONCE: usize = 4_096;
/// Most rows of a row group.
const ROW_GROUP_ROWS: usize = 65_536;
/// Where pages of frames end, as memory allows: repetition is found within a page
/// alone, and beyond a mebibyte there is little more of it.
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 20;
/// How much memory a page is worth, in bytes for each of its own: as it is, compressed,
/// and with the compressor's tables.
const BYTES_PER_PAGE_BYTE: usize = 32;
/// With how many frames a row group ends, as memory allows: the writer holds an index
/// and the levels of each, and what is found in one group is not in the next.
const ROW_GROUP_FRAMES: std::ops::RangeInclusive<usize> = 16 << 10..=1 << 20;
/// How much memory a frame of a row group is worth.
const BYTES_PER_FRAME: usize = 96;
/// A level beyond which sizes hardly shrink and time grows (docs/store.md).
const ZSTD_LEVEL: i32 = 9;

/// Where an object comes from: its metadata besides the rows.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The cluster's name; may be empty.
    pub cluster: String,
    /// The node's name.
    pub node: String,
    /// The object's ULID, as in its key.
    pub ulid: String,
    /// Samples that are in no row, by reason, as [`crate::session::Tally::lost`]
    /// has them.
    pub lost: Vec<(u64, &'static str)>,
}

/// Of the memory that a window may take while it is written, what is to be left for
/// [`encode_within`], and the rest.
pub fn share_out(bytes: usize) -> (usize, usize) {
    let writer = bytes / 8 * 3;
    (writer, bytes - writer)
}

/// Encodes a window and who its processes are as a Parquet object. The same
/// input gives the same bytes.
///
/// # Errors
/// When the window's tables do not fit together, when it has not one target for
/// each process, or the encoder fails.
pub fn encode(batch: &Batch, origin: &Origin) -> Result<Vec<u8>> {
    encode_within(batch, origin, usize::MAX)
}

/// The same in about so much memory beside the batch and the object.
///
/// # Errors
/// As of [`encode`].
pub fn encode_within(batch: &Batch, origin: &Origin, memory_bytes: usize) -> Result<Vec<u8>> {
    let within = |bytes: usize, range: std::ops::RangeInclusive<usize>| {
        (memory_bytes / bytes).clamp(*range.start(), *range.end())
    };
    // The compressor's tables take a step at each power of two.
    let page_bytes = 1 << within(BYTES_PER_PAGE_BYTE, PAGE_BYTES).ilog2();
    let most_frames = within(BYTES_PER_FRAME, ROW_GROUP_FRAMES);
    check(&batch.window)?;
    ensure!(
        batch.targets.len() == batch.window.processes.len(),
        "{} targets for {} processes",
        batch.targets.len(),
        batch.window.processes.len()
    );
    let rows = Rows::new(batch);
    let schema = Arc::new(columns::schema());
    let options = ArrowWriterOptions::new()
        .with_properties(properties(batch, origin, &schema, page_bytes)?)
        // Readers need no Arrow types, and it would be a tenth of small objects.
        .with_skip_arrow_metadata(true)
        .with_schema_root("goprof".to_owned());
    let mut writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(&schema), options)
        .context("begin the Parquet object")?;
    let (mut rest, mut frames_in_group) = (rows.sorted(), 0);
    while !rest.is_empty() {
        let (count, frames) = some_rows(&batch.window, rest);
        let (some, others) = rest.split_at(count);
        rest = others;
        let mut columns = Columns::default();
        for row in some {
            columns.push(batch, row);
        }
        let columns = columns.finish(Arc::clone(&schema));
        let columns = columns.context("build the columns")?;
        writer.write(&columns).context("encode the columns")?;
        frames_in_group += frames;
        if frames_in_group >= most_frames {
            writer.flush().context("end a row group")?;
            frames_in_group = 0;
        }
    }
    writer.into_inner().context("finish the Parquet object")
}

/// How many of the rows to turn into columns at once, and how many frames they have.
fn some_rows(window: &SymbolizedWindow, rows: &[Row<'_>]) -> (usize, usize) {
    let mut frames = 0;
    for (index, row) in rows.iter().enumerate() {
        let ids = row.sample.stack.iter();
        let lines = ids.map(|id| window.locations[id.0 as usize].lines.len());
        frames += 1 + lines.sum::<usize>();
        if frames >= FRAMES_AT_ONCE {
            return (index + 1, frames);
        }
    }
    (rows.len(), frames)
}

fn properties(
    batch: &Batch,
    origin: &Origin,
    schema: &Schema,
    page_bytes: usize,
) -> Result<WriterProperties> {
    let zstd = ZstdLevel::try_new(ZSTD_LEVEL).context("the compression level")?;
    let mut builder = WriterProperties::builder()
        .set_created_by(generator())
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        // Objects are small: what pages hold is not worth an index of its own.
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_offset_index_disabled(true)
        .set_sorting_columns(Some(sorting(schema)?))
        .set_key_value_metadata(Some(metadata(batch, origin)));
    let element = |column: &str| {
        let parts = [column, "list", "element"];
        ColumnPath::from(parts.map(str::to_owned).to_vec())
    };
    for column in columns::LISTS {
        builder = builder
            // The least and greatest of all frames' names say nothing.
            .set_column_statistics_enabled(element(column), EnabledStatistics::None)
            .set_column_dictionary_page_size_limit(element(column), page_bytes)
            .set_column_data_page_size_limit(element(column), page_bytes);
    }
    // Sources repeat with their neighbours: as bytes that do, not as indices of
    // odd widths that do not.
    builder = builder
        .set_column_dictionary_enabled(element("sources"), false)
        .set_column_encoding(element("sources"), Encoding::PLAIN);
    Ok(builder.build())
}

/// The columns that rows are sorted by first, as far as Parquet can say so:
/// stacks come next.
fn sorting(schema: &Schema) -> Result<Vec<SortingColumn>> {
    columns::SORTED_BY
        .iter()
        .map(|name| {
            let index = schema.index_of(name).context("a sorted column")?;
            Ok(SortingColumn {
                // Columns before the lists and maps: one leaf each.
                column_idx: i32::try_from(index)?,
                descending: false,
                nulls_first: true,
            })
        })
        .collect()
}

fn metadata(batch: &Batch, origin: &Origin) -> Vec<KeyValue> {
    let window = &batch.window;
    let start = nanos(window.start).to_string();
    let mut pairs = vec![
        ("goprof.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("goprof.schema_version", SCHEMA_VERSION.to_string()),
        ("goprof.cluster", origin.cluster.clone()),
        ("goprof.node", origin.node.clone()),
        ("goprof.ulid", origin.ulid.clone()),
        ("goprof.event", window.event.name().to_owned()),
        ("goprof.start_ns", start),
        ("goprof.duration_ns", window.duration.as_nanos().to_string()),
        ("goprof.period_ns", period_ns(window).to_string()),
    ];
    let lost: u64 = origin.lost.iter().map(|(count, _)| count).sum();
    pairs.push(("goprof.lost", lost.to_string()));
    let pair = |key: String, value: String| KeyValue::new(key, value);
    let pairs = pairs
        .into_iter()
        .map(|(key, value)| pair(key.into(), value));
    let reasons = origin.lost.iter();
    let reasons =
        reasons.map(|(count, why)| pair(format!("goprof.lost: {why}"), count.to_string()));
    pairs.chain(reasons).collect()
}

/// What one sample stands for in nanoseconds, 0 where it is no time.
fn period_ns(window: &SymbolizedWindow) -> i64 {
    match window.event.period_type().unit {
        "nanoseconds" => i64::try_from(window.period).unwrap_or(i64::MAX),
        _ => 0,
    }
}

/// Nanoseconds since 1970, within what the format can hold.
fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
