//! The harness without podwire: what the relay says it does is what the kernel sees.

use super::impair::{Impairment, PERCENT};
use super::pod::Ping;
use super::underlay::Underlay;
use libtest_mimic::Trial;
use podwire::model::OffloadMode;

/// The tests.
pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, body: fn()| {
        Trial::test(format!("relay::{name}"), move || {
            body();
            Ok(())
        })
    };
    vec![
        trial("loss_is_what_ping_misses", loss_is_what_ping_misses),
        trial("kernel_vxlan_crosses", kernel_vxlan_crosses),
    ]
}

fn loss_is_what_ping_misses() {
    let net = Underlay::new(2, 1, OffloadMode::Off);
    let ping = |count: &str, more: &[&str]| {
        let args = [
            &["-n", "-c", count, "-i", "0.002", "-W", "1"],
            more,
            &["192.0.2.2"],
        ]
        .concat();
        Ping::of(&net.hosts[0].netns.run("ping", &args))
    };
    ping("3", Ping::PATIENT).all(3);
    // Nothing but pings may cross from here on: a lost ARP question or MLD report would be counted too.
    let keep = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; ip -4 neigh | while read ip _ dev _ mac _; do \
                ip neigh replace $ip lladdr $mac dev $dev nud permanent; done; ip -4 neigh";
    for host in &net.hosts[..2] {
        let out = host.netns.run("sh", &["-c", keep]);
        assert!(
            String::from_utf8_lossy(&out.stdout).contains("PERMANENT"),
            "{out:?}"
        );
    }
    let before = net.relay.counters();
    let loss = Impairment {
        loss: 10 * PERCENT,
        ..Impairment::default()
    };
    net.relay.impair(0, 1, loss);
    let lossy = ping("300", Ping::PATIENT);
    let lost = net.relay.counters().lost - before.lost;
    let last = lossy.numbers.last().copied().unwrap_or(0);
    let missed = u64::from(last) - lossy.numbers.len() as u64;
    // Of requests behind the last answer it is not known what became of them.
    let open = u64::from(lossy.sent - last);
    assert!(
        (missed..=missed + open).contains(&lost),
        "{lost} lost: {}",
        lossy.text
    );
    assert!((15..=50).contains(&lost), "{lost} of 330 is not about 10 %");
    net.relay.impair_all(Impairment::default());
    ping("3", Ping::PATIENT).all(3);
    net.relay.isolate(1);
    ping("3", &[]).none();
}

fn kernel_vxlan_crosses() {
    let net = Underlay::new(2, 2, OffloadMode::Off);
    for (own, other) in [(1, 2), (2, 1)] {
        net.hosts[own - 1].netns.ip(&format!(
            "link add vx0 type vxlan id 1 dstport 8472 local 192.0.2.{own} remote 192.0.2.{other}\n\
             addr add 10.9.0.{own}/24 dev vx0\n\
             link set vx0 up\n"
        ));
    }
    let args = ["-n", "-c", "20", "-i", "0.01", "-s", "1400", "10.9.0.2"];
    let args = [&args[..], Ping::PATIENT].concat();
    Ping::of(&net.hosts[0].netns.run("ping", &args)).all(20);
    let relayed = net.relay.counters();
    assert!(relayed.delivered >= 40 && relayed.lost == 0, "{relayed:?}");
}
