//! Judges of requests to block devices: devices that take a known time for each, as
//! many and as large as the program makes them and as the kernel counts.

use anyhow::{Context, Result, ensure};

use super::super::console::{Section, stacks};
use super::cpu::sum;

/// A device that is done with a request 5 ms after it got it, by a timer.
pub const DELAYED: [&str; 1] =
    ["null_blk irqmode=2 completion_nsec=5000000 nr_devices=1 gb=1 memory_backed=1 cache_size=64"];
const DELAY_MS: f64 = 5.0;

/// Whatever is larger than 64 KB is several requests; what is next to each other is
/// one up to there.
pub const SMALL_REQUESTS: &str = "echo 64 >/sys/block/nullb0/queue/max_sectors_kb";
const MOST_BYTES: u64 = 64 << 10;

/// A disk that takes 2 ms, and sends every third request back as it is busy.
pub const BUSY: [&str; 2] = [
    "sd_mod",
    "scsi_debug dev_size_mb=64 ndelay=2000000 every_nth=3 opts=0x8000",
];
/// A disk that takes 2 ms, and does the half of every third request only.
pub const SHORT: [&str; 2] = [
    "sd_mod",
    "scsi_debug dev_size_mb=64 ndelay=2000000 every_nth=3 opts=0x100",
];
/// It is there a moment after its module.
pub const WAIT_FOR_DISK: &str = "wait_for /dev/sda";

/// What block_io is told to do.
const READS: u64 = 200;
const WRITES: u64 = 100;
const READ_BYTES: u64 = 4096;
const WRITE_BYTES: u64 = 16384;
const FLUSHES: u64 = 20;

/// What the kernel counted of a device between two moments: requests, bytes and
/// milliseconds, of reads and of writes (Documentation/block/stat.rst).
fn counted(section: &Section, device: &str) -> Result<[[u64; 3]; 2]> {
    let begin = format!("counted {device} ");
    let read = |line: &str| -> Option<Vec<u64>> {
        let numbers = line.strip_prefix(&begin)?.split_whitespace();
        numbers.map(|word| word.parse().ok()).collect()
    };
    let counts: Vec<Vec<u64>> = section.told.lines().filter_map(read).collect();
    let pair = counts.first().zip(counts.last());
    let (before, after) = pair.context("the kernel has no counts of the device")?;
    ensure!(after.len() >= 8 && counts.len() == 2, "counts of {device}");
    let of = |at: usize| after[at] - before[at];
    Ok([0, 4].map(|at| [of(at), of(at + 2) * 512, of(at + 3)]))
}

/// How many requests goprof says that the device had.
fn requests(section: &Section, device: &str) -> Result<u64> {
    let begin = format!("{device}: ");
    let mut lines = section.said.lines().map(str::trim);
    let words = lines.find_map(|line| line.strip_prefix(&begin));
    let count = words.and_then(|words| words.split(' ').next()?.parse().ok());
    count.with_context(|| {
        format!(
            "it says nothing of {device}'s requests: {}",
            section.said.trim()
        )
    })
}

/// How often the kernel ran no program, as one was under way on the CPU.
fn missed(section: &Section) -> u64 {
    let lines = section.said.lines().map(str::trim);
    let lines = lines.filter(|line| line.contains("that the kernel did not tell of a request"));
    let counts = lines.filter_map(|line| line.split(' ').next()?.parse::<u64>().ok());
    counts.sum()
}

/// How many requests took 16 ms or more: the kernel waits before it asks again.
fn slow(section: &Section, device: &str) -> Result<u64> {
    let begin = format!("{device} below ");
    let mut slow = 0;
    for line in section.said.lines() {
        let Some((below, count)) = line
            .trim()
            .strip_prefix(&begin)
            .and_then(|rest| rest.split_once(": "))
        else {
            continue;
        };
        if below.split_once(" ms").is_some_and(|(ms, _)| ms != "16") {
            slow += count.parse::<u64>().context("no count of requests")?;
        }
    }
    Ok(slow)
}

fn of(section: &Section, function: &str) -> u64 {
    sum(&stacks(&section.output), |stack| stack.has(function))
}

