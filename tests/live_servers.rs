//! Two real servers under load, as Debian ships them (stripped, dynamically
//! linked, cgo): prometheus and etcd.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{debian, goprof, http, quiet};

const LIMIT: Duration = Duration::from_secs(10);
/// How many samples of a server are looked at.
const SAMPLES: u64 = 4_000;
/// Recordings are added up until there are enough; never more than this many.
const RECORDINGS: usize = 8;
/// The least share of whole stacks.
const WHOLE: f64 = 0.995;

/// Requests without end from two threads, until dropped.
struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    refusal: Arc<Mutex<String>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn start(request: impl Fn(u64) -> Result<(), String> + Send + Sync + 'static) -> Self {
        let request = Arc::new(request);
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let refusal = Arc::new(Mutex::new(String::new()));
        let threads = (0..2).map(|_| {
            let (request, stop) = (Arc::clone(&request), Arc::clone(&stop));
            let (answered, refusal) = (Arc::clone(&answered), Arc::clone(&refusal));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match request(answered.load(Ordering::Relaxed)) {
                        Ok(()) => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => *refusal.lock().expect("no thread panics") = error,
                    }
                }
            })
        });
        Load {
            threads: threads.collect(),
            stop,
            answered,
            refusal,
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A port nobody listens on now.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("find a free port");
    listener.local_addr().expect("its address").port()
}

/// Starts a server with its log in `dir` and waits until `url` answers.
#[track_caller]
fn start(command: &mut Command, dir: &Path, url: &str) -> Target {
    let log = dir.join("log");
    let file = std::fs::File::create(&log).expect("create the log");
    let clone = file.try_clone().expect("share the log");
    command.stdout(Stdio::from(clone)).stderr(Stdio::from(file));
    let target = Target::spawn(command);
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = http::request("GET", url, b"", LIMIT) {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        assert!(Instant::now() < deadline, "{url}: {error}\n{said}");
        std::thread::sleep(Duration::from_millis(100));
    }
    target
}

/// How the stacks of a recording ended: the lines of `goprof record -v` that
/// say so, by reason.
#[derive(Default)]
struct Ends(BTreeMap<String, u64>);

impl Ends {
    #[track_caller]
    fn add(&mut self, summary: &str) {
        let lines = summary.lines().filter_map(|line| {
            let (reason, count) = line.strip_prefix("  stacks ")?.rsplit_once(": ")?;
            Some((reason, count.parse::<u64>().ok()?))
        });
        let before = self.all();
        for (reason, count) in lines {
            *self.0.entry(reason.to_owned()).or_default() += count;
        }
        assert!(
            self.all() > before,
            "no line says how stacks end\n{summary}"
        );
    }

    fn all(&self) -> u64 {
        self.0.values().sum()
    }

    fn whole(&self) -> f64 {
        self.0.get("whole").copied().unwrap_or(0) as f64 / self.all() as f64
    }
}

/// Records a server under its load until there are enough samples.
#[track_caller]
fn record(target: &Target, load: &Load, program: &str) -> Profile {
    std::thread::sleep(Duration::from_secs(1));
    let before = load.answered.load(Ordering::Relaxed);
    let mut ends = Ends::default();
    let mut profile = None;
    for _ in 0..RECORDINGS {
        let recording = goprof::record(&["-p", &target.pid_arg(), "-d", "4", "-r", "997", "-v"]);
        let missing = gaps(&recording.profile);
        println!("{program}:\n{}{missing}", recording.outcome.stderr);
        ends.add(&recording.outcome.stderr);
        profile = Some(recording.profile);
        if ends.all() >= SAMPLES {
            break;
        }
    }
    let profile = profile.expect("at least one recording");
    let answered = load.answered.load(Ordering::Relaxed) - before;
    let refusal = load.refusal.lock().expect("no thread panics").clone();
    assert!(
        answered > 10,
        "{program} answered {answered} requests; {refusal}"
    );
    let (named, frames) = profile.named_share(program);
    println!(
        "{program}: {answered} requests, {} samples, {:.2}% of the stacks whole {:?}; of the last \
         recording {named} of {frames} frames named\n{}",
        ends.all(),
        100.0 * ends.whole(),
        ends.0,
        profile.top(15)
    );
    assert!(ends.all() >= SAMPLES, "{} samples", ends.all());
    assert!(ends.whole() >= WHOLE, "the stacks end so: {:?}", ends.0);
    assert!(named >= 0.99, "{named} of {frames} frames are named");
    let joins = false_joins(&profile);
    assert_eq!(joins, 0.0, "systemstack is shown as called by mcall");
    profile
}

