package hubble

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"sluice/filter/flow"
	"sluice/filter/flow/hubbleflow"
)

// query is a GetFlowsRequest.
type query struct {
	filter       *hubbleflow.Filter
	mask         mask
	number       uint64 // 0: no limit
	first        bool   // whether number is that of the oldest flows; otherwise it is that of the last flows before now
	follow       bool
	since, until time.Time // zero: no limit
	now          time.Time // when the query began
	fromNow      bool      // no flows from before now
}

func newQuery(req *observerpb.GetFlowsRequest, now time.Time) (q *query, err error) {
	q = &query{number: req.GetNumber(), first: req.GetFirst(), follow: req.GetFollow(), now: now}
	if q.number == math.MaxUint64 {
		q.number = 0 // "hubble observe --all"
	}
	q.fromNow = req.GetNumber() == 0 && q.follow && req.GetSince() == nil
	switch {
	case q.first && q.follow:
		return nil, errors.New("first and follow exclude each other: leave out one")
	case req.GetExtensions() != nil:
		return nil, errors.New("extensions: Sluice has none: leave it out")
	}
	if req.GetSince() != nil {
		if err := req.GetSince().CheckValid(); err != nil {
			return nil, fmt.Errorf("since: %w", err)
		}
		q.since = req.GetSince().AsTime()
	}
	if req.GetUntil() != nil {
		if err := req.GetUntil().CheckValid(); err != nil {
			return nil, fmt.Errorf("until: %w", err)
		}
		q.until = req.GetUntil().AsTime()
	}
	if q.filter, err = hubbleflow.NewFilter(req.GetWhitelist(), req.GetBlacklist()); err != nil {
		return nil, err
	}
	q.mask, err = newMask(req.GetFieldMask())
	return q, err
}

// backlog returns the number of earlier records that the query needs. size is the number of records that
// the log can keep.
func (q *query) backlog(size int) int {
	if q.fromNow {
		return 0
	}
	return size
}

// lastEntries keeps the last max flows, and the LeftOuts between them. The zero value keeps nothing.
type lastEntries struct {
	max     uint64
	entries []flow.Entry
	flows   uint64
}

func (l *lastEntries) add(e *flow.Entry) error {
	l.entries = append(l.entries, *e)
	if e.Kind != flow.LeftOut {
		l.flows++
	}
	for l.flows > l.max {
		if l.entries[0].Kind != flow.LeftOut {
			l.flows--
		}
		l.entries = l.entries[1:]
	}
	return nil
}

// each calls send with each entry, and forgets the entries.
func (l *lastEntries) each(send func(*flow.Entry) error) error {
	all := l.entries
	l.entries = nil
	for i := range all {
		if err := send(&all[i]); err != nil {
			return err
		}
	}
	return nil
}

// mask is the set of fields of a message that a client wants. The value of a field is the mask of the
// message in this field. A nil mask means all fields.
type mask map[protoreflect.Name]mask

func newMask(m *fieldmaskpb.FieldMask) (mask, error) {
	if len(m.GetPaths()) == 0 {
		return nil, nil
	}
	if !m.IsValid(&flowpb.Flow{}) {
		return nil, fmt.Errorf("field_mask: %s: a flow has no such field", strings.Join(m.GetPaths(), ", "))
	}
	whole := &fieldmaskpb.FieldMask{Paths: append([]string{}, m.GetPaths()...)}
	whole.Normalize() // removes paths below other paths: "source.pod_name" if "source" is there
	out := make(mask)
	for _, path := range whole.GetPaths() {
		at := out
		names := strings.Split(path, ".")
		for i, name := range names {
			n := protoreflect.Name(name)
			if i == len(names)-1 {
				at[n] = nil
				break
			}
			if at[n] == nil {
				at[n] = make(mask)
			}
			at = at[n]
		}
	}
	return out, nil
}

// keep clears all fields of a message that are not in the mask.
func (m mask) keep(message protoreflect.Message) {
	if m == nil {
		return
	}
	message.Range(func(field protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		below, wanted := m[field.Name()]
		switch {
		case !wanted:
			message.Clear(field)
		case below != nil:
			below.keep(v.Message())
		}
		return true
	})
}
