use super::*;
use crate::control::services::manifest::read;
use crate::model::{Labels, NamedPort, PodState};
use proptest::prelude::*;
use std::time::Duration;

pub fn rules() -> Rules {
    let nets = |all: &[&str]| all.iter().map(|n| n.parse().unwrap()).collect();
    Rules {
        node: "n1".parse().unwrap(),
        ranges: nets(&["10.96.0.0/16", "fd00:10:96::/112"]),
        node_ports: 30_000..=32_767,
        own: nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
        network: nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
    }
}

fn source(name: &str) -> Source {
    Source::File(name.into())
}

fn objects(text: &str) -> Vec<(Object, usize)> {
    let found = read(&Source::Given, text);
    assert_eq!(found.mistakes, [], "{text}");
    found
        .manifests
        .into_iter()
        .map(|m| (m.object, m.document))
        .collect()
}

fn id(name: &str) -> PodId {
    PodId {
        name: name.parse().unwrap(),
        node: "n1".parse().unwrap(),
    }
}

fn pod(node: u8, last: u8, labels: &str) -> PodFacts {
    let labels = labels.split(',').filter_map(|l| l.split_once('='));
    PodFacts {
        node: format!("n{node}").parse().unwrap(),
        labels: labels.map(|(k, v)| (k.into(), v.into())).collect::<Labels>(),
        ip4: Some([10, 244, node, last].into()),
        ip6: Some(format!("fd00:10:244:{node}::{last}").parse().unwrap()),
        state: PodState::default(),
        ports: Vec::new(),
    }
}

/// What a worker knows that is told all updates.
#[derive(Default)]
struct Worker {
    servers: BTreeMap<Frontend, Arc<VirtualServer>>,
    names: BTreeMap<ServiceName, ServiceRecords>,
}

impl Worker {
    fn take(&mut self, update: Update) {
        for change in update.services {
            match change {
                ServiceChange::Set(frontend, server) => drop(self.servers.insert(frontend, server)),
                ServiceChange::Gone(frontend) => {
                    assert!(
                        self.servers.remove(&frontend).is_some(),
                        "{frontend} was not there"
                    );
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

    /// `frontend -> backends`, a line each.
    fn said(&self) -> Vec<String> {
        let mark = |b: &crate::model::Backend| {
            let phase = if b.phase == BackendPhase::Ready { "" } else { "?" };
            let local = if b.local { "!" } else { "" };
            format!("{}{phase}{local}", b.at)
        };
        let line = |(f, s): (&Frontend, &Arc<VirtualServer>)| {
            let backends: Vec<String> = s.backends.iter().map(mark).collect();
            format!("{f} -> {}", backends.join(" ")).trim_end().to_string()
        };
        self.servers.iter().map(line).collect()
    }
}

struct Scene {
    catalogue: Catalogue,
    worker: Worker,
}

impl Scene {
    fn new() -> Scene {
        Scene {
            catalogue: Catalogue::new(rules()),
            worker: Worker::default(),
        }
    }

    fn state(&mut self, name: &str, text: &str) -> Update {
        self.catalogue.set_source(&source(name), objects(text));
        self.turn()
    }

    fn pod(&mut self, name: &str, facts: Option<PodFacts>) -> Update {
        self.catalogue.set_pod(&id(name), facts);
        self.turn()
    }

    fn turn(&mut self) -> Update {
        let update = self.catalogue.update();
        self.worker.take(update.clone());
        update
    }

    fn problems(&self) -> Vec<String> {
        self.catalogue.problems().collect()
    }

    fn has_problem(&self, told: &str) {
        let problems = self.problems();
        assert!(problems.iter().any(|p| p.contains(told)), "{told}: {problems:?}");
    }
}

fn service(name: &str, spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n")
}

fn slice(name: &str, of: &str, rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {of}}}}}\naddressType: IPv4\n{rest}\n---\n"
    )
}

const WEB: &str = "{clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}";

