//! Clients at sockets of the host whose backends are pods of peers.

use super::*;

/// What node 2's pod at `.2` answers to a segment from port 80: `flags`, and everything acknowledged.
fn answer(to: &[u8], flags: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
    let h = Headers::parse(to).unwrap();
    let mut tcp = vec![0; 20];
    tcp[0..2].copy_from_slice(&to[h.l4 + 2..h.l4 + 4]);
    tcp[2..4].copy_from_slice(&to[h.l4..h.l4 + 2]);
    tcp[4..8].copy_from_slice(&seq.to_be_bytes());
    let acked = u32::from_be_bytes(to[h.l4 + 4..h.l4 + 8].try_into().unwrap()) + 1;
    tcp[8..12].copy_from_slice(&acked.to_be_bytes());
    tcp[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    tcp.extend(payload);
    let IpAddr::V4(far) = h.src(to) else {
        panic!("IPv4")
    };
    let gateway = Mac::of_ipv4(Ipv4Addr::new(10, 244, 2, 1));
    let mut f = [gateway.0, spec(2, 2).mac.0].concat();
    f.extend([8, 0, 0x45, 0]);
    f.extend(((20 + tcp.len()) as u16).to_be_bytes());
    f.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
    f.extend(spec(2, 2).ip4.unwrap().octets());
    f.extend(far.octets());
    let sum = Sum::default().with(&f[14..34]).finish();
    put_be16(&mut f, 24, sum);
    f.extend(tcp);
    let h = Headers::parse(&f).unwrap();
    let sum = pseudo(&f, &h, h.end - h.l4).with(&f[h.l4..h.end]).finish();
    put_be16(&mut f, h.l4 + 16, sum);
    f
}

/// Carry what node `from` sent to the peer over to `to`.
fn carry(from: &mut Lab, n: u8, to: &mut Lab) {
    for (_, datagrams) in std::mem::take(&mut from.out.to_peers) {
        to.receive(n, &datagrams);
    }
}

#[test]
fn a_pod_of_a_peer_serves_a_client_of_a_socket_here() {
    let (mut a, mut b) = (Lab::new(1), Lab::new(2));
    let backend = SocketAddr::new(spec(2, 2).ip4.unwrap().into(), 80);
    let client = "127.0.0.1:5000".parse().unwrap();
    let turn = |a: &mut Lab| {
        a.node.turn_egress(a.now, &mut a.out);
        a.settle();
    };
    a.node.let_in(PortId::SERVICES, (backend, client), NOW).unwrap();
    turn(&mut a);
    carry(&mut a, 1, &mut b);
    let (port, _, syn) = b.out.to_pods.pop().expect("a SYN");
    assert_eq!(port, PortId(0));
    let h = Headers::parse(&syn).unwrap();
    assert_eq!(
        h.src(&syn),
        IpAddr::from([10, 244, 1, 1]),
        "the gateway stands for the client"
    );
    assert!(transport_is_right(&syn, &h));

    // One that was damaged on its way is not believed.
    let mut broken = answer(&syn, 0x12, 77, b"");
    let at = broken.len() - 1;
    broken[at] ^= 1;
    b.send(0, &VnetHdr::default(), &broken);
    carry(&mut b, 2, &mut a);
    assert_eq!(a.dropped(DropReason::BadChecksum), 1);

    b.send(0, &VnetHdr::default(), &answer(&syn, 0x12, 77, b""));
    carry(&mut b, 2, &mut a);
    turn(&mut a);
    carry(&mut a, 1, &mut b);
    let (_, _, ack) = b.out.to_pods.pop().expect("an acknowledgement");
    assert_eq!(ack[34 + 13], 0x10);
    assert_eq!(a.node.egress().unwrap().counts().0, 1);

    // The pod breaks it off.
    b.send(0, &VnetHdr::default(), &answer(&syn, 0x14, 78, b""));
    carry(&mut b, 2, &mut a);
    turn(&mut a);
    assert_eq!(a.node.egress().unwrap().counts().0, 0);
    a.balanced();
    b.balanced();
}
