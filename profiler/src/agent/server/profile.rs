//! Profiles by HTTP: a session of its own for the processes asked for, and pprof
//! as the answer. Few at a time, and each for a bounded time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use axum::{
    extract::{Query, State as Shared, rejection::QueryRejection},
    http::{HeaderValue, StatusCode, Uri, header},
    response::Response,
};
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};

use super::{Served, answer as reply, plain};
use crate::{
    agent::{
        memory::Shares,
        snapshots::MAX_GOROUTINES,
        state::{ProcessView, View, lock},
    },
    identity::{label, text::clean},
    process::Selection,
    profile::{self, Format},
    session::{self, HeapSession, Session, SnapshotConfig, SnapshotSession, Stopped},
    symbolize::{Event, Symbolizer},
};

/// Most profiles taken at a time, beside the agent's own sampling.
const MAX_PROFILES: usize = 2;
/// Longest profile.
pub const MAX_SECONDS: u64 = 300;
/// How long where it is not said, as of Go's own endpoint.
const DEFAULT_SECONDS: u64 = 30;
const RATE_HZ: u32 = 99;
/// Most processes of a pod or service sampled together.
const MAX_PIDS: usize = 256;

/// What can be asked for.
const EVENTS: [Event; 10] = [
    Event::Cpu,
    Event::Heap,
    Event::Allocs,
    Event::Goroutine,
    Event::Wall,
    Event::OffCpu,
    Event::Io,
    Event::Mutex,
    Event::Block,
    Event::AllocEvents,
];
/// Snapshots a second of [`Event::Wall`].
const SNAPSHOTS_HZ: u32 = 19;

/// The profiles under way.
pub(super) struct Profiles(Arc<Semaphore>);

impl Profiles {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MAX_PROFILES)))
    }
}

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    pid: Option<u32>,
    pod: Option<String>,
    service: Option<String>,
    event: Option<String>,
    seconds: Option<u64>,
}

/// Answers with a profile.
pub(super) async fn answer(
    Shared(served): Shared<Served>,
    request: Result<Query<Request>, QueryRejection>,
) -> Response {
    let requests = &served.state.metrics.requests;
    let (result, response) = match take(&served, request).await {
        Ok(bytes) => {
            let mut response = reply(StatusCode::OK, "application/octet-stream", bytes);
            let name = HeaderValue::from_static("attachment; filename=\"profile.pb.gz\"");
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_DISPOSITION, name);
            ("success", response)
        }
        Err((StatusCode::INTERNAL_SERVER_ERROR, why)) => (
            "failure",
            plain(StatusCode::INTERNAL_SERVER_ERROR, &(why + "\n")),
        ),
        Err((status, why)) => ("refused", plain(status, &(why + "\n"))),
    };
    requests.with_label_values(&[result]).inc();
    response
}

type Refusal = (StatusCode, String);

async fn take(
    served: &Served,
    request: Result<Query<Request>, QueryRejection>,
) -> Result<Vec<u8>, Refusal> {
    let Asked {
        pids,
        event,
        duration,
    } = asked(request, &lock(&served.state.view))?;
    let Ok(permit) = Arc::clone(&served.profiles.0).try_acquire_owned() else {
        let why = format!("{MAX_PROFILES} profiles are being taken already: try again later");
        return Err((StatusCode::TOO_MANY_REQUESTS, why));
    };
    let (done, result) = oneshot::channel();
    // Dropped, and so noticed, when the client is gone.
    let (_asking, asked) = oneshot::channel::<()>();
    let memory = Shares::of(&served.state.config());
    let record = move || {
        let recorded = match event {
            Event::Cpu
            | Event::OffCpu
            | Event::Io
            | Event::Mutex
            | Event::Block
            | Event::AllocEvents => record(event, pids, (duration, memory), asked).map_err(failed),
            Event::Goroutine | Event::Wall => {
                record_goroutines(event, pids, (duration, memory.limit_bytes()), asked)
            }
            event => record_memory(event, pids, (duration, memory), asked),
        };
        drop(permit);
        let _ = done.send(recorded);
    };
    std::thread::Builder::new()
        .name("goprof-profile".into())
        .spawn(record)
        .map_err(|error| failed(error.into()))?;
    match result.await {
        Ok(recorded) => recorded,
        Err(_) => Err(failed(anyhow::anyhow!("the recording ended by itself"))),
    }
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Of which processes.
    pub pids: Vec<u32>,
    /// What.
    pub event: Event,
    /// For how long; zero of what is as it is.
    pub duration: Duration,
}

