//! What a container runtime's plugin asks of a node.

use super::*;
use crate::api::gone;
use crate::model::{Attachment, AttachmentFilter};

fn named(container: &str) -> Attachment {
    Attachment {
        network: "pods".into(),
        container: container.into(),
        ifname: "eth0".into(),
        namespace: Some((4, 4_026_532_000)),
        mounts: None,
        uid: None,
    }
}

fn attached(client: &mut Client, pod: &str, container: &str) -> PodInfo {
    let request = AttachRequest {
        attachment: Some(named(container)),
        aliases: vec!["also".into()],
        ..want(pod)
    };
    plan(client, request).unwrap();
    commit(client, &[tap().as_fd()]).unwrap()
}

fn listed(client: &mut Client, filter: AttachmentFilter) -> Vec<String> {
    match client.call(&Request::Attachments { filter }).unwrap() {
        Reply::Pods { pods } => pods.iter().map(|p| p.pod.name.clone()).collect(),
        other => panic!("{other:?}"),
    }
}

fn released(client: &mut Client, attachment: &Attachment) -> bool {
    let attachment = attachment.clone();
    match client.call(&Request::Release { attachment }).unwrap() {
        Reply::Detached { existed } => existed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_goes_by_what_its_runtime_calls_it() {
    let node = Node::start();
    let mut client = node.client();
    let info = attached(&mut client, "a", "one");
    assert_eq!(
        (info.attachment, info.aliases),
        (Some(named("one")), vec!["also".into()])
    );
    attached(&mut client, "b", "two");
    plan(&mut client, want("c")).unwrap();
    commit(&mut client, &[tap().as_fd()]).unwrap();
    let all = AttachmentFilter::default();
    assert_eq!(listed(&mut client, all.clone()), ["a", "b"]);
    let of_two = AttachmentFilter {
        container: Some("two".into()),
        ..all
    };
    assert_eq!(listed(&mut client, of_two), ["b"]);
    // The same interface again, under another name.
    let again = AttachRequest {
        attachment: Some(named("one")),
        ..want("d")
    };
    let refused = plan(&mut client, again).unwrap_err().to_string();
    assert!(refused.contains("as pod default/a"), "{refused}");
    let nonsense = AttachRequest {
        attachment: Some(named("../x")),
        ..want("d")
    };
    assert!(plan(&mut client, nonsense).is_err());
    let alias = AttachRequest {
        aliases: vec!["a b".into()],
        ..want("d")
    };
    assert!(plan(&mut client, alias).unwrap_err().to_string().contains("a b"));
    assert!(!released(&mut client, &named("three")));
    assert!(released(&mut client, &named("one")));
    assert!(!released(&mut client, &named("one")));
    assert_eq!(node.pods(2)[0].pod.name, "b");
    node.stop();
}

#[test]
fn a_node_tells_whether_there_is_room() {
    let node = Node::start();
    let mut client = node.client();
    let free = |client: &mut Client| client.call(&Request::Vacancy);
    match free(&mut client).unwrap() {
        Reply::Vacancy { free, subnets } => assert_eq!((free, subnets.len()), (5, 2)),
        other => panic!("{other:?}"),
    }
    for n in 0..5 {
        attached(&mut client, &format!("p{n}"), &format!("c{n}"));
    }
    let full = free(&mut client).unwrap_err();
    assert!(
        matches!(
            full,
            ApiError::Refused {
                kind: ErrorKind::Exhausted,
                ..
            }
        ),
        "{full}"
    );
    // What rests is given when there is nothing else.
    assert!(released(&mut client, &named("c0")));
    assert!(matches!(free(&mut client), Ok(Reply::Vacancy { free: 1, .. })));
    node.stop();
}

#[test]
fn a_ping_is_answered_later() {
    let node = Node::start();
    let mut client = node.client();
    let info = attached(&mut client, "a", "one");
    let address = info.addresses[0];
    let pinged = client.call(&Request::Ping { address }).unwrap();
    assert!(matches!(pinged, Reply::Pinged { rtt_us: Some(42) }), "{pinged:?}");
    let address = [10, 244, 1, 6].into();
    let nobody = client.call(&Request::Ping { address }).unwrap_err();
    assert!(nobody.to_string().contains("no pod of this node"), "{nobody}");
    // One that was not sent says nothing of the pod.
    let address = attached(&mut client, "b", "two").addresses[0];
    let unsent = client.call(&Request::Ping { address }).unwrap_err();
    let ApiError::Refused { kind, message } = unsent else {
        panic!("{unsent}");
    };
    assert_eq!(kind, ErrorKind::Waiting);
    assert!(
        message.contains("default/b") && message.contains("try again"),
        "{message}"
    );
    node.stop();
}

#[test]
fn word_is_heeded_while_the_node_runs_and_is_not_about_a_later_pod() {
    let node = Node::start();
    let mut client = node.client();
    let socket = node.path("n1.sock");
    // The node takes it away by itself.
    attached(&mut client, "a", "one");
    gone::leave(&socket, &named("one")).unwrap();
    node.pods(0);
    // One that ends and comes again: the word is gone when the new one is there.
    let word = gone::leave(&socket, &named("two")).unwrap();
    attached(&mut client, "b", "two");
    assert!(!word.exists());
    let word = gone::leave(&socket, &named("two")).unwrap();
    released(&mut client, &named("two"));
    assert!(!word.exists());
    node.stop();
}
