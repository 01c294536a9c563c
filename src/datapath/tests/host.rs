//! The host as a port.

use super::*;

const HOST: u16 = 2;

fn gateway4() -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 1, 1)
}

/// Node 1 with a port of the host's beside its pods.
fn lab() -> Lab {
    let mut lab = Lab::new(1);
    let host = host(&lab);
    assert_eq!(lab.node.add_host(host), Ok(PortId(HOST)));
    lab
}

fn host(lab: &Lab) -> PortSpec {
    let local = &lab.node.settings().local;
    PortSpec {
        pod: PodName::of_host(),
        mac: local.host_mac(),
        ip4: local.gateway4(),
        ip6: local.gateway6(),
        ..spec(1, 2)
    }
}

/// A frame from the host's port.
fn from_host(lab: &Lab, dst: Ipv4Addr, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut frame = ipv4(lab.gateway(), 2, dst, protocol, l4);
    frame[6..12].copy_from_slice(&host(lab).mac.0);
    readdress(&mut frame, gateway4());
    frame
}

fn readdress(frame: &mut [u8], src: Ipv4Addr) {
    frame[26..30].copy_from_slice(&src.octets());
    put_be16(frame, 24, 0);
    let sum = Sum::default().with(&frame[14..34]).finish();
    put_be16(frame, 24, sum);
}

const TCP: [u8; 20] = [
    0x30, 0x39, 0, 80, 0, 0, 1, 0, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
];
const ECHO: [u8; 8] = [8, 0, 0xf7, 0xfe, 0, 0, 0, 1];
const ECHO_REPLY: [u8; 8] = [0, 0, 0xff, 0xfe, 0, 0, 0, 1];
const PLAIN: VnetHdr = VnetHdr {
    partial: None,
    gso: Gso::None,
    ecn: false,
    hdr_len: 0,
    gso_size: 0,
};

#[test]
fn what_is_for_the_gateway_is_the_hosts_but_for_pings() {
    let mut lab = lab();
    let (gateway, mac) = (lab.gateway(), host(&lab).mac);
    for (protocol, l4) in [(6, &TCP[..]), (1, &ECHO_REPLY[..])] {
        lab.out.to_pods.clear();
        lab.send(0, &PLAIN, &ipv4(gateway, 2, gateway4(), protocol, l4));
        let (port, _, frame) = &lab.out.to_pods[0];
        assert_eq!(*port, PortId(HOST));
        assert_eq!((EthView(frame).dst(), EthView(frame).src()), (mac, gateway));
        assert_eq!(Headers::parse(frame).unwrap().ttl(frame), 63);
    }
    lab.out.to_pods.clear();
    lab.send(0, &PLAIN, &ipv4(gateway, 2, gateway4(), 1, &ECHO));
    assert_eq!(lab.out.to_pods[0].0, PortId(0), "the node answers pings");
    // The VTEP is the node's alone.
    lab.out.to_pods.clear();
    lab.send(
        0,
        &PLAIN,
        &ipv4(gateway, 2, Ipv4Addr::new(10, 244, 1, 0), 6, &TCP),
    );
    assert!(lab.out.to_pods.iter().all(|(port, ..)| *port != PortId(HOST)));
    lab.balanced();
    // Without the port it is all the node's.
    lab.node.remove_port(&PodName::of_host(), &mut Out::default());
    lab.out.to_pods.clear();
    lab.send(0, &PLAIN, &ipv4(gateway, 2, gateway4(), 1, &ECHO_REPLY));
    assert_eq!((lab.node.host(), lab.out.to_pods.len()), (None, 0));
    lab.balanced();
}

