//! Files with code that processes have mapped: opened when first seen, so that
//! they can be read after the process is gone and the file deleted or
//! replaced. Shared by all processes that map the same file.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    VDSO,
    call_frames::{CallFrames, Native},
    maps::{self, MapsLine},
};
use crate::{
    gobinary::{
        AllGoroutines, GLocation, GoBinary, GoBinaryError, LabelFormat, RuntimeOffsets, Variables,
    },
    image::{self, Image},
};

/// A mapped file, held open.
pub struct Object {
    /// The file as the first process that mapped it sees it.
    pub path: String,
    /// What is in it.
    pub code: Code,
    image: Arc<Image>,
    frames: OnceLock<Option<CallFrames>>,
    runtime: OnceLock<Option<Runtime>>,
    variables: OnceLock<Option<Variables>>,
    /// How many tables remember it.
    remembered: AtomicUsize,
}

/// What a Go binary says of its runtime's memory. Takes a pass over its function
/// names to find.
pub(super) struct Runtime {
    /// The fields of its structs.
    pub offsets: RuntimeOffsets,
    /// Where a thread's current goroutine is.
    pub g: GLocation,
    /// Where all goroutines are listed.
    pub all: Option<AllGoroutines>,
    /// The form of pprof labels, by the program's own type for them.
    pub labels: Option<LabelFormat>,
}

/// What kind of code a file holds.
pub enum Code {
    /// A Go program or library.
    Go(Box<GoBinary>),
    /// Something else, or a Go program that cannot be read; why is said.
    Native(GoBinaryError),
}

impl Object {
    /// Opens and looks at a file.
    ///
    /// # Errors
    /// It cannot be opened or mapped.
    pub fn open(file: File, path: String) -> anyhow::Result<Self> {
        let image = Arc::new(Image::open(file)?);
        let code = match GoBinary::parse(Arc::clone(&image)) {
            Ok(binary) => Code::Go(Box::new(binary)),
            Err(error) => Code::Native(error),
        };
        Ok(Self {
            path,
            code,
            image,
            frames: OnceLock::new(),
            runtime: OnceLock::new(),
            variables: OnceLock::new(),
            remembered: AtomicUsize::new(0),
        })
    }

    /// The Go side of it.
    pub fn go(&self) -> Option<&GoBinary> {
        match &self.code {
            Code::Go(binary) => Some(binary),
            Code::Native(_) => None,
        }
    }

    /// Why nothing can be read of it though it is a Go program; None where all is
    /// well, or where it is none.
    pub fn why_unreadable_go(&self) -> Option<String> {
        match &self.code {
            Code::Go(_) | Code::Native(GoBinaryError::NotElf | GoBinaryError::NotGo(_)) => None,
            Code::Native(why) => Some(why.to_string()),
        }
    }

    /// What it says of the runtime in it; found once for all processes. None
    /// where it is not Go.
    pub(super) fn runtime(&self) -> Option<&Runtime> {
        let find = || {
            let binary = self.go()?;
            Some(Runtime {
                offsets: binary.runtime_offsets(),
                g: binary.g_location(),
                all: binary.all_goroutines(),
                labels: binary.label_format(),
            })
        };
        self.runtime.get_or_init(find).as_ref()
    }

    /// Where it says that its runtime's variables are; found once for all
    /// processes. None where it is not Go.
    pub fn variables(&self) -> Option<&Variables> {
        let find = || Some(self.go()?.variables());
        self.variables.get_or_init(find).as_ref()
    }

    /// The GNU build id in lower-case hex, empty where there is none.
    pub fn build_id(&self) -> String {
        match &self.code {
            Code::Go(binary) => binary.build_id().to_owned(),
            Code::Native(_) => blazesym::helper::read_elf_build_id(&self.fd_path())
                .ok()
                .flatten()
                .map_or(String::new(), |id| {
                    id.iter().map(|byte| format!("{byte:02x}")).collect()
                }),
        }
    }

    /// What its call frame information says of the instruction at an offset in
    /// the file, in bytes. Finds the tables the first time.
    pub fn native_at(&self, offset: u64) -> Option<Native> {
        let data = self.image.bytes();
        let frames = self.frames.get_or_init(|| CallFrames::find(data));
        frames.as_ref()?.at(data, offset)
    }

