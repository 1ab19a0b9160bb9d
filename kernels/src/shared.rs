//! Memory that two processes of one machine share: written by the one that made it, read by the other.
//!
//! A memory file, sealed: nobody can shrink it (a mapping never faults), and nobody but its maker can write it.
//! Only for Linux, whose memory files can be sealed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::checksum::copy_xxh3_64_raw;

/// Most bytes that are mapped.
pub const SHARED_BYTES_MAX: usize = 1 << 30;

/// A mapping of a memory file.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, and lives as long; who reads or writes it answers for races.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives no access but through `SharedWriter` and `SharedReader`.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: BorrowedFd<'_>, len: usize, protection: ProtFlags) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the system chooses: no memory of ours is replaced.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, file, 0)? };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, len })
    }

    /// # Panics
    /// If the range is not in the mapping.
    fn check(&self, at: usize, len: usize) {
        assert!(at <= self.len && len <= self.len - at, "{len} bytes at {at} are outside {} shared ones", self.len);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length, and unmapped once; no reference into it is ever handed out.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The maker's side.
pub struct SharedWriter {
    mapping: Mapping,
    file: OwnedFd,
}

impl SharedWriter {
    /// New memory of `len` bytes, zeroed and not touched yet.
    ///
    /// # Errors
    /// The length is 0 or above [`SHARED_BYTES_MAX`], or the system refuses.
    pub fn new(len: usize) -> io::Result<Self> {
        check_len(len)?;
        let file = rustix::fs::memfd_create("baton-kv", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let mapping = Mapping::new(file.as_fd(), len, ProtFlags::READ | ProtFlags::WRITE)?;
        // This mapping stays writable; no other can be made so from now on.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(Self { mapping, file })
    }

    /// To be sent to the reader.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Its length in bytes; never 0.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Copies `bytes` to offset `at`, and returns their xxh3-64. The other side must not read them meanwhile.
    ///
    /// # Panics
    /// If they do not fit there.
    pub fn write(&mut self, at: usize, bytes: &[u8]) -> u64 {
        self.mapping.check(at, bytes.len());
        // SAFETY: the range was checked; `&mut self` keeps others of this process out; a borrowed slice is never in
        // the mapping, of which no reference is handed out.
        unsafe { copy_xxh3_64_raw(bytes.as_ptr(), self.mapping.base.as_ptr().add(at), bytes.len()) }
    }
}

/// The other process's side.
pub struct SharedReader(Mapping);

impl SharedReader {
    /// Maps a file that a stranger sent.
    ///
    /// # Errors
    /// It is not sealed against shrinking and growing (reading could then fault), empty or larger than
    /// [`SHARED_BYTES_MAX`]; or the system refuses.
    pub fn open(file: &OwnedFd) -> io::Result<Self> {
        let invalid = |message| io::Error::new(io::ErrorKind::InvalidData, message);
        let seals = rustix::fs::fcntl_get_seals(file).map_err(|_| invalid("not a memory file"))?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(invalid("the memory file is not sealed against shrinking and growing"));
        }
        let len = usize::try_from(rustix::fs::fstat(file)?.st_size).map_err(|_| invalid("no length"))?;
        check_len(len)?;
        Ok(Self(Mapping::new(file.as_fd(), len, ProtFlags::READ)?))
    }

    /// Its length in bytes; never 0.
    #[allow(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Copies the bytes at offset `at` out, and returns the xxh3-64 of the copy, which is what counts whatever the
    /// other side does meanwhile.
    ///
    /// # Panics
    /// If the range is not inside.
    pub fn read(&self, at: usize, to: &mut [u8]) -> u64 {
        self.0.check(at, to.len());
        // SAFETY: the range was checked and, thanks to the seals, is there; nobody in this process can write it; an
        // exclusive borrow is never in the mapping. The other process may write: bytes are read once each.
        unsafe { copy_xxh3_64_raw(self.0.base.as_ptr().add(at), to.as_mut_ptr(), to.len()) }
    }
}

fn check_len(len: usize) -> io::Result<()> {
    match len {
        1..=SHARED_BYTES_MAX => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("cannot share {len} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::checksum::xxh3_64;

    #[test]
    fn the_reader_sees_what_was_written_and_nothing_else_can_be() {
        let mut writer = SharedWriter::new(10_000).unwrap();
        let reader = SharedReader::open(&writer.file().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((writer.len(), reader.len()), (10_000, 10_000));
        let bytes: Vec<u8> = (0..5_000).map(|i| (i * 7 % 251) as u8).collect();
        let sum = writer.write(5_000, &bytes);
        let mut copy = vec![0; 5_000];
        assert_eq!((sum, reader.read(5_000, &mut copy)), (xxh3_64(&bytes), sum));
        assert_eq!(copy, bytes);
        reader.read(0, &mut copy);
        assert_eq!(copy, vec![0; 5_000]);
        for (at, len) in [(5_001, 5_000), (10_001, 0), (usize::MAX, 2)] {
            assert!(catch_unwind(AssertUnwindSafe(|| reader.read(at, &mut vec![0; len]))).is_err());
        }
        assert!(catch_unwind(AssertUnwindSafe(|| writer.write(9_999, &[1, 2]))).is_err());
    }

    #[test]
    fn a_reader_can_neither_write_nor_shrink() {
        let writer = SharedWriter::new(4_096).unwrap();
        let file = writer.file().try_clone_to_owned().unwrap();
        assert!(rustix::fs::ftruncate(&file, 0).is_err());
        assert!(rustix::fs::ftruncate(&file, 1 << 20).is_err());
        assert!(rustix::io::write(&file, &[1]).is_err());
        assert!(Mapping::new(file.as_fd(), 4_096, ProtFlags::READ | ProtFlags::WRITE).is_err());
    }

    #[test]
    fn files_that_could_fault_are_refused() {
        let unsealed = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&unsealed, 4_096).unwrap();
        assert!(SharedReader::open(&unsealed).is_err());
        rustix::fs::ftruncate(&unsealed, 0).unwrap();
        rustix::fs::fcntl_add_seals(&unsealed, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert!(SharedReader::open(&unsealed).is_err(), "empty");
        let large = rustix::fs::memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&large, SHARED_BYTES_MAX as u64 + 1).unwrap();
        rustix::fs::fcntl_add_seals(&large, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        assert!(SharedReader::open(&large).is_err(), "too large");
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert!(SharedReader::open(&null).is_err());
        assert!(SharedWriter::new(0).is_err() && SharedWriter::new(SHARED_BYTES_MAX + 1).is_err());
    }
}
