//! `goprof record`: arguments to a [`Config`], a session, a profile in a file,
//! and the words around it.

mod args;
mod goroutines;
mod memory;
mod report;
mod target;

use std::{
    io::IsTerminal,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

pub use args::{Args, DEFAULT_RATE_HZ};
pub(super) use args::{parse_duration, parse_label};

use super::{Failure, printable, raise_file_limit};
use crate::{
    doctor, profile,
    session::{Config, Recording, Session, Stopped, takes_probes},
    sink::{self, FileSink, default_name},
    symbolize::Event,
};
use args::{Plan, Who, is_folder, is_read};
use target::Target;

/// How often the line of progress is written anew.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Records and writes a profile.
///
/// # Errors
/// Why that could not be done; nothing is written then.
pub fn run(args: Args) -> Result<ExitCode, Failure> {
    // clap takes a bare `--` for nothing at all, which means every process.
    if args.command.is_empty()
        && std::env::args_os()
            .next_back()
            .is_some_and(|arg| arg == "--")
    {
        return Err(Failure::Usage("no command given after --".into()));
    }
    let plan = args.into_plan()?;
    refuse_binary_on_a_terminal(&plan)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = runtime.block_on(record(plan));
    // Without waiting for what an abort left behind.
    runtime.shutdown_background();
    done
}

/// A terminal shows such bytes as noise, and may take some for commands.
fn refuse_binary_on_a_terminal(plan: &Plan) -> Result<(), Failure> {
    let to_stdout = plan.output.as_deref().is_some_and(sink::is_stdout);
    if plan.format.is_binary() && to_stdout && std::io::stdout().is_terminal() {
        return Err(Failure::Usage(format!(
            "{} is not for a terminal: redirect it, pipe it into `go tool pprof -top -`, \
             or give a file after -o",
            plan.format
        )));
    }
    Ok(())
}

async fn record(plan: Plan) -> Result<ExitCode, Failure> {
    raise_file_limit();
    Target::look_for(&plan)?;
    if let Some(event) = plan.events.iter().find(|event| is_read(**event)) {
        if plan.events.len() > 1 {
            let name = event.name();
            let line = format!("-e {name} is recorded by itself, not with other events");
            return Err(Failure::Usage(line));
        }
        return match *event {
            event @ (Event::Wall | Event::Goroutine) => goroutines::record(plan, event).await,
            event => memory::record(plan, event).await,
        };
    }
    doctor::require(plan.rate_hz)?;
    let mut target = Target::prepare(&plan)?;
    let mut outputs = Vec::new();
    for event in plan.written() {
        outputs.push(Output::prepare(&plan, &target, event)?);
    }
    let config = Config {
        selection: target.selection(),
        events: plan.events.clone(),
        rate_hz: plan.rate_hz,
        duration: plan.duration,
        kernel_stacks: plan.kernel,
        threads: plan.threads,
        goroutines: plan.goroutines,
        labels: true,
        kernel_threads: matches!(plan.who, Who::All),
        idle: plan.idle,
        combine: plan.combine,
        ring_bytes: 8 * 1024 * 1024,
        probes: plan.probes,
    };
    let mut stop = StopSignals::new()?;
    let mut session = Session::prepare(config)?;
    session.start()?;
    target.start()?;

    let mut progress = Progress::new(&plan, &target, session.processes());
    let stopped = session
        .run(stop.first(), target.child(), |session| {
            progress.show(session)
        })
        .await;
    progress.clear();

    // From here on a second signal ends goprof at once. What may take long runs
    // on another thread, which is left behind then; a file is written on this
    // one, so that none is left half-written.
    let write = async {
        let recording = aside(move || session.finish(stopped)).await?;
        publish(&plan, &target, recording, outputs).await
    };
    let written = tokio::select! {
        biased;
        () = stop.second() => return Err(Failure::Code(130, "aborted: nothing was written".into())),
        written = write => written,
    };
    written?;
    tokio::select! {
        biased;
        code = target.exit_code(stopped, plan.quiet) => code,
        () = stop.next() => Ok(ExitCode::from(130)),
    }
}

/// Where to write what.
struct Output {
    path: PathBuf,
    sink: FileSink,
}

impl Output {
    fn prepare(plan: &Plan, target: &Target, event: Event) -> Result<Self, Failure> {
        let path = output(plan, target, event)?;
        let sink = FileSink::prepare(&path)?;
        Ok(Self { path, sink })
    }
}

/// Where to write an event. Makes the folder, if one is asked for.
fn output(plan: &Plan, target: &Target, event: Event) -> Result<PathBuf, Failure> {
    let subject = target.file_subject();
    let name = || default_name(subject, SystemTime::now(), event, plan.format);
    match &plan.output {
        None => Ok(PathBuf::from(name())),
        Some(folder) if is_folder(folder, plan.written().len()) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
            Ok(folder.join(name()))
        }
        Some(file) => Ok(file.clone()),
    }
}

