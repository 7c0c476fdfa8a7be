package flow_test

import (
	"net/url"
	"reflect"
	"strings"
	"testing"

	"sluice/filter/flow"
)

// Conditions that are written into a request and read from it are the same as before. If one is wrong, the
// error names its field.
func TestConditionsInRequests(t *testing.T) {
	for _, c := range []flow.Conditions{
		{},
		{Verdict: "denied", Namespaces: []string{"shop"}},
		{Verdict: "allowed", From: []string{"shop/web", "ns/a"}, To: []string{"10.0.0.0/8", "world"}, Ports: []string{"53/udp", "80"}, Policies: []string{"admin/a b&c"}},
	} {
		v, err := url.ParseQuery(c.Values().Encode())
		if err != nil {
			t.Fatal(err)
		}
		if got := flow.ReadConditions(v); !reflect.DeepEqual(got, c) {
			t.Errorf("%+v, want %+v", got, c)
		}
		if _, err := c.Filter(); err != nil {
			t.Error(err)
		}
	}
	for query, want := range map[string]string{"verdict=dropped": "verdict: ", "from=a/b/c": "from: ", "to=": "to: ", "port=x": "port: "} {
		v, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := flow.ReadConditions(v).Filter(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", query, err, want)
		}
	}
}
