package manifests

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/near"
)

// annotations reports annotations that are probably meant for Sluice and have no effect.
func (c *checker) annotations(o metav1.Object, kind string) {
	for _, key := range slices.Sorted(maps.Keys(o.GetAnnotations())) {
		applies := c.kind != nil || kind == "Namespace"
		ignores := key == policy.LintIgnoreAnnotation && kind != "Pod" && kind != "Node"
		known := key == policy.DenyWithAnnotation || key == policy.LogAnnotation
		if ignores || known && applies || !likeAnnotation(key) {
			continue
		}
		detail, hint := "Sluice has no such annotation; it has no effect", "write "+meantAnnotation(key)
		if !applies {
			detail, hint = "it has no effect on a "+kind, "annotate the policy or the namespace"
		}
		c.p.note(c.object, fmt.Sprintf("%smetadata.annotations[%q]", c.at, key), detail, hint)
	}
}

// meantAnnotation returns the annotation of Sluice that was probably meant by an unknown key.
func meantAnnotation(key string) string {
	_, name := splitAnnotation(key)
	if _, similar := near.Name(name, []string{"ignore"}); similar {
		return policy.LintIgnoreAnnotation
	}
	if likeLog(name) {
		return policy.LogAnnotation
	}
	return policy.DenyWithAnnotation
}

// likeAnnotation reports whether the key of an annotation is, or is similar to, one of Sluice's
// annotations. All keys with the prefix sluice/ are. Keys with another prefix that contains "sluice" are
// if their name is similar to deny-with or contains "log". Keys without a prefix are if their name is
// similar to deny-with, is that of the flag log-verdicts, or begins with "sluice". Other names with "log"
// do not count without a prefix, because other programs use such names, too.
func likeAnnotation(key string) bool {
	prefix, name := splitAnnotation(key)
	_, likeDenyWith := near.Name(name, []string{"deny-with"})
	switch {
	case prefix == "sluice":
		return true
	case strings.Contains(prefix, "sluice"):
		return likeDenyWith || likeLog(name)
	case prefix == "":
		return likeDenyWith || name == "log-verdicts" || strings.HasPrefix(name, "sluice")
	}
	return false
}

func likeLog(name string) bool { return strings.Contains(name, "log") }

// splitAnnotation returns the prefix and the name of a key in lower case, the name with hyphens only.
func splitAnnotation(key string) (prefix, name string) {
	prefix, name, has := strings.Cut(strings.ToLower(key), "/")
	if !has {
		prefix, name = "", prefix
	}
	return prefix, strings.NewReplacer("_", "-", ".", "-").Replace(name)
}
