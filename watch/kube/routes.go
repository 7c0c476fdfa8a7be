package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"

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
		if !slices.Contains(k.Versions, all[i].version) {
			all[i].version = k.Versions[0] // Sluice does not know the version: request one that it knows, to which the server converts
		}
		only, err := c.routes(&o, k, all[i], namespaces)
		if err != nil {
			unread = append(unread, Unread{
				Group: k.Group, Kind: k.Name, Forbidden: errors.Is(err, errForbidden), Only: only,
				Reason: routeReason(err, only), Effect: routeEffect(k, only), Err: err,
			})
		}
	}
	return o, unread, nil
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
		if c.pages(o, k, r, namespace) == nil {
			only = append(only, namespace)
		}
	}
	return only, err
}

// pages reads the objects of a kind in a namespace, page by page. An empty namespace means all.
func (c jsonClient) pages(o *kuberoute.Objects, k kuberoute.Kind, r served, namespace string) error {
	path := "/apis/" + r.group + "/" + r.version + "/"
	if namespace != "" {
		path += "namespaces/" + url.PathEscape(namespace) + "/"
	}
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
			o.Add(object)
		}
		if list.Continue == "" {
			return nil
		}
		query.Set("continue", list.Continue)
	}
}
