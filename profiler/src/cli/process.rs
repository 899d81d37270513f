//! Processes that were named by their pids: that they are there and run Go, or one
//! line that says what they are.

use super::{Failure, printable};
use crate::{
    gobinary::GoBinaryError,
    process::{Code, Object, Objects, Process, is_alive},
};

/// Looks at a process that was named by its pid, which must be a Go process.
pub(super) fn go_process(pid: u32, objects: &mut Objects) -> Result<Process, Failure> {
    let fail = |text: String| Err(Failure::Failed(anyhow::anyhow!(text)));
    let exe = match objects.of_executable(pid) {
        Ok(exe) => exe,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if !is_alive(pid) {
                return fail(format!("process {pid} exited"));
            }
            return fail(format!(
                "process {pid} is a kernel thread, not a Go program"
            ));
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return fail(format!(
                "cannot read the program of process {pid}: permission denied: run goprof as root, \
                 or with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
            ));
        }
        Err(error) => return fail(format!("cannot read the program of process {pid}: {error}")),
    };
    match Process::read(pid, objects) {
        Ok(process) if process.go_object().is_some() => Ok(process),
        Ok(process) => fail(not_go(&process, &exe)),
        Err(error) => fail(format!("cannot look at process {pid}: {error}")),
    }
}

fn not_go(process: &Process, exe: &Object) -> String {
    let why = match &exe.code {
        // The line says already that it is not Go.
        Code::Native(GoBinaryError::NotGo(what)) => (*what).to_owned(),
        Code::Native(error) => error.to_string(),
        Code::Go(_) => "its Go code is not mapped".into(),
    };
    format!(
        "process {} ({}) is not a Go program: {}: {why}",
        process.pid,
        printable(&process.comm),
        printable(&process.exe)
    )
}