/// Requests and bytes are those that the kernel counts, but for those of which it did not
/// tell.
fn as_counted(section: &Section, device: &str) -> Result<String> {
    let [reads, writes] = counted(section, device)?;
    let (count, bytes) = (reads[0] + writes[0], reads[1] + writes[1]);
    let found = requests(section, device)?;
    let found_bytes = of(section, "main.main");
    let missed = missed(section);
    ensure!(
        missed * 5 <= count,
        "it was not told of {missed} of {count}"
    );
    let is_near = |found: u64, all: u64, least: u64| found <= all && found + missed * least >= all;
    ensure!(
        is_near(found, count, 1) && is_near(found_bytes, bytes, MOST_BYTES),
        "{found} requests of {count}, {found_bytes} bytes of {bytes}; {}",
        section.said.trim()
    );
    Ok(format!(
        "{found} requests of {count} ({missed} times not told), {found_bytes} bytes of {bytes}"
    ))
}

/// Each request takes what the device takes.
pub fn latency(section: &Section) -> Result<String> {
    let mut seen = Vec::new();
    for (function, count) in [("main.readsAll", READS), ("main.writesAll", WRITES)] {
        #[expect(clippy::cast_precision_loss, reason = "some seconds in nanoseconds")]
        let each_ms = of(section, function) as f64 / count as f64 / 1e6;
        ensure!(
            (DELAY_MS..=DELAY_MS * 2.0).contains(&each_ms),
            "{function}: {each_ms:.2} ms each, not {DELAY_MS}; {}",
            section.said.trim()
        );
        seen.push(format!("{function} {each_ms:.2} ms each"));
    }
    // What the kernel counts has the time before the driver got it, too.
    let [reads, writes] = counted(section, "nullb0")?;
    let (found_ms, truth_ms) = (of(section, "main.main") / 1_000_000, reads[2] + writes[2]);
    ensure!(
        found_ms <= truth_ms + truth_ms / 20 && found_ms * 4 >= truth_ms * 3,
        "{found_ms} ms of {truth_ms}; {}",
        section.said.trim()
    );
    Ok(format!(
        "{}, of {DELAY_MS}; {found_ms} ms of {truth_ms}",
        seen.join(", ")
    ))
}

/// The bytes of each kind are those that were asked for, and in all those that the
/// kernel counts.
pub fn bytes(section: &Section) -> Result<String> {
    known_bytes(section)?;
    let found = requests(section, "nullb0")?;
    // Each flush comes behind a write.
    let due = READS + WRITES + 2 * FLUSHES;
    ensure!(found == due, "{found} requests of {due}");
    as_counted(section, "nullb0")
}

fn known_bytes(section: &Section) -> Result<()> {
    for (function, bytes) in [
        ("main.readsAll", READS * READ_BYTES),
        ("main.writesAll", WRITES * WRITE_BYTES),
    ] {
        let found = of(section, function);
        ensure!(
            found == bytes,
            "{function}: {found} bytes of {bytes}; {}",
            section.said.trim()
        );
    }
    Ok(())
}

/// 1024 pages through the cache each way, and eight times 1 MB past it.
pub fn merged_and_split(section: &Section) -> Result<String> {
    let seen = as_counted(section, "nullb0")?;
    let large = of(section, "main.largeAll");
    let least = (8 << 20) - missed(section) * MOST_BYTES;
    ensure!(
        (least..=8 << 20).contains(&large),
        "main.largeAll: {large} bytes of {}",
        8 << 20
    );
    for function in ["main.buffersAll", "main.streamsAll"] {
        let found = of(section, function);
        let least = (4 << 20) - missed(section) * MOST_BYTES;
        ensure!(
            found >= least * 9 / 10,
            "{function}: {found} bytes of {}",
            4 << 20
        );
    }
    let found = requests(section, "nullb0")?;
    // Unmerged, the pages alone would be 2048.
    let least = (16 << 20) / MOST_BYTES;
    ensure!(
        (least * 8 / 10..least * 2).contains(&found),
        "{found} requests, of which {least} would do"
    );
    Ok(seen)
}

/// What came back and was given to the device again is one request.
pub fn sent_back(section: &Section) -> Result<String> {
    known_bytes(section)?;
    let again = slow(section, "sda")?;
    ensure!(
        again >= (READS + WRITES) / 8,
        "only {again} requests took as long as those that come back"
    );
    Ok(format!(
        "{}, {again} of which came back",
        as_counted(section, "sda")?
    ))
}

/// So is what was done in parts.
pub fn in_parts(section: &Section) -> Result<String> {
    known_bytes(section)?;
    as_counted(section, "sda")
}
