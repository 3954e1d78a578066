//! dockerd in a container (`docker:dind`), as CI has it: by itself, under GitLab's runner, under GitHub's
//! Actions Runner Controller. dockerd is told by arguments; a CA is put beside the system's.

use super::asked::Asked;
use super::{Plan, docker, list, quoted};

/// Go's programs look for CAs here; a mount cannot go to `certs.d/HOST:PORT`, for its colon.
const CA_FOLDERS: &str = "/etc/ssl/certs:/etc/forebay";

pub fn dind(asked: &Asked) -> Plan {
    let mut plan = arguments(asked);
    let mut text = format!(
        "services:\n  docker:\n    image: docker:dind\n    privileged: true\n    command: {}\n",
        list(&docker::arguments(asked))
    );
    if let Some(pem) = &asked.ca {
        text += &format!("    environment:\n      SSL_CERT_DIR: {}\n", quoted(CA_FOLDERS));
        text += "    volumes: [\"./forebay-ca.crt:/etc/forebay/ca.crt:ro\"]\n";
        plan.file("forebay-ca.crt", pem.as_str());
    }
    plan.files.insert(0, super::File { path: "compose.yaml".into(), text });
    plan.note("in .gitlab-ci.yml, the same `command` belongs to the service `docker:dind`");
    plan
}

pub fn gitlab(asked: &Asked) -> Plan {
    let mut plan = arguments(asked);
    let ca = "/etc/gitlab-runner/certs/forebay-ca.crt";
    let mut text = "[[runners]]\nexecutor = \"docker\"\n\n[runners.docker]\nprivileged = true\n".to_owned();
    if asked.ca.is_some() {
        text += &format!("volumes = {}\n", list(&[format!("{ca}:/etc/forebay/ca.crt:ro")]));
    }
    text += &format!(
        "\n[[runners.docker.services]]\nname = \"docker:dind\"\nalias = \"docker\"\ncommand = {}\n",
        list(&docker::arguments(asked))
    );
    if asked.ca.is_some() {
        text += &format!("environment = {}\n", list(&[format!("SSL_CERT_DIR={CA_FOLDERS}")]));
    }
    plan.file("/etc/gitlab-runner/config.toml", text);
    if let Some(pem) = &asked.ca {
        plan.file(ca, pem.as_str());
    }
    plan.note("merge it into the runner that is there; the runner takes it up by itself");
    plan.note("the images of jobs are pulled by the machine's own docker: see `client-config docker`");
    plan
}

/// The pod that the chart `gha-runner-scale-set` documents for its container mode `dind`, which leaves no
/// room for arguments; so `containerMode` stays empty.
pub fn github(asked: &Asked) -> Plan {
    let mut plan = arguments(asked);
    let mut own = vec![
        "dockerd".to_owned(),
        "--host=unix:///var/run/docker.sock".into(),
        "--group=$(DOCKER_GROUP_GID)".into(),
    ];
    own.extend(docker::arguments(asked));
    let (mut environment, mut mounts, mut volumes) = (String::new(), String::new(), String::new());
    if asked.ca.is_some() {
        environment = format!("\n          - {{ name: SSL_CERT_DIR, value: {} }}", quoted(CA_FOLDERS));
        mounts = "\n          - { name: forebay-ca, mountPath: /etc/forebay }".into();
        volumes = "\n      - { name: forebay-ca, configMap: { name: forebay-ca } }".into();
        plan.note(
            "the CA, in the runners' namespace: kubectl create configmap forebay-ca --from-file=ca.crt=FILE",
        );
    }
    let arguments = list(&own);
    let text = format!(
        r#"template:
  spec:
    initContainers:
      - name: init-dind-externals
        image: ghcr.io/actions/actions-runner:latest
        command: ["cp", "-r", "/home/runner/externals/.", "/home/runner/tmpDir/"]
        volumeMounts:
          - {{ name: dind-externals, mountPath: /home/runner/tmpDir }}
      - name: dind
        image: docker:dind
        args: {arguments}
        env:
          - {{ name: DOCKER_GROUP_GID, value: "123" }}{environment}
        securityContext: {{ privileged: true }}
        restartPolicy: Always
        startupProbe:
          exec: {{ command: ["docker", "info"] }}
          periodSeconds: 5
          failureThreshold: 24
        volumeMounts:
          - {{ name: work, mountPath: /home/runner/_work }}
          - {{ name: dind-sock, mountPath: /var/run }}
          - {{ name: dind-externals, mountPath: /home/runner/externals }}{mounts}
    containers:
      - name: runner
        image: ghcr.io/actions/actions-runner:latest
        command: ["/home/runner/run.sh"]
        env:
          - {{ name: DOCKER_HOST, value: "unix:///var/run/docker.sock" }}
          - {{ name: RUNNER_WAIT_FOR_DOCKER_IN_SECONDS, value: "120" }}
        volumeMounts:
          - {{ name: work, mountPath: /home/runner/_work }}
          - {{ name: dind-sock, mountPath: /var/run }}
    volumes:
      - {{ name: work, emptyDir: {{}} }}
      - {{ name: dind-sock, emptyDir: {{}} }}
      - {{ name: dind-externals, emptyDir: {{}} }}{volumes}
"#
    );
    plan.file("values.yaml", text);
    plan.note(
        "for the chart gha-runner-scale-set, without containerMode: helm upgrade --values values.yaml ...",
    );
    plan.note("docker:dind and the runner itself are pulled by the nodes: see `client-config containerd`");
    plan
}

/// Nothing yet but what dockerd's arguments cannot say.
fn arguments(asked: &Asked) -> Plan {
    let mut plan = Plan::default();
    if asked.docker_hub().is_none() {
        plan.note("dockerd's mirrors are of Docker Hub alone, which is not asked for");
    }
    for upstream in asked.upstreams.iter().filter(|upstream| !upstream.is_docker_hub()) {
        plan.note(match upstream.prefix() {
            Some(prefix) => format!(
                "dockerd's mirrors are of Docker Hub alone: pull {0}/... as {1}{prefix}/...",
                upstream.host,
                asked.server.authority()
            ),
            None => upstream.no_prefix(),
        });
    }
    plan
}
