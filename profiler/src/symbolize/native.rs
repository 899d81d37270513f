//! Names of C and kernel code, through blazesym. Never asked about Go code:
//! in a stripped cgo binary it would take the nearest C symbol for it.

use std::{
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use blazesym::{
    MaybeDefault,
    symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer, source},
};
use foldhash::HashMap;

use super::kallsyms;
use crate::{image, process::Object};

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

/// Windows after which a file that was not asked about is let go.
const MAX_IDLE_WINDOWS: u32 = 10;
/// Most files whose symbols are kept.
const MAX_FILES: usize = 64;

pub(super) struct NativeSymbols {
    symbolizer: Symbolizer,
    /// The files it was asked about, and in which window last. It knows them by
    /// the number of their descriptor, which no other may get while it does.
    held: HashMap<*const Object, (Arc<Object>, u32)>,
    window: u32,
    kallsyms: PathBuf,
}

impl Default for NativeSymbols {
    fn default() -> Self {
        Self {
            symbolizer: symbolizer(),
            held: HashMap::default(),
            window: 0,
            kallsyms: PathBuf::from("/proc/kallsyms"),
        }
    }
}

impl NativeSymbols {
    /// Names kernel addresses from a copy of `/proc/kallsyms`.
    pub(super) fn with_kallsyms(path: PathBuf) -> Self {
        Self {
            kallsyms: path,
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
            return HashMap::default();
        }
        let mut frames: HashMap<u64, Option<NativeFrame>> =
            addresses.iter().map(|address| (*address, None)).collect();
        // Blazesym would keep every symbol there is, and take more time for it
        // than a short recording takes for all the rest.
        let Some(symbols) = nearest_symbols(&self.kallsyms, &addresses) else {
            return frames;
        };
        let source = source::Source::Kernel(source::Kernel {
            // The image on disk, if any, adds lines but costs seconds to read.
            vmlinux: MaybeDefault::None,
            kallsyms: MaybeDefault::Some(format!("/proc/self/fd/{}", symbols.as_raw_fd()).into()),
            ..Default::default()
        });
        // One of its own: it remembers the file by its path, which the next
        // may have again.
        let symbolizer = symbolizer();
        let symbols = symbolizer
            .symbolize(&source, Input::AbsAddr(&addresses))
            .unwrap_or_default();
        for (address, symbolized) in addresses.iter().zip(symbols) {
            frames.insert(*address, frame(symbolized));
        }
        frames
    }

    /// Names an offset in a file.
    pub(super) fn object(&mut self, object: &Arc<Object>, file_offset: u64) -> Option<NativeFrame> {
        self.held
            .entry(Arc::as_ptr(object))
            .or_insert_with(|| (Arc::clone(object), 0))
            .1 = self.window;
        let mut elf = source::Elf::new(object.fd_path());
        // A Go program's DWARF is large and holds little of its C code.
        elf.debug_syms = object.go().is_none();
        let source = source::Source::Elf(elf);
        let symbolized = self
            .symbolizer
            .symbolize_single(&source, Input::FileOffset(file_offset))
            .ok()?;
        frame(symbolized)
    }

    /// A window is done: lets all symbols go where some were not needed for long,
    /// or where they are many. The symbolizer cannot forget a single file.
    pub(super) fn end_window(&mut self) {
        let idle = |last: u32| self.window.wrapping_sub(last) >= MAX_IDLE_WINDOWS;
        if self.held.len() > MAX_FILES || self.held.values().any(|(_, last)| idle(*last)) {
            self.forget();
        }
        self.window = self.window.wrapping_add(1);
    }

    /// Lets all symbols go.
    pub(super) fn forget(&mut self) {
        self.symbolizer = symbolizer();
        self.held.clear();
    }
}

fn symbolizer() -> Symbolizer {
    Symbolizer::builder()
        .enable_code_info(true)
        .enable_inlined_fns(true)
        .enable_auto_reload(false)
        .build()
}

/// The symbols of the kernel that `addresses` need, in a file of their own.
fn nearest_symbols(kallsyms: &Path, addresses: &[u64]) -> Option<File> {
    let lines = kallsyms::nearest(File::open(kallsyms).ok()?, addresses).ok()?;
    image::in_memory(c"kallsyms", &lines).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_names_are_those_that_all_of_its_symbols_give() {
        let text = std::fs::read_to_string("/proc/kallsyms").unwrap();
        let addresses: Vec<u64> = text
            .lines()
            .filter_map(|line| u64::from_str_radix(line.split(' ').next()?, 16).ok())
            .filter(|address| *address != 0)
            .step_by(1009)
            .flat_map(|address| [address, address + 3])
            .collect();
        let source = source::Source::Kernel(source::Kernel {
            vmlinux: MaybeDefault::None,
            ..Default::default()
        });
        let whole = symbolizer();
        let whole = whole.symbolize(&source, Input::AbsAddr(&addresses));
        let names = |frame: Option<NativeFrame>| frame.map(|frame| frame.lines[0].name.clone());
        let expected: Vec<Option<String>> = whole
            .unwrap()
            .into_iter()
            .map(|s| names(frame(s)))
            .collect();

        // Twice: the second file may have the first one's path.
        let mut symbols = NativeSymbols::default();
        for addresses in [&addresses[..], &addresses[..addresses.len() / 2]] {
            let found = symbols.kernel(addresses.iter().copied());
            for (address, name) in addresses.iter().zip(&expected) {
                assert_eq!(&names(found[address].clone()), name, "{address:#x}");
            }
        }
        // Without the rights the kernel gives zeros; the tests are root's.
        assert!(expected.iter().flatten().count() > 100, "{expected:?}");
    }
}
