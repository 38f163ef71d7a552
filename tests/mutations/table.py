"""Changes of one place each, after which a deployment fails or is open to everybody; a test has to notice every one."""

from __future__ import annotations

from dataclasses import dataclass

MANIFESTS = ("tests/manifests", "tests/unit/serve")
RUNTIME = "manifests/base/runtime/servingruntime.yaml"
MODEL = "manifests/base/model/inferenceservice.yaml"
VLLM = "manifests/components/vllm/servingruntime.yaml"
POLICY = "manifests/components/networkpolicy"
CONNECTION = "manifests/connection/kustomization.yaml"


@dataclass(frozen=True)
class Mutation:
    """A change, and where it is expected to be noticed.

    Args:
        name: what is broken, in words.
        file: of the repository.
        old, new: the text that is replaced, everywhere in the file, and what stands there then.
        tests: files or folders of tests, the quick ones first.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = MANIFESTS

    def __str__(self) -> str:
        return self.name


MUTATIONS = (
    # Those that no test noticed on 29 November 2026.
    Mutation("the liveness probe's module", RUNTIME, '"caikit_health_probe", "readiness"',
             '"caikit.runtime_probe", "readiness"'),
    Mutation("the engine's liveness port", RUNTIME,
             "livenessProbe:\n        httpGet: {path: /health, port: 3000}",
             "livenessProbe:\n        httpGet: {path: /health, port: 3999}"),
    Mutation("the engine's model", RUNTIME, "--model-name=/mnt/models/artifacts/", "--model-name=/mnt/nothing/"),
    Mutation("Caikit's engine", RUNTIME, "localhost:8033", "localhost:8034"),
    Mutation("the model id from another label", RUNTIME, "metadata.labels['serving.kserve.io/inferenceservice']",
             "metadata.labels['app']"),
    Mutation("the Prometheus port", RUNTIME, 'prometheus.io/port: "3000"', 'prometheus.io/port: "9"'),
    Mutation("the account's S3 Secret", "manifests/base/serviceaccount.yaml", "- name: llm-detox-s3",
             "- name: llm-detox-s4"),
    Mutation("the account `default`", MODEL, "serviceAccountName: llm-detox-model", "serviceAccountName: default"),
    Mutation("no securityContext of the pod", MODEL, """    securityContext:
      runAsNonRoot: true
      seccompProfile:
        type: RuntimeDefault
