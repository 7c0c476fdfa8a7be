package agent

import (
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"sluice/filter/flow"
)

// While an agent does not enforce, clients cannot follow its flows. They can still read the records that
// it has kept.
func TestFlowsEndWithTheTenure(t *testing.T) {
	f := &flows{agent: &agent{}, log: flow.NewLog(10, nil)}
	server := httptest.NewServer(http.HandlerFunc(f.serveFlows))
	defer server.Close()
	// ask returns the status code of the answer, and calls begun when it has received the header.
	ask := func(query string, begun func()) int {
		r, err := http.Get(server.URL + query)
		if err != nil {
			t.Error(err)
			return 0
		}
		defer r.Body.Close()
		begun()
		_, _ = io.Copy(io.Discard, r.Body)
		return r.StatusCode
	}
	for range 2 {
		if status := ask("?follow=true", func() {}); status != http.StatusServiceUnavailable {
			t.Errorf("status %d although the agent does not enforce", status)
		}
		f.tenure.begin()
		f.tenure.begin()
		var watching, answers sync.WaitGroup
		watching.Add(2)
		for range 2 {
			answers.Go(func() {
				if status := ask("?follow=true", watching.Done); status != http.StatusOK {
					t.Errorf("status %d", status)
				}
			})
		}
		watching.Wait()
		f.tenure.end()
		answers.Wait()
		if status := ask("?last=5", func() {}); status != http.StatusOK {
			t.Errorf("status %d for what was kept", status)
		}
		f.tenure.end()
	}
	if f.log.Watched().Denials {
		t.Error("something still watches")
	}
}
