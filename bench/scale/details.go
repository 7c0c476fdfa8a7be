package main

import (
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var created = time.Unix(1_700_000_000, 0)

// addPodDetails adds to p the other fields of a Deployment's pod: about 3 KB that do not
// affect any decision. All pods of an app get the labels of the app's first pod. One app in
// ten is a StatefulSet, whose pods each get one more label, with the pod's name.
func addPodDetails(p, first *corev1.Pod, i int) {
	p.Labels = maps.Clone(first.Labels)
	if i/10%10 == 0 {
		p.Labels["statefulset.kubernetes.io/pod-name"] = p.Name
	}
	p.UID = uid(1, i)
	p.GenerateName = p.Labels["app"] + "-"
	p.CreationTimestamp = metav1.NewTime(created.Add(time.Duration(i) * time.Second))
	p.Annotations = map[string]string{
		"checksum/config":      strings.Repeat(fmt.Sprintf("%08x", i), 8),
		"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "prometheus.io/path": "/metrics",
		"kubectl.kubernetes.io/restartedAt": created.Format(time.RFC3339),
	}
	yes := true
	p.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: "apps/v1", Kind: "ReplicaSet", Name: p.Labels["app"] + "-5d78c9869d", UID: uid(2, i/10), Controller: &yes, BlockOwnerDeletion: &yes,
	}}
	p.ManagedFields = []metav1.ManagedFieldsEntry{
		managed("kube-controller-manager", "", `{"f:metadata":{"f:annotations":{".":{},"f:checksum/config":{}},"f:generateName":{},"f:labels":{".":{},"f:app":{},"f:tier":{},"f:team":{}},"f:ownerReferences":{".":{}}},"f:spec":{"f:containers":{"k:{\"name\":\"main\"}":{".":{},"f:env":{},"f:image":{},"f:imagePullPolicy":{},"f:livenessProbe":{},"f:name":{},"f:ports":{},"f:resources":{}}},"f:dnsPolicy":{},"f:enableServiceLinks":{},"f:restartPolicy":{},"f:schedulerName":{},"f:securityContext":{},"f:serviceAccount":{},"f:terminationGracePeriodSeconds":{},"f:volumes":{}}}`),
		managed("kubelet", "status", `{"f:status":{"f:conditions":{"k:{\"type\":\"ContainersReady\"}":{".":{},"f:lastTransitionTime":{},"f:status":{},"f:type":{}},"k:{\"type\":\"Ready\"}":{".":{},"f:status":{}}},"f:containerStatuses":{},"f:hostIP":{},"f:phase":{},"f:podIP":{},"f:podIPs":{},"f:startTime":{}}}`),
	}
	addSpecDetails(&p.Spec, p.Labels["app"], i)
	addStatusDetails(&p.Status, i)
}

func managed(manager, subresource, fields string) metav1.ManagedFieldsEntry {
	at := metav1.NewTime(created)
	return metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", Time: &at,
		FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(fields), Subresource: subresource,
	}
}

func addSpecDetails(s *corev1.PodSpec, app string, i int) {
	s.NodeName, s.ServiceAccountName, s.SchedulerName = nodeName(i%1000), app, "default-scheduler"
	s.RestartPolicy, s.DNSPolicy = corev1.RestartPolicyAlways, corev1.DNSClusterFirst
	s.Tolerations = []corev1.Toleration{
		{Key: "node.kubernetes.io/not-ready", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
		{Key: "node.kubernetes.io/unreachable", Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	}
	s.Volumes = []corev1.Volume{
		{Name: "config", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: app + "-config"}}}},
		{Name: "kube-api-access-x7f2k", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}}},
		}}}},
	}
	c := &s.Containers[0]
	c.Image = "images.example.com/team/" + app + ":v1.24.3"
	c.Args = []string{"--config=/etc/app/config.yaml", "--listen=:8080", "--log-level=info"}
	for _, name := range []string{"DATABASE_URL", "CACHE_ADDR", "QUEUE_TOPIC", "FEATURE_FLAGS", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		c.Env = append(c.Env, corev1.EnvVar{Name: name, Value: "value-of-" + strings.ToLower(name)})
	}
	c.Resources = corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("100m"), "memory": resource.MustParse("128Mi")}}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "config", MountPath: "/etc/app"}, {Name: "kube-api-access-x7f2k", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount", ReadOnly: true}}
}

func addStatusDetails(s *corev1.PodStatus, i int) {
	at := metav1.NewTime(created)
	for _, t := range []corev1.PodConditionType{"PodReadyToStartContainers", corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady, corev1.PodScheduled} {
		s.Conditions = append(s.Conditions, corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, LastTransitionTime: at})
	}
	s.HostIP = fmt.Sprintf("172.16.%d.%d", i%1000/250, i%250+1)
	s.HostIPs = []corev1.HostIP{{IP: s.HostIP}}
	s.StartTime, s.QOSClass = &at, corev1.PodQOSBurstable
	started := true
	s.ContainerStatuses = []corev1.ContainerStatus{{
		Name: "main", Ready: true, Started: &started, Image: "images.example.com/team/app:v1.24.3",
		ImageID:     "images.example.com/team/app@sha256:" + strings.Repeat("0a1b2c3d", 8),
		ContainerID: "containerd://" + strings.Repeat(fmt.Sprintf("%08x", i), 8),
		State:       corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at}},
	}}
}

func addPolicyDetails(p *networkingv1.NetworkPolicy, i int) {
	p.UID, p.CreationTimestamp = uid(3, i), metav1.NewTime(created)
	p.Annotations = map[string]string{"app.kubernetes.io/managed-by": "Helm", "meta.helm.sh/release-name": p.Name}
	p.ManagedFields = []metav1.ManagedFieldsEntry{managed("helm", "", `{"f:metadata":{"f:annotations":{}},"f:spec":{"f:ingress":{},"f:podSelector":{},"f:policyTypes":{}}}`)}
}

func makeNode(i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName(i), UID: uid(4, i), CreationTimestamp: metav1.NewTime(created)}}
	n.Spec.PodCIDR = fmt.Sprintf("10.%d.%d.0/24", 1+i/256, i%256)
	n.Spec.PodCIDRs = []string{n.Spec.PodCIDR, fmt.Sprintf("fd00:0:%x::/64", i)}
	for j := range 40 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{fmt.Sprintf("images.example.com/team/app-%d@sha256:%s", j, strings.Repeat("0a1b2c3d", 8))}, SizeBytes: 1 << 27})
	}
	return n
}

func nodeName(i int) string { return fmt.Sprintf("node-%04d", i) }

func uid(kind, i int) types.UID { return types.UID(fmt.Sprintf("%08x-0000-4000-8000-%012x", kind, i)) }
