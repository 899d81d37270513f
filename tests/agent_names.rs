//! Names that a target chose so as to be taken for something else: they break no
//! metric, page, path, log line or profile, whatever is made of them.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::{self, Agent};
use goprof_tests::command::{self, Outcome};
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{debian, go, goprof, http};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const FUNCTION: &str = "placeholderForAFunctionNameOfAnyBytes";
const FILE: &str = "placeholder_for_a_file_name_of_any_bytes";
/// Of the module's path, in the build info.
const MODULE: &str = "example.com/fixtures";

/// A program whose every name is hostile, and where it lies.
struct Hostile {
    target: Target,
    folder: tempfile::TempDir,
}

impl Hostile {
    #[track_caller]
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = fs::read(go::build("hostile_names")).unwrap();
        let function = b"</script><img src=x>\"\n;\x1b[2J\xff\\ 1\r\n{}'";
        let file = b"\n</script><b>\"\\\x1b]0;\x07\xfe\r../../../e;'{} ";
        assert!(put_over(&mut bytes, FUNCTION, function) > 0);
        assert!(put_over(&mut bytes, FILE, file) > 0);
        assert!(put_over(&mut bytes, MODULE, b"<b>\"\\\x1b[2J{}'../../") > 0);
        // All but a slash and zero may be in a file's name.
        let name =
            b"<script>alert(1)<\\script>\"\n# EVIL} 1\r\x1b[2J\x1b]0;EVIL\x07\xff %s '{}$(x)..";
        let program = folder.path().join(OsStr::from_bytes(name));
        fs::write(&program, bytes).unwrap();
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, all).unwrap();
        let mut service = b"../../../EVIL{}\"} 1\n# EVIL\x1b[2J<script>".to_vec();
        service.extend([b'x'; 5000]);
        let mut command = Command::new(&program);
        command.args(["-duration", "5m"]);
        command.env("OTEL_SERVICE_NAME", OsStr::from_bytes(&service));
        Self {
            target: Target::start_command(&mut command),
            folder,
        }
    }

    fn pid(&self) -> u32 {
        self.target.pid()
    }
}

/// Puts `new`, and spaces behind it, over every `old` in a file.
fn put_over(bytes: &mut [u8], old: &str, new: &[u8]) -> usize {
    assert!(new.len() <= old.len(), "{} of {}", new.len(), old.len());
    let mut padded = new.to_vec();
    padded.resize(old.len(), b' ');
    let places = bytes.windows(old.len()).enumerate();
    let places = places.filter(|(_, window)| *window == old.as_bytes());
    let places: Vec<usize> = places.map(|(at, _)| at).collect();
    for at in &places {
        bytes[*at..at + old.len()].copy_from_slice(&padded);
    }
    places.len()
}

/// Nothing but printable characters and ends of lines.
#[track_caller]
fn assert_plain(what: &str, text: &str) {
    let turns = |c: char| ('\u{202a}'..='\u{202e}').contains(&c);
    let at = text.find(|c: char| (c.is_control() && c != '\n') || turns(c));
    if let Some(at) = at {
        let around = text.floor_char_boundary(at.saturating_sub(80));
        panic!("{what}: a control character at {at}: {:?}", &text[around..]);
    }
}

/// The page has no element that a page without the process would not have.
#[track_caller]
fn assert_no_markup(what: &str, page: &str) {
    for tag in ["<script>alert", "<img", "<b>", "onerror=alert(1)>"] {
        assert!(!page.contains(tag), "{what} has {tag}");
    }
}

/// Metrics that Prometheus' own reader takes.
#[track_caller]
fn assert_metrics(folder: &Path, metrics: &str) {
    assert_plain("metrics", metrics);
    for line in metrics.lines() {
        let is_metric = ["# HELP ", "# TYPE ", "goprof_", "process_"];
        assert!(
            is_metric.iter().any(|begin| line.starts_with(begin)),
            "{line:?}"
        );
    }
    let file = folder.join("metrics");
    fs::write(&file, metrics).unwrap();
    let promtool = debian::package("prometheus").join("usr/bin/promtool");
    let mut check = Command::new("sh");
    check.args(["-c", "exec \"$0\" check metrics < \"$1\""]);
    check.arg(promtool).arg(file);
    let outcome = command::run(&mut check, LIMIT, "install dash").succeeded();
    assert_eq!(outcome.stderr.trim(), "");
}

/// Every file is where files of that kind are, under a name that is plain.
#[track_caller]
fn assert_paths(folder: &Path) {
    let stored = agent::files(&agent::store(folder));
    assert!(!stored.is_empty());
    for path in stored.iter().chain(&agent::files(&folder.join("spool"))) {
        let path = path.strip_prefix(folder).unwrap().to_str().unwrap();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.=/#".contains(c);
        assert!(
            path.chars().all(is_plain) && !path.contains(".."),
            "{path:?}"
        );
        assert!(!path.contains("EVIL"), "{path:?}");
    }
}

