//! The image: built from the Containerfile's last stage, imported into a real
//! containerd, and run as the DaemonSet says, with the names, the authorities and
//! the rights of a pod. What it has not of one is a network of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use goprof_tests::agent::{files, free_port};
use goprof_tests::command::{self, Outcome};
use goprof_tests::target::Target;
use goprof_tests::{debian, go, http, pprof, s3};
use serde_json::Value;

use crate::manifests;
use crate::network;
use crate::pod::{self, Node};
use crate::tools::{LIMIT, arg, text};
use goprof_tests::containerd::Containerd;

const REMEDY: &str = "run this test as root";
/// What Debian's buildah needs that not every machine has.
const LIBRARIES: [&str; 4] = [
    "libgpgme11",
    "libassuan0",
    "libdevmapper1.02.1",
    "libseccomp2",
];

/// goprof without anything that it would load.
#[track_caller]
fn static_binary() -> PathBuf {
    let path = std::env::var_os("GOPROF_STATIC_BIN").map(PathBuf::from);
    path.expect("name a static goprof in GOPROF_STATIC_BIN; `cargo xtask test` does that by itself")
}

/// Runs buildah with all that it keeps in a folder.
#[track_caller]
fn buildah(folder: &Path, args: &[&str]) -> Outcome {
    let libraries: Vec<String> = LIBRARIES
        .map(|name| debian::package(name))
        .iter()
        .flat_map(|root| ["lib", "usr/lib"].map(|lib| root.join(lib)))
        .map(|lib| lib.join(format!("{}-linux-gnu", std::env::consts::ARCH)))
        .map(|lib| lib.display().to_string())
        .collect();
    let mut buildah = Command::new(debian::package("buildah").join("usr/bin/buildah"));
    buildah.env("LD_LIBRARY_PATH", libraries.join(":"));
    buildah.env("HOME", folder).current_dir(folder);
    for (option, path) in [("--root", "storage"), ("--runroot", "run")] {
        buildah.arg(option).arg(folder.join(path));
    }
    buildah.args(["--storage-driver", "vfs"]).args(args);
    command::run(&mut buildah, Duration::from_secs(120), REMEDY)
}

/// Builds the image out of what the first stage leaves, with one more authority;
/// returns it as an archive. The first stage takes a registry, and ten minutes.
#[track_caller]
fn image(folder: &Path, name: &str, authority: &Path) -> PathBuf {
    let file = text("Containerfile");
    let (_, last) = file.split_once("\nFROM scratch\n").expect("a last stage");
    fs::write(
        folder.join("Containerfile"),
        format!("FROM scratch\n{last}"),
    )
    .expect("write it");
    let built = folder.join("built");
    let program = built.join("src/target/dist/goprof");
    let authorities = built.join("etc/ssl/certs/ca-certificates.crt");
    for path in [&program, &authorities] {
        fs::create_dir_all(path.parent().expect("a folder")).expect("make a folder");
    }
    fs::copy(static_binary(), &program).expect("copy goprof");
    let known = fs::read("/etc/ssl/certs/ca-certificates.crt").expect("install ca-certificates");
    let more = fs::read(authority).expect("an authority");
    fs::write(authorities, [known, more].concat()).expect("write the authorities");
    fs::create_dir(folder.join("empty")).expect("make a folder");
    let policy = folder.join("policy.json");
    fs::write(
        &policy,
        r#"{"default": [{"type": "insecureAcceptAnything"}]}"#,
    )
    .expect("write it");
    let context = format!("build={}", built.display());
    buildah(
        folder,
        &[
            "build",
            "--signature-policy",
            arg(&policy),
            "--build-context",
            &context,
            "--isolation",
            "chroot",
            "--file",
            "Containerfile",
            "--tag",
            name,
            "empty",
        ],
    )
    .succeeded();
    let archive = format!("oci-archive:{}/image.tar:{name}", folder.display());
    buildah(
        folder,
        &["push", "--signature-policy", arg(&policy), name, &archive],
    )
    .succeeded();
    folder.join("image.tar")
}

/// The Containerfile builds what the tests run, but for what is slow.
#[test]
fn the_image_is_built_as_the_tests_build() {
    let file = text("Containerfile");
    let run = file.split_once("RUN ").expect("a command").1;
    let run = run
        .split_once("\n\n")
        .expect("its end")
        .0
        .replace("\\\n", " ");
    let words: Vec<&str> = run.split_whitespace().collect();
    assert_eq!(
        words.join(" "),
        "cargo rustc --locked --profile dist --package goprof --bin goprof \
         -- -C target-feature=+crt-static"
    );
    let pinned = goprof_tests::workspace().join("rust-toolchain.toml");
    let pinned = fs::read_to_string(pinned).expect("read the pinned version");
    let base = file
        .lines()
        .find_map(|line| line.strip_prefix("FROM docker.io/library/rust:"));
    let version = base.expect("a base").split('-').next().expect("a version");
    assert!(
        pinned.contains(&format!("channel = \"{version}.")),
        "{version}"
    );

    let mut interpreter = Command::new("readelf");
    interpreter
        .args(["--program-headers", "--dynamic", "--wide"])
        .arg(static_binary());
    let headers = command::run(&mut interpreter, LIMIT, "install binutils").succeeded();
    assert!(!headers.text().contains("INTERP"), "{}", headers.text());
    assert!(!headers.text().contains("(NEEDED)"), "{}", headers.text());
}