#[test]
fn pods_come_and_go_behind_a_service() {
    let mut scene = Scene::new();
    scene.state("a", &service("web", WEB));
    assert_eq!(scene.worker.said(), ["10.96.0.10:80/TCP ->"]);
    scene.pod("w1", Some(pod(1, 2, "app=web,x=y")));
    scene.pod("other", Some(pod(1, 3, "app=db")));
    scene.pod("ns2/w9", Some(pod(1, 9, "app=web")));
    let update = scene.pod("w2", Some(pod(2, 2, "app=web")));
    assert_eq!(update.services.len(), 1);
    assert_eq!(
        scene.worker.said(),
        ["10.96.0.10:80/TCP -> 10.244.1.2:8080! 10.244.2.2:8080"]
    );
    let state = |ready, draining| PodState { ready, draining };
    for (facts, said) in [
        (state(false, false), "10.96.0.10:80/TCP -> 10.244.2.2:8080"),
        (
            state(true, true),
            "10.96.0.10:80/TCP -> 10.244.1.2:8080?! 10.244.2.2:8080",
        ),
        (state(false, true), "10.96.0.10:80/TCP -> 10.244.2.2:8080"),
    ] {
        let facts = PodFacts {
            state: facts,
            ..pod(1, 2, "app=web")
        };
        scene.pod("w1", Some(facts));
        assert_eq!(scene.worker.said(), [said]);
    }
    scene.pod("w2", Some(pod(2, 2, "app=old")));
    scene.pod("w1", None);
    assert_eq!(scene.worker.said(), ["10.96.0.10:80/TCP ->"]);
    assert_eq!(scene.pod("w1", None), Update::default(), "nothing is new");
    let update = scene.state("a", "");
    assert_eq!(
        update.services,
        [ServiceChange::Gone(*update_frontend("10.96.0.10:80"))]
    );
    assert!(scene.worker.names.is_empty() && scene.catalogue.is_empty());
}

fn update_frontend(at: &str) -> Box<Frontend> {
    Box::new(Frontend {
        at: at.parse().unwrap(),
        transport: crate::model::Transport::Tcp,
    })
}

#[test]
fn each_kind_and_field_has_its_outcome() {
    let mut w1 = pod(1, 2, "app=web");
    w1.ports = vec![
        "http:8080".parse::<NamedPort>().unwrap(),
        "http:53/udp".parse().unwrap(),
    ];
    let w2 = pod(2, 2, "app=web");
    for (spec, said, names) in [
        (
            "{clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: a, port: 80, targetPort: http}, {name: b, port: 53, protocol: UDP, targetPort: http}, {name: c, port: 9, protocol: SCTP}]}",
            vec![
                "10.96.0.1:9/SCTP -> 10.244.1.2:9! 10.244.2.2:9",
                "10.96.0.1:53/UDP -> 10.244.1.2:53!",
                "10.96.0.1:80/TCP -> 10.244.1.2:8080!",
            ],
            "10.96.0.1; a/TCP/80 b/UDP/53 c/SCTP/9;",
        ),
        (
            "{clusterIPs: ['fd00:10:96::1', 10.96.0.1], ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80}]}",
            vec![
                "10.96.0.1:80/TCP -> 10.244.1.2:80! 10.244.2.2:80",
                "[fd00:10:96::1]:80/TCP -> [fd00:10:244:1::2]:80! [fd00:10:244:2::2]:80",
            ],
            "fd00:10:96::1 10.96.0.1;;",
        ),
        (
            "{type: NodePort, clusterIP: 10.96.0.1, selector: {app: web}, externalIPs: [192.0.2.7], ports: [{port: 80, nodePort: 30080}]}",
            vec![
                "0.0.0.0:30080/TCP -> 10.244.1.2:80! 10.244.2.2:80",
                "10.96.0.1:80/TCP -> 10.244.1.2:80! 10.244.2.2:80",
                "192.0.2.7:80/TCP -> 10.244.1.2:80! 10.244.2.2:80",
            ],
            "10.96.0.1;;",
        ),
        (
            "{clusterIP: None, selector: {app: web}}",
            vec![],
            "10.244.1.2 10.244.2.2;; w1=10.244.1.2() w2=10.244.2.2()",
        ),
        (
            "{clusterIP: None, ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}",
            vec![],
            "10.244.1.2 10.244.2.2 fd00:10:244:1::2 fd00:10:244:2::2;; w1=10.244.1.2(http/TCP/8080) w2=10.244.2.2() w1=fd00:10:244:1::2(http/TCP/8080) w2=fd00:10:244:2::2()",
        ),
        (
            "{type: ExternalName, externalName: db.example.org.}",
            vec![],
            ";; -> db.example.org",
        ),
    ] {
        let mut scene = Scene::new();
        scene.pod("w1", Some(w1.clone()));
        scene.pod("w2", Some(w2.clone()));
        scene.state("a", &service("web", spec));
        assert_eq!(scene.worker.said(), said, "{spec}");
        let records = scene.worker.names.values().next().unwrap();
        let port = |p: &crate::model::ServicePortRecord| format!("{}/{}/{}", p.name, p.transport, p.port);
        let ports =
            |all: &[crate::model::ServicePortRecord]| all.iter().map(port).collect::<Vec<_>>().join(" ");
        let host = |h: &crate::model::ServiceHost| format!(" {}={}({})", h.name, h.at, ports(&h.ports));
        let addresses: Vec<String> = records.addresses.iter().map(ToString::to_string).collect();
        let hosts: String = records.hosts.iter().map(host).collect();
        let alias = records
            .alias
            .as_ref()
            .map(|a| format!(" -> {a}"))
            .unwrap_or_default();
        let sep = if records.ports.is_empty() { "" } else { " " };
        assert_eq!(
            format!(
                "{};{sep}{};{hosts}{alias}",
                addresses.join(" "),
                ports(&records.ports)
            ),
            names,
            "{spec}"
        );
    }
}

