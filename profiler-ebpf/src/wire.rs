//! Layouts that cross the kernel boundary, written once: ring-buffer records,
//! map keys and values, counters. All integers are in the machine's byte order.

pub mod allocation;
mod probes;
mod waits;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use probes::{ProbeShare, ProbeWindow, ShareSpent, TICK_PERIOD_NS, cookie};
pub use waits::{Parked, Queue, SpanLayout, WaitKey, WaitLayout, Waiter, at, wait};

/// Most user frames walked for one sample.
pub const MAX_USER_FRAMES: usize = 1024;
/// Most kernel frames taken for one sample; the kernel's own limit
/// (`kernel.perf_event_max_stack`, 127 by default) may be lower.
pub const MAX_KERNEL_FRAMES: usize = 127;
/// Most words of the stack above `sp` copied with a sample whose frame pointer
/// looks sound; fewer where the frame is smaller. They hold the return address
/// in a prologue or a leaf.
pub const SLICE_WORDS_SOUND: usize = 64;
/// Least words copied of the stack that a goroutine has left, as far as they are
/// resident. Up to Go 1.20 a write barrier's assembly lies there that calls on
/// without a frame, so that the frame pointers lead past its caller.
pub const SLICE_WORDS_LEFT: usize = 48;
/// Most words copied when the frame pointer is not in the stack above `sp`,
/// where assembly uses the register for something else (in Go's standard
/// library the AVX2 parts of `crypto/sha256` and others) or C was built without
/// frame pointers. The walk goes on inside them, in userspace.
pub const SLICE_WORDS_CLOBBERED: usize = 1024;
/// The words above are read in chunks of this many, so that the end of the
/// readable memory costs no more than one chunk.
pub const SLICE_CHUNK_WORDS: usize = 128;
/// How far above `sp` a frame pointer may lie to look sound, in bytes. Go
/// functions with larger frames exist, but then the chain is broken for this
/// sample only in how many words it costs.
pub const FRAME_SOUND_BYTES: u64 = 64 * 1024;

/// Most calls from C back into Go that a walk along a goroutine's own stack
/// passes: so many words it may take beside [`MAX_USER_FRAMES`].
pub const MAX_CALLBACKS: usize = 16;
/// Words of a [`Segment`]'s far slice that are not stack: its address, and how
/// many frames of the chain come before it.
pub const FAR_HEAD_WORDS: usize = 2;
/// Words kept free behind a slice for what follows: the frames and words of the
/// goroutine's own stack, kernel frames, labels; and a last chunk.
pub const RESERVED_WORDS: usize = MAX_USER_FRAMES
    + MAX_CALLBACKS
    + SLICE_WORDS_SOUND
    + MAX_KERNEL_FRAMES
    + MAX_LABELS_WORDS
    + SLICE_CHUNK_WORDS;
/// Most pprof labels taken with a sample.
pub const MAX_LABELS: usize = 32;
/// Most bytes taken of a label's key, and of its value.
pub const MAX_LABEL_BYTES: usize = 256;
/// Words that a label takes at most: a [`Label`] and both texts.
pub const MAX_LABEL_WORDS: usize = 1 + 2 * MAX_LABEL_BYTES / 8;
/// Words that all labels of a sample take at most.
pub const MAX_LABELS_WORDS: usize = 512;

/// Threads that a process starts this soon after a [`kind::THREAD`] make no
/// other; in nanoseconds. Who looks at the process must do so later than that.
pub const THREAD_PAUSE_NS: u64 = 50_000_000;

/// The words that can follow a [`Sample`] header.
pub const MAX_PAYLOAD_WORDS: usize = 2 * MAX_USER_FRAMES
    + MAX_CALLBACKS
    + MAX_KERNEL_FRAMES
    + SLICE_WORDS_CLOBBERED
    + SLICE_WORDS_SOUND
    + SLICE_CHUNK_WORDS
    + FAR_HEAD_WORDS
    + MAX_LABELS_WORDS;

