//! Who may have what of the agent's HTTP server, as real clients find it: TLS,
//! clients' certificates, tokens, and clients that only want to be in the way.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code: a failure is a panic"
)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::{Agent, free_port};
use goprof_tests::certificates::{Authority, Pair};
use goprof_tests::command::{self, Outcome};
use goprof_tests::pprof::Profile;
use goprof_tests::target::Target;
use goprof_tests::{debian, go, http};

const LIMIT: Duration = Duration::from_secs(60);
const TOKEN: &str = "b8f1c0de5ca1ab1e0ddba11feedface0";
const OTHER_TOKEN: &str = "another0another0another0another0";

/// An agent with TLS, client certificates and a token, and what its clients need.
struct Guarded {
    dir: tempfile::TempDir,
    authority: Authority,
    server: Pair,
    client: Pair,
    token: PathBuf,
    agent: Agent,
    url: String,
}

impl Guarded {
    #[track_caller]
    fn start() -> Self {
        Self::start_with(true)
    }

    /// `certificates`: whether it asks clients for one.
    #[track_caller]
    fn start_with(certificates: bool) -> Self {
        let dir = tempfile::tempdir().expect("make a directory");
        let authority = Authority::new(dir.path(), "authority");
        let (server, client) = (authority.issue("server"), authority.issue("client"));
        let token = dir.path().join("token");
        fs::write(&token, format!("{TOKEN}\n")).expect("write a token");
        let mut text = format!(
            "[http]\ntoken_file = \"{}\"\n[http.tls]\ncert_file = \"{}\"\nkey_file = \"{}\"\n",
            token.display(),
            server.certificate.display(),
            server.key.display(),
        );
        if certificates {
            let clients = authority.certificate();
            text += &format!("client_ca_file = \"{}\"\n", clients.display());
        }
        let config = dir.path().join("goprof.toml");
        fs::write(&config, text).expect("write a configuration");
        let agent = Agent::spawn(dir.path(), &["--config", path(&config)]);
        let url = agent.url.replace("http://", "https://");
        let guarded = Self {
            dir,
            authority,
            server,
            client,
            token,
            agent,
            url,
        };
        // A probe shows nothing, and is answered.
        let deadline = Instant::now() + LIMIT;
        while guarded.ask(&[], "/readyz").0 != 200 {
            assert!(Instant::now() < deadline, "the agent is not ready");
            std::thread::sleep(Duration::from_millis(50));
        }
        guarded
    }

    /// The status and the text of an answer to a client that knows the server's
    /// authority; 0 and the reason where there is none.
    #[track_caller]
    fn ask(&self, args: &[&str], at: &str) -> (u32, String) {
        let authority = self.authority.certificate();
        let mut all = vec!["--cacert", path(&authority)];
        all.extend(args);
        curl(&all, &format!("{}{at}", self.url))
    }

    /// As one that shows all that it should.
    #[track_caller]
    fn ask_with(&self, token: &str, at: &str) -> (u32, String) {
        let bearer = format!("Authorization: Bearer {token}");
        let (certificate, key) = (path(&self.client.certificate), path(&self.client.key));
        self.ask(
            &["--cert", certificate, "--key", key, "--header", &bearer],
            at,
        )
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

#[track_caller]
fn curl(args: &[&str], url: &str) -> (u32, String) {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "20"]);
    curl.args(["--write-out", "\n%{http_code}"])
        .args(args)
        .arg(url);
    let outcome = command::run(&mut curl, LIMIT, "install curl");
    let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    match status.parse() {
        Ok(status) if status > 0 => (status, body.to_owned()),
        _ => (0, outcome.stderr),
    }
}

#[track_caller]
fn log_has(outcome: &Outcome, words: &str) {
    assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
}

/// The value of a metric in a text of them.
#[track_caller]
fn metric(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|value| value.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name}: {metrics}"))
}