""", ""),
    Mutation("gRPC shut by the network policy", f"{POLICY}/open-model.yaml",
             "        - {port: 8085, protocol: TCP}\n", ""),
    Mutation("no way out to the store's port", f"{POLICY}/model.yaml", "        - {port: 8333, protocol: TCP}\n", ""),
    Mutation("the name of vLLM's container", VLLM, "- name: kserve-container", "- name: vllm-container"),
    Mutation("vLLM's model", VLLM, "--model=/mnt/models", "--model=/mnt/model"),
    Mutation("the port of the metrics", "manifests/components/monitoring/service.yaml", "targetPort: 8086",
             "targetPort: 8087"),
    Mutation("the gRPC Service to the engine", "manifests/components/grpc/service.yaml", "targetPort: 8444",
             "targetPort: 8033"),
    Mutation("exposed without a token", "manifests/components/protect/kustomization.yaml",
             'security.opendatahub.io/enable-auth: "true"', 'security.opendatahub.io/enable-auth: "false"'),
    Mutation("the store's region misspelt", CONNECTION, "serving.kserve.io/s3-region", "serving.kserve.io/s3-regoin"),
    Mutation("a probe that asks REST only", "llm_detox/serve/kserve/probe.py", "for url in urls.values():",
             "for url in list(urls.values())[:1]:", ("tests/unit/serve",)),
    Mutation("the gate inverted", "pipelines/detox_and_serve.py", '== "pass", name="gate"', '!= "pass", name="gate"',
             ("tests/pipeline/test_compiled.py",)),
    # Twenty and more of our own finding.
    Mutation("a key of the S3 Secret", "manifests/connection/connection.env.example", "AWS_SECRET_ACCESS_KEY=",
             "AWS_SECRET_KEY="),
    Mutation("a volume that is not there", RUNTIME, "    - name: caikit-config\n      configMap:",
             "    - name: caikit-configs\n      configMap:"),
    Mutation("the engine probed over HTTPS", RUNTIME, "httpGet: {path: /health, port: 3000}",
             "httpGet: {path: /health, port: 3000, scheme: HTTPS}"),
    Mutation("the path of the engine's probe", RUNTIME, "httpGet: {path: /health, port: 3000}",
             "httpGet: {path: /healthz, port: 3000}"),
    Mutation("Caikit's REST port", RUNTIME, "{name: http, containerPort: 8080", "{name: http, containerPort: 8081"),
    Mutation("Caikit's gRPC port", RUNTIME, "{name: h2c, containerPort: 8085", "{name: h2c, containerPort: 8084"),
    Mutation("the name that makes a port gRPC", RUNTIME, "{name: h2c,", "{name: grpc,"),
    Mutation("the folder of Caikit's model", RUNTIME, "value: /mnt/models\n", "value: /mnt/model\n"),
    Mutation("the engine's gRPC port", RUNTIME, 'name: GRPC_PORT\n          value: "8033"',
             'name: GRPC_PORT\n          value: "8035"'),
    Mutation("an image that the settings do not know", RUNTIME, "image: caikit\n", "image: caikit-runtime\n"),
    Mutation("Caikit's program", RUNTIME, "/opt/llm-detox/caikit/runtime.py", "/opt/llm-detox/runtime.py"),
    Mutation("checksums not compared", RUNTIME, "value: required", "value: optional",
             (*MANIFESTS, "tests/serving/test_checksums.py")),
    Mutation("a protected pod that does not know it", RUNTIME, "metadata.labels['llm-detox/protected']",
             "metadata.labels['llm-detox/protect']"),
    Mutation("no home folder", RUNTIME, "- name: HOME", "- name: HOUSE"),
    Mutation("a token of the account in the pods", MODEL, "automountServiceAccountToken: false",
             "automountServiceAccountToken: true"),
    Mutation("a rolling update that waits for a second GPU", MODEL, "type: Recreate", "type: RollingUpdate"),
    Mutation("another format", MODEL, "name: caikit\n", "name: caikit-tgis\n"),
    Mutation("the deployment mode misspelt", MODEL, "serving.kserve.io/deploymentMode",
             "serving.kserve.io/deployMode"),
    Mutation("published by plain KServe's Ingress", "manifests/overlays/kserve/model/plain.yaml",
             "networking.kserve.io/visibility: cluster-local", "networking.kserve.io/visibility: exposed"),
    Mutation("no numeric user on plain KServe", "manifests/overlays/kserve/model/plain.yaml",
             "      runAsUser: 1000\n", ""),
    Mutation("a right less: deployments", "manifests/base/rights/role.yaml", 'resources: ["deployments"]',
             'resources: ["replicasets"]'),
    Mutation("update in place of patch", "manifests/base/rights/role.yaml", '"create", "patch", "delete"',
             '"create", "update", "delete"'),
    Mutation("the Role bound to another account", "manifests/base/rights/rolebinding.yaml",
             "name: llm-detox-pipeline", "name: llm-detox-pipelines"),
    Mutation("the open policy for protected pods", f"{POLICY}/open-model.yaml", "operator: NotIn", "operator: In"),
    Mutation("the mark of protected pods misspelt", "manifests/components/protect/kustomization.yaml",
             'llm-detox/protected: "true"', 'llm-detox/protect: "true"'),
    Mutation("the platform's proxy shut", f"{POLICY}/model.yaml", "- {port: 8443, protocol: TCP}",
             "- {port: 8444, protocol: TCP}"),
    Mutation("a canary without a name", "manifests/components/canary/kustomization.yaml",
             "              name: candidate  # KServe refuses one without a name, and one with maxReplicas\n", ""),
    Mutation("the key of an own authority", "manifests/components/custom-ca/kustomization.yaml",
             "cabundle.crt=ca-bundle.crt", "bundle.crt=ca-bundle.crt"),
    Mutation("metrics that nobody selects", "manifests/components/monitoring/servicemonitor.yaml",
             "app.kubernetes.io/component: metrics", "app.kubernetes.io/component: scrape"),
    Mutation("the Route to a port that is not there", "manifests/components/grpc/route.yaml",
             "targetPort: grpcs", "targetPort: grpc"),
    Mutation("vLLM's name for the model", VLLM, "--served-model-name={{.Name}}", "--served-model-name=model"),
    Mutation("vLLM without its published folder", "llm_detox/serve/kserve/render.py",
             'Stack("vLLM", "llm-detox-vllm", "/artifacts")', 'Stack("vLLM", "llm-detox-vllm", "")'),
    Mutation("the token taken off an exposed model", "llm_detox/serve/kserve/render.py",
             "and protected and exposed:", "and not protected and exposed:", ("tests/unit/serve",)),
    Mutation("the label that exposes misspelt", "llm_detox/cluster/objects.py", '"exposed"', '"expose"',
             ("tests/unit/serve",)),
    Mutation("TLS to the store by hand", "manifests/connection/https.yaml", 's3-usehttps: "1"', 's3-usehttps: "0"'),
)
