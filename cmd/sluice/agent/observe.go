package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"sluice/filter/flow"
)

// maxLast bounds the earlier records that a request may ask for.
const maxLast = 1 << 20

// serveFlows streams records, a JSON object on each line: the last ones in the log, as many as the
// parameter "last" says, and, with follow=true, all later ones until the client hangs up or another agent
// takes over. With denied=true, the stream may lack the records of connections that begin and end, which
// then cost the node nothing.
func (f *flows) serveFlows(w http.ResponseWriter, r *http.Request) {
	last, err := strconv.Atoi(r.FormValue("last"))
	if r.FormValue("last") == "" {
		last, err = 0, nil
	}
	if err != nil || last < 0 || last > maxLast {
		http.Error(w, fmt.Sprintf("last: write a number from 0 to %d", maxLast), http.StatusBadRequest)
		return
	}
	follow := r.FormValue("follow") == "true"
	ctx, stop := f.tenure.within(r.Context())
	defer stop()
	if follow && ctx.Err() != nil {
		http.Error(w, "another agent takes over", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	watcher := f.log.Watch(last, r.FormValue("denied") != "true")
	defer watcher.Close()
	control, lines := http.NewResponseController(w), json.NewEncoder(w)
	_ = control.Flush() // tells the client that all flows from now on will be in the stream
	describer := flow.NewDescriber(f.opts.NodeName, f.published.Snapshot)
	var entries [64]flow.Entry
	for {
		n := watcher.Next(ctx, entries[:], follow)
		if n == 0 {
			return
		}
		for i := range entries[:n] {
			if lines.Encode(describer.Record(&entries[i])) != nil {
				return // the client has hung up
			}
		}
		if control.Flush() != nil {
			return
		}
	}
}

// serveDenials lists the last distinct denials, the most recent first.
func (f *flows) serveDenials(w http.ResponseWriter, _ *http.Request) {
	describer := flow.NewDescriber(f.opts.NodeName, f.published.Snapshot)
	all := []*flow.DenialRecord{}
	for _, d := range f.lastDenials() {
		all = append(all, describer.Denial(&d))
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all) // fails only if the client has hung up
}
