//! Profiles pushed to receivers, which are read there by the receivers' own
//! decoders: what they hold, what becomes of them while a receiver is away, and
//! what its answers come to.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use goprof_tests::agent::{self, Agent};
use goprof_tests::go;
use goprof_tests::receivers::{self, KINDS, Received, Receivers};
use goprof_tests::target::Target;

const LIMIT: Duration = Duration::from_secs(60);
const SERVICE: &str = "busy_loop";

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("make a directory")
}

fn busy() -> Target {
    Target::start(&go::build(SERVICE), &[])
}

/// Flags to push to all of them without more.
fn flags(receivers: &Receivers) -> Vec<String> {
    let [pyroscope, parca, otlp] = receivers.urls("http");
    let flags = [
        "--push-pyroscope",
        "--push-parca",
        "--push-experimental-otlp",
    ];
    let pairs = flags.into_iter().zip([pyroscope, parca, otlp]);
    let words = pairs.flat_map(|(flag, url)| [flag.to_owned(), url]);
    words.chain(["--flush".into(), "1s".into()]).collect()
}

#[track_caller]
fn start(dir: &Path, args: &[String]) -> Agent {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Agent::start(dir, &args)
}

fn result(receiver: &str, result: &str) -> String {
    format!("goprof_push_total{{receiver=\"{receiver}\",result=\"{result}\"}}")
}

fn dropped(receiver: &str, reason: &str) -> String {
    format!("goprof_push_dropped_total{{reason=\"{reason}\",receiver=\"{receiver}\"}}")
}

/// What a receiver has of a service.
fn of<'a>(all: &'a [Received], receiver: &str, service: &str) -> Vec<&'a Received> {
    let of = |r: &&Received| r.receiver == receiver && r.service() == service && r.refused == 0;
    all.iter().filter(of).collect()
}

/// How many samples of a service a receiver has. What was sent twice, as the
/// answer got lost, counts once.
fn samples(all: &[Received], receiver: &str) -> i64 {
    let with_counts = of(all, receiver, SERVICE)
        .into_iter()
        .filter(|r| r.types.first().is_some_and(|kind| kind == "samples/count"));
    let by_time: BTreeMap<_, _> = with_counts
        .map(|r| ((&r.labels, r.time_ns), r.totals[0]))
        .collect();
    by_time.values().sum()
}

#[test]
fn receivers_get_all_that_the_store_gets_also_after_an_outage() {
    let target = busy();
    let dir = folder();
    let mut receivers = Receivers::start(dir.path(), &[]);
    let agent = start(dir.path(), &flags(&receivers));
    for kind in KINDS {
        agent.wait_for(&result(kind, "success"), 2.0, LIMIT);
    }
    receivers.kill();
    let before = agent.metric("goprof_windows_total{result=\"spooled\"}");
    for kind in KINDS {
        agent.wait_for(&result(kind, "failure"), 1.0, LIMIT);
        assert!(agent.metric(&dropped(kind, "queue_full")) == 0.0);
    }
    // The store does not wait for them.
    agent.wait_for(
        "goprof_windows_total{result=\"spooled\"}",
        before + 2.0,
        LIMIT,
    );
    let outcome = agent.stop().succeeded();
    let left = outcome
        .stderr
        .lines()
        .find(|line| line.contains("left_to_push"));
    assert!(
        left.is_some_and(|line| !line.contains("left_to_push=0")),
        "{left:?}"
    );

    // The next one finds what waits, and what it samples itself goes too.
    receivers.again(&[]);
    let agent = start(dir.path(), &flags(&receivers));
    for kind in KINDS {
        agent.wait_for(&result(kind, "success"), 4.0, LIMIT);
    }
    let outcome = agent.stop().succeeded();
    assert!(
        outcome.stderr.contains("left_to_push=0"),
        "{}",
        outcome.stderr
    );

    let received = receivers.received();
    let rows = agent::rows(dir.path());
    let stored = rows.iter().filter(|row| row.service == SERVICE);
    let stored: i64 = stored.map(|row| row.count).sum();
    assert!(stored > 10, "{stored} samples");
    let exe = std::fs::read_link(format!("/proc/{}/exe", target.pid())).expect("its path");
    let exe = exe.to_str().expect("a UTF-8 path");
    for kind in KINDS {
        assert_eq!(samples(&received, kind), stored, "{kind}");
        let own = of(&received, kind, SERVICE).into_iter();
        let own: Vec<_> = own.filter(|profile| exe_label(profile) == exe).collect();
        assert!(own.len() >= 4, "{} profiles", own.len());
        own.iter().for_each(|profile| check(kind, profile));
        let share = receivers::share(&own, "main.spin");
        assert!(share > 0.5, "{share} of {kind}'s");
    }
    assert!(received.iter().all(|profile| profile.invalid.is_empty()));
}