fn asked(request: Result<Query<Request>, QueryRejection>, view: &View) -> Result<Asked, Refusal> {
    let bad = |why: String| (StatusCode::BAD_REQUEST, why);
    let Query(request) = request.map_err(|why| bad(clean(why.body_text())))?;
    let event = event(&request).map_err(bad)?;
    let duration = duration(event, request.seconds).map_err(bad)?;
    let pids = wanted(view, &request)?;
    Ok(Asked {
        pids,
        event,
        duration,
    })
}

/// What a query of `/debug/goprof/profile` asks for where some Go processes run, the
/// first in the pod `pod-1` and of the service `service-1`, and so on.
///
/// # Errors
/// The status of the answer and what it says.
pub fn understand(query: &str, pids: &[u32]) -> Result<Asked, (u16, String)> {
    let processes = pids.iter().zip(1..).map(|(pid, number)| ProcessView {
        pid: *pid,
        labels: [
            (label::SERVICE_NAME, format!("service-{number}")),
            (label::POD, format!("pod-{number}")),
            (label::GO_VERSION, "go1.26".to_owned()),
        ]
        .into(),
        ..ProcessView::default()
    });
    let view = View {
        processes: processes.collect(),
        ..View::default()
    };
    let refused = |(status, why): Refusal| (status.as_u16(), why);
    let uri = Uri::builder().path_and_query(format!("/?{query}")).build();
    let uri = uri.map_err(|error| refused((StatusCode::BAD_REQUEST, error.to_string())))?;
    asked(Query::try_from_uri(&uri), &view).map_err(refused)
}

fn failed(error: anyhow::Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}"))
}

fn event(request: &Request) -> Result<Event, String> {
    let name = request.event.as_deref().unwrap_or(Event::Cpu.name());
    let event = EVENTS.into_iter().find(|event| event.name() == name);
    event.ok_or_else(|| {
        let names = EVENTS.map(Event::name).join(", ");
        format!("no event {name:?}: there are {names}")
    })
}

fn duration(event: Event, seconds: Option<u64>) -> Result<Duration, String> {
    match (event, seconds) {
        (Event::Heap | Event::Goroutine, None) => Ok(Duration::ZERO),
        (Event::Heap | Event::Goroutine, Some(_)) => Err(format!(
            "{} is what there is now: seconds are for the others",
            event.name()
        )),
        (_, seconds) => {
            let seconds = seconds.unwrap_or(DEFAULT_SECONDS);
            let allowed = (1..=MAX_SECONDS).contains(&seconds);
            let too = || format!("seconds must be from 1 to {MAX_SECONDS}");
            allowed
                .then(|| Duration::from_secs(seconds))
                .ok_or_else(too)
        }
    }
}

/// The processes asked for, of those that are Go's.
fn wanted(view: &View, request: &Request) -> Result<Vec<u32>, Refusal> {
    let processes = view.processes.iter();
    let mut go = processes.filter(|process| process.labels.contains_key(label::GO_VERSION));
    let labelled = |name: &str, value: &str| -> Vec<u32> {
        let processes = go
            .clone()
            .filter(|process| process.labels.get(name).is_some_and(|label| label == value));
        processes.map(|process| process.pid).collect()
    };
    let (mut pids, what) = match request {
        Request {
            pid: Some(pid),
            pod: None,
            service: None,
            ..
        } => {
            let known = go.find(|process| process.pid == *pid);
            let pids = known.map(|process| process.pid).into_iter().collect();
            (pids, format!("with pid {pid}"))
        }
        Request {
            pid: None,
            pod: Some(pod),
            service: None,
            ..
        } => (labelled(label::POD, pod), format!("in the pod {pod:?}")),
        Request {
            pid: None,
            pod: None,
            service: Some(service),
            ..
        } => {
            let what = format!("of the service {service:?}");
            (labelled(label::SERVICE_NAME, service), what)
        }
        _ => {
            let why = "give one of pid, pod and service".into();
            return Err((StatusCode::BAD_REQUEST, why));
        }
    };
    pids.truncate(MAX_PIDS);
    match pids.is_empty() {
        true => Err((
            StatusCode::NOT_FOUND,
            format!("no Go process {what}: /targets lists them"),
        )),
        false => Ok(pids),
    }
}