/// The `kind` of a record.
pub mod kind {
    /// A [`super::Sample`], followed by its words.
    pub const SAMPLE: u32 = 1;
    /// A bare [`super::Header`]: the process `pid` has begun a new program.
    pub const EXEC: u32 = 2;
    /// A bare [`super::Header`]: the main thread of the process `pid` is exiting.
    pub const EXIT: u32 = 3;
    /// A bare [`super::Header`]: the process `pid`, which is not wanted so far,
    /// starts a thread. At most one in [`super::THREAD_PAUSE_NS`].
    pub const THREAD: u32 = 4;
    /// A [`super::Measured`], followed by a [`super::Sample`] and its words.
    pub const MEASURED: u32 = 5;
    /// A bare [`super::Measured`]: what a [`MEASURED`] before it began is over.
    pub const ENDED: u32 = 6;
    /// A [`super::ShareSpent`].
    pub const SHARE_SPENT: u32 = 16;
}

/// What every record begins with.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u32,
    /// The CPU it was taken on.
    pub cpu: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time_ns: u64,
    /// Process id (the kernel's tgid) in the initial pid namespace.
    pub pid: u32,
    /// Thread id (the kernel's pid) in the initial pid namespace.
    pub tid: u32,
}

/// A sampled stack. The record goes on with words of eight bytes: for each
/// segment its return addresses, its slice and its far slice, then the kernel's
/// addresses, then the labels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Sample {
    /// `kind` is [`kind::SAMPLE`].
    pub header: Header,
    /// The id of the thread's cgroup: the inode of its directory in the v2
    /// hierarchy.
    pub cgroup_id: u64,
    /// The thread's name, padded with zeros.
    pub comm: [u8; 16],
    /// The goroutine that runs on the thread, 0 for none.
    pub goid: u64,
    /// The stack that the thread was on.
    pub thread: Segment,
    /// The goroutine's own stack, where the thread was on the system stack; its
    /// registers are those that the runtime saved when it left. Where the thread
    /// was in Go called from C called from Go, the part of the outer Go. Else
    /// all zero. Its chain stays on the goroutine's stack: where C called back, it
    /// goes on with the Go that had called C.
    pub goroutine: Segment,
    /// Kernel addresses, leaf first.
    pub kernel_frames: u16,
    /// Words of labels.
    pub labels_words: u16,
    /// Labels.
    pub labels: u8,
    /// Labels left out: more than [`MAX_LABELS`], too long together, or not
    /// readable.
    pub labels_missed: u8,
    /// [`flags`].
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
}

/// What the `kind`s [`kind::MEASURED`] and [`kind::ENDED`] begin with. The first
/// goes on with a whole [`Sample`] and its words, the second has nothing more.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Measured {
    /// `kind` is [`kind::MEASURED`] or [`kind::ENDED`]. Of the second, thread and
    /// process are those it is about, not those it was taken in.
    pub header: Header,
    /// What was measured, one of [`event`].
    pub event: u32,
    /// How many such the sample stands for: one in so many was taken.
    pub weight: u32,
    /// Nanoseconds, where they are known already; else 0.
    pub duration_ns: u64,
    /// A second duration that is part of the first; see [`event`].
    pub part_ns: u64,
    /// What else there is to say; see [`event`].
    pub detail: u64,
    /// Of probes: the number of the window that it was taken in; else 0.
    pub window: u64,
}

/// A thread that was off the CPU for this long counts for itself alone, whether
/// its stack was taken or not; in nanoseconds.
pub const LONG_WAIT_NS: u64 = 10_000_000;

/// A thread that leaves the CPU more often than once in this time, on average,
/// has but a part of its stacks taken; in nanoseconds.
pub const OFF_CPU_EVERY_NS: u64 = 2_000_000;

