//! Lists of goroutines as `goprof goroutines -f json` wrote them, read back. Knows
//! only what two of them are compared by.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufReader,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// A list.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Saved {
    pub pid: u32,
    pub comm: String,
    pub exe: String,
    pub go_version: String,
    time_unix_ns: u64,
    pub groups: Vec<SavedGroup>,
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Goroutines with the same stack and labels.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct SavedGroup {
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub stack: Vec<SavedFrame>,
    pub goroutines: Vec<SavedGoroutine>,
}

/// A frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct SavedFrame {
    pub function: String,
    pub file: String,
    pub line: u32,
    #[serde(default)]
    pub inlined: bool,
}

/// A goroutine.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct SavedGoroutine {
    pub id: u64,
    state: String,
    #[serde(default)]
    wait_reason: String,
    #[serde(default)]
    pub created_by: Option<SavedFrame>,
}

impl Saved {
    /// Reads a list.
    ///
    /// # Errors
    /// It is not there, or is no such list.
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("cannot open {shown}"))?;
        serde_json::from_reader(BufReader::new(file))
            .with_context(|| format!("{shown} is no list as `goprof goroutines -f json` writes it"))
    }

    /// When it was taken.
    pub(super) fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.time_unix_ns)
    }

    pub(super) fn goroutines(&self) -> impl Iterator<Item = &SavedGoroutine> {
        self.groups.iter().flat_map(|group| &group.goroutines)
    }
}

impl SavedGoroutine {
    /// What it does or waits for, as Go's own tracebacks have it.
    pub(super) fn does(&self) -> &str {
        match self.state.as_str() {
            "waiting" if !self.wait_reason.is_empty() => &self.wait_reason,
            state => state,
        }
    }
}