    /// The bytes at an offset in the file; `None` where it has not that many.
    pub fn bytes_at(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        self.image.bytes().get(start..start.checked_add(len)?)
    }

    /// Lets go of the memory that was read of the file: it is read again where
    /// needed.
    pub fn release(&self) {
        self.image.release();
    }

    /// Whether the file is no longer as it was when it was opened.
    pub fn changed(&self) -> bool {
        self.image.changed()
    }

    /// A path under which this process can open the very same file again.
    pub fn fd_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.image.file().as_raw_fd()))
    }
}

/// Device and inode.
pub(super) type Key = ((u32, u32), u64);

/// How many files are remembered before those not in use are forgotten.
const MAX_OBJECTS: usize = 512;

/// The files that any table of this process remembers, so that none is opened and
/// mapped twice.
static OPEN: OnceLock<Mutex<HashMap<Key, Weak<Object>>>> = OnceLock::new();

fn open_objects() -> MutexGuard<'static, HashMap<Key, Weak<Object>>> {
    let open = OPEN.get_or_init(Mutex::default);
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The files seen so far, by device and inode. An inode is not given to
/// another file while this one is held open; a file written anew in place is
/// noticed by its size and time. The vdso, one for all, has the inode 0.
#[derive(Default)]
pub struct Objects {
    by_inode: HashMap<Key, Known>,
}

/// A program's file.
pub(super) enum Found {
    /// It was looked at before.
    Known(Arc<Object>),
    /// It was not.
    New {
        /// Which file it is.
        key: Key,
        /// The file.
        file: File,
        /// Its path, as the process sees it.
        path: String,
    },
}

impl Found {
    /// Whether it was not looked at before.
    pub(super) fn is_new(&self) -> bool {
        matches!(self, Found::New { .. })
    }
}

/// An object as a table remembers it.
struct Remembered(Arc<Object>);

