//! Faces `programs/block_io.rs`: requests to block devices. Where a tracepoint's
//! record keeps what differs between kernels; tracefs says it.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{Ebpf, maps::HashMap, programs::TracePoint};

use super::kernel_types::KernelTypes;

/// Most requests of those that are wanted at once.
pub(super) const MAX_REQUESTS: u32 = 16 * 1024;
/// The size of their table where none are.
pub(super) const MIN_REQUESTS: u32 = 256;

/// Where tracefs is mounted.
const FOLDERS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The fields of a record that are read, in the order of the program's.
const FIELDS: [&str; 4] = ["dev", "sector", "nr_sector", "rwbs"];

/// A program and the tracepoint it goes to.
#[derive(Debug, Clone)]
struct Hook {
    program: &'static str,
    /// The program's static with the offsets.
    offsets_name: &'static str,
    tracepoint: &'static str,
    offsets: [u16; FIELDS.len()],
}

/// What to attach where.
#[derive(Debug, Clone)]
pub(super) struct Hooks {
    hooks: Vec<Hook>,
    /// Where `task_struct` keeps what kind of task it is.
    task_flags: u32,
    kernel: u8,
}

impl Hooks {
    /// Finds the tracepoints of this kernel. `kernel` says whether the requests of
    /// kernel threads are wanted.
    ///
    /// # Errors
    /// tracefs is not mounted or not readable, or the kernel has no such tracepoints.
    pub(super) fn find(types: Option<&KernelTypes>, kernel: bool) -> Result<Self> {
        let events = folder()?;
        let read = |program, offsets_name, tracepoints: &[&'static str]| {
            hook(&events, (program, offsets_name), tracepoints)
        };
        // The moment that a request is made, in the task that makes it: since Linux
        // 6.5 the one, before that the other.
        let begin = ["block_io_start", "block_getrq"];
        let mut hooks = vec![
            read("block_io_complete", "IO_COMPLETE", &["block_rq_complete"])?,
            read("block_io_issue", "IO_ISSUE", &["block_rq_issue"])?,
            read("block_io_front", "IO_FRONT", &["block_bio_frontmerge"])?,
            read("block_io_begin", "IO_BEGIN", &begin)?,
        ];
        // Since Linux 5.12. Before, a request that became part of another is one that
        // never ends.
        let merge = read("block_io_merge", "IO_MERGE", &["block_rq_merge"]);
        hooks.extend(merge.ok());
        let task_flags = types.and_then(|types| types.offset("task_struct", "flags"));
        Ok(Self {
            hooks,
            kernel: u8::from(kernel && task_flags.is_some()),
            task_flags: task_flags.unwrap_or(0),
        })
    }

    /// What the programs have to know before they are loaded.
    pub(super) fn tell<'h>(&'h self, loader: &mut aya::EbpfLoader<'h>) {
        for hook in &self.hooks {
            loader.override_global(hook.offsets_name, &hook.offsets, true);
        }
        loader.override_global("TASK_FLAGS", &self.task_flags, true);
        loader.override_global("KERNEL_IO", &self.kernel, true);
    }

    /// Loads the programs.
    ///
    /// # Errors
    /// The kernel refuses one.
    pub(super) fn load(&self, ebpf: &mut Ebpf) -> Result<()> {
        for hook in &self.hooks {
            program(ebpf, hook.program)?
                .load()
                .with_context(|| format!("the kernel refuses the eBPF program {}", hook.program))?;
        }
        let map = ebpf.map_mut("PARTITIONS");
        let map = map.ok_or_else(|| anyhow!("the eBPF object has no map PARTITIONS"))?;
        let mut map: HashMap<_, u32, u32> = HashMap::try_from(map)?;
        for (partition, disk) in partitions(Path::new("/sys/class/block")) {
            // Where it is full, what is merged at the front there is not followed.
            let _ = map.insert(partition, disk, 0);
        }
        Ok(())
    }

    /// Attaches the programs, the one that begins requests last.
    ///
    /// # Errors
    /// The kernel refuses a hook.
    pub(super) fn attach(&self, ebpf: &mut Ebpf) -> Result<()> {
        for hook in &self.hooks {
            program(ebpf, hook.program)?
                .attach("block", hook.tracepoint)
                .with_context(|| format!("cannot attach to the tracepoint {}", hook.tracepoint))?;
        }
        Ok(())
    }

    /// How many times the kernel did not run a program as another one of that kind was
    /// under way on the CPU.
    pub(super) fn missed(&self, ebpf: &mut Ebpf) -> u64 {
        let missed = self.hooks.iter().filter_map(|hook| {
            let fd = program(ebpf, hook.program)
                .ok()?
                .fd()
                .ok()?
                .as_fd()
                .as_raw_fd();
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
            missed(&text)
        });
        missed.sum()
    }

    /// Detaches the programs.
    ///
    /// # Errors
    /// One is not loaded.
    pub(super) fn detach(&self, ebpf: &mut Ebpf) -> Result<()> {
        for hook in self.hooks.iter().rev() {
            program(ebpf, hook.program)?
                .unload()
                .with_context(|| format!("cannot detach {}", hook.program))?;
        }
        Ok(())
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut TracePoint> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
    Ok(program.try_into()?)
}

