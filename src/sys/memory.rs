//! How the C library's allocator gives memory back.

#![allow(unsafe_code)]

/// Have every allocation from `bytes` on mapped by itself: its pages are zero without being written, are not there
/// before they are used, and are the kernel's again as soon as it is freed. glibc would stop doing that for a size as
/// soon as one of it was freed, and as soon as there are 65,536 of them (mallopt(3)); then it clears recycled memory by
/// writing it. So it is told a number that may be as large as `most`. That is no limit of the kernel's, which counts
/// neighbouring mappings as one (vm.max_map_count). Other C libraries have a fixed size, musl's is just below 128 KiB, and
/// no number.
pub fn map_from(bytes: usize, most: usize) {
    #[cfg(target_env = "gnu")]
    {
        for (what, value) in [(libc::M_MMAP_THRESHOLD, bytes), (libc::M_MMAP_MAX, most)] {
            let value = libc::c_int::try_from(value).unwrap_or(libc::c_int::MAX);
            // SAFETY: it sets a number in the allocator, under the allocator's own lock.
            unsafe { libc::mallopt(what, value) };
        }
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = (bytes, most);
}
