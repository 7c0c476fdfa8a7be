package manifests

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"sluice/filter/policy/near"
)

// checker reports the problems of one object.
type checker struct {
	p            *parser
	at           string // prefix of field names: the object's path in a list, such as "items[0]."; otherwise empty
	object       string
	text         []byte
	unidentified bool // the object has no readable name or namespace
	inCluster    bool // objects of the kind are in no namespace

	kind      *policyKind // nil if the object is not a policy
	uncertain bool        // policies only: the decoded spec may be incomplete
	closed    bool        // policies only: the rules cannot be interpreted

	// For cluster-wide policies only:
	rule    string // the title of the current rule, which begins its hints; empty outside of rules
	accepts bool   // the action of the current rule is Accept
	passes  bool   // the action of the current rule is Pass
	effect  string // what the object does because of the problems that are reported now
}

func (c *checker) problem(field, detail, hint string) {
	c.p.report(Problem{Object: c.object, Field: c.at + field, Detail: detail, Effect: c.effect, Hint: c.rule + hint})
}

// strict handles err, an error of the strict decoder. If err is about an unknown field,
// strict adds a note: the field may belong to a newer API, and does not affect decisions.
// There are two exceptions. An unknown field in the spec of a policy is a problem, which
// specByParts reports. A status of a policy is ignored, because NetworkPolicies had one in
// Kubernetes 1.24 to 1.27. Any other err is a problem.
func (c *checker) strict(object any, err error) {
	isPolicy := c.kind != nil
	c.uncertain = true // the decoder stops after 100 unknown fields, and others may be in the spec
	var at kjson.FieldError
	switch {
	case !errors.As(err, &at):
		c.problem("", err.Error(), "write the object as the API documents it")
	case isPolicy && (at.FieldPath() == "spec" || strings.HasPrefix(at.FieldPath(), "spec.")):
	case isPolicy && (at.FieldPath() == "status" || strings.HasPrefix(at.FieldPath(), "status.")):
	default:
		c.p.note(c.object, c.at+at.FieldPath(), "there is no such field; it is ignored", suggest(object, at.FieldPath()))
	}
}

// undecodable reports err, with which text could not be decoded into object. text is the JSON
// of the field whose path is in the parameter "at", or of the whole object if that is empty. If
// a value has the wrong type, err does not name the value's field. So undecodable decodes text
// again with encoding/json, whose error names the field.
func (c *checker) undecodable(text []byte, object any, at string, err error) {
	var wrong *json.UnmarshalTypeError
	again := json.Unmarshal(text, newLike(object))
	if !errors.As(again, &wrong) {
		c.problem(at, strings.TrimPrefix(err.Error(), "json: "), "write the object as the API documents it")
		return
	}
	hint := "write " + plainType(wrong.Type)
	if wrong.Type.Kind() == reflect.String {
		hint = near.WriteString(wrong.Value)
	}
	field := strings.Trim(at+"."+keyed(text, wrong.Field), ".")
	c.unidentified = c.unidentified || field == "metadata" || field == "metadata.name" || field == "metadata.namespace" && !c.inCluster
	c.problem(field, "it is "+near.Kind(wrong.Value), hint)
}

// keyed returns the path of a value that is not a string. If path is that of a map of strings,
// such as metadata.annotations, keyed adds the key of the first such value, as the decoder does
// not.
func keyed(text []byte, path string) string {
	ofStrings := func(suffix string) bool { return strings.HasSuffix(path, suffix) }
	var whole any
	if !slices.ContainsFunc([]string{"annotations", "abels", "elector"}, ofStrings) || json.Unmarshal(text, &whole) != nil {
		return path
	}
	return path + keyBelow(whole, strings.Split(path, "."))
}

// keyBelow looks in the object at path for the first key whose value is not a string, and returns
// it in brackets, as in `["pod-template-hash"]`; "" if there is none. It looks at each item of a
// list, because the paths of encoding/json have no indexes.
func keyBelow(value any, path []string) string {
	switch v := value.(type) {
	case []any:
		for _, item := range v {
			if key := keyBelow(item, path); key != "" {
				return key
			}
		}
	case map[string]any:
		if len(path) > 0 {
			return keyBelow(v[path[0]], path[1:])
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if _, is := v[key].(string); !is && v[key] != nil {
				return fmt.Sprintf("[%q]", key)
			}
		}
	}
	return ""
}

