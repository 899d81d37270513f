//! The build information Go's linker leaves in every binary: toolchain version,
//! main package and module, build settings (`debug/buildinfo`, Go 1.27).

use std::ops::Range;

use super::GoBinaryError;
use super::bytes::{read_u8, read_u64, to_text};
use super::elf::{Elf, searchable};

const MAGIC: &[u8; 14] = b"\xff Go buildinf:";
const ALIGN: usize = 16;
const HEADER_SIZE: usize = 32;
/// Flag: the strings follow the header, each with its length (Go 1.18 on).
const FLAG_INLINE: u8 = 2;
/// Flag: the file is big-endian.
const FLAG_BIG_ENDIAN: u8 = 1;
/// Bytes of framing before and after the module text
/// (`cmd/go/internal/modload.infoStart`, `infoEnd`).
const FRAME: usize = 16;
/// A version is a line, module text at most some thousand dependencies.
const MAX_VERSION_BYTES: u64 = 1024;
const MAX_MODULE_BYTES: u64 = 4 << 20;
const MAX_SETTINGS: usize = 256;
const MAX_LINES: usize = 1 << 16;

/// How a Go program was built.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BuildInfo {
    /// The toolchain's version text, e.g. `go1.26.8`.
    pub go_version: String,
    /// Import path of the main package; empty where unknown.
    pub path: String,
    /// Path of the main module; empty for what was built without modules.
    pub module_path: String,
    /// Version of the main module, e.g. `v1.2.3` or `(devel)`.
    pub module_version: String,
    /// Build settings in file order, e.g. (`CGO_ENABLED`, `1`).
    pub settings: Vec<(String, String)>,
}

impl BuildInfo {
    /// A build setting's value.
    pub fn setting(&self, key: &str) -> Option<&str> {
        self.settings
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// Finds and reads the build info. NotGo where there is none.
    pub(super) fn parse(elf: &Elf, data: &[u8]) -> Result<BuildInfo, GoBinaryError> {
        let (version, module) = texts(elf, data)?;
        let mut info = BuildInfo {
            go_version: to_text(version),
            ..BuildInfo::default()
        };
        info.read_module(&to_text(module));
        Ok(info)
    }

    /// The modules that the program is made of beside its own, with their
    /// versions; a replaced one by what it was replaced with.
    pub(super) fn dependencies(elf: &Elf, data: &[u8]) -> Vec<(String, String)> {
        let module = texts(elf, data).map_or(&[][..], |(_, module)| module);
        read_dependencies(&to_text(module))
    }

    /// Reads the lines of module text. Lines not understood are passed over: a
    /// newer Go may write more kinds.
    fn read_module(&mut self, text: &str) {
        for line in text.lines() {
            let (kind, rest) = line.split_once('\t').unwrap_or((line, ""));
            match kind {
                "path" => self.path = rest.to_owned(),
                "mod" => {
                    let mut columns = rest.split('\t');
                    self.module_path = columns.next().unwrap_or_default().to_owned();
                    self.module_version = columns.next().unwrap_or_default().to_owned();
                }
                "build" if self.settings.len() < MAX_SETTINGS => {
                    self.settings.extend(read_setting(rest));
                }
                _ => {}
            }
        }
    }
}

fn read_dependencies(text: &str) -> Vec<(String, String)> {
    let mut modules: Vec<(String, String)> = Vec::new();
    for line in text.lines().take(MAX_LINES) {
        let mut columns = line.split('\t');
        let kind = columns.next().unwrap_or_default();
        let mut column = || columns.next().unwrap_or_default().to_owned();
        match kind {
            "dep" => modules.push((column(), column())),
            "=>" => {
                // Of the program's own module where there is no other yet.
                if let Some(replaced) = modules.last_mut() {
                    *replaced = (column(), column());
                }
            }
            _ => {}
        }
    }
    modules
}

/// Version and module text, without the frame around that.
fn texts<'a>(elf: &Elf, data: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), GoBinaryError> {
    let blob = find(elf, data).ok_or(GoBinaryError::NotGo("an ELF without Go build info"))?;
    let texts = read_strings(elf, data, blob).filter(|(version, _)| !version.is_empty());
    let (version, module) = texts.ok_or(GoBinaryError::Damaged("Go build info"))?;
    let framed = module.len() > 2 * FRAME && module[module.len() - FRAME - 1] == b'\n';
    let module = match framed {
        true => &module[FRAME..module.len() - FRAME],
        false => &[],
    };
    Ok((version, module))
}