/// A thread of a wanted process: the value of the map `THREADS`, keyed by thread
/// id.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Thread {
    /// When it left the CPU; 0 where it is on one.
    pub left_ns: u64,
    /// When it was woken since; 0 where it was not.
    pub woken_ns: u64,
    /// The time between two departures, on average.
    pub interval_ns: u64,
    /// When it left the CPU last.
    pub last_ns: u64,
    /// The state it left in.
    pub state: u64,
    /// For how long it had been on a CPU by then, since it began.
    pub ran_ns: u64,
    /// What its stack stands for; 0 where it was not taken.
    pub weight: u32,
    /// Its process.
    pub pid: u32,
    /// Where it left from, by index of `places`.
    pub place: u32,
    /// Zero.
    pub reserved: u32,
    /// How long it waited where it left from lately.
    pub places: [Place; PLACES],
}

/// Places that are remembered of a [`Thread`]; a power of two.
pub const PLACES: usize = 4;

/// A place in a program that a thread left the CPU from.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Place {
    /// Made of its instruction and stack pointer.
    pub key: u32,
    /// How long it waited there, on average, in units of 1,024 nanoseconds.
    pub wait: u32,
}

/// What a [`Measured`] is a measure of.
pub mod event {
    /// A thread off the CPU. MEASURED as it leaves, with no duration; ENDED as it
    /// comes back, with it, of which `part_ns` were spent waiting for a CPU. The
    /// weight of an ENDED is 0 where the stack was not taken, which is then told of
    /// those of [`super::LONG_WAIT_NS`] and more alone: the others are stood for by
    /// what was taken. `detail` is the state it left in (`task_struct`'s
    /// `__state`; 0 where it was still runnable). Where the kernel told nothing of
    /// its coming back, ENDED follows when it leaves the next time.
    pub const OFF_CPU: u32 = 1;
    /// A wait for a semaphore is over. The stack is that of the goroutine that woke
    /// the one that waited; `duration_ns` what all waited that wait for the same,
    /// since it was counted last. Or with [`super::wait::OF_WAITER`] the stack of the one
    /// that waited, and how long. `part_ns` is that one's id, 0 where not known.
    /// `detail` is its wait reason, with bits of [`super::wait`].
    pub const MUTEX: u32 = 2;
    /// A goroutine that waited goes on: its stack, and how long it was; `part_ns` of
    /// it since it could go on, 0 where nobody said so. `detail` as above.
    pub const BLOCK: u32 = 3;
    /// Memory is allocated: the stack of who does it. `duration_ns` is the size in
    /// bytes, and `part_ns` the address of the type's descriptor, 0 where nobody says.
    /// `detail` is why it was taken, one of [`super::allocation`], and above its
    /// [`super::allocation::TOTAL_SHIFT`] what the runtime has counted by then.
    pub const ALLOCATION: u32 = 4;
    /// A request to a block device. MEASURED as it is made, with the device (as the
    /// kernel numbers it) in the upper half of `detail` and the first letters of what
    /// is to be done in the lower, and the bytes so far in `part_ns`; ENDED as it is done, under the same header, with the
    /// time since the driver got it, before which it was queued for `part_ns`, and its
    /// bytes in `detail`. The weight of an ENDED is 0 where the request became part of
    /// another, or where `part_ns` is not 0, was given up for another to the same place.
    pub const BLOCK_IO: u32 = 8;
    /// The MEASURED of one that a thread of the kernel makes.
    pub const BLOCK_IO_OF_KERNEL: u32 = 9;
}

/// A piece of stack: registers, the chain of frame pointers from them, and the
/// words above the stack pointer.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Segment {
    /// Instruction pointer.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer (x86-64 `rbp`, arm64 `x29`).
    pub fp: u64,
    /// The link register on arm64, else 0.
    pub lr: u64,
    /// Return addresses: callers, leaf first, without `ip`.
    pub frames: u16,
    /// Words from `sp` up.
    pub slice_words: u16,
    /// How the walk ended, a [`WalkEnd`].
    pub walk_end: u8,
    /// Zero.
    pub reserved: u8,
    /// Words of the far slice, [`FAR_HEAD_WORDS`] included; 0 where there is
    /// none. The thread's begins at a frame of the chain (the words are that
    /// frame's pointer, its return address, and what lies above), or where the
    /// stack pointer was when a signal came; frames before it are then
    /// [`NO_FRAME`]. The goroutine's is of the system stack, for the C between its
    /// parts: it begins where the stack pointer was in `runtime.cgocallback`, with
    /// the word that says where it was in the one before; frames before it are
    /// those of the thread's chain, or [`NO_FRAME`] where the goroutine's own
    /// chain is the one that comes to it.
    pub far_words: u16,
}

