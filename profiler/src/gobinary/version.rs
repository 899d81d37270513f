//! What differs between Go versions: version numbers and table layouts, with
//! the function ids of `func_kind`. Nothing else in goprof may name a Go version,
//! but for the generated table of struct offsets.

use std::fmt;

use super::func_kind::{FUNC_IDS_119, FUNC_IDS_122, FUNC_IDS_125, FuncKind};

/// Oldest and newest Go 1.x whose layouts are known.
const KNOWN_MINORS: std::ops::RangeInclusive<u16> = 19..=27;

/// A Go toolchain's version, as it wrote it into the binary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoVersion {
    raw: String,
    major: u16,
    minor: u16,
    patch: Option<u16>,
    devel: bool,
    release: bool,
}

impl GoVersion {
    /// Reads any form Go's tools write: `go1.26.8`, `go1.22rc1`,
    /// `go1.26.8 X:nodwarf5`, `go1.21-custom`, `devel go1.28-abcdef Mon Jan ...`.
    /// None where no number can be found.
    pub fn parse(raw: &str) -> Option<GoVersion> {
        let devel = raw.starts_with("devel");
        let numbers = raw
            .split(' ')
            .filter_map(|word| word.strip_prefix("go"))
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let (major, rest) = leading_number(numbers)?;
        let (minor, rest) = leading_number(rest.strip_prefix('.')?)?;
        let patch = rest.strip_prefix('.').and_then(leading_number);
        Some(GoVersion {
            raw: raw.to_owned(),
            major,
            minor,
            patch: patch.map(|(number, _)| number),
            devel,
            // Since 1.21 every release has a patch number. Snapshots of some who
            // build Go themselves have none: `go1.22-20240109-RC01`.
            release: !devel
                && match patch {
                    Some((_, rest)) => !rest.starts_with("rc") && !rest.starts_with("beta"),
                    None => rest.is_empty() && minor <= 20,
                },
        })
    }

    /// The version as found in the binary, whole.
    pub fn as_str(&self) -> &str {
        &self.raw
    }

    /// Major and minor number, e.g. `(1, 26)`.
    pub fn major_minor(&self) -> (u16, u16) {
        (self.major, self.minor)
    }

    /// The patch number, where the version has one.
    pub fn patch(&self) -> Option<u16> {
        self.patch
    }

    /// Whether it is a development snapshot: its layouts may be those of the
    /// version before.
    pub fn is_devel(&self) -> bool {
        self.devel
    }

    /// Whether it is a release, possibly with somebody's own patches: not a
    /// snapshot, beta or candidate. Experiments (`X:`) do not matter: the structs
    /// of `offsets_table` are alike with and without them.
    pub fn is_release(&self) -> bool {
        self.release
    }

    /// Whether it is a release whose layouts goprof knows.
    pub fn is_known_release(&self) -> bool {
        self.is_release() && !self.is_newer_than_known() && !self.is_older_than_known()
    }

    /// Whether it is newer than every version whose layouts goprof knows. Its
    /// binaries are read with the newest known layout if that fits.
    pub fn is_newer_than_known(&self) -> bool {
        (self.major, self.minor) > (1, *KNOWN_MINORS.end())
    }

    /// Whether it is older than every version whose layouts goprof knows.
    pub fn is_older_than_known(&self) -> bool {
        (self.major, self.minor) < (1, *KNOWN_MINORS.start())
    }
}

impl fmt::Display for GoVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.raw)
    }
}

fn leading_number(text: &str) -> Option<(u16, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}

/// pclntab magic of Go 1.18 and 1.19 (`internal/abi.Go118PCLnTabMagic`).
pub(super) const MAGIC_118: u32 = 0xffff_fff0;
/// pclntab magic since Go 1.20 (`internal/abi.Go120PCLnTabMagic`).
pub(super) const MAGIC_120: u32 = 0xffff_fff1;

/// Bytes of `runtime.pcHeader` (`runtime/symtab.go`), all versions.
pub(super) const HEADER_SIZE: usize = 72;

