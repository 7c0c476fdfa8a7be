package manifests

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// workloadKind describes a kind of workloads to the parser.
type workloadKind struct {
	name, version string
	// former are removed versions whose fields that are read have the same meaning, each with the
	// Kubernetes version that removed it.
	former map[string]string
	add    func(p *parser, text []byte, at string)
}

// workloadKinds lists all kinds of workloads.
var workloadKinds = []*workloadKind{
	workloadOf("Deployment", "apps/v1", map[string]string{"extensions/v1beta1": "1.16", "apps/v1beta1": "1.16", "apps/v1beta2": "1.16"}, func(o *appsv1.Deployment) *corev1.PodTemplateSpec { return &o.Spec.Template }),
	workloadOf("StatefulSet", "apps/v1", map[string]string{"apps/v1beta1": "1.16", "apps/v1beta2": "1.16"}, func(o *appsv1.StatefulSet) *corev1.PodTemplateSpec { return &o.Spec.Template }),
	workloadOf("DaemonSet", "apps/v1", map[string]string{"extensions/v1beta1": "1.16", "apps/v1beta2": "1.16"}, func(o *appsv1.DaemonSet) *corev1.PodTemplateSpec { return &o.Spec.Template }),
	workloadOf("ReplicaSet", "apps/v1", map[string]string{"extensions/v1beta1": "1.16", "apps/v1beta2": "1.16"}, func(o *appsv1.ReplicaSet) *corev1.PodTemplateSpec { return &o.Spec.Template }),
	workloadOf("ReplicationController", "v1", nil, func(o *corev1.ReplicationController) *corev1.PodTemplateSpec { return o.Spec.Template }),
	workloadOf("Job", "batch/v1", nil, func(o *batchv1.Job) *corev1.PodTemplateSpec { return &o.Spec.Template }),
	workloadOf("CronJob", "batch/v1", map[string]string{"batch/v1beta1": "1.25", "batch/v2alpha1": "1.21"}, func(o *batchv1.CronJob) *corev1.PodTemplateSpec { return &o.Spec.JobTemplate.Spec.Template }),
}

// workloadOf describes the kind of type T. template returns the template of an object.
func workloadOf[T any, P interface {
	*T
	metav1.Object
}](name, version string, former map[string]string, template func(P) *corev1.PodTemplateSpec) *workloadKind {
	return &workloadKind{name, version, former, func(p *parser, text []byte, at string) {
		add(p, text, at, name, P(new(T)), func(o P, c *checker) { checkTemplate(template(o), c) })
	}}
}

// workloadKindOf returns the kind of workloads with this name, or nil.
func workloadKindOf(name string) *workloadKind {
	for _, k := range workloadKinds {
		if strings.EqualFold(k.name, name) {
			return k
		}
	}
	return nil
}

// checkTemplate checks the fields of a template on which decisions depend.
func checkTemplate(t *corev1.PodTemplateSpec, c *checker) {
	if t == nil {
		c.problem("spec.template", "it is missing", "write the template of the pods")
		return
	}
	field := "spec.template.spec."
	if strings.HasPrefix(c.object, "CronJob ") {
		field = "spec.jobTemplate.spec.template.spec."
	}
	c.containers(field+"containers", t.Spec.Containers)
	c.containers(field+"initContainers", t.Spec.InitContainers)
}
