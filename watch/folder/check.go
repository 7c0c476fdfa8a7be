package folder

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// checker reports what is wrong with one object.
type checker struct {
	p      *parser
	at     string // prefix of fields
	object string
	before int  // the number of problems of the file before this object
	lost   bool // which object it is cannot be told
}

func (c *checker) problem(field, detail, mend string) {
	c.p.problem(c.object, c.at+field, detail, mend)
}

// strict reports an unknown or a doubled field.
func (c *checker) strict(object any, err error) {
	var at kjson.FieldError
	if !errors.As(err, &at) {
		c.problem("", err.Error(), "write the object as the API documents it")
		return
	}
	path := at.FieldPath()
	if strings.HasPrefix(err.Error(), "duplicate field") {
		c.problem(path, "it stands there twice", "keep one of the two")
		return
	}
	c.problem(path, "there is no such field", suggest(object, path))
}

// undecodable reports a value of the wrong type. The standard decoder is asked
// again because it says in which field.
func (c *checker) undecodable(text []byte, object any, err error) {
	var wrong *json.UnmarshalTypeError
	again := json.Unmarshal(text, newLike(object))
	if !errors.As(again, &wrong) {
		c.problem("", strings.TrimPrefix(err.Error(), "json: "), "write the object as the API documents it")
		return
	}
	mend := "write " + plainType(wrong.Type)
	if wrong.Type.Kind().String() == "string" {
		mend += ", in quotes if need be"
	}
	c.lost = c.lost || wrong.Field == "metadata" || wrong.Field == "metadata.name" || wrong.Field == "metadata.namespace"
	c.problem(wrong.Field, fmt.Sprintf("a %s stands there", wrong.Value), mend)
}

// meta checks what decisions need of the metadata.
func (c *checker) meta(o metav1.Object, kind string) {
	if c.lost {
		return
	}
	if o.GetName() == "" {
		c.lost = true
		c.problem("metadata.name", "it is missing", "give the object a name")
	} else {
		valid := validation.NameIsDNSSubdomain
		if kind == "Namespace" {
			valid = validation.NameIsDNSLabel
		}
		for _, text := range valid(o.GetName(), false) {
			c.problem("metadata.name", fmt.Sprintf("%q is no name", o.GetName()), text)
		}
	}
	if kind != "Namespace" {
		for _, text := range validation.NameIsDNSLabel(o.GetNamespace(), false) {
			c.problem("metadata.namespace", fmt.Sprintf("%q is no name", o.GetNamespace()), text)
		}
	}
	for _, e := range metavalidation.ValidateLabels(o.GetLabels(), field.NewPath("metadata", "labels")) {
		c.problem(e.Field, fmt.Sprintf("%q is not allowed in a label", fmt.Sprint(e.BadValue)), e.Detail)
	}
}

func checkNamespace(o *corev1.Namespace, _ *checker) {
	o.Namespace = "" // a namespace lies in none, and the API server drops it
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
		return // a pod that has no address yet
	}
	if _, err := netip.ParseAddr(text); err != nil {
		c.problem(field, fmt.Sprintf("%q is not an IP address", text), "write it without leading zeros and without a prefix length, such as 10.0.0.1 or 2001:db8::1")
	}
}

// containers defaults and checks the ports that containers declare, which is
// where policies' port names are looked up.
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
				c.problem(where+"protocol", fmt.Sprintf("%q is no protocol", port.Protocol), "write TCP, UDP or SCTP")
			}
			if port.ContainerPort < 1 || port.ContainerPort > 65535 {
				c.problem(where+"containerPort", fmt.Sprintf("%d is no port", port.ContainerPort), "write a number from 1 to 65535")
			}
			if port.Name == "" {
				continue
			}
			for _, text := range utilvalidation.IsValidPortName(port.Name) {
				c.problem(where+"name", fmt.Sprintf("%q is no name of a port", port.Name), text)
			}
		}
	}
}

// checkPolicy applies the API server's defaulting. What only the meaning of rules
// depends on (CIDRs, ranges of ports, selectors) is for the policy package to
// judge. A policy in which something could not be read isolates and allows
// nothing: to leave out what was not understood could open what it forbids.
func checkPolicy(o *networkingv1.NetworkPolicy, c *checker) {
	broken := c.p.problems[c.before:]
	if len(broken) > 0 {
		denyAll(o, broken, c.at)
	}
	if len(o.Spec.PolicyTypes) == 0 {
		o.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(o.Spec.Egress) > 0 {
			o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	for i := range o.Spec.Ingress {
		defaultPorts(o.Spec.Ingress[i].Ports)
	}
	for i := range o.Spec.Egress {
		defaultPorts(o.Spec.Egress[i].Ports)
	}
}

// denyAll takes a broken policy's rules away. Which pods and directions it is for
// is kept if the mistake lies in a rule; otherwise it is for all that were named,
// which is no fewer than was meant, and for both directions.
func denyAll(o *networkingv1.NetworkPolicy, broken []Problem, at string) {
	rulesOnly := true
	for _, p := range broken {
		field := strings.TrimPrefix(p.Field, at)
		rulesOnly = rulesOnly && (strings.HasPrefix(field, "spec.ingress") || strings.HasPrefix(field, "spec.egress"))
		if strings.HasPrefix(field, "spec.podSelector") {
			o.Spec.PodSelector = metav1.LabelSelector{}
		}
	}
	if !rulesOnly || (len(o.Spec.PolicyTypes) == 0 && len(o.Spec.Egress) > 0) {
		o.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	}
	o.Spec.Ingress, o.Spec.Egress = nil, nil
}

func defaultPorts(ports []networkingv1.NetworkPolicyPort) {
	tcp := corev1.ProtocolTCP
	for i := range ports {
		if ports[i].Protocol == nil {
			ports[i].Protocol = &tcp
		}
	}
}
