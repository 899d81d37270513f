//! The memory of a process that runs. Many pieces are read in one call, so that
//! they are of nearly the same moment; nothing is stopped or written.

use std::{
    cell::RefCell,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use super::{Memory, Request, maps::Ranges};

/// Pieces of one call (`UIO_MAXIOV` of the kernel).
const MAX_PIECES: usize = 1024;
/// How often the mappings are read again at once because an address lay in none,
/// as a program that begins maps much in little time; and how long to wait before
/// that is so again: garbage would have them read over and over.
const REREADS: u32 = 8;
const REREADS_AFTER: Duration = Duration::from_millis(50);

/// The memory of a process that runs.
pub struct Live {
    pid: u32,
    /// Bound to the program: another one in the same process, or another process
    /// of the same number, cannot be read by it.
    memory: File,
    mapped: RefCell<Mapped>,
}

struct Mapped {
    ranges: Ranges,
    read_at: Instant,
    rereads_left: u32,
}

impl Live {
    /// Opens the memory of a process.
    ///
    /// # Errors
    /// It is gone, or we may not read it.
    pub fn open(pid: u32) -> io::Result<Self> {
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        let mapped = Mapped::read(pid)?;
        Ok(Self {
            pid,
            memory,
            mapped: RefCell::new(mapped),
        })
    }

    /// Whose memory it is.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether all of a piece is mapped, as far as the mappings were read.
    fn is_mapped(&self, address: u64, len: usize) -> bool {
        let mut mapped = self.mapped.borrow_mut();
        if mapped.ranges.hold(address, len) {
            return true;
        }
        if mapped.read_at.elapsed() >= REREADS_AFTER {
            mapped.rereads_left = REREADS;
        }
        let Some(left) = mapped.rereads_left.checked_sub(1) else {
            return false;
        };
        if let Ok(again) = Mapped::read(self.pid) {
            *mapped = again;
        }
        (mapped.read_at, mapped.rereads_left) = (Instant::now(), left);
        mapped.ranges.hold(address, len)
    }

    /// Reads pieces that are all mapped. Says how many from the first on were
    /// read; one that was not is the next. None where the kernel refuses the call.
    fn read_pieces(&self, pieces: &mut [&mut Request<'_>]) -> Option<usize> {
        let local: Vec<libc::iovec> = pieces
            .iter_mut()
            .map(|piece| libc::iovec {
                iov_base: piece.bytes.as_mut_ptr().cast(),
                iov_len: piece.bytes.len(),
            })
            .collect();
        let remote: Vec<libc::iovec> = pieces
            .iter()
            .map(|piece| libc::iovec {
                iov_base: piece.address as usize as *mut libc::c_void,
                iov_len: piece.bytes.len(),
            })
            .collect();
        // SAFETY: the local pieces are exclusively borrowed slices that outlive the
        // call; addresses of the other process are only looked up there.
        let read = unsafe {
            libc::process_vm_readv(
                self.pid as libc::pid_t,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        if read < 0 {
            let error = io::Error::last_os_error();
            return (error.raw_os_error() == Some(libc::EFAULT)).then_some(0);
        }
        let mut left = read as usize;
        let whole = pieces.iter().take_while(|piece| {
            let rest = left.checked_sub(piece.bytes.len());
            left = rest.unwrap_or(0);
            rest.is_some()
        });
        Some(whole.count())
    }

    /// Reads pieces that are all mapped, passing over those that cannot be read.
    fn read_batch(&self, pieces: &mut [&mut Request<'_>]) {
        let mut done = 0;
        while done < pieces.len() {
            let Some(read) = self.read_pieces(&mut pieces[done..]) else {
                for piece in &mut pieces[done..] {
                    self.read_one(piece);
                }
                return;
            };
            for piece in &mut pieces[done..done + read] {
                piece.is_filled = true;
            }
            done += read + 1;
        }
    }

    fn read_one(&self, piece: &mut Request<'_>) {
        piece.is_filled = self
            .memory
            .read_exact_at(piece.bytes, piece.address)
            .is_ok();
    }
}

impl Mapped {
    fn read(pid: u32) -> io::Result<Self> {
        Ok(Self {
            ranges: Ranges::parse(&fs::read(format!("/proc/{pid}/maps"))?),
            read_at: Instant::now(),
            rereads_left: REREADS,
        })
    }
}

impl Memory for Live {
    fn read_many(&self, requests: &mut [Request<'_>]) {
        if let [request] = requests {
            if self.is_mapped(request.address, request.bytes.len()) {
                self.read_one(request);
            }
            return;
        }
        for batch in requests.chunks_mut(MAX_PIECES) {
            let mut mapped: Vec<&mut Request<'_>> = batch
                .iter_mut()
                .filter(|request| self.is_mapped(request.address, request.bytes.len()))
                .collect();
            self.read_batch(&mut mapped);
        }
    }

    fn is_there(&self) -> bool {
        // The file's memory has no users once its program is gone: then there is
        // nothing to read, wherever.
        let mapped = self.mapped.borrow();
        let first = mapped.ranges.first();
        first.is_some_and(|address| self.memory.read_exact_at(&mut [0], address).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_read_and_the_rest_is_told() {
        let words: Vec<u64> = (0..5000).collect();
        let live = Live::open(std::process::id()).unwrap();
        let mut bytes = vec![[0; 8]; words.len() + 3];
        let address = |index: usize| &raw const words[index] as u64;
        let mut requests: Vec<Request<'_>> = bytes
            .iter_mut()
            .enumerate()
            .map(|(at, bytes)| match at {
                // One page that is never mapped, one of the kernel's, one that wraps.
                7 => Request::new(8, bytes),
                2000 => Request::new(1 << 63, bytes),
                4000 => Request::new(u64::MAX - 2, bytes),
                _ => Request::new(address(at % words.len()), bytes),
            })
            .collect();
        live.read_many(&mut requests);
        for (at, request) in requests.iter().enumerate() {
            let fails = [7, 2000, 4000].contains(&at);
            assert_eq!(request.is_filled, !fails, "{at}");
            if !fails {
                let word = u64::from_le_bytes(*request.bytes.first_chunk().unwrap());
                assert_eq!(word, (at % words.len()) as u64);
            }
        }
        assert_eq!(live.word(address(42)), Some(42));
        assert_eq!(live.half_word(address(43)), Some(43));
        assert_eq!(live.word(8), None);
        assert!(live.is_there());
    }

    #[test]
    fn memory_mapped_but_not_to_be_read_fails_alone() {
        // SAFETY: a new mapping of our own, which nobody else knows.
        let page = unsafe {
            let anywhere = std::ptr::null_mut();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(anywhere, 8192, libc::PROT_READ, flags, -1, 0)
        };
        let live = Live::open(std::process::id()).unwrap();
        // Not unmapped: another test's thread could map something there.
        // SAFETY: the second page of that mapping.
        unsafe { libc::mprotect(page.byte_add(4096), 4096, libc::PROT_NONE) };
        let page = page as u64;
        let mut bytes = [[1; 8]; 3];
        let [a, b, c] = &mut bytes;
        let mut requests = [
            Request::new(page, a),
            // Known as mapped to be read, and no longer so.
            Request::new(page + 4092, b),
            Request::new(page + 8, c),
        ];
        live.read_many(&mut requests);
        assert_eq!(
            requests.map(|request| request.is_filled),
            [true, false, true]
        );
        assert_eq!((bytes[0], bytes[2]), ([0; 8], [0; 8]));
    }

    #[test]
    fn a_program_that_is_gone_is_not_there() {
        let mut child = std::process::Command::new("sleep")
            .arg("100")
            .spawn()
            .unwrap();
        let live = Live::open(child.id()).unwrap();
        assert!(live.is_there());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!live.is_there());
        assert!(Live::open(child.id()).is_err());
    }
}