#[test]
fn the_agent_has_what_it_needs_from_its_pod() {
    let folder = tempfile::tempdir().expect("make a folder");
    let daemonset = manifests::daemonset();
    let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
    let name = container["image"].as_str().expect("an image");

    // The bucket, which the pod knows by name and trusts by its authority.
    let server = s3::Server::start(&folder.path().join("s3"));
    let certificate = network::certificate(folder.path());
    let port = network::speak_tls(server.address(), &certificate);
    network::answer_names();
    let mut environment = vec![("NODE_NAME".to_owned(), "node-1".to_owned())];
    environment.extend(
        s3::options(server.address())
            .into_iter()
            .filter_map(|option| match option.0.as_str() {
                "AWS_ALLOW_HTTP" => None,
                "AWS_ENDPOINT_URL" => Some((option.0, format!("https://{}:{port}", network::NAME))),
                _ => Some(option),
            }),
    );

    let mut containerd = Containerd::start();
    containerd.import_image("waits");
    let archive = image(folder.path(), name, &certificate.0);
    containerd.ctr(&[
        "--namespace",
        "k8s.io",
        "images",
        "import",
        "--snapshotter",
        "native",
        arg(&archive),
    ]);

    let busy = Target::start(&go::build("system_calls"), &[]);
    let listen = format!("127.0.0.1:{}", free_port());
    let volumes = ["config", "http", "state"].map(|name| folder.path().join(name));
    for volume in &volumes {
        fs::create_dir(volume).expect("make a volume");
    }
    let config = manifests::configuration_text()
        .replace("0.0.0.0:7071", &listen)
        .replace("s3://goprof", &format!("s3://{}/a", s3::BUCKET));
    let config = format!("flush = \"1s\"\n{config}");
    fs::write(volumes[0].join("goprof.toml"), config).expect("write the configuration");
    let [config, http, state] = &volumes;
    let node = Node {
        volumes: vec![("config", config), ("http", http), ("state", state)],
        environment,
        dns: network::DNS,
        cgroup: containerd.cgroup("/kubepods/burstable/podgoprof"),
        logs: folder.path(),
    };
    let id = pod::run(&containerd.socket(), &daemonset, &node);

    let metric = "goprof_uploads_total{result=\"success\"} ";
    let url = format!("http://{listen}");
    let log = folder.path().join(pod::LOG);
    wait_for(&url, metric, 3.0, &log);
    wait_for(&url, "goprof_stacks_total{end=\"whole\"} ", 20.0, &log);
    let objects = files(&server.bucket());
    let of_node = |path: &PathBuf| path.to_string_lossy().contains("/node=node-1/");
    assert!(objects.iter().any(of_node), "{objects:?}");

    // The kernel's names, for which it needs CAP_SYSLOG.
    let url = format!("{url}/debug/goprof/profile?pid={}&seconds=3", busy.pid());
    let profile = pprof::Profile::decode(&http::get(&url));
    assert!(profile.total() > 5, "{}", profile.total());
    let frames = profile.stacks.iter().flat_map(|stack| &stack.frames);
    let kernel: Vec<_> = frames.filter(|frame| frame.is_kernel()).collect();
    let named = kernel.iter().filter(|frame| frame.is_named()).count();
    assert!(
        named > 5 && named * 10 > kernel.len() * 9,
        "{named} of {}",
        kernel.len()
    );

    check_doctor(&containerd, &id);
    let kill = [
        "--namespace",
        "k8s.io",
        "tasks",
        "kill",
        "--signal",
        "SIGTERM",
        &id,
    ];
    let begun = Instant::now();
    containerd.ctr(&kill);
    while http::request("GET", &format!("http://{listen}/healthz"), b"", LIMIT).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(15), "it does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    containerd.stop();
}

/// What goprof itself says of where it runs.
#[track_caller]
fn check_doctor(containerd: &Containerd, id: &str) {
    let outcome = containerd.ctr(&[
        "--namespace",
        "k8s.io",
        "tasks",
        "exec",
        "--exec-id",
        "doctor",
        id,
        "/usr/local/bin/goprof",
        "doctor",
        "--json",
    ]);
    let report: Value = serde_json::from_str(outcome.text()).expect("JSON");
    let checks = report["system"].as_array().expect("checks");
    assert!(checks.len() > 10, "{report:#}");
    for check in checks {
        // Nothing of the agent's uses tracefs.
        let expected = if check["id"] == "tracefs" {
            "warn"
        } else {
            "ok"
        };
        assert_eq!(check["status"], expected, "{check:#}");
    }
}

#[track_caller]
fn wait_for(url: &str, metric: &str, least: f64, log: &Path) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let answer = http::request(
            "GET",
            &format!("{url}/metrics"),
            b"",
            Duration::from_secs(5),
        );
        let text = answer.map(|body| String::from_utf8(body).expect("text"));
        let text = text.unwrap_or_else(|error| error);
        let value = text.lines().find_map(|line| line.strip_prefix(metric));
        if value
            .and_then(|value| value.parse::<f64>().ok())
            .is_some_and(|value| value >= least)
        {
            return;
        }
        if Instant::now() > deadline {
            let said = fs::read_to_string(log).unwrap_or_default();
            panic!("{metric}is never {least}\n{said}\n{text}");
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
