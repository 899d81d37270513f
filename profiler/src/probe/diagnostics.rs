//! What the programs say in words (by aya-log): rare, and never the only trace
//! of a loss, which has its counter.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

/// Most lines kept between two reads.
const MAX_LINES: usize = 16;

/// The programs' lines.
pub(super) struct Diagnostics {
    logger: EbpfLogger<Lines>,
    lines: Lines,
}

impl Diagnostics {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let lines = Lines::default();
        let logger = EbpfLogger::init_with_logger(ebpf, lines.clone())
            .context("cannot read the programs' diagnostics")?;
        Ok(Self { logger, lines })
    }

    pub(super) fn read(&mut self) -> Vec<String> {
        self.logger.flush();
        let mut lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *lines)
    }
}

/// A logger that keeps the first few lines.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < MAX_LINES {
            lines.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}
