//! File sink: puts an encoded profile at a path, whole or not at all. Whether
//! the path can be written is found before sampling; a profile that could not
//! be finished leaves nothing behind.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::NamedTempFile;

/// A place for one profile, checked. Until [`FileSink::finish`] nothing lies
/// there, however goprof ends.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Stdout,
    /// A file, written beside `place` at the end and renamed to it. `known` is
    /// what was there before.
    File {
        place: PathBuf,
        known: Option<fs::Metadata>,
    },
    /// A device: opened already.
    Open(File),
    /// A pipe: opened at the end, as that waits for the reader.
    Pipe,
}

impl FileSink {
    /// Checks that `path` can be written. `-` and
    /// `/dev/stdout` are stdout. A file is only replaced in
    /// [`FileSink::finish`], and keeps its owner and mode; devices and pipes
    /// are written as they are.
    ///
    /// # Errors
    /// One line that names the path and says what to do.
    pub fn prepare(path: &Path) -> Result<FileSink> {
        let target = if is_stdout(path) {
            Target::Stdout
        } else {
            target(path)?
        };
        Ok(FileSink {
            path: path.to_owned(),
            target,
        })
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the profile goes to stdout.
    pub fn is_stdout(&self) -> bool {
        matches!(self.target, Target::Stdout)
    }

    /// Whether the profile goes to a file, which takes no reader to be written.
    pub fn is_file(&self) -> bool {
        matches!(self.target, Target::File { .. })
    }

    /// Writes the profile. A file is complete, and on disk, before it gets its
    /// name.
    ///
    /// # Errors
    /// When writing fails (disk full, reader of a pipe gone); a file that was
    /// there before is then unchanged.
    pub fn finish(self, bytes: &[u8]) -> Result<()> {
        let path = self.path;
        let written = match self.target {
            Target::Stdout => {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(bytes);
                return written
                    .and_then(|()| stdout.flush())
                    .context("write the profile to stdout");
            }
            Target::File { place, known } => replace(&place, known.as_ref(), bytes),
            Target::Open(mut file) => file.write_all(bytes),
            Target::Pipe => OpenOptions::new()
                .write(true)
                .open(&path)
                .and_then(|mut file| file.write_all(bytes)),
        };
        written.with_context(|| format!("write the profile to {}", path.display()))
    }
}

/// Whether an output of this name goes to stdout.
pub fn is_stdout(path: &Path) -> bool {
    matches!(path.to_str(), Some("-" | "/dev/stdout"))
}

/// What kind of place a path is.
fn target(path: &Path) -> Result<Target> {
    if path.as_os_str().is_empty() {
        bail!("the output has no name: give a file after -o, or - for stdout");
    }
    // Opening /dev/fd/3 or /proc/self/fd/3 gives what is open there, whose name
    // (if it has one) is not ours to replace.
    let is_descriptor = path.parent().is_some_and(|dir| dir.ends_with("fd"))
        && (path.starts_with("/dev/fd") || path.starts_with("/proc"));
    match fs::metadata(path) {
        Ok(known) if known.is_dir() => bail!(
            "{} is a folder: give the name of a file in it",
            path.display()
        ),
        Ok(known) if known.file_type().is_fifo() => Ok(Target::Pipe),
        Ok(known) if known.file_type().is_char_device() || is_descriptor => {
            open(path).map(Target::Open)
        }
        Ok(known) if known.is_file() => {
            // A file that its owner made read-only is not replaced either.
            open(path)?;
            let place = fs::canonicalize(path).map_err(|e| cannot_write(path, &e))?;
            try_beside(path, &place)?;
            Ok(Target::File {
                place,
                known: Some(known),
            })
        }
        Ok(_) => bail!(
            "{} is neither a file nor a pipe: choose another output with -o",
            path.display()
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if path.as_os_str().as_encoded_bytes().ends_with(b"/") {
                bail!("{} names a folder: give the name of a file", path.display());
            }
            if path.is_symlink() {
                bail!(
                    "{} is a link to nothing: remove it or choose another output with -o",
                    path.display()
                );
            }
            try_beside(path, path)?;
            Ok(Target::File {
                place: path.to_owned(),
                known: None,
            })
        }
        Err(e) => Err(cannot_write(path, &e)),
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|e| cannot_write(path, &e))
}

/// Finds out whether a file can be made in the folder of `place`, which is where
/// `path` leads: makes one and removes it.
fn try_beside(path: &Path, place: &Path) -> Result<()> {
    match temporary_beside(place) {
        Ok(_removed) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => bail!(
            "cannot write {}: there is no folder {}: create it, or choose another output with -o",
            path.display(),
            folder_of(place).display()
        ),
        Err(e) => Err(cannot_write(path, &io::Error::from(e.kind()))),
    }
}

fn temporary_beside(place: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(".goprof-")
        .suffix(".tmp")
        // What is left of it after the umask, as for any new file.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder_of(place))
}

fn folder_of(place: &Path) -> &Path {
    match place.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn cannot_write(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow!(
        "cannot write {}: {error}: choose another output with -o",
        path.display()
    )
}

/// Makes the new file like the one it will replace, as far as that is allowed.
fn keep_owner_and_mode(file: &mut File, known: &fs::Metadata) {
    // Failure leaves a file of the caller's own, which holds the profile all
    // the same.
    let _ = fchown(&*file, Some(known.uid()), Some(known.gid()));
    let _ = file.set_permissions(Permissions::from_mode(known.mode() & 0o777));
}

fn replace(place: &Path, known: Option<&fs::Metadata>, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = temporary_beside(place)?;
    if let Some(known) = known {
        keep_owner_and_mode(temporary.as_file_mut(), known);
    }
    temporary.write_all(bytes)?;
    // Without this a crash soon after may leave the name with an empty file.
    temporary.as_file().sync_all()?;
    temporary.persist(place).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::unix::fs::symlink;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn refusal(path: &Path) -> String {
        format!("{:#}", FileSink::prepare(path).unwrap_err())
    }

    #[test]
    fn a_finished_profile_is_all_there_is() {
        let dir = folder();
        let path = dir.path().join("cpu.pb.gz");
        let sink = FileSink::prepare(&path).unwrap();
        assert!(names(dir.path()).is_empty(), "nothing lies there before");
        assert_eq!(sink.path(), path);
        sink.finish(b"profile").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"profile");
        assert_eq!(names(dir.path()), ["cpu.pb.gz"]);
    }

    #[test]
    fn a_dropped_sink_leaves_nothing_and_changes_nothing() {
        let dir = folder();
        drop(FileSink::prepare(&dir.path().join("new")).unwrap());
        assert!(names(dir.path()).is_empty());

        let old = dir.path().join("old");
        fs::write(&old, "before").unwrap();
        drop(FileSink::prepare(&old).unwrap());
        assert_eq!(fs::read(&old).unwrap(), b"before");
        assert_eq!(names(dir.path()), ["old"]);
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_and_a_link_to_it() {
        let dir = folder();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "before").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink("file", &link).unwrap();
        FileSink::prepare(&link).unwrap().finish(b"after").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"after");
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
        assert_eq!(names(dir.path()), ["file", "link"]);
    }