/// Words of `runtime.moduledata` (`runtime/symtab.go`) that stand at the same
/// byte offset in all versions.
pub(super) mod moduledata {
    /// `pcHeader *pcHeader`.
    pub const PC_HEADER: u64 = 0;
    /// `funcnametab []byte`; the four slices after it follow in pclntab order.
    pub const FUNCNAMETAB: u64 = 8;
    /// `cutab []uint32`.
    pub const CUTAB: u64 = 32;
    /// `filetab []byte`.
    pub const FILETAB: u64 = 56;
    /// `pctab []byte`.
    pub const PCTAB: u64 = 80;
    /// `pclntable []byte`.
    pub const PCLNTABLE: u64 = 104;
    /// `ftab []functab`.
    pub const FTAB: u64 = 128;
    /// `minpc, maxpc uintptr`.
    pub const MINPC: u64 = 160;
    /// See [`MINPC`].
    pub const MAXPC: u64 = 168;
    /// `text, etext uintptr`.
    pub const TEXT: u64 = 176;
    /// See [`TEXT`].
    pub const ETEXT: u64 = 184;
    /// Bytes to read to have every word that is used, in every version.
    pub const SIZE: u64 = 400;
}

/// `abi.PCDATA_InlTreeIndex`, all versions.
pub(super) const PCDATA_INL_TREE_INDEX: u32 = 2;
/// `abi.FUNCDATA_InlTree`, all versions.
pub(super) const FUNCDATA_INL_TREE: u32 = 3;

/// `abi.FuncFlagTopFrame`, all versions.
pub(super) const FLAG_TOP_FRAME: u8 = 1;
/// `abi.FuncFlagSPWrite`, all versions.
pub(super) const FLAG_SP_WRITE: u8 = 2;
/// `abi.FuncFlagAsm`, all versions.
pub(super) const FLAG_ASM: u8 = 4;

/// Where things stand in one range of versions.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The first Go 1.x laid out like this.
    first_minor: u16,
    /// The pclntab header's first word.
    pub magic: u32,
    /// Byte offset of `startLine` in `runtime._func`, where it has one.
    pub func_start_line: Option<usize>,
    /// Byte offset of `funcID` in `runtime._func`; `flag` follows, and
    /// `nfuncdata` stands 3 bytes on.
    pub func_id: usize,
    /// Records of the inline tree.
    pub inlined: InlinedCall,
    /// Byte offset of `gofunc` in moduledata.
    pub gofunc: u64,
    /// Byte offsets of `types` and `etypes` in moduledata.
    pub types: (u64, u64),
    /// Byte offset of `textsectmap` in moduledata.
    pub textsectmap: u64,
    /// What each function id means.
    func_ids: &'static [FuncKind],
}

/// Layout of `runtime.inlinedCall` (`runtime/symtab.go`, later `symtabinl.go`).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InlinedCall {
    /// Bytes per record.
    pub size: usize,
    /// Byte offset of `funcID uint8`.
    pub func_id: usize,
    /// Byte offset of the name's offset, an int32.
    pub name: usize,
    /// Byte offset of `parentPc int32`.
    pub parent_pc: usize,
    /// Byte offset of `startLine int32`, where it has one.
    pub start_line: Option<usize>,
}

const INLINED_119: InlinedCall = InlinedCall {
    size: 20,
    func_id: 2,
    name: 12,
    parent_pc: 16,
    start_line: None,
};

const INLINED_120: InlinedCall = InlinedCall {
    size: 16,
    func_id: 0,
    name: 4,
    parent_pc: 8,
    start_line: Some(12),
};

/// Newest first.
static LAYOUTS: [Layout; 6] = [
    // itablinks and typelinks left moduledata, typedesclen and the itab range
    // came in before gofunc.
    Layout {
        first_minor: 27,
        types: (296, 312),
        gofunc: 344,
        textsectmap: 360,
        ..layout_120(27, &FUNC_IDS_125)
    },
    // epclntab came in after gofunc.
    Layout {
        textsectmap: 336,
        ..layout_120(26, &FUNC_IDS_125)
    },
    layout_120(25, &FUNC_IDS_125),
    layout_120(22, &FUNC_IDS_122),
    layout_120(20, &FUNC_IDS_119),
    Layout {
        first_minor: 19,
        magic: MAGIC_118,
        func_start_line: None,
        func_id: 36,
        inlined: INLINED_119,
        types: (280, 288),
        gofunc: 304,
        textsectmap: 312,
        func_ids: &FUNC_IDS_119,
    },
];

const fn layout_120(first_minor: u16, func_ids: &'static [FuncKind]) -> Layout {
    Layout {
        first_minor,
        magic: MAGIC_120,
        func_start_line: Some(36),
        func_id: 40,
        inlined: INLINED_120,
        types: (296, 304),
        gofunc: 320,
        textsectmap: 328,
        func_ids,
    }
}

