//! Membership of a cluster: many nodes' state machines, a store in memory that fails as stores do, and a virtual
//! clock. A failing run prints its seed.

mod store;
mod world;

use podwire::control::cluster::{Ask, Event};
use world::{FAIR, FOUL, Weather, World, secs};

fn cluster(seed: u64, weather: Weather, nodes: usize) -> World {
    let mut world = World::new(seed, weather);
    (0..nodes).for_each(|_| _ = world.add());
    world.run(secs(if weather.request_lost > 0 { 90 } else { 10 }));
    world
}

#[test]
fn fifty_nodes_that_start_at_once_get_fifty_subnets() {
    for seed in 0..5 {
        let world = cluster(seed, FAIR, 50);
        world.check_converged();
        assert_eq!(world.store.subnets().len(), 50);
    }
}

#[test]
fn the_last_subnets_go_to_those_that_ask_and_the_next_node_waits() {
    let mut world = World::new(1, FAIR);
    world
        .store
        .configure(r#"{"Network":"10.61.0.0/18","Backend":{"Type":"vxlan"}}"#);
    // 64 of them, without the first.
    (0..63).for_each(|_| _ = world.add());
    world.run(secs(20));
    world.check_converged();
    let late = world.add();
    world.run(secs(20));
    assert!(world.nodes[late].acquired.is_none());
    assert!(
        world
            .alarms(late)
            .contains("all subnets from 10.61.1.0/24 to 10.61.63.0/24 are taken"),
        "{}",
        world.alarms(late)
    );
    world.tell(5, Event::Stop { release: true });
    world.run(secs(5));
    assert!(world.nodes[5].stopped);
    world.check_converged();
    assert!(world.nodes[late].ready);
}

#[test]
fn lost_and_late_answers_leave_one_lease_for_each_node() {
    for seed in 10..30 {
        let mut world = cluster(seed, FOUL, 20);
        world.weather = FAIR;
        world.run(secs(400));
        world.check_converged();
        assert_eq!(world.store.subnets().len(), 20, "{:?}", world.store.subnets());
    }
}

#[test]
fn a_store_that_is_cut_off_takes_nothing_away() {
    let mut world = cluster(2, FAIR, 10);
    (0..10).for_each(|id| world.cut_off(id, true));
    world.run(secs(600));
    for node in &world.nodes {
        assert_eq!((node.peers.len(), node.gone), (9, 0));
        assert!(!node.cluster.status(world.now).connected);
        assert!(world.alarms(node.id).contains("timeout"));
    }
    // It asks with some patience meanwhile.
    let lists = world.nodes[0].asked.len();
    assert!(lists < 600, "{lists} requests in 10 minutes");
    (0..10).for_each(|id| world.cut_off(id, false));
    world.run(secs(20));
    world.check_converged();
    assert_eq!(world.alarms(0), "");
}

#[test]
fn a_node_that_starts_with_its_store_down_runs_as_remembered() {
    let mut world = cluster(3, FAIR, 5);
    world.run(secs(5));
    let key = world.key(0);
    world.kill(0);
    world.cut_off(0, true);
    world.start(0);
    // At once, before the store answered.
    assert_eq!((world.key(0), world.nodes[0].peers.len()), (key.clone(), 4));
    assert!(!world.nodes[0].ready);
    world.run(secs(60));
    assert_eq!(world.nodes[0].gone, 0);
    world.nodes[0].public_ip = "198.18.7.7".parse().unwrap();
    world.kill(0);
    world.start(0);
    world.cut_off(0, false);
    world.run(secs(10));
    world.check_converged();
    assert_eq!(world.key(0), key, "it survives a new address");
    assert_eq!(world.store.subnets().len(), 5);
}

#[test]
fn an_identity_finds_its_lease_without_anything_remembered() {
    let mut world = cluster(4, FAIR, 5);
    let key = world.key(2);
    world.kill(2);
    world.nodes[2].disk = None;
    world.nodes[2].public_ip = "198.18.7.7".parse().unwrap();
    world.start(2);
    world.run(secs(10));
    world.check_converged();
    assert_eq!(world.key(2), key);
}

#[test]
fn peers_learn_a_new_address_within_a_second() {
    let mut world = cluster(5, FAIR, 5);
    world.nodes[1].public_ip = "198.18.9.9".parse().unwrap();
    let public_ip = world.nodes[1].public_ip;
    world.tell(
        1,
        Event::Address {
            public_ip,
            public_ip6: None,
        },
    );
    world.run(secs(1));
    world.check_converged();
}

#[test]
fn compaction_costs_one_list_and_nothing_stays_that_went() {
    let mut world = cluster(6, FAIR, 8);
    world.run(secs(30));
    world.cut_off(0, true);
    world.run(secs(5));
    world.tell(1, Event::Stop { release: true });
    world.run(secs(5));
    world.add();
    world.run(secs(5));
    world.store.compact();
    let before = world.nodes[0].asked.iter().filter(|a| **a == Ask::List).count();
    world.cut_off(0, false);
    world.run(secs(20));
    let after = world.nodes[0].asked.iter().filter(|a| **a == Ask::List).count();
    assert_eq!(after - before, 1, "{:?}", world.nodes[0].asked);
    assert_eq!(world.nodes[0].gone, 1);
    world.check_converged();
}

#[test]
fn a_wiped_store_takes_no_peer_away_and_is_filled_again() {
    // The same identity, as etcd makes it from the same settings, and another one; with little and much written before.
    for (seed, identity, long) in [(0, 7, true), (1, 8, true), (2, 7, false), (3, 8, false)] {
        let mut world = cluster(seed, FAIR, 20);
        if long {
            (0..200).for_each(|n| world.store.put(&format!("x{n}"), b"?", None, world.now));
            world.spread();
            world.run(secs(5));
        }
        world.store.wipe(identity);
        world.spread();
        world.run(secs(60));
        world.check_converged();
        for node in &world.nodes {
            assert_eq!(node.gone, 0, "node {} lost peers", node.id);
        }
        // A node that dies now is gone when its lease is over, not before.
        world.kill(3);
        world.run(secs(3600));
        assert_eq!(world.nodes[0].peers.len(), 19);
        world.run(secs(86_400));
        assert_eq!(world.nodes[0].peers.len(), 18);
        world.check_converged();
    }
}

#[test]
fn peers_of_a_wiped_store_that_never_come_back_go_when_their_leases_are_over() {
    let mut world = cluster(7, FAIR, 20);
    world.kill(4);
    world.kill(5);
    world.store.wipe(8);
    world.spread();
    world.run(secs(3600));
    assert!(world.nodes.iter().all(|n| n.gone == 0));
    assert!(
        world.alarms(0).contains("2 leases of before are carried on"),
        "{}",
        world.alarms(0)
    );
    world.run(secs(90_000));
    assert_eq!((world.nodes[0].peers.len(), world.nodes[0].gone), (17, 2));
    assert_eq!(world.alarms(0), "");
}

#[test]
fn a_day_of_renewals() {
    let mut world = cluster(8, FAIR, 5);
    let before = world.store.revision();
    world.run(secs(3 * 86_400));
    world.check_converged();
    let writes = world.store.revision() - before;
    // After 23 hours, three times each.
    assert_eq!(writes, 15);
    // And a list about every five minutes, each of which may ask for no more.
    let asked = world.nodes[0].asked.len();
    assert!((800..1_200).contains(&asked), "{asked} requests in three days");
    assert!(world.nodes.iter().all(|n| n.gone == 0));
}

#[test]
fn a_renewal_that_lies_is_found_out() {
    let mut world = cluster(9, FAIR, 3);
    world.store.lies = true;
    world.nodes[0].public_ip = "198.18.9.9".parse().unwrap();
    let public_ip = world.nodes[0].public_ip;
    world.tell(
        0,
        Event::Address {
            public_ip,
            public_ip6: None,
        },
    );
    world.run(secs(60));
    world.store.lies = false;
    world.run(secs(300));
    world.check_converged();
}

#[test]
fn an_own_lease_that_is_revoked_is_taken_again() {
    let mut world = cluster(10, FAIR, 4);
    let key = world.key(0);
    let lease = world.store.entry(&key).unwrap().lease;
    world.store.revoke(lease);
    world.spread();
    world.run(secs(2));
    world.check_converged();
    assert_eq!(world.key(0), key);
}

#[test]
fn who_took_the_subnet_is_named_and_it_is_taken_again_when_free() {
    let mut world = cluster(11, FAIR, 4);
    let key = world.key(0);
    let value = br#"{"PublicIP":"198.18.66.6","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#;
    world.store.put(&key, value, None, world.now);
    world.spread();
    world.run(secs(2));
    assert!(!world.nodes[0].allocate, "no new pods");
    assert_eq!(
        (world.key(0), world.nodes[0].peers.len()),
        (key.clone(), 3),
        "and nothing else changes"
    );
    assert!(world.alarms(0).starts_with(&format!(
        "this node's subnet {key} belongs to the node at 198.18.66.6"
    )));
    assert!(
        world.nodes[1]
            .peers
            .values()
            .any(|p| p.underlay == "198.18.66.6:8472".parse().unwrap())
    );
    world.run(secs(600));
    assert!(!world.nodes[0].allocate);
    world.store.delete(&key);
    world.spread();
    world.run(secs(2));
    world.check_converged();
    assert_eq!(world.alarms(0), "");
}

#[test]
fn reservations_stay_reservations() {
    let mut world = cluster(12, FAIR, 2);
    let key = world.key(0);
    let value = world.store.entry(&key).unwrap().value.clone();
    world.store.put(&key, &value, None, world.now);
    world.spread();
    let public_ip = "198.18.9.9".parse().unwrap();
    world.run(secs(5));
    world.nodes[0].public_ip = public_ip;
    world.tell(
        0,
        Event::Address {
            public_ip,
            public_ip6: None,
        },
    );
    world.run(secs(2 * 86_400));
    world.check_converged();
    assert_eq!(world.store.entry(&key).unwrap().lease, 0);
    let own = world.nodes[0]
        .cluster
        .status(world.now)
        .leases
        .into_iter()
        .find(|l| l.own)
        .unwrap();
    assert!(own.reservation && own.expires_s.is_none());
}

#[test]
fn many_deletions_at_once_wait_for_a_second_list() {
    let mut world = cluster(13, FAIR, 1);
    let value = |n: u8| {
        format!(
            r#"{{"PublicIP":"198.18.66.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:{n:02x}"}}}}"#
        )
    };
    let own = world.key(0);
    let keys: Vec<String> = (1..=20)
        .map(|n| format!("10.61.{n}.0-24"))
        .filter(|k| *k != own)
        .collect();
    for (n, key) in keys.iter().enumerate() {
        world
            .store
            .put(key, value(n as u8 + 1).as_bytes(), Some(86_400), world.now);
    }
    world.spread();
    world.run(secs(60));
    let all = keys.len();
    assert_eq!(world.nodes[0].peers.len(), all);
    world.store.delete(&keys[0]);
    world.spread();
    world.run(secs(1));
    assert_eq!(world.nodes[0].peers.len(), all - 1, "one alone is proof");
    world.run(secs(60));
    world.store.delete_together(&keys[1..10]);
    world.spread();
    world.run(secs(4));
    assert_eq!(world.nodes[0].peers.len(), all - 1, "nine at once are not");
    assert!(
        world
            .alarms(0)
            .contains("9 leases are gone from the store at once")
    );
    // One of them comes back in time.
    world
        .store
        .put(&keys[1], value(2).as_bytes(), Some(86_400), world.now);
    world.spread();
    world.run(secs(4));
    assert_eq!((world.nodes[0].peers.len(), world.nodes[0].gone), (all - 9, 9));
    assert_eq!(world.alarms(0), "");
}

#[test]
fn leases_that_run_out_while_their_nodes_cannot_reach_the_store_are_taken_again() {
    let mut world = cluster(20, FAIR, 10);
    let keys: Vec<String> = (0..10).map(|id| world.key(id)).collect();
    (0..9).for_each(|id| world.cut_off(id, true));
    world.run(secs(25 * 3600));
    assert_eq!(
        world.store.subnets().len(),
        1,
        "all but that of the node that reaches it"
    );
    for node in &world.nodes[..9] {
        assert_eq!(
            (node.peers.len(), node.gone),
            (9, 0),
            "who hears nothing changes nothing"
        );
    }
    assert!(
        world.alarms(0).contains("this node's lease ran out"),
        "{}",
        world.alarms(0)
    );
    (0..9).for_each(|id| world.cut_off(id, false));
    world.run(secs(30));
    world.check_converged();
    assert_eq!(keys, (0..10).map(|id| world.key(id)).collect::<Vec<_>>());
}

#[test]
fn a_process_that_stood_still_looks_before_it_writes() {
    let mut world = cluster(14, FAIR, 3);
    let key = world.key(0);
    // Its renewal falls into the time it stands still, and the lease is over and somebody else's when it goes on.
    let value = br#"{"PublicIP":"198.18.66.6","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:5a:91:2c:07:d3"}}"#;
    world.run(secs(82_000));
    world.nodes[0].frozen = true;
    world.nodes[0].asked.clear();
    world.run(secs(600));
    world.store.delete(&key);
    world.store.put(&key, value, Some(86_400), world.now);
    world.spread();
    world.run(secs(600));
    world.unfreeze(0);
    world.run(secs(10));
    let writes = world.nodes[0]
        .asked
        .iter()
        .filter(|a| !matches!(a, Ask::List | Ask::Watch { .. } | Ask::TimeToLive { .. }));
    assert_eq!(writes.count(), 0, "{:?}", world.nodes[0].asked);
    assert_eq!(world.nodes[0].asked.first(), Some(&Ask::List));
    assert!(!world.nodes[0].allocate);
    assert!(world.alarms(0).contains("belongs to the node at 198.18.66.6"));
}

#[test]
fn a_member_that_lags_changes_nothing() {
    let mut world = cluster(15, FAIR, 6);
    world.store.freeze();
    world.add();
    // The new node sees the old state at first, and loses a race or two by it.
    world.run(secs(3));
    world.nodes[0].public_ip = "198.18.9.9".parse().unwrap();
    let public_ip = world.nodes[0].public_ip;
    world.tell(
        0,
        Event::Address {
            public_ip,
            public_ip6: None,
        },
    );
    world.run(secs(1));
    let lists = world.store.lists;
    for id in 0..6 {
        // Each lists soon after it got its connection back.
        world.cut_off(id, true);
        world.cut_off(id, false);
    }
    world.run(secs(320));
    assert!(world.store.lists > lists + 6);
    world.store.thaw();
    world.run(secs(320));
    world.check_converged();
    assert!(world.nodes.iter().all(|n| n.gone == 0));
}

#[test]
fn hostile_keys_and_values_are_named_and_harm_nobody() {
    let mut world = cluster(16, FAIR, 5);
    let own = world.key(0);
    let good = String::from_utf8(world.store.entry(&own).unwrap().value.clone()).unwrap();
    let values = [
        "",
        "{}",
        "null",
        "\u{0}",
        "[[[[[[[[",
        &"9".repeat(1 << 20),
        r#"{"PublicIP":"300.1.1.1","BackendType":"vxlan"}"#,
        r#"{"PublicIP":"198.18.66.6","BackendType":"host-gw"}"#,
        &good.replace("\"VNI\":1", "\"VNI\":2"),
        &good.replace("\"VNI\":1", "\"VNI\":4294967295"),
        &good,
    ];
    let mut n = 0;
    for key in [
        "x",
        "10.61.200.0-24",
        "10.61.200.1-24",
        "10.99.0.0-24",
        "0.0.0.0-0",
        "10.61.0.0-16",
        &own,
        "../config",
        "10.61.201.0-24&fd00::-64",
    ] {
        for value in values {
            n += 1;
            world.store.put(
                &format!("{key}{}", if n % 7 == 0 { "/x" } else { "" }),
                value.as_bytes(),
                None,
                world.now,
            );
            world.spread();
            world.run(secs(1));
        }
    }
    for id in 1..5 {
        let status = world.nodes[id].cluster.status(world.now);
        assert!(
            status.skipped_total >= 5 && status.skipped.len() <= 32,
            "{status:?}"
        );
        // All others are there as before.
        let others = (1..5).filter(|o| *o != id);
        for other in others {
            let net = world.nodes[other].acquired.as_ref().unwrap().subnet.net4;
            assert!(world.nodes[id].peers.values().any(|p| p.subnet4 == Some(net)));
        }
    }
    for key in world.store.subnets() {
        if !(0..5).any(|id| world.key(id) == key) {
            world.store.delete(&key);
        }
    }
    world.spread();
    world.run(secs(400));
    world.check_converged();
    assert_eq!(world.alarms(0), "");
    assert_eq!(world.nodes[0].cluster.status(world.now).skipped_total, 0);
}

#[test]
fn whatever_happens_nodes_come_together_again() {
    for seed in 100..130 {
        let mut world = cluster(seed, FOUL, 12);
        let mut cut = Vec::new();
        for _ in 0..40 {
            let id = world.rng.below(world.nodes.len() as u64) as usize;
            match world.rng.below(10) {
                0 => {
                    world.cut_off(id, true);
                    cut.push(id);
                }
                1 => {
                    if let Some(id) = cut.pop() {
                        world.cut_off(id, false);
                    }
                }
                2 if world.nodes[id].up => {
                    world.kill(id);
                }
                3 if !world.nodes[id].up && !world.nodes[id].stopped => world.start(id),
                4 => world.store.compact(),
                5 => {
                    let cluster = 7 + world.rng.below(2);
                    world.store.wipe(cluster);
                }
                6 => {
                    if let Some(m) = &world.nodes[id].acquired {
                        let key = m.subnet.to_string();
                        world.store.delete(&key);
                    }
                }
                7 => world.store.freeze(),
                8 => world.store.thaw(),
                _ if world.nodes[id].up && !world.nodes[id].frozen => {
                    let ip = u32::from(world.nodes[id].public_ip) ^ 0x100;
                    world.nodes[id].public_ip = ip.into();
                    let public_ip = ip.into();
                    world.tell(
                        id,
                        Event::Address {
                            public_ip,
                            public_ip6: None,
                        },
                    );
                }
                _ => {}
            }
            world.spread();
            let time = world.rng.below(20);
            world.run(secs(time));
        }
        world.store.thaw();
        world.weather = FAIR;
        for id in 0..world.nodes.len() {
            world.cut_off(id, false);
            if !world.nodes[id].up {
                world.start(id);
            }
        }
        world.run(secs(700));
        world.check_converged();
    }
}

#[test]
fn the_configuration_may_come_late_and_wrong() {
    let mut world = World::new(17, FAIR);
    world.store = store::Store::new();
    world.add();
    world.run(secs(60));
    assert!(
        world
            .alarms(0)
            .contains("there is no network configuration at /coreos.com/network/config"),
        "{}",
        world.alarms(0)
    );
    world.store.configure("{\"Network\": 5}");
    world.spread();
    world.run(secs(5));
    let alarms = world.alarms(0);
    assert!(
        alarms.contains("is not usable") && alarms.lines().count() == 1,
        "{alarms}"
    );
    world
        .store
        .configure(r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan"}}"#);
    world.spread();
    world.run(secs(5));
    world.check_converged();
    assert_eq!(world.alarms(0), "");
    world
        .store
        .configure(r#"{"Network":"10.61.0.0/16","Backend":{"Type":"vxlan","VNI":9}}"#);
    world.spread();
    world.run(secs(5));
    assert!(
        world.alarms(0).contains("VNI 9 instead of 1; restart this node"),
        "{}",
        world.alarms(0)
    );
    world.kill(0);
    world.start(0);
    world.run(secs(5));
    assert_eq!(world.alarms(0), "", "a restart applies it");
    assert_eq!(world.nodes[0].acquired.as_ref().unwrap().network.vni, 9);
}

#[test]
fn nodes_in_a_dual_stack_network_share_neither_subnet() {
    let mut world = World::new(18, FAIR);
    world.store.configure(
        r#"{"EnableIPv6":true,"Network":"10.61.0.0/18","IPv6Network":"fd61::/56","Backend":{"Type":"vxlan"}}"#,
    );
    (0..40).for_each(|_| _ = world.add());
    world.run(secs(30));
    world.check_converged();
    let mut six: Vec<_> = world
        .nodes
        .iter()
        .map(|n| n.acquired.as_ref().unwrap().subnet.net6.unwrap())
        .collect();
    six.sort();
    six.dedup();
    assert_eq!(six.len(), 40);
}

#[test]
fn five_thousand_leases() {
    let mut world = World::new(19, FAIR);
    world
        .store
        .configure(r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#);
    let value = |n: u32| {
        let ip = std::net::Ipv4Addr::from(0xc633_0000 + n);
        format!(
            r#"{{"PublicIP":"{ip}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"0e:5a:00:00:{:02x}:{:02x}"}}}}"#,
            n >> 8,
            n & 255
        )
    };
    let key = |n: u32| format!("{}-24", std::net::Ipv4Addr::from(0x0a01_0000 + (n << 8)));
    for n in 0..5_000 {
        world
            .store
            .put(&key(n), value(n).as_bytes(), Some(86_400), world.now);
    }
    world.add();
    world.run(secs(5));
    assert_eq!(world.nodes[0].peers.len(), 5_000);
    // Renewals change nothing; a change is told alone.
    for n in 0..500 {
        world
            .store
            .put(&key(n), value(n).as_bytes(), Some(86_400), world.now);
        world.spread();
    }
    world
        .store
        .put(&key(7), value(5_007).as_bytes(), Some(86_400), world.now);
    world.store.delete(&key(8));
    world.spread();
    world.run(secs(1));
    assert_eq!((world.nodes[0].peers.len(), world.nodes[0].gone), (4_999, 1));
    assert_eq!(world.nodes[0].cluster.status(world.now).leases.len(), 5_000);
    let kept = world.nodes[0].cluster.remember();
    assert_eq!(kept.peers.len(), 4_999);
}