#[test]
fn how_backends_are_chosen_is_handed_on() {
    let mut scene = Scene::new();
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {podwire/scheduler: maglev}}\nspec: {type: NodePort, clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}, internalTrafficPolicy: Local, externalTrafficPolicy: Cluster, ports: [{name: http, port: 80, nodePort: 30001}]}";
    scene.state("a", text);
    let servers: Vec<_> = scene.worker.servers.values().collect();
    let [outside, inside] = &servers[..] else {
        panic!("{servers:?}")
    };
    assert!(inside.local_only && !outside.local_only);
    assert_eq!(inside.affinity, Some(Duration::from_secs(60)));
    assert_eq!(
        (inside.scheduler, inside.port.as_str()),
        (crate::model::Scheduler::Maglev, "http")
    );
    let ports: Vec<_> = scene
        .catalogue
        .node_ports()
        .map(|p| p.frontend.to_string())
        .collect();
    assert_eq!(ports, ["0.0.0.0:30001/TCP"]);
    assert_eq!(scene.catalogue.health_checks().count(), 0);
    let local = text.replace(
        "externalTrafficPolicy: Cluster",
        "externalTrafficPolicy: Local, healthCheckNodePort: 30002, selector: {app: web}",
    );
    assert!(scene.state("a", &local).outside);
    scene.pod("w", Some(pod(1, 2, "app=web")));
    let checks: Vec<_> = scene
        .catalogue
        .health_checks()
        .map(|h| (h.port, h.local))
        .collect();
    assert_eq!(checks, [(30_002, 1)]);
}

