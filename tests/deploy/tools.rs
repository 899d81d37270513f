//! The tools that operators have: kustomize, Helm, promtool and what checks
//! manifests, each at the version that is pinned here. They are fetched or built
//! once, and nothing is installed into the system.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use goprof_tests::command::{self, Outcome};
use goprof_tests::{cache_dir, debian, go, python, quiet, workspace};
use serde_json::Value;

/// For what is there already.
pub const LIMIT: Duration = Duration::from_secs(60);
/// For what is built from its source.
const BUILD_LIMIT: Duration = Duration::from_secs(1500);
/// What is built, by its package; versions are in `go.mod` beside the tests.
const PROGRAMS: [(&str, &str); 3] = [
    ("inspect", "."),
    ("helm", "helm.sh/helm/v3/cmd/helm"),
    ("kustomize", "sigs.k8s.io/kustomize/kustomize/v5"),
];
const VALIDATOR: &str = "kubernetes-validate==1.37.0";

/// `deploy/PATH`.
pub fn deployed(path: &str) -> PathBuf {
    workspace().join("deploy").join(path)
}

/// The text of `deploy/PATH`.
#[track_caller]
pub fn text(path: &str) -> String {
    let file = deployed(path);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("read {}: {e}", file.display()))
}

/// A path as an argument.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Runs a program of [`PROGRAMS`].
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> Outcome {
    let mut command = Command::new(built().join(program));
    command.args(args).current_dir(deployed(""));
    // Helm's own files: none of the user's.
    command.env("HOME", cache_dir());
    command::run(&mut command, LIMIT, go::REMEDY)
}

/// Where the programs are, built the first time.
#[track_caller]
fn built() -> PathBuf {
    let source = workspace().join("tests/deploy/go");
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum", "main.go"] {
        fs::read(source.join(file))
            .expect("read a source of the tools")
            .hash(&mut hasher);
    }
    let folder = cache_dir().join(format!("deploy-tools-{:016x}", hasher.finish()));
    if folder.exists() {
        return folder;
    }
    let _turn = quiet::building();
    let making = tempfile::tempdir_in(cache_dir()).expect("make a folder to build in");
    let made = making.path().join("made");
    for (name, package) in PROGRAMS {
        let mut build = go::go(go::NEWEST);
        build.args(["build", "-trimpath", "-ldflags=-s -w", "-o"]);
        build.arg(made.join(name)).arg(package);
        build.current_dir(&source).env("CGO_ENABLED", "0");
        command::run(&mut build, BUILD_LIMIT, go::REMEDY).succeeded();
    }
    // Another test may have been faster; its copy is as good.
    if fs::rename(&made, &folder).is_err() {
        assert!(folder.exists(), "put the tools in place");
    }
    folder
}

/// Every YAML document of a text.
#[track_caller]
pub fn documents(yaml: &str) -> Vec<Value> {
    let file = tempfile::NamedTempFile::new().expect("make a file");
    fs::write(file.path(), yaml).expect("write a file");
    let outcome = run("inspect", &["json", arg(file.path())]).succeeded();
    serde_json::from_str(outcome.text()).expect("JSON")
}

/// Checks a text with a reader of `inspect`.
#[track_caller]
pub fn inspect(reader: &str, text: &str) -> Outcome {
    let file = tempfile::NamedTempFile::new().expect("make a file");
    fs::write(file.path(), text).expect("write a file");
    run("inspect", &[reader, arg(file.path())])
}

/// Checks manifests against the schemas of versions of Kubernetes, which know
/// every field there is.
#[track_caller]
pub fn validate(versions: &[&str], manifests: &[&Value]) -> Outcome {
    let folder = tempfile::tempdir().expect("make a folder");
    let mut validate = Command::new("python3");
    validate
        .args(["-m", "kubernetes_validate", "--strict"])
        .args(versions.iter().flat_map(|version| ["-k", version]))
        .env("PYTHONPATH", python::package(VALIDATOR))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    for (number, manifest) in manifests.iter().enumerate() {
        let kind = manifest["kind"].as_str().unwrap_or("unknown");
        let file = folder.path().join(format!("{number}-{kind}.yaml"));
        fs::write(&file, manifest.to_string()).expect("write a file");
        validate.arg(file);
    }
    command::run(&mut validate, LIMIT, python::REMEDY)
}

/// Prometheus's own tool.
#[track_caller]
pub fn promtool(args: &[&str]) -> Outcome {
    let promtool = debian::package("prometheus").join("usr/bin/promtool");
    let mut command = Command::new(promtool);
    command.args(args).current_dir(deployed("prometheus"));
    command::run(&mut command, LIMIT, "run `apt-get update`")
}
