package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

const baseDir = "kustomize/base"

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares a result with a golden file.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", path, got)
	}
}

// objects has the decoded objects of a set of manifests.
type objects struct {
	account   corev1.ServiceAccount
	role      rbacv1.ClusterRole
	binding   rbacv1.ClusterRoleBinding
	daemonSet appsv1.DaemonSet
	// others has the objects of other kinds, by API version and kind.
	others map[string]any
}

// furtherKinds returns an empty object for each kind that only some of the manifests have. The kinds of
// the Prometheus Operator are maps, because this package has no types for them.
func furtherKinds() map[string]any {
	return map[string]any{
		"v1 Service": new(corev1.Service), "v1 Service hubble-peer": new(corev1.Service), "v1 Pod": new(corev1.Pod), "v1 ConfigMap": new(corev1.ConfigMap),
		"monitoring.coreos.com/v1 ServiceMonitor": &map[string]any{}, "monitoring.coreos.com/v1 PodMonitor": &map[string]any{}, "monitoring.coreos.com/v1 PrometheusRule": &map[string]any{},
	}
}

// read decodes manifests into the types of the API. It fails the test if a manifest has an unknown
// field, or if a kind is missing, unknown or repeated.
func read(t *testing.T, text []byte) *objects {
	t.Helper()
	o := &objects{others: map[string]any{}}
	further := furtherKinds()
	into := map[string]any{
		"v1 ServiceAccount": &o.account, "apps/v1 DaemonSet": &o.daemonSet,
		"rbac.authorization.k8s.io/v1 ClusterRole":        &o.role,
		"rbac.authorization.k8s.io/v1 ClusterRoleBinding": &o.binding,
	}
	for reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var kind metav1.PartialObjectMetadata
		if err := sigsyaml.Unmarshal(document, &kind); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if kind.Kind == "" {
			continue // the document has only comments
		}
		name := kind.APIVersion + " " + kind.Kind
		if kind.Name == "hubble-peer" {
			name += " " + kind.Name // to tell it from the other Service
		}
		target := into[name]
		if target == nil && o.others[name] == nil {
			target, o.others[name] = further[name], further[name]
		}
		if target == nil {
			t.Fatalf("unexpected or second %s", name)
		}
		delete(into, name)
		if err := sigsyaml.UnmarshalStrict(document, target); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	for name := range into {
		t.Errorf("no %s", name)
	}
	return o
}

// base returns the text of the files that the kustomization names. It fails the test if there are
// further files.
func base(t *testing.T) []byte {
	t.Helper()
	var k struct {
		metav1.TypeMeta `json:",inline"`
		Resources       []string `json:"resources"`
	}
	readYAML(t, filepath.Join(baseDir, "kustomization.yaml"), &k)
	entries, err := os.ReadDir(baseDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "kustomization.yaml" && !slices.Contains(k.Resources, e.Name()) {
			t.Errorf("the kustomization does not name %s", e.Name())
		}
	}
	var all []byte
	for _, name := range k.Resources {
		text, err := os.ReadFile(filepath.Join(baseDir, name))
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, "---\n"...), text...)
	}
	return all
}

// The base and the chart with its default values are equal, except for Helm's own labels.
func TestBaseEqualsChart(t *testing.T) {
	a, b := read(t, base(t)), read(t, render(t))
	for _, m := range []*metav1.ObjectMeta{&b.account.ObjectMeta, &b.role.ObjectMeta, &b.binding.ObjectMeta, &b.daemonSet.ObjectMeta, &b.daemonSet.Spec.Template.ObjectMeta} {
		if m.Labels["app.kubernetes.io/instance"] != "sluice" {
			t.Errorf("the chart's labels are %v", m.Labels)
		}
		m.Labels = map[string]string{"app.kubernetes.io/name": m.Labels["app.kubernetes.io/name"]}
	}
	delete(b.daemonSet.Spec.Selector.MatchLabels, "app.kubernetes.io/instance")
	delete(b.others, "v1 Pod") // the pod of "helm test"
	if yamlOf(t, a) != yamlOf(t, b) {
		t.Errorf("the base is\n%+v\nand the chart\n%+v", yamlOf(t, a), yamlOf(t, b))
	}
}

