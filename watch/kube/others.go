package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// Others counts the objects of a kind that the agent does not read.
type Others struct {
	Group, Kind string
	Count       int
	Reason      string // why Count lacks some objects; empty if it has all
}

// discovery is the Accept header that requests all kinds in one response. Servers before
// Kubernetes 1.26 answer with only a list of groups.
const discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList," +
	"application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json"

// partial is the Accept header that requests only the metadata of objects.
const partial = "application/json;g=meta.k8s.io;v=v1;as=PartialObjectMetadataList,application/json"

// maxAnswer bounds the size of a response in bytes.
const maxAnswer = 64 << 20

// served is a kind that the API server serves. name is the name of its resource, as in
// "pods".
type served struct {
	group, version, kind, name string
	namespaced                 bool     // the objects are in namespaces
	others                     []string // other versions that the server serves, as far as it lists them
}

// CountOthers counts the objects of each kind for which match() returns true. If the user may not
// list a kind in the whole cluster, it counts the objects in the given namespaces, and sets Reason.
func CountOthers(ctx context.Context, config *rest.Config, match func(group, kind string) bool, namespaces ...string) ([]Others, error) {
	c, err := newJSONClient(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("find other kinds of objects: %w", err)
	}
	all, err := c.resources()
	if err != nil {
		return nil, fmt.Errorf("find other kinds of objects: %w", err)
	}
	var found []Others
	for _, r := range all {
		known := slices.ContainsFunc(kinds, func(k *kind) bool { return k.group.Group == r.group && k.name == r.kind })
		if known || !match(r.group, r.kind) {
			continue
		}
		if o := c.countAll(r, namespaces); o.Count > 0 || o.Reason != "" {
			found = append(found, o)
		}
	}
	return found, nil
}

// countAll counts the objects of a kind. If the user may not list them in the whole cluster, it
// counts those in the given namespaces.
func (c jsonClient) countAll(r served, namespaces []string) Others {
	o := Others{Group: r.group, Kind: r.kind}
	var err error
	if o.Count, err = c.count(r, ""); err == nil {
		return o
	}
	o.Reason = err.Error()
	if !errors.Is(err, errForbidden) {
		return o
	}
	var only []string
	for _, namespace := range namespaces {
		if !r.namespaced {
			break
		}
		if n, err := c.count(r, namespace); err == nil {
			o.Count, only = o.Count+n, append(only, namespace)
		}
	}
	o.Reason = unreadReason(true, only)
	return o
}

// errForbidden is the error of a request that the user has no right to make.
var errForbidden = errors.New("forbidden")

// jsonClient sends requests to an API server and decodes the responses as JSON.
type jsonClient struct {
	ctx  context.Context
	base *url.URL
	http *http.Client
}

func newJSONClient(ctx context.Context, config *rest.Config) (jsonClient, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return jsonClient{}, err
	}
	transport, err := rest.HTTPClientFor(config)
	return jsonClient{ctx: ctx, base: base, http: transport}, err
}

// get requests a path and decodes the response into the value to which the last argument
// points. If the path does not exist, get returns nil and does not change the value.
func (c jsonClient) get(path string, query url.Values, accept string, into any) error {
	ctx, stop := context.WithTimeoutCause(c.ctx, pageTimeout, fmt.Errorf("it has not answered within %v", pageTimeout))
	defer stop()
	at := c.base.JoinPath(path)
	at.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", accept)
	answer, err := c.http.Do(request)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	defer answer.Body.Close() // an error does not matter: the body was only read
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	switch {
	case err != nil:
		return cmp.Or(context.Cause(ctx), err)
	case answer.StatusCode == http.StatusNotFound:
		return nil
	case answer.StatusCode == http.StatusForbidden:
		return errForbidden
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("the API server responds with %s", answer.Status)
	}
	return json.Unmarshal(body, into)
}

// resources returns the kinds outside the core API, each in one version.
func (c jsonClient) resources() ([]served, error) {
	var answer struct {
		Groups []metav1.APIGroup `json:"groups"` // set by older servers
		Items  []struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
			Versions []struct {
				Version   string `json:"version"`
				Resources []struct {
					Resource     string `json:"resource"`
					Scope        string `json:"scope"`
					ResponseKind struct {
						Kind string `json:"kind"`
					} `json:"responseKind"`
				} `json:"resources"`
			} `json:"versions"`
		} `json:"items"`
	}
	if err := c.get("/apis", nil, discovery, &answer); err != nil {
		return nil, err
	}
	var all []served
	seen := make(map[[2]string]int) // index in all: the server lists the preferred version of a kind first
	add := func(r served) {
		key := [2]string{r.group, r.kind}
		if i, is := seen[key]; is {
			all[i].others = append(all[i].others, r.version)
			return
		}
		seen[key] = len(all)
		all = append(all, r)
	}
	for _, g := range answer.Items {
		for _, v := range g.Versions {
			for _, r := range v.Resources {
				add(served{g.Metadata.Name, v.Version, r.ResponseKind.Kind, r.Resource, r.Scope == "Namespaced", nil})
			}
		}
	}
	for _, g := range answer.Groups {
		var list metav1.APIResourceList
		if err := c.get("/apis/"+g.PreferredVersion.GroupVersion, nil, "application/json", &list); err != nil {
			return nil, err
		}
		for _, r := range list.APIResources {
			if !strings.Contains(r.Name, "/") {
				add(served{g.Name, g.PreferredVersion.Version, r.Kind, r.Name, r.Namespaced, nil})
			}
		}
	}
	return all, nil
}

// count counts the objects of a kind in a namespace, page by page. An empty namespace means all.
func (c jsonClient) count(r served, namespace string) (int, error) {
	path := "/apis/" + r.group + "/" + r.version + "/"
	if namespace != "" {
		path += "namespaces/" + namespace + "/"
	}
	n := 0
	for query := (url.Values{"limit": {fmt.Sprint(pageSize)}}); ; {
		var list metav1.PartialObjectMetadataList
		if err := c.get(path+r.name, query, partial, &list); err != nil {
			return 0, err
		}
		n += len(list.Items)
		if list.Continue == "" {
			return n, nil
		}
		query.Set("continue", list.Continue)
	}
}
