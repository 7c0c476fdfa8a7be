package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

const manifests = "../deploy/bench"

// kinds are the kinds of objects in deploy/bench.
var kinds = map[string]func() any{
	"Namespace":     func() any { return new(corev1.Namespace) },
	"Service":       func() any { return new(corev1.Service) },
	"Deployment":    func() any { return new(appsv1.Deployment) },
	"Job":           func() any { return new(batchv1.Job) },
	"NetworkPolicy": func() any { return new(networkingv1.NetworkPolicy) },
}

// readManifests reads the files that a kustomization names. Unknown fields are errors.
func readManifests(t *testing.T, dir string) (objects []any) {
	t.Helper()
	var k struct {
		APIVersion, Kind string
		Resources        []string
	}
	text, err := os.ReadFile(filepath.Join(dir, "kustomization.yaml"))
	if err == nil {
		err = yaml.UnmarshalStrict(text, &k)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range k.Resources {
		if filepath.Ext(r) == "" {
			objects = append(objects, readManifests(t, filepath.Join(dir, r))...)
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, r))
		if err != nil {
			t.Fatal(err)
		}
		for _, document := range bytes.Split(text, []byte("\n---\n")) {
			var head metav1.TypeMeta
			if err := yaml.Unmarshal(document, &head); err != nil {
				t.Fatal(err)
			}
			make, known := kinds[head.Kind]
			if !known {
				t.Fatalf("%s: kind %q", r, head.Kind)
			}
			o := make()
			if err := yaml.UnmarshalStrict(document, o); err != nil {
				t.Fatalf("%s: %v", r, err)
			}
			objects = append(objects, o)
		}
	}
	return objects
}

// TestDeployedProgramsAreStarted checks that the commands accept the arguments in the
// manifests.
func TestDeployedProgramsAreStarted(t *testing.T) {
	var started []string
	for _, o := range readManifests(t, filepath.Join(manifests, "without-policies")) {
		var pod corev1.PodSpec
		switch o := o.(type) {
		case *appsv1.Deployment:
			pod = o.Spec.Template.Spec
		case *batchv1.Job:
			pod = o.Spec.Template.Spec
		default:
			continue
		}
		cmd, args, err := rootCommand(env{}).Find(pod.Containers[0].Args)
		if err == nil {
			err = cmd.ParseFlags(args)
		}
		if err == nil {
			err = cmd.ValidateArgs(cmd.Flags().Args())
		}
		if err != nil {
			t.Errorf("%v: %v", pod.Containers[0].Args, err)
		}
		started = append(started, cmd.Name())
	}
	if !slices.Equal(started, []string{"server", "client"}) {
		t.Errorf("started: %v", started)
	}
}

// TestDeployedPoliciesAllowTheBenchmark checks that the policies allow the flows of the
// benchmark and no others.
func TestDeployedPoliciesAllowTheBenchmark(t *testing.T) {
	w := policy.NewStore()
	server, client, other := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	pod := func(name string, labels map[string]string, a netip.Addr) {
		w.SetPod(kubepod.Read(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "sluice-bench", Name: name, Labels: labels},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: a.String(), PodIPs: []corev1.PodIP{{IP: a.String()}}},
		}))
	}
	policies := 0
	for _, o := range readManifests(t, filepath.Join(manifests, "with-policies")) {
		switch o := o.(type) {
		case *corev1.Namespace:
			w.SetNamespace(o.Name, o.Labels)
		case *appsv1.Deployment:
			pod("server", o.Spec.Template.Labels, server)
		case *batchv1.Job:
			pod("client", o.Spec.Template.Labels, client)
		case *networkingv1.NetworkPolicy:
			policies++
			w.SetPolicy(netpol.Read(o))
		}
	}
	pod("other", map[string]string{"app": "other"}, other)
	s, _ := w.Commit()
	if policies != 3 || len(w.Problems()) > 0 {
		t.Fatalf("%d policies, %v", policies, w.Problems())
	}
	for _, tt := range []struct {
		from, to netip.Addr
		proto    filter.Protocol
		port     uint16
		want     filter.Action
	}{
		{client, server, filter.TCP, 8080, filter.Allow},
		{client, server, filter.UDP, 8080, filter.Allow},
		{client, server, filter.TCP, 5201, filter.Allow},
		{client, server, filter.TCP, 20499, filter.Allow},
		{client, netip.MustParseAddr("10.96.0.10"), filter.UDP, 53, filter.Allow},
		{client, server, filter.TCP, 22, filter.Deny},
		{other, server, filter.TCP, 8080, filter.Deny},
		{server, client, filter.TCP, 8080, filter.Deny},
		{client, other, filter.TCP, 80, filter.Deny},
	} {
		if v := s.Decide(filter.NewKey(tt.from, tt.to, tt.proto, tt.port)); v.Action != tt.want {
			t.Errorf("%s to %s, %s %d: %s (%s), want %s", tt.from, tt.to, tt.proto, tt.port, v.Action, v.Reason, tt.want)
		}
	}
}
