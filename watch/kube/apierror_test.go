package kube

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"

	"sluice/filter/event"
)

// answers are bodies of error responses from servers and proxies. Some lack a reason, and some
// lack a text that describes it.
var answers = map[string]string{
	"nothing":              "",
	"a blank line":         "\n",
	"text":                 "go away\n",
	"HTML":                 "<html><body></body></html>",
	"an empty Status":      `{"kind":"Status","apiVersion":"v1"}`,
	"a Status, no message": `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"%s","code":%d}`,
	"a blank message":      `{"kind":"Status","apiVersion":"v1","status":"Failure","message":" ","reason":"%s","code":%d}`,
}

// For every error response, the log line has a cause and a hint, and no empty attribute.
func TestAPIErrorHasACause(t *testing.T) {
	for _, code := range []int{
		http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusNotAcceptable, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, 599,
	} {
		for name, body := range answers {
			t.Run(fmt.Sprint(code, " with ", name), func(t *testing.T) {
				t.Parallel()
				if strings.Contains(body, "%d") {
					body = fmt.Sprintf(body, strings.ReplaceAll(http.StatusText(code), " ", ""), code)
				}
				server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					if strings.HasPrefix(body, "{") {
						w.Header().Set("Content-Type", "application/json")
					}
					w.WriteHeader(code)
					_, _ = w.Write([]byte(body))
				}))
				t.Cleanup(server.Close)
				f := follow(t, &rest.Config{Host: server.URL}, Options{})
				f.health(podKind, "it has failed", func(h KindHealth) bool { return h.Err != nil })
				f.log.attrs(t, event.APIUnreachable, func(path, text string) {
					if strings.TrimSpace(text) == "" {
						t.Errorf("%s is %q", path, text)
					}
					if path == "problem.cause" && !strings.Contains(text, fmt.Sprint(code)) && !strings.Contains(text, " ") {
						t.Errorf("the cause is %q, which contains neither the code nor a description", text)
					}
				})
			})
		}
	}
}

// attrs calls f for each attribute of the records with the given event.
func (r *records) attrs(t *testing.T, name event.Name, f func(path, text string)) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	seen := 0
	for _, rec := range r.list {
		if eventOf(rec) != name {
			continue
		}
		seen++
		rec.Attrs(func(a slog.Attr) bool { eachAttr("", a, f); return true })
	}
	if seen == 0 {
		t.Errorf("no record of the event %s", name)
	}
}

// eachAttr calls f for an attribute, or for each attribute in a group.
func eachAttr(prefix string, a slog.Attr, f func(path, text string)) {
	v := a.Value.Resolve()
	if v.Kind() != slog.KindGroup {
		f(prefix+a.Key, v.String())
		return
	}
	for _, inner := range v.Group() {
		eachAttr(prefix+a.Key+".", inner, f)
	}
}
