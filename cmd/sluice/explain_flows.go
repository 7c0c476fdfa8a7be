package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	kjson "sigs.k8s.io/json"

	"sluice/filter"
	"sluice/filter/flow/flowfile"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/near"
)

// maxHeld bounds the lines of --flows at the beginning that are not JSON objects. After so many, the rest is
// not read.
const maxHeld = 100

// flowExample is a flow in --flows.
const flowExample = `{"from": "default/web", "to": "default/db", "port": 6379}`

// flowLine is a line of --flows.
type flowLine struct {
	From     string   `json:"from"`
	To       string   `json:"to"`
	Port     portText `json:"port"`
	Protocol string   `json:"protocol"`

	logged string // the verdict in the file, if an agent has written the line
}

// portText is a port in the input: a number or a name.
type portText string

// UnmarshalJSON accepts a number or a string.
func (p *portText) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte(`"`)) {
		return json.Unmarshal(data, (*string)(p))
	}
	var n json.Number
	if err := json.Unmarshal(data, &n); err != nil {
		return errors.New("port: write a number, or the name of a port of the destination in quotes")
	}
	*p = portText(n)
	return nil
}

// flowError is the output for a flow that cannot be answered.
type flowError struct {
	Line     int             `json:"line"` // number of the line, from 1
	From     string          `json:"from,omitempty"`
	To       string          `json:"to,omitempty"`
	Port     json.RawMessage `json:"port,omitempty"` // port as in the input
	Protocol string          `json:"protocol,omitempty"`
	Error    string          `json:"error"`
}

// explainFlows answers the flows of --flows in order, and reports whether all are allowed. It returns
// an error if it could not answer a flow.
func explainFlows(e env, c *explain.Cluster, opts explainOptions) (allowed bool, err error) {
	in := e.stdin
	if opts.flows != "-" {
		f, err := os.Open(opts.flows)
		if err != nil {
			return false, fmt.Errorf("read flows: %w", err)
		}
		defer f.Close() // the file is only read, so an error is harmless
		in = f
	}
	x := flowExplainer{cluster: c, namespace: opts.question.Namespace, parser: flowfile.NewParser(), out: bufio.NewWriter(e.stdout)}
	x.answer = textAnswers{x.out}
	if opts.format == "json" {
		enc := json.NewEncoder(x.out)
		enc.SetEscapeHTML(false)
		x.answer = jsonAnswers{enc}
	}
	lines, err := flowfile.Open(in)
	if err != nil {
		return false, fmt.Errorf("read flows: %w", err)
	}
	if err := x.run(lines); err != nil {
		return false, err
	}
	if x.skipped > 0 {
		e.say("note: skipped %s without an attempt to connect", count(x.skipped, "line", "lines"))
	}
	if x.failed > 0 {
		return false, fmt.Errorf("%s of %d could not be answered", count(x.failed, "flow", "flows"), x.flows)
	}
	return x.allowed == x.flows, nil
}

// flowExplainer answers one flow after the other. To save time, its answers do not give reasons in
// words: without them, a decision takes less time than reading the flow.
type flowExplainer struct {
	cluster   *explain.Cluster
	namespace string // namespace of names without one
	parser    *flowfile.Parser
	out       *bufio.Writer
	answer    answerWriter
	line      int // number of the current line
	// Counts of all flows, of allowed flows, of flows without an answer, and of lines of agents that are
	// not an attempt to connect.
	flows, allowed, failed, skipped int
	// held are the lines until the first one that is a JSON object. If there is none, the file is not one of
	// flows, and the user gets one error instead of one for each line.
	held     []heldLine
	readable bool // a line is a JSON object
}

// heldLine is a line that cannot be read.
type heldLine struct {
	number int
	text   []byte
	err    error
}

// flowAnswer is the answer about a flow.
type flowAnswer struct {
	explain.Answer
	Logged string `json:"logged,omitempty"` // the verdict in the file, if an agent has written the line
}

// answerWriter writes answers in one format.
type answerWriter interface {
	answered(flowAnswer) error
	failed(flowError) error
}

