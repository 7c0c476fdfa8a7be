package flow

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"time"
)

// AppendJSON appends the record to b, in the form in which [json.Marshal] writes it. If the time of the
// record is beyond the year 9999, AppendJSON returns b unchanged and an error.
func (r *Record) AppendJSON(b []byte) ([]byte, error) {
	w := writer{b: append(b, '{')}
	w.time("time", r.Time)
	w.text("node", r.Node)
	w.name("event")
	w.quote(r.Event)
	w.text("answer", r.Answer)
	w.text("reason", r.Reason)
	w.text("by", r.By)
	w.flag("revoked", r.Revoked)
	w.addr("src", r.Src)
	w.number("sport", uint64(r.SrcPort))
	w.addr("dst", r.Dst)
	w.number("dport", uint64(r.DstPort))
	w.text("proto", r.Protocol)
	w.text("transport", r.Transport)
	w.text("to_service", r.To)
	w.end("from", r.From)
	w.end("to", r.Into)
	w.side("egress", r.Egress)
	w.side("ingress", r.Ingress)
	w.text("missing", r.Missing)
	w.seconds("seconds", r.Seconds)
	w.seconds("idle_seconds", r.Idle)
	w.traffic("sent", r.Sent)
	w.traffic("received", r.Received)
	w.number("count", r.Count)
	if w.err != nil {
		return b, w.err
	}
	return append(w.b, '}'), nil
}

// writer appends the fields of a JSON object. Its methods leave out empty fields, except the method time.
type writer struct {
	b   []byte
	err error // the first error
}

// name begins a field.
func (w *writer) name(name string) {
	if w.b[len(w.b)-1] != '{' {
		w.b = append(w.b, ',')
	}
	w.b = append(append(append(w.b, '"'), name...), '"', ':')
}

func (w *writer) text(name, value string) {
	if value != "" {
		w.name(name)
		w.quote(value)
	}
}

// quote appends a string.
func (w *writer) quote(s string) {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			w.marshal(s)
			return
		}
	}
	w.b = append(append(append(w.b, '"'), s...), '"')
}

// marshal appends any value.
func (w *writer) marshal(v any) {
	text, err := json.Marshal(v)
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("encode a record: %w", err)
	}
	w.b = append(w.b, text...)
}

func (w *writer) number(name string, n uint64) {
	if n != 0 {
		w.name(name)
		w.b = strconv.AppendUint(w.b, n, 10)
	}
}

func (w *writer) flag(name string, set bool) {
	if set {
		w.name(name)
		w.b = append(w.b, "true"...)
	}
}

// time appends a field with a time. It writes a zero time, too.
func (w *writer) time(name string, t time.Time) {
	w.name(name)
	text, err := t.AppendText(append(w.b, '"'))
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("encode the time of a record: %w", err)
	}
	w.b = text
	w.b = append(w.b, '"')
}

func (w *writer) addr(name string, a netip.Addr) {
	if a.IsValid() {
		w.name(name)
		w.b = append(a.AppendTo(append(w.b, '"')), '"')
	}
}

// seconds appends a field with a number of seconds. As json.Marshal does, it writes very small and very
// large numbers with an exponent.
func (w *writer) seconds(name string, s float64) {
	switch {
	case s == 0:
	case math.Abs(s) < 1e-6 || math.Abs(s) >= 1e21:
		w.name(name)
		w.marshal(s)
	default:
		w.name(name)
		w.b = strconv.AppendFloat(w.b, s, 'f', -1, 64)
	}
}

func (w *writer) traffic(name string, t *Traffic) {
	if t == nil {
		return
	}
	w.name(name)
	w.b = strconv.AppendUint(append(w.b, `{"packets":`...), t.Packets, 10)
	w.b = append(strconv.AppendUint(append(w.b, `,"bytes":`...), t.Bytes, 10), '}')
}

func (w *writer) end(name string, e *End) {
	if e != nil {
		w.name(name)
		w.known(e.encoded, e)
	}
}

func (w *writer) side(name string, s *Side) {
	if s != nil {
		w.name(name)
		w.known(s.encoded, s)
	}
}

// known appends v. If a Describer has made v, encoded is the JSON text of v; otherwise encoded is nil.
func (w *writer) known(encoded []byte, v any) {
	if encoded == nil {
		w.marshal(v)
		return
	}
	w.b = append(w.b, encoded...)
}
