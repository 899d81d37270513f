//! What `tests/go/alloc_mix` allocates, by the places that do.

use crate::pprof::{Profile, Stack};

/// A place of the program.
pub struct Place {
    /// Its function.
    pub function: &'static str,
    /// Times in eight rounds.
    pub times: i64,
    /// The size of the blocks.
    pub block_bytes: i64,
    /// Bytes of the block that each takes.
    pub taken_bytes: i64,
    /// The type, where the code says it.
    pub kind: Option<&'static str>,
}

const fn place(
    function: &'static str,
    times: i64,
    block_bytes: i64,
    kind: Option<&'static str>,
) -> Place {
    Place {
        function,
        times,
        block_bytes,
        taken_bytes: block_bytes,
        kind,
    }
}

/// All of them.
pub const PLACES: [Place; 9] = [
    place("main.often", 8 * 69, 112, Some("main.record")),
    place("main.seldom", 8 * 10, 112, Some("main.record")),
    Place {
        taken_bytes: 8,
        ..place("main.tiny", 8 * 92, 16, Some("int64"))
    },
    place("main.small", 8 * 46, 24, Some("[3]int64")),
    place("main.pointers", 8 * 46, 48, Some("main.node")),
    place("main.buffers", 8 * 4, 1024, Some("[]uint8")),
    place("main.tables", 8 * 3, 896, Some("[]*main.node")),
    place("main.texts", 8 * 23, 64, None),
    place("main.large", 1, 40960, Some("[]uint8")),
];

impl Place {
    /// Its share of all bytes.
    pub fn share(&self) -> f64 {
        let all: i64 = PLACES.iter().map(|p| p.times * p.taken_bytes).sum();
        (self.times * self.taken_bytes) as f64 / all as f64
    }
}

/// The function that allocates: the first of a stack.
pub fn leaf(stack: &Stack) -> &str {
    stack.frames.first().map_or("", |frame| &frame.function)
}

/// The number that comes before some words of a text.
#[track_caller]
pub fn number_before(text: &str, words: &str) -> f64 {
    assert!(text.contains(words), "no {words:?} in {text}");
    let (before, _) = text.split_once(words).expect("words that are there");
    let number = before.rsplit(' ').next().unwrap_or_default();
    number.parse().expect("a number before the words")
}

/// Every stack of a place has its size, type and goroutine; but for what the runtime itself
/// allocates there as it waits for the collector (`acquireSudog`), once in many thousand.
#[track_caller]
pub fn check_labels(profile: &Profile, place: &Place) {
    let stacks = profile.stacks.iter();
    let (mut bytes, mut of_runtime) = (0, 0);
    for stack in stacks.filter(|stack| leaf(stack) == place.function) {
        let label = |key: &str| stack.labels.get(key).map(String::as_str);
        bytes += stack.values[1];
        let size = place.block_bytes.to_string();
        if label("bytes") != Some(size.as_str()) {
            of_runtime += stack.values[1];
            continue;
        }
        assert_eq!(label("type"), place.kind, "{}", place.function);
        assert_eq!(label("goid"), Some("1"), "{}", place.function);
        let callers: Vec<&str> = stack.frames.iter().map(|f| f.function.as_str()).collect();
        let expected = [place.function, "main.round", "main.main", "runtime.main"];
        assert_eq!(callers, expected);
    }
    assert!(of_runtime * 200 <= bytes, "{of_runtime} of {bytes}");
}