#[test]
fn slices_stand_behind_services_without_selectors() {
    let mut scene = Scene::new();
    let eps = slice(
        "web-1",
        "web",
        "ports: [{name: '', port: 8080}]\nendpoints: [{addresses: [10.244.2.9]}, {addresses: [192.0.2.80], conditions: {ready: false}}, {addresses: [192.0.2.81], conditions: {ready: false, serving: true, terminating: true}}, {addresses: [10.244.1.9]}, {addresses: [10.96.0.10]}]",
    );
    scene.state("eps", &eps);
    scene.has_problem("default/web: there is no such Service");
    scene.state(
        "svc",
        &service("web", "{clusterIP: 10.96.0.10, ports: [{port: 80}]}"),
    );
    assert_eq!(
        scene.worker.said(),
        ["10.96.0.10:80/TCP -> 10.244.2.9:8080 192.0.2.81:8080?"]
    );
    scene.has_problem("no pod of this node has 10.244.1.9");
    scene.has_problem("10.96.0.10 is a Service's own address");
    scene.pod("w", Some(pod(1, 9, "")));
    assert_eq!(
        scene.worker.said(),
        ["10.96.0.10:80/TCP -> 10.244.1.9:8080! 10.244.2.9:8080 192.0.2.81:8080?"]
    );
    scene.pod("w", None);
    assert_eq!(
        scene.worker.said(),
        ["10.96.0.10:80/TCP -> 10.244.2.9:8080 192.0.2.81:8080?"]
    );
    scene.state(
        "svc",
        &service(
            "web",
            "{clusterIP: 10.96.0.10, publishNotReadyAddresses: true, ports: [{port: 80}]}",
        ),
    );
    assert_eq!(
        scene.worker.said(),
        ["10.96.0.10:80/TCP -> 10.244.2.9:8080 192.0.2.80:8080 192.0.2.81:8080"]
    );
    scene.state("svc", &service("web", WEB));
    scene.has_problem("is not used, as the Service selects pods");
    scene.state(
        "svc",
        &service("web", "{clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}"),
    );
    scene.has_problem("has a port \"\" of TCP, which the Service does not have");
    scene.state("eps", "");
    assert_eq!(scene.problems(), [""; 0]);
}

#[test]
fn where_an_endpoint_is_follows_from_its_address() {
    let mut scene = Scene::new();
    scene.pod("w", Some(pod(1, 9, "")));
    let eps = slice(
        "web-1",
        "web",
        "ports: [{name: '', port: 8080}]\nendpoints: [{addresses: [10.244.2.9], nodeName: n1}, {addresses: [10.244.1.9], nodeName: n2}, {addresses: [10.244.2.10], nodeName: n2}]",
    );
    let web = service("web", "{clusterIP: 10.96.0.10, ports: [{port: 80}]}");
    scene.state("all", &(web + &eps));
    assert_eq!(
        scene.worker.said(),
        ["10.96.0.10:80/TCP -> 10.244.1.9:8080! 10.244.2.9:8080 10.244.2.10:8080"]
    );
    scene.has_problem("nodeName of 10.244.2.9 is n1");
    scene.has_problem("nodeName of 10.244.1.9 is n2");
    assert_eq!(scene.problems().len(), 2, "{:?}", scene.problems());
}

#[test]
fn an_external_address_of_a_service_stands_behind_none() {
    let mut scene = Scene::new();
    let eps = slice(
        "web-1",
        "web",
        "ports: [{name: '', port: 8080}]\nendpoints: [{addresses: [192.0.2.7]}, {addresses: [192.0.2.8]}]",
    );
    let web = service("web", "{clusterIP: 10.96.0.10, ports: [{port: 80}]}");
    scene.state("web", &(web + &eps));
    let both = ["10.96.0.10:80/TCP -> 192.0.2.7:8080 192.0.2.8:8080"];
    assert_eq!(scene.worker.said(), both);
    let other = |spec: &str| {
        service(
            "other",
            &format!("{{clusterIP: 10.96.0.11, {spec}ports: [{{port: 80}}]}}"),
        )
    };
    scene.state("other", &other("externalIPs: [192.0.2.7], "));
    assert_eq!(
        scene.worker.said(),
        [
            "10.96.0.10:80/TCP -> 192.0.2.8:8080",
            "10.96.0.11:80/TCP ->",
            "192.0.2.7:80/TCP ->"
        ]
    );
    scene.has_problem("192.0.2.7 is an external address of default/other");
    // It comes back with the last Service that has it.
    scene.state("other", &other(""));
    assert_eq!(scene.worker.said()[..1], both);
    assert_eq!(scene.problems(), [""; 0]);
}