#[test]
fn who_shows_nothing_gets_nothing_but_health() {
    let guarded = Guarded::start();
    assert_eq!(guarded.ask_with(TOKEN, "/targets").0, 200);
    for at in ["/healthz", "/readyz"] {
        assert_eq!(guarded.ask(&[], at).0, 200, "{at}");
    }
    let (certificate, key) = (path(&guarded.client.certificate), path(&guarded.client.key));
    let certified = ["--cert", certificate, "--key", key];
    let everything = [
        "/",
        "/metrics",
        "/targets",
        "/debug/goprof/profile?pid=1",
        "/no",
    ];
    for at in everything {
        let (status, why) = guarded.ask(&[], at);
        assert_eq!(status, 403, "{at}: {why}");
        assert!(why.contains("http.tls.client_ca_file"), "{why}");
        let (status, why) = guarded.ask(&certified, at);
        assert_eq!(status, 401, "{at}: {why}");
        assert!(why.contains("Authorization: Bearer"), "{why}");
    }
    for wrong in [OTHER_TOKEN, &TOKEN[1..], "", &TOKEN.to_uppercase()] {
        assert_eq!(guarded.ask_with(wrong, "/metrics").0, 401, "{wrong}");
    }
    // The token alone is not enough, nor is a certificate of others.
    let bearer = format!("Authorization: Bearer {TOKEN}");
    assert_eq!(guarded.ask(&["--header", &bearer], "/metrics").0, 403);
    let others = Authority::new(guarded.dir.path(), "others").issue("stranger");
    let (certificate, key) = (path(&others.certificate), path(&others.key));
    let stranger = ["--cert", certificate, "--key", key, "--header", &bearer];
    let (status, why) = guarded.ask(&stranger, "/metrics");
    assert_eq!(status, 0, "{why}");
    // Nor is anything said in the clear.
    assert_eq!(curl(&[], &format!("{}/healthz", guarded.agent.url)).0, 0);

    let metrics = guarded.ask_with(TOKEN, "/metrics").1;
    let refused = |reason| {
        let name = format!("goprof_http_refused_total{{reason=\"{reason}\"}}");
        metric(&metrics, &name)
    };
    assert!(
        refused("certificate") >= 6.0 && refused("token") >= 9.0,
        "{metrics}"
    );
    assert!(refused("tls") >= 2.0, "{metrics}");
    let outcome = guarded.agent.stop().succeeded();
    assert!(!outcome.stderr.contains(TOKEN));
}

/// A scrape of one, as Prometheus' configuration has it.
fn job(name: &str, scheme: &str, more: &str, at: &str) -> String {
    format!(
        "  - job_name: {name}\n    scheme: {scheme}\n{more}    static_configs:\n      \
         - targets: ['{at}']\n"
    )
}

