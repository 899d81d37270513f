//! What Pyroscope and Parca are asked to take: a pprof file with labels, in the
//! messages of `push/v1/push.proto` of github.com/grafana/pyroscope and
//! `parca/profilestore/v1alpha1/profilestore.proto` of github.com/parca-dev/parca,
//! as far as goprof writes them.

use prost::Message;

use super::labels::Label;

/// The label that says what was measured.
const NAME: &str = "__name__";
/// The label that says whether Pyroscope has to subtract the profile before.
/// None of ours goes on from another.
const DELTA: &str = "__delta__";

/// A `PushRequest` of Pyroscope's. `id` is the profile's, and unique.
pub(super) fn pyroscope(name: &str, labels: &[&Label], id: u128, raw_profile: Vec<u8>) -> Vec<u8> {
    let mut labels = pairs(name, labels);
    labels.push(pair(DELTA, "false"));
    let samples = vec![RawSample {
        raw_profile,
        id: uuid(id),
    }];
    let series = vec![PyroscopeSeries { labels, samples }];
    PushRequest { series }.encode_to_vec()
}

/// A `WriteRawRequest` of Parca's.
pub(super) fn parca(name: &str, labels: &[&Label], raw_profile: Vec<u8>) -> Vec<u8> {
    let labels = Some(LabelSet {
        labels: pairs(name, labels),
    });
    let id = String::new();
    let samples = vec![RawSample { raw_profile, id }];
    let series = vec![ParcaSeries { labels, samples }];
    WriteRawRequest { series }.encode_to_vec()
}

fn pairs(name: &str, labels: &[&Label]) -> Vec<Pair> {
    let more = labels.iter().map(|(name, value)| pair(name, value));
    std::iter::once(pair(NAME, name)).chain(more).collect()
}

fn pair(name: &str, value: &str) -> Pair {
    Pair {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

/// As RFC 9562 writes a UUID of version 7, which a ULID is but for six bits.
fn uuid(id: u128) -> String {
    let id = id & !(0xf << 76) & !(0x3 << 62) | 0x7 << 76 | 0x2 << 62;
    let hex = format!("{id:032x}");
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    parts.join("-")
}

#[derive(Clone, PartialEq, Message)]
struct PushRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<PyroscopeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct PyroscopeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Pair>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

#[derive(Clone, PartialEq, Message)]
struct WriteRawRequest {
    #[prost(message, repeated, tag = "2")]
    series: Vec<ParcaSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct ParcaSeries {
    #[prost(message, optional, tag = "1")]
    labels: Option<LabelSet>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<RawSample>,
}

#[derive(Clone, PartialEq, Message)]
struct LabelSet {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Pair>,
}

/// A label, the same in both.
#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// A profile; the id is Pyroscope's alone.
#[derive(Clone, PartialEq, Message)]
struct RawSample {
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
    #[prost(string, tag = "2")]
    id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_uuids_of_version_7() {
        assert_eq!(uuid(0), "00000000-0000-7000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-7fff-bfff-ffffffffffff");
        assert_eq!(
            uuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
            "01234567-89ab-7def-8123-456789abcdef"
        );
    }
}
