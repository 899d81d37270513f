//! Files of profiled programs, mapped read-only and safe to read while they
//! change. Knows nothing of what is in them; never copies them, never writes.

mod sigbus;

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::MetadataExt;

use memmap2::Mmap;
use thiserror::Error;

pub use sigbus::repairs;

/// A file of these bytes that lies in memory alone, for what reads files. It
/// has a path while it is open, `/proc/self/fd/` and its number; `name` is for
/// people who look there.
///
/// # Errors
/// The system gives no memory or no descriptor.
pub fn in_memory(name: &CStr, bytes: &[u8]) -> io::Result<File> {
    // SAFETY: the name ends with a zero.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(bytes)?;
    Ok(file)
}

/// Why a file could not become an [`Image`].
#[derive(Debug, Error)]
pub enum ImageError {
    /// A directory, pipe, device or socket.
    #[error("not a regular file")]
    NotRegular,
    /// Nothing to map.
    #[error("the file is empty")]
    Empty,
    /// The system refused.
    #[error("cannot {action} the file: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Which file an image is, and in which state it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageId {
    /// Device number of the file system.
    pub dev: u64,
    /// Inode number on that device.
    pub ino: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last modification, nanoseconds since the epoch.
    pub mtime_ns: i128,
}

impl ImageId {
    fn of(file: &File) -> Result<ImageId, ImageError> {
        let meta = file.metadata().map_err(|source| ImageError::Io {
            action: "stat",
            source,
        })?;
        if !meta.file_type().is_file() {
            return Err(ImageError::NotRegular);
        }
        Ok(ImageId {
            dev: meta.dev(),
            ino: meta.ino(),
            size_bytes: meta.size(),
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        })
    }
}

/// A file of a profiled program. It stays open and mapped, hence readable,
/// after it was deleted or replaced at its path.
///
/// Its bytes may change under the reader when somebody writes to the very same
/// inode: readers check every offset where they use it and copy text before
/// they judge it. Bytes past the end of a file that shrank read as zero.
#[derive(Debug)]
pub struct Image {
    file: File,
    // Declared before `map`: a watch must end before its range is unmapped.
    watch: sigbus::Watch,
    map: Mmap,
    id: ImageId,
}

