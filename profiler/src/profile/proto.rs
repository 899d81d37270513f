//! The messages of `profile.proto`, as far as goprof writes them. Field numbers
//! and meanings are those of github.com/google/pprof, `proto/profile.proto`
//! (package `perftools.profiles`), and hold nothing else.

/// A profile. Every `i64` called an index points into `string_table`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Profile {
    /// What the values of a sample mean, in their order.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// The samples.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// The mappings; the first is the main binary.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// The locations.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// The functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// Every string; the first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// When sampling began, in nanoseconds since the epoch.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// How long it went on, in nanoseconds.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// What the period counts.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// What one sample stands for, in the unit of `period_type`.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Indices of text for humans.
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// Index of the name of the sample type to show; the last where 0.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// A type of value and its unit.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ValueType {
    /// Index of the type, e.g. `cpu`.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// Index of the unit, e.g. `nanoseconds`.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// A stack with its values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sample {
    /// Ids of the locations, leaf first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One value per sample type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// What tells this sample from others of the same stack.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A label: a key with a string or a number.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Label {
    /// Index of the key.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Index of the value, for a string label.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// The value, for a numeric label.
    #[prost(int64, tag = "3")]
    pub num: i64,
    /// Index of the unit of `num`.
    #[prost(int64, tag = "4")]
    pub num_unit: i64,
}

/// A mapped executable.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Mapping {
    /// Its id, not zero.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// First address.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// Address past the last.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// Offset in the file of `memory_start`.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// Index of the file name.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// Index of the build id.
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Whether its locations have function names. Any of these four that is
    /// set keeps pprof from looking for the file on the reader's machine.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// Whether they have file names.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// Whether they have line numbers.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// Whether they have inlined frames.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// A code address.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Location {
    /// Its id, not zero.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Id of its mapping, zero for none.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// The address in the process.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// The source frames, leaf first; all but the last are inlined.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A source frame of a location.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Line {
    /// Id of the function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// The line, zero where unknown.
    #[prost(int64, tag = "2")]
    pub line: i64,
}

/// A function.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Function {
    /// Its id, not zero.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Index of the name for humans.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// Index of the name the linker knows; the same for Go.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// Index of the source file.
    #[prost(int64, tag = "4")]
    pub filename: i64,
    /// The line at which it begins, zero where unknown.
    #[prost(int64, tag = "5")]
    pub start_line: i64,
}
