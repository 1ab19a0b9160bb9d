//! Zeroed memory at cache-line alignment.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment of every allocation here: one cache line, one AVX-512 vector.
pub(crate) const ALIGN: usize = 64;

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
    pub(crate) fn new(len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len.checked_add(ALIGN)?, 16).ok()?;
        // SAFETY: the layout's size is at least `ALIGN`, so not zero.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let shift = allocation.as_ptr().align_offset(ALIGN);
        assert!(shift < ALIGN, "a byte pointer can always be aligned");
        // SAFETY: `shift + len < len + ALIGN`, the size of the allocation.
        let base = unsafe { allocation.add(shift) };
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

/// A fixed-size zeroed array aligned to [`ALIGN`].
pub(crate) struct AlignedVec<T: Number> {
    bytes: ZeroedBytes,
    len: usize,
    element: PhantomData<T>,
}

impl<T: Number> AlignedVec<T> {
    /// # Panics
    /// When the system has no memory, as `Vec` does.
    pub(crate) fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).and_then(ZeroedBytes::new);
        let bytes = bytes.unwrap_or_else(|| panic!("no memory for {len} elements"));
        Self { bytes, len, element: PhantomData }
    }
}

impl<T: Number> Deref for AlignedVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        debug_assert_eq!(self.bytes.len(), self.len * size_of::<T>());
        // SAFETY: the allocation holds `len` elements, is aligned to 64, zero is a value of `T` (`Number`), and
        // writes go through `deref_mut`, so the borrow checker sees them.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr().cast(), self.len) }
    }
}

impl<T: Number> DerefMut for AlignedVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.as_ptr().cast(), self.len) }
    }
}
