//! The dashboards: Grafana's own types take them, they follow its conventions, and
//! what they and the alerts ask for is there, of a live agent that a real
//! Prometheus scrapes.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::Agent;
use goprof_tests::command::Running;
use goprof_tests::receivers::Receivers;
use goprof_tests::target::Target;
use goprof_tests::{debian, go, http};
use regex::Regex;
use serde_json::Value;

use crate::alerts;
use crate::tools::{self, LIMIT, arg, deployed, text};

/// File and uid. Links and bookmarks hold the uid: it stays.
const DASHBOARDS: [(&str, &str); 3] = [
    ("grafana/fleet.json", "goprof-fleet"),
    ("grafana/node.json", "goprof-node"),
    ("grafana/service.json", "goprof-service"),
];
const METRICS: (&str, &str) = ("prometheus", "${datasource}");
const PROFILES: (&str, &str) = ("grafana-pyroscope-datasource", "${profiles}");
const CPU: &str = "process_cpu:cpu:nanoseconds:cpu:nanoseconds";
/// What the agent calls its node here, and so Prometheus the agent.
const NODE: &str = "node-1";
const SERVICE: &str = "busy_loop";

#[track_caller]
fn dashboard(file: &str) -> Value {
    serde_json::from_str(&text(file)).expect("JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    let all = list(dashboard, "panels").iter();
    all.filter(|panel| panel["type"] != "row").collect()
}

#[test]
fn grafana_knows_every_field() {
    for (file, uid) in DASHBOARDS {
        tools::inspect("dashboard", &text(file)).succeeded();
        assert_eq!(dashboard(file)["uid"], uid);
        assert_eq!(dashboard(file)["id"], Value::Null);
    }
    // The check finds what is wrong.
    let wrong = text(DASHBOARDS[0].0).replacen("\"profileTypeId\"", "\"profileType\"", 1);
    let outcome = tools::inspect("dashboard", &wrong);
    assert!(outcome.stderr.contains("profileType"), "{}", outcome.stderr);
}

#[test]
fn dashboards_follow_the_conventions() {
    for (file, _) in DASHBOARDS {
        let dashboard = dashboard(file);
        let mut ids = BTreeSet::new();
        let mut places = BTreeSet::new();
        for panel in list(&dashboard, "panels") {
            assert!(ids.insert(panel["id"].as_u64()), "{file}: an id twice");
            let place = &panel["gridPos"];
            let (x, y) = (place["x"].as_u64(), place["y"].as_u64());
            assert!(places.insert((x, y)), "{file}: two panels at one place");
            assert!(
                x.zip(place["w"].as_u64()).is_some_and(|(x, w)| x + w <= 24),
                "{file}"
            );
        }
        let variables: BTreeSet<&str> = list(&dashboard["templating"], "list")
            .iter()
            .flat_map(|variable| variable["name"].as_str())
            .collect();
        for panel in panels(&dashboard) {
            check_panel(file, panel);
            for target in list(panel, "targets") {
                check_variables(file, target, &variables);
            }
        }
        let flames = panels(&dashboard);
        let flames = flames.iter().filter(|panel| panel["type"] == "flamegraph");
        assert_eq!(flames.count(), 1, "{file}");
    }
}

#[track_caller]
fn check_panel(file: &str, panel: &Value) {
    let title = panel["title"].as_str().unwrap_or_default();
    assert!(!title.is_empty(), "{file}: a panel without a title");
    let described = panel["description"]
        .as_str()
        .is_some_and(|text| text.len() > 10);
    assert!(described, "{file}: {title}: no description");
    let unit = &panel["fieldConfig"]["defaults"]["unit"];
    assert!(unit.is_string(), "{file}: {title}: no unit");
    assert!(!list(panel, "targets").is_empty(), "{file}: {title}");
    for target in list(panel, "targets") {
        let source = &target["datasource"];
        assert_eq!(source, &panel["datasource"], "{file}: {title}");
        let source = (source["type"].as_str(), source["uid"].as_str());
        let source = source.0.zip(source.1).expect("a data source");
        if source == PROFILES {
            assert_eq!(target["profileTypeId"], CPU, "{file}: {title}");
            let kind = match panel["type"] == "flamegraph" {
                true => "profile",
                false => "metrics",
            };
            assert_eq!(target["queryType"], kind, "{file}: {title}");
            continue;
        }
        assert_eq!(source, METRICS, "{file}: {title}");
        let query = target["expr"].as_str().expect("a query");
        check_counters(query, &format!("{file}: {title}"));
    }
}

/// A counter by itself says no more than how long the agent has been up.
#[track_caller]
fn check_counters(query: &str, place: &str) {
    let counters = Regex::new(r"(\w*\()?\w+_total\{[^}]*\}(\[[^]]*\])?").expect("a pattern");
    for counter in counters.find_iter(query) {
        let text = counter.as_str();
        let is_rate = text.starts_with("rate(") || text.starts_with("increase(");
        assert!(
            is_rate && text.ends_with("[$__rate_interval]"),
            "{place}: {text}"
        );
    }
}

/// Only variables that the dashboard has, or that Grafana sets.
#[track_caller]
fn check_variables(file: &str, target: &Value, variables: &BTreeSet<&str>) {
    let used = Regex::new(r"\$\{?(\w+)").expect("a pattern");
    for found in used.captures_iter(&target.to_string()) {
        let name = &found[1];
        assert!(
            name.starts_with("__") || variables.contains(name),
            "{file}: {name} is not a variable"
        );
    }
}

/// A Prometheus of the test's own that scrapes one agent, as the PodMonitor has it
/// scraped.
struct Prometheus {
    _running: Running,
    url: String,
}

impl Prometheus {
    #[track_caller]
    fn start(folder: &Path, agent: &Agent) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("find a free port");
        let address = listener.local_addr().expect("its address");
        drop(listener);
        let target = agent.url.strip_prefix("http://").expect("a URL");
        let rules = deployed("prometheus/alerts.yaml");
        let config = format!(
            r#"global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: ["{}"]
scrape_configs:
  - job_name: goprof
    honor_labels: true
    static_configs: [{{targets: ["{target}"], labels: {{instance: {NODE}}}}}]
"#,
            rules.display()
        );
        let file = folder.join("prometheus.yaml");
        fs::write(&file, config).expect("write a configuration");
        let program = debian::package("prometheus").join("usr/bin/prometheus");
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--web.listen-address={address}"))
            .arg(format!("--storage.tsdb.path={}", arg(&folder.join("data"))));
        Self {
            _running: Running::start(&mut command, "run `apt-get update`"),
            url: format!("http://{address}"),
        }
    }

    /// What its API answers to a path; `about` is what it is about.
    #[track_caller]
    fn get(&self, path: &str, about: &str) -> Value {
        let url = format!("{}/api/v1/{path}", self.url);
        let body = http::request("GET", &url, b"", LIMIT);
        let body = body.unwrap_or_else(|error| panic!("{error}: {about}"));
        let answer: Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(answer["status"], "success", "{about}: {answer}");
        answer["data"].clone()
    }

    /// The series that a query finds.
    #[track_caller]
    fn query(&self, query: &str) -> Vec<Value> {
        let escaped: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("query?query={escaped}"), query);
        list(&answer, "result").to_vec()
    }

    /// Waits until a query finds something.
    #[track_caller]
    fn wait_for(&self, query: &str) {
        let deadline = Instant::now() + LIMIT;
        let ready = format!("{}/-/ready", self.url);
        let short = Duration::from_secs(5);
        while http::request("GET", &ready, b"", short).is_err() || self.query(query).is_empty() {
            assert!(Instant::now() < deadline, "nothing for {query}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A query with the values that its variables have in this test.
fn filled(query: &str) -> String {
    let mut query = query.to_owned();
    for (variable, value) in [
        ("$__rate_interval", "20s"),
        ("$job", "goprof"),
        ("$namespace", ".*"),
        ("$node", NODE),
        ("$service", SERVICE),
    ] {
        query = query.replace(variable, value);
    }
    assert!(!query.contains('$'), "{query}");
    query
}

/// Every query of the dashboards, those of their variables included, with where it
/// stands.
fn queries() -> Vec<(String, String)> {
    let values = Regex::new(r"^label_values\((.*), (\w+)\)$").expect("a pattern");
    let mut all = Vec::new();
    for (file, _) in DASHBOARDS {
        let dashboard = dashboard(file);
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().expect("a title");
            let exprs = list(panel, "targets")
                .iter()
                .flat_map(|target| target["expr"].as_str());
            all.extend(exprs.map(|expr| (format!("{file}: {title}"), filled(expr))));
        }
        for variable in list(&dashboard["templating"], "list") {
            let name = variable["name"].as_str().expect("a name");
            let Some(query) = variable["query"]["query"].as_str() else {
                continue;
            };
            let parts = values.captures(query).expect("label_values(QUERY, LABEL)");
            let query = format!("group by ({}) ({})", &parts[2], &parts[1]);
            all.push((format!("{file}: {name}"), filled(&query)));
        }
    }
    all
}

/// The selectors of the alerts: `metric{labels}`.
fn selectors() -> BTreeSet<String> {
    let selector = Regex::new(r"\b[a-z_]+\{[^}]*\}").expect("a pattern");
    let rules = alerts::rules();
    let exprs = rules
        .iter()
        .map(|rule| rule["expr"].as_str().expect("a query"));
    exprs
        .flat_map(|expr| selector.find_iter(expr))
        .map(|found| found.as_str().to_owned())
        .collect()
}

/// Names of labels that the flame graphs choose or group by.
fn profile_labels() -> BTreeSet<String> {
    let chosen = Regex::new(r"(\w+)=").expect("a pattern");
    let mut names = BTreeSet::new();
    for (file, _) in DASHBOARDS {
        let dashboard = dashboard(file);
        let targets = panels(&dashboard);
        for target in targets.iter().flat_map(|panel| list(panel, "targets")) {
            let selector = target["labelSelector"].as_str().unwrap_or_default();
            names.extend(
                chosen
                    .captures_iter(selector)
                    .map(|found| found[1].to_owned()),
            );
            let groups = list(target, "groupBy").iter();
            names.extend(groups.flat_map(|name| name.as_str()).map(str::to_owned));
        }
    }
    names
}

/// What Pyroscope's own code reads of what is pushed is what the flame graphs ask
/// for.
#[track_caller]
fn check_pushed(receivers: &Receivers) {
    let received = receivers.received();
    let found = received.iter().find(|profile| profile.service() == SERVICE);
    let profile = found.unwrap_or_else(|| panic!("{received:?}"));
    let names = profile_labels();
    assert!(
        names.contains("service_name") && names.contains("node"),
        "{names:?}"
    );
    for name in names {
        assert_ne!(profile.label(&name), "", "{name}: {profile:?}");
    }
    assert_eq!(profile.label("node"), NODE);
    // CPU is NAME:TYPE:UNIT:PERIOD:UNIT.
    let name = profile.label("__name__");
    let kinds = profile.types.iter().map(|kind| kind.replace('/', ":"));
    let period = profile.period.replace('/', ":");
    let mut ids = kinds.map(|kind| format!("{name}:{kind}:{period}"));
    assert!(ids.any(|id| id == CPU), "{profile:?}");
}

#[test]
fn a_live_agent_has_what_dashboards_and_alerts_ask_for() {
    let _busy = Target::start(&go::build(SERVICE), &[]);
    let folder = tempfile::tempdir().expect("make a folder");
    let receivers = Receivers::start(folder.path(), &[]);
    let [pyroscope, ..] = receivers.urls("http");
    let mut args = vec!["--flush", "1s", "--node", NODE];
    args.extend(["--push-pyroscope", &pyroscope]);
    let agent = Agent::start(folder.path(), &args);
    agent.wait_for("goprof_uploads_total{result=\"success\"}", 2.0, LIMIT);
    let pushed = "goprof_push_total{receiver=\"pyroscope\",result=\"success\"}";
    agent.wait_for(pushed, 2.0, LIMIT);
    check_pushed(&receivers);
    let prometheus = Prometheus::start(folder.path(), &agent);
    // Two scrapes with windows in between, so that rates are there.
    prometheus.wait_for("rate(goprof_samples_total[20s]) > 0");

    let nothing: Vec<_> = queries()
        .into_iter()
        .filter(|(_, query)| prometheus.query(query).is_empty())
        .collect();
    assert!(nothing.is_empty(), "no data for {nothing:#?}");

    let selectors = selectors();
    assert!(selectors.len() > 15, "{selectors:?}");
    for selector in &selectors {
        let found = prometheus.query(selector);
        assert!(!found.is_empty(), "an alert asks for {selector}");
    }
    let groups = prometheus.get("rules", "its rules");
    let rules = list(&groups["groups"][0], "rules");
    assert_eq!(rules.len(), alerts::rules().len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        // Some wait whether it stays so, as of what this test does at once.
        assert_ne!(rule["state"], "firing", "{rule}");
    }
    agent.stop().succeeded();
}
