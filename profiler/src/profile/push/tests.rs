//! Windows taken apart for receivers: whose the parts are, how large they get,
//! and that nothing is gone on the way. Receivers' own decoders read them in
//! `tests/push.rs`.

use std::collections::BTreeMap;

use super::otlp_messages as otlp;
use super::*;
use crate::identity::{Target, label};
use crate::profile::fixture;
use crate::symbolize::{FrameKind, LocationId};

fn batch(window: SymbolizedWindow, services: &[&str]) -> Batch {
    let processes = window.processes.iter().zip(services);
    let targets = processes.map(|(process, service)| Target {
        pid: process.pid,
        labels: BTreeMap::from([
            (label::SERVICE_NAME, (*service).to_owned()),
            (label::EXE, process.exe.clone()),
            (label::GO_VERSION, process.go_version.clone()),
        ]),
        is_partial: false,
    });
    Batch {
        targets: targets.collect(),
        window,
    }
}

fn settings() -> Settings {
    Settings {
        cluster: "prod".to_owned(),
        ..Settings::default()
    }
}

/// A profile as far as the tests look at it.
struct Sent {
    labels: Vec<Label>,
    message: proto::Profile,
    window: SymbolizedWindow,
}

impl Sent {
    fn label(&self, name: &str) -> &str {
        let mut found = self.labels.iter().filter(|(n, _)| n == name);
        found.next().map_or("", |(_, value)| value)
    }

    fn value(&self, index: usize) -> i64 {
        self.message.sample.iter().map(|s| s.value[index]).sum()
    }

    fn functions(&self) -> Vec<&str> {
        let table = &self.message.string_table;
        let functions = self.message.function.iter();
        functions.map(|f| table[f.name as usize].as_str()).collect()
    }
}

#[track_caller]
fn send(batch: &Batch) -> (Vec<Sent>, Losses) {
    let mut sent = Vec::new();
    let losses = profiles(batch, &settings(), |profile| {
        sent.push(Sent {
            labels: profile.labels.to_vec(),
            message: profile.message.clone(),
            window: profile.window.clone(),
        });
        Ok(())
    });
    (sent, losses.unwrap())
}

#[test]
fn each_service_is_a_profile_with_its_own_functions() {
    let (sent, losses) = send(&batch(fixture::two_processes(), &["api", "worker"]));
    let [api, worker] = &sent[..] else {
        panic!("{} profiles", sent.len())
    };
    assert_eq!(losses, Losses::default());
    assert_eq!((api.label("service_name"), api.value(0)), ("api", 3));
    assert_eq!(
        (api.label("exe"), api.label("cluster")),
        ("/srv/api", "prod")
    );
    assert_eq!(api.functions(), ["net/http.(*conn).serve"]);
    assert_eq!(worker.functions(), ["main.run"]);
    assert_eq!(worker.value(1), 5 * 10_101_010);
    assert_eq!(worker.message.mapping.len(), 1);
    // Not even pid and comm are labels of a sample.
    assert!(sent.iter().all(|p| p.message.sample[0].label.is_empty()));
}

