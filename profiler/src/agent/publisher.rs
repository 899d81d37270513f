//! The publisher: names finished windows, says whose they are, and puts them into
//! the spool as objects. One thread; between windows it keeps the list of
//! processes up to date.

mod snapshots;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    account,
    config::{Config, Event, Subject},
    kind::{Kind, Unwanted},
    log,
    memory::Shares,
    readings::Readings,
    runtimes::Runtimes,
    sampler::{Shared, Window},
    state::{Collected, ProcessView, SourceView, State, View, lock},
};
use crate::{
    identity::{Program, Target, label},
    memory,
    metrics::{Observed, Service},
    process::Process,
    profile::{Batch, parquet},
    session::HeapSession,
    sink::key,
    symbolize::{self, SymbolizedWindow, Symbolizer},
};

/// How often the list of processes is brought up to date.
const TRACK_EVERY: Duration = Duration::from_secs(2);

/// How often it is asked anew who a process is of which all is known.
const IDENTIFY_EVERY: Duration = Duration::from_secs(10);

/// The samplers that run now.
pub(super) type Samplers = Arc<Mutex<Vec<Arc<Shared>>>>;

/// Who the processes of a window are, by pid and executable.
type Targets = HashMap<(u32, String), Target>;

/// Takes windows until nobody sends any more.
pub(super) fn run(state: &State, samplers: &Samplers, windows: &Receiver<Window>) {
    let mut publisher = Publisher {
        state,
        samplers,
        symbolizer: Symbolizer::default(),
        excluded: BTreeMap::new(),
        known: HashMap::new(),
        said: HashSet::new(),
        runtimes: Runtimes::default(),
        decided_by: state.config(),
        readings: Readings::default(),
    };
    loop {
        match windows.recv_timeout(TRACK_EVERY) {
            Ok(window) => publisher.take(window),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                publisher.read_all(true);
                return;
            }
        }
        publisher.track();
        if publisher.readings.are_due() || publisher.is_full() {
            publisher.read_all(false);
        }
    }
}

struct Publisher<'a> {
    state: &'a State,
    samplers: &'a Samplers,
    symbolizer: Symbolizer,
    /// Processes that no rule takes, by pid.
    excluded: BTreeMap<u32, ProcessView>,
    /// Processes identified at the last look, by pid.
    known: HashMap<u32, Known>,
    /// What was logged of programs, so as to say it once.
    said: HashSet<String>,
    /// When whose runtime was read.
    runtimes: Runtimes,
    /// The configuration by which processes were excluded.
    decided_by: Arc<Config>,
    /// What programs keep of themselves.
    readings: Readings,
}

/// Who a process is, as of a moment ago.
struct Known {
    exe: String,
    target: Target,
    asked: Instant,
}

/// Most lines remembered as said.
const MAX_SAID: usize = 1024;

