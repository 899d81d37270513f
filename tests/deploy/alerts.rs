//! The alerts: Prometheus's own tool takes them, and each fires when it should. The
//! copy for the Prometheus Operator is the same.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::tools::{deployed, documents, promtool, text};

const COPY: &str = "kubernetes/components/prometheus-operator/prometheusrule.yaml";
/// What the copy begins with.
const HEAD: &str = "\
# Made of deploy/prometheus/alerts.yaml by
# UPDATE_EXPECT=1 cargo xtask test -- --test deploy alerts
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: goprof
  labels:
    app.kubernetes.io/name: goprof
spec:
";

/// The rules of `alerts.yaml`.
pub fn rules() -> Vec<Value> {
    let file = documents(&text("prometheus/alerts.yaml")).remove(0);
    let groups = file["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
    rules.cloned().collect()
}

#[test]
fn alerts_fire_when_they_should() {
    promtool(&["check", "rules", "alerts.yaml"]).succeeded();
    promtool(&["test", "rules", "alerts_test.yaml"]).succeeded();

    // Each of them does once, in the tests.
    let tests = documents(&text("prometheus/alerts_test.yaml"))
        .remove(0)
        .to_string();
    let names: BTreeSet<String> = rules()
        .iter()
        .map(|rule| rule["alert"].as_str().expect("a name").to_owned())
        .collect();
    for name in &names {
        let fires = format!(r#"{{alertname=\"{name}\""#);
        assert!(tests.contains(&fires), "no test of {name}");
    }
    assert_eq!(names.len(), rules().len());
}

#[test]
fn alerts_say_what_to_do() {
    for rule in rules() {
        let name = rule["alert"].as_str().expect("a name");
        assert!(name.starts_with("Goprof"), "{name}");
        let severity = &rule["labels"]["severity"];
        assert!(
            ["info", "warning", "critical"]
                .iter()
                .any(|known| severity == known),
            "{name}: {severity}"
        );
        for (key, least) in [("summary", 20), ("description", 100)] {
            let words = rule["annotations"][key].as_str().unwrap_or_default();
            assert!(words.len() >= least, "{name}: {key}: {words}");
        }
        // It says which agent, but of the one that is not there.
        let summary = rule["annotations"]["summary"].as_str().expect("a summary");
        let is_of_one = summary.contains("{{ $labels.instance }}");
        assert_eq!(is_of_one, name != "GoprofAbsent", "{name}: {summary}");
    }
}

#[test]
fn alerts_are_the_same_for_the_operator() {
    let mut copy = HEAD.to_owned();
    for line in text("prometheus/alerts.yaml").lines() {
        copy += &match line {
            "" => "\n".to_owned(),
            line => format!("  {line}\n"),
        };
    }
    if std::env::var_os("UPDATE_EXPECT").is_some_and(|value| value == "1") {
        fs::write(deployed(COPY), &copy).expect("write the copy");
    }
    assert!(
        text(COPY) == copy,
        "{COPY} is old: UPDATE_EXPECT=1 makes it anew"
    );
    let rule = documents(&copy).remove(0);
    let file = documents(&text("prometheus/alerts.yaml")).remove(0);
    assert_eq!(rule["spec"], json!({"groups": file["groups"]}));
}