/// Samples until the time is over, nobody asks any more or the profile has become
/// as large as it may.
fn record(
    event: Event,
    pids: Vec<u32>,
    (duration, memory): (Duration, Shares),
    asked: oneshot::Receiver<()>,
) -> Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime to sample on")?;
    let config = session::Config {
        rate_hz: RATE_HZ,
        duration: Some(duration),
        ring_bytes: memory.ring_bytes(),
        ..session::Config::of(Selection::Pids(pids), vec![event])
    };
    let recording = runtime.block_on(async {
        let mut session = Session::prepare_within(config, Some(memory.of_session()))?;
        session.start()?;
        let nobody_asks = async {
            let _ = asked.await;
        };
        let stopped = session.run(nobody_asks, None, |_| {}).await;
        session.finish(stopped)
    })?;
    let ended = (recording.stopped == Stopped::Full)
        .then(|| "ended early: memory_limit allows no larger profile".to_owned());
    let options = profile::Options {
        subject: String::new(),
        notes: recording.tally.notes().into_iter().chain(ended).collect(),
        value: None,
    };
    let named = recording.named.first().context("nothing was recorded")?;
    profile::encode(&named.window, Format::Pprof, &options).context("encode the profile")
}

/// Reads the profiles that programs keep of their memory: as they are, or what
/// they gain until the time is over or nobody asks any more.
fn record_memory(
    event: Event,
    pids: Vec<u32>,
    (duration, memory): (Duration, Shares),
    asked: oneshot::Receiver<()>,
) -> Result<Vec<u8>, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .context("start a runtime to wait on")
        .map_err(failed)?;
    let kept_bytes = memory.kept_bytes() / 2;
    let session = HeapSession::start_within(event, Selection::Pids(pids), kept_bytes);
    runtime.block_on(async {
        // Over time is what is wanted, and nobody asking any more is as good.
        let _ = tokio::time::timeout(duration, asked).await;
    });
    let mut symbolizer = Symbolizer::default();
    symbolizer.limit_memory(memory.limit_bytes());
    let recording = session.finish(&mut symbolizer);
    if recording.read.is_empty() {
        let why = match recording.without.first() {
            Some(one) => format!("process {} ({}): {}", one.pid, one.comm, one.why),
            None => "exited before its memory could be read".to_owned(),
        };
        return Err((StatusCode::NOT_FOUND, why));
    }
    let options = profile::Options {
        subject: String::new(),
        notes: recording.notes(),
        value: None,
    };
    profile::encode(&recording.window, Format::Pprof, &options)
        .context("encode the profile")
        .map_err(failed)
}