fn exe_label(profile: &Received) -> &str {
    match profile.receiver.as_str() {
        "otlp" => profile.label("process.executable.path"),
        _ => profile.label("exe"),
    }
}

/// A profile of `busy_loop` is as the receiver wants it.
#[track_caller]
fn check(kind: &str, profile: &Received) {
    assert_eq!(profile.period, "cpu/nanoseconds");
    let both = ["samples/count", "cpu/nanoseconds"];
    if kind == "otlp" {
        assert!(both.contains(&profile.types[0].as_str()), "{profile:?}");
        assert_eq!(
            profile.label("process.runtime.version"),
            format!("go{}", go::NEWEST)
        );
        assert!(!profile.label("host.name").is_empty());
        return;
    }
    // What makes it `process_cpu:cpu:nanoseconds:cpu:nanoseconds`, cores in Grafana.
    assert_eq!(profile.types, both);
    assert_eq!(profile.label("__name__"), "process_cpu");
    assert_eq!(profile.label("go_version"), format!("go{}", go::NEWEST));
    assert_eq!(profile.label("cluster"), "default");
    assert!(!profile.label("node").is_empty());
    assert!(!profile.labels.contains_key("pid"), "{profile:?}");
    assert!(profile.sample_labels.is_empty(), "{profile:?}");
    if kind == "pyroscope" {
        assert_eq!(profile.label("__delta__"), "false");
        assert!(profile.labels.len() <= 30);
        assert_eq!(profile.id.len(), 36, "{}", profile.id);
    }
}

