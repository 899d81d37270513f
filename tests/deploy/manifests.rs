//! The kustomize base and the Helm chart: rendered by the tools themselves, valid,
//! the same, and true of goprof.

use std::collections::BTreeMap;

use goprof_tests::{command, goprof};
use serde_json::{Value, json};

use crate::tools::{self, LIMIT, arg, deployed, documents, run, text};

/// The oldest version of Kubernetes that knows all of it, and the newest known.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];
/// What is no part of Kubernetes itself.
const OPERATOR: &str = "monitoring.coreos.com/v1";

#[track_caller]
fn kustomize(folder: &str) -> Vec<Value> {
    let built = run("kustomize", &["build", arg(&deployed(folder))]);
    documents(built.succeeded().text())
}

#[track_caller]
fn helm(more: &[&str]) -> Vec<Value> {
    let mut args = vec!["template", "any", "helm/goprof", "--namespace", "goprof"];
    args.extend(["--kube-version", KUBERNETES[0]]);
    args.extend(more);
    documents(run("helm", &args).succeeded().text())
}

/// The rendered example: everything that can be switched on.
fn example() -> Vec<Value> {
    kustomize("kubernetes/overlays/example")
}

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    let found = manifests.iter().find(|manifest| manifest["kind"] == kind);
    found.unwrap_or_else(|| panic!("no {kind}"))
}

/// The base's DaemonSet.
pub fn daemonset() -> Value {
    of_kind(&kustomize("kubernetes/base"), "DaemonSet").clone()
}

/// The base's configuration of the agent.
pub fn configuration_text() -> String {
    text("kubernetes/base/goprof.toml")
}

/// By kind and name, without what only one of the two tools can have: the labels
/// by which Helm knows what is its own, the namespace that it does not make, and
/// how each has pods restarted when their configuration changes.
fn comparable(manifests: Vec<Value>) -> BTreeMap<String, Value> {
    let of_helm = ["app.kubernetes.io/managed-by", "helm.sh/chart"];
    let mut all = BTreeMap::new();
    let generated = generated_name(&manifests);
    for mut manifest in manifests {
        if manifest["kind"] == "Namespace" {
            continue;
        }
        if let Some(labels) = manifest["metadata"]["labels"].as_object_mut() {
            labels.retain(|name, _| !of_helm.contains(&name.as_str()));
        }
        let template = manifest.pointer_mut("/spec/template/metadata");
        if let Some(template) = template.and_then(Value::as_object_mut) {
            let annotations = template.get_mut("annotations");
            if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
                annotations.remove("checksum/config");
            }
            template.retain(|_, value| *value != json!({}));
        }
        let manifest = manifest.to_string().replace(&generated, "goprof");
        let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
        let name = manifest["metadata"]["name"].as_str().expect("a name");
        let key = format!("{} {name}", manifest["kind"].as_str().expect("a kind"));
        assert_eq!(all.insert(key.clone(), manifest), None, "{key} twice");
    }
    all
}

/// What the ConfigMap with the configuration is called.
fn generated_name(manifests: &[Value]) -> String {
    let config = manifests
        .iter()
        .find(|manifest| manifest["data"]["goprof.toml"].is_string());
    let name = config.expect("a configuration")["metadata"]["name"].as_str();
    name.expect("a name").to_owned()
}

#[track_caller]
fn check_same(kustomize: Vec<Value>, helm: Vec<Value>) {
    let (kustomize, helm) = (comparable(kustomize), comparable(helm));
    assert_eq!(
        kustomize.keys().collect::<Vec<_>>(),
        helm.keys().collect::<Vec<_>>()
    );
    for (key, manifest) in kustomize {
        let pretty = |value: &Value| serde_json::to_string_pretty(value).expect("JSON");
        let (one, other) = (pretty(&manifest), pretty(&helm[&key]));
        let lines = one.lines().zip(other.lines());
        let difference: Vec<_> = lines.filter(|(one, other)| one != other).take(3).collect();
        assert!(one == other, "{key}: {difference:#?}");
    }
}

#[test]
fn kustomize_and_helm_say_the_same() {
    check_same(kustomize("kubernetes/base"), helm(&[]));
    check_same(example(), helm(&["--values", "helm/example-values.yaml"]));
}