/// Takes snapshots of goroutines: one, or many until the time is over, nobody asks any
/// more or the profile has become as large as it may.
fn record_goroutines(
    event: Event,
    pids: Vec<u32>,
    (duration, limit_bytes): (Duration, u64),
    mut asked: oneshot::Receiver<()>,
) -> Result<Vec<u8>, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .context("start a runtime to wait on")
        .map_err(failed)?;
    let mut session = SnapshotSession::start(SnapshotConfig {
        event,
        selection: Selection::Pids(pids),
        rate_hz: SNAPSHOTS_HZ,
        duration: (event == Event::Wall).then_some(duration),
        goroutines: false,
        labels: true,
        most_goroutines: MAX_GOROUTINES,
    });
    let end = Instant::now() + duration;
    let most_bytes = usize::try_from(limit_bytes / 4).unwrap_or(usize::MAX);
    let mut is_full = false;
    while event == Event::Wall && !is_full {
        let next = session.next_at().min(end);
        let wait = next.saturating_duration_since(Instant::now());
        // A timer is of the runtime that it is made in.
        let is_over = runtime.block_on(async {
            let waited = tokio::time::timeout(wait, &mut asked).await;
            waited.is_ok()
        });
        if is_over || Instant::now() >= end {
            break;
        }
        session.take();
        is_full = session.bytes_written() > most_bytes;
    }
    let mut symbolizer = Symbolizer::default();
    symbolizer.limit_memory(limit_bytes);
    let recording = session.finish().name(&mut symbolizer);
    if recording.facts.goroutines == 0 {
        let why = match recording.unread.first() {
            Some(one) => format!("process {} ({}): {}", one.pid, one.comm, one.why),
            None => "exited before its goroutines could be read".to_owned(),
        };
        return Err((StatusCode::NOT_FOUND, why));
    }
    let ended = is_full.then(|| "ended early: memory_limit allows no larger profile".to_owned());
    let options = profile::Options {
        subject: String::new(),
        notes: recording.notes().into_iter().chain(ended).collect(),
        value: None,
    };
    profile::encode(&recording.window, Format::Pprof, &options)
        .context("encode the profile")
        .map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let process = |pid, service: &str, pod: &str| ProcessView {
            pid,
            labels: [
                (label::SERVICE_NAME, service.to_owned()),
                (label::POD, pod.to_owned()),
                (label::GO_VERSION, "go1.26".to_owned()),
            ]
            .into(),
            ..ProcessView::default()
        };
        View {
            processes: vec![
                process(1, "a", "x"),
                process(2, "a", "y"),
                process(3, "b", "y"),
                ProcessView {
                    pid: 4,
                    ..ProcessView::default()
                },
            ],
            ..View::default()
        }
    }

    fn ask(query: &str) -> Result<Vec<u32>, u16> {
        let uri = format!("/?{query}").parse().unwrap();
        let Query(request) = Query::<Request>::try_from_uri(&uri).map_err(|_| 0u16)?;
        wanted(&view(), &request).map_err(|(status, _)| status.as_u16())
    }

    #[test]
    fn a_time_is_for_what_takes_time() {
        let asked = |query: &str| {
            let uri = format!("/?pid=1&{query}").parse().unwrap();
            let Query(request) = Query::<Request>::try_from_uri(&uri).unwrap();
            let event = event(&request)?;
            Ok((event, duration(event, request.seconds)?.as_secs()))
        };
        assert_eq!(asked(""), Ok((Event::Cpu, DEFAULT_SECONDS)));
        assert_eq!(asked("event=cpu&seconds=5"), Ok((Event::Cpu, 5)));
        assert_eq!(asked("event=allocs&seconds=5"), Ok((Event::Allocs, 5)));
        assert_eq!(asked("event=heap"), Ok((Event::Heap, 0)));
        assert_eq!(asked("event=goroutine"), Ok((Event::Goroutine, 0)));
        assert_eq!(asked("event=wall&seconds=5"), Ok((Event::Wall, 5)));
        assert!(asked("event=goroutine&seconds=5").is_err());
        let why = |query: &str| -> String { asked(query).unwrap_err() };
        assert!(why("event=heap&seconds=5").contains("what there is now"));
        assert!(
            why("event=locks").contains("there are cpu, heap, allocs, goroutine, wall, offcpu, io")
        );
        assert!(why("seconds=0").contains("from 1 to 300"));
        assert!(why("event=allocs&seconds=301").contains("from 1 to 300"));
    }

    #[test]
    fn processes_are_found_by_pid_pod_and_service() {
        assert_eq!(ask("pid=2"), Ok(vec![2]));
        assert_eq!(ask("service=a"), Ok(vec![1, 2]));
        assert_eq!(ask("pod=y&seconds=3"), Ok(vec![2, 3]));
        assert_eq!(ask("pid=9"), Err(404));
        assert_eq!(ask("pid=4"), Err(404), "not readable");
        assert_eq!(ask("service="), Err(404));
        assert_eq!(ask(""), Err(400));
        assert_eq!(ask("pid=1&pod=x"), Err(400));
        assert_eq!(ask("pid=x"), Err(0));
        assert_eq!(ask("pid=1&debug=1"), Err(0));
    }
}
