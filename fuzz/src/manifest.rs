//! What people write of Services, and whoever can write into the folder or the store. Anything is understood or refused;
//! what is understood is put into a catalogue, one text after the other, with pods that come and go.

use super::input::Input;
use podwire::control::services::manifest::{Source, read};
use podwire::control::services::{Catalogue, PodFacts, PodId, Rules, Update};
use podwire::model::{Frontend, PodState, ServiceChange, ServiceName, ServiceRecords, VirtualServer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The longest sentence a person is told: several words of somebody else's are quoted, each of 40 characters.
const SENTENCE: usize = 2000;

/// `[pods, u8] [text] (0xff [text])*`
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let pods = input.u8();
    let (mut worker, mut catalogue) = (Worker::default(), Catalogue::new(rules()));
    let mut fresh = Catalogue::new(rules());
    let texts: Vec<&[u8]> = input.rest().split(|b| *b == 0xff).take(4).collect();
    for (n, bytes) in texts.iter().enumerate() {
        let text = String::from_utf8_lossy(bytes);
        // The second replaces the first, the others stand beside it.
        let source = Source::File(format!("{}.yaml", n / 2).into());
        let found = read(&source, &text);
        for mistake in &found.mistakes {
            is_told(&mistake.to_string());
        }
        for manifest in &found.manifests {
            let again = read(&source, &manifest.json.to_string());
            assert_eq!(again.mistakes, [], "{}", manifest.json);
            assert_eq!(again.manifests[0].object, manifest.object);
        }
        let objects: Vec<_> = found
            .manifests
            .into_iter()
            .map(|m| (m.object, m.document))
            .collect();
        catalogue.set_source(&source, objects.clone());
        if n % 2 == 1 || n + 1 == texts.len() {
            fresh.set_source(&source, objects);
        }
        let pod = |n: u8| (pods >> n & 1 == 1).then(|| facts(n));
        for k in 0..4 {
            let name = PodId {
                name: format!("p-{k}").parse().expect("a name"),
                node: "n1".parse().expect("a name"),
            };
            catalogue.set_pod(&name, pod(k).filter(|_| n > 0));
            if n + 1 == texts.len() {
                catalogue.set_pod(&name, pod(k));
                fresh.set_pod(&name, pod(k));
            }
        }
        worker.take(catalogue.update());
    }
    let mut other = Worker::default();
    other.take(fresh.update());
    assert_eq!(worker.servers, other.servers);
    assert_eq!(worker.names, other.names);
    assert_eq!(
        catalogue.problems().collect::<Vec<_>>(),
        fresh.problems().collect::<Vec<_>>()
    );
    for problem in catalogue.problems() {
        is_told(&problem);
    }
    for frontend in worker.servers.keys() {
        let pods = rules().network.iter().any(|n| n.contains(&frontend.at.ip()));
        assert!(!pods && frontend.at.port() != 0, "{frontend}");
    }
    for service in catalogue.list() {
        assert_eq!(catalogue.describe(&service.name).as_ref(), Some(&service));
    }
}

#[derive(Default)]
struct Worker {
    servers: BTreeMap<Frontend, Arc<VirtualServer>>,
    names: BTreeMap<ServiceName, ServiceRecords>,
}

impl Worker {
    fn take(&mut self, update: Update) {
        for change in update.services {
            match change {
                ServiceChange::Set(frontend, server) => {
                    let sorted = server.backends.is_sorted_by_key(|b| b.at);
                    assert!(
                        sorted
                            && server
                                .backends
                                .iter()
                                .all(|b| b.at.is_ipv4() == frontend.at.is_ipv4())
                    );
                    self.servers.insert(frontend, server);
                }
                ServiceChange::Gone(frontend) => {
                    assert!(self.servers.remove(&frontend).is_some(), "{frontend}")
                }
            }
        }
        for (name, records) in update.names {
            match records {
                Some(records) => drop(self.names.insert(name, records)),
                None => drop(self.names.remove(&name)),
            }
        }
    }
}

fn rules() -> Rules {
    let nets = |all: &[&str]| all.iter().map(|n| n.parse().expect("a net")).collect();
    Rules {
        node: "n1".parse().expect("a name"),
        ranges: nets(&["10.96.0.0/24", "fd00:10:96::/120"]),
        node_ports: 30_000..=30_100,
        own: nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
        network: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
    }
}

fn facts(n: u8) -> PodFacts {
    PodFacts {
        node: format!("n{}", 1 + n % 2).parse().expect("a name"),
        labels: [("app".into(), ["web", "db"][usize::from(n / 2)].into())].into(),
        ip4: Some([10, 244, 1 + n % 2, 2 + n].into()),
        ip6: None,
        state: PodState {
            ready: n != 1,
            draining: n == 2,
        },
        ports: vec!["http:8080".parse().expect("a port")],
    }
}

/// Lines for people, and nothing that a terminal obeys.
fn is_told(sentence: &str) {
    assert!(!sentence.is_empty() && sentence.len() < SENTENCE, "{sentence:?}");
    assert!(!sentence.chars().any(char::is_control), "{sentence:?}");
}

/// Inputs to begin with.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let service =
        |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: '', port: 8080}]\nendpoints:\n- {addresses: [10.244.1.2], conditions: {ready: true, serving: true, terminating: false}, hostname: a, nodeName: n1}\n- {addresses: [192.0.2.9], conditions: {ready: false}}\n";
    let seed = |pods: u8, texts: &[&str]| {
        let joined: Vec<&[u8]> = texts.iter().map(|t| t.as_bytes()).collect();
        [&[pods], joined.join(&0xff).as_slice()].concat()
    };
    vec![
        (
            "plain",
            seed(
                15,
                &[&service(
                    "{selector: {app: web}, ports: [{port: 80, targetPort: http}]}",
                )],
            ),
        ),
        (
            "headless",
            seed(
                15,
                &[&service(
                    "{clusterIP: None, selector: {app: db}, publishNotReadyAddresses: true, ports: [{name: pg, port: 5432}]}",
                )],
            ),
        ),
        (
            "dual",
            seed(
                3,
                &[&service(
                    "{ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4], ports: [{port: 53, protocol: UDP}]}",
                )],
            ),
        ),
        (
            "node-port",
            seed(
                3,
                &[&service(
                    "{type: NodePort, externalTrafficPolicy: Local, healthCheckNodePort: 30001, externalIPs: [192.0.2.1], sessionAffinity: ClientIP, ports: [{port: 80, nodePort: 30000}]}",
                )],
            ),
        ),
        (
            "alias",
            seed(
                0,
                &[&service("{type: ExternalName, externalName: db.example.org}")],
            ),
        ),
        (
            "slices",
            seed(
                1,
                &[slice, &service("{clusterIP: 10.96.0.10, ports: [{port: 80}]}")],
            ),
        ),
        (
            "twice",
            seed(
                1,
                &[
                    &service("{clusterIP: 10.96.0.10, ports: [{port: 80}]}"),
                    &service("{ports: [{port: 81}]}"),
                    &service("{clusterIP: 10.96.0.10, ports: [{port: 82}]}"),
                ],
            ),
        ),
        (
            "list",
            seed(
                1,
                &[
                    "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1}]}}\n- {apiVersion: v1, kind: Secret}\n",
                ],
            ),
        ),
        (
            "json",
            seed(
                1,
                &[
                    r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web","annotations":{"podwire/scheduler":"maglev"}},"spec":{"ports":[{"port":80}]}}"#,
                ],
            ),
        ),
        ("aliases", seed(0, &["a: &a [x]\nb: *a\n"])),
    ]
}