/// The file range from the build info's header to the end of what holds it.
fn find(elf: &Elf, data: &[u8]) -> Option<Range<usize>> {
    if elf.has_sections() {
        let section = elf.section(data, ".go.buildinfo").into_iter();
        return searchable(section, data.len()).find_map(|section| find_magic(data, section.range));
    }
    // Up to 1.26 Go's own reader looks in the first writable segment then.
    searchable(elf.data_segments(data), data.len())
        .find_map(|segment| find_magic(data, segment.range))
}

fn find_magic(data: &[u8], range: Range<usize>) -> Option<Range<usize>> {
    (range.start.next_multiple_of(ALIGN)..range.end)
        .step_by(ALIGN)
        .find(|offset| data.get(*offset..*offset + MAGIC.len()) == Some(MAGIC))
        .map(|offset| offset..range.end)
}

/// Version and module text, by either format.
fn read_strings<'a>(elf: &Elf, data: &'a [u8], blob: Range<usize>) -> Option<(&'a [u8], &'a [u8])> {
    let blob = data.get(blob)?;
    let flags = read_u8(blob, 15)?;
    if flags & FLAG_INLINE != 0 {
        let (version, next) = inline_string(blob, HEADER_SIZE, MAX_VERSION_BYTES)?;
        let module = inline_string(blob, next, MAX_MODULE_BYTES);
        return Some((version, module.map_or(&[], |(module, _)| module)));
    }
    if flags & FLAG_BIG_ENDIAN != 0 || read_u8(blob, 14)? != 8 {
        return None;
    }
    let version = pointed_string(elf, data, read_u64(blob, 16)?, MAX_VERSION_BYTES)?;
    let module = pointed_string(elf, data, read_u64(blob, 24)?, MAX_MODULE_BYTES);
    Some((version, module.unwrap_or_default()))
}

/// A string after its length; also where the next one begins.
fn inline_string(blob: &[u8], offset: usize, limit: u64) -> Option<(&[u8], usize)> {
    let mut length = 0u64;
    // Lengths over the limit are refused, so 4 groups of 7 bits are enough.
    for taken in 0..4 {
        let byte = read_u8(blob, offset + taken)?;
        length |= u64::from(byte & 0x7f) << (7 * taken);
        if byte & 0x80 == 0 {
            let start = offset + taken + 1;
            let end = start.checked_add(usize::try_from(length).ok()?)?;
            return (length <= limit).then_some((blob.get(start..end)?, end));
        }
    }
    None
}

/// A Go string (pointer, length) at a link-time address.
fn pointed_string<'a>(elf: &Elf, data: &'a [u8], vaddr: u64, limit: u64) -> Option<&'a [u8]> {
    let header = data.get(elf.range_from(data, vaddr)?)?;
    let length = read_u64(header, 8)?;
    if length > limit {
        return None;
    }
    data.get(elf.range_from(data, read_u64(header, 0)?)?)?
        .get(..usize::try_from(length).ok()?)
}

/// `key=value`, either of them quoted as Go quotes strings.
fn read_setting(text: &str) -> Option<(String, String)> {
    let (key, rest) = match text.chars().next()? {
        '"' | '`' => {
            let (key, rest) = read_quoted(text)?;
            (key, rest.strip_prefix('=')?)
        }
        _ => {
            let (key, rest) = text.split_once('=')?;
            (key.to_owned(), rest)
        }
    };
    let value = match rest.chars().next() {
        Some('"' | '`') => read_quoted(rest)?.0,
        _ => rest.to_owned(),
    };
    Some((key, value))
}

