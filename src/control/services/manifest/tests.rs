use super::*;
use proptest::prelude::*;

fn read_text(text: &str) -> Read {
    read(&Source::File("web.yaml".into()), text)
}

/// The Service of a spec.
fn service(spec: &str) -> Arc<Service> {
    let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
    let found = read_text(&text);
    assert_eq!(found.mistakes, [], "{spec}");
    match &found.manifests[..] {
        [
            Manifest {
                object: Object::Service(s),
                ..
            },
        ] => s.clone(),
        other => panic!("{spec}: {other:?}"),
    }
}

fn slice(rest: &str) -> Read {
    let meta = "metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}";
    read_text(&format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n{meta}\n{rest}\n"
    ))
}

/// What is told of a text, one line each.
fn told(found: &Read) -> Vec<String> {
    found.mistakes.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_kubernetes() {
    let s = service("{ports: [{port: 80}]}");
    assert_eq!(s.name.to_string(), "default/web");
    assert_eq!(
        (s.kind, &s.cluster_ips, s.family_policy),
        (ServiceType::ClusterIp, &ClusterIps::Any, FamilyPolicy::Single)
    );
    let port = &s.ports[0];
    assert_eq!(
        (port.name.as_str(), port.transport, &port.target, port.node_port),
        ("", Transport::Tcp, &TargetPort::Number(80), None)
    );
    assert_eq!((s.affinity, s.scheduler), (None, Scheduler::Random));
    assert!(!s.internal_local && !s.external_local && !s.publish_not_ready && s.selector.is_empty());
    let s = service("{ports: [{port: 80}], sessionAffinity: ClientIP}");
    assert_eq!(s.affinity, Some(Duration::from_secs(10_800)));
}

#[test]
fn every_key_that_is_supported_has_its_meaning() {
    let text = r#"
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  labels: {app.kubernetes.io/name: web, empty: ""}
  annotations: {podwire/scheduler: least-connections, "example.org/Note": "any text: 1"}
  uid: 2b7f, 
  creationTimestamp: 2024-01-01T00:00:00Z
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  selector: {app: web, tier: "1"}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  healthCheckNodePort: 30100
  externalIPs: [192.0.2.7]
  publishNotReadyAddresses: true
  ports:
  - {name: http, port: 80, targetPort: web-http, nodePort: 30080, appProtocol: http}
  - {name: dns, protocol: UDP, port: 53, targetPort: 5353}
  - {name: sig, protocol: SCTP, port: 53}
status: {loadBalancer: {}}
"#
    .replace("2b7f, ", "2b7f");
    let found = read_text(&text);
    assert_eq!(told(&found), [""; 0]);
    let Object::Service(s) = &found.manifests[0].object else {
        panic!()
    };
    assert_eq!(s.name.to_string(), "shop/web");
    assert_eq!(
        s.labels.get("app.kubernetes.io/name").map(String::as_str),
        Some("web")
    );
    assert_eq!(s.annotations.len(), 2);
    assert_eq!(s.scheduler, Scheduler::LeastConnections);
    assert_eq!(s.kind, ServiceType::NodePort);
    assert_eq!(
        s.cluster_ips,
        ClusterIps::Given(vec![
            "10.96.0.10".parse().unwrap(),
            "fd00:10:96::10".parse().unwrap()
        ])
    );
    assert_eq!(s.families, [Family::V4, Family::V6]);
    assert_eq!(s.family_policy, FamilyPolicy::RequireDual);
    assert_eq!(s.selector.get("tier").map(String::as_str), Some("1"));
    assert_eq!(s.affinity, Some(Duration::from_secs(60)));
    assert!(s.internal_local && s.external_local && s.publish_not_ready);
    assert_eq!(s.health_check_port, Some(30_100));
    assert_eq!(s.external_ips.len(), 1);
    assert_eq!(s.ports[0].target, TargetPort::Name("web-http".into()));
    assert_eq!(
        (s.ports[0].node_port, s.ports[0].app_protocol.as_deref()),
        (Some(30_080), Some("http"))
    );
    assert_eq!(
        (s.ports[1].transport, &s.ports[1].target),
        (Transport::Udp, &TargetPort::Number(5353))
    );
    assert_eq!(s.ports[2].transport, Transport::Sctp);
    for (word, scheduler) in [
        ("random", Scheduler::Random),
        ("round-robin", Scheduler::RoundRobin),
        ("maglev", Scheduler::Maglev),
    ] {
        let found = read_text(&text.replace("least-connections", word));
        let Object::Service(s) = &found.manifests[0].object else {
            panic!()
        };
        assert_eq!(s.scheduler, scheduler);
    }
    assert!(service("{clusterIP: None}").is_headless());
    assert!(service("{clusterIPs: [None], ports: [{port: 1}]}").is_headless());
    assert_eq!(
        service("{clusterIP: '', ports: [{port: 1}]}").cluster_ips,
        ClusterIps::Any
    );
    assert_eq!(
        service("{ports: [{port: 1}], healthCheckNodePort: 0}").health_check_port,
        None
    );
    assert_eq!(
        service("{type: ExternalName, externalName: a.b., ports: [{port: 1}]}")
            .external_name
            .as_deref(),
        Some("a.b")
    );
}

#[test]
fn what_a_service_cannot_say_is_refused_by_name() {
    for (spec, key, what) in [
        ("{}", "spec.ports", "is missing"),
        ("{ports: []}", "spec.ports", "is missing"),
        ("{ports: 80}", "spec.ports", "a list is wanted"),
        ("{ports: [80]}", "spec.ports[0]", "keys and values are wanted"),
        ("{ports: [{}]}", "spec.ports[0].port", "is missing"),
        (
            "{ports: [{port: 0}]}",
            "spec.ports[0].port",
            "out of range (use 1 to 65535)",
        ),
        ("{ports: [{port: 65536}]}", "spec.ports[0].port", "out of range"),
        ("{ports: [{port: '80'}]}", "spec.ports[0].port", "without quotes"),
        ("{ports: [{port: 07}]}", "spec.ports[0].port", "(write 7)"),
        ("{ports: [{port: +80}]}", "spec.ports[0].port", "(write 80)"),
        (
            "{ports: [{port: 80, prot: TCP}]}",
            "spec.ports[0].prot",
            "no such key (did you mean",
        ),
        (
            "{ports: [{port: 80, protocol: tcp}]}",
            "spec.ports[0].protocol",
            "use TCP, UDP, SCTP",
        ),
        (
            "{ports: [{port: 80, targetPort: 0}]}",
            "spec.ports[0].targetPort",
            "neither a number",
        ),
        (
            "{ports: [{port: 80, targetPort: Http}]}",
            "spec.ports[0].targetPort",
            "neither a number",
        ),
        (
            "{ports: [{port: 80, targetPort: abcdefghijklmnop}]}",
            "spec.ports[0].targetPort",
            "at most 15",
        ),
        (
            "{ports: [{port: 80, nodePort: 30000}]}",
            "spec.ports[0].nodePort",
            "needs type: NodePort",
        ),
        (
            "{ports: [{port: 80, name: A}]}",
            "spec.ports[0].name",
            "no name of a port",
        ),
        (
            "{ports: [{port: 80}, {port: 81}]}",
            "spec.ports[0].name",
            "with several ports each has a name",
        ),
        (
            "{ports: [{port: 80, name: a}, {port: 81, name: a}]}",
            "spec.ports[1].name",
            "another port's too",
        ),
        (
            "{ports: [{port: 80, name: a}, {port: 80, name: b}]}",
            "spec.ports[1].port",
            "80/TCP is another port's too",
        ),
        (
            "{type: NodePort, ports: [{port: 80, name: a, nodePort: 30000}, {port: 81, name: b, nodePort: 30000}]}",
            "spec.ports[1].nodePort",
            "another port's too",
        ),
        (
            "{type: LoadBalancer, ports: [{port: 80}]}",
            "spec.type",
            "LoadBalancer is not supported (use NodePort",
        ),
        (
            "{type: Cluster, ports: [{port: 80}]}",
            "spec.type",
            "use ClusterIP, NodePort, ExternalName",
        ),
        (
            "{clusterIP: 10.96.0, ports: [{port: 80}]}",
            "spec.clusterIP",
            "no address",
        ),
        (
            "{clusterIP: ten, ports: [{port: 80}]}",
            "spec.clusterIP",
            "no address",
        ),
        (
            "{clusterIP: 127.0.0.1, ports: [{port: 80}]}",
            "spec.clusterIP",
            "cannot be a Service's",
        ),
        (
            "{clusterIPs: [10.96.0.1, 10.96.0.2], ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}",
            "spec.clusterIPs",
            "are of one family",
        ),
        (
            "{clusterIPs: [10.96.0.1, 'fd00::1'], ports: [{port: 80}]}",
            "spec.clusterIPs",
            "two need ipFamilyPolicy",
        ),
        (
            "{clusterIPs: [10.96.0.1, None], ports: [{port: 80}]}",
            "spec.clusterIPs",
            "None stands beside an address",
        ),
        (
            "{clusterIP: 10.96.0.2, clusterIPs: [10.96.0.1], ports: [{port: 80}]}",
            "spec.clusterIPs",
            "is not clusterIP",
        ),
        (
            "{clusterIP: 10.96.0.2, ipFamilies: [IPv6], ports: [{port: 80}]}",
            "spec.clusterIPs",
            "families of ipFamilies",
        ),
        (
            "{clusterIPs: [1.1.1.1, 1.1.1.2, 1.1.1.3], ports: [{port: 80}]}",
            "spec.clusterIPs",
            "3 are too many",
        ),
        (
            "{ipFamilies: [IPv4, IPv6], ports: [{port: 80}]}",
            "spec.ipFamilies",
            "need ipFamilyPolicy",
        ),
        (
            "{ipFamilies: [IPv4, IPv4], ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}",
            "spec.ipFamilies",
            "twice",
        ),
        (
            "{ipFamilies: [ipv4], ports: [{port: 80}]}",
            "spec.ipFamilies[0]",
            "use IPv4, IPv6",
        ),
        (
            "{ipFamilyPolicy: Dual, ports: [{port: 80}]}",
            "spec.ipFamilyPolicy",
            "use SingleStack, PreferDualStack",
        ),
        (
            "{clusterIP: None, type: NodePort, ports: [{port: 80}]}",
            "spec.clusterIP",
            "does not go with type NodePort",
        ),
        (
            "{selector: {app: yes}, ports: [{port: 80}]}",
            "spec.selector.app",
            "write it in quotes",
        ),
        (
            "{selector: {app: 1}, ports: [{port: 80}]}",
            "spec.selector.app",
            "write it in quotes",
        ),
        (
            "{selector: {'a b': c}, ports: [{port: 80}]}",
            "spec.selector",
            "no label",
        ),
        (
            "{selector: {app: 'a b'}, ports: [{port: 80}]}",
            "spec.selector.app",
            "no value of a label",
        ),
        (
            "{sessionAffinity: Client, ports: [{port: 80}]}",
            "spec.sessionAffinity",
            "use None, ClientIP",
        ),
        (
            "{sessionAffinityConfig: {clientIP: {timeoutSeconds: 9}}, ports: [{port: 80}]}",
            "spec.sessionAffinityConfig",
            "needs sessionAffinity: ClientIP",
        ),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}, ports: [{port: 80}]}",
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            "use 1 to 86400",
        ),
        (
            "{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIp: {}}, ports: [{port: 80}]}",
            "spec.sessionAffinityConfig.clientIp",
            "did you mean `clientIP`",
        ),
        (
            "{internalTrafficPolicy: local, ports: [{port: 80}]}",
            "spec.internalTrafficPolicy",
            "use Cluster, Local",
        ),
        (
            "{externalTrafficPolicy: Local, ports: [{port: 80}]}",
            "spec.externalTrafficPolicy",
            "needs type NodePort",
        ),
        (
            "{type: NodePort, healthCheckNodePort: 30000, ports: [{port: 80}]}",
            "spec.healthCheckNodePort",
            "needs externalTrafficPolicy: Local",
        ),
        (
            "{externalIPs: [fe80::1], ports: [{port: 80}]}",
            "spec.externalIPs[0]",
            "no address that clients reach",
        ),
        (
            "{externalIPs: ['::1'], ports: [{port: 80}]}",
            "spec.externalIPs[0]",
            "no address that clients reach",
        ),
        (
            "{externalName: a.b, ports: [{port: 80}]}",
            "spec.externalName",
            "needs type: ExternalName",
        ),
        ("{type: ExternalName}", "spec.externalName", "is missing"),
        (
            "{type: ExternalName, externalName: 'a b'}",
            "spec.externalName",
            "no domain name",
        ),
        (
            "{type: ExternalName, externalName: '10.0.0.1'}",
            "spec.externalName",
            "no domain name",
        ),
        (
            "{type: ExternalName, externalName: a.b, clusterIP: 10.96.0.1}",
            "spec.clusterIP",
            "does not go with",
        ),
        (
            "{type: ExternalName, externalName: a.b, sessionAffinity: ClientIP}",
            "spec.sessionAffinity",
            "does not go with",
        ),
        (
            "{publishNotReadyAddresses: yes, ports: [{port: 80}]}",
            "spec.publishNotReadyAddresses",
            "neither true nor false",
        ),
        (
            "{loadBalancerIP: 1.2.3.4, ports: [{port: 80}]}",
            "spec.loadBalancerIP",
            "is not supported (use type NodePort",
        ),
        (
            "{loadBalancerClass: x, ports: [{port: 80}]}",
            "spec.loadBalancerClass",
            "is not supported",
        ),
        (
            "{loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]}",
            "spec.loadBalancerSourceRanges",
            "firewall",
        ),
        (
            "{allocateLoadBalancerNodePorts: true, ports: [{port: 80}]}",
            "spec.allocateLoadBalancerNodePorts",
            "is not supported",
        ),
        (
            "{trafficDistribution: PreferClose, ports: [{port: 80}]}",
            "spec.trafficDistribution",
            "is not supported",
        ),
        (
            "{ports: [{port: 80}], colour: blue}",
            "spec.colour",
            "there is no such key",
        ),
        ("[]", "spec", "keys and values are wanted"),
    ] {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
        let found = read_text(&text);
        assert_eq!(found.manifests, [], "{spec}");
        let said = told(&found);
        let start = format!("web.yaml:4 (document 1, Service default/web): {key}: ");
        assert!(
            said[0].starts_with(&start) && said[0].contains(what),
            "{spec}: {said:?}"
        );
    }
}