func yamlOf(t *testing.T, o *objects) string {
	t.Helper()
	var all strings.Builder
	for _, v := range []any{o.account, o.role, o.binding, o.daemonSet, o.others} {
		text, err := sigsyaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}

// eachRendering calls f in a subtest for each of these: the base, the base with each component, the
// chart with its default values, and the chart with other values.
func eachRendering(t *testing.T, f func(*testing.T, *objects)) {
	all := map[string][]byte{"base": base(t), "chart": render(t), "chart, all values": render(t, fullValues)}
	for _, name := range components {
		all["base with "+name] = withComponent(t, name)
	}
	for name, text := range all {
		t.Run(name, func(t *testing.T) { f(t, read(t, text)) })
	}
}

// The role allows an agent to read what it needs and, with the startup taint, to patch Nodes.
func TestRoleIsSmall(t *testing.T) {
	eachRendering(t, func(t *testing.T, o *objects) {
		may := map[string][]string{}
		for _, r := range o.role.Rules {
			if len(r.NonResourceURLs) > 0 && len(r.APIGroups) == 0 && len(r.Resources) == 0 {
				for _, path := range r.NonResourceURLs {
					may[path] = append(may[path], r.Verbs...)
				}
				continue
			}
			if len(r.APIGroups) != 1 || len(r.NonResourceURLs) > 0 {
				t.Errorf("rule %+v", r)
			}
			for _, resource := range r.Resources {
				may[r.APIGroups[0]+"/"+resource] = append(may[r.APIGroups[0]+"/"+resource], r.Verbs...)
			}
		}
		read := []string{"get", "list", "watch"}
		want := map[string][]string{
			"/pods": read, "/namespaces": read, "/nodes": read,
			"networking.k8s.io/networkpolicies": read, "policy.networking.k8s.io/clusternetworkpolicies": read,
			"/apis": {"get"}, "/apis/policy.networking.k8s.io/*": {"get"}, // discovery
		}
		if o.startupTaint() != "" {
			want["/nodes"] = append(slices.Clone(read), "patch")
		}
		if !reflect.DeepEqual(may, want) {
			t.Errorf("the role allows %v, want %v", may, want)
		}
		subject := rbacv1.Subject{Kind: "ServiceAccount", Name: o.account.Name, Namespace: o.account.Namespace}
		if o.binding.RoleRef.Name != o.role.Name || len(o.binding.Subjects) != 1 || o.binding.Subjects[0] != subject ||
			o.daemonSet.Spec.Template.Spec.ServiceAccountName != o.account.Name || o.daemonSet.Namespace != o.account.Namespace {
			t.Errorf("the binding %+v does not bind the account %s/%s of the pods", o.binding, o.account.Namespace, o.account.Name)
		}
	})
}

// The pod has the rights that an agent needs on its node, and is not privileged.
func TestPodIsConfined(t *testing.T) {
	eachRendering(t, func(t *testing.T, o *objects) {
		pod := o.daemonSet.Spec.Template.Spec
		if !pod.HostNetwork || pod.HostPID || pod.HostIPC || len(pod.Containers) != 1 {
			t.Errorf("the pod is %+v", pod)
		}
		if len(pod.Tolerations) == 0 || pod.PriorityClassName == "" {
			t.Error("without tolerations and a priority class, the pod does not run on every node")
		}
		if p := pod.SecurityContext.SeccompProfile; p == nil || p.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("seccomp %+v", p)
		}
		c := pod.Containers[0]
		s := c.SecurityContext
		if *s.Privileged || *s.AllowPrivilegeEscalation || !*s.ReadOnlyRootFilesystem || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
			t.Errorf("the container's security context is %+v", s)
		}
		want := []corev1.Capability{"NET_ADMIN", "NET_RAW"}
		bpf := argument(t, c.Args, "--kernel-cache") != "off" || !slices.Contains(c.Args, "--guard=off")
		if bpf {
			want = append(want, "BPF")
		}
		if !slices.Equal(s.Capabilities.Add, want) {
			t.Errorf("capabilities %v, want %v (a test of cmd/sluice determines them)", s.Capabilities.Add, want)
		}
		if len(c.Ports) != 0 {
			t.Error("with a port on the host, two agents could not run side by side during an update")
		}
		if r := o.daemonSet.Spec.UpdateStrategy.RollingUpdate; slices.Contains([]string{"", "0", "0%"}, r.MaxSurge.String()) || r.MaxUnavailable.IntValue() != 0 {
			t.Errorf("an update leaves a node without an agent: %+v", r)
		}
		for label, value := range o.daemonSet.Spec.Selector.MatchLabels {
			if o.daemonSet.Spec.Template.Labels[label] != value {
				t.Errorf("the pods lack the label %s=%s", label, value)
			}
		}
		for _, v := range pod.Volumes {
			if bpf && v.Name == "bpf" && v.HostPath != nil && v.HostPath.Path == "/sys/fs/bpf" {
				continue
			}
			if v.Name == "hubble" && v.Secret != nil {
				if v.Secret.Optional == nil || !*v.Secret.Optional {
					t.Error("without the Secret of hubble, no agent would enforce")
				}
				continue
			}
			if v.HostPath == nil || !strings.HasPrefix(v.HostPath.Path, "/run/") && !strings.HasPrefix(v.HostPath.Path, "/var/run/") {
				t.Errorf("volume %+v", v)
			}
		}
		for _, m := range c.VolumeMounts {
			if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				t.Errorf("there is no volume %s", m.Name)
			}
			if m.Name == "bpf" && m.MountPath != argument(t, c.Args, "--bpffs") {
				t.Errorf("the BPF file system is mounted at %s, but --bpffs is %s", m.MountPath, argument(t, c.Args, "--bpffs"))
			}
		}
	})
}

