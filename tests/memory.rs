//! Memory of many flows. A process of its own, as it tells the C library's allocator.

/// As many rings as 35,000 flows have, of which nothing was used: a page each, for the allocator's own header.
#[cfg(target_env = "gnu")]
#[test]
fn rings_that_are_not_used_are_not_there_however_many() {
    const RING: usize = 128 << 10;
    const RINGS: usize = 70_000;
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    podwire::sys::memory::map_from(RING, 2 * RINGS);
    let before = resident();
    let mut rings: Vec<Vec<u8>> = (0..RINGS).map(|_| vec![0; RING]).collect();
    let more = (resident() - before) / RINGS;
    assert!(
        more < 5000,
        "{more} bytes for a ring of {RING} that was never used"
    );
    // What is given back, also out of the middle, is the kernel's again; and what takes its place is new.
    let mut n = 0;
    rings.retain(|_| {
        n += 1;
        n % 4 < 2
    });
    let half = (resident() - before) / RINGS;
    assert!(half < 2800, "{half} bytes for a ring, of which half are gone");
    rings.resize_with(RINGS, || vec![0; RING]);
    let again = (resident() - before) / RINGS;
    assert!(again < 5000, "{again} bytes for a ring that was never used");
}
