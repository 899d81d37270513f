//! Sampling: whether the kernel lets a CPU be sampled, by which clock and how
//! often. Opens a perf event that never runs and closes it again.

use std::{io, mem};

use aya_obj::generated::{
    PERF_FLAG_FD_CLOEXEC, perf_event_attr,
    perf_hw_id::PERF_COUNT_HW_CPU_CYCLES,
    perf_sw_ids::PERF_COUNT_SW_CPU_CLOCK,
    perf_type_id::{PERF_TYPE_HARDWARE, PERF_TYPE_SOFTWARE},
};

use super::{
    Check,
    kernel::refusal,
    rights::{Rights, sysctl},
};

pub(super) fn rate(rate_hz: u32) -> Check {
    judge_rate(rate_hz, sysctl("perf_event_max_sample_rate").as_deref())
}

fn judge_rate(rate_hz: u32, highest: Option<&str>) -> Check {
    let check = |found: String| Check::ok("sample_rate", "sampling rate", found);
    match highest.and_then(|highest| highest.parse::<u32>().ok()) {
        None => check(format!("{rate_hz} Hz; the kernel names no limit")),
        Some(highest) if rate_hz <= highest => {
            check(format!("{rate_hz} Hz; the kernel allows {highest}"))
        }
        Some(highest) => check(format!(
            "{rate_hz} Hz are more than kernel.perf_event_max_sample_rate allows, {highest}"
        ))
        .fail(format!(
            "ask for less (-r {highest}), or raise it: \
             sysctl kernel.perf_event_max_sample_rate={rate_hz}"
        )),
    }
}

pub(super) fn clock(rate_hz: u32, rights: &Rights) -> Check {
    let cycles = open(
        PERF_TYPE_HARDWARE as u32,
        PERF_COUNT_HW_CPU_CYCLES as u64,
        rate_hz,
    );
    let clock = match cycles {
        Ok(()) => Ok(()),
        Err(_) => open(
            PERF_TYPE_SOFTWARE as u32,
            PERF_COUNT_SW_CPU_CLOCK as u64,
            rate_hz,
        ),
    };
    judge_clock(cycles.is_ok(), clock, rights)
}

fn judge_clock(cycles: bool, clock: io::Result<()>, rights: &Rights) -> Check {
    let check = |found: String| Check::ok("clock", "sampling clock", found);
    match clock {
        Ok(()) if cycles => check("hardware cycles".into()),
        Ok(()) => check("cpu-clock; no hardware counter, as in most virtual machines".into()),
        Err(error) => {
            let (cause, remedy) = refusal("perf_event_open", &error, rights);
            check(cause).fail(remedy)
        }
    }
}

/// Opens an event on the first online CPU for all processes, as a recording
/// does, and closes it.
fn open(kind: u32, config: u64, rate_hz: u32) -> io::Result<()> {
    let cpus = aya::util::online_cpus().map_err(|(_, error)| error)?;
    let first = cpus.first().copied().unwrap_or(0);
    // SAFETY: zeros are valid for the structure, which outlives the call; the
    // descriptor that comes back is closed here and nowhere else.
    unsafe {
        let mut attr = mem::zeroed::<perf_event_attr>();
        attr.type_ = kind;
        attr.size = mem::size_of::<perf_event_attr>() as u32;
        attr.config = config;
        attr.__bindgen_anon_1.sample_freq = u64::from(rate_hz);
        attr.set_freq(1);
        attr.set_disabled(1);
        let fd = libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            -1,
            first as i32,
            -1,
            libc::c_ulong::from(PERF_FLAG_FD_CLOEXEC),
        );
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::close(fd as i32);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Status, place::OwnStatus};
    use super::*;

    #[test]
    fn a_rate_above_the_limit_names_the_setting() {
        assert_eq!(judge_rate(99, Some("100000")).status, Status::Ok);
        assert_eq!(judge_rate(5000, Some("5000")).status, Status::Ok);
        let check = judge_rate(5001, Some("5000"));
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains("kernel.perf_event_max_sample_rate"));
        assert!(check.remedy.unwrap().contains("-r 5000"));
        assert_eq!(judge_rate(99, None).status, Status::Ok);
    }

    #[test]
    fn the_clock_is_named_or_its_refusal() {
        let rights = Rights::of(&OwnStatus::default());
        assert_eq!(judge_clock(true, Ok(()), &rights).found, "hardware cycles");
        assert!(
            judge_clock(false, Ok(()), &rights)
                .found
                .contains("cpu-clock")
        );
        let error = io::Error::from_raw_os_error(libc::EACCES);
        let check = judge_clock(false, Err(error), &rights);
        assert_eq!(check.status, Status::Fail);
        assert!(check.found.contains("CAP_PERFMON"), "{}", check.found);
    }
}
