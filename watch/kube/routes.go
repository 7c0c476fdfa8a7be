package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"sluice/filter/policy/kuberoute"
)

// ReadRoutes reads the objects that lead from outside the cluster to Services: those of
// [kuberoute.Kinds] that the cluster serves. It returns the kinds that could not be read, or that
// could be read only in the given namespaces, as Unread: they change no verdict, so they are not an
// error. It returns an error only if it cannot ask the API server for its kinds.
func ReadRoutes(ctx context.Context, config *rest.Config, namespaces ...string) (kuberoute.Objects, []Unread, error) {
	var o kuberoute.Objects
	c, err := newJSONClient(ctx, config)
	if err != nil {
		return o, nil, fmt.Errorf("find routes: %w", err)
	}
	all, err := c.resources()
	if err != nil {
		return o, nil, fmt.Errorf("find routes: %w", err)
	}
	var unread []Unread
	for _, k := range kuberoute.Kinds() {
		i := slices.IndexFunc(all, func(r served) bool { return r.group == k.Group && r.kind == k.Name })
		if i < 0 {
			continue // the cluster does not serve the kind
		}
		var only []string
		r, err := all[i].inVersion(k.Versions)
		if err == nil {
			only, err = c.routes(&o, k, r, namespaces)
		}
		if err != nil {
			unread = append(unread, Unread{
				Group: k.Group, Kind: k.Name, Forbidden: errors.Is(err, errForbidden), Only: only,
				Reason: routeReason(err, only), Effect: routeEffect(k, only), Err: err,
			})
		}
	}
	return o, unread, nil
}

// inVersion returns the kind in the first of the versions that the server serves. It returns an error if
// the server serves none of them.
func (r served) inVersion(known []string) (served, error) {
	serves := append([]string{r.version}, r.others...)
	for _, version := range known {
		if slices.Contains(serves, version) {
			r.version = version
			return r, nil
		}
	}
	return r, fmt.Errorf("the cluster serves it only as %s, which this version of Sluice does not know", strings.Join(serves, ", "))
}

func routeReason(err error, only []string) string {
	if errors.Is(err, errForbidden) {
		return unreadReason(true, only)
	}
	return err.Error()
}

// routeEffect states how answers are affected because a kind was not read. only are the namespaces in
// which it was read.
func routeEffect(k kuberoute.Kind, only []string) string {
	switch {
	case k.InCluster:
		return "the pods of its controllers are known only by their labels"
	case k.Name == "ReferenceGrant":
		return "routes to Services of other namespaces count as refused"
	case len(only) > 0:
		return "what is reached from outside the cluster through those of other namespaces is not known"
	}
	return "what is reached from outside the cluster through them is not known"
}

// routes reads the objects of a kind in the whole cluster. If the user may not list them there, it
// reads those in the given namespaces, and returns the error with the namespaces that it has read.
func (c jsonClient) routes(o *kuberoute.Objects, k kuberoute.Kind, r served, namespaces []string) (only []string, err error) {
	if err = c.pages(o, k, r, ""); !errors.Is(err, errForbidden) || k.InCluster {
		return nil, err
	}
	for _, namespace := range namespaces {
		switch in := c.pages(o, k, r, namespace); {
		case in == nil:
			only = append(only, namespace)
		case !errors.Is(in, errForbidden):
			return only, in
		}
	}
	return only, err
}

// pages reads the objects of a kind in a namespace, page by page. An empty namespace means all. After an
// error, it has added none of them.
func (c jsonClient) pages(o *kuberoute.Objects, k kuberoute.Kind, r served, namespace string) error {
	path := "/apis/" + r.group + "/" + r.version + "/"
	if namespace != "" {
		path += "namespaces/" + url.PathEscape(namespace) + "/"
	}
	var objects []metav1.Object
	for query := (url.Values{"limit": {fmt.Sprint(pageSize)}}); ; {
		var list struct {
			metav1.ListMeta `json:"metadata"`
			Items           []json.RawMessage `json:"items"`
		}
		if err := c.get(path+r.name, query, "application/json", &list); err != nil {
			return err
		}
		for _, item := range list.Items {
			object := k.New()
			if err := json.Unmarshal(item, object); err != nil {
				return fmt.Errorf("the API server sent an unexpected %s: %w", k.Name, err)
			}
			objects = append(objects, object)
		}
		if list.Continue == "" {
			for _, object := range objects {
				o.Add(object)
			}
			return nil
		}
		query.Set("continue", list.Continue)
	}
}
