//! The machine that a kernel runs on: qemu without the help of the processor, as
//! what runs the tests is often a virtual machine itself. Knows the console alone.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;

use super::kernels::Arch;

/// When a machine that has not ended is taken for hanging: so long after its start, and
/// so much for each case.
const LIMIT: Duration = Duration::from_secs(180);
const LIMIT_OF_CASE: Duration = Duration::from_secs(60);

/// Fails unless there is an emulator.
pub fn require(arch: Arch) -> Result<()> {
    let (program, package) = emulator(arch);
    if command::find(program).is_none() {
        bail!("{program} boots the kernels: run `apt-get install {package}`");
    }
    Ok(())
}

fn emulator(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Aarch64 => ("qemu-system-aarch64", "qemu-system-arm"),
    }
}

/// Boots until the machine is off, which is to take no longer than so many cases may,
/// and returns what it wrote on its console.
pub fn boot(arch: Arch, kernel: &Path, ramdisk: &Path, cases: usize) -> Result<String> {
    let (program, _) = emulator(arch);
    let mut qemu = Command::new(program);
    let console = match arch {
        Arch::X86_64 => "ttyS0",
        Arch::Aarch64 => {
            qemu.args(["-machine", "virt"]);
            "ttyAMA0"
        }
    };
    qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1G"])
        .args(["-smp", "2", "-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(ramdisk)
        .args(["-append", &format!("console={console} panic=-1 quiet")]);
    let log = ramdisk.with_extension("console");
    let file = std::fs::File::create(&log).with_context(|| format!("write {}", log.display()))?;
    qemu.stdin(Stdio::null())
        .stdout(file)
        .stderr(Stdio::inherit());
    let mut child = qemu
        .spawn()
        .with_context(|| format!("start `{}`", command::line(&qemu)))?;
    let start = Instant::now();
    let cases = u32::try_from(cases).context("more cases than can be tried")?;
    let limit = LIMIT + LIMIT_OF_CASE * cases;
    let status = loop {
        if let Some(status) = child.try_wait().context("wait for qemu")? {
            break status;
        }
        if start.elapsed() > limit {
            child
                .kill()
                .and_then(|()| child.wait())
                .context("end qemu")?;
            bail!(
                "the machine was not done after {} s; its console is {}",
                limit.as_secs(),
                log.display()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let text = std::fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let _ = std::fs::remove_file(&log);
    if !status.success() {
        bail!("`{}` failed: {status}", command::line(&qemu));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
