//! Columns: the schema, and rows into Arrow's builders.

use std::borrow::Cow;
use std::sync::Arc;

use anyhow::Result;
use arrow_array::builder::{
    BooleanBuilder, Int64Builder, ListBuilder, MapBuilder, MapFieldNames, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Fields, Schema, TimeUnit};

use super::super::Batch;
use super::rows::Row;
use super::{nanos, period_ns};
use crate::identity::label;
use crate::symbolize::{FrameKind, Line, Location, LocationId, SymbolizedWindow};

/// The columns that a target's labels fill. Cluster and node are in the key.
const TARGET_LABELS: [&str; 11] = [
    label::SERVICE_NAME,
    label::NAMESPACE,
    label::POD,
    label::CONTAINER,
    label::CONTAINER_ID,
    label::UNIT,
    label::EXE,
    label::BUILD_ID,
    label::GO_VERSION,
    label::MODULE,
    label::MODULE_VERSION,
];

/// The columns that rows are sorted by, the first ones first.
pub(super) const SORTED_BY: [&str; 3] = [label::SERVICE_NAME, label::EXE, label::BUILD_ID];

/// The columns of frames: lists of the same length in each row.
pub(super) const LISTS: [&str; 4] = ["functions", "sources", "kinds", "inlined"];

/// The schema of objects.
pub(super) fn schema() -> Schema {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let required = |name: &str, kind: DataType| Field::new(name, kind, false);
    let optional = |name: &str, kind: DataType| Field::new(name, kind, true);
    let mut fields = vec![
        required("event", DataType::Utf8),
        required("value_unit", DataType::Utf8),
        required("time", utc),
        required("duration_ns", DataType::Int64),
        required("period_ns", DataType::Int64),
    ];
    fields.extend(TARGET_LABELS.map(|name| optional(name, DataType::Utf8)));
    fields.extend([
        required("is_partial", DataType::Boolean),
        required("pid", DataType::Int64),
        required("comm", DataType::Utf8),
        optional("tid", DataType::Int64),
        optional("thread", DataType::Utf8),
        optional("goid", DataType::Int64),
        required("count", DataType::Int64),
        required("value", DataType::Int64),
    ]);
    let entries = Fields::from(vec![
        required("key", DataType::Utf8),
        required("value", DataType::Utf8),
    ]);
    let entries = required("key_value", DataType::Struct(entries));
    fields.push(required("labels", DataType::Map(Arc::new(entries), false)));
    fields.extend(LISTS.map(|name| {
        let element = match name {
            "inlined" => DataType::Boolean,
            _ => DataType::Utf8,
        };
        required(name, DataType::List(Arc::new(element_of(element))))
    }));
    Schema::new(fields)
}

fn element_of(kind: DataType) -> Field {
    Field::new("element", kind, false)
}

/// Rows on their way to columns, in the order of [`schema`].
pub(super) struct Columns {
    event: StringBuilder,
    value_unit: StringBuilder,
    time: TimestampMicrosecondBuilder,
    duration: Int64Builder,
    period: Int64Builder,
    targets: [StringBuilder; TARGET_LABELS.len()],
    is_partial: BooleanBuilder,
    whose: Whose,
    count: Int64Builder,
    value: Int64Builder,
    labels: MapBuilder<StringBuilder, StringBuilder>,
    stack: Stack,
}

/// Process, thread and goroutine.
#[derive(Default)]
struct Whose {
    pid: Int64Builder,
    comm: StringBuilder,
    tid: Int64Builder,
    thread: StringBuilder,
    goid: Int64Builder,
}

/// The frames, outermost first.
struct Stack {
    functions: ListBuilder<StringBuilder>,
    sources: ListBuilder<StringBuilder>,
    kinds: ListBuilder<StringBuilder>,
    inlined: ListBuilder<BooleanBuilder>,
}

impl Default for Columns {
    fn default() -> Self {
        let names = MapFieldNames {
            entry: "key_value".to_owned(),
            key: "key".to_owned(),
            value: "value".to_owned(),
        };
        let labels = MapBuilder::new(Some(names), StringBuilder::new(), StringBuilder::new());
        Columns {
            event: StringBuilder::new(),
            value_unit: StringBuilder::new(),
            time: TimestampMicrosecondBuilder::new().with_timezone("UTC"),
            duration: Int64Builder::new(),
            period: Int64Builder::new(),
            targets: std::array::from_fn(|_| StringBuilder::new()),
            is_partial: BooleanBuilder::new(),
            whose: Whose::default(),
            count: Int64Builder::new(),
            value: Int64Builder::new(),
            labels: labels.with_values_field(Field::new("value", DataType::Utf8, false)),
            stack: Stack::new(),
        }
    }
}

