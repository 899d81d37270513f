//! The agent's configuration: what wins over what, and one clear line for what is
//! wrong, before anything is started.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::path::Path;
use std::time::Duration;

use ::goprof::agent::config::Config;
use goprof_tests::{command, goprof};

const LIMIT: Duration = Duration::from_secs(30);

fn write(dir: &Path, text: &str) -> String {
    let path = dir.join("goprof.toml");
    std::fs::write(&path, text).expect("write a configuration");
    path.to_str().expect("a UTF-8 path").to_owned()
}

/// It is refused with code 2 and one line that holds these.
#[track_caller]
fn assert_refused(text: &str, words: &[&str]) {
    let dir = tempfile::tempdir().expect("make a directory");
    let path = write(dir.path(), text);
    for more in [&["--print-config"][..], &[]] {
        let args = [&["agent", "--config", &path], more].concat();
        let outcome = goprof::run(&args);
        let said = outcome.stderr.trim_end();
        assert_eq!(outcome.code(), 2, "{said}");
        assert_eq!(outcome.text(), "");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with(&format!("goprof: {path}: ")), "{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in {said:?}");
        }
    }
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    assert_refused(
        "rate_hz = 19\n\n[store]\nurl = \"/x\"\nflsh = 1\n",
        &["line 5", "store.flsh", "unknown"],
    );
    assert_refused("[[rules]]\nevnt = \"cpu\"\n", &["line 2", "rules[0].evnt"]);
}

#[test]
fn a_wrong_value_is_named_with_its_line() {
    assert_refused("\nrate_hz = 0\n", &["line 2", "rate_hz", "1 to 1000"]);
    assert_refused("flush = \"soon\"\n", &["line 1", "flush", "soon"]);
    assert_refused("memory_limit = true\n", &["line 1", "memory_limit"]);
    assert_refused(
        "[http]\nlisten = \"localhost\"\n",
        &["line 2", "http.listen"],
    );
    assert_refused(
        "memory_limit = \"1MiB\"\n",
        &["line 1: memory_limit", "at least"],
    );
    assert_refused("node = \"a/../b\"\n", &["line 1: node"]);
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    assert_refused("rate_hz = 19\n= 3\n", &["line 2"]);
    assert_refused("[store\n", &["line 1"]);
    assert_refused("rate_hz = 19\nrate_hz = 20\n", &["line 2", "rate_hz"]);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let outcome = goprof::run(&["agent", "--config", "/no/such/goprof.toml"]);
    assert_eq!(outcome.code(), 2);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains("/no/such/goprof.toml"));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let dir = tempfile::tempdir().expect("make a directory");
    let text = "rate_hz = 7\nflush = \"5m\"\nnode = \"file\"\n\
                [[rules]]\ninclude = [{ namespace = \"prod-.*\" }]\n";
    let path = write(dir.path(), text);
    let args = ["agent", "--config", &path, "--print-config", "--rate", "29"];
    let mut print = goprof::command(&args);
    print
        .env("GOPROF_RATE", "31")
        .env("GOPROF_NODE", "variable");
    let outcome = command::run(&mut print, LIMIT, "build it").succeeded();
    let printed = outcome.text();
    let config = Config::parse(printed).expect("what is printed can be read");
    assert_eq!(config.rate_hz.0, 29);
    assert_eq!(config.node, "variable");
    assert_eq!(config.flush.0, Duration::from_secs(300));
    assert_eq!(config.cluster, "default");
    assert!(printed.contains("prod-.*"), "{printed}");

    // What is printed comes to the same.
    let path = write(dir.path(), printed);
    let again = goprof::run(&["agent", "--config", &path, "--print-config"]);
    assert_eq!(again.succeeded().text(), printed);
}

#[test]
fn a_wrong_flag_or_variable_is_usage() {
    let outcome = goprof::run(&["agent", "--print-config", "--rate", "0"]);
    assert_eq!(outcome.code(), 2);
    assert!(outcome.stderr.contains("--rate"), "{}", outcome.stderr);
    let mut print = goprof::command(&["agent", "--print-config"]);
    print.env("GOPROF_FLUSH", "never");
    let outcome = command::run(&mut print, LIMIT, "build it");
    assert_eq!(outcome.code(), 2);
    assert!(outcome.stderr.contains("never"), "{}", outcome.stderr);
}
