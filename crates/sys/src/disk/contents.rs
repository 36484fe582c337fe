//! What is in a file, carried into another one: shared where the file system can, copied by the kernel where it can,
//! read and written where nothing else works. Holes stay holes.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::copy_file_range;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{Whence, ftruncate, lseek};

/// Read and written at once.
const BUFFER_BYTES: usize = 128 << 10;
/// Copied by the kernel at once.
const RANGE_BYTES: usize = 1 << 30;

/// What has not been found not to work between two file systems.
#[derive(Debug)]
pub(super) struct Means {
    clones: bool,
    ranges: bool,
}

impl Default for Means {
    fn default() -> Self {
        Self { clones: true, ranges: true }
    }
}

impl Means {
    /// Has an empty file hold what the first `length` bytes of another one are. Of one that has become shorter, the
    /// rest is a hole.
    pub(super) fn carry(&mut self, from: &OwnedFd, to: &OwnedFd, length: i64) -> nix::Result<()> {
        if length == 0 || self.clones && self.clone_whole(from, to) {
            return Ok(());
        }
        ftruncate(to, length)?;
        let mut at = 0;
        while at < length {
            let start = match lseek(from, at, Whence::SeekData) {
                Ok(start) => start,
                // From here on there is nothing but a hole.
                Err(Errno::ENXIO) => break,
                // Here, nobody knows of holes.
                Err(Errno::EINVAL) => at,
                Err(errno) => return Err(errno),
            };
            let end = lseek(from, start, Whence::SeekHole).unwrap_or(length).min(length);
            self.carry_data(from, to, (start, end))?;
            at = end.max(start);
        }
        Ok(())
    }

    fn clone_whole(&mut self, from: &OwnedFd, to: &OwnedFd) -> bool {
        // SAFETY: the argument is an open descriptor.
        let ret = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
        self.clones = ret == 0;
        self.clones
    }

    fn carry_data(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        (start, end): (i64, i64),
    ) -> nix::Result<()> {
        let (mut read_at, mut write_at) = (start, start);
        while self.ranges && read_at < end {
            let most = usize::try_from(end - read_at).unwrap_or(RANGE_BYTES).min(RANGE_BYTES);
            match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), most) {
                // Shorter by now, unless there is more to be read.
                Ok(0) => break,
                Ok(_) | Err(Errno::EINTR) => (),
                Err(Errno::EXDEV | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS) => {
                    self.ranges = false;
                }
                Err(errno) => return Err(errno),
            }
        }
        read_and_write(from, to, (read_at, end))
    }
}

fn read_and_write(from: &OwnedFd, to: &OwnedFd, (start, end): (i64, i64)) -> nix::Result<()> {
    let (mut at, mut buffer) = (start, Vec::new());
    while at < end {
        let most = usize::try_from(end - at).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        buffer.resize(most, 0_u8);
        let count = pread(from, &mut buffer, at)?;
        if count == 0 {
            return Ok(());
        }
        // What is zeros is a hole already.
        let mut left = if buffer[..count].iter().all(|byte| *byte == 0) { count } else { 0 };
        while left < count {
            left += pwrite(to, &buffer[left..count], at + offset(left))?;
        }
        at += offset(count);
    }
    Ok(())
}

/// Of a buffer, which is small.
fn offset(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    fn carried(means: &mut Means) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.write_all(&[7; 10_000]).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"end", (32 << 20) + 5).unwrap();
        let (source, target) = (File::open(&from).unwrap(), File::create(&to).unwrap());
        means.carry(&source.into(), &target.into(), 64 << 20).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert!(std::fs::metadata(&to).unwrap().blocks() * 512 < 4 << 20);
    }

    #[test]
    fn every_way_of_copying_keeps_contents_and_holes() {
        carried(&mut Means::default());
        carried(&mut Means { clones: false, ranges: true });
        carried(&mut Means { clones: false, ranges: false });
    }
}
