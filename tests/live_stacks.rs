//! Stacks where frame pointers do not reach: C without them, Go called back
//! from C, the kernel's clock code, signal handlers. Samples real programs and
//! holds each stack against what the source says, and each return address
//! against the code before it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "test code: a failure is a panic"
)]

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, SystemTime};

use goprof::aggregate::{Owner, Window};
use goprof::decode::{Event, decode};
use goprof::probe::{Options, Probes};
use goprof::process::{Process, ProcessTable};
use goprof::profile::{self, Format};
use goprof::ringbuf::Records;
use goprof::symbolize::{self, Symbolizer, Taken};
use goprof::unwind::{GAP, StackEnd, unwind};
use goprof_tests::pprof::{Profile, Stack};
use goprof_tests::{fixture, go, quiet, target::Target};

const RATE_HZ: u32 = 499;
const SECONDS: u64 = 4;
/// How many times as long samples are taken at most.
const MOST_TIMES: u32 = 4;
/// Fewer samples of something say nothing about it.
const LEAST_SAMPLES: u64 = 40;

/// What sampling a program came to.
struct Watched {
    profile: Profile,
    ends: BTreeMap<StackEnd, u64>,
    /// Return addresses behind a call, and all of them.
    calls: (u64, u64),
    /// Bytes of records.
    bytes: usize,
}

/// Samples a program built with a Go version.
#[track_caller]
fn watch(program: &str, version: &str) -> Watched {
    let binary = go::build_with(program, version, go::Variant::Plain);
    let _turn = quiet::measuring();
    let target = Target::start(&binary, &[]);
    let mut table = ProcessTable::default();
    let process = Process::read(target.pid(), &mut table.objects).expect("read the process");
    let records = sample(&target, &process);
    let memory = File::open(format!("/proc/{}/mem", target.pid())).expect("open its memory");

    let index = table.insert(process);
    let mut watched = Watched {
        profile: Profile {
            raw: Default::default(),
            stacks: Vec::new(),
        },
        ends: BTreeMap::new(),
        calls: (0, 0),
        bytes: records.iter().map(|record| record.len() * 8).sum(),
    };
    let mut window = Window::default();
    let mut frames = Vec::new();
    for record in &records {
        let Ok(Event::Sample(sample)) = decode(fixture::bytes_of(record)) else {
            continue;
        };
        let unwound = unwind(&sample, table.get(index), &mut frames);
        *watched.ends.entry(unwound.end).or_default() += 1;
        assert_eq!(unwound.broke_at.is_none(), unwound.end == StackEnd::Whole);
        for call in calls(table.get(index), &memory, &frames) {
            watched.calls.0 += u64::from(follows_call(&memory, call));
            watched.calls.1 += 1;
        }
        let owner = Owner {
            process: index,
            ..Owner::default()
        };
        window.add(
            owner,
            &[sample.kernel, &frames].concat(),
            sample.head.kernel_frames,
        );
    }
    let taken = Taken {
        event: symbolize::Event::Cpu,
        start: SystemTime::UNIX_EPOCH,
        duration: Duration::from_secs(SECONDS),
        period: 1_000_000_000 / u64::from(RATE_HZ),
        all_waits: false,
    };
    let (window, _) = Symbolizer::default().symbolize(taken, &window, &table);
    let encoded = profile::encode(&window, Format::Pprof, &profile::Options::default()).unwrap();
    watched.profile = Profile::decode(&encoded);
    watched.report(program, version, records.len());
    watched
}

/// Takes samples for some seconds, and goes on while other work on the machine keeps
/// the program from being sampled as often as one busy thread is.
fn sample(target: &Target, process: &Process) -> Vec<Vec<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("start the runtime");
    runtime.block_on(async {
        let mut probes = Probes::load(&Options {
            kernel_stacks: true,
            watch_execs: false,
            cpu: true,
            off_cpu: false,
            block_io: false,
            kernel_io: false,
            ring_bytes: 32 << 20,
        })
        .expect("load the probes");
        let mut targets = probes.take_targets().expect("the targets");
        let mut ring = Records::new(probes.take_ring().expect("the ring")).expect("the records");
        let layout = process.go_layout().expect("the layout of the runtime");
        targets
            .insert(target.pid(), layout.go)
            .expect("add the target");
        probes.attach_cpu(RATE_HZ).expect("attach the sampler");
        let mut records = Vec::new();
        for _ in 0..MOST_TIMES {
            tokio::time::sleep(Duration::from_secs(SECONDS)).await;
            ring.drain(usize::MAX, |record| {
                let words = record.as_chunks::<8>().0.iter();
                records.push(words.map(|word| u64::from_ne_bytes(*word)).collect());
            });
            if records.len() as u64 * 10 >= u64::from(RATE_HZ) * SECONDS * 9 {
                break;
            }
        }
        records
    })
}

