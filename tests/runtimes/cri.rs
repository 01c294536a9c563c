//! What a kubelet asks of a container runtime: the CRI, over the socket of containerd.

use super::image::IMAGE;
use super::shell::cgroup;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, DnsConfig, ExecSyncRequest, ImageSpec,
    LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig, ListPodSandboxRequest,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest,
    PortMapping, RemoveContainerRequest, RemovePodSandboxRequest, RunPodSandboxRequest,
    StartContainerRequest, StatusRequest, StopContainerRequest, StopPodSandboxRequest,
};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

/// Longer than any answer should take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A client of containerd's CRI.
pub struct Kubelet {
    socket: PathBuf,
    tokio: tokio::runtime::Runtime,
}

/// A pod that runs.
pub struct Pod {
    /// What was asked for.
    pub config: PodSandboxConfig,
    /// The identifier of its sandbox.
    pub id: String,
}

/// A pod of a name, in the namespace `shop`.
pub fn pod(name: &str) -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.into(),
            uid: format!("uid-of-{name}"),
            namespace: "shop".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        // As a kubelet sends a pod's labels.
        labels: [("app".into(), name.into())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup(),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// Such a pod that resolves names with a server.
pub fn with_dns(mut config: PodSandboxConfig, server: &str) -> PodSandboxConfig {
    config.dns_config = Some(DnsConfig {
        servers: vec![server.into()],
        searches: vec!["shop.pod".into()],
        options: vec!["ndots:1".into()],
    });
    config
}

/// Such a pod with a `hostPort`.
pub fn with_port(mut config: PodSandboxConfig, host: i32, container: i32) -> PodSandboxConfig {
    config.port_mappings.push(PortMapping {
        host_port: host,
        container_port: container,
        ..PortMapping::default()
    });
    config
}

impl Kubelet {
    /// One that asks the containerd with this socket.
    pub fn at(socket: &Path) -> Kubelet {
        let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (socket, tokio) = (socket.into(), tokio.unwrap());
        Kubelet { socket, tokio }
    }

    /// Ask it something; the connection is a new one, as containerd may be too.
    fn ask<T>(
        &self,
        what: impl AsyncFnOnce(&mut RuntimeServiceClient<Channel>) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let socket = format!("unix://{}", self.socket.display());
        let asked = async {
            let mut client = RuntimeServiceClient::connect(socket)
                .await
                .map_err(|e| Status::unavailable(e.to_string()))?;
            what(&mut client).await
        };
        let answer = self
            .tokio
            .block_on(async { tokio::time::timeout(PATIENCE, asked).await });
        answer
            .expect("containerd does not answer")
            .map(tonic::Response::into_inner)
    }

    /// Start a pod.
    pub fn try_run(&self, config: &PodSandboxConfig) -> Result<Pod, Status> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let answer = self.ask(async |client| client.run_pod_sandbox(request).await)?;
        Ok(Pod {
            config: config.clone(),
            id: answer.pod_sandbox_id,
        })
    }

    /// Start a pod, which has to succeed.
    pub fn run(&self, config: &PodSandboxConfig) -> Pod {
        self.try_run(config).unwrap_or_else(|e| panic!("no sandbox: {e}"))
    }

    /// A pod's addresses, as containerd tells them: an IPv4 one first, where there is any.
    pub fn addresses(&self, pod: &Pod) -> Vec<String> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: false,
        };
        let answer = self
            .ask(async |client| client.pod_sandbox_status(request).await)
            .unwrap();
        let network = answer.status.unwrap().network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|ip| ip.ip);
        std::iter::once(network.ip).chain(more).collect()
    }

    /// The sandboxes there are.
    pub fn sandboxes(&self) -> Vec<String> {
        let request = ListPodSandboxRequest::default();
        let answer = self
            .ask(async |client| client.list_pod_sandbox(request).await)
            .unwrap();
        answer.items.into_iter().map(|item| item.id).collect()
    }

    /// Stop a sandbox: its network goes.
    pub fn stop(&self, id: &str) -> Result<(), Status> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.ask(async |client| client.stop_pod_sandbox(request).await)
            .map(|_| ())
    }

    /// Remove a sandbox.
    pub fn remove(&self, id: &str) -> Result<(), Status> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        };
        self.ask(async |client| client.remove_pod_sandbox(request).await)
            .map(|_| ())
    }

    /// Stop and remove all sandboxes but some, as a kubelet does with those of pods that it does not want.
    pub fn clear_but(&self, kept: &[&str]) {
        for id in self.sandboxes() {
            if kept.contains(&id.as_str()) {
                continue;
            }
            self.stop(&id).unwrap_or_else(|e| panic!("stop {id}: {e}"));
            self.remove(&id).unwrap_or_else(|e| panic!("remove {id}: {e}"));
        }
    }

    /// Create and start a container in a pod: its identifier.
    pub fn start(&self, pod: &Pod, name: &str, attempt: u32, program: &[&str]) -> String {
        let options = NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        };
        let security = LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..LinuxContainerSecurityContext::default()
        };
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.into(),
                attempt,
            }),
            image: Some(ImageSpec {
                image: IMAGE.into(),
                ..ImageSpec::default()
            }),
            command: program.iter().map(|word| word.to_string()).collect(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(security),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        let create = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let made = self.ask(async |client| client.create_container(create).await);
        let container_id = made.unwrap_or_else(|e| panic!("{name}: {e}")).container_id;
        let start = StartContainerRequest {
            container_id: container_id.clone(),
        };
        self.ask(async |client| client.start_container(start).await)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        container_id
    }

    /// Stop a container at once, and remove it.
    pub fn end(&self, container: &str) {
        let stop = StopContainerRequest {
            container_id: container.into(),
            timeout: 0,
        };
        self.ask(async |client| client.stop_container(stop).await)
            .unwrap();
        let remove = RemoveContainerRequest {
            container_id: container.into(),
        };
        self.ask(async |client| client.remove_container(remove).await)
            .unwrap();
    }

    /// What a program in a container says, and whether it succeeds.
    pub fn exec(&self, container: &str, program: &[&str]) -> (bool, String) {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: program.iter().map(|word| word.to_string()).collect(),
            timeout: 10,
        };
        let answer = self
            .ask(async |client| client.exec_sync(request).await)
            .unwrap_or_else(|e| panic!("{program:?}: {e}"));
        let said = [answer.stdout, answer.stderr].concat();
        (answer.exit_code == 0, String::from_utf8_lossy(&said).into_owned())
    }

    /// Whether pods could be started, and why not.
    pub fn network(&self) -> Result<(), String> {
        let answer = self
            .ask(async |client| client.status(StatusRequest::default()).await)
            .map_err(|e| e.to_string())?;
        let conditions = answer.status.unwrap().conditions;
        let network = conditions.into_iter().find(|c| c.r#type == "NetworkReady");
        let network = network.unwrap();
        if network.status {
            Ok(())
        } else {
            Err(network.message)
        }
    }
}
