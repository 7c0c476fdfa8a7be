package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"sluice/filter/event"
	"sluice/filter/flow"
)

// maxLast bounds the earlier records that a request may ask for.
const maxLast = 1 << 20

// serveFlows streams records, a JSON object on each line. These are the last records in the log, as many
// as the parameter "last" says. With follow=true, serveFlows also streams all later records, until the
// client hangs up or another agent takes over. With denied=true, the stream may lack the records of
// connections that begin and end, which then cost the node nothing.
func (f *flows) serveFlows(w http.ResponseWriter, r *http.Request) {
	last, err := strconv.Atoi(r.FormValue("last"))
	if r.FormValue("last") == "" {
		last, err = 0, nil
	}
	if err != nil || last < 0 || last > maxLast {
		http.Error(w, fmt.Sprintf("last: write a number from 0 to %d", maxLast), http.StatusBadRequest)
		return
	}
	selected, err := flow.ReadConditions(r.Form).Filter()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	follow := r.FormValue("follow") == "true"
	ctx, stop := f.tenure.within(r.Context())
	defer stop()
	if follow && ctx.Err() != nil {
		http.Error(w, "the agent does not enforce yet, or another one has taken over", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	watcher := f.watch(last, r.FormValue("denied") != "true", &selected)
	defer watcher.Close()
	_ = http.NewResponseController(w).Flush() // tells the client that all flows from now on will be in the stream
	f.writeFlows(w, &selected, func(into []flow.Entry) int { return watcher.Next(ctx, into, follow) })
}

// watch watches the log from the last flows on that fulfill the conditions.
func (f *flows) watch(last int, connections bool, selected *flow.Filter) *flow.Watcher {
	if selected.IsEmpty() {
		return f.log.Watch(last, connections)
	}
	w := f.log.Watch(0, connections)
	describer := flow.NewDescriber(f.opts.NodeName, f.published.Snapshot)
	w.Back(last, func(e *flow.Entry) bool { return selected.Selects(describer.Record(e)) })
	return w
}

// burst bounds the records that a stream writes at once. Their entries and their text take some 300 KiB
// for each stream.
const burst = 256

// writeFlows calls next for entries until it returns 0. It writes the records of those entries that are
// selected.
func (f *flows) writeFlows(w http.ResponseWriter, selected *flow.Filter, next func([]flow.Entry) int) {
	control := http.NewResponseController(w)
	describer := flow.NewDescriber(f.opts.NodeName, f.published.Snapshot)
	entries := make([]flow.Entry, burst)
	var lines []byte
	for n := next(entries); n > 0; n = next(entries) {
		lines = lines[:0]
		for i := range entries[:n] {
			record := describer.Record(&entries[i])
			if !selected.Selects(record) {
				continue
			}
			var err error
			if lines, err = record.AppendJSON(lines); err != nil {
				f.agent.log.Warn("a flow is not shown", event.FlowsIncomplete.Attr(), "err", err)
				continue
			}
			lines = append(lines, '\n')
		}
		if len(lines) == 0 {
			continue
		}
		if _, err := w.Write(lines); err != nil || control.Flush() != nil {
			return // the client has hung up
		}
	}
}

// serveDenials lists the last distinct denials, the most recent first.
func (f *flows) serveDenials(w http.ResponseWriter, _ *http.Request) {
	describer := flow.NewDescriber(f.opts.NodeName, f.published.Snapshot)
	all := flow.DenialTable{Since: f.started, Denials: describer.Denials(f.lastDenials()), Displaced: f.denials.Displaced()}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(all) // fails only if the client has hung up
}