#[test]
fn goroutines_and_their_time_have_types_of_their_own() {
    let wall = [("samples", "count"), ("wall", "nanoseconds")];
    let goroutine = [("goroutine", "count")];
    for (event, series, types) in [
        (Event::Wall, "wall", &wall[..]),
        (Event::Goroutine, "goroutine", &goroutine),
    ] {
        let mut window = fixture::one_process();
        (window.event, window.period) = (event, 52_000_000);
        window.samples.truncate(1);
        window.samples[0].values = [3, 157_000_001, 0, 0];
        let mut sent = 0;
        let losses = profiles(&batch(window, &["app"]), &settings(), |profile| {
            sent += 1;
            assert_eq!(profile.event.series_name(), series);
            let text = |index: i64| profile.message.string_table[index as usize].as_str();
            let found = profile.message.sample_type.iter();
            let found: Vec<_> = found.map(|t| (text(t.r#type), text(t.unit))).collect();
            assert_eq!(found, types);
            let last = types[types.len() - 1];
            let period = profile.message.period_type.expect("a type");
            assert_eq!((text(period.r#type), text(period.unit)), last);
            let values = &profile.message.sample[0].value;
            assert_eq!(values[..], [3, 157_000_001][..types.len()]);
            for protocol in [Protocol::Pyroscope, Protocol::Parca, Protocol::Otlp] {
                assert!(!profile.request(protocol, &[], profile.new_id())?.is_empty());
            }
            Ok(())
        });
        assert_eq!((sent, losses.unwrap()), (1, Losses::default()));
    }
}

#[test]
fn processes_with_the_same_labels_are_one_and_equal_stacks_too() {
    let mut window = fixture::with_threads(fixture::one_process());
    let mut second = window.processes[0].clone();
    second.pid = 43;
    window.processes.push(second);
    for mut sample in window.samples.clone() {
        sample.process.0 = 1;
        sample.goid = Some(7);
        window.samples.push(sample);
    }
    let (sent, _) = send(&batch(window, &["app", "app"]));
    assert_eq!(sent.len(), 1);
    let counts: Vec<i64> = sent[0].message.sample.iter().map(|s| s.value[0]).collect();
    assert_eq!(counts, [140, 40, 2]);
    assert!(sent[0].message.sample.iter().all(|s| s.label.is_empty()));
}

#[test]
fn labels_of_goroutines_stay_and_tell_samples_apart() {
    let mut window = fixture::one_process();
    let mut labelled = window.samples[0].clone();
    labelled.labels = vec![("path".into(), "/a".into()), ("pod".into(), "x".into())];
    window.samples.push(labelled);
    let (sent, losses) = send(&batch(window, &["app"]));
    assert_eq!(losses, Losses::default());
    let message = &sent[0].message;
    assert_eq!(message.sample.len(), 4);
    let text = |index: i64| message.string_table[index as usize].as_str();
    let labels = message.sample[3].label.iter();
    let labels: Vec<_> = labels.map(|l| (text(l.key), text(l.str))).collect();
    assert_eq!(labels, [("exported_pod", "x"), ("path", "/a")]);
}

/// A window with that many stacks in functions with names of that length.
fn many(stacks: u32, name_bytes: usize) -> SymbolizedWindow {
    let mut b = fixture::Builder::new();
    let app = b.process(1, "app", "/srv/app");
    let mut window = b.build();
    for number in 0..stacks {
        let name = format!("main.f{number:0name_bytes$}");
        window.functions.push(crate::symbolize::Function {
            name,
            file: String::new(),
            start_line: 0,
        });
        window.locations.push(crate::symbolize::Location {
            address: number.into(),
            mapping: None,
            kind: FrameKind::Go,
            lines: vec![crate::symbolize::Line {
                function: crate::symbolize::FunctionId(number),
                line: 1,
            }],
            reason: None,
        });
        window.samples.push(crate::symbolize::Sample {
            process: app,
            thread: None,
            goid: None,
            labels: Vec::new(),
            stack: vec![LocationId(number)],
            values: [1, 10, 0, 0],
            block_bytes: None,
        });
    }
    window
}

#[test]
fn what_is_too_much_for_one_profile_goes_in_several() {
    for (stacks, name_bytes) in [(40_000, 6), (1_000, 10_000)] {
        let (sent, losses) = send(&batch(many(stacks, name_bytes), &["app"]));
        assert_eq!(losses, Losses::default());
        assert!(sent.len() > 2, "{} profiles", sent.len());
        let total: i64 = sent.iter().map(|profile| profile.value(0)).sum();
        assert_eq!(total, i64::from(stacks));
        for profile in &sent {
            assert!(profile.message.sample.len() <= MAX_SAMPLES);
            assert!(profile.message.encoded_len() <= MAX_PROFILE_BYTES);
            let functions = profile.message.function.len();
            assert_eq!(functions, profile.message.sample.len());
        }
        let mut times: Vec<i64> = sent.iter().map(|p| p.message.time_nanos).collect();
        times.dedup();
        assert_eq!(times.len(), sent.len(), "two parts have the same time");
    }
}

#[test]
fn a_sample_too_large_for_any_receiver_is_counted_and_stops_no_other() {
    let mut window = many(2, 10);
    window.functions[1].name = "x".repeat(MAX_PROFILE_BYTES);
    let (sent, losses) = send(&batch(window, &["app"]));
    assert_eq!((sent.len(), losses.too_large), (1, 1));
    assert_eq!(sent[0].value(0), 1);
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let mut lacking = batch(fixture::two_processes(), &["api", "worker"]);
    lacking.targets.pop();
    assert!(profiles(&lacking, &settings(), |_| Ok(())).is_err());
    let mut broken = batch(fixture::one_process(), &["app"]);
    broken.window.samples[0].stack.push(LocationId(99));
    assert!(profiles(&broken, &settings(), |_| Ok(())).is_err());
}

/// The tables of a request, by the numbers in it.
fn decode(sent: &Sent) -> (otlp::ResourceProfiles, otlp::Dictionary) {
    let labels: Vec<&Label> = sent.labels.iter().collect();
    let bytes = super::otlp::request(&sent.message, &sent.window, &labels, 7);
    let mut request = otlp::Request::decode(&bytes[..]).unwrap();
    let dictionary = request.dictionary.unwrap();
    (request.resource_profiles.remove(0), dictionary)
}

#[test]
fn otlp_has_a_profile_for_each_type_over_shared_tables() {
    let mut window = fixture::one_process();
    window.samples[0].labels = vec![("path".into(), "/a".into())];
    let (sent, _) = send(&batch(window, &["app"]));
    let (profiles, tables) = decode(&sent[0]);
    let string = |index: i32| tables.string_table[index as usize].as_str();
    let attribute = |index: &i32| {
        let attribute = &tables.attribute_table[*index as usize];
        let value = attribute
            .value
            .as_ref()
            .and_then(|v| v.string_value.as_deref());
        (string(attribute.key_strindex), value.unwrap_or_default())
    };
    let profiles = &profiles.scope_profiles[0].profiles;
    let kinds: Vec<_> = profiles
        .iter()
        .map(|p| {
            (
                string(p.sample_type.unwrap().type_strindex),
                p.profile_id[15],
            )
        })
        .collect();
    assert_eq!(kinds, [("samples", 7), ("cpu", 8)]);
    let values: Vec<_> = profiles[1].samples.iter().map(|s| s.values[0]).collect();
    assert_eq!(values, [707_070_700, 202_020_200, 10_101_010]);
    let labelled = &profiles[0].samples[0];
    let path = attribute(&labelled.attribute_indices[0]);
    assert_eq!(path, ("process.context.label.path", "/a"));
    // main.work, with main.hot inlined, is called by main.main.
    let stack = &tables.stack_table[labelled.stack_index as usize];
    let names: Vec<Vec<&str>> = stack
        .location_indices
        .iter()
        .map(|index| {
            let lines = tables.location_table[*index as usize].lines.iter();
            let function = |line: &otlp::Line| tables.function_table[line.function_index as usize];
            lines
                .map(|line| string(function(line).name_strindex))
                .collect()
        })
        .collect();
    assert_eq!(names, [vec!["main.hot", "main.work"], vec!["main.main"]]);
    let leaf = &tables.location_table[stack.location_indices[0] as usize];
    let kind = attribute(&leaf.attribute_indices[0]);
    assert_eq!(kind, ("profile.frame.type", "go"));
    let mapping = &tables.mapping_table[leaf.mapping_index as usize];
    assert_eq!(string(mapping.filename_strindex), "/srv/app");
    let build = attribute(&mapping.attribute_indices[0]);
    assert_eq!(build, ("process.executable.build_id.gnu", "ab12"));
}

#[test]
fn otlp_begins_each_table_with_nothing_and_names_the_resource() {
    let (sent, _) = send(&batch(fixture::one_process(), &["app"]));
    let (profiles, tables) = decode(&sent[0]);
    assert_eq!(tables.string_table[0], "");
    assert_eq!(tables.mapping_table[0], otlp::Mapping::default());
    assert_eq!(tables.location_table[0], otlp::Location::default());
    assert_eq!(tables.function_table[0], otlp::Function::default());
    assert_eq!(tables.attribute_table[0], otlp::Attribute::default());
    assert_eq!(tables.stack_table[0], otlp::Stack::default());
    assert_eq!(tables.link_table.len(), 1);
    let attributes = profiles.resource.unwrap().attributes;
    let attributes: BTreeMap<_, _> = attributes
        .into_iter()
        .map(|a| (a.key, a.value.unwrap().string_value.unwrap()))
        .collect();
    for (name, value) in [
        ("service.name", "app"),
        ("process.executable.path", "/srv/app"),
        ("process.runtime.name", "go"),
        ("process.runtime.version", "go1.26.8"),
        ("k8s.cluster.name", "prod"),
    ] {
        assert_eq!(
            attributes.get(name).map(String::as_str),
            Some(value),
            "{name}"
        );
    }
}
