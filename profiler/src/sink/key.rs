//! Keys of the objects in the store: folders that query engines prune by, in
//! Hive's style. Pure: looks at no store.

use std::time::SystemTime;

use ulid::Ulid;

use super::filename::civil_date;

/// The layout of keys and the schema below them; another one gets another
/// number, so that readers never mix them.
const VERSION: &str = "v1";

/// The longest encoded cluster or node, in bytes. The whole key stays below the
/// 1,024 bytes that S3 allows, each part below the 255 of file systems.
const MAX_PART_BYTES: usize = 200;

/// Whose objects they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The cluster's name; may be empty.
    pub cluster: String,
    /// The node's name.
    pub node: String,
}

/// A name for an object whose window began at `start`: later windows sort
/// later, and no two agents make the same one.
pub fn name(start: SystemTime) -> Ulid {
    // Before the epoch there is no ULID.
    Ulid::from_datetime(start.max(SystemTime::UNIX_EPOCH))
}

/// The key of an object as the agent writes it, below the store's own prefix:
/// `v1/raw/date=YYYY-MM-DD/hour=HH/cluster=C/node=N/ULID.parquet`. Date and hour
/// are those of the window's start in UTC. Bytes of the names other than ASCII
/// letters, digits, `.`, `_`, `-` are percent-encoded, which readers of
/// Hive-style keys undo; an empty name is `__HIVE_DEFAULT_PARTITION__`, Hive's
/// name for a missing value.
pub fn raw(place: &Place, start: SystemTime, name: Ulid) -> String {
    let seconds = start
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let (year, month, day) = civil_date(seconds / 86_400);
    let hour = seconds % 86_400 / 3_600;
    format!(
        "{VERSION}/raw/date={year:04}-{month:02}-{day:02}/hour={hour:02}/cluster={}/node={}/{name}.parquet",
        encode(&place.cluster),
        encode(&place.node),
    )
}

fn encode(part: &str) -> String {
    if part.is_empty() {
        return "__HIVE_DEFAULT_PARTITION__".to_owned();
    }
    let mut encoded = String::new();
    for c in part.chars() {
        let mut bytes = [0; 4];
        let bytes = c.encode_utf8(&mut bytes);
        let needed = match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => 1,
            _ => 3 * bytes.len(),
        };
        // Cut between characters: half of one would not be UTF-8.
        if encoded.len() + needed > MAX_PART_BYTES {
            break;
        }
        match needed {
            1 => encoded.push(c),
            _ => encoded.extend(bytes.bytes().map(|byte| format!("%{byte:02X}"))),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn place(cluster: &str, node: &str) -> Place {
        Place {
            cluster: cluster.to_owned(),
            node: node.to_owned(),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn keys_are_folders_by_date_hour_cluster_and_node() {
        let ulid = Ulid::from_string("01K0000000GOPR0F0000000000".replace('O', "0").as_str());
        let ulid = ulid.unwrap();
        assert_eq!(
            raw(&place("prod-eu", "node-7"), at(1_795_242_645), ulid),
            format!("v1/raw/date=2026-11-21/hour=06/cluster=prod-eu/node=node-7/{ulid}.parquet")
        );
    }

    #[test]
    fn names_that_may_not_stand_in_a_key_are_encoded() {
        for (name, encoded) in [
            ("a/b", "a%2Fb"),
            ("a=b", "a%3Db"),
            ("..", ".."),
            ("50%", "50%25"),
            ("\n\0", "%0A%00"),
            ("ä", "%C3%A4"),
            ("", "__HIVE_DEFAULT_PARTITION__"),
        ] {
            let key = raw(&place(name, "n"), at(0), Ulid::nil());
            assert!(
                key.contains(&format!("/cluster={encoded}/node=n/")),
                "{key}"
            );
            assert!(object_store::path::Path::parse(&key).is_ok(), "{key}");
        }
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let long = "ä".repeat(1_000);
        let key = raw(&place(&long, &long), at(u64::from(u32::MAX)), Ulid::max());
        assert!(key.len() < 600, "{}", key.len());
        assert!(key.contains("%C3%A4/node="), "{key}");
    }

    #[test]
    fn a_clock_before_the_epoch_still_has_a_key() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(name(before).timestamp_ms(), 0);
        let key = raw(&place("c", "n"), before, Ulid::nil());
        assert!(key.starts_with("v1/raw/date=1970-01-01/hour=00/"), "{key}");
    }

    #[test]
    fn later_windows_have_later_names_and_no_two_the_same() {
        assert!(name(at(1_000)) < name(at(1_001)));
        assert_ne!(name(at(1_000)), name(at(1_000)));
    }
}
