//! OTLP profiles: a pprof message over again in OpenTelemetry's tables, which
//! have the same numbers: both keep the first for nothing. What is measured, and
//! in what units, is the pprof message's.

use std::collections::HashMap;

use prost::Message as _;

use super::labels::Label;
use super::otlp_messages::{
    AnyValue, Attribute, Dictionary, Function, KeyValue, Line, Link, Location, Mapping, Profile,
    Request, Resource, ResourceProfiles, Sample, Scope, ScopeProfiles, Stack, ValueType,
};
use crate::identity::label;
use crate::profile::proto;
use crate::symbolize::{FrameKind, SymbolizedWindow};

/// What OpenTelemetry's semantic conventions call a label that they know.
fn attribute_name(label: &str) -> &str {
    match label {
        label::SERVICE_NAME => "service.name",
        label::NAMESPACE => "k8s.namespace.name",
        label::POD => "k8s.pod.name",
        label::CONTAINER => "k8s.container.name",
        label::CONTAINER_ID => "container.id",
        label::NODE => "host.name",
        label::EXE => "process.executable.path",
        label::BUILD_ID => "process.executable.build_id.gnu",
        label::GO_VERSION => "process.runtime.version",
        super::labels::CLUSTER => "k8s.cluster.name",
        other => other,
    }
}

/// An `ExportProfilesServiceRequest` with a profile for each type of value.
/// `window` is what the message was made of, and `id` the first of as many ids as
/// it has types.
pub(super) fn request(
    profile: &proto::Profile,
    window: &SymbolizedWindow,
    labels: &[&Label],
    id: u128,
) -> Vec<u8> {
    let mut tables = Tables::new(profile);
    let mapping_table = mappings(profile, &mut tables);
    let location_table = locations(profile, window, &mut tables);
    let (samples, stack_table) = samples(profile, &mut tables);
    let types = profile.sample_type.iter().enumerate().zip(id..);
    let profiles = types
        .map(|((index, kind), id)| Profile {
            sample_type: Some(value_type(kind)),
            samples: of_type(profile, &samples, index),
            time_unix_nano: u64::try_from(profile.time_nanos).unwrap_or(0),
            duration_nano: u64::try_from(profile.duration_nanos).unwrap_or(0),
            period_type: profile.period_type.as_ref().map(value_type),
            period: profile.period,
            profile_id: id.to_be_bytes().to_vec(),
        })
        .collect();
    let scope_profiles = vec![ScopeProfiles {
        scope: Some(Scope {
            name: "goprof".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }),
        profiles,
    }];
    let resource_profiles = vec![ResourceProfiles {
        resource: Some(resource(labels)),
        scope_profiles,
    }];
    let dictionary = Dictionary {
        mapping_table,
        location_table,
        function_table: functions(profile),
        link_table: vec![Link::default()],
        string_table: tables.strings,
        attribute_table: tables.attributes,
        stack_table,
    };
    Request {
        resource_profiles,
        dictionary: Some(dictionary),
    }
    .encode_to_vec()
}

fn resource(labels: &[&Label]) -> Resource {
    let attribute = |key: &str, value: &str| KeyValue {
        key: key.to_owned(),
        value: Some(text(value)),
    };
    let named = labels.iter();
    let named = named.map(|(name, value)| attribute(attribute_name(name), value));
    let value_of = |wanted: &str| {
        let mut found = labels.iter().filter(|(name, _)| name == wanted);
        found.next().map(|(_, value)| value)
    };
    let in_pod = value_of(label::POD).and(value_of(label::NODE));
    let node = in_pod.map(|node| attribute("k8s.node.name", node));
    let runtime = value_of(label::GO_VERSION).map(|_| attribute("process.runtime.name", "go"));
    Resource {
        attributes: named.chain(node).chain(runtime).collect(),
    }
}

fn text(value: &str) -> AnyValue {
    AnyValue {
        string_value: Some(value.to_owned()),
    }
}

/// The tables that pprof has not, or has to be longer.
struct Tables {
    strings: Vec<String>,
    attributes: Vec<Attribute>,
    known_strings: HashMap<String, i32>,
    known_attributes: HashMap<(i32, String), i32>,
}

impl Tables {
    fn new(profile: &proto::Profile) -> Self {
        Tables {
            strings: profile.string_table.clone(),
            attributes: vec![Attribute::default()],
            known_strings: HashMap::new(),
            known_attributes: HashMap::new(),
        }
    }

