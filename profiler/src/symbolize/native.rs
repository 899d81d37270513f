//! Names of C and kernel code, through blazesym. Never asked about Go code:
//! in a stripped cgo binary it would take the nearest C symbol for it.

use std::{collections::HashMap, fs::File, io::Write, os::fd::AsRawFd, path::PathBuf};

use blazesym::{
    MaybeDefault,
    symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer, source},
};

use crate::process::Object;

/// The source frames of one address, leaf first.
#[derive(Debug, Clone)]
pub(super) struct NativeFrame {
    pub(super) lines: Vec<NativeLine>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct NativeLine {
    pub(super) name: String,
    pub(super) file: String,
    pub(super) line: u32,
}

pub(super) struct NativeSymbols {
    symbolizer: Symbolizer,
    kallsyms: MaybeDefault<PathBuf>,
    vdso: Option<Vdso>,
}

/// A copy of this process's vdso: the kernel gives every process the same.
struct Vdso {
    path: PathBuf,
    _file: File,
}

impl Default for NativeSymbols {
    fn default() -> Self {
        let symbolizer = Symbolizer::builder()
            .enable_code_info(true)
            .enable_inlined_fns(true)
            .enable_auto_reload(false)
            .build();
        Self {
            symbolizer,
            kallsyms: MaybeDefault::Default,
            vdso: None,
        }
    }
}

impl NativeSymbols {
    /// Names kernel addresses from a copy of `/proc/kallsyms`.
    pub(super) fn with_kallsyms(path: PathBuf) -> Self {
        Self {
            kallsyms: MaybeDefault::Some(path),
            ..Self::default()
        }
    }

    /// Names kernel addresses, all in one go.
    pub(super) fn kernel(
        &mut self,
        addresses: impl Iterator<Item = u64>,
    ) -> HashMap<u64, Option<NativeFrame>> {
        let mut addresses: Vec<u64> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return HashMap::new();
        }
        let source = source::Source::Kernel(source::Kernel {
            // The image on disk, if any, adds lines but costs seconds to read.
            vmlinux: MaybeDefault::None,
            kallsyms: self.kallsyms.clone(),
            ..Default::default()
        });
        let symbols = self
            .symbolizer
            .symbolize(&source, Input::AbsAddr(&addresses))
            .unwrap_or_default();
        let mut frames: HashMap<u64, Option<NativeFrame>> =
            addresses.iter().map(|address| (*address, None)).collect();
        for (address, symbolized) in addresses.iter().zip(symbols) {
            frames.insert(*address, frame(symbolized));
        }
        frames
    }

    /// Names an offset in a file.
    pub(super) fn object(&mut self, object: &Object, file_offset: u64) -> Option<NativeFrame> {
        let mut elf = source::Elf::new(object.fd_path());
        // A Go program's DWARF is large and holds little of its C code.
        elf.debug_syms = object.go().is_none();
        self.elf(elf, file_offset)
    }

    /// Names an offset in the vdso.
    pub(super) fn vdso(&mut self, offset: u64) -> Option<NativeFrame> {
        if self.vdso.is_none() {
            self.vdso = copy_vdso();
        }
        let path = self.vdso.as_ref()?.path.clone();
        self.elf(source::Elf::new(path), offset)
    }

    fn elf(&mut self, elf: source::Elf, file_offset: u64) -> Option<NativeFrame> {
        let source = source::Source::Elf(elf);
        let symbolized = self
            .symbolizer
            .symbolize_single(&source, Input::FileOffset(file_offset))
            .ok()?;
        frame(symbolized)
    }
}

fn frame(symbolized: Symbolized<'_>) -> Option<NativeFrame> {
    let Symbolized::Sym(Sym {
        name,
        code_info,
        inlined,
        ..
    }) = symbolized
    else {
        return None;
    };
    let mut lines = vec![line(&name, code_info.as_deref())];
    for inlined in inlined.iter() {
        lines.push(line(&inlined.name, inlined.code_info.as_ref()));
    }
    lines.reverse();
    Some(NativeFrame { lines })
}

fn line(name: &str, code: Option<&CodeInfo<'_>>) -> NativeLine {
    NativeLine {
        name: name.to_owned(),
        file: code.map_or(String::new(), |code| {
            code.to_path().to_string_lossy().into_owned()
        }),
        line: code.and_then(|code| code.line).unwrap_or(0),
    }
}

/// Writes this process's own vdso to a file in memory, which a path names.
fn copy_vdso() -> Option<Vdso> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, end) = line.split(' ').next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    let memory = File::open("/proc/self/mem").ok()?;
    std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, start).ok()?;

    // SAFETY: a constant name; the descriptor that comes back is ours alone.
    let mut file = unsafe {
        let fd = libc::memfd_create(c"vdso".as_ptr(), libc::MFD_CLOEXEC);
        if fd < 0 {
            return None;
        }
        <File as std::os::fd::FromRawFd>::from_raw_fd(fd)
    };
    file.write_all(&bytes).ok()?;
    Some(Vdso {
        path: PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())),
        _file: file,
    })
}