#[track_caller]
fn view(agent: &Agent, pid: u32) -> Value {
    let deadline = Instant::now() + LIMIT;
    loop {
        let text = agent.get("/targets");
        assert_plain("targets", &text);
        let json: Value = serde_json::from_str(&text).expect("JSON");
        let mut processes = json["processes"].as_array().expect("a list").iter();
        if let Some(found) = processes.find(|p| p["pid"] == pid) {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "never seen: {json}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn hostile_names_break_nothing_that_the_agent_makes() {
    let hostile = Hostile::start();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("goprof.toml");
    fs::write(
        &config,
        "threads = true\ngoroutines = true\nrate_hz = 97\nflush = \"1s\"\n",
    )
    .unwrap();
    let agent = Agent::start(dir.path(), &["--config", config.to_str().unwrap()]);
    agent.wait_for("goprof_uploads_total{result=\"success\"}", 3.0, LIMIT);

    let metrics = agent.get("/metrics");
    assert!(
        metrics.contains("EVIL{}"),
        "the service is not there: {metrics}"
    );
    assert_metrics(dir.path(), &metrics);
    let view = view(&agent, hostile.pid());
    assert_eq!(view["collected"][0]["event"], "cpu", "{view}");
    let page = http::get_as(&format!("{}/targets", agent.url), "text/html");
    let (_, page) = page.split_once("\r\n\r\n").expect("a page");
    assert_plain("page", page);
    assert_no_markup("page", page);
    assert!(page.contains("&lt;script&gt;"), "{page}");
    assert!(!page.contains("<script"), "{page}");

    let profile = dir.path().join("profile.pb.gz");
    let url = format!(
        "{}/debug/goprof/profile?pid={}&seconds=2",
        agent.url,
        hostile.pid()
    );
    fs::write(&profile, http::get(&url)).unwrap();
    check_pprof(&profile, dir.path());
    // What a target calls itself cannot be asked for so as to break the answer.
    let service = "%3Cscript%3E%0d%0aX-Evil:1%0d%0a%0d%0a%1b";
    let url = format!("{}/debug/goprof/profile?service={service}", agent.url);
    let answer = http::get_as(&url, "text/html");
    assert!(answer.starts_with("HTTP/1.0 404"), "{answer}");
    assert!(answer.contains("content-type: text/plain") && answer.contains("nosniff"));
    assert!(!answer.to_lowercase().contains("\nx-evil"), "{answer}");
    assert_plain(
        "answer",
        answer.split_once("\r\n\r\n").expect("an answer").1,
    );

    let outcome = agent.stop().succeeded();
    assert_plain("log", &outcome.stderr);
    for line in outcome.stderr.lines() {
        assert!(line.starts_with("time=20"), "{line:?}");
    }
    assert_paths(dir.path());
    let rows = agent::rows(dir.path());
    let of_it = rows
        .iter()
        .filter(|row| row.pid == i64::from(hostile.pid()));
    let named = of_it.filter(|row| {
        row.functions
            .iter()
            .any(|name| name.contains("<img src=x>"))
    });
    assert!(
        named.map(|row| row.count).sum::<i64>() > 10,
        "its samples are missing"
    );
    // Nothing was left beside its own files.
    assert_eq!(fs::read_dir(hostile.folder.path()).unwrap().count(), 1);
}

/// A profile that pprof reads, with the function in it.
#[track_caller]
fn check_pprof(file: &Path, tmp: &Path) {
    let profile = Profile::read(file);
    let is_there = |name: &&str| name.contains("<img src=x>");
    assert!(
        profile.functions().iter().any(is_there),
        "{}",
        profile.top(20)
    );
    let mut pprof = go::go(go::NEWEST);
    pprof
        .args(["tool", "pprof", "-raw"])
        .arg(file)
        .env("PPROF_TMPDIR", tmp);
    let raw = command::run(&mut pprof, LIMIT, go::REMEDY).succeeded();
    assert!(raw.stdout.windows(11).any(|w| w == b"<img src=x>"));
}

/// Records the process in a format, and says what that is and what was said.
#[track_caller]
fn record(hostile: &Hostile, format: &str, folder: &Path) -> (PathBuf, Outcome) {
    let pid = hostile.pid().to_string();
    let args = [
        "record", "-v", "-p", &pid, "-d", "1", "-r", "499", "-f", format,
    ];
    let mut command = goprof::command(&args);
    let outcome = command::run(command.current_dir(folder), LIMIT, "build goprof").succeeded();
    assert_plain(format, &outcome.stderr);
    assert_plain(format, outcome.text());
    let mut files: Vec<PathBuf> = agent::files(folder);
    assert_eq!(files.len(), 1, "{files:?}");
    let file = files.remove(0);
    assert_eq!(file.parent(), Some(folder));
    let name = file.file_name().unwrap().to_str().expect("a name in UTF-8");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    assert!(name.chars().all(is_plain), "{name:?}");
    (file, outcome)
}

#[test]
fn hostile_names_break_no_format_and_no_terminal() {
    let hostile = Hostile::start();
    for format in ["pprof", "folded", "flamegraph", "speedscope"] {
        let folder = tempfile::tempdir().unwrap();
        let (file, _) = record(&hostile, format, folder.path());
        let text = || String::from_utf8(fs::read(&file).unwrap()).expect("UTF-8");
        match format {
            "pprof" => check_pprof(&file, folder.path()),
            "folded" => {
                assert_plain(format, &text());
                for line in text().lines() {
                    let count = line
                        .rsplit_once(' ')
                        .and_then(|(_, n)| n.parse::<u64>().ok());
                    assert!(count.is_some_and(|count| count > 0), "{line:?}");
                }
                assert!(text().contains("<img src=x>"));
            }
            "flamegraph" => {
                let page = text();
                assert_no_markup(format, &page);
                let count = |tag: &str| page.matches(tag).count();
                assert_eq!(count("<script"), count("</script"), "{format}");
                assert_eq!(count("</script"), 2, "{format}");
            }
            _ => {
                let json: Value = serde_json::from_str(&text()).expect("JSON");
                assert!(
                    json["shared"]["frames"]
                        .as_array()
                        .is_some_and(|f| !f.is_empty())
                );
            }
        }
    }
    let pid = hostile.pid().to_string();
    for args in [
        &["doctor", "-p", &pid][..],
        &["doctor", "--json", "-p", &pid],
    ] {
        let outcome = goprof::run(args).succeeded();
        assert_plain("doctor", outcome.text());
        assert_plain("doctor", &outcome.stderr);
    }
}