/// For a far slice that begins at no frame of the chain, or of the thread's.
pub const NO_FRAME: u64 = u64::MAX;

/// The frame that the kernel writes on a thread's signal stack, on x86-64, in
/// bytes from the slot of the handler's return address: `struct rt_sigframe`,
/// arch/x86/include/asm/sigframe.h, and `struct sigcontext_64`,
/// arch/x86/include/uapi/asm/sigcontext.h.
pub mod signal_frame {
    /// The interrupted frame pointer.
    pub const FP: u64 = 128;
    /// The interrupted stack pointer.
    pub const SP: u64 = 168;
    /// The interrupted instruction.
    pub const IP: u64 = 176;
    /// Past all of these.
    pub const END: u64 = 184;
    /// The first bytes of the code that a handler returns to, as a word: `mov
    /// $15, %rax; syscall`. Debuggers and unwinders look for just that, so that
    /// Go's runtime and C libraries all use it.
    pub const RETURN_CODE: u64 = 0x0f00_0000_0fc0_c748;
    /// The bytes of that code.
    pub const RETURN_BYTES: u64 = 9;
}

/// A pprof label of a goroutine; its key and value follow, each padded with
/// zeros to a whole word.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Label {
    /// Bytes of the key that follow.
    pub key_bytes: u16,
    /// Bytes of the value that follow.
    pub value_bytes: u16,
    /// Not zero where the key or the value was longer.
    pub truncated: u32,
}

/// Bits of [`Sample::flags`].
pub mod flags {
    /// The thread was in user code; else in the kernel on its behalf.
    pub const IN_USER: u8 = 1;
    /// The thread was on its signal stack.
    pub const ON_SIGNAL_STACK: u8 = 2;
}

/// How a walk along frame pointers ended.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WalkEnd {
    /// The chain ended in a null frame pointer, as a thread's or goroutine's
    /// first frame does.
    Root = 0,
    /// [`MAX_USER_FRAMES`] were taken and there are more.
    DepthLimit = 1,
    /// The frame pointer led to memory that could not be read without
    /// faulting.
    Unreadable = 2,
    /// The frame pointer was not a multiple of eight or pointed to itself.
    Malformed = 3,
    /// The registers of user mode could not be had.
    NoRegisters = 4,
}

impl WalkEnd {
    /// Reads back what the kernel side wrote; `None` for an unknown value.
    pub fn from_u8(value: u8) -> Option<Self> {
        [
            Self::Root,
            Self::DepthLimit,
            Self::Unreadable,
            Self::Malformed,
            Self::NoRegisters,
        ]
        .into_iter()
        .find(|end| *end as u8 == value)
    }
}

/// What to do with a process: the value of the map `TARGETS`, keyed by pid.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Target {
    /// One of [`target`].
    pub state: u32,
    /// Zero.
    pub reserved: u32,
    /// Where the runtime keeps what; [`GoLayout::default`] where not known.
    pub go: GoLayout,
}

/// States of a [`Target`].
pub mod target {
    /// Sampled until userspace has looked at the program it began.
    pub const PENDING: u32 = 1;
    /// Sampled.
    pub const WANTED: u32 = 2;
}