// The kubelet's probes use the socket and the address on which the agent listens.
func TestProbesReachTheAgent(t *testing.T) {
	eachRendering(t, func(t *testing.T, o *objects) {
		c := o.daemonSet.Spec.Template.Spec.Containers[0]
		socket := argument(t, c.Args, "--socket")
		if command := c.ReadinessProbe.Exec.Command; !slices.Contains(command, "--self") || argument(t, command, "--socket") != socket {
			t.Errorf("the readiness probe runs %q, but the agent answers on %s", command, socket)
		}
		if !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == filepath.Dir(socket) }) {
			t.Errorf("nothing is mounted for the socket %s", socket)
		}
		g := c.LivenessProbe.HTTPGet
		address := argument(t, c.Args, "--http-address")
		everywhere := fmt.Sprintf("0.0.0.0:%d", g.Port.IntValue())
		if at := fmt.Sprintf("%s:%d", g.Host, g.Port.IntValue()); at != address && !(address == everywhere && g.Host == "127.0.0.1") || g.Path != "/healthz" {
			t.Errorf("the liveness probe gets %s%s, but the agent answers on %s", at, g.Path, address)
		}
	})
}

// argument returns the value of a flag in args. If the flag is given several times, the last one
// counts.
func argument(t *testing.T, args []string, flag string) string {
	t.Helper()
	for _, a := range slices.Backward(args) {
		if v, ok := strings.CutPrefix(a, flag+"="); ok {
			return v
		}
	}
	t.Fatalf("no %s in %q", flag, args)
	return ""
}

// tool returns the output of a program that "make check-deploy" installs. It skips the test if the
// program is missing.
func tool(t *testing.T, name string, args ...string) ([]byte, error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s: run make check-deploy", name)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.Bytes())
	}
	return out, err
}

// helmArgs returns arguments for Helm to render the chart as the tests do. Without --kube-version, a
// Helm that was built from its module assumes a very old cluster.
func helmArgs(more ...string) []string {
	return append([]string{"template", "sluice", chartDir, "--namespace", "kube-system", "--kube-version", "1.33.0"}, more...)
}

func TestHelmRendersAsTheTestsDo(t *testing.T) {
	for name, files := range map[string][]string{"defaults": nil, "all values": {fullValues}} {
		t.Run(name, func(t *testing.T) {
			var args []string
			for _, f := range files {
				args = append(args, "--values", f)
			}
			out, err := tool(t, "helm", helmArgs(args...)...)
			if err != nil {
				t.Fatal(err)
			}
			if a, b := read(t, out), read(t, render(t, files...)); yamlOf(t, a) != yamlOf(t, b) {
				t.Errorf("Helm renders\n%s\nand the test\n%s", yamlOf(t, a), yamlOf(t, b))
			}
		})
	}
}