// meta checks the metadata that decisions depend on.
func (c *checker) meta(o metav1.Object, kind string) {
	if c.unidentified {
		return
	}
	if o.GetName() == "" {
		c.unidentified = true
		c.problem("metadata.name", "it is missing", "give the object a name")
	} else {
		valid := validation.NameIsDNSSubdomain
		if kind == "Namespace" {
			valid = validation.NameIsDNSLabel
		}
		for _, text := range valid(o.GetName(), false) {
			c.problem("metadata.name", fmt.Sprintf("%q is not a name", o.GetName()), text)
		}
	}
	if !inCluster(kind) {
		for _, text := range validation.NameIsDNSLabel(o.GetNamespace(), false) {
			c.problem("metadata.namespace", fmt.Sprintf("%q is not a name", o.GetNamespace()), text)
		}
	}
	c.annotations(o, kind)
	for _, e := range metavalidation.ValidateLabels(o.GetLabels(), field.NewPath("metadata", "labels")) {
		c.problem(e.Field, fmt.Sprintf("%q is not allowed in a label", fmt.Sprint(e.BadValue)), e.Detail)
	}
}

func checkNamespace(o *corev1.Namespace, _ *checker) {
	if o.Labels[corev1.LabelMetadataName] != o.Name {
		if o.Labels == nil {
			o.Labels = make(map[string]string, 1)
		}
		o.Labels[corev1.LabelMetadataName] = o.Name
	}
}

func checkPod(o *corev1.Pod, c *checker) {
	if o.Status.PodIP == "" && len(o.Status.PodIPs) > 0 {
		o.Status.PodIP = o.Status.PodIPs[0].IP
	}
	if o.Status.HostIP == "" && len(o.Status.HostIPs) > 0 {
		o.Status.HostIP = o.Status.HostIPs[0].IP
	}
	if len(o.Status.PodIPs) == 0 {
		c.addr("status.podIP", o.Status.PodIP)
	}
	for i, ip := range o.Status.PodIPs {
		c.addr(fmt.Sprintf("status.podIPs[%d].ip", i), ip.IP)
	}
	if len(o.Status.HostIPs) == 0 {
		c.addr("status.hostIP", o.Status.HostIP)
	}
	for i, ip := range o.Status.HostIPs {
		c.addr(fmt.Sprintf("status.hostIPs[%d].ip", i), ip.IP)
	}
	c.containers("spec.containers", o.Spec.Containers)
	c.containers("spec.initContainers", o.Spec.InitContainers)
}

func (c *checker) addr(field, text string) {
	if text == "" {
		return // the pod has no address yet
	}
	if _, err := netip.ParseAddr(text); err != nil {
		c.problem(field, fmt.Sprintf("%q is not an IP address", text), "write it without leading zeros and without a prefix length, such as 10.0.0.1 or 2001:db8::1")
	}
}

// containers checks the ports that containers declare, and sets their defaults. Policies
// refer to these ports by name.
func (c *checker) containers(at string, containers []corev1.Container) {
	for i := range containers {
		for j := range containers[i].Ports {
			port := &containers[i].Ports[j]
			where := fmt.Sprintf("%s[%d].ports[%d].", at, i, j)
			switch port.Protocol {
			case "":
				port.Protocol = corev1.ProtocolTCP
			case corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP:
			default:
				c.problem(where+"protocol", fmt.Sprintf("%q is not a protocol", port.Protocol), "write TCP, UDP or SCTP")
			}
			if port.ContainerPort < 1 || port.ContainerPort > 65535 {
				c.problem(where+"containerPort", fmt.Sprintf("%d is not a port", port.ContainerPort), "write a number from 1 to 65535")
			}
			if port.Name == "" {
				continue
			}
			for _, text := range utilvalidation.IsValidPortName(port.Name) {
				c.problem(where+"name", fmt.Sprintf("%q is not the name of a port", port.Name), text)
			}
		}
	}
}