impl Layout {
    /// The layouts that may fit `version`, likeliest first. A release has one.
    /// A development snapshot may precede its version's changes, so that the
    /// layout before is tried too. Empty for a version too old.
    pub(super) fn candidates(version: &GoVersion) -> &'static [Layout] {
        let Some(first) = LAYOUTS
            .iter()
            .position(|layout| (1, layout.first_minor) <= version.major_minor())
        else {
            return &[];
        };
        let count = if version.is_devel() { 2 } else { 1 };
        &LAYOUTS[first..LAYOUTS.len().min(first + count)]
    }

    /// What a function id means. Ids past the known ones mean nothing special.
    pub(super) fn func_kind(&self, id: u8) -> FuncKind {
        self.func_ids
            .get(usize::from(id))
            .copied()
            .unwrap_or(FuncKind::Normal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_forms_parse() {
        let check = |raw: &str, minor, patch, devel| {
            let version = GoVersion::parse(raw).unwrap();
            assert_eq!(version.major_minor(), (1, minor), "{raw}");
            assert_eq!(version.patch(), patch, "{raw}");
            assert_eq!(version.is_devel(), devel, "{raw}");
            assert_eq!(version.as_str(), raw);
        };
        check("go1.26.8", 26, Some(8), false);
        check("go1.22", 22, None, false);
        check("go1.22rc1", 22, None, false);
        check("go1.26.8 X:nodwarf5", 26, Some(8), false);
        check("go1.21-custom", 21, None, false);
        check("go1.21.3-fips cl/1234", 21, Some(3), false);
        check(
            "devel go1.28-abcdef Mon Jan 2 15:04:05 2027",
            28,
            None,
            true,
        );
        for raw in [
            "",
            "unknown",
            "devel +abcdef",
            "go",
            "gopher",
            "go1",
            "go1.x",
            "go99999.1",
        ] {
            assert_eq!(GoVersion::parse(raw), None, "{raw}");
        }
    }

    #[test]
    fn each_version_has_its_layout() {
        let first = |raw| {
            Layout::candidates(&GoVersion::parse(raw).unwrap())
                .iter()
                .map(|layout| layout.first_minor)
                .collect::<Vec<_>>()
        };
        assert!(first("go1.18.10").is_empty());
        assert_eq!(first("go1.19.1"), [19]);
        assert_eq!(first("go1.20"), [20]);
        assert_eq!(first("go1.21.5"), [20]);
        assert_eq!(first("go1.24.1"), [22]);
        assert_eq!(first("go1.25rc1"), [25]);
        assert_eq!(first("go1.26.1"), [26]);
        assert_eq!(first("go1.31.1"), [27]);
        assert_eq!(first("devel go1.27-0123abc"), [27, 26]);
        assert_eq!(first("go2.0"), [27]);
    }

    #[test]
    fn releases_are_told_from_what_leads_to_them() {
        let release = |raw| GoVersion::parse(raw).unwrap().is_release();
        assert!(release("go1.26.8"));
        assert!(release("go1.20"));
        assert!(release("go1.21.0"));
        assert!(release("go1.22.5 X:boringcrypto"));
        assert!(release("go1.21.13 (Red Hat 1.21.13-4.el9_4)"));
        assert!(release("go1.21.3-fips cl/1234"));
        assert!(!release("go1.22rc1"));
        assert!(!release("go1.20beta1"));
        assert!(!release("go1.22"));
        assert!(!release("go1.22-20240109-RC01 cl/597041403"));
        assert!(!release("devel go1.28-abcdef Mon Jan 2 15:04:05 2027"));
    }

    #[test]
    fn known_range_is_told() {
        let version = |raw| GoVersion::parse(raw).unwrap();
        assert!(version("go1.28").is_newer_than_known());
        assert!(!version("go1.27.9").is_newer_than_known());
        assert!(version("go1.18").is_older_than_known());
        assert!(!version("go1.19").is_older_than_known());
        assert!(version("go1.27.9").is_known_release());
        for unknown in ["go1.28.1", "go1.18.1", "go1.27rc1", "devel go1.27-ab"] {
            assert!(!version(unknown).is_known_release(), "{unknown}");
        }
    }

    #[test]
    fn wrapper_ids_follow_the_version() {
        let kind = |raw, id| Layout::candidates(&GoVersion::parse(raw).unwrap())[0].func_kind(id);
        assert_eq!(kind("go1.21.1", 21), FuncKind::Wrapper);
        assert_eq!(kind("go1.24.1", 22), FuncKind::Wrapper);
        assert_eq!(kind("go1.27.1", 23), FuncKind::Wrapper);
        assert_eq!(kind("go1.27.1", 255), FuncKind::Normal);
    }
}