/// A Go string literal and what follows it.
fn read_quoted(text: &str) -> Option<(String, &str)> {
    if let Some(raw) = text.strip_prefix('`') {
        let (value, rest) = raw.split_once('`')?;
        return Some((value.to_owned(), rest));
    }
    let mut value = String::new();
    let mut chars = text.strip_prefix('"')?.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                'x' => read_hex(&mut chars, 2)?,
                'u' => read_hex(&mut chars, 4)?,
                'U' => read_hex(&mut chars, 8)?,
                other => other,
            }),
            other => value.push(other),
        }
    }
}

fn read_hex(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<char> {
    let mut value = 0;
    for _ in 0..digits {
        value = value * 16 + chars.next()?.to_digit(16)?;
    }
    char::from_u32(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_text_is_read() {
        let mut info = BuildInfo::default();
        info.read_module(
            "path\texample.com/cmd/server\nmod\texample.com/cmd\tv1.2.3\th1:sum=\n\
             dep\texample.com/dep\tv0.1.0\th1:x=\nbuild\t-ldflags=\"-s -w -X \\\"a=b\\\"\"\n\
             build\tCGO_ENABLED=1\nbuild\t\"odd key\"=`raw`\nbuild\tempty=\nbuild\tbroken\nnovel\tline\n",
        );
        assert_eq!(info.path, "example.com/cmd/server");
        assert_eq!(info.module_path, "example.com/cmd");
        assert_eq!(info.module_version, "v1.2.3");
        assert_eq!(info.setting("-ldflags"), Some("-s -w -X \"a=b\""));
        assert_eq!(info.setting("CGO_ENABLED"), Some("1"));
        assert_eq!(info.setting("odd key"), Some("raw"));
        assert_eq!(info.setting("empty"), Some(""));
        assert_eq!(info.settings.len(), 4);
    }

    #[test]
    fn modules_are_read_with_what_they_were_replaced_with() {
        let found = read_dependencies(
            "path\ta\nmod\ta\t(devel)\t\n=>\tb\tv9\t\ndep\tx.org/y\tv1.2.0\th1:s=\n\
             dep\tz\tv0.1.0\n=>\t./local\t(devel)\t\nbuild\tdep=1\ndep\n",
        );
        let text = |(path, version): &(String, String)| format!("{path} {version}");
        let found: Vec<String> = found.iter().map(text).collect();
        assert_eq!(found, ["x.org/y v1.2.0", "./local (devel)", " "]);
    }

    #[test]
    fn hostile_text_is_survived() {
        for text in [
            "",
            "\"",
            "\"\\",
            "\"\\x1",
            "\"\\xzz\"=1",
            "`",
            "=",
            "\"a\"",
            "\"\\UFFFFFFFF\"=1",
        ] {
            read_setting(text);
        }
        assert_eq!(
            read_quoted("\"\\u00e9\\x41\"rest"),
            Some(("éA".to_owned(), "rest"))
        );
    }

    #[test]
    fn inline_strings_are_bounded() {
        let mut blob = vec![0u8; HEADER_SIZE];
        blob.extend([4, b'g', b'o', b'1', b'.', 0]);
        assert_eq!(
            inline_string(&blob, HEADER_SIZE, 100),
            Some((&b"go1."[..], HEADER_SIZE + 5))
        );
        assert_eq!(inline_string(&blob, HEADER_SIZE, 3), None, "over the limit");
        blob[HEADER_SIZE] = 100;
        assert_eq!(
            inline_string(&blob, HEADER_SIZE, 1000),
            None,
            "past the end"
        );
        blob.splice(HEADER_SIZE.., [0xff; 20]);
        assert_eq!(inline_string(&blob, HEADER_SIZE, u64::MAX), None, "endless");
        assert_eq!(inline_string(&blob, 1000, 10), None);
    }
}