/// Where frames are missing: the frames on both sides of the gap, by samples.
fn gaps(profile: &Profile) -> String {
    let mut places: BTreeMap<String, u64> = BTreeMap::new();
    for stack in &profile.stacks {
        let names = stack.names();
        if let Some(at) = names
            .iter()
            .position(|name| name.contains("frames missing"))
        {
            let around = &names[at.saturating_sub(3)..names.len().min(at + 3)];
            *places.entry(around.join(" < ")).or_default() += stack.count;
        }
    }
    let mut rows: Vec<_> = places.into_iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.1));
    let rows = rows
        .iter()
        .map(|(place, count)| format!("{count:8} {place}\n"));
    rows.take(12).collect()
}

/// The share of stacks that join what never was: `mcall` is left for good, and
/// calls a function of Go's on the system stack, never the way back from there.
fn false_joins(profile: &Profile) -> f64 {
    profile.share(|stack| {
        let names = stack.names();
        let mut pairs = names.windows(2);
        pairs.any(|pair| pair[0].starts_with("runtime.systemstack") && pair[1] == "runtime.mcall")
    })
}

#[track_caller]
fn assert_present(profile: &Profile, functions: &[&str]) {
    let present = profile.functions();
    for function in functions {
        assert!(
            present.contains(function),
            "{function} is not there\n{}",
            profile.top(40)
        );
    }
}

/// Waits until prometheus scrapes: it first looks for targets after 5 s.
#[track_caller]
fn wait_for_scrapes(url: &str) {
    let up = format!("{url}/api/v1/query?query=up");
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = String::from_utf8(http::get(&up)).expect("JSON");
        if answer.contains(r#""__name__":"up""#) {
            return;
        }
        assert!(Instant::now() < deadline, "nothing is scraped: {answer}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Prometheus that scrapes itself and answers a query without end.
struct Prometheus {
    target: Target,
    load: Load,
    url: String,
    #[expect(dead_code, reason = "dropping it removes the data")]
    dir: tempfile::TempDir,
}

#[track_caller]
fn prometheus(package: &Path, gogc: u32) -> Prometheus {
    let dir = tempfile::tempdir().expect("make a directory");
    let port = free_port();
    let config = dir.path().join("prometheus.yml");
    let jobs = (0..10).map(|job| {
        format!(
            "  - job_name: self{job}\n    static_configs:\n      - targets: ['127.0.0.1:{port}']\n"
        )
    });
    let jobs: String = jobs.collect();
    let text = format!("global:\n  scrape_interval: 100ms\nscrape_configs:\n{jobs}");
    std::fs::write(&config, text).expect("write the configuration");
    let mut command = Command::new(package.join("usr/bin/prometheus"));
    command
        .env("GOGC", gogc.to_string())
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.path().join("data").display()
        ))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let url = format!("http://127.0.0.1:{port}");
    let target = start(&mut command, dir.path(), &format!("{url}/-/ready"));
    wait_for_scrapes(&url);
    let query = format!(
        "{url}/api/v1/query?query=\
         sum(rate(prometheus_http_request_duration_seconds_bucket[10s]))by(job,handler)"
    );
    let load = Load::start(move |_| http::request("GET", &query, b"", LIMIT).map(drop));
    Prometheus {
        target,
        load,
        url,
        dir,
    }
}

#[test]
fn prometheus_under_load_is_named() {
    let package = debian::package("prometheus");
    let _turn = quiet::measuring();
    let Prometheus { target, load, .. } = &prometheus(&package, 100);
    let profile = record(target, load, "prometheus");
    assert_present(
        &profile,
        &[
            "net/http.(*conn).serve",
            "github.com/prometheus/prometheus/promql.(*Engine).exec",
            "github.com/prometheus/prometheus/promql.(*evaluator).eval",
            "github.com/prometheus/prometheus/scrape.(*scrapeLoop).run",
        ],
    );
}

/// A heap profile's values by site: frames with their lines, and the size of blocks.
type Sites = BTreeMap<String, [i64; 4]>;

fn heap_sites(profile: &Profile) -> Sites {
    let mut sites = Sites::new();
    for stack in &profile.stacks {
        let frames = stack.frames.iter();
        let frames: Vec<String> = frames
            .map(|f| format!("{}:{}", f.function, f.line))
            .collect();
        let size = stack.labels.get("bytes").map_or("", String::as_str);
        let sums = sites
            .entry(format!("{size} {}", frames.join(" < ")))
            .or_default();
        for (sum, value) in sums.iter_mut().zip(&stack.values) {
            *sum += value;
        }
    }
    sites
}

