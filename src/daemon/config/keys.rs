//! Every key of the configuration, once: the table that feeds the file, the flags, `--help` and
//! `--print-config`.

use crate::control::strict::Allowed;

/// One key.
#[derive(Debug, PartialEq, Eq)]
pub struct Key {
    /// Its dotted name in the file.
    pub name: &'static str,
    /// Its flag, without the dashes.
    pub flag: &'static str,
    /// What stands for its value in help.
    pub value: &'static str,
    /// What it does.
    pub help: &'static str,
    /// What holds when nobody says anything, in words.
    pub fallback: &'static str,
    /// A value that is right, as TOML.
    pub example: &'static str,
    /// The types it may have in the file.
    pub allowed: Allowed,
    /// Whether a list of values may be given too.
    pub list: bool,
}

const TEXT: Allowed = Allowed {
    text: true,
    number: false,
};
const NUMBER: Allowed = Allowed {
    text: false,
    number: true,
};
const EITHER: Allowed = Allowed {
    text: true,
    number: true,
};

macro_rules! keys {
    ($($(#[doc = $help:literal])+ $id:ident: $name:literal, $flag:literal, $value:literal, $allowed:expr,
       $fallback:literal, $example:literal $(, $list:literal)?;)+) => {
        $($(#[doc = $help])+ pub const $id: Key = Key {
            name: $name, flag: $flag, value: $value, help: concat!($($help),+).trim_ascii(),
            fallback: $fallback, example: $example, allowed: $allowed, list: false $(|| $list)?,
        };)+

        /// All keys, in the order of the file.
        pub const KEYS: &[&Key] = &[$(&$id,)+];
    };
}

keys! {
    /// Name of this node, unique in the cluster.
    NODE: "node", "name", "NAME", TEXT, "the host name", "\"n1\"";
    /// IPv4 subnet of this node's pods; `.1` is their gateway.
    SUBNET: "subnet", "subnet", "SUBNET", TEXT, "none; one of subnet and subnet6 is needed", "\"10.244.1.0/24\"";
    /// IPv6 subnet of this node's pods.
    SUBNET6: "subnet6", "subnet6", "SUBNET", TEXT, "none; one of subnet and subnet6 is needed", "\"fd00:10:244:1::/64\"";
    /// File that lists the peers, beside this file unless absolute; every change is taken at once.
    PEERS: "peers", "peers", "FILE", TEXT, "none: a node by itself", "\"peers.toml\"";
    /// Socket that `podwire attach`, `status` and the others talk to.
    SOCKET: "socket", "socket", "PATH", TEXT, "$PODWIRE_SOCKET, or NODE.sock in /run/podwire or $XDG_RUNTIME_DIR/podwire", "\"/run/podwire/n1.sock\"";
    /// Directory of what this node remembers: its pods' addresses, also for a moment after they were freed.
    STATE_DIR: "state_dir", "state-dir", "DIR", TEXT, "NODE in /var/lib/podwire or $XDG_STATE_HOME/podwire; NODE.state beside a socket elsewhere", "\"/var/lib/podwire/n1\"";
    /// How much is logged: off, error, warn, info, debug or trace.
    LOG: "log", "log", "LEVEL", TEXT, "info", "\"info\"";
    /// Whether this host gets a port of its own in the pod network (`podwire0`, with the gateway's addresses and routes to
    /// the pods): on, off, or auto for where that needs no more rights than the node has and nothing is in its way. Another
    /// name is on, and that of the interface.
    HOST_PORT: "host_port", "host-port", "MODE", TEXT, "off", "\"auto\"";
    /// Addresses to send and receive VXLAN at: one, or one of each family.
    BIND: "overlay.bind", "bind", "ADDR", TEXT, "0.0.0.0", "\"192.0.2.1\"", true;
    /// UDP port of the overlay, or `auto` for any free one.
    PORT: "overlay.port", "port", "PORT", EITHER, "8472, as flannel", "8472";
    /// VXLAN network identifier.
    VNI: "overlay.vni", "vni", "VNI", NUMBER, "1, as flannel", "1";
    /// Sending sockets with a port of their own each, so that flows spread over paths and queues (1 to 64).
    SOURCE_PORTS: "overlay.source_ports", "source-ports", "COUNT", NUMBER, "8", "8";
    /// MTU of the network below, in bytes of IP packet.
    UNDERLAY_MTU: "overlay.underlay_mtu", "underlay-mtu", "BYTES", NUMBER, "that of the interface used; 1500 on loopback", "1500";
    /// MTU of the pods' interfaces.
    POD_MTU: "overlay.pod_mtu", "pod-mtu", "BYTES", NUMBER, "underlay_mtu less VXLAN's 50 bytes, 70 over IPv6", "1450";
    /// This node's MAC in the tunnel.
    VTEP_MAC: "overlay.vtep_mac", "vtep-mac", "MAC", TEXT, "derived from the subnet", "\"0e:57:0a:f4:01:00\"";
    /// This node's MAC in the tunnel for IPv6 pods.
    VTEP_MAC6: "overlay.vtep_mac6", "vtep-mac6", "MAC", TEXT, "vtep_mac", "\"0e:57:0a:f4:01:00\"";
    /// DSCP of outer packets: `inherit` from the inner ones, or 0 to 63.
    DSCP: "overlay.dscp", "dscp", "DSCP", EITHER, "inherit", "\"inherit\"";
    /// Super-frames and partial checksums on pods' TAPs: on, or off for plain frames.
    TAP: "offload.tap", "offload-tap", "MODE", TEXT, "on", "\"on\"";
    /// Send trains of datagrams in one call (UDP_SEGMENT): on or off.
    UDP_GSO: "offload.udp_gso", "offload-udp-gso", "MODE", TEXT, "on", "\"on\"";
    /// Receive trains of datagrams in one call (UDP_GRO): on or off.
    UDP_GRO: "offload.udp_gro", "offload-udp-gro", "MODE", TEXT, "on", "\"on\"";
    /// Leave checksums partial within the node: on, or off to complete each.
    CHECKSUM: "offload.checksum", "offload-checksum", "MODE", TEXT, "on", "\"on\"";
    /// Let the newest of several TCP acknowledgements that wait to be sent to a peer stand for all: on, or off to
    /// send each.
    ACKS: "offload.acks", "offload-acks", "MODE", TEXT, "on", "\"on\"";
    /// Broadcasts and multicasts each pod may send in a second.
    BROADCAST: "limits.broadcast_per_second", "broadcast-per-second", "COUNT", NUMBER, "1000", "1000";
    /// Microseconds to look for the next packet before sleeping, while packets come and go one by one; halves
    /// round-trip times and costs processor time then. 0 sleeps at once.
    LINGER: "limits.linger_us", "linger-us", "COUNT", NUMBER, "40", "40";
    /// Receive buffer to ask of the kernel for the VXLAN socket, in bytes.
    RECEIVE_BUFFER: "limits.receive_buffer", "receive-buffer", "BYTES", NUMBER, "8 MiB", "8388608";
    /// Send buffer to ask of the kernel for each VXLAN socket, in bytes.
    SEND_BUFFER: "limits.send_buffer", "send-buffer", "BYTES", NUMBER, "8 MiB", "8388608";
    /// Where the cluster's subnets are kept: `file` for subnet and peers as given here, `etcd` for leases shared with
    /// flannel.
    STORE: "store.kind", "store", "KIND", TEXT, "file", "\"etcd\"";
    /// URLs of etcd's members.
    ENDPOINTS: "store.endpoints", "etcd-endpoints", "URL", TEXT, "http://127.0.0.1:2379", "\"http://127.0.0.1:2379\"", true;
    /// Prefix of the network's keys in etcd.
    PREFIX: "store.prefix", "etcd-prefix", "PREFIX", TEXT, "/coreos.com/network, as flannel", "\"/coreos.com/network\"";
    /// File with the certificates that etcd's own is checked against (PEM).
    CA_FILE: "store.ca_file", "etcd-cafile", "FILE", TEXT, "the system's, for https", "\"ca.pem\"";
    /// File with this node's certificate for etcd (PEM).
    CERT_FILE: "store.cert_file", "etcd-certfile", "FILE", TEXT, "none", "\"node.pem\"";
    /// File with the key of that certificate (PEM).
    KEY_FILE: "store.key_file", "etcd-keyfile", "FILE", TEXT, "none", "\"node.key\"";
    /// User at etcd.
    USER: "store.user", "etcd-username", "NAME", TEXT, "none", "\"podwire\"";
    /// File with the user's password, which nobody sees there.
    PASSWORD_FILE: "store.password_file", "etcd-password-file", "FILE", TEXT, "none", "\"etcd.password\"";
    /// The user's password itself; as a flag every user of the host can read it.
    PASSWORD: "store.password", "etcd-password", "PASSWORD", TEXT, "none", "\"...\"";
    /// Minutes before its expiry that the node's lease is renewed (1 to 1439).
    RENEW_MARGIN: "store.renew_margin", "subnet-lease-renew-margin", "MINUTES", NUMBER, "60", "60";
    /// IPv4 address that peers send to.
    PUBLIC_IP: "store.public_ip", "public-ip", "ADDR", TEXT, "overlay.bind, or the address of the default route; followed when it changes", "\"192.0.2.1\"";
    /// IPv6 address that peers send IPv6 pods' packets to.
    PUBLIC_IP6: "store.public_ip6", "public-ipv6", "ADDR", TEXT, "overlay.bind, or the address of the default route", "\"2001:db8::1\"";
    /// File that tells CNI plugins the node's subnet (`subnet.env`), which is asked for again at the next start.
    SUBNET_FILE: "store.subnet_file", "subnet-file", "FILE", TEXT, "/run/flannel/subnet.env for root, else beside the socket", "\"/run/flannel/subnet.env\"";
    /// Address of `/healthz` and `/readyz`, for all who can reach it.
    HEALTH_IP: "health.healthz_ip", "healthz-ip", "ADDR", TEXT, "127.0.0.1", "\"127.0.0.1\"";
    /// Port of `/healthz` and `/readyz`; 0 serves them nowhere but beside the metrics.
    HEALTH_PORT: "health.healthz_port", "healthz-port", "PORT", NUMBER, "0", "9473";
    /// Whether pods outlive a clean end of the node, for its next start: off detaches them, on is for service managers
    /// that restart it. They outlive a crash in any case.
    KEEP_PODS: "pods.keep", "keep-pods", "MODE", TEXT, "off", "\"on\"";
    /// Whether pods reach the world outside of the pod network, by sockets of this host: on or off.
    EGRESS: "egress.mode", "egress", "MODE", TEXT, "on", "\"on\"";
    /// Networks pods never reach, beside this host's own addresses and loopback.
    EGRESS_DENY: "egress.deny", "egress-deny", "CIDR", TEXT, "none", "\"169.254.169.254/32\"", true;
    /// Addresses that are pods' and never leave by this host's sockets.
    POD_NETWORK: "egress.pod_network", "pod-network", "CIDR", TEXT, "the cluster's network as the store has it, or the /16 (IPv6 /48) around the subnet", "\"10.244.0.0/16\"", true;
    /// Addresses under which pods reach this host's loopback, `gateway` for theirs; they find it as host.podwire.internal.
    MAP_HOST: "egress.map_host", "map-host", "ADDR", TEXT, "none: this host is closed to pods", "\"gateway\"", true;
    /// Whether pods are answered DNS at their gateway's address: on or off.
    DNS: "dns.enabled", "dns", "MODE", TEXT, "on", "\"on\"";
    /// Addresses where others than pods may ask too, port 53 unless given; for all who can reach them.
    DNS_LISTEN: "dns.listen", "dns-listen", "ADDR[:PORT]", TEXT, "none: only pods may ask", "\"127.0.0.1:5353\"", true;
    /// Resolvers that are asked for all other names, instead of the host's.
    DNS_UPSTREAM: "dns.upstream", "dns-upstream", "ADDR[:PORT]", TEXT, "those of dns.resolv_conf", "\"192.0.2.53\"", true;
    /// File that names the host's resolvers; every change is taken at once.
    DNS_RESOLV_CONF: "dns.resolv_conf", "dns-resolv-conf", "FILE", TEXT, "/etc/resolv.conf", "\"/etc/resolv.conf\"";
    /// Domain of the pods' names: NAME.NAMESPACE.DOMAIN.
    DNS_DOMAIN: "dns.domain", "dns-domain", "DOMAIN", TEXT, "pod", "\"pod\"";
    /// Names of your own: `NAME ADDRESS`, `NAME CNAME OTHER`, `NAME SRV PRIORITY WEIGHT PORT HOST`, `NAME TXT TEXT`; as
    /// flags, without commas in texts.
    DNS_RECORDS: "dns.records", "dns-record", "RECORD", TEXT, "none", "\"db.internal 192.0.2.7\"", true;
    /// Folder of manifests (Kubernetes' Service and EndpointSlice, *.yaml); every change is taken at once.
    SERVICES: "services.dir", "services", "DIR", TEXT, "none: only what `podwire service apply` gives", "\"/etc/podwire/services\"";
    /// Where Services' addresses are from, one range of each family: outside of the pod network, and the same on all nodes.
    CLUSTER_IP: "services.cluster_ip", "service-cluster-ip", "RANGE", TEXT, "10.96.0.0/16, and with IPv6 pods fd00:10:96::/112", "\"10.96.0.0/16\"", true;
    /// Where node ports are from: FIRST-LAST, the same on all nodes.
    NODE_PORTS: "services.node_port_range", "service-node-ports", "RANGE", TEXT, "30000-32767", "\"30000-32767\"";
    /// Domain of Services' names: NAME.NAMESPACE.svc.DOMAIN.
    SERVICE_DOMAIN: "services.domain", "service-domain", "DOMAIN", TEXT, "cluster.local", "\"cluster.local\"";
    /// Address and port of Prometheus' `/metrics`, for all who can reach it: plain HTTP, no password. Port 0 is any free one.
    METRICS: "metrics.listen", "metrics", "ADDR:PORT", TEXT, "none: no metrics are served", "\"127.0.0.1:9472\"";
}

impl Key {
    /// The environment variable that speaks where neither flag nor file does: flannel's, for what flannel has too.
    pub fn environment(&self) -> Option<String> {
        let flannels = matches!(self.split().0, Some("store" | "health")) && *self != STORE;
        flannels.then(|| format!("FLANNELD_{}", self.flag.to_uppercase().replace('-', "_")))
    }

    /// The section of the file it stands in, and its name there.
    pub fn split(&self) -> (Option<&'static str>, &'static str) {
        match self.name.split_once('.') {
            Some((section, name)) => (Some(section), name),
            None => (None, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_flags_are_unique_and_sections_together() {
        let mut names: Vec<_> = KEYS.iter().map(|k| k.name).collect();
        let mut flags: Vec<_> = KEYS.iter().map(|k| k.flag).collect();
        names.sort();
        names.dedup();
        flags.sort();
        flags.dedup();
        assert_eq!((names.len(), flags.len()), (KEYS.len(), KEYS.len()));
        let mut sections: Vec<_> = KEYS.iter().map(|k| k.split().0).collect();
        sections.dedup();
        assert_eq!(
            sections,
            [
                None,
                Some("overlay"),
                Some("offload"),
                Some("limits"),
                Some("store"),
                Some("health"),
                Some("pods"),
                Some("egress"),
                Some("dns"),
                Some("services"),
                Some("metrics")
            ]
        );
    }
}
