//! Compares the store's size with that of gzipped pprof files, one for each
//! process, on profiles that `goprof record -a --no-goroutines` wrote: give it
//! the files of one length. Each is a window of its own, then all are one window
//! of a node with as many processes; `docs/store.md` has the figures.

#![expect(
    clippy::expect_used,
    reason = "a tool of the tests: a failure is a panic"
)]

use std::path::Path;
use std::time::Instant;

use goprof::profile::{self, Batch, Format, parquet};
use goprof::symbolize::ProcessId;
use goprof_tests::batch;
use goprof_tests::pprof::Profile;

fn main() {
    let batches: Vec<Batch> = std::env::args()
        .skip(1)
        .map(|path| batch::from_pprof(&Profile::read(Path::new(&path)).raw))
        .collect();
    for one in &batches {
        measure(one);
    }
    let mut node: Option<Batch> = None;
    for (i, one) in (1..).zip(batches) {
        let one = apart(one, i);
        node = Some(match node {
            None => one,
            Some(node) => batch::join(node, one),
        });
        if i > 1 {
            measure(node.as_ref().expect("just set"));
        }
    }
}

/// Prints the sizes of a window.
fn measure(batch: &Batch) {
    let window = &batch.window;
    let started = Instant::now();
    let object = parquet::encode(batch, &parquet::Origin::default()).expect("encode");
    let took = started.elapsed();
    let options = profile::Options::default();
    let processes = window.processes.len();
    let pprof: usize = (0..u32::try_from(processes).expect("few processes"))
        .map(|process| {
            let part = batch::of_process(window, ProcessId(process));
            profile::encode(&part, Format::Pprof, &options)
                .expect("encode")
                .len()
        })
        .sum();
    let samples: u64 = window
        .samples
        .iter()
        .map(|sample| sample.values[0].unsigned_abs())
        .sum();
    let hours = window.duration.as_secs_f64() / 3_600.0 * processes as f64;
    println!(
        "{processes} processes, {} s, {samples} samples, {} stacks: Parquet {} ({:.0} a process-hour), pprof {pprof} ({:.0}): 1/{:.2}, encoded in {took:?}",
        window.duration.as_secs(),
        window.samples.len(),
        object.len(),
        object.len() as f64 / hours,
        pprof as f64 / hours,
        pprof as f64 / object.len() as f64,
    );
}

/// The same with pids that no other batch has.
fn apart(mut batch: Batch, number: u32) -> Batch {
    for (process, target) in batch.window.processes.iter_mut().zip(&mut batch.targets) {
        process.pid = process.pid % 100_000 + number * 100_000;
        target.pid = process.pid;
        for name in [
            goprof::identity::label::POD,
            goprof::identity::label::CONTAINER_ID,
        ] {
            let value = target.labels.get_mut(name).expect("a label");
            // Other ids, as random as they were.
            let digit = |c: char| c.to_digit(16).map(|d| (d * 7 + number) % 16);
            let other = |c: char| digit(c).and_then(|d| char::from_digit(d, 16)).unwrap_or(c);
            *value = value.chars().map(other).collect();
        }
    }
    batch
}
