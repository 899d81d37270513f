//! The frames of the kernel that are there only because somebody looks: those of the
//! tracepoint, and of the eBPF program behind it. Goes by their names, which are the
//! same on all kernels where their number and order are not.

use super::Event;

/// Most frames from the leaf on that may be such.
const MAX_FRAMES: usize = 16;

/// How the names of the functions begin between a tracepoint and an eBPF program.
const TRACING: [&str; 10] = [
    "__bpf_trace_",
    "__traceiter_",
    "__trace_",
    "bpf_get_stack",
    "bpf_prog_",
    "bpf_raw_tp",
    "bpf_trace_run",
    "perf_trace_",
    "trace_call_bpf",
    "trace_event_raw_",
];

/// What every thread that leaves the CPU is in, whatever it waits for.
const SWITCH: &str = "__schedule";

/// How many frames of a kernel stack, leaf first, are there because an event was
/// traced. A frame without a name among them, as eBPF programs may be, is one.
pub(super) fn tracing_frames<'n>(
    event: Event,
    names: impl Iterator<Item = Option<&'n str>>,
) -> usize {
    let names: Vec<Option<&str>> = names.take(MAX_FRAMES).collect();
    let last = |is: &dyn Fn(&str) -> bool| {
        let found = names.iter().rposition(|name| name.is_some_and(is));
        found.map_or(0, |index| index + 1)
    };
    match event {
        Event::OffCpu | Event::Threads | Event::Io => {
            let tracing = last(&|name| TRACING.iter().any(|begin| name.starts_with(begin)));
            match event {
                Event::Io => tracing,
                _ => tracing.max(last(&|name| name.starts_with(SWITCH))),
            }
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(event: Event, names: &[&str]) -> usize {
        let names = names.iter().map(|name| (!name.is_empty()).then_some(*name));
        tracing_frames(event, names)
    }

    #[test]
    fn the_leaf_of_a_thread_that_waits_is_what_called_the_scheduler() {
        let wait = [
            "",
            "bpf_trace_run4",
            "__traceiter_sched_switch",
            "__schedule",
            "schedule",
        ];
        assert_eq!(cut(Event::OffCpu, &wait), 4);
        let older = [
            "bpf_get_stack_raw_tp",
            "bpf_prog_0a1b_switch",
            "bpf_trace_run3",
            "__schedule",
        ];
        assert_eq!(cut(Event::OffCpu, &older), 4);
        let renamed = [
            "__bpf_trace_sched_switch",
            "__schedule.constprop.0",
            "schedule",
        ];
        assert_eq!(cut(Event::OffCpu, &renamed), 2);
    }

    #[test]
    fn what_is_not_known_stays() {
        assert_eq!(cut(Event::OffCpu, &["", "", ""]), 0);
        assert_eq!(cut(Event::OffCpu, &[]), 0);
        assert_eq!(cut(Event::Cpu, &["bpf_trace_run4", "__schedule"]), 0);
        let far = [&["read"; MAX_FRAMES][..], &["__schedule"]].concat();
        assert_eq!(cut(Event::OffCpu, &far), 0);
    }

    #[test]
    fn a_request_begins_where_the_block_layer_told_of_it() {
        let issue = [
            "perf_trace_block_rq",
            "blk_mq_start_request",
            "loop_queue_rq",
            "__schedule",
        ];
        assert_eq!(cut(Event::Io, &issue), 1);
    }
}