    #[test]
    fn a_new_file_is_as_readable_as_any() {
        let dir = folder();
        let (ours, any) = (dir.path().join("ours"), dir.path().join("any"));
        FileSink::prepare(&ours).unwrap().finish(b"x").unwrap();
        fs::write(&any, "x").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode();
        assert_eq!(mode(&ours), mode(&any));
    }

    #[test]
    fn a_name_without_a_folder_lies_in_the_current_one() {
        let name = format!(".goprof-test-{}", std::process::id());
        FileSink::prepare(Path::new(&name))
            .unwrap()
            .finish(b"x")
            .unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"x");
        fs::remove_file(&name).unwrap();
    }

    #[test]
    fn places_that_cannot_be_written_are_refused_before_sampling() {
        let dir = folder();
        let at = |name: &str| dir.path().join(name);
        let error = refusal(&at("missing/cpu.pb.gz"));
        assert!(error.contains("missing/cpu.pb.gz"), "{error}");
        assert!(error.contains("create it"), "{error}");
        assert!(refusal(dir.path()).contains("is a folder"));
        assert!(refusal(&at("new/")).contains("names a folder"));
        assert!(refusal(Path::new("")).contains("no name"));
        symlink("nowhere", at("link")).unwrap();
        assert!(refusal(&at("link")).contains("link to nothing"));
        fs::write(at("file"), "").unwrap();
        assert!(refusal(&at("file/cpu.pb.gz")).contains("Not a directory"));
        let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert!(refusal(&at("socket")).contains("neither a file nor a pipe"));
        drop(socket);
        // Not even root may create a file there.
        let error = refusal(Path::new("/proc/goprof.pb.gz"));
        assert!(
            error.contains("/proc/goprof.pb.gz") && error.contains("-o"),
            "{error}"
        );
        assert_eq!(names(dir.path()), ["file", "link", "socket"]);
    }

    #[test]
    fn devices_are_written_in_place() {
        let sink = FileSink::prepare(Path::new("/dev/null")).unwrap();
        sink.finish(b"x").unwrap();
        let null = Path::new("/dev/null").metadata().unwrap();
        assert!(null.file_type().is_char_device());
        let full = FileSink::prepare(Path::new("/dev/full")).unwrap();
        let error = format!("{:#}", full.finish(b"x").unwrap_err());
        assert!(
            error.contains("/dev/full") && error.contains("No space"),
            "{error}"
        );
    }

    #[test]
    fn a_pipe_is_written_to_its_reader() {
        let dir = folder();
        let path = dir.path().join("pipe");
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the name is a C string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let sink = FileSink::prepare(&path).unwrap();
        let from = path.clone();
        let reader = std::thread::spawn(move || fs::read(from).unwrap());
        sink.finish(&[7; 200_000]).unwrap();
        assert_eq!(reader.join().unwrap(), [7; 200_000]);
        assert!(path.metadata().unwrap().file_type().is_fifo());
    }

    #[test]
    fn an_open_descriptor_is_written_and_not_replaced() {
        use std::os::fd::AsRawFd as _;
        let dir = folder();
        let path = dir.path().join("redirected");
        let shell = File::create(&path).unwrap();
        let before = shell.metadata().unwrap().ino();
        let descriptor = format!("/proc/self/fd/{}", shell.as_raw_fd());
        FileSink::prepare(Path::new(&descriptor))
            .unwrap()
            .finish(b"x")
            .unwrap();
        assert_eq!(path.metadata().unwrap().ino(), before);
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn stdout_is_a_dash() {
        for name in ["-", "/dev/stdout"] {
            assert!(FileSink::prepare(Path::new(name)).unwrap().is_stdout());
        }
        assert!(!FileSink::prepare(Path::new("./-")).unwrap().is_stdout());
    }
}
