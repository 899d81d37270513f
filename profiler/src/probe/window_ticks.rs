//! Ticks on every CPU while a window is open, by which `programs/probe_tick.rs` sees
//! what the process gets done for itself while hits take the rest. They are off
//! otherwise.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, anyhow};
use aya::{Ebpf, programs::PerfEvent, util::online_cpus};
use profiler_ebpf::wire::TICK_PERIOD_NS;

// include/uapi/linux/perf_event.h
const TYPE_SOFTWARE: u32 = 1;
const CPU_CLOCK: u64 = 0;
const DISABLED: u64 = 1;
const FLAG_CLOEXEC: libc::c_ulong = 8;
const IOC_ENABLE: libc::c_ulong = 0x2400;
const IOC_DISABLE: libc::c_ulong = 0x2401;
const IOC_SET_BPF: libc::c_ulong = 0x4004_2408;

/// `struct perf_event_attr`, as far as its first version goes.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
}

/// The ticks of all windows of a session.
#[derive(Clone)]
pub(super) struct WindowTicks(Arc<Mutex<Events>>);

struct Events {
    program: OwnedFd,
    /// The CPUs that there are events for, as the kernel tells which are online.
    online: String,
    events: Vec<OwnedFd>,
    /// How many windows want them.
    wanted: usize,
}

/// Ticks come as long as this is there.
pub(super) struct Ticking(Arc<Mutex<Events>>);

impl WindowTicks {
    /// Loads the program.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn load(ebpf: &mut Ebpf) -> Result<Self> {
        let program = ebpf
            .program_mut("probe_tick")
            .ok_or_else(|| anyhow!("the eBPF object has no program probe_tick"))?;
        let program: &mut PerfEvent = program.try_into()?;
        program
            .load()
            .context("the kernel refuses the eBPF program probe_tick")?;
        let program = program.fd()?.as_fd().try_clone_to_owned()?;
        Ok(Self(Arc::new(Mutex::new(Events {
            program,
            online: String::new(),
            events: Vec::new(),
            wanted: 0,
        }))))
    }

    /// Lets them come, on all CPUs that are online.
    ///
    /// # Errors
    /// The kernel refuses an event.
    pub fn run(&self) -> Result<Ticking> {
        let mut events = lock(&self.0);
        if events.wanted == 0 {
            events.open_all()?;
            events.tell(IOC_ENABLE);
        }
        events.wanted += 1;
        drop(events);
        Ok(Ticking(Arc::clone(&self.0)))
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        let mut events = lock(&self.0);
        events.wanted -= 1;
        if events.wanted == 0 {
            events.tell(IOC_DISABLE);
        }
    }
}

impl Events {
    /// Opens them where CPUs came online or went since: the event of one that goes is
    /// of no use any more.
    fn open_all(&mut self) -> Result<()> {
        let online = fs::read_to_string("/sys/devices/system/cpu/online")
            .context("cannot read which CPUs are online")?;
        if online == self.online {
            return Ok(());
        }
        let cpus = online_cpus().map_err(|(_, error)| error);
        let cpus = cpus.context("cannot list the online CPUs")?;
        self.events = cpus
            .iter()
            .map(|cpu| open(*cpu, &self.program))
            .collect::<io::Result<_>>()
            .context("the kernel refuses a tick for the windows of probes")?;
        self.online = online;
        Ok(())
    }

    fn tell(&self, request: libc::c_ulong) {
        for event in &self.events {
            // SAFETY: takes no argument. It fails for a CPU that has gone offline, and
            // that has nothing to tick.
            unsafe { libc::ioctl(event.as_raw_fd(), request as _, 0) };
        }
    }
}

/// The event of a CPU, not ticking yet. Where it stops it goes on from when it runs
/// again, so that ticks fall anywhere in windows.
fn open(cpu: u32, program: &OwnedFd) -> io::Result<OwnedFd> {
    let attributes = Attributes {
        kind: TYPE_SOFTWARE,
        size: size_of::<Attributes>() as u32,
        config: CPU_CLOCK,
        sample_period: TICK_PERIOD_NS,
        flags: DISABLED,
        ..Attributes::default()
    };
    // SAFETY: a structure of our own, of the size that it says; all processes of a CPU.
    let event = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            cpu as libc::c_int,
            -1,
            FLAG_CLOEXEC,
        )
    };
    if event < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let event = unsafe { OwnedFd::from_raw_fd(event as i32) };
    // SAFETY: two descriptors that are open.
    let set = unsafe { libc::ioctl(event.as_raw_fd(), IOC_SET_BPF as _, program.as_raw_fd()) };
    match set {
        0 => Ok(event),
        _ => Err(io::Error::last_os_error()),
    }
}

fn lock(events: &Mutex<Events>) -> MutexGuard<'_, Events> {
    events.lock().unwrap_or_else(PoisonError::into_inner)
}