#[test]
fn prometheus_scrapes_with_a_token_and_a_certificate() {
    let guarded = Guarded::start();
    let tls = |client: &str| {
        format!(
            "    tls_config:\n      ca_file: {}\n{client}",
            guarded.authority.certificate().display()
        )
    };
    let client = format!(
        "      cert_file: {}\n      key_file: {}\n",
        guarded.client.certificate.display(),
        guarded.client.key.display()
    );
    let token = format!(
        "    authorization:\n      credentials_file: {}\n",
        guarded.token.display()
    );
    let at = guarded.url.trim_start_matches("https://");
    let text = [
        "global:\n  scrape_interval: 500ms\nscrape_configs:\n".to_owned(),
        job("all", "https", &(token.clone() + &tls(&client)), at),
        job("no-token", "https", &tls(&client), at),
        job("no-certificate", "https", &(token.clone() + &tls("")), at),
        job("no-tls", "http", &token, at),
    ]
    .concat();
    let config = guarded.dir.path().join("prometheus.yml");
    fs::write(&config, text).expect("write a configuration");
    let listen = format!("127.0.0.1:{}", free_port());
    let server = debian::package("prometheus").join("usr/bin/prometheus");
    let mut command = Command::new(server);
    command.arg(format!("--config.file={}", config.display()));
    let data = guarded.dir.path().join("data");
    command.arg(format!("--storage.tsdb.path={}", data.display()));
    command.arg(format!("--web.listen-address={listen}"));
    let log = fs::File::create(guarded.dir.path().join("log")).expect("make a file");
    let _server = Target::spawn(command.stdout(log.try_clone().expect("a file")).stderr(log));
    let url = format!("http://{listen}/api/v1/targets?state=active");
    let deadline = Instant::now() + LIMIT;
    let expected = [
        ("all", "up", ""),
        ("no-token", "down", "401"),
        ("no-certificate", "down", "403"),
        ("no-tls", "down", ""),
    ];
    let holds = |answer: &serde_json::Value| {
        let targets = answer["data"]["activeTargets"].as_array();
        expected.iter().all(|(job, health, error)| {
            targets.into_iter().flatten().any(|target| {
                let why = target["lastError"].as_str().unwrap_or_default();
                target["labels"]["job"] == *job
                    && target["health"] == *health
                    && why.contains(error)
            })
        })
    };
    loop {
        let answer = http::request("GET", &url, b"", LIMIT).unwrap_or_default();
        let answer = serde_json::from_slice(&answer).unwrap_or_default();
        if holds(&answer) {
            break;
        }
        assert!(Instant::now() < deadline, "{answer:#}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until the agent has seen a process, and says where its profile is.
#[track_caller]
fn profile_of(guarded: &Guarded, target: &Target) -> String {
    let seen = format!("\"pid\": {},", target.pid());
    wait_until("never seen", || {
        guarded.ask_with(TOKEN, "/targets").1.contains(&seen)
    });
    format!("/debug/goprof/profile?pid={}&seconds=1", target.pid())
}

#[test]
fn pprof_takes_a_profile_over_tls() {
    let target = Target::start(&go::build("busy_loop"), &[]);
    let guarded = Guarded::start_with(false);
    let at = profile_of(&guarded, &target);
    let host = guarded.url.trim_start_matches("https://");
    // `go tool pprof` knows neither tokens nor its own -tls_ flags, but passwords
    // and the system's authorities.
    let pprof = |url: String| {
        let mut pprof = go::go(go::NEWEST);
        pprof.args(["tool", "pprof", "-top"]).arg(url);
        pprof.env("SSL_CERT_FILE", guarded.authority.certificate());
        pprof.env("PPROF_TMPDIR", guarded.dir.path());
        command::run(&mut pprof, LIMIT, go::REMEDY)
    };
    let known = pprof(format!("https://goprof:{TOKEN}@{host}{at}"));
    assert!(known.succeeded().text().contains("main.spinThree"));
    let insecure = pprof(format!("https+insecure://x:{TOKEN}@{host}{at}"));
    assert!(insecure.succeeded().text().contains("main.spinThree"));
    let without = pprof(format!("https://{host}{at}"));
    assert!(!without.status.success());
    assert!(without.stderr.contains("401"), "{}", without.stderr);
}

#[test]
fn a_client_with_a_certificate_takes_a_profile() {
    let target = Target::start(&go::build("busy_loop"), &[]);
    let guarded = Guarded::start();
    let at = profile_of(&guarded, &target);
    let file = guarded.dir.path().join("profile.pb.gz");
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let (certificate, key) = (path(&guarded.client.certificate), path(&guarded.client.key));
    let args = ["--cert", certificate, "--key", key, "--header", &bearer];
    let (status, why) = guarded.ask(&[&args[..], &["--output", path(&file)]].concat(), &at);
    assert_eq!(status, 200, "{why}");
    assert!(Profile::read(&file).cumulative_share("main.spinThree") > 0.5);
}

/// The serial number of the certificate that a server shows.
#[track_caller]
fn serial(url: &str) -> String {
    let mut openssl = Command::new("sh");
    let host = url.trim_start_matches("https://");
    let show = "openssl s_client -connect \"$0\" </dev/null 2>/dev/null \
                | openssl x509 -noout -serial";
    openssl.args(["-c", show, host]);
    let outcome = command::run(&mut openssl, LIMIT, "install openssl").succeeded();
    outcome.text().trim().to_owned()
}

#[track_caller]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn certificates_and_tokens_may_change_while_it_runs() {
    let guarded = Guarded::start();
    let first = serial(&guarded.url);
    assert!(first.starts_with("serial="), "{first}");
    // Renewed, and noticed by itself.
    let renewed = guarded.authority.issue("renewed");
    fs::copy(&renewed.certificate, &guarded.server.certificate).expect("renew a certificate");
    fs::copy(&renewed.key, &guarded.server.key).expect("renew a key");
    wait_until("the new certificate is not shown", || {
        serial(&guarded.url) != first
    });
    assert_eq!(guarded.ask_with(TOKEN, "/metrics").0, 200);
    // At once when asked.
    fs::write(&guarded.token, OTHER_TOKEN).expect("change the token");
    guarded.agent.signal(libc::SIGHUP);
    wait_until("the new token does not count", || {
        guarded.ask_with(OTHER_TOKEN, "/metrics").0 == 200
    });
    assert_eq!(guarded.ask_with(TOKEN, "/metrics").0, 401);
    // What is wrong changes nothing.
    let second = serial(&guarded.url);
    fs::copy(&guarded.client.key, &guarded.server.key).expect("give a wrong key");
    guarded.agent.signal(libc::SIGHUP);
    let failures = "goprof_http_credential_reloads_total{result=\"failure\"}";
    wait_until("the wrong key is not noticed", || {
        metric(&guarded.ask_with(OTHER_TOKEN, "/metrics").1, failures) == 1.0
    });
    fs::remove_file(&guarded.token).expect("remove the token");
    guarded.agent.signal(libc::SIGHUP);
    wait_until("the missing token is not noticed", || {
        metric(&guarded.ask_with(OTHER_TOKEN, "/metrics").1, failures) == 2.0
    });
    assert_eq!(serial(&guarded.url), second);
    let outcome = guarded.agent.stop().succeeded();
    log_has(&outcome, "http.tls.key_file");
    log_has(&outcome, "http.token_file");
}

#[test]
fn other_machines_get_metrics_alone_unless_told_otherwise() {
    let dir = tempfile::tempdir().expect("make a directory");
    let sensitive = [
        "/targets",
        "/debug/goprof/profile?pid=1",
        "/debug",
        "//targets",
    ];
    let agent = Agent::spawn_at("0.0.0.0", dir.path(), &[]);
    agent.wait_until_ready();
    for at in ["/", "/metrics", "/healthz", "/readyz"] {
        assert_eq!(curl(&[], &format!("{}{at}", agent.url)).0, 200, "{at}");
    }
    for at in sensitive {
        let (status, why) = curl(&["--path-as-is"], &format!("{}{at}", agent.url));
        assert_eq!(status, 403, "{at}: {why}");
        assert!(why.contains("http.token_file"), "{why}");
    }
    let refused = agent.metric("goprof_http_refused_total{reason=\"network\"}");
    assert!((refused - 4.0).abs() < 0.1, "{refused}");
    log_has(&agent.stop().succeeded(), "metrics alone");

    let config = dir.path().join("goprof.toml");
    fs::write(&config, "[http]\ninsecure = true\n").expect("write a configuration");
    let agent = Agent::spawn_at("0.0.0.0", dir.path(), &["--config", path(&config)]);
    agent.wait_until_ready();
    assert_eq!(curl(&[], &format!("{}/targets", agent.url)).0, 200);
    log_has(&agent.stop().succeeded(), "http.insecure");

    let token = dir.path().join("token");
    fs::write(&token, TOKEN).expect("write a token");
    let text = format!("[http]\ntoken_file = \"{}\"\n", token.display());
    fs::write(&config, text).expect("write a configuration");
    let agent = Agent::spawn_at("0.0.0.0", dir.path(), &["--config", path(&config)]);
    agent.wait_until_ready();
    let bearer = format!("Authorization: Bearer {TOKEN}");
    let targets = format!("{}/targets", agent.url);
    assert_eq!(curl(&["--header", &bearer], &targets).0, 200);
    assert_eq!(curl(&["--user", &format!("any:{TOKEN}")], &targets).0, 200);
    assert_eq!(curl(&[], &targets).0, 401);
    log_has(&agent.stop().succeeded(), "http.tls");
}

#[test]
fn a_web_page_that_leads_its_name_here_gets_no_profiles() {
    let dir = tempfile::tempdir().expect("make a directory");
    let agent = Agent::start(dir.path(), &[]);
    let status = |host: &str, at: &str| {
        let host = format!("Host: {host}");
        curl(&["--header", &host], &format!("{}{at}", agent.url)).0
    };
    for at in ["/targets", "/debug/goprof/profile?pid=1"] {
        assert_eq!(status("evil.example:7071", at), 421, "{at}");
    }
    assert_eq!(status("evil.example", "/metrics"), 200);
    assert_eq!(status("localhost:7071", "/targets"), 200);
    agent.stop().succeeded();
}

#[test]
fn files_that_will_not_do_are_named_with_what_to_do() {
    let dir = tempfile::tempdir().expect("make a directory");
    let authority = Authority::new(dir.path(), "authority");
    let (server, other) = (authority.issue("server"), authority.issue("other"));
    let locked = dir.path().join("locked.key");
    let mut lock = Command::new("openssl");
    lock.args(["pkey", "-aes256", "-passout", "pass:x", "-in"]);
    lock.arg(&server.key).arg("-out").arg(&locked);
    command::run(&mut lock, LIMIT, "install openssl").succeeded();
    let (certificate, key) = (path(&server.certificate), path(&server.key));
    let tls = |certificate: &str, key: &str, clients: &str| {
        format!("[http.tls]\ncert_file = \"{certificate}\"\nkey_file = \"{key}\"\n{clients}")
    };
    let clients = format!("client_ca_file = \"{key}\"\n");
    for (text, key, words) in [
        (
            tls("/no", key, ""),
            "http.tls.cert_file: /no",
            "must be there",
        ),
        (
            tls(key, key, ""),
            "http.tls.cert_file",
            "no certificate: give PEM",
        ),
        (
            tls(certificate, certificate, ""),
            "http.tls.key_file",
            "no private key",
        ),
        (
            tls(certificate, path(&locked), ""),
            "http.tls.key_file",
            "passphrase",
        ),
        (
            tls(certificate, path(&other.key), ""),
            "http.tls.key_file",
            "of one pair",
        ),
        (
            tls(certificate, key, &clients),
            "http.tls.client_ca_file",
            "no certificate",
        ),
        (
            format!("[http]\ntoken_file = \"{}\"\n", dir.path().display()),
            "http.token_file",
            "cannot",
        ),
        (
            "[http]\ntoken_file = \"/dev/null\"\n".into(),
            "http.token_file: /dev/null",
            "openssl rand",
        ),
    ] {
        let config = dir.path().join("goprof.toml");
        fs::write(&config, &text).expect("write a configuration");
        let outcome = Agent::spawn(dir.path(), &["--config", path(&config)]).finish();
        assert_eq!(outcome.code(), 1, "{text}");
        let said = outcome.stderr.trim_end();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.contains(key) && said.contains(words), "{text}: {said}");
    }
}

/// Says something, and waits for the end of the connection.
fn time_to_end(at: &str, words: &[u8]) -> Duration {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(at).expect("connect");
    stream.set_read_timeout(Some(LIMIT)).expect("set a limit");
    let _ = stream.write_all(words);
    let _ = stream.read_to_end(&mut Vec::new());
    begun.elapsed()
}

#[test]
fn clients_that_take_their_time_are_let_go() {
    let dir = tempfile::tempdir().expect("make a directory");
    let agent = Agent::start(dir.path(), &[]);
    let guarded = Guarded::start();
    let at = agent.url.trim_start_matches("http://").to_owned();
    let secure_at = guarded.url.trim_start_matches("https://").to_owned();
    std::thread::scope(|scope| {
        let slow = [
            (&at, &b"GET /metrics HTTP/1.1\r\nX"[..]),
            (&at, b""),
            (&secure_at, b"\x16"),
        ];
        let slow = slow.map(|(at, words)| scope.spawn(move || time_to_end(at, words)));
        // A header larger than any, and what is no HTTP, end at once.
        let large = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
        assert!(time_to_end(&at, &large) < Duration::from_secs(5));
        assert!(time_to_end(&secure_at, b"GET / HTTP/1.1\r\n\r\n") < Duration::from_secs(5));
        for slow in slow {
            let took = slow.join().expect("no thread panics");
            assert!((9..15).contains(&took.as_secs()), "{took:?}");
        }
    });
    let refused = |reason: &str| format!("goprof_http_refused_total{{reason=\"{reason}\"}}");
    assert!(agent.metric(&refused("timeout")) >= 2.0);

    // Those that are too many are closed, and room is there again for others.
    let many: Vec<TcpStream> = (0..200)
        .map(|_| TcpStream::connect(&at).expect("connect"))
        .collect();
    let mut last = many
        .last()
        .expect("one")
        .try_clone()
        .expect("another handle");
    last.set_read_timeout(Some(LIMIT)).expect("set a limit");
    assert_eq!(last.read(&mut [0]).unwrap_or(0), 0);
    drop(many);
    wait_until("no answer any more", || {
        http::request("GET", &format!("{}/healthz", agent.url), b"", LIMIT).is_ok()
    });
    let refused = agent.metric(&refused("connections"));
    assert!((50.0..100.0).contains(&refused), "{refused}");
}

#[test]
fn a_client_that_goes_leaves_its_profile_to_others() {
    let target = Target::start(&go::build("busy_loop"), &[]);
    let dir = tempfile::tempdir().expect("make a directory");
    let agent = Agent::start(dir.path(), &[]);
    let at = agent.url.trim_start_matches("http://").to_owned();
    let seen = format!("\"pid\": {},", target.pid());
    wait_until("never seen", || agent.get("/targets").contains(&seen));
    let query = format!("/debug/goprof/profile?pid={}&seconds=", target.pid());
    let request = format!("GET {query}300 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    let ask = || {
        let mut stream = TcpStream::connect(&at).expect("connect");
        stream.write_all(request.as_bytes()).expect("ask");
        stream.set_nonblocking(true).expect("not wait for answers");
        stream
    };
    let is_answered = |stream: &TcpStream| stream.peek(&mut [0]).is_ok();
    for _ in 0..3 {
        let mut both = [ask(), ask()];
        let url = format!("{}{query}1", agent.url);
        let refused = || http::request("GET", &url, b"", LIMIT).is_err_and(|e| e.contains("429"));
        let deadline = Instant::now() + LIMIT;
        while !refused() {
            assert!(Instant::now() < deadline, "a third profile at a time");
            // The one that asks whether there is room may have been in their way.
            for stream in both.iter_mut().filter(|stream| is_answered(stream)) {
                *stream = ask();
            }
        }
        drop(both);
        wait_until("they go on for nobody", || !refused());
    }
}