    /// Adds a string that is not in pprof's table: nothing there is called so.
    fn string(&mut self, string: &str) -> i32 {
        if let Some(index) = self.known_strings.get(string) {
            return *index;
        }
        let index = number(self.strings.len());
        self.strings.push(string.to_owned());
        self.known_strings.insert(string.to_owned(), index);
        index
    }

    fn attribute(&mut self, key: &str, value: &str) -> i32 {
        let key_strindex = self.string(key);
        let known = (key_strindex, value.to_owned());
        if let Some(index) = self.known_attributes.get(&known) {
            return *index;
        }
        let index = number(self.attributes.len());
        self.attributes.push(Attribute {
            key_strindex,
            value: Some(text(value)),
        });
        self.known_attributes.insert(known, index);
        index
    }
}

/// A number of one of the tables, which are far shorter than that can say.
fn number(index: impl TryInto<i32>) -> i32 {
    index.try_into().unwrap_or(0)
}

fn value_type(kind: &proto::ValueType) -> ValueType {
    ValueType {
        type_strindex: number(kind.r#type),
        unit_strindex: number(kind.unit),
    }
}

fn mappings(profile: &proto::Profile, tables: &mut Tables) -> Vec<Mapping> {
    let mut table = vec![Mapping::default()];
    for mapping in &profile.mapping {
        let build_id = string(profile, mapping.build_id);
        let name = "process.executable.build_id.gnu";
        let attribute = (!build_id.is_empty()).then(|| tables.attribute(name, build_id));
        table.push(Mapping {
            memory_start: mapping.memory_start,
            memory_limit: mapping.memory_limit,
            file_offset: mapping.file_offset,
            filename_strindex: number(mapping.filename),
            attribute_indices: attribute.into_iter().collect(),
        });
    }
    table
}

fn locations(
    profile: &proto::Profile,
    window: &SymbolizedWindow,
    tables: &mut Tables,
) -> Vec<Location> {
    let mut table = vec![Location::default()];
    for (location, whole) in profile.location.iter().zip(&window.locations) {
        let kind = match whole.kind {
            FrameKind::Go => "go",
            FrameKind::Native => "native",
            FrameKind::Kernel => "kernel",
        };
        let line = |line: &proto::Line| Line {
            function_index: number(line.function_id),
            line: line.line,
        };
        table.push(Location {
            mapping_index: number(location.mapping_id),
            address: location.address,
            lines: location.line.iter().map(line).collect(),
            attribute_indices: vec![tables.attribute("profile.frame.type", kind)],
        });
    }
    table
}

fn functions(profile: &proto::Profile) -> Vec<Function> {
    let function = |function: &proto::Function| Function {
        name_strindex: number(function.name),
        system_name_strindex: number(function.system_name),
        filename_strindex: number(function.filename),
        start_line: function.start_line,
    };
    let functions = profile.function.iter().map(function);
    std::iter::once(Function::default())
        .chain(functions)
        .collect()
}

/// The samples without values, and the distinct stacks.
fn samples(profile: &proto::Profile, tables: &mut Tables) -> (Vec<Sample>, Vec<Stack>) {
    let mut stacks = vec![Stack::default()];
    let mut known: HashMap<&[u64], i32> = HashMap::new();
    let mut samples = Vec::with_capacity(profile.sample.len());
    for sample in &profile.sample {
        let stack_index = *known.entry(&sample.location_id).or_insert_with(|| {
            let location_indices = sample.location_id.iter().map(|id| number(*id)).collect();
            stacks.push(Stack { location_indices });
            number(stacks.len() - 1)
        });
        let texts = sample.label.iter().filter(|label| label.str != 0);
        let attribute_indices = texts
            .map(|label| {
                let key = string(profile, label.key);
                let key = format!("process.context.label.{key}");
                tables.attribute(&key, string(profile, label.str))
            })
            .collect();
        samples.push(Sample {
            stack_index,
            attribute_indices,
            values: Vec::new(),
        });
    }
    (samples, stacks)
}

/// The samples with their values of one type, but for those that have none.
fn of_type(profile: &proto::Profile, samples: &[Sample], index: usize) -> Vec<Sample> {
    let values = profile.sample.iter();
    let values = values.map(|sample| sample.value.get(index).copied().unwrap_or(0));
    let with_values = samples.iter().zip(values).filter(|(_, value)| *value != 0);
    with_values
        .map(|(sample, value)| Sample {
            values: vec![value],
            ..sample.clone()
        })
        .collect()
}

fn string(profile: &proto::Profile, index: i64) -> &str {
    let index = usize::try_from(index).ok();
    let found = index.and_then(|index| profile.string_table.get(index));
    found.map_or("", String::as_str)
}
