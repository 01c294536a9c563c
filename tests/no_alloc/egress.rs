//! The way out: bulk of flows that stand, both ways, TCP and UDP. Flows themselves may take memory.

use super::{TAKEN, node};
use podwire::buf::{Arena, Message, Progress, Span};
use podwire::datapath::{Exits, FRAME_ROOM, HEADROOM, Node};
use podwire::io::{Mouths, Streams};
use podwire::model::{Duration, Heard, HostError, Instant, Mac, MouthKind, Moved, Outward, PortId};
use podwire::stack::egress::{Failure, FlowId, Host, MouthId, Policy};
use podwire::wire::bytes::{be16, put, put_be16, put_be32};
use podwire::wire::checksum::Sum;
use podwire::wire::{Gso, VnetHdr, proto};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;

const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const FLOWS: usize = 40;
const FIRST: u16 = 4000;
/// Payload of a super-frame of a pod.
const TRAIN: usize = 42 * 1398;

const FIN: u8 = 1;
const SYN: u8 = 2;
const ACK: u8 = 16;
const PSH: u8 = 8;

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from(be16(bytes, at)) << 16 | u32::from(be16(bytes, at + 2))
}

/// A connection as the pod has it.
#[derive(Clone, Copy, Default)]
struct Conn {
    seq: u32,
    ack: u32,
    /// What the other side has acknowledged.
    acked: u32,
}

/// A host with sockets that take everything and always have more; and the pod's side.
struct World {
    conns: [Conn; FLOWS],
    /// Bytes that streams took, and that pods got.
    up: usize,
    down: usize,
    /// Streams have something to say.
    speaks: bool,
    /// Datagrams that wait at each mouth.
    waiting: usize,
    datagrams: (usize, usize),
    from: SocketAddr,
}

impl Host for World {
    fn connect(
        &mut self,
        _: FlowId,
        _: SocketAddr,
        _: Option<IpAddr>,
        _: Option<u8>,
    ) -> Result<(), HostError> {
        Ok(())
    }
    fn outcome(&mut self, _: FlowId) -> Option<Result<(), Failure>> {
        Some(Ok(()))
    }
    fn read(&mut self, _: FlowId, into: &mut [u8]) -> Moved {
        match self.speaks {
            true => {
                into.fill(7);
                Moved::Bytes(into.len())
            }
            false => Moved::Blocked,
        }
    }
    fn write(&mut self, _: FlowId, from: &[u8]) -> Moved {
        self.up += from.len();
        Moved::Bytes(from.len())
    }
    fn open(&mut self, _: MouthId, _: MouthKind, _: bool) -> Result<(), HostError> {
        Ok(())
    }
    fn send(&mut self, _: MouthId, what: &Outward<'_>) -> Result<(), HostError> {
        self.datagrams.0 += what.payload.len();
        Ok(())
    }
    fn hear(&mut self, _: MouthId, into: &mut [u8]) -> Option<Heard> {
        self.waiting = self.waiting.checked_sub(1)?;
        let len = 40 * 1000;
        into[..len].fill(9);
        Some(Heard::Datagram {
            from: self.from,
            len,
            segment: Some(1000),
            class: 0,
            at: None,
        })
    }
}

impl Exits for World {
    fn to_pod(&mut self, _: PortId, _: &VnetHdr, head: &[u8], memory: &[u8], pieces: &[Span]) -> bool {
        assert!(head.is_empty() && pieces.len() == 1);
        let frame = pieces[0].of(memory);
        let l4 = 34;
        match frame[23] {
            proto::TCP => {
                let conn = &mut self.conns[usize::from(be16(frame, l4 + 2) - FIRST)];
                let len = frame.len() - l4 - usize::from(frame[l4 + 12] >> 4) * 4;
                let control = u32::from(frame[l4 + 13] & (SYN | FIN) != 0);
                conn.ack = be32(frame, l4 + 4).wrapping_add(len as u32).wrapping_add(control);
                conn.acked = be32(frame, l4 + 8);
                self.down += len;
            }
            _ => self.datagrams.1 += frame.len() - l4 - 8,
        }
        true
    }

    fn to_peers(&mut self, _: &[Message], _: &[u8]) -> Progress {
        Progress::All
    }
}