impl Image {
    /// Maps `file`, and installs the process-wide SIGBUS handler at first use.
    /// Fails for what is not a regular file with at least one byte.
    pub fn open(file: File) -> Result<Image, ImageError> {
        let id = ImageId::of(&file)?;
        if id.size_bytes == 0 {
            return Err(ImageError::Empty);
        }
        sigbus::install().map_err(|source| ImageError::Io {
            action: "guard",
            source,
        })?;
        // SAFETY: the mapping is read-only and lives as long as the slices
        // borrowed from it. Another process may change the bytes meanwhile,
        // which the type's documentation obliges every reader to expect; a
        // truncation is turned into zero pages by the SIGBUS handler.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| ImageError::Io {
            action: "map",
            source,
        })?;
        let watch = sigbus::Watch::start(map.as_ptr() as usize, map.len());
        Ok(Image {
            file,
            watch,
            map,
            id,
        })
    }

    /// The whole file as it was long when opened.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives back the memory that holds what was read of the file. Reading goes
    /// on as before: the kernel maps the pages again, most from its cache.
    pub fn release(&self) {
        // SAFETY: the range is this mapping's own, private and read-only. Its
        // pages come back with the file's bytes; those that the SIGBUS handler
        // put in are zeros again.
        unsafe {
            libc::madvise(
                self.map.as_ptr().cast_mut().cast(),
                self.map.len(),
                libc::MADV_DONTNEED,
            );
        }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which file this is, as of opening.
    pub fn id(&self) -> ImageId {
        self.id
    }

    /// Whether the file's content may differ from when it was opened: another
    /// size or modification time, or a page of it was missing when read. Names
    /// read before and after such a change must not be trusted. Deleting or
    /// replacing the file at its path does not change it.
    pub fn changed(&self) -> bool {
        self.watch.repairs() > 0 || ImageId::of(&self.file).map_or(true, |now| now != self.id)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsRawFd;

    use super::*;

    fn file_of(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    fn writer(path: &std::path::Path) -> File {
        File::options().write(true).open(path).unwrap()
    }

    #[test]
    fn reads_after_deletion() {
        let (_dir, path) = file_of(b"some bytes");
        let image = Image::open(File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(image.bytes(), b"some bytes");
        assert!(!image.changed(), "deletion leaves the content alone");
    }

    #[test]
    fn truncated_while_mapped_reads_zeros() {
        let (_dir, path) = file_of(&vec![7u8; 64 << 10]);
        let image = Image::open(File::open(&path).unwrap()).unwrap();
        assert_eq!(image.bytes()[40 << 10], 7);
        assert!(!image.changed());
        let before = repairs();
        writer(&path).set_len(4096).unwrap();
        assert!(image.bytes()[4096..].iter().all(|byte| *byte == 0));
        assert!(image.bytes()[..4096].iter().all(|byte| *byte == 7));
        assert_eq!(image.bytes().len(), 64 << 10);
        assert!(image.changed());
        assert!(repairs() >= before + 15, "each missing page was repaired");
    }

    #[test]
    fn change_is_seen_by_the_repair_alone() {
        let (_dir, path) = file_of(&vec![7u8; 8192]);
        let image = Image::open(File::open(&path).unwrap()).unwrap();
        let times = std::fs::metadata(&path).unwrap().modified().unwrap();
        writer(&path).set_len(0).unwrap();
        assert_eq!(image.bytes()[5000], 0);
        // Back to the same size and time: only the repair tells.
        let mut file = writer(&path);
        file.write_all(&[7u8; 8192]).unwrap();
        file.set_times(std::fs::FileTimes::new().set_modified(times))
            .unwrap();
        assert_eq!(ImageId::of(image.file()).unwrap(), image.id());
        assert!(image.changed());
    }

    #[test]
    fn other_images_are_not_blamed() {
        let (_dir_a, path_a) = file_of(&vec![1u8; 8192]);
        let (_dir_b, path_b) = file_of(&vec![2u8; 8192]);
        let shrunk = Image::open(File::open(&path_a).unwrap()).unwrap();
        let whole = Image::open(File::open(&path_b).unwrap()).unwrap();
        writer(&path_a).set_len(1).unwrap();
        assert_eq!(shrunk.bytes()[5000], 0);
        assert!(shrunk.changed());
        assert!(!whole.changed());
    }

    #[test]
    fn a_foreign_mapping_is_repaired_too() {
        let (_dir_a, path_a) = file_of(&[1u8; 10]);
        let _installs_the_handler = Image::open(File::open(&path_a).unwrap()).unwrap();
        let (_dir_b, path_b) = file_of(&vec![2u8; 8192]);
        let file = File::open(&path_b).unwrap();
        // SAFETY: the mapping is only read, within its length.
        let foreign = unsafe { Mmap::map(file.as_raw_fd()) }.unwrap();
        writer(&path_b).set_len(0).unwrap();
        assert_eq!(foreign[5000], 0);
    }

    #[test]
    fn refuses_what_cannot_be_mapped() {
        let (_dir, path) = file_of(b"");
        let open = |path: &std::path::Path| Image::open(File::open(path).unwrap());
        assert!(matches!(open(&path), Err(ImageError::Empty)));
        assert!(matches!(
            open("/dev/zero".as_ref()),
            Err(ImageError::NotRegular)
        ));
        assert!(matches!(open("/".as_ref()), Err(ImageError::NotRegular)));
    }

    #[test]
    fn another_sigbus_still_kills() {
        use std::os::unix::process::ExitStatusExt;
        // The signal must be sent in another process: this one is under test.
        if std::env::var_os("GOPROF_TEST_SIGBUS").is_some() {
            let (_dir, path) = file_of(&[1u8; 10]);
            let _image = Image::open(File::open(&path).unwrap()).unwrap();
            // SAFETY: raising a signal at ourselves has no memory effects.
            unsafe { libc::raise(libc::SIGBUS) };
            std::process::exit(0);
        }
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "image::tests::another_sigbus_still_kills"])
            .env("GOPROF_TEST_SIGBUS", "1")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }
}