impl Columns {
    /// Adds a row of a batch whose indices are in range.
    pub(super) fn push(&mut self, batch: &Batch, row: &Row<'_>) {
        let (window, sample) = (&batch.window, row.sample);
        let process = sample.process.0 as usize;
        let target = &batch.targets[process];
        self.event.append_value(window.event.name());
        let (count, value) = window.event.stored();
        let unit = window.event.value_types()[value].unit;
        self.value_unit.append_value(unit);
        self.time.append_value(nanos(window.start) / 1_000);
        let duration = i64::try_from(window.duration.as_nanos()).unwrap_or(i64::MAX);
        self.duration.append_value(duration);
        self.period.append_value(period_ns(window));
        for (column, name) in self.targets.iter_mut().zip(TARGET_LABELS) {
            // Missing and empty are one, so that the declared order holds.
            column.append_option(Some(target.label(name)).filter(|text| !text.is_empty()));
        }
        self.is_partial.append_value(target.is_partial);
        self.whose.push(window, row);
        self.count.append_value(row.values[count]);
        self.value.append_value(row.values[value]);
        for (key, value) in &sample.labels {
            self.labels.keys().append_value(key);
            self.labels.values().append_value(value);
        }
        // Keys and values have the same length by now.
        let _ = self.labels.append(true);
        self.stack.push(window, &sample.stack);
    }

    /// The columns as they are written.
    pub(super) fn finish(mut self, schema: Arc<Schema>) -> Result<RecordBatch> {
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.event.finish()),
            Arc::new(self.value_unit.finish()),
            Arc::new(self.time.finish()),
            Arc::new(self.duration.finish()),
            Arc::new(self.period.finish()),
        ];
        for target in &mut self.targets {
            columns.push(Arc::new(target.finish()));
        }
        columns.push(Arc::new(self.is_partial.finish()));
        let whose = &mut self.whose;
        let rest: [ArrayRef; 12] = [
            Arc::new(whose.pid.finish()),
            Arc::new(whose.comm.finish()),
            Arc::new(whose.tid.finish()),
            Arc::new(whose.thread.finish()),
            Arc::new(whose.goid.finish()),
            Arc::new(self.count.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.labels.finish()),
            Arc::new(self.stack.functions.finish()),
            Arc::new(self.stack.sources.finish()),
            Arc::new(self.stack.kinds.finish()),
            Arc::new(self.stack.inlined.finish()),
        ];
        columns.extend(rest);
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

impl Whose {
    fn push(&mut self, window: &SymbolizedWindow, row: &Row<'_>) {
        let sample = row.sample;
        let process = &window.processes[sample.process.0 as usize];
        self.pid.append_value(process.pid.into());
        self.comm.append_value(&process.comm);
        let thread = sample.thread.as_ref();
        self.tid
            .append_option(thread.map(|thread| thread.tid.into()));
        self.thread.append_option(thread.map(|thread| &thread.name));
        self.goid.append_option(sample.goid.map(clamp));
    }
}

impl Stack {
    fn new() -> Self {
        let texts =
            || ListBuilder::new(StringBuilder::new()).with_field(element_of(DataType::Utf8));
        Stack {
            functions: texts(),
            sources: texts(),
            kinds: texts(),
            inlined: ListBuilder::new(BooleanBuilder::new())
                .with_field(element_of(DataType::Boolean)),
        }
    }

    /// Adds a stack, leaf first.
    fn push(&mut self, window: &SymbolizedWindow, stack: &[LocationId]) {
        for id in stack.iter().rev() {
            let location = &window.locations[id.0 as usize];
            // The last is the function that holds the code.
            let physical = location.lines.len() - 1;
            for (i, line) in location.lines.iter().enumerate().rev() {
                let function = &window.functions[line.function.0 as usize];
                self.functions.values().append_value(&function.name);
                let source = source(window, location, line);
                self.sources.values().append_value(source);
                self.kinds.values().append_value(kind_name(location.kind));
                self.inlined.values().append_value(i < physical);
            }
        }
        self.functions.append(true);
        self.sources.append(true);
        self.kinds.append(true);
        self.inlined.append(true);
    }
}

/// Where a frame's code comes from: `file:line`, the file where the line is not
/// known, the mapped file where the source is not known, or nothing.
fn source<'w>(window: &'w SymbolizedWindow, location: &Location, line: &Line) -> Cow<'w, str> {
    match source_parts(window, location, line) {
        (file, 0) => Cow::Borrowed(file),
        (file, line) => Cow::Owned(format!("{file}:{line}")),
    }
}

/// The same in its two parts, a line of 0 for none.
pub(super) fn source_parts<'w>(
    window: &'w SymbolizedWindow,
    location: &Location,
    line: &Line,
) -> (&'w str, u32) {
    let file = window.functions[line.function.0 as usize].file.as_str();
    match (file, location.mapping) {
        ("", None) => ("", 0),
        ("", Some(mapping)) => (&window.mappings[mapping.0 as usize].file, 0),
        (file, _) => (file, line.line),
    }
}

/// The kind of a frame as the store has it.
fn kind_name(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Go => "go",
        FrameKind::Native => "native",
        FrameKind::Kernel => "kernel",
    }
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