impl Remembered {
    fn new(object: Arc<Object>) -> Self {
        object.remembered.fetch_add(1, Ordering::Relaxed);
        Self(object)
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        self.0.remembered.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file seen before.
struct Known {
    /// None where it cannot be opened.
    object: Option<Remembered>,
    /// Whether it was asked for since [`Objects::forget_unused`] was called.
    asked_for: bool,
}

impl Known {
    /// Whether somebody holds it who does not only remember it.
    fn is_in_use(&self) -> bool {
        self.object.as_ref().is_some_and(|Remembered(object)| {
            Arc::strong_count(object) > object.remembered.load(Ordering::Relaxed)
        })
    }
}

impl Objects {
    /// The object of the program that process `pid` runs.
    ///
    /// # Errors
    /// The process is gone, has no program (a kernel thread: `NotFound`), or
    /// its file cannot be opened or mapped.
    pub fn of_executable(&mut self, pid: u32) -> io::Result<Arc<Object>> {
        let found = self.find_executable(pid)?;
        self.look_at(found)
    }

    /// Finds the program that process `pid` runs.
    ///
    /// # Errors
    /// The process is gone, has no program, or its file cannot be opened.
    pub(super) fn find_executable(&mut self, pid: u32) -> io::Result<Found> {
        let link = PathBuf::from(format!("/proc/{pid}/exe"));
        let status = fs::metadata(&link)?;
        let device = status.dev();
        let key = ((libc::major(device), libc::minor(device)), status.ino());
        if let Some(object) = self.known(&key) {
            return Ok(Found::Known(object));
        }
        let path = fs::read_link(&link)?.to_string_lossy().into_owned();
        let file = File::open(&link)?;
        Ok(Found::New { key, file, path })
    }

    /// Looks at the file that was found, if it is new.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub(super) fn look_at(&mut self, found: Found) -> io::Result<Arc<Object>> {
        let (key, file, path) = match found {
            Found::Known(object) => return Ok(object),
            Found::New { key, file, path } => (key, file, path),
        };
        let object = Object::open(file, path).map_err(io::Error::other)?;
        let object = Arc::new(object);
        self.keep(key, Some(Arc::clone(&object)));
        Ok(object)
    }

    /// The object of a file that is as it was when it was opened, by this table or
    /// by another.
    fn known(&mut self, key: &Key) -> Option<Arc<Object>> {
        if let Some(known) = self.by_inode.get_mut(key) {
            let object = known.object.as_ref().map(|object| &object.0);
            let object = object.filter(|object| !object.changed())?;
            known.asked_for = true;
            return Some(Arc::clone(object));
        }
        let object = open_objects().get(key).and_then(Weak::upgrade)?;
        let object = Some(object).filter(|object| !object.changed())?;
        self.remember(*key, Some(Arc::clone(&object)));
        Some(object)
    }

    /// Remembers an object that was opened, for other tables as well.
    fn keep(&mut self, key: Key, object: Option<Arc<Object>>) {
        if let Some(object) = &object {
            let mut open = open_objects();
            open.retain(|_, object| object.strong_count() > 0);
            open.insert(key, Arc::downgrade(object));
        }
        self.remember(key, object);
    }

    /// Remembers an object, and forgets those that no process uses once they
    /// are many: each holds a file open.
    fn remember(&mut self, key: Key, object: Option<Arc<Object>>) {
        if self.by_inode.len() >= MAX_OBJECTS {
            self.by_inode.retain(|_, known| known.is_in_use());
        }
        let known = Known {
            object: object.map(Remembered::new),
            asked_for: true,
        };
        self.by_inode.insert(key, known);
    }

    /// Forgets the files that no process uses and that nobody asked for since
    /// the last call.
    pub fn forget_unused(&mut self) {
        self.by_inode
            .retain(|_, known| std::mem::take(&mut known.asked_for) || known.is_in_use());
    }

    /// Lets go of the memory that was read of the files: they are read again
    /// where needed.
    pub fn release(&self) {
        for known in self.by_inode.values() {
            if let Some(Remembered(object)) = &known.object {
                object.release();
            }
        }
    }

    /// How many files are remembered.
    pub fn len(&self) -> usize {
        self.by_inode.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_inode.is_empty()
    }

    /// The object behind a mapping, opened by `open` where it is not known yet;
    /// `None` where the file cannot be opened.
    pub fn of_mapping(
        &mut self,
        line: &MapsLine,
        open: impl FnOnce(&MapsLine) -> Option<File>,
    ) -> Option<Arc<Object>> {
        let key = (line.device, line.inode);
        if let Some(object) = self.known(&key) {
            return Some(object);
        }
        let object = open(line)
            .and_then(|file| Object::open(file, line.path.clone()).ok())
            .map(Arc::new);
        self.keep(key, object.clone());
        object
    }
}

/// Opens the file that process `pid` has mapped, which may have no name any
/// more; without the right to do that the file of that name, as the process
/// sees it, if it is still the same. Of the vdso a copy.
pub(super) fn open_mapped(pid: u32, line: &MapsLine) -> Option<File> {
    if line.path == VDSO {
        return copy_vdso();
    }
    let process = PathBuf::from(format!("/proc/{pid}"));
    if let Ok(file) = File::open(process.join("map_files").join(line.map_files_name())) {
        return Some(file);
    }
    let inside = Path::new(&line.path).strip_prefix("/").ok()?;
    let file = File::open(process.join("root").join(inside)).ok()?;
    // Not the device: overlay file systems show another to each.
    let same = file.metadata().is_ok_and(|data| data.ino() == line.inode);
    same.then_some(file)
}

/// Copies this process's own vdso: the kernel gives every process the same.
fn copy_vdso() -> Option<File> {
    let maps = fs::read("/proc/self/maps").ok()?;
    let lines = maps::parse(&maps);
    let line = lines.iter().find(|line| line.path == VDSO)?;
    let mut bytes = vec![0; usize::try_from(line.end - line.start).ok()?];
    let memory = File::open("/proc/self/mem").ok()?;
    memory.read_exact_at(&mut bytes, line.start).ok()?;
    image::in_memory(c"vdso", &bytes).ok()
}