#[test]
fn of_two_slices_with_one_address_what_is_left_out_is_named() {
    let mut scene = Scene::new();
    let eps = |name: &str, port: &str, number: u16| {
        let rest =
            format!("ports: [{{name: {port}, port: {number}}}]\nendpoints: [{{addresses: [192.0.2.7]}}]");
        slice(name, "web", &rest)
    };
    let web = service(
        "web",
        "{clusterIP: 10.96.0.10, ports: [{name: a, port: 80}, {name: b, port: 81}]}",
    );
    let text = web.clone() + &eps("one", "a", 8080) + &eps("two", "a", 8080);
    scene.state("all", &text);
    assert_eq!(scene.problems(), [""; 0], "they say the same");
    scene.state("all", &(web + &eps("one", "a", 8080) + &eps("two", "b", 8081)));
    scene.has_problem("192.0.2.7 stands in EndpointSlice default/one too, with other ports");
}

#[test]
fn what_cannot_be_is_named_and_the_rest_goes_on() {
    let mut scene = Scene::new();
    let text = [
        service("a", "{clusterIP: 10.96.0.10, ports: [{port: 80}]}"),
        service("b", "{clusterIP: 10.96.0.10, ports: [{port: 80}]}"),
        service("c", "{clusterIP: 10.244.1.10, ports: [{port: 80}]}"),
        service("d", "{clusterIP: 10.244.7.10, ports: [{port: 80}]}"),
        service("e", "{clusterIP: 10.97.0.1, ports: [{port: 80}]}"),
        service("f", "{type: NodePort, clusterIP: 10.96.0.12, ports: [{port: 80, nodePort: 30000}]}"),
        service("g", "{type: NodePort, clusterIP: 10.96.0.13, ports: [{port: 80, nodePort: 30000}, {name: x, port: 81, nodePort: 80}]}").replace("[{port: 80,", "[{name: w, port: 80,"),
        service("h", "{clusterIP: 10.96.0.14, externalIPs: [10.244.3.3, 192.0.2.1], ports: [{port: 80}]}"),
        service("i", "{clusterIP: 10.96.0.15, externalIPs: [192.0.2.1], ports: [{port: 80}]}"),
        service("j", "{clusterIP: 10.96.0.16, selector: {app: web}, ports: [{port: 80, targetPort: http}]}"),
    ];
    scene.pod("w", Some(pod(1, 2, "app=web")));
    scene.state("all", &text.concat());
    for told in [
        "Service default/b: it is not in force: 10.96.0.10 is the address of default/a",
        "default/c: it is not in force: 10.244.1.10 lies in 10.244.1.0/24, which is this node's pods' subnet",
        "default/d: it is not in force: 10.244.7.10 lies in 10.244.0.0/16, which is the pods' network",
        "default/e: it is not in force: 10.97.0.1 is no address of services.cluster_ip",
        "default/g: node port 30000/TCP is one of default/f",
        "default/g: node port 80 is not within services.node_port_range, which is 30000-32767",
        "default/h: externalIPs: 10.244.3.3 lies in",
        "default/i: externalIPs: port 80 at 192.0.2.1 is one of default/h",
        "default/j: default/w have no TCP port named http",
    ] {
        scene.has_problem(told);
    }
    assert_eq!(scene.problems().len(), 9, "{:?}", scene.problems());
    let said = scene.worker.said();
    assert_eq!(said.len(), 9, "{said:?}");
    // Who was first goes, and the next one follows.
    let without = text[1..].concat();
    let update = scene.state("all", &without);
    assert_eq!(
        update.services.len(),
        1,
        "the same address, another Service: {update:?}"
    );
    assert_eq!(
        scene.worker.servers[&*update_frontend("10.96.0.10:80")]
            .service
            .name,
        "b"
    );
    // The same Service twice: the first place counts.
    scene.state(
        "a-first",
        &service("b", "{clusterIP: 10.96.0.10, ports: [{port: 81}]}"),
    );
    scene.has_problem("default/b: it stands in a-first and in all: the first counts");
    assert!(
        scene
            .worker
            .servers
            .contains_key(&*update_frontend("10.96.0.10:81"))
    );
}