#[test]
fn what_an_object_cannot_be_is_refused_by_name() {
    let long = "a".repeat(64);
    let named = |meta: &str| {
        format!("apiVersion: v1\nkind: Service\nmetadata: {meta}\nspec: {{ports: [{{port: 80}}]}}\n")
    };
    for (text, told_is) in [
        (
            "kind: Service\nmetadata: {name: web}\n",
            "web.yaml:1 (document 1): apiVersion: \"\" is not that of a Service (write v1)",
        ),
        (
            "apiVersion: v1\n",
            "kind: is missing (write Service, EndpointSlice or List)",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n",
            "(document 1, \"Deployment\" \"web\"): kind: \"Deployment\" is not supported",
        ),
        (
            "apiVersion: v1\nkind: Endpoints\n",
            "kind: Endpoints is not supported (write an EndpointSlice)",
        ),
        (
            "apiVersion: v1beta1\nkind: EndpointSlice\n",
            "write discovery.k8s.io/v1",
        ),
        ("- a\n", "a list stands here (keys and values are wanted)"),
        ("just words\n", "a word stands here"),
        ("apiVersion: v1\nkind: List\n", "items: is missing"),
        (
            "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: List, items: []}]\n",
            "items[0].kind: a List stands in a List",
        ),
        (
            "apiVersion: v1\nkind: List\nitems: []\nextra: 1\n",
            "extra: there is no such key",
        ),
        (
            "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {name: x}}]\n",
            "(document 1, Service default/x): items[0].spec: is missing",
        ),
        ("apiVersion: v1\nkind: Service\n", "metadata: is missing"),
        (&named("{}"), "metadata.name: is missing"),
        (&named("{name: Web}"), "metadata.name: \"Web\" is no name"),
        (&named(&format!("{{name: {long}}}")), "is no name"),
        (
            &named("{name: web, namespace: a.b}"),
            "metadata.namespace: \"a.b\" is no namespace",
        ),
        (&named("{name: 1}"), "metadata.name: \"1\" is no text to YAML"),
        (
            &named("{generateName: web-, name: web}"),
            "metadata.generateName: is not supported",
        ),
        (
            &named("{name: web, clusterName: x}"),
            "metadata.clusterName: there is no such key",
        ),
        (
            &named("{name: web, labels: {a: true}}"),
            "metadata.labels.a: \"true\" is no text",
        ),
        (
            &named("{name: web, annotations: {podwire/lb: x}}"),
            "metadata.annotations.podwire/lb: there is no such annotation",
        ),
        (
            &named("{name: web, annotations: {podwire/scheduler: rr}}"),
            "use random, round-robin, least-connections, maglev",
        ),
        (
            &(named("{name: web}") + "more: 1\n"),
            "more: there is no such key",
        ),
        (
            &(named("{name: web}") + "\"\\e[31m\": 1\n"),
            "\"\\u{1b}[31m\": there is no such key",
        ),
        (
            &(named("{name: web}") + "---\n" + &named("{name: web}")),
            "document 1 has that name already",
        ),
    ] {
        let said = told(&read_text(text));
        assert!(
            said.iter().any(|s| s.contains(told_is)),
            "{text}\n{told_is}\n{said:?}"
        );
        assert!(said.iter().all(|s| !s.chars().any(char::is_control)), "{said:?}");
    }
}

