//! Push: a window as what receivers of profiles take, a request for each service
//! and part of its samples. Bounds are those of the receivers; what does not fit
//! is left out and counted. Sends nothing.

mod groups;
pub mod labels;
mod otlp;
mod otlp_messages;
mod requests;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use super::{Batch, Options, check, pprof, proto};
use crate::symbolize::{Event, SymbolizedWindow};
pub use labels::{Cut, Label};

/// Most samples in a profile; Pyroscope takes no more.
const MAX_SAMPLES: usize = 16_000;
/// Most bytes of a profile, not compressed. Pyroscope takes 4 MiB, and so much is
/// the largest request for most servers of gRPC, OTLP's among them.
const MAX_PROFILE_BYTES: usize = 3 << 20;
/// Most bytes of a request.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// Whom a profile is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Pyroscope's `push.v1.PusherService/Push`.
    Pyroscope,
    /// Parca's `ProfileStoreService/WriteRaw`.
    Parca,
    /// OpenTelemetry's `ProfilesService/Export`, which is not stable yet.
    Otlp,
}

impl Protocol {
    /// The name used in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Pyroscope => "pyroscope",
            Protocol::Parca => "parca",
            Protocol::Otlp => "otlp",
        }
    }

    /// Whether profiles go as pprof files.
    fn takes_pprof(self) -> bool {
        self != Protocol::Otlp
    }
}

/// What profiles are told apart by besides the window.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The cluster's name.
    pub cluster: String,
    /// Names of labels that receivers' configurations add: samples have none such.
    pub reserved: BTreeSet<String>,
}

/// A profile of one service, ready for any receiver.
pub struct Profile<'a> {
    labels: &'a [Label],
    event: Event,
    message: proto::Profile,
    window: SymbolizedWindow,
    /// The message as a file, once somebody wants it.
    file: Option<Vec<u8>>,
}

/// What could not be sent as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Losses {
    /// Samples whose labels did not all fit.
    pub cut: Cut,
    /// Profiles of a single sample too large for every receiver.
    pub too_large: u64,
}

/// Calls `each` with every profile of a window.
///
/// # Errors
/// The window's tables do not fit together, or there is not one target for each
/// process; or what `each` says.
pub fn profiles(
    batch: &Batch,
    settings: &Settings,
    mut each: impl FnMut(&mut Profile<'_>) -> Result<()>,
) -> Result<Losses> {
    check(&batch.window)?;
    let (targets, processes) = (batch.targets.len(), batch.window.processes.len());
    anyhow::ensure!(
        targets == processes,
        "{targets} targets for {processes} processes"
    );
    let mut losses = Losses::default();
    for (labels, members) in groups::members(batch, &settings.cluster) {
        let (window, reserved) = (&batch.window, &settings.reserved);
        let group = groups::group(window, labels, &members, reserved, &mut losses.cut);
        let mut parts: VecDeque<_> = group.samples.chunks(MAX_SAMPLES).collect();
        let mut number = 0;
        while let Some(samples) = parts.pop_front() {
            let mut window = group.window(&batch.window, samples);
            // Lest a part is taken for another one that was sent twice.
            window.start += Duration::from_millis(number);
            let message = pprof::profile(&window, &Options::default());
            if message.encoded_len() > MAX_PROFILE_BYTES {
                if samples.len() == 1 {
                    losses.too_large += 1;
                } else {
                    let (first, second) = samples.split_at(samples.len() / 2);
                    parts.push_front(second);
                    parts.push_front(first);
                }
                continue;
            }
            number += 1;
            each(&mut Profile {
                labels: &group.labels,
                event: window.event,
                message,
                window,
                file: None,
            })?;
        }
    }
    Ok(losses)
}

impl Profile<'_> {
    /// When it began, and an id for it that is nobody else's.
    pub fn new_id(&self) -> Ulid {
        Ulid::from_datetime(self.window.start.max(SystemTime::UNIX_EPOCH))
    }

    /// The request that hands it over, with more labels, which go before its own
    /// of the same name.
    ///
    /// # Errors
    /// The compressor fails.
    pub fn request(&mut self, protocol: Protocol, more: &[Label], id: Ulid) -> Result<Vec<u8>> {
        let name = self.event.series_name();
        let given = |name: &str| more.iter().any(|(given, _)| given == name);
        let own = self.labels.iter().filter(|(name, _)| !given(name));
        let labels: Vec<&Label> = own.chain(more).collect();
        if self.file.is_none() && protocol.takes_pprof() {
            self.file = Some(pprof::compress(&self.message)?);
        }
        let file = || self.file.clone().unwrap_or_default();
        Ok(match protocol {
            Protocol::Pyroscope => requests::pyroscope(name, &labels, id.0, file()),
            Protocol::Parca => requests::parca(name, &labels, file()),
            Protocol::Otlp => otlp::request(&self.message, &self.window, &labels, id.0),
        })
    }
}
