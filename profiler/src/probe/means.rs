//! How the kernel puts probes on: by one link for all places of a program, or by a perf
//! event for each place.

use std::{
    fs, io,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use aya_obj::generated::{
    PERF_FLAG_FD_CLOEXEC,
    bpf_attach_type::{BPF_PERF_EVENT, BPF_TRACE_UPROBE_MULTI},
    bpf_cmd::{BPF_LINK_CREATE, BPF_PROG_LOAD},
    bpf_insn,
    bpf_prog_type::BPF_PROG_TYPE_KPROBE,
    perf_event_attr,
};
use thiserror::Error;

use super::uprobe_programs::{bpf, descriptor, zeroed};

/// Where the kernel says how it names events of uprobes.
const EVENT_TYPE: &str = "/sys/bus/event_source/devices/uprobe/type";

/// The kernel has neither means.
#[derive(Debug, Error)]
#[error(
    "it has neither links of many probes (Linux 6.6) nor perf events of uprobes, of which \
     {EVENT_TYPE} would tell (CONFIG_UPROBE_EVENTS)"
)]
pub struct NoMeans;

/// How probes are put on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Means {
    /// One link for all places of a program (Linux 6.6).
    Link,
    /// A perf event for each place, of this type, and a link to it (Linux 5.15).
    Events(u32),
}

impl Means {
    /// The better one that the kernel has.
    ///
    /// # Errors
    /// It has none.
    pub fn find() -> Result<Self> {
        if has_links() {
            return Ok(Self::Link);
        }
        Self::events()
    }

    /// Perf events.
    ///
    /// # Errors
    /// The kernel has none of uprobes.
    pub fn events() -> Result<Self> {
        let text = match fs::read_to_string(EVENT_TYPE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(NoMeans.into()),
            text => text.with_context(|| format!("cannot read {EVENT_TYPE}"))?,
        };
        let number = text.trim().parse();
        let number = number.with_context(|| format!("{EVENT_TYPE} says `{}`", text.trim()))?;
        Ok(Self::Events(number))
    }

    /// What a program is loaded for.
    pub(super) fn attach_type(self) -> u32 {
        match self {
            Self::Link => BPF_TRACE_UPROBE_MULTI as u32,
            Self::Events(_) => 0,
        }
    }
}

/// Whether a link of uprobes in no file is refused for that, and not for its kind.
fn has_links() -> bool {
    // mov64 r0, 0; exit
    let instruction = |code| {
        // SAFETY: zeros are valid for all members.
        let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
        instruction.code = code;
        instruction
    };
    let instructions = [instruction(0xb7), instruction(0x95)];
    let mut attributes = zeroed();
    // SAFETY: the fields of this command; what they point to outlives the call.
    unsafe {
        let program = &mut attributes.__bindgen_anon_3;
        program.prog_type = BPF_PROG_TYPE_KPROBE as u32;
        program.expected_attach_type = BPF_TRACE_UPROBE_MULTI as u32;
        program.insns = instructions.as_ptr() as u64;
        program.insn_cnt = instructions.len() as u32;
        program.license = c"GPL".as_ptr() as u64;
    }
    let Ok(program) = bpf(BPF_PROG_LOAD, &mut attributes) else {
        return false;
    };
    let offset = 0_u64;
    let mut attributes = zeroed();
    // SAFETY: as above.
    unsafe {
        let link = &mut attributes.link_create;
        link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        link.attach_type = BPF_TRACE_UPROBE_MULTI as u32;
        let probes = &mut link.__bindgen_anon_3.uprobe_multi;
        probes.path = c"/".as_ptr() as u64;
        probes.offsets = &raw const offset as u64;
        probes.cnt = 1;
    }
    let refused = bpf(BPF_LINK_CREATE, &mut attributes).err();
    refused.is_some_and(|error| error.raw_os_error() == Some(libc::EBADF))
}

/// Puts a program on one place of a process by a perf event. The breakpoint is there for
/// all of its threads from when the event is opened, and goes with what is returned.
///
/// `path` ends with a zero.
pub(super) fn attach_event(
    kind: u32,
    pid: u32,
    path: &[u8],
    (offset, cookie): (u64, u64),
    program: &OwnedFd,
) -> io::Result<OwnedFd> {
    // SAFETY: zeros are valid for all members.
    let mut event: perf_event_attr = unsafe { std::mem::zeroed() };
    event.size = size_of::<perf_event_attr>() as u32;
    event.type_ = kind;
    // Programs run all the same, and nothing else is to happen at a hit.
    event.set_disabled(1);
    event.__bindgen_anon_3.uprobe_path = path.as_ptr() as u64;
    event.__bindgen_anon_4.probe_offset = offset;
    // SAFETY: the attributes and the path outlive the call.
    let opened = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const event,
            pid as libc::pid_t,
            -1,
            -1,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let opened = descriptor(opened)?;
    let mut attributes = zeroed();
    // SAFETY: the fields of this command.
    unsafe {
        let link = &mut attributes.link_create;
        link.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
        link.__bindgen_anon_2.target_fd = opened.as_raw_fd() as u32;
        link.attach_type = BPF_PERF_EVENT as u32;
        link.__bindgen_anon_3.perf_event.bpf_cookie = cookie;
    }
    // The link holds the event.
    bpf(BPF_LINK_CREATE, &mut attributes)
}