/// What of a profile lies outside of what the program said before and after: what was
/// allocated only grows, so that ours is between its own.
fn outside_of_allocated(ours: &Sites, before: &Sites, after: &Sites) -> Vec<String> {
    let mut outside = Vec::new();
    for (site, values) in ours {
        let least = before.get(site).copied().unwrap_or_default();
        let Some(most) = after.get(site) else {
            outside.push(format!("{site}: it has no such site"));
            continue;
        };
        let within = |index: usize| {
            let slack = most[index] / 100 + 1;
            (least[index] - slack..=most[index] + slack).contains(&values[index])
        };
        if !within(0) || !within(1) {
            outside.push(format!("{site}: {values:?}, not {least:?} to {most:?}"));
        }
    }
    let used = before.iter().filter(|(_, values)| **values != [0; 4]);
    let missing = used.filter(|(site, _)| !ours.contains_key(*site));
    outside.extend(missing.map(|(site, values)| format!("{site}: {values:?} is missing")));
    outside
}

/// What is in use by site, where anything is.
fn in_use(sites: &Sites) -> BTreeMap<&str, [i64; 2]> {
    let used = sites.iter().map(|(site, v)| (site.as_str(), [v[2], v[3]]));
    used.filter(|(_, values)| *values != [0; 2]).collect()
}

/// How many times a profile may be read until no collection came in between.
const READINGS: u32 = 50;

#[test]
fn prometheus_has_the_heap_that_it_says_itself() {
    let package = debian::package("prometheus");
    let _turn = quiet::measuring();
    // Collections have to be far enough apart for three readings between two of them.
    let Prometheus { target, url, .. } = &prometheus(&package, 1000);
    let heap = format!("{url}/debug/pprof/heap");
    let own = || heap_sites(&Profile::decode(&http::get(&heap)));
    for reading in 1.. {
        let before = own();
        let ours = goprof::record(&["-e", "heap", "-p", &target.pid_arg()]);
        let (ours, after) = (heap_sites(&ours.profile), own());
        let outside = outside_of_allocated(&ours, &before, &after);
        assert!(outside.is_empty(), "{}: {outside:#?}", outside.len());
        // What is in use is as of the last collection, which has to be the same one.
        let (found, own) = (in_use(&ours), in_use(&before));
        if ours.len() <= 100 || own.len() <= 30 || own != in_use(&after) {
            println!(
                "reading {reading}: {} sites, {} in use",
                ours.len(),
                own.len()
            );
            assert!(
                reading < READINGS,
                "it collects garbage never, or all the time"
            );
            continue;
        }
        let mut wrong = Vec::new();
        for site in own.keys().chain(found.keys()) {
            let of = |sites: &BTreeMap<&str, _>| sites.get(site).copied().unwrap_or_default();
            let (found, own): ([i64; 2], [i64; 2]) = (of(&found), of(&own));
            let is_close = |(a, b): (&i64, &i64)| (a - b).abs() <= b.abs() / 100 + 1;
            if !found.iter().zip(&own).all(is_close) {
                wrong.push(format!("{site}: {found:?} in use, {own:?} by its own"));
            }
        }
        assert!(wrong.is_empty(), "{} sites: {wrong:#?}", wrong.len());
        let sum = |sites: &BTreeMap<&str, [i64; 2]>| sites.values().map(|v| v[1]).sum::<i64>();
        let (found, said) = (sum(&found), sum(&own));
        println!(
            "{} sites, {} in use: {found} bytes for {said}, reading {reading}",
            ours.len(),
            own.len()
        );
        assert!((found - said).abs() <= said / 100, "{found} for {said}");
        return;
    }
}

#[test]
fn etcd_under_load_is_named() {
    let server = debian::package("etcd-server").join("usr/bin/etcd");
    let _turn = quiet::measuring();
    let dir = tempfile::tempdir().expect("make a directory");
    let (client, peer) = (free_port(), free_port());
    let url = format!("http://127.0.0.1:{client}");
    let peer_url = format!("http://127.0.0.1:{peer}");
    let mut command = Command::new(server);
    command.arg("--data-dir").arg(dir.path().join("data"));
    command.args([
        "--listen-client-urls",
        &url,
        "--advertise-client-urls",
        &url,
    ]);
    command.args(["--listen-peer-urls", &peer_url]);
    command.args(["--initial-advertise-peer-urls", &peer_url]);
    command.arg(format!("--initial-cluster=default={peer_url}"));
    let target = start(&mut command, dir.path(), &format!("{url}/health"));
    let put = format!("{url}/v3/kv/put");
    let range = format!("{url}/v3/kv/range");
    // "key" and "value" in base64, as etcd's JSON wants them.
    let load = Load::start(move |count| {
        let (url, body): (_, &[u8]) = if count % 4 == 0 {
            (&put, br#"{"key":"a2V5","value":"dmFsdWU="}"#)
        } else {
            (&range, br#"{"key":"a2V5"}"#)
        };
        http::request("POST", url, body, LIMIT).map(drop)
    });
    let profile = record(&target, &load, "etcd");
    assert_present(
        &profile,
        &[
            "net/http.(*conn).serve",
            "google.golang.org/grpc.(*Server).handleStream",
            "go.etcd.io/etcd/etcdserver.(*EtcdServer).Range",
        ],
    );
}
