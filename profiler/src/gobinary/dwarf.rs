//! Reads the layout of the runtime's structs out of DWARF, as Go's linker writes
//! it: types stand right below units named `runtime`. Knows no offsets itself;
//! its work is bounded, whatever the sections hold.

use std::collections::HashMap;

use gimli::{
    Abbreviation, Abbreviations, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugInfo,
    DebugStr, EndianSlice, EntriesRaw, LittleEndian, UnitHeader, UnitOffset, constants,
};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// The unit that holds the runtime's types, in all versions.
const UNIT: &[u8] = b"runtime";
/// Abbreviations of one unit that are read. Go's own take less than 2 KiB.
const MAX_ABBREV_BYTES: usize = 64 << 10;
/// Times that abbreviations are read; Go's units share theirs, C's do not.
const MAX_ABBREV_READS: usize = 4096;
/// Units looked at: a Go program has some for each package.
const MAX_UNITS: usize = 1 << 17;
/// Attributes passed over before giving up: a hundred times what the runtime's
/// units have.
const MAX_ATTRIBUTES: usize = 1 << 26;
/// Typedefs followed to the size of a type.
const MAX_TYPEDEFS: usize = 8;

/// The sections that are read, decompressed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sections<'a> {
    /// `.debug_info`.
    pub info: &'a [u8],
    /// `.debug_abbrev`.
    pub abbrev: &'a [u8],
    /// `.debug_str`, empty where there is none: Go writes names in place.
    pub str: &'a [u8],
}

/// A struct's layout.
#[derive(Debug, Clone, Default)]
pub(super) struct Struct {
    /// Its size in bytes; 0 for the name of some other type.
    pub size: u64,
    fields: HashMap<String, Field>,
}

/// Where a field stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Its byte offset.
    pub offset: u64,
    /// Its size in bytes, where the type says it.
    pub size: Option<u64>,
}

impl Struct {
    /// The field of that name.
    pub(super) fn field(&self, name: &str) -> Option<Field> {
        self.fields.get(name).copied()
    }

    /// Whether every field lies inside of it and none lies on another.
    pub(super) fn is_consistent(&self) -> bool {
        let mut fields: Vec<Field> = self.fields.values().copied().collect();
        fields.sort_by_key(|field| (field.offset, field.size));
        let mut free = 0;
        fields.into_iter().all(|field| {
            let begins_free = field.offset >= free;
            let end = field.offset.checked_add(field.size.unwrap_or(0));
            free = end.unwrap_or(u64::MAX);
            begins_free && free <= self.size
        })
    }
}

/// Reads the structs of the names given. One that is not there is left out.
/// Fails with what is wrong.
pub(super) fn read_structs(
    sections: Sections<'_>,
    wanted: &[&str],
) -> Result<HashMap<String, Struct>, &'static str> {
    let mut reader = Reader {
        strings: DebugStr::new(sections.str, LittleEndian),
        wanted,
        found: HashMap::new(),
        attributes_left: MAX_ATTRIBUTES,
    };
    let info = DebugInfo::new(sections.info, LittleEndian);
    let mut units = info.units();
    let mut shared: Option<(usize, Abbreviations)> = None;
    let mut reads = 0;
    for _ in 0..MAX_UNITS {
        let Some(unit) = units.next().map_err(|_| "damaged DWARF units")? else {
            break;
        };
        let at = unit.debug_abbrev_offset().0;
        let abbreviations = match shared.take() {
            Some((offset, abbreviations)) if offset == at => abbreviations,
            _ => {
                reads += 1;
                if reads > MAX_ABBREV_READS {
                    return Err("too many tables of DWARF abbreviations");
                }
                read_abbreviations(sections.abbrev, at)?
            }
        };
        let read = reader.unit(&unit, &abbreviations);
        shared = Some((at, abbreviations));
        read?;
        if reader.found.len() == wanted.len() {
            break;
        }
    }
    Ok(reader.found)
}

fn read_abbreviations(section: &[u8], at: usize) -> Result<Abbreviations, &'static str> {
    let damaged = "damaged DWARF abbreviations";
    let bytes = section.get(at..).ok_or(damaged)?;
    let bytes = &bytes[..bytes.len().min(MAX_ABBREV_BYTES)];
    DebugAbbrev::new(bytes, LittleEndian)
        .abbreviations(DebugAbbrevOffset(0))
        .map_err(|_| damaged)
}

struct Reader<'a> {
    strings: DebugStr<Slice<'a>>,
    wanted: &'a [&'a str],
    found: HashMap<String, Struct>,
    attributes_left: usize,
}

/// What of an entry is used.
#[derive(Default)]
struct Entry<'a> {
    name: Option<Slice<'a>>,
    size: Option<u64>,
    offset: Option<u64>,
    type_at: Option<UnitOffset>,
}

