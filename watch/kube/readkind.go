package kube

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The kinds that only Read reads, to answer questions: packets do not depend on them.
var (
	serviceKind       = askedKind("Service", "services", corev1.SchemeGroupVersion, &corev1.Service{}, &corev1.ServiceList{})
	endpointSliceKind = askedKind("EndpointSlice", "endpointslices", discoveryv1.SchemeGroupVersion, &discoveryv1.EndpointSlice{}, &discoveryv1.EndpointSliceList{})

	// workloadKinds are the kinds of objects that make pods from a template.
	workloadKinds = []*kind{
		askedKind("Deployment", "deployments", appsv1.SchemeGroupVersion, &appsv1.Deployment{}, &appsv1.DeploymentList{}),
		askedKind("StatefulSet", "statefulsets", appsv1.SchemeGroupVersion, &appsv1.StatefulSet{}, &appsv1.StatefulSetList{}),
		askedKind("DaemonSet", "daemonsets", appsv1.SchemeGroupVersion, &appsv1.DaemonSet{}, &appsv1.DaemonSetList{}),
		askedKind("ReplicaSet", "replicasets", appsv1.SchemeGroupVersion, &appsv1.ReplicaSet{}, &appsv1.ReplicaSetList{}),
		askedKind("Job", "jobs", batchv1.SchemeGroupVersion, &batchv1.Job{}, &batchv1.JobList{}),
		askedKind("CronJob", "cronjobs", batchv1.SchemeGroupVersion, &batchv1.CronJob{}, &batchv1.CronJobList{}),
		askedKind("ReplicationController", "replicationcontrollers", corev1.SchemeGroupVersion, &corev1.ReplicationController{}, &corev1.ReplicationControllerList{}),
	}

	// readKinds are the kinds that Read reads, in this order.
	readKinds = slices.Concat(kinds, []*kind{serviceKind, endpointSliceKind}, workloadKinds)
)

func askedKind(name, resource string, group schema.GroupVersion, object, list runtime.Object) *kind {
	return &kind{name: name, resource: resource, group: group, types: [2]runtime.Object{object, list}, asked: true}
}

// Unread is a kind of objects that could not be read, or that could be read only in some namespaces.
type Unread struct {
	Group, Kind string
	Forbidden   bool     // the user lacks the right to list the kind in the whole cluster
	Only        []string // the namespaces in which it was read nevertheless
	Reason      string   // why it could not be read, as in "forbidden outside of namespace shop"
	Effect      string   // what this means for answers
	Err         error    // the error of the request for the objects of the whole cluster
}

// unreadReason states why a kind was not read. only are the namespaces in which it was read.
func unreadReason(forbidden bool, only []string) string {
	switch {
	case !forbidden:
		return "not served by this cluster"
	case len(only) == 0:
		return "forbidden"
	case len(only) == 1:
		return "forbidden outside of namespace " + only[0]
	}
	return "forbidden outside of namespaces " + strings.Join(only, ", ")
}

// effectOf states how answers are affected because a kind was not read. only are the namespaces in
// which it was read.
func (o *Objects) effectOf(k *kind, only []string) string {
	there := ""
	if len(only) > 0 {
		there = " there"
	}
	switch k {
	case namespaceKind:
		return "selectors match these namespaces only by their name, and not by other labels"
	case podKind:
		return "the pods there are not known, and their addresses count as addresses outside the cluster"
	case networkPolicyKind:
		return "answers lack what policies there deny and allow"
	case clusterNetworkPolicyKind:
		return "answers lack what these policies deny and allow"
	case nodeKind:
		if o.needNodes() {
			return "rules about nodes match none of them, and a pod's own node is known only by the addresses in the pod's status"
		}
		return "a pod's own node is known only by the addresses in the pod's status"
	case serviceKind:
		return fmt.Sprintf("names and addresses of Services%s are not known", there)
	case endpointSliceKind:
		return fmt.Sprintf("the pods behind Services%s are those that their selectors match", there)
	}
	return fmt.Sprintf("those%s without pods are not known, and the others only by their pods", there)
}
