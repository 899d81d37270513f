//! Fuzz target: arbitrary text as the agent's configuration. Looks for panics, for
//! complaints that are not one line, and for a configuration that reads otherwise
//! once it has been written. Opens no file that it names.
#![no_main]

use goprof::agent::config::{Config, Event, Subject};
use goprof::identity::{Target, label};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let config = match Config::parse(text) {
        Ok(config) => config,
        Err(why) => {
            assert!(!why.is_empty() && !why.contains('\n'), "{why:?}");
            return;
        }
    };
    let written = config.to_toml().expect("what was read can be written");
    assert_eq!(Config::parse(&written).as_ref(), Ok(&config), "{written}");
    let target = Target {
        pid: 1,
        labels: [(label::POD, "a-pod".to_owned())].into(),
        is_partial: false,
    };
    let subject = Subject {
        comm: "program",
        exe: "/bin/program",
        target: &target,
    };
    assert!(!config.rates().is_empty() || config.rate_of(&subject).is_none());
    config.takes(Event::Heap, &subject);
});