impl<'a> Reader<'a> {
    /// Reads the structs wanted of one unit.
    fn unit(
        &mut self,
        unit: &UnitHeader<Slice<'a>>,
        abbreviations: &Abbreviations,
    ) -> Result<(), &'static str> {
        let damaged = "damaged DWARF entries";
        let mut entries = unit.entries_raw(abbreviations, None).map_err(|_| damaged)?;
        let mut open: Option<String> = None;
        let mut types = Vec::new();
        while !entries.is_empty() {
            let depth = entries.next_depth();
            let Some(abbreviation) = entries.read_abbreviation().map_err(|_| damaged)? else {
                continue;
            };
            self.charge(abbreviation)?;
            if depth <= 1 {
                open = None;
            }
            let tag = abbreviation.tag();
            let is_struct = tag == constants::DW_TAG_structure_type;
            let read = match depth {
                0 => true,
                1 => is_struct || tag == constants::DW_TAG_typedef,
                2 => open.is_some() && tag == constants::DW_TAG_member,
                _ => false,
            };
            if !read {
                let attributes = abbreviation.attributes();
                entries.skip_attributes(attributes).map_err(|_| damaged)?;
                continue;
            }
            let entry = self.entry(unit, &mut entries, abbreviation)?;
            let name = entry.name.map(|name| name.slice()).unwrap_or_default();
            if depth == 0 {
                if name != UNIT {
                    return Ok(());
                }
            } else if depth == 1 {
                open = self.begin_type(name, entry.size.filter(|_| is_struct));
            } else if let Some(owner) = &open {
                let field = String::from_utf8_lossy(name).into_owned();
                self.add_field(owner, &field, &entry);
                types.extend(entry.type_at.map(|at| (owner.clone(), field, at)));
            }
        }
        for (owner, field, at) in types {
            let size = self.type_size(unit, abbreviations, at)?;
            if let Some(field) = self
                .found
                .get_mut(&owner)
                .and_then(|found| found.fields.get_mut(&field))
            {
                field.size = size;
            }
        }
        Ok(())
    }

    fn charge(&mut self, abbreviation: &Abbreviation) -> Result<(), &'static str> {
        let cost = 1 + abbreviation.attributes().len();
        match self.attributes_left.checked_sub(cost) {
            Some(left) => {
                self.attributes_left = left;
                Ok(())
            }
            None => Err("too much DWARF in the runtime's unit"),
        }
    }

    /// Notes a type that is wanted and returns its name if it is a struct, whose
    /// size is then given. A struct has a typedef of its own name beside it.
    fn begin_type(&mut self, name: &[u8], size: Option<u64>) -> Option<String> {
        let name = *self
            .wanted
            .iter()
            .find(|wanted| wanted.as_bytes() == name)?;
        let known = self.found.entry(name.to_owned()).or_default();
        let size = size.filter(|size| *size > 0 && known.size == 0)?;
        known.size = size;
        Some(name.to_owned())
    }

    fn add_field(&mut self, owner: &str, name: &str, entry: &Entry<'_>) {
        if let (Some(found), Some(offset)) = (self.found.get_mut(owner), entry.offset) {
            let field = Field { offset, size: None };
            found.fields.insert(name.to_owned(), field);
        }
    }

    /// The size of a type in bytes: its own, a pointer's, or that of what it is
    /// another name for. None for a type without one, or of another unit.
    fn type_size(
        &mut self,
        unit: &UnitHeader<Slice<'a>>,
        abbreviations: &Abbreviations,
        mut at: UnitOffset,
    ) -> Result<Option<u64>, &'static str> {
        let damaged = "damaged DWARF types";
        for _ in 0..MAX_TYPEDEFS {
            let mut entries = unit
                .entries_raw(abbreviations, Some(at))
                .map_err(|_| damaged)?;
            let Some(abbreviation) = entries.read_abbreviation().map_err(|_| damaged)? else {
                return Err(damaged);
            };
            self.charge(abbreviation)?;
            let entry = self.entry(unit, &mut entries, abbreviation)?;
            match (entry.size, abbreviation.tag(), entry.type_at) {
                (Some(size), _, _) => return Ok(Some(size)),
                // Go leaves out the size of pointers.
                (None, constants::DW_TAG_pointer_type, _) => {
                    return Ok(Some(u64::from(unit.address_size())));
                }
                (None, constants::DW_TAG_typedef, Some(next)) => at = next,
                _ => return Ok(None),
            }
        }
        Ok(None)
    }

    fn entry(
        &self,
        unit: &UnitHeader<Slice<'a>>,
        entries: &mut EntriesRaw<'_, Slice<'a>>,
        abbreviation: &Abbreviation,
    ) -> Result<Entry<'a>, &'static str> {
        let mut entry = Entry::default();
        for specification in abbreviation.attributes() {
            let attribute = entries
                .read_attribute(*specification)
                .map_err(|_| "damaged DWARF attributes")?;
            match attribute.name() {
                constants::DW_AT_name => entry.name = attribute.string_value(&self.strings),
                constants::DW_AT_byte_size => entry.size = attribute.udata_value(),
                constants::DW_AT_data_member_location => entry.offset = attribute.udata_value(),
                constants::DW_AT_type => {
                    entry.type_at = match attribute.value() {
                        AttributeValue::UnitRef(at) => Some(at),
                        AttributeValue::DebugInfoRef(at) => at.to_unit_offset(unit),
                        _ => None,
                    }
                }
                _ => {}
            }
        }
        Ok(entry)
    }
}
