package kubepod

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
)

// Workload is an object that makes pods from a template.
type Workload struct {
	Ref   policy.Ref
	Owner policy.Ref // the workload that owns this one, such as the Deployment of a ReplicaSet; zero if there is none
	// Pod is made from the template, with the namespace and the name of the workload. It has no
	// address.
	Pod *policy.Pod
	// Selector are the labels by which the workload finds its pods, from spec.selector.matchLabels.
	// It is empty if the object has no selector, or one with matchExpressions.
	Selector labels.Set
	// LintIgnore is the value of [policy.LintIgnoreAnnotation].
	LintIgnore string
}

// ReadWorkload converts a Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob or
// ReplicationController. It returns nil for any other object.
func ReadWorkload(o metav1.Object) *Workload {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return workload("Deployment", o, &o.Spec.Template, o.Spec.Selector)
	case *appsv1.StatefulSet:
		return workload("StatefulSet", o, &o.Spec.Template, o.Spec.Selector)
	case *appsv1.DaemonSet:
		return workload("DaemonSet", o, &o.Spec.Template, o.Spec.Selector)
	case *appsv1.ReplicaSet:
		return workload("ReplicaSet", o, &o.Spec.Template, o.Spec.Selector)
	case *corev1.ReplicationController:
		template := o.Spec.Template
		if template == nil {
			template = &corev1.PodTemplateSpec{}
		}
		return workload("ReplicationController", o, template, &metav1.LabelSelector{MatchLabels: o.Spec.Selector})
	case *batchv1.Job:
		return workload("Job", o, &o.Spec.Template, o.Spec.Selector)
	case *batchv1.CronJob:
		return workload("CronJob", o, &o.Spec.JobTemplate.Spec.Template, nil)
	}
	return nil
}

func workload(kind string, o metav1.Object, t *corev1.PodTemplateSpec, sel *metav1.LabelSelector) *Workload {
	pod := Read(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName(), Labels: t.Labels},
		Spec:       t.Spec,
	})
	ref := policy.Ref{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
	pod.Owner, pod.Created = ref, 0
	w := &Workload{Ref: ref, Owner: ownerOf(o), Pod: pod, LintIgnore: o.GetAnnotations()[policy.LintIgnoreAnnotation]}
	if sel != nil && len(sel.MatchExpressions) == 0 {
		w.Selector = sel.MatchLabels
	}
	return w
}

// ownerOf returns the controller that owns an object, from metadata.ownerReferences. If it is a
// ReplicaSet whose name a Deployment has made, or a Job whose name a CronJob has made, ownerOf returns
// the Deployment or CronJob. It derives these from the names, which end in a known suffix, because
// clients that list only pods do not see the objects.
func ownerOf(o metav1.Object) policy.Ref {
	owner := metav1.GetControllerOfNoCopy(o)
	if owner == nil {
		return policy.Ref{}
	}
	ref := policy.Ref{Kind: owner.Kind, Namespace: o.GetNamespace(), Name: owner.Name}
	switch hash := o.GetLabels()["pod-template-hash"]; {
	case owner.Kind == "ReplicaSet" && hash != "":
		if name, made := strings.CutSuffix(owner.Name, "-"+hash); made {
			ref.Kind, ref.Name = "Deployment", name
		}
	case owner.Kind == "Job":
		if name, made := cutMinute(owner.Name); made {
			ref.Kind, ref.Name = "CronJob", name
		}
	}
	return ref
}

// cutMinute removes the suffix that a CronJob appends to the names of its Jobs, and reports whether
// there is one. The suffix is the scheduled time in minutes since 1970, which has eight digits from
// 1989 to 2160.
func cutMinute(name string) (string, bool) {
	const digits = 8
	at := len(name) - digits - 1
	if at < 1 || name[at] != '-' || strings.Trim(name[at+1:], "0123456789") != "" {
		return name, false
	}
	return name[:at], true
}
