//! CPUs that come online are sampled from then on, whether they were there when
//! the recording began or not. Takes a CPU offline, and has it back at the end.

#![expect(clippy::expect_used, reason = "test code: a failure is a panic")]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use goprof::process::Selection;
use goprof::session::{Config, Recording, Session, Stopped};
use goprof::symbolize::Event;
use goprof_tests::target::Target;
use goprof_tests::{go, quiet};

const RATE_HZ: u32 = 99;

/// A CPU that can be taken offline; online again at the end.
struct Cpu {
    number: usize,
    file: PathBuf,
}

impl Cpu {
    #[track_caller]
    fn any() -> Self {
        let cpu = |number| Self {
            number,
            file: format!("/sys/devices/system/cpu/cpu{number}/online").into(),
        };
        let can_be_taken = |cpu: &Cpu| cpu.file.exists();
        let found = (1..1024).map(cpu).find(can_be_taken);
        found.expect(
            "no CPU but the first can be taken offline: run this where there are two, on a \
             kernel with CONFIG_HOTPLUG_CPU",
        )
    }

    #[track_caller]
    fn set_online(&self, is_online: bool) {
        let word = if is_online { "1" } else { "0" };
        std::fs::write(&self.file, word).expect("take a CPU offline or online, as root");
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.file, "1");
    }
}

/// Has every thread of a process run on one CPU.
#[track_caller]
fn pin(pid: u32, cpu: &Cpu) {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    for task in tasks {
        let name = task.expect("a thread").file_name();
        let tid = name.to_str().and_then(|tid| tid.parse().ok());
        // SAFETY: a set of our own, of the size that is given.
        let result = unsafe {
            let mut set = std::mem::zeroed::<libc::cpu_set_t>();
            libc::CPU_SET(cpu.number, &mut set);
            libc::sched_setaffinity(tid.expect("a tid"), size_of_val(&set), &raw const set)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}

/// Records a process while the CPU comes online, and says how many of its samples
/// are of two seconds on that CPU alone.
fn record(target: &Target, cpu: &Cpu, is_there_first: bool) -> (Recording, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut session = Session::prepare(Config {
            rate_hz: RATE_HZ,
            ring_bytes: 1 << 20,
            ..Config::of(Selection::Pids(vec![target.pid()]), vec![Event::Cpu])
        })
        .expect("root, and a kernel that runs eBPF");
        cpu.set_online(is_there_first);
        session.start().expect("a perf event");
        cpu.set_online(false);
        let pause = |ms| tokio::time::sleep(Duration::from_millis(ms));
        session.run(pause(1500), None, |_| {}).await;
        cpu.set_online(true);
        session.run(pause(1200), None, |_| {}).await;
        pin(target.pid(), cpu);
        let before = session.samples();
        session.run(pause(2000), None, |_| {}).await;
        let on_it = session.samples() - before;
        let recording = session.finish(Stopped::Asked).expect("a recording");
        (recording, on_it)
    })
}

#[test]
fn cpus_that_come_online_are_sampled() {
    let binary = go::build("busy_loop");
    let _turn = quiet::measuring();
    let cpu = Cpu::any();
    for is_there_first in [true, false] {
        let mut command = Command::new(&binary);
        command.args(["-duration", "1m"]).env("GOMAXPROCS", "1");
        let target = Target::start_command(&mut command);
        let (recording, on_it) = record(&target, &cpu, is_there_first);
        let tally = &recording.tally;
        println!(
            "there first: {is_there_first}; {on_it} samples on it; {} of {} ticks missed",
            tally.ticks_missed, tally.ticks_due
        );
        // It may have to share the CPU with others.
        assert!(on_it > u64::from(RATE_HZ) / 3, "{on_it} samples");
        assert_eq!((tally.cpus_late, tally.cpus_refused), (1, 0));
        let notes = tally.notes();
        let said = notes.iter().any(|note| note.starts_with("1 CPUs came"));
        assert!(said, "{notes:?}");
        // Of the time that it was offline no ticks were due.
        assert!(
            tally.ticks_missed * 20 <= tally.ticks_due,
            "{} of {} ticks missed",
            tally.ticks_missed,
            tally.ticks_due
        );
    }
}
