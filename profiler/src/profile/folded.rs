//! Folded: one line of text per distinct stack, outermost frame first, then
//! the count or the bytes, as `stackcollapse-perf.pl` writes them and flamegraph.pl,
//! inferno and speedscope read them.
//!
//! The first frame is the process: `comm`, or `comm-pid` where the window has
//! several. Then `name-tid` where threads are told apart. Kernel frames end
//! in `_[k]`, inlined ones in `_[i]`.

use std::collections::BTreeMap;

use super::{Options, frames};
use crate::symbolize::{FrameKind, Sample, SymbolizedWindow};

/// Encodes a window as folded stacks, sorted, each stack on one line.
pub(super) fn encode(window: &SymbolizedWindow, options: &Options) -> Vec<u8> {
    let value = frames::counted(window, options);
    let mut stacks: BTreeMap<String, u64> = BTreeMap::new();
    for sample in &window.samples {
        let Some(weight) = frames::weight(sample, value) else {
            continue;
        };
        let sum = stacks.entry(stack(window, sample)).or_default();
        *sum = sum.saturating_add(weight);
    }
    let mut out = String::new();
    for (stack, count) in stacks {
        out.push_str(&stack);
        out.push(' ');
        out.push_str(&count.to_string());
        out.push('\n');
    }
    out.into_bytes()
}

fn stack(window: &SymbolizedWindow, sample: &Sample) -> String {
    let mut out = String::new();
    push_name(&mut out, &frames::process_label(window, sample));
    if let Some(thread) = frames::thread_label(sample) {
        out.push(';');
        push_name(&mut out, &thread);
    }
    for frame in frames::outermost_first(window, sample) {
        out.push(';');
        push_name(&mut out, &window.functions[frame.function.0 as usize].name);
        if frame.location.kind == FrameKind::Kernel {
            out.push_str("_[k]");
        } else if frame.inlined {
            out.push_str("_[i]");
        }
    }
    out
}

/// Appends a name without what would end the frame or the line: `;` becomes
/// `:`, as in `stackcollapse-perf.pl`, and a control character a space.
fn push_name(out: &mut String, name: &str) {
    out.extend(name.chars().map(|c| match c {
        ';' => ':',
        c if c.is_control() => ' ',
        c => c,
    }));
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;
    use crate::symbolize::Event;

    fn check(window: &SymbolizedWindow, want: &str) {
        check_value(window, None, want);
    }

    fn check_value(window: &SymbolizedWindow, value: Option<usize>, want: &str) {
        let options = Options {
            value,
            ..Options::default()
        };
        let text = encode(window, &options);
        assert_eq!(String::from_utf8(text).unwrap(), want);
    }

    #[test]
    fn a_heap_has_bytes_in_use_unless_asked_for_others() {
        let window = fixture::heap(Event::Heap);
        check(&window, "app;main.main;main.keep 1280\n");
        check_value(
            &window,
            Some(0),
            "app;main.main;main.free 8\napp;main.main;main.keep 30\n",
        );
        let mut window = fixture::heap(Event::Allocs);
        window.samples[0].values[3] = -64;
        check(
            &window,
            "app;main.main;main.free 8192\napp;main.main;main.keep 1920\n",
        );
        check_value(&window, Some(3), "");
    }

    #[test]
    fn samples_are_counted_unless_time_is_asked_for() {
        check_value(
            &fixture::two_processes(),
            Some(1),
            "api-7;net/http.(*conn).serve 30303030\nworker-8;main.run 50505050\n",
        );
    }

    #[test]
    fn one_process_has_comm_first_and_marks_kernel_and_inlined_frames() {
        check(
            &fixture::one_process(),
            "app;main.main;[no mapping] 1\n\
             app;main.main;main.work;main.hot_[i] 70\n\
             app;main.main;write;vfs_write_[k] 20\n",
        );
    }

    #[test]
    fn several_processes_are_told_apart_by_pid() {
        check(
            &fixture::two_processes(),
            "api-7;net/http.(*conn).serve 3\nworker-8;main.run 5\n",
        );
    }

    #[test]
    fn threads_come_after_the_process() {
        check(
            &fixture::with_threads(fixture::two_processes()),
            "api-7;netpoll-1000;net/http.(*conn).serve 3\nworker-8;netpoll-1001;main.run 5\n",
        );
    }

    #[test]
    fn equal_stacks_make_one_line() {
        let mut window = fixture::one_process();
        let mut again = window.samples[0].clone();
        again.values = fixture::cpu(5);
        window.samples.push(again);
        let text = String::from_utf8(encode(&window, &Options::default())).unwrap();
        assert_eq!(text.lines().count(), 3);
        assert!(text.contains("main.hot_[i] 75\n"), "{text}");
    }

    #[test]
    fn a_hostile_name_cannot_make_frames_or_lines() {
        let mut window = fixture::one_process();
        window.samples.truncate(1);
        window.processes[0].comm = "a;b\n9".to_owned();
        window.functions[0].name = "f;g 3\r\nh;i 4\u{85}".to_owned();
        check(&window, "a:b 9;f:g 3  h:i 4 ;main.work;main.hot_[i] 70\n");
    }
}