#[test]
fn one_mistake_does_not_cost_the_others() {
    let good = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
        )
    };
    let text = good("a") + &good("b").replace("80", "0") + "---\nkind: Ingress\n" + &good("c");
    let found = read_text(&text);
    let names: Vec<_> = found
        .manifests
        .iter()
        .map(|m| (m.object.key().to_string(), m.document))
        .collect();
    assert_eq!(
        names,
        [("Service default/a".into(), 1), ("Service default/c".into(), 4)]
    );
    assert_eq!(found.mistakes.len(), 2);
    let list = format!(
        "apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n- {{apiVersion: v1, kind: Service, metadata: {{name: a}}, spec: {{ports: [{{port: 1}}]}}}}\n- {{apiVersion: v1, kind: Secret}}\n{}",
        "- {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {ports: [{port: 1}]}}\n"
    );
    let found = read_text(&list);
    assert_eq!((found.manifests.len(), found.mistakes.len()), (2, 1));
    // What was understood reads back to itself, as JSON.
    for manifest in &found.manifests {
        let again = read_text(&manifest.json.to_string());
        assert_eq!(again.manifests[0].object, manifest.object);
    }
}

#[test]
fn slices_have_their_meaning() {
    let found = slice(
        "addressType: IPv6\nports: [{name: http, port: 8080, protocol: TCP, appProtocol: http}, {port: 53, protocol: UDP}]\nendpoints:\n- {addresses: ['fd00::1'], conditions: {ready: false, serving: true, terminating: true}, hostname: db-0, nodeName: n1, zone: z, targetRef: {kind: Pod, namespace: default, name: db-0}}\n- {addresses: ['fd00::2'], conditions: {ready: null}}\n- {addresses: ['fd00::3'], conditions: {ready: false}}",
    );
    assert_eq!(told(&found), [""; 0]);
    let Object::Slice(s) = &found.manifests[0].object else {
        panic!()
    };
    assert_eq!(
        (s.service.to_string(), s.name.as_str(), s.family),
        ("default/web".into(), "web-1", Family::V6)
    );
    let states: Vec<_> = s
        .endpoints
        .iter()
        .map(|e| (e.ready, e.serving, e.terminating))
        .collect();
    assert_eq!(
        states,
        [(false, true, true), (true, true, false), (false, false, false)]
    );
    let first = &s.endpoints[0];
    assert_eq!(first.hostname.as_deref(), Some("db-0"));
    assert_eq!(
        first.node.as_ref().map(ToString::to_string).as_deref(),
        Some("n1")
    );
    assert_eq!(first.target.as_deref(), Some("Pod default/db-0"));
    assert_eq!(
        (s.ports[0].name.as_str(), s.ports[1].transport),
        ("http", Transport::Udp)
    );
}