struct Lab {
    node: Node,
    arena: Arena,
    world: World,
    now: Instant,
}

impl Lab {
    fn new() -> Lab {
        let mut node = node(1, 2);
        node.set_policy(Arc::new(Policy {
            open: true,
            ..Policy::default()
        }));
        Lab {
            node,
            arena: Arena::new(4 * FRAME_ROOM),
            world: World {
                conns: [Conn {
                    seq: 1000,
                    ..Conn::default()
                }; FLOWS],
                up: 0,
                down: 0,
                speaks: false,
                waiting: 0,
                datagrams: (0, 0),
                from: SocketAddr::new(FAR.into(), 53),
            },
            now: Instant::from_secs(20),
        }
    }

    /// A packet of the pod, written where a TAP's frames are.
    fn send(&mut self, proto: u8, l4: &[u8], payload: usize, segment: u16) {
        let len = 20 + l4.len() + payload;
        let vnet = VnetHdr {
            partial: Some((34, if proto == proto::TCP { 16 } else { 6 })),
            gso: match (payload > usize::from(segment), proto) {
                (false, _) => Gso::None,
                (true, proto::TCP) => Gso::Tcp4,
                (true, _) => Gso::Udp,
            },
            ecn: false,
            hdr_len: 34 + l4.len() as u16,
            gso_size: if payload > usize::from(segment) {
                segment
            } else {
                0
            },
        };
        self.arena.rewind(0);
        self.arena.free_mut()[..HEADROOM].copy_from_slice(&vnet.emit());
        self.arena.take(HEADROOM);
        let frame = &mut self.arena.free_mut()[..14 + len];
        put(frame, 0, &Mac::of_ipv4(Ipv4Addr::new(10, 244, 1, 1)).0);
        put(frame, 6, &Mac::of_ipv4(POD).0);
        put(frame, 12, &[8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, proto, 0, 0]);
        put_be16(frame, 16, len as u16);
        put(frame, 26, &POD.octets());
        put(frame, 30, &FAR.octets());
        let sum = Sum::default().with(&frame[14..34]).finish();
        put_be16(frame, 24, sum);
        put(frame, 34, l4);
        frame[34 + l4.len()..].fill(5);
        let span = self.arena.take(14 + len);
        let (node, arena, world) = (&mut self.node, &mut self.arena, &mut self.world);
        node.from_pod(PortId(0), arena, span, self.now, world);
        while node.turn_egress(self.now, world) {}
    }

    fn tcp(&mut self, flow: usize, flags: u8, payload: usize) {
        let conn = &mut self.world.conns[flow];
        let options: &[u8] = if flags & SYN != 0 {
            &[2, 4, 5, 130, 1, 3, 3, 7]
        } else {
            &[]
        };
        let mut segment = [0; 28];
        put_be16(&mut segment, 0, FIRST + flow as u16);
        put_be16(&mut segment, 2, 80);
        put_be32(&mut segment, 4, conn.seq);
        put_be32(&mut segment, 8, conn.ack);
        put(
            &mut segment,
            12,
            &[(20 + options.len()) as u8 / 4 * 16, flags, 0xff, 0xff],
        );
        put(&mut segment, 20, options);
        conn.seq = conn
            .seq
            .wrapping_add(payload as u32 + u32::from(flags & SYN != 0));
        self.send(proto::TCP, &segment[..20 + options.len()], payload, 1398);
    }

    fn udp(&mut self, port: u16, payload: usize) {
        let mut head = [0; 8];
        put_be16(&mut head, 0, port);
        put_be16(&mut head, 2, 53);
        put_be16(&mut head, 4, 8 + payload as u16);
        self.send(proto::UDP, &head, payload, 1000);
    }

    /// Time goes on, and with it what is due.
    fn later(&mut self) {
        self.now += Duration::from_millis(3);
        while self.node.turn_egress(self.now, &mut self.world) {}
    }
}

/// How much memory is taken once it is warm.
fn measure(what: &str, rounds: usize, mut work: impl FnMut()) {
    for _ in 0..rounds {
        work();
    }
    let before = TAKEN.with(std::cell::Cell::get);
    for _ in 0..rounds {
        work();
    }
    let taken = TAKEN.with(std::cell::Cell::get) - before;
    assert_eq!(taken, 0, "{what}: in {rounds} rounds");
}

