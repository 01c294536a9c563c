//! What a store holds, which everybody who reaches it can write: keys and values of leases and the network's
//! configuration, and the file `subnet.env` beside them. Anything is understood or refused; what is understood prints
//! to bytes that mean the same.

use super::input::Input;
use podwire::control::flannel::{Abilities, LeaseValue, Network, SubnetEnv, SubnetKey, ValueError};
use podwire::model::NodeName;

/// The longest sentence a person is told about a key or value: a part of 40 characters is quoted, each escaped.
const SENTENCE: usize = 600;

/// `[which, u8] [bytes]`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let which = input.u8();
    let bytes = input.rest();
    match which & 3 {
        0 => key(bytes),
        1 => value(bytes),
        2 => network(bytes),
        _ => env(bytes),
    }
}

fn key(bytes: &[u8]) {
    match SubnetKey::of_etcd_key(bytes) {
        Ok(key) => {
            assert_eq!(key.net4, key.net4.trunc());
            assert!(key.net6.is_none_or(|n| n == n.trunc() && n.prefix_len() < 128));
            let whole = key.etcd_key("/coreos.com/network");
            assert!(whole.starts_with("/coreos.com/network/subnets/"));
            assert_eq!(SubnetKey::of_etcd_key(whole.as_bytes()), Ok(key));
            // Only the end counts, whatever stands before it.
            let before = [b"\n/x\xff-", bytes].concat();
            assert_eq!(SubnetKey::of_etcd_key(&before), Ok(key));
        }
        Err(e) => is_told(&e.to_string()),
    }
}

fn value(bytes: &[u8]) {
    match LeaseValue::read(bytes) {
        Ok(value) => {
            let written = value.write();
            assert_eq!(LeaseValue::read(&written).as_ref(), Ok(&value), "{written:?}");
            assert!(!value.public_ip.is_unspecified() && !value.public_ip.is_multicast());
            assert_eq!(value.public_ip6.is_some(), value.vtep6.is_some());
            for (vni, mac) in [Some(value.vtep), value.vtep6].into_iter().flatten() {
                assert!(vni < 1 << 24 && !mac.is_multicast() && mac.0 != [0; 6]);
            }
            if let Some(own) = value.podwire {
                assert!(own.name.is_empty() || own.name.parse::<NodeName>().is_ok());
                assert!(own.wire.len() <= Abilities::MAX_WIRE);
                let texts = own.wire.iter().chain([&own.id, &own.version]);
                for text in texts {
                    assert!(text.len() <= Abilities::MAX_TEXT && text.bytes().all(|b| b.is_ascii_graphic()));
                }
            }
        }
        Err(e @ ValueError::Malformed(_)) => is_told(&e.to_string()),
        Err(ValueError::Backend(name)) => assert!(name != "vxlan" && name.chars().count() <= 32),
    }
}

fn network(bytes: &[u8]) {
    let (network, notes) = match Network::parse_with_notes(bytes) {
        Ok(read) => read,
        Err(e) => return is_told(&e.to_string()),
    };
    for note in notes {
        is_told(&note);
    }
    assert_eq!(Network::parse(&network.write()).as_ref(), Ok(&network));
    assert!(network.vni < 1 << 24 && network.port > 0);
    let range = network.range4;
    assert!(range.fits(range.min) && range.fits(range.max) && range.count() >= 1);
    let four = range.free([range.min], 3);
    assert_eq!(four.len(), 3.min(range.count() as usize - 1));
    let six = network.range6.map(|range| {
        assert!(range.fits(range.min) && range.fits(range.max) && range.count() >= 1);
        assert!(range.free([range.net], 100).is_empty());
        range.free([], 1)[0]
    });
    let key = SubnetKey {
        net4: range.min,
        net6: six,
    };
    assert!(network.fits(&key) && network.contains(&key));
    assert_eq!(key.to_string().parse(), Ok(key), "what is leased has a key");
}

fn env(bytes: &[u8]) {
    match SubnetEnv::parse(&String::from_utf8_lossy(bytes)) {
        Ok(env) => {
            let printed = env.to_string();
            assert_eq!(SubnetEnv::parse(&printed).as_ref(), Ok(&env), "{printed}");
            assert!(
                env.key()
                    .is_none_or(|k| Some(k.net4) == env.subnet4.map(|n| n.trunc()))
            );
        }
        Err(e) => is_told(&e.to_string()),
    }
}

/// One line for people, and nothing that a terminal obeys.
fn is_told(sentence: &str) {
    assert!(!sentence.is_empty() && sentence.len() < SENTENCE, "{sentence:?}");
    assert!(!sentence.chars().any(char::is_control), "{sentence:?}");
}
