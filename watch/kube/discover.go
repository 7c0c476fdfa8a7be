package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// discoveryTimeout bounds each request of discovery, so that a change is noticed within 30 s
// of the end of an outage.
const discoveryTimeout = 5 * time.Second

// notServed is returned instead of a version if the server does not serve the kind.
var notServed schema.GroupVersion

// discover returns the version in which the server serves an optional kind: the first of
// k.versions that it serves, or notServed. It requests only the list of all groups and documents
// of this kind's group. So it still works while the server of another group is down.
//
// If sure is set, discover first requests the document of each version. A 404 for each of them
// does not prove that the kind is not served: it may come from a proxy without a server behind
// it, or from a server that starts. So discover then also checks the list of groups (see
// disputed), because after notServed, the caller removes all objects of the kind.
//
// If sure is not set, the caller already knows that the kind was not served. Then discover
// requests the list first (see appeared), and usually needs no other request.
func (c *client) discover(ctx context.Context, k *kind, sure bool) (schema.GroupVersion, error) {
	if !sure {
		return c.appeared(ctx, k)
	}
	var missing []schema.GroupVersion
	for _, version := range k.versions() {
		switch serves, err := c.serves(ctx, k, version); {
		case apierrors.IsNotFound(err):
			missing = append(missing, version)
		case err != nil:
			return notServed, err
		case serves:
			return version, nil
		}
	}
	return c.disputed(ctx, k, missing)
}

// appeared is discover without sure, for a kind that was not served so far.
func (c *client) appeared(ctx context.Context, k *kind) (schema.GroupVersion, error) {
	groups, err := c.groupList(ctx, k)
	if err != nil {
		return notServed, err
	}
	for _, version := range k.versions() {
		if !listed(groups, version) {
			continue
		}
		switch serves, err := c.serves(ctx, k, version); {
		case err != nil && !apierrors.IsNotFound(err):
			return notServed, err
		case serves:
			return version, nil
		}
	}
	return notServed, c.otherVersion(ctx, k, groups)
}

// groupList returns the groups that the server serves.
func (c *client) groupList(ctx context.Context, k *kind) ([]metav1.APIGroup, error) {
	var list metav1.APIGroupList
	err := c.document(ctx, k, "/apis", "APIGroupList", &list)
	return list.Groups, err
}

// serves reports whether the server serves a kind in a version. The error is NotFound if the
// server does not have the version.
func (c *client) serves(ctx context.Context, k *kind, version schema.GroupVersion) (bool, error) {
	var list metav1.APIResourceList
	if err := c.document(ctx, k, "/apis/"+version.String(), "APIResourceList", &list); err != nil {
		return false, err
	}
	return slices.ContainsFunc(list.APIResources, func(r metav1.APIResource) bool {
		return r.Name == k.resource && r.Kind == k.name && slices.Contains(r.Verbs, "watch")
	}), nil
}

// disputed is called after the server has answered 404 for the documents of the missing versions.
// While a server starts, and for a second after a change, its list of groups may contain such a
// version nevertheless. Then a request for objects decides. disputed returns the first version
// that the server serves, or notServed. If the server serves the kind only in versions that
// this program does not know, the error is an unknownVersion, because the kind may have objects.
func (c *client) disputed(ctx context.Context, k *kind, missing []schema.GroupVersion) (schema.GroupVersion, error) {
	groups, err := c.groupList(ctx, k)
	if err != nil {
		return notServed, err
	}
	for _, version := range missing {
		if !listed(groups, version) {
			continue
		}
		err := c.listOne(ctx, k, version)
		if err == nil {
			return version, nil
		}
		if !apierrors.IsNotFound(err) {
			return notServed, fmt.Errorf("list %s: %w", k.resource, err)
		}
	}
	return notServed, c.otherVersion(ctx, k, groups)
}

// listOne lists one object of a kind, to learn whether the server has objects of the version.
func (c *client) listOne(ctx context.Context, k *kind, version schema.GroupVersion) error {
	ctx, cancel := context.WithTimeoutCause(ctx, discoveryTimeout, fmt.Errorf("the API server did not answer within %v", discoveryTimeout))
	defer cancel()
	_, err := c.list(ctx, k, version, metav1.ListOptions{Limit: 1})
	return err
}

// unknownVersion is a version of a kind that this program does not know.
type unknownVersion string

func (v unknownVersion) Error() string {
	return fmt.Sprintf("the cluster serves them only in other versions, such as %s", string(v))
}

// otherVersion returns an unknownVersion if the server serves the kind in a version that is
// not one of its known versions.
func (c *client) otherVersion(ctx context.Context, k *kind, groups []metav1.APIGroup) error {
	i := slices.IndexFunc(groups, func(g metav1.APIGroup) bool { return g.Name == k.group.Group })
	if i < 0 {
		return nil
	}
	for _, v := range groups[i].Versions {
		version := schema.GroupVersion{Group: k.group.Group, Version: v.Version}
		if slices.Contains(k.versions(), version) {
			continue
		}
		serves, err := c.serves(ctx, k, version)
		switch {
		case serves:
			return unknownVersion(v.Version)
		case err != nil && !apierrors.IsNotFound(err):
			return err
		}
	}
	return nil
}

func listed(groups []metav1.APIGroup, version schema.GroupVersion) bool {
	return slices.ContainsFunc(groups, func(g metav1.APIGroup) bool {
		return g.Name == version.Group && slices.ContainsFunc(g.Versions, func(v metav1.GroupVersionForDiscovery) bool { return v.Version == version.Version })
	})
}

// document requests a document of discovery and decodes it into out. A response of another
// kind, as from a proxy, is an error.
func (c *client) document(ctx context.Context, k *kind, path, kindOf string, out runtime.Object) error {
	raw, err := c.groups[k.group].Get().AbsPath(path).Timeout(discoveryTimeout).Do(ctx).Raw()
	if err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return fmt.Errorf("get %s: %w", path, err)
	}
	if got := out.GetObjectKind().GroupVersionKind().Kind; got != kindOf {
		return fmt.Errorf("get %s: the response is not an %s, but %q", path, kindOf, got)
	}
	return nil
}