/// The return addresses in a stack: not the leaf, and not what was interrupted
/// rather than called.
fn calls(process: &Process, memory: &File, frames: &[u64]) -> Vec<u64> {
    let interrupts = |address: u64| {
        let mapped = process.locate(address).expect("a frame is mapped");
        let go = mapped.object.as_ref().and_then(|object| object.go());
        let mut names = Vec::new();
        let found = go
            .zip(mapped.go_address(address))
            .is_some_and(|(binary, address)| binary.frames(address, &mut names).is_ok());
        let name = names.last().map(|frame| frame.name.as_str());
        match name.filter(|_| found) {
            Some(name) => INTERRUPTED.contains(&name) || name.starts_with("runtime.sigreturn"),
            None => returns_from_signal(memory, address),
        }
    };
    frames
        .windows(2)
        .filter(|pair| pair[0] != GAP && pair[1] != GAP && !interrupts(pair[0]))
        .map(|pair| pair[1] + 1)
        .collect()
}

/// What a signal, a fault or a preemption put on the stack.
const INTERRUPTED: [&str; 4] = [
    "runtime.sigtramp",
    "runtime.cgoSigtramp",
    "runtime.asyncPreempt",
    "runtime.sigpanic",
];

/// Whether `address` is that of the system call by which a signal handler of C
/// returns, or of the move before it, or behind both.
fn returns_from_signal(memory: &File, address: u64) -> bool {
    let code = [0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
    [0, 7, 9].iter().any(|before| {
        let mut found = [0; 9];
        memory.read_exact_at(&mut found, address - before).is_ok() && found == code
    })
}

/// Whether an x86-64 instruction that calls ends at `address`: `e8` and a
/// distance, or `ff` with 2 in the middle of its operand byte.
fn follows_call(memory: &File, address: u64) -> bool {
    let mut code = [0; 8];
    memory
        .read_exact_at(&mut code, address - 8)
        .expect("read the code before a return address");
    let by_operand = |start: usize| code[start] == 0xff && (code[start + 1] >> 3) & 7 == 2;
    code[3] == 0xe8 || (1..7).any(by_operand)
}

impl Watched {
    fn report(&self, program: &str, version: &str, records: usize) {
        let (confirmed, calls) = self.calls;
        println!(
            "{program} go{version}: {records} samples of {} bytes, {:?}; \
             {confirmed} of {calls} return addresses follow a call",
            self.bytes / records.max(1),
            self.ends,
        );
    }

    fn count_where(&self, wanted: impl Fn(&Stack) -> bool) -> u64 {
        let stacks = self.profile.stacks.iter().filter(|stack| wanted(stack));
        stacks.map(|stack| stack.count).sum()
    }

    /// Checks that of the samples in which `of` is, nearly all have `chain` in
    /// that order, and that there are some.
    #[track_caller]
    fn assert_chain(&self, of: &str, chain: &[&str]) {
        self.assert_chain_where(|stack| stack.has(of), of, chain);
    }

    #[track_caller]
    fn assert_chain_where(&self, wanted: impl Fn(&Stack) -> bool, what: &str, chain: &[&str]) {
        let stacks = || self.profile.stacks.iter().filter(|stack| wanted(stack));
        let all = self.count_where(&wanted);
        let wrong: Vec<&Stack> = stacks().filter(|stack| !in_order(stack, chain)).collect();
        let missed: u64 = wrong.iter().map(|stack| stack.count).sum();
        println!("{what}: {} of {all} under {chain:?}", all - missed);
        for stack in wrong.iter().take(3) {
            println!("not so: {:?}", stack.names());
        }
        assert!(all >= LEAST_SAMPLES, "{what} is in {all} samples only");
        assert!(
            missed * 100 <= all,
            "{missed} of {all} lack a caller of {what}"
        );
    }

    /// Checks that nearly all stacks are whole and every address makes sense.
    #[track_caller]
    fn assert_sound(&self) {
        let all: u64 = self.ends.values().sum();
        let whole = self.ends.get(&StackEnd::Whole).copied().unwrap_or_default();
        assert!(
            whole * 1000 >= all * 990,
            "{whole} of {all}: {:?}",
            self.ends
        );
        let (confirmed, calls) = self.calls;
        assert!(confirmed * 1000 >= calls * 999, "{confirmed} of {calls}");
    }
}

/// Whether the stack has these functions, one somewhere behind the other, and
/// then ends as a goroutine does.
fn in_order(stack: &Stack, chain: &[&str]) -> bool {
    let names = stack.names();
    let mut names = names.iter();
    chain.iter().all(|wanted| names.any(|name| name == wanted))
        && stack.names().last() == Some(&"runtime.main")
}

#[test]
fn c_code_without_frame_pointers_has_its_callers() {
    for version in [go::VERSIONS[0], go::NEWEST] {
        let watched = watch("cgo_call", version);
        watched.assert_sound();
        for (inner, chain) in [
            (
                "framed_inner",
                ["framed_inner", "framed_outer", "main.callFramed"],
            ),
            (
                "frameless_inner",
                ["frameless_inner", "frameless_outer", "main.callFrameless"],
            ),
        ] {
            let [c, outer, caller] = chain;
            let chain = [
                c,
                outer,
                "runtime.asmcgocall",
                "runtime.cgocall",
                caller,
                "main.main",
            ];
            watched.assert_chain(inner, &chain);
        }
    }
}

#[test]
fn go_called_back_from_c_has_the_outer_go_below() {
    for version in [go::VERSIONS[0], "1.22.10", go::NEWEST] {
        let watched = watch("cgo_callback", version);
        watched.assert_sound();
        let outer = ["runtime.asmcgocall", "main.callVisit", "main.main"];
        let chain = [
            &["main.burn", "crosscall2", "visit_inner", "visit_outer"],
            &outer[..],
        ];
        watched.assert_chain("main.burn", &chain.concat());
        // The runtime does not put back the frame pointer that it saved before
        // the callback.
        let chain = [&["visit_after", "visit_outer"], &outer[..]];
        watched.assert_chain("visit_after", &chain.concat());
    }
}

#[test]
fn the_kernels_clock_code_has_its_caller() {
    let watched = watch("clock_reader", go::NEWEST);
    watched.assert_sound();
    let in_vdso = |stack: &Stack| stack.frames[0].mapping == "[vdso]";
    watched.assert_chain_where(
        in_vdso,
        "the vdso",
        &["time.now", "time.Now", "main.readClock", "main.main"],
    );
}

#[test]
fn a_signal_handler_has_what_it_interrupted_below() {
    let interrupts_leaf = |stack: &Stack| stack.has("runtime.sigtramp") && stack.has("main.leaf");
    // Two threads play together here: while other work keeps them from running at
    // once there are few signals.
    let mut watched = watch("signals", go::NEWEST);
    for _ in 0..4 {
        if watched.count_where(interrupts_leaf) >= LEAST_SAMPLES {
            break;
        }
        watched = watch("signals", go::NEWEST);
    }
    watched.assert_sound();
    watched.assert_chain_where(
        interrupts_leaf,
        "a signal in main.leaf",
        &["runtime.sigtramp", "main.leaf", "main.caller", "main.main"],
    );
}

/// What the main goroutine of `nested_callback` has called, outermost first, in
/// one of its three ways.
fn way_down(way: &str, through: [&str; 3]) -> Vec<String> {
    let mut names = vec!["main.main".to_owned(), way.to_owned()];
    for c in through {
        names.push("main.descend".to_owned());
        names.push(format!("example.com/fixtures/nested_callback/{c}.Down"));
        names.push(format!("{c}_outer"));
        names.push(format!("{c}_inner"));
    }
    names.push("main.descend".to_owned());
    names
}

/// What of a stack is the program's own, without what it does at a depth.
fn own_frames(stack: &Stack) -> Vec<String> {
    let own = |name: &&str| {
        let ends = |end| name.ends_with(end);
        let in_c = (ends("_outer") || ends("_inner")) && !name.contains("_Cfunc_");
        (name.starts_with("main.") || ends(".Down") || in_c)
            && !matches!(*name, "main.burn" | "main.trace" | "main.interrupt")
    };
    let names = stack.names();
    names
        .into_iter()
        .rev()
        .filter(own)
        .map(String::from)
        .collect()
}

#[test]
fn callbacks_in_callbacks_are_whole() {
    let ways = [
        way_down("main.allFramed", ["framed"; 3]),
        way_down("main.allFrameless", ["frameless"; 3]),
        way_down("main.inTurn", ["frameless", "framed", "frameless"]),
    ];
    for version in ["1.19.13", go::VERSIONS[0], go::NEWEST] {
        let watched = watch("nested_callback", version);
        watched.assert_sound();
        let of_main = |stack: &&Stack| stack.names().last() == Some(&"runtime.main");
        let stacks = || watched.profile.stacks.iter().filter(of_main);
        let is_true = |stack: &Stack| {
            let own = own_frames(stack);
            // The clock is read at the top.
            own.len() == 1 || ways.iter().any(|way| way.starts_with(&own))
        };
        let count = |wanted: &dyn Fn(&Stack) -> bool| -> u64 {
            stacks().filter(|s| wanted(s)).map(|s| s.count).sum()
        };
        let (all, whole) = (count(&|_| true), count(&is_true));
        let deep = |levels: usize| move |stack: &Stack| own_frames(stack).len() > 2 + 4 * levels;
        let (twice, thrice) = (count(&deep(2)), count(&deep(3)));
        let on = |functions: &[&str]| count(&|s| deep(2)(s) && functions.iter().any(|f| s.has(f)));
        let signals = on(&["runtime.sigtramp", "runtime.cgoSigtramp"]);
        let traces = on(&["runtime.systemstack"]);
        println!(
            "go{version}: {whole} of {all} true, {twice} and {thrice} behind two and three \
             callbacks, {signals} of those in a signal, {traces} on the system stack"
        );
        for stack in stacks().filter(|stack| !is_true(stack)).take(3) {
            println!("not so: {:?}", stack.names());
        }
        assert!(all - whole <= all / 100, "{whole} of {all}");
        assert!(thrice * 8 >= all && twice > thrice, "{twice}, {thrice}");
        assert!(signals >= 10 && traces >= 10, "{signals}, {traces}");
    }
}