/// The folder of the block layer's tracepoints.
fn folder() -> Result<PathBuf> {
    for folder in FOLDERS {
        let events = Path::new(folder).join("events/block");
        match fs::read_dir(&events) {
            Ok(_) => return Ok(events),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                bail!("{folder} is closed to this user: -e io needs root")
            }
            Err(_) => {}
        }
    }
    bail!(
        "tracefs is not mounted, which says how the kernel tells of block devices: \
         mount -t tracefs tracefs /sys/kernel/tracing"
    )
}

/// The first of `tracepoints` that this kernel has.
fn hook(
    events: &Path,
    (program, offsets_name): (&'static str, &'static str),
    tracepoints: &[&'static str],
) -> Result<Hook> {
    let found = tracepoints.iter().find_map(|tracepoint| {
        let format = fs::read_to_string(events.join(tracepoint).join("format")).ok()?;
        Some((tracepoint, format))
    });
    let (tracepoint, format) =
        found.ok_or_else(|| anyhow!("the kernel has no tracepoint {}", tracepoints[0]))?;
    let mut offsets = [0; FIELDS.len()];
    for (offset, field) in offsets.iter_mut().zip(FIELDS) {
        *offset = offset_of(&format, field)
            .ok_or_else(|| anyhow!("the tracepoint {tracepoint} does not tell {field}"))?;
    }
    Ok(Hook {
        program,
        offsets_name,
        tracepoint,
        offsets,
    })
}

/// Where a record keeps a field, of a tracepoint with this `format`: a line is
/// `field:char rwbs[10]; offset:34; size:10; signed:0;`, with tabs between.
fn offset_of(format: &str, field: &str) -> Option<u16> {
    format.lines().find_map(|line| {
        let mut parts = line.trim().strip_prefix("field:")?.split(';');
        let declaration = parts.next()?.split('[').next()?;
        if declaration.split_whitespace().last() != Some(field) {
            return None;
        }
        parts.next()?.trim().strip_prefix("offset:")?.parse().ok()
    })
}

/// The number of misses out of a program's `fdinfo`.
fn missed(fdinfo: &str) -> Option<u64> {
    let line = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"));
    line?.trim().parse().ok()
}

/// Each partition with the device it is on, as the kernel numbers them.
fn partitions(class: &Path) -> Vec<(u32, u32)> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let partitions = entries.filter_map(|entry| {
        let folder = fs::canonicalize(entry.path()).ok()?;
        folder.join("partition").exists().then_some(())?;
        let number = |folder: &Path| number(&fs::read_to_string(folder.join("dev")).ok()?);
        Some((number(&folder)?, number(folder.parent()?)?))
    });
    partitions.collect()
}

/// A device as the kernel numbers it (`MKDEV`, `include/linux/kdev_t.h`) out of
/// `MAJOR:MINOR`.
fn number(text: &str) -> Option<u32> {
    let (major, minor) = text.trim().split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    (major < 1 << 12 && minor < 1 << 20).then_some(major << 20 | minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMAT: &str = "name: block_rq_issue\nID: 1\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;\n\
        \tfield:sector_t sector;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;\n\
        \tfield:char rwbs[10];\toffset:34;\tsize:10;\tsigned:0;\n\
        \tfield:__data_loc char[] cmd;\toffset:60;\tsize:4;\tsigned:0;\n";

    #[test]
    fn offsets_come_from_the_format() {
        let offsets = FIELDS.map(|field| offset_of(FORMAT, field));
        assert_eq!(offsets, [Some(8), Some(16), Some(24), Some(34)]);
        assert_eq!(offset_of(FORMAT, "sect"), None);
        assert_eq!(offset_of("field:dev_t dev;\toffset:x;", "dev"), None);
        assert_eq!(offset_of("", "dev"), None);
    }

    #[test]
    fn this_kernel_has_the_tracepoints() {
        let types = KernelTypes::read(&["task_struct"]).unwrap();
        let hooks = Hooks::find(Some(&types), true).unwrap();
        assert!(hooks.hooks.len() >= 4, "{hooks:?}");
        assert!(hooks.kernel == 1 && hooks.task_flags > 0);
        for hook in &hooks.hooks {
            assert!(hook.offsets.iter().all(|offset| *offset >= 8), "{hook:?}");
        }
    }

    #[test]
    fn devices_are_numbered_as_the_kernel_does() {
        assert_eq!(number("8:1\n"), Some(8 << 20 | 1));
        assert_eq!(number("259:1048575"), Some(259 << 20 | 0xf_ffff));
        assert_eq!(number("259:1048576"), None);
        assert_eq!(number("x:1"), None);
        assert_eq!(missed("prog_type:\t5\nrecursion_misses:\t12\n"), Some(12));
        assert_eq!(missed("prog_type:\t5\n"), None);
    }
}
