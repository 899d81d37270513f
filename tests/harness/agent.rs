//! Running `goprof agent` as an operator does, and reading what it stored.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Int64Type, TimestampMicrosecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::command::{Outcome, Running};
use crate::{goprof, http};

const LIMIT: Duration = Duration::from_secs(10);

/// An agent with a store, a spool and a port of its own.
pub struct Agent {
    running: Running,
    /// Where it answers, without a slash at the end.
    pub url: String,
}

/// A row of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Process id.
    pub pid: i64,
    /// What the service is called.
    pub service: String,
    /// What was sampled.
    pub event: String,
    /// How many samples.
    pub count: i64,
    /// What they are worth, in the event's unit.
    pub value: i64,
    /// The functions, leaf first.
    pub functions: Vec<String>,
    /// When its window began, and how long that was.
    pub start_ns: i64,
    /// See `start_ns`.
    pub duration_ns: i64,
}

impl Agent {
    /// Starts an agent that keeps everything in `dir`, and waits until it
    /// samples.
    #[track_caller]
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_with(dir, args, |_| {})
    }

    /// The same, with more said about the command.
    #[track_caller]
    pub fn start_with(dir: &Path, args: &[&str], more: impl FnOnce(&mut Command)) -> Self {
        let agent = Self::spawn_with("127.0.0.1", dir, args, more);
        agent.wait_until_ready();
        agent
    }

    /// Waits until it samples; for one without TLS.
    #[track_caller]
    pub fn wait_until_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let ready = format!("{}/readyz", self.url);
        while let Err(error) = http::request("GET", &ready, b"", LIMIT) {
            assert!(Instant::now() < deadline, "the agent is not ready: {error}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Starts an agent and waits for nothing.
    #[track_caller]
    pub fn spawn(dir: &Path, args: &[&str]) -> Self {
        Self::spawn_at("127.0.0.1", dir, args)
    }

    /// Starts an agent that listens at an address, and waits for nothing.
    #[track_caller]
    pub fn spawn_at(address: &str, dir: &Path, args: &[&str]) -> Self {
        Self::spawn_with(address, dir, args, |_| {})
    }

    #[track_caller]
    fn spawn_with(
        address: &str,
        dir: &Path,
        args: &[&str],
        more: impl FnOnce(&mut Command),
    ) -> Self {
        let port = free_port();
        let listen = format!("{address}:{port}");
        let (store, spool) = (store(dir), dir.join("spool"));
        let mut all = vec!["agent", "--listen", &listen];
        all.extend(["--store", text(&store), "--spool", text(&spool)]);
        all.extend(args);
        let mut command = goprof::command(&all);
        more(&mut command);
        Agent {
            running: goprof::start_command(&mut command),
            url: format!("http://127.0.0.1:{port}"),
        }
    }

    /// What it answers.
    #[track_caller]
    pub fn get(&self, path: &str) -> String {
        let body = http::get(&format!("{}{path}", self.url));
        String::from_utf8(body).expect("an answer in UTF-8")
    }

    /// The value of a metric by its name and labels as they are written.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        value(&text, name).unwrap_or_else(|| panic!("no metric {name}\n{text}"))
    }

    /// Waits until a metric is at least `value`.
    #[track_caller]
    pub fn wait_for(&self, name: &str, value: f64, limit: Duration) {
        let deadline = Instant::now() + limit;
        while self.metric(name) < value {
            assert!(Instant::now() < deadline, "{name} never got to {value}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The same for a metric that may not be there yet.
    #[track_caller]
    pub fn wait_for_any(&self, name: &str, least: f64, limit: Duration) {
        let deadline = Instant::now() + limit;
        while value(&self.get("/metrics"), name).is_none_or(|value| value < least) {
            assert!(Instant::now() < deadline, "{name} never got to {least}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Sends a signal by its number.
    pub fn signal(&self, signal: i32) {
        self.running.signal(signal);
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.running.is_running()
    }

    /// Ends it as a service manager does.
    #[track_caller]
    pub fn stop(self) -> Outcome {
        self.running.signal(libc::SIGTERM);
        self.running.finish(Duration::from_secs(10))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Outcome {
        self.running.finish(Duration::from_secs(30))
    }
}

/// The value of a metric in the text of all, by its name and labels.
fn value(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| {
        let (found, value) = line.rsplit_once(' ')?;
        (found == name).then(|| value.parse::<f64>().ok())?
    })
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A port nobody listens on now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("find a free port");
    listener.local_addr().expect("its address").port()
}

/// Where an agent that keeps everything in `dir` has its store.
pub fn store(dir: &Path) -> PathBuf {
    dir.join("store")
}

/// Every file below a folder.
#[track_caller]
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let path = entry.expect("read a directory").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// An object of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Where it is.
    pub path: PathBuf,
    /// When its window began, in nanoseconds since 1970.
    pub start_ns: i64,
    /// How long its window was.
    pub duration_ns: i64,
    /// How many samples it has.
    pub samples: i64,
}

/// Every object of the store. Panics where one is not whole.
#[track_caller]
pub fn objects(dir: &Path) -> Vec<Object> {
    let files = files(&store(dir));
    let objects = files
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "parquet"));
    objects.map(|path| object(path)).collect()
}

/// An object. Panics where it is not whole.
#[track_caller]
pub fn object(path: &Path) -> Object {
    let file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let metadata = reader.metadata().file_metadata().key_value_metadata();
    let number = |key: &str| {
        let pair = metadata.and_then(|pairs| pairs.iter().find(|pair| pair.key == key));
        let value = pair.and_then(|pair| pair.value.as_deref()?.parse().ok());
        value.unwrap_or_else(|| panic!("{}: no {key}", path.display()))
    };
    Object {
        path: path.to_owned(),
        start_ns: number("goprof.start_ns"),
        duration_ns: number("goprof.duration_ns"),
        samples: read(path).iter().map(|row| row.count).sum(),
    }
}

/// The rows of every object of the store. Panics where one is not whole.
#[track_caller]
pub fn rows(dir: &Path) -> Vec<Row> {
    files(&store(dir))
        .iter()
        .flat_map(|path| read(path))
        .collect()
}

fn read(path: &Path) -> Vec<Row> {
    let whole = |error: &dyn std::fmt::Display| -> ! { panic!("{}: {error}", path.display()) };
    let file = File::open(path).unwrap_or_else(|e| whole(&e));
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap_or_else(|e| whole(&e));
    let mut rows = Vec::new();
    for batch in reader.build().unwrap_or_else(|e| whole(&e)) {
        let batch = batch.unwrap_or_else(|e| whole(&e));
        let column = |name: &str| {
            let column = batch.column_by_name(name);
            column.unwrap_or_else(|| panic!("{}: no column {name}", path.display()))
        };
        let pids = column("pid").as_primitive::<Int64Type>();
        let counts = column("count").as_primitive::<Int64Type>();
        let values = column("value").as_primitive::<Int64Type>();
        let events = column("event").as_string::<i32>();
        let durations = column("duration_ns").as_primitive::<Int64Type>();
        let starts = column("time").as_primitive::<TimestampMicrosecondType>();
        let services = column("service_name").as_string::<i32>();
        let functions = column("functions").as_list::<i32>();
        for index in 0..batch.num_rows() {
            let names = functions.value(index);
            let names = names.as_string::<i32>().iter().flatten();
            rows.push(Row {
                pid: pids.value(index),
                service: services.value(index).to_owned(),
                event: events.value(index).to_owned(),
                count: counts.value(index),
                value: values.value(index),
                functions: names.map(str::to_owned).collect(),
                start_ns: starts.value(index) * 1000,
                duration_ns: durations.value(index),
            });
        }
    }
    rows
}