#[test]
fn the_host_reaches_pods_here_and_there_and_nothing_else() {
    let mut lab = lab();
    let frame = from_host(&lab, Ipv4Addr::new(10, 244, 1, 3), 6, &TCP);
    lab.send(HOST, &PLAIN, &frame);
    assert_eq!(lab.out.to_pods[0].0, PortId(1));
    let frame = from_host(&lab, Ipv4Addr::new(10, 244, 2, 2), 6, &TCP);
    lab.send(HOST, &PLAIN, &frame);
    assert_eq!(lab.out.to_peers[0].0, peer(2).underlay);
    // Out of the pod network it has ways of its own. It is told so by the VTEP: it has the gateway's address itself.
    lab.out.to_pods.clear();
    let frame = from_host(&lab, Ipv4Addr::new(198, 51, 100, 1), 6, &TCP);
    lab.send(HOST, &PLAIN, &frame);
    assert_eq!(lab.dropped(DropReason::NoRoute), 1);
    let (port, _, error) = &lab.out.to_pods[0];
    assert_eq!(
        (*port, &error[26..30], &error[30..34]),
        (PortId(HOST), &[10, 244, 1, 0][..], &[10, 244, 1, 1][..])
    );
    // It is held to its address.
    let mut frame = from_host(&lab, Ipv4Addr::new(10, 244, 1, 3), 6, &TCP);
    readdress(&mut frame, Ipv4Addr::new(192, 0, 2, 1));
    lab.send(HOST, &PLAIN, &frame);
    assert_eq!(lab.dropped(DropReason::SpoofedIp), 1);
    lab.balanced();
}

#[test]
fn a_peers_pods_reach_the_host_and_its_pings_are_answered() {
    let (mut a, mut b) = (lab(), Lab::new(2));
    let frame = |l4: &[u8], protocol| {
        let mut frame = ipv4(
            Mac::of_ipv4(Ipv4Addr::new(10, 244, 2, 1)),
            2,
            gateway4(),
            protocol,
            l4,
        );
        frame[6..12].copy_from_slice(&spec(2, 2).mac.0);
        readdress(&mut frame, Ipv4Addr::new(10, 244, 2, 2));
        frame
    };
    b.send(0, &PLAIN, &frame(&TCP, 6));
    let sent: Vec<_> = b.out.to_peers.iter().flat_map(|(_, d)| d.clone()).collect();
    a.receive(2, &sent[..1]);
    let (port, _, got) = a.out.to_pods.last().expect("it comes");
    assert_eq!(*port, PortId(HOST));
    assert_eq!(
        (EthView(got).dst(), EthView(got).src()),
        (host(&a).mac, a.gateway())
    );
    // The host's own pings of that pod come back.
    a.out.to_pods.clear();
    b.out.to_peers.clear();
    b.send(0, &PLAIN, &frame(&ECHO_REPLY, 1));
    let sent = b.out.to_peers[0].1.clone();
    a.receive(2, &sent);
    assert_eq!(a.out.to_pods[0].0, PortId(HOST));
    a.balanced();
    b.balanced();
}

#[test]
fn nobody_finds_the_host_but_by_the_gateways_address() {
    let mut lab = lab();
    let mac = host(&lab).mac;
    // By its MAC each of its addresses would be open.
    lab.send(0, &PLAIN, &ipv4(mac, 2, Ipv4Addr::new(192, 0, 2, 1), 6, &TCP));
    lab.send(0, &PLAIN, &ipv4(mac, 2, gateway4(), 6, &TCP));
    assert_eq!(lab.dropped(DropReason::UnknownMac), 2);
    // Broadcasts are the pods' own, and so are the host's.
    lab.send(
        0,
        &PLAIN,
        &ipv4(Mac::BROADCAST, 2, Ipv4Addr::BROADCAST, 17, &[0; 8]),
    );
    let ports: Vec<PortId> = lab.out.to_pods.iter().map(|(port, ..)| *port).collect();
    assert_eq!(ports, [PortId(1)]);
    let mut frame = from_host(&lab, Ipv4Addr::BROADCAST, 17, &[0; 8]);
    frame[..6].fill(0xff);
    lab.send(HOST, &PLAIN, &frame);
    assert_eq!(
        (lab.dropped(DropReason::NoListener), lab.out.to_pods.len()),
        (1, 1)
    );
    // Whoever asks for the gateway is told the gateway's MAC.
    let pod = spec(1, 2);
    let mut ask = [Mac::BROADCAST.0, pod.mac.0].concat();
    ask.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    ask.extend(pod.mac.0);
    ask.extend(pod.ip4.unwrap().octets());
    ask.extend([0; 6]);
    ask.extend(gateway4().octets());
    lab.send(0, &PLAIN, &ask);
    let (_, _, answer) = lab.out.to_pods.last().unwrap();
    assert_eq!(EthView(answer).src(), lab.gateway());
    lab.balanced();
}