// run answers all flows of its input. It flushes the answers before it waits for input, so that
// a program may write a flow, read its answer, and write the next.
func (x *flowExplainer) run(in *bufio.Reader) error {
	for {
		if ready, _ := in.Peek(in.Buffered()); bytes.IndexByte(ready, '\n') < 0 {
			if err := x.out.Flush(); err != nil {
				return fmt.Errorf("write answers: %w", err)
			}
		}
		text, err := in.ReadSlice('\n')
		x.line++
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			return errors.Join(x.out.Flush(), fmt.Errorf("read flows: line %d is longer than %d bytes: write one flow per line", x.line, in.Size()))
		case err != nil && !errors.Is(err, io.EOF):
			return errors.Join(x.out.Flush(), fmt.Errorf("read flows: %w", err))
		}
		if text = bytes.TrimSpace(text); len(text) > 0 {
			if err := x.flow(text); err != nil {
				return fmt.Errorf("write answers: %w", err)
			}
		}
		if err != nil || len(x.held) == maxHeld {
			break
		}
	}
	if err := x.out.Flush(); err != nil {
		return fmt.Errorf("write answers: %w", err)
	}
	if len(x.held) > 0 {
		return fmt.Errorf("read flows: line %d is not a JSON object: write a flow as in %s, or give %s", x.held[0].number, flowExample, flowfile.Forms)
	}
	return nil
}

// hold keeps a line that cannot be read until a line is a JSON object, and reports whether it does. At that
// line, it writes the errors of all lines that are held.
func (x *flowExplainer) hold(text []byte, why error) (held bool, err error) {
	switch {
	case x.readable:
		return false, nil
	case !bytes.HasPrefix(text, []byte("{")) || !json.Valid(text):
		x.held = append(x.held, heldLine{x.line, bytes.Clone(text), why})
		return true, nil
	}
	x.readable = true
	for _, l := range x.held {
		if err := x.fail(l.number, l.text, l.err); err != nil {
			return false, err
		}
	}
	x.held = nil
	return false, nil
}

// flow answers one line. It returns an error only if it cannot write.
func (x *flowExplainer) flow(text []byte) error {
	var f *flowLine
	var err error
	if seen, ok := x.parser.Parse(text); !ok {
		f, err = readFlow(text)
	} else {
		f = questionAbout(&seen)
	}
	if held, broken := x.hold(text, err); held || broken != nil {
		x.flows, x.failed = x.flows+1, x.failed+1
		return broken
	}
	if f == nil {
		x.skipped++
		return nil
	}
	x.flows++
	if err == nil {
		var a explain.Answer
		if a, err = x.ask(f); err == nil {
			if a.Verdict == filter.Allow.String() {
				x.allowed++
			}
			return x.answer.answered(flowAnswer{a, f.logged})
		}
	}
	x.failed++
	return x.fail(x.line, text, err)
}

// ask answers a flow. If a pod in a line of an agent does not exist any more, ask uses the other pods of its
// workload, which it finds by the beginning of the name.
func (x *flowExplainer) ask(f *flowLine) (explain.Answer, error) {
	q := explain.Question{From: f.From, To: f.To, Port: string(f.Port), Protocol: f.Protocol, Namespace: x.namespace}
	a, err := x.cluster.Answer(q)
	for first := err; err != nil && f.logged != ""; {
		if !x.shorten(&q) {
			return a, first
		}
		a, err = x.cluster.Answer(q)
	}
	return a, err
}

// shorten replaces the name of a pod that does not exist by the name of its workload. It returns false
// if the workload does not exist either, or if all names are known.
func (x *flowExplainer) shorten(q *explain.Question) bool {
	for _, name := range []*string{&q.From, &q.To} {
		if _, err := netip.ParseAddr(*name); err == nil || x.cluster.Knows(*name) {
			continue
		}
		for short := *name; ; {
			dash := strings.LastIndexByte(short, '-')
			if dash <= strings.IndexByte(short, '/') {
				return false
			}
			if short = short[:dash]; x.cluster.Knows(short) {
				*name = short
				break
			}
		}
		return true
	}
	return false
}