#[test]
fn what_may_pass_is_tried_again_and_what_is_refused_is_dropped() {
    let _target = busy();
    let dir = folder();
    let mut receivers = Receivers::start(dir.path(), &["-status", "429"]);
    let agent = start(dir.path(), &flags(&receivers));
    let failures = |least: f64| {
        for kind in KINDS {
            agent.wait_for(&result(kind, "failure"), least, LIMIT);
        }
    };
    failures(1.0);
    receivers.again(&["-status", "500"]);
    failures(2.0);
    let refused = |all: &[Received], kind: &str, status: u16| {
        let so = |r: &&Received| r.receiver == kind && r.refused == status;
        all.iter().filter(so).count()
    };
    for kind in KINDS {
        for reason in ["rejected", "queue_full", "too_old"] {
            assert!(
                agent.metric(&dropped(kind, reason)) == 0.0,
                "{kind} {reason}"
            );
        }
        let queue = format!("goprof_push_queue_bytes{{receiver=\"{kind}\"}}");
        assert!(agent.metric(&queue) > 0.0);
    }

    receivers.again(&["-status", "400"]);
    for kind in KINDS {
        agent.wait_for(&dropped(kind, "rejected"), 2.0, LIMIT);
    }
    receivers.again(&[]);
    for kind in KINDS {
        agent.wait_for(&result(kind, "success"), 1.0, LIMIT);
        let rejected = agent.metric(&dropped(kind, "rejected"));
        assert!(agent.metric(&result(kind, "rejected")) == rejected);
        let all = receivers.received();
        assert!(refused(&all, kind, 429) >= 1 && refused(&all, kind, 500) >= 1);
        // Each was refused once, and not tried again, but for one whose answer the
        // end of the server may have cut off.
        let refused = refused(&all, kind, 400) as f64;
        assert!(
            (rejected..=rejected + 1.0).contains(&refused),
            "{kind}: {refused}"
        );
    }
    let outcome = agent.stop().succeeded();
    for kind in KINDS {
        let said = outcome.stderr.lines();
        let said = said.filter(|line| line.contains(&format!("{kind} at")));
        let rejections = said.filter(|line| line.contains("dropped and counted"));
        assert_eq!(rejections.count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn credentials_certificates_and_hostile_names_arrive_as_they_should() {
    let dir = folder();
    let evil = format!("evil\"\n\u{202e}{{}}{}", "x".repeat(5_000));
    let mut command = Command::new(go::build("labels"));
    command
        .args(["-duration", "5m"])
        .env("OTEL_SERVICE_NAME", &evil);
    let _target = Target::start_command(&mut command);
    let (certificate, key) = receivers::certificate(dir.path());
    let [certificate, key] =
        [certificate, key].map(|path| path.to_str().expect("UTF-8").to_owned());
    let receivers = Receivers::start(
        dir.path(),
        &[
            "-cert",
            &certificate,
            "-key",
            &key,
            "-client-ca",
            &certificate,
        ],
    );
    let token = dir.path().join("token");
    std::fs::write(&token, "hunter2\n").expect("write a token");
    let config = config(&receivers, &certificate, &key, &token);
    let path = dir.path().join("goprof.toml");
    std::fs::write(&path, config).expect("write a configuration");
    let path = path.to_str().expect("a UTF-8 path");

    let agent = Agent::start(dir.path(), &["--config", path, "--flush", "1s"]);
    // A second may be too short to see both.
    let received = receivers.wait_for("both labels at each", LIMIT, |all| {
        let has = |kind: &str, label: &str| {
            let of_kind = all.iter().filter(|r| r.receiver == kind);
            let mut evil = of_kind.filter(|r| r.service().starts_with("evil"));
            evil.any(|r| r.sample_labels.keys().any(|name| name.ends_with(label)))
        };
        let has_both = |kind: &&str| has(kind, "path=/a") && has(kind, "path=/b");
        KINDS.iter().all(has_both)
    });
    for profile in received.iter().filter(|r| r.service().starts_with("evil")) {
        assert_eq!(profile.invalid, "");
        let service = profile.service();
        assert!(
            service.starts_with("evil\"\u{fffd}\u{fffd}{}xxx"),
            "{service}"
        );
        assert!(service.len() <= 1024 && !service.contains('\n'));
        assert_eq!(profile.label("team"), "a b");
        let authorization = match profile.receiver.as_str() {
            "pyroscope" => "Bearer hunter2",
            "parca" => "Basic Ym9iOmh1bnRlcjI=",
            _ => "",
        };
        assert_eq!(profile.authorization, authorization);
        assert_eq!(profile.tenant, "team-a");
        let before = match profile.receiver.as_str() {
            "otlp" => "process.context.label.",
            _ => "",
        };
        let known = [
            "path", "user", "text", "n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9",
        ];
        for label in profile.sample_labels.keys() {
            let name = label
                .strip_prefix(before)
                .and_then(|rest| rest.split('=').next());
            assert!(name.is_some_and(|name| known.contains(&name)), "{label}");
        }
    }
    // path=/b comes with more labels than are taken.
    assert!(agent.metric("goprof_push_labels_cut_total{reason=\"names\"}") > 0.0);
    let metrics = agent.get("/metrics");
    assert!(!metrics.contains("hunter2"));
    let outcome = agent.stop().succeeded();
    assert!(!outcome.stderr.contains("hunter2"), "{}", outcome.stderr);
}

/// Every receiver by TLS with certificates both ways, and some with a token.
fn config(receivers: &Receivers, certificate: &str, key: &str, token: &Path) -> String {
    let credentials = [
        format!("token_file = \"{}\"\n", token.display()),
        format!("token_file = \"{}\"\nuser = \"bob\"\n", token.display()),
        "experimental = true\n".to_owned(),
    ];
    let each = KINDS.iter().zip(receivers.urls("https")).zip(credentials);
    each.map(|((kind, url), credentials)| {
        format!(
            "[[push]]\nkind = \"{kind}\"\nurl = \"{url}\"\ntenant = \"team-a\"\n{credentials}\
             ca_file = \"{certificate}\"\ncert_file = \"{certificate}\"\nkey_file = \"{key}\"\n\
             labels = {{ team = \"a b\" }}\n"
        )
    })
    .collect()
}
