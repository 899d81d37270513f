//! A block device for tests: a loop device over a file.

use std::process::Command;

const REMEDY: &str = "run as root on a kernel with loop devices (modprobe loop), with \
     losetup of util-linux";

/// A block device made of a file; gone with it.
pub struct Loop {
    /// Where it is.
    pub path: String,
    #[expect(dead_code, reason = "dropping it removes the file")]
    folder: tempfile::TempDir,
}

impl Loop {
    /// Makes one of 32 MB.
    #[track_caller]
    pub fn make() -> Self {
        let folder = tempfile::tempdir_in(crate::cache_dir()).expect("a folder");
        let file = folder.path().join("disk");
        // All of it there, so that reading is reading.
        std::fs::write(&file, vec![7; 32 << 20]).expect("write the disk's file");
        let mut losetup = Command::new("losetup");
        let made = losetup.args(["--find", "--show"]).arg(&file).output();
        let made = made.unwrap_or_else(|e| panic!("losetup: {e}; {REMEDY}"));
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "losetup: {said}; {REMEDY}");
        let path = String::from_utf8_lossy(&made.stdout).trim().to_owned();
        Self { path, folder }
    }

    /// What the kernel calls it.
    pub fn name(&self) -> &str {
        self.path.strip_prefix("/dev/").expect("a device")
    }

    /// What the kernel has counted so far: requests, sectors and milliseconds, of reads
    /// and of writes (Documentation/block/stat.rst).
    pub fn counted(&self) -> [[u64; 3]; 2] {
        let path = format!("/sys/block/{}/stat", self.name());
        let text = std::fs::read_to_string(path).expect("the device's counts");
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(|word| word.parse().expect("a number"))
            .collect();
        let of = |at: usize| [numbers[at], numbers[at + 2], numbers[at + 3]];
        [of(0), of(4)]
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .args(["--detach", &self.path])
            .status();
    }
}
