//! Loads programs for uprobes so that one can be attached to many places, at once where
//! the kernel can (`BPF_TRACE_UPROBE_MULTI`, Linux 6.6), which aya does not do. They share
//! the maps of the programs that aya loaded.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    io, mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail};
use aya::{Ebpf, maps::Map};
use aya_obj::{
    Function, Object,
    generated::{
        bpf_attr,
        bpf_cmd::{self, BPF_BTF_LOAD, BPF_PROG_LOAD},
        bpf_prog_type::BPF_PROG_TYPE_KPROBE,
    },
};

use super::means::Means;

/// Most that is kept of what the verifier says.
const LOG_BYTES: usize = 1 << 20;

/// The maps of the programs that aya loaded, by name.
pub(super) struct MapDescriptors(Vec<(String, OwnedFd)>);

impl MapDescriptors {
    /// Those of all maps that were not taken yet.
    pub(super) fn of(ebpf: &Ebpf) -> Result<Self> {
        let of = |(name, map): (&str, &Map)| {
            let (Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::PerCpuArray(data)
            | Map::PerCpuHashMap(data)
            | Map::ProgramArray(data)
            | Map::RingBuf(data)) = map
            else {
                bail!("programs of uprobes cannot share the map {name}: its type is not known");
            };
            let descriptor = data.fd().as_fd().try_clone_to_owned();
            Ok((name.to_owned(), descriptor.context("keep a map open")?))
        };
        Ok(Self(ebpf.maps().map(of).collect::<Result<_>>()?))
    }
}

/// Programs for uprobes, loaded. They stay in the kernel for as long as this or an
/// attachment does.
#[derive(Clone)]
pub struct UprobePrograms {
    means: Means,
    by_name: HashMap<&'static str, Arc<OwnedFd>>,
}

impl UprobePrograms {
    /// Loads programs of the object by their names.
    pub(super) fn load(
        object: &[u8],
        maps: &MapDescriptors,
        names: &[&'static str],
        means: Means,
    ) -> Result<Self> {
        let mut object = Object::parse(object).context("read the eBPF object")?;
        let types = load_types(&mut object)?;
        relocate(&mut object, maps)?;
        let load = |name: &'static str| {
            let program = object.programs.get(name);
            let function = program.and_then(|p| object.functions.get(&p.function_key()));
            let function =
                function.ok_or_else(|| anyhow!("the eBPF object has no program {name}"))?;
            let loaded = load_program(&object, function, (name, means), types.as_ref())
                .with_context(|| format!("the kernel refuses the eBPF program {name}"))?;
            Ok((name, Arc::new(loaded)))
        };
        Ok(Self {
            means,
            by_name: names.iter().copied().map(load).collect::<Result<_>>()?,
        })
    }

    /// How they are put on.
    pub fn means(&self) -> Means {
        self.means
    }

    /// The descriptor of a program.
    pub(super) fn get(&self, name: &str) -> Result<&Arc<OwnedFd>> {
        self.by_name
            .get(name)
            .ok_or_else(|| anyhow!("the eBPF program {name} is not loaded"))
    }
}

/// Gives the kernel the programs' own types, which it wants for those that call
/// functions of their own.
fn load_types(object: &mut Object) -> Result<Option<OwnedFd>> {
    let Some(features) = aya::features().btf() else {
        return Ok(None);
    };
    let types = object
        .fixup_and_sanitize_btf(features)
        .context("prepare the types of the eBPF object")?;
    let Some(types) = types else {
        return Ok(None);
    };
    let bytes = types.to_bytes();
    let mut attributes = zeroed();
    attributes.__bindgen_anon_7.btf = bytes.as_ptr() as u64;
    attributes.__bindgen_anon_7.btf_size =
        u32::try_from(bytes.len()).context("the eBPF object's types are too large")?;
    let loaded = bpf(BPF_BTF_LOAD, &mut attributes);
    Ok(Some(loaded.context(
        "the kernel refuses the types of the eBPF object",
    )?))
}

/// Puts the maps, and the functions that programs call, into them.
fn relocate(object: &mut Object, maps: &MapDescriptors) -> Result<()> {
    let sections: HashSet<usize> = object
        .functions
        .keys()
        .map(|(section, _)| *section)
        .collect();
    let known: HashMap<&str, i32> = maps
        .0
        .iter()
        .map(|(name, descriptor)| (name.as_str(), descriptor.as_raw_fd()))
        .collect();
    let declared = mem::take(&mut object.maps);
    let placed = declared
        .iter()
        .filter_map(|(name, map)| Some((name.as_str(), *known.get(name.as_str())?, map)));
    object.relocate_maps(placed, &sections)?;
    object.relocate_calls(&sections)?;
    object.sanitize_functions(aya::features());
    Ok(())
}

fn load_program(
    object: &Object,
    function: &Function,
    (name, means): (&str, Means),
    types: Option<&OwnedFd>,
) -> io::Result<OwnedFd> {
    let (lines, functions) = (
        function.line_info.line_info_bytes(),
        function.func_info.func_info_bytes(),
    );
    let name = CString::new(name).map_err(io::Error::other)?;
    let mut log = Vec::new();
    loop {
        let mut attributes = zeroed();
        // SAFETY: the fields of this command; what they point to outlives the call.
        let program = unsafe { &mut attributes.__bindgen_anon_3 };
        for (to, from) in program.prog_name.iter_mut().take(15).zip(name.as_bytes()) {
            *to = *from as _;
        }
        program.prog_type = BPF_PROG_TYPE_KPROBE as u32;
        program.expected_attach_type = means.attach_type();
        program.insns = function.instructions.as_ptr() as u64;
        program.insn_cnt = function.instructions.len() as u32;
        program.license = object.license.as_ptr() as u64;
        if let Some(types) = types {
            program.prog_btf_fd = types.as_raw_fd() as u32;
            program.line_info = lines.as_ptr() as u64;
            program.line_info_cnt = function.line_info.len() as u32;
            program.line_info_rec_size = function.line_info_rec_size as u32;
            program.func_info = functions.as_ptr() as u64;
            program.func_info_cnt = function.func_info.len() as u32;
            program.func_info_rec_size = function.func_info_rec_size as u32;
        }
        if !log.is_empty() {
            program.log_level = 1;
            program.log_buf = log.as_mut_ptr() as u64;
            program.log_size = LOG_BYTES as u32;
        }
        match bpf(BPF_PROG_LOAD, &mut attributes) {
            // The log takes time: only where it is needed.
            Err(_) if log.is_empty() => log = vec![0_u8; LOG_BYTES],
            Err(error) => return Err(io::Error::new(error.kind(), said(&log, &error))),
            Ok(program) => return Ok(program),
        }
    }
}

/// The last of what the verifier says, on one line.
fn said(log: &[u8], error: &io::Error) -> String {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let last: Vec<&str> = text.lines().rev().take(3).collect();
    let last: Vec<&str> = last.into_iter().rev().collect();
    format!("{error}: {}", last.join("; "))
}

/// An attribute of which nothing is set.
pub(super) fn zeroed() -> bpf_attr {
    // SAFETY: zeros are valid for all members of the union.
    unsafe { mem::zeroed() }
}

/// The system call, where it returns a descriptor.
pub(super) fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are those of the command, and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *attributes,
            mem::size_of::<bpf_attr>(),
        )
    };
    descriptor(result)
}

/// The descriptor that a system call returned, or its error.
pub(super) fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