#[test]
fn kubernetes_knows_every_field() {
    let (base, example, chart) = (kustomize("kubernetes/base"), example(), helm(&[]));
    let all = [&base, &example, &chart].into_iter().flatten();
    let (operators, own): (Vec<_>, Vec<_>) =
        all.partition(|manifest| manifest["apiVersion"] == OPERATOR);
    tools::validate(&KUBERNETES, &own).succeeded();
    assert_eq!(operators.len(), 2);
    for manifest in operators {
        tools::inspect("operator", &manifest.to_string()).succeeded();
    }

    // The checks find what is wrong.
    let mut wrong = of_kind(&base, "DaemonSet").clone();
    wrong["spec"]["template"]["spec"]["hostPid"] = json!(true);
    let outcome = tools::validate(&KUBERNETES, &[&wrong]);
    assert!(!outcome.status.success());
    let said = outcome.text().to_owned() + &outcome.stderr;
    assert!(said.contains("hostPid"), "{said}");
    let mut wrong = of_kind(&example, "PodMonitor").clone();
    wrong["spec"]["podMetricsEndpoint"] = json!([]);
    let outcome = tools::inspect("operator", &wrong.to_string());
    assert!(
        outcome.stderr.contains("podMetricsEndpoint"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn the_chart_is_in_order() {
    for values in [&[][..], &["--values", "helm/example-values.yaml"]] {
        run(
            "helm",
            &[&["lint", "--strict", "helm/goprof"], values].concat(),
        )
        .succeeded();
    }
    for (wrong, named) in [
        (
            "terminationGracePeriodSeconds=5",
            "terminationGracePeriodSeconds",
        ),
        ("imagee.tag=1", "imagee"),
        ("capabilities={CAP_BPF}", "capabilities"),
        ("criSocket=run/containerd.sock", "criSocket"),
    ] {
        let outcome = run("helm", &["template", "any", "helm/goprof", "--set", wrong]);
        assert!(!outcome.status.success(), "{wrong}");
        assert!(outcome.stderr.contains(named), "{}", outcome.stderr);
    }
}

#[test]
fn what_can_be_switched_off_is_gone() {
    let off = [
        "networkPolicy.enabled=false",
        "rbac.create=false",
        "serviceAccount.create=false,serviceAccount.name=other",
        "priorityClass.create=false,priorityClass.name=other-class",
        "privileged=true",
        "storeSecret=,httpSecret=",
        "fullnameOverride=prof,image.digest=sha256:0000000000000000000000000000000000000000000000000000000000000000",
    ];
    let args: Vec<&str> = off.iter().flat_map(|value| ["--set", value]).collect();
    let manifests = helm(&args);
    let kinds: Vec<&str> = manifests.iter().flat_map(|m| m["kind"].as_str()).collect();
    assert_eq!(kinds, ["ConfigMap", "DaemonSet"]);
    tools::validate(&KUBERNETES, &manifests.iter().collect::<Vec<_>>()).succeeded();
    let pod = &of_kind(&manifests, "DaemonSet")["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "other");
    assert_eq!(pod["priorityClassName"], "other-class");
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["privileged"], true);
    assert!(
        container["image"]
            .as_str()
            .is_some_and(|i| i.contains("goprof@sha256:00"))
    );
    assert!(container.get("envFrom").is_none());
    let volumes = pod["volumes"].as_array().expect("volumes");
    assert_eq!(volumes.len(), 2, "{volumes:?}");
}

#[test]
fn tls_and_tokens_reach_probes_and_prometheus() {
    let manifests = helm(&[
        "--set",
        "tls=true,podMonitor.enabled=true",
        "--set",
        "podMonitor.endpoint.authorization.credentials.name=goprof-http",
        "--set",
        "podMonitor.endpoint.authorization.credentials.key=token",
        "--set",
        "podMonitor.endpoint.tlsConfig.ca.secret.name=goprof-http",
        "--set",
        "podMonitor.endpoint.tlsConfig.ca.secret.key=ca.crt",
    ]);
    let (daemonset, monitor) = (
        of_kind(&manifests, "DaemonSet"),
        of_kind(&manifests, "PodMonitor"),
    );
    tools::validate(&KUBERNETES, &[daemonset]).succeeded();
    tools::inspect("operator", &monitor.to_string()).succeeded();
    let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(container[probe]["httpGet"]["scheme"], "HTTPS", "{probe}");
    }
    let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
    assert_eq!(endpoint["scheme"], "https");
    assert_eq!(endpoint["authorization"]["credentials"]["key"], "token");
}

/// What the agent makes of the configuration of a ConfigMap.
#[track_caller]
fn configuration(manifests: &[Value]) -> toml::Table {
    let name = generated_name(manifests);
    let config = manifests
        .iter()
        .find(|m| m["metadata"]["name"] == name.as_str());
    let text = config.and_then(|config| config["data"]["goprof.toml"].as_str());
    let file = tempfile::NamedTempFile::new().expect("make a file");
    std::fs::write(file.path(), text.expect("a configuration")).expect("write a file");
    let args = ["agent", "--config", arg(file.path()), "--print-config"];
    let mut print = goprof::command(&args);
    let printed = command::run(print.env("NODE_NAME", "node-1"), LIMIT, "build it");
    toml::from_str(printed.succeeded().text()).expect("TOML")
}

fn mebibytes(text: &str) -> u64 {
    let number = text.strip_suffix("MiB").or_else(|| text.strip_suffix("Mi"));
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn the_manifests_fit_the_configuration() {
    for manifests in [kustomize("kubernetes/base"), example()] {
        let config = configuration(&manifests);
        assert_eq!(config["node"].as_str(), Some("node-1"));
        let pod = &of_kind(&manifests, "DaemonSet")["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let port = container["ports"][0]["containerPort"]
            .as_u64()
            .expect("a port");
        let listen = format!("0.0.0.0:{port}");
        assert_eq!(config["http"]["listen"].as_str(), Some(listen.as_str()));
        let policy = of_kind(&manifests, "NetworkPolicy");
        assert_eq!(policy["spec"]["ingress"][0]["ports"][0]["port"], port);

        let limit = container["resources"]["limits"]["memory"]
            .as_str()
            .expect("a limit");
        let own = config["memory_limit"].as_str().expect("a limit");
        assert_eq!(mebibytes(limit), 2 * mebibytes(own));
        assert!(container["resources"]["limits"].get("cpu").is_none());
        assert!(
            pod["terminationGracePeriodSeconds"]
                .as_u64()
                .is_some_and(|s| s >= 15)
        );

        // All that it writes is on the node's disk, where the next pod finds it.
        let spool = config["spool"]["path"].as_str().expect("a path");
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let state = mounts.iter().find(|mount| mount["name"] == "state");
        let at = state.expect("a mount")["mountPath"]
            .as_str()
            .expect("a path");
        assert!(spool.starts_with(&format!("{at}/")), "{spool}");
        assert!(
            config["store"]["url"]
                .as_str()
                .is_some_and(|url| url.starts_with("s3://"))
        );
    }
}

#[test]
fn rights_are_the_same_everywhere() {
    let base = kustomize("kubernetes/base");
    let pod = &of_kind(&base, "DaemonSet")["spec"]["template"]["spec"];
    let added = pod["containers"][0]["securityContext"]["capabilities"]["add"].clone();
    let added: Vec<String> = serde_json::from_value(added).expect("a list");
    let wanted: Vec<String> = added.iter().map(|name| format!("CAP_{name}")).collect();
    let unit = text("systemd/goprof.service");
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        let line = unit
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{key}=")));
        let given: Vec<&str> = line.expect("capabilities").split(' ').collect();
        assert_eq!(given, wanted, "{key}");
    }
    // What goprof asks for where it has none.
    let mut doctor = std::process::Command::new("setpriv");
    doctor.args(["--bounding-set=-all", "--inh-caps=-all"]);
    doctor.arg(goprof::binary()).arg("doctor");
    let asked = command::run(&mut doctor, LIMIT, "install util-linux");
    let asked = (asked.text().to_owned() + &asked.stderr).to_uppercase();
    for name in &added {
        assert!(asked.contains(name), "{name}\n{asked}");
    }

    let role = of_kind(&base, "ClusterRole");
    let identity = std::fs::read_to_string(deployed("../docs/identity.md")).expect("read a page");
    assert_eq!(
        role["rules"],
        json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}])
    );
    assert!(identity.contains(r#"verbs: ["get", "list", "watch"]"#));
}

#[test]
fn versions_are_goprofs_own() {
    let version = env!("CARGO_PKG_VERSION");
    let chart = &documents(&text("helm/goprof/Chart.yaml"))[0];
    assert_eq!(chart["appVersion"], version);
    let base = kustomize("kubernetes/base");
    let pod = &of_kind(&base, "DaemonSet")["spec"]["template"]["spec"];
    let image = format!("registry.example/goprof:{version}");
    assert_eq!(pod["containers"][0]["image"], image.as_str());
}
