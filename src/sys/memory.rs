//! How the C library's allocator gives memory back.

#![allow(unsafe_code)]

/// Have every allocation from `bytes` on mapped by itself: its pages are zero without being written, are not there
/// before they are used, and are the kernel's again as soon as it is freed. glibc would stop doing that for a size as
/// soon as one of it was freed (mallopt(3)), and clear recycled memory by writing it. Other C libraries have a fixed
/// limit, musl's is just below 128 KiB.
pub fn map_from(bytes: usize) {
    #[cfg(target_env = "gnu")]
    {
        let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        // SAFETY: it sets a number in the allocator, under the allocator's own lock.
        unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = bytes;
}