/// Offsets in the structs of a Go runtime, in bytes; and where the current
/// goroutine's `g` is. All from the process's binary.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct GoLayout {
    /// Not zero where the rest is known.
    pub known: u8,
    /// How labels are kept, one of [`labels`].
    pub labels: u8,
    /// `g.m`.
    pub g_m: u16,
    /// `g.sched.sp`.
    pub g_sched_sp: u16,
    /// `g.sched.pc`.
    pub g_sched_pc: u16,
    /// `g.sched.bp`.
    pub g_sched_bp: u16,
    /// `g.goid`.
    pub g_goid: u16,
    /// `g.labels`.
    pub g_labels: u16,
    /// `m.gsignal`.
    pub m_gsignal: u16,
    /// `m.curg`.
    pub m_curg: u16,
    /// Bytes between the stack pointer and the return address in the body of
    /// `runtime.cgocallback`.
    pub callback_delta: u16,
    /// Bytes from the stack pointer that the runtime saves where Go calls C to
    /// the frame pointer of its caller; 0 where a frame pointer of its own lies
    /// right there, as since Go 1.21.
    pub cgocall_frame: u16,
    /// Zero.
    pub reserved: [u16; 3],
    /// On x86-64: where `g` lies from the thread's `fs` base. On arm64 `g` is
    /// in `x28`.
    pub tls_offset: i32,
    /// Where Go's code is; zero where not known.
    pub text: Code,
    /// Where `runtime.cgocallback` is; zero where there is none.
    pub callback: Code,
    /// Where the runtime's signal handlers are, of which the first keeps a
    /// frame pointer; zero where not known.
    pub signal_handlers: Code,
}

/// A range of code.
#[repr(C)]
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
pub struct Code {
    /// Its first address.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl Code {
    /// Whether `address` lies in it.
    #[inline(always)]
    pub fn holds(&self, address: u64) -> bool {
        address.wrapping_sub(self.start) < self.len
    }
}

/// How a runtime keeps a goroutine's labels.
pub mod labels {
    /// Not known.
    pub const UNKNOWN: u8 = 0;
    /// `*map[string]string`: Go 1.19 to 1.23.
    pub const MAP: u8 = 1;
    /// `*[]struct{ key, value string }`: since Go 1.24.
    pub const SLICE: u8 = 2;
}

/// Indices into the per-CPU map `COUNTERS`, each a count since the start.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Samples taken of wanted processes, delivered or not.
    Samples = 0,
    /// Samples lost because the ring buffer was full.
    SamplesRingFull = 1,
    /// Records other than samples lost because the ring buffer was full.
    EventsRingFull = 2,
    /// Processes not sampled from their start because `TARGETS` was full.
    TargetsFull = 3,
    /// Samples whose user registers could not be had.
    NoUserRegisters = 4,
    /// Samples whose kernel stack could not be taken.
    NoKernelStack = 5,
    /// Ticks of the sampler, whoever was running.
    Ticks = 6,
    /// Times that a thread of a wanted process left the CPU.
    SwitchesOff = 7,
    /// Those whose stack was wanted, each for itself and as many more as its
    /// [`Measured::weight`] says.
    SwitchesTaken = 8,
    /// Ends of what was measured that were lost because the ring buffer was full.
    EndsRingFull = 9,
    /// Threads not followed because the table of threads was full.
    ThreadsFull = 10,
    /// Waits not followed because a table of them was full.
    WaitsFull = 11,
    /// Hits of a probe in the midst of another's on the same CPU, which are lost.
    ProbesNested = 12,
    /// Requests to block devices of those that are wanted.
    IoBegun = 13,
    /// Those not followed to their end, as there was another to the same place (its
    /// end was not told, or both were under way), or the table of requests was full.
    IoNotPaired = 14,
    /// Ticks of the sampler on CPUs that had nothing to do.
    IdleTicks = 15,
}

impl Counter {
    /// Every counter, in the order of the map.
    pub const ALL: [Counter; 16] = [
        Counter::Samples,
        Counter::SamplesRingFull,
        Counter::EventsRingFull,
        Counter::TargetsFull,
        Counter::NoUserRegisters,
        Counter::NoKernelStack,
        Counter::Ticks,
        Counter::SwitchesOff,
        Counter::SwitchesTaken,
        Counter::EndsRingFull,
        Counter::ThreadsFull,
        Counter::WaitsFull,
        Counter::ProbesNested,
        Counter::IoBegun,
        Counter::IoNotPaired,
        Counter::IdleTicks,
    ];
}