#[test]
fn what_a_slice_cannot_say_is_refused_by_name() {
    for (rest, key, what) in [
        ("endpoints: []", "addressType", "is missing"),
        ("addressType: FQDN", "addressType", "FQDN is not supported"),
        ("addressType: ipv4", "addressType", "use IPv4, IPv6"),
        (
            "addressType: IPv4\nendpoints: [{}]",
            "endpoints[0].addresses",
            "is missing",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: []}]",
            "endpoints[0].addresses",
            "one address is wanted",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1, 10.0.0.2]}]",
            "endpoints[0].addresses",
            "one address is wanted",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: ['fd00::1']}]",
            "endpoints[0].addresses[0]",
            "no IPv4 address",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [127.0.0.1]}]",
            "endpoints[0].addresses[0]",
            "cannot stand behind",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [169.254.1.1]}]",
            "endpoints[0].addresses[0]",
            "cannot stand behind",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], conditions: {ready: 1}}]",
            "endpoints[0].conditions.ready",
            "neither true nor false",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], conditions: {alive: true}}]",
            "endpoints[0].conditions.alive",
            "no such key",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hostname: a.b}]",
            "endpoints[0].hostname",
            "no host name",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], hints: {forZones: []}}]",
            "endpoints[0].hints",
            "is not supported",
        ),
        (
            "addressType: IPv4\nendpoints: [{addresses: [10.0.0.1], deprecatedTopology: {a: b}}]",
            "endpoints[0].deprecatedTopology",
            "is not supported",
        ),
        (
            "addressType: IPv4\nports: [{name: a}]",
            "ports[0].port",
            "all ports at once",
        ),
        (
            "addressType: IPv4\nports: [{port: 1}, {port: 2}]",
            "ports[1].name",
            "another port's too",
        ),
        (
            "addressType: IPv4\nports: [{port: 1, protocol: ICMP}]",
            "ports[0].protocol",
            "use TCP, UDP, SCTP",
        ),
        ("addressType: IPv4\nspec: {}", "spec", "there is no such key"),
    ] {
        let found = slice(rest);
        assert_eq!(found.manifests, [], "{rest}");
        let said = told(&found);
        assert!(
            said.iter()
                .any(|s| s.contains(&format!("EndpointSlice default/web-1): {key}: ")) && s.contains(what)),
            "{rest}: {said:?}"
        );
    }
    let bare = read_text(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: x}\naddressType: IPv4\n",
    );
    assert!(
        told(&bare)[0].contains("metadata.labels.\"kubernetes.io/service-name\": is missing"),
        "{bare:?}"
    );
}