/// Encodes the profile, writes it and says what it holds.
async fn publish(
    plan: &Plan,
    target: &Target,
    mut recording: Recording,
    outputs: Vec<Output>,
) -> Result<(), Failure> {
    if recording.samples() == 0 && recording.stopped == Stopped::TargetsGone {
        return target.gone_without_samples(plan.quiet);
    }
    if let Some(why) = unprobed(plan, &recording) {
        return Err(Failure::Failed(anyhow::anyhow!(
            "nothing was recorded and nothing written: {why}"
        )));
    }
    let mut kept = Vec::new();
    for named in &mut recording.named {
        kept.push(plan.filter.apply(&mut named.window));
    }
    let options = profile::Options {
        subject: target.subject(),
        notes: report::notes(&recording),
        value: plan.value,
    };
    let format = plan.format;
    let (recording, encoded) = aside(move || {
        let windows = recording.named.iter().map(|named| &named.window);
        let encoded: Vec<_> = windows
            .map(|window| profile::encode(window, format, &options))
            .collect::<Result<_, _>>()
            .context("cannot encode the profile")?;
        Ok((recording, encoded))
    })
    .await?;
    let mut written = Vec::new();
    for (output, bytes) in outputs.into_iter().zip(encoded) {
        written.push((output.path, bytes.len()));
        write(output.sink, bytes).await?;
    }
    if !plan.quiet {
        report::print(plan, &recording, &kept);
        for (path, bytes) in &written {
            report::written(plan, path, *bytes);
        }
    }
    Ok(())
}

/// Why nothing could be probed, or not after a first look, where all events take probes.
fn unprobed<'r>(plan: &Plan, recording: &'r Recording) -> Option<&'r str> {
    let all_take_probes = plan.written().iter().all(|event| takes_probes(*event));
    let tally = &recording.tally;
    let was_watched = tally.probes.iter().any(|facts| facts.windows > 1);
    if !all_take_probes || was_watched || recording.samples() > 0 {
        return None;
    }
    tally.off.iter().next().map(String::as_str)
}

async fn write(sink: FileSink, bytes: Vec<u8>) -> Result<(), Failure> {
    if sink.is_file() {
        sink.finish(&bytes)?;
    } else {
        // A pipe's reader may never come.
        aside(move || sink.finish(&bytes)).await?;
    }
    Ok(())
}

/// Runs `work` on a thread of its own, so that signals are heard meanwhile.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("goprof failed in an unforeseen way; please report it")?
}

/// The signals that end a recording: the first stops it and writes, the second
/// aborts.
pub(super) struct StopSignals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
    heard: u32,
}

impl StopSignals {
    pub(super) fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            heard: 0,
        })
    }

    /// Counted, as the first may come while a recording ends by itself: a
    /// Ctrl-C also ends the command that was recorded.
    async fn first(&mut self) {
        self.heard(1).await;
    }

    async fn second(&mut self) {
        self.heard(2).await;
    }

    async fn heard(&mut self, count: u32) {
        while self.heard < count {
            self.next().await;
        }
    }

    /// The next one.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
        self.heard += 1;
    }
}

/// The line of progress, on a terminal only.
struct Progress {
    shown: bool,
    at: Instant,
    started: Instant,
}

impl Progress {
    fn new(plan: &Plan, target: &Target, processes: usize) -> Self {
        let shown = !plan.quiet && std::io::stderr().is_terminal();
        if shown {
            let how_long = match plan.duration {
                Some(duration) => format!("for {}", humantime::format_duration(duration)),
                None => target.until().to_owned(),
            };
            eprintln!(
                "Sampling {} ({processes} now) {} times a second {how_long}. Press Ctrl-C to stop and write.",
                printable(&target.subject()),
                plan.rate_hz,
            );
        }
        Self {
            shown,
            at: Instant::now(),
            started: Instant::now(),
        }
    }

    fn show(&mut self, session: &Session) {
        if self.shown && self.at.elapsed() >= PROGRESS_EVERY {
            self.at = Instant::now();
            eprint!(
                "\r\x1b[K{:>5.1} s  {} samples  {} processes",
                self.started.elapsed().as_secs_f64(),
                session.samples(),
                session.processes(),
            );
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}
