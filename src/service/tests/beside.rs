//! Connections straight to a backend, from the port of one through a virtual address; and what must not go on.

use super::*;

const VIP: &str = "10.96.0.1:80";
const A: &str = "10.244.2.10:8080";
const B: &str = "10.244.3.10:8080";
const CLIENT: &str = "10.244.1.2:5000";

fn one() -> Services {
    let mut s = services(Limits::default());
    set(&mut s, frontend(VIP, Transport::Tcp), &Spec::of(&[A]), at(0));
    s
}

/// The client sends straight to the backend.
fn direct(s: &mut Services, flags: u8, now: Instant) -> Result<(), DropReason> {
    let f = packet(Transport::Tcp, end(CLIENT), end(A), flags, b"", Check::Complete);
    s.pass_by(&f, &Headers::parse(&f).unwrap(), now)
}

fn by_vip(s: &mut Services, flags: u8) {
    send(s, Transport::Tcp, CLIENT, VIP, flags, at(0)).unwrap();
}

fn hear(s: &mut Services, flags: u8, now: Instant) -> Option<SocketAddr> {
    answer(s, Transport::Tcp, end(A), CLIENT, flags, now)
}

#[test]
fn a_client_that_is_done_with_the_virtual_address_may_go_straight() {
    let mut s = one();
    connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    assert_eq!(direct(&mut s, SYN, at(1)), Err(DropReason::PortTaken));
    by_vip(&mut s, FIN | ACK);
    // Only a client that begins shows that it is done.
    assert_eq!(direct(&mut s, ACK, at(1)), Err(DropReason::PortTaken));
    assert_eq!(direct(&mut s, SYN, at(1)), Ok(()));
    assert_eq!(hear(&mut s, SYN | ACK, at(1)), None);
    assert_eq!(direct(&mut s, ACK, at(1)), Ok(()));
    assert!(s.is_idle());
    assert_eq!(
        send(&mut s, Transport::Tcp, CLIENT, VIP, ACK, at(1)),
        Err(Verdict::Reset)
    );
}

#[test]
fn a_connection_that_nobody_goes_on_to_open_makes_way() {
    let mut s = one();
    by_vip(&mut s, SYN);
    assert_eq!(direct(&mut s, SYN, at(4)), Err(DropReason::PortTaken));
    assert_eq!(direct(&mut s, SYN, at(5)), Ok(()));
    assert!(s.is_idle());
    let seen = s.describe(&frontend(VIP, Transport::Tcp)).unwrap();
    assert_eq!((seen.open, seen.failed), (0, 1));
}

#[test]
fn a_refusal_of_what_went_straight_gets_there() {
    let mut s = one();
    connect(&mut s, CLIENT, VIP, at(0)).unwrap();
    by_vip(&mut s, RST);
    assert_eq!(direct(&mut s, SYN, at(1)), Ok(()));
    assert_eq!(
        hear(&mut s, RST | ACK, at(1)),
        None,
        "it is no answer of the Service"
    );
    assert!(s.is_idle());
}

/// The backend knows the port: it challenges, and the client's reset is kept from it only where the next try can be
/// another one's.
#[test]
fn a_reset_is_kept_only_where_the_client_can_be_masked() {
    for gateway in [None, Some(Ipv4Addr::new(10, 244, 1, 1))] {
        let mut s = Services::new(Limits::default(), 7, gateway, None);
        set(&mut s, frontend(VIP, Transport::Tcp), &Spec::of(&[A]), at(0));
        by_vip(&mut s, SYN);
        assert!(hear(&mut s, ACK, at(0)).is_some());
        let sent = send(&mut s, Transport::Tcp, CLIENT, VIP, RST, at(0));
        let wanted = match gateway {
            Some(_) => Err(Verdict::Drop(DropReason::UnknownConnection)),
            None => Ok(end(A)),
        };
        assert_eq!(sent, wanted);
    }
}

/// Maglev would hand them to whoever is there now.
#[test]
fn connections_of_a_backend_that_left_are_reset_for_good_whatever_the_scheduler() {
    let f = frontend(VIP, Transport::Tcp);
    for scheduler in [
        Scheduler::Random,
        Scheduler::RoundRobin,
        Scheduler::LeastConnections,
        Scheduler::Maglev,
    ] {
        for (closed_first, then) in [(true, [A]), (false, [A]), (true, [B]), (false, [B])] {
            let mut s = services(Limits::default());
            set(&mut s, f, &Spec::by(scheduler, &[A]), at(0));
            // More than a change closes by itself.
            let client = |n: u32| format!("10.244.1.2:{}", 5000 + n);
            for n in 0..600 {
                connect(&mut s, &client(n), VIP, at(0)).unwrap();
            }
            set(&mut s, f, &Spec::by(scheduler, &[]), at(0));
            if closed_first {
                while s.turn(at(0)) {}
            }
            set(&mut s, f, &Spec::by(scheduler, &then), at(0));
            for later in [1, 2] {
                for n in 0..600 {
                    let sent = send(&mut s, Transport::Tcp, &client(n), VIP, ACK, at(later));
                    assert_eq!(sent, Err(Verdict::Reset), "{scheduler:?} {n}");
                }
            }
            connect(&mut s, &client(0), VIP, at(3)).unwrap();
        }
    }
}

#[test]
fn what_is_remembered_of_ended_connections_goes_by_itself() {
    let mut s = services(Limits::default());
    let f = frontend(VIP, Transport::Tcp);
    set(&mut s, f, &Spec::by(Scheduler::Maglev, &[A]), at(0));
    for n in 0..600 {
        connect(&mut s, &format!("10.244.1.2:{}", 5000 + n), VIP, at(0)).unwrap();
    }
    s.kill(&ConnectionFilter::default());
    assert_eq!(s.next_deadline(), Some(at(2 * 3600 + 240)));
    while s.turn(at(2 * 3600 + 240)) {}
    assert_eq!(s.next_deadline(), None);
    assert_eq!(s.ended.memory(), 0);
}
