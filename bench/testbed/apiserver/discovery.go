package apiserver

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
)

const clusterPolicies = "clusternetworkpolicies"

// Install serves ClusterNetworkPolicies in the given versions from now on, as if their
// CustomResourceDefinition had been installed or replaced. Open watches of
// ClusterNetworkPolicies end. Without versions, Install removes the CustomResourceDefinition
// and all its objects.
func (s *Server) Install(versions ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.installed = versions
	r := s.resources[clusterPolicies]
	if len(versions) == 0 {
		for _, o := range r.sorted() {
			s.record(r, watch.Deleted, o.copy())
		}
	}
	for w := range r.watchers {
		w.end()
	}
}

// pathOf returns the path at which a resource is served to a request, or "" if it is not
// served.
func (s *Server) pathOf(name string, req *http.Request) string {
	if name != clusterPolicies {
		return prefixes[name] + name
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, version := range s.installed {
		if path := "/apis/" + v1beta1.GroupName + "/" + version + "/" + name; path == req.URL.Path {
			return path
		}
	}
	return ""
}

// discover answers requests for the list of API groups, and for the resources of each version of
// the ClusterNetworkPolicy group. It returns false for other requests.
func (s *Server) discover(w http.ResponseWriter, req *http.Request) bool {
	s.mu.Lock()
	installed := s.installed
	s.mu.Unlock()
	version, below := strings.CutPrefix(req.URL.Path, "/apis/"+v1beta1.GroupName+"/")
	switch {
	case req.URL.Path == "/apis":
		answerJSON(w, groupList(installed))
	case below && slices.Contains(installed, version):
		answerJSON(w, resourceList(version))
	case below && !strings.Contains(version, "/"):
		http.NotFound(w, req) // without a Status, as from a real server
	default:
		return false
	}
	return true
}

func groupList(installed []string) *metav1.APIGroupList {
	groups := &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for _, g := range []struct {
		name     string
		versions []string
	}{{"networking.k8s.io", []string{"v1"}}, {v1beta1.GroupName, installed}} {
		if len(g.versions) == 0 {
			continue
		}
		group := metav1.APIGroup{Name: g.name}
		for _, v := range g.versions {
			group.Versions = append(group.Versions, metav1.GroupVersionForDiscovery{GroupVersion: g.name + "/" + v, Version: v})
		}
		group.PreferredVersion = group.Versions[0]
		groups.Groups = append(groups.Groups, group)
	}
	return groups
}

func resourceList(version string) *metav1.APIResourceList {
	verbs := metav1.Verbs{"get", "list", "watch"}
	return &metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: v1beta1.GroupName + "/" + version,
		APIResources: []metav1.APIResource{
			{Name: clusterPolicies, SingularName: "clusternetworkpolicy", Kind: "ClusterNetworkPolicy", Verbs: verbs, ShortNames: []string{"cnp"}},
			{Name: clusterPolicies + "/status", Kind: "ClusterNetworkPolicy", Verbs: metav1.Verbs{"get"}},
		},
	}
}

func answerJSON(w http.ResponseWriter, o any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o) // an error means that the client has gone
}
