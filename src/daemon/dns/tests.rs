use super::*;
use std::net::SocketAddr;

fn settings(upstream: Option<Vec<SocketAddr>>, resolv_conf: PathBuf) -> Settings {
    Settings {
        domain: "pod".parse().unwrap(),
        services: ("cluster.local".parse().unwrap(), Vec::new()),
        subnets: vec!["10.244.1.0/24".parse().unwrap()],
        gateways: PodAddresses {
            ip4: Some([10, 244, 1, 1].into()),
            ip6: None,
        },
        upstream,
        resolv_conf,
        isolated: None,
        entries: Vec::new(),
        cache: Limits::default(),
    }
}

/// `web.default.pod A`, as a C library asks it.
const WEB: &[u8] =
    b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03web\x07default\x03pod\x00\x00\x01\x00\x01";

#[test]
fn news_hold_for_the_next_question() {
    let dns = Sockets::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let dns = dns
        .serve(settings(None, "/nonexistent/resolv.conf".into()))
        .unwrap();
    let internal = dns.internal().unwrap();
    assert!(internal.ip().is_loopback() && dns.listen().len() == 1);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let web = "web".parse().unwrap();
    for i in 0..200u8 {
        let there = i % 3 > 0;
        let addresses = PodAddresses {
            ip4: Some([10, 244, 1, i].into()),
            ip6: None,
        };
        dns.set_pod(&web, there.then_some(addresses), Vec::new());
        let at = if i % 2 == 0 { internal } else { dns.listen()[0] };
        client.send_to(WEB, at).unwrap();
        let mut answer = [0; 512];
        let n = client.recv(&mut answer).unwrap();
        assert_eq!(answer[7], u8::from(there), "{i}");
        assert!(!there || answer[..n].ends_with(&[10, 244, 1, i]), "{i}");
    }
    let report = dns.report(true).unwrap();
    assert_eq!((report.counters.messages_udp, report.servers.len()), (200, 0));
    assert!(
        report.problems[0].contains("names no resolver"),
        "{:?}",
        report.problems
    );
    let names: Vec<&str> = report.list.iter().map(|l| l.0.as_str()).collect();
    assert!(names.contains(&"web.default.pod") && names.contains(&"host.podwire.internal"));
    assert!(dns.report(false).unwrap().list.is_empty());
}

#[test]
fn it_ends_with_its_owner() {
    let dns = Sockets::bind(&[]).unwrap();
    let at = dns.internal().unwrap();
    let server = "192.0.2.1:53".parse().unwrap();
    let dns = dns.serve(settings(Some(vec![server]), PathBuf::new())).unwrap();
    assert_eq!(dns.report(false).unwrap().servers, [(server, false)]);
    assert!(Place::bind(at, None).is_err());
    drop(dns);
    assert!(Place::bind(at, None).is_ok());
}