#[test]
fn warm_flows_take_no_memory() {
    let mut lab = Lab::new();
    for flow in 0..FLOWS {
        lab.tcp(flow, SYN, 0);
        lab.node
            .stream_ready(flow as FlowId, true, true, lab.now, &mut lab.world);
        while lab.node.turn_egress(lab.now, &mut lab.world) {}
        lab.tcp(flow, ACK, 0);
    }
    assert_eq!(lab.node.egress().unwrap().counts().0, FLOWS);
    // The arena takes what is measured, and the numbers show that it goes on.
    measure("TCP out, small and large", 60, || {
        for flow in 0..FLOWS {
            let before = lab.world.up;
            lab.tcp(flow, ACK | PSH, 100);
            lab.tcp(flow, ACK | PSH, TRAIN);
            assert_eq!(lab.world.up - before, 100 + TRAIN);
        }
        lab.later();
        assert!(lab.world.conns.iter().all(|c| c.acked == c.seq));
    });
    lab.world.speaks = true;
    for flow in 0..FLOWS {
        lab.node
            .stream_ready(flow as FlowId, true, true, lab.now, &mut lab.world);
    }
    measure("TCP in", 60, || {
        for flow in 0..FLOWS {
            let before = lab.world.down;
            lab.tcp(flow, ACK, 0);
            assert!(lab.world.down - before > 60_000);
        }
        lab.later();
    });
    measure("TCP both ways", 60, || {
        for flow in 0..FLOWS {
            lab.tcp(flow, ACK, TRAIN);
        }
        lab.later();
    });
    measure("UDP both ways", 60, || {
        for port in 0..FLOWS as u16 {
            let before = lab.world.datagrams;
            lab.udp(FIRST + port, 500);
            lab.udp(FIRST + port, 40_000);
            lab.world.waiting = 3;
            lab.node.mouth_ready(port.into());
            while lab.node.turn_egress(lab.now, &mut lab.world) {}
            let after = lab.world.datagrams;
            assert_eq!((after.0 - before.0, after.1 - before.1), (40_500, 120_000));
        }
        lab.later();
    });
}

/// The host's sockets as they are.
#[test]
fn warm_sockets_of_the_host_take_no_memory() {
    let poll = mio::Poll::new().unwrap();
    let registry = || poll.registry().try_clone().unwrap();
    let (mut mouths, mut streams) = (Mouths::new(registry(), 0), Streams::new(registry(), 100));
    let there = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = there.local_addr().unwrap();
    mouths.open(0, MouthKind::Udp, false).unwrap();
    let (mut space, payload) = (vec![0; 65_535], vec![5; 40_000]);
    let mut send = |mouths: &mut Mouths, len, segment| {
        let what = Outward {
            to,
            from: None,
            hops: None,
            class: 0,
            segment,
            may_fragment: false,
            payload: &payload[..len],
        };
        mouths.send(0, &what).unwrap();
        let (n, from) = there.recv_from(&mut space).unwrap();
        there.send_to(&space[..n], from).unwrap();
        // What is sent over loopback has arrived.
        assert!(mouths.hear(0, &mut space).is_some());
        while segment.is_some() && there.set_nonblocking(true).is_ok() && there.recv(&mut space).is_ok() {}
        there.set_nonblocking(false).unwrap();
    };
    measure("datagrams", 100, || {
        send(&mut mouths, 500, None);
        send(&mut mouths, 40_000, Some(1000));
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    streams
        .connect(0, listener.local_addr().unwrap(), None, None)
        .unwrap();
    let (server, _) = listener.accept().unwrap();
    let mut space = vec![0; 100_000];
    measure("streams", 100, || {
        use std::io::{Read, Write};
        assert_eq!(streams.write(0, &payload), Moved::Bytes(40_000));
        (&server).read_exact(&mut space[..40_000]).unwrap();
        (&server).write_all(&payload).unwrap();
        let mut left = 40_000;
        while left > 0 {
            if let Moved::Bytes(n) = streams.read(0, &mut space[..left]) {
                left -= n;
            }
        }
    });
}
