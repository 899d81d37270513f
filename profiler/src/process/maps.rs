//! `/proc/PID/maps`: the executable mappings of a process. Parses text and
//! reads no file itself.

use std::fmt::Write;

/// Most executable mappings kept of one process; a hostile one can have
/// hundreds of thousands.
pub const MAX_MAPPINGS: usize = 16 * 1024;

/// One executable mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapsLine {
    /// First address.
    pub start: u64,
    /// Address past the last.
    pub end: u64,
    /// Offset of `start` in the file, in bytes.
    pub offset: u64,
    /// The file's device, as the kernel writes it.
    pub device: (u32, u32),
    /// The file's inode, 0 where there is no file.
    pub inode: u64,
    /// The file as the process sees it, without ` (deleted)`; or `[vdso]` and
    /// the like; or empty.
    pub path: String,
}

impl MapsLine {
    /// The name of this mapping's entry in `/proc/PID/map_files`.
    pub fn map_files_name(&self) -> String {
        let mut name = String::new();
        // Writing to a string cannot fail.
        let _ = write!(name, "{:x}-{:x}", self.start, self.end);
        name
    }
}

/// The executable mappings in `text`, by address. Lines that cannot be read
/// are passed over.
pub fn parse(text: &[u8]) -> Vec<MapsLine> {
    let mut lines: Vec<MapsLine> = text
        .split(|byte| *byte == b'\n')
        .filter_map(parse_line)
        .take(MAX_MAPPINGS)
        .collect();
    lines.sort_by_key(|line| line.start);
    lines
}

/// `start-end perms offset major:minor inode path`, proc(5); `None` where it
/// is not executable.
fn parse_line(line: &[u8]) -> Option<MapsLine> {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?;
    if permissions.as_bytes().get(2) != Some(&b'x') {
        return None;
    }
    let offset = fields.next()?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?;
    let path = fields.next().unwrap_or("").trim_start();
    let (start, end) = (hex(start)?, hex(end)?);
    (start < end).then_some(())?;
    Some(MapsLine {
        start,
        end,
        offset: hex(offset)?,
        device: (hex(major)? as u32, hex(minor)? as u32),
        inode: inode.parse().ok()?,
        path: path.strip_suffix(" (deleted)").unwrap_or(path).to_owned(),
    })
}

fn hex(digits: &str) -> Option<u64> {
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_executable_mappings_by_address() {
        let text = b"\
00400000-00480000 r-xp 00000000 fe:01 1234                               /bin/a b (deleted)
00480000-00490000 r--p 00080000 fe:01 1234                               /bin/a b
7fff0000-7fff2000 r-xp 00000000 00:00 0                                  [vdso]
00100000-00101000 rwxp 00000000 00:00 0 
";
        let lines = parse(text);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0].path, "");
        assert_eq!(
            lines[1],
            MapsLine {
                start: 0x400000,
                end: 0x480000,
                offset: 0,
                device: (0xfe, 1),
                inode: 1234,
                path: "/bin/a b".into()
            }
        );
        assert_eq!(lines[1].map_files_name(), "400000-480000");
        assert_eq!(lines[2].path, "[vdso]");
    }

    #[test]
    fn passes_over_lines_that_make_no_sense() {
        assert_eq!(parse(b"x\n1-0 r-xp 0 0:0 0\n\xff\xfe r-xp\n"), []);
    }
}
