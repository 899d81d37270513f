//! What functions are to somebody who walks stacks, and the numbers by which
//! each Go version says it. `version` knows which numbers are whose.

/// What a function is to somebody who walks stacks: Go's `abi.FuncID`, told
/// apart by meaning because the numbers differ between versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FuncKind {
    /// Nothing special.
    Normal,
    /// `runtime.abort`.
    Abort,
    /// `runtime.asmcgocall`: goroutine stack to system stack, into C.
    Asmcgocall,
    /// `runtime.asyncPreempt`: put on the stack by a preemption signal.
    AsyncPreempt,
    /// `runtime.cgocallback`: C back into Go.
    Cgocallback,
    /// `runtime.corostart` (1.22 and later).
    Corostart,
    /// `runtime.debugCallV2`: put on the stack by a debugger.
    DebugCall,
    /// `runtime.gcBgMarkWorker`.
    GcBgMarkWorker,
    /// `runtime.goexit`: the outermost frame of every goroutine.
    Goexit,
    /// `runtime.gogo`: switches to a goroutine; no frame is above it.
    Gogo,
    /// `runtime.gopanic`.
    GoPanic,
    /// `runtime.handleAsyncEvent`.
    HandleAsyncEvent,
    /// `runtime.mcall`: leaves the goroutine's stack for good.
    Mcall,
    /// `runtime.morestack`: the stack grows, on the system stack.
    Morestack,
    /// `runtime.mstart`: the outermost frame of a system stack.
    Mstart,
    /// `runtime.panicwrap`.
    PanicWrap,
    /// `runtime.rt0_go`: the outermost frame of the first thread.
    Rt0Go,
    /// `runtime.runfinq` (up to 1.24), `runtime.runFinalizers` (1.25 and later).
    RunFinalizers,
    /// `runtime.runCleanups` (1.25 and later).
    RunCleanups,
    /// `runtime.main`.
    RuntimeMain,
    /// `runtime.sigpanic`: put on the stack where a fault happened.
    SigPanic,
    /// `runtime.systemstack`: runs a function on the system stack.
    Systemstack,
    /// `runtime.systemstack_switch`: marks a goroutine that did so.
    SystemstackSwitch,
    /// Generated code that only calls a method. Go's own profiles leave it out.
    Wrapper,
}

impl FuncKind {
    /// Whether the runtime puts calls to this function onto a stack from a
    /// signal handler, so that it returns to an instruction that was never a
    /// call (`runtime.unwinder.symPC`, all versions).
    pub fn is_injected(self) -> bool {
        matches!(
            self,
            FuncKind::SigPanic | FuncKind::AsyncPreempt | FuncKind::DebugCall
        )
    }

    /// Whether Go leaves out a [`FuncKind::Wrapper`] that called this function.
    /// It keeps those whose callee panicked on the wrapper's behalf
    /// (`runtime.elideWrapperCalling`, all versions).
    pub fn elides_calling_wrapper(self) -> bool {
        !matches!(
            self,
            FuncKind::GoPanic | FuncKind::SigPanic | FuncKind::PanicWrap
        )
    }
}

/// Ids of Go 1.19 to 1.21 (`runtime/symtab.go`; 1.21: `internal/abi/symtab.go`).
pub(super) static FUNC_IDS_119: [FuncKind; 22] = [
    FuncKind::Normal,
    FuncKind::Abort,
    FuncKind::Asmcgocall,
    FuncKind::AsyncPreempt,
    FuncKind::Cgocallback,
    FuncKind::DebugCall,
    FuncKind::GcBgMarkWorker,
    FuncKind::Goexit,
    FuncKind::Gogo,
    FuncKind::GoPanic,
    FuncKind::HandleAsyncEvent,
    FuncKind::Mcall,
    FuncKind::Morestack,
    FuncKind::Mstart,
    FuncKind::PanicWrap,
    FuncKind::Rt0Go,
    FuncKind::RunFinalizers,
    FuncKind::RuntimeMain,
    FuncKind::SigPanic,
    FuncKind::Systemstack,
    FuncKind::SystemstackSwitch,
    FuncKind::Wrapper,
];

/// Ids of Go 1.22 to 1.24 (`internal/abi/symtab.go`): corostart came in.
pub(super) static FUNC_IDS_122: [FuncKind; 23] = [
    FuncKind::Normal,
    FuncKind::Abort,
    FuncKind::Asmcgocall,
    FuncKind::AsyncPreempt,
    FuncKind::Cgocallback,
    FuncKind::Corostart,
    FuncKind::DebugCall,
    FuncKind::GcBgMarkWorker,
    FuncKind::Goexit,
    FuncKind::Gogo,
    FuncKind::GoPanic,
    FuncKind::HandleAsyncEvent,
    FuncKind::Mcall,
    FuncKind::Morestack,
    FuncKind::Mstart,
    FuncKind::PanicWrap,
    FuncKind::Rt0Go,
    FuncKind::RunFinalizers,
    FuncKind::RuntimeMain,
    FuncKind::SigPanic,
    FuncKind::Systemstack,
    FuncKind::SystemstackSwitch,
    FuncKind::Wrapper,
];

/// Ids of Go 1.25 to 1.27 (`internal/abi/symtab.go`): runfinq became two, which
/// stand after runtime_main.
pub(super) static FUNC_IDS_125: [FuncKind; 24] = [
    FuncKind::Normal,
    FuncKind::Abort,
    FuncKind::Asmcgocall,
    FuncKind::AsyncPreempt,
    FuncKind::Cgocallback,
    FuncKind::Corostart,
    FuncKind::DebugCall,
    FuncKind::GcBgMarkWorker,
    FuncKind::Goexit,
    FuncKind::Gogo,
    FuncKind::GoPanic,
    FuncKind::HandleAsyncEvent,
    FuncKind::Mcall,
    FuncKind::Morestack,
    FuncKind::Mstart,
    FuncKind::PanicWrap,
    FuncKind::Rt0Go,
    FuncKind::RuntimeMain,
    FuncKind::RunFinalizers,
    FuncKind::RunCleanups,
    FuncKind::SigPanic,
    FuncKind::Systemstack,
    FuncKind::SystemstackSwitch,
    FuncKind::Wrapper,
];