// The commands of the READMEs install, without Helm, the image that the lines before them build.
func TestReadmesInstallTheirImage(t *testing.T) {
	daemonSet, err := os.ReadFile(filepath.Join(baseDir, "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"../README.md", "README.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		image := regexp.MustCompile(`make image IMAGE=(\S+)`).FindSubmatch(text)
		replace := regexp.MustCompile(`kubectl kustomize deploy/kustomize/base \| sed 's\|(\S+)\|(\S+)\|' \| kubectl apply -f -`).FindSubmatch(text)
		if image == nil || replace == nil {
			t.Errorf("%s builds %q and replaces %q", path, image, replace)
			continue
		}
		if installed := bytes.ReplaceAll(daemonSet, replace[1], replace[2]); !bytes.Contains(installed, append([]byte("image: "), append(image[1], '\n')...)) {
			t.Errorf("%s builds %s and installs\n%s", path, image[1], installed)
		}
	}
}

// The schema rejects values that would not work.
func TestHelmRefusesBadValues(t *testing.T) {
	for _, bad := range []string{
		"fail=shut", "onExit=stay", "hold=1", "iptables=ebtables", "queues=-1", "httpAddress=9999", "runDir=run",
		"startupTaint=a=b:NoSchedule", "queues=65536", "podCIDRs={10.0.0.0/99}", "podCIDRs={1::2::3/64}", "httpAddress=127.0.0.1:65536",
		"podLabels.app\\.kubernetes\\.io/name=x", "commonLabels.helm\\.sh/chart=x", "image.digest=sha256:12", "updateStrategy.type=Recreate", "updateStrategy.rollingUpdate.maxSurge=101%",
		"fullnameOverride=A_b", "metrics.serviceMonitor.interval=soon", "extraVolumes[0].nme=x", "sysctlProblems=ignore", "guard=maybe", "log.level=loud", "image.pullPolicy=Sometimes", "podCIDRs={10.0.0.0}", "extraArgs={x}", "hodl=1s", "log.verdict=all",
	} {
		t.Run(bad, func(t *testing.T) {
			if _, err := tool(t, "helm", helmArgs("--set", bad)...); err == nil || !strings.Contains(err.Error(), "schema") {
				t.Errorf("error %v, want one about the schema", err)
			}
		})
	}
}

func TestKustomizeBuildsTheBase(t *testing.T) {
	out, err := tool(t, "kustomize", "build", baseDir)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := read(t, out), read(t, base(t)); yamlOf(t, a) != yamlOf(t, b) {
		t.Errorf("kustomize builds\n%s\nand the files are\n%s", yamlOf(t, a), yamlOf(t, b))
	}
}

// The objects in README.md with the rights to ask all nodes are valid, and each binding refers to one of the
// roles.
func TestRightsToAskInReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "```yaml\n")
	block, _, _ := strings.Cut(rest, "```")
	roles, bindings := make(map[rbacv1.RoleRef]bool), make(map[rbacv1.RoleRef]bool)
	for object := range strings.SplitSeq(block, "---\n") {
		var role struct {
			metav1.TypeMeta
			metav1.ObjectMeta `json:"metadata"`
			Rules             []rbacv1.PolicyRule
			RoleRef           rbacv1.RoleRef
			Subjects          []rbacv1.Subject
		}
		if err := sigsyaml.UnmarshalStrict([]byte(object), &role); err != nil {
			t.Fatalf("%v in\n%s", err, object)
		}
		if len(role.Rules) > 0 {
			roles[rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: role.Kind, Name: role.Name}] = true
		}
		if len(role.Subjects) > 0 {
			bindings[role.RoleRef] = true
		}
	}
	if len(roles) != 2 || !reflect.DeepEqual(roles, bindings) {
		t.Errorf("the roles are %v, and bindings refer to %v", roles, bindings)
	}
}
