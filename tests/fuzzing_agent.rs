//! The inputs that fuzzing of what the agent reads begins with are taken, and what
//! fuzzing has found stays mended.

#![expect(clippy::panic, reason = "test code: a failure is a panic")]

use std::sync::atomic::Ordering;

use goprof::agent::{config::Config, understand};
use goprof::identity::cgroup::Cgroup;
use goprof::process::parse_maps;
use goprof::sink::Spool;
use goprof_tests::seeds::{self, SpoolInput, TextInput};

#[track_caller]
fn seeds_of(target: &str) -> Vec<Vec<u8>> {
    let mut all = seeds::all().into_iter();
    let Some((_, seeds)) = all.find(|(name, _)| *name == target) else {
        panic!("no seeds of {target}");
    };
    seeds
}

#[test]
fn seeds_of_texts_are_of_all_that_is_read() {
    let (mut mappings, mut containers, mut pods, mut units, mut labels) = (0, 0, 0, 0, 0);
    for seed in seeds_of("texts") {
        match TextInput::of(&seed).unwrap() {
            TextInput::Maps(text) => mappings += parse_maps(text).len(),
            TextInput::Cgroup { own, text } => {
                let found = Cgroup::parse(text, std::str::from_utf8(own).unwrap());
                containers += found.containers.len();
                pods += usize::from(found.pod_uid.is_some());
                units += usize::from(found.unit.is_some());
            }
            TextInput::Label(_) => labels += 1,
        }
    }
    assert_eq!((mappings, containers, pods, units), (3, 5, 2, 1));
    assert!(labels >= 3);
}

#[test]
fn seeds_of_config_and_queries_are_taken_but_for_some() {
    let configurations = seeds_of("config");
    let texts = configurations
        .iter()
        .map(|seed| str::from_utf8(seed).unwrap());
    let refused: Vec<String> = texts.filter_map(|text| Config::parse(text).err()).collect();
    assert_eq!(refused.len(), 2, "{refused:#?}");
    let queries = seeds_of("queries");
    let texts = queries.iter().map(|seed| str::from_utf8(seed).unwrap());
    let taken = texts.filter_map(|text| understand(text, &[1, 2]).ok());
    let taken: Vec<_> = taken.collect();
    assert!(taken.len() >= 4, "{taken:?}");
}

/// Found by fuzzing: the answer repeats what was asked for, and it goes to terminals.
#[test]
fn what_is_asked_for_wrongly_is_repeated_without_what_moves_a_terminal() {
    for query in ["%0d%1b[2J", "pid=1&a%0a=2", "pid=%07"] {
        let (status, why) = understand(query, &[1]).unwrap_err();
        assert_eq!(status, 400);
        assert!(!why.contains(char::is_control), "{why:?}");
    }
}

#[test]
fn seeds_of_the_spool_are_entries_whole_and_cut() {
    let (mut whole, mut cut) = (0, 0);
    for seed in seeds_of("spool") {
        let folder = tempfile::tempdir().unwrap();
        for (number, file) in SpoolInput::of(&seed).files.iter().enumerate() {
            std::fs::write(folder.path().join(format!("{number:020}.entry")), file).unwrap();
        }
        let spool = Spool::open(folder.path(), 1 << 20).unwrap();
        whole += spool.len();
        cut += spool.counters().damaged.load(Ordering::Relaxed);
    }
    assert_eq!((whole, cut), (3, 2));
}
