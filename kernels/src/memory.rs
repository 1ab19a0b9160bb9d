//! Zeroed memory at cache-line alignment.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment of every allocation here: one cache line, one AVX-512 vector.
pub(crate) const ALIGN: usize = 64;
/// Size and alignment of a large page.
const HUGE_PAGE: usize = 2 << 20;
/// Arrays below this size share allocations of it.
const SHARED_BYTES: usize = 8 * HUGE_PAGE;

/// Zeroed bytes, aligned to [`ALIGN`]. Pages are touched only when used: the allocator's alignment is kept small so
/// that it takes untouched pages from the system instead of writing zeros, and the base is moved up by hand.
pub(crate) struct ZeroedBytes {
    allocation: NonNull<u8>,
    base: NonNull<u8>,
    layout: Layout,
    len: usize,
}

// SAFETY: the struct owns its allocation and hands out raw pointers only; who dereferences them answers for races.
unsafe impl Send for ZeroedBytes {}
// SAFETY: as above; all methods take `&self` and touch no memory.
unsafe impl Sync for ZeroedBytes {}

impl ZeroedBytes {
    /// `None` when the size overflows or the system has no memory.
    ///
    /// Memory of several megabytes asks the system for large pages: weights and keys are read from end to end, and
    /// looking up a small page every 4 KiB costs about as much as reading it.
    pub(crate) fn new(len: usize) -> Option<Self> {
        let align = if len >= 2 * HUGE_PAGE { HUGE_PAGE } else { ALIGN };
        let layout = Layout::from_size_align(len.checked_add(align)?, 16).ok()?;
        // SAFETY: the layout's size is at least `align`, so not zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let shift = allocation.as_ptr().align_offset(align);
        assert!(shift < align, "a byte pointer can always be aligned");
        // SAFETY: `shift + len < len + align`, the size of the allocation.
        let base = unsafe { allocation.add(shift) };
        #[cfg(target_os = "linux")]
        if align == HUGE_PAGE {
            // SAFETY: whole pages of this allocation, which nothing else uses yet; the advice changes no content. Where
            // the system does not take it, pages stay small.
            let _ = unsafe {
                rustix::mm::madvise(base.as_ptr().cast(), len & !(HUGE_PAGE - 1), rustix::mm::Advice::LinuxHugepage)
            };
        }
        Some(Self { allocation, base, layout, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// First byte, aligned to [`ALIGN`]; valid for `len` bytes while `self` lives.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for ZeroedBytes {
    fn drop(&mut self) {
        // SAFETY: `allocation` came from `alloc_zeroed` with this layout and is freed once.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

/// Element types for which all-zero bytes are a value and which have no drop glue.
///
/// # Safety
/// Implementers are plain numbers.
pub(crate) unsafe trait Number: Copy {}
// SAFETY: a plain number.
unsafe impl Number for f32 {}
// SAFETY: a plain number.
unsafe impl Number for u8 {}
// SAFETY: a plain number.
unsafe impl Number for u16 {}
// SAFETY: a plain number.
unsafe impl Number for half::f16 {}
// SAFETY: a plain number.
unsafe impl Number for half::bf16 {}

/// A part of an allocation that others have parts of, too.
struct Part {
    whole: Arc<ZeroedBytes>,
    start: usize,
    len: usize,
}

/// What is left of the last allocation: a model's matrices are smaller than large pages, together they fill them.
static REST: Mutex<Option<Part>> = Mutex::new(None);

impl Part {
    /// Zeroed bytes that nothing else has, aligned to [`ALIGN`]; `None` when the system has no memory.
    fn new(len: usize) -> Option<Self> {
        let taken = len.checked_next_multiple_of(ALIGN)?;
        if taken >= SHARED_BYTES {
            return Some(Self { whole: Arc::new(ZeroedBytes::new(len)?), start: 0, len });
        }
        let mut rest = REST.lock().unwrap_or_else(PoisonError::into_inner);
        if rest.as_ref().is_none_or(|rest| rest.len < taken) {
            let whole = Arc::new(ZeroedBytes::new(SHARED_BYTES)?);
            *rest = Some(Self { whole, start: 0, len: SHARED_BYTES });
        }
        let rest = rest.as_mut()?;
        let part = Self { whole: rest.whole.clone(), start: rest.start, len };
        (rest.start, rest.len) = (rest.start + taken, rest.len - taken);
        Some(part)
    }

    /// First byte; valid for `len` bytes while `self` lives.
    fn as_ptr(&self) -> *mut u8 {
        assert!(
            self.start <= self.whole.len() && self.len <= self.whole.len() - self.start,
            "a part lies in its whole"
        );
        // SAFETY: `start` lies in the allocation, as just asserted.
        unsafe { self.whole.as_ptr().add(self.start) }
    }
}

/// A fixed-size zeroed array aligned to [`ALIGN`].
pub(crate) struct AlignedVec<T: Number> {
    bytes: Part,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Number> AlignedVec<T> {
    /// # Panics
    /// When the system has no memory, as `Vec` does.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).and_then(Part::new);
        let bytes = bytes.unwrap_or_else(|| panic!("no memory for {len} elements"));
        Self { bytes, len, element: PhantomData }
    }
}

impl<T: Number> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        debug_assert_eq!(self.bytes.len, self.len * size_of::<T>());
        // SAFETY: the part holds `len` elements, is aligned to 64, nothing else has any of its bytes, zero is a value of
        // `T` (`Number`), and writes go through `deref_mut`, so the borrow checker sees them.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_zeroed_aligned_and_apart() {
        let sizes = [1, 63, 64, 1_000, SHARED_BYTES - 64, 3 * HUGE_PAGE, SHARED_BYTES + 1, 5];
        let mut arrays: Vec<AlignedVec<u8>> = sizes.map(AlignedVec::zeroed).into();
        for (i, array) in arrays.iter_mut().enumerate() {
            assert!(array.as_ptr().addr().is_multiple_of(ALIGN) && array.iter().all(|&x| x == 0), "array {i}");
            array.fill(i as u8 + 1);
        }
        for (i, (array, len)) in arrays.iter().zip(sizes).enumerate() {
            assert!(array.len() == len && array.iter().all(|&x| x == i as u8 + 1), "array {i}");
        }
    }
}