#[test]
fn allocated_addresses_are_the_same_everywhere() {
    let names: Vec<String> = (0..300).map(|n| format!("s{n}")).collect();
    let text = |names: &mut dyn Iterator<Item = &String>| {
        names
            .map(|n| service(n, "{type: NodePort, ports: [{port: 80}]}"))
            .collect::<String>()
    };
    let (mut one, mut two) = (Scene::new(), Scene::new());
    one.state("x", &text(&mut names.iter()));
    for name in names.iter().rev() {
        two.state(name, &text(&mut [name].into_iter()));
    }
    assert_eq!(one.worker.servers, two.worker.servers);
    assert_eq!(one.worker.servers.len(), 600);
    assert_eq!(one.problems(), [""; 0]);
}

#[test]
fn of_ten_thousand_services_one_that_changes_is_told_alone() {
    let mut catalogue = Catalogue::new(rules());
    for n in 0..10_000u32 {
        catalogue.set_source(
            &source(&format!("{n}")),
            objects(&service(
                &format!("s{n}"),
                &format!("{{selector: {{app: a{n}}}, ports: [{{port: 80}}]}}"),
            )),
        );
        for k in 0..10u32 {
            let at = n * 10 + k;
            let mut facts = pod(1, 2, &format!("app=a{n},tier=all"));
            facts.ip4 = Some((u32::from(std::net::Ipv4Addr::new(10, 244, 0, 0)) + at % 65_000).into());
            facts.ip6 = None;
            catalogue.set_pod(&id(&format!("p{at}")), Some(facts));
        }
    }
    assert_eq!(catalogue.update().services.len(), 10_000);
    for n in 0..200u32 {
        let name = id(&format!("p{}", n * 377));
        let mut facts = catalogue.pods.get(&name).unwrap().as_ref().clone();
        facts.state.ready = false;
        catalogue.set_pod(&name, Some(facts));
        assert_eq!(catalogue.update().services.len(), 1);
    }
}

#[test]
fn what_is_applied_keeps_its_addresses() {
    let mut scene = Scene::new();
    let text = "{type: NodePort, ipFamilyPolicy: PreferDualStack, ports: [{name: a, port: 80}, {name: b, port: 80, protocol: UDP}]}";
    let mut taken = Taken::default();
    let mut keep = |scene: &Scene, name: &str| {
        let mut found = read(&Source::Given, &service(name, text));
        let Object::Service(stated) = &found.manifests[0].object else {
            panic!()
        };
        let pins = scene.catalogue.pins(stated, &mut taken);
        found.manifests[0].pin(&pins);
        (found.manifests[0].json.to_string(), pins)
    };
    let (json, pins) = keep(&scene, "web");
    scene.state("web", &json);
    assert_eq!(scene.problems(), [""; 0]);
    let info = scene.catalogue.describe(&"web".parse().unwrap()).unwrap();
    assert_eq!(
        (info.addresses, pins.addresses.len()),
        (pins.addresses.clone(), 2)
    );
    assert_eq!(
        info.ports.iter().map(|p| p.node_port).collect::<Vec<_>>(),
        pins.node_ports
    );
    assert_eq!(
        keep(&scene, "web"),
        (json, pins.clone()),
        "applied again it is the same"
    );
    // What another is given is none of these, and allocated ones make way.
    let other = service(
        "aaa",
        &format!("{{clusterIP: {}, ports: [{{port: 1}}]}}", pins.addresses[0]),
    );
    scene.state("zzz", &service("zzz", "{ports: [{port: 1}]}"));
    let (_, more) = keep(&scene, "other");
    assert!(more.addresses.iter().all(|a| !pins.addresses.contains(a)));
    scene.state("other", &other);
    scene.has_problem("is not in force");
}

/// A step of the property test.
#[derive(Clone, Debug)]
enum Step {
    State(u8, Vec<(u8, u8)>),
    Pod(u8, Option<(u8, u8, u8)>),
    Update,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u8..4, proptest::collection::vec((0u8..8, 0u8..9), 0..5)).prop_map(|(s, all)| Step::State(s, all)),
        4 => (0u8..8, proptest::option::of((0u8..4, 0u8..4, 0u8..4))).prop_map(|(n, what)| Step::Pod(n, what)),
        2 => Just(Step::Update),
    ];
    proptest::collection::vec(step, 0..60)
}