// readFlow parses a line. It rejects unknown fields: if it ignored a misspelled field, the
// answer would be for a flow that the user did not mean.
func readFlow(text []byte) (*flowLine, error) {
	f := new(flowLine)
	strict, err := kjson.UnmarshalStrict(text, f)
	if err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) && wrong.Field != "" {
			return f, fmt.Errorf("%s: it is %s: write a string", wrong.Field, near.Kind(wrong.Value))
		}
		if !bytes.HasPrefix(text, []byte("{")) {
			return f, errors.New("it is not a JSON object: write " + flowExample)
		}
		return f, fmt.Errorf("it cannot be read: %w", err)
	}
	var at kjson.FieldError
	switch {
	case len(strict) == 0:
	case errors.As(strict[0], &at) && strings.HasPrefix(strict[0].Error(), "duplicate"):
		return f, fmt.Errorf("%s: it is given twice: keep one of them", at.FieldPath())
	case errors.As(strict[0], &at):
		return f, fmt.Errorf("%s: there is no such field: the fields of a flow are from, to, port and protocol", at.FieldPath())
	default:
		return f, strict[0]
	}
	return f, nil
}

// fail writes an error for a flow, with the fields that can be read.
func (x *flowExplainer) fail(line int, text []byte, err error) error {
	out := flowError{Line: line, Error: err.Error()}
	var fields map[string]json.RawMessage
	if json.Unmarshal(text, &fields) == nil {
		for name, into := range map[string]*string{"from": &out.From, "to": &out.To, "protocol": &out.Protocol} {
			if json.Unmarshal(fields[name], into) != nil {
				*into = strings.TrimSpace(string(fields[name]))
			}
		}
		out.Port = fields["port"]
	}
	return x.answer.failed(out)
}

// jsonAnswers writes one line of JSON per answer.
type jsonAnswers struct{ enc *json.Encoder }

func (w jsonAnswers) answered(a flowAnswer) error { return w.enc.Encode(a) }
func (w jsonAnswers) failed(f flowError) error    { return w.enc.Encode(f) }

// textAnswers writes one line of text per answer.
type textAnswers struct{ out io.Writer }

func (w textAnswers) answered(a flowAnswer) error {
	port := a.Protocol
	if a.Port != 0 {
		port += fmt.Sprint(" ", a.Port)
	}
	why := whyText(&a.Answer)
	if a.Logged != "" && a.Logged != a.Verdict {
		why += "; logged: " + a.Logged
	}
	_, err := fmt.Fprintf(w.out, "%-5s  %s to %s, %s: %s\n", a.Verdict, a.From, a.To, port, why)
	return err
}

// whyText returns the reasons for an answer in one line.
func whyText(a *explain.Answer) string {
	why := a.Why()
	if a.Otherwise != "" {
		why = fmt.Sprintf("%s in %s, %s otherwise (%s)", a.Depends[0].Verdict, a.Depends[0].Range, a.Otherwise, why)
	}
	parts := func(all []explain.Answer) string {
		denied := 0
		for i := range all {
			if all[i].Verdict == filter.Deny.String() {
				denied++
			}
		}
		return fmt.Sprintf("%d denied; ", denied)
	}
	switch {
	case a.Service != "":
		why = fmt.Sprintf("Service %s, %s, %s%s", a.Service, count(len(a.Backends), "endpoint", "endpoints"), parts(a.Backends), why)
	case len(a.Pairs) > 0:
		why = fmt.Sprintf("%s, %s%s", count(len(a.Pairs), "pair of ends", "pairs of ends"), parts(a.Pairs), why)
	}
	if len(a.Families) > 0 {
		why = ""
		for i, f := range a.Families {
			if i > 0 {
				why += "; "
			}
			why += fmt.Sprintf("%s %s (%s)", f.Family, f.Verdict, f.Why())
		}
	}
	for _, n := range a.Notes {
		why += "; note: " + n
	}
	return why
}

func (w textAnswers) failed(f flowError) error {
	_, err := fmt.Fprintf(w.out, "error  line %d: %s\n", f.Line, f.Error)
	return err
}