impl Publisher<'_> {
    fn take(&mut self, window: Window) {
        window.shared.taken();
        let metrics = &self.state.metrics;
        let result = match self.publish(window) {
            Ok(Some(())) => "spooled",
            Ok(None) => "empty",
            Err(error) => {
                log::warn("window lost", &[("error", &format!("{error:#}"))]);
                "failed"
            }
        };
        metrics.windows.with_label_values(&[result]).inc();
        // What a window took is free now, in many small pieces.
        memory::trim();
    }

    /// None for a window without samples.
    fn publish(&mut self, window: Window) -> Result<Option<()>> {
        let Window {
            mut finished,
            shared,
        } = window;
        let config = shared.config();
        let mut targets = Targets::new();
        let excluded = finished.retain(|event, process| {
            let target = self.identify(process);
            match shared
                .kind
                .judge(&config, event, &subject(process, &target))
            {
                Ok(()) => {}
                Err(Unwanted::OtherRate) => return Err("other_rate"),
                Err(Unwanted::NoRule) if target.is_partial => return Err("not_identified"),
                Err(Unwanted::NoRule) => return Err("no_rule"),
            }
            targets.insert((process.pid, process.exe.clone()), target);
            Ok(())
        });
        self.symbolizer.limit_memory(config.memory_limit.0);
        let recording = finished.name(&mut self.symbolizer);
        let metrics = &self.state.metrics;
        account::add(metrics, &recording);
        account::add_excluded(metrics, &recording, &excluded);
        let fill = shared.snapshot().ring_fill;
        let kind = shared.kind.word();
        metrics.ring_fill.with_label_values(&[&kind]).set(fill);
        let delayed = shared.delayed.swap(0, Ordering::Relaxed);
        metrics.windows_delayed.inc_by(delayed as u64);
        for line in recording
            .tally
            .off
            .iter()
            .chain(&recording.tally.diagnostics)
        {
            if self.said.len() < MAX_SAID && self.said.insert(line.clone()) {
                log::warn("not all is recorded", &[("what", line)]);
            }
        }
        let lost = recording.tally.lost();
        let mut put = None;
        for named in recording.named {
            if named.samples > 0 {
                self.put(&config, named.window, lost.clone(), &targets)?;
                put = Some(());
            }
        }
        Ok(put)
    }

    /// Puts a named window, of which so many samples were `lost`, into the spool and
    /// hands it to the receivers.
    fn put(
        &self,
        config: &Config,
        window: SymbolizedWindow,
        lost: Vec<(u64, &'static str)>,
        targets: &Targets,
    ) -> Result<()> {
        let of = |process: &symbolize::Process| {
            let known = targets.get(&(process.pid, process.exe.clone())).cloned();
            known.unwrap_or_else(|| Target {
                pid: process.pid,
                labels: BTreeMap::new(),
                is_partial: true,
            })
        };
        let batch = Batch {
            targets: window.processes.iter().map(of).collect(),
            window,
        };
        let start = batch.window.start;
        let place = key::Place {
            cluster: config.cluster.clone(),
            node: config.node.clone(),
        };
        let name = key::name(start);
        let key = key::raw(&place, start, name);
        let origin = parquet::Origin {
            cluster: place.cluster,
            node: place.node,
            ulid: name.to_string(),
            lost,
        };
        let writer_bytes = Shares::of(config).writer_bytes();
        let stored = parquet::encode_within(&batch, &origin, writer_bytes)
            .context("encode the window")
            .and_then(|bytes| self.state.spool.put(&key, &bytes));
        // Receivers do without the store, and it without them.
        self.state.push.put(&batch, &self.state.metrics.push);
        stored
    }

    /// Reads what rules ask for of what programs keep of themselves, and begins the
    /// next window unless this is the last.
    fn read_all(&mut self, is_last: bool) {
        let config = self.state.config();
        let have_begun = self.readings.have_begun();
        self.readings.begin(config.flush.0);
        let kept_bytes = Shares::of(&config).kept_bytes();
        for event in [Event::Heap, Event::Allocs] {
            let began = Instant::now();
            let session = match (config.rules.ask_for(event), self.readings.take(event)) {
                (false, _) => continue,
                (true, Some(mut session)) => {
                    self.read(&config, event, &mut session);
                    memory::trim();
                    session
                }
                (true, None) if is_last => continue,
                // Who is not known yet may be wanted in the end.
                (true, None) => HeapSession::start_where(event.sampled(), kept_bytes, |process| {
                    let target = self.identify_again(process);
                    target.is_partial || takes(&config, event, process, &target)
                }),
            };
            self.readings.put(event, session);
            account::add_reading_time(&self.state.metrics, event.sampled(), began.elapsed());
        }
        if have_begun {
            self.publish_snapshots(&config);
        }
    }

    /// Whether snapshots of goroutines have to be written before their time.
    fn is_full(&self) -> bool {
        let most = Shares::of(&self.state.config()).of_session().window_bytes;
        self.readings.snapshots.exceed(most)
    }

    /// Takes a window out of a session of readings and stores it.
    fn read(&mut self, config: &Config, event: Event, session: &mut HeapSession) {
        let mut symbolizer = std::mem::take(&mut self.symbolizer);
        symbolizer.limit_memory(config.memory_limit.0);
        let mut targets = Targets::new();
        let recording = session.rotate(&mut symbolizer, |process| {
            let target = self.identify_again(process);
            let is_wanted = takes(config, event, process, &target);
            if is_wanted {
                targets.insert((process.pid, process.exe.clone()), target);
            }
            is_wanted
        });
        self.symbolizer = symbolizer;
        let metrics = &self.state.metrics;
        account::add_reading(metrics, &recording);
        let without = recording.without.iter();
        let without = without.map(|without| (without.pid, &without.why));
        self.readings.explain(event, without);
        let stored = match recording.window.samples.is_empty() {
            true => Ok("empty"),
            false => {
                let put = self.put(config, recording.window, Vec::new(), &targets);
                put.map(|()| "spooled")
            }
        };
        let result = stored.unwrap_or_else(|error| {
            log::warn("window lost", &[("error", &format!("{error:#}"))]);
            "failed"
        });
        metrics.windows.with_label_values(&[result]).inc();
    }

    fn identify(&self, process: &Process) -> Target {
        let program = Program::of(process);
        self.state.identifier.identify(process.pid, &program)
    }

    /// The same of a process that runs on: what is known of it changes seldom.
    fn identify_again(&mut self, process: &Process) -> Target {
        if let Some(known) = self.known.get(&process.pid)
            && known.exe == process.exe
            && !known.target.is_partial
            && known.asked.elapsed() < IDENTIFY_EVERY
        {
            return known.target.clone();
        }
        let target = self.identify(process);
        let known = Known {
            exe: process.exe.clone(),
            target: target.clone(),
            asked: Instant::now(),
        };
        self.known.insert(process.pid, known);
        target
    }

    /// Brings up to date who runs, and has those sampled no more that no rule
    /// takes.
    fn track(&mut self) {
        let config = self.state.config();
        let mut processes: BTreeMap<u32, ProcessView> = BTreeMap::new();
        let mut observed = Vec::new();
        let mut other_processes = 0;
        let samplers = lock(self.samplers).clone();
        if !Arc::ptr_eq(&config, &self.decided_by) {
            samplers.iter().for_each(|sampler| sampler.reconsider());
            self.decided_by = Arc::clone(&config);
        }
        for sampler in &samplers {
            let snapshot = sampler.snapshot();
            let (mut exclude, mut probe) = (Vec::new(), Vec::new());
            for process in &snapshot.running {
                let target = self.identify_again(process);
                let rate = config.rate_of(&subject(process, &target));
                let rate = rate.map(|rate| rate.0);
                let wanted = sampler.kind.takes(&config, &subject(process, &target));
                // What is not known yet may make a rule take it.
                if !wanted && !target.is_partial {
                    exclude.push(process.pid);
                }
                if wanted {
                    probe.push(process.pid);
                }
                if sampler.kind.rate_hz().is_none() {
                    continue;
                }
                if wanted {
                    self.excluded.remove(&process.pid);
                    observed.push((Arc::clone(process), observe(process.pid, &target)));
                    let mut view = view(process, target, rate);
                    self.readings.describe(&config, &mut view);
                    processes.insert(process.pid, view);
                } else if rate.is_none() {
                    self.excluded
                        .insert(process.pid, view(process, target, None));
                }
            }
            sampler.exclude(&exclude);
            if matches!(sampler.kind, Kind::Probes { .. }) {
                sampler.probe(&probe);
            }
            for shortfall in &snapshot.shortfalls {
                let process = processes.entry(shortfall.pid);
                let process = process.or_insert_with(|| unreadable(shortfall.pid));
                if !process.notes.contains(&shortfall.why) {
                    process.notes.push(shortfall.why.clone());
                }
            }
            other_processes = other_processes.max(snapshot.rejected);
        }
        self.excluded.retain(|pid, view| is_there(*pid, &view.exe));
        let excluded = self.excluded.clone();
        let sampled = processes.values().filter(|view| !view.collected.is_empty());
        let sampled = sampled.count();
        let failed = processes.len() - sampled;
        let set = |state: &str, count: usize| {
            let gauge = self.state.metrics.targets.with_label_values(&[state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        set("sampled", sampled);
        set("excluded", excluded.len());
        set("unreadable", failed);
        let other_processes = other_processes.saturating_sub(failed + excluded.len());
        set("other", other_processes);
        for (pid, mut view) in excluded {
            self.readings.describe(&config, &mut view);
            if view.collected.is_empty() {
                view.notes.push("no rule takes it".into());
            }
            processes.entry(pid).or_insert(view);
        }
        self.readings.snapshots.watch(&config, &processes);
        let now: HashSet<u32> = processes.keys().copied().collect();
        self.known.retain(|pid, _| {
            let is_there = now.contains(pid);
            if !is_there {
                self.state.identifier.forget(*pid);
            }
            is_there
        });
        lock(&self.state.usage).update(observed.iter().map(|(_, observed)| observed));
        self.runtimes.look(self.state, &observed);
        *lock(&self.state.view) = View {
            processes: processes.into_values().collect(),
            other_processes,
            sources: self.sources(),
        };
    }

    fn sources(&self) -> Vec<SourceView> {
        let sources = self.state.identifier.sources().into_iter();
        let view = sources.map(|source| SourceView {
            name: source.name,
            has_answered: source.has_answered,
            error: source.error,
            containers: source.containers,
        });
        view.collect()
    }
}

/// A process, for the rules.
fn subject<'a>(process: &'a Process, target: &'a Target) -> Subject<'a> {
    Subject {
        comm: &process.comm,
        exe: &process.exe,
        target,
    }
}

fn takes(config: &Config, event: Event, process: &Process, target: &Target) -> bool {
    config.takes(event, &subject(process, target))
}

fn view(process: &Process, target: Target, rate: Option<u32>) -> ProcessView {
    let event = symbolize::Event::Cpu.name();
    ProcessView {
        pid: process.pid,
        comm: process.comm.clone(),
        exe: process.exe.clone(),
        labels: target.labels,
        is_partial: target.is_partial,
        collected: rate
            .map(|rate_hz| Collected {
                event,
                rate_hz: Some(rate_hz),
            })
            .into_iter()
            .collect(),
        notes: Vec::new(),
    }
}

/// A process that cannot be sampled.
fn unreadable(pid: u32) -> ProcessView {
    let identity = crate::process::Identity::read(pid);
    let (comm, exe) = identity.map_or_else(|_| Default::default(), |i| (i.comm, i.exe));
    ProcessView {
        pid,
        comm,
        exe,
        ..ProcessView::default()
    }
}

fn is_there(pid: u32, exe: &str) -> bool {
    crate::process::Identity::read(pid).is_ok_and(|identity| identity.exe == exe)
}

fn observe(pid: u32, target: &Target) -> Observed {
    let names = [
        label::SERVICE_NAME,
        label::NAMESPACE,
        label::POD,
        label::CONTAINER,
    ];
    Observed {
        pid,
        service: Service::new(names.map(|name| target.label(name))),
        go_version: target.label(label::GO_VERSION).to_owned(),
    }
}
