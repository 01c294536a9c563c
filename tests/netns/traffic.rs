//! Traffic whose every byte is compared: TCP streams and UDP datagrams, by the pods' own kernel stacks.

use super::impair::Rng;
use super::pod::{Family, PATIENCE, Place};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A megabyte.
pub const MB: usize = 1 << 20;

/// Send pseudo-random bytes from one place to another over TCP, and compare each on arrival. Gives the time.
///
/// # Panics
/// At the first byte that is wrong, when the stream ends early, or when it stalls for ten seconds.
pub fn stream(from: &dyn Place, to: &dyn Place, family: Family, bytes: usize) -> Duration {
    let listener = to.listen(family);
    let at = listener.local_addr().expect("it is bound");
    let begun = Instant::now();
    let label = format!("{} to {} over {family:?}", from.name(), to.name());
    std::thread::scope(|s| {
        let sender = s.spawn(|| send(from, at, bytes, &label));
        let (stream, _) = accept(&listener, &label);
        receive(stream, bytes, &label);
        sender
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    begun.elapsed()
}

/// A TCP connection out of a place, with the congestion control that suits a test: a machine's default of bbr
/// paces.
pub fn connect(from: &dyn Place, at: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = from
        .netns()
        .within(|| TcpStream::connect_timeout(&at, PATIENCE))?;
    // Where cubic is not to be had, the default does as well.
    let _ = rustix::net::sockopt::set_tcp_congestion(&stream, "cubic");
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A connection, and a byte each way, must take less than a second: a first segment that is lost takes more.
/// So the kernels before 5.7 are found out that computed wrong outer checksums: theirs took 63 seconds.
pub fn at_once(from: &dyn Place, to: &dyn Place, family: Family) {
    let listener = to.listen(family);
    let at = listener.local_addr().expect("it is bound");
    let label = format!("{} to {} over {family:?}", from.name(), to.name());
    let begun = Instant::now();
    let mut near = connect(from, at).unwrap_or_else(|e| panic!("{label}: no connection: {e}"));
    let (mut far, _) = accept(&listener, &label);
    let mut got = [0];
    for _ in 0..2 {
        near.write_all(b"?").expect("it is sent");
        far.read_exact(&mut got)
            .unwrap_or_else(|e| panic!("{label}: {e}"));
        far.write_all(&got).expect("it is sent");
        near.read_exact(&mut got)
            .unwrap_or_else(|e| panic!("{label}: {e}"));
    }
    let took = begun.elapsed();
    assert!(
        took < Duration::from_secs(1),
        "{label}: a connection took {took:?}"
    );
}

fn seed(bytes: usize) -> Rng {
    Rng(bytes as u64 ^ 0x5eed)
}

fn send(from: &dyn Place, at: SocketAddr, bytes: usize, label: &str) {
    let mut stream = connect(from, at).unwrap_or_else(|e| panic!("{label}: no connection: {e}"));
    let mut rng = seed(bytes);
    let mut chunk = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(chunk.len());
        rng.fill(&mut chunk[..n]);
        let sent = stream.write_all(&chunk[..n]);
        sent.unwrap_or_else(|e| panic!("{label}: sending with {left} bytes to go: {e}"));
        left -= n;
    }
    // The receiver's last word: everything has arrived.
    stream.shutdown(std::net::Shutdown::Write).expect("a shutdown");
    let n = stream.read(&mut chunk[..1]);
    assert!(
        matches!(n, Ok(1)),
        "{label}: the receiver did not acknowledge: {n:?}"
    );
}

fn accept(listener: &std::net::TcpListener, label: &str) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).expect("a flag");
    let begun = Instant::now();
    loop {
        match listener.accept() {
            Ok(accepted) => {
                accepted.0.set_nonblocking(false).expect("a flag");
                return accepted;
            }
            Err(_) => assert!(begun.elapsed() < PATIENCE, "{label}: nobody connects"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn receive(mut stream: TcpStream, bytes: usize, label: &str) {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut rng = seed(bytes);
    // The generator gives eight bytes at a time, so expectations are made for whole chunks.
    let (mut got, mut want) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut at = 0;
    while at < bytes {
        let n = got.len().min(bytes - at);
        let read = stream.read_exact(&mut got[..n]);
        read.unwrap_or_else(|e| panic!("{label}: the stream ends near byte {at} of {bytes}: {e}"));
        rng.fill(&mut want[..n]);
        if got[..n] != want[..n] {
            let wrong = (0..n).find(|i| got[*i] != want[*i]).unwrap_or(0);
            panic!("{label}: byte {} of {bytes} is wrong", at + wrong);
        }
        at += n;
    }
    let end = stream.read(&mut got[..1]);
    assert!(matches!(end, Ok(0)), "{label}: more came than was sent: {end:?}");
    stream.write_all(b".").expect("the sender waits for it");
}

/// Send datagrams of these sizes from one place to another, which sends each back; each must come back whole.
pub fn datagrams(from: &dyn Place, to: &dyn Place, family: Family, sizes: &[usize]) {
    let server = to.udp(family, 0);
    let at = server.local_addr().expect("it is bound");
    let client = from.udp(family, 0);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut buffer = vec![0; 65_536];
            for _ in sizes {
                let Ok((n, who)) = server.recv_from(&mut buffer) else {
                    return;
                };
                // What is refused is missed by the other side.
                let _ = server.send_to(&buffer[..n], who);
            }
        });
        let mut rng = Rng(7);
        let mut back = vec![0; 65_536];
        for size in sizes {
            let mut datagram = vec![0; *size];
            rng.fill(&mut datagram);
            client
                .send_to(&datagram, at)
                .unwrap_or_else(|e| panic!("{size} bytes: {e}"));
            let (n, who) = client
                .recv_from(&mut back)
                .unwrap_or_else(|e| panic!("a datagram of {size} bytes did not come back from {at}: {e}"));
            assert_eq!(who, at);
            assert!(
                back[..n] == datagram[..],
                "a datagram of {size} bytes came back changed ({n} bytes)"
            );
        }
    });
}