fn stated(all: &[(u8, u8)]) -> String {
    let mut seen = std::collections::HashSet::new();
    let mut text = String::new();
    for (n, what) in all {
        if seen.insert((*n, *what >= 7)) {
            text += &match what {
                0 => service(&format!("s{n}"), "{ports: [{port: 80}], selector: {a: x}}"),
                1 => service(
                    &format!("s{n}"),
                    &format!(
                        "{{clusterIP: 10.96.0.{}, selector: {{a: x, b: z}}, ports: [{{port: 80, targetPort: http}}]}}",
                        n % 3 + 1
                    ),
                ),
                2 => service(
                    &format!("s{n}"),
                    "{clusterIP: None, publishNotReadyAddresses: true, selector: {b: z}}",
                ),
                3 => service(
                    &format!("s{n}"),
                    &format!(
                        "{{type: NodePort, ports: [{{port: 80, nodePort: {}}}]}}",
                        30_000 + u16::from(n % 2)
                    ),
                ),
                4 => service(
                    &format!("s{n}"),
                    "{type: NodePort, ipFamilyPolicy: PreferDualStack, externalIPs: [192.0.2.1], ports: [{port: 81}]}",
                ),
                5 => service(&format!("s{n}"), "{type: ExternalName, externalName: x.y}"),
                6 => service(&format!("s{n}"), "{clusterIP: 10.244.1.1, ports: [{port: 80}]}"),
                k => slice(
                    &format!("e{n}"),
                    &format!("s{}", (n + k) % 5),
                    &format!(
                        "ports: [{{port: 80}}]\nendpoints: [{{addresses: [10.244.1.{}]}}, {{addresses: [10.244.2.{n}]}}]",
                        n % 4 + 2
                    ),
                ),
            };
        }
    }
    text
}

proptest! {
    /// Whoever applies the updates knows what one knows who is told the end.
    #[test]
    fn updates_lead_where_a_fresh_start_does(steps in steps()) {
        let mut scene = Scene::new();
        let mut sources = BTreeMap::new();
        let mut pods = BTreeMap::new();
        for step in steps {
            match step {
                Step::State(n, all) => {
                    let text = stated(&all);
                    scene.catalogue.set_source(&source(&format!("f{n}")), objects(&text));
                    sources.insert(n, text);
                }
                Step::Pod(n, what) => {
                    let facts = what.map(|(labels, state, at)| {
                        let mut facts = pod(1 + n % 2, 2 + at, ["", "a=x", "b=z", "a=x,b=z"][usize::from(labels)]);
                        facts.state = PodState { ready: state & 1 == 0, draining: state & 2 != 0 };
                        facts.ports.extend((at > 1).then(|| "http:8080".parse::<NamedPort>().unwrap()));
                        facts
                    });
                    let name = id(&format!("p-{n}"));
                    scene.catalogue.set_pod(&name, facts.clone());
                    pods.insert(name, facts);
                }
                Step::Update => drop(scene.turn()),
            }
        }
        scene.turn();
        let mut fresh = Scene::new();
        for (name, facts) in pods {
            fresh.catalogue.set_pod(&name, facts);
        }
        for (n, text) in sources {
            fresh.catalogue.set_source(&source(&format!("f{n}")), objects(&text));
        }
        fresh.turn();
        prop_assert_eq!(&scene.worker.servers, &fresh.worker.servers);
        prop_assert_eq!(&scene.worker.names, &fresh.worker.names);
        prop_assert_eq!(scene.problems(), fresh.problems());
        let ports = |s: &Scene| s.catalogue.node_ports().cloned().collect::<Vec<_>>();
        prop_assert_eq!(ports(&scene), ports(&fresh));
        let whole: Vec<_> = fresh.worker.servers.iter().map(|(f, s)| ServiceChange::Set(*f, s.clone())).collect();
        let mut told = scene.catalogue.whole();
        told.sort_by_key(|c| match c { ServiceChange::Set(f, _) | ServiceChange::Gone(f) => *f });
        prop_assert_eq!(told, whole);
        prop_assert_eq!(scene.catalogue.list(), fresh.catalogue.list());
    }
}
