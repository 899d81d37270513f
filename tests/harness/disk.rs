//! A small disk of its own for tests, to be filled: a tmpfs.

use std::ffi::CString;
use std::io::Write as _;
use std::path::Path;

/// A small disk; unmounted when dropped.
pub struct Disk(tempfile::TempDir);

impl Disk {
    /// Mounts one, with options such as `size=512k`.
    #[track_caller]
    pub fn new(options: &str) -> Disk {
        let dir = tempfile::tempdir().unwrap();
        let path = CString::new(dir.path().to_str().unwrap()).unwrap();
        let options = CString::new(options).unwrap();
        // SAFETY: all pointers are C strings that outlive the call.
        let mounted = unsafe {
            libc::mount(
                c"tmpfs".as_ptr(),
                path.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        let error = std::io::Error::last_os_error();
        assert_eq!(mounted, 0, "mount a tmpfs: {error}; run the tests as root");
        Disk(dir)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file until there is no room, but for so many bytes.
    #[track_caller]
    pub fn fill(&self, name: &str, but_bytes: u64) {
        let path = self.path().join(name);
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(but_bytes)).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = CString::new(self.0.path().to_str().unwrap()).unwrap();
        // SAFETY: the path is a C string that outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}