proptest! {
    /// Whatever stands there is read within bounds, and told in harmless lines.
    #[test]
    fn anything_is_read_or_refused(text in "(apiVersion: v1\n|kind: Service\n|metadata: \\{name: [a-z]{1,3}\\}\n|spec:\n|  ports: \\[\\{port: [0-9]{1,6}\\}\\]\n|  [a-zA-Z]{1,12}: .{0,20}\n|---\n|\\PC{0,30}\n){0,12}") {
        let found = read_text(&text);
        for said in told(&found) {
            prop_assert!(said.len() < 1000 && !said.chars().any(char::is_control), "{:?}", said);
        }
        for manifest in found.manifests {
            let again = read_text(&manifest.json.to_string());
            prop_assert_eq!(&again.manifests[0].object, &manifest.object);
        }
    }

    /// A Service that was made is read as it was meant.
    #[test]
    fn what_is_written_is_read(port in 1u16.., target in 1u16.., seconds in 1u32..=86_400, count in 1usize..20) {
        let ports: Vec<String> = (0..count).map(|n| format!("{{name: p{n}, port: {}, targetPort: {target}}}", (usize::from(port) + n) % 65_535 + 1)).collect();
        let spec = format!("{{ports: [{}], sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}}}", ports.join(", "));
        let s = service(&spec);
        prop_assert_eq!(s.ports.len(), count);
        prop_assert_eq!(s.affinity, Some(Duration::from_secs(seconds.into())));
        prop_assert!(s.ports.iter().all(|p| p.target == TargetPort::Number(target)));
    }
}
